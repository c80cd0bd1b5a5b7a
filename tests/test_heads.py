"""Mixture heads: exact masses, normalised densities, stable tails, and samples of exactly that law.

The oracles are scipy, mpmath with 50 digits, and the trapezoidal rule, which converges exponentially
for these functions (analytic in a strip of half-width pi s, or entire).
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from ncml import Lattice
from ncml.nn import GaussianHead, LogisticHead, MixtureHead
from ncml.nn.heads import CEILING
from tests.problems import seeded
from tests.statistics import ALPHA, assert_law, ks_bound, ks_distance

F64 = torch.float64
HEADS = [LogisticHead, GaussianHead]
SCIPY = {LogisticHead: stats.logistic, GaussianHead: stats.norm}
MEANS = torch.linspace(-1.2, 1.2, 97, dtype=F64)
LOG_SCALES = [-9.0, -7.0, -5.0, -3.0, -1.0, 2.0]

heads = pytest.mark.parametrize("kind", HEADS, ids=lambda k: k.__name__)


def components(head: MixtureHead, x, means, log_scale, edges=None):
    """Log-density of values ``(N,)`` under components with these means and log-scales, ``(N, K)``."""
    rows = None if edges is None else torch.as_tensor(edges).expand(len(x))
    log_scales = torch.as_tensor(log_scale, dtype=x.dtype)
    return head._log_components(x[:, None, None], means.to(x.dtype), log_scales, rows)[:, 0]


def outputs_of(head: MixtureHead, seed: int = 0, rows: int = 1, spread: float = 1.0):
    """Random network outputs ``(rows, 1, 3K)`` with scales of about a level and up."""
    generator = seeded(seed)
    return spread * torch.randn(rows, 1, head.outputs, dtype=F64, generator=generator)


def effective(head: MixtureHead, outputs):
    """Weights, means and scales of one row of outputs, by numpy alone."""
    logits, means, raw = outputs.double().numpy().reshape(3, head.components)
    inner = head.floor + np.logaddexp(0.0, raw - head.floor)
    scales = np.exp(CEILING - np.logaddexp(0.0, CEILING - inner))
    return special.softmax(logits), means, scales


# Masses.


@heads
@pytest.mark.parametrize(
    ("levels", "dtype", "tolerance"),
    [
        *[(levels, F64, 1e-12) for levels in (2, 17, 256)],
        *[(levels, torch.float32, 3e-6) for levels in (2, 17)],
        # 8-bit points are rounded to float32 by up to 3e-8, times the slope 1/(4s) of the CDF where bins meet.
        (256, torch.float32, 2e-5),
    ],
)
def test_masses_sum_to_one(kind, levels, dtype, tolerance):
    head = kind(1, Lattice(levels))
    points = head.lattice.points(dtype=dtype)
    for log_scale in LOG_SCALES:
        mass = components(head, points, MEANS, log_scale, edges=True).exp() * head.lattice.width
        assert (mass.sum(0) - 1.0).abs().max() <= tolerance


@heads
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_mixture_masses_sum_to_one(kind, levels):
    head = kind(7, Lattice(levels))
    points = head.lattice.points(dtype=F64)
    for seed in range(5):
        outputs = outputs_of(head, seed, spread=3.0).expand(levels, 1, -1)
        log_p = head.log_prob(outputs, points[:, None], torch.ones(levels, dtype=torch.bool))
        assert float(log_p.exp().sum() * head.lattice.width) == pytest.approx(1.0, abs=1e-12)


@heads
def test_interior_masses_without_edges_lose_exactly_the_tails(kind):
    head, law = kind(1, Lattice(17)), SCIPY[kind](loc=0.3, scale=0.2)
    mass = components(head, head.lattice.points(dtype=F64), torch.tensor([0.3], dtype=F64), math.log(0.2)).exp()
    reach = 1.0 + head.lattice.half_width
    assert float(mass.sum() * head.lattice.width) == pytest.approx(law.cdf(reach) - law.cdf(-reach), abs=1e-12)


@heads
@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.0])
def test_masses_equal_differences_of_scipys_cdf(kind, log_scale):
    """Where that difference is accurate: mass above 1e-6."""
    head, means = kind(1, Lattice(256)), torch.tensor([-0.7, 0.0, 0.4], dtype=F64)
    x = head.lattice.points(dtype=F64)
    law = SCIPY[kind](loc=means.numpy(), scale=math.exp(log_scale))
    delta = head.lattice.half_width
    lower, upper = x.numpy()[:, None] - delta, x.numpy()[:, None] + delta
    left = law.cdf(upper) - law.cdf(lower)
    right = law.sf(lower) - law.sf(upper)
    expected = np.where(x.numpy()[:, None] < means.numpy(), left, right)
    mass = components(head, x, means, log_scale).exp().numpy() * head.lattice.width
    large = expected > 1e-6
    assert large.any()
    np.testing.assert_allclose(mass[large], expected[large], rtol=1e-9)


@heads
@given(levels=st.integers(2, 300), mean=st.floats(-3.0, 3.0), log_scale=st.floats(-9.0, 7.0))
def test_any_component_has_masses_that_sum_to_one_and_a_bounded_density(kind, levels, mean, log_scale):
    """A mass is at most 1, so a density is at most 1 / width: the objective stays bounded as t -> 0."""
    head = kind(1, Lattice(levels))
    means, bound = torch.tensor([mean], dtype=F64), -math.log(head.lattice.width)
    points = head.lattice.points(dtype=F64)
    log_p = components(head, points, means, log_scale, edges=True)
    assert float(log_p.exp().sum() * head.lattice.width) == pytest.approx(1.0, abs=1e-12)
    anywhere = components(head, torch.cat([points + 0.37 * head.lattice.width, means]), means, log_scale)
    assert float(torch.cat([log_p, anywhere]).max()) <= bound + 1e-12


@heads
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8),
    outputs=st.lists(st.floats(-50.0, 50.0, width=32), min_size=6, max_size=6),
    edges=st.booleans(),
)
def test_any_mixture_is_finite_with_a_bounded_gradient_in_float32(kind, values, outputs, edges):
    """The slope of a logistic mixture is at most 1/s of its narrowest component."""
    head = kind(2, Lattice(256))
    x = torch.tensor(values, dtype=torch.float32)[:, None].requires_grad_()
    rows = torch.tensor(outputs, dtype=torch.float32).expand(len(x), 1, 6)
    log_p = head.log_prob(rows, x, torch.full((len(x),), edges))
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert bool(log_p.isfinite().all())
    assert bool(slope.isfinite().all())
    if kind is LogisticHead:
        narrowest = effective(head, rows[0, 0])[2].min()
        # Responsibilities are exponentials of log-densities, each rounded to float32.
        rounding = 1e-4 + 4.0 * torch.finfo(torch.float32).eps * float(log_p.detach().abs().max())
        assert float(slope.abs().max()) <= math.exp(rounding) / narrowest


@heads
@given(
    outputs=st.lists(st.floats(-50.0, 50.0), min_size=6, max_size=6),
    noise=st.lists(st.floats(1e-9, 1.0 - 1e-9), min_size=3, max_size=3),
)
def test_any_sample_on_the_lattice_is_a_lattice_point(kind, outputs, noise):
    head = kind(2, Lattice(17))
    rows, u = torch.tensor(outputs, dtype=F64).reshape(1, 1, 6), torch.tensor(noise, dtype=F64).reshape(1, 1, 3)
    x = head.sample(rows, u, torch.tensor([True]))
    assert bool(head.lattice.on_lattice(x).all())
    assert bool(head.sample(rows, u, torch.tensor([False])).isfinite().all())


def test_uniform_mass_is_eight_bits_and_a_symmetric_coin_is_one():
    lattice = Lattice(256)
    uniform = torch.full((4,), -3072 * math.log(256 * lattice.width), dtype=F64)
    assert lattice.bits_per_dim(uniform, dims=3072).mean == pytest.approx(8.0, abs=1e-13)
    for kind in HEADS:
        coin = kind(1, Lattice(2))
        log_p = components(coin, coin.lattice.points(dtype=F64), torch.zeros(1), -1.0, edges=True)[:, 0]
        assert coin.lattice.bits_per_dim(log_p, dims=1).mean == pytest.approx(1.0, abs=1e-13)


# Edges.


@heads
def test_edges_reach_to_infinity_on_the_right_sides_and_only_where_asked(kind):
    head, law = kind(1, Lattice(17)), SCIPY[kind](loc=0.3, scale=0.25)
    x, delta = head.lattice.points(dtype=F64), head.lattice.half_width
    mean, log_scale = torch.tensor([0.3], dtype=F64), math.log(0.25)
    plain = components(head, x, mean, log_scale)[:, 0]
    edged = components(head, x, mean, log_scale, edges=True)[:, 0] + math.log(head.lattice.width)
    assert float(edged[0]) == pytest.approx(law.logcdf(-1.0 + delta), rel=1e-12)
    assert float(edged[-1]) == pytest.approx(law.logsf(1.0 - delta), rel=1e-12)
    assert torch.equal(edged[1:-1], plain[1:-1] + math.log(head.lattice.width))
    assert torch.equal(components(head, x, mean, log_scale, edges=False)[:, 0], plain)
    one_row = torch.zeros(17, dtype=torch.bool)
    one_row[0] = True
    mixed = components(head, x, mean, log_scale, edges=one_row)[:, 0] + math.log(head.lattice.width)
    assert mixed[0] == edged[0]
    assert mixed[-1] == plain[-1] + math.log(head.lattice.width)


@pytest.mark.parametrize(("scale", "gap"), [(0.002, 0.15), (0.005, 0.61), (0.01, 1.13), (0.05, 2.58), (0.1, 3.26)])
def test_gap_between_edge_and_interior_mass_at_a_saturated_pixel(scale, gap):
    head, one = LogisticHead(1, Lattice(256)), torch.ones(1, dtype=F64)
    edge, interior = (components(head, one, one, math.log(scale), edges=e) for e in (True, False))
    assert float(edge - interior) == pytest.approx(gap, abs=0.006)


def test_the_edge_bin_is_chosen_by_level_not_by_value():
    """A value rounded to float32 just inside the lattice still lies in the last bin."""
    head = LogisticHead(1, Lattice(256))
    x = torch.tensor([1.0, 1.0 - 1e-6, 1.0 + 1e-6], dtype=F64)
    log_p = components(head, x, torch.zeros(1), -3.0, edges=True)
    assert (log_p - log_p[0]).abs().max() < 1e-4


# Densities.


@heads
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_scale", LOG_SCALES)
def test_open_density_integrates_to_one(kind, levels, log_scale):
    head, scale = kind(1, Lattice(levels)), math.exp(log_scale)
    reach = head.lattice.half_width + scale * (45.0 if kind is LogisticHead else 12.0)
    step = scale / 2.0
    mean = 0.37
    x = torch.arange(mean - reach, mean + reach, step, dtype=F64)
    total = components(head, x, torch.tensor([mean], dtype=F64), log_scale).exp().sum() * step
    assert float(total) == pytest.approx(1.0, abs=1e-12)


@heads
def test_continuous_components_are_scipys(kind):
    head = kind(1)
    x = torch.linspace(-30.0, 30.0, 41, dtype=F64)
    means = torch.tensor([-0.5, 0.2], dtype=F64)
    expected = SCIPY[kind](loc=means.numpy(), scale=math.exp(-1.5)).logpdf(x.numpy()[:, None])
    np.testing.assert_allclose(components(head, x, means, -1.5).numpy(), expected, rtol=1e-12)


@heads
@pytest.mark.parametrize("lattice", [None, Lattice(17)], ids=["continuous", "lattice"])
def test_mixture_is_the_weighted_sum_of_scipys_components(kind, lattice):
    head = kind(4, lattice)
    outputs = outputs_of(head, 3)
    weights, means, scales = effective(head, outputs)
    x = np.linspace(-1.5, 1.5, 13)
    law = SCIPY[kind](loc=means, scale=scales)
    if lattice is None:
        density = law.pdf(x[:, None]) @ weights
    else:
        delta = lattice.half_width
        density = (law.cdf(x[:, None] + delta) - law.cdf(x[:, None] - delta)) @ weights / lattice.width
    log_p = head.log_prob(outputs.expand(13, 1, -1), torch.tensor(x)[:, None])[:, 0]
    np.testing.assert_allclose(log_p.exp().numpy(), density, rtol=1e-9)


def _log_mass(kind, x, mean, log_scale, delta):
    """``log[F(b) - F(a)]`` with mpmath, from exact float arguments."""
    scale = mpmath.exp(mpmath.mpf(log_scale))
    a, b = ((mpmath.mpf(x) - mpmath.mpf(mean) + side * mpmath.mpf(delta)) / scale for side in (-1, 1))
    if a + b > 0:  # both laws are symmetric: work in the left tail
        a, b = -b, -a
    if kind is LogisticHead:
        return mpmath.log(1 / (1 + mpmath.exp(-b)) - 1 / (1 + mpmath.exp(-a)))
    return mpmath.log((mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))) / 2)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -3.0, 0.0, 7.0])
def test_logistic_mass_obeys_the_error_bound_against_fifty_digits(dtype, log_scale):
    """``|error| <= 2 eps (|x| + |m| + delta)/s + 4 eps |log mass|``, far beyond where CDFs cancel."""
    head, eps = LogisticHead(1, Lattice(256)), torch.finfo(dtype).eps
    delta = head.lattice.half_width
    x = torch.tensor([-1e4, -30.0, -1.0, -0.1, 0.0, 1 / 255, 0.5, 1.0, 3.0, 1e4], dtype=dtype)
    for mean in (0.0, -0.7, 0.9):
        m = torch.tensor([mean], dtype=dtype)
        log_mass = (components(head, x, m, log_scale).double() + math.log(head.lattice.width))[:, 0].tolist()
        with mpmath.workdps(60):
            for value, got in zip(x.tolist(), log_mass, strict=True):
                # The scale is itself rounded by exp in the dtype, which the bound's first term covers.
                expected = _log_mass(LogisticHead, value, m.item(), log_scale, delta)
                bound = 2 * eps * (abs(value) + abs(m.item()) + delta) / math.exp(log_scale)
                assert abs(float(got - expected)) <= bound + 4 * eps * abs(float(expected)), (value, mean)


@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 7.0])
def test_gaussian_mass_equals_fifty_digits_also_in_the_tails(log_scale):
    """Relative to the size of the exponent, z^2/2; at the largest scale bins are 7e-6 wide in z."""
    head = GaussianHead(1, Lattice(256))
    x = torch.tensor([-30.0, -1.0, -0.1, 0.0, 1 / 255, 0.5, 1.0, 3.0, 100.0], dtype=F64)
    log_mass = components(head, x, torch.tensor([0.25], dtype=F64), log_scale)[:, 0] + math.log(head.lattice.width)
    with mpmath.workdps(60):
        for value, got in zip(x.tolist(), log_mass.tolist(), strict=True):
            if abs(value - 0.25) / math.exp(log_scale) > 1e5:
                continue  # beyond mpmath's erfc in reasonable time
            expected = float(_log_mass(GaussianHead, value, 0.25, log_scale, head.lattice.half_width))
            assert got == pytest.approx(expected, rel=1e-12, abs=2e-10)


@heads
def test_float32_whole_head_is_within_1e_5_bits_per_dim_of_float64(kind):
    head, dims = kind(10, Lattice(256)), 3072
    generator = seeded(0)
    outputs = torch.randn(2, dims, 30, generator=generator)
    outputs[..., 20:] -= 4.0
    x = head.lattice.to_unit(torch.randint(0, 256, (2, dims), generator=generator))
    edges = torch.tensor([True, False])
    exact = head.log_prob(outputs.double(), x.double(), edges).sum(1)
    single = head.log_prob(outputs, x, edges)
    assert single.dtype == torch.float32
    assert float((single.double().sum(1) - exact).abs().max()) / (dims * math.log(2.0)) <= 1e-5


# Gradients.


@pytest.mark.parametrize("log_scale", [-20.0, -7.0, 0.0, 30.0, 80.0])
def test_logistic_formula_is_finite_with_finite_gradients_everywhere(log_scale):
    head = LogisticHead(1, Lattice(256))
    x = torch.tensor([0.0, 1e-3, 1.0, 10.0, 1e3, 1e4])
    x = torch.cat([-x, x]).requires_grad_()
    mean = torch.zeros(1, requires_grad=True)
    log_scales = torch.full((len(x), 1, 1), log_scale, requires_grad=True)
    for edges in (None, torch.ones(len(x), dtype=torch.bool)):
        value = head._log_components(x[:, None, None], mean, log_scales, edges)
        assert bool(value.isfinite().all())
        for gradient in torch.autograd.grad(value.sum(), (x, mean, log_scales)):
            assert bool(gradient.isfinite().all())


@heads
@pytest.mark.parametrize("lattice", [None, Lattice(2), Lattice(256), Lattice(65_536)], ids=str)
def test_head_is_finite_with_finite_gradients_for_any_outputs(kind, lattice):
    """Over the whole range of scales that the soft bounds let through, and far outside the data."""
    head = kind(1, lattice)
    reach = 1e4 if lattice != Lattice(65_536) else 1e2  # z = 1e10 is beyond torch's log_ndtr
    values = torch.tensor([-reach, -30.0, -1.0, 0.0, 0.5, 1.0, 30.0, reach])
    raw = torch.tensor([-1e4, -20.0, -7.0, 0.0, 7.0, 1e4])
    x, raw = (v.reshape(-1, 1).clone().requires_grad_() for v in torch.meshgrid(values, raw, indexing="ij"))
    outputs = torch.stack([torch.zeros_like(raw), torch.zeros_like(raw), raw], dim=-1)
    for edges in (None, torch.ones(len(x), dtype=torch.bool)):
        log_p = head.log_prob(outputs, x, edges)
        assert bool(log_p.isfinite().all())
        for gradient in torch.autograd.grad(log_p.sum(), (x, raw), retain_graph=True):
            assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 3.0])
def test_logistic_gradients_are_the_closed_forms(log_scale):
    head, scale = LogisticHead(1, Lattice(256)), math.exp(log_scale)
    x = torch.linspace(-3.0, 3.0, 61, dtype=F64).requires_grad_()
    mean = torch.full((61, 1, 1), 0.3, dtype=F64, requires_grad=True)
    log_scales = torch.full((61, 1, 1), log_scale, dtype=F64, requires_grad=True)
    value = head._log_components(x[:, None, None], mean, log_scales, None)
    dx, dm, dls = (g.flatten() for g in torch.autograd.grad(value.sum(), (x, mean, log_scales)))
    a, b = ((x.detach().numpy() - 0.3 + side * head.lattice.half_width) / scale for side in (-1, 1))
    expected = (special.expit(-b) - special.expit(a)) / scale
    np.testing.assert_allclose(dx.numpy() * scale, expected * scale, atol=1e-12)
    assert torch.equal(dm, -dx)
    u = 2.0 * head.lattice.half_width / scale
    in_scale = a * special.expit(a) - b * special.expit(-b) - (u / np.expm1(u) if u < 700 else 0.0)
    np.testing.assert_allclose(dls.numpy(), in_scale, atol=1e-11, rtol=1e-12)
    assert float(dx.abs().max()) * scale <= 1.0 + 1e-12


def test_logistic_gradient_vanishes_only_at_the_mean_and_tends_to_one_over_s():
    head, scale = LogisticHead(1, Lattice(256)), math.exp(-3.0)
    x = torch.tensor([-50.0, -0.5, 0.25, 0.5, 50.0], dtype=F64, requires_grad=True)
    total = components(head, x, torch.tensor([0.25], dtype=F64), -3.0).sum()
    (dx,) = torch.autograd.grad(total, x)
    assert dx[2] == 0.0
    assert bool((dx[:2] > 0).all())
    assert bool((dx[3:] < 0).all())
    assert (dx[[0, 4]] * scale).tolist() == pytest.approx([1.0, -1.0], abs=1e-12)


@heads
@pytest.mark.parametrize("lattice", [None, Lattice(5)], ids=["continuous", "lattice"])
@pytest.mark.parametrize("edges", [None, True], ids=["open", "edges"])
def test_gradcheck_and_gradgradcheck(kind, lattice, edges):
    head = kind(2, lattice)
    outputs = outputs_of(head, 1, rows=3).requires_grad_()
    x = torch.tensor([[-0.5], [0.0], [0.5]] if edges is None else [[-1.0], [0.0], [1.0]], dtype=F64)
    rows = None if edges is None else torch.ones(3, dtype=torch.bool)
    if edges is None:
        x = (x + 0.07).requires_grad_()
    assert torch.autograd.gradcheck(lambda o, v: head.log_prob(o, v, rows), (outputs, x))
    assert torch.autograd.gradgradcheck(lambda o, v: head.log_prob(o, v, rows), (outputs, x))


# Soft bounds.


@pytest.mark.parametrize("log_scale", [-4.0, -2.5])
def test_the_gaussian_mass_has_its_curvature_at_the_mean(log_scale):
    """With half a level h in units of the scale s: (log m)'' = -2 h phi(h) / ((2 Phi(h) - 1) s^2)."""
    head = GaussianHead(1, Lattice(256))
    scale = math.exp(log_scale)
    h = head.lattice.half_width / scale
    expected = -2.0 * h * stats.norm.pdf(h) / (special.erf(h / math.sqrt(2.0)) * scale**2)

    def log_mass(x):
        return components(head, x, torch.tensor([0.1], dtype=F64), log_scale).sum()

    for x in (0.1, 0.1 + 1e-9):
        curvature = torch.autograd.functional.hessian(log_mass, torch.tensor([x], dtype=F64))
        assert float(curvature) == pytest.approx(expected, rel=1e-6)


@heads
def test_scales_are_bounded_monotone_and_keep_their_gradient(kind):
    head = kind(1, Lattice(256))
    assert head.floor == pytest.approx(-7.0, abs=2e-3)
    assert kind(1).floor == -7.0
    raw = torch.linspace(-25.0, 25.0, 201, dtype=F64, requires_grad=True)
    outputs = torch.stack([torch.zeros_like(raw), torch.zeros_like(raw), raw], dim=-1)[:, None]
    log_scales = head._unpack(outputs)[2][:, 0, 0]
    assert bool((log_scales > head.floor - 1e-6).all())
    assert bool((log_scales < CEILING).all())
    assert bool((log_scales.diff() > 0).all())
    (slope,) = torch.autograd.grad(log_scales.sum(), raw, retain_graph=True)
    assert float(slope.min()) > 1e-9  # a clamp would give exactly 0 at both ends
    inside = (raw.detach() > -3.0) & (raw.detach() < 3.0)
    assert (log_scales - raw)[inside].abs().max() < 0.02
    (gradient,) = torch.autograd.grad(head.log_prob(outputs, torch.full((201, 1), 0.4, dtype=F64)).sum(), raw)
    assert float(gradient.abs().min()) > 0.0


def test_initial_bias_is_an_even_mixture_over_the_data():
    head = LogisticHead(3, Lattice(256))
    weights, means, scales = effective(head, head.initial_bias())
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(means, [-0.5, 0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(scales, 0.25, rtol=0.01)


# Precision.


@heads
def test_autocast_does_not_reach_the_head(kind, monkeypatch):
    head = kind(5, Lattice(256))
    generator = seeded(0)
    outputs = torch.randn(4, 30, 15, generator=generator)
    x = head.lattice.to_unit(torch.randint(0, 256, (4, 30), generator=generator))
    edges = torch.tensor([True, False, True, False])
    plain, inside, compute = head.log_prob(outputs, x, edges), [], kind._log_components
    monkeypatch.setattr(
        kind, "_log_components", lambda *a: inside.append(torch.is_autocast_enabled("cpu")) or compute(*a)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head.log_prob(outputs, x, edges)
    assert inside == [False]
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@heads
def test_outputs_in_bfloat16_cost_at_most_2e_3_bits_per_dim(kind):
    head, dims = kind(10, Lattice(256)), 3072
    generator = seeded(1)
    outputs = torch.randn(1, dims, 30, generator=generator)
    outputs[..., 20:] -= 3.0
    x = head.lattice.to_unit(torch.randint(0, 256, (1, dims), generator=generator))
    exact, rounded = (head.log_prob(o, x).double().sum() for o in (outputs, outputs.bfloat16()))
    assert head.log_prob(outputs.bfloat16(), x).dtype == torch.float32
    assert 0.0 < abs(float(exact - rounded)) / (dims * math.log(2.0)) <= 2e-3


# Sampling.


def _draw(head, outputs, n, on_lattice, seed=0):
    noise = head.draw_noise(n, 1, F64, torch.device("cpu"), seeded(seed))
    return head.sample(outputs.expand(n, 1, -1), noise, torch.full((n,), on_lattice))[:, 0]


@heads
@pytest.mark.parametrize("levels", [3, 17, 256])
def test_quantile_then_rounding_gives_each_level_exactly_its_mass(kind, levels):
    """Deterministic: a level's share of a grid of quantiles is its mass up to one grid point at each end."""
    head, n = kind(1, Lattice(levels)), 20_000
    outputs = torch.tensor([0.0, 0.2, -1.0], dtype=F64).expand(n, 1, 3)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    noise = torch.stack([torch.full_like(u, 0.5), u, torch.full_like(u, 0.9)], dim=-1)[:, None]
    x = head.sample(outputs, noise, torch.ones(n, dtype=torch.bool))[:, 0]
    assert bool(head.lattice.on_lattice(x).all())
    share = torch.bincount(head.lattice.nearest(x), minlength=levels).double() / n
    points = head.lattice.points(dtype=F64)[:, None]
    log_p = head.log_prob(outputs[:levels], points, torch.ones(levels, dtype=torch.bool))[:, 0]
    assert (share - log_p.exp() * head.lattice.width).abs().max() <= 1.0 / n + 1e-12


@heads
@pytest.mark.parametrize("levels", [17, 256])
def test_lattice_samples_follow_the_mass(kind, levels):
    """Chi-square over levels with at least 10 expected counts, false-alarm rate 1e-9."""
    head, n = kind(3, Lattice(levels)), 100_000
    outputs = outputs_of(head, 5)
    x = _draw(head, outputs, n, True)
    points = head.lattice.points(dtype=F64)[:, None]
    edges = torch.ones(levels, dtype=torch.bool)
    mass = (head.log_prob(outputs.expand(levels, 1, -1), points, edges).exp() * head.lattice.width)[:, 0].numpy()
    counts = torch.bincount(head.lattice.nearest(x), minlength=levels).numpy()
    common = n * mass >= 10.0
    assert common.sum() >= 0.9 * levels
    statistic = ((counts - n * mass) ** 2 / (n * mass))[common].sum()
    assert statistic < stats.chi2.isf(ALPHA, df=int(common.sum()))


def _window_cdf(kind, x, means, scales, delta):
    """CDF of a component plus U(-delta, delta): ``(s/2d)[G(b) - G(a)]`` with G' = F."""
    a, b = ((x - means + side * delta) / scales for side in (-1, 1))
    if kind is LogisticHead:
        difference = np.logaddexp(0.0, b) - np.logaddexp(0.0, a)
    else:
        difference = (b * stats.norm.cdf(b) + stats.norm.pdf(b)) - (a * stats.norm.cdf(a) + stats.norm.pdf(a))
    return scales / (2.0 * delta) * difference


@heads
def test_window_cdf_has_the_density_as_its_derivative(kind):
    head, mean, scale, h = kind(1, Lattice(17)), 0.1, 0.05, 1e-4
    x = np.linspace(-0.3, 0.5, 41)
    rise = _window_cdf(kind, x + h, mean, scale, 1 / 16) - _window_cdf(kind, x - h, mean, scale, 1 / 16)
    density = components(head, torch.tensor(x), torch.tensor([mean], dtype=F64), math.log(scale))[:, 0].exp()
    np.testing.assert_allclose(density.numpy(), rise / (2 * h), rtol=1e-4, atol=1e-9)
    assert _window_cdf(kind, 20.0, mean, scale, 1 / 16) == pytest.approx(1.0, abs=1e-9)


@heads
@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.0])
def test_noisy_samples_follow_the_component_plus_a_uniform(kind, log_scale):
    head, n = kind(2, Lattice(17)), 100_000
    outputs = torch.tensor([0.3, -0.3, -0.5, 0.4, log_scale, log_scale + 0.5], dtype=F64).reshape(1, 1, 6)
    x = _draw(head, outputs, n, False)
    weights, means, scales = effective(head, outputs)
    assert_law(x, lambda v: _window_cdf(kind, v[:, None], means, scales, head.lattice.half_width) @ weights)
    if log_scale == -4.0:  # the test has power: without the window it would fail
        assert ks_distance(x, lambda v: SCIPY[kind].cdf(v[:, None], means, scales) @ weights) > 2 * ks_bound(n)


@heads
def test_continuous_samples_follow_the_mixture(kind):
    head = kind(3)
    outputs = outputs_of(head, 2)
    weights, means, scales = effective(head, outputs)
    samples = _draw(head, outputs, 100_000, False)
    assert_law(samples, lambda v: SCIPY[kind].cdf(v[:, None], means, scales) @ weights)


@heads
def test_component_is_picked_by_inverse_cdf_of_the_weights(kind):
    head, n = kind(3), 1000
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=F64).log()
    outputs = torch.cat([logits, torch.tensor([-5.0, 0.0, 5.0, -6.0, -6.0, -6.0], dtype=F64)]).expand(n, 1, 9)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    noise = torch.stack([u, torch.full_like(u, 0.5), torch.full_like(u, 0.5)], dim=-1)[:, None]
    x = head.sample(outputs, noise, torch.zeros(n, dtype=torch.bool))[:, 0]
    assert torch.equal(
        x.round(), torch.tensor([-5.0, 0.0, 5.0], dtype=F64).repeat_interleave(torch.tensor([200, 500, 300]))
    )


@heads
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_stays_inside_the_unit_interval_where_samples_are_finite(kind, dtype, monkeypatch):
    head = kind(2, Lattice(256))
    largest = 1.0 - torch.finfo(dtype).eps / 2
    for extreme in (0.0, largest):
        monkeypatch.setattr(torch, "rand", lambda *shape, value=extreme, **_: torch.full(shape, value, dtype=dtype))
        noise = head.draw_noise(4, 2, dtype, torch.device("cpu"), None)
        assert bool(((noise > 0) & (noise < 1)).all())
        for on_lattice in (True, False):
            x = head.sample(torch.zeros(4, 2, 6, dtype=dtype), noise, torch.full((4,), on_lattice))
            assert bool(x.isfinite().all())
    assert noise.shape == (4, 2, 3)


def test_noise_is_reproducible_and_uses_only_the_given_generator():
    head, device = LogisticHead(2), torch.device("cpu")
    before = torch.get_rng_state()
    first, second = (head.draw_noise(5, 3, F64, device, seeded(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("head", [LogisticHead(2), GaussianHead(2)])
@pytest.mark.parametrize("value", [-3e38, -1e37, 1e37, 3e38])
def test_values_that_overflow_are_impossible_not_undefined(head, value):
    """Single precision has no number for their distance in narrow scales: minus infinity, on both sides."""
    outputs = torch.zeros(1, 1, head.outputs)
    outputs[..., 4:] = -6.0
    assert head.log_prob(outputs, torch.tensor([[value]])).item() == -torch.inf
