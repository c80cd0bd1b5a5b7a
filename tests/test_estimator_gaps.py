"""Missing values in tables: the exact marginals of a Gaussian, types of gaps, false alarms with and without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal

from ncml.densities import MADE, MAF, MarginalMADE
from ncml.errors import ArgumentError
from ncml.estimator import Columns, FeatureShift, NCMLDensityEstimator, NCMLOutlierDetector

ROOT = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.6, 0.2, 0.7]])
COVARIANCE = ROOT @ ROOT.T


def normal_rows(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(3), COVARIANCE, n)


def with_gaps(X, share, seed=1):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def small(made=MarginalMADE):
    return lambda shape, process: made(shape, process, hidden=(24, 24), components=2, head="gaussian")


class MaskUnheard(MarginalMADE):
    """Planted: what is filled into a gap counts as a value (still a MarginalMADE, so that nobody asks)."""

    def _hidden(self, context):
        return torch.zeros_like(context, dtype=torch.bool)


def divergence(made):
    """Mean over masks and rows of the exact log-density of what is observed less the trained one, at t = 0 and 0.5."""
    X = with_gaps(normal_rows(3000), 0.2)
    model = NCMLDensityEstimator(
        small(made), max_steps=500, learning_rate=1e-2, validation_fraction=0.0, random_state=0
    ).fit(X)
    rows, scale = normal_rows(1000, 2), model.columns_.scale
    noise = np.random.default_rng(3).normal(size=rows.shape) * scale
    found = []
    for t in (0.0, 0.5):
        x, covariance = rows + t * noise, COVARIANCE + t**2 * np.diag(scale**2)
        for mask in np.ndindex(2, 2, 2):
            observed = np.flatnonzero(mask)
            if len(observed):
                exact = multivariate_normal(np.zeros(len(observed)), covariance[np.ix_(observed, observed)])
                trained = model.score_samples(np.where(mask, x, np.nan), t)
                found.append(float((exact.logpdf(x[:, observed]) - trained).mean()))
    return found


def test_marginals_of_a_gaussian():
    """Kullback-Leibler divergences, near 0.02 nats."""
    found = divergence(MarginalMADE)
    assert np.mean(found) < 0.06
    assert max(found) < 0.2


def test_planted_values_in_gaps_are_far_from_the_marginals():
    assert np.abs(divergence(MaskUnheard)).mean() > 0.5


def fitted(X, **settings):
    return NCMLDensityEstimator(small(), max_steps=2, random_state=0, **settings).fit(X)


def test_rows_with_gaps_in_the_units_of_the_table():
    """The density of a part of the columns: a scaled column changes it by the logarithm where it is observed."""
    X = with_gaps(normal_rows(300), 0.2)
    plain, scaled = fitted(X), fitted(X * [1.0, 1000.0, 1.0])
    difference = plain.score_samples(X) - scaled.score_samples(X * [1.0, 1000.0, 1.0])
    np.testing.assert_allclose(difference, np.where(np.isnan(X[:, 1]), 0.0, np.log(1000.0)), atol=1e-4)
    assert plain.score_samples([[np.nan] * 3])[0] == 0.0


def test_bounds_and_lattices_with_gaps():
    """A missing value is neither outside of bounds nor a part of the log-determinant."""
    X = with_gaps(np.column_stack([np.exp(normal_rows(300)[:, :2]), np.round(normal_rows(300, 1)[:, 2])]), 0.2)
    model = fitted(X, bounds={0: (0.0, None), 1: (0.0, 100.0)})
    assert model.columns_.width.tolist() == [0.0, 0.0, 1.0]
    assert np.isfinite(model.score_samples(X)).all()
    row = np.array([[1.0, 2.0, 1.0], [np.nan, 2.0, 1.0], [-1.0, 2.0, 1.0], [-1.0, np.nan, 1.0]])
    assert np.isfinite(model.score_samples(row)).tolist() == [True, True, False, False]


def test_statistics_are_those_of_the_observed_values():
    X = normal_rows(400)
    gaps = with_gaps(X, 0.3)
    columns = Columns.of(gaps, ["a", "b", "c"])
    alone = [Columns.of(column[~np.isnan(column)][:, None], ["x"]) for column in gaps.T]
    np.testing.assert_allclose(columns.centre, [c.centre[0] for c in alone])
    np.testing.assert_allclose(columns.scale, [c.scale[0] for c in alone])


def test_gradients_and_pulls_are_zero_in_gaps():
    X = with_gaps(normal_rows(200), 0.3)
    gradient = fitted(X).gradient(X, 0.5)
    assert (gradient[np.isnan(X)] == 0.0).all()
    assert (gradient[~np.isnan(X)] != 0.0).all()
    detector = NCMLOutlierDetector(NCMLDensityEstimator(small(), max_steps=2), random_state=0).fit(X)
    assert ((detector.explain(X) == 0.0) == np.isnan(X)).all()


def test_a_gap_is_filled_from_the_copy_of_its_column():
    X = normal_rows(200)[:, :2]
    X = with_gaps(np.column_stack([X, 2.0 * X[:, 0] + 1.0]), 0.1)
    with pytest.warns(UserWarning, match="x2"):
        model = fitted(X)
    whole = [[1.0, 0.0, 3.0], [1.0, 0.0, np.nan], [np.nan, 0.0, 3.0]]
    values = model.score_samples(whole)
    np.testing.assert_allclose(values, values[0])
    assert model.score_samples([[np.nan, 0.0, np.nan]])[0] != values[0]


def test_columns_that_seldom_meet_are_no_copies():
    """Two flags that agree in the few rows that have both."""
    a, b = np.tile([0.0, 1.0], 100), np.tile([0.0, 0.0, 1.0, 1.0], 50)
    a[10:150], b[:10] = np.nan, np.nan
    a[8:10], b[8:10] = [0.0, 1.0], [0.0, 1.0]
    assert Columns.of(np.column_stack([a, b])[:170], ["a", "b"]).duplicates == {}


NONE_FRAMES = {
    "float": pd.Series([1.5, np.nan, 2.5] * 20),
    "Int64": pd.Series([1, None, 3] * 20, dtype="Int64"),
    "boolean": pd.Series([True, None, False] * 20, dtype="boolean"),
    "Float64": pd.Series([1.5, None, 2.5] * 20, dtype="Float64"),
    "object": pd.Series([1.5, None, 2] * 20, dtype=object),
}


@pytest.mark.parametrize("kind", NONE_FRAMES)
def test_gaps_of_data_frames(kind):
    """All kinds are NaN to the density; samples have the dtypes, and no gaps."""
    frame = pd.DataFrame({"a": NONE_FRAMES[kind], "b": normal_rows(60)[:, 0]})
    model = fitted(frame)
    numbers = frame["a"].astype(object).where(frame["a"].notna(), np.nan).astype(float)
    assert (model.score_samples(frame) == model.score_samples(frame.assign(a=numbers))).all()
    drawn = model.sample(20, random_state=0)
    assert drawn.dtypes.equals(frame.dtypes)
    assert drawn.notna().all(axis=None)


def test_none_in_arrays():
    X = normal_rows(50).astype(object)
    X[3, 1] = None
    assert np.isfinite(fitted(X).score_samples(X)).all()


def test_gaps_that_come_later():
    X = normal_rows(100)
    gap = np.array([[0.0, np.nan, 0.0]])
    plain = NCMLDensityEstimator(small(MADE), max_steps=2).fit(X)
    with pytest.raises(ArgumentError, match=r"NaN in x1; .*NCMLDensityEstimator\(missing=True\)"):
        plain.score_samples(gap)
    default = NCMLDensityEstimator(max_steps=2, missing=True).fit(X)
    assert np.isfinite(default.score_samples(gap)).all()
    detector = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=2, missing=True)).fit(X)
    assert np.isfinite(detector.score_samples(gap)).all()


def test_one_gap_in_a_table_reaches_the_detector():
    """Whichever rows are left for training."""
    X = normal_rows(60)
    X[7, 0] = np.nan
    for seed in range(4):
        detector = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=1), random_state=seed, calibration=0.5).fit(X)
        assert np.isfinite(detector.score_samples(X)).all()


@pytest.mark.parametrize("made", [MADE, MAF])
def test_densities_of_complete_rows_are_refused(made):
    X = with_gaps(normal_rows(50), 0.2)
    with pytest.raises(ArgumentError, match=f"{made.__name__}, which is no density of the observed values"):
        NCMLDensityEstimator(lambda s, p: made(s, p, hidden=(8,)), max_steps=1).fit(X)


WRONG = {
    "not allowed": (lambda X: NCMLDensityEstimator(missing=False).fit(X), "NaN in x1"),
    "an empty column": (
        lambda X: NCMLDensityEstimator().fit(np.column_stack([X, np.full(len(X), np.nan)])),
        "no value in x3",
    ),
    "infinity": (lambda X: NCMLDensityEstimator().fit(np.where(np.isnan(X), np.inf, X)), "infinity"),
    "a shift": (lambda X: FeatureShift(NCMLDensityEstimator(missing=True)).fit(X, X), "NaN"),
    "a shift of data frames": (
        lambda X: FeatureShift().fit(
            pd.DataFrame(X, columns=list("abc")).dropna(), pd.DataFrame(X, columns=list("abc"))
        ),
        r"Y: got missing values \(NaN\) in b; expected complete rows",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_gaps(case):
    call, message = WRONG[case]
    X = normal_rows(50)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match=message):
        call(X)


def test_false_alarms_of_rows_with_gaps_and_without():
    """At 10 %, within three points where the standard error is half a one, and ten where it is two and few values left.

    The first two columns nearly say the same: the second costs little where the first is there.
    """
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal(np.zeros(3), COVARIANCE, 9000)
    X[:, 1] = X[:, 0] + 0.1 * rng.normal(size=9000)
    X = with_gaps(X, 0.2)
    estimator = NCMLDensityEstimator(small(), max_steps=300, learning_rate=1e-2)
    detector = NCMLOutlierDetector(estimator, calibration=0.5, random_state=0).fit(X[:5000])
    p, gaps = detector.p_values(X[5000:]), np.isnan(X[5000:]).sum(1)
    bounds = ((0.07, 0.13), (0.07, 0.13), (0.07, 0.2))
    rates = [float((p[gaps == n] <= 0.1).mean()) for n in range(3)]
    assert all(low < rate < high for rate, (low, high) in zip(rates, bounds, strict=True))
    # Planted: one mean and spread for all rows.
    log_p = detector.log_densities(X[5000:])
    plain = ((log_p - log_p.mean(0)) / log_p.std(0)).min(1)
    assert float((plain[gaps == 2] <= np.quantile(plain, 0.1)).mean()) < 0.05


def test_rows_with_gaps_are_scored_by_the_ladder_alone():
    """A distance over fewer values is a shorter one: rows with gaps would never be odd."""
    X = with_gaps(normal_rows(400), 0.3)
    estimator = NCMLDensityEstimator(small(), max_steps=20, random_state=0)
    usual, alone = (
        NCMLOutlierDetector(estimator, n_neighbors=count, random_state=0).fit(X).score_samples(X) for count in (3, 0)
    )
    assert (usual == alone).all()


def test_rows_with_gaps_can_be_odd():
    X = with_gaps(normal_rows(1500), 0.1)
    estimator = NCMLDensityEstimator(small(), max_steps=200, learning_rate=1e-2)
    detector = NCMLOutlierDetector(estimator, random_state=0).fit(X)
    odd = detector.p_values([[2.0, -2.0, np.nan], [np.nan, 9.0, np.nan]])
    usual = detector.p_values([[0.5, 0.5, np.nan], [np.nan, 0.5, np.nan], [np.nan] * 3])
    assert (odd < 0.02).all()
    assert (usual > 0.1).all()
