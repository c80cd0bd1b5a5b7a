"""The reverse SDE by Euler-Maruyama."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ncml.density import Target
from ncml.sampling.sampler import GridSampler

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(GridSampler):
    r"""Euler-Maruyama steps of the reverse SDE (Anderson, 1982; paper, eq. 4, corrected).

    .. math:: dx = [f\,x - g^2\, \nabla\log p_t(x)]\,dt + g\,d\bar w, \qquad t: T \to 0,

    so a step of length h is :math:`x \leftarrow x - h\,(f x - g^2 s) + g\sqrt h\, z`. The paper prints
    the bracket as :math:`f + g^2 + \nabla\log p_t`, which diverges. Weak and strong order 1 (the
    noise is additive). One score per step.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`.
    """

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        score = target.score(x, t)
        # In place: at these sizes, allocating temporaries costs more than the arithmetic.
        return x.mul_(1.0 - h * f).add_(score, alpha=h * g * g).add_(target.normal(x), alpha=g * math.sqrt(h)), None
