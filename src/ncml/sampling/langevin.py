"""Annealed Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ncml._checks import check_count, check_positive
from ncml.noise import GaussianProcess
from ncml.sampling.base import Sampler, Score

__all__ = ["AnnealedLangevin"]


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    r"""Langevin moves at each noise level of the grid in turn (Song and Ermon, 2019, algorithm 1).

    On the way from level t to s, x is first rescaled by :math:`\alpha(s)/\alpha(t)`, as the mean of the noisy data
    is (a factor of 1 under VE, and at most :math:`e^{\text{step\_size} \cdot \text{moves}}`). Then

    .. math:: x \leftarrow x + \epsilon_s\, \nabla\log p_s(x) + \sqrt{2\epsilon_s}\, z,
              \qquad \epsilon_s = \text{step\_size} \cdot \sigma(s)^2.

    Needs no SDE, only the noise levels. Unadjusted: its stationary variance is too large by about
    ``step_size / 2`` relative, and it follows the ladder only if ``steps * moves`` is large.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.Sampler`.
        moves: Langevin moves at each level; one score each.
        step_size: Step in units of the level's variance.
    """

    moves: int = 4
    step_size: float = 0.1

    needs: ClassVar[type[GaussianProcess]] = GaussianProcess

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.moves, "moves")
        check_positive(self.step_size, "step_size")

    def step(
        self, x: Tensor, t: float, s: float, score: Score, process: GaussianProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        # Rescaling also stretches the noise, and the moves shrink it by about this factor; more would add up.
        limit = math.exp(self.step_size * self.moves)
        x = x.mul_(min(float(process.alpha(s)) / float(process.alpha(t)), limit))
        epsilon = self.step_size * float(process.sigma(s)) ** 2
        if epsilon == 0.0:  # there is no noise level to move at
            return x
        for _ in range(self.moves):
            gradient = score(x, s)
            x = x.add_(gradient, alpha=epsilon).add_(noise(), alpha=math.sqrt(2.0 * epsilon))
        return x
