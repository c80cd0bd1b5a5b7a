"""``ncml train``: train a model on data, whatever the two are."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncml.cli.common import choice_of, draw_samples, labels_for, shows_progress, stored_choice
from ncml.cli.words import in_options, number_of
from ncml.data import Choice, DataSet
from ncml.density import NoiseConditionalDensity, SampleableDensity
from ncml.errors import ArgumentError, MissingExtraError
from ncml.evaluation import bits_per_dim, save_grid
from ncml.files import only_here
from ncml.objective import NCMLObjective
from ncml.progress import print_above
from ncml.report import environment, write_report
from ncml.training import (
    DataKind,
    Periodic,
    TrainConfig,
    Trainer,
    build_density,
    build_objective,
    in_blocks,
    launch,
    open_checkpoint,
)
from ncml.training.build import describe, parameter_count
from ncml.training.checkpoint import Checkpoint, find_checkpoint
from ncml.training.config import to_dict
from ncml.training.draws import BatchDraws
from ncml.training.models import capability
from ncml.training.noise import check_times, describe_noise

__all__ = ["SETTINGS", "check_data", "check_resumed", "train"]

SETTINGS = "config.json"
SHOWN = 20  # names of classes
FREE = {
    "data": {"folder", "file", "cache"},
    "model": {"compile", "recompute"},
    "optim": {"steps", "learning_rate", "clip_norm", "accumulate"},
}
"""What may change when a run goes on, besides how it is carried out."""


def train(settings: TrainConfig, out: Path, resume: bool) -> int:
    """What ``ncml train`` does with its settings (its help is that of :mod:`ncml.cli.commands`).

    Returns:
        Exit status: 0, or 128 + the number of the signal that stopped it.
    """
    started = (out / SETTINGS).exists()
    if started and not resume:
        raise ArgumentError(f"out: got {out}, which holds a run; expected a new folder; or go on with --resume")
    run = settings.run
    fabric = launch(run, _loggers(run.loggers, out))
    first = fabric.is_global_zero
    with in_options(data=settings.data):
        examples = settings.data.load(train=True, progress=first and shows_progress())
        held_out = settings.data.load(train=False).mixed(run.validate_images)
    kind = DataKind.of(examples)
    split = {name: choice_of(data) for name, data in (("train", examples), ("test", held_out))}
    with in_options(model=settings.model.settings):
        density = build_density(settings, kind)
    objective = build_objective(settings.noise, density, kind)
    check_times(objective, settings.noise)
    going_on = resume and _has_checkpoint(out)
    if settings.optim.init_examples:
        initialize = capability(density, "initialize", "optim.init_examples", settings.model.name)
        if not going_on:  # on every process, from the same examples
            density.to(fabric.device)
            rows = BatchDraws(len(examples), kind.shape, objective, settings.optim.init_examples, run.seed).rows(0)
            labels = labels_for(settings, examples, rows, fabric.device)
            initialize(examples.batch(rows, device=fabric.device), 0.0, labels)

    latest: dict[str, float] = {}

    def validate(step: int) -> dict[str, Any]:
        latest.update(_held_out(fabric, density, held_out, kind, settings))
        if first:
            print_above(f"Step {step:,}:{_likelihood_in_words(latest, density, kind)}")
        return dict(latest)

    def draw(step: int) -> None:
        if not isinstance(density, SampleableDensity):
            return
        labels = torch.arange(run.samples) % max(1, len(kind.classes)) if settings.model.classes else None
        drawn = draw_samples(fabric, density, objective.process, kind, run.samples, labels=labels, seed=run.seed)
        if first and kind.is_image:
            save_grid(drawn, out / f"samples_{step:08d}.png")
        elif first:
            np.save(out / f"samples_{step:08d}.npy", drawn.numpy(), allow_pickle=False)

    if first:
        for name, read in (("train", examples), ("test", held_out)):
            if getattr(read, "remark", ""):
                print(f"Of the data to {name} on, {read.remark}.")  # type: ignore[attr-defined]
    counted = {"parameters": parameter_count(density), "training_examples": len(examples)}
    sample_every = run.sample_every if isinstance(density, SampleableDensity) else 0
    periodic = [Periodic(run.validate_every, "validation", validate), Periodic(sample_every, "samples", draw)]
    trainer = Trainer(
        fabric,
        density,
        objective,
        examples,
        out,
        settings.optim,
        run,
        periodic=periodic,
        info={**describe(settings, kind), **counted, "split": {k: c and to_dict(c) for k, c in split.items()}},
        use_labels=settings.model.classes,
    )
    if going_on:
        checkpoint = open_checkpoint(out)
        check_data(checkpoint, kind, len(examples), split["train"])
        trainer.load(checkpoint)
    if first:  # from here on the folder holds a run
        out.mkdir(parents=True, exist_ok=True)
    with only_here(out) if first else nullcontext():
        if first:
            write_report(out / SETTINGS, to_dict(settings))
        fabric.barrier()
        if first and resume and not started:
            print(f"No run in {out} yet: starting one.")
        if first:
            _announce(density, objective, len(examples), kind, settings, trainer.step, out)
        start = time.perf_counter()
        stopped = trainer.run(progress=shows_progress())
    if stopped:
        if first:
            print(f"Stopped by signal {stopped} after step {trainer.step:,}, saved; go on with --resume.")
        return 128 + stopped
    if first:
        report = {
            "settings": to_dict(settings),
            "data": to_dict(kind),
            "noise": describe(settings, kind)["noise"],
            **counted,
            "processes": fabric.world_size,
            "training_seconds": trainer.seconds,
            "seconds_here": time.perf_counter() - start,
            "environment": environment(),
        }
        write_report(out / "report.json", report)
        steps, said = number_of(trainer.step, "step"), _likelihood_in_words(latest, density, kind)
        print(f"Trained {steps} in {trainer.seconds:.0f} s in all; everything is in {out}.{said}")
    return 0


def check_data(checkpoint: Checkpoint, kind: DataKind, n: int, choice: Choice | None) -> None:
    """Refuse to go on with other data than the run began with: a moved file is fine, another one is another run.

    Args:
        checkpoint: What the run goes on from.
        kind: The kind of the data.
        n: Number of training examples.
        choice: How they were chosen.

    Raises:
        ArgumentError: Another shape, lattice, classes or number of examples, or others for training.
    """
    stored = dict(checkpoint.info.get("data") or {})
    own = {**to_dict(kind), "training_examples": n}
    stored["training_examples"] = checkpoint.info.get("training_examples", n)
    differences = [
        f"{name} is {own[name]}, not {stored[name]}"
        for name in ("shape", "levels", "classes", "rate", "training_examples")
        if name in stored and own[name] != stored[name]
    ]
    then = stored_choice(checkpoint, "train")
    if then is None and choice is not None and choice.fraction is not None:
        differences.append("the run does not say which examples were for training")
    elif then is not None and then != choice:
        differences.append("some training examples are others, or for testing by now")
    if differences:
        raise ArgumentError(
            f"data: got other data than the run began with: {'; '.join(differences)}; expected the same; look at "
            f"--data.folder or --data.file, or start another run"
        )


def check_resumed(before: TrainConfig, after: TrainConfig) -> None:
    """Refuse to go on with another configuration, but for what is in ``FREE`` and how the run is carried out."""
    old, new = to_dict(before), to_dict(after)
    changed = [
        f"{part}.{name}: {old[part].get(name)!r} -> {new[part].get(name)!r}"
        for part in old
        for name in {**old[part], **new[part]}
        if old[part].get(name) != new[part].get(name)
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


def _held_out(
    fabric: Any,  # noqa: ANN401 -- Fabric, which is optional
    density: NoiseConditionalDensity,
    examples: DataSet,
    kind: DataKind,
    settings: TrainConfig,
) -> dict[str, float]:
    """Mean likelihood at t = 0: bits/dim on a lattice, exact or as a bound; else nats per example."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, torch.Tensor]:
        labels = labels_for(settings, examples, rows, fabric.device)
        x = examples.batch(rows, device=fabric.device)
        if kind.lattice is None:
            with torch.no_grad():
                return {"log_prob": density.log_prob(x, 0.0, labels)}
        bits = bits_per_dim(density, x, 0.0, labels, lattice=kind.lattice, generator=generator)
        return {"bits_per_dim": bits.values}

    size = max(1, settings.optim.batch_size // settings.optim.accumulate)
    values = in_blocks(fabric, len(examples), size, work, seed=0, label="validation")
    return {name: float(value.mean()) for name, value in values.items()}


def _likelihood_in_words(latest: dict[str, float], density: NoiseConditionalDensity, kind: DataKind) -> str:
    """The last likelihood of held-out examples, as a sentence."""
    what = "images" if kind.is_image else "examples"
    if "bits_per_dim" in latest:
        bound = "" if density.lattice is not None else "<= "
        return f" Held-out {what} at t = 0: {bound}{latest['bits_per_dim']:.3f} {kind.unit}."
    if "log_prob" in latest:
        return f" Held-out {what} at t = 0: log p = {latest['log_prob']:.3f} nats per example."
    return ""


def _announce(
    density: NoiseConditionalDensity,
    objective: NCMLObjective,
    n: int,
    kind: DataKind,
    settings: TrainConfig,
    step: int,
    out: Path,
) -> None:
    """What is trained on what, and what follows from the data."""
    noise, optim = settings.noise, settings.optim
    method = "maximum likelihood" if noise.at_zero_only else "NCML"
    method += f", {describe_noise(noise, objective.process, kind.lattice)}"
    what = "image" if kind.is_image else "example"
    levels = "" if kind.levels is None else f" in {kind.levels} levels"
    size = f"{parameter_count(density):,} parameters"
    print(f"{settings.model.name} ({size}) on {number_of(n, what)} {kind.size}{levels}; {method}.")
    if objective.dequantize is not None:
        print("It has no lattice: levels are dequantised, and likelihoods are bounds (<=).")
    if settings.run.sample_every and not isinstance(density, SampleableDensity):
        print(f"A {type(density).__name__} is no SampleableDensity: no samples are drawn meanwhile.")
    if kind.classes:
        print(f"Classes: {', '.join(kind.classes[:SHOWN])}{', ...' if len(kind.classes) > SHOWN else ''}.")
    if kind.classes and not settings.model.classes:
        print(f"Their {len(kind.classes)} classes are not used; --model.classes conditions on them.")
    if optim.warmup >= optim.steps:
        print(f"The learning rate is still rising at the end: optim.warmup is {optim.warmup} steps.")
    if step >= optim.steps:
        print(f"Step {step:,} of {optim.steps:,} is done already: there is nothing left to train.")
    verb = f"Going on after step {step:,}, up to" if step else "Training:"
    print(f"{verb} {number_of(optim.steps, 'step')} of {number_of(optim.batch_size, what)} into {out}.", flush=True)


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
