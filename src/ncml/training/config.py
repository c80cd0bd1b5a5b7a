"""The configuration of a training run: frozen dataclasses, read from TOML, changed on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ncml.checks import check_count, check_positive
from ncml.data import DataSource, ImageSource
from ncml.errors import ArgumentError
from ncml.training.models import ModelConfig
from ncml.training.noise import NoiseConfig
from ncml.training.settings import from_dict, parse_toml, read_source, to_dict

__all__ = [
    "ModelConfig",
    "NoiseConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "from_dict",
    "read_toml",
    "to_dict",
]


@dataclass(frozen=True)
class OptimConfig:
    r"""Adam, its schedule, and what surrounds a step.

    The learning rate rises linearly over warmup steps; after that it is constant, falls to zero along a cosine that
    ends with the last step, or is multiplied by decay at every step.

    Args:
        steps: Optimizer steps.
        batch_size: Examples per step, over all processes and accumulated parts.
        accumulate: Number of parts a batch is split into; computed one after another, they save memory.
        learning_rate: Adam's peak learning rate.
        schedule: cosine, constant or exponential.
        decay: For exponential: the factor that every step multiplies the learning rate by; PixelCNN++ uses 0.999995.
        warmup: Steps over which the learning rate rises.
        beta1: Adam's decay rate for the first moment.
        beta2: Adam's decay rate for the second moment.
        clip_norm: Gradients (of the loss in nats per dimension) with a larger norm are scaled down to this one.
        ema: Decay of the moving average of the parameters, from which samples and results are made; 0 for no average.
        init_examples: Number of examples whose features set the scale of the weights before the first step, for a
            model that can be initialised like this, such as ncpn with weight_norm; PixelCNN++ uses 100. 0 for none.
    """

    steps: int = 10_000
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant", "exponential"] = "cosine"
    decay: float | None = None
    warmup: int = 200
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    ema: float = 0.999
    init_examples: int = 0

    def __post_init__(self) -> None:
        check_count(self.steps, "optim.steps")
        check_count(self.batch_size, "optim.batch_size")
        check_count(self.accumulate, "optim.accumulate")
        check_count(self.warmup, "optim.warmup", minimum=0)
        check_count(self.init_examples, "optim.init_examples", minimum=0)
        check_positive(self.learning_rate, "optim.learning_rate")
        check_positive(self.clip_norm, "optim.clip_norm")
        for name in ("beta1", "beta2", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ArgumentError(f"optim.{name}: got {getattr(self, name)!r}; expected 0 <= {name} < 1")
        if (self.decay is not None) != (self.schedule == "exponential"):
            raise ArgumentError(
                f"optim.decay: got {self.decay} with schedule={self.schedule!r}; expected a number with 'exponential', "
                f"and none with another schedule"
            )
        if self.decay is not None and not 0.0 < self.decay <= 1.0:
            raise ArgumentError(f"optim.decay: got {self.decay!r}; expected 0 < decay <= 1")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step after step steps."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "cosine":
            fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))
        else:
            fall = 1.0 if self.decay is None else self.decay**step
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out: settings that, apart from the seed and the precision, do not affect what is learned.

    Args:
        seed: Seed for the initial weights and for everything that is drawn at random.
        precision: float32, or bfloat16 for matrix products (autocast).
        tf32: Let float32 matrix products round to TF32 on GPUs that have it.
        accelerator: auto, cpu or cuda, as Lightning Fabric names them.
        strategy: auto or ddp: data-parallel training if there are several processes. Other strategies, which split the
            model, are refused.
        threads: Number of CPU threads; torch's default if not given.
        log_every: Steps between lines of metrics.jsonl.
        validate_every: Steps between evaluations of the likelihood on held-out examples; 0 for never.
        validate_images: Number of held-out examples in such an evaluation.
        sample_every: Steps between sets of samples; 0 for never.
        samples: Number of samples in a set.
        save_every: Steps between checkpoints.
        keep: How many of the latest checkpoints to keep.
        loggers: Also log to tensorboard or wandb, if installed.
    """

    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: str = "auto"
    threads: int | None = None
    log_every: int = 50
    validate_every: int = 1000
    validate_images: int = 512
    sample_every: int = 2000
    samples: int = 16
    save_every: int = 1000
    keep: int = 2
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("log_every", "validate_images", "samples", "save_every", "keep"):
            check_count(getattr(self, name), f"run.{name}")
        for name in ("seed", "validate_every", "sample_every"):
            check_count(getattr(self, name), f"run.{name}", minimum=0)
        if self.threads is not None:
            check_count(self.threads, "run.threads")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on, apart from the machine.

    Args:
        data: The data.
        model: The model.
        noise: The noise process, and how often each noise level is trained.
        optim: The optimizer.
        run: How the run is carried out.
    """

    data: DataSource = field(default_factory=ImageSource, metadata={"read": read_source})
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"read": ModelConfig.read})
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def read_toml(path: Path) -> TrainConfig:
    """A configuration from a TOML file.

    Raises:
        ArgumentError: It is not TOML, or has unknown names or values that do not fit.
        OSError: It cannot be read.
    """
    data = parse_toml(path)
    if "network" in data or "levels" in (data.get("noise") or {}):
        raise ArgumentError(
            f'{path}: got [network] or noise.levels of version 0.1; expected [model] with name = "ncpn", recompute for '
            f"checkpoint, and noise.std_in_levels"
        )
    return from_dict(TrainConfig, data, str(path))
