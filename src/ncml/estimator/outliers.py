r"""Anomalies in a table by its density at several noise levels, with false-alarm rates that hold.

What the density says of a row is its ladder of log-densities at several noise levels,

.. math:: z_i(x) = \frac{\log p_{t_i}(x) - m_i}{s_i},

with the mean m and standard deviation s over training rows. (They are those of the values that a row has: the fewer,
the larger is :math:`\log p`.) With little noise the density sees the finest detail, with much only where the bulk of
the rows is. A row is odd if no training row is like it, in its values and in its ladder: the statistic is minus the
distance to the nearest training row in both,

.. math:: d(x, x')^2 = \sum_j \frac{(x_j - x'_j)^2}{v_j} + \frac14\, \frac km \sum_i (z_i - z'_i)^2,

with the variances v of k columns and m levels: in the mean over training rows the ladder has a quarter of what the
values have. Categories are alike or not: where they differ, the term is :math:`2/v`, with v the probability that those
of two training rows do.

A density alone can be large where no row has been: where a network extrapolates, and where it is right, for
a rare value can be likely (`Nalisnick et al., 2019 <https://arxiv.org/abs/1810.09136>`_). Distances alone hardly see
that columns which go together no longer do. Of the statistics tried, this one was the best in the mean over three kinds
of rows together: the anomalies of five small tables (where neighbours alone are better), clusters of rows left out of
the training, and rows made odd on purpose (entries taken from other rows, noise, uniform rows, wider clusters). No
anomaly of the large tables of the benchmark had a say.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ncml.checks import check_count, is_real
from ncml.errors import ArgumentError
from ncml.estimator.density import NCMLDensityEstimator, unfitted
from ncml.estimator.form import TableForm
from ncml.estimator.frames import rows_of
from ncml.estimator.neighbours import MOST, Neighbours
from ncml.estimator.objective import may_have_gaps, seed_if_none, times_of
from ncml.estimator.traits import Array, check_not_infinite
from ncml.estimator.usual import Usual, correlated_pairs

__all__ = ["NCMLOutlierDetector", "PyODDetector"]

FALSE_ALARMS = 0.05  # of contamination="auto"
ROUNDING = 1e-6
ROWS = 4096  # training rows that say what is usual at a level
MOST_NEIGHBOURS = 10_000  # training rows that are looked through for neighbours


class NCMLOutlierDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    r"""Outliers by the log-density at several noise levels and by neighbours; signs and names as in scikit-learn.

    Rows may have gaps, NaN, if the estimator allows them, or has ``missing=None`` and some of the rows given to ``fit``
    have. What is usual then depends on which values a row has, as fitted to training rows with further values hidden.
    False-alarm rates hold over all rows from the source, and nearly so for those with gaps and those without.

    Part of the rows takes no part in training. Against their scores :math:`s_1, \dots, s_n` a new row has the conformal
    p-value

    .. math:: p(x) = \frac{1 + \#\{i : s_i \le s(x)\}}{n + 1},

    and for a row from the same source :math:`P(p \le a) \le a`, whatever the density is worth (Vovk et al., 2005; for
    outliers `Bates et al., 2023 <https://arxiv.org/abs/2104.08279>`_). That is the mean over calibration sets: with one
    set the false-alarm rate is Beta(k, n + 1 - k), k = floor(a (n + 1)). Rows that come later, or from another
    source, are not covered.

    A row that breaks what held for all training rows, a constant column or an affine copy, loses
    :math:`r^2 / 2\sigma^2` in log-density at noise :math:`\sigma`, with r the residual in scales, or 1 where a
    category differs, and is farther from all of them by r over the least noise.

    Args:
        estimator: The density, unfitted. Default ``NCMLDensityEstimator()``. Its process has to be Gaussian.
        levels: Noise levels, in units of the columns' scales; 0 is the data themselves.
        n_neighbors: Training rows (of 10,000 at most) that a row is compared with; the distance is the mean over
            them. Default 1, the best where training rows are clean. Where groups of anomalies are among them, take
            more than such a group has. 0: the lowest :math:`z_i` alone, which keeps no training rows; so it is,
            whatever is asked for, where rows may have gaps, since a distance over fewer values is a shorter one.
        calibration: Share of the rows held out for :meth:`p_values`; 0 for none.
        contamination: "auto": :meth:`predict` gives -1 to rows with a p-value of at most 0.05 (without
            calibration: below the 5 % quantile of the training rows). A number in (0, 0.5]: to this share of the rows
            given to ``fit``.
        random_state: Seed of the calibration rows, and of the estimator if it has none.

    Attributes:
        estimator_: The fitted density.
        offset_: :meth:`decision_function` is :meth:`score_samples` less this.
        mean_, std_: Of the log-density of training rows at every level, of those without gaps.
        calibration_scores_: Scores of the calibration rows, sorted.

    Example:
        >>> from ncml.estimator import NCMLDensityEstimator, NCMLOutlierDetector
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> detector = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=100), random_state=0).fit(X)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        [1, -1]
    """

    def __init__(
        self,
        estimator: NCMLDensityEstimator | None = None,
        *,
        levels: Sequence[float] = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0),
        n_neighbors: int = 1,
        calibration: float = 0.2,
        contamination: float | Literal["auto"] = "auto",
        random_state: Any = None,  # noqa: ANN401 -- whatever check_random_state takes
    ) -> None:
        self.estimator = estimator
        self.levels = levels
        self.n_neighbors = n_neighbors
        self.calibration = calibration
        self.contamination = contamination
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 -- scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_gaps(reset=True)
        return tags

    def fit(self, X: Any, y: Any = None) -> NCMLOutlierDetector:  # noqa: ANN401 -- any table
        """Train on rows that are mostly usual.

        Args:
            X: Rows, ``(n_samples, n_features)``.
            y: Ignored.

        Raises:
            ArgumentError: A parameter out of range, or what the estimator refuses.
            UnsupportedError: The estimator's process is not Gaussian.
        """
        self._check_parameters()
        estimator = unfitted(self.estimator)
        self._times = times_of(estimator.process_or_default, self.levels, "levels")
        form = TableForm.of(X, estimator.categories)
        rows = self._validated(X, form, reset=True)
        random = check_random_state(self.random_state)
        order = random.permutation(len(rows))
        held = min(int(self.calibration * len(rows)), len(rows) - 2)
        seed_if_none(estimator, random)
        if form.categories:
            estimator.set_params(categories=form.declared)
        if estimator.missing is None and np.isnan(rows).any():
            estimator.set_params(missing=True)  # those left for training may have none
        seen = rows[order[held:]]
        if held:
            self._check_left(rows, seen, form.names(rows.shape[1]))
        self.estimator_: NCMLDensityEstimator = estimator.fit(rows_of(X, order[held:]))
        self._usual = self._fit_usual(seen[:ROWS], random)
        wanted = self.n_neighbors > 0 and not self.estimator_.marginal_
        self._neighbours = self._fit_neighbours(seen[:MOST_NEIGHBOURS]) if wanted else None
        complete = np.ones_like(self._observed(rows[:1]))
        self.mean_, self.std_ = (part[0] for part in self._usual.of(complete))
        self.calibration_scores_ = np.sort(self._score(rows[order[:held]])) if held else np.empty(0)
        self.offset_ = self._offset(rows)
        return self

    def score_samples(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        """Minus the mean distance to the nearest training rows, ``(n_samples,)``: low for anomalies.

        A training row is not its own neighbour, and a new row that equals one is taken for it. With
        ``n_neighbors=0``, and where rows may have gaps, the lowest :math:`z_i`.
        """
        check_is_fitted(self)
        return self._score(self._validated(X, self.estimator_.form, reset=False))

    def log_densities(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        """The log-density at every level, ``(n_samples, levels)`` nats, less what broken constants and copies cost."""
        check_is_fitted(self)
        return self._log_densities(self._validated(X, self.estimator_.form, reset=False))

    def decision_function(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        """:meth:`score_samples` less ``offset_``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: ANN401 -- any table
        """1 for usual rows, -1 for outliers."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_values(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        """Conformal p-values, ``(n_samples,)``: small for outliers.

        Raises:
            ArgumentError: Fitted without calibration rows.
        """
        check_is_fitted(self)
        n = len(self.calibration_scores_)
        if n == 0:
            raise ArgumentError("calibration: got no rows; expected calibration > 0 for p-values")
        scores = self.score_samples(X)
        below = np.searchsorted(self.calibration_scores_, scores + _tie(scores), side="right").astype(np.float64)
        return (1.0 + below) / (n + 1.0)

    def explain(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        r"""Why rows are odd to the density: its pull on every column, ``(n_samples, n_features)``.

        .. math:: e_j = \frac1m \sum_i \sigma_i\, \partial_j \log p_{t_i}(x)

        over the levels above 0. By Tweedie's formula :math:`\sigma^2 \partial_j \log p_t` is the way from x to where
        its column is expected given the others, so that e is this way in units of the noise: positive where the value
        is too small for the rest of the row. It is 0 for missing values that no copy has. A broken copy pulls on
        itself and on the column that it copied.
        """
        check_is_fitted(self)
        rows = self._validated(X, self.estimator_.form, reset=False)
        repair = self.estimator_.columns_.repair(rows)
        levels = [(sigma, t) for sigma, t in zip(self.levels, self._times, strict=True) if sigma > 0.0]
        table = self.estimator_.table_of(rows)
        pulls = [sigma * self.estimator_.gradient_of(table, t) + repair / sigma for sigma, t in levels]
        return cast(Array, np.mean(pulls, axis=0))

    def to_pyod(self, X: Any) -> PyODDetector:  # noqa: ANN401 -- any table
        """The fitted detector with PyOD's names and signs; PyOD itself is not needed.

        Args:
            X: The rows given to ``fit``, whose scores and labels are attributes in PyOD.
        """
        return PyODDetector(self, X)

    def _score(self, rows: Array) -> Array:
        ladder = self._ladder(rows)
        if self._neighbours is None:
            return cast(Array, ladder.min(1))
        return -self._neighbours.distance(self._values(rows), ladder)

    def _ladder(self, rows: Array) -> Array:
        """The standardised log-densities, ``(n, levels)``, as far as anything can be told apart."""
        mean, std = self._usual.of(self._observed(rows))
        return np.clip((self._log_densities(rows) - mean) / std, -MOST, MOST)  # finite, as metrics want scores

    def _values(self, rows: Array) -> Array:
        """What distances are of: columns, codes of categories, and what is broken, in units of the least noise."""
        columns = self.estimator_.columns_
        values = columns.standardise(rows)
        codes = list(self._categories())
        values[:, codes] = rows[:, columns.kept[codes]]
        if not (columns.constant or columns.duplicates):
            return values
        least = min(level for level in self.levels if level > 0.0)
        with np.errstate(over="ignore"):
            broken = np.linalg.norm(columns.residuals(rows), axis=1, keepdims=True) / least
        return np.concatenate([values, broken], 1)

    def _fit_neighbours(self, rows: Array) -> Neighbours:
        return Neighbours.fit(self._values(rows), self._ladder(rows), self.n_neighbors, self._categories())

    def _categories(self) -> dict[int, int]:
        """How many categories those of the columns in use have that are some."""
        known = self.estimator_.form.categories
        return {k: len(known[j]) for k, j in enumerate(self.estimator_.columns_.kept.tolist()) if j in known}

    def _log_densities(self, rows: Array) -> Array:
        with np.errstate(over="ignore"):
            squared = np.square(self.estimator_.columns_.residuals(rows)).sum(1)
        table = self.estimator_.table_of(rows)
        columns = [self.estimator_.log_densities_of(table, t) for t in self._times]
        for sigma, column in zip(self.levels, columns, strict=True):
            if sigma > 0.0:
                column -= squared / (2.0 * sigma * sigma)
        return np.stack(columns, 1)

    def _fit_usual(self, rows: Array, random: np.random.RandomState) -> Usual:
        """What is usual in training rows; where gaps are allowed also with further values hidden."""
        pairs = np.empty((0, 2), np.intp)
        if self.estimator_.marginal_:
            pairs = correlated_pairs(self.estimator_.columns_.standardise(rows))
            hidden = random.uniform(size=rows.shape) < random.uniform(size=(len(rows), 1))
            rows = np.concatenate([rows, np.where(hidden, np.nan, rows)])
        return Usual.fit(self._log_densities(rows), self._observed(rows), pairs)

    def _observed(self, rows: Array) -> NDArray[np.bool_]:
        """The mask of the values that the density sees; a column of ones if it sees all."""
        if not self.estimator_.marginal_:
            return np.ones((len(rows), 1), bool)
        return ~np.isnan(self.estimator_.columns_.standardise(rows))

    def _offset(self, rows: Array) -> float:
        if self.contamination != "auto":
            return _below(np.quantile(self._score(rows), self.contamination))
        n = len(self.calibration_scores_)
        if n == 0:
            return _below(np.quantile(self._score(rows), FALSE_ALARMS))
        k = math.floor(FALSE_ALARMS * (n + 1))
        if k == 0:
            warnings.warn(
                f"calibration: got {n} rows, too few for a p-value of {FALSE_ALARMS}; predict finds no outliers",
                UserWarning,
                stacklevel=3,
            )
            return -float(np.finfo(np.float64).max)
        return _below(self.calibration_scores_[k - 1])

    def _validated(self, X: Any, form: TableForm, *, reset: bool) -> Array:  # noqa: ANN401 -- any table
        gaps = self._takes_gaps(reset=reset)
        rows = validate_data(
            self,
            form.encode(X, gaps=gaps),
            reset=reset,
            dtype=np.float64,
            ensure_min_samples=2 if reset else 1,
            ensure_all_finite=False,
        )
        return check_not_infinite(rows, getattr(self, "feature_names_in_", form.names(rows.shape[1])), gaps=gaps)

    def _takes_gaps(self, *, reset: bool) -> bool:
        return may_have_gaps(self.estimator) and (reset or self.estimator_.marginal_)

    def _check_left(self, rows: Array, seen: Array, names: list[Any]) -> None:
        """Refuse a calibration part that leaves the training without what the table has."""
        remedy = "take fewer calibration rows, or another random_state"
        if lost := np.flatnonzero(np.isnan(seen).all(0) & ~np.isnan(rows).all(0)).tolist():
            raise ArgumentError(
                f"calibration: got {self.calibration}, which leaves {len(seen)} rows to train on, without a value in "
                f"{', '.join(str(names[j]) for j in lost)}; expected some; {remedy}"
            )
        if _alike(seen) and not _alike(rows):
            raise ArgumentError(
                f"calibration: got {self.calibration}, which leaves {len(seen)} rows to train on that are all the "
                f"same; expected several values; {remedy}"
            )

    def _check_parameters(self) -> None:
        levels = list(self.levels) if isinstance(self.levels, (Sequence, np.ndarray)) else []
        if not levels or not all(is_real(level) and 0.0 <= level < math.inf for level in levels) or max(levels) == 0.0:
            raise ArgumentError(f"levels: got {self.levels!r}; expected noise levels >= 0, one of them positive")
        check_count(self.n_neighbors, "n_neighbors", 0)
        if not is_real(self.calibration) or not 0.0 <= self.calibration < 1.0:
            raise ArgumentError(f"calibration: got {self.calibration!r}; expected a share, 0 <= calibration < 1")
        share = self.contamination
        if share != "auto" and not (is_real(share) and 0.0 < share <= 0.5):
            raise ArgumentError(f"contamination: got {self.contamination!r}; expected 'auto' or a share in (0, 0.5]")


def _tie(scores: Array) -> Array:
    """By how much scores that are equal may differ: rounding depends on the rows that are scored together."""
    return ROUNDING * (1.0 + np.abs(scores))


def _alike(rows: Array) -> bool:
    """Whether no column has two values."""
    return all(len(np.unique(column[~np.isnan(column)])) < 2 for column in rows.T)


def _below(score: float) -> float:
    """A threshold that scores equal to this one are not below."""
    return float(score - _tie(np.asarray(score)))


class PyODDetector:
    """A fitted :class:`NCMLOutlierDetector` as `PyOD <https://pyod.readthedocs.io>`_ has detectors: large is odd.

    Args:
        detector: The fitted detector.
        X: The rows that it was fitted to.

    Attributes:
        decision_scores_: Scores of the training rows, larger for odder ones.
        threshold_: Scores above it are outliers.
        labels_: 1 for the training rows above the threshold, 0 for the others.
        contamination: Their share.
    """

    def __init__(self, detector: NCMLOutlierDetector, X: Any) -> None:  # noqa: ANN401 -- any table
        self.detector = detector
        self.decision_scores_ = self.decision_function(X)
        self.threshold_ = -detector.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        self.contamination = float(self.labels_.mean())

    def decision_function(self, X: Any) -> Array:  # noqa: ANN401 -- any table
        """Scores, ``(n_samples,)``, larger for odder rows."""
        return -self.detector.score_samples(X)

    def predict(self, X: Any) -> NDArray[np.int64]:  # noqa: ANN401 -- any table
        """1 for outliers, 0 for the others."""
        return (self.decision_function(X) > self.threshold_).astype(int)
