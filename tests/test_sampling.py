"""Samplers and generate(): the distribution of what they return, the end of the way, the contract of the call."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ncml import VESDE, VPSDE, GaussianProcess, Lattice, LevelNoise, NoiseConditionalDensity, SubVPSDE, generate
from ncml.densities import CallableDensity, GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.objective import LadderTimes
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    Tweedie,
)
from tests.affine import affine_steps, noisy_moments, score_of
from tests.problems import (
    LINEAR_SDES,
    MEAN,
    MEANS,
    PMF,
    SDES,
    STD,
    STDS,
    WEIGHTS,
    Wrapper,
    each_linear_sde,
    each_process,
    gaussian,
    lattice,
    mixture,
    mixture_cdf,
    plane_mixture,
    same_bits,
    seeded,
)
from tests.statistics import assert_frequencies, assert_law, assert_mean, assert_variance, normal_cdf

F64 = torch.float64
VP = SDES["vp"]
SAMPLERS = {
    "euler": EulerMaruyama(steps=8),
    "dpm": DPMSolver2M(steps=8),
    "adaptive": AdaptiveHeun(),
    "metropolis": MetropolisLangevin(steps=8, moves=2),
    "euler uniform": EulerMaruyama(steps=8, grid="uniform", denoise_last=False),
    "heun": HeunODE(steps=8),
    "langevin": AnnealedLangevin(steps=8, moves=2),
    "tweedie": Tweedie(),
}
COSINE = GaussianProcess(torch.cos, torch.sin, T=math.pi / 2)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
coarse = {name: type(p).at_noise(0.25) for name, p in SDES.items()}
"""Processes whose T is two levels of the 17-level lattice."""


class Spy(NoiseConditionalDensity):
    """Records the times at which its score is asked for, and whether it was in eval mode."""

    dtype_follows_input = True

    def __init__(self, inner: NoiseConditionalDensity) -> None:
        super().__init__(inner.event_shape, inner.process, inner.lattice)
        self.inner, self.calls, self.trained = inner, [], False

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        self.calls.append(float(t[0]))
        self.trained |= self.training
        return self.inner(x, t, context, edges=edges)


# The distribution of the samples.


def exact_moments(sampler: EulerMaruyama | AnnealedLangevin, process) -> tuple[float, float]:
    """Mean and variance of what a stochastic sampler makes of exact samples at T, by its own recursion."""
    moves = getattr(sampler, "moves", 1)
    mean, variance = noisy_moments(process, process.T)
    recursion = affine_steps(replace(sampler, moves=1) if moves > 1 else sampler, process, sampler.steps)
    for step in recursion[:-1] if sampler.denoise_last else recursion:
        # Langevin rescales once and then moves.
        scale = float(process.alpha(step.s)) / float(process.alpha(step.t)) if moves > 1 else 1.0
        mean, variance, a = scale * mean, scale**2 * variance, step.a / scale
        for _ in range(moves):
            mean, variance = a * mean + step.b, a**2 * variance + step.c**2
    if sampler.denoise_last:  # Tweedie: x -> ((1 - k) x + k m_t) / alpha, k = sigma^2 / v_t
        t = recursion[-1].t
        m, v = noisy_moments(process, t)
        alpha, k = float(process.alpha(t)), float(process.sigma(t)) ** 2 / v
        mean, variance = ((1 - k) * mean + k * m) / alpha, ((1 - k) / alpha) ** 2 * variance
    return mean, variance


@each_linear_sde
@pytest.mark.parametrize(
    "sampler",
    [
        EulerMaruyama(16),
        EulerMaruyama(16, "uniform", denoise_last=False),
        AnnealedLangevin(8, "quadratic", moves=3, step_size=0.1),
    ],
    ids=["euler", "euler to the end", "langevin"],
)
def test_distribution_is_that_of_the_recursion(process, sampler):
    """20,000 real samples against exact moments: no bias is left for the tolerance to hide."""
    density, g = gaussian(process), seeded(1)
    y = sampler(density, density.sample(20_000, process.T, generator=g), generator=g)
    mean, variance = exact_moments(sampler, process)
    assert_mean(y, mean, math.sqrt(variance))
    assert_variance(y, mean, variance)
    assert_law(y, normal_cdf(mean, math.sqrt(variance)))


@each_process
def test_langevin_reaches_the_data_slowly(process):
    """Its moves shrink with the noise, so the variance error falls, but only with many levels."""
    errors = [
        abs(exact_moments(AnnealedLangevin(n, "quadratic", moves=4, step_size=0.1), process)[1] / STD**2 - 1.0)
        for n in (16, 64, 256)
    ]
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize("build", [lambda: SubVPSDE(T=0.25), VPSDE, lambda: COSINE], ids=["subvp", "vp", "cosine"])
def test_langevin_brings_back_the_mean_that_the_process_shrank(build):
    """N(1, 0.1^2) by its defaults: without rescaling, sub-VP and VP give means of 0.974 and 0.995. Statistical."""
    process, g = build(), seeded(4)
    density = GaussianDensity(process, torch.ones(1, dtype=F64), 0.1)
    y = AnnealedLangevin()(density, density.sample(20_000, process.T, generator=g), generator=g)
    assert float(y.mean()) == pytest.approx(1.0, abs=2e-3)
    assert 0.1 < float(y.std()) < 0.12


def test_coarse_langevin_does_not_blow_up_where_the_signal_returns_fast():
    """alpha(pi/2) is 6e-17: the rescaling is bounded by what the moves take back."""
    g = seeded(4)
    density = GaussianDensity(COSINE, torch.ones(1, dtype=F64), 0.1)
    x = density.sample(2_000, COSINE.T, generator=g)
    sampler = AnnealedLangevin(16, "quadratic", moves=4, step_size=0.1)
    assert float(sampler(density, x, generator=g).std()) < 0.3


@each_process
@pytest.mark.parametrize(
    "sampler",
    [EulerMaruyama(128), HeunODE(64), DPMSolver2M(64), AdaptiveHeun(1e-4, 1e-4)],
    ids=lambda s: type(s).__name__,
)
def test_refined_mixtures_follow_the_data(process, sampler):
    """From T to 0 with the exact score, on every Gaussian process, also one that is two functions only.

    The distribution function is off by at most 1e-3 (see the tables)."""
    density, n, g = mixture(process), 10_000, seeded(2)
    y = sampler(density, density.sample(n, process.T, generator=g), generator=g)
    assert_law(y, mixture_cdf, bias=1e-3)


@each_linear_sde
def test_the_probability_flow_keeps_quantiles(process):
    """Between Gaussians the flow is x -> m + s (x - alpha m) / std_t, and draws nothing."""
    mean, variance = noisy_moments(process, process.T)
    u = torch.linspace(-3.0, 3.0, 13, dtype=F64)[:, None]
    state = torch.get_rng_state()
    y = HeunODE(64)(gaussian(process), mean + math.sqrt(variance) * u)
    assert torch.allclose(y, MEAN + STD * u, rtol=0, atol=2e-3 * STD)
    assert torch.equal(torch.get_rng_state(), state)


def test_refining_part_of_the_way():
    """From t to s > 0 the distribution is that of p_s."""
    process = SDES["subvp"]
    density, g = gaussian(process), seeded(4)
    t, s = 0.8 * process.T, 0.3 * process.T
    y = EulerMaruyama(64)(density, density.sample(10_000, t, generator=g), t, s, generator=g)
    mean, variance = noisy_moments(process, s)
    assert_law(y, normal_cdf(mean, math.sqrt(variance)), bias=5e-3)


# Tweedie's formula.


@each_process
@pytest.mark.parametrize("fraction", [1e-3, 0.3, 1.0])
def test_tweedie_is_the_posterior_mean(process, fraction):
    """Of Gaussians (m sigma^2 + alpha s^2 x) / (alpha^2 s^2 + sigma^2), of mixtures and lattices by Bayes."""
    t = fraction * process.T
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = torch.linspace(-1.2, 1.2, 41, dtype=F64)[:, None]

    def component(mean, std):
        return (mean * sigma**2 + alpha * std**2 * x) / (alpha**2 * std**2 + sigma**2)

    assert torch.allclose(Tweedie()(gaussian(process), x, t), component(MEAN, STD), rtol=1e-12, atol=1e-13)
    means, stds, weights = (torch.tensor(v, dtype=F64) for v in (MEANS, STDS, WEIGHTS))
    variances = (alpha * stds).square() + sigma**2
    posterior = (weights.log() - 0.5 * (x - alpha * means).square() / variances - 0.5 * variances.log()).softmax(1)
    expected = (posterior * component(means, stds)).sum(1, keepdim=True)
    assert torch.allclose(Tweedie()(mixture(process), x, t), expected, rtol=1e-11, atol=1e-12)
    points = torch.linspace(-1.0, 1.0, 17, dtype=F64)
    posterior = (PMF.log() - 0.5 * ((x - alpha * points) / sigma).square()).softmax(1)
    assert torch.allclose(Tweedie()(lattice(process), x, t)[:, 0], posterior @ points, rtol=1e-9, atol=1e-11)


def test_tweedie_is_no_draw():
    assert not Tweedie.samples_distribution
    assert EulerMaruyama.samples_distribution
    assert HeunODE.samples_distribution
    with pytest.raises(TypeError, match="steps"):
        Tweedie(steps=2)
    with pytest.raises(ArgumentError, match=r"t_end: got 0.01; expected 0 or None"):
        Tweedie()(gaussian(VP), torch.zeros(1, 1), 0.02, 0.01)


# Lattice data.


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("t_end", [None, 0.0])
@pytest.mark.parametrize("sampler", [EulerMaruyama(64), HeunODE(32)], ids=["euler", "heun"])
def test_refined_lattice_data_have_the_right_masses(name, t_end, sampler):
    """Exact score, from T = 2 levels, rounded: by way of 0.3 level, and all the way to 0."""
    process, g = coarse[name], seeded(5)
    density = lattice(process)
    y = sampler(density, density.sample(5_000, process.T, generator=g), t_end=t_end, generator=g)
    assert torch.isfinite(y).all()
    assert_frequencies(torch.bincount(density.lattice.nearest(y).flatten(), minlength=17), PMF, bias=5e-3)


def test_the_uniform_grid_and_a_noisy_end_are_poor_for_lattice_data():
    """From ten levels, VE, 64 steps: total variation more than twice that of the quadratic grid."""
    scale = 0.125 * 127.5  # the 17-level lattice's levels in 8-bit levels: the same problem, enlarged
    process = VESDE.at_noise(1.25, sigma_min=0.01 * scale, sigma_max=50 * scale)
    density, n = lattice(process), 20_000

    def distance(sampler: EulerMaruyama, t_end: float | None) -> float:
        g = seeded(6)
        y = sampler(density, density.sample(n, process.T, generator=g), t_end=t_end, generator=g)
        counts = torch.bincount(density.lattice.nearest(y).flatten(), minlength=17)
        return 0.5 * float((counts / n - PMF).abs().sum())

    default, poor = EulerMaruyama(64), EulerMaruyama(64, "uniform", denoise_last=False)
    assert distance(default, None) < 0.5 * distance(poor, 0.0)
    assert distance(default, 0.0) < 0.5 * distance(poor, 0.0)


@pytest.mark.parametrize("name", SDES)
@each_sampler
def test_lattice_data_end_with_tweedie_from_three_tenths_of_a_level(name, sampler):
    """Also samplers whose own last step is another: the exact score diverges below."""
    process = coarse[name]
    density = lattice(process)
    stop = float(process.time_at(0.3 * density.lattice.width))
    spy, x = Spy(density), density.sample(3, process.T, generator=seeded(0)).double()
    y = sampler(spy, x, generator=seeded(1))
    if sampler == Tweedie():
        assert same_bits(y, Tweedie()(density, x))
        return
    assert min(spy.calls) == spy.calls[-1] == pytest.approx(stop, rel=1e-12)
    middle = sampler(density, x, t_end=stop, generator=seeded(1))
    assert same_bits(y, Tweedie()(density, middle, stop))


def test_lattice_data_below_the_stop_take_one_step():
    process = coarse["vp"]
    density = lattice(process)
    t = 0.5 * float(process.time_at(0.3 * density.lattice.width))
    x = density.sample(4, t, generator=seeded(0)).double()
    expected = Tweedie()(density, x, t)
    assert same_bits(EulerMaruyama(64)(density, x, t), expected)
    quiet = VESDE.at_noise(0.1 * density.lattice.width)  # never reaches 0.3 level
    density = lattice(quiet)
    assert same_bits(EulerMaruyama(64)(density, x), Tweedie()(density, x))


# generate().


@pytest.mark.parametrize("name", SDES)
def test_generate_rounds_to_the_lattice(name):
    """Only at the end: refined values lie off the lattice, what generate returns is on it bit for bit."""
    process = coarse[name]
    density, sampler = lattice(process), EulerMaruyama(16)
    y = generate(density, 200, sampler=sampler, generator=seeded(7))
    assert same_bits(y, density.lattice.quantize(y))
    g = seeded(7)
    refined = sampler(density, density.sample(200, process.T, generator=g), generator=g)
    assert not density.lattice.on_lattice(refined).all()
    assert same_bits(y, density.lattice.quantize(refined))


def test_generate_is_a_draw_and_its_refinement():
    density, sampler, t = plane_mixture(VP), EulerMaruyama(8), 0.5 * VP.T
    y = generate(density, 50, sampler=sampler, t_start=t, generator=seeded(8))
    g = seeded(8)
    x = density.sample(50, t, generator=g)
    assert same_bits(y, sampler(density, x, t, generator=g))
    default = generate(density, 5, generator=seeded(9))
    assert same_bits(default, generate(density, 5, sampler=EulerMaruyama(), t_start=VP.T, generator=seeded(9)))
    assert generate(density, 0).shape == (0, 2)


RECTIFIED = GaussianProcess(lambda t: 1.0 - t, lambda t: t, T=0.9)


@pytest.mark.parametrize("process", [GaussianProcess(torch.cos, torch.sin, T=1.2), RECTIFIED], ids=["cosine", "flow"])
def test_processes_of_two_functions_generate_by_default(process):
    """N(1, 0.5^2) to 5 % of its standard deviation, of which chance is about half at most (6.1 standard errors)."""
    density, n = GaussianDensity(process, torch.ones(2, dtype=F64), 0.5), 50_000
    x = generate(density, n, generator=seeded(7))
    assert float((x.mean(0) - 1.0).abs().max()) < 0.05 * 0.5
    assert float((x.std(0) / 0.5 - 1.0).abs().max()) < 0.05


def test_plain_sampling_needs_no_sampler():
    density = plane_mixture(VP)
    assert same_bits(
        generate(density, 9, t_start=0.0, generator=seeded(1)), density.sample(9, 0.0, generator=seeded(1))
    )
    noise = LevelNoise(17)
    y = generate(ToyLattice(noise, PMF), 9, t_start=0.0, generator=seeded(1))
    assert noise.lattice.on_lattice(y).all()
    with pytest.raises(UnsupportedError, match=r"LatticeGibbs and LatticeMetropolis .* t_start=0 is plain sampling"):
        generate(ToyLattice(noise, PMF), 9)


def test_what_cannot_sample_cannot_generate():
    density = CallableDensity(lambda x, t: -x.square().sum(1), (2,))
    with pytest.raises(UnsupportedError, match="got a CallableDensity without sample, which cannot sample"):
        generate(density, 4, process=VP)
    with pytest.raises(ArgumentError, match="the one that the density was built for"):
        generate(gaussian(VP), 4, process=SDES["ve"])


# The contract of the call.


@each_sampler
def test_no_way_to_go(sampler):
    """t_start == t_end: a copy bit for bit, no score, no random number; Markov chains have something to do at t > 0."""
    spy, x = Spy(plane_mixture(VP)), torch.tensor([[-0.0, 1.0], [math.pi, -2.0]])
    generator = seeded(0)
    state, default = generator.get_state(), torch.get_rng_state()
    somewhere = () if sampler.moves_in_place else ((0.01, 0.01), (VP.T, VP.T))
    for start, end in ((0.0, None), (0.0, 0.0), *somewhere):
        y = sampler(spy, x, start, end, generator=generator)
        assert same_bits(y, x)
        assert y.data_ptr() != x.data_ptr()
    assert spy.calls == []
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), default)


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        (EulerMaruyama(4, "uniform"), [1.0, 0.75, 0.5, 0.25]),
        (EulerMaruyama(4), [1.0, 0.5625, 0.25, 0.0625]),
        (HeunODE(2, "uniform"), [1.0, 0.5, 0.5]),
        (HeunODE(2, "uniform", denoise_last=True), [1.0, 0.5, 0.5]),
        (AnnealedLangevin(2, "uniform", moves=3), [0.5, 0.5, 0.5, 0.5]),
        (Tweedie(), [1.0]),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, list) else "",
)
def test_scores_that_are_asked_for(sampler, times):
    """Where and how often: the cost of a sampler."""
    process = VESDE.linear(1.0)
    spy = Spy(plane_mixture(process))
    sampler(spy, torch.zeros(3, 2), generator=seeded(0))
    assert spy.calls == pytest.approx(times)


@given(
    name=st.sampled_from(list(SAMPLERS)),
    process=st.sampled_from(list(LINEAR_SDES.values())),
    dtype=st.sampled_from([torch.float32, F64]),
    seed=st.integers(0, 2**31),
)
def test_same_seed_same_samples(name, process, dtype, seed):
    """Bit for bit; x is never written to; its dtype is kept; the default generator is left alone."""
    sampler, density = SAMPLERS[name], plane_mixture(process)
    x = torch.randn(5, 2, generator=seeded(seed), dtype=dtype)
    before, state = x.clone(), torch.get_rng_state()
    first, second = (sampler(density, x, generator=seeded(seed)) for _ in range(2))
    assert same_bits(first, second)
    assert first.dtype == dtype
    assert same_bits(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@each_sampler
def test_every_value_gets_its_own_noise_at_every_step(sampler):
    """Equal starts end differently where noise is added, and equally where none is."""
    y = sampler(plane_mixture(VP), torch.zeros(6, 2, dtype=F64), generator=seeded(0))
    ends = {round(v, 12) for v in y.flatten().tolist()}
    assert len(ends) == (2 if isinstance(sampler, (AdaptiveHeun, DPMSolver2M, HeunODE, Tweedie)) else 12)


@each_sampler
def test_works_in_every_grad_mode_and_restores_training(sampler):
    spy = Spy(plane_mixture(VP))
    spy.train()
    x = torch.randn(4, 2, generator=seeded(0))
    expected = sampler(spy, x, generator=seeded(1))
    assert not expected.requires_grad
    assert spy.training
    assert not spy.trained
    with torch.no_grad():
        assert same_bits(sampler(spy, x, generator=seeded(1)), expected)
    with torch.inference_mode():
        again = sampler(spy, x.clone(), generator=seeded(1))
    assert same_bits(again, expected)
    assert same_bits(sampler(spy, x.clone().requires_grad_(), generator=seeded(1)), expected)
    transposed = x.t().contiguous().t()
    assert same_bits(sampler(spy, transposed, generator=seeded(1)), expected)


@each_sampler
def test_context_reaches_the_score(sampler):
    """A density shifted by its context has samples shifted by it."""
    inner = plane_mixture(VESDE.linear(0.1))

    def log_p(x, t, context):
        return inner.forward(x - context, t)

    density = CallableDensity(log_p, (2,), inner.process)
    x, shift = torch.randn(4, 2, generator=seeded(0), dtype=F64), torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double()
    moved = sampler(density, x + shift, context=shift, generator=seeded(1))
    # The tolerance of adaptive steps is relative to x, which is shifted.
    atol = 1e-2 if isinstance(sampler, AdaptiveHeun) else 1e-9
    assert torch.allclose(moved - shift, sampler(inner, x, generator=seeded(1)), atol=atol)
    with torch.inference_mode():
        assert same_bits(sampler(density, x + shift, context=shift.clone(), generator=seeded(1)), moved)


@each_sampler
def test_half_precision_and_empty_batches(sampler):
    density, x = plane_mixture(VP), torch.randn(4, 2, generator=seeded(0)).bfloat16()
    assert same_bits(sampler(density, x, generator=seeded(1)), sampler(density, x.float(), generator=seeded(1)))
    assert sampler(density, torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("sampler", [EulerMaruyama(8), HeunODE(8)], ids=["euler", "heun"])
def test_samplers_need_a_gaussian_process(sampler):
    with pytest.raises(UnsupportedError, match="process: got LevelNoise"):
        sampler(lattice(LevelNoise(17)), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        (0.01, 0.02, ArgumentError, "t_end: got 0.02; expected at most t_start = 0.01: samplers go towards the data"),
        (1.0, 0.0, ArgumentError, "t_start, t_end: got 1, 0; expected 0 <= t_end <= t_start <= T"),
        (0.01, -0.01, ArgumentError, "t_start, t_end: got 0.01, -0.01"),
        (math.nan, None, ArgumentError, "t_start: got NaN"),
        ("T", None, ArgumentTypeError, "t_start: got str; expected one number"),
        (torch.zeros(2), None, ArgumentTypeError, "t_start: got Tensor; expected one number"),
        (True, None, ArgumentTypeError, "t_start: got bool"),
    ],
)
def test_bad_times(start, end, error, message):
    with pytest.raises(error, match=message):
        EulerMaruyama(8)(gaussian(VP), torch.zeros(2, 1), start, end)


def test_zero_dimensional_times_are_numbers():
    x = torch.randn(3, 1, generator=seeded(0))
    a, b = (EulerMaruyama(4)(gaussian(VP), x, t, generator=seeded(1)) for t in (0.015625, torch.tensor(0.015625)))
    assert same_bits(a, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EulerMaruyama(0), "steps: got 0; expected an integer >= 1"),
        (lambda: HeunODE(2.0), "steps: got 2.0"),
        (lambda: EulerMaruyama(True), "steps: got True"),
        (
            lambda: EulerMaruyama(grid="log"),
            "grid: got 'log'; expected one of 'quadratic', 'uniform', ",
        ),
        (lambda: AnnealedLangevin(moves=0), "moves: got 0"),
        (lambda: AnnealedLangevin(step_size=-1.0), "step_size: got -1.0"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_bad_scores_name_time_and_step():
    def log_p(x, t):
        return -x.square().sum(1) * torch.where(t > 0.005, 1.0, math.nan)

    density = CallableDensity(log_p, (1,), VP)
    density.train()
    with pytest.raises(
        NonFiniteError, match=r"score: got NaN or infinity for 3 of 3 samples at t = .*\(step 5; rows 0, 1, 2\)"
    ):
        EulerMaruyama(8)(density, torch.ones(3, 1), generator=seeded(0))
    assert density.training


def test_another_process_than_the_density_s():
    with pytest.raises(ArgumentError, match="process: got VESDE"):
        EulerMaruyama(8)(gaussian(VP), torch.zeros(2, 1), process=SDES["ve"])


def test_progress_is_shown_on_request(capsys):
    sampler, x = EulerMaruyama(3), torch.zeros(2, 1)
    quiet = sampler(gaussian(VP), x, generator=seeded(0))
    assert capsys.readouterr().err == ""
    assert same_bits(sampler(gaussian(VP), x, generator=seeded(0), progress=True), quiet)
    assert "EulerMaruyama" in capsys.readouterr().err


def test_settings_are_values():
    assert EulerMaruyama(8) == EulerMaruyama(steps=8) != EulerMaruyama(9)
    assert EulerMaruyama().grid == HeunODE().grid == "quadratic"
    assert EulerMaruyama().denoise_last
    assert not HeunODE().denoise_last
    with pytest.raises(AttributeError):
        EulerMaruyama().steps = 3


def test_more_dimensions():
    """Events of any shape; every coordinate is refined alike."""
    density = GaussianDensity(VP, torch.full((2, 3, 4), MEAN, dtype=F64), STD)
    y = generate(density, 500, sampler=EulerMaruyama(32), generator=seeded(0))
    assert y.shape == (500, 2, 3, 4)
    one = score_of(gaussian(VP))(torch.full((1, 1), 0.2, dtype=F64), VP.T)
    assert torch.allclose(density.score(torch.full((1, 2, 3, 4), 0.2, dtype=F64), VP.T), one.expand(1, 2, 3, 4))
    assert_law(y, normal_cdf(MEAN, STD), bias=2e-3)


@pytest.mark.parametrize("sampler", [EulerMaruyama(), HeunODE(steps=32)], ids=["em", "heun"])
def test_a_process_that_starts_in_noise_is_sampled_there(sampler):
    """Song's VE has p_0 with noise of sigma_min: no step may take that away. z = 6.11, plus 2 % for the steps."""
    process = VESDE(T=0.3, sigma_min=0.1, sigma_max=1.0, song=True)
    density = GaussianDensity(process, mean=torch.zeros(1, dtype=torch.float64), std=0.1)
    n = 20_000
    x = density.sample(n, process.T, generator=seeded(0))
    y = sampler(density, x, generator=seeded(1))
    assert float(y.var()) == pytest.approx(0.02, rel=0.02 + 6.11 * (2 / n) ** 0.5)


def test_times_rounded_up_to_float32_count_as_T():
    process = VPSDE(T=0.011612865951)
    t = float(torch.tensor(process.T))
    assert t > process.T
    density = GaussianDensity(process, mean=torch.zeros(2), std=0.1)
    assert generate(density, 3, t_start=t, sampler=EulerMaruyama(steps=2)).shape == (3, 2)
    times, _ = LadderTimes((0.0, t))(8, process)
    assert float(times.max()) == pytest.approx(process.T)
    with pytest.raises(ArgumentError, match="t_start, t_end: got"):
        generate(density, 3, t_start=1.001 * process.T)


def test_samplers_see_through_wrappers_and_refuse_what_is_no_density():
    process = VPSDE(T=0.05)
    density = GaussianDensity(process, mean=torch.zeros(2), std=0.1)

    def draw(d):
        return generate(d, 4, sampler=EulerMaruyama(steps=2), generator=seeded(0))

    wrapper = Wrapper(density)
    assert torch.allclose(draw(wrapper), draw(density), atol=1e-6)  # by autograd instead of the closed form
    assert wrapper.calls == 2
    with pytest.raises(ArgumentTypeError, match="density: got Linear"):
        draw(torch.nn.Linear(1, 1))
    with pytest.raises(ArgumentTypeError, match="sampler: got"):
        generate(density, 4, sampler=EulerMaruyama)
    with pytest.raises(ArgumentTypeError, match="t_start: got"):
        generate(density, 4, t_start=torch.zeros(4))


def test_generate_may_stop_at_a_noise_level():
    """The distribution there is the model's own, and lattice samples are not rounded."""
    t_end = float(VP.time_at(0.5 * float(VP.sigma(VP.T))))
    y = generate(gaussian(VP), 4000, sampler=HeunODE(steps=32), t_end=t_end, generator=seeded(3))
    exact = gaussian(VP).sample(4000, t_end, generator=seeded(4))
    assert abs(float(y.std() / exact.std()) - 1.0) < 5.0 / math.sqrt(2 * 4000) * math.sqrt(2)
    assert abs(float(y.mean() - exact.mean())) < 5.0 * float(exact.std()) * math.sqrt(2 / 4000)
    density = lattice(VP)
    noisy = generate(density, 50, sampler=EulerMaruyama(steps=4), t_end=t_end, generator=seeded(5))
    assert not bool(Lattice(17).on_lattice(noisy).any())
    rounded = generate(density, 50, sampler=EulerMaruyama(steps=4), t_end=0.0, generator=seeded(5))
    assert bool(Lattice(17).on_lattice(rounded).all())
    generator = seeded(6)
    for t_start in (0.0, 0.5 * t_end):
        with pytest.raises(ArgumentError, match=r"t_end: got .*; expected at most t_start = "):
            generate(density, 3, t_start=t_start, t_end=t_end, generator=generator)
    assert torch.equal(generator.get_state(), seeded(6).get_state())  # nothing was drawn
