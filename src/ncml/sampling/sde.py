"""The reverse SDE by Euler-Maruyama."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from ncml.noise import GaussianProcess, LinearSDE
from ncml.sampling.base import Sampler, Score

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler-Maruyama steps of the reverse SDE (Anderson, 1982; paper, eq. 4, corrected).

    .. math:: dx = [f\,x - g^2\, \nabla\log p_t(x)]\,dt + g\,d\bar w, \qquad t: T \to 0,

    so a step of length h is :math:`x \leftarrow x - h\,(f x - g^2 s) + g\sqrt h\, z`. The paper prints
    the bracket as :math:`f + g^2 + \nabla\log p_t`, which diverges. Weak and strong order 1 (the
    noise is additive). One score per step.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.Sampler`.
    """

    def step(
        self, x: Tensor, t: float, s: float, score: Score, process: GaussianProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        sde = cast(LinearSDE, process)
        h, f, g = t - s, float(sde.drift_coefficient(t)), float(sde.diffusion(t))
        gradient = score(x, t)
        # In place: at these sizes, allocating temporaries costs more than the arithmetic.
        return x.mul_(1.0 - h * f).add_(gradient, alpha=h * g * g).add_(noise(), alpha=g * math.sqrt(h))
