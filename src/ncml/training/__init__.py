"""Training: a short loop for data in memory, and the program behind ``ncml train``."""

from ncml.training.build import DataKind, build_density, build_objective, load_density
from ncml.training.checkpoint import Checkpoint, load_into, load_state, open_checkpoint, save_checkpoint, save_density
from ncml.training.config import (
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    read_toml,
)
from ncml.training.ema import EMA
from ncml.training.examples import Examples
from ncml.training.fit import fit
from ncml.training.metrics import read_metrics
from ncml.training.models import MODELS, build_model
from ncml.training.noise import build_process, build_times
from ncml.training.parallel import in_blocks, launch
from ncml.training.trainer import Periodic, Trainer

__all__ = [
    "EMA",
    "MODELS",
    "Checkpoint",
    "DataKind",
    "Examples",
    "ModelConfig",
    "NoiseConfig",
    "OptimConfig",
    "Periodic",
    "RunConfig",
    "TrainConfig",
    "Trainer",
    "build_density",
    "build_model",
    "build_objective",
    "build_process",
    "build_times",
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
    "save_density",
]
