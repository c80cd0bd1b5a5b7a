"""The density estimator: scikit-learn's contract, the units of every kind of column, samples, early stopping."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ncml import VPSDE, SampleableDensity
from ncml.densities import MADE, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError, MissingExtraError
from ncml.estimator import Columns, NCMLDensityEstimator, NCMLImputer, NCMLOutlierDetector
from ncml.estimator.defaults import default_density, dropout_for
from ncml.objective import AtZero
from tests.statistics import ks_bound, ks_distance


class Tiny:
    """A factory whose name is the same in every process: tests are called after it."""

    def __init__(self, made=MADE):
        self.made = made

    def __call__(self, event_shape, process):
        return self.made(event_shape, process, hidden=(8,), components=2)

    def __repr__(self):
        return f"tiny {self.made.__name__}"


FAST = NCMLDensityEstimator(Tiny(), missing=False, max_steps=5)
GAPPY = NCMLDensityEstimator(Tiny(MarginalMADE), max_steps=5)


@pytest.mark.filterwarnings("ignore")  # its tables have constant columns and too few rows for p-values
@parametrize_with_checks([FAST, GAPPY, NCMLOutlierDetector(GAPPY), NCMLImputer(GAPPY)])
def test_contract_of_scikit_learn(estimator, check):
    if check.func.__name__ != "check_array_api_input":  # which wants a switch of scipy's; neither claims that support
        check(estimator)


@pytest.mark.parametrize("device", ["gpu", "xla"])
def test_devices_that_are_not_there_are_named(device):
    with pytest.raises(ArgumentError, match=f"device: got '{device}', which torch cannot use"):
        NCMLDensityEstimator(Tiny(), max_steps=1, device=device).fit(np.random.default_rng(0).normal(size=(20, 2)))


def test_a_bar_without_tqdm_is_refused_in_words_of_the_estimator_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match=r"tqdm is not installed; pip install tqdm, or .*verbose=0"):
        NCMLDensityEstimator(Tiny(), max_steps=1, verbose=1).fit(np.random.default_rng(0).normal(size=(20, 2)))


class Normal(SampleableDensity):
    """N(0, 1 + sigma(t)^2) in every column; its parameter changes nothing."""

    def __init__(self, event_shape, process):
        super().__init__(event_shape, process)
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, context=None, *, edges=True):
        variance = 1.0 + self.process.sigma(t)[:, None].to(x.dtype) ** 2
        return -0.5 * (x**2 / variance + (2.0 * torch.pi * variance).log()).sum(1) + 0.0 * self.nothing

    def sample(self, n, t=0.0, context=None, *, generator=None):
        std = (1.0 + self.process.sigma(t)[:, None].to(self.dtype) ** 2).sqrt()
        return std * torch.randn(n, *self.event_shape, generator=generator, dtype=self.dtype)


def fitted(X, **settings):
    return NCMLDensityEstimator(Normal, max_steps=1, random_state=0, **settings).fit(X)


RNG = np.random.default_rng(0)
REAL = RNG.normal(size=4000)
KINDS = {
    "real": (1e6 * REAL + 3e7, None),
    "small": (1e-4 * REAL, None),
    "positive": (np.exp(REAL), (0.0, None)),
    "negative": (5.0 - 100.0 * np.exp(REAL), (None, 5.0)),
    "share": (1.0 / (1.0 + np.exp(-2.0 * REAL)), (0.0, 1.0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one_in_the_units_of_the_table(kind):
    """Power: without the scale, or the derivative of the logarithm, it comes to something else."""
    x, ends = KINDS[kind]
    bounds = None if ends is None else {0: ends}
    model = fitted(x[:, None], bounds=bounds)
    low, high = x.min() - 3.0 * np.ptp(x), x.max() + 3.0 * np.ptp(x)
    if ends is not None:
        low, high = low if ends[0] is None else ends[0], high if ends[1] is None else ends[1]
    # Finer towards the ends, where a bounded density may be steep.
    grid = low + (high - low) * np.sin(0.5 * np.pi * np.linspace(0.0, 1.0, 200_001)) ** 4 if ends else None
    grid = np.linspace(low, high, 200_001) if grid is None else np.union1d(grid, high - (grid - low))
    density = np.exp(model.score_samples(grid[:, None]))
    assert integrate.trapezoid(density, grid) == pytest.approx(1.0, abs=2e-4)
    if ends is not None:
        outside = [v for v, end in ((low - 1.0, ends[0]), (high + 1.0, ends[1])) if end is not None]
        assert (model.score_samples(np.array(outside)[:, None]) == -np.inf).all()


LATTICES = {"integers": 1.0, "tenths": 0.1, "dozens": 12.0, "codes": 1.0}


@pytest.mark.parametrize("kind", LATTICES)
def test_lattice_columns_have_masses(kind):
    """The average over a step is the normal's mass of the step over its width, and the masses sum to one."""
    step = LATTICES[kind]
    x = step * np.round(1.5 * REAL) if kind != "codes" else (REAL > 0).astype(float)
    model = fitted(x[:, None], dequantisations=512)
    columns = model.columns_
    assert columns.width[0] == pytest.approx(step)
    values = step * np.arange(-40, 41)
    ends = (values[:, None] + step * np.array([-0.5, 0.5]) - columns.centre[0]) / columns.scale[0]
    mass = np.exp(model.score_samples(values[:, None])) * step
    np.testing.assert_allclose(mass, norm.cdf(ends[:, 1]) - norm.cdf(ends[:, 0]), atol=2e-3)
    assert mass.sum() == pytest.approx(1.0, abs=1e-3)


def test_bounded_integers():
    """Counts from 0 on: a step around 0 reaches to -1/2, and the logarithm starts there."""
    x = np.floor(3.0 * np.exp(0.5 * REAL))
    model = fitted(x[:, None], bounds={"x0": (0, None)}, dequantisations=512)
    mass = np.exp(model.score_samples(np.arange(400.0)[:, None]))
    assert mass.sum() == pytest.approx(1.0, abs=5e-3)
    draws = model.sample(500, random_state=0)
    assert (draws >= 0).all()
    assert (draws == np.round(draws)).all()


def test_tied_columns_are_spread_and_real_ones_are_not():
    rain = np.where(REAL > 0.0, np.exp(REAL), 0.0)
    width = Columns.of(np.stack([rain, REAL], 1), ["rain", "real"]).width
    assert width[0] > 0.0
    assert width[1] == 0.0


def test_noise_is_in_units_of_the_scale():
    model = fitted(KINDS["real"][0][:, None])
    c, s = model.columns_.centre[0], model.columns_.scale[0]
    expected = norm.logpdf((c + s - c) / s, scale=np.sqrt(1.0 + 0.7**2)) - np.log(s)
    assert model.score_samples([[c + s]], t=0.7)[0] == pytest.approx(expected)


def test_rain_within_bounds():
    """Zeros of a bounded column are drawn as zeros, not spread below them."""
    rain = np.where(REAL > 0.0, np.exp(REAL), 0.0)[:, None]
    drawn = fitted(rain, bounds={0: (0.0, None)}).sample(2000, random_state=0)
    assert drawn.min() == 0.0


def mixed(n=400):
    rng = np.random.default_rng(1)
    size = rng.lognormal(size=n)
    return pd.DataFrame(
        {
            "size": size,
            "count": rng.poisson(3.0, n),
            "flag": rng.random(n) < 0.3,
            "constant": np.full(n, 7.0),
            "size in inches": size / 2.54 + 1.0,
        }
    )


def test_mixed_columns_there_and_back():
    frame = mixed()
    with pytest.warns(UserWarning, match=r"set aside: (constant|size in inches \(of size\))"):
        model = fitted(frame, bounds={"size": (0.0, None)})
    drawn = model.sample(50, random_state=0)
    assert drawn.dtypes.equals(frame.dtypes)
    assert list(drawn.columns) == list(frame.columns)
    assert (drawn["size"] > 0).all()
    assert (drawn["constant"] == 7.0).all()
    np.testing.assert_allclose(drawn["size in inches"], drawn["size"] / 2.54 + 1.0)
    assert drawn.equals(model.sample(50, random_state=0))
    assert np.isfinite(model.score_samples(drawn)).all()


def test_samples_have_the_distribution():
    x, ends = KINDS["share"]
    model = fitted(x[:, None], bounds={0: ends})
    drawn = model.sample(2000, random_state=0)[:, 0]
    z, _ = model.columns_.to_model(torch.from_numpy(model.columns_.standardise(drawn[:, None])))
    assert ks_distance(z[:, 0], norm.cdf) < ks_bound(2000)


def test_early_stopping_keeps_the_best_weights():
    """Sixty rows in ten columns are soon overfitted; the weights kept give the best held-out likelihood again."""
    X = np.random.default_rng(0).normal(size=(60, 10))
    model = NCMLDensityEstimator(
        lambda s, p: MADE(s, p, hidden=(64,), components=4),
        max_steps=400,
        learning_rate=1e-2,
        validation_fraction=0.3,
        patience=4,
        random_state=0,
    ).fit(X)
    assert model.n_iter_ < len(model.losses_) < 400
    held = X[np.random.RandomState(0).permutation(60)[:18]]
    assert model.score(held) == pytest.approx(model.validation_score_, abs=1e-3)


def test_seeds_repeat_and_leave_the_generators_alone():
    X = REAL[:200].reshape(100, 2)
    state = torch.get_rng_state()
    first, second = (clone(FAST).set_params(random_state=3, max_steps=30).fit(X).score_samples(X) for _ in range(2))
    assert (first == second).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert (clone(FAST).set_params(random_state=4, max_steps=30).fit(X).score_samples(X) != first).any()


def test_pipelines_searches_and_pickles():
    X = REAL[:600].reshape(200, 3)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), clone(FAST).set_params(random_state=0, times=AtZero())),
        {"ncmldensityestimator__max_steps": [1, 200]},
        cv=2,
    ).fit(X)
    assert search.best_params_ == {"ncmldensityestimator__max_steps": 200}
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert (again.score_samples(X) == search.best_estimator_.score_samples(X)).all()


def test_searches_over_numbers_of_numpy():
    X = REAL[:120].reshape(60, 2)
    search = GridSearchCV(FAST, {"batch_size": np.array([16, 32])}, cv=2, error_score="raise").fit(X)
    assert search.best_params_["batch_size"] in (16, 32)


def test_categories_by_an_encoder():
    """Codes are integers: their probabilities are near their shares, and sum to one nearly."""
    colours = np.array(["blue", "green", "red"])[np.random.default_rng(0).choice(3, p=[0.2, 0.7, 0.1], size=1000)]
    model = make_pipeline(
        OrdinalEncoder(),
        NCMLDensityEstimator(
            lambda s, p: MADE(s, p, hidden=(16,), components=6), max_steps=400, random_state=0, learning_rate=1e-2
        ),
    ).fit(colours[:, None])
    mass = np.exp(model.score_samples(np.array([["blue"], ["green"], ["red"]])))
    np.testing.assert_allclose(mass, [0.2, 0.7, 0.1], atol=0.08)
    assert mass.sum() == pytest.approx(1.0, abs=0.08)


def frame_with(column):
    return pd.DataFrame({"a": REAL[:10], "b": column})


WRONG = {
    "missing": (lambda: FAST.fit(frame_with([np.nan, *REAL[:9]])), ArgumentError, "NaN in b"),
    "strings": (lambda: FAST.fit(frame_with(list("abcdefghij"))), ArgumentError, r"columns b \(.*categories=\['b'\]"),
    "one value": (lambda: FAST.fit(np.ones((9, 2))), ArgumentError, "several values"),
    "no such column": (lambda: fitted(REAL[:, None], bounds={"x7": (0, 1)}), ArgumentError, "names of columns"),
    "beyond a bound": (lambda: fitted(REAL[:, None], bounds={0: (0, None)}), ArgumentError, "values lie in"),
    "on a bound": (
        lambda: fitted(np.abs(REAL)[:, None], bounds={0: (np.abs(REAL).min(), None)}),
        ArgumentError,
        "on a",
    ),
    "no steps": (lambda: clone(FAST).set_params(max_steps=0).fit(REAL[:, None]), ArgumentError, "max_steps"),
    "all held out": (
        lambda: clone(FAST).set_params(validation_fraction=1.0).fit(REAL[:, None]),
        ArgumentError,
        "share",
    ),
    "a share in words": (
        lambda: clone(FAST).set_params(validation_fraction="a tenth").fit(REAL[:, None]),
        ArgumentError,
        "validation_fraction: got 'a tenth'; expected a share",
    ),
    "one bound": (lambda: fitted(REAL[:, None], bounds={0: 3}), ArgumentError, "bounds: got 3 for 0; expected two"),
    "half a pair": (lambda: fitted(REAL[:, None], bounds={0: (3,)}), ArgumentError, r"got \(3,\) for 0; expected two"),
    "bounds in words": (lambda: fitted(REAL[:, None], bounds={0: ("a", 1)}), ArgumentError, "expected two numbers"),
    "a density": (lambda: NCMLDensityEstimator("made").fit(REAL[:, None]), ArgumentTypeError, "function"),
    "a density, made": (
        lambda: NCMLDensityEstimator(MADE((1,), VPSDE.at_noise(0.5))).fit(REAL[:, None]),
        ArgumentTypeError,
        "density: got MADE; expected a function of",
    ),
    "not fitted": (lambda: clone(FAST).sample(1), NotFittedError, "not fitted"),
    "other names": (lambda: fitted(frame_with(REAL[:10])).score(mixed()), ValueError, "feature names"),
}


@pytest.mark.filterwarnings("ignore")  # of columns set aside
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_rows_beside_a_bound_do_not_stop_the_training():
    """P-values: some are so small that single precision would put them on the bound. As with the logit by hand."""
    rng = np.random.default_rng(7)

    def table(n):
        p = rng.random(n)
        small = rng.random(n) < 0.3
        p[small] = 10.0 ** -rng.uniform(1.0, 12.0, small.sum())
        return np.column_stack([p, rng.normal(size=n)])

    X, Y = table(600), table(600)
    settings = {"max_steps": 100, "learning_rate": 3e-3, "random_state": 0}
    model = NCMLDensityEstimator(bounds={0: (0.0, 1.0)}, **settings).fit(X)
    assert np.isfinite(model.validation_score_)
    assert model.n_iter_ > 25
    logits = [np.column_stack([np.log(A[:, 0]) - np.log1p(-A[:, 0]), A[:, 1]]) for A in (X, Y)]
    by_hand = NCMLDensityEstimator(**settings).fit(logits[0])
    slope = -np.log(Y[:, 0]) - np.log1p(-Y[:, 0])
    assert model.score(Y) == pytest.approx(by_hand.score(logits[1]) + slope.mean(), abs=0.05)


class Edged(MADE):
    """Trained, it has no density for first values above 1."""

    def forward(self, x, t, context=None, *, edges=True):
        log_p = super().forward(x, t, context, edges=edges)
        return log_p if self.training else log_p.masked_fill(x[:, 0] > 1.0, -torch.inf)


def test_held_out_rows_without_a_density_do_not_decide_alone():
    """The best weights are looked for by the other rows; the likelihood says that there were some."""
    X = np.random.default_rng(8).normal(size=(400, 2))
    X[:, 1] = X[:, 0] ** 2 + 0.1 * X[:, 1]
    model = NCMLDensityEstimator(Tiny(Edged), learning_rate=1e-2, max_steps=150, random_state=0).fit(X)
    assert model.n_iter_ > 25
    assert model.validation_score_ == -np.inf


@pytest.mark.parametrize(("rows", "columns", "dropout"), [(2, 9, 0.6), (20, 4, 0.5), (80, 4, 0.3), (640, 4, 0.0)])
def test_the_fewer_rows_for_every_column_the_more_units_drop(rows, columns, dropout):
    assert dropout_for(rows, columns) == pytest.approx(dropout)
    assert dropout_for(1000 * rows, columns) == 0.0


@pytest.mark.parametrize("missing", [False, True])
def test_the_default_densities_drop_as_many_units_as_the_rows_want(missing):
    X = np.random.default_rng(0).normal(size=(80, 4))
    fitted = NCMLDensityEstimator(missing=missing, max_steps=1, random_state=0).fit(X)
    assert fitted.density_.net.dropout.p == dropout_for(80, 4) > 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dropout_keeps_a_few_rows_from_being_learned_by_heart(seed):
    X = np.random.default_rng(seed).permutation(load_wine().data)
    without = {"density": lambda shape, process: default_density(shape, process, dropout=0.0)}
    fitted, other = (NCMLDensityEstimator(**how, random_state=seed).fit(X[:100]) for how in ({}, without))
    assert fitted.score(X[100:]) > other.score(X[100:]) + 0.5  # it is 1.0 to 1.6
