"""Parallel tempering: exact whatever the score and the levels, modes that annealing misses, planted errors."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from ncml import VESDE, Lattice
from ncml.densities import CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.density import CompletionTarget, ComposedTarget, Target
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.sampling import (
    DDIM,
    ERSDE,
    HMC,
    AnnealedLangevin,
    AnnealedSMC,
    MetropolisLangevin,
    ParallelTempering,
    tempering,
)
from ncml.sampling.grids import Given
from ncml.sampling.kernels import Kernels
from tests.affine import noisy_moments
from tests.problems import (
    MEAN,
    PMF,
    SDES,
    STD,
    HalfScore,
    each_process,
    gaussian,
    mixture,
    mixture_cdf,
    plane_mixture,
    seeded,
)
from tests.statistics import Z, assert_frequencies, assert_law, assert_mean, assert_variance, normal_cdf

F64 = torch.float64
VP = SDES["vp"]


def test_kernels_are_the_process_forth_and_back():
    """Draws, and the ratio of their densities, against normals written out."""
    g = seeded(0)
    x_s, x_t, score, z = (torch.randn(5, 3, dtype=F64, generator=g) for _ in range(4))
    kernels = Kernels.between(Target(plane_mixture(VP)), 0.2 * VP.T, VP.T)
    a, v = kernels.scale, kernels.std**2
    assert (a, v) == tuple(map(float, (VP.transition(0.2 * VP.T, VP.T)[0], VP.transition(0.2 * VP.T, VP.T)[1] ** 2)))
    normal = torch.distributions.Normal
    forth = normal(a * x_s, math.sqrt(v)).log_prob(x_t).sum(1)
    back = normal((x_t + v * score) / a, math.sqrt(v) / a).log_prob(x_s).sum(1)
    assert torch.allclose(kernels.log_ratio(x_s, x_t, score, 3), forth - back, rtol=1e-12, atol=1e-10)
    assert torch.allclose(kernels.forth(x_s, z), a * x_s + math.sqrt(v) * z)
    assert torch.allclose(kernels.back(x_t, score, z), (x_t + v * score + math.sqrt(v) * z) / a)


@each_process
def test_the_law_is_exact_under_every_process_with_a_wrong_score(process):
    """Four levels with half of the score, by which the steps alone go visibly wrong."""
    density, n, stop = gaussian(process), 20_000, 0.2 * process.T
    x = density.sample(n, process.T, generator=seeded(0))
    target = HalfScore(density, generator=seeded(1))
    refined = ParallelTempering(4, rounds=16).refine(target, x, None, stop)
    mean, variance = noisy_moments(process, stop)
    assert_mean(refined.x, mean, math.sqrt(variance))
    assert_variance(refined.x, mean, variance)
    assert_law(refined.x, normal_cdf(mean, math.sqrt(variance)))
    with pytest.raises(AssertionError, match="variance ratio"):
        assert_variance(ERSDE(3, "karras")(target, x, None, stop), mean, variance)


def test_at_the_data_itself_where_nothing_can_move():
    """t = 0 without noise: exchanges alone carry the law there."""
    density, n = mixture(VP), 20_000
    x = density.sample(n, VP.T, generator=seeded(0))
    refined = ParallelTempering(5, rounds=16).refine(HalfScore(density, generator=seeded(1)), x)
    assert_law(refined.x, mixture_cdf)
    assert refined.info["acceptance"].isnan().tolist() == [False] * 4 + [True]


WIDE = GaussianMixtureDensity(VESDE.linear(4.0), [0.2, 0.8], torch.tensor([[-2.0] * 2, [2.0] * 2], dtype=F64), 0.1)
"""Two modes, forty standard deviations apart."""


@pytest.mark.parametrize("chain", [MetropolisLangevin(moves=2), HMC(moves=1, leaps=3)], ids=lambda c: type(c).__name__)
def test_weights_of_modes_come_right_from_a_wrong_start(chain):
    """All rows begin under one mode, at a noise where it still can be told; annealing once never leaves it."""
    n, start, stop = 1500, 2.5, 0.1
    x = torch.tensor([[2.0, 2.0]], dtype=F64).repeat(n, 1)
    weights = torch.tensor([0.2, 0.8], dtype=F64)
    once = MetropolisLangevin(12, moves=4)(WIDE, x, start, stop, generator=seeded(0))
    with pytest.raises(AssertionError, match="frequencies off"):
        assert_frequencies((once.sum(1) > 0).long().bincount(minlength=2), weights)
    sampler = ParallelTempering(rounds=60, chain=chain)
    refined = sampler.refine(WIDE, x, start, stop, generator=seeded(1))
    assert_frequencies((refined.x.sum(1) > 0).long().bincount(minlength=2), weights)
    assert float(refined.info["arrivals"].double().mean()) > 2.0


def test_a_path_has_the_chain_round_by_round():
    """Steps down, then a sample at the end per round, whose mean over rounds is that of the data."""
    density = gaussian(VP)
    x = density.sample(400, VP.T, generator=seeded(0))
    refined = ParallelTempering(4, rounds=30).refine(density, x, None, 0.1 * VP.T, generator=seeded(1), path=True)
    times = [float(t) for t, _ in refined.path]
    assert len(times) == 1 + 3 + 30
    assert times[3:] == [0.1 * VP.T] * 31
    assert all(t > s for t, s in itertools.pairwise(times[:4]))
    assert torch.equal(refined.path[-1][1], refined.x)
    states = torch.stack([y for _, y in refined.path[4:]])
    changed = (states[1:] != states[:-1]).double().mean()
    assert 0.5 < float(changed) <= 1.0
    mean, variance = noisy_moments(VP, 0.1 * VP.T)
    assert abs(float(states.mean()) - mean) < Z * math.sqrt(variance / 400)


def test_what_it_says_and_spends():
    """Exchanges become certain as levels come close, if the ladder is one process; a wrong score shows in them."""
    density = GaussianDensity(VP, torch.full((16,), MEAN, dtype=F64), 0.1)
    x = density.sample(500, VP.T, generator=seeded(0))

    def rates(levels, kind=Target):
        sampler = ParallelTempering(levels, rounds=8)
        return sampler.refine(kind(density, generator=seeded(1)), x, None, 0.2 * VP.T)

    few, many = rates(3), rates(17)
    assert float(few.info["exchanges"].mean()) < float(many.info["exchanges"].mean())
    assert float(many.info["exchanges"].min()) > 0.85
    assert float(rates(17, HalfScore).info["exchanges"].mean()) < float(many.info["exchanges"].mean()) - 0.03
    assert many.info["acceptance"].shape == (17,)
    assert many.info["exchanges"].shape == (16,)
    # Two on the way to each level, and one; in each round two moves at each of 17 levels, and two for each of 8 pairs.
    assert many.evaluations == 500 * (2 * 16 + 1 + 8 * (2 * 17 + 2 * 8))
    one = ParallelTempering(2, rounds=1).refine(density, x, None, 0.2 * VP.T, generator=seeded(1))
    assert one.evaluations == 500 * (3 + 2 * 2 + 2)
    assert 0.0 < float(one.info["arrivals"].double().mean()) == pytest.approx(float(one.info["exchanges"][0]))


def test_arrivals_count_samples_that_have_come_all_the_way():
    """Every exchange accepted, three levels, by hand: even pairs first."""
    visits = tempering.Visits(3, torch.zeros(1, 1))
    taken, arrivals = torch.tensor([True]), []
    for i in range(6):
        visits.exchange(i % 2, taken)
        arrivals.append(int(visits.arrivals))
    assert arrivals == [0, 1, 1, 2, 2, 3]
    kept = tempering.Visits(2, torch.zeros(2, 1))
    kept.exchange(0, torch.tensor([True, False]))
    assert kept.arrivals.tolist() == [1, 0]


@dataclass(frozen=True)
class _NoDrift(Kernels):
    """Planted: the density of the way back without the square of its drift."""

    def log_ratio(self, x_s, x_t, score, dims):
        return super().log_ratio(x_s, x_t, score, dims) - 0.5 * score.square().sum(1) * self.std**2


@dataclass(frozen=True)
class _ForthOnly(Kernels):
    """Planted: the way back is taken for noise, without its density."""

    def log_ratio(self, x_s, x_t, score, dims):
        return -0.5 * (x_t - self.scale * x_s).flatten(1).square().sum(1) / self.std**2


@pytest.mark.parametrize("wrong", [Kernels, _NoDrift, _ForthOnly])
def test_planted_errors_of_the_exchange_are_seen(wrong, monkeypatch):
    """At t = 0, where nothing but the exchange moves samples."""
    monkeypatch.setattr(tempering, "Kernels", wrong)
    density = gaussian(VESDE.linear(1.0))
    x = density.sample(20_000, 1.0, generator=seeded(0))
    y = ParallelTempering(7, rounds=16)(density, x, generator=seeded(1))
    with contextlib.nullcontext() if wrong is Kernels else pytest.raises(AssertionError, match="variance ratio"):
        assert_variance(y, MEAN, STD**2)


def test_rows_that_fail_leave_the_others_alone():
    class Brittle(Target):
        def log_density_and_score(self, x, t):
            log_p, score = super().log_density_and_score(x, t)
            bad = x[:, 0] > 2.0
            failed = self.noted(bad, torch.full((len(x),), float(t)), "log-density or score")
            return log_p.masked_fill(failed, math.nan), score.masked_fill(failed[:, None], math.nan)

    density = gaussian(VP)
    x = density.sample(50, VP.T, generator=seeded(0))
    x[7::2] = 3.0
    target = Brittle(density, generator=seeded(1))
    kept = ParallelTempering(4, rounds=4).refine(target, x, None, 0.2 * VP.T, on_failure="keep")
    assert kept.info["failed"].tolist() == list(range(7, 50, 2))
    rest = torch.arange(50) < 7
    rest[8::2] = True
    assert kept.x[rest].isfinite().all()
    assert float(kept.info["exchanges"].min()) > 0.6  # of the rows that are left


@dataclass(frozen=True)
class _Wild(DDIM):
    """Says what it is told, and spoils the samples that it is given."""

    def begin(self, times):
        return times

    def step(self, target, x, t, s, state):
        assert (t, s) in set(itertools.pairwise(state))
        y, _ = super().step(target, x.clone(), t, s, None)
        x.fill_(math.nan)
        return y, state


def test_a_predictor_knows_the_times_and_owns_its_samples():
    """On a grid of one's own."""
    density, times = gaussian(VP), (0.9 * VP.T, 0.4 * VP.T, 0.2 * VP.T)
    x = density.sample(50, VP.T, generator=seeded(0))
    sampler = ParallelTempering(4, Given(times), rounds=4, predictor=_Wild())
    refined = sampler.refine(density, x, None, 0.1 * VP.T, generator=seeded(1), path=True)
    assert refined.x.isfinite().all()
    assert [float(t) for t, _ in refined.path[:5]] == [VP.T, *times, 0.1 * VP.T]
    assert refined.info["exchanges"].isfinite().all()


def _correlated(x, t):
    """N(0, C) under noise of t, with variances of 0.25 and a covariance of 0.2."""
    a, b = 0.25 + t.square(), 0.2
    square = (a * x.square().sum(1) - 2.0 * b * x.prod(1)) / (a.square() - b * b)
    return -0.5 * (square + (a.square() - b * b).log()) - math.log(2.0 * math.pi)


@pytest.mark.parametrize("kind", ["completed", "product", "lattice"])
def test_targets_around_targets_and_lattices(kind):
    """The conditional of a correlated Gaussian given one value; a product of experts; mass on a lattice."""
    process, n = VESDE.linear(1.0), 4000
    if kind == "lattice":
        density = ToyLattice(process, PMF)
        x = density.sample(n, 1.0, generator=seeded(0))
        refined = ParallelTempering(8, rounds=24).refine(density, x, generator=seeded(1))
        levels = Lattice(17).nearest(refined.x).flatten()
        assert_frequencies(levels.bincount(minlength=17), PMF, bias=0.01)
        assert refined.t == 0.0
        return
    if kind == "product":
        parts = [GaussianDensity(process, torch.tensor([m], dtype=F64), 0.3) for m in (-0.2, 0.6)]
        target = ComposedTarget(*((1.0, Target(part, generator=seeded(1))) for part in parts))
        x = parts[0].sample(n, 1.0, generator=seeded(0))
        y = ParallelTempering(8, rounds=48)(target, x, None, 0.2)[:, 0]
        mean, variance = 0.2, 0.5 * (0.09 + 0.04)
    else:
        density = CallableDensity(_correlated, event_shape=(2,), process=process)
        known = torch.tensor([[0.5, 0.0]], dtype=F64)
        mask = torch.tensor([[True, False]])
        target = CompletionTarget(Target(density, generator=seeded(1)), known, mask)
        x = torch.randn(n, 2, dtype=F64, generator=seeded(0))
        y = ParallelTempering(8, rounds=96)(target, x)[:, 1]
        mean, variance = 0.4, 0.25 - 0.2**2 / 0.25
    assert_mean(y, mean, math.sqrt(variance))
    assert_variance(y, mean, variance)


def test_what_it_needs():
    class ScoreOnly(Target):
        has_log_density = False

    with pytest.raises(UnsupportedError, match="log-density"):
        ParallelTempering()(ScoreOnly(gaussian(VP)), torch.zeros(2, 1))
    with pytest.raises(ArgumentError, match="levels: got 1"):
        ParallelTempering(levels=1)
    with pytest.raises(ArgumentError, match="rounds: got 0"):
        ParallelTempering(rounds=0)
    with pytest.raises(ArgumentTypeError, match="chain: got AnnealedLangevin"):
        ParallelTempering(chain=AnnealedLangevin())
    with pytest.raises(ArgumentError, match="predictor: got AnnealedSMC"):
        ParallelTempering(predictor=AnnealedSMC())
    slow = ParallelTempering(predictor=ERSDE(scale=math.sqrt))
    with pytest.raises(ArgumentError, match="scale: got sqrt"):
        slow(gaussian(VP), torch.zeros(2, 1, dtype=F64))
    with pytest.raises(ArgumentError, match="grid: got 'even'"):
        ParallelTempering(grid="even")
