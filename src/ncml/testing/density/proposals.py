"""Importance sampling: proposals around a density, and what weighted averages may be off by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.testing.cases import CHUNK, DensityCase
from ncml.testing.expectations import expect, require
from ncml.testing.numerics import FALSE_ALARM, Z

MAX_DIMS = 10
"""Most dimensions for importance sampling, whose weights degenerate beyond."""

TYPICAL = 1000
"""Points that proposals are fitted to."""

DEGREES = 5
"""Degrees of freedom of Student-t proposals, which have heavier tails than most densities."""

ROUNDS = 3
"""How often proposals are fitted anew, where there are no samples to fit them to."""

LEAST = 0.02
"""Least share of proposals that may be effective."""


class Proposals:
    """Weighted points at one time, under one context.

    Attributes:
        x: ``(n, D)``.
        weights: Density over density of the proposal, ``(n,)``; they average to the integral.
        note: What was odd; empty if nothing was.
    """

    def __init__(self, case: DensityCase, t: float, context: Tensor | None, n: int, stream: int = 11) -> None:
        require(case.dims <= MAX_DIMS, too_many(case))
        self.case, self.n, self.generator, self.note = case, n, case.generator(stream), ""
        self.t, self.context = t, context
        typical = case.typical(t, TYPICAL, stream, context).flatten(1)
        if case.has_masses(t):
            self.x, log_q, radius = self._lattice(typical)
        else:
            mean, covariance = typical.mean(0), torch.atleast_2d(typical.T.cov())
            for _ in range(0 if case.can_sample else ROUNDS):
                mean, covariance = self._adapted(mean, covariance)
            self.x, log_q, radius = self._student(mean, covariance, n)
        log_p = self._log_prob(self.x)
        bad = ~(log_p < math.inf)  # +inf, and NaN
        self.weights = torch.where(bad, -math.inf, log_p - log_q).exp()
        if bool(bad.any()):
            far = float(radius[self.weights > 1e-6 * self.weights.sum()].max())
            nearest = float(radius[bad].min())
            expect(
                nearest > far,
                f"a log-density of NaN or +inf {nearest:.1f} standard deviations from the centre at t = {t:.3g}",
                "a number, or -inf, wherever there is mass",
                "the model overflows near its data",
            )
            self.note = f"{int(bad.sum())} far proposals that are not finite count as no mass at t = {t:.3g}"

    def _log_prob(self, x: Tensor) -> Tensor:
        """The call itself, which may be NaN."""
        values = []
        with torch.no_grad():
            for part in x.split(CHUNK):
                rows = None if self.context is None else self.context.expand(len(part), *self.context.shape[1:])
                values.append(self.case.exact(self.case.events(part), part.new_full((len(part),), self.t), rows))
        return torch.cat(values).double()

    def _adapted(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the density as weighted points see them, from data that may lie beside it."""
        x, log_q, _ = self._student(mean, 2.0 * covariance, TYPICAL)
        log_w = (self._log_prob(x) - log_q).nan_to_num(nan=-math.inf, posinf=-math.inf)
        top = log_w.topk(TYPICAL // 20).values[-1]  # the largest weights count as one of them
        share = log_w.clamp(max=float(top)).softmax(0)[:, None]
        center = (share * x).sum(0)
        return center, ((share * (x - center)).T @ (x - center)).nan_to_num()

    @property
    def degenerate(self) -> bool:
        """Whether too few proposals carry all the weight."""
        return not float(self.weights.square().sum()) * LEAST * self.n < float(self.weights.sum()) ** 2

    def average(self) -> tuple[float, float]:
        """The mean weight, and how far it may be off.

        The empirical Bernstein bound (Maurer and Pontil 2009, theorem 4), with the largest weight for the range.
        """
        length = math.log(4.0 / FALSE_ALARM)
        chance = math.sqrt(2.0 * length / self.n) * float(self.weights.std())
        return float(self.weights.mean()), chance + 7.0 * length * float(self.weights.max()) / (3.0 * (self.n - 1))

    def _student(self, mean: Tensor, covariance: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of a Student-t distribution, their log-densities, and their distances in standard deviations."""
        d = self.case.dims
        jitter = 1e-12 * covariance.trace().clamp(min=1e-300) / d
        scale = torch.linalg.cholesky(covariance + jitter * torch.eye(d).to(covariance))
        z, chi = (
            torch.randn(n, k, dtype=torch.float64, device=mean.device, generator=self.generator) for k in (d, DEGREES)
        )
        r = z / (chi.square().sum(1) / DEGREES).sqrt()[:, None]
        log_q = (
            math.lgamma(0.5 * (DEGREES + d))
            - math.lgamma(0.5 * DEGREES)
            - 0.5 * d * math.log(math.pi * DEGREES)
            - scale.diagonal().log().sum()
            - 0.5 * (DEGREES + d) * (r.square().sum(1) / DEGREES).log1p()
        )
        return mean + r @ scale.T, log_q, r.norm(dim=1)

    def _lattice(self, typical: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lattice points with the marginals of ``typical``, a tenth of them uniform."""
        lattice = self.case.density.lattice
        assert lattice is not None
        one_hot = torch.nn.functional.one_hot(lattice.nearest(typical), lattice.levels)
        pmf = 0.9 * one_hot.double().mean(0) + 0.1 / lattice.levels
        levels = torch.multinomial(pmf, self.n, replacement=True, generator=self.generator).T
        log_q = pmf.log().gather(1, levels.T).sum(0) - log_volume(self.case)
        return lattice.to_unit(levels, dtype=torch.float64), log_q, torch.zeros_like(log_q)


def too_many(case: DensityCase) -> str:
    """Why there are no proposals beyond the most dimensions."""
    return f"normalisation cannot be checked in {case.dims} dimensions; build the same architecture with fewer"


def weighted_mean(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``values`` ``(n, K)`` under normalised weights, and its variance."""
    share = (weights / weights.sum())[:, None]
    mean = (share * values).sum(0)
    return mean, (share * (values - mean)).square().sum(0)


def expect_equal_means(z: Tensor, where: str, meaning: str) -> None:
    """Fail if one of some differences of means is more standard errors than chance allows."""
    worst = float(z.abs().max())
    expect(worst <= Z, f"a mean {worst:.1f} standard errors off {where}", f"at most {Z}", meaning)


def log_volume(case: DensityCase) -> float:
    """Log of the volume of a bin, which turns a density into a mass."""
    assert case.density.lattice is not None
    return case.dims * math.log(case.density.lattice.width)
