"""Samplers on Gaussian data as exact recursions of mean and variance, without sampling.

The score of a Gaussian is affine, so one step of any sampler is x <- a x + b + c z. The three numbers are
read off the sampler's own ``step``, called at x = 0 and x = 1 without noise and at x = 0 with noise 1.
What the recursion then shows is the sampler's error and nothing else: no Monte Carlo, no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ncml import LinearSDE
from ncml.sampling import Sampler
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


@lru_cache(maxsize=256)
def affine_steps(sampler: Sampler, process: LinearSDE, n: int) -> tuple[Step, ...]:
    """The n steps of a sampler from T to 0 on its own grid, on data N(0.3, 0.1^2)."""
    score = score_of(gaussian(process))
    noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    steps = []
    for t, s in itertools.pairwise(sampler.times(process.T, 0.0, n)):
        x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
        start, end, kicked = sampler.step(x, t, s, score, process, lambda: noise).flatten().tolist()
        steps.append(Step(end - start, start, kicked - start, t, s))
    return tuple(steps)


def noisy_moments(process: LinearSDE, t: float) -> tuple[float, float]:
    """Exact mean and variance of x_t."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * MEAN, (alpha * STD) ** 2 + sigma**2


def refined_moments(sampler: Sampler, process: LinearSDE, n: int) -> tuple[float, float]:
    """Mean and variance of what the sampler makes of exact samples at T."""
    mean, variance = noisy_moments(process, process.T)
    for step in affine_steps(sampler, process, n):
        mean, variance = step.a * mean + step.b, step.a**2 * variance + step.c**2
    return mean, variance


def variance_error(sampler: Sampler, process: LinearSDE, n: int) -> float:
    """Relative error of the refined variance."""
    return abs(refined_moments(sampler, process, n)[1] / STD**2 - 1.0)
