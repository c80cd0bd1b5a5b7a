"""``ncml train``: train an NCPN on images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ncml.cli._common import sample_images, shows_progress
from ncml.data import Images
from ncml.densities import NCPN
from ncml.errors import ArgumentError, MissingExtraError
from ncml.evaluation import bits_per_dim, environment, save_grid, write_report
from ncml.training import (
    ImageKind,
    Periodic,
    TrainConfig,
    Trainer,
    build_density,
    build_objective,
    in_blocks,
    launch,
    open_checkpoint,
)
from ncml.training.build import describe
from ncml.training.checkpoint import find_checkpoint
from ncml.training.config import to_dict

__all__ = ["SETTINGS", "check_resumed", "train"]

SETTINGS = "config.json"
FREE = {
    "data": {"folder", "cache"},
    "network": {"compile", "checkpoint"},
    "optim": {"steps", "learning_rate", "clip_norm", "accumulate"},
}
"""What may change when a run goes on, besides how it is carried out."""


def train(settings: TrainConfig, out: Path, resume: bool) -> int:
    """What ``ncml train`` does with its settings (its help is that of ``_commands``).

    Returns:
        Exit status: 0, or 128 + the number of the signal that stopped it.
    """
    started = (out / SETTINGS).exists()
    if started and not resume:
        raise ArgumentError(f"out: got {out}, which holds a run; expected a new folder; or go on with --resume")
    run = settings.run
    fabric = launch(run, _loggers(run.loggers, out))
    first = fabric.is_global_zero
    images = settings.data.load(train=True, progress=first and shows_progress())
    held_out = settings.data.load(train=False).mixed(run.validate_images)
    if settings.network.classes and images.labels is None:
        raise ArgumentError(
            "network.classes: got True and images without classes; expected a folder with a subfolder for each class; "
            "leave --network.classes out"
        )
    kind = ImageKind.of(images)
    density = build_density(settings.network, settings.noise, kind, run.seed)
    assert density.process is not None
    objective = build_objective(settings.noise, density.process)

    latest: dict[str, float] = {}

    def validate(step: int) -> dict[str, Any]:
        latest["bits_per_dim"] = _held_out_bits(fabric, density, held_out, settings)
        return dict(latest)

    def draw(step: int) -> None:
        labels = torch.arange(run.samples) % max(1, len(kind.classes)) if settings.network.classes else None
        drawn = sample_images(fabric, density, run.samples, labels=labels, seed=run.seed)
        if first:
            save_grid(drawn, out / f"samples_{step:08d}.png")

    counted = {"parameters": sum(p.numel() for p in density.parameters()), "training_images": len(images)}
    periodic = [Periodic(run.validate_every, "validation", validate), Periodic(run.sample_every, "samples", draw)]
    trainer = Trainer(
        fabric,
        density,
        objective,
        images,
        out,
        settings.optim,
        run,
        periodic=periodic,
        info={**describe(settings, kind), **counted},
        use_labels=settings.network.classes,
    )
    if resume and _has_checkpoint(out):
        trainer.load(open_checkpoint(out))
    if first:  # from here on the folder holds a run
        out.mkdir(parents=True, exist_ok=True)
        write_report(out / SETTINGS, to_dict(settings))
    fabric.barrier()
    if first and resume and not started:
        print(f"No run in {out} yet: starting one.")
    if first:
        _announce(density, images, settings, trainer.step, out)
    start = time.perf_counter()
    stopped = trainer.run(progress=shows_progress())
    if stopped:
        if first:
            print(f"Stopped by signal {stopped} after step {trainer.step}, saved; go on with --resume.")
        return 128 + stopped
    if first:
        report = {
            "settings": to_dict(settings),
            "images": to_dict(kind),
            **counted,
            "processes": fabric.world_size,
            "training_seconds": trainer.seconds,
            "seconds_here": time.perf_counter() - start,
            "environment": environment(),
        }
        write_report(out / "report.json", report)
        held = f" Held-out images at t = 0: {latest['bits_per_dim']:.3f} bits/dim." if latest else ""
        print(f"Trained {trainer.step} steps in {trainer.seconds:.0f} s in all; everything is in {out}.{held}")
    return 0


def check_resumed(before: TrainConfig, after: TrainConfig) -> None:
    """Refuse to go on with another configuration, but for what is in ``FREE`` and how the run is carried out."""
    old, new = to_dict(before), to_dict(after)
    changed = [
        f"{part}.{name}: {old[part][name]!r} -> {new[part][name]!r}"
        for part in old
        for name in old[part]
        if old[part][name] != new[part][name]
        and name not in FREE.get(part, ())
        and not (part == "run" and name not in ("seed", "precision"))
    ]
    if changed:
        free = ", ".join(f"{part}.{name}" for part, names in FREE.items() for name in sorted(names))
        raise ArgumentError(
            f"resume: got other settings than the run began with: {'; '.join(changed)}; expected the same, but for "
            f"{free}, and run but its seed and precision; start another run for other settings"
        )


def _has_checkpoint(out: Path) -> bool:
    try:
        find_checkpoint(out)
    except OSError:
        return False
    return True


def _held_out_bits(fabric: Any, density: NCPN, images: Images, settings: TrainConfig) -> float:  # noqa: ANN401
    """Mean exact bits/dim at t = 0."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, torch.Tensor]:
        labels = (
            images.labels[rows].to(fabric.device) if settings.network.classes and images.labels is not None else None
        )
        x = images.batch(rows, device=fabric.device)
        return {"bits": bits_per_dim(density, x, 0.0, labels).values}

    size = max(1, settings.optim.batch_size // settings.optim.accumulate)
    return float(in_blocks(fabric, len(images), size, work, seed=0, label="validation")["bits"].mean())


def _announce(density: NCPN, images: Images, settings: TrainConfig, step: int, out: Path) -> None:
    noise, optim = settings.noise, settings.optim
    method = (
        "maximum likelihood" if noise.times == "zero" else f"NCML, {noise.process} noise up to {noise.levels:g} levels"
    )
    count = sum(p.numel() for p in density.parameters())
    c, h, w = density.event_shape
    print(f"NCPN {settings.network.preset} ({count:,} parameters) on {len(images):,} images {c}x{h}x{w}; {method}.")
    if images.classes and not settings.network.classes:
        print(f"Their {len(images.classes)} classes are not used; --network.classes conditions on them.")
    verb = f"Going on after step {step}, up to" if step else "Training:"
    print(f"{verb} {optim.steps} steps of {optim.batch_size} images into {out}.", flush=True)


def _loggers(names: tuple[str, ...], out: Path) -> list[Any]:
    """Fabric's loggers by name."""
    loggers: list[Any] = []
    try:
        if "tensorboard" in names:
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            loggers.append(TensorBoardLogger(out, name="", version="tensorboard"))
        if "wandb" in names:
            from wandb.integration.lightning.fabric import WandbLogger

            loggers.append(WandbLogger(save_dir=str(out)))
    except ImportError as error:
        raise MissingExtraError(f"run.loggers: got {names}, not all installed ({error}); pip install them") from error
    return loggers
