"""What the commands share: opening a run, checking its capabilities, and drawing samples on one process or many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncml.checks import check_count, check_positive
from ncml.cli.words import in_options
from ncml.data import Choice, DataSet, DataSource, held_out
from ncml.density import NoiseConditionalDensity, SampleableDensity, sampleable
from ncml.errors import ArgumentError, UnsupportedError
from ncml.files import as_folder
from ncml.noise import GaussianProcess, Lattice, NoiseProcess
from ncml.sampling import (
    DDIM,
    ERSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolverSDE,
    EulerMaruyama,
    GridSampler,
    HeunODE,
    MetropolisLangevin,
    generate,
)
from ncml.training import DataKind, RunConfig, TrainConfig, in_blocks, launch, load_density
from ncml.training.build import build_objective
from ncml.training.checkpoint import MANIFEST, Checkpoint
from ncml.training.config import from_dict, to_dict
from ncml.training.noise import last_trained_time, noise_unit
from ncml.training.signals import StopSignals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "NO_SAMPLES",
    "SAMPLERS",
    "OpenRun",
    "choice_of",
    "class_labels",
    "draw_samples",
    "labels_for",
    "long_enough",
    "open_run",
    "results_folder",
    "sample_length",
    "shows_progress",
    "start_time",
    "stored_choice",
    "test_data",
    "with_place",
]


SAMPLERS: dict[str, type[GridSampler]] = {
    "euler-maruyama": EulerMaruyama,
    "heun": HeunODE,
    "ddim": DDIM,
    "dpm-solver-2m": DPMSolver2M,
    "dpm-solver-sde": DPMSolverSDE,
    "dpm-solver-2m-sde": DPMSolver2MSDE,
    "er-sde": ERSDE,
    "ancestral": Ancestral,
    "langevin": AnnealedLangevin,
    "metropolis": MetropolisLangevin,
}
"""The samplers that refine, by their names in ``--sampler``."""

NO_SAMPLES = "give the model a method sample, or train another one"
"""What to do about a model that cannot sample."""


@dataclass(frozen=True)
class OpenRun:
    """A trained density on its device, and where it came from."""

    fabric: Fabric
    density: NoiseConditionalDensity
    config: TrainConfig
    kind: DataKind
    checkpoint: Checkpoint

    @property
    def lattice(self) -> Lattice | None:
        """The lattice of the data."""
        return self.kind.lattice

    @property
    def process(self) -> NoiseProcess:
        """The noise process."""
        return build_objective(self.config.noise, self.density, self.kind).process

    @property
    def unit(self) -> float:
        """The unit of noise: a level of the lattice, or 1."""
        return noise_unit(self.lattice)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.fabric.is_global_zero)

    def source(self) -> dict[str, Any]:
        """What a report says about the model."""
        counted = {name: self.checkpoint.info.get(name) for name in ("parameters", "training_examples")}
        described = {"config": to_dict(self.config), "data": to_dict(self.kind)}
        return {"step": self.checkpoint.step, **counted, **described}


def open_run(folder: Path, threads: int | None) -> OpenRun:
    """Load the density of a run or checkpoint, for evaluation in float32."""
    density, config, kind, checkpoint = load_density(folder)
    run = RunConfig(threads=threads)  # float32 without TF32, on what there is here
    fabric = launch(run)
    return OpenRun(fabric, density.to(fabric.device), config, kind, checkpoint)


def results_folder(run: Path, out: Path | None, name: str) -> Path:
    """Where results go: the folder given, or one in that of the run (not in a checkpoint, which may be removed).

    Raises:
        ArgumentError: No folder is there, and none can be made.
    """
    if out is None:
        out = (run.parent.parent if (run / MANIFEST).exists() else run) / name
    return as_folder(out)


def with_place(data: DataSource, place: Path | None) -> DataSource:
    """The data from another file or folder, for example on another machine."""
    return data if place is None else data.moved(place)


def choice_of(data: DataSet) -> Choice | None:
    """How examples were chosen; None for data sets of your own, and for those that are always the same."""
    return getattr(data, "choice", None)


def stored_choice(checkpoint: Checkpoint, split: str) -> Choice | None:
    """How the examples of a run were chosen, "train" or "test"; None if it does not say."""
    stored = (checkpoint.info.get("split") or {}).get(split)
    return None if stored is None else from_dict(Choice, stored, f"{checkpoint.folder}: split.{split}")


def test_data(run: OpenRun, data: DataSource) -> tuple[DataSet, bool]:
    """The test examples, and whether the run was trained on none of them; prints a line if that cannot be told."""
    with in_options(data=data):
        examples = data.load(train=False, progress=run.first and shows_progress())
    then, now = stored_choice(run.checkpoint, "test"), choice_of(examples)
    known = then is now is None or bool(held_out(then, now))
    if not known and run.first:
        print(
            "The test data are not those of the run, or the run does not say which examples it was trained on: whether "
            "it was trained on these cannot be told."
        )
    return examples, known


# Capabilities.


def sample_length(run: OpenRun, length: int | None, seconds: float | None) -> int | None:
    """Positions of a sequence, from either option.

    Raises:
        ArgumentError: Both are given, or seconds for data without a rate.
    """
    if seconds is None:
        return None if length is None else check_count(length, "length")
    if length is not None or run.kind.rate is None:
        expected = "data with a rate, which are recordings" if length is None else "one of length and seconds"
        raise ArgumentError(f"seconds: got {seconds:g}; expected {expected}")
    return max(1, round(check_positive(seconds, "seconds") * run.kind.rate))


def long_enough(run: OpenRun, length: int | None, what: str) -> SampleableDensity:
    """The density of samples of this many positions; of its own events if None.

    Raises:
        UnsupportedError: It cannot sample, or has events of one size only.
    """
    density = sampleable(run.density, NO_SAMPLES, what)
    if length is None:
        return density
    extended: Callable[[int], SampleableDensity] | None = getattr(density, "extended", None)
    if extended is None:
        raise UnsupportedError(
            f"length: got {length} and a {type(density).__name__} ({run.config.model.name}), whose samples have one "
            f"size; expected none, or a density with extended(length), such as causal-transformer"
        )
    return extended(length)


def start_time(run: OpenRun, noise: float | None) -> float:
    """The time with this much noise, in levels or data units; if None, the largest time that training has seen.

    Raises:
        ArgumentError: More noise than the model was trained with.
    """
    process, last = run.process, last_trained_time(run.config.noise, run.process)
    if noise is None or not isinstance(process, GaussianProcess):
        if noise:
            raise ArgumentError(
                f"noise: got {noise:g} and {type(process).__name__}; expected 0: samples are not refined"
            )
        return last
    top = float(process.sigma(last)) / run.unit
    if not 0.0 <= noise <= top * (1.0 + 1e-9):
        unit = "" if run.lattice is None else " levels"
        raise ArgumentError(
            f"noise: got {noise:g}{unit}; expected 0 to {top:g}, the most that the model was trained with"
        )
    return min(last, float(process.time_at(min(noise, top) * run.unit)))


def class_labels(run: OpenRun, name: str | None, n: int) -> Tensor | None:
    """Labels of ``n`` samples: one class by name or number, all in turn, or None for a model without classes.

    Raises:
        ArgumentError: A class for a model without classes, or one that it does not have.
    """
    classes = run.kind.classes
    if not run.config.model.classes:
        if name is not None:
            raise ArgumentError(f"class: got {name!r}; expected none: train with --model.classes for classes")
        return None
    if name is None:
        return torch.arange(n) % len(classes)
    if name in classes:
        return torch.full((n,), classes.index(name))
    if name.isdecimal() and int(name) < len(classes):
        return torch.full((n,), int(name))
    raise ArgumentError(f"class: got {name!r}; expected one of {', '.join(classes)}, or its number")


def labels_for(config: TrainConfig, examples: DataSet, rows: slice | Tensor, device: torch.device) -> Tensor | None:
    """The labels of some examples, for a model that was trained with them."""
    if not config.model.classes or examples.labels is None:
        return None
    return examples.labels[rows].to(device)


def draw_samples(
    fabric: Fabric,
    density: SampleableDensity,
    process: NoiseProcess,
    kind: DataKind,
    n: int,
    *,
    labels: Tensor | None = None,
    t_start: float = 0.0,
    steps: int = 64,
    sampler: str = "euler-maruyama",
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
    signals: StopSignals | None = None,
) -> Tensor:
    """Samples at t = 0 in data units, ``(n, *shape)`` on the CPU, the same on one process or many.

    Args:
        fabric: Says which processes there are.
        density: The density, in eval mode.
        process: Its noise process.
        kind: The data that it was trained on; on a lattice samples are rounded to it.
        n: Number of samples.
        labels: Classes, ``(n,)``.
        t_start: The time to draw at; 0 is plain sampling, else the draws are refined down to 0.
        steps: Steps of the refinement.
        sampler: Method of refinement, one of ``SAMPLERS``.
        seed: Seed.
        batch_size: Number of samples at a time; the samples depend on it.
        progress: Show the progress of all samples and of the refinement.
        signals: Once one has been received, return the samples of the batches that are done.
    """
    refiner, lattice = SAMPLERS[sampler](steps=steps), kind.lattice

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        count = len(range(n)[rows])
        context = None if labels is None else labels[rows].to(density.device)
        x = generate(
            density,
            count,
            process=process,
            sampler=refiner,
            t_start=t_start,
            context=context,
            generator=generator,
            progress=progress and fabric.is_global_zero,
        )
        return {"x": x if lattice is None else lattice.nearest(x)}

    x = in_blocks(fabric, n, batch_size, work, seed=seed, label="sampling", progress=progress, signals=signals)["x"]
    return x.float() if lattice is None else lattice.to_unit(x.long())


def shows_progress() -> bool:
    """Whether someone may be watching."""
    return sys.stderr.isatty()
