"""Frozen dataclasses of settings to plain data and back: what TOML and JSON hold."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ncml.checks import check_choice
from ncml.data import DataSource, source_settings
from ncml.errors import ArgumentError

__all__ = ["from_dict", "parse_toml", "read_source", "to_dict"]

Settings = TypeVar("Settings")


def to_dict(settings: Any) -> dict[str, Any]:  # noqa: ANN401 -- any dataclass
    """Settings as nested dicts of JSON data; uses their own ``to_plain()`` if they have one."""
    if hasattr(settings, "to_plain"):
        return dict(settings.to_plain())
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:  # noqa: ANN401 -- a field's
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def from_dict(kind: type[Settings], data: Mapping[str, Any], where: str = "configuration") -> Settings:
    """Settings from nested dicts; what is missing takes its default.

    A field whose type depends on its value is read by the function ``read(data, where)`` in its metadata.

    Raises:
        ArgumentError: An unknown name, or a value of the wrong type; the message says where.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, value in data.items():
        here = f"{where}.{name}"
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise ArgumentError(f"{here}: got a name that is not known; expected one of {known}")
        read = fields[name].metadata.get("read")
        if read is not None and isinstance(value, Mapping):
            values[name] = read(value, here)
        else:
            values[name] = _converted(value, hints[name], here)
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ArgumentError(f"{where}: got no {missing[0]}; expected one, since it has no default")
    return kind(**values)


def read_source(data: Mapping[str, Any], where: str) -> DataSource:
    """Which data, by their name."""
    source: DataSource = from_dict(source_settings(data.get("name", "mnist")), data, where)
    return source


def parse_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ArgumentError: It is not TOML.
        OSError: It cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # what tomllib came from
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(f"{path}: got a file that is not TOML ({error})") from error


def _converted(value: Any, hint: Any, where: str) -> Any:  # noqa: ANN401 -- JSON data to any type
    """value as the type of a field."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value, where)
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [h for h in get_args(hint) if h is not type(None)]
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ArgumentError(f"{where}: got {value!r}; expected a list, such as [{value!r}]")
        return tuple(_converted(v, get_args(hint)[0], where) for v in value)
    if get_origin(hint) is Literal:
        check_choice(value, where, get_args(hint))
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ArgumentError(f"{where}: got {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value
