"""Gaussian, mixture and lattice densities against scipy, quadrature, convolution and Bayes by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ncml import LevelNoise
from ncml.densities import CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.score import exact_divergence, hutchinson_divergence, log_density_and_score, sliced_score_matching
from tests.problems import (
    MEAN,
    MEANS,
    PMF,
    PROCESSES,
    SDES,
    STD,
    STDS,
    WEIGHTS,
    each_process,
    gaussian,
    lattice,
    mixture,
    plane_mixture,
    same_bits,
    seeded,
)
from tests.statistics import assert_frequencies, assert_law, normal_cdf

F64 = torch.float64
VP = SDES["vp"]
X = torch.linspace(-2.0, 2.0, 81, dtype=F64)[:, None]
POINTS = torch.linspace(-1.0, 1.0, 17, dtype=F64)
each_fraction = pytest.mark.parametrize("fraction", [0.0, 0.01, 0.4, 1.0])
each_noisy_fraction = pytest.mark.parametrize("fraction", [0.3, 0.6, 1.0])


def coefficients(process, t: float) -> tuple[float, float]:
    return float(process.alpha(t)), float(process.sigma(t))


def integral(density, t: float, low: float = -4.0, high: float = 4.0, cells: int = 40_000) -> float:
    """The trapezoidal rule over one dimension; exponentially accurate for smooth densities with light tails."""
    x = torch.linspace(low, high, cells + 1, dtype=F64)[:, None]
    return float(density.log_density(x, t).exp().sum()) * (high - low) / cells


# Gaussians and mixtures.


@each_process
@each_fraction
def test_log_densities_equal_scipy(process, fraction):
    t = fraction * process.T
    alpha, sigma = coefficients(process, t)

    def normal(mean, std):
        return stats.norm(alpha * mean, math.hypot(alpha * std, sigma)).pdf(X[:, 0].numpy())

    expected = stats.norm(alpha * MEAN, math.hypot(alpha * STD, sigma)).logpdf(X[:, 0].numpy())
    assert np.allclose(gaussian(process).log_prob(X, t).numpy(), expected, rtol=1e-12, atol=1e-12)
    expected = np.log(sum(w * normal(m, s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)))
    assert np.allclose(mixture(process).log_prob(X, t).numpy(), expected, rtol=1e-11, atol=1e-11)


@each_process
@each_fraction
def test_densities_integrate_to_one(process, fraction):
    for density in (gaussian(process), mixture(process)):
        assert integral(density, fraction * process.T) == pytest.approx(1.0, abs=1e-12)


@each_process
@each_noisy_fraction
def test_noisy_densities_are_convolutions(process, fraction):
    """p_t(x) = int p_0(y) N(x; alpha y, sigma^2) dy, by quadrature over the kernel of the process."""
    t = fraction * process.T
    alpha, sigma = coefficients(process, t)
    y = torch.linspace(-3.0, 3.0, 6001, dtype=F64)[:, None]
    for density in (gaussian(process), mixture(process)):
        kernel = torch.from_numpy(stats.norm.pdf(X.numpy(), alpha * y[:, 0].numpy(), sigma))
        expected = kernel @ density.log_prob(y, 0.0).exp() * 0.001
        assert torch.allclose(density.log_prob(X, t).exp(), expected, rtol=1e-9, atol=1e-11)


@each_process
def test_a_mixture_in_the_plane(process):
    """Event dimensions are independent within a component; t varies over the batch."""
    density = plane_mixture(process)
    x = torch.randn(50, 2, generator=seeded(0), dtype=F64)
    t = torch.rand(50, generator=seeded(1), dtype=F64) * process.T
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    components = torch.distributions.Independent(
        torch.distributions.Normal(alpha * density.means, ((alpha * density.stds) ** 2 + sigma**2).sqrt()), 1
    )
    weights = torch.distributions.Categorical(torch.tensor([0.3, 0.5, 0.2], dtype=F64))
    expected = torch.distributions.MixtureSameFamily(weights, components).log_prob(x)
    assert torch.allclose(density.log_prob(x, t), expected, rtol=1e-12, atol=1e-12)


@each_process
@each_fraction
def test_samples_follow_their_law(process, fraction):
    """Statistical, false alarm 1e-9 each."""
    t, n = fraction * process.T, 10_000
    alpha, sigma = coefficients(process, t)

    def cdf(mean, std):
        return normal_cdf(alpha * mean, math.hypot(alpha * std, sigma))

    assert_law(gaussian(process).sample(n, t, generator=seeded(1)), cdf(MEAN, STD))
    samples = mixture(process).sample(n, t, generator=seeded(2))
    parts = [(w, cdf(m, s)) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)]
    assert_law(samples, lambda x: sum(w * part(x) for w, part in parts))


@given(
    process=st.sampled_from(list(PROCESSES.values())),
    fraction=st.floats(0.0, 1.0),
    weights=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_the_order_of_components_and_the_scale_of_weights_do_not_matter(process, fraction, weights, seed):
    g, k = seeded(seed), len(weights)
    means, stds = torch.randn(k, 3, generator=g, dtype=F64), torch.rand(k, 3, generator=g, dtype=F64) + 0.05
    w, x, t = torch.tensor(weights, dtype=F64), torch.randn(4, 3, generator=g, dtype=F64), fraction * process.T
    one = GaussianMixtureDensity(process, w, means, stds)
    other = GaussianMixtureDensity(process, 7.0 * w.flip(0), means.flip(0), stds.flip(0))
    assert torch.allclose(one.log_prob(x, t), other.log_prob(x, t), rtol=1e-12, atol=1e-12)
    assert torch.allclose(one.score(x, t), other.score(x, t), rtol=1e-10, atol=1e-10)


@given(fraction=st.floats(0.0, 1.0), mean=st.floats(-3.0, 3.0), std=st.floats(0.01, 3.0))
def test_a_mixture_of_one_is_a_gaussian(fraction, mean, std):
    t = fraction * VP.T
    one = GaussianMixtureDensity(VP, [1.0], [mean], std)
    other = GaussianDensity(VP, mean, std)
    assert torch.allclose(one.log_prob(X, t), other.log_prob(X, t), rtol=1e-13, atol=1e-13)
    assert torch.allclose(one.score(X, t), other.score(X, t), rtol=1e-13, atol=1e-13)


@each_process
def test_single_precision_follows_x(process):
    """Buffers are float64; x decides. Errors of float32 stay below 1e-5 relative."""
    for density in (gaussian(process), mixture(process)):
        x = torch.linspace(-1.0, 1.0, 33)[:, None]
        narrow, wide = density.log_prob(x, process.T), density.log_prob(x.double(), process.T)
        assert (narrow.dtype, wide.dtype) == (torch.float32, F64)
        assert torch.allclose(narrow.double(), wide, rtol=1e-5, atol=1e-5)
        assert torch.allclose(density.score(x, process.T).double(), density.score(x.double(), process.T), rtol=1e-5)


def test_samples_have_the_dtype_of_the_parameters():
    assert GaussianDensity(VP, MEAN, STD).sample(2).dtype == torch.float32
    assert gaussian(VP).sample(2).dtype == mixture(VP).sample(2).dtype == F64
    assert lattice(VP).sample(2).dtype == F64
    assert ToyLattice(VP, PMF.float()).sample(2).dtype == ToyLattice(VP, PMF.tolist()).sample(2).dtype == torch.float32


@pytest.mark.parametrize("build", [gaussian, mixture, lattice])
def test_conversions_change_the_dtype_of_samples(build):
    density = build(VP)
    state = set(density.state_dict())
    assert density.float().sample(2, 0.01).dtype == density.dtype == torch.float32
    assert density.double().sample(0).dtype == density.sample(2, 0.01).dtype == F64
    assert density.to(torch.float32).dtype == torch.float32
    assert density.to("cpu").dtype == torch.float32
    assert not any("like" in name for name in state)


@pytest.mark.parametrize("build", [gaussian, mixture, lattice])
def test_samples_are_reproducible(build):
    density = build(VP)
    assert same_bits(density.sample(5, 0.01, generator=seeded(1)), density.sample(5, 0.01, generator=seeded(1)))
    assert not torch.equal(density.sample(5, generator=seeded(1)), density.sample(5, generator=seeded(2)))
    assert density.sample(0, 0.01).shape == (0, 1)
    times = torch.tensor([0.0, VP.T, 0.0, VP.T])
    assert density.sample(4, times, generator=seeded(1)).shape == (4, 1)
    for n in (-1, 2.0, True):
        with pytest.raises(ArgumentError, match=r"^n: got"):
            density.sample(n)


def test_shapes_of_parameters():
    assert GaussianDensity(VP, 0.5, 0.1).event_shape == (1,)
    assert GaussianDensity(VP, torch.zeros(2, 3), 0.1).event_shape == (2, 3)
    assert GaussianMixtureDensity(VP, [1.0, 1.0], [0.0, 1.0], [0.1, 0.2]).event_shape == (1,)
    per_component = GaussianMixtureDensity(VP, [1.0, 1.0], torch.zeros(2, 3, 4), [0.1, 0.2])
    assert per_component.event_shape == (3, 4)
    assert per_component.stds[1].unique().tolist() == [0.2]
    assert per_component.weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GaussianDensity(VP, torch.zeros(2), torch.ones(3)), ArgumentError, r"^std: got"),
        (lambda: GaussianDensity(VP, 0.0, 0.0), ArgumentError, r"^std: got"),
        (lambda: GaussianDensity(VP, math.nan, 1.0), ArgumentError, "mean: got non-finite"),
        (lambda: GaussianDensity(LevelNoise(17), 0.0, 1.0), UnsupportedError, "expected a GaussianProcess"),
        (lambda: GaussianMixtureDensity(VP, [1.0, -1.0], [0.0, 1.0], 0.1), ArgumentError, r"^weights: got"),
        (lambda: GaussianMixtureDensity(VP, [], [], 0.1), ArgumentError, r"^weights: got"),
        (lambda: GaussianMixtureDensity(VP, [1.0], [0.0, 1.0], 0.1), ArgumentError, r"^means: got"),
        (lambda: GaussianMixtureDensity(VP, [1.0], [[0.0, 1.0]], [[0.1, 0.2, 0.3]]), ArgumentError, r"^stds: got"),
        (lambda: GaussianMixtureDensity(VP, [1.0], [0.0], -0.1), ArgumentError, r"^stds: got"),
        (lambda: ToyLattice(VP, [0.5, -0.5, 1.0]), ArgumentError, r"^pmf: got"),
        (lambda: ToyLattice(VP, [0.0, 0.0]), ArgumentError, "a row without mass"),
        (lambda: ToyLattice("vp", PMF), UnsupportedError, r"^process: got"),
    ],
)
def test_bad_parameters(build, error, message):
    with pytest.raises(error, match=message):
        build()


# Lattice data.


@each_process
def test_masses_sum_to_one_at_time_zero(process):
    """log_prob at the lattice points, times the width, is the pmf itself."""
    density = lattice(process)
    mass = density.log_prob(POINTS[:, None], 0.0).exp() * density.lattice.width
    assert torch.allclose(mass, PMF, rtol=1e-14, atol=0)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("edge", ["clip", "reflect"])
@pytest.mark.parametrize("pi", [0.0, 0.25, 1.0])
def test_level_noise_convolves_the_pmf(edge, pi):
    """Inside, the convolution with (pi/2, 1 - pi, pi/2); at the edges the mass that would leave stays or returns."""
    process = LevelNoise(17, edge)
    density = lattice(process)
    p = PMF.numpy()
    full = np.convolve(p, [pi / 2, 1 - pi, pi / 2])
    expected = full[1:-1]
    inner = 0 if edge == "clip" else 1
    expected[inner] += full[0]
    expected[-1 - inner] += full[-1]
    mass = density.log_prob(POINTS[:, None], pi).exp() * density.lattice.width
    assert np.allclose(mass.numpy(), expected, rtol=1e-13, atol=1e-16)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-14)


@each_process
@each_noisy_fraction
def test_noisy_lattice_data_are_a_comb_of_gaussians(process, fraction):
    t = fraction * process.T
    density, (alpha, sigma) = lattice(process), coefficients(process, t)
    kernels = stats.norm.pdf(X.numpy(), alpha * POINTS.numpy(), sigma)
    with np.errstate(divide="ignore"):
        expected = torch.from_numpy(np.log(kernels @ PMF.numpy()))
    near = expected > -600.0  # below, the reference underflows
    assert torch.allclose(density.log_prob(X, t)[near], expected[near], rtol=1e-11, atol=1e-11)
    assert torch.isfinite(density.log_prob(X, t)).all()  # far from every point too, where the sum underflows
    assert torch.equal(density.log_prob(X, t), density.log_density(X, t))
    assert integral(density, t) == pytest.approx(1.0, abs=1e-12)


@given(
    levels=st.integers(2, 9),
    fraction=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
    x=st.floats(-1.5, 1.5),
    process=st.sampled_from(list(PROCESSES.values())),
)
def test_posterior_by_bayes(levels, fraction, seed, x, process):
    """P(x_0 = k | x_t = x) is proportional to P_k N(x; alpha x_k, sigma^2)."""
    t = fraction * process.T
    pmf = torch.rand(levels, generator=seeded(seed), dtype=F64) + 0.01
    density, (alpha, sigma) = ToyLattice(process, pmf), coefficients(process, t)
    points = np.linspace(-1.0, 1.0, levels)
    logs = np.log(pmf.numpy()) - 0.5 * ((x - alpha * points) / sigma) ** 2
    joint = np.exp(logs - logs.max())
    posterior = density.posterior(torch.tensor([[x]], dtype=F64), t)
    assert posterior.shape == (1, 1, levels)
    assert np.allclose(posterior[0, 0].numpy(), joint / joint.sum(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("edge", ["clip", "reflect"])
def test_posterior_of_level_noise_by_bayes(edge):
    process = LevelNoise(17, edge)
    posterior = lattice(process).posterior(POINTS[:, None], 0.5)[:, 0]
    joint = PMF * process.transition_matrix(0.5).t()  # observed level by row, data level by column
    assert torch.allclose(posterior, joint / joint.sum(1, keepdim=True), rtol=1e-13, atol=1e-15)


def test_the_posterior_of_what_cannot_happen_is_refused():
    """0/0, without noise, after level noise, and so far away that every density underflows."""
    gap = [0.5, 0.0, 0.0, 0.0, 0.5]
    for process, x, t in [(VP, 0.0, 0.0), (LevelNoise(5), 0.0, 0.5), (VP, 1e200, VP.T)]:
        with pytest.raises(ArgumentError, match=r"^x: got"):
            ToyLattice(process, gap).posterior(torch.tensor([[-1.0], [x]], dtype=F64), t)
    assert ToyLattice(LevelNoise(5), gap).posterior(torch.tensor([[-0.5]], dtype=F64), 0.5).tolist() == [
        [[1, 0, 0, 0, 0]]
    ]


def test_derivatives_under_level_noise_are_zero():
    """The density is flat on every bin: derivatives of any order exist, and are zero."""
    density, x = lattice(LevelNoise(17)), torch.linspace(-1.2, 1.2, 12, dtype=F64).reshape(-1, 1)
    log_p, score = log_density_and_score(density, x, 0.5)
    assert torch.equal(log_p, density.log_density(x, 0.5))
    assert torch.equal(score, torch.zeros_like(x))
    assert torch.equal(density.score(x, 0.5), torch.zeros_like(x))
    for estimate in (exact_divergence, hutchinson_divergence, sliced_score_matching):
        assert torch.equal(estimate(density, x, 0.5), torch.zeros(12, dtype=F64))


def test_posterior_without_noise_is_certain():
    assert torch.equal(lattice(VP).posterior(POINTS[:, None], 0.0)[:, 0], torch.eye(17, dtype=F64))


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_lattice_samples_follow_their_law(fraction):
    """Masses at t = 0, the comb's distribution function at t > 0; statistical."""
    t, n = fraction * VP.T, 10_000
    density, (alpha, sigma) = lattice(VP), coefficients(VP, t)
    x = density.sample(n, t, generator=seeded(3))
    if t == 0.0:
        assert density.lattice.on_lattice(x).all()
        assert_frequencies(torch.bincount(density.lattice.nearest(x).flatten(), minlength=17), PMF)
    else:
        parts = [(float(p), normal_cdf(alpha * float(m), sigma)) for p, m in zip(PMF, POINTS, strict=True)]
        assert_law(x, lambda v: sum(p * part(v) for p, part in parts))


@pytest.mark.parametrize("edge", ["clip", "reflect"])
def test_samples_under_level_noise(edge):
    process = LevelNoise(17, edge)
    density = lattice(process)
    x = density.sample(20_000, 0.5, generator=seeded(4))
    expected = PMF @ process.transition_matrix(0.5)
    assert_frequencies(torch.bincount(density.lattice.nearest(x).flatten(), minlength=17), expected)


def test_edges_apply_exactly_on_the_lattice():
    """log_prob refuses values off the lattice there; log_density takes any, flat on bins and zero outside."""
    density, half = lattice(VP), 1 / 16
    x = torch.tensor([[0.99], [1.0 + 0.99 * half], [1.0 + 1.01 * half]], dtype=F64)
    with pytest.raises(ArgumentError, match="not one of the 17 lattice points"):
        density.log_prob(x, 0.0)
    last = float(density.log_prob(torch.ones(1, 1, dtype=F64), 0.0))
    assert density.log_density(x, 0.0).tolist() == [last, last, -math.inf]
    cells = torch.linspace(-1.0 - half, 1.0 + half, 171, dtype=F64)
    middles = (0.5 * (cells[1:] + cells[:-1]))[:, None]  # ten per bin, on which the density is constant
    assert float(density.log_density(middles, 0.0).exp().mean()) * 2 * (1.0 + half) == pytest.approx(1.0, abs=1e-13)
    mixed = torch.tensor([0.0, 0.5 * VP.T], dtype=F64)
    on, off = torch.ones(1, 1, dtype=F64), torch.full((1, 1), 0.99, dtype=F64)
    both = density.log_prob(torch.cat([on, off]), mixed)
    assert same_bits(both, torch.cat([density.log_prob(on, 0.0), density.log_prob(off, 0.5 * VP.T)]))


def test_levels_without_mass():
    """Zero mass is -inf at t = 0, and finite at any noise."""
    density = ToyLattice(VP, [0.5, 0.0, 0.5])
    x = torch.zeros(1, 1, dtype=F64)
    assert density.log_prob(x, 0.0).tolist() == [-math.inf]
    assert torch.isfinite(density.log_prob(x, VP.T)).all()
    assert torch.isfinite(density.score(x + 0.1, VP.T)).all()
    assert density.sample(100, generator=seeded(0)).abs().min() == 1.0


def test_lattice_events_are_independent():
    """A pmf per value: the joint mass is the product, and sums to one over all events."""
    pmf = torch.rand(2, 3, generator=seeded(5), dtype=F64) + 0.1
    density = ToyLattice(VP, pmf)
    assert density.event_shape == (2,)
    points = density.lattice.points(dtype=F64)
    events = torch.cartesian_prod(points, points)
    mass = density.log_prob(events, 0.0).exp() * density.lattice.width**2
    p = pmf / pmf.sum(1, keepdim=True)
    assert torch.allclose(mass, torch.cartesian_prod(p[0], p[1]).prod(1), rtol=1e-13)
    joint = sum(ToyLattice(VP, pmf[i]).log_prob(events[:, i : i + 1], VP.T) for i in range(2))
    assert torch.allclose(density.log_prob(events, VP.T), joint, rtol=1e-13)


def test_a_lattice_refuses_another_dtype_of_time():
    with pytest.raises(ArgumentTypeError, match="3 digits"):
        lattice(VP).log_prob(X, torch.tensor(0.01, dtype=torch.float16))


def test_gradients_of_the_comb_are_exact():
    """Finite differences of the log-density, at noise of half a level."""
    process = type(VP).at_noise(0.0625)
    density = lattice(process)

    def log_p(x: Tensor) -> Tensor:
        return density.log_density(x, process.T)

    assert torch.autograd.gradcheck(log_p, (X[::8].clone().requires_grad_(),))


def test_sliced_score_matching_is_that_of_the_context():
    """N(c, 1) with probes of signs: -D + |x - c|^2 / 2 exactly."""
    density = CallableDensity(lambda x, t, c: -0.5 * (x - c).square().sum(1), (3,))
    x, context = (torch.randn(4, 3, dtype=torch.float64, generator=seeded(seed)) for seed in (1, 2))
    loss = sliced_score_matching(density, x, 0.5, context, probe="rademacher", generator=seeded(0))
    assert torch.allclose(loss, -3.0 + 0.5 * (x - context).square().sum(1))
