"""The statistical helpers themselves: their bounds against known values, and their power."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from tests.problems import seeded
from tests.statistics import (
    ALPHA,
    Z,
    assert_frequencies,
    assert_law,
    assert_mean,
    assert_variance,
    ks_bound,
    mean_bound,
    normal_cdf,
    variance_interval,
)


def test_the_false_alarm_rate_is_that_of_z():
    assert 2 * norm.sf(Z) == pytest.approx(ALPHA, rel=0.01)


@pytest.mark.parametrize(
    ("n", "mean", "low", "high", "ks"),
    [
        (10_000, 0.0489, 0.9323, 1.0707, 0.0269),
        (100_000, 0.01547, 0.9783, 1.0220, 0.00852),
        (1_000_000, 0.00489, 0.9931, 1.0069, 0.00269),
    ],
)
def test_bounds_at_one_in_a_million(n, mean, low, high, ks):
    assert mean_bound(n, 4.892) == pytest.approx(mean, abs=5e-5)
    assert variance_interval(n, 1e-6) == pytest.approx((low, high), abs=5e-5)
    assert ks_bound(n, 1e-6) == pytest.approx(ks, abs=5e-5)


def test_the_assertions_have_power():
    """True laws pass; a mean off by 0.1 sd and a variance off by 20 % fail at n = 10,000."""
    z = torch.randn(10_000, generator=seeded(0), dtype=torch.float64)
    assert_mean(z, 0.0, 1.0)
    assert_variance(z, 0.0, 1.0)
    assert_law(z, normal_cdf(0.0, 1.0))
    with pytest.raises(AssertionError, match="mean off"):
        assert_mean(z + 0.1, 0.0, 1.0)
    with pytest.raises(AssertionError, match="variance ratio"):
        assert_variance(z * math.sqrt(1.2), 0.0, 1.0)
    with pytest.raises(AssertionError, match="distance"):
        assert_law(z + 0.1, normal_cdf(0.0, 1.0))
    counts = torch.tensor([5_300, 4_700])
    assert_frequencies(counts, torch.tensor([0.52, 0.48]))
    with pytest.raises(AssertionError, match="frequencies off"):
        assert_frequencies(counts, torch.tensor([0.48, 0.52]))
