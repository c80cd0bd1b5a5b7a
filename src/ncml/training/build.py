"""From a configuration and the kind of the data to a process, an objective and a model; and back from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ncml.data import DataSet
from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError, CheckpointError
from ncml.noise import Lattice, NoiseProcess
from ncml.objective import NCMLObjective
from ncml.training.checkpoint import Checkpoint, load_state, open_checkpoint
from ncml.training.config import NoiseConfig, TrainConfig, from_dict, to_dict
from ncml.training.models import build_model
from ncml.training.noise import FINE_LEVELS, build_process, build_times, resolved
from ncml.training.window import unit_of_bits

__all__ = ["DataKind", "build_density", "build_objective", "describe", "load_density", "parameter_count"]

STD_ROWS = 65_536  # rows that the standard deviation of the data is taken of
STD_VALUES = 2**24  # values read at a time: 128 MB


@dataclass(frozen=True)
class DataKind:
    """What a model must know about its data.

    Args:
        shape: Shape of one example.
        levels: Levels of their lattice; None for real numbers.
        classes: Names of the classes.
        std: Standard deviation of real numbers, or of more than 256 levels, over all values around the mean of each, in
            data units; else None.
        rate: Samples per second, for recordings; else None.
    """

    shape: tuple[int, ...]
    levels: int | None = None
    classes: tuple[str, ...] = ()
    std: float | None = None
    rate: int | None = None

    @classmethod
    def of(cls, examples: DataSet) -> DataKind:
        """The kind of given data."""
        lattice, rate = examples.lattice, getattr(examples, "rate", None)
        levels = None if lattice is None else lattice.levels
        std = 0.0
        if levels is None or levels > FINE_LEVELS:
            std = _std(examples)
        return cls(tuple(examples.shape), levels, tuple(examples.classes), std or None, rate)

    @property
    def lattice(self) -> Lattice | None:
        """The lattice of the data."""
        return None if self.levels is None else Lattice(self.levels)

    @property
    def is_image(self) -> bool:
        """Whether an example can be shown as a picture, grey or in colours."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    @property
    def is_sequence(self) -> bool:
        """Whether an example has positions and channels."""
        return len(self.shape) == 2

    @property
    def unit(self) -> str:
        """What bits are counted per: a sample of recordings, else a dimension."""
        return unit_of_bits(self.rate)

    @property
    def size(self) -> str:
        """The shape in words, ``3x32x32``."""
        return "x".join(map(str, self.shape))


def _std(examples: DataSet) -> float:
    """Standard deviation over all values around the mean of each, of rows from everywhere in the data."""
    n = len(examples)
    count = min(n, STD_ROWS)
    rows = torch.arange(count) * n // count  # all of them, if they are not too many
    mean = variance = torch.zeros((), dtype=torch.float64)
    done = 0
    for part in rows.split(max(1, STD_VALUES // math.prod(examples.shape))):  # a mixture of the parts
        x = examples.batch(part).double()
        done += len(x)
        share, step = len(x) / done, x.mean(0) - mean
        variance = (1 - share) * variance + share * x.var(0, correction=0) + share * (1 - share) * step.square()
        mean = mean + share * step
    return float(variance.mean().sqrt())


def build_density(config: TrainConfig, kind: DataKind) -> NoiseConditionalDensity:
    """The configured model with random weights, which are a function of the seed.

    Raises:
        NCMLError: Settings that do not fit the data or each other, or a capability that the model lacks.
    """
    classes = len(kind.classes) if config.model.classes else 0
    if config.model.classes and not classes:
        raise ArgumentError(
            "model.classes: got True and data without classes; expected labels, such as a folder with a subfolder for "
            "each class; leave --model.classes out"
        )
    process = build_process(config.noise, kind.lattice, kind.std)
    return build_model(config.model, kind.shape, process, kind.lattice, classes, config.run.seed)


def build_objective(
    noise: NoiseConfig, density: NoiseConditionalDensity, kind: DataKind, process: NoiseProcess | None = None
) -> NCMLObjective:
    """NCML with the configured distribution of noise levels; lattice data are dequantised for a model without one.

    Args:
        noise: The configuration.
        density: The model.
        kind: The kind of the data.
        process: The process; the density's own if None, or the configured one if it has none.
    """
    if process is None:
        process = density.process or build_process(noise, kind.lattice, kind.std)
    dequantize = kind.lattice if density.lattice is None else None
    return NCMLObjective(
        process,
        build_times(noise),
        dequantize=dequantize,
        score_matching=noise.score_matching,
        fokker_planck=noise.fokker_planck,
    )


def load_density(folder: str | Path) -> tuple[NoiseConditionalDensity, TrainConfig, DataKind, Checkpoint]:
    """The model of a checkpoint of ``ncml train``, in eval mode on the CPU.

    A model of your own is imported by the name that the configuration has, from Python's path; nothing that the
    checkpoint itself holds is run.

    Args:
        folder: A checkpoint, or the folder of a run, whose latest one is taken. Those of version 0.1 are read too.

    Returns:
        The density, the configuration it was trained with, the kind of its data, and the checkpoint.

    Raises:
        CheckpointError: It is damaged, or was not made by ``ncml train``.
        ArgumentError: A model that cannot be imported here.
    """
    checkpoint = open_checkpoint(folder)
    info = checkpoint.info
    if "config" not in info or "data" not in info:
        raise CheckpointError(
            f"{checkpoint.folder}: got a checkpoint without a configuration; expected one of ncml train; build the "
            f"density yourself and use load_into(density, folder)"
        )
    config = from_dict(TrainConfig, info["config"], f"{checkpoint.folder}: config")
    kind = from_dict(DataKind, info["data"], f"{checkpoint.folder}: data")
    noise = from_dict(NoiseConfig, info.get("noise", info["config"]["noise"]), f"{checkpoint.folder}: noise")
    config = replace(config, noise=noise)
    plain = replace(config, model=replace(config.model, compile=False, recompute=False))  # both are for training
    density = build_density(plain, kind)
    load_state(density, checkpoint.model(), str(checkpoint.folder))  # the configuration says the rest
    return density.eval(), config, kind, checkpoint


def describe(config: TrainConfig, kind: DataKind) -> Mapping[str, Any]:
    """What a checkpoint keeps for :func:`load_density`, with the noise as it was chosen."""
    noise = resolved(config.noise, kind.lattice, kind.std)
    return {"config": to_dict(config), "data": to_dict(kind), "noise": to_dict(noise)}


def parameter_count(density: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in density.parameters())
