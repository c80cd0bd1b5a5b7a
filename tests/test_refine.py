"""Refinement on a bound target: results, grids, history, rows of their own, acceptance, failures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ncml import VESDE, VPSDE, GaussianProcess, GridSampler, LevelNoise, Refined, Sampler, SubVPSDE, generate
from ncml.densities import CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.density import Target
from ncml.errors import ArgumentError, ArgumentTypeError, FailedRowsWarning, NonFiniteError, UnsupportedError
from ncml.sampling import (
    AdaptiveHeun,
    AdaptiveSDE,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    Tweedie,
    grids,
)
from ncml.testing.reference import OrnsteinUhlenbeck
from ncml.testing.sampler.distribution import COSINE
from tests.affine import noisy_moments
from tests.problems import LEVEL, PMF, PROCESSES, SDES, STD, each_process, gaussian, plane_mixture, same_bits, seeded
from tests.statistics import Z, assert_mean, assert_variance

F64 = torch.float64
VP = SDES["vp"]
SAMPLERS = {
    "euler": EulerMaruyama(8),
    "heun": HeunODE(8),
    "dpm": DPMSolver2M(8),
    "adaptive": AdaptiveHeun(),
    "langevin": AnnealedLangevin(8, moves=2),
    "metropolis": MetropolisLangevin(8, moves=2),
    "tweedie": Tweedie(),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def start(density, n: int = 6) -> Tensor:
    return density.sample(n, density.process.T, generator=seeded(0))


# What a refinement gives back.


@each_sampler
def test_refine_gives_samples_path_and_cost(sampler):
    density = plane_mixture(VP)
    x = start(density)
    refined = sampler.refine(density, x, generator=seeded(1), path=True)
    assert isinstance(refined, Refined)
    assert same_bits(refined.x, sampler(density, x, generator=seeded(1)))
    assert refined.t == 0.0
    (first, begun), (_, ended) = refined.path[0], refined.path[-1]
    assert first == VP.T
    assert same_bits(begun, x)
    assert same_bits(ended, refined.x)
    assert sampler.refine(density, x, generator=seeded(1)).path == ()
    steps = sampler.expected_steps()
    if steps is not None:
        assert len(refined.path) == steps + 1
        assert all(t > s for (t, _), (s, _) in itertools.pairwise(refined.path))


@pytest.mark.parametrize(
    ("sampler", "cost"),
    [
        (EulerMaruyama(8), 8),
        (HeunODE(8), 15),
        (DPMSolver2M(8), 8),
        (AnnealedLangevin(8, moves=3), 7 * 3 + 1),
        (MetropolisLangevin(8, moves=3), 7 * 4 + 1),
        (Tweedie(), 1),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else "",
)
def test_evaluations_are_rows_that_the_density_saw(sampler, cost):
    seen = []
    density = plane_mixture(VP)
    counting = CallableDensity(lambda x, t: (seen.append(len(x)), density(x, t))[1], (2,), VP)
    refined = sampler.refine(counting, start(density), generator=seeded(1))
    assert refined.evaluations == 6 * cost == sum(seen)


def test_rows_of_an_adaptive_sampler_are_counted_one_by_one():
    density = plane_mixture(VP)
    refined = AdaptiveHeun().refine(density, start(density, 50))
    assert refined.evaluations == int(2 * refined.info["steps"].sum()) + 50
    assert refined.info["steps"].unique().numel() > 1


def test_a_sampler_swaps_for_another_by_its_constructor():
    """The process is the density's own, or the same one given."""
    density = plane_mixture(VP)
    for sampler in SAMPLERS.values():
        x = sampler(density, start(density), generator=seeded(1))
        assert same_bits(x, sampler(density, start(density), process=VP, generator=seeded(1)))
        target = Target(density, generator=seeded(1))
        assert same_bits(x, sampler(target, start(density)))
    with pytest.raises(ArgumentTypeError, match="process: got None"):
        EulerMaruyama()(CallableDensity(lambda x, t: x.sum(1), (2,)), torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="process: got one with a target"):
        EulerMaruyama()(Target(density), torch.zeros(1, 2), process=VP)


def test_results_are_those_of_the_first_version():
    """Samples of 0.1.0 with the same seeds, whose steps=n on a lattice are steps=n-1 and Tweedie's. Rounding aside."""
    stored = json.loads((Path(__file__).parent / "golden" / "samplers-0.1.0.json").read_text())
    assert len(stored) == 18
    for name, kind in (("vp", VPSDE), ("subvp", SubVPSDE), ("ve", VESDE)):
        process = kind.at_noise(0.25)
        means, stds = [[-0.5, 0.2], [0.4, -0.1], [0.1, 0.6]], [[0.1, 0.3], [0.2, 0.15], [0.25, 0.1]]
        density = GaussianMixtureDensity(process, (0.3, 0.5, 0.2), torch.tensor(means), torch.tensor(stds))
        lattice = ToyLattice(process, torch.arange(1, 18, dtype=F64))
        x, y = (d.sample(3, process.T, generator=seeded(0)) for d in (density, lattice))
        quarter, noise = 0.25 * process.T, {"generator": seeded(1)}
        results = {
            "em": EulerMaruyama(8)(density, x, generator=seeded(1)),
            "em uniform": EulerMaruyama(8, "uniform", denoise_last=False)(density, x, generator=seeded(1)),
            "em lattice": EulerMaruyama(7)(lattice, y, **noise),
            "heun": HeunODE(8)(density, x, None, quarter),
            "heun lattice": HeunODE(7)(lattice, y),
            "tweedie": Tweedie()(density, x, quarter),
        }
        for case, result in results.items():
            expected = torch.tensor(stored[f"{name}, {case}"], dtype=F64)
            assert torch.allclose(result.flatten().double(), expected, rtol=1e-4, atol=1e-5), (name, case)


# Rows.


@each_sampler
def test_a_row_does_not_depend_on_the_others(sampler):
    """Bit for bit, with as many rows: also where each has steps of its own."""
    density = plane_mixture(VP)
    x, y = start(density, 8), start(density, 8)
    y[1:] = 3.0 * y[1:].flip(0)
    a, b = (sampler(density, v, generator=seeded(1)) for v in (x, y))
    assert same_bits(a[:1], b[:1])


def broken_below(limit: float, rows: Callable[[Tensor], Tensor]) -> CallableDensity:
    """A mixture whose density is NaN for some x, below some t."""
    inner = plane_mixture(VP)

    def log_p(x, t):
        return inner(x, t) * torch.where((t < limit) & rows(x), math.nan, 1.0)

    return CallableDensity(log_p, (2,), VP, sample=lambda n, t, c, g: inner.sample(n, t, generator=g))


@each_sampler
def test_a_row_that_fails_costs_the_others_nothing(sampler):
    bad = broken_below(1.1 * VP.T, lambda x: x[:, 0] > 5.0)
    x = start(plane_mixture(VP))
    with pytest.raises(NonFiniteError, match=r"2 of 6 samples .*rows 1, 4"):
        sampler(bad, x.index_fill(0, torch.tensor([1, 4]), 9.0), generator=seeded(1))
    good = sampler(bad, x, generator=seeded(1))
    kept = sampler.refine(bad, x.index_fill(0, torch.tensor([1, 4]), 9.0), generator=seeded(1), on_failure="keep")
    assert kept.info["failed"].tolist() == [1, 4]
    assert kept.x[[1, 4]].isnan().all()
    others = [0, 2, 3, 5]
    assert same_bits(kept.x[others], good[others])
    assert "failed" not in sampler.refine(bad, x, generator=seeded(1), on_failure="keep").info


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_density_that_fails_is_noted_though_its_score_is_finite(broken):
    """By its value; and what has failed before stays so."""
    density = CallableDensity(
        lambda x, t: torch.where(x[:, 0] > 1.0, broken, -0.5 * x.square().sum(1)), (2,), VP, score=lambda x, t: -x
    )
    x = torch.tensor([[0.5, 0.0], [2.0, 0.0]], dtype=F64)
    with pytest.raises(NonFiniteError, match="log-density or score"):
        Target(density).log_density_and_score(x, VP.T)
    target, z = Target(density).bound(x, VP.T, on_failure="keep")
    log_p, score = target.log_density_and_score(z, VP.T)
    assert log_p.isnan().tolist() == score.isnan().any(1).tolist() == [False, True]
    log_p, score = target.log_density_and_score(torch.zeros_like(z), VP.T)
    assert log_p.isnan().tolist() == score.isnan().any(1).tolist() == [False, True]


def test_rows_fail_on_the_way_and_stay_failed():
    """A row that fails late keeps its first verdict, though its score is finite again below."""

    def log_p(x, t):
        here = (t > 0.2 * VP.T) & (t < 0.5 * VP.T) & (x[:, 0] > 0.0)
        return -0.5 * x.square().sum(1) * torch.where(here, math.nan, 1.0)

    density = CallableDensity(log_p, (2,), VP)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    refined = HeunODE(8).refine(density, x, on_failure="keep")
    assert refined.info["failed"].tolist() == [0]
    assert refined.x[0].isnan().all()
    assert refined.x[1].isfinite().all()


def test_generate_says_how_many_failed():
    bad = broken_below(0.5 * VP.T, lambda x: x[:, 0] > 0.45)
    with pytest.warns(FailedRowsWarning, match=r"[1-9]\d* of 50 samples"):
        x = generate(bad, 50, sampler=EulerMaruyama(16), generator=seeded(0), on_failure="keep")
    assert 0 < int(x.isnan().any(1).sum()) < 50
    with pytest.raises(NonFiniteError):
        generate(bad, 50, sampler=EulerMaruyama(16), generator=seeded(0))
    with pytest.raises(ArgumentError, match="on_failure: got 'skip'"):
        EulerMaruyama()(bad, x, on_failure="skip")


# Grids.


@pytest.mark.parametrize("name", grids.GRIDS)
@each_process
@pytest.mark.parametrize("steps", [1, 2, 7, 128])
def test_grids_fall_from_start_to_stop(name, process, steps):
    for stop in (0.0, 0.3 * process.T):
        times = grids.checked_times(name, process, process.T, stop, steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (process.T, stop)


@each_process
def test_the_log_snr_grid_is_even(process):
    times = grids.log_snr(process, process.T, 0.2 * process.T, 32)
    snr = [float(process.log_snr(t)) for t in times]
    gaps = [b - a for a, b in itertools.pairwise(snr)]
    assert gaps == pytest.approx([gaps[0]] * 32, rel=1e-9)
    to_zero = grids.log_snr(process, process.T, 0.0, 33)
    assert to_zero[-2] == grids.last_time(process, process.T)
    assert float(process.sigma(to_zero[-2])) == pytest.approx(1e-3 * float(process.sigma(process.T)), rel=1e-9)


def test_the_grid_of_karras():
    process = VESDE.linear(80.0)
    times = grids.Karras()(process, 80.0, 0.002, 17)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert times == pytest.approx(expected, rel=1e-9)
    assert grids.Karras(1.0)(process, 80.0, 40.0, 4) == pytest.approx([80, 70, 60, 50, 40])


@pytest.mark.parametrize("name", ["log-snr", "karras"])
def test_times_that_floats_cannot_tell_apart_are_one(name):
    """Where the signal falls as 1 - t, to less than an even step of its logarithm in one float."""
    process = GaussianProcess(lambda t: 1.0 - t, lambda t: t, T=1.0 - 1e-15)
    times = grids.checked_times(name, process, process.T, 0.1, 2000)
    assert all(t > s for t, s in itertools.pairwise(times))
    assert (times[0], times[-1]) == (process.T, 0.1)
    assert 1000 < len(times) < 2001


def test_given_times_and_functions_are_grids():
    process = VESDE.linear(1.0)
    given = EulerMaruyama(grid=grids.Given((0.5, 0.1, 0.9)))
    assert given.times(process, 1.0, 0.0) == [1.0, 0.9, 0.5, 0.1, 0.0]
    assert given.times(process, 0.8, 0.2) == [0.8, 0.5, 0.2]

    def halves(process, start, stop, steps):
        return [stop + (start - stop) * 0.5**i for i in range(steps)] + [stop]

    refined = EulerMaruyama(4, halves).refine(gaussian(process), torch.zeros(1, 1), path=True)
    assert [t for t, _ in refined.path] == [1.0, 0.5, 0.25, 0.125, 0.0]


def test_bad_grids_are_refused_before_anything_is_drawn():
    generator = seeded(0)
    up = EulerMaruyama(4, lambda process, start, stop, steps: [stop, start])
    with pytest.raises(ArgumentError, match="grid: got times"):
        generate(gaussian(VP), 3, sampler=up, generator=generator)
    assert torch.equal(generator.get_state(), seeded(0).get_state())
    with pytest.raises(ArgumentError, match="grid: got 'cosine'"):
        EulerMaruyama(grid="cosine")
    with pytest.raises(ArgumentTypeError, match="grid: got 3"):
        EulerMaruyama(grid=3)


# DPM-Solver++(2M).


def deterministic_moments(sampler: Sampler, process, stop: float) -> tuple[float, float]:
    """Mean and variance at ``stop``: the map of an ODE solver between Gaussians is affine."""
    low, high = sampler(gaussian(process), torch.tensor([[0.0], [1.0]], dtype=F64), None, stop).flatten().tolist()
    mean, variance = noisy_moments(process, process.T)
    return low + (high - low) * mean, (high - low) ** 2 * variance


def dpm_orders(sampler: DPMSolver2M, process, sizes=(128, 256, 512, 1024)) -> list[float]:
    stop = float(process.time_at(0.5 * LEVEL))
    exact = noisy_moments(process, stop)[1]
    errors = [abs(deterministic_moments(replace(sampler, steps=n), process, stop)[1] / exact - 1.0) for n in sizes]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@each_process
def test_dpm_solver_has_order_two(process):
    """Even in log-SNR, stopped at half a level; to plus or minus 0.05 without sampling."""
    assert dpm_orders(DPMSolver2M(), process) == pytest.approx([2.0] * 3, abs=0.05)


class _Forgetful(DPMSolver2M):
    """History dropped."""

    def step(self, target, x, t, s, state):
        return super().step(target, x, t, s, None)


class _WrongStep(DPMSolver2M):
    """History taken to be of a step twice as long."""

    def step(self, target, x, t, s, state):
        return super().step(target, x, t, s, (state[0] and (state[0][0], 2.0 * state[0][1]), state[1]))


class _Reversed(DPMSolver2M):
    """The sign of the extrapolation."""

    def step(self, target, x, t, s, state):
        return super().step(target, x, t, s, (state[0] and (state[0][0], -state[0][1]), state[1]))


@pytest.mark.parametrize("wrong", [_Forgetful, _WrongStep, _Reversed])
def test_planted_errors_of_the_history_cost_the_order(wrong):
    assert all(order < 1.2 for order in dpm_orders(wrong(), VP))


# The adaptive solver.


@each_process
def test_the_error_follows_the_tolerance(process):
    """Quantiles of a Gaussian: the flow between Gaussians keeps them."""
    mean, variance = noisy_moments(process, process.T)
    u = torch.linspace(-3.0, 3.0, 13, dtype=F64)[:, None]
    stop = float(process.time_at(0.5 * LEVEL))
    m, v = noisy_moments(process, stop)
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        y = AdaptiveHeun(tolerance, tolerance)(gaussian(process), mean + math.sqrt(variance) * u, None, stop)
        errors.append(float((y - (m + math.sqrt(v) * u)).abs().max()))
    assert all(error < tolerance for error, tolerance in zip(errors, (1e-2, 1e-3, 1e-4, 1e-5), strict=True))
    assert all(a > 3.0 * b for a, b in itertools.pairwise(errors))


def test_rows_take_steps_of_their_own():
    """A row far out, where the flow is steep, needs more of them; each as if alone."""
    density = GaussianMixtureDensity(VP, (0.5, 0.5), torch.tensor([-0.5, 0.5], dtype=F64), (0.01, 0.2))
    x = torch.tensor([[-0.5], [0.0], [0.5]], dtype=F64)
    refined = AdaptiveHeun(1e-4, 1e-4).refine(density, x)
    assert refined.info["steps"].unique().numel() == 3
    alone = torch.cat([AdaptiveHeun(1e-4, 1e-4)(density, row[None]) for row in x])
    assert torch.allclose(refined.x, alone, rtol=0, atol=1e-12)


def test_an_adaptive_solver_that_cannot_reach_the_end_says_so():
    with pytest.raises(NonFiniteError, match="max_steps: got 2 of 2 rows"):
        AdaptiveHeun(1e-9, 1e-9, max_steps=5)(gaussian(VP), torch.zeros(2, 1, dtype=F64))


# Metropolis' test.


@dataclass(frozen=True)
class _AcceptsAll(MetropolisLangevin):
    """Planted: the proposal is always taken."""

    def step(self, target, x, t, s, state):
        sigma = target.sigma(s)
        for _ in range(self.moves):
            e = self.step_size * sigma**2
            x = x + e * target.score(x, s) + math.sqrt(2.0 * e) * target.normal(x)
        return x, state


@dataclass(frozen=True)
class _NoProposalRatio(MetropolisLangevin):
    """Planted: accepted by the ratio of densities alone, as if the proposal were symmetric."""

    def step(self, target, x, t, s, state):
        for _ in range(self.moves):
            e = self.step_size * target.sigma(s) ** 2
            log_p, score = target.log_density_and_score(x, s)
            y = x + e * score + math.sqrt(2.0 * e) * target.normal(x)
            taken = target.uniform(len(x)).log() < target.log_density(y, s) - log_p
            x = torch.where(taken[:, None], y, x)
        return x, state


def moments_after(sampler: MetropolisLangevin, n: int = 40_000) -> tuple[Tensor, float, float]:
    """Samples of a chain at T that starts in its own distribution, with the exact mean and variance."""
    process = VESDE.linear(1.0)
    density = GaussianDensity(process, torch.full((1,), 0.3, dtype=F64), 0.3)
    x = density.sample(n, 1.0, generator=seeded(3))
    y = sampler.refine(density, x, 1.0, 1.0, generator=seeded(4)).x
    return y, 0.3, 1.09


def test_metropolis_moves_keep_the_distribution_where_unadjusted_ones_do_not():
    """Step size 1: the unadjusted variance is 1 / (1 - 1 / 2.18) times too large. z = 6.11."""
    y, mean, variance = moments_after(MetropolisLangevin(1, moves=10, step_size=1.0))
    assert_mean(y, mean, math.sqrt(variance))
    assert_variance(y, mean, variance)
    for wrong in (_AcceptsAll, _NoProposalRatio):
        y, mean, variance = moments_after(wrong(1, moves=10, step_size=1.0))
        with pytest.raises(AssertionError):
            assert_variance(y, mean, variance)


def test_the_acceptance_is_that_of_the_formula():
    """One move from the mean of a normal, by quadrature over the proposal; counted over 40,000 rows, z = 6.11."""
    process, step = VESDE.linear(1.0), 0.8
    density = GaussianDensity(process, torch.zeros(1, dtype=F64), 1e-9)  # p_1 is standard normal
    refined = MetropolisLangevin(1, moves=1, step_size=step).refine(
        density, torch.zeros(40_000, 1, dtype=F64), 1.0, 1.0, generator=seeded(0)
    )
    z = torch.linspace(-8.0, 8.0, 20_001, dtype=F64)
    y = math.sqrt(2 * step) * z
    gain = -0.5 * y**2 + (y**2 - (step * y - y) ** 2) / (4 * step)
    weights = (-0.5 * z**2).softmax(0)
    expected = float((gain.clamp(max=0).exp() * weights).sum())
    assert abs(float(refined.info["acceptance"][0]) - expected) < Z * math.sqrt(expected * (1 - expected) / 40_000)


def test_acceptance_is_given_for_every_level():
    """Where the data are narrow, moves are long at high noise and short at low noise: accepted more and more."""
    density = GaussianDensity(VESDE.linear(1.0), torch.zeros(8), 0.05)
    refined = MetropolisLangevin(8, moves=8).refine(density, start(density, 500), generator=seeded(1))
    acceptance = refined.info["acceptance"]
    assert acceptance.shape == (7,)
    assert 0.5 < float(acceptance[0]) < 0.98 < float(acceptance[-1]) <= 1.0


class _ScoreOnly(Target):
    has_log_density: ClassVar[bool] = False


def test_a_sampler_that_needs_log_p_refuses_a_score_alone():
    target = _ScoreOnly(gaussian(VP))
    assert EulerMaruyama(4)(target, torch.zeros(2, 1)).shape == (2, 1)
    with pytest.raises(UnsupportedError, match=r"density: got a _ScoreOnly with a score but no log-density"):
        MetropolisLangevin()(target, torch.zeros(2, 1))


# Langevin's defaults.


def langevin_moments(sampler: AnnealedLangevin, process, std: float, stop: float) -> float:
    """Relative error of the variance at ``stop``, by recursion, of data N(0.6, std^2)."""

    def scales(t: float) -> tuple[float, float, float]:
        a, s = float(process.alpha(t)), float(process.sigma(t))
        return a, s, (a * std) ** 2 + s**2

    times = sampler.times(process, process.T, stop)
    variance = scales(process.T)[2]
    for t, s in itertools.pairwise(times):
        a_t, sigma_t, v_t = scales(t)
        if s == 0.0:  # Tweedie
            variance *= ((1.0 - sigma_t**2 / v_t) / a_t) ** 2
            continue
        a_s, sigma_s, v_s = scales(s)
        variance *= min(a_s / a_t, math.exp(sampler.step_size * sampler.moves)) ** 2
        epsilon = sampler.step_size * sigma_s**2
        for _ in range(sampler.moves):
            variance = (1.0 - epsilon / v_s) ** 2 * variance + 2.0 * epsilon
    return variance / scales(stop)[2] - 1.0


@pytest.mark.parametrize("std", [0.5, 0.2])
@pytest.mark.parametrize(
    "process",
    [
        VESDE.linear(10.0),
        VPSDE(),
        SubVPSDE(),
        VESDE.at_noise(0.3),
        GaussianProcess(torch.cos, torch.sin, T=1.5),
        OrnsteinUhlenbeck(),
        COSINE,
    ],
    ids=["linear-ve 10", "vp", "subvp", "ve .3", "cosine", "the kit's", "the kit's cosine"],
)
def test_langevin_s_defaults_follow_ladders(process, std):
    """Within the tolerance of check_sampler, on its processes and on wide ones, at the end and on the way."""
    for stop in (0.0, 0.05 * process.T, 0.3 * process.T):
        assert abs(langevin_moments(AnnealedLangevin(), process, std, stop)) < 0.05


# Lattices.


@each_sampler
def test_no_sampler_can_lose_the_lattice_s_stop(sampler):
    """Scores are asked for at 0.3 level and above; one of your own is protected alike."""
    process = VPSDE.at_noise(0.25)
    lattice = ToyLattice(process, PMF)
    seen = []

    def log_p(x, t):
        seen.append(float(t.min()))
        return lattice(x, t, edges=False)

    density = CallableDensity(log_p, (1,), process, lattice=lattice.lattice, density=log_p)
    sampler(density, lattice.sample(5, process.T, generator=seeded(0)), generator=seeded(1))
    stop = float(process.time_at(0.3 * lattice.lattice.width))
    if sampler.samples_distribution:
        assert min(seen) == seen[-1] == pytest.approx(stop, rel=1e-6)
    else:
        assert seen == [pytest.approx(process.T)]


@dataclass(frozen=True)
class _Own(Sampler):
    """A sampler in one step of its own."""

    def run(self, target, x, start, stop, keep):
        x = x * (target.alpha(stop) / target.alpha(start))
        keep(stop, x)
        return x, {"said": 1.0}


def test_a_sampler_of_one_s_own_gets_all_of_the_edge():
    density = plane_mixture(VP)
    refined = _Own().refine(density, start(density), path=True)
    assert refined.info == {"said": 1.0}
    assert len(refined.path) == 2
    with pytest.raises(ArgumentError, match="t_end"):
        _Own()(density, start(density), 0.0, VP.T)
    with pytest.raises(UnsupportedError, match="process: got LevelNoise"):
        _Own()(ToyLattice(LevelNoise(17), PMF), torch.zeros(1, 1))


def test_steps_of_the_first_version_are_refused_by_their_new_form():
    with pytest.raises(ArgumentTypeError, match=r"Old.step: got .*; expected, since version 0.2, a GridSampler"):

        class Old(EulerMaruyama):
            def step(self, x, t, s, score, process, noise):
                return x

    with pytest.raises(ArgumentTypeError, match=r"x: got a VPSDE; .*sampler\(density, x"):
        EulerMaruyama()(gaussian(VP), VP, torch.zeros(1, 1))
    with pytest.raises(ArgumentTypeError, match=r"n: got a VPSDE; .*generate\(density, n"):
        generate(gaussian(VP), VP)


def test_a_target_around_a_target_answers_with_another_score():
    """A product with N(0, 1 + sigma^2): the sampler knows nothing of it."""

    class Pulled(Target):
        def score(self, x, t):
            return super().score(x, t) - x

    density = gaussian(VP)
    x = density.sample(2000, VP.T, generator=seeded(0))
    plain, pulled = (
        EulerMaruyama(32)(t, x) for t in (Target(density, generator=seeded(1)), Pulled(density, generator=seeded(1)))
    )
    assert float(pulled.mean()) < float(plain.mean())


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_coefficients_follow_the_form_of_the_time(name):
    """A float for a float, something that broadcasts for one time per row, in the dtype of the call."""
    process = PROCESSES[name]
    density = GaussianDensity(process, torch.zeros(2, 3), STD)
    target, x = Target(density).bound(torch.zeros(4, 2, 3), process.T)
    t = torch.linspace(0.1, 1.0, 4, dtype=F64) * process.T
    for coefficient in ("alpha", "sigma", "drift_coefficient", "diffusion"):
        one, many = getattr(target, coefficient)(float(t[2])), getattr(target, coefficient)(t)
        assert isinstance(one, float)
        assert many.shape == (4, 1, 1)
        assert many.dtype == torch.float32
        assert float(many[2]) == pytest.approx(one, rel=1e-6)
    rows = target.rows(torch.tensor([2, 0]))
    assert torch.allclose(rows.score(x[:2], t[[2, 0]]), target.score(x, t)[[2, 0]])
    assert target.evaluations == rows.evaluations == 6


def test_grid_samplers_hold_their_settings_only():
    for sampler in SAMPLERS.values():
        assert sampler == replace(sampler)
        assert hash(sampler) == hash(replace(sampler))
        if isinstance(sampler, GridSampler):
            with pytest.raises(AttributeError):
                sampler.steps = 3


# What a review found.


def test_rows_that_are_not_finite_have_failed_from_the_start():
    density = plane_mixture(VP)
    x = start(density).index_fill(0, torch.tensor([2]), math.nan)
    refined = EulerMaruyama(8).refine(density, x, generator=seeded(1), on_failure="keep")
    assert refined.info["failed"].tolist() == [2]
    with pytest.raises(ArgumentError, match=r"x: got 2 non-finite values.*on_failure='keep'"):
        EulerMaruyama(8)(density, x)


class Box(CallableDensity):
    """Uniform on a square, zero outside: log p is -inf there, and that is no failure."""

    def __init__(self, dims: int = 2) -> None:
        def log_p(x, t):
            inside = (x.abs() <= 1.0).all(1)
            return torch.where(inside, 0.0 * x.sum(1), -math.inf)

        super().__init__(log_p, (dims,), VP, sample=lambda n, t, c, g: 2 * torch.rand(n, dims, generator=g) - 1)


def test_where_the_density_is_zero_nothing_has_failed():
    refined = MetropolisLangevin(4, moves=2).refine(Box(), torch.zeros(50, 2), generator=seeded(0), on_failure="keep")
    assert "failed" not in refined.info
    assert (refined.x.abs() <= 1.05).all()


def test_a_step_that_overflows_is_tried_again_at_a_tenth():
    """N(0, 10^2), with a cliff where the exact path never is but Euler's step over the whole way leads."""
    process = VESDE.linear(10.0)

    def score(x, t):
        return torch.where(x.abs() < 7.7, 1e38, -x / (100.0 + process.sigma(t).square()[:, None]))

    density = CallableDensity(lambda x, t: -0.5 * x.square().sum(1), (1,), process, score=score)
    refined = AdaptiveHeun(first_step=1.0).refine(density, torch.full((1, 1), 10.0), 10.0, 5.0)
    assert float(refined.x) == pytest.approx(math.sqrt(125.0 / 2.0), rel=1e-3)
    assert refined.info["steps"] > refined.info["accepted"]


def test_slow_rows_of_an_adaptive_solver_cost_the_others_nothing():
    density = GaussianMixtureDensity(VP, (0.5, 0.5), torch.tensor([-0.5, 0.5], dtype=F64), (0.01, 0.2))
    x = torch.tensor([[-0.5], [0.0], [0.5]], dtype=F64)
    sampler = AdaptiveHeun(1e-4, 1e-4)
    steps = sampler.refine(density, x).info["steps"]
    enough = replace(sampler, max_steps=int(steps.max()))
    assert same_bits(enough(density, x), sampler(density, x))
    fewer = replace(sampler, max_steps=int(steps.max()) - 1)
    with pytest.raises(NonFiniteError, match="max_steps: got 1 of 3 rows"):
        fewer(density, x)
    kept = fewer.refine(density, x, on_failure="keep")
    assert kept.info["failed"].tolist() == [int(steps.argmax())]
    assert int(kept.x.isfinite().sum()) == 2


def test_bad_ways_to_fail_are_refused_before_anything_is_drawn():
    generator = seeded(0)
    for t_start in (None, 0.0):
        with pytest.raises(ArgumentError, match="on_failure: got 'bogus'"):
            generate(gaussian(VP), 3, t_start=t_start, generator=generator, on_failure="bogus")
    assert torch.equal(generator.get_state(), seeded(0).get_state())


def test_a_step_that_returns_no_pair_is_told_so_and_results_print_briefly():
    class NoState(EulerMaruyama):
        def step(self, target, x, t, s, state):
            return x

    with pytest.raises(ArgumentTypeError, match=r"NoState.step: got a Tensor"):
        NoState()(gaussian(VP), torch.zeros(2, 1))
    refined = AdaptiveHeun().refine(gaussian(VP), torch.zeros(2, 1), path=True)
    assert "(2, 1) at t = 0" in repr(refined)
    assert "info: steps, accepted" in repr(refined)


@pytest.mark.parametrize("sampler", [AdaptiveHeun, AdaptiveSDE])
def test_the_first_step_is_a_share_of_the_way(sampler):
    """One that is accepted, since any error is tolerated."""
    process = SubVPSDE(T=0.5)
    refined = sampler(rtol=1e6, atol=1e6, first_step=0.125).refine(
        gaussian(process), torch.zeros(2, 1, dtype=F64), t_end=0.1, path=True, generator=seeded(0)
    )
    assert refined.path[1][0].tolist() == pytest.approx([0.5 - 0.125 * 0.4] * 2, rel=1e-12)
