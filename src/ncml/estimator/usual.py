r"""What log-densities of usual rows are, whichever values a row has.

The fewer values, the larger the log-density tends to be, by as much as each of them costs; and the second of two
columns that go together costs little. So the mean over rows with the mask m is fitted as

.. math:: \mu(m) = \sum_j a_j m_j + \sum_{(i, j)} \big(b_{ij}\, (m_i \wedge m_j) + c_{ij}\, (m_i \vee m_j)\big)

over the most correlated pairs of columns, and the variance likewise, with coefficients of at least 0. A row without
values has a log-density of 0, and so have both formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]

from ncml.estimator.traits import Array

__all__ = ["Usual", "correlated_pairs"]

MOST_PAIRS = 200


@dataclass(frozen=True, eq=False)
class Usual:
    """Mean and variance of the log-density at every level as functions of the mask of observed values.

    Args:
        mean: Coefficients of the mean: of each column, of both and of either of each pair, ``(k + 2 pairs, levels)``.
        variance: Those of the variance.
        pairs: Indices of two columns each, ``(pairs, 2)``.
    """

    mean: Array
    variance: Array
    pairs: NDArray[np.intp]

    @classmethod
    def fit(cls, log_p: Array, observed: NDArray[np.bool_], pairs: NDArray[np.intp]) -> Usual:
        """Least squares over usual rows.

        Args:
            log_p: Their log-densities at every level, ``(n, levels)``.
            observed: Which values they have, ``(n, k)``; one column of ones if all have all.
            pairs: Which pairs of columns count.
        """
        features = _features(observed, pairs)
        q, r = np.linalg.qr(features)  # many rows come to few
        mean: Array = np.linalg.lstsq(r, q.T @ log_p, rcond=1e-10)[0].astype(np.float64)
        squared = np.square(log_p - features @ mean)
        variance = np.stack([nnls(r, column)[0] for column in (q.T @ squared).T], 1)
        return cls(mean, variance, pairs)

    def of(self, observed: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Mean and standard deviation for such rows, ``(n, levels)`` each; the latter 1 where there is no spread."""
        features = _features(observed, self.pairs)
        variance = features @ self.variance
        return features @ self.mean, np.sqrt(np.where(variance > 0.0, variance, 1.0))


def _features(observed: NDArray[np.bool_], pairs: NDArray[np.intp]) -> Array:
    first, second = observed[:, pairs[:, 0]], observed[:, pairs[:, 1]]
    return np.concatenate([observed, first & second, first | second], 1).astype(np.float64)


def correlated_pairs(y: Array) -> NDArray[np.intp]:
    """The most correlated pairs of columns, at most 200, ``(pairs, 2)``, by ranks in rows that have both values.

    Args:
        y: Rows, ``(n, k)``, NaN for missing values.
    """
    there = ~np.isnan(y)
    ranks = np.where(there, y.argsort(0).argsort(0) / np.maximum(there.sum(0), 1) - 0.5, 0.0)
    together = np.maximum(there.T.astype(np.float64) @ there, 1.0)
    strength = np.abs(ranks.T @ ranks / together)
    first, second = np.triu_indices(y.shape[1], 1)
    order = np.argsort(-strength[first, second], kind="stable")[:MOST_PAIRS]
    return np.stack([first[order], second[order]], 1)
