"""The configuration of a training run: frozen dataclasses, read from TOML, changed on the command line."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ncml._checks import check_count, check_positive, check_probability
from ncml.data import ImageSource
from ncml.errors import ArgumentError

__all__ = [
    "NetworkConfig",
    "NoiseConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "from_dict",
    "read_toml",
    "to_dict",
]

Config = TypeVar("Config")


@dataclass(frozen=True)
class NoiseConfig:
    """The noise process and how often each of its levels is trained.

    Args:
        process: vp, sub-vp or ve of the paper, or linear-ve (sigma = t).
        levels: Noise at T, its standard deviation in levels of the data (the paper: about 10).
        times: uniform or log-uniform in the noise level, each with an atom at t = 0, or zero: t = 0
            only, which is maximum likelihood.
        p_zero: Share of each batch at t = 0.
    """

    process: Literal["vp", "sub-vp", "ve", "linear-ve"] = "vp"
    levels: float = 10.0
    times: Literal["uniform", "log-uniform", "zero"] = "uniform"
    p_zero: float = 0.2

    def __post_init__(self) -> None:
        check_positive(self.levels, "noise.levels")
        check_probability(self.p_zero, "noise.p_zero")


@dataclass(frozen=True)
class NetworkConfig:
    """The network: a preset of NCPN, and what to change in it.

    Args:
        preset: tiny (0.5 M parameters), small (2 M) or paper (73 M).
        features: Width, if not the preset's.
        blocks: Blocks per stream and resolution, if not the preset's.
        resolutions: Number of resolutions, if not the preset's.
        heads: Attention heads, if not the preset's; 0 for none.
        components: Mixture components, if not the preset's.
        dropout: Dropout, if not the preset's.
        classes: Condition on the class of each image.
        label_dropout: Share of images trained without their label, where there are classes.
        compile: Compile the repeated block with torch.compile.
        checkpoint: Recompute blocks in the backward pass instead of keeping their activations.
    """

    preset: Literal["tiny", "small", "paper"] = "tiny"
    features: int | None = None
    blocks: int | None = None
    resolutions: int | None = None
    heads: int | None = None
    components: int | None = None
    dropout: float | None = None
    classes: bool = False
    label_dropout: float = 0.1
    compile: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_probability(self.label_dropout, "network.label_dropout")


@dataclass(frozen=True)
class OptimConfig:
    r"""Adam, its schedule, and what surrounds a step.

    The learning rate rises linearly over warmup steps, and then is constant or falls to zero along a
    cosine that ends with the last step.

    Args:
        steps: Optimizer steps.
        batch_size: Images per step, over all processes and accumulated parts.
        accumulate: Parts of a batch that are computed one after the other, to save memory.
        learning_rate: Adam's learning rate at its highest.
        schedule: cosine or constant.
        warmup: Steps over which the learning rate rises.
        beta1: Adam's decay of the first moment.
        beta2: Adam's decay of the second moment.
        clip_norm: Gradients (of the loss in nats per dimension) of a larger norm are scaled down to it.
        ema: Decay of the moving average of the parameters, which samples and results are made with; 0 for none.
    """

    steps: int = 10_000
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 200
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        check_count(self.steps, "optim.steps")
        check_count(self.batch_size, "optim.batch_size")
        check_count(self.accumulate, "optim.accumulate")
        check_count(self.warmup, "optim.warmup", minimum=0)
        check_positive(self.learning_rate, "optim.learning_rate")
        check_positive(self.clip_norm, "optim.clip_norm")
        for name in ("beta1", "beta2", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ArgumentError(f"optim.{name}: got {getattr(self, name)!r}; expected 0 <= {name} < 1")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step after step steps."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps))) if self.schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out: what does not change what is learned, but for the seed and the precision.

    Args:
        seed: Seed of the initial weights and of everything that is drawn.
        precision: float32, or bfloat16 for the trunk of the network (autocast; the head stays float32).
        tf32: Let float32 products of matrices round to TF32 on GPUs that have it.
        accelerator: auto, cpu or cuda, as Lightning Fabric names them.
        strategy: Fabric's strategy, auto for DDP where there are several processes.
        threads: CPU threads; torch's default if not given.
        log_every: Steps between lines of metrics.jsonl.
        validate_every: Steps between likelihoods of held-out images, 0 for never.
        validate_images: How many of them.
        sample_every: Steps between grids of samples, 0 for never.
        samples: Images in a grid.
        save_every: Steps between checkpoints.
        keep: Checkpoints to keep, the latest ones.
        loggers: Also log to tensorboard or wandb, if these are installed.
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
    """Everything that a training run depends on, besides the machine.

    Args:
        data: The images.
        network: The network.
        noise: The noise process and the distribution of its levels.
        optim: The optimizer.
        run: How the run is carried out.
    """

    data: ImageSource = field(default_factory=ImageSource)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def to_dict(config: Any) -> dict[str, Any]:  # noqa: ANN401 -- any dataclass
    """A configuration as nested dicts of JSON data."""
    plain = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        plain[f.name] = value
    return plain


def from_dict(kind: type[Config], data: dict[str, Any], where: str = "configuration") -> Config:
    """A configuration from nested dicts; what is not there has its default.

    Raises:
        ArgumentError: An unknown name, or a value of another type; the message says where.
    """
    hints = get_type_hints(kind)
    values = {}
    for name, value in data.items():
        here = f"{where}.{name}"
        if name not in hints:
            raise ArgumentError(f"{here}: got a name that is not known; expected one of {', '.join(hints)}")
        values[name] = _converted(value, hints[name], here)
    return kind(**values)


def read_toml(path: Path) -> TrainConfig:
    """A configuration from a TOML file.

    Raises:
        ArgumentError: It is not TOML, or has names or values that do not fit.
        OSError: It cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # what tomllib came from
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: got a file that is not TOML ({error})") from error
    return from_dict(TrainConfig, data, str(path))


def _converted(value: Any, hint: Any, where: str) -> Any:  # noqa: ANN401 -- JSON data to any type
    """value as the type of a field."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value, where)
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [h for h in get_args(hint) if h is not type(None)]
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_converted(v, get_args(hint)[0], where) for v in value)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ArgumentError(f"{where}: got {value!r}; expected one of {', '.join(map(repr, get_args(hint)))}")
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ArgumentError(f"{where}: got {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value
