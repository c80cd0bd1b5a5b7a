"""The further solvers: orders without sampling, tables, rows of their own, planted errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from ncml import VESDE, GaussianProcess
from ncml.densities import GaussianDensity, GaussianMixtureDensity
from ncml.density import Target
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.sampling import (
    DDIM,
    ERSDE,
    AdaptiveSDE,
    Ancestral,
    AnnealedSMC,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolverSDE,
    EulerMaruyama,
    HeunODE,
    LatticeMetropolis,
    MetropolisLangevin,
    MultistepODE,
    PredictorCorrector,
    RePaint,
    adaptive,
)
from ncml.sampling.er_sde import er_scale, flow_scale, sde_scale
from tests.affine import noisy_moments, response_moments, variance_error
from tests.problems import (
    LEVEL,
    LINEAR_SDES,
    MEAN,
    PROCESSES,
    SDES,
    STD,
    each_process,
    gaussian,
    mixture,
    mixture_cdf,
    plane_mixture,
    same_bits,
    seeded,
)
from tests.statistics import Z, assert_law, normal_cdf

F64 = torch.float64
VP = SDES["vp"]


def orders(sampler, process, sizes=(256, 512, 1024, 2048)) -> list[float]:
    """Orders of the variance's error, stopped at half a level, on the sampler's own grid."""
    stop = float(process.time_at(0.5 * LEVEL))
    exact = noisy_moments(process, stop)[1]
    errors = [abs(response_moments(replace(sampler, steps=n), process, stop)[1] / exact - 1.0) for n in sizes]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Ancestral(), 1.0),
        (Ancestral(grid="log-snr"), 1.0),
        (DDIM(), 1.0),
        (DPMSolverSDE(), 1.0),
        (DPMSolver2M(), 2.0),
        (DPMSolver2MSDE(), 2.0),
        (ERSDE(order=1), 1.0),
        (ERSDE(order=2), 2.0),
        (ERSDE(order=3), 2.0),  # measured: its first steps, of orders 1 and 2, rule
        (ERSDE(order=1, scale=sde_scale), 1.0),
        (ERSDE(order=2, scale=sde_scale), 2.0),
        (ERSDE(order=2, scale=flow_scale), 2.0),
        (PredictorCorrector(moves=0), 1.0),
        (MultistepODE(order=1, corrector=False), 1.0),
        *[(MultistepODE(order=o, corrector=False, of=of), 2.0) for o in (2, 3) for of in ("data", "noise", "flow")],
        *[(MultistepODE(order=1, of=of), 2.0) for of in ("data", "noise", "flow")],
    ],
    ids=lambda v: "" if isinstance(v, float) else f"{type(v).__name__}{getattr(v, 'order', '')}{getattr(v, 'of', '')}",
)
@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine"])
def test_orders(sampler, order, name):
    assert orders(sampler, PROCESSES[name]) == pytest.approx([order] * 3, abs=0.05)


def test_the_third_order_is_there_where_the_start_is_left_out():
    """With the first two steps much shorter than the others the error falls as the cube of these."""
    process, stop = VESDE.linear(1.0), 0.05

    def grid(process, start, stop, steps):
        even = [start * (stop / start) ** (i / (steps - 8)) for i in range(steps - 7)]
        first = [even[0] + (even[1] - even[0]) * 8.0 ** (i - 8) for i in range(8)]
        return [start, *first, *even[1:]]

    def error(n: int, order: int) -> float:
        sampler = ERSDE(n, grid, order=order, scale=flow_scale)
        return abs(response_moments(sampler, process, stop)[1] / noisy_moments(process, stop)[1] - 1.0)

    second, third = ([error(n, order) for n in (72, 136, 264)] for order in (2, 3))
    assert math.log2(second[1] / second[2]) == pytest.approx(2.0, abs=0.1)
    assert math.log2(third[1] / third[2]) > 2.7


@pytest.mark.parametrize("of", ["data", "noise", "flow"])
def test_a_corrector_is_worth_an_order(of):
    """The third, which the first steps' lack of a history allows; with a wrong integral it is lost."""

    class Late(MultistepODE):  # planted: the corrector's own value in the place of the next older one
        def step(self, target, x, t, s, state):
            if state is not None and len(state.values) > 1:
                state.values[-2] = (state.values[-1][0], state.values[-2][1])
            return super().step(target, x, t, s, state)

    for name in ("vp", "ve", "cosine"):
        assert orders(MultistepODE(order=3, of=of), PROCESSES[name], (64, 128, 256)) == pytest.approx([3, 3], abs=0.15)
    assert max(orders(Late(order=3, of=of), VP, (64, 128, 256))) < 2.5


@pytest.mark.parametrize(
    "sampler",
    [
        DPMSolver2M(8, lower_final=True),
        MultistepODE(8, order=3, corrector=False, lower_final=True),
        PredictorCorrector(8, predictor=DPMSolver2M(lower_final=True), grid="log-snr", moves=0),
    ],
)
def test_a_lower_final_step_is_ddims(sampler):
    density = plane_mixture(VP)
    x = density.sample(5, VP.T, generator=seeded(0))
    (t, before), (s, after) = sampler.refine(density, x, None, 0.1 * VP.T, path=True).path[-2:]
    assert torch.allclose(after, DDIM(1)(density, before, t, s), atol=1e-12)
    plain = replace(sampler.predictor if isinstance(sampler, PredictorCorrector) else sampler, lower_final=False)
    (_, same), (_, other) = replace(plain, steps=8).refine(density, x, None, 0.1 * VP.T, path=True).path[-2:]
    assert not torch.allclose(after, other, rtol=0.0, atol=1e-6)
    if not isinstance(sampler, MultistepODE):  # whose last but one has order 2
        assert torch.equal(before, same)


def test_lower_final_acts_on_the_way_to_the_data():
    """There the very last step is Tweedie's anyway: it is the one before that has order 1."""
    density = plane_mixture(VP)
    x = density.sample(5, VP.T, generator=seeded(0))
    lower, plain = (DPMSolver2M(8, lower_final=low).refine(density, x, path=True).path for low in (True, False))
    (t, before), (s, after), _ = lower[-3:]
    assert torch.equal(before, plain[-3][1])
    assert torch.allclose(after, DDIM(1)(density, before, t, s), atol=1e-12)
    assert not torch.allclose(lower[-1][1], plain[-1][1], rtol=0.0, atol=1e-6)


def test_multistep_methods_at_order_one_are_ddim():
    density = plane_mixture(VP)
    x = density.sample(5, VP.T, generator=seeded(0))
    for of in ("data", "noise"):
        assert torch.allclose(MultistepODE(16, order=1, corrector=False, of=of)(density, x), DDIM(16)(density, x))
    with pytest.raises(ArgumentError, match="order: got 5"):
        MultistepODE(order=5)
    with pytest.raises(ArgumentError, match="of: got 'score'"):
        MultistepODE(of="score")


def test_the_table_of_ancestral_sampling():
    """Relative error of the variance for 8 to 1,024 uniform steps under VP, to the digits given."""
    expected = (0.127, 0.077, 0.044, 0.025, 0.0136, 0.0074, 0.0040, 0.0021)
    for n, error in zip((8, 16, 32, 64, 128, 256, 512, 1024), expected, strict=True):
        ours = variance_error(Ancestral(grid="uniform", denoise_last=False), VP, n)
        digits = 3 if error > 0.1 or error == 0.0136 else 2
        assert ours == pytest.approx(error, abs=0.6 * 10.0 ** (math.floor(math.log10(error)) + 1 - digits))


def test_ancestral_steps_are_those_of_the_stochastic_exponential():
    """Two ways to write one step."""
    density, grid = plane_mixture(VP), "quadratic"
    x = density.sample(5, VP.T, generator=seeded(0))
    a, b = (kind(16, grid)(density, x, generator=seeded(1)) for kind in (Ancestral, DPMSolverSDE))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


@each_process
@pytest.mark.parametrize("scale", [er_scale, sde_scale, flow_scale], ids=lambda f: f.__name__)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_exact_for_point_masses(process, scale, order):
    """Mean and variance of x_s in any number of steps: the denoised sample is the point itself."""
    density = GaussianDensity(process, torch.full((1,), MEAN, dtype=F64), 1e-9)
    stop = 0.3 * process.T
    for steps in (1, 2, 5):
        g = seeded(steps)
        y = ERSDE(steps, order=order, scale=scale)(
            density, density.sample(20_000, process.T, generator=g), None, stop, generator=g
        )
        assert_law(y, normal_cdf(float(process.alpha(stop)) * MEAN, float(process.sigma(stop))))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_ends_at_the_mean_of_the_data_and_nowhere_else(order):
    """At noise 0 the step leads to D itself; at any other, also 1, there is noise left."""
    density = GaussianDensity(VESDE.linear(4.0), torch.zeros(1, dtype=F64), 0.5)
    sampler, g = ERSDE(order=order, scale=sde_scale), seeded(0)
    target, x = Target(density, generator=g).bound(density.sample(2000, 4.0, generator=g), 4.0)
    state = None
    for t, s in itertools.pairwise([4.0, 3.0, 2.0, 1.0]):
        x, state = sampler.step(target, x, t, s, state)
    assert 0.7 < float(x.var()) < 1.5  # of 1.25: the steps are coarse
    clean = target.denoise(x.clone(), 1.0)
    assert torch.equal(sampler.step(target, x, 1.0, 0.0, state)[0], clean)


def test_noise_scales_of_er_sde():
    """phi = sigma draws no noise: the flow; phi = sigma^2 is the reverse SDE's exponential step."""
    density = gaussian(VP)
    x = density.sample(5, VP.T, generator=seeded(0))
    flow = ERSDE(16, order=1, scale=flow_scale)(density, x, generator=seeded(1))
    assert torch.allclose(flow, DDIM(16)(density, x), rtol=0, atol=1e-12)
    sde = ERSDE(16, order=1, scale=sde_scale)(density, x, generator=seeded(1))
    assert torch.allclose(sde, DPMSolverSDE(16)(density, x, generator=seeded(1)), rtol=0, atol=1e-12)


def test_bad_settings():
    with pytest.raises(ArgumentError, match="order: got 4"):
        ERSDE(order=4)
    with pytest.raises(ArgumentError, match="scale: got sqrt"):
        ERSDE(scale=math.sqrt)(gaussian(VP), torch.zeros(2, 1))
    with pytest.raises(ArgumentTypeError, match="predictor: got"):
        PredictorCorrector(predictor=EulerMaruyama)
    with pytest.raises(ArgumentError, match="moves: got -1"):
        PredictorCorrector(moves=-1)


@pytest.mark.parametrize("predictor", [EulerMaruyama(), HeunODE(), DPMSolver2M()], ids=lambda s: type(s).__name__)
def test_a_predictor_without_corrector_is_the_predictor(predictor):
    density = plane_mixture(VP)
    x = density.sample(5, VP.T, generator=seeded(0))
    pair = PredictorCorrector(16, predictor.grid, predictor.denoise_last, predictor, moves=0)
    assert same_bits(
        pair(density, x, generator=seeded(1)), replace(predictor, steps=16)(density, x, generator=seeded(1))
    )


def test_a_corrector_brings_coarse_steps_nearer_to_the_distribution():
    """Ancestral sampling in eight uniform steps loses a tenth of the variance on the way to a tenth of T."""
    stop = 0.1 * VP.T
    exact = noisy_moments(VP, stop)[1]

    def error(moves: int) -> float:
        sampler = PredictorCorrector(8, "uniform", predictor=Ancestral(), moves=moves, ratio=0.3)
        density, g = gaussian(VP), seeded(0)
        y = sampler(density, density.sample(50_000, VP.T, generator=g), None, stop, generator=g)
        return abs(float((y - float(VP.alpha(stop)) * MEAN).square().mean()) / exact - 1.0)

    assert error(0) > 0.08
    assert error(8) < 0.55 * error(0)


@pytest.mark.parametrize("ratio", [0.16, 0.4])
def test_a_move_of_the_corrector_is_that_of_its_formula(ratio):
    """From a point, of N(0, v) at one level: mean (1 - epsilon / v) x and variance 2 epsilon."""
    density = GaussianDensity(VESDE.linear(1.0), torch.zeros(1, dtype=F64), 0.5)
    epsilon, v = 2.0 * (ratio * 0.8) ** 2, 0.25 + 0.64
    x = torch.ones(20_000, 1, dtype=F64)
    sampler = PredictorCorrector(1, denoise_last=False, ratio=ratio)
    y = sampler(density, x, 0.8, 0.8 - 1e-9, generator=seeded(0))
    assert_law(y, normal_cdf(1.0 - epsilon / v, math.sqrt(2.0 * epsilon)))


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(256),
        DPMSolverSDE(256),
        DPMSolver2MSDE(64),
        Ancestral(256),
        ERSDE(64),
        ERSDE(128, order=1),
        PredictorCorrector(),
        AdaptiveSDE(0.002, 0.0005),
    ],
    ids=lambda s: f"{type(s).__name__}{getattr(s, 'order', '')}",
)
@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_refined_mixtures_follow_the_data(sampler, name):
    process = PROCESSES[name]
    density, n, g = mixture(process), 10_000, seeded(2)
    y = sampler(density, density.sample(n, process.T, generator=g), generator=g)
    assert_law(y, mixture_cdf, bias=2e-3)


# The adaptive SDE.


class _Published(adaptive.BrownianPath):
    """Planted: a rejected step tries the same normal again, scaled, as published."""

    def __init__(self, x):
        super().__init__(x)
        self.z, self.seen = torch.zeros_like(x), torch.full((len(x),), torch.inf, dtype=F64)

    def known_until(self):
        return torch.full((len(self.depth),), -torch.inf, dtype=F64)

    def increment(self, t, s, z, rows):
        self.z = torch.where((t < self.seen)[:, None], z, self.z)
        self.seen = t.clone()
        return (t - s).sqrt()[:, None] * self.z


def adaptive_errors(process: GaussianProcess, tolerance: float, n: int = 50_000) -> tuple[float, float]:
    density = gaussian(process)
    x = density.sample(n, process.T, generator=seeded(0))
    y = AdaptiveSDE(tolerance, 0.1 * tolerance)(density, x, generator=seeded(1))
    return abs(float(y.mean()) - MEAN) / STD, abs(float((y - MEAN).square().mean()) / STD**2 - 1.0)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_error_falls_with_the_tolerance(name, monkeypatch):
    """Of mean and variance at D = 1, to 6.11 standard errors; with the published retry it does not."""
    process, n = LINEAR_SDES[name], 50_000
    noise = Z / math.sqrt(n), Z * math.sqrt(2.0 / n)
    for tolerance, allowed in ((0.05, 0.03), (0.01, 0.01), (0.002, 0.003)):
        mean, variance = adaptive_errors(process, tolerance)
        assert mean < allowed + noise[0]
        assert variance < allowed + noise[1]
    monkeypatch.setattr(adaptive, "BrownianPath", _Published)
    assert adaptive_errors(process, 0.002)[1] > 0.003 + noise[1]


def test_a_brownian_path_is_kept():
    """Free increments, bridges and leftovers are normal with the right variances, and add up."""
    n = 40_000
    path = adaptive.BrownianPath(torch.zeros(n, 1, dtype=F64))
    everyone = torch.ones(n, dtype=torch.bool)

    def at(value: float):
        return torch.full((n,), value, dtype=F64)

    g = seeded(0)

    def normals():
        return torch.randn(n, 1, dtype=F64, generator=g)

    whole = path.increment(at(1.0), at(0.2), normals(), everyone)
    part = path.increment(at(1.0), at(0.7), normals(), everyone)  # rejected once
    least = path.increment(at(1.0), at(0.9), normals(), everyone)  # rejected twice
    assert path.depth.tolist() == [3] * n
    for value, variance in ((whole, 0.8), (part, 0.3), (least, 0.1), (whole - part, 0.5), (part - least, 0.2)):
        assert_law(value / math.sqrt(variance), normal_cdf(0.0, 1.0))
    for a, b in ((least, part - least), (part, whole - part)):
        assert abs(float((a * b).mean())) < Z * math.sqrt(float(a.var() * b.var()) / n)
    path.depth -= 1  # everyone arrives at 0.9
    assert path.known_until().tolist() == [0.7] * n
    rest = path.increment(at(0.9), at(0.7), normals(), everyone)
    assert torch.allclose(rest, part - least, atol=1e-12)
    path.depth -= 1
    assert torch.allclose(path.increment(at(0.7), at(0.2), normals(), everyone), whole - part, atol=1e-12)
    path.depth -= 1
    assert path.known_until().isinf().all()


def test_rows_take_steps_of_their_own_with_noise_of_their_own():
    density = GaussianMixtureDensity(VP, (0.5, 0.5), torch.tensor([-0.5, 0.5], dtype=F64), (0.02, 0.2))
    x = torch.tensor([[-0.5], [0.0], [0.5], [0.1]], dtype=F64)
    refined = AdaptiveSDE().refine(density, x, generator=seeded(1))
    assert refined.info["steps"].unique().numel() > 1
    assert (refined.info["accepted"] <= refined.info["steps"]).all()
    other = AdaptiveSDE()(density, torch.where(torch.arange(4)[:, None] == 2, x, -2.0 * x), generator=seeded(1))
    assert same_bits(refined.x[2:3], other[2:3])
    with pytest.raises(NonFiniteError, match="max_steps: got 4 of 4 rows"):
        AdaptiveSDE(1e-6, 1e-6, max_steps=3)(density, x, generator=seeded(1))


# Planted errors.


@dataclass(frozen=True)
class _NoiseAtTheEnd(DPMSolverSDE):
    """Noise of the level that it comes from."""

    def diffused(self, target, x, ahead, t, s, h):
        lost = -math.expm1(-2.0 * h)
        mean = math.exp(-h) * target.sigma(s) / target.sigma(t) * x + target.alpha(s) * lost * ahead
        return mean + target.sigma(t) * math.sqrt(lost) * target.normal(x) * 1.01


@dataclass(frozen=True)
class _FullLine(DPMSolver2MSDE):
    """The line carried on to the end of the step instead of its middle."""

    def ahead(self, target, x, t, s, state):
        return super().ahead(target, x, t, s, None if state is None else (state[0], 0.5 * state[1]))


@dataclass(frozen=True)
class _OtherGrid(ERSDE):
    """Derivatives by the time steps of another grid."""

    def step(self, target, x, t, s, state):
        past = None if state is None else [(clean, 1.3 * noise) for clean, noise in state]
        return super().step(target, x, t, s, past)


@pytest.mark.parametrize("wrong", [_NoiseAtTheEnd(), _FullLine(), _OtherGrid(order=2)], ids=lambda s: type(s).__name__)
def test_planted_errors_cost_the_order(wrong):
    expected = 1.0 if isinstance(wrong, _NoiseAtTheEnd) else 2.0
    assert all(order < expected - 0.3 for order in orders(wrong, VP, (128, 256, 512)))


INSIDE = {
    "predictor": lambda step: PredictorCorrector(4, predictor=step),
    "step_by": lambda step: RePaint(4, step_by=step, repeats=2),
}


@dataclass(frozen=True)
class _Even(EulerMaruyama):
    """Takes an even number of steps, on a grid that is even in time."""

    def check(self, target, start, stop):
        if self.steps % 2 or self.grid != "uniform":
            raise ArgumentError(f"steps, grid: got {self.steps}, {self.grid}; expected an even number, uniform")


@pytest.mark.parametrize("name", INSIDE)
def test_steps_that_another_sampler_cannot_take(name):
    """Particles, lattices, scores without a density; what the step refuses, by the steps and grid that it takes."""
    build, x = INSIDE[name], torch.zeros(3, 1, dtype=F64)
    with pytest.raises(ArgumentError, match=f"{name}: got AnnealedSMC, whose particles have weights"):
        build(AnnealedSMC())
    with pytest.raises(ArgumentError, match=f"{name}: got LatticeMetropolis, for a DiscreteProcess"):
        build(LatticeMetropolis())

    class ScoreOnly(Target):
        has_log_density = False

    with pytest.raises(UnsupportedError, match="log-density"):
        build(MetropolisLangevin())(ScoreOnly(gaussian(VP)), x)
    assert build(MetropolisLangevin(moves=1))(gaussian(VP), x).isfinite().all()
    even = replace(build(_Even(3)), grid="uniform")
    assert even(gaussian(VP), x).isfinite().all()
    with pytest.raises(ArgumentError, match="steps, grid: got 5, uniform"):
        replace(even, steps=5)(gaussian(VP), x)
