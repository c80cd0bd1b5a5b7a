"""Columns that are copies of others or hold odd values: which are set aside, and what becomes of their bounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("step", "most"), [(0.1, 60), (0.01, 2000), (0.001, 60_000), (7.3, 500)])
def test_lattices_in_single_and_double_precision(dtype, step, most):
    """Rounding of large values is in the smallest gap, and many steps add it up; real numbers lie on no lattice."""
    counts = np.random.default_rng(5).integers(0, most, 4 * most)
    X = np.column_stack([counts, normal_rows(len(counts))[:, 0]]) * [step, 1.0]
    columns = seen(X.astype(dtype).astype(np.float64))
    assert columns.width[0] == pytest.approx(step, rel=1e-5)
    assert columns.width[1] == 0.0
    repeated = np.repeat(normal_rows().astype(dtype), 2, axis=0).astype(np.float64)
    assert np.isnan(seen(repeated).origin).all()


@pytest.mark.parametrize("value", [1.7e308, 1e200, -1e160, 1e40])
def test_values_beyond_all_others(value):
    """Codes for missing values that no arithmetic would survive are named; in new rows they are only far away."""
    X = normal_rows()
    columns = seen(X)
    X[3, 1] = value
    with pytest.raises(ArgumentError, match=r"in x1.*make a gap"):
        seen(X)
    assert np.isfinite(columns.standardise(X)).all()
    with pytest.raises(ArgumentError, match=r"in x0; expected sizes from 1e-150.*change the unit"):
        seen(1e-200 * normal_rows())


@pytest.mark.parametrize("end", [0.0, 5.0])
def test_no_digit_is_lost_beside_a_bound(end):
    """Values down to 1e-30 above 0, or 1e-12 below 5: logarithm and its slope as in closed form."""
    size = 10.0 ** -np.random.default_rng(6).uniform(0.0, 12.0 if end else 30.0, 400)
    x, bounds = (end + size, (end, None)) if end == 0.0 else (end - size, (None, end))
    X = np.column_stack([x, normal_rows(400)[:, 0]])
    columns = seen(X, {0: bounds})
    z, log_det = (part.numpy() for part in columns.to_model(torch.from_numpy(columns.standardise(X))))
    gap = np.abs(x - end)
    centre, scale = columns.after[:, 0]
    # The sign and a constant aside, z is the logarithm of the distance to the bound.
    logs = np.log(gap) - np.log(columns.scale[0])
    np.testing.assert_allclose(np.abs(z[:, 0] * scale + centre), np.abs(logs), rtol=1e-3 if end else 1e-9)
    closed = -np.log(gap) - np.log(scale) - np.log(columns.scale[1])
    np.testing.assert_allclose(log_det, closed, rtol=1e-3 if end else 1e-9)
    np.testing.assert_allclose(columns.from_model(torch.from_numpy(z)), X, rtol=1e-9)


def test_bounds_that_are_no_mapping():
    with pytest.raises(ArgumentError, match=r"bounds: got \[\(0, 1\)\]; expected a mapping"):
        seen(normal_rows(), [(0, 1)])
