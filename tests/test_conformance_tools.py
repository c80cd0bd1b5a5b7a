"""What the conformance kit is made of: statistics and quadrature against scipy, and the strategies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ncml import VPSDE, GaussianProcess, NoiseConditionalDensity
from ncml.errors import ArgumentError, ConformanceError
from ncml.testing import check_density, check_noise_process, strategies
from ncml.testing.density import prepared
from ncml.testing.density.cubature import Cubature
from ncml.testing.expectations import expect_close, expect_refused, expect_same_bits
from ncml.testing.independence import (
    expect_independent_columns,
    expect_independent_pairs,
    expect_independent_rows,
)
from ncml.testing.numerics import (
    binomial_bound,
    cdf_distance,
    chi2_tail,
    count_tail,
    dkw_bound,
    gauss_legendre,
    integrate,
    poisson_tail,
)
from ncml.testing.report import CheckError
from tests.problems import seeded

F64 = torch.float64
VP = VPSDE.at_noise(0.5)


# Comparisons.


def test_equal_bits_tell_shapes_and_zeros_apart():
    zeros = torch.zeros(2, 3)
    expect_same_bits(zeros, zeros.clone(), "x", "")
    with pytest.raises(CheckError, match=r"got x: shapes \(2, 3\) and \(3,\) .*; expected equal bits; a reason"):
        expect_same_bits(zeros, zeros[0], "x", "a reason")
    with pytest.raises(CheckError, match="a largest difference of 0"):
        expect_same_bits(zeros, -zeros, "x", "")


def test_closeness_is_relative_and_knows_infinity():
    a = torch.tensor([1e6, math.inf, 0.0], dtype=F64)
    expect_close(a + torch.tensor([1.0, 0.0, 1e-7], dtype=F64), a, 1.1e-6, "x", "")
    with pytest.raises(CheckError, match="relative difference 1e-06; expected at most 1e-07"):
        expect_close(a + torch.tensor([1.0, 0.0, 0.0], dtype=F64), a, 1e-7, "x", "")
    with pytest.raises(CheckError, match="expected equal shapes"):
        expect_close(a, a[:2], 1.0, "x", "")
    with pytest.raises(CheckError, match="relative difference inf"):
        expect_close(torch.full((3,), math.nan, dtype=F64), a, 1.0, "x", "")


def test_refusals_must_be_of_the_right_kind():
    def fail():
        raise KeyError("t")

    expect_refused(fail, "t", (KeyError,), "")
    with pytest.raises(CheckError, match="got KeyError for t; expected ValueError or TypeError; a reason"):
        expect_refused(fail, "t", (ValueError, TypeError), "a reason")
    with pytest.raises(CheckError, match="got no error for t; expected ValueError"):
        expect_refused(lambda: None, "t", (ValueError,), "")


# The statistics and the quadrature, against scipy.


@pytest.mark.parametrize("n", [3, 100, 65_536])
def test_chi2_tails(n):
    for quantile in (1e-12, 1e-9, 0.3, 1.0 - 1e-9):
        total = stats.chi2.ppf(quantile, n)
        expected = 2.0 * min(stats.chi2.cdf(total, n), stats.chi2.sf(total, n))
        assert chi2_tail(total, n) == pytest.approx(expected, rel=1e-4)


def test_cdf_distance_is_that_of_kolmogorov_and_smirnov():
    u = torch.rand(1000, dtype=F64, generator=seeded(0)).square()
    assert cdf_distance(u) == pytest.approx(stats.kstest(u.numpy(), "uniform").statistic, rel=1e-12)
    # The bound is for a false alarm of 1e-9, exactly that of the asymptotic distribution to first order.
    assert stats.kstwo.sf(dkw_bound(1000), 1000) == pytest.approx(1e-9, rel=0.2)


@pytest.mark.parametrize("p", [1e-4, 0.01, 0.5, 0.99])
def test_binomial_bounds_are_safe_and_not_idle(p):
    n = 20_000
    bound = float(binomial_bound(n, torch.tensor(p, dtype=F64)))
    tails = stats.binom.sf(n * p + bound, n, p) + stats.binom.cdf(math.ceil(n * p - bound) - 1, n, p)
    assert tails <= 1e-9
    assert bound <= 7.0 * math.sqrt(n * p * (1.0 - p)) + 15.0


def test_impossible_moves_are_never_allowed():
    assert binomial_bound(1000, torch.tensor([0.0, 1.0], dtype=F64)).tolist() == [0.0, 0.0]


def test_gauss_legendre_is_exact_for_polynomials():
    x, w = gauss_legendre(torch.tensor([-1.0, 0.5, 3.0], dtype=F64), nodes=4)
    assert float((w * x**7).sum()) == pytest.approx((3.0**8 - 1.0) / 8.0, rel=1e-14)


def test_integrals_with_a_root_singularity():
    assert integrate(lambda t: t.pow(-0.5), 0.0, 4.0) == pytest.approx(4.0, rel=1e-12)


class Given(NoiseConditionalDensity):
    """One of scipy's distributions, or a function of x."""

    def __init__(self, log_p, dims=1):
        super().__init__((dims,))
        self.log_p = log_p

    def forward(self, x, t, context=None, *, edges=True):
        width = 1.0 + t[:, None]  # of a density that sees the time
        log_p = torch.as_tensor(self.log_p(x / width), dtype=x.dtype).reshape(len(x), -1)
        return (log_p - width.log()).sum(1)


LAWS = [stats.norm(0.3, 0.2), stats.logistic(-1.0, 0.5), stats.laplace(0.1, 1.0), stats.t(3), stats.uniform(-1, 1.7)]


@pytest.mark.parametrize("target", LAWS, ids=lambda law: law.dist.name)
@pytest.mark.parametrize("dims", [1, 2])
def test_cubature_integrates_densities(target, dims):
    density = Given(lambda x: target.logpdf(x.numpy()), dims)
    integral = Cubature(prepared(density), 0.0, None)()
    assert integral.total == pytest.approx(1.0, abs=max(3e-5, 5.0 * integral.error))
    assert integral.error < 3e-3
    # Smooth, as no node lies at a kink of the function.
    mean = float((integral.mass * integral.x[:, 0].tanh()).sum())
    assert mean == pytest.approx(target.expect(np.tanh), abs=max(3e-5, 5.0 * integral.error))


def test_far_points_that_are_not_finite_are_no_mass_and_reported():
    """Beyond a thousand standard deviations; a hole where the mass is, is an error."""

    def overflowing(edge):
        return lambda x: torch.where(
            x.abs() < edge, -0.5 * (x / 0.5).square() - 0.5 * math.log(0.5 * math.pi), math.nan
        )

    report = check_density(Given(overflowing(500.0)), seed=1)
    assert "far nodes that are not finite count as no mass" in dict(report.notes)["density_integrates_to_one"]
    assert "note            density_integrates_to_one: " in str(report)
    with pytest.raises(ConformanceError, match=r"a log-density of NaN or .inf at x = .*wherever there is mass"):
        check_density(Given(overflowing(0.8)), 0.1 * torch.randn(8, 1, generator=seeded(0)))


def test_poisson_tails():
    for count, mean in ((0, 30.0), (12, 30.0), (80, 30.0), (3, 2.0)):
        low, high = stats.poisson.cdf(count, mean), stats.poisson.sf(count - 1, mean)
        assert poisson_tail(count, mean) == pytest.approx(min(1.0, 2.0 * min(low, high)), rel=1e-6)


def test_tails_of_counts_are_safe_and_not_idle():
    """Above the exact probability of so few or so many of unlike events, by convolution, and by two digits at most."""
    p = torch.rand(400, generator=seeded(0), dtype=F64) * 0.3
    pmf = np.ones(1)
    for chance in p.tolist():
        pmf = np.convolve(pmf, [1.0 - chance, chance])
    for count in (0, 5, 20, 40, 60, 85, 110, 150, 400):
        exact = 2.0 * min(pmf[: count + 1].sum(), pmf[count:].sum())
        assert count_tail(count, p) >= min(exact, 1.0) * (1.0 - 1e-9)
        if 1e-30 < exact < 0.01 and count:
            assert count_tail(count, p) <= 100.0 * exact
    assert count_tail(0, torch.zeros(5, dtype=F64)) == 1.0
    assert count_tail(1, torch.zeros(5, dtype=F64)) < 1e-3


def test_independent_rows_and_columns_pass_whatever_their_law():
    """Ties, heavy tails, constant and dependent columns; 20 seeds of 5 laws, at a nominal 1e-9 each."""
    for seed in range(20):
        g = seeded(seed)
        z = torch.randn(501, 4, dtype=F64, generator=g)
        for x in (z, z.tan(), z.round(), (z > 2.5).double(), z.exp()):
            expect_independent_rows(x, g, "", "")
            expect_independent_columns(x, g, "", "")
        expect_independent_rows(torch.cat([z, z[:, :2] + z[:, 2:], 0.0 * z], dim=1), g, "", "")
        expect_independent_pairs(z[:256].reshape(128, 2, 4), "", "", g)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: torch.cat([z[:250], z[:251]]),
        lambda z: torch.cat([z[:250], -z[:251]]),
        lambda z: torch.cat([z[:250], z[:251].flip(0)]),
        lambda z: torch.cat([z[:250], z[:251].abs() * z[250:].sign()]),
        lambda z: z[:251].repeat_interleave(2, 0)[:501],
        lambda z: z - 0.5 * z.roll(1, 0),
    ],
)
def test_dependent_rows_are_seen(change):
    with pytest.raises(CheckError, match="a correlation of"):
        expect_independent_rows(change(torch.randn(501, 2, dtype=F64, generator=seeded(0))), seeded(1), "", "")


def test_a_progress_bar_is_shown_where_asked_for(capsys):
    check_noise_process(VP)
    assert capsys.readouterr().err == ""  # no terminal
    check_noise_process(VP, progress=True)
    assert "checks of VPSDE" in capsys.readouterr().err


# Strategies.


@given(process=strategies.gaussian_processes())
@settings(max_examples=10)
def test_drawn_gaussian_processes_conform(process):
    assert isinstance(process, GaussianProcess)
    assert "perturbed_data_have_the_moments" in check_noise_process(process).passed


@given(process=strategies.linear_sdes())
@settings(max_examples=10)
def test_drawn_linear_sdes_conform(process):
    assert "transitions_compose" in check_noise_process(process).passed


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_drawn_batches_are_finite_and_bounded(data, dtype):
    shape = data.draw(strategies.event_shapes())
    x = data.draw(strategies.batches(shape, dtype=dtype, min_rows=0, max_rows=3, bound=2.5))
    assert (x.dtype, tuple(x.shape[1:])) == (dtype, shape)
    assert x.shape[0] <= 3
    assert bool((x.abs() <= 2.5).all())


@given(data=st.data())
def test_drawn_lattice_batches_are_on_the_lattice(data):
    grid = data.draw(strategies.lattices())
    x = data.draw(strategies.lattice_batches(grid, (2,)))
    grid.check(x)
    assert 2 <= grid.levels <= 256
    assert x.shape[1:] == (2,)


@given(data=st.data())
def test_drawn_times_are_times_of_the_process(data):
    t = data.draw(strategies.times(VP))
    rows = data.draw(strategies.row_times(VP, 3))
    generator = data.draw(strategies.generators())
    x = torch.zeros(3, 2, dtype=F64)
    assert 0.0 <= t <= VP.T
    y = VP.perturb(x, rows, generator=generator)
    assert bool((y[rows == 0] == 0).all())
    assert VP.perturb(x, t).shape == x.shape


@given(data=st.data())
@settings(max_examples=1)
def test_batches_of_other_dtypes_are_refused(data):
    with pytest.raises(ArgumentError, match=r"dtype: got torch\.float16"):
        data.draw(strategies.batches((2,), dtype=torch.float16))
