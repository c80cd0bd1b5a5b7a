"""Sequential Monte Carlo: unbiased for any score, exact weights, what the effective sample size says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from ncml import VPSDE
from ncml.densities import CallableDensity, GaussianDensity
from ncml.density import CompletionTarget, ComposedTarget, Target
from ncml.errors import ArgumentError, NonFiniteError, UnsupportedError
from ncml.sampling import AnnealedSMC, EulerMaruyama
from tests.affine import noisy_moments
from tests.problems import MEAN, PROCESSES, SDES, STD, HalfScore, gaussian, mixture, seeded
from tests.statistics import Z

F64 = torch.float64
VP = SDES["vp"]


def estimates(sampler: AnnealedSMC, density, kind=Target, runs: int = 150, particles: int = 100, stop=0.0):
    """Z of many runs, and the mean effective sample size at their ends."""
    process, z, sizes = density.process, [], []
    for i in range(runs):
        g = seeded(i)
        x = density.sample(particles, process.T, generator=g)
        info = sampler.refine(kind(density, generator=g), x, None, stop).info
        z.append(math.exp(info["log_z"]))
        sizes.append(float(info["effective_sample_size"].min()))
    return torch.tensor(z, dtype=F64), sum(sizes) / runs


def assert_unbiased(z: torch.Tensor) -> None:
    assert abs(float(z.mean()) - 1.0) < Z * float(z.std()) / math.sqrt(len(z))


@pytest.mark.parametrize(
    ("name", "threshold"), [("vp", 0.0), ("vp", 0.5), ("vp", 1.0), ("subvp", 0.5), ("ve", 0.5), ("cosine", 0.5)]
)
def test_z_has_mean_one_on_closed_forms(name, threshold):
    """With and without resampling; of Z, not of its logarithm. z = 6.11 standard errors."""
    process = PROCESSES[name]
    for stop in (0.0, 0.1 * process.T):
        z, _ = estimates(AnnealedSMC(8, threshold=threshold), mixture(process), stop=stop)
        assert_unbiased(z)
        assert float(z.std()) < 0.1


@pytest.mark.parametrize("dims", [8, 64])
def test_z_has_mean_one_in_more_dimensions(dims):
    density = GaussianDensity(VP, torch.full((dims,), MEAN, dtype=F64), STD)
    z, size = estimates(AnnealedSMC(32), density, runs=100)
    assert_unbiased(z)
    assert size > 0.3


def test_a_wrong_score_leaves_z_unbiased_and_costs_particles():
    right, size = estimates(AnnealedSMC(8), mixture(VP))
    wrong, smaller = estimates(AnnealedSMC(8), mixture(VP), HalfScore)
    assert_unbiased(right)
    assert_unbiased(wrong)
    assert smaller < size - 0.02
    assert float(wrong.std()) > 2.0 * float(right.std())


def test_samples_follow_the_data_where_the_steps_alone_do_not():
    """Four steps with half of the score: the variance of plain steps is a fifth too large, weighted ones are right."""
    n, g = 40_000, seeded(0)
    density = gaussian(VP)
    x = density.sample(n, VP.T, generator=g)
    y = AnnealedSMC(4).refine(HalfScore(density, generator=g), x).x
    spread = float((y - MEAN).square().mean()) / STD**2
    # Resampling makes particles dependent: allow for a third of them.
    assert abs(spread - 1.0) < Z * math.sqrt(2.0 / (n / 3))

    plain = EulerMaruyama(4, denoise_last=False)(HalfScore(density, generator=g), x)
    assert abs(float((plain - MEAN).square().mean()) / STD**2 - 1.0) > 0.2


def test_weights_without_resampling_are_those_of_importance_sampling():
    """Weighted moments of one run are those of the data at the end."""
    density, g, n, stop = gaussian(VP), seeded(1), 50_000, 0.2 * VP.T
    sampler = AnnealedSMC(4, threshold=0.0, resample_last=False)
    refined = sampler.refine(HalfScore(density, generator=g), density.sample(n, VP.T, generator=g), None, stop)
    weights = refined.info["log_weights"].exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-9)
    mean, variance = noisy_moments(VP, stop)
    for f, expected in ((refined.x[:, 0], mean), ((refined.x[:, 0] - mean).square(), variance)):
        terms = weights * (f - expected)
        assert abs(float(terms.mean())) < Z * float(terms.std()) / math.sqrt(n)


def test_one_evaluation_per_step():
    refined = AnnealedSMC(8).refine(gaussian(VP), torch.zeros(10, 1, dtype=F64), generator=seeded(0))
    assert refined.evaluations == 10 * 9
    assert refined.info["effective_sample_size"].shape == (8,)


@dataclass(frozen=True)
class _Jacobian(AnnealedSMC):
    """Planted: the constants of the kernels are taken to cancel."""

    def step(self, target, x, t, s, state):
        y, new = super().step(target, x, t, s, state)
        new.log_weights = new.log_weights + x[0].numel() * math.log(target.transition(s, t)[0])
        return y, new


@dataclass(frozen=True)
class _OldDensity(AnnealedSMC):
    """Planted: the density at the level that is left is forgotten."""

    def step(self, target, x, t, s, state):
        before = state.log_p
        y, new = super().step(target, x, t, s, state)
        new.log_weights = new.log_weights + 0.01 * before
        return y, new


@pytest.mark.parametrize("wrong", [_Jacobian, _OldDensity])
def test_planted_errors_bias_z(wrong):
    density = GaussianDensity(SDES["subvp"], torch.full((8,), MEAN, dtype=F64), STD)
    z, _ = estimates(wrong(8, threshold=0.0), density, runs=100)
    with pytest.raises(AssertionError):
        assert_unbiased(z)


def test_what_it_needs():
    class ScoreOnly(Target):
        has_log_density = False

    with pytest.raises(UnsupportedError, match="log-density"):
        AnnealedSMC()(ScoreOnly(gaussian(VP)), torch.zeros(2, 1))
    with pytest.raises(ArgumentError, match="threshold: got 2"):
        AnnealedSMC(threshold=2)


def labelled(x, t, context):
    return torch.distributions.Normal(context.double(), 0.3).log_prob(x[:, 0])


def test_particles_of_different_contexts_are_refused():
    """They take each other's places; a product looks at all of its parts."""
    density = CallableDensity(labelled, (1,), VP)
    x = torch.zeros(4, 1, dtype=F64)
    assert AnnealedSMC(2)(density, x, context=torch.ones(4)).shape == (4, 1)
    with pytest.raises(ArgumentError, match="context: got rows that differ"):
        AnnealedSMC(2)(density, x, context=torch.tensor([1.0, 1.0, -1.0, 1.0]))
    parts = (1.0, Target(gaussian(VP))), (1.0, Target(density, context=torch.tensor([1.0, 1.0, -1.0, 1.0])))
    with pytest.raises(ArgumentError, match="context: got rows that differ"):
        AnnealedSMC(2)(ComposedTarget(*parts), x)


@pytest.mark.parametrize("threshold", [0.0, 0.99])
def test_particles_that_fail_are_lost_once(threshold):
    """Their share of Z is gone, and no more, however often the others are resampled."""
    inner = gaussian(VP)
    cut = MEAN + 2.0 * STD

    def log_p(x, t):
        return inner(x, t) * torch.where((x[:, 0] > cut) & (t < 0.5 * VP.T), math.nan, 1.0)

    density = CallableDensity(log_p, (1,), VP)
    g = seeded(0)
    x = inner.sample(20_000, VP.T, generator=g)
    refined = AnnealedSMC(8, threshold=threshold).refine(density, x, generator=g, on_failure="keep")
    assert refined.x.isfinite().all()  # resampled at the end: only the living are left
    assert "failed" not in refined.info
    assert -0.12 < refined.info["log_z"] < -0.01
    last = AnnealedSMC(8, threshold=threshold, resample_last=False).refine(density, x, generator=g, on_failure="keep")
    assert (last.info["log_weights"][last.x[:, 0].isnan()] == -math.inf).all()


@pytest.mark.parametrize("u", [0.0, math.nextafter(1.0, 0.0)])
def test_particles_without_weight_are_never_picked(u):
    """Also the first and the last one, by the least and the largest uniform."""

    class Planted(Target):
        def uniform(self, n):
            return torch.full((n,), u, dtype=F64)

    inner = gaussian(VP)
    density = CallableDensity(lambda x, t: torch.where(x[:, 0].abs() < 100.0, inner(x, t), -math.inf), (1,), VP)
    x = inner.sample(10, VP.T, generator=seeded(0))
    x[[0, 4, 9]] = 1e4
    refined = AnnealedSMC(2, threshold=1.0).refine(Planted(density, generator=seeded(1)), x)
    assert (refined.x.abs() < 100.0).all()


def test_particles_without_any_mass_are_an_error():
    def log_p(x, t):
        return torch.where(x[:, 0].abs() <= 1.0, 0.0 * x[:, 0], -math.inf)

    with pytest.raises(NonFiniteError, match="particles: got weights of 0 for all 8"):
        AnnealedSMC(8)(CallableDensity(log_p, (1,), VP), torch.full((8, 1), 1.9, dtype=F64))


def test_the_last_step_to_the_data_may_be_tweedies_formula():
    density = gaussian(VP)
    start = density.sample(6, VP.T, generator=seeded(0))
    sampler = AnnealedSMC(4, denoise_last=True, resample_last=False)
    refined = sampler.refine(density, start, path=True, generator=seeded(1))
    t, x = refined.path[-2]
    expected = (x + float(VP.sigma(t)) ** 2 * density.score(x, t)) / float(VP.alpha(t))
    assert refined.path[-1][0] == 0.0
    assert torch.allclose(refined.x, expected)


def test_z_of_a_completion_is_that_of_the_free_values():
    """What is held takes no part: Z is the ratio of the held values' densities at both ends."""
    process = VPSDE.at_noise(0.9)
    density = GaussianDensity(process, torch.zeros(2, dtype=torch.float64), 1.0)
    target = CompletionTarget(density, torch.tensor([[0.3, 0.0]], dtype=torch.float64), torch.tensor([True, False]))
    target.z = torch.zeros(500, 2, dtype=torch.float64)
    found = []
    for seed in range(20):
        x = density.sample(500, process.T, generator=seeded(seed))
        found.append(math.exp(AnnealedSMC(32).refine(target, x, generator=seeded(100 + seed)).info["log_z"]))
    alpha = float(process.alpha(process.T))
    expected = math.exp(-0.5 * (0.3**2 - (alpha * 0.3) ** 2))  # of unit variance at every t
    assert sum(found) / 20 == pytest.approx(expected, rel=0.03)  # without: 1 / alpha, 2.2 times as much
