"""Columns that are copies of others or hold odd values: which are set aside, and what becomes of their bounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ncml.errors import ArgumentError
from ncml.estimator import Columns
from ncml.estimator.form import TableForm


def normal_rows(n=500, d=2):
    return np.random.default_rng(0).normal(size=(n, d))


def seen(X, bounds=None):
    return Columns.of(X, [f"x{j}" for j in range(X.shape[1])], bounds)


@pytest.mark.parametrize("share", [0.004, 0.02, 0.6])
@pytest.mark.parametrize("code", [9999999.0, -1e9, 1e12])
def test_columns_that_share_a_huge_code_are_no_copies(code, share):
    """The rest of the rows has its say; a true copy with such values is still one."""
    X = normal_rows()
    coded = np.random.default_rng(1).permutation(500)[: int(share * 500)]
    X[coded] = code
    assert seen(X).duplicates == {}
    copied = np.column_stack([X[:, 0], 3.0 - 0.7 * X[:, 0]])
    (source, slope, intercept) = seen(copied).duplicates[1]
    assert source == 0
    np.testing.assert_allclose([slope, intercept], [-0.7, 3.0], rtol=1e-3 if code == 1e12 else 1e-6)


def test_columns_that_mostly_are_one_value():
    """Flags, and amounts that are mostly nothing: copies and others."""
    x = np.where(np.random.default_rng(2).random(500) < 0.05, np.exp(normal_rows()[:, 0]), 0.0)
    other = np.roll(x, 7)
    flag = (x > 0.0).astype(float)
    assert sorted(seen(np.column_stack([x, other, flag, 2.54 * x + 1.0, 1.0 - flag])).duplicates) == [3, 4]


def test_bounds_of_a_copy_are_of_what_it_copies():
    """Also of a falling one, together with the column's own, and against the values in gaps of the copy."""
    x = np.random.default_rng(3).uniform(0.1, 0.9, 500)
    X = np.column_stack([x, 2.0 * x + 1.0, 5.0 - x])
    columns = seen(X, {"x0": (0.0, None), "x1": (0.5, 4.0), "x2": (None, 4.95)})
    assert sorted(columns.duplicates) == [1, 2]
    np.testing.assert_allclose([columns.low[0], columns.high[0]], [0.05, 1.5])
    with pytest.raises(ArgumentError, match=r"for x2; .*values lie in"):
        seen(X, {"x2": (4.5, None)})
    X[x > 0.7, 2] = np.nan
    with pytest.raises(ArgumentError, match=r"for x2; .*values lie in"):
        seen(X, {"x2": (4.25, None)})


def test_bounds_of_a_copy_on_a_lattice():
    """A step about each end belongs to the interval, as for the column's own bounds."""
    n = np.random.default_rng(4).integers(0, 6, 500).astype(float)
    columns = seen(np.column_stack([0.1 * n, n]), {1: (0, 5)})
    np.testing.assert_allclose([columns.low[0], columns.high[0]], [-0.05, 0.55])


def test_columns_by_numbers_of_numpy():
    X = np.abs(normal_rows())
    assert seen(X, {np.int64(1): (0.0, None)}).low.tolist() == [-np.inf, 0.0]
    frame = pd.DataFrame({"a": [1.5, 2.5, 3.5], "kind": ["u", "v", "u"]})
    assert TableForm.of(frame, [np.int64(1)]).categories == {1: ["u", "v"]}
    with pytest.raises(ArgumentError, match="got True"):
        seen(X, {True: (0.0, None)})
