r"""Exponential integrators in the log signal-to-noise ratio: DDIM, DPM-Solver++ and their stochastic forms.

With :math:`\lambda = \log(\alpha/\sigma)` and :math:`h = \lambda_s - \lambda_t`, the probability flow and the
reverse SDE are linear except for the denoised :math:`D(x, t) = E[x_0 \mid x_t]`. Their linear part is solved exactly,
and D is taken to be constant over a step (order 1), or a line through the last two steps (order 2):

.. math:: \bar D = D + \frac{h}{2 h'} (D - D'),

where :math:`D'` belongs to the step before, of length :math:`h'`. They need alpha and sigma only. The step to
t = 0, where h is infinite, is :math:`D` itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ncml.density import Target
from ncml.sampling.grids import Grid
from ncml.sampling.sampler import GridSampler

__all__ = ["DDIM", "DPMSolver2M", "DPMSolver2MSDE", "DPMSolverSDE"]

State = tuple[Tensor, float]
"""The denoised samples of the last step, and its length."""


@dataclass(frozen=True)
class _Exponential(GridSampler):
    """What the four share: the denoised samples, carried on along a line or not, and the length of a step."""

    steps: int = 32
    grid: Grid | str = "log-snr"

    def ahead(self, target: Target, x: Tensor, t: float, s: float, state: State | None) -> tuple[Tensor, State]:
        """What stands for D over the step from t to s, and the state after it."""
        clean = target.denoise(x, t)
        if target.sigma(s) == 0.0:
            return clean, (clean, math.inf)
        h = math.log(target.alpha(s) / target.sigma(s)) - math.log(target.alpha(t) / target.sigma(t))
        return clean if state is None else clean.lerp(state[0], -0.5 * h / state[1]), (clean, h)

    def flow(self, target: Target, x: Tensor, ahead: Tensor, t: float, s: float, h: float) -> Tensor:
        """A step of the probability flow."""
        if h == math.inf:
            return ahead
        return x.mul_(target.sigma(s) / target.sigma(t)).sub_(ahead, alpha=target.alpha(s) * math.expm1(-h))

    def diffused(self, target: Target, x: Tensor, ahead: Tensor, t: float, s: float, h: float) -> Tensor:
        """A step of the reverse SDE."""
        if h == math.inf:
            return ahead
        lost = -math.expm1(-2.0 * h)
        x = x.mul_(math.exp(-h) * target.sigma(s) / target.sigma(t)).add_(ahead, alpha=target.alpha(s) * lost)
        return x.add_(target.normal(x), alpha=target.sigma(s) * math.sqrt(lost))


@dataclass(frozen=True)
class DDIM(_Exponential):
    r"""Order 1 along the probability flow (Song et al., 2021, "Denoising diffusion implicit models").

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}\, x_t - \alpha_s (e^{-h} - 1)\, D

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
    """

    steps: int = 128

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        ahead, (_, h) = self.ahead(target, x, t, s, None)
        return self.flow(target, x, ahead, t, s, h), None


@dataclass(frozen=True)
class DPMSolver2M(_Exponential):
    r"""DPM-Solver++(2M) (Lu et al., 2022, "DPM-Solver++", algorithm 2): order 2 with one score per step.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}\, x_t - \alpha_s (e^{-h} - 1)\, \bar D

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        lower_final: Take the last step at order 1, which is steadier; for a dozen steps or fewer. (On the way to t = 0,
            the last but one: the last is of order 1 anyway.)
    """

    lower_final: bool = False

    def begin(self, times: list[float]) -> tuple[None, float]:
        return None, times[-2] if times[-1] == 0.0 else times[-1]

    def step(
        self, target: Target, x: Tensor, t: float, s: float, state: tuple[State | None, float] | None
    ) -> tuple[Tensor, tuple[State, float]]:
        past, end = state or (None, 0.0)
        ahead, now = self.ahead(target, x, t, s, None if self.lower_final and s == end else past)
        return self.flow(target, x, ahead, t, s, now[1]), (now, end)


@dataclass(frozen=True)
class DPMSolverSDE(_Exponential):
    r"""SDE-DPM-Solver++(1) (Lu et al., 2022, "DPM-Solver++", eq. 18): weak order 1 along the reverse SDE.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-h}\, x_t + \alpha_s (1 - e^{-2h})\, D
              + \sigma_s \sqrt{1 - e^{-2h}}\, z

    The same step as :class:`~ncml.sampling.Ancestral`'s, in other words.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
    """

    steps: int = 128

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        ahead, (_, h) = self.ahead(target, x, t, s, None)
        return self.diffused(target, x, ahead, t, s, h), None


@dataclass(frozen=True)
class DPMSolver2MSDE(_Exponential):
    r"""SDE-DPM-Solver++(2M) (Lu et al., 2022, "DPM-Solver++", eq. 19): the reverse SDE with the line of two steps.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-h}\, x_t + \alpha_s (1 - e^{-2h})\, \bar D
              + \sigma_s \sqrt{1 - e^{-2h}}\, z

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
    """

    def step(self, target: Target, x: Tensor, t: float, s: float, state: State | None) -> tuple[Tensor, State]:
        ahead, state = self.ahead(target, x, t, s, state)
        return self.diffused(target, x, ahead, t, s, state[1]), state
