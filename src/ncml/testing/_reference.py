"""A linear SDE and a density with closed forms: the ground truth that samplers are checked on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ncml._checks import Time, per_example
from ncml.density import NoiseConditionalDensity
from ncml.noise import GaussianProcess, LinearSDE, as_time


@dataclass(frozen=True)
class OrnsteinUhlenbeck(LinearSDE):
    r"""The SDE :math:`dx = -a\,x\,dt + b\,dw` with constant coefficients."""

    T: float = 0.5
    rate: float = 1.0
    diffusivity: float = 0.8

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-self.rate * as_time(t))

    def sigma(self, t: Time) -> Tensor:
        variance = -torch.expm1(-2.0 * self.rate * as_time(t)) / (2.0 * self.rate)
        return self.diffusivity * variance.sqrt()

    def drift_coefficient(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -self.rate)

    def diffusion(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), self.diffusivity)

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        gap = as_time(t) - as_time(s)
        return self.alpha(gap), self.sigma(gap)


class GaussianTarget(NoiseConditionalDensity):
    """The law of x_t for data ``N(mean + context, std^2)``, which keeps a record of how it is called.

    Attributes:
        contexts: The context of every call.
        calls_in_train_mode: How many calls came while the density or its child was in train mode.
    """

    process: GaussianProcess
    dtype_follows_input = True

    def __init__(self, process: GaussianProcess, dims: int = 16, mean: float = 0.6, std: float = 0.5) -> None:
        super().__init__((dims,), process)
        self.mean, self.std = mean, std
        self.child = nn.Identity()
        self.contexts: list[Tensor | None] = []
        self.calls_in_train_mode = 0

    def moments(self, t: float) -> tuple[float, float]:
        """Mean and variance of every coordinate at time ``t``, without a context."""
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        return alpha * self.mean, (alpha * self.std) ** 2 + sigma**2

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self.contexts.append(context)
        self.calls_in_train_mode += self.training or self.child.training
        alpha, sigma = (per_example(c(t), x) for c in (self.process.alpha, self.process.sigma))
        centre = alpha * (self.mean if context is None else self.mean + context)
        variance = (alpha * self.std).square() + sigma.square()
        terms = (x - centre).square() / variance + variance.log() + math.log(2.0 * math.pi)
        return -0.5 * terms.sum(1).to(x.dtype)


class BrokenTarget(GaussianTarget):
    """A density whose values and scores are NaN."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x, t, context) * math.nan
