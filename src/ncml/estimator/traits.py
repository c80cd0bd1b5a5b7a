"""Traits of a column: its size, spread, ties and lattice; and whether one is the copy of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncml.errors import ArgumentError

__all__ = [
    "HUGE",
    "MOST_ROUNDING",
    "Array",
    "affine_copy",
    "check_magnitudes",
    "check_not_infinite",
    "column_lattice",
    "numpy_type",
    "spread",
    "tied_share",
]

Array = NDArray[np.float64]

TOLERANCE = 1e-3  # of the step: how far values may lie off a lattice
MOST_ROUNDING = 0.05  # the same, of many steps, or in single precision
MOST_STEPS = 2**20  # a finer lattice is as good as real numbers
REPEATS = 2.0  # rows to each distinct value, on average, for a lattice that is not one of integers
FEWEST = 8  # rows that can show that a column is an affine copy
HUGE = 1e150  # squares of larger numbers, and of the reciprocal of smaller ones, overflow


def check_not_infinite(rows: Array, names: Sequence[Any], name: str = "X", *, gaps: bool) -> Array:
    """Rows as they are, unless a column holds infinity, which the error names.

    Args:
        rows: The rows.
        names: Names of the columns.
        name: The argument that they are.
        gaps: Whether they may have some, for the remedy.
    """
    if infinite := [str(names[j]) for j in np.flatnonzero(np.isinf(rows).any(0)).tolist()]:
        gap = ", or make a gap (NaN) of it" if gaps else ""
        raise ArgumentError(
            f"{name}: got infinity in {', '.join(infinite)}; expected finite numbers; leave these rows out{gap}"
        )
    return rows


def check_magnitudes(low: Array, high: Array, names: Sequence[Any]) -> None:
    """Refuse columns whose squares would overflow, or vanish."""
    largest = np.maximum(np.abs(low), np.abs(high))
    for j in np.flatnonzero((largest > HUGE) | ((low < high) & (high - low < 1.0 / HUGE))).tolist():
        raise ArgumentError(
            f"X: got numbers from {low[j]:g} to {high[j]:g} in {names[j]}; expected sizes from {1.0 / HUGE:g} to "
            f"{HUGE:g}; change the unit, or make a gap (NaN) of a code for missing values"
        )


def numpy_type(dtype: Any) -> Any:  # noqa: ANN401 -- a type of numpy or pandas
    """The type of numpy that a column of some type holds: that of a nullable or a sparse one."""
    return getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))


def spread(column: Array) -> float:
    """Standard deviation of the middle 99 %, or of all rows where these are alike."""
    low, high = np.quantile(column, [0.005, 0.995])
    return float(column.std() if low == high else np.clip(column, low, high).std())


def affine_copy(x: Array, y: Array) -> tuple[float, float] | None:
    """Slope and intercept if y is an affine function of x to rounding, in rows that have both, which are most."""
    there = ~(np.isnan(x) | np.isnan(y))
    if not there.all():
        if there.sum() < max(FEWEST, 0.5 * (~(np.isnan(x) & np.isnan(y))).sum()):
            return None
        x, y = x[there], y[there]
        if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
            return None
    if np.array_equal(x, y):
        return 1.0, 0.0
    if len(x) < FEWEST:
        return None
    a, b = x - x.mean(), y - y.mean()
    slope = float(a @ b) / float(a @ a)
    if slope == 0.0 or np.abs(b - slope * a).max() > 1e-6 * np.abs(b).max():
        return None
    # Any columns that share a huge value, such as a code for missing ones, pass that: now by what is usual for y, with
    # every value once, however frequent the code.
    first = np.unique(x, return_index=True)[1]
    rest = y - slope * x
    intercept = float(np.median(rest[first]))
    size = np.abs(y - np.median(y[first]))
    if (np.abs(rest - intercept) > 1e-6 * (size + np.median(size[first]))).any():
        return None
    return slope, intercept


def tied_share(column: Array) -> float:
    """Share of rows whose value another row has too."""
    _, counts = np.unique(column, return_counts=True)
    return float(counts[counts > 1].sum()) / len(column)


def column_lattice(column: Array) -> tuple[float, float]:
    """Step and a point of the lattice that a column lies on; 0 and NaN if there is none."""
    values = np.unique(column)
    none = 0.0, float("nan")
    if np.array_equal(values, np.round(values)) and np.abs(values).max() < 2**53:
        step = float(np.gcd.reduce(np.diff(values).astype(np.int64)))
    elif len(column) >= REPEATS * len(values):
        gaps = np.diff(values)
        gaps = gaps[gaps > 1e-7 * np.ptp(values)]  # smaller ones are rounding
        step, places = float(gaps.min()), values - values[0]
        for some in 2 ** np.arange(1, len(values).bit_length() + 1):  # a gap has rounding, which many steps add up
            counts = np.round(places[:some] / step)
            step = float(counts @ places[:some]) / float(counts @ counts) if counts.any() else step
        multiples = places / step
        single = values.astype(np.float32) == values  # their rounding is theirs, not the lattice's
        rounding = float(np.finfo(np.float32).eps * np.abs(values).max()) / step if single.all() else 0.0
        allowed = max(TOLERANCE, min(max(1e-6 * multiples[-1], rounding), MOST_ROUNDING))
        if np.abs(multiples - np.round(multiples)).max() > allowed:
            return none
        step = float(np.ptp(values)) / float(np.round(multiples[-1]))
    else:
        return none
    return (step, float(values[0])) if np.ptp(values) <= MOST_STEPS * step else none
