"""Multistep methods of any order for the probability flow, with or without a corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from ncml.checks import check_choice
from ncml.density import Target
from ncml.errors import ArgumentError
from ncml.sampling.grids import Grid
from ncml.sampling.sampler import GridSampler

__all__ = ["MultistepODE"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


Quantity = Literal["data", "noise", "flow"]


@dataclass
class _History:
    """Values of the quantity with their places, oldest first, and where the last step began."""

    values: list[tuple[Tensor, float]]
    left: int  # steps to go
    x: Tensor | None = None
    t: float = 0.0


@dataclass(frozen=True)
class MultistepODE(GridSampler):
    r"""The probability flow with a polynomial through the last few steps, one score a step.

    With :math:`D(x, t) = E[x_0 \mid x_t]`, the flow is exactly :math:`d(x/c) = q\,dw` in three ways:

    ============  =================================  =====================================  ==================
    ``of``        q                                  c, w                                   polynomial in
    ============  =================================  =====================================  ==================
    ``"data"``    :math:`D`                          :math:`\sigma,\ \alpha/\sigma`          :math:`\log w`
    ``"noise"``   :math:`z = (x - \alpha D)/\sigma`  :math:`\alpha,\ \sigma/\alpha`          w
    ``"flow"``    :math:`z - D`                      :math:`\alpha+\sigma,\ \sigma/c`        w
    ============  =================================  =====================================  ==================

    and q is taken to be the polynomial through its last ``order`` values. For the data this is DDIM at 1,
    DPM-Solver++(2M) up to second order in the step at 2, and (3M) at 3 (Lu et al., 2022, "DPM-Solver++"); for the
    noise, the methods of Zhang and Chen (2022, "DEIS"); for the flow, those of rectified flows. With ``corrector`` a
    step is redone once the score at its end is known, with the polynomial through that as well (Zhao et al., 2023,
    "UniPC", with the integrals exact): one order more for no further score. The first steps, which lack a history, have
    lower order: the whole has 2 at most, with corrector 3. With ``lower_final`` the last steps have orders falling to
    1: with a dozen steps or fewer, extrapolation over the last, longest one costs more than it gains.
    benchmarks/frontier.py measures which is best for few scores.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        order: Values on the polynomial, 1 to 4. A higher order is more exact if steps are small, and worse if they are
            not.
        corrector: Correct each step.
        of: The quantity that the polynomial describes.
        lower_final: Let the order fall to 1 over the last steps.

    Raises:
        ArgumentError: Another order, or another quantity.
    """

    steps: int = 16
    grid: Grid | str = "log-snr"
    order: int = 3
    corrector: bool = True
    of: Quantity = "data"
    lower_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.order, bool) or self.order not in (1, 2, 3, 4):
            raise ArgumentError(f"order: got {self.order!r}; expected 1, 2, 3 or 4")
        check_choice(self.of, "of", get_args(Quantity))

    def begin(self, times: list[float]) -> _History:
        return _History([], len(times) - 1)

    def step(self, target: Target, x: Tensor, t: float, s: float, state: _History | None) -> tuple[Tensor, _History]:
        state = state or _History([], self.order)
        clean = target.denoise(x.clone(), t)
        if target.sigma(s) == 0.0:
            return clean, state
        known = [*state.values, (self._value(target, x, clean, t), self._place(target, t)[1])]
        if self.corrector and state.x is not None:
            x = self._moved(target, state.x, known[-self.order - 1 :], state.t, t)
        order = min(self.order, state.left) if self.lower_final else self.order
        moved = self._moved(target, x, known[-order:], t, s)
        return moved, _History(known[-self.order :], state.left - 1, x if self.corrector else None, t)

    def _value(self, target: Target, x: Tensor, clean: Tensor, t: float) -> Tensor:
        """The quantity at t."""
        if self.of == "data":
            return clean
        noise = x.sub(clean, alpha=target.alpha(t)).div_(target.sigma(t))
        return noise if self.of == "noise" else noise.sub_(clean)

    def _place(self, target: Target, t: float) -> tuple[float, float]:
        """c, and the variable of the polynomial."""
        alpha, sigma = target.alpha(t), target.sigma(t)
        if self.of == "data":
            return sigma, math.log(alpha / sigma)
        return (alpha, sigma / alpha) if self.of == "noise" else (alpha + sigma, sigma / (alpha + sigma))

    def _moved(self, target: Target, x: Tensor, known: list[tuple[Tensor, float]], t: float, s: float) -> Tensor:
        """The step from t to s with the polynomial through what is known; ``x`` stays."""
        (c_t, begin), (c_s, end) = self._place(target, t), self._place(target, s)
        u = begin + 0.5 * (end - begin) * (1.0 + NODES)
        weights = 0.5 * (end - begin) * WEIGHTS * c_s
        if self.of == "data":  # dw = e^u du; with c = sigma that is alpha at the end
            weights = weights * np.exp(u)
        y = x * (c_s / c_t)
        for k, (value, place) in enumerate(known):
            others = [other for j, (_, other) in enumerate(known) if j != k]
            basis = np.prod([(u - other) / (place - other) for other in others], axis=0)
            y = y.add_(value, alpha=float((weights * basis).sum()))
        return y
