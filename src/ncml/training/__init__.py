"""Training: a short loop for data in memory, and the program behind ``ncml train``."""

from ncml.training.build import ImageKind, build_density, build_objective, build_process, load_density
from ncml.training.checkpoint import Checkpoint, load_into, load_state, open_checkpoint, save_checkpoint
from ncml.training.config import (
    NetworkConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    read_toml,
)
from ncml.training.ema import EMA
from ncml.training.fit import fit
from ncml.training.metrics import read_metrics
from ncml.training.parallel import in_blocks, launch
from ncml.training.trainer import Examples, Periodic, Trainer

__all__ = [
    "EMA",
    "Checkpoint",
    "Examples",
    "ImageKind",
    "NetworkConfig",
    "NoiseConfig",
    "OptimConfig",
    "Periodic",
    "RunConfig",
    "TrainConfig",
    "Trainer",
    "build_density",
    "build_objective",
    "build_process",
    "fit",
    "in_blocks",
    "launch",
    "load_density",
    "load_into",
    "load_state",
    "open_checkpoint",
    "read_metrics",
    "read_toml",
    "save_checkpoint",
]
