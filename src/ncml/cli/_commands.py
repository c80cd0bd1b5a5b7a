"""The commands as tyro sees them; imported only where tyro is there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ncml.cli.demo import demo
from ncml.cli.evaluate import evaluate
from ncml.cli.sample import complete, sample
from ncml.cli.train import SETTINGS, check_resumed, train
from ncml.errors import ArgumentError
from ncml.training.config import TrainConfig, from_dict, read_toml
from ncml.training.parallel import finish

__all__ = ["run_command"]

OUT = Path("runs/train")
DESCRIPTION = "Noise conditional maximum likelihood: train, sample and evaluate likelihood models at every noise level."


def run_command(arguments: Sequence[str]) -> int:
    """Parse and run one command; returns its exit status."""
    before = _settings_before(arguments) if list(arguments[:1]) == ["train"] else TrainConfig()
    commands: dict[str, Callable[..., Any]] = {"demo": demo, "train": _train_command(before)}
    commands |= {"sample": sample, "complete": complete, "evaluate": evaluate}
    result = tyro.extras.subcommand_cli_from_dict(commands, prog="ncml", description=DESCRIPTION, args=list(arguments))
    finish()
    return int(result or 0)


def _settings_before(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that options on the command line then change: the file's, or that of the resumed run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--resume", action="store_true")
    try:
        known, _ = parser.parse_known_args(list(arguments[1:]))
    except argparse.ArgumentError:
        return TrainConfig()  # tyro will say what is wrong
    if known.config is not None:
        return read_toml(known.config)
    return _stored(known.out) if known.resume and (known.out / SETTINGS).exists() else TrainConfig()


def _stored(out: Path) -> TrainConfig:
    """The configuration of the run in a folder."""
    path = out / SETTINGS
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"{path}: got a file that is not JSON ({error}); expected the settings of a run") from error
    if not isinstance(data, dict):
        raise ArgumentError(f"{path}: got {type(data).__name__}; expected the settings of a run")
    return from_dict(TrainConfig, data, str(path))


def _train_command(before: TrainConfig) -> Callable[..., int]:
    def command(
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = before,
        config: Path | None = None,
        out: Path = OUT,
        resume: bool = False,
    ) -> int:
        """Train an NCPN on images, by NCML or (--noise.times zero) by maximum likelihood.

        Leaves in the folder of the run: config.json, metrics.jsonl, checkpoints, grids of samples, report.json.
        Started by torchrun, trains on all its processes. A signal saves and stops; --resume goes on.

        Args:
            settings: The configuration.
            config: A TOML file with a configuration, which the other options change.
            out: Folder of the run.
            resume: Go on from the latest checkpoint in the folder, with its configuration; options and the file
                may change what is not learned by.
        """
        if resume and (out / SETTINGS).exists():
            check_resumed(_stored(out), settings)
        return train(settings, out, resume)

    return command
