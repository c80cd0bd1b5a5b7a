r"""Scores at the noise level that a sample actually has, by the exact ladder, instead of the one it should have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_count, check_positive
from ncml.density.around import AroundTarget, check_free
from ncml.density.target import Target
from ncml.errors import ArgumentError, UnsupportedError
from ncml.noise import GaussianProcess

__all__ = ["AlignedTarget"]


class AlignedTarget(AroundTarget):
    r"""Denoises every row at its likeliest noise level, near the time that the sampler takes it to have.

    After few or coarse steps samples carry more noise, or less, than their time says. With

    .. math:: t^* = \operatorname{argmax}_{t'} \log p_{t'}(x), \qquad
              \tfrac1{1 + w} \le \frac{\sigma_{t'}/\alpha_{t'}}{\sigma_t/\alpha_t} \le 1 + w,

    for every row, the score returned at t is the one with which Tweedie's formula gives :math:`D(x, t^*)`,

    .. math:: s(x, t) = \frac{\alpha_t\, D(x, t^*) - x}{\sigma_t^2},

    that is, the sampler's step at t with the mean of the data at :math:`t^*`. Timestep aligners learn this correction;
    here it is the likelihood's. In D dimensions the level is known to about :math:`1/\sqrt{2D}` of itself: with a few
    values the likeliest level says little and alignment does harm; with hundreds it removes an error of a fifth. The
    result is not the score of any distribution (``has_log_density`` is False), and where there was no error it adds a
    small one.

    Args:
        density: A density, or a target with a log-density.
        within: The bound w, relative.
        levels: Number of log-densities per score, odd and at least 3: the levels are evenly spaced in the logarithm of
            the noise, and the maximum is that of a parabola through the best and its neighbours.

    Raises:
        ArgumentError: ``within`` or ``levels`` out of range.
        UnsupportedError: No log-density, or no Gaussian process.

    Example:
        >>> density = GaussianDensity(VESDE.linear(1.0), torch.zeros(64), 0.1)
        >>> x = 1.2 * density.sample(4, 1.0)  # a fifth too noisy
        >>> ncml.sampling.DDIM(8)(ncml.density.AlignedTarget(density), x).shape
        torch.Size([4, 64])
    """

    def __init__(self, density: nn.Module | Target, *, within: float = 0.3, levels: int = 5) -> None:
        super().__init__(density)
        check_free(self.inner, "density")
        check_positive(within, "within")
        levels = check_count(levels, "levels", minimum=3)
        if levels % 2 == 0:
            raise ArgumentError(f"levels: got {levels}; expected an odd number, with the time itself in the middle")
        if not self.inner.has_log_density or not isinstance(self.process, GaussianProcess):
            raise UnsupportedError(
                f"density: got a {type(density).__name__} under {type(self.process).__name__}; expected a log-density "
                f"under a GaussianProcess, whose likeliest noise level can be found"
            )
        self.within, self.levels = within, levels

    @property
    def has_log_density(self) -> bool:  # type: ignore[override]
        return False

    def likeliest_time(self, x: Tensor, t: Time) -> Tensor:
        """The likeliest time of every row near ``t``, ``(B,)``."""
        process: Any = self.process
        step = 2.0 * math.log1p(self.within) / (self.levels // 2)  # in log-SNR
        here = process.log_snr(torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x)))
        noisiest, cleanest = float(process.log_snr(process.T)), float(process.log_snr(0.0))
        places = [(here - k * step).clamp(noisiest, cleanest) for k in range(-(self.levels // 2), self.levels // 2 + 1)]
        found = [self.inner.log_density(x, process.time_at_log_snr(place).to(x.dtype)).double() for place in places]
        log_p, snr = torch.stack(found, 1).nan_to_num(-math.inf, posinf=-math.inf), torch.stack(places, 1)
        best = log_p.argmax(1, keepdim=True).clamp(1, self.levels - 2)
        (a, b, c), (u, v, w) = ([values.gather(1, best + k).squeeze(1) for k in (-1, 0, 1)] for values in (log_p, snr))
        # Newton's form of the parabola; where it has no maximum within the three places, the best of them.
        first, second = (b - a) / (v - u), (c - b) / (w - v)
        top = 0.5 * (u + v) - 0.5 * first * (w - u) / (second - first)
        inside = (top > torch.minimum(u, w)) & (top < torch.maximum(u, w)) & (b >= a) & (b >= c)
        top = torch.where(inside, top, snr.gather(1, log_p.argmax(1, keepdim=True)).squeeze(1))
        times: Tensor = process.time_at_log_snr(top).to(x.dtype)
        return times

    def score(self, x: Tensor, t: Time) -> Tensor:
        times = self.likeliest_time(x, t)
        return self._stepping(x, t, times, self.inner.score(x, times))

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        times = self.likeliest_time(x.detach(), t)
        return self._stepping(x, t, times, self.inner.differentiable_score(x, times))

    def _stepping(self, x: Tensor, t: Time, times: Tensor, score: Tensor) -> Tensor:
        """The score at t with which Tweedie's formula gives what it gives with ``score`` at ``times``."""
        clean = (x + self.sigma(times) ** 2 * score) / self.alpha(times)
        aligned: Tensor = (self.alpha(t) * clean - x) / self.sigma(t) ** 2
        return aligned
