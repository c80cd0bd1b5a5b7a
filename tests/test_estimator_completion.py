"""What is missing in a table, drawn given all that is there: against probabilities by quadrature, and closed forms."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import get_tags

from ncml import LinearVESDE
from ncml.densities import MADE, MAF, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.estimator import Columns, NCMLDensityEstimator, NCMLImputer
from ncml.estimator import completion as module
from ncml.estimator.completion import completed
from tests.problems import shaken
from tests.statistics import assert_frequencies

F64 = torch.float64
NAN = np.nan
RNG = np.random.default_rng(0)


def network(kind, dims, **settings):
    """One whose values depend strongly on one another, at t = 0 too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = kind((dims,), LinearVESDE(2.0), hidden=(24, 24), components=2, **settings)
    return shaken(made, 0.8, seed=1).eval()


def drawn(made, columns, row, n, *, rounds=5):
    rows = np.tile(np.asarray(row, float), (n, 1))
    context = torch.ones(1, *made.event_shape, dtype=F64) if isinstance(made, MarginalMADE) else None
    found = completed(made, columns, rows, context, rounds=rounds, seed=0)
    there = ~np.isnan(rows)
    assert np.array_equal(found[there], rows[there])
    return found


def bent_columns():
    """A logarithm, a real column with ties, which is spread, and a logit."""
    X = np.random.default_rng(2).lognormal(size=(400, 3))
    X[:200, 1] = X[:100, 1].repeat(2)
    X[:, 2] = X[:, 2] / (1.0 + X[:, 2])
    columns = Columns.of(X, ["a", "b", "c"], {"a": (0, None), "c": (0, 1)})
    assert (columns.width > 0.0).tolist() == [False, True, False]
    assert np.isnan(columns.origin).all()
    return columns


REAL = Columns.of(RNG.normal(size=(400, 3)), ["a", "b", "c"])
EDGES = np.linspace(-6.0, 6.0, 9)  # in scales


def typical(made, columns):
    """A row that the density draws."""
    whole = torch.ones(1, *made.event_shape, dtype=F64) if isinstance(made, MarginalMADE) else None
    z = made.sample(1, 0.0, whole, generator=torch.Generator().manual_seed(5), place=columns.middle)
    return columns.from_model(z)[0]


def as_seen(columns, rows):
    """Rows as the density sees them."""
    return columns.to_model(torch.from_numpy(columns.standardise(rows)))[0]


def cells_of_pairs(made, columns, row, i, j):
    """Probabilities of a grid of cells of two missing values of a real row, by the midpoint rule."""
    fine = 40
    points = np.linspace(EDGES[0], EDGES[-1], (len(EDGES) - 1) * fine + 1)
    middles = 0.5 * (points[1:] + points[:-1])
    z = as_seen(columns, row[None]).repeat(len(middles) ** 2, 1)
    z[:, [i, j]] = torch.from_numpy(np.array(list(itertools.product(middles, middles))))
    with torch.no_grad():
        log_p = made.log_prob(z, 0.0, torch.ones_like(z) if isinstance(made, MarginalMADE) else None)
    p = log_p.exp().view(len(EDGES) - 1, fine, len(EDGES) - 1, fine).sum((1, 3))
    return p / p.sum()


def frequencies_of_pairs(made, i, j, *, columns=REAL, off=2.0, **settings):
    """Of 3,000 completions of a row, in the cells, and their probabilities; what is known is off, so that it tells."""
    row = columns.from_model(as_seen(columns, typical(made, columns)[None]) + off)[0]
    p = cells_of_pairs(made, columns, row, i, j)
    row[[i, j]] = NAN
    found = as_seen(columns, drawn(made, columns, row, 3000, **settings))[:, [i, j]].numpy()
    inside = (np.abs(found) < EDGES[-1]).all(1)
    assert inside.mean() > 0.98
    counts = np.histogram2d(*found[inside].T, bins=[EDGES, EDGES])[0]
    return torch.from_numpy(counts).long().flatten(), p.flatten()


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("kind", [MADE, MarginalMADE])
def test_two_missing_values_have_their_joint_law(kind, i, j):
    assert_frequencies(*frequencies_of_pairs(network(kind, 3), i, j))


@pytest.mark.parametrize(("i", "j", "order"), [(0, 1, None), (0, 2, [2, 0, 1])])
def test_bounded_and_tied_columns_have_their_joint_law(i, j, order, monkeypatch):
    """And not with candidates that all weigh the same: what is known, in a spread column too, comes last and tells."""
    made, options = network(MADE, 3, order=order), {"columns": bent_columns(), "off": 1.0}
    assert_frequencies(*frequencies_of_pairs(made, i, j, **options))
    monkeypatch.setattr(made, "log_cells", lambda x, *_: torch.zeros(len(x), dtype=F64))
    with pytest.raises(AssertionError):
        assert_frequencies(*frequencies_of_pairs(made, i, j, **options))


@pytest.mark.parametrize("bug", ["weights", "current"])
def test_the_law_sees_a_wrong_draw(bug, monkeypatch):
    """Planted: candidates that all weigh the same; what a row has now is left out, with two candidates."""
    made = network(MADE, 3)
    if bug == "weights":
        monkeypatch.setattr(made, "log_cells", lambda x, *_: torch.zeros(len(x), dtype=F64))
    else:
        monkeypatch.setattr(module, "CANDIDATES", 2)
        plain = module._redrawn
        monkeypatch.setattr(module, "_redrawn", lambda *args, first: plain(*args, first=True))
    with pytest.raises(AssertionError):
        assert_frequencies(*frequencies_of_pairs(made, 0, 1))


def test_rounds_reach_the_law_from_two_candidates(monkeypatch):
    """Any number of candidates leaves the law as it is; only the first draw needs many."""
    monkeypatch.setattr(module, "CANDIDATES", 2)
    made = network(MADE, 3)
    assert_frequencies(*frequencies_of_pairs(made, 0, 1, off=1.0, rounds=60))
    with pytest.raises(AssertionError):
        assert_frequencies(*frequencies_of_pairs(made, 0, 1, off=1.0, rounds=0))


def moved_alone(monkeypatch):
    """The first draw is the better of two candidates; afterwards values only move."""
    monkeypatch.setattr(module, "CANDIDATES", 2)
    plain = module._redrawn
    monkeypatch.setattr(module, "_redrawn", lambda *args, first: plain(*args, first=True) if first else args[2])


@pytest.mark.parametrize(("columns", "off"), [(REAL, 1.0), (bent_columns(), 0.5)], ids=["real", "bounded and tied"])
@pytest.mark.parametrize("kind", [MADE, MarginalMADE])
def test_moves_alone_reach_the_law(kind, columns, off, monkeypatch):
    moved_alone(monkeypatch)
    made = network(kind, 3)
    assert_frequencies(*frequencies_of_pairs(made, 0, 1, columns=columns, off=off, rounds=30))


@pytest.mark.parametrize("bug", ["none are made", "all places weigh the same", "what a row has is left out"])
def test_the_law_sees_wrong_moves(bug, monkeypatch):
    """The last with two places beside what a row has, which seldom is the best of many."""
    moved_alone(monkeypatch)
    made = network(MADE, 3)
    if bug == "none are made":
        monkeypatch.setattr(module, "MOVES", 0)
    elif bug == "all places weigh the same":
        monkeypatch.setattr(made, "log_cells", lambda x, *_: torch.zeros(len(x), dtype=F64))
    else:
        monkeypatch.setattr(module, "PLACES", 3)
        softmax, without = torch.Tensor.softmax, torch.tensor([-torch.inf, 0.0, 0.0], dtype=F64)
        monkeypatch.setattr(torch.Tensor, "softmax", lambda w, dim: softmax(w + without if w.shape[1] == 3 else w, dim))
    with pytest.raises(AssertionError):
        assert_frequencies(*frequencies_of_pairs(made, 0, 1, off=1.0, rounds=30))


def test_counts_move_by_whole_steps_to_their_probabilities(monkeypatch):
    """A count beside a category that is known, within bounds and without."""
    moved_alone(monkeypatch)
    for bounds, first in ((None, -60), ({"count": (0, 12)}, 0)):
        columns, made, p = counts_and_kinds(4.0, bounds, first)
        rows = np.tile([NAN, 1.0], (3000, 1))
        found = completed(made, columns, rows, None, rounds=30, seed=0)[:, 0]
        assert np.array_equal(found, np.round(found))
        counts = torch.bincount(torch.from_numpy(found - first).long(), minlength=len(p))
        assert_frequencies(counts, torch.from_numpy(p[:, 1] / p[:, 1].sum()))


def test_a_value_that_a_later_one_settles_is_found():
    """A copy but for a hundredth: candidates that do not know it come within a tenth at best, and not always."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=600)
    X = np.column_stack([a, a + 0.01 * rng.normal(size=600)])
    holed = X.copy()
    holed[:300, 0] = NAN
    found = NCMLDensityEstimator(max_steps=1000, random_state=0).fit(X).complete(holed, random_state=0)
    errors = np.abs(found - X)[:300, 0]
    assert np.median(errors) < 0.02
    assert (errors < 0.1).mean() > 0.97


def test_integers_and_categories_have_their_probabilities():
    """A count and a category together, given the real number between them; the count alone, given both."""
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.poisson(2.0, 400), rng.normal(size=400), rng.integers(0, 3, 400)]).astype(float)
    columns = Columns.of(X, ["count", "x", "kind"], codes={2: 3})
    made, row = network(MADE, 3), X[0].copy()
    whole = np.array([[count, row[1], kind] for count in range(-60, 61) for kind in range(3)])
    z, low, high, _ = columns.cells(torch.from_numpy(columns.standardise(whole)))
    p = made.log_cells(z, low, high).exp().detach()
    p = (p / p.sum()).view(-1, 3)
    row[[0, 2]] = NAN
    codes = torch.from_numpy(drawn(made, columns, row, 3000)).long()
    counts = torch.bincount(3 * (codes[:, 0] + 60) + codes[:, 2], minlength=p.numel())
    assert_frequencies(counts, p.flatten())
    row[2] = 1.0
    found = torch.from_numpy(drawn(made, columns, row, 3000)[:, 0]).long() + 60
    assert_frequencies(torch.bincount(found, minlength=len(p)), p[:, 1] / p[:, 1].sum())


def counts_and_kinds(rate, bounds, first):
    """Columns of a count and a category, a network, and its probabilities, of counts from ``first`` on."""
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.poisson(rate, 400), rng.integers(0, 3, 400)]).astype(float)
    columns, made = Columns.of(X, ["count", "kind"], bounds, codes={1: 3}), network(MADE, 2)
    whole = np.array([[count, kind] for count in range(first, 1000) for kind in range(3)])
    z, low, high, _ = columns.cells(torch.from_numpy(columns.standardise(whole)))
    p = made.log_cells(z, low, high).exp().detach().view(-1, 3).numpy()
    assert p.sum() > 1.0 - 1e-6
    return columns, made, p


def middle_of(made, columns, row):
    return completed(made, columns, np.array([row]), None, rounds=2, draws=5000, seed=0)[0].tolist()


def test_of_many_draws_of_numbers_the_median_is_taken():
    """Not the mean, which is another integer."""
    columns, made, p = counts_and_kinds(8.0, {"count": (0, None)}, 0)
    counts = p[:, 1] / p[:, 1].sum()
    median = int(np.searchsorted(counts.cumsum(), 0.5))
    assert round(counts @ np.arange(len(counts))) == median + 1
    below, upto = counts.cumsum()[[median - 1, median]]
    assert below < 0.471  # 5,000 draws tell at four standard deviations
    assert upto > 0.529
    assert middle_of(made, columns, [NAN, 1.0]) == [median, 1.0]


def test_of_many_draws_of_categories_the_commonest_is_taken():
    """Not the one in the middle."""
    columns, made, p = counts_and_kinds(2.0, None, -60)
    kinds = p[66] / p[66].sum()
    assert kinds[0] < 0.5 < kinds[:2].sum()  # the second one
    assert kinds[2] - kinds[1] > 0.06
    assert middle_of(made, columns, [6.0, NAN]) == [6.0, 2.0]


def test_the_commonest_category_beside_a_constant():
    """Which is set aside, so that the density's columns have other numbers than the table's."""
    columns, made, _ = counts_and_kinds(2.0, None, -60)
    moved = replace(columns, names=("one", *columns.names), kept=columns.kept + 1, constant={0: 1.0}, coded={2})
    assert middle_of(made, moved, [1.0, 6.0, NAN]) == [1.0, 6.0, 2.0]


# Estimators.


def mixed(n=300):
    rng = np.random.default_rng(1)
    size = rng.lognormal(size=n)
    kind = pd.Categorical(np.where(size > 1.0, "bolt", "nut"), categories=["bolt", "nut", "washer"])
    table = pd.DataFrame({"size": size, "weight": 2.0 * size, "count": rng.poisson(3.0, n), "kind": kind, "unit": "mm"})
    table["unit"] = table["unit"].astype("category")
    return table.set_axis(np.arange(n) * 10), pd.DataFrame(rng.random((n, 5)) < 0.3, columns=table.columns)


@pytest.mark.parametrize("complete", [True, False])
def test_tables_are_completed_in_their_types(complete):
    table, gone = mixed()
    gone.index = table.index
    gaps = table.mask(gone)
    gaps["kind"], gaps["unit"] = gaps["kind"].astype("category"), gaps["unit"].astype("category")
    options = {"bounds": {"size": (0, None)}, "categories": {"kind": ["bolt", "nut", "washer"]}}
    with pytest.warns(UserWarning, match="set aside"):
        model = NCMLDensityEstimator(max_steps=50, random_state=0, **options).fit(table if complete else gaps)
    filled = model.complete(gaps, 0, rounds=2)
    assert filled.notna().all(axis=None)
    assert filled.index.equals(gaps.index)
    assert filled.columns.equals(gaps.columns)
    for name in table:
        there = ~gone[name]
        assert (filled.loc[there, name].astype(object) == table.loc[there, name].astype(object)).all(), name
    assert filled.dtypes.astype(str).equals((table if complete else gaps).dtypes.astype(str))
    np.testing.assert_allclose(filled["weight"], 2.0 * filled["size"], rtol=1e-9)  # a copy
    assert (filled["unit"] == "mm").all()
    assert (filled["size"] > 0.0).all()
    assert (filled["count"] == filled["count"].round()).all()
    assert model.complete(gaps, 0, rounds=2).equals(filled)
    assert not model.complete(gaps, 1, rounds=2).equals(filled)
    assert model.complete(table, 0).astype(object).eq(table.astype(object)).all(axis=None)


def short(table, **options):
    """An estimator after hardly any training."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X: .*set aside")
        return NCMLDensityEstimator(max_steps=5, random_state=0, **options).fit(table)


KEPT = {
    "a fraction among integers": (RNG.integers(0, 9, (50, 3)), [[2.5, NAN, 1.0], [3.0, NAN, 1.0]], np.float64),
    "more than a byte": (RNG.integers(0, 9, (50, 3)).astype(np.int8), [[300.0, NAN, 1.0]], np.float64),
    "float64 among float32": (RNG.normal(size=(50, 3)).astype(np.float32), [[0.1, NAN, 1e300]], np.float64),
    "float32": (RNG.normal(size=(50, 3)).astype(np.float32), [[0.5, NAN, 0.25]], np.float32),
    "integers": (RNG.integers(0, 9, (50, 3)), [[2.0, NAN, 1.0]], np.int64),
    "integers that are no floats": (RNG.integers(0, 9, (50, 3)), np.array([[2**53 + 1, 2, 3]]), np.int64),
    "a fraction among objects": (RNG.integers(0, 9, (50, 3)).astype(object), [[2.5, None, 1]], object),
}


@pytest.mark.parametrize("case", KEPT)
def test_cells_that_are_there_stay_as_they_are(case):
    """In floats where the type of the training table could not hold them."""
    table, X, dtype = KEPT[case]
    filled = short(table).complete(X, 0, rounds=1)
    assert filled.dtype == dtype
    X = np.asarray(X, dtype=object)
    there = ~pd.isna(X)
    assert filled[there].tolist() == X[there].tolist()
    assert np.isfinite(filled.astype(float)).all()
    if "float32" not in case:
        assert (filled[~there].astype(float) % 1.0 == 0.0).all()


def test_cells_of_data_frames_stay_as_they_are(monkeypatch):
    """Column by column: the type changes only where it could not hold a value; what is drawn is within its range."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    table = pd.DataFrame(
        {
            "count": RNG.integers(0, 9, 50),
            "id": pd.array(RNG.integers(0, 9, 50), dtype="Int64"),
            "flag": RNG.random(50) < 0.5,
            "other": RNG.integers(0, 9, 50),
            "kind": pd.Categorical(RNG.choice(["bolt", "nut"], 50)),
            "few": pd.arrays.SparseArray((RNG.random(50) < 0.2).astype(float)),
        }
    )
    X = pd.DataFrame(
        {
            "count": [2.5, NAN, NAN, 1.0, NAN],
            "id": pd.array([2**53 + 1, None, None, 3, 4], dtype="Int64"),
            "flag": [0.25, NAN, NAN, NAN, NAN],
            "other": [1.0, NAN, NAN, 2.0, 5.0],
            "kind": pd.Categorical([None, "nut", None, "nut", "bolt"]),
            "few": pd.arrays.SparseArray([NAN, 1.0, 0.0, NAN, 0.0]),
        },
        index=[3, 1, 1, 0, 2],
    )
    filled = short(table).complete(X, 0, rounds=1)
    assert filled.index.equals(X.index)
    assert filled.dtypes.astype(str).tolist() == [
        "float64",
        "Int64",
        "float64",
        "int64",
        "category",
        "Sparse[float64, nan]",
    ]
    for name in X:
        there = X[name].notna().to_numpy()
        assert filled[name][there].tolist() == X[name][there].tolist(), name
    assert filled.notna().all(axis=None)
    assert filled["flag"][1:].isin([0.0, 1.0]).all()
    assert (filled["count"][1:] % 1.0 == 0.0).all()


def test_copies_are_of_what_is_there():
    """Also where that is off the lattice or beyond the bounds; equal columns to the last digit."""
    X = np.column_stack([RNG.poisson(4.0, 50), RNG.lognormal(size=50), RNG.normal(size=50)])
    table = np.column_stack([X, 2.0 * X[:, 0] + 1.0, 3.0 * X[:, 1], X[:, 2]])
    model = short(table, bounds={1: (0, None)})
    filled = model.complete([[2.5, -1.0, 0.1, NAN, NAN, NAN], [NAN, NAN, NAN, 9.0, 3.0, 0.1]], 0, rounds=1)
    assert filled[0, [0, 1, 2, 3, 5]].tolist() == [2.5, -1.0, 0.1, 6.0, 0.1]
    assert filled[0, 4] == pytest.approx(-3.0)
    np.testing.assert_allclose(filled[1], [4.0, 1.0, 0.1, 9.0, 3.0, 0.1])


def test_categories_that_copy_numbers_have_a_last_one():
    """The numbers are drawn without bounds, their names are not."""
    number = RNG.integers(0, 3, 50)
    kind = pd.Categorical(np.array(["a", "b", "c"])[number])
    model = short(pd.DataFrame({"number": number, "x": RNG.normal(size=50), "kind": kind}))
    X = pd.DataFrame({"number": [7, -1, 1], "x": 0.0, "kind": pd.Categorical([None] * 3, categories=["a", "b", "c"])})
    assert model.complete(X, 0)["kind"].tolist() == ["c", "a", "b"]
    draws = model.form.decode(model.columns_.from_model(torch.tensor([[5.0, 0.0], [-5.0, 0.0]])))  # as sample has it
    assert draws["kind"].tolist() == ["c", "a"]
    assert not draws["number"].between(0, 2).any()


@pytest.mark.parametrize("head", ["logistic", "gaussian"])
def test_rows_far_from_all_others_are_filled(head):
    """With finite numbers, though no candidate has a weight, and without a warning, beyond the bounds too."""
    X = np.column_stack([RNG.uniform(size=50), RNG.lognormal(size=50), RNG.normal(size=50)])
    density = lambda shape, process: MADE(shape, process, hidden=(8,), components=2, head=head)  # noqa: E731
    model = short(X, density=density, bounds={0: (0, 1), 1: (0, None)})
    rows = np.array([[-1.0, NAN, NAN], [NAN, -1.0, NAN], [NAN, NAN, 1e12], [NAN, NAN, -1e308], [2.0, 1e300, NAN]])
    filled = model.complete(rows, 0)
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[~np.isnan(rows)], rows[~np.isnan(rows)])
    far = short(X[:, [2]] + X, density=density)
    assert np.isfinite(far.complete([[NAN, 1e150, NAN]], 0)).all()


def small(shape, process):
    return MarginalMADE(shape, process, hidden=(32, 32), components=4, data_std=1.0)


def small_with_gaps(shape, process):
    return MarginalMADE(shape, process, hidden=(8,), components=2)


def test_completions_of_a_gaussian():
    """Means and variances given what is there, of a density trained on rows with gaps: within a tenth of the scale."""
    root = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.6, 0.2, 0.7]])
    X = np.random.default_rng(0).normal(size=(3000, 3)) @ root.T
    gone = np.random.default_rng(1).random(X.shape) < 0.2
    model = NCMLDensityEstimator(small, max_steps=600, random_state=0).fit(np.where(gone, NAN, X))
    covariance = root @ root.T
    filled = model.complete(np.tile([[NAN, 0.5, NAN]], (1000, 1)), 0)
    slope = covariance[[0, 2], 1] / covariance[1, 1]
    rest = covariance[np.ix_([0, 2], [0, 2])] - np.outer(slope, covariance[1, [0, 2]])
    np.testing.assert_allclose(filled[:, [0, 2]].mean(0), 0.5 * slope, atol=0.1)
    np.testing.assert_allclose(np.cov(filled[:, [0, 2]].T), rest, atol=0.1)
    empty = model.complete(np.full((1000, 3), NAN), 0)
    np.testing.assert_allclose(np.cov(empty.T), covariance, atol=0.15)


def test_what_fills_beside_a_value_far_off_can_be_trained_on():
    X = np.column_stack([RNG.normal(size=200), RNG.poisson(5, 200), RNG.lognormal(size=200)])
    bounds = {2: (0, None)}
    model = NCMLDensityEstimator(small, max_steps=60, random_state=0, bounds=bounds).fit(X)
    filled = np.concatenate([model.complete([[0.0, far, NAN]], 0) for far in (1e5, 1e7, -1e7, 1e9, -1e9)])
    assert filled[:, 2].max() > 1e6
    X[:5, 2] = filled[:, 2]
    short(X, bounds=bounds)


# In a pipeline.


def holed(X, seed=1):
    return np.where(np.random.default_rng(seed).random(X.shape) < 0.2, NAN, X)


def test_an_imputer_fits_again_to_whole_rows():
    """Like two fits by hand; once where no value is missing."""
    X = holed(RNG.normal(size=(80, 3)))
    estimator = NCMLDensityEstimator(max_steps=5, random_state=0)
    once, twice = (NCMLImputer(estimator, fits=fits, rounds=2, random_state=3).fit(X) for fits in (1, 2))
    assert once.estimator_.marginal_
    assert not twice.estimator_.marginal_
    seed = twice._seed
    whole = estimator.fit(X).complete(X, seed, rounds=2)
    assert np.array_equal(once.transform(X), whole)
    assert np.array_equal(twice.transform(X), clone(estimator).fit(whole).complete(X, seed, rounds=2))
    assert np.array_equal(twice.transform(X), twice.transform(X))
    assert not np.array_equal(NCMLImputer(estimator, fits=1, rounds=2, random_state=4).fit_transform(X), whole)
    complete = NCMLImputer(estimator, fits=3).fit(whole)
    assert not complete.estimator_.marginal_
    assert np.isfinite(complete.transform(X)).all()


@pytest.mark.parametrize(("gaps", "fits"), [(False, 1), (True, 3)])
def test_an_imputer_fits_as_often_as_it_says(gaps, fits):
    """Once where nothing is missing, also if gaps may come; else every fit is to what the one before filled."""
    calls = []

    def counted(shape, process):
        calls.append(shape)
        return small_with_gaps(shape, process)

    X = pd.DataFrame({"a": RNG.normal(size=50), "n": pd.array(RNG.poisson(2, 50), "Int64"), "kind": ["x", "y"] * 25})
    table = X.mask(RNG.random(X.shape) < 0.2) if gaps else X
    estimator = NCMLDensityEstimator(counted, categories=["kind"], missing=True, max_steps=2, random_state=0)
    imputer = NCMLImputer(estimator, fits=3, rounds=1, random_state=0).fit(table)
    assert len(calls) == fits
    filled = table
    for _ in range(fits):
        filled = estimator.fit(filled).complete(table, imputer._seed, rounds=1)
    pd.testing.assert_frame_equal(imputer.transform(table), filled)


@pytest.mark.parametrize(("gaps", "fits"), [(False, 1), (True, 3)])
def test_an_imputer_whose_density_asks_for_gaps_fits_as_often(gaps, fits):
    """By default the second density is one of whole rows, and the third as well."""
    X = RNG.normal(size=(50, 2))
    X = holed(X) if gaps else X
    estimator = NCMLDensityEstimator(max_steps=2, random_state=0)
    imputer = NCMLImputer(estimator, fits=3, rounds=1, random_state=0).fit(X.tolist())
    filled = X
    for _ in range(fits):
        filled = estimator.fit(filled).complete(X, imputer._seed, rounds=1)
    assert np.array_equal(imputer.transform(X), filled)


def test_an_imputer_before_a_classifier():
    """Data frames with categories, whose types the next step sees; parameters of the density in a search."""
    table, gone = mixed()
    gaps = table.drop(columns="unit").mask(gone.set_axis(table.index).drop(columns="unit"))
    gaps["kind"] = gaps["kind"].astype("category")
    y = (table["size"] > 1.0).to_numpy()
    estimator = NCMLDensityEstimator(bounds={"size": (0, None)}, random_state=0)
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["kind"]), remainder="passthrough")
    pipe = make_pipeline(
        NCMLImputer(estimator, rounds=1, random_state=0), encode, RandomForestClassifier(random_state=0)
    )
    search = GridSearchCV(pipe, {"ncmlimputer__estimator__max_steps": [10, 20]}, cv=2, error_score="raise")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X: .*set aside")
        assert search.fit(gaps, y).best_score_ > 0.8
    imputer = search.best_estimator_[0]
    assert imputer.get_feature_names_out().tolist() == list(gaps)
    filled = imputer.set_output(transform="pandas").transform(gaps[::-1])
    assert filled.index.equals(gaps.index[::-1])
    assert filled.dtypes.equals(gaps.dtypes)
    assert filled.notna().all(axis=None)
    imputer.set_params(draws=3)
    assert imputer.transform(gaps)["kind"].isin(["bolt", "nut"]).all()


def test_an_imputers_seed_is_all_that_varies():
    """The estimator has one of its own only if it is given."""
    X = holed(RNG.normal(size=(50, 2)))
    imputer = NCMLImputer(NCMLDensityEstimator(max_steps=5), random_state=0)
    filled = imputer.fit_transform(X)
    assert np.array_equal(filled, clone(imputer).fit_transform(X))
    assert imputer.estimator.random_state is None
    weights = [
        NCMLImputer(NCMLDensityEstimator(max_steps=5, random_state=3), fits=1, random_state=seed).fit(X).estimator_
        for seed in (0, 1)
    ]
    assert np.array_equal(*(model.score_samples(X) for model in weights))


@pytest.mark.parametrize(("missing", "taken"), [(None, True), (True, True), (False, False)])
def test_an_imputer_takes_the_gaps_that_its_estimator_takes(missing, taken):
    assert get_tags(NCMLImputer(NCMLDensityEstimator(missing=missing))).input_tags.allow_nan is taken
    assert get_tags(NCMLImputer()).input_tags.allow_nan


def test_an_imputer_forgets_the_names_of_an_earlier_fit():
    X = RNG.normal(size=(50, 2))
    imputer = NCMLImputer(NCMLDensityEstimator(max_steps=5), random_state=0)
    assert imputer.fit(pd.DataFrame(X, columns=["a", "b"])).get_feature_names_out().tolist() == ["a", "b"]
    assert imputer.fit(X).get_feature_names_out().tolist() == ["x0", "x1"]


def test_medians_vary_less_than_draws():
    """Of a Gaussian the median is the mean: the error is that of the best prediction, and of draws sqrt(2) times it."""
    root = np.array([[1.0, 0.0], [0.8, 0.6]])
    X = np.random.default_rng(0).normal(size=(2000, 2)) @ root.T
    gaps = X.copy()
    gaps[:400, 1] = NAN
    imputer = NCMLImputer(NCMLDensityEstimator(small, max_steps=400, random_state=0), rounds=1, random_state=0).fit(
        gaps
    )
    errors = [np.std(imputer.set_params(draws=n).transform(gaps)[:400, 1] - X[:400, 1]) for n in (1, 25)]
    np.testing.assert_allclose(errors, [0.6 * np.sqrt(2.0), 0.6], rtol=0.15)  # four standard errors are 0.14


def test_draws_are_between_the_bounds():
    """Never on one, so that filled tables can be trained on; on a lattice they may be."""
    X = np.column_stack(
        [RNG.uniform(size=50), 1e3 + RNG.lognormal(size=50), 5.0 - RNG.lognormal(size=50), RNG.poisson(2, 50)]
    )
    bounds = {0: (0, 1), 1: (1e3, None), 2: (None, 5), 3: (0, None)}
    model = short(X, bounds=bounds)
    drawn = model.columns_.from_model(torch.tensor([[60.0] * 4, [-60.0] * 4], dtype=F64))  # further than one ulp tells
    np.testing.assert_allclose(drawn[:, 0], [1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose([drawn[1, 1], drawn[0, 2]], [1e3, 5.0], rtol=1e-15)
    assert drawn[1, 3] == 0.0
    short(np.concatenate([X, drawn]), bounds=bounds)


@pytest.mark.parametrize("kind", [np.float32, "Float32", pd.SparseDtype("float32")])
def test_draws_of_fewer_digits_are_between_the_bounds(kind):
    X = np.column_stack([RNG.uniform(0.01, 0.99, 50), RNG.lognormal(size=50) - 0.1])
    table = pd.DataFrame(X, columns=["share", "size"]).astype(kind) if kind != np.float32 else X.astype(kind)
    bounds = {0: (0, 1), 1: (-0.1, None)}
    model = short(table, bounds=bounds)
    drawn = model.form.decode(model.columns_.from_model(torch.tensor([[60.0] * 2, [-60.0] * 2], dtype=F64)))
    values = np.asarray(drawn, np.float64)
    assert (values > [0.0, -0.1]).all()
    assert (values[:, 0] < 1.0).all()
    np.testing.assert_allclose(values[:, 0], [1.0, 0.0], atol=1e-7)
    short(pd.concat([table, drawn]) if kind != np.float32 else np.concatenate([table, drawn]), bounds=bounds)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"fits": 0}, ArgumentError, "fits: got 0"),
        ({"draws": 0}, ArgumentError, "draws: got 0"),
        ({"rounds": -1}, ArgumentError, "rounds: got -1"),
        ({"estimator": "mean"}, ArgumentTypeError, "estimator: got str"),
    ],
)
def test_what_an_imputer_refuses(settings, error, message):
    imputer = NCMLImputer(**settings)
    with pytest.raises(error, match=message):
        imputer.fit(holed(RNG.normal(size=(50, 2))))
    assert not hasattr(imputer, "estimator_")


def test_an_imputer_refuses_a_flow_at_once():
    flow = NCMLDensityEstimator(lambda shape, process: MAF(shape, process, hidden=(8,)), max_steps=5)
    with pytest.raises(UnsupportedError, match=r"^estimator\.density: got a MAF; expected a CellDensity"):
        NCMLImputer(flow).fit(RNG.normal(size=(50, 2)))  # without gaps, and nothing to fill yet


def test_shows_its_progress(capsys):
    model = NCMLDensityEstimator(max_steps=5, random_state=0, verbose=1).fit(RNG.normal(size=(50, 2)))
    capsys.readouterr()
    model.complete([[NAN, 0.0]], 0)
    assert "complete" in capsys.readouterr().err


def test_what_completion_refuses():
    X = RNG.normal(size=(50, 2))
    with pytest.raises(NotFittedError):
        NCMLDensityEstimator().complete(X)
    model = NCMLDensityEstimator(max_steps=5, random_state=0).fit(X)
    with pytest.raises(ArgumentError, match="rounds: got -1"):
        model.complete(X, rounds=-1)
    with pytest.raises(ArgumentError, match="draws: got 0"):
        model.complete(X, draws=0)
    with pytest.raises(ValueError, match="infinity"):
        model.complete([[np.inf, NAN]])
    with pytest.raises(ValueError, match="3 features"):
        model.complete(np.ones((2, 3)))
    flow = NCMLDensityEstimator(lambda shape, process: MAF(shape, process, hidden=(8,)), max_steps=5).fit(X)
    with pytest.raises(UnsupportedError, match="complete: got a MAF; expected a CellDensity"):
        flow.complete([[NAN, 0.0]])
