"""Columns that are copies of others or hold odd values: which are set aside, and what becomes of their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from ncml.estimator import Columns


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
