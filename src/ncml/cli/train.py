"""``ncml train``: train any model on any data."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from ncml.files import as_folder, only_here
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
"""What may change when a run is resumed, besides how it is carried out."""


def train(settings: TrainConfig, out: Path, resume: bool) -> int:
    """What ``ncml train`` does with its settings (its help is that of :mod:`ncml.cli.commands`).

    Returns:
        Exit status: 0, or 128 + the number of the signal that stopped it.
    """
    started = (as_folder(out) / SETTINGS).exists()
    if started and not resume:
        raise ArgumentError(f"out: got {out}, which holds a run; expected a new folder; or go on with --resume")
    checkpoint = open_checkpoint(out) if resume and _has_checkpoint(out) else None
    run = _Run.of(settings, out)
    run.initialize(checkpoint is not None)
    run.announce_data()
    trainer = run.trainer()
    if checkpoint is not None:
        if find_checkpoint(out) != checkpoint.folder:  # another process went on while data were read
            checkpoint = open_checkpoint(out)
        check_data(checkpoint, run.kind, len(run.examples), choice_of(run.examples))
        trainer.load(checkpoint)
    if run.first:  # from here on the folder holds a run
        out.mkdir(parents=True, exist_ok=True)
    with only_here(out) if run.first else nullcontext():
        if run.first:
            write_report(out / SETTINGS, to_dict(settings))
        run.fabric.barrier()
        if run.first:
            if resume and not started:
                print(f"No run in {out} yet: starting one.")
            run.announce(trainer.step)
        start = time.perf_counter()
        stopped = trainer.run(progress=shows_progress())
    if stopped:
        if run.first:
            print(f"Stopped by signal {stopped} after step {trainer.step:,}, saved; go on with --resume.")
        return 128 + stopped
    if run.first:
        run.finish(trainer, time.perf_counter() - start)
    return 0


@dataclass
class _Run:
    """What is trained on what, and what it says and writes on the way; the words are the first process's alone."""

    settings: TrainConfig
    out: Path
    fabric: Any  # Fabric, which is optional
    examples: DataSet
    held_out: DataSet
    kind: DataKind
    density: NoiseConditionalDensity
    objective: NCMLObjective
    latest: dict[str, float] = field(default_factory=dict)  # the last likelihood of held-out examples

    @classmethod
    def of(cls, settings: TrainConfig, out: Path) -> _Run:
        """Launch the processes, read the data, and build what the settings say."""
        run = settings.run
        fabric = launch(run, _loggers(run.loggers, out))
        with in_options(data=settings.data):
            examples = settings.data.load(train=True, progress=fabric.is_global_zero and shows_progress())
            held_out = settings.data.load(train=False).mixed(run.validate_images)
        kind = DataKind.of(examples)
        with in_options(model=settings.model.settings):
            density = build_density(settings, kind)
        objective = build_objective(settings.noise, density, kind)
        check_times(objective, settings.noise)
        return cls(settings, out, fabric, examples, held_out, kind, density, objective)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.fabric.is_global_zero)

    @property
    def counted(self) -> dict[str, int]:
        """How much is trained on how much."""
        return {"parameters": parameter_count(self.density), "training_examples": len(self.examples)}

    def initialize(self, going_on: bool) -> None:
        """Let a model that can set its initial weights by data do so, on every process from the same examples."""
        settings, device = self.settings, self.fabric.device
        if not settings.optim.init_examples:
            return
        initialize = capability(self.density, "initialize", "optim.init_examples", settings.model.name)
        if going_on:
            return
        self.density.to(device)
        n, seed = settings.optim.init_examples, settings.run.seed
        rows = BatchDraws(len(self.examples), self.kind.shape, self.objective, n, seed).rows(0)
        labels = labels_for(settings, self.examples, rows, device)
        initialize(self.examples.batch(rows, device=device), 0.0, labels)

    def trainer(self) -> Trainer:
        """What trains, and validates and draws meanwhile."""
        settings, run = self.settings, self.settings.run
        sample_every = run.sample_every if isinstance(self.density, SampleableDensity) else 0
        chosen = {name: choice_of(data) for name, data in (("train", self.examples), ("test", self.held_out))}
        split = {name: choice and to_dict(choice) for name, choice in chosen.items()}
        return Trainer(
            self.fabric,
            self.density,
            self.objective,
            self.examples,
            self.out,
            settings.optim,
            run,
            periodic=[
                Periodic(run.validate_every, "validation", self.validate),
                Periodic(sample_every, "samples", self.draw),
            ],
            info={**describe(settings, self.kind), **self.counted, "split": split},
            use_labels=settings.model.classes,
        )

    # Meanwhile.

    def validate(self, step: int) -> dict[str, Any]:
        """The likelihood of held-out examples, which is said too."""
        self.latest = self._likelihood()
        if self.first:
            print_above(f"Step {step:,}:{self._likelihood_in_words()}")
        return dict(self.latest)

    def draw(self, step: int) -> None:
        """Samples, a picture of them if they are images."""
        if not isinstance(self.density, SampleableDensity):
            return
        run, kind = self.settings.run, self.kind
        labels = torch.arange(run.samples) % max(1, len(kind.classes)) if self.settings.model.classes else None
        drawn = draw_samples(
            self.fabric, self.density, self.objective.process, kind, run.samples, labels=labels, seed=run.seed
        )
        if self.first and kind.is_image:
            save_grid(drawn, self.out / f"samples_{step:08d}.png")
        elif self.first:
            np.save(self.out / f"samples_{step:08d}.npy", drawn.numpy(), allow_pickle=False)

    def _likelihood(self) -> dict[str, float]:
        """Mean likelihood at t = 0: bits/dim on a lattice, exact or as a bound; else nats per example."""
        settings, examples, device = self.settings, self.held_out, self.fabric.device

        def work(rows: slice, generator: torch.Generator) -> dict[str, torch.Tensor]:
            labels = labels_for(settings, examples, rows, device)
            x = examples.batch(rows, device=device)
            if self.kind.lattice is None:
                with torch.no_grad():
                    return {"log_prob": self.density.log_prob(x, 0.0, labels)}
            bits = bits_per_dim(self.density, x, 0.0, labels, lattice=self.kind.lattice, generator=generator)
            return {"bits_per_dim": bits.values}

        size = max(1, settings.optim.batch_size // settings.optim.accumulate)
        values = in_blocks(self.fabric, len(examples), size, work, seed=0, label="validation")
        return {name: float(value.mean()) for name, value in values.items()}

    # In words, and in the report.

    def announce_data(self) -> None:
        """What was left out of the data."""
        for name, read in (("training", self.examples), ("test", self.held_out)):
            if self.first and (remark := getattr(read, "remark", "")):
                print(f"Of the {name} data, {remark}.")

    def announce(self, step: int) -> None:
        """What is trained on what, and what follows from the data."""
        settings, density, kind = self.settings, self.density, self.kind
        noise, optim, classes = settings.noise, settings.optim, kind.classes
        method = "maximum likelihood" if noise.at_zero_only else "NCML"
        method += f", {describe_noise(noise, self.objective.process, kind.lattice)}"
        what = "image" if kind.is_image else "example"
        levels = "" if kind.levels is None else f" in {kind.levels} levels"
        size = f"{parameter_count(density):,} parameters"
        n = number_of(len(self.examples), what)
        print(f"{settings.model.name} ({size}) on {n} {kind.size}{levels}; {method}.")
        if self.objective.dequantize is not None:
            print("The model has no lattice: levels are dequantised, and likelihoods are bounds (<=).")
        if settings.run.sample_every and not isinstance(density, SampleableDensity):
            print(f"A {type(density).__name__} is not a SampleableDensity: no samples are drawn during training.")
        if classes:
            print(f"Classes: {', '.join(classes[:SHOWN])}{', ...' if len(classes) > SHOWN else ''}.")
        if classes and not settings.model.classes:
            print(f"The model does not use these {len(classes)} classes; --model.classes conditions on them.")
        if optim.warmup >= optim.steps:
            print(f"The learning rate is still rising at the end: optim.warmup is {optim.warmup} steps.")
        if step >= optim.steps:
            print(f"Step {step:,} of {optim.steps:,} is already done: there is nothing left to train.")
        verb = f"Going on after step {step:,}, up to" if step else "Training:"
        batches = f"{number_of(optim.steps, 'step')} of {number_of(optim.batch_size, what)}"
        print(f"{verb} {batches} into {self.out}.", flush=True)

    def finish(self, trainer: Trainer, seconds: float) -> None:
        """Write the report of a training that is done."""
        report = {
            "settings": to_dict(self.settings),
            "data": to_dict(self.kind),
            "noise": describe(self.settings, self.kind)["noise"],
            **self.counted,
            "processes": self.fabric.world_size,
            "training_seconds": trainer.seconds,
            "seconds_here": seconds,
            "environment": environment(),
        }
        write_report(self.out / "report.json", report)
        steps, said = number_of(trainer.step, "step"), self._likelihood_in_words()
        print(f"Trained {steps} in {trainer.seconds:.0f} s in all; everything is in {self.out}.{said}")

    def _likelihood_in_words(self) -> str:
        """The last likelihood of held-out examples, as a sentence; nothing before the first one."""
        what = "images" if self.kind.is_image else "examples"
        if "bits_per_dim" in self.latest:
            bound = "" if self.density.lattice is not None else "<= "
            return f" Held-out {what} at t = 0: {bound}{self.latest['bits_per_dim']:.3f} {self.kind.unit}."
        if "log_prob" in self.latest:
            return f" Held-out {what} at t = 0: log p = {self.latest['log_prob']:.3f} nats per example."
        return ""


def check_data(checkpoint: Checkpoint, kind: DataKind, n: int, choice: Choice | None) -> None:
    """Refuse to resume with data other than the run began with: a moved file is fine, another file is another run.

    Args:
        checkpoint: Where the run resumes.
        kind: The kind of the data.
        n: Number of training examples.
        choice: How they were chosen.

    Raises:
        ArgumentError: Another shape, lattice, classes or number of examples, or other examples for training.
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
    """Refuse to resume with another configuration, except for what is in ``FREE`` and how the run is carried out."""
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
