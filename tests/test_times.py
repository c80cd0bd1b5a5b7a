"""Distributions of noise levels: their law, weights and spread, by enumerating the uniforms behind them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncml import VESDE, VPSDE, LevelNoise
from ncml.errors import ArgumentError, UnsupportedError
from ncml.objective import (
    AtZero,
    ImportanceTimes,
    LadderTimes,
    LogUniformTimes,
    TimeSampler,
    UniformTimes,
    WeightedTimes,
)
from tests.problems import LEVEL, SDES, same_bits, seeded
from tests.statistics import assert_frequencies, assert_law

PROCESS = SDES["vp"]
N = 4096

SAMPLERS = {
    "zero": AtZero(),
    "uniform": UniformTimes(),
    "uniform independent": UniformTimes(p_zero=0.5, t_min=1e-3, low_discrepancy=False),
    "log uniform": LogUniformTimes(),
    "ladder": LadderTimes((0.0, 0.005, 0.02), (2.0, 1.0, 1.0)),
    "importance": ImportanceTimes((4.0, 1.0, 2.0, 1.0)),
    "itarflow": WeightedTimes.itarflow(),
}
each_sampler = pytest.mark.parametrize("times", SAMPLERS.values(), ids=SAMPLERS.keys())


@pytest.fixture
def midpoints(monkeypatch):
    """Replace the uniforms by the midpoints of N cells, so that means over a batch are quadratures."""
    u = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    monkeypatch.setattr("ncml.objective.times.draw_uniforms", lambda n, *_: u)


def expectation(times: TimeSampler, h, process=PROCESS) -> float:
    t, weight = times(N, process, dtype=torch.float64)
    return float((weight * h(t / process.T)).mean())


FUNCTIONS = {
    "one": (torch.ones_like, 1.0, 1.0),
    "linear": (lambda v: 2.0 + v, 2.0, 2.5),
    "square": (torch.square, 0.0, 1.0 / 3.0),
    "exponential": (lambda v: torch.exp(-3.0 * v), 1.0, -math.expm1(-3.0) / 3.0),
    "indicator of zero": (lambda v: (v == 0).double(), 1.0, 0.0),
}
"""Functions h of t/T, their value at 0 and their mean over U(0, 1]."""
each_function = pytest.mark.parametrize(("h", "at_zero", "mean"), FUNCTIONS.values(), ids=FUNCTIONS.keys())


@each_function
@pytest.mark.parametrize("p_zero", [0.0, 0.25, 1.0])
def test_uniform_times_have_an_atom_and_are_uniform(midpoints, h, at_zero, mean, p_zero):
    assert expectation(UniformTimes(p_zero), h) == pytest.approx(p_zero * at_zero + (1.0 - p_zero) * mean, abs=1e-6)


@each_function
@pytest.mark.parametrize("p_zero", [0.0, 0.25])
@pytest.mark.parametrize("bins", [(1.0,), (4.0, 1.0, 2.0, 1.0), (1e-2, 1.0, 1.0), tuple(range(1, 12))])
def test_importance_weights_are_unbiased(midpoints, h, at_zero, mean, p_zero, bins):
    """The weighted mean is that of p_0 delta_0 + (1 - p_0) U(0, T], whatever the proposal.

    The grid of uniforms cuts the bins at most once each, which bounds the quadrature's error.
    """
    error = 1e-6 if bins in ((1.0,), (4.0, 1.0, 2.0, 1.0)) else 2e-2
    times = ImportanceTimes(bins, p_zero)
    assert expectation(times, h) == pytest.approx(p_zero * at_zero + (1.0 - p_zero) * mean, abs=error)
    t, _ = times(N, PROCESS, dtype=torch.float64)
    assert float((t == 0).double().mean()) == p_zero


def test_importance_bins_are_drawn_with_their_probabilities(midpoints):
    t, weight = ImportanceTimes((4.0, 1.0, 2.0, 1.0), p_zero=0.5)(N, PROCESS, dtype=torch.float64)
    bins = (t[t > 0] / PROCESS.T * 4).ceil().long()
    assert (torch.bincount(bins, minlength=5)[1:] * 8 / (N // 2)).tolist() == [4.0, 1.0, 2.0, 1.0]
    for index, expected in enumerate((0.5, 2.0, 1.0, 2.0), start=1):
        assert torch.allclose(weight[t > 0][bins == index], torch.tensor(expected, dtype=torch.float64))
    assert (weight[t == 0] == 1.0).all()


def test_a_wrong_weight_shows(midpoints):
    """Power: the same test on a proposal with unit weights is off by more than a tenth."""
    t, _ = ImportanceTimes((4.0, 1.0, 2.0, 1.0), p_zero=0.0)(N, PROCESS, dtype=torch.float64)
    assert abs(float((2.0 + t / PROCESS.T).mean()) - 2.5) > 0.1


def test_log_uniform_noise(midpoints):
    """log sigma(t) is uniform between the two levels."""
    for process in SDES.values():
        t, weight = LogUniformTimes(sigma_min=0.1 * LEVEL, p_zero=0.25)(N, process, dtype=torch.float64)
        position = ((process.sigma(t[t > 0]) / LEVEL).log() - math.log(0.1)) / math.log(100.0)
        m = 3 * N // 4
        assert position.numel() == m
        expected = (torch.arange(m, dtype=torch.float64) + 0.5) / m
        assert torch.allclose(position.sort().values, expected, atol=1e-9, rtol=0)
        assert (weight == 1.0).all()


@given(
    masses=st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**31),
)
def test_ladder_masses_are_met_exactly(masses, seed):
    """A low-discrepancy batch of a multiple of the total mass has exactly the expected counts."""
    times = tuple(i * PROCESS.T / 6 for i in range(len(masses)))
    ladder, n = LadderTimes(times, tuple(map(float, masses))), 32 * sum(masses)
    t, weight = ladder(n, PROCESS, generator=seeded(seed), dtype=torch.float64)
    counts = [int((t == time).sum()) for time in times]
    assert all(abs(c - 32 * m) <= 1 for c, m in zip(counts, masses, strict=True))  # 1 for rounding at an edge
    assert sum(counts) == n
    assert (weight == 1.0).all()


def test_ladder_of_the_paper_s_lambdas():
    """lambda_t = mu(t) / mu(0), in both directions."""
    ladder = LadderTimes.from_lambdas({0.005: 0.5, 0.02: 1.5})
    assert ladder.times == (0.0, 0.005, 0.02)
    assert ladder.masses == pytest.approx((1 / 3, 1 / 6, 1 / 2))
    assert ladder.lambdas == pytest.approx({0.005: 0.5, 0.02: 1.5})
    assert LadderTimes((0.02, 0.0)).lambdas == {0.02: 1.0}
    with pytest.raises(ArgumentError, match="lambda_t divides by mu"):
        _ = LadderTimes((0.01, 0.02)).lambdas
    with pytest.raises(ArgumentError, match="lambda_0 = 1"):
        LadderTimes.from_lambdas({0.0: 1.0})


def test_at_zero():
    t, weight = AtZero()(5, PROCESS, dtype=torch.float64)
    assert torch.equal(t, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(weight, torch.ones(5, dtype=torch.float64))


def test_itarflow_weights():
    """w(t) = t on U(t_min, T], with sigma(t) = t."""
    process = VESDE.linear(1.0)
    t, weight = WeightedTimes.itarflow(0.01)(1000, process, generator=seeded(0))
    assert same_bits(weight, t)
    assert float(t.min()) >= 0.01
    assert float(t.max()) <= 1.0
    assert same_bits(process.sigma(t), t)
    assert float(t.double().mean()) == pytest.approx(0.505, abs=1e-3)


def test_extra_weights_multiply():
    inner = ImportanceTimes((4.0, 1.0))
    (t, weight), (u, double) = (
        times(64, PROCESS, generator=seeded(3)) for times in (inner, WeightedTimes(inner, lambda t: 2.0 + t))
    )
    assert same_bits(t, u)
    assert same_bits(double, weight * (2.0 + t))


@given(
    name=st.sampled_from(list(SAMPLERS)),
    n=st.integers(0, 70),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([None, torch.float32, torch.float64, torch.float16]),
)
def test_contract(name, n, seed, dtype):
    """Shapes, dtype of at least float32, range, positive weights, reproducible."""
    process = VESDE.linear(0.05)
    t, weight = SAMPLERS[name](n, process, generator=seeded(seed), dtype=dtype)
    assert t.shape == weight.shape == (n,)
    assert t.dtype == weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (t >= 0).all()
    assert (t <= process.T * (1 + 4 * torch.finfo(t.dtype).eps)).all()
    assert (weight > 0).all()
    assert torch.isfinite(weight).all()
    again, _ = SAMPLERS[name](n, process, generator=seeded(seed), dtype=dtype)
    assert same_bits(t, again)


@given(n=st.integers(1, 200), seed=st.integers(0, 2**31), a=st.floats(0.0, 1.0), b=st.floats(0.0, 1.0))
def test_low_discrepancy(n, seed, a, b):
    """Every interval holds its share of the batch, up to one draw at each end."""
    a, b = sorted((a, b))
    t, _ = UniformTimes(p_zero=0.0)(n, VPSDE(), generator=seeded(seed), dtype=torch.float64)
    inside = int(((t > a) & (t <= b)).sum())
    assert abs(inside - n * (b - a)) <= 2.0
    strata = (t * n).sort().values
    assert torch.allclose(strata.diff(), torch.ones(n - 1, dtype=torch.float64), atol=1e-9)


@given(n=st.integers(1, 40), p_zero=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_the_atom_gets_its_share_of_every_batch(n, p_zero, seed):
    t, _ = UniformTimes(p_zero)(n, PROCESS, generator=seeded(seed), dtype=torch.float64)
    assert abs(int((t == 0).sum()) - n * p_zero) <= 1.0 + 1e-9


@pytest.mark.parametrize("low_discrepancy", [True, False])
def test_every_row_sees_every_time(low_discrepancy):
    """The law of each row's own time is that of the sampler, so that data in a fixed order are not biased."""
    times, n, seeds = UniformTimes(p_zero=0.0, low_discrepancy=low_discrepancy), 4, 3000
    generator = seeded(0)
    draws = torch.stack([times(n, VPSDE(), generator=generator, dtype=torch.float64)[0] for _ in range(seeds)])
    for row in draws.unbind(1):
        assert_law(row, lambda u: u)
    zeros = torch.stack([UniformTimes(0.3)(n, VPSDE(), generator=generator)[0] == 0 for _ in range(seeds)])
    for row in zeros.unbind(1):
        assert_frequencies(torch.bincount(row.long(), minlength=2), torch.tensor([0.7, 0.3]))


def test_spreading_lowers_the_variance():
    """The mean of t over a batch of 32 has a fifth of the standard deviation of independent draws."""

    def spread(low_discrepancy: bool) -> float:
        times, g = UniformTimes(p_zero=0.0, low_discrepancy=low_discrepancy), seeded(1)
        return float(torch.stack([times(32, VPSDE(), generator=g)[0].mean() for _ in range(200)]).std())

    assert spread(True) < 0.3 * spread(False)


@each_sampler
def test_without_a_generator_the_global_one_is_used(times):
    torch.manual_seed(5)
    first, _ = times(9, VESDE.linear(0.05))
    torch.manual_seed(5)
    second, _ = times(9, VESDE.linear(0.05))
    assert same_bits(first, second)


@each_sampler
def test_a_generator_leaves_the_global_one_alone(times):
    state = torch.get_rng_state()
    times(9, VESDE.linear(0.05), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformTimes(p_zero=1.5), r"^p_zero: got"),
        (lambda: UniformTimes(p_zero=True), r"^p_zero: got"),
        (lambda: UniformTimes(t_min=-1.0), r"^t_min: got"),
        (lambda: LogUniformTimes(sigma_min=0.0), r"^sigma_min: got"),
        (lambda: LogUniformTimes(p_zero=math.nan), r"^p_zero: got"),
        (lambda: LadderTimes(()), r"^times: got"),
        (lambda: LadderTimes((0.1, 0.1)), "expected distinct times"),
        (lambda: LadderTimes((-0.1,)), r"^times: got"),
        (lambda: LadderTimes((0.0, 0.1), (1.0,)), r"^masses: got"),
        (lambda: LadderTimes((0.0, 0.1), (0.0, 0.0)), r"^masses: got"),
        (lambda: ImportanceTimes(()), r"^bins: got"),
        (lambda: ImportanceTimes((1.0, 0.0)), "a bin without mass would bias the loss"),
        (lambda: ImportanceTimes((1.0,), p_zero=-0.1), r"^p_zero: got"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_settings_that_do_not_fit_the_process():
    with pytest.raises(ArgumentError, match=r"^t_min: got"):
        UniformTimes(t_min=0.5)(4, VPSDE(T=0.5))
    with pytest.raises(ArgumentError, match=r"^sigma_min: got"):
        LogUniformTimes(sigma_min=0.5)(4, PROCESS)
    with pytest.raises(ArgumentError, match=r"^sigma_min: got 0.005; expected at least sigma\(0\) = 0.01 and less"):
        LogUniformTimes(sigma_min=0.005)(4, VESDE(song=True))
    with pytest.raises(ArgumentError, match=r"^times: got"):
        LadderTimes((0.0, 0.5))(4, PROCESS)
    with pytest.raises(UnsupportedError, match="got LevelNoise; expected a GaussianProcess"):
        LogUniformTimes()(4, LevelNoise(17))
