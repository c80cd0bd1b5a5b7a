"""Estimators for scikit-learn: a table's density, gaps and anomalies, and which columns shifted (extra ``sklearn``)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ncml.errors import MissingExtraError

if TYPE_CHECKING:
    from ncml.estimator.columns import Columns
    from ncml.estimator.density import NCMLDensityEstimator
    from ncml.estimator.imputer import NCMLImputer
    from ncml.estimator.outliers import NCMLOutlierDetector, PyODDetector
    from ncml.estimator.shift import FeatureShift, shift_statistic

__all__ = [
    "Columns",
    "FeatureShift",
    "NCMLDensityEstimator",
    "NCMLImputer",
    "NCMLOutlierDetector",
    "PyODDetector",
    "shift_statistic",
]

_MODULES = {
    "Columns": "columns",
    "FeatureShift": "shift",
    "NCMLDensityEstimator": "density",
    "NCMLImputer": "imputer",
    "NCMLOutlierDetector": "outliers",
    "PyODDetector": "outliers",
    "shift_statistic": "shift",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- any of the classes above
    """The classes, loaded on use: they derive from scikit-learn's, which is optional."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"ncml.estimator.{name}: scikit-learn is not installed; pip install 'ncml[sklearn]'"
        ) from error
    return getattr(importlib.import_module(f"ncml.estimator.{_MODULES[name]}"), name)
