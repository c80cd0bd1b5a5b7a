"""The outlier detector and the shift test: closed forms, false-alarm rates that hold, signs."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import betabinom
from torch.distributions import MultivariateNormal

import ncml.estimator
from ncml import LevelNoise, LinearVESDE, NoiseConditionalDensity
from ncml.densities import MADE, CallableDensity
from ncml.errors import ArgumentError, MissingExtraError, UnsupportedError
from ncml.estimator import FeatureShift, NCMLDensityEstimator, NCMLOutlierDetector, shift_statistic
from ncml.estimator.neighbours import Neighbours
from ncml.estimator.shift import max_p_values

RHO = 0.7
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


class Correlated(NoiseConditionalDensity):
    """N(0, C + sigma(t)^2 I) with correlation RHO; its parameter changes nothing."""

    def __init__(self, event_shape, process):
        super().__init__(event_shape, process)
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, context=None, *, edges=True):
        noise = self.process.sigma(t).to(x.dtype)[:, None, None] ** 2 * torch.eye(2, dtype=x.dtype)
        normal = MultivariateNormal(torch.zeros(2, dtype=x.dtype), COVARIANCE.to(x.dtype) + noise)
        return normal.log_prob(x) + 0.0 * self.nothing


def correlated(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal([0.0, 0.0], COVARIANCE.numpy(), n)


LEVELS = (0.0, 0.3, 1.0)


def detector(X, **settings):
    estimator = NCMLDensityEstimator(Correlated, max_steps=1)
    return NCMLOutlierDetector(estimator, levels=LEVELS, random_state=0, **settings).fit(X)


def ladder(model, X):
    """Log-densities and pulls of the closed form, in the units that the detector found."""
    columns = model.estimator_.columns_
    z = (X[:, columns.kept] - columns.centre) / columns.scale
    covariances = [COVARIANCE.numpy() + sigma**2 * np.eye(2) for sigma in LEVELS]
    log_p = [
        -0.5 * (np.einsum("ni,ij,nj->n", z, np.linalg.inv(c), z) + np.linalg.slogdet(2 * np.pi * c)[1])
        - np.log(columns.scale).sum()
        for c in covariances
    ]
    pulls = [-sigma * z @ np.linalg.inv(c) for sigma, c in zip(LEVELS, covariances, strict=True) if sigma]
    return np.stack(log_p, 1), np.mean(pulls, 0)


def test_scores_and_pulls_of_a_gaussian():
    X, new = correlated(500) * [1.0, 1e5], correlated(20, 1) * [3.0, 1e5]
    model = detector(X, calibration=0.0, n_neighbors=0)
    usual, _ = ladder(model, X[np.random.RandomState(0).permutation(500)])
    log_p, pulls = ladder(model, new)
    expected = ((log_p - usual.mean(0)) / usual.std(0)).min(1)
    np.testing.assert_allclose(model.score_samples(new), expected, rtol=1e-6)
    np.testing.assert_allclose(model.explain(new), pulls, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_distances_to_training_rows(count):
    """Squared differences of values over their variances, and a quarter as much of the ladder; no row is its own."""
    X, new = correlated(400) * [1.0, 1e5], correlated(20, 1) * [3.0, 1e5]
    X[7] = X[30]  # of two equal rows each has the other
    model = detector(X, calibration=0.0, n_neighbors=count)
    (usual, _), (there, _) = ladder(model, X), ladder(model, new)
    ladders = [(part - usual.mean(0)) / usual.std(0) for part in (usual, there)]
    values = [(part - X.mean(0)) / X.std(0) for part in (X, new)]

    def squared(a, b):
        return np.square(a[:, None] - b).sum(2)

    within = squared(values[0], values[0]) + 0.25 * 2 / 3 * squared(ladders[0], ladders[0])
    np.fill_diagonal(within, np.inf)
    across = squared(values[1], values[0]) + 0.25 * 2 / 3 * squared(ladders[1], ladders[0])
    for rows, distances in ((X, within), (new, across)):
        expected = -np.sqrt(np.sort(distances, 1)[:, :count]).mean(1)
        np.testing.assert_allclose(model.score_samples(rows), expected, rtol=1e-5, atol=1e-5)


def test_categories_are_alike_or_not():
    """A difference counts 2 over the probability that two rows differ, whatever the codes; of two, as codes do."""
    rng = np.random.default_rng(0)
    number, kind, side = rng.normal(size=200), rng.choice(4, 200, p=[0.4, 0.3, 0.2, 0.1]), rng.choice(2, 200)
    ladder = rng.normal(size=(200, 3))
    y = np.column_stack([number, kind, side]).astype(float)
    fitted = Neighbours.fit(y, ladder, 5, {1: 4, 2: 2})
    shares = np.bincount(kind) / 200
    expected = np.square(number[:, None] - number) / number.var() + np.square(side[:, None] - side) / side.var()
    expected = expected + (kind[:, None] != kind) * 2.0 / (1.0 - np.square(shares).sum())
    expected += 0.25 * 3 / 3 * np.square(ladder[:, None] - ladder).sum(2)
    np.fill_diagonal(expected, np.inf)
    nearest = np.sqrt(np.sort(expected, 1)[:, :5]).mean(1)
    np.testing.assert_allclose(fitted.distance(y, ladder), nearest, rtol=1e-10)
    y[:, 1] = np.array([2, 0, 3, 1])[kind]
    np.testing.assert_allclose(Neighbours.fit(y, ladder, 5, {1: 4, 2: 2}).distance(y, ladder), nearest, rtol=1e-10)


@pytest.mark.parametrize("number", [100, 101, 2000])
def test_rare_categories_are_as_odd_as_new_ones_whatever_their_number(number):
    """Of names seen a few times each none is odd, nor by its code; one never seen is, unless all are nearly unique."""
    codes = np.random.default_rng(0).choice(number, 4000).astype(float)[:, None]
    nothing = np.zeros((4000, 1))
    fitted = Neighbours.fit(codes, nothing, 1, {0: number + 1})
    v = 1.0 - np.square(np.bincount(codes[:, 0].astype(int)) / 4000).sum()
    np.testing.assert_allclose(fitted.distance(np.array([[number]]), nothing[:1]), np.sqrt(2.0 / v), rtol=1e-6)
    seen_once = np.bincount(codes[:, 0].astype(int))[codes[:, 0].astype(int)] == 1
    np.testing.assert_allclose(fitted.distance(codes, nothing), np.where(seen_once, np.sqrt(2.0 / v), 0.0), atol=1e-6)


@pytest.mark.filterwarnings("ignore:X. constant", "ignore:X. duplicated")
def test_broken_constant_or_copied_categories_are_alike_or_not():
    rng, names = np.random.default_rng(0), list("abcdefghijklmnopqrstuvwxyz")
    kind = rng.choice(names, 300)
    frame = pd.DataFrame({"same": "z", "kind": kind, "copy": kind, "x": rng.normal(size=300)})
    estimator = NCMLDensityEstimator(max_steps=1, categories=dict.fromkeys(("same", "kind", "copy"), names))
    model = NCMLOutlierDetector(estimator, levels=LEVELS, calibration=0.0, random_state=0).fit(frame)
    rows = pd.DataFrame([frame.iloc[0]] * 5)
    rows["same"], other = ["z", "y", "a", "z", "z"], [name for name in names if name != kind[0]]
    rows["copy"] = [kind[0], kind[0], kind[0], other[0], other[-1]]
    log_p = model.log_densities(rows)
    lost = [1.0 / (2.0 * level**2) if level else 0.0 for level in LEVELS]
    np.testing.assert_allclose(log_p[0] - log_p[1:], [lost] * 4, atol=1e-5)
    score = model.score_samples(rows)
    assert score[0] > score[1] + 1.0
    np.testing.assert_allclose(score[1:], score[1], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:X. constant")
def test_the_detector_knows_which_columns_are_categories():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"same": 1.0, "kind": rng.choice(list("abcd"), 300), "x": 5.0 * rng.normal(size=300)})
    estimator = NCMLDensityEstimator(max_steps=1, categories=["kind"])
    model = NCMLOutlierDetector(estimator, levels=LEVELS, calibration=0.0, random_state=0).fit(frame)
    z = (model.log_densities(frame) - model.mean_) / model.std_
    kind, x = frame["kind"].to_numpy(), frame["x"].to_numpy()
    differ = (kind[:, None] != kind) / (1.0 - np.square(frame["kind"].value_counts(normalize=True)).sum())
    squared = 2.0 * differ + np.square(x[:, None] - x) / x.var() + 0.25 * 3 / 3 * np.square(z[:, None] - z).sum(2)
    np.fill_diagonal(squared, np.inf)
    np.testing.assert_allclose(model.score_samples(frame), -np.sqrt(squared.min(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:X. duplicated")
@pytest.mark.parametrize("order", [["kind", "number"], ["number", "kind"]])
def test_a_category_and_its_copy_in_numbers_are_alike_or_not(order):
    """A number that is off by little is off by little; by half a code, the category is another one."""
    rng = np.random.default_rng(0)
    code = rng.choice(5, 300)
    frame = pd.DataFrame({"kind": np.array(list("abcde"))[code], "number": 10.0 * code, "x": rng.normal(size=300)})
    estimator = NCMLDensityEstimator(max_steps=1, categories={"kind": list("abcde")})
    columns = estimator.fit(frame[[*order, "x"]]).columns_
    k, j = order.index("kind"), order.index("number")
    rows = np.zeros((5, 3))
    rows[:, k], rows[:, j] = [1.0, 0.0, 4.0, 1.0, 1.0], [10.0, 10.0, 10.0, 10.5, np.nan]
    found = columns.residuals(rows)
    assert np.abs(found).sum(1)[[0, 1, 2, 4]].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert 0.0 < np.abs(found[3]).sum() < 0.1
    np.testing.assert_array_equal(np.abs(found).sum(0)[[j for j in range(3) if j not in columns.duplicates]], 0.0)


def test_equal_rows_are_equally_odd_however_many_are_scored():
    """Their scores differ by rounding, which must not decide."""
    X = np.random.default_rng(0).integers(0, 2, (300, 2)).astype(float)
    model = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=1), random_state=0).fit(X)
    together = model.p_values(X[:40])
    assert [model.p_values(x[None])[0] for x in X[:40]] == together.tolist()
    perturbed = model.calibration_scores_ - 1e-12
    assert (perturbed >= model.offset_).mean() == (model.calibration_scores_ >= model.offset_).mean()
    assert (model.predict(X) == 1).all()


def test_neighbours_see_where_no_row_has_been():
    """The middle of a ring, where a Gaussian's density is the largest."""
    angle = np.random.default_rng(0).uniform(0.0, 2.0 * np.pi, 1000)
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    for count, odd in ((0, False), (1, True), (5, True)):
        assert (detector(X, n_neighbors=count).p_values([[0.0, 0.0]])[0] <= 0.05) == odd


def test_broken_constants_and_copies_are_odd():
    X = correlated(300)
    X = np.column_stack([X, np.full(300, 4.0), 2.0 * X[:, 0] + 1.0])
    with pytest.warns(UserWarning, match="set aside"):
        model = detector(X)
    rows = np.repeat(X[:1], 3, axis=0)
    rows[1, 2] += 2.0  # the constant, by half its size
    rows[2, 3] -= 8.0  # the copy
    kept, constant, copy = model.score_samples(rows)
    assert min(kept - constant, kept - copy) > 1.0
    pulls = model.explain(rows)
    assert pulls[0, 2] == pulls[0, 3] == 0.0
    assert pulls[1].argmin() == 2
    assert pulls[2].argmax() == 3


@pytest.mark.parametrize("slope", [2.0, -30.0])
def test_pulls_of_broken_rows_are_differences(slope):
    """Of the log-densities, in scales, weighted by the noise: of a constant, of a copy, and of what it copies."""
    X = correlated(300)
    X = np.column_stack([X, np.full(300, 4.0), slope * X[:, 0] + 1.0])
    with pytest.warns(UserWarning, match="set aside"):
        model = detector(X, calibration=0.0)
    scale = model.estimator_.columns_.scale
    scales = np.array([*scale, 4.0, abs(slope) * scale[0]])
    rows = X[:5] + np.array([0.3, -0.2, 1.5, 0.7 * slope])
    expected = np.empty_like(rows)
    for j in range(4):
        step = 1e-4 * scales[j] * np.eye(4)[j]
        slopes = (model.log_densities(rows + step) - model.log_densities(rows - step)) / 2e-4
        expected[:, j] = (slopes * LEVELS)[:, 1:].mean(1)
    np.testing.assert_allclose(model.explain(rows), expected, rtol=1e-6)


def outside(p, n, rate, level=1e-6):
    """Whether false alarms lie outside what one calibration set of n rows allows, with probability ``level``."""
    k = int(rate * (n + 1))
    count = int((p <= rate).sum())
    law = betabinom(len(p), k, n + 1 - k)
    return law.cdf(count) < level / 2 or law.sf(count - 1) < level / 2


RATES = (0.01, 0.05, 0.1)


def test_false_alarm_rates_hold_though_the_density_is_wrong():
    """Columns of Student's t and a correlation that is not there: p-values do not mind."""
    rng = np.random.default_rng(2)
    X = rng.standard_t(3, size=(14000, 2))
    model = detector(X[:6000], calibration=0.5)
    p = model.p_values(X[6000:])
    assert [outside(p, 3000, rate) for rate in RATES] == [False] * 3


def test_planted_calibration_on_training_rows_is_seen():
    """Rows that a density has learned by heart calibrate nothing: new rows all look odd."""
    rng = np.random.default_rng(0)
    train, new = rng.normal(size=(200, 5)), rng.normal(size=(2000, 5))
    calibration = np.sort(-np.linalg.norm(train[:, None] - train, axis=2).min(1))  # each is its own neighbour
    scores = -np.linalg.norm(new[:, None] - train, axis=2).min(1)
    p = (1.0 + np.searchsorted(calibration, scores, side="right")) / 201.0
    assert all(outside(p, 200, rate) for rate in RATES)


DATA = Path(os.environ.get("NCML_DATA", "")) / "adbench"


@pytest.mark.skipif(not DATA.is_dir(), reason="the tables of ADBench are not here")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_false_alarm_rates_hold_on_real_tables():
    """Five small tables, two random splits each: counts of false alarms at 10 %, pooled."""
    alarms, low, high = 0, 0.0, 0.0
    for name in ("4_breastw", "14_glass", "18_Ionosphere", "42_WBC", "45_wine"):
        with np.load(DATA / f"{name}.npz") as table:
            X = table["X"][table["y"] == 0]
        for seed in range(2):
            X = X[np.random.default_rng(seed).permutation(len(X))]
            half = len(X) // 2
            estimator = NCMLDensityEstimator(lambda s, p: MADE(s, p, hidden=(32,), components=4), max_steps=20)
            model = NCMLOutlierDetector(estimator, calibration=0.5, random_state=seed).fit(X[:half])
            n, m = len(model.calibration_scores_), len(X) - half
            law = betabinom(m, k := int(0.1 * (n + 1)), n + 1 - k)
            alarms += int((model.p_values(X[half:]) <= 0.1).sum())
            low, high = low + law.mean(), high + law.var()
    # A sum of ten independent counts: five standard deviations.
    assert abs(alarms - low) < 5.0 * high**0.5


def test_copies_are_broken_in_units_of_the_least_noise_whatever_their_rounding():
    rng = np.random.default_rng(0)
    X = correlated(300)
    exact = np.column_stack([X, 2.0 * X[:, 0] + 1.0])
    rounded, rows = exact.copy(), exact[:3].copy()
    rounded[:, 2] += 1e-7 * rng.normal(size=300)
    rows[:, 2] += 0.5
    with pytest.warns(UserWarning, match="set aside"):
        scores = [detector(table).score_samples(rows) for table in (exact, rounded)]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_thresholds():
    X = correlated(400)
    model = detector(X)
    assert (model.predict(X) == np.where(model.p_values(X) <= 0.05, -1, 1)).all()
    share = detector(X, contamination=0.1)
    assert (share.predict(X) == -1).sum() == 40


def test_names_and_signs_of_pyod():
    X = correlated(400)
    model = detector(X, contamination=0.1)
    pyod = model.to_pyod(X)
    assert (pyod.decision_scores_ == -model.score_samples(X)).all()
    assert (pyod.labels_ == (model.predict(X) == -1)).all()
    assert pyod.contamination == 0.1
    assert pyod.predict(np.array([[0.0, 0.0], [9.0, -9.0]])).tolist() == [0, 1]
    assert (pyod.decision_function(X) > pyod.threshold_).sum() == 40


def test_frames_keep_their_names():
    frame = pd.DataFrame(correlated(100), columns=["left", "right"]).assign(same=1)
    with pytest.warns(UserWarning, match="constant columns are set aside: same"):
        model = detector(frame)
    assert (model.score_samples(frame) == model._score(frame.to_numpy(float))).all()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"left": "port"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, "levels"),
        ({"levels": (0.0,)}, "levels"),
        ({"n_neighbors": -1}, "n_neighbors"),
        ({"calibration": 1.0}, "calibration"),
        ({"contamination": 0.7}, "contamination"),
        ({"levels": 0.5}, "levels: got 0.5; expected noise levels"),
        ({"levels": ("low",)}, "levels"),
        ({"calibration": "half"}, "calibration: got 'half'; expected a share"),
        ({"contamination": "few"}, "contamination: got 'few'; expected 'auto'"),
        ({"contamination": None}, "contamination: got None"),
    ],
)
def test_wrong_settings(settings, message):
    estimator = NCMLDensityEstimator(Correlated, max_steps=1)
    with pytest.raises(ArgumentError, match=message):
        NCMLOutlierDetector(estimator, **settings).fit(correlated(50))


@pytest.mark.parametrize("noise", [-1.0, float("nan"), "much", None])
def test_noise_that_is_no_level(noise):
    shift = FeatureShift(NCMLDensityEstimator(Correlated, max_steps=1), noise=noise)
    with pytest.raises(ArgumentError, match=f"^noise: got {noise!r}; expected a noise level >= 0$"):
        shift.fit(correlated(50), correlated(50))


@pytest.mark.parametrize("name", ["levels", "noise"])
def test_noise_that_the_process_has_not_is_refused_before_training(name):
    def untrained(event_shape, process):
        raise AssertionError("the training began")

    def fit(process):
        estimator = NCMLDensityEstimator(untrained, process=process)
        if name == "levels":
            NCMLOutlierDetector(estimator).fit(correlated(50))
        else:
            FeatureShift(estimator, noise=1.5).fit(correlated(50), correlated(50))

    with pytest.raises(ArgumentError, match=rf"^{name}: got .*; expected noise levels from 0 to 1,"):
        fit(LinearVESDE(1.0))
    with pytest.raises(UnsupportedError, match=f"^{name}: got noise levels under LevelNoise"):
        fit(LevelNoise(5))


def test_p_values_need_calibration():
    with pytest.raises(ArgumentError, match="calibration"):
        detector(correlated(50), calibration=0.0).p_values(correlated(5))


def test_shift_statistic_of_gaussians():
    """Correlation RHO against none: closed forms, within six standard errors of 200,000 rows."""
    process = LinearVESDE(1.0)
    p, q = (
        CallableDensity(
            lambda x, t, c=c: MultivariateNormal(torch.zeros(2, dtype=torch.float64), c).log_prob(x), (2,), process
        )
        for c in (COVARIANCE, torch.eye(2, dtype=torch.float64))
    )
    x, y = torch.from_numpy(correlated(200_000)), torch.randn(200_000, 2, dtype=torch.float64)
    expected_p = RHO**2 / (1 - RHO**2)
    expected_q = RHO**2 * (1 + RHO**2) / (1 - RHO**2) ** 2
    # Squares of normals: their standard deviation is sqrt(2) times their mean.
    bound = 6.0 * (2.0 / 200_000) ** 0.5
    for rows, expected in ((x, expected_p), (y, expected_q)):
        found = shift_statistic(p, q, rows, rows)
        np.testing.assert_allclose(found, [expected] * 2, rtol=bound)
    both = shift_statistic(p, q, x, y)
    np.testing.assert_allclose(both, [(expected_p + expected_q) / 2] * 2, rtol=bound)


def test_adjusted_p_values_are_valid():
    """Without a shift, columns of very different sizes: P(any p <= a) <= a, within six standard errors."""
    rng = np.random.default_rng(0)
    smallest = []
    for _ in range(4000):
        common = rng.exponential(size=(20, 1))  # columns that go together
        smallest.append(max_p_values((common + rng.exponential(size=(20, 4))) * [1.0, 10.0, 1e-3, 1e6]).min())
    for rate in (0.05, 0.1, 0.25, 0.5):
        found = float(np.mean(np.array(smallest) <= rate))
        assert abs(found - rate) < 6.0 * (rate * (1 - rate) / 4000) ** 0.5


def test_a_shifted_column_is_found():
    """The second sample lost the correlation of its first two columns, each of which alone is as before."""
    rng = np.random.default_rng(0)
    X, Y = (np.column_stack([correlated(400, seed), rng.normal(size=400), np.ones(400)]) for seed in (0, 1))
    Y[:, 1] = rng.permutation(Y[:, 1])
    estimator = NCMLDensityEstimator(
        lambda s, p: MADE(s, p, hidden=(16,), components=1), max_steps=100, learning_rate=1e-2
    )
    with pytest.warns(UserWarning, match="constant"):
        shift = FeatureShift(estimator, resamples=9, steps=40, random_state=0).fit(X, Y)
    assert shift.p_values_[:2].tolist() == [0.1, 0.1]  # the smallest possible
    assert shift.p_values_[2] > 0.1
    assert shift.p_values_[3] == 1.0
    assert shift.statistic_[3] == 0.0


def test_the_shift_test_keeps_names():
    """Bounds by name, names in warnings, and a density that takes the frames again."""
    X, Y = (pd.DataFrame(np.exp(correlated(40, seed)), columns=["left", "right"]).assign(same=1) for seed in (0, 1))
    estimator = NCMLDensityEstimator(Correlated, max_steps=1, bounds={"right": (0.0, None)})
    with pytest.warns(UserWarning, match="constant columns are set aside: same"):
        shift = FeatureShift(estimator, resamples=1, steps=1, random_state=0).fit(X, Y)
    assert shift.names_ == ("left", "right", "same")
    assert shift.estimator_.columns_.low.tolist() == [-np.inf, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(shift.estimator_.score_samples(Y)).all()


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"ncml\[sklearn\]"):
        _ = ncml.estimator.FeatureShift


@pytest.mark.parametrize("neighbours", [0, 1])
def test_rows_beyond_everything_are_outliers(neighbours):
    """Beyond a bound, far away, a broken constant: finite scores, the least p-value, and no warning of numpy."""
    rng = np.random.default_rng(11)
    X = np.column_stack([rng.lognormal(size=200), rng.normal(size=200), np.ones(200)])
    estimator = NCMLDensityEstimator(lambda s, p: MADE(s, p, hidden=(8,)), max_steps=20, bounds={0: (0.0, None)})
    model = NCMLOutlierDetector(estimator, n_neighbors=neighbours, random_state=0)
    with pytest.warns(UserWarning, match="set aside"):
        model.fit(X)
    odd = [[-5.0, 0.0, 1.0], [1.0, 1e200, 1.0], [1.0, -1.7e308, 1.0], [1.0, 0.0, 1e200], [1e300, 0.0, 1.0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = model.score_samples(odd)
        p = model.p_values(odd)
    assert np.isfinite(scores).all()
    assert (model.predict(odd) == -1).all()
    np.testing.assert_allclose(p, 1.0 / (len(model.calibration_scores_) + 1))


def test_what_calibration_leaves():
    """A part for calibration that takes all values of a column, or all that differ, is named, and not the table."""
    X = np.random.default_rng(12).normal(size=(40, 2))
    X[:, 1] = np.nan
    held = np.random.RandomState(0).permutation(40)[0]
    X[held, 1] = 1.0
    model = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=2), calibration=0.5, random_state=0)
    with pytest.raises(ArgumentError, match=r"calibration: got 0.5, .* without a value in x1"):
        model.fit(X)
    flag = np.zeros((40, 1))
    flag[held] = 1.0
    with pytest.raises(ArgumentError, match=r"calibration: got 0.5, .*all the same"):
        model.fit(flag)
