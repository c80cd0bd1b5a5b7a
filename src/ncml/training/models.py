"""From a configuration to a model: the only place in the program that knows which models there are.

A bundled model is an entry of ``MODELS``: a frozen dataclass of settings, beside the model, with a method
``build(event_shape, process, lattice, *, classes)``. A model of your own is a function (or class) that Python can
import, named ``package.module:function``, and called as ``function(event_shape, process, lattice, **settings)``; its
keyword parameters are its settings.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import torch

from ncml.densities.made import MADESettings
from ncml.densities.maf import MAFSettings
from ncml.densities.ncpn import NCPNSettings
from ncml.densities.transformer import CausalTransformerSettings
from ncml.densities.transformer_flow import TransformerFlowSettings
from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import Lattice, NoiseProcess
from ncml.training.draws import stream_seed
from ncml.training.settings import from_dict, to_dict

__all__ = ["MODELS", "ModelConfig", "ModelSettings", "build_model", "capability", "model_settings", "takes_more"]

OWN = ("name", "classes", "compile", "recompute")
"""Settings of every model; no model may have one of these names for itself, but for classes."""


class ModelSettings(Protocol):
    """The settings of a bundled model: a frozen dataclass that builds it."""

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> NoiseConditionalDensity:
        """The model, with random weights."""


MODELS: dict[str, type[Any]] = {
    "ncpn": NCPNSettings,
    "maf": MAFSettings,
    "made": MADESettings,
    "causal-transformer": CausalTransformerSettings,
    "transformer-flow": TransformerFlowSettings,
}
"""The bundled models: their names, and the dataclasses of their settings."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model to train, and its settings.

    In TOML the model's own settings go in the same table: ``[model] name = "maf"``, ``transforms = 3``.

    Args:
        name: ncpn (images), causal-transformer (sequences), transformer-flow (either), maf (a flow) or made; or
            package.module:function for a model of your own, called as function(event_shape, process, lattice,
            **settings).
        classes: Condition on the class of each example.
        compile: Compile the model with torch.compile; for ncpn, the block that it repeats.
        recompute: Recompute blocks in the backward pass instead of keeping their activations, if the model can.
        settings: The model's own settings, an instance of what :func:`model_settings` returns; its defaults if None.
        more: Further settings, by name, for a function that takes any.
    """

    name: str = "ncpn"
    classes: bool = False
    compile: bool = False
    recompute: bool = False
    settings: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = model_settings(self.name)
        if self.settings is None:
            object.__setattr__(self, "settings", from_dict(kind, {}, "model"))
        if not isinstance(self.settings, kind):
            raise ArgumentTypeError(
                f"model.settings: got {type(self.settings).__name__}; expected {kind.__name__}, those of {self.name!r}"
            )
        if self.more and not takes_more(self.name):
            raise ArgumentError(f"model.{next(iter(self.more))}: got a setting that {self.name!r} does not have")
        taken = {*OWN, *(f.name for f in dataclasses.fields(kind)), *_first_three(self.name)}
        if clash := sorted(taken & set(self.more)):
            raise ArgumentError(
                f"model.set: got {clash[0]!r}, which has an option of its own or belongs to the program; expected a "
                f"further setting of {self.name!r}; use --model.{clash[0]} if there is one"
            )

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> ModelConfig:
        """The model of a table of settings, its own among them."""
        name = data.get("name", "ncpn")
        if not isinstance(name, str):
            raise ArgumentError(f"{where}.name: got {name!r}; expected a text, one of {', '.join(MODELS)}")
        kind = model_settings(name)
        known = {f.name for f in dataclasses.fields(kind)}
        common = {key: value for key, value in data.items() if key in OWN}
        others = {key: value for key, value in data.items() if key not in OWN and key not in known}
        if others and not takes_more(name):
            raise ArgumentError(
                f"{where}.{next(iter(others))}: got a setting that {name!r} does not have; expected one of "
                f"{', '.join([*OWN, *sorted(known)])}"
            )
        settings = from_dict(kind, {key: value for key, value in data.items() if key in known}, where)
        return dataclasses.replace(from_dict(_Common, common, where).config(settings), more=others)

    def to_plain(self) -> dict[str, Any]:
        """The table of settings that :meth:`read` reads."""
        return {**{name: getattr(self, name) for name in OWN}, **to_dict(self.settings), **self.more}


@dataclass(frozen=True)
class _Common:
    """The settings that every model has."""

    name: str = "ncpn"
    classes: bool = False
    compile: bool = False
    recompute: bool = False

    def config(self, settings: Any) -> ModelConfig:  # noqa: ANN401 -- of any model
        return ModelConfig(self.name, self.classes, self.compile, self.recompute, settings)


def model_settings(name: str) -> type[Any]:
    """The dataclass of a model's own settings.

    For a function it is made of its keyword parameters, with their types, defaults and docstrings.

    Raises:
        ArgumentError: There is no model of this name, or it cannot be imported; the known ones are listed.
        ArgumentTypeError: The function cannot be called as a model.
    """
    if name in MODELS:
        return MODELS[name]
    return _settings_of(_imported(name), name)


def _first_three(name: str) -> list[str]:
    """What a function calls the event shape, the process and the lattice."""
    return [] if name in MODELS else list(inspect.signature(_imported(name)).parameters)[:3]


def takes_more(name: str) -> bool:
    """Whether a model takes settings of any name: a function with ``**settings``."""
    if name in MODELS:
        return False
    parameters = inspect.signature(_imported(name)).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def build_model(
    config: ModelConfig,
    event_shape: Sequence[int],
    process: NoiseProcess,
    lattice: Lattice | None,
    classes: int,
    seed: int,
) -> NoiseConditionalDensity:
    """A model with random weights, which are a function of the seed.

    Args:
        config: Which model.
        event_shape: Shape of one example.
        process: The noise process.
        lattice: The lattice of the data, or None.
        classes: Number of classes of the data, if the model is to use them; else 0.
        seed: The seed.

    Raises:
        ArgumentError: Settings that do not fit the data.
        ArgumentTypeError: The function returned no density.
        UnsupportedError: The model lacks a capability that is asked for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        if config.name in MODELS:
            density = config.settings.build(tuple(event_shape), process, lattice, classes=classes)
        else:
            density = _call(config, tuple(event_shape), process, lattice, classes)
    _check_fits(density, config.name, tuple(event_shape), process, lattice)
    if config.recompute:
        capability(density, "recompute_blocks", "model.recompute", config.name)()
    if config.compile:
        compile_blocks = getattr(density, "compile_blocks", None)
        if compile_blocks is not None:
            compile_blocks()
        else:
            density.compile()
    return density


def capability(density: NoiseConditionalDensity, method: str, setting: str, name: str) -> Callable[..., Any]:
    """A method that only some models have, for a setting that asks for it.

    Raises:
        UnsupportedError: This one has none.
    """
    found: Callable[..., Any] | None = getattr(density, method, None)
    if found is None:
        raise UnsupportedError(
            f"{setting}: got it on and {name!r}, a {type(density).__name__} without {method}(); expected it off"
        )
    return found


def _call(
    config: ModelConfig, shape: tuple[int, ...], process: NoiseProcess, lattice: Lattice | None, classes: int
) -> NoiseConditionalDensity:
    """What the function of a model of one's own returns."""
    function = _imported(config.name)
    given = {f.name: getattr(config.settings, f.name) for f in dataclasses.fields(config.settings)}
    if classes:
        if "classes" not in inspect.signature(function).parameters and not takes_more(config.name):
            raise UnsupportedError(
                f"model.classes: got True and {config.name!r}, which takes no classes; expected a keyword parameter "
                f"classes, their number; or leave --model.classes out"
            )
        given["classes"] = classes
    try:
        density = function(shape, process, lattice, **given, **config.more)
    except TypeError as error:  # a setting of another name or type, most often
        raise ArgumentError(
            f"model.name: got an error from {config.name!r} with the settings {given | dict(config.more)} ({error}); "
            f"expected settings that it takes"
        ) from error
    if not isinstance(density, NoiseConditionalDensity):
        raise ArgumentTypeError(
            f"model.name: got {config.name!r}, which returned {type(density).__name__}; expected a "
            f"NoiseConditionalDensity; wrap functions and modules in ncml.densities.CallableDensity"
        )
    return density


def _check_fits(
    density: NoiseConditionalDensity,
    name: str,
    shape: tuple[int, ...],
    process: NoiseProcess,
    lattice: Lattice | None,
) -> None:
    """Refuse a model of something else than the data."""
    if density.event_shape != shape:
        raise ArgumentError(f"model.name: got {name!r} of event_shape {density.event_shape}; expected {shape}")
    if density.process is not None and density.process != process:
        raise ArgumentError(
            f"model.name: got {name!r} for the process {density.process}; expected {process}, the one it is given"
        )
    if density.lattice is not None and density.lattice != lattice:
        expected = "None: the data have none" if lattice is None else str(lattice)
        raise ArgumentError(f"model.name: got {name!r} with the lattice {density.lattice}; expected {expected}")


def _imported(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names."""
    module_name, _, attribute = name.partition(":")
    known = f"one of {', '.join(MODELS)}, or package.module:function"
    if not module_name or not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise ArgumentError(f"model.name: got {name!r}; expected {known}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something of its own
        raise ArgumentError(
            f"model.name: got {name!r}, and no module {error.name!r} on Python's path; expected {known}; for a module "
            f"in this folder start the program as python -m ncml, or set PYTHONPATH=."
        ) from error
    try:
        function = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ArgumentError(f"model.name: got {name!r}, and {error}; expected a function there") from error
    if not callable(function):
        raise ArgumentTypeError(f"model.name: got {name!r}, a {type(function).__name__}; expected a function")
    return function


@functools.cache
def _settings_of(function: Callable[..., Any], name: str) -> type[Any]:
    """The keyword parameters of a function as a dataclass of settings."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ArgumentTypeError(
            f"model.name: got {name!r} with the parameters ({', '.join(p.name for p in parameters)}); expected a "
            f"function of (event_shape, process, lattice, **settings)"
        )
    try:
        hints = get_type_hints(_annotated(function))
    except NameError as error:
        raise ArgumentTypeError(
            f"model.name: got {name!r} with a type that is not known ({error}); expected types that can be looked up; "
            f"import them outside of TYPE_CHECKING"
        ) from error
    fields: list[Any] = []
    for p in parameters:
        if p in positional[:3] or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) or p.name == "classes":
            continue
        if p.name in OWN or p.name == "set":
            raise ArgumentError(f"model.name: got {name!r} with a setting {p.name!r}, which every model has; rename it")
        hint = _as_plain(hints.get(p.name), p.default)
        if not _is_plain(hint):
            if p.default is p.empty:
                raise ArgumentTypeError(
                    f"model.name: got {name!r} with a setting {p.name!r} of type {hint}; expected a number, text, "
                    f"truth value, Literal or tuple of them, which a file can hold"
                )
            continue  # not for a file or a command line: its default stays
        default = tuple(p.default) if isinstance(p.default, list) else p.default
        fields.append((p.name, hint) if p.default is p.empty else (p.name, hint, field(default=default)))
    called = getattr(function, "__name__", type(function).__name__)
    kind = dataclasses.make_dataclass(f"{called}_settings", fields, frozen=True, kw_only=True)
    kind.__doc__ = inspect.getdoc(function)
    return kind


def _annotated(function: Callable[..., Any]) -> Any:  # noqa: ANN401 -- what has the annotations
    """Where the types of the parameters of a function, class, partial or callable object are written."""
    if isinstance(function, functools.partial):
        return _annotated(function.func)
    if inspect.isclass(function):
        return function.__init__
    return function if inspect.isroutine(function) else type(function).__call__


def _as_plain(hint: Any, default: Any) -> Any:  # noqa: ANN401 -- a type
    """The type of a setting as a file has it: lists and sequences are tuples, int or float is float."""
    if hint is None or hint in (tuple, list):
        if isinstance(default, (tuple, list)) and default:
            return tuple[type(default[0]), ...]  # type: ignore[misc]
        return Any if default in (inspect.Parameter.empty, None) else type(default)
    if get_origin(hint) in (list, collections.abc.Sequence):
        return tuple[get_args(hint)[0], ...]  # type: ignore[misc]
    if get_origin(hint) in (Union, types.UnionType) and set(get_args(hint)) == {int, float}:
        return float
    return hint


def _is_plain(hint: Any) -> bool:  # noqa: ANN401 -- a type
    """Whether values of a type can be written in a file."""
    if hint in (bool, int, float, str, Path):
        return True
    if get_origin(hint) is Literal:
        return True
    arguments = [a for a in get_args(hint) if a not in (type(None), Ellipsis)]
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return len(set(arguments)) == 1 and _is_plain(arguments[0])
    return False
