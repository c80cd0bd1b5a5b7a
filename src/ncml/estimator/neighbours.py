"""How far a row lies from those seen in training, in its values and in what the density says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from ncml.estimator.columns import Array

__all__ = ["Neighbours"]

LADDER = 0.25  # of the squared distance that the values have; chosen on the same data as the statistic
FLAT = 1e-3  # in the columns' scales; a column of less spread is what held for all rows, and keeps its scale
SAME = 1e-6  # rows as near as this, relative to their length, are one row but for rounding
MOST_CATEGORIES = 100  # of a column, the rarer ones are as one: nearly all rows differ in them, which says little
MOST = 1e9  # standard deviations; stands for a log-density of minus infinity


@dataclass(frozen=True, eq=False)
class Neighbours:
    r"""Training rows among which the nearest are looked for, each with its ladder of log-densities.

    The squared distance of two rows is

    .. math:: \sum_j \frac{(x_j - x'_j)^2}{v_j} + \frac14\, \frac dm \sum_i (z_i - z'_i)^2

    with v the columns' variances and z the standardised log-densities at m levels: in the mean over training rows the
    ladder has a quarter of what d values have. Where two rows differ in a category, whichever they have, the term is
    2 / v with v the probability that two training rows differ in it; of two categories, it is that of their codes.

    Args:
        centre, spread: Mean and standard deviation of every column; of categories 0 and the root of v.
        categories: Which columns are codes 0, 1, ... of categories, and the rank of every code, the most frequent
            first; codes of the same rank are one.
        index: The training rows.
        count: How many neighbours the distance is the mean over, fewer than there are training rows.
    """

    centre: Array
    spread: Array
    categories: dict[int, NDArray[np.intp]]
    index: NearestNeighbors
    count: int

    @classmethod
    def fit(cls, y: Array, ladder: Array, count: int, categories: Mapping[int, int] | None = None) -> Neighbours:
        """Of training rows.

        Args:
            y: Their columns, ``(n, d)``.
            ladder: Their standardised log-densities, ``(n, m)``.
            count: Neighbours; where there are too few rows, all others.
            categories: Columns that are codes of categories, and how many of these there are.
        """
        centre, spread = y.mean(0), y.std(0)
        ranks = {j: _ranks(y[:, j], number) for j, number in (categories or {}).items()}
        for j, rank in ranks.items():
            shares = np.bincount(rank[y[:, j].astype(np.intp)]) / len(y)
            centre[j], spread[j] = 0.0, np.sqrt(1.0 - np.square(shares).sum())
        spread = np.where(spread > FLAT, spread, 1.0)
        count = min(count, len(y) - 1)
        index = NearestNeighbors(n_neighbors=count + 1).fit(_features(y, ladder, centre, spread, ranks))
        return cls(centre, spread, ranks, index, count)

    def distance(self, y: Array, ladder: Array) -> Array:
        """Mean distance to the nearest training rows, ``(n,)``.

        A row that is one of them is not its own neighbour. A new row that equals one is taken for it.
        """
        rows = _features(y, ladder, self.centre, self.spread, self.categories)
        found = self.index.kneighbors(rows)[0]
        own = found[:, 0] <= SAME * (1.0 + np.linalg.norm(rows, axis=1))
        nearest: Array = np.where(own[:, None], found[:, 1:], found[:, :-1]).mean(1)
        return nearest


def _ranks(codes: Array, number: int) -> NDArray[np.intp]:
    """The rank of every code by how frequent it is, the same for all beyond the first ``MOST_CATEGORIES``."""
    order = np.argsort(-np.bincount(codes.astype(np.intp), minlength=number), kind="stable")
    ranks = np.empty(number, np.intp)
    ranks[order] = np.minimum(np.arange(number), MOST_CATEGORIES)
    return ranks


def _features(
    y: Array, ladder: Array, centre: Array, spread: Array, categories: Mapping[int, NDArray[np.intp]]
) -> Array:
    """Values in standard deviations, an indicator of every category, and the ladder in its share."""
    values = np.delete((y - centre) / spread, list(categories), axis=1)
    indicators = [
        (ranks[y[:, j].astype(np.intp)][:, None] == np.arange(ranks.max() + 1)) / spread[j]
        for j, ranks in categories.items()
    ]
    share = np.sqrt(LADDER * y.shape[1] / ladder.shape[1])
    return np.concatenate([values, *indicators, share * np.clip(ladder, -MOST, MOST)], 1)
