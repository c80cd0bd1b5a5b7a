"""Samplers on Gaussian data as exact recursions of mean and variance, without sampling.

The score of a Gaussian is affine, so one step of any sampler without history is x <- a x + b + c z. The three
numbers are read off the sampler's own ``step``, called at x = 0 and x = 1 without noise and at x = 0 with noise 1.
What the recursion then shows is the sampler's error and nothing else: no Monte Carlo, no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ncml import GaussianProcess
from ncml.density import Target
from ncml.sampling import GridSampler
from tests.problems import MEAN, STD, gaussian


class Step(NamedTuple):
    """x <- a x + b + c z on the way from time t to s."""

    a: float
    b: float
    c: float
    t: float
    s: float


def score_of(density) -> Callable[[Tensor, float], Tensor]:
    """The score as samplers call it: of a batch at one time, unchecked."""
    return lambda x, t: density.forward_score(x, torch.full(x.shape[:1], t, dtype=x.dtype))


class Kicked(Target):
    """A target whose normals are given."""

    noise: Tensor

    def normal(self, x: Tensor) -> Tensor:
        return self.noise


@lru_cache(maxsize=256)
def affine_steps(sampler: GridSampler, process: GaussianProcess, n: int) -> tuple[Step, ...]:
    """The n steps of a sampler from T to 0 on its own grid, on data N(0.3, 0.1^2)."""
    target, _ = Kicked(gaussian(process)).bound(torch.zeros(3, 1, dtype=torch.float64), process.T)
    target.noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    steps = []
    for t, s in itertools.pairwise(replace(sampler, steps=n).times(process, process.T, 0.0)):
        x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
        start, end, kicked = sampler.step(target, x, t, s, None)[0].flatten().tolist()
        steps.append(Step(end - start, start, kicked - start, t, s))
    return tuple(steps)


def noisy_moments(process: GaussianProcess, t: float) -> tuple[float, float]:
    """Exact mean and variance of x_t."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * MEAN, (alpha * STD) ** 2 + sigma**2


def refined_moments(sampler: GridSampler, process: GaussianProcess, n: int) -> tuple[float, float]:
    """Mean and variance of what the sampler makes of exact samples at T."""
    mean, variance = noisy_moments(process, process.T)
    for step in affine_steps(sampler, process, n):
        mean, variance = step.a * mean + step.b, step.a**2 * variance + step.c**2
    return mean, variance


def variance_error(sampler: GridSampler, process: GaussianProcess, n: int) -> float:
    """Relative error of the refined variance."""
    return abs(refined_moments(sampler, process, n)[1] / STD**2 - 1.0)


class Impulses(Target):
    """A target whose k-th normals are 1 in row k + 2, and 0 elsewhere."""

    drawn: int

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[self.drawn + 2 : self.drawn + 3] = 1.0
        self.drawn += 1
        return z


def response_moments(sampler: GridSampler, process: GaussianProcess, stop: float = 0.0) -> tuple[float, float]:
    """Mean and variance at ``stop`` of any linear sampler, also one with a history, from exact samples at T.

    What comes out is affine in the start and in every normal that is drawn: one row starts at 0, one at 1, and one
    for each normal has that normal 1 and the others 0.
    """
    density = gaussian(process)
    start = torch.zeros(sampler.steps + 3, 1, dtype=torch.float64)
    start[1] = 1.0
    target, x = Impulses(density).bound(start, process.T)
    target.drawn = 0
    with target.evaluating(), torch.no_grad():
        y = sampler.run(target, x, process.T, stop, lambda t, x: None)[0].flatten()
    assert target.drawn <= sampler.steps + 1
    mean, variance = noisy_moments(process, process.T)
    slope, kicks = float(y[1] - y[0]), y[2:] - y[0]
    return float(y[0]) + slope * mean, slope**2 * variance + float(kicks @ kicks)
