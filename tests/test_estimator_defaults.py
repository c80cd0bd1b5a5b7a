"""The default densities of tables: when they have linear components, and what these gain."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import Ridge

from ncml.densities import MADE, MarginalMADE
from ncml.estimator import NCMLDensityEstimator
from ncml.estimator.defaults import default_density, dropout_for, linear_components_for, linear_gain, marginal_density
from ncml.nn.masked import FAR

RNG = np.random.default_rng(0)


def with_correlations(R, rows):
    """Normal numbers whose correlations are exactly R in the sample, in its columns' standard deviations."""
    x = np.random.default_rng(1).normal(size=(rows, len(R)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / rows)).T
    return x @ np.linalg.cholesky(R).T


def chain(rho, columns):
    """Correlations of an autoregression of order one."""
    return float(rho) ** np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("columns", [2, 6])
def test_the_gain_is_that_of_normal_distributions(rho, columns):
    """Minus half the log-determinant of their correlations, which the conditional variances make up."""
    gain = linear_gain(with_correlations(chain(rho, columns), 1000))
    assert gain == pytest.approx(-0.5 * np.linalg.slogdet(chain(rho, columns))[1] / columns, abs=0.01)


@pytest.mark.parametrize("gaps", [0.1, 0.4])
def test_of_rows_with_gaps_the_gain_is_that_of_all_that_is_known_before(gaps):
    """Of a chain the last column counts, as what is known predicts it: of the variance v = q + (1 - q) rho^2 v'."""
    rho, q = 0.9, 1.0 - gaps
    z = with_correlations(chain(rho, 5), 1000)
    z[RNG.random(z.shape) < gaps] = np.nan
    gain, known = 0.0, q
    for _ in range(4):
        gain -= 0.5 * np.log(1.0 - rho**2 * known)
        known = q + (1.0 - q) * rho**2 * known
    assert linear_gain(z) == pytest.approx(gain / 5, abs=0.03)


@pytest.mark.parametrize(("known", "gains"), [(0, False), (1, False), (7, False), (8, True)])
def test_a_column_with_hardly_a_value_gains_nothing(known, gains):
    """Though it counts in the mean over columns: a few values look linear by chance."""
    z = with_correlations(chain(0.9, 3), 50)
    without = linear_gain(z[:, :2])
    z[known:, 2] = np.nan
    assert (linear_gain(z) > 2 / 3 * without + 1e-3) == gains
    assert linear_gain(z) >= 2 / 3 * without - 1e-12


@pytest.mark.parametrize("scale", [1.0, 4.0])  # the latter so large that columns are levelled off
@pytest.mark.parametrize("seed", range(3))
def test_the_gain_is_that_of_its_formula(seed, scale):
    """Rows left out one by one, with as much penalty, and what is missing predicted by the regression on all."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(30, 4)) @ random.normal(size=(4, 4))
    z = np.where(random.random(z.shape) < 0.3, np.nan, scale * z / z.std(0))
    filled, gain = np.nan_to_num(z).clip(-FAR, FAR), 0.0
    for i in range(1, 4):
        known = ~np.isnan(z[:, i])
        before, column = filled[known, :i], filled[known, i]
        rows = np.arange(len(column))
        models = [Ridge(len(rows) * penalty) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)]
        errors = [
            [column[n] - model.fit(before[rows != n], column[rows != n]).predict(before[[n]])[0] for n in rows]
            for model in models
        ]
        left = np.square(errors).sum(1)
        whole = sum((column[n] - column[rows != n].mean()) ** 2 for n in rows)
        gain -= 0.5 * np.log(min(1.0, left.min() / whole))
        filled[~known, i] = models[left.argmin()].fit(before, column).predict(filled[~known, :i])
    assert linear_gain(z) == pytest.approx(gain / 4)


def test_of_many_columns_evenly_spaced_ones_stand_for_all():
    """The first half of them are independent, and each of the others goes with one of these."""
    z = RNG.normal(size=(1000, 100))
    z[:, 50:] = 0.95 * z[:, :50] + np.sqrt(1 - 0.95**2) * z[:, 50:]
    assert linear_gain(z) == pytest.approx(0.5 * -0.5 * np.log(1 - 0.95**2), abs=0.1)


def test_rows_in_order_are_spread_over():
    """The first 1,000 of 10,000 rows are linear, the others not."""
    z = RNG.normal(size=(10_000, 2))
    z[:1000, 1] = z[:1000, 0]
    assert linear_components_for(z) == 0
    assert linear_components_for(z[:1000]) == 2


@pytest.mark.parametrize("far", [1e2, 1e9, 1e300])
def test_a_value_far_out_changes_nothing(far):
    """Neither does it hide that columns go together, nor makes those that do not look so."""
    together, apart = with_correlations(chain(0.9, 4), 400), RNG.normal(size=(400, 4))
    together[7, 1] = far
    apart[7] = far
    assert linear_components_for(together) == 2
    assert linear_components_for(apart) == 0


@pytest.mark.parametrize(
    "z",
    [RNG.normal(size=(50, 1)), np.zeros((5, 3)), np.full((5, 3), 1e300)],
    ids=["one column", "constant", "constant and far out"],
)
def test_there_is_nothing_to_gain(z):
    assert linear_gain(z) == 0.0


def test_columns_that_others_make_up_have_a_large_gain_that_is_finite():
    z = RNG.normal(size=(300, 3))
    assert 0.5 < linear_gain(np.c_[z, z.sum(1)]) < 14.0


def test_columns_that_regression_does_not_help_count_as_zero():
    """Rather than below: of twenty rows it predicts the one left out worse than the mean does."""
    assert min(linear_gain(np.random.default_rng(seed).normal(size=(20, 8))) for seed in range(20)) >= 0.0


def test_columns_are_looked_at_as_the_density_sees_them():
    """A power law between positive columns, nearly 1 / x here, is linear in their logarithms."""
    X = np.exp(2.0 * with_correlations(chain(-0.97, 2), 300))
    linear = [
        NCMLDensityEstimator(bounds=bounds, max_steps=1, random_state=0).fit(X).density_.net.linear is not None
        for bounds in (None, dict.fromkeys(range(2), (0.0, None)))
    ]
    assert linear == [False, True]


@pytest.mark.parametrize("rows", [5, 12, 20, 30, 100])
@pytest.mark.parametrize("gaps", [0.0, 0.4])
def test_few_rows_do_not_look_linear(rows, gaps):
    """As many columns as rows fit anything, even when the mean is known; the rows left out one by one show it."""
    for seed in range(5):
        z = np.random.default_rng(seed).normal(size=(rows, 30))
        z[np.random.default_rng(seed + 5).random(z.shape) < gaps] = np.nan
        assert linear_gain(z) < 0.3


@pytest.mark.parametrize(("load", "linear"), [(load_breast_cancer, True), (load_digits, False), (load_wine, False)])
def test_tables_have_linear_components_where_columns_are_nearly_linear(load, linear):
    X = np.random.default_rng(0).permutation(load().data)[:120]
    X = X[:, X.std(0) > 0.0]
    fitted = NCMLDensityEstimator(max_steps=1, random_state=0).fit(X)
    assert (fitted.density_.net.linear is not None) == linear
    assert linear_components_for(fitted.columns_.standardise(X)) == (2 if linear else 0)


def test_a_factory_that_is_false_is_a_factory():
    class Empty(dict):
        def __call__(self, event_shape, process):
            return MADE(event_shape, process, hidden=(3,), components=1)

    X = RNG.normal(size=(30, 2))
    assert NCMLDensityEstimator(Empty(), max_steps=1).fit(X).density_.net.hidden == (3,)


@pytest.mark.parametrize(("load", "linear"), [(load_breast_cancer, True), (load_wine, False)])
def test_rows_with_gaps_have_a_density_of_observed_values_by_the_same_rule(load, linear):
    X = load().data[:100]
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    density = NCMLDensityEstimator(max_steps=1, random_state=0).fit(X).density_
    assert isinstance(density, MarginalMADE)
    assert (density.net.linear is not None) == linear


@pytest.mark.parametrize("seed", [0, 1])
def test_a_few_rows_teach_linear_components_what_they_do_not_teach_the_network(seed):
    X = np.random.default_rng(seed).permutation(load_breast_cancer().data)
    without = partial(default_density, dropout=dropout_for(100, 30))
    fitted, other = (
        NCMLDensityEstimator(density, max_steps=300, random_state=seed).fit(X[:100]) for density in (None, without)
    )
    assert fitted.score(X[100:]) > other.score(X[100:]) + 3.0


@pytest.mark.parametrize("seed", [0, 1])
def test_gaps_too_are_better_filled_with_them(seed):
    """What is drawn for the gaps of other rows is nearer to what was there."""
    X = np.random.default_rng(seed).permutation(load_breast_cancer().data)
    X = (X - X.mean(0)) / X.std(0)
    holed = np.where(np.random.default_rng(seed).random(X.shape) < 0.2, np.nan, X)
    without = partial(marginal_density, dropout=dropout_for(100, 30))
    errors = []
    for density in (None, without):
        fitted = NCMLDensityEstimator(density, max_steps=300, random_state=seed).fit(holed[:100])
        errors.append(np.abs(fitted.complete(holed[100:], seed) - X[100:])[np.isnan(holed[100:])].mean())
    assert errors[0] < 0.9 * errors[1]
