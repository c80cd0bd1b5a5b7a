"""What the commands share: opening a run, and drawing images on one process or many."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ncml.data import ImageSource
from ncml.densities import NCPN
from ncml.errors import ArgumentError
from ncml.lattice import Lattice
from ncml.noise import LinearSDE
from ncml.sampling import EulerMaruyama, generate
from ncml.training import ImageKind, RunConfig, TrainConfig, in_blocks, launch, load_density
from ncml.training.checkpoint import MANIFEST, Checkpoint
from ncml.training.config import to_dict

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "OpenRun",
    "class_labels",
    "open_run",
    "results_folder",
    "sample_images",
    "shows_progress",
    "start_time",
    "with_folder",
]


@dataclass(frozen=True)
class OpenRun:
    """A trained density on its device, and where it came from."""

    fabric: Fabric
    density: NCPN
    config: TrainConfig
    kind: ImageKind
    checkpoint: Checkpoint

    @property
    def lattice(self) -> Lattice:
        """The lattice of the images."""
        return Lattice(self.kind.levels)

    @property
    def process(self) -> LinearSDE:
        """The noise process."""
        return cast(LinearSDE, self.density.process)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.fabric.is_global_zero)

    def source(self) -> dict[str, Any]:
        """What a report says about the model."""
        counted = {name: self.checkpoint.info.get(name) for name in ("parameters", "training_images")}
        described = {"config": to_dict(self.config), "images": to_dict(self.kind)}
        return {"step": self.checkpoint.step, **counted, **described}


def open_run(folder: Path, threads: int | None) -> OpenRun:
    """Load the density of a run or checkpoint, for evaluation in float32."""
    density, config, kind, checkpoint = load_density(folder)
    run = RunConfig(threads=threads)  # float32 without TF32, on what there is here
    fabric = launch(run)
    return OpenRun(fabric, density.to(fabric.device), config, kind, checkpoint)


def results_folder(run: Path, out: Path | None, name: str) -> Path:
    """Where results go: the folder given, or one in that of the run (not in a checkpoint, which may be removed)."""
    if out is not None:
        return out
    return (run.parent.parent if (run / MANIFEST).exists() else run) / name


def with_folder(data: ImageSource, folder: Path | None) -> ImageSource:
    """The images from another folder, on another machine say."""
    return data if folder is None else replace(data, folder=folder)


def start_time(run: OpenRun, noise: float | None) -> float:
    """The time whose noise has so many levels; if None T, or 0 for a model that was trained at 0 only.

    Raises:
        ArgumentError: More noise than the model was trained with.
    """
    if noise is None:
        return 0.0 if run.config.noise.times == "zero" else run.process.T
    top = run.config.noise.levels
    if not 0.0 <= noise <= top:
        raise ArgumentError(f"noise: got {noise:g} levels; expected 0 to {top:g}, what the model was trained with")
    return float(run.process.time_at(noise * run.lattice.width))


def class_labels(run: OpenRun, name: str | None, n: int) -> Tensor | None:
    """Labels of ``n`` images: of a class by name or number, of all in turn, or none for a model without.

    Raises:
        ArgumentError: A class for a model without classes, or one that it does not have.
    """
    classes = run.kind.classes
    if not run.config.network.classes:
        if name is not None:
            raise ArgumentError(f"class: got {name!r}; expected none: train with --network.classes for classes")
        return None
    if name is None:
        return torch.arange(n) % len(classes)
    if name in classes:
        return torch.full((n,), classes.index(name))
    if name.isdecimal() and int(name) < len(classes):
        return torch.full((n,), int(name))
    raise ArgumentError(f"class: got {name!r}; expected one of {', '.join(classes)}, or its number")


def sample_images(
    fabric: Fabric,
    density: NCPN,
    n: int,
    *,
    labels: Tensor | None = None,
    t_start: float = 0.0,
    steps: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> Tensor:
    """Images at t = 0 in data units, ``(n, C, H, W)`` on the CPU, the same on one process or many.

    Args:
        fabric: Says which processes there are.
        density: The density, in eval mode.
        n: Number of images.
        labels: Classes, ``(n,)``.
        t_start: Where to draw; 0 is plain sampling, else the draws are refined to 0.
        steps: Steps of the refinement.
        seed: Seed.
        batch_size: Images at a time; part of what the samples depend on.
        progress: Show progress.
    """
    process, lattice = density.process, density.lattice
    assert process is not None
    assert lattice is not None
    sampler = EulerMaruyama(steps=steps)

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        count = len(range(n)[rows])
        context = None if labels is None else labels[rows].to(density.device)
        x = generate(density, process, count, sampler=sampler, t_start=t_start, context=context, generator=generator)
        return {"levels": lattice.nearest(x)}

    levels = in_blocks(fabric, n, batch_size, work, seed=seed, label="sampling", progress=progress)["levels"]
    return lattice.to_unit(levels.long())


def shows_progress() -> bool:
    """Whether someone may be watching."""
    return sys.stderr.isatty()
