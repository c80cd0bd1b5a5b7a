"""Statistical tests with a stated false-alarm rate.

Every assertion uses z = 6.11, that is a two-sided false-alarm rate of 1e-9: a suite of a thousand such
assertions raises a false alarm once in a million fresh seeds (and never with the fixed seeds used here).
Expected values must be exact: a known bias belongs into the expectation, not into the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

Z = 6.11
ALPHA = 1e-9
"""Probability that a standard normal exceeds Z in absolute value."""


def mean_bound(n: int, z: float = Z) -> float:
    """Largest credible error of the mean of n samples, in standard deviations."""
    return z / math.sqrt(n)


def variance_interval(n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Credible ratio of the mean square of n normal samples (about their known mean) to the variance."""
    low, high = chi2.ppf([0.5 * alpha, 1.0 - 0.5 * alpha], n) / n
    return float(low), float(high)


def ks_bound(n: int, alpha: float = ALPHA) -> float:
    """Dvoretzky-Kiefer-Wolfowitz: credible distance of n samples' distribution function from its law."""
    return math.sqrt(math.log(2.0 / alpha) / (2.0 * n))


def ks_distance(samples: Tensor, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Largest distance between the empirical distribution function and ``cdf``."""
    x = np.sort(samples.double().flatten().numpy())
    expected, n = cdf(x), len(x)
    steps = np.arange(n + 1) / n
    return float(np.maximum(steps[1:] - expected, expected - steps[:-1]).max())


def assert_mean(samples: Tensor, mean: float, std: float) -> None:
    """The samples' mean, given their exact mean and standard deviation."""
    error = abs(float(samples.double().mean()) - mean) / std
    assert error <= mean_bound(samples.numel()), f"mean off by {error:.5f} sd, bound {mean_bound(samples.numel()):.5f}"


def assert_variance(samples: Tensor, mean: float, variance: float) -> None:
    """The variance of normal samples, given their exact mean and variance."""
    ratio = float((samples.double() - mean).square().mean()) / variance
    low, high = variance_interval(samples.numel())
    assert low <= ratio <= high, f"variance ratio {ratio:.5f} outside [{low:.5f}, {high:.5f}]"


def assert_law(samples: Tensor, cdf: Callable[[np.ndarray], np.ndarray], bias: float = 0.0) -> None:
    """The samples' law, up to a ``bias`` of the distribution function that is known to be there."""
    distance, bound = ks_distance(samples, cdf), ks_bound(samples.numel()) + bias
    assert distance <= bound, f"distance {distance:.5f} from the law, bound {bound:.5f}"


def assert_frequencies(counts: Tensor, probabilities: Tensor, bias: float = 0.0) -> None:
    """Counts of categories, each within z standard deviations (and one count, for rare categories)."""
    n = float(counts.sum())
    p = probabilities.double()
    bound = Z * (p * (1.0 - p) / n).sqrt() + Z**2 / n + bias
    error = (counts.double() / n - p).abs()
    assert bool((error <= bound).all()), f"frequencies off by {error.tolist()}, bounds {bound.tolist()}"


def normal_cdf(mean: float, std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Distribution function of a normal."""

    def cdf(x: np.ndarray) -> np.ndarray:
        return torch.special.ndtr(torch.from_numpy((x - mean) / std)).numpy()

    return cdf
