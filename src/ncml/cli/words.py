"""Messages in the words of the command line, where a library's ``size=...`` is an option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from ncml.errors import NCMLError

__all__ = ["in_options", "number_of"]


def number_of(n: int, noun: str) -> str:
    """A number of things, ``1 image`` or ``2,000 images``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


@contextmanager
def in_options(**tables: Any) -> Iterator[None]:  # noqa: ANN401 -- dataclasses of settings
    """Make errors name options instead of settings: ``data=source`` turns ``size=8`` into ``--data.size 8``."""
    try:
        yield
    except NCMLError as error:
        text = str(error)
        for table, settings in tables.items():
            for name in (f.name for f in fields(settings)):
                option = f"--{table}.{name.replace('_', '-')}"
                text = re.sub(rf"(?<![\w.-]){name}( = |=)(?=\S)", f"{option} ", text)
                text = re.sub(rf"^{name}:", f"{option}:", text)
        if text == str(error):
            raise
        raise type(error)(text) from error
