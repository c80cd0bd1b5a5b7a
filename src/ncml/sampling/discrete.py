r"""Samplers of lattice data under a discrete process, by exact masses :math:`P_t`.

A :class:`~ncml.DiscreteProcess` moves every value independently, with known probabilities :math:`Q_t`, and need not be
a Markov chain in t: the paper's level noise is not one. What is left to sample with are the masses themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncml.checks import check_count, per_example
from ncml.density import Target
from ncml.errors import UnsupportedError
from ncml.noise import DiscreteProcess, NoiseProcess
from ncml.sampling.grids import Grid
from ncml.sampling.langevin import share
from ncml.sampling.sampler import GridSampler, Keep, Sampler

__all__ = ["LatticeGibbs", "LatticeMetropolis"]


@dataclass(frozen=True)
class LatticeMetropolis(GridSampler):
    r"""Metropolis' test of single values, at each noise level of a discrete process in turn.

    A move takes one value of each row, any with equal probability, one level up or down, and is accepted with
    probability :math:`\min(1, P_s(y)/P_s(x))`; moves off the lattice are not. :math:`P_s` is stationary, exactly.
    ``info["acceptance"]`` has the share accepted at each level. With ``t_start == t_end`` it is a Markov chain there.
    Rows that have no mass after the moves of a level have failed.

    Args:
        steps, grid, denoise_last: See :class:`~ncml.sampling.GridSampler`; the grid is even in time.
        moves: Moves at each level; one log-likelihood each, and one more per level.
    """

    steps: int = 8
    grid: Grid | str = "uniform"
    moves: int = 64

    needs: ClassVar[type[NoiseProcess]] = DiscreteProcess  # type: ignore[type-abstract]
    needs_log_density: ClassVar[bool] = True
    moves_in_place: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.moves, "moves")

    def step(
        self, target: Target, x: Tensor, t: float, s: float, state: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        lattice, n = target.process.lattice, len(x)
        levels = _levels(target, x)
        x = lattice.to_unit(levels, dtype=x.dtype).reshape(x.shape)
        log_p = target.log_prob(x, s)
        accepted = torch.zeros_like(log_p)
        for _ in range(self.moves):
            site = (target.uniform(n) * levels.shape[1]).long().clamp(max=levels.shape[1] - 1)[:, None]
            moved = levels.gather(1, site) + (target.uniform(n) < 0.5).long()[:, None] * 2 - 1
            inside = (moved >= 0) & (moved < lattice.levels)
            proposed = levels.scatter(1, site, moved.clamp(0, lattice.levels - 1))
            y = lattice.to_unit(proposed, dtype=x.dtype).reshape(x.shape)
            log_q = target.log_prob(y, s)
            # From where there is no mass any move is taken.
            taken = ((target.uniform(n).log() < log_q - log_p) | (log_p == -torch.inf)) & inside[:, 0]
            levels, log_p = torch.where(taken[:, None], proposed, levels), torch.where(taken, log_q, log_p)
            x = torch.where(per_example(taken, x), y, x)
            accepted += taken
        x = _with_mass(target, x, log_p, s)
        return x, [*(state or []), share(target, accepted) / self.moves]

    def info(self, state: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"acceptance": torch.stack(state)}


@dataclass(frozen=True)
class LatticeGibbs(Sampler):
    r"""The reverse kernel of a discrete process, from any level to the data.

    .. math:: P(x_0 \mid x_t) \propto P_0(x_0) \prod_i Q_t(x_{0i} \to x_{ti})

    By Gibbs' sampling: value after value is drawn given the others and :math:`x_t`, from the masses at t = 0 of all
    levels that can have become :math:`x_{ti}`. Exact after one sweep where values are independent and all levels have
    mass, in the limit of many sweeps otherwise. Where no level has mass given the others, one is drawn by :math:`Q_t`
    alone; rows that end without mass have failed. A ``t_end`` above 0 adds the noise of that level afterwards.

    Args:
        sweeps: How often each value is drawn. A sweep takes a log-likelihood for each value and level in reach, three
            for level noise.
    """

    sweeps: int = 2

    needs: ClassVar[type[NoiseProcess]] = DiscreteProcess  # type: ignore[type-abstract]
    needs_log_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.sweeps, "sweeps")

    def expected_steps(self) -> int | None:
        return self.sweeps

    def check(self, target: Target, start: float, stop: float) -> None:
        if target.lattice is None:
            raise UnsupportedError(
                "density: got one without a lattice; LatticeGibbs expected masses; give the density lattice=..."
            )

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        lattice = target.process.lattice
        matrix = target.process.transition_matrix(start).to(device=x.device, dtype=x.dtype)
        noisy = _levels(target, x)
        levels = noisy.clone()
        reach = int((matrix > 0.0).sum(0).max())
        rows = torch.arange(len(x), device=x.device)
        for sweep in range(1, self.sweeps + 1):
            for i in range(levels.shape[1]):
                shares, origin = matrix.t()[noisy[:, i]].topk(reach, dim=1)  # (n, reach): of what became x_t, and what
                log_joint = shares.log()
                for k in range(reach):
                    levels[:, i] = origin[:, k]
                    y = lattice.to_unit(levels, dtype=x.dtype).reshape(x.shape)
                    log_joint[:, k] += target.log_prob(y, 0.0)
                possible = (log_joint > -torch.inf).any(1, keepdim=True)
                cumulated = torch.where(possible, log_joint, shares.log()).softmax(1).cumsum(1)
                drawn = (cumulated <= target.uniform(len(x))[:, None] * cumulated[:, -1:]).sum(1)
                levels[:, i] = origin[rows, drawn.clamp(max=reach - 1)]
            x = lattice.to_unit(levels, dtype=x.dtype).reshape(x.shape)
            if sweep == self.sweeps:
                log_p = target.log_prob(x, 0.0)
                x = x if stop == 0.0 else target.process.perturb(x, stop, generator=target.generator)
                x = _with_mass(target, x, log_p, 0.0)
            keep(stop if sweep == self.sweeps else 0.0, x)
        return x, {}


def _with_mass(target: Target, x: Tensor, log_p: Tensor, t: float) -> Tensor:
    """``x`` after a state with the log-mass ``log_p``; rows without any have failed, and are NaN."""
    failed = target.noted(log_p == -torch.inf, target.row_times(x, t), "log-mass")
    return x.masked_fill(per_example(failed, x), torch.nan) if bool(failed.any()) else x


def _levels(target: Target, x: Tensor) -> Tensor:
    """The levels of values, ``(B, D)``; any of them for rows that have failed, which may be NaN."""
    x = x if target.failed is None else x.masked_fill(per_example(target.failed, x), 0.0)
    levels: Tensor = target.process.lattice.nearest(x).flatten(1)
    return levels
