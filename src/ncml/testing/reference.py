"""A linear SDE and a density with closed forms: the ground truth that samplers are checked on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ncml.checks import Time, per_example
from ncml.density import NoiseConditionalDensity
from ncml.noise import GaussianProcess, Lattice, LinearSDE, as_time


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


@dataclass(frozen=True)
class Call:
    """What a density was called with."""

    t: Tensor
    context: Tensor | None
    training: bool


class KnownGaussian(NoiseConditionalDensity):
    """The distribution of x_t for data ``N(mean + context, std^2)``, which keeps a record of how it is called.

    Args:
        noise: The process of the data.
        bound: Whether it is the density's own as well; if not, every call must bring one.
        lattice: A lattice to announce; the data are not on it.

    Attributes:
        calls: What every evaluation was given.
    """

    dtype_follows_input = True

    def __init__(
        self,
        noise: GaussianProcess,
        *,
        bound: bool = True,
        lattice: Lattice | None = None,
        dims: int = 16,
        mean: float = 0.6,
        std: float = 0.5,
    ) -> None:
        super().__init__((dims,), noise if bound else None, lattice)
        self.noise, self.mean, self.std = noise, mean, std
        self.child = nn.Identity()
        self.calls: list[Call] = []

    @property
    def rows(self) -> int:
        """How many rows were evaluated."""
        return sum(len(call.t) for call in self.calls)

    @property
    def times(self) -> Tensor:
        """The time of every row that was evaluated."""
        return torch.cat([call.t.double() for call in self.calls]) if self.calls else torch.empty(0)

    def moments(self, t: float) -> tuple[float, float]:
        """Mean and variance of every coordinate at time ``t``, without a context."""
        alpha, sigma = float(self.noise.alpha(t)), float(self.noise.sigma(t))
        return alpha * self.mean, (alpha * self.std) ** 2 + sigma**2

    def posterior_mean(self, x: Tensor, t: float) -> Tensor:
        """The mean of the data behind ``x`` at time ``t``, without a context."""
        mean, variance = self.moments(t)
        return self.mean + float(self.noise.alpha(t)) * self.std**2 / variance * (x - mean)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        self.calls.append(Call(t, context, self.training or self.child.training))
        alpha, sigma = self.noise.alpha(t), self.noise.sigma(t)
        distance = x - per_example(alpha, x) * (self.mean if context is None else self.mean + context)
        variance = (alpha * self.std).square() + sigma.square()
        # Per row, not per value, wherever that is the same: samplers are checked on thousands of these calls.
        terms = torch.linalg.vecdot(distance, distance) / variance + x.shape[1] * (2.0 * math.pi * variance).log()
        return -0.5 * terms.to(x.dtype)


class KnownMixture(KnownGaussian):
    """As :class:`KnownGaussian`, for independent coordinates with two modes each."""

    weights, means, stds = (0.4, 0.6), (-0.6, 0.8), (0.25, 0.15)

    def component(self, t: float, i: int) -> tuple[float, float]:
        """Mean and standard deviation of a component at time ``t``."""
        alpha, sigma = float(self.noise.alpha(t)), float(self.noise.sigma(t))
        return alpha * self.means[i], math.hypot(alpha * self.stds[i], sigma)

    def draw(self, n: int, t: float, generator: torch.Generator) -> Tensor:
        """Exact samples at time ``t``, float64."""
        z, u = (f(n, *self.event_shape, dtype=torch.float64, generator=generator) for f in (torch.randn, torch.rand))
        (m, s), (m_2, s_2) = (self.component(t, i) for i in range(2))
        return torch.where(u < self.weights[0], m + s * z, m_2 + s_2 * z)

    def cdf(self, x: Tensor, t: float) -> Tensor:
        """The distribution function of each coordinate at time ``t``."""
        parts = (self.component(t, i) for i in range(2))
        return sum(
            (w * torch.special.ndtr((x - m) / s) for w, (m, s) in zip(self.weights, parts, strict=True)), 0.0 * x
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        self.calls.append(Call(t, context, self.training or self.child.training))
        alpha, sigma = (per_example(c(t), x) for c in (self.noise.alpha, self.noise.sigma))
        terms = []
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            variance = (alpha * std).square() + sigma.square()
            exponent = (x - alpha * mean).square() * (-0.5 / variance)
            terms.append(exponent + (math.log(weight) - 0.5 * (2.0 * math.pi * variance).log()))
        return torch.logaddexp(*terms).sum(1).to(x.dtype)


class FailingGaussian(KnownGaussian):
    """NaN, density and score, in the rows with a positive context at times up to ``below``."""

    def __init__(self, noise: GaussianProcess, below: float) -> None:
        super().__init__(noise)
        self.below = below

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        log_p = super().forward(x, t, context, edges=edges)
        if context is None:
            return log_p
        bad = (t <= self.below) & (context.flatten(1) > 0.0).any(1)
        # As a factor: the sound rows keep their values and gradients to the bit.
        return log_p * torch.where(bad, math.nan, 1.0).to(log_p.dtype)
