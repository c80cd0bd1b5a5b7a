"""1. The noise process: how x becomes x_t, and the lattice that integer data live on."""

from ncml.checks import Time, per_example
from ncml.noise.discrete import DiscreteProcess, LevelNoise
from ncml.noise.gaussian import GaussianProcess, LinearSDE
from ncml.noise.lattice import BitsPerDim, Lattice
from ncml.noise.process import NoiseProcess, as_time
from ncml.noise.sde import VESDE, VPSDE, LinearVESDE, SubVPSDE

__all__ = [
    "VESDE",
    "VPSDE",
    "BitsPerDim",
    "DiscreteProcess",
    "GaussianProcess",
    "Lattice",
    "LevelNoise",
    "LinearSDE",
    "LinearVESDE",
    "NoiseProcess",
    "SubVPSDE",
    "Time",
    "as_time",
    "per_example",
]
