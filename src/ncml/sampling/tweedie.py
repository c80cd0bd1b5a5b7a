"""One-step denoising by Tweedie's formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ncml.density import Target
from ncml.errors import ArgumentError
from ncml.sampling.sampler import Keep, Sampler

__all__ = ["Tweedie"]


@dataclass(frozen=True)
class Tweedie(Sampler):
    r"""The posterior mean :math:`E[x_0 \mid x_t] = (x_t + \sigma_t^2 \nabla\log p_t(x_t))/\alpha_t`.

    One score in all. The mean of the data that may lie behind a noisy sample, not a draw of them:
    ``samples_distribution`` is False. Goes to t = 0 only.
    """

    samples_distribution: ClassVar[bool] = False

    def check(self, target: Target, start: float, stop: float) -> None:
        if 0.0 < stop < start:
            raise ArgumentError(f"t_end: got {stop:.6g}; expected 0 or None: Tweedie's formula gives the mean at t = 0")

    def expected_steps(self) -> int | None:
        return 1

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        x = target.denoise(x, start)
        keep(stop, x)
        return x, {}
