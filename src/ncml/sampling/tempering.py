r"""Parallel tempering over the ladder of exact densities."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncml.checks import check_count
from ncml.density import Target
from ncml.errors import ArgumentTypeError
from ncml.sampling.er_sde import ERSDE
from ncml.sampling.grids import Grid, as_grid, checked_times
from ncml.sampling.kernels import Kernels
from ncml.sampling.langevin import MetropolisLangevin, Place, share
from ncml.sampling.sampler import GridSampler, Keep, Sampler, check_stepper

__all__ = ["ParallelTempering"]


@dataclass(frozen=True)
class ParallelTempering(Sampler):
    r"""A Markov chain at every noise level at once, whose neighbours exchange samples (Swendsen and Wang, 1986).

    Every row has a ladder of its own: the sample at ``t_start`` is first taken down to all levels. A round moves the
    chain of each level by Metropolis' rule, then exchanges pairs of neighbours s < t, even and odd pairs in turn (Syed
    et al., 2022). When noise levels are annealed only once, a sample stays in the mode that it fell into; here it
    climbs back to where modes are one, so that their weights come out right.

    Samples are not swapped as they are, which would rarely be accepted in many dimensions, but along the process. With
    its kernels :math:`K_f(x_t \mid x_s) = N(a\,x_s, v)` and
    :math:`K_b(x_s \mid x_t) = N((x_t + v\,\nabla\log p_t(x_t))/a, v/a^2)`,

    .. math:: y_s \sim K_b(\cdot \mid x_t), \quad y_t \sim K_f(\cdot \mid x_s), \quad
              \text{accepted with}\ \min\left(1, \frac{w(x_t, y_s)}{w(y_t, x_s)}\right), \quad
              w(x_t, x_s) = \frac{p_s(x_s)\, K_f(x_t \mid x_s)}{p_t(x_t)\, K_b(x_s \mid x_t)},

    where w is 1 for small steps of a ladder that is one process. The stationary law is the product of all
    :math:`p_t` exactly, whatever the score, the steps and the levels. This needs likelihoods. A path
    (``refine(path=True)``) has the chain at the lowest level after each round: at ``t_end``, or for lattice data where
    the sampler itself stops, at 0.3 level.

    ``info`` has ``acceptance``, the share of moves accepted at each level from ``t_start`` down (NaN at t = 0 without
    noise, where there are none), ``exchanges``, the share accepted between each level and the next (NaN for pairs that
    one round does not reach), and ``arrivals``, how often in each row a sample reached the lowest level that had been
    at ``t_start`` since it was last there. A sample moves one level a round, and needs at least ``2 * (levels - 1)``
    rounds to climb and come back: weights of modes come out right after several times as many, and few arrivals mean
    that there are too few rounds or levels. Reaching a level costs the predictor's evaluations and one more; a round
    costs ``chain.moves`` (times leaps) per level and two per pair that it exchanges, which is every other pair.

    With ``on_failure="keep"`` a row is given up also if a proposal fails.

    Args:
        levels: Noise levels, at least 2; ``t_start`` and ``t_end`` are among them.
        grid: How the levels are spread, as for :class:`~ncml.sampling.GridSampler`.
        rounds: Rounds of moves and exchanges.
        chain: The moves, :class:`~ncml.sampling.MetropolisLangevin` or :class:`~ncml.sampling.HMC`; its ``moves``,
            ``step_size`` and ``leaps`` are used.
        predictor: Any :class:`~ncml.sampling.GridSampler`, whose steps first bring samples to the levels.
    """

    levels: int = 13
    grid: Grid | str = "karras"
    rounds: int = 48
    chain: MetropolisLangevin = field(default_factory=lambda: MetropolisLangevin(moves=2))
    predictor: GridSampler = field(default_factory=ERSDE)

    needs_log_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.levels, "levels", minimum=2)
        check_count(self.rounds, "rounds")
        as_grid(self.grid)
        check_stepper(self.predictor, "predictor")
        if not isinstance(self.chain, MetropolisLangevin):
            raise ArgumentTypeError(
                f"chain: got {self.chain!r}; expected moves with Metropolis' test: MetropolisLangevin() or HMC()"
            )

    def expected_steps(self) -> int:
        return self.levels - 1 + self.rounds

    def check(self, target: Target, start: float, stop: float) -> None:
        super().check(target, start, stop)
        checked_times(self.grid, target.process, start, stop, self.levels - 1)
        replace(self.predictor, steps=self.levels - 1, grid=self.grid).check(target, start, stop)

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        times = checked_times(self.grid, target.process, start, stop, self.levels - 1)
        target.prepare(times)
        kernels = [Kernels.between(target, s, t) for t, s in itertools.pairwise(times)]
        places = [Place(x, *target.log_density_and_score(x, start))]
        state = self.predictor.begin(times)
        for t, s in itertools.pairwise(times):
            x, state = self.predictor.step(target, places[-1].x.clone(), t, s, state)
            places.append(Place(x, *target.log_density_and_score(x, s)))
            keep(s, x)
        moves: list[Tensor] = []
        exchanges: list[list[Tensor]] = [[] for _ in kernels]
        visits = Visits(len(times), x)
        for i in range(self.rounds):
            moved = [
                self.chain.moved(target, place, s) if target.sigma(s) > 0.0 else (place, x.new_tensor(math.nan))
                for place, s in zip(places, times, strict=True)
            ]
            places = [place for place, _ in moved]
            moves.append(torch.stack([accepted for _, accepted in moved]))
            for k in range(i % 2, len(kernels), 2):
                places[k], places[k + 1], taken = exchanged(
                    target, kernels[k], (places[k], times[k]), (places[k + 1], times[k + 1])
                )
                exchanges[k].append(share(target, taken.to(x.dtype)))
                visits.exchange(k, taken)
            keep(stop, places[-1].x)
        shares = [torch.stack(those).mean() if those else x.new_tensor(math.nan) for those in exchanges]
        info = {"acceptance": torch.stack(moves).mean(0), "exchanges": torch.stack(shares), "arrivals": visits.arrivals}
        return places[-1].x, info


def exchanged(
    target: Target, kernels: Kernels, upper: tuple[Place, float], lower: tuple[Place, float]
) -> tuple[Place, Place, Tensor]:
    """Samples at t and at s < t after an exchange, and which rows accepted it."""
    (x_t, t), (x_s, s) = upper, lower
    y = kernels.back(x_t.x, x_t.score, target.normal(x_t.x))
    y_s = Place(y, *target.log_density_and_score(y, s))
    y = kernels.forth(x_s.x, target.normal(x_s.x))
    y_t = Place(y, *target.log_density_and_score(y, t))
    dims = target.dims(y)
    gain = y_s.log_p - x_t.log_p + kernels.log_ratio(y_s.x, x_t.x, x_t.score, dims)
    loss = x_s.log_p - y_t.log_p + kernels.log_ratio(x_s.x, y_t.x, y_t.score, dims)
    taken = target.uniform(len(y)).log() < gain - loss
    return x_t.replaced(taken, y_t), x_s.replaced(taken, y_s), taken


class Visits:
    """Which samples of each row have been at the uppermost level since they were at the lowest."""

    def __init__(self, levels: int, x: Tensor) -> None:
        self.been = torch.zeros(levels, len(x), dtype=torch.bool, device=x.device)
        self.been[0] = True
        self.arrivals = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def exchange(self, k: int, taken: Tensor) -> None:
        """Rows ``taken`` have exchanged their samples at levels k and k + 1."""
        upper, lower = self.been[k].clone(), self.been[k + 1].clone()
        self.been[k] = torch.where(taken, lower, upper)
        self.been[k + 1] = torch.where(taken, upper, lower)
        self.arrivals += self.been[-1]
        self.been[-1] = False
        self.been[0] = True
