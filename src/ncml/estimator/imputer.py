"""Gaps of a table filled within a pipeline of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ncml.checks import check_count
from ncml.estimator.completion import fillable
from ncml.estimator.density import NCMLDensityEstimator, unfitted
from ncml.estimator.objective import may_have_gaps, seed_if_none, seed_of

__all__ = ["NCMLImputer"]


class NCMLImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    r"""Fill gaps by the density of the table, :math:`p(x_{mis} | x_{obs})`, as a transformer of scikit-learn.

    A density is trained on the rows with their gaps, and fills these by :meth:`NCMLDensityEstimator.complete`; the next
    one is trained on the whole rows that result. The last one fills what is to be transformed.

    The same table is filled in the same way every time: draws have one seed. For multiple imputation fit once, and call
    ``estimator_.complete`` with several.

    Args:
        estimator: The density, unfitted. Default ``NCMLDensityEstimator()``.
        fits: How many densities are trained, one after another; only one if no value is missing.
        rounds: As of :meth:`NCMLDensityEstimator.complete`.
        draws: The same: 1 fills with draws, more with medians and commonest categories.
        random_state: Seed of the draws, and of the estimator if it has none.

    Attributes:
        estimator_: The density that fills.
        n_features_in_: As in scikit-learn.
        feature_names_in_: As in scikit-learn.

    Example:
        >>> import numpy as np
        >>> from ncml.estimator import NCMLDensityEstimator, NCMLImputer
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> X[::5, 1] = np.nan
        >>> filled = NCMLImputer(NCMLDensityEstimator(max_steps=50), random_state=0).fit_transform(X)
        >>> bool(np.isfinite(filled).all())
        True
    """

    def __init__(
        self,
        estimator: NCMLDensityEstimator | None = None,
        *,
        fits: int = 2,
        rounds: int = 5,
        draws: int = 1,
        random_state: Any = None,  # noqa: ANN401 -- whatever check_random_state takes
    ) -> None:
        self.estimator = estimator
        self.fits = fits
        self.rounds = rounds
        self.draws = draws
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 -- scikit-learn's Tags
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = may_have_gaps(self.estimator)
        return tags

    def fit(self, X: Any, y: Any = None) -> NCMLImputer:  # noqa: ANN401 -- any table
        """Train on a table.

        Args:
            X: Rows, ``(n_samples, n_features)``, NaN where a value is missing.
            y: Ignored.

        Raises:
            ArgumentError: A parameter out of range, or what the estimator refuses.
            UnsupportedError: The density is no :class:`~ncml.density.CellDensity`, as the default ones are.
        """
        for name, minimum in (("fits", 1), ("rounds", 0), ("draws", 1)):
            check_count(getattr(self, name), name, minimum=minimum)
        estimator, random = unfitted(self.estimator), check_random_state(self.random_state)
        seed_if_none(estimator, random)
        self._seed = seed_of(random)
        fitted = estimator.fit(X)
        fillable(fitted.density_, "estimator.density")
        gaps = np.isnan(np.asarray(fitted.form.encode(X), np.float64)).any()
        for _ in range(self.fits - 1 if gaps else 0):
            fitted = clone(estimator).fit(fitted.complete(X, self._seed, rounds=self.rounds))
        self.estimator_: NCMLDensityEstimator = fitted
        self.n_features_in_ = fitted.n_features_in_
        if hasattr(fitted, "feature_names_in_"):
            self.feature_names_in_ = fitted.feature_names_in_
        elif hasattr(self, "feature_names_in_"):  # of an earlier fit
            del self.feature_names_in_
        return self

    def transform(self, X: Any) -> Any:  # noqa: ANN401 -- any table
        """All rows, with what is missing filled: :meth:`NCMLDensityEstimator.complete`.

        Args:
            X: Rows, ``(n_samples, n_features)``, NaN where a value is missing.
        """
        check_is_fitted(self)
        return self.estimator_.complete(X, self._seed, rounds=self.rounds, draws=self.draws)
