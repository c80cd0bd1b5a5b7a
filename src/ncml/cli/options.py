"""The options of a model on the command line: a dataclass for tyro, made from its settings."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import tyro

from ncml.errors import ArgumentError
from ncml.training.models import MODELS, ModelConfig, model_settings, takes_more

__all__ = ["model_config", "model_options"]

OPTIONS = f"""Which model to train, and its settings.

Args:
    name: {", ".join(MODELS)}; or package.module:function for a model of your own, called as
        function(event_shape, process, lattice, **settings).
    classes: Condition on the class of each example.
    compile: Compile the model with torch.compile; for ncpn, the block that it repeats.
    recompute: Recompute blocks in the backward pass instead of keeping their activations, if the model can.
    set: KEY=VALUE, a further setting for a function that takes any; may be repeated.
    settings: The model's own settings.
"""


def model_options(config: ModelConfig) -> tuple[type[Any], Any]:
    """A dataclass with the options of a model, and its instance with the values of a configuration."""
    kind = model_settings(config.name)
    fields: list[tuple[str, Any]] = [("name", str), ("classes", bool), ("compile", bool), ("recompute", bool)]
    values: dict[str, Any] = {name: getattr(config, name) for name, _ in fields}
    if takes_more(config.name):
        fields.append(("set", Annotated[tuple[str, ...], tyro.conf.UseAppendAction]))
        values["set"] = ()
    if dataclasses.fields(kind):
        fields.append(("settings", Annotated[kind, tyro.conf.arg(name="")]))
        values["settings"] = config.settings
    defaults = [(name, hint, dataclasses.field(default=values[name])) for name, hint in fields]
    options = dataclasses.make_dataclass("ModelOptions", defaults, frozen=True)
    options.__doc__ = OPTIONS
    options.more = config.more  # type: ignore[attr-defined]
    return options, options()


def model_config(options: Any) -> ModelConfig:  # noqa: ANN401 -- an instance of what model_options returned
    """The configuration that options stand for."""
    more = {**options.more, **dict(map(_parsed, getattr(options, "set", ())))}
    common = (options.name, options.classes, options.compile, options.recompute)
    return ModelConfig(*common, getattr(options, "settings", None), more)


def _parsed(text: str) -> tuple[str, Any]:
    """``key=value``, whose value is read as TOML if possible, and otherwise as text."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # what tomllib came from
        import tomli as tomllib
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ArgumentError(f"model.set: got {text!r}; expected KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
