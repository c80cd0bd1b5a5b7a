"""The problem zoo: processes and densities with known answers, shared by the tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ncml import VESDE, VPSDE, GaussianProcess, Lattice, NoiseProcess, SubVPSDE
from ncml.densities import GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.density import Target
from tests.statistics import normal_cdf

LEVEL = 2.0 / 255.0
"""One 8-bit level in data units."""

SDES = {
    "vp": VPSDE.at_noise(10 * LEVEL),
    "subvp": SubVPSDE.at_noise(10 * LEVEL),
    "ve": VESDE.at_noise(10 * LEVEL),
}
"""The paper's three processes at its noise level, ten levels."""

LINEAR_SDES = {**SDES, "linear-ve": VESDE.linear(10 * LEVEL)}
WHOLE_SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "linear-ve": VESDE.linear(1.0)}
"""The same processes with the whole schedule, T = 1."""

PROCESSES = {**LINEAR_SDES, "cosine": GaussianProcess(torch.cos, torch.sin, T=0.1)}
"""Every Gaussian process; the last is known by its two functions only."""

each_sde = pytest.mark.parametrize("process", SDES.values(), ids=SDES.keys())
each_linear_sde = pytest.mark.parametrize("process", LINEAR_SDES.values(), ids=LINEAR_SDES.keys())
each_whole_sde = pytest.mark.parametrize("process", WHOLE_SDES.values(), ids=WHOLE_SDES.keys())
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())

MEAN, STD = 0.3, 0.1
"""The Gaussian data, N(0.3, 0.1^2)."""

WEIGHTS, MEANS, STDS = (0.4, 0.6), (-0.5, 0.4), (0.1, 0.2)
"""The mixture data, 0.4 N(-0.5, 0.1^2) + 0.6 N(0.4, 0.2^2)."""

PMF = torch.tensor([20, 6, 3, 2, 1, 2, 4, 7, 9, 5, 3, 1, 1, 2, 5, 9, 20], dtype=torch.float64) / 100
"""Lattice data: 17 levels, two fifths of the mass at the edges as in scanned digits."""


def gaussian(process: NoiseProcess) -> GaussianDensity:
    return GaussianDensity(process, torch.tensor([MEAN], dtype=torch.float64), STD)


def mixture(process: NoiseProcess) -> GaussianMixtureDensity:
    return GaussianMixtureDensity(process, WEIGHTS, torch.tensor(MEANS, dtype=torch.float64), STDS)


def plane_mixture(process: NoiseProcess) -> GaussianMixtureDensity:
    """A mixture in two dimensions, with a different spread in every direction."""
    means = torch.tensor([[-0.5, 0.2], [0.4, -0.1], [0.1, 0.6]], dtype=torch.float64)
    stds = torch.tensor([[0.1, 0.3], [0.2, 0.15], [0.25, 0.1]], dtype=torch.float64)
    return GaussianMixtureDensity(process, (0.3, 0.5, 0.2), means, stds)


def lattice(process: NoiseProcess) -> ToyLattice:
    return ToyLattice(process, PMF)


def mixture_cdf(x: np.ndarray) -> np.ndarray:
    """The distribution function of the mixture data."""
    parts = zip(WEIGHTS, MEANS, STDS, strict=True)
    return sum(weight * normal_cdf(mean, std)(x) for weight, mean, std in parts)


class HalfScore(Target):
    """A score that is deliberately wrong, of a density that is right."""

    def score(self, x, t):
        return 0.5 * super().score(x, t)

    def log_density_and_score(self, x, t):
        log_p, score = super().log_density_and_score(x, t)
        return log_p, 0.5 * score


class Wrapper(torch.nn.Module):
    """What DDP looks like from outside: the density as ``module``, and its call, which it counts."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: torch.nn.Module, gain: float, seed: int = 0, *, thin: float = 4.0) -> torch.nn.Module:
    """The model in float64 with noise on every parameter, so that what it computes depends strongly on all it may.

    The noise shrinks with the root of a matrix's inputs, and with that of ``thin`` for vectors.
    """
    generator = seeded(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            noise = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            p.add_(noise * gain / math.sqrt(p.shape[-1] if p.ndim > 1 else thin))
    return model


def log_normal(z: torch.Tensor) -> torch.Tensor:
    """Log-density of the standard normal, ``(B,)``."""
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).flatten(1).sum(1)


def every_state(lattice: Lattice, *shape: int) -> torch.Tensor:
    """All events of this shape on the lattice, ``(levels ** D, *shape)``."""
    points = lattice.points(dtype=torch.float64).tolist()
    states = list(itertools.product(points, repeat=math.prod(shape)))
    return torch.tensor(states, dtype=torch.float64).reshape(-1, *shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit: unlike ``torch.equal`` this tells -0.0 from 0.0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
