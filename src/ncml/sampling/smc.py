r"""Sequential Monte Carlo down the ladder of exact densities."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncml.checks import check_probability
from ncml.density import Target
from ncml.errors import ArgumentError, NonFiniteError
from ncml.noise.gaussian import clean_at_zero
from ncml.sampling.grids import Grid
from ncml.sampling.kernels import Kernels
from ncml.sampling.sampler import GridSampler, Keep

__all__ = ["AnnealedSMC"]


@dataclass
class _Particles:
    """What particles carry besides their places."""

    log_p: Tensor
    score: Tensor
    log_weights: Tensor
    log_z: float = 0.0
    sizes: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class AnnealedSMC(GridSampler):
    r"""Particles with exact weights along the reverse SDE (Del Moral et al., 2006, "Sequential Monte Carlo samplers").

    With the kernel :math:`x_t \mid x_s \sim K_f = N(a\,x_s, v)` of the process, particles move by

    .. math:: x_s \sim K_b = N\left(\frac{x_t + v\,\nabla\log p_t(x_t)}{a},\ \frac{v}{a^2}\right), \qquad
              w \leftarrow w\; \frac{p_s(x_s)\, K_f(x_t \mid x_s)}{p_t(x_t)\, K_b(x_s \mid x_t)},

    and are resampled (systematically) when their effective sample size falls. The weights are exact for any score and
    any number of steps: the samples follow the density at ``t_end``, though the steps alone would not, if there are
    enough particles. This needs likelihoods, which a model of scores does not have. One evaluation per step.

    ``info`` has ``log_weights`` (normalised to mean 1, of the particles returned), ``log_z``, the logarithm of an
    estimate of :math:`Z_{end}/Z_{start}` whose mean is 1 (of Z, not of its logarithm; particles that fail are lost
    to it), and
    ``effective_sample_size``, a share per step: about the *model* it says whether its ladder is one process. The
    weights degenerate in many dimensions: use it up to 64 or so.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`. Tweedie's step has no weight.
        threshold: Share of effective particles below which they are resampled; 0 for never, which is annealed
            importance sampling.
        resample_last: Resample at the end, so that all particles count alike.
    """

    steps: int = 64
    grid: Grid | str = "quadratic"
    denoise_last: bool = False
    threshold: float = 0.5
    resample_last: bool = True

    needs_log_density: ClassVar[bool] = True
    rows_interact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability(self.threshold, "threshold")

    def check(self, target: Target, start: float, stop: float) -> None:
        super().check(target, start, stop)
        if names := target.differing:
            raise ArgumentError(
                f"{', '.join(names)}: got rows that differ; expected the same for all particles, which take each "
                f"other's places; make one call for each"
            )

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        state = self._first(target, x, start)
        times = self.times(target.process, start, stop)
        target.prepare(times)
        for i, s in enumerate(times[1:]):
            if s == 0.0 and self.denoise_last and clean_at_zero(target.process):
                x = target.denoise(x, times[i])
            else:
                x, state = self.step(target, x, times[i], s, state)
            if self.resample_last and s == stop:
                x = self._resampled(target, x, state)
            keep(s, x)
        log_z = state.log_z + float(state.log_weights.logsumexp(0)) - math.log(len(x))
        weights = state.log_weights - state.log_weights.logsumexp(0) + math.log(len(x))
        sizes = torch.tensor(state.sizes, dtype=torch.float64)
        return x, {"log_weights": weights, "log_z": log_z, "effective_sample_size": sizes}

    def _first(self, target: Target, x: Tensor, t: float) -> _Particles:
        log_p, score = target.log_density_and_score(x, t)
        return _Particles(log_p, score, torch.where(log_p > -math.inf, 0.0, -math.inf))

    def step(
        self, target: Target, x: Tensor, t: float, s: float, state: _Particles | None
    ) -> tuple[Tensor, _Particles]:
        state = self._first(target, x, t) if state is None else state
        if state.sizes and state.sizes[-1] < self.threshold:
            x = self._resampled(target, x, state)
        kernels = Kernels.between(target, s, t)
        y = kernels.back(x, state.score, target.normal(x))
        log_p, score = target.log_density_and_score(y, s)
        gain = log_p - state.log_p + kernels.log_ratio(y, x, state.score, target.dims(x))
        weights = (state.log_weights + gain).nan_to_num(-math.inf, -math.inf, -math.inf)
        if not float(weights.max()) > -math.inf:
            raise NonFiniteError(
                f"particles: got weights of 0 for all {len(x)} at t = {s:.6g}; expected one that has mass there; take "
                f"more particles or steps, or another start"
            )
        share = weights.softmax(0)
        sizes = [*state.sizes, float(1.0 / (share.square().sum() * len(x)))]
        return y, _Particles(log_p, score, weights, state.log_z, sizes)

    def _resampled(self, target: Target, x: Tensor, state: _Particles) -> Tensor:
        """Systematic resampling, in place in the state."""
        n = len(x)
        places = (torch.arange(n, device=x.device, dtype=torch.float64) + float(target.uniform(1))) / n
        shares = state.log_weights.double().softmax(0)
        # From the right, and up to the last one that has weight: none is picked without.
        last = int(shares.nonzero()[-1])
        rows = torch.searchsorted(shares.cumsum(0), places, right=True).clamp(max=last)
        state.log_z += float(state.log_weights.logsumexp(0)) - math.log(n)
        state.log_p, state.score = state.log_p[rows], state.score[rows]
        state.log_weights = torch.zeros_like(state.log_weights)
        target.resampled(rows)
        return x[rows]
