"""One-step denoising by Tweedie's formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError
from ncml.noise import GaussianProcess
from ncml.sampling.base import Sampler, Score, tweedie

__all__ = ["Tweedie"]


@dataclass(frozen=True)
class Tweedie(Sampler):
    r"""The posterior mean :math:`E[x_0 \mid x_t] = (x_t + \sigma_t^2 \nabla\log p_t(x_t))/\alpha_t`.

    One score in all. The mean of the data that may lie behind a noisy sample, not a draw of them:
    ``samples_law`` is False. Goes to t = 0 only.
    """

    steps: int = 1

    samples_law: ClassVar[bool] = False
    needs: ClassVar[type[GaussianProcess]] = GaussianProcess

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != 1:
            raise ArgumentError(f"steps: got {self.steps}; expected 1: Tweedie's formula is a single step")

    def plan(
        self, density: NoiseConditionalDensity, process: GaussianProcess, t_start: float, t_end: float | None
    ) -> list[float]:
        if t_end:
            raise ArgumentError(
                f"t_end: got {t_end:.6g}; expected 0 or None: Tweedie's formula gives the mean at t = 0"
            )
        return [t_start, 0.0]

    def step(
        self, x: Tensor, t: float, s: float, score: Score, process: GaussianProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        return tweedie(x, t, score, process)
