"""The commands as tyro sees them; imported only if tyro is installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ncml.cli.demo import demo
from ncml.cli.evaluate import evaluate
from ncml.cli.options import model_config, model_options
from ncml.cli.sample import complete, sample
from ncml.cli.train import SETTINGS, check_resumed, train
from ncml.data import source_settings
from ncml.errors import ArgumentError
from ncml.training.config import ModelConfig, NoiseConfig, OptimConfig, RunConfig, TrainConfig, from_dict, read_toml
from ncml.training.migration import migrated_config
from ncml.training.models import model_settings
from ncml.training.parallel import finish

__all__ = ["run_command"]

OUT = Path("runs/train")
DESCRIPTION = "Noise conditional maximum likelihood: train, sample and evaluate likelihood models at every noise level."


def run_command(arguments: Sequence[str]) -> int:
    """Parse and run one command; returns its exit status."""
    arguments = list(arguments) or ["--help"]
    before = _settings_before(arguments) if arguments[:1] == ["train"] else TrainConfig()
    commands: dict[str, Callable[..., Any]] = {"demo": demo, "train": _train_command(before)}
    commands |= {"sample": sample, "complete": complete, "evaluate": evaluate}
    name, *rest = arguments
    if name in commands:  # alone, so that what it suggests for a misspelt option is one of its own
        result = tyro.cli(commands[name], prog=f"ncml {name}", args=rest)
    else:
        result = tyro.extras.subcommand_cli_from_dict(commands, prog="ncml", description=DESCRIPTION, args=arguments)
    finish()
    return int(result or 0)


def _settings_before(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that the command line's options then change: the file's, or that of the resumed run.

    Which options exist depends on the model and the data, so their names are looked up first.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--model.name", dest="model")
    parser.add_argument("--data.name", dest="data")
    try:
        known, _ = parser.parse_known_args(list(arguments[1:]))
    except argparse.ArgumentError:
        return TrainConfig()  # tyro will say what is wrong
    before = TrainConfig()
    if known.config is not None:
        if not known.config.exists() or known.config.is_dir():
            raise ArgumentError(
                f"config: got {known.config}, where there is no file; expected a TOML file, or the config.json of a run"
            )
        before = _stored(known.config) if known.config.suffix == ".json" else read_toml(known.config)
    elif known.resume and (known.out / SETTINGS).exists():
        before = _stored(known.out / SETTINGS)
    return _renamed(before, known.model, known.data)


def _renamed(before: TrainConfig, model: str | None, data: str | None) -> TrainConfig:
    """The configuration for another model and other data, whose own settings then take their defaults.

    Settings without a default are left for tyro to ask for.
    """
    if model is not None and model != before.model.name:
        settings = model_settings(model)
        needed = {f.name: tyro.MISSING for f in fields(settings) if f.default is MISSING}
        before = replace(before, model=ModelConfig(model, before.model.classes, settings=settings(**needed)))
    if data is not None and data != before.data.name:
        kind = source_settings(data)
        try:
            source = kind(name=data)
        except ArgumentError:  # no file or folder was given yet
            source = kind(name=data, **{kind.place: tyro.MISSING})
        before = replace(before, data=source)
    return before


def _stored(path: Path) -> TrainConfig:
    """The configuration that a run has recorded."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: got a file that is not JSON ({error}); expected the settings of a run") from error
    if not isinstance(data, dict):
        raise ArgumentError(f"{path}: got {type(data).__name__}; expected the settings of a run")
    return from_dict(TrainConfig, migrated_config(data), str(path))


def _train_command(before: TrainConfig) -> Callable[..., int]:
    """The command, with the options of the model and the data of ``before``."""
    options, defaults = model_options(before.model)

    def command(
        data: Any,  # noqa: ANN401 -- of the source, as below
        model: Any,  # noqa: ANN401 -- of the model, as below
        noise: NoiseConfig = before.noise,
        optim: OptimConfig = before.optim,
        run: RunConfig = before.run,
        config: Path | None = None,
        out: Path = OUT,
        resume: bool = False,
    ) -> int:
        """Train a model by NCML, or (--noise.times zero) by maximum likelihood.

        The options of --model and --data depend on --model.name and --data.name: give these first, then --help.

        Writes config.json, metrics.jsonl, checkpoints, samples and report.json to the folder of the run. Started by
        torchrun, it trains on all processes. A signal (such as Ctrl-C) saves and stops; --resume continues.

        Args:
            data: The data.
            model: The model.
            noise: The noise process, and how often each noise level is trained.
            optim: The optimizer.
            run: How the run is carried out.
            config: A TOML file with a configuration, or the config.json of a run; other options override it.
            out: Folder of the run.
            resume: Continue from the latest checkpoint in the folder, with its configuration.
                Options and the file may only change how the run is carried out, where the data are, and of optim the
                steps, learning_rate, clip_norm and accumulate.
        """
        settings = TrainConfig(data, model_config(model), noise, optim, run)
        if resume and (out / SETTINGS).exists():
            check_resumed(_stored(out / SETTINGS), settings)
        return train(settings, out, resume)

    command.__defaults__ = (before.data, defaults, *(command.__defaults__ or ()))
    command.__annotations__ |= {"data": Annotated[type(before.data), tyro.conf.arg()], "model": options}
    return command
