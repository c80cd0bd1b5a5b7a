r"""Grids: the decreasing times at which a sampler stops on its way, as functions of the process.

A grid is called as ``grid(process, start, stop, steps)`` and returns ``steps + 1`` times from ``start`` to
``stop``; write your own as a function. Grids that are even in some measure of noise are infinite at t = 0: on the
way to 0 their last step leads there from where sigma has fallen to ``FLOOR`` of its value at the start.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ncml.checks import check_positive, is_real
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import GaussianProcess

__all__ = [
    "GRIDS",
    "Given",
    "Grid",
    "Karras",
    "as_grid",
    "checked_times",
    "last_time",
    "log_snr",
    "quadratic",
    "uniform",
]

Grid = Callable[[GaussianProcess, float, float, int], Sequence[float]]
"""A function ``(process, start, stop, steps)`` that returns the times of a walk."""

FLOOR = 1e-3
"""Noise at which the last step to t = 0 begins, relative to where the way began."""


def uniform(process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
    """Even in time."""
    inner = [stop + (start - stop) * (1.0 - i / steps) for i in range(1, steps)]
    return [start, *inner, stop]


def quadratic(process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
    r""":math:`t_i = t_{stop} + (t_{start} - t_{stop})(1 - i/n)^2`: small near the data."""
    inner = [stop + (start - stop) * (1.0 - i / steps) ** 2 for i in range(1, steps)]
    return [start, *inner, stop]


def log_snr(process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
    r"""Even in :math:`\log(\alpha^2/\sigma^2)` (Lu et al., 2022), for exponential integrators and wide ladders."""
    return _down_to(process, start, stop, steps, lambda ends, u: math.exp(ends[0] * (1.0 - u) + ends[1] * u), math.log)


@dataclass(frozen=True)
class Karras:
    r"""Even in :math:`(\sigma/\alpha)^{1/\rho}` (Karras et al., 2022, eq. 5).

    Args:
        rho: 7 in the paper; 1 is even in the noise, large values approach :func:`log_snr`.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_positive(self.rho, "rho")

    def __call__(self, process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
        return _down_to(
            process,
            start,
            stop,
            steps,
            lambda ends, u: (ends[0] * (1.0 - u) + ends[1] * u) ** self.rho,
            lambda ratio: ratio ** (1.0 / self.rho),
        )


@dataclass(frozen=True)
class Given:
    """Times of your own; those outside a call's ``t_start`` and ``t_end`` are left out, and its ``steps`` ignored.

    Args:
        times: Times in any order.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(is_real(t) and math.isfinite(t) for t in self.times):
            raise ArgumentError(f"times: got {self.times!r}; expected finite numbers")

    def __call__(self, process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
        inner = sorted({float(t) for t in self.times if stop < t < start}, reverse=True)
        return [start, *inner, stop]


GRIDS: dict[str, Grid] = {"quadratic": quadratic, "uniform": uniform, "log-snr": log_snr, "karras": Karras()}
"""Grids by the names that samplers and the command line take."""


def as_grid(grid: Grid | str) -> Grid:
    """A grid, from itself or its name."""
    if isinstance(grid, str) and grid in GRIDS:
        return GRIDS[grid]
    if isinstance(grid, str):
        raise ArgumentError(f"grid: got {grid!r}; expected one of {', '.join(map(repr, GRIDS))}, or a function")
    if not callable(grid) or isinstance(grid, type):
        raise ArgumentTypeError(f"grid: got {grid!r}; expected a function (process, start, stop, steps), or a name")
    return grid


def checked_times(grid: Grid | str, process: GaussianProcess, start: float, stop: float, steps: int) -> list[float]:
    """The times of a grid, which fall from ``start`` to ``stop``; ``start`` again and again if the two are equal.

    Raises:
        ArgumentError: They do not.
    """
    if start == stop:
        return [start] * (steps + 1)
    times = [float(t) for t in as_grid(grid)(process, start, stop, steps)]
    if len(times) < 2 or (times[0], times[-1]) != (start, stop) or any(not t > s for t, s in itertools.pairwise(times)):
        raise ArgumentError(
            f"grid: got times {_few(times)}; expected decreasing ones from t_start = {start:.6g} to {stop:.6g}"
        )
    return times


def last_time(process: GaussianProcess, start: float) -> float:
    """Where sigma is ``FLOOR`` of its value at ``start``: the last time above 0 of a grid in log-SNR."""
    return float(process.time_at(float(process.sigma(start)) * FLOOR))


def _down_to(
    process: GaussianProcess,
    start: float,
    stop: float,
    steps: int,
    ratio_at: Callable[[tuple[float, float], float], float],
    scale: Callable[[float], float],
) -> list[float]:
    """Times whose noise-to-signal ratios are even in some scale; at t = 0 that is infinite for most processes."""
    to_zero = not math.isfinite(float(process.log_snr(stop)))
    n = steps - 1 if to_zero else steps
    end = last_time(process, start) if to_zero else stop
    if n == 0:
        return [start, stop]
    ends = tuple(scale(math.exp(-0.5 * float(process.log_snr(t)))) for t in (start, end))
    ratios = [ratio_at((ends[0], ends[1]), i / n) for i in range(1, n)]
    inner = process.time_at_log_snr(-2.0 * torch.tensor(ratios, dtype=torch.float64).log()).tolist() if ratios else []
    times = [start, *inner, end, stop] if to_zero else [start, *inner, stop]
    # Where next to nothing of the data is left, ratios that differ lie at the same time in floats.
    return [times[0], *(s for t, s in itertools.pairwise(times) if s < t)]


def _few(times: list[float]) -> str:
    shown = ", ".join(f"{t:.6g}" for t in times[:4])
    return f"[{shown}, ...]" if len(times) > 4 else f"[{shown}]"
