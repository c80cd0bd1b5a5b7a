"""The probability-flow ODE by Heun's method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ncml.density import Target
from ncml.sampling.sampler import GridSampler

__all__ = ["HeunODE", "velocity"]


def velocity(target: Target, x: Tensor, t: float | Tensor) -> Tensor:
    r""":math:`dx/dt = f\,x - \tfrac12 g^2\, \nabla\log p_t(x)`, the probability flow."""
    f, g = target.drift_coefficient(t), target.diffusion(t)
    if isinstance(t, Tensor):
        return f * x - 0.5 * g * g * target.score(x, t)
    return (x * f).sub_(target.score(x, t), alpha=0.5 * g * g)


@dataclass(frozen=True)
class HeunODE(GridSampler):
    r"""Heun steps of the probability-flow ODE (Song et al., 2021, eq. 13).

    .. math:: \frac{dx}{dt} = f\,x - \tfrac12 g^2\, \nabla\log p_t(x)

    Deterministic given its start, order 2, two scores per step. The last step to t = 0 is Euler's, with one: the
    score at 0 is as large as the finest detail of the data is small, and would be trusted over the whole step.
    ``denoise_last=True`` takes Tweedie's mean there instead, which lowers the order.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`.
    """

    denoise_last: bool = False

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        h = t - s
        first = velocity(target, x, t)
        if s == 0.0:
            return x.sub_(first, alpha=h), None
        second = velocity(target, x.sub(first, alpha=h), s)
        return x.sub_(first.add_(second), alpha=0.5 * h), None
