"""Names of arguments mean the same everywhere, and so do their defaults: nothing is shown, kept or raised unasked."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import ncml

DEFAULTS = {
    "check_finite": (True,),
    "context": (None,),
    "create_graph": (False,),
    "data_std": (None,),
    "edges": (True, None),  # None: by the time
    "enabled": (True,),
    "generator": (None,),
    "label_dropout": (0.1,),
    "lengths": (None,),
    "low_discrepancy": (True,),
    "on_failure": ("raise",),
    "progress": (False, None),  # None: where the checks take long
    "seed": (0,),
    "t": (0.0, None),  # None: drawn
}
OTHERS = {"download_cifar10": ("progress",), "download_mnist": ("progress",)}  # what a person calls, and waits for


def functions() -> Iterator[tuple[str, inspect.Signature]]:
    """All of the library, methods among them."""
    for info in pkgutil.walk_packages(ncml.__path__, "ncml."):
        if info.name.startswith(("ncml.cli", "ncml.__main__")):
            continue
        module = importlib.import_module(info.name)
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == info.name]
        for value in own:
            for found in vars(value).values() if inspect.isclass(value) else [value]:
                if inspect.isfunction(found):
                    yield found.__qualname__, inspect.signature(found)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_the_same_everywhere(name):
    found = {
        where: signature.parameters[name].default
        for where, signature in functions()
        if name in signature.parameters and name not in OTHERS.get(where, ())
    }
    others = {where: value for where, value in found.items() if value not in (*DEFAULTS[name], inspect.Parameter.empty)}
    assert len(found) > 1
    assert others == {}
