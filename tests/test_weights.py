"""Weights of rows: how often `fit` draws them, and what the density estimator makes of `sample_weight`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.stats import chi2
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ncml import VPSDE, NCMLObjective
from ncml.densities import MADE, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.estimator import NCMLDensityEstimator, stopping
from ncml.estimator.defaults import default_factory, dropout_for
from ncml.estimator.stopping import Watch
from ncml.objective import AtZero, UniformTimes
from ncml.training import fit
from tests.problems import seeded

PROCESS = VPSDE.at_noise(0.5)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2))
WEIGHTS = RNG.integers(1, 5, 60).astype(float)


def small(event_shape, process, made=MADE):
    return made(event_shape, process, hidden=(8,), components=2)


def small_with_gaps(event_shape, process):
    return small(event_shape, process, MarginalMADE)


class Drawn(NCMLObjective):
    """Remembers the batches that it was given."""

    def __call__(self, density, x, *args, **kwargs):
        SEEN.append(x[:, 0].clone())
        return super().__call__(density, x, *args, **kwargs)


SEEN: list[torch.Tensor] = []


def drawn(weights, batch_size=100, steps=200):
    """How often each row was."""
    x = torch.arange(float(len(weights)))[:, None] / len(weights)
    SEEN.clear()
    made = small((1,), PROCESS)
    row_weights = torch.tensor(weights)
    fit(
        made,
        Drawn(PROCESS),
        x,
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-6,
        row_weights=row_weights,
        generator=seeded(0),
    )
    return torch.cat(SEEN).mul(len(weights)).round().long().bincount(minlength=len(weights)).numpy()


@pytest.mark.filterwarnings("ignore")  # rows on a lattice
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_rows_are_drawn_as_often_as_they_weigh(scale):
    """A chi-squared test with a false-alarm rate of 1e-6."""
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.5, 0.0])
    counts = drawn(scale * weights)
    assert counts.sum() == 20_000
    assert (counts[weights == 0.0] == 0).all()
    some = weights > 0.0
    expected = 20_000 * weights[some] / weights.sum()
    assert (np.square(counts[some] - expected) / expected).sum() < chi2.isf(1e-6, some.sum() - 1)


def test_a_row_without_weight_is_not_drawn_even_on_its_edge(monkeypatch):
    """Of weights 0 and 1 the first row has the shares up to 0, where a uniform number can lie."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size, dtype=torch.float64))
    assert drawn([0.0, 1.0], steps=1).tolist() == [0, 100]


@pytest.mark.filterwarnings("ignore")
def test_objectives_with_the_same_generator_see_the_same_rows():
    """However much each of them draws."""
    batches = []
    for times in (UniformTimes(), AtZero()):
        SEEN.clear()
        x, made = torch.from_numpy(X).float(), small((2,), PROCESS)
        fit(made, Drawn(PROCESS, times), x, steps=5, row_weights=torch.from_numpy(WEIGHTS), generator=seeded(0))
        batches.append(torch.cat(SEEN))
    assert torch.equal(*batches)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(59), ArgumentError, r"row_weights: got shape \(59,\); expected \(60,\), one for each row"),
        (torch.ones(60, 1), ArgumentError, r"row_weights: got shape \(60, 1\)"),
        (torch.linspace(-1.0, 5.0, 60), ArgumentError, "row_weights: got -1.0 for row 0; expected finite numbers >="),
        (torch.zeros(60), ArgumentError, "row_weights: got 0 above zero, as shares .*; expected 1 at least"),
        (torch.full((60,), torch.nan), ArgumentError, "row_weights: got nan for row 0"),
        (torch.full((60,), torch.inf), ArgumentError, "row_weights: got inf for row 0"),
        (torch.ones(60, dtype=torch.cfloat), ArgumentTypeError, "row_weights: got complex numbers; expected real ones"),
        (np.ones(60), ArgumentTypeError, "row_weights: got ndarray; expected a tensor of numbers"),
    ],
)
def test_wrong_weights_of_rows(weights, error, message):
    made = small((2,), PROCESS)
    before = [p.clone() for p in made.parameters()]
    with pytest.raises(error, match=message):
        fit(made, NCMLObjective(PROCESS), torch.from_numpy(X).float(), steps=1, row_weights=weights)
    assert all(torch.equal(p, q) for p, q in zip(made.parameters(), before, strict=True))


@pytest.mark.parametrize("density", [small, small_with_gaps])
def test_probabilities_are_those_of_the_weights(density):
    """Of 200 zeros that weigh 3 and 200 ones that weigh 1, three quarters are zeros."""
    values, weights = np.repeat([[0.0], [1.0]], 200, axis=0), np.repeat([3.0, 1.0], 200)
    missing = density is small_with_gaps
    estimator = NCMLDensityEstimator(density, max_steps=300, missing=missing, random_state=0)
    share = [float(np.exp(estimator.fit(values, sample_weight=w).score_samples([[0.0]])[0])) for w in (None, weights)]
    assert share == pytest.approx([0.5, 0.75], abs=0.04)


def fitted(rows=X, sample_weight=None, **settings):
    return NCMLDensityEstimator(small, max_steps=30, random_state=0, **settings).fit(rows, sample_weight=sample_weight)


@pytest.mark.parametrize("missing", [None, False])
@pytest.mark.parametrize("as_table", [np.asarray, np.ndarray.tolist, pd.DataFrame, pl.DataFrame, torch.from_numpy])
def test_rows_without_weight_are_as_if_they_were_not_there(as_table, missing):
    """Not even their values matter: infinity, and gaps of theirs."""
    odd = np.array([[1e6, 1e6], [np.nan, 0.0], [np.inf, 0.0]])
    table = as_table(np.r_[X[:30], odd, X[30:]])
    weights = np.r_[WEIGHTS[:30], np.zeros(3), WEIGHTS[30:]]
    estimator = NCMLDensityEstimator(small, max_steps=30, missing=missing, random_state=0)
    other, one = estimator.fit(table, sample_weight=weights), fitted(as_table(X), sample_weight=WEIGHTS)
    assert np.array_equal(other.score_samples(as_table(X)), one.score_samples(as_table(X)))
    assert other.validation_score_ == one.validation_score_


def test_categories_of_rows_without_weight_are_not_known():
    table = np.array(["nut", "bolt", "screw", *["nut", "bolt"] * 20], dtype=object)[:, None]
    weights = np.ones(43)
    weights[2] = 0.0
    estimator = NCMLDensityEstimator(small, max_steps=3, categories=[0], random_state=0)
    estimator.fit(table, sample_weight=weights)
    with pytest.raises(ArgumentError, match=r"got 'screw' in .*, which is not among the categories known of it"):
        estimator.score(table)
    assert np.isfinite(estimator.score(table, sample_weight=weights))


@pytest.mark.parametrize("weights", [np.ones(60), np.full(60, 0.3), [7] * 60])
def test_equal_weights_change_nothing(weights, monkeypatch):
    """Nor do they take another way."""
    given = []
    monkeypatch.setattr(stopping, "fit", lambda *_, row_weights, **__: given.append(row_weights) or [])
    fitted(sample_weight=weights)
    fitted()
    fitted(sample_weight=WEIGHTS)
    assert given[:2] == [None, None]
    assert given[2] is not None
    monkeypatch.undo()
    assert np.array_equal(fitted(sample_weight=weights).score_samples(X), fitted().score_samples(X))


@pytest.mark.parametrize("factor", [4.0, 2.0**-1000, 2.0**1020])
def test_only_the_ratios_matter(factor):
    one, other = fitted(sample_weight=WEIGHTS), fitted(sample_weight=factor * WEIGHTS)
    assert np.array_equal(one.score_samples(X), other.score_samples(X))
    assert not np.array_equal(one.score_samples(X), fitted().score_samples(X))
    assert other.score(X, sample_weight=factor * WEIGHTS) == one.score(X, sample_weight=WEIGHTS)


def test_the_score_is_a_weighted_mean():
    """Whatever the density of a row without weight, such as one beyond the bounds."""
    rows = np.abs(X)
    estimator = fitted(rows, bounds={0: (0.0, None)})
    log_p = estimator.score_samples(rows)
    assert estimator.score(rows) == log_p.mean()
    assert estimator.score(rows, sample_weight=WEIGHTS) == pytest.approx((WEIGHTS * log_p).sum() / WEIGHTS.sum())
    rows[0, 0] = -1.0
    assert estimator.score(rows, sample_weight=WEIGHTS) == -np.inf
    weights = np.r_[0.0, WEIGHTS[1:]]
    assert estimator.score(rows, sample_weight=weights) == pytest.approx(np.average(log_p[1:], weights=WEIGHTS[1:]))
    with pytest.raises(ArgumentError, match=r"sample_weight: got 0 above zero, .* expected 1 at least"):
        estimator.score(rows, sample_weight=np.zeros(60))


def test_rows_that_weigh_little_count_little_to_dropout():
    """Weights of 1 and of 1e-3, ten rows of each, are (10.01)^2 / 10.00001 = 10.02 rows."""
    z = RNG.normal(size=(20, 2))
    weights = np.repeat([1.0, 1e-3], 10)
    dropout = dropout_for(10.01**2 / 10.00001, 2)
    assert default_factory(z, weights, gaps=False).keywords["dropout"] == pytest.approx(dropout)
    assert default_factory(z, np.ones(20), gaps=False).keywords["dropout"] == dropout_for(20, 2)


@pytest.mark.parametrize(
    ("log_p", "best"),
    [([2.0, -1.0, 0.0], (1.0, (3 * 2.0 - 2 * 1.0) / 6)), ([-np.inf, -1.0, 0.0], (3 / 6, -2 / 3))],
)
def test_held_out_rows_count_as_they_weigh(log_p, best):
    """In the share of those that have a density, and in the mean over them."""
    made = small((2,), PROCESS)
    watch = Watch(made, lambda: torch.tensor(log_p), torch.tensor([3.0, 2.0, 1.0]), steps=1, patience=1)
    watch(1)
    assert watch.best == pytest.approx(best)
    assert watch.finish() == (1, watch.best[1] if best[0] == 1.0 else -np.inf)


def test_weights_pass_through_pipelines_and_searches():
    estimator = NCMLDensityEstimator(small, max_steps=30, random_state=0)
    scaler = StandardScaler()
    pipeline = make_pipeline(scaler, estimator).fit(X, ncmldensityestimator__sample_weight=WEIGHTS)
    alone = fitted(scaler.transform(X), sample_weight=WEIGHTS)
    assert np.array_equal(pipeline.score_samples(X), alone.score_samples(scaler.transform(X)))
    search = GridSearchCV(estimator, {"patience": [1, 2]}, cv=2).fit(X, sample_weight=WEIGHTS)
    best = fitted(sample_weight=WEIGHTS)
    assert np.array_equal(search.best_estimator_.score_samples(X), best.score_samples(X))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (WEIGHTS[1:], ArgumentError, r"sample_weight: got shape \(59,\); expected \(60,\), one for each row"),
        (WEIGHTS[:, None], ArgumentError, r"sample_weight: got shape \(60, 1\)"),
        (2.0, ArgumentError, r"sample_weight: got shape \(\)"),
        (np.r_[WEIGHTS[1:], -1.0], ArgumentError, "sample_weight: got -1.0 for row 59; expected finite numbers >= 0"),
        (np.r_[np.nan, WEIGHTS[1:]], ArgumentError, "sample_weight: got nan for row 0"),
        (np.r_[np.inf, WEIGHTS[1:]], ArgumentError, "sample_weight: got inf for row 0"),
        (np.zeros(60), ArgumentError, "sample_weight: got 0 above zero, .* expected 2 at least"),
        (np.eye(60)[3], ArgumentError, "sample_weight: got 1 above zero, .* expected 2 at least"),
        (1j * WEIGHTS, ArgumentTypeError, "sample_weight: got complex numbers; expected real ones"),
        (["a"] * 60, ArgumentTypeError, r"sample_weight: could not convert string to float: .*'a'.*; expected numbers"),
    ],
)
def test_wrong_sample_weights(weights, error, message):
    with pytest.raises(error, match=message):
        fitted(sample_weight=weights)
