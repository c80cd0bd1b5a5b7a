"""Weights of rows, as scikit-learn's ``sample_weight`` gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ncml.checks import check_weights
from ncml.errors import ArgumentTypeError
from ncml.estimator.frames import array_of, rows_of
from ncml.estimator.traits import Array

__all__ = ["mean_of", "weighed"]


def weighed(X: Any, sample_weight: Any) -> tuple[Any, Array | None]:  # noqa: ANN401 -- any table
    """The rows of a table that weigh more than 0, and shares that their weights have of the largest; None: all alike.

    Raises:
        ArgumentError: Weights that are negative, not finite or not one for each row; fewer than two above 0.
        ArgumentTypeError: They are no real numbers.
    """
    if sample_weight is None:
        return X, None
    shape = X.shape if hasattr(X, "shape") else np.asarray(X, dtype=object).shape
    weights = _shares(sample_weight, shape[0] if shape else 0, fewest=2)
    some = weights > 0.0
    return (X if some.all() else rows_of(X, np.flatnonzero(some))), weights[some]


def mean_of(values: Array, sample_weight: Any) -> float:  # noqa: ANN401 -- whatever numpy takes
    """The mean of values of rows as they weigh, whatever they are in rows of weight 0; alike if None."""
    if sample_weight is None:
        return float(values.mean())
    weights = _shares(sample_weight, len(values), fewest=1)
    some = weights > 0.0
    return float(np.average(values[some], weights=weights[some]))


def _shares(sample_weight: Any, rows: int, *, fewest: int) -> Array:  # noqa: ANN401 -- whatever numpy takes
    try:
        given = np.asarray(array_of(sample_weight))
        weights = torch.tensor(given if given.dtype.kind == "c" else given.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"sample_weight: {error}; expected numbers, one for each row of X") from error
    shares: Array = check_weights(weights, rows, "sample_weight", fewest=fewest).numpy()
    return shares
