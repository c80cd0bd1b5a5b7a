"""Ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ncml.density import Target
from ncml.sampling.sampler import GridSampler

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(GridSampler):
    r"""Ancestral steps (Ho et al., 2020, eq. 6 and 7): draws of x_s given x_t, with the mean of x_0 for x_0.

    With the kernel :math:`x_t \mid x_s \sim N(a\,x_s, v)` of the process and :math:`D = E[x_0 \mid x_t]`,

    .. math:: x_s \sim N\left(\frac{a\,\sigma_s^2}{\sigma_t^2}\, x_t + \frac{\alpha_s v}{\sigma_t^2}\, D,\
              \frac{\sigma_s^2\, v}{\sigma_t^2}\right).

    Exact for point masses; in general it loses variance, of order 1 in the steps on the default grid.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`.
    """

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        scale, std = target.transition(s, t)
        sigma_t, sigma_s, alpha_s = target.sigma(t), target.sigma(s), target.alpha(s)
        clean = target.denoise(x, t)
        x = x.mul_(scale * (sigma_s / sigma_t) ** 2).add_(clean, alpha=alpha_s * (std / sigma_t) ** 2)
        return x.add_(target.normal(x), alpha=sigma_s * std / sigma_t), None
