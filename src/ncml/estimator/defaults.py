"""The densities that tables have unless others are asked for, and how dropout and linear components go by the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV

from ncml.densities import MADE, MarginalMADE
from ncml.estimator.objective import DensityFactory
from ncml.estimator.traits import Array
from ncml.nn.masked import FAR
from ncml.noise import GaussianProcess, NoiseProcess

__all__ = [
    "LINEAR_COMPONENTS",
    "SIZE",
    "default_density",
    "default_factory",
    "dropout_for",
    "linear_components_for",
    "linear_gain",
    "marginal_density",
]

SIZE: dict[str, Any] = {"hidden": (256, 256), "components": 8}
LINEAR_COMPONENTS = 2
ENOUGH_GAIN = 0.5  # nats per column
MOST_ROWS, MOST_COLUMNS = 1000, 32  # regressed, so that it takes a small part of a fit's time
FEWEST = 8  # rows that can show that they are linear, which a few are by chance
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of ridge regression, per row


def default_density(
    event_shape: Sequence[int], process: NoiseProcess, *, dropout: float = 0.0, linear_components: int = 0
) -> MADE:
    """The density of a table without gaps: a small :class:`~ncml.densities.MADE`.

    Mixtures of logistics have several modes in every column, as columns of integers and codes do, and heavy tails.

    Args:
        event_shape: ``(number of columns,)``.
        process: The noise process.
        dropout: Probability of dropping a hidden unit in training; the estimators take :func:`dropout_for`.
        linear_components: How many of the 8 components of a column have a mean with a linear term in the columns
            before; the estimators take :func:`linear_components_for`.
    """
    return MADE(event_shape, process, **_settings(process, dropout), linear_components=linear_components)


def marginal_density(
    event_shape: Sequence[int], process: NoiseProcess, *, dropout: float = 0.0, linear_components: int = 0
) -> MarginalMADE:
    """The density of a table with gaps, of the same size; the arguments are those of :func:`default_density`."""
    return MarginalMADE(event_shape, process, **_settings(process, dropout), linear_components=linear_components)


def default_factory(z: Array, weights: Array, *, gaps: bool) -> DensityFactory:
    r"""What makes the default density of rows.

    Args:
        z: The rows as the density sees them, ``(n, k)``, NaN in their gaps.
        weights: How much each counts, ``(n,)``: to dropout all are :math:`(\sum w)^2 / \sum w^2` rows, n if alike.
        gaps: Whether rows may have some.
    """
    rows = float(weights.sum() ** 2 / np.square(weights).sum())
    density = marginal_density if gaps else default_density
    return partial(density, dropout=dropout_for(rows, z.shape[1]), linear_components=linear_components_for(z))


def dropout_for(rows: float, columns: int) -> float:
    r"""The dropout of the default densities for n rows of d columns: :math:`.5 - .1 \log_2 \frac n{5d}` within [0, .6].

    A few rows are soon learned by heart, which dropout delays: what it gains is on the page "Tables of few rows". From
    160 rows for every column on there is none.
    """
    return min(0.6, max(0.0, 0.5 - 0.1 * math.log2(rows / (5 * columns))))


def linear_components_for(z: Array) -> int:
    """The linear components of the default densities: 2 if columns are nearly linear, or none.

    Nearly linear is a :func:`linear_gain` above half a nat: what is left of a column's standard deviation is less than
    .61 of it in the geometric mean. (A few columns that others make up can be enough.) From few rows the network alone
    does not learn such columns, the page "Tables of few rows" has by how much; in tables far from linear the terms
    would be learned by heart.

    Args:
        z: The rows as the density sees them, ``(n, k)``, NaN in their gaps.
    """
    return LINEAR_COMPONENTS if linear_gain(z) > ENOUGH_GAIN else 0


def linear_gain(z: Array) -> float:
    r"""What columns gain by linear regression on those before, in the mean over columns, nats.

    .. math:: \frac1k \sum_{i=2}^k -\frac12 \log \frac{\sum_n (z_{ni} - \hat z_{ni})^2}{\sum_n (z_{ni} - \bar z_{ni})^2}

    with the predictions :math:`\hat z_{ni}` of ridge regression, the best of four penalties, and the means
    :math:`\bar z_{ni}`, both of the rows other than n: by so much the normal distribution of a column is likelier with
    its mean regressed. Columns that it does not help count 0. A column is regressed over the rows that have it, eight
    at least, and in those that do not, its prediction stands for it further on (or 0, of columns that are not
    regressed, such as the first). Of more than 1,000 rows, or 32 columns, evenly spaced ones are taken.

    Args:
        z: Rows of order one, ``(n, k)``, NaN in their gaps.
    """
    z = np.clip(z[:: -(-len(z) // MOST_ROWS)], -FAR, FAR)
    known, filled = ~np.isnan(z), np.nan_to_num(z)
    columns = z.shape[1]
    gains = []
    for i in np.unique(np.linspace(1, columns - 1, min(columns - 1, MOST_COLUMNS)).astype(int)):
        there, column = known[:, i], filled[known[:, i], i]
        rows = len(column)
        if rows < FEWEST or np.ptp(column) == 0.0:
            gains.append(0.0)
            continue
        regression = RidgeCV(rows * np.array(PENALTIES)).fit(filled[there, :i], column)
        whole = column.var() * (rows / (rows - 1)) ** 2
        gains.append(-0.5 * math.log(min(1.0, -regression.best_score_ / whole)))
        if rows < len(z):
            filled[~there, i] = regression.predict(filled[~there, :i])
    return sum(gains) / (len(gains) + 1)


def _settings(process: NoiseProcess, dropout: float) -> dict[str, Any]:
    std = 1.0 if isinstance(process, GaussianProcess) else None  # of columns in their scales, for noise that has one
    return {**SIZE, "data_std": std, "dropout": dropout}
