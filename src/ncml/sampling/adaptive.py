"""Solvers in which every row has its own step, chosen by the error that it makes."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ncml.checks import check_count, check_positive, per_example
from ncml.density import Target
from ncml.errors import NonFiniteError
from ncml.noise.gaussian import clean_at_zero
from ncml.sampling.grids import last_time
from ncml.sampling.heun import velocity
from ncml.sampling.sampler import Keep, Sampler

__all__ = ["AdaptiveHeun", "AdaptiveSDE", "AdaptiveSampler"]


@dataclass(frozen=True)
class AdaptiveSampler(Sampler):
    r"""A solver whose rows choose their steps by themselves: subclasses write ``attempt``.

    A step is taken if the root mean square over the row of its error, in units of what is tolerated, is at most 1;
    the next step, or the next try, is :math:`0.9\, h\, E^{-\text{power}}`. On the way to t = 0, the last step, by
    Tweedie's formula, begins where sigma is a thousandth of its value at the start.

    Args:
        rtol, atol: Tolerated error of a step, relative and in data units.
        first_step: Length of the first step that is tried, as a share of the way.
        max_steps: Steps tried, taken or not, after which to give up.

    Raises:
        NonFiniteError: Rows that are not at the end after ``max_steps``, unless failures are kept.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    first_step: float = 0.05
    max_steps: int = 10_000

    power: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "first_step"):
            check_positive(getattr(self, name), name)
        check_count(self.max_steps, "max_steps")

    def begin(self, x: Tensor) -> Any:  # noqa: ANN401
        """What the rows remember between steps; passed on to :meth:`attempt`."""
        return None

    def nearest(self, memory: Any, t: Tensor) -> Tensor:  # noqa: ANN401
        """The earliest time at which the step of every row has to end."""
        return torch.full_like(t, -torch.inf)

    @abc.abstractmethod
    def attempt(
        self,
        target: Target,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        live: Tensor,
        memory: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """A step from t to s of the rows ``live``: where it leads these, and its error. Arguments are of all rows."""

    def arrived(self, memory: Any, rows: Tensor) -> None:  # noqa: ANN401
        """Rows have taken the step that was attempted."""

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        to_zero = stop == 0.0 and clean_at_zero(target.process)
        end = last_time(target.process, start) if to_zero else stop
        t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
        h = torch.full_like(t, self.first_step * (start - end))
        tried, taken = (torch.zeros(len(x), dtype=torch.long, device=x.device) for _ in range(2))
        memory = self.begin(x)

        def under_way() -> Tensor:
            return t > end if target.failed is None else (t > end) & ~target.failed

        for _ in range(self.max_steps):
            live = under_way().nonzero().flatten()
            if not live.numel():
                break
            s = torch.maximum((t - h).clamp(min=end), self.nearest(memory, t))
            y, error = self.attempt(target, x, t, s, live, memory)
            good = error <= 1.0
            rows = live[good]
            # Of all rows: the last digit of a power can depend on a row's place, which others that end must not move.
            sizes = torch.ones_like(t).index_copy(0, live, error)
            factor = (0.9 * sizes.clamp(min=1e-8).pow(-self.power)).clamp(0.1, 5.0).nan_to_num(0.1)
            h[live] = ((t - s) * factor)[live]
            x[rows], t[rows] = y[good], s[rows]
            self.arrived(memory, rows)
            tried[live] += 1
            taken[rows] += 1
            keep(t.clone(), x)
        slow = under_way()
        if bool(slow.any()) and target.on_failure == "raise":
            raise NonFiniteError(
                f"max_steps: got {int(slow.sum())} of {len(x)} rows that are not at t = {end:.6g} after "
                f"{self.max_steps} steps; expected all; raise rtol, atol or max_steps, or pass on_failure='keep'"
            )
        target.give_up(slow)
        if to_zero:
            x = target.denoise(x, end)
            keep(0.0, x)
        return x, {"steps": tried, "accepted": taken}


def _size(error: Tensor, tolerated: Tensor) -> Tensor:
    return (error / tolerated).flatten(1).square().mean(1).sqrt().double()


@dataclass(frozen=True)
class AdaptiveHeun(AdaptiveSampler):
    r"""The probability-flow ODE, in which every row has its own step, chosen by the error that it makes.

    A step is Heun's, and its error the difference from Euler's step, of which ``atol + rtol * max(|x|)`` is
    tolerated. Two scores for each step that is tried.

    Args:
        rtol, atol, first_step, max_steps: See :class:`~ncml.sampling.AdaptiveSampler`.
    """

    def attempt(
        self, target: Target, x: Tensor, t: Tensor, s: Tensor, live: Tensor, memory: None
    ) -> tuple[Tensor, Tensor]:
        target, x, t, s = target.rows(live), x[live], t[live], s[live]
        h = per_example((t - s).to(x.dtype), x)
        first = velocity(target, x, t)
        euler = x - h * first
        heun = x - 0.5 * h * (first + velocity(target, euler, s))
        return heun, _size(heun - euler, self.atol + self.rtol * torch.maximum(x.abs(), heun.abs()))


@dataclass(frozen=True)
class AdaptiveSDE(AdaptiveSampler):
    r"""The reverse SDE with steps chosen row by row (Jolicoeur-Martineau et al., 2021, "Gotta go fast", algorithm 1).

    A step is Euler-Maruyama's :math:`x'` and, with the same noise, the stochastic improved Euler's :math:`x''`, which
    is taken; of their difference :math:`\max(\text{atol}, \text{rtol} \max(|x'|, |x'_{prev}|))` is tolerated. Two
    scores for each step that is tried.

    A step that is rejected has drawn an increment of the row's Brownian path, which stays as it is: the shorter step
    gets its part of it by a Brownian bridge, and the rest is kept for what follows. Scaling the same normal by a
    smaller :math:`\sqrt h`, as published, favours the paths that are accepted: a bias that no tolerance removes.

    Args:
        rtol, atol, first_step, max_steps: See :class:`~ncml.sampling.AdaptiveSampler`.
    """

    rtol: float = 0.02
    atol: float = 0.005
    first_step: float = 0.01
    power: ClassVar[float] = 0.9

    def begin(self, x: Tensor) -> _Memory:
        return _Memory(BrownianPath(x), x.abs(), x.abs())

    def nearest(self, memory: _Memory, t: Tensor) -> Tensor:
        return memory.path.known_until()

    def attempt(
        self, target: Target, x: Tensor, t: Tensor, s: Tensor, live: Tensor, memory: _Memory
    ) -> tuple[Tensor, Tensor]:
        moving = torch.zeros_like(t, dtype=torch.bool).index_fill(0, live, True)
        # Drawn for all rows, so that a row's noise does not depend on which others still move.
        increment = memory.path.increment(t, s, target.normal(x), moving)[live]
        target, x, t, s = target.rows(live), x[live], t[live], s[live]
        h = per_example((t - s).to(x.dtype), x)

        def drift(x: Tensor, t: Tensor, g: Tensor) -> Tensor:
            return target.drift_coefficient(t) * x - g * g * target.score(x, t)

        g_t, g_s = target.diffusion(t), target.diffusion(s)
        euler = x - h * drift(x, t, g_t) + g_t * increment
        improved = 0.5 * (euler + x - h * drift(euler, s, g_s) + g_s * increment)
        memory.latest[live] = euler.abs()
        tolerated = (self.rtol * torch.maximum(memory.latest[live], memory.before[live])).clamp(min=self.atol)
        return improved, _size(euler - improved, tolerated)

    def arrived(self, memory: _Memory, rows: Tensor) -> None:
        memory.path.depth[rows] -= 1  # the point they are at is the nearest known one
        memory.before[rows] = memory.latest[rows]


@dataclass
class _Memory:
    """The Brownian paths, and the sizes of Euler's steps: of the last one taken, and of the last one tried."""

    path: BrownianPath
    before: Tensor
    latest: Tensor


class BrownianPath:
    """The Brownian path of every row, where it is known: what rejected steps have drawn.

    A stack of points below the present time, the nearest one on top, each with the increment that leads to it from
    the point above it in time (the present, for the nearest).
    """

    def __init__(self, x: Tensor) -> None:
        self.times: list[Tensor] = []  # (n,) each, one for every level of the stacks
        self.increments: list[Tensor] = []
        self.depth = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.zero = torch.zeros_like(x)

    def known_until(self) -> Tensor:
        """The nearest known point of every row, or minus infinity."""
        nearest = torch.full_like(self.depth, -torch.inf, dtype=torch.float64)
        for level, times in enumerate(self.times, start=1):
            nearest = torch.where(self.depth == level, times, nearest)
        return nearest

    def increment(self, t: Tensor, s: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """The increment from t to s, no further than the nearest known point, which s then is for these rows."""
        nearest, whole = self.known_until(), self.zero
        for level, value in enumerate(self.increments, start=1):
            whole = torch.where(per_example(self.depth == level, value), value, whole)
        known, inside = nearest == s, (nearest > -torch.inf) & (nearest < s)
        # A Brownian bridge to the known point, or a free path.
        share = torch.where(inside, (t - s) / (t - nearest), 0.0)
        std = ((t - s) * (1.0 - share)).clamp(min=0.0).sqrt()
        share, std = (per_example(v.to(z.dtype), z) for v in (share, std))
        drawn = torch.where(per_example(known, z), whole, share * whole + std * z)
        self._put(rows & inside, nearest, whole - drawn)
        self._push(rows & ~known, s, drawn)
        return drawn

    def _push(self, rows: Tensor, s: Tensor, increment: Tensor) -> None:
        self.depth += rows.long()
        if int(self.depth.max()) > len(self.times):
            self.times.append(torch.zeros_like(s))
            self.increments.append(self.zero)
        self._put(rows, s, increment)

    def _put(self, rows: Tensor, s: Tensor, increment: Tensor) -> None:
        """Write the top of the stacks of some rows."""
        for i in range(len(self.times)):
            here = rows & (self.depth == i + 1)
            self.times[i] = torch.where(here, s, self.times[i])
            self.increments[i] = torch.where(per_example(here, increment), increment, self.increments[i])
