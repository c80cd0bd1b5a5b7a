"""Weights of rows, as scikit-learn's ``sample_weight`` gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ncml.checks import check_weights
from ncml.errors import ArgumentTypeError
from ncml.estimator.frames import array_of, rows_of, schema_of
from ncml.estimator.traits import Array

__all__ = ["weighted"]


def weighted(X: Any, sample_weight: Any, *, fewest: int) -> tuple[Any, Array | None]:  # noqa: ANN401 -- any table
    """The rows of a table that weigh more than 0, and shares that their weights have of the largest; None: all alike.

    Args:
        X: The table.
        sample_weight: What was given as weights.
        fewest: How many rows have to have one.

    Raises:
        ArgumentError: Weights that are negative, not finite or not one for each row, or too few above 0.
        ArgumentTypeError: They are no real numbers.
    """
    if sample_weight is None:
        return X, None
    schema_of(X)  # which refuses what has no rows yet
    shape = X.shape if hasattr(X, "shape") else np.asarray(X, dtype=object).shape
    try:
        given = np.asarray(array_of(sample_weight))
        weights = torch.tensor(given if given.dtype.kind == "c" else given.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"sample_weight: {error}; expected numbers, one for each row of X") from error
    shares = check_weights(weights, shape[0] if shape else 0, "sample_weight", fewest=fewest).numpy()
    some = shares > 0.0
    return (X if some.all() else rows_of(X, np.flatnonzero(some))), shares[some]
