"""How far a row lies from those seen in training, in its values and in what the density says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from ncml.estimator.columns import Array

__all__ = ["Neighbours"]

LADDER = 0.25  # of the squared distance that the values have; chosen on the same data as the statistic
FLAT = 1e-3  # in the columns' scales; a column of less spread is what held for all rows, and keeps its scale
SAME = 1e-6  # rows as near as this, relative to their length, are one row but for rounding
MOST = 1e9  # standard deviations; stands for a log-density of minus infinity


@dataclass(frozen=True, eq=False)
class Neighbours:
    r"""Training rows among which the nearest are looked for, each with its ladder of log-densities.

    The squared distance of two rows is

    .. math:: \sum_j \frac{(x_j - x'_j)^2}{v_j} + \frac14\, \frac dm \sum_i (z_i - z'_i)^2

    with v the columns' variances and z the standardised log-densities at m levels: in the mean over training rows the
    ladder has a quarter of what d values have.

    Args:
        centre, spread: Mean and standard deviation of every column.
        index: The training rows.
        count: How many neighbours the distance is the mean over, fewer than there are training rows.
    """

    centre: Array
    spread: Array
    index: NearestNeighbors
    count: int

    @classmethod
    def fit(cls, y: Array, ladder: Array, count: int) -> Neighbours:
        """Of training rows.

        Args:
            y: Their columns, ``(n, d)``.
            ladder: Their standardised log-densities, ``(n, m)``.
            count: Neighbours; where there are too few rows, all others.
        """
        centre, spread = y.mean(0), y.std(0)
        spread = np.where(spread > FLAT, spread, 1.0)
        count = min(count, len(y) - 1)
        index = NearestNeighbors(n_neighbors=count + 1).fit(_features(y, ladder, centre, spread))
        return cls(centre, spread, index, count)

    def distance(self, y: Array, ladder: Array) -> Array:
        """Mean distance to the nearest training rows, ``(n,)``.

        A row that is one of them is not its own neighbour. A new row that equals one is taken for it.
        """
        rows = _features(y, ladder, self.centre, self.spread)
        found = self.index.kneighbors(rows)[0]
        own = found[:, 0] <= SAME * (1.0 + np.linalg.norm(rows, axis=1))
        nearest: Array = np.where(own[:, None], found[:, 1:], found[:, :-1]).mean(1)
        return nearest


def _features(y: Array, ladder: Array, centre: Array, spread: Array) -> Array:
    """Values in standard deviations, and the ladder in its share."""
    values = (y - centre) / spread
    share = np.sqrt(LADDER * values.shape[1] / ladder.shape[1])
    return np.concatenate([values, share * np.clip(ladder, -MOST, MOST)], 1)
