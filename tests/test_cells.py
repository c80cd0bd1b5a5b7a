"""Exact probabilities of cells: of the heads, of MADE, and of tables with columns on lattices."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate
from scipy.stats import logistic, nbinom, norm
from sklearn.base import clone

from ncml import VPSDE, Lattice, LinearVESDE, NCMLObjective
from ncml.densities import MADE, MAF, MarginalMADE
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.estimator import Columns, FeatureShift, NCMLDensityEstimator, NCMLOutlierDetector
from ncml.estimator.objective import TableObjective
from ncml.nn.heads import GaussianHead, LogisticHead
from ncml.objective import AtZero, UniformTimes
from tests.problems import seeded, shaken
from tests.statistics import assert_frequencies

ENDLESS = 1e30


@pytest.mark.parametrize(("head", "law"), [(LogisticHead(1), logistic), (GaussianHead(1), norm)])
def test_cells_of_one_component(head, law):
    """The mass between two ends, in both tails, near and far, and to infinity."""
    mean, log_scale = 0.3, -0.4
    outputs = torch.tensor([0.0, mean, 0.0], dtype=torch.float64)
    outputs[2] = log_scale
    scale = float(head.log_scales(outputs[2]).exp())
    ends = [
        (-ENDLESS, 0.1),
        (-0.2, 0.1),
        (0.3, 0.300001),
        (2.0, 5.0),
        (-9.0, -8.0),
        (8.0, 9.0),
        (1.0, ENDLESS),
    ]
    low, high = torch.tensor(ends, dtype=torch.float64).T[:, None]
    found = head.log_cells(outputs.expand(1, len(ends), 3), low, high)[0]
    a, b = ((np.clip(end[0].numpy(), -1e9, 1e9) - mean) / scale for end in (low, high))
    a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)  # in the left tail the difference is exact
    expected = law.logcdf(b) + np.log(-np.expm1(law.logcdf(a) - law.logcdf(b)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    for width in (1e-6, 1e-9, 1e-12):  # no difference of two numbers has their digits
        low = torch.tensor([[7.0]], dtype=torch.float64)
        thin = float(head.log_cells(outputs[None, None], low, low + width))
        assert thin == pytest.approx(law.logpdf((7.0 - mean) / scale) + np.log(width / scale), abs=2e-3)


@pytest.mark.parametrize("head", [LogisticHead(3), GaussianHead(3)])
def test_an_interval_that_is_a_point_has_its_density(head):
    """Beside intervals, with gradients that are finite."""
    outputs = torch.randn(2, 4, 9, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    x = torch.tensor([[-3.0, 0.1, 0.1, 40.0], [-1.0, 0.0, 2.0, -7.0]], dtype=torch.float64)
    width = torch.tensor([0.0, 0.0, 0.2, 0.0], dtype=torch.float64)
    found = head.log_cells(outputs, x, x + width)
    expected = head.log_prob(outputs, x)
    torch.testing.assert_close(found[:, [0, 1, 3]], expected[:, [0, 1, 3]], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(found[:, 2], expected[:, 2]).any()
    found.sum().backward()
    assert outputs.grad.isfinite().all()


def network(kind=MADE, dims=3, **settings):
    made = kind((dims,), VPSDE.at_noise(0.5), hidden=(16,), components=3, **settings)
    return shaken(made, 0.5).double().eval()


@pytest.mark.parametrize("head", ["logistic", "gaussian"])
@pytest.mark.parametrize("data_std", [None, 0.4])
def test_cells_are_the_integrals_of_the_conditionals(head, data_std):
    made = network(head=head, order=[2, 0, 1], data_std=data_std)
    x = torch.tensor([[0.2, -0.5, 0.4]], dtype=torch.float64)
    half = torch.tensor([[0.3, 0.0, 0.1]], dtype=torch.float64)
    low, high = x - half, x + half
    for t in (0.0, 0.1):

        def conditional(value, i, t=t):
            moved = x.clone()
            moved[0, i] = value
            return float(made.log_conditionals(moved, t, given=x)[0, i].exp().detach())

        mass = [
            integrate.quad(conditional, float(low[0, i]), float(high[0, i]), args=(i,), epsabs=1e-12)[0] for i in (0, 2)
        ]
        expected = np.log(mass).sum() + float(made.log_conditionals(x, t)[0, 1].detach())
        assert float(made.log_cells(x, low, high, t).detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("data_std", [None, 0.4])
def test_samples_of_cells_have_their_probabilities(data_std):
    """Two values in four cells each: sixteen probabilities, which sum to 1, and the frequencies of 20,000 draws."""
    made = network(dims=2, data_std=data_std)
    ends = torch.tensor([-ENDLESS, -0.8, 0.1, 0.9, ENDLESS], dtype=torch.float64)
    middles = torch.tensor([-1.2, -0.3, 0.5, 1.4], dtype=torch.float64)
    states = torch.tensor(list(itertools.product(range(4), repeat=2)))
    p = made.log_cells(middles[states], ends[states], ends[states + 1], 0.1).exp().detach()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)

    def place(index, drawn):
        return middles[torch.bucketize(drawn, ends[1:-1])]

    drawn = made.sample(20_000, 0.1, generator=seeded(0), place=place)
    found = (drawn[:, None] == middles[states]).all(2).sum(0)
    assert int(found.sum()) == 20_000
    assert_frequencies(found, p)


@pytest.mark.parametrize("head", ["logistic", "gaussian"])
def test_the_score_beside_cells(head):
    """By central differences of ``log_cells``, 0 where there is a cell; under inference mode too."""
    made = network(head=head)
    x = torch.tensor([[0.2, -0.5, 0.4], [1.2, 0.3, -0.1]], dtype=torch.float64)
    half = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    with torch.inference_mode():
        found = made.score_cells(x, x - half, x + half)
    step = torch.eye(3, dtype=torch.float64)[:, None] * 1e-5
    low, high = x - half, x + half
    up, down = (made.log_cells(x + s, low + (half == 0) * s, high + (half == 0) * s) for s in (step[0], -step[0]))
    assert (found[:, 1] == 0.0).all()
    torch.testing.assert_close(found[:, 0], ((up - down) / 2e-5).detach(), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(found[:, 0], made.score(x)[:, 0], rtol=1e-6)


def test_cells_in_half_precision_are_computed_in_float32():
    made = network().float()
    x = torch.tensor([[0.25, -0.5, 0.375]], dtype=torch.bfloat16)
    wide = x.float()
    for half, single in ((x - 0.5, wide - 0.5), (x, wide)):
        expected = made.log_cells(wide, single, wide + 0.5)
        assert torch.equal(made.log_cells(x, half, x + 0.5), expected)
    found = made.score_cells(x, x, x)
    assert found.dtype == torch.float32
    assert torch.equal(found, made.score_cells(wide, wide, wide))


def test_what_cells_refuse():
    made = network()
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="low: got shape"):
        made.log_cells(x, x[:1], x)
    with pytest.raises(ArgumentError, match="high: got"):
        made.log_cells(x, x, x + torch.inf)
    for wrong in (made.log_cells, made.score_cells):
        with pytest.raises(ArgumentError, match="low: got values above high"):
            wrong(x, x + 0.5, x - 0.5)
    with pytest.raises(UnsupportedError, match="MADE with a lattice"):
        network(lattice=Lattice(4)).log_cells(x, x, x)
    with pytest.raises(NonFiniteError):
        made.sample(2, place=lambda _, drawn: drawn / 0.0)


@pytest.mark.parametrize("kind", [MADE, MarginalMADE])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_cell_has_two_ends(kind, end):
    """In the call too, by which a density is trained: of one end alone it would take x to be a value."""
    x, t = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=f"^low, high: got {end} alone; expected both ends of the cells, or none$"):
        network(kind)(x, t, torch.ones_like(x) if kind is MarginalMADE else None, **{end: x})


def test_hidden_values_have_no_cells():
    made = network(MarginalMADE)
    x = torch.tensor([[0.2, 0.0, 0.4]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    widths = torch.tensor([[0.1, 0.1, 0.1], [0.1, 9.0, 0.1], [0.1, 0.0, 0.1]], dtype=torch.float64)
    found = [made.log_cells(x, x - width, x + width, 0.0, mask) for width in widths]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# Tables.


def small(shape, process):
    return MADE(shape, process, hidden=(32,), components=4)


def small_with_gaps(shape, process):
    return MarginalMADE(shape, process, hidden=(32,), components=4)


def trained(X, density=small, **settings):
    return NCMLDensityEstimator(density, max_steps=60, learning_rate=1e-2, random_state=0, **settings).fit(X)


RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.4, (800, 1)).astype(float)


@pytest.mark.parametrize("dequantisations", [1, 4])
def test_probabilities_of_integers_sum_to_one(dequantisations):
    """To the last digits, however sharp the density; four points of a step gave up to 1.15."""
    model = trained(COUNTS, dequantisations=dequantisations)
    p = np.exp(model.score_samples(np.arange(-60.0, 90.0)[:, None]))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p[60] == pytest.approx((COUNTS == 0).mean(), abs=0.06)
    drawn = model.sample(20_000, random_state=1)[:, 0].astype(int)
    counts = torch.tensor([(drawn == k).sum() for k in range(-1, 4)] + [((drawn < -1) | (drawn > 3)).sum()])
    assert_frequencies(counts, torch.from_numpy(np.append(p[59:64], 1.0 - p[59:64].sum())))


def test_probabilities_under_bounds_with_gaps_and_of_categories():
    bounded = trained(COUNTS, bounds={0: (0, None)})
    assert np.exp(bounded.score_samples(np.arange(3000.0)[:, None])).sum() == pytest.approx(1.0, abs=1e-4)
    assert bounded.score_samples([[-1.0]])[0] == -np.inf
    assert bounded.sample(200, random_state=0).min() >= 0.0

    both = trained(COUNTS, bounds={0: (0, 20)})
    assert np.exp(both.score_samples(np.arange(21.0)[:, None])).sum() == pytest.approx(1.0, abs=1e-9)

    frame = pd.DataFrame(RNG.integers(0, 3, (600, 3))).map(lambda k: "abc"[k])
    coded = trained(frame, categories=[0, 1, 2])
    rows = pd.DataFrame(list(itertools.product("abc", repeat=3)))
    p = np.exp(coded.score_samples(rows))
    assert p.sum() == pytest.approx(1.0, abs=1e-9)
    drawn = coded.sample(20_000, random_state=0).value_counts().reindex(pd.MultiIndex.from_frame(rows), fill_value=0)
    assert_frequencies(torch.from_numpy(drawn.to_numpy().copy()), torch.from_numpy(p))

    gaps = np.column_stack([RNG.poisson(2.0, 800), RNG.normal(size=800)]).astype(float)
    gaps[RNG.random(gaps.shape) < 0.1] = np.nan
    model = trained(gaps, small_with_gaps)
    alone = np.full((300, 2), np.nan)
    alone[:, 0] = np.arange(-100.0, 200.0)
    assert np.exp(model.score_samples(alone)).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("low", "high"), [(18.0, 98.0), (17.0, None), (None, 61.0)])
def test_bounds_between_the_values_of_a_lattice(low, high):
    """The steps inside them fill the line: nothing is beyond or off the lattice, and the samples' law is the score."""
    X = 5.0 * np.clip(np.round(RNG.normal(4.0, 2.0, (500, 1))), 4, 12)  # 20, 25, ..., 60
    model = trained(X, bounds={0: (low, high)})
    values = np.arange(-900.0, 3000.0, 5.0)
    p = 5.0 * np.exp(model.score_samples(values[:, None]))
    assert p.sum() == pytest.approx(1.0, abs=1e-3 if None in (low, high) else 1e-9)
    inside = (values > (low or -np.inf)) & (values < (high or np.inf))
    assert not p[~inside].any()
    drawn = model.sample(20_000, random_state=0)[:, 0]
    assert np.isin(drawn, values[inside]).mean() > 0.99
    shown = (values >= 20.0) & (values <= 60.0)
    counts = torch.tensor([(drawn == v).sum() for v in values[shown]] + [(~np.isin(drawn, values[shown])).sum()])
    assert_frequencies(counts, torch.from_numpy(np.append(p[shown], 1.0 - p[shown].sum())))


def test_a_bound_far_from_the_values_of_a_lattice_in_single_precision():
    """Their rounding adds up over a thousand steps: the bound is a value all the same."""
    X = (np.round(np.random.default_rng(0).normal(1000.0, 10.0, (500, 1))) / 10).astype(np.float32)
    model = trained(X, bounds={0: (0.0, None)})
    assert model.columns_.low[0] == pytest.approx(-0.05, abs=1e-3)
    assert np.isfinite(model.score_samples([[0.0]]))


def test_a_step_beside_a_real_column():
    """Masses of the steps times densities: their sum over the steps and integral over the line is 1."""
    X = np.column_stack([RNG.poisson(1.0, 600), RNG.normal(size=600)]).astype(float)
    model = trained(X)
    grid = np.linspace(-40.0, 40.0, 8001)
    total = 0.0
    for k in range(-12, 20):
        total += integrate.trapezoid(np.exp(model.score_samples(np.column_stack([np.full_like(grid, k), grid]))), grid)
    assert total == pytest.approx(1.0, abs=1e-4)


def test_units_of_steps():
    """The density over a step of a tenth is the probability over a tenth."""
    tenths = trained(0.1 * COUNTS)
    whole = trained(COUNTS)
    np.testing.assert_allclose(
        tenths.score_samples(0.1 * COUNTS[:20]), whole.score_samples(COUNTS[:20]) + np.log(10.0), atol=1e-3
    )


@pytest.mark.parametrize("bounds", [None, {0: (0, None)}])
def test_large_counts_in_single_precision(bounds):
    """Where cells are thinner than single precision the density takes their place: no value is off by the scale."""
    X = np.round(np.exp(np.random.default_rng(0).normal(10.0, 0.8, (300, 1))))
    model = trained(X, bounds=bounds)
    table = model.table_of(X)
    exact = model.log_densities_of(table, 0.0)
    model.density_.float()
    np.testing.assert_allclose(model.log_densities_of(table, 0.0), exact, atol=0.02)
    cells = [model.columns_.cells(table, None, dtype) for dtype in (torch.float32, torch.float64)]
    left_out = [int((low == high).sum()) for _, low, high, _ in cells]
    assert left_out[0] > 0
    assert left_out[1] == 0


def many_zeros(n, seed):
    """Counts of which seven tenths are zero, beside a real column; and the mean of their log-density."""
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random(n) < 0.7, 0, rng.negative_binomial(1, 0.005, n))
    p = 0.7 * (counts == 0) + 0.3 * nbinom.pmf(counts, 1, 0.005)
    real = rng.normal(size=n)
    return np.column_stack([counts, real]), float((np.log(p) + norm.logpdf(real)).mean())


def test_counts_with_many_zeros():
    """Values spread within the step of zero hide it: a network that learned from such drew .3 of zeros, and lost .6."""
    X, _ = many_zeros(3000, 0)
    new, best = many_zeros(3000, 1)
    plain, bounded = (NCMLDensityEstimator(random_state=0, bounds=b).fit(X) for b in (None, {0: (0, None)}))
    assert plain.score(new) > best - 0.1
    assert bounded.score(new) > best - 0.05
    drawn = [model.sample(5000, random_state=0)[:, 0] for model in (plain, bounded)]
    for counts in drawn:
        assert (counts == 0).mean() == pytest.approx(0.7, abs=0.1)
    assert drawn[1].min() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", ["logistic", "gaussian"])
@pytest.mark.parametrize("bounds", [None, {0: (0, None)}, {0: (0, 9)}])
def test_the_objective_at_zero_is_the_probability_of_the_steps(bounds, head, dtype):
    """Whatever the uniforms, which spread values at t > 0 only; and its gradients are finite at endless cells."""
    X = np.column_stack([RNG.integers(0, 10, 64), RNG.normal(size=64)]).astype(float)
    columns, process = Columns.of(X, ["count", "real"], bounds), LinearVESDE(2.0)
    density = shaken(MADE((2,), process, hidden=(32,), components=4, head=head), 0.5).to(dtype).train()
    table = torch.from_numpy(columns.standardise(X))
    z, low, high, _ = columns.cells(table, None, dtype)
    exact = density.log_cells(z, low, high)
    at_zero = TableObjective(process, AtZero(), reduction="none", columns=columns)
    loss = at_zero(density, table, generator=seeded(0))
    torch.testing.assert_close(loss, -exact, rtol=1e-5, atol=1e-5)
    loss.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in density.parameters())
    given = TableObjective(process, reduction="none", columns=columns)(density, table, t=0.0, generator=seeded(0))
    assert torch.equal(given, loss)

    # With noise it is the plain objective on spread rows.
    noisy = {"times": UniformTimes(p_zero=0.0, t_min=0.5), "reduction": "none"}
    found = TableObjective(process, **noisy, columns=columns)(density, table, generator=seeded(1))
    draws = seeded(1)
    u = torch.rand(table.shape, dtype=dtype, generator=draws)
    spread = columns.to_model(table, u)[0].to(dtype)
    torch.testing.assert_close(found, NCMLObjective(process, **noisy)(density, spread, generator=draws))


def test_gradient_at_zero_is_that_of_the_log_probability():
    """Of a real column before one on a lattice: the density in the middle of a step is anything, and so was its slope.

    By central differences of ``score_samples``.
    """
    real = RNG.normal(size=500)
    model = trained(np.column_stack([real, RNG.random(500) < 1.0 / (1.0 + np.exp(-2.0 * real))]).astype(float))
    rows, step = np.array([[-1.0, 0.0], [0.3, 1.0], [2.0, 0.0]]), np.array([1e-5, 0.0])
    slope = (model.score_samples(rows + step) - model.score_samples(rows - step)) / 2e-5
    found = model.gradient(rows)
    np.testing.assert_allclose(found[:, 0], slope * model.columns_.scale[0], rtol=1e-6, atol=1e-6)
    assert (found[:, 1] == 0.0).all()
    assert (model.gradient(rows, 0.1)[:, 1] != 0.0).all()


def test_shift_without_noise_of_columns_on_lattices():
    """A shuffled real column is found among them; they themselves have no scores."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 1))
    tables = np.concatenate(
        [x, x + rng.normal(size=x.shape), rng.poisson(np.exp(0.5 * x)), rng.random(x.shape) < 0.5], 2
    )
    X, Y = tables
    Y[:, 1] = rng.permutation(Y[:, 1])
    estimator = NCMLDensityEstimator(small, max_steps=100, learning_rate=1e-2)
    shift = FeatureShift(estimator, noise=0.0, resamples=9, steps=40, random_state=0)
    shift.fit(X, Y)
    assert shift.statistic_[2:].tolist() == [0.0, 0.0]
    assert shift.p_values_[2:].tolist() == [1.0, 1.0]
    assert shift.p_values_[1] == 0.1
    with pytest.raises(ArgumentError, match="noise: got 0 and only columns on lattices"):
        shift.fit(X[:, 2:], Y[:, 2:])


@pytest.mark.parametrize("density", [None, small, MAF], ids=["default", "small", "flow"])
@pytest.mark.parametrize("frame", [False, True])
def test_shift_without_noise_of_lattices_alone_is_refused_before_training(density, frame, monkeypatch):
    """Under bounds, with categories and constants too; not of densities whose scores are slopes there."""

    class TrainingBeganError(Exception):
        pass

    def fit(estimator, X):
        raise TrainingBeganError

    monkeypatch.setattr(NCMLDensityEstimator, "fit", fit)
    rng = np.random.default_rng(0)
    X, Y = np.stack([rng.poisson(2.0, (2, 50)), rng.random((2, 50)) < 0.5, np.ones((2, 50))], 2).astype(float)
    settings = {"bounds": {0: (0, None)}, "categories": [1]}
    if frame:
        X, Y = (pd.DataFrame(rows, columns=["n", "kind", "one"]).astype({"kind": "category"}) for rows in (X, Y))
        settings = {"bounds": {"n": (0, None)}}
    state = torch.get_rng_state()
    shift = FeatureShift(NCMLDensityEstimator(density, **settings), noise=0.0, random_state=0)
    message = "noise: got 0 and only columns on lattices"
    refused = pytest.raises(TrainingBeganError) if density is MAF else pytest.raises(ArgumentError, match=message)
    with refused:
        shift.fit(X, Y)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TrainingBeganError):
        shift.set_params(noise=0.1).fit(X, Y)
    with pytest.raises(ArgumentTypeError, match="density: got MADE; expected a function"):
        FeatureShift(NCMLDensityEstimator(network(dims=2), **settings), noise=0.0).fit(X, Y)


class WithoutEnds(MADE):
    """A call of one's own, which knows nothing of cells."""

    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context, edges=edges)


class WithMore(MADE):
    """The same, passing on whatever it is given."""

    def forward(self, x, t, context=None, **more):
        return super().forward(x, t, context, **more)


def test_a_call_without_the_ends_of_cells_is_refused_where_there_are_some():
    """Before training, by what is missing; tables of real numbers need none."""
    refused = pytest.raises(
        UnsupportedError, match=r"^WithoutEnds\.forward: got \(x, t, context, edges\); expected low and high too"
    )
    x = torch.zeros(2, 3, dtype=torch.float64)
    for call in (network(WithoutEnds).log_cells, network(WithoutEnds).score_cells):
        with refused:
            call(x, x, x)
    more = network(WithMore)
    expected = MADE.forward(more, x, torch.zeros(2, dtype=torch.float64), low=x - 1.0, high=x)
    assert torch.equal(more.log_cells(x, x - 1.0, x), expected)
    rng = np.random.default_rng(0)
    real, counts = rng.normal(size=(50, 2)), rng.poisson(2.0, (50, 2))
    for kind in (WithoutEnds, WithMore):
        estimator = NCMLDensityEstimator(partial(kind, hidden=(8,), components=2), max_steps=2, random_state=0)
        assert np.isfinite(estimator.fit(real).score_samples(real)).all()
        estimator = clone(estimator)
        if kind is WithMore:
            assert np.isfinite(estimator.fit(counts).score_samples(counts)).all()
            continue
        with refused:
            estimator.fit(counts)
        assert not hasattr(estimator, "losses_")
    lattice = NCMLDensityEstimator(partial(MADE, hidden=(8,), lattice=Lattice(9)), validation_fraction=0, max_steps=2)
    with pytest.raises(UnsupportedError, match="MADE with a lattice"):
        lattice.fit(counts)


def test_other_densities_are_averaged_over_points():
    from ncml.densities import MAF

    model = trained(COUNTS, lambda shape, process: MAF(shape, process, transforms=1, hidden=(8,)), dequantisations=512)
    assert np.exp(model.score_samples(np.arange(-60.0, 90.0)[:, None])).sum() == pytest.approx(1.0, abs=0.02)


def test_detector_takes_the_probabilities():
    detector = NCMLOutlierDetector(NCMLDensityEstimator(small, max_steps=20, process=LinearVESDE(2.0)), random_state=0)
    detector.fit(COUNTS)
    np.testing.assert_allclose(
        detector.log_densities(COUNTS[:9])[:, 0], detector.estimator_.score_samples(COUNTS[:9]), rtol=1e-12
    )
