"""The intervals in which a table's columns lie, as the user gives them and as the columns take them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from ncml.checks import is_real, is_whole
from ncml.errors import ArgumentError
from ncml.estimator.traits import MOST_ROUNDING, Array

__all__ = ["Bounds", "bounds_of", "column_of"]

Bounds = Mapping[Any, tuple[float | None, float | None]]

SHOWN = 8  # names in a message


def column_of(key: Any, labels: Sequence[Any], name: str) -> int:  # noqa: ANN401 -- a name or an index
    """Index of the column that the parameter ``name`` gave by its name or index."""
    if key in labels:
        return list(labels).index(key)
    if not is_whole(key) or not 0 <= key < len(labels):
        known = ", ".join(map(repr, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")
        raise ArgumentError(f"{name}: got {key!r}; expected names of columns ({known}), or indices below {len(labels)}")
    return int(key)


def bounds_of(
    bounds: Bounds | None,
    names: Sequence[Any],
    X: Array,
    kept: list[int],
    duplicates: Mapping[int, tuple[int, float, float]],
    width: Array,
    origin: Array,
    codes: Container[int],
) -> tuple[Array, Array]:
    """Lower and upper bounds of the kept columns' jittered values; those of a copy are of the column that it copies.

    On a lattice they are those of its first and last points within, so that these have whole steps.
    """
    low, high = np.full(len(kept), -np.inf), np.full(len(kept), np.inf)
    if bounds is not None and not isinstance(bounds, Mapping):
        raise ArgumentError(f"bounds: got {bounds!r}; expected a mapping, {{column: (low, high)}}")
    for key, ends in (bounds or {}).items():
        j, (a, b) = column_of(key, names, "bounds"), _interval(key, ends)
        if j in codes:
            raise ArgumentError(
                f"bounds: got {ends} for {names[j]}, which is of categories; expected columns of numbers; leave it out"
            )
        i, slope, intercept = duplicates.get(j, (j, 1.0, 0.0))
        if i not in kept:
            continue
        k = kept.index(i)
        values = np.where(np.isnan(X[:, j]), slope * X[:, i] + intercept, X[:, j])
        values = values[~np.isnan(values)]
        if not (values >= a).all() or not (values <= b).all():
            raise ArgumentError(f"bounds: got {ends} for {names[j]}; expected an interval that its values lie in")
        if width[k] == 0.0 and ((values == a).any() or (values == b).any()):
            raise ArgumentError(
                f"bounds: got {ends} for {names[j]}, some of whose values lie on a bound; expected them inside, where "
                f"the logarithm is finite; widen the bounds"
            )
        first, last = sorted(((a - intercept) / slope, (b - intercept) / slope))
        low[k], high[k] = max(low[k], first), min(high[k], last)
    on = np.isfinite(origin)
    start, step = origin[on], width[on]
    low[on] = start + step * np.ceil((low[on] - start) / step - MOST_ROUNDING)
    high[on] = start + step * np.floor((high[on] - start) / step + MOST_ROUNDING)
    return low - 0.5 * width, high + 0.5 * width


def _interval(key: Any, ends: Any) -> tuple[float, float]:  # noqa: ANN401 -- anything
    """The bounds given for a column, infinite where there is none."""
    pair = list(ends) if isinstance(ends, (Sequence, np.ndarray)) and not isinstance(ends, str) else []
    if len(pair) != 2 or not all(end is None or is_real(end) for end in pair):
        raise ArgumentError(f"bounds: got {ends!r} for {key!r}; expected two numbers, (low, high), None for infinity")
    return (-np.inf if pair[0] is None else float(pair[0])), (np.inf if pair[1] is None else float(pair[1]))
