r"""Extended reverse-time SDEs: between the probability flow and more noise than the reverse SDE has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ncml.density import Target
from ncml.errors import ArgumentError
from ncml.sampling.grids import Grid
from ncml.sampling.sampler import GridSampler

__all__ = ["ERSDE", "er_scale", "flow_scale", "sde_scale"]

NoiseScale = Callable[[float], float]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


def er_scale(sigma: float) -> float:
    r""":math:`\phi(\sigma) = \sigma (e^{\sigma^{0.3}} + 10)`, the choice of the paper (its eq. 26)."""
    return sigma * (math.exp(min(sigma**0.3, 600.0)) + 10.0)


def sde_scale(sigma: float) -> float:
    r""":math:`\phi(\sigma) = \sigma^2`: the reverse SDE itself."""
    return sigma * sigma


def flow_scale(sigma: float) -> float:
    r""":math:`\phi(\sigma) = \sigma`: the probability flow, without noise."""
    return sigma


@dataclass(frozen=True)
class ERSDE(GridSampler):
    r"""ER-SDE-Solvers 1 to 3 (Cui et al., 2023, "Elucidating the solution space of extended reverse-time SDE").

    In the scaled :math:`y = x/\alpha`, whose noise is :math:`\sigma \leftarrow \sigma/\alpha`, and with
    :math:`r = \phi(\sigma_b)/\phi(\sigma_a)`, a step from noise a to b is

    .. math:: y_b = r\, y_a + (1 - r)\, D + c_1 D' + c_2 D'' + \sqrt{\sigma_b^2 - r^2 \sigma_a^2}\; z,

    where :math:`D = E[x_0 \mid x_a]`, its derivatives in sigma are differences of the last steps, and
    :math:`c_1 = \sigma_b - \sigma_a + \phi(\sigma_b) \int_{\sigma_b}^{\sigma_a} d\sigma/\phi`,
    :math:`c_2 = (\sigma_b - \sigma_a)^2/2 + \phi(\sigma_b) \int_{\sigma_b}^{\sigma_a} (\sigma - \sigma_a)\,
    d\sigma/\phi`. Exact for point masses in any number of steps. One score per step.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        order: 1, 2 or 3: how many derivatives, plus one, are used.
        scale: The noise scale :math:`\phi`: :func:`er_scale` (default), :func:`sde_scale`, :func:`flow_scale`, or
            your own, growing at least as fast as sigma.

    Raises:
        ArgumentError: Another order, or (when called) a scale that grows more slowly than sigma: its noise would
            have a negative variance.
    """

    steps: int = 32
    grid: Grid | str = "log-snr"
    order: Literal[1, 2, 3] = 3
    scale: NoiseScale = er_scale

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ArgumentError(f"order: got {self.order!r}; expected 1, 2 or 3")
        if not callable(self.scale):
            raise ArgumentError(f"scale: got {self.scale!r}; expected a function of sigma, such as er_scale")

    def check(self, target: Target, start: float, stop: float) -> None:
        super().check(target, start, stop)
        times = torch.tensor(self.times(target.process, start, stop), dtype=torch.float64, device="cpu")
        noise = (target.process.sigma(times) / target.process.alpha(times)).tolist()
        ratios = [self.scale(s) / s for s in noise if s > 0.0]
        if any(later > earlier * (1.0 + 1e-9) for earlier, later in itertools.pairwise(ratios)):
            raise ArgumentError(
                f"scale: got {getattr(self.scale, '__name__', self.scale)}, which grows more slowly than sigma; "
                f"expected phi(sigma) / sigma that does not fall"
            )

    def step(
        self, target: Target, x: Tensor, t: float, s: float, state: list[tuple[Tensor, float]] | None
    ) -> tuple[Tensor, list[tuple[Tensor, float]]]:
        clean = target.denoise(x, t)
        alpha, alpha_s = target.alpha(t), target.alpha(s)
        a, b = target.sigma(t) / alpha, target.sigma(s) / alpha_s
        past = [*(state or []), (clean, a)][-3:]
        if b == 0.0:
            return clean, past
        r = self.scale(b) / self.scale(a)
        y = x.mul_(r / alpha).add_(clean, alpha=1.0 - r)
        if self.order > 1 and len(past) > 1:
            first, second = self._integrals(a, b)
            slope = (past[-1][0] - past[-2][0]) / (past[-1][1] - past[-2][1])
            if self.order > 2 and len(past) > 2:
                before = (past[-2][0] - past[-3][0]) / (past[-2][1] - past[-3][1])
                bend = (slope - before) / (0.5 * (past[-1][1] - past[-3][1]))
                slope = slope + 0.5 * (past[-1][1] - past[-2][1]) * bend  # at a, not midway
                y = y.add_(bend, alpha=second)
            y = y.add_(slope, alpha=first)
        y = y.add_(target.normal(x), alpha=math.sqrt(max(b * b - (r * a) ** 2, 0.0)))
        return y.mul_(alpha_s), past

    def _integrals(self, a: float, b: float) -> tuple[float, float]:
        """c_1 and c_2, by Gauss-Legendre quadrature in log sigma."""
        centre, half = 0.5 * (math.log(a) + math.log(b)), 0.5 * (math.log(a) - math.log(b))
        sigma = np.exp(centre + half * NODES)
        weight = half * WEIGHTS * sigma / np.array([self.scale(float(v)) for v in sigma])
        phi = self.scale(b)
        return (
            b - a + phi * float(weight.sum()),
            0.5 * (b - a) ** 2 + phi * float((weight * (sigma - a)).sum()),
        )
