"""A run small enough for tests: digits of 8x8 pixels, a network of a few thousand parameters."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch

from ncml.data import ImageSource
from ncml.densities.ncpn import NCPNSettings
from ncml.training import (
    DataKind,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    Trainer,
    build_density,
    build_objective,
    launch,
)
from ncml.training.build import describe

CONFIG = TrainConfig(
    data=ImageSource(name="digits"),
    model=ModelConfig(settings=NCPNSettings(features=8, blocks=1, resolutions=2, heads=2, components=2, dropout=0.1)),
    noise=NoiseConfig(std_in_levels=2.0),
    optim=OptimConfig(steps=6, batch_size=8, warmup=2, ema=0.9),
    run=RunConfig(accelerator="cpu", threads=1, log_every=2, save_every=2, validate_every=0, sample_every=0),
)


def changed(config: TrainConfig = CONFIG, **parts: dict) -> TrainConfig:
    """The configuration with some fields of its parts, or of the model's settings, replaced."""
    own = parts.get("model", {}).keys() - {f.name for f in fields(config.model)}
    settings = replace(config.model.settings, **{name: parts["model"].pop(name) for name in own})
    config = replace(config, model=replace(config.model, settings=settings))
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in parts.items()})


def trainer(folder: Path, config: TrainConfig = CONFIG, **arguments) -> Trainer:
    """A trainer as ``ncml train`` builds it."""
    folder.mkdir(parents=True, exist_ok=True)
    images = config.data.load(train=True)
    kind = DataKind.of(images)
    density = build_density(config, kind)
    objective = build_objective(config.noise, density, kind)
    return Trainer(
        launch(config.run),
        density,
        objective,
        images,
        folder,
        config.optim,
        config.run,
        info=describe(config, kind),
        use_labels=config.model.classes,
        **arguments,
    )


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
