"""What the user gives as a table, as numbers with NaN for gaps."""

from __future__ import annotations

import numbers
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ncml.errors import ArgumentError

__all__ = ["as_numbers", "is_frame", "rows_of"]


def is_frame(X: Any) -> bool:  # noqa: ANN401 -- any table
    """Whether X is a data frame of pandas."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def rows_of(X: Any, index: NDArray[np.intp]) -> Any:  # noqa: ANN401 -- any table
    """Some rows of a table, which stays what it is."""
    return X.iloc[index] if is_frame(X) else np.asarray(X)[index]


def as_numbers(X: Any) -> Any:  # noqa: ANN401 -- any table
    """A data frame of floats in place of one with integers, booleans and gaps of whatever kind; all else as it is.

    Raises:
        ArgumentError: A column that holds no numbers.
    """
    if not is_frame(X):
        return X
    columns = {j: _numbers(X.iloc[:, j]) for j in range(X.shape[1])}
    wrong = [f"{X.columns[j]} ({X.dtypes.iloc[j]})" for j, column in columns.items() if column is None]
    if wrong:
        raise ArgumentError(
            f"X: got columns {', '.join(wrong)}; expected numbers; encode categories, for instance by an "
            f"OrdinalEncoder in a pipeline"
        )
    frame = type(X)(columns, index=X.index)
    frame.columns = X.columns
    return frame


def _numbers(column: Any) -> NDArray[np.float64] | None:  # noqa: ANN401 -- a series
    """A column of real numbers, NaN for its gaps; None if it holds anything else."""
    kind = getattr(column.dtype, "kind", "O")
    if kind not in "biufO":
        return None
    values, there = column.to_numpy(object), column.notna().to_numpy(bool)
    if kind == "O" and not all(isinstance(v, (numbers.Real, np.bool_)) for v in values[there]):
        return None
    return cast(NDArray[np.float64], np.where(there, values, np.nan).astype(np.float64))
