"""Annealed Langevin and Hamiltonian dynamics, unadjusted and with Metropolis' test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncml.checks import check_count, check_positive, per_example
from ncml.density import Target
from ncml.sampling.grids import Grid
from ncml.sampling.sampler import GridSampler

__all__ = ["HMC", "AnnealedLangevin", "MetropolisLangevin", "Place", "langevin_moves", "share"]


def langevin_moves(target: Target, x: Tensor, s: float, epsilon: float, moves: int) -> Tensor:
    r"""Moves :math:`x \leftarrow x + \epsilon\, \nabla\log p_s(x) + \sqrt{2\epsilon}\, z`, which write to ``x``."""
    for _ in range(moves if epsilon > 0.0 else 0):  # without noise there is no level to move at
        score = target.score(x, s)
        x = x.add_(score, alpha=epsilon).add_(target.normal(x), alpha=math.sqrt(2.0 * epsilon))
    return x


@dataclass(frozen=True)
class Place:
    """Samples at a noise level, ``(B, *event_shape)``, with their log-densities ``(B,)`` and scores there."""

    x: Tensor
    log_p: Tensor
    score: Tensor

    def replaced(self, taken: Tensor, other: Place) -> Place:
        """The other's rows where ``taken`` ``(B,)``, and these elsewhere."""
        rows = per_example(taken, self.x)
        return Place(
            torch.where(rows, other.x, self.x),
            torch.where(taken, other.log_p, self.log_p),
            torch.where(rows, other.score, self.score),
        )


def share(target: Target, counts: Tensor) -> Tensor:
    """The mean over the rows that have not failed."""
    return counts.mean() if target.failed is None else counts[~target.failed].mean()


@dataclass(frozen=True)
class _Annealed(GridSampler):
    """What the two share: how x is carried from one noise level to the next, and the size of a move."""

    steps: int = 256
    grid: Grid | str = "log-snr"
    moves: int = 16
    step_size: float = 0.08

    moves_in_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.moves, "moves")
        check_positive(self.step_size, "step_size")

    def carried(self, target: Target, x: Tensor, t: float, s: float) -> tuple[Tensor, float]:
        """``x`` rescaled as the mean of the noisy data is, and the length of a move at ``s``."""
        # Rescaling also stretches the noise, and the moves shrink it by about this factor; more would add up.
        limit = math.exp(self.step_size * self.moves)
        return x.mul_(min(target.alpha(s) / target.alpha(t), limit)), self.step_size * target.sigma(s) ** 2


@dataclass(frozen=True)
class AnnealedLangevin(_Annealed):
    r"""Langevin moves at each noise level of the grid in turn (Song and Ermon, 2019, algorithm 1).

    On the way from level t to s, x is first rescaled by :math:`\alpha(s)/\alpha(t)`, as the mean of the noisy data
    is (a factor of 1 under VE, and at most :math:`e^{\text{step\_size} \cdot \text{moves}}`). Then

    .. math:: x \leftarrow x + \epsilon_s\, \nabla\log p_s(x) + \sqrt{2\epsilon_s}\, z,
              \qquad \epsilon_s = \text{step\_size} \cdot \sigma(s)^2.

    Needs no SDE, only the noise levels. Unadjusted: its stationary variance is too large by up to
    ``step_size / 2`` relative; and it lags behind the ladder, so that the variance of the data comes out too large by
    about ``2 log(sigma(T) / std) / (steps * moves * step_size)``. The defaults keep both below 0.05, for data whose
    std is above a hundredth of sigma(T), and pay for it with 4,096 scores; :class:`MetropolisLangevin` needs fewer.
    With ``t_start == t_end`` it moves at that level, ``steps * moves`` times.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        moves: Langevin moves at each level; one score each.
        step_size: Step in units of the level's variance.
    """

    def step(self, target: Target, x: Tensor, t: float, s: float, state: None) -> tuple[Tensor, None]:
        x, epsilon = self.carried(target, x, t, s)
        return langevin_moves(target, x, s, epsilon, self.moves), None


@dataclass(frozen=True)
class MetropolisLangevin(_Annealed):
    r"""Langevin moves with Metropolis' test at each noise level (MALA; Roberts and Tweedie, 1996).

    As :class:`AnnealedLangevin`, but a move from x to y is accepted with probability

    .. math:: \min\left(1, \frac{p_s(y)\, q(x \mid y)}{p_s(x)\, q(y \mid x)}\right), \qquad
              q(y \mid x) = N(x + \epsilon_s \nabla\log p_s(x),\ 2\epsilon_s),

    so that :math:`p_s` is its stationary distribution exactly, whatever the step. This needs a log-density, and so a
    likelihood model. ``info["acceptance"]`` has the share of moves accepted at each level. With ``t_start == t_end`` it
    is a Markov chain at that level.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        moves: Moves at each level; one log-density with its score each, and one more per level.
        step_size: Step in units of the level's variance. Use less in many dimensions, as the acceptance shows.
    """

    steps: int = 64
    moves: int = 8
    step_size: float = 0.4

    needs_log_density: ClassVar[bool] = True

    def step(
        self, target: Target, x: Tensor, t: float, s: float, state: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        rates = state or []
        x, epsilon = self.carried(target, x, t, s)
        if epsilon == 0.0:
            return x, rates
        place, accepted = self.moved(target, Place(x, *target.log_density_and_score(x, s)), s)
        return place.x, [*rates, accepted]

    def moved(self, target: Target, place: Place, s: float) -> tuple[Place, Tensor]:
        """Samples at ``s`` after some moves there, and the share of moves accepted."""
        epsilon = self.step_size * target.sigma(s) ** 2
        accepted = torch.zeros_like(place.log_p)
        for _ in range(self.moves):
            y, log_q, score_y, gain = self.proposal(target, place.x, s, epsilon, place.score)
            taken = target.uniform(len(y)).log() < log_q - place.log_p + gain
            place = place.replaced(taken, Place(y, log_q, score_y))
            accepted += taken
        return place, share(target, accepted) / self.moves

    def proposal(
        self, target: Target, x: Tensor, s: float, epsilon: float, score: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A point to move to, its log-density and score, and the log-ratio of the proposals back and forth."""
        y = x.add(score, alpha=epsilon).add_(target.normal(x), alpha=math.sqrt(2.0 * epsilon))
        log_q, score_y = target.log_density_and_score(y, s)
        back, forth = x.sub(y).sub_(score_y, alpha=epsilon), y.sub(x).sub_(score, alpha=epsilon)
        return y, log_q, score_y, (_squared(forth) - _squared(back)) / (4.0 * epsilon)

    def info(self, state: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"acceptance": torch.stack(state) if state else torch.empty(0)}


@dataclass(frozen=True)
class HMC(MetropolisLangevin):
    r"""Hamiltonian Monte Carlo at each noise level (Duane et al., 1987; Neal, 2011, "MCMC using Hamiltonian dynamics").

    A move draws a momentum :math:`p \sim N(0, I)`, follows ``leaps`` leapfrog steps of length
    :math:`h_s = \sqrt{2\,\text{step\_size}}\;\sigma(s)`,

    .. math:: p \leftarrow p + \tfrac h2 \nabla\log p_s(x), \quad x \leftarrow x + h\,p, \quad
              p \leftarrow p + \tfrac h2 \nabla\log p_s(x),

    and is accepted by the energy :math:`-\log p_s(x) + |p|^2/2`: as exact as
    :class:`~ncml.sampling.MetropolisLangevin`, which is this with one leap, but moving farther in one direction instead
    of walking at random. As there, ``info["acceptance"]`` has the share accepted, and with ``t_start == t_end`` it is a
    Markov chain.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in log-SNR.
        moves: Moves at each level; ``leaps`` log-densities with their scores each, and one more per level.
        step_size: Half the square of a leap's length, in units of the level's variance, as for Langevin moves.
        leaps: Leapfrog steps of a move.
    """

    moves: int = 2
    leaps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.leaps, "leaps")

    def proposal(
        self, target: Target, x: Tensor, s: float, epsilon: float, score: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = math.sqrt(2.0 * epsilon)
        start = target.normal(x)
        energy, momentum = _squared(start), start.add(score, alpha=0.5 * h)
        y = x
        for i in range(self.leaps):
            y = y.add(momentum, alpha=h)
            log_q, score = target.log_density_and_score(y, s)
            momentum = momentum.add_(score, alpha=h if i + 1 < self.leaps else 0.5 * h)
        return y, log_q, score, 0.5 * (energy - _squared(momentum))


def _squared(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)
