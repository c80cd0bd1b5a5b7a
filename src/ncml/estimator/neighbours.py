"""How far a row lies from those seen in training, in its values and in what the density says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import row_norms

from ncml.estimator.traits import Array

__all__ = ["MOST", "Neighbours"]

LADDER = 0.25  # of the squared distance that the values have; chosen on the same data as the statistic
FLAT = 1e-3  # in the columns' scales; a column of less spread is what held for all rows, and keeps its scale
SAME = 1e-6  # rows as near as this, relative to their length, are one row but for rounding
DENSE = 1000  # features; more of them, mostly zeros, are a sparse matrix
CHUNK = 10_000  # rows whose features are in memory at a time
MOST = 1e9  # standard deviations; stands for all that is farther, and for a log-density of minus infinity


@dataclass(frozen=True, eq=False)
class Neighbours:
    r"""Training rows among which the nearest are looked for, each with its ladder of log-densities.

    The squared distance of two rows is

    .. math:: \sum_j \frac{(x_j - x'_j)^2}{v_j} + \frac14\, \frac dm \sum_i (z_i - z'_i)^2

    with v the columns' variances and z the standardised log-densities at m levels: in the mean over training rows the
    ladder has a quarter of what d values have. Where two rows differ in a category, whichever they have, the term is
    2 / v with v the probability that two training rows differ in it; of two categories, it is that of their codes.

    Args:
        centre, spread: Mean and standard deviation of every column; of categories the root of v.
        categories: Which columns are codes 0, 1, ... of categories, and how many of these there are.
        index: The training rows.
        count: How many neighbours the distance is the mean over, fewer than there are training rows.
    """

    centre: Array
    spread: Array
    categories: dict[int, int]
    index: NearestNeighbors
    count: int

    @classmethod
    def fit(cls, y: Array, ladder: Array, count: int, categories: Mapping[int, int] | None = None) -> Neighbours:
        """Of training rows.

        Args:
            y: Their columns, ``(n, d)``.
            ladder: Their standardised log-densities, within ``MOST``, ``(n, m)``.
            count: Neighbours; where there are too few rows, all others.
            categories: Columns that are codes of categories, and how many of these there are.
        """
        centre, spread, categories = y.mean(0), y.std(0), dict(categories or {})
        for j in categories:
            shares = np.bincount(y[:, j].astype(np.intp)) / len(y)
            spread[j] = np.sqrt(1.0 - np.square(shares).sum())
        spread = np.where(spread > FLAT, spread, 1.0)
        count = min(count, len(y) - 1)
        index = NearestNeighbors(n_neighbors=count + 1).fit(_features(y, ladder, centre, spread, categories))
        return cls(centre, spread, categories, index, count)

    def distance(self, y: Array, ladder: Array) -> Array:
        """Mean distance to the nearest training rows, ``(n,)``.

        A row that is one of them is not its own neighbour. A new row that equals one is taken for it.
        """
        starts = range(0, len(y), CHUNK)
        parts = [self._nearest(y[start : start + CHUNK], ladder[start : start + CHUNK]) for start in starts]
        return np.concatenate(parts)

    def _nearest(self, y: Array, ladder: Array) -> Array:
        rows = _features(y, ladder, self.centre, self.spread, self.categories)
        found = self.index.kneighbors(rows)[0]
        own = found[:, 0] <= SAME * (1.0 + row_norms(rows))
        nearest: Array = np.where(own[:, None], found[:, 1:], found[:, :-1]).mean(1)
        return nearest


def _features(
    y: Array, ladder: Array, centre: Array, spread: Array, categories: Mapping[int, int]
) -> Array | sparse.csr_matrix:
    """Values in standard deviations, the ladder in its share, and an indicator of every category."""
    values = np.delete((y - centre) / spread, list(categories), axis=1)
    share = np.sqrt(LADDER * y.shape[1] / ladder.shape[1])
    dense = np.concatenate([np.clip(values, -MOST, MOST), share * ladder], 1)
    if not categories:
        return dense
    rows = np.arange(len(y))
    indicators = [
        sparse.csr_matrix((np.full(len(y), 1.0 / spread[j]), (rows, y[:, j].astype(np.intp))), (len(y), number))
        for j, number in categories.items()
    ]
    features = sparse.hstack([sparse.csr_matrix(dense), *indicators], format="csr")
    return features if features.shape[1] > DENSE else features.toarray()
