"""Conditional generation against closed forms: completion, linear measurements, events, restoration."""

from __future__ import annotations

import math

import pytest
import torch

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NoiseConditionalDensity, SampleableDensity
from ncml.densities import MADE, CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.density import CompletionTarget, EventTarget, PosteriorTarget, Target, guided, time_posterior
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedSMC,
    DPMSolver2M,
    DPMSolverSDE,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    RePaint,
    Tweedie,
    complete,
    restore,
)
from tests.problems import PMF, PROCESSES, gaussian, mixture, plane_mixture, same_bits, seeded
from tests.statistics import Z, assert_law, normal_cdf

F64 = torch.float64
WIDE = VESDE.linear(20.0)
RHO, Y = 0.8, 1.0
MEAN, VARIANCE = RHO * Y, 1.0 - RHO**2
KNOWN = torch.tensor([True, False])


class Correlated(SampleableDensity):
    """N(0, C) at t = 0, and its ladder, in closed form."""

    dtype_follows_input = True

    def __init__(self, covariance, process) -> None:
        super().__init__((len(covariance),), process)
        self.covariance = torch.as_tensor(covariance, dtype=F64)
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def variances(self, t):
        """Along the eigenvectors."""
        return self.process.alpha(t)[:, None] ** 2 * self.values + self.process.sigma(t)[:, None] ** 2

    def forward(self, x, t, context=None, *, edges=True):
        variances = self.variances(t)
        return -0.5 * ((x @ self.vectors).square() / variances + (2.0 * math.pi * variances).log()).sum(1)

    def forward_score(self, x, t, context=None, *, create_graph=False):
        return -((x @ self.vectors) / self.variances(t)) @ self.vectors.T

    def sample(self, n, t=0.0, context=None, *, generator=None):
        z = torch.randn(n, len(self.values), dtype=F64, generator=generator)
        return (z * self.variances(t).sqrt()) @ self.vectors.T


def pair(process=WIDE) -> Correlated:
    return Correlated([[1.0, RHO], [RHO, 1.0]], process)


def known_first(process=WIDE) -> CompletionTarget:
    return CompletionTarget(pair(process), torch.tensor([[Y, 0.0]], dtype=F64), KNOWN)


def posterior_of_pair(noise: float = 0.0, process=WIDE, **settings) -> PosteriorTarget:
    """The first of the pair is measured."""
    y, operator = torch.tensor([[Y]], dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64)
    return PosteriorTarget(pair(process), y, operator, noise, **settings)


# Completion.


@pytest.mark.parametrize(
    "sampler",
    [EulerMaruyama(16), HeunODE(8), AdaptiveHeun(), RePaint(8, repeats=2), MetropolisLangevin(8), Tweedie()],
    ids=lambda s: type(s).__name__,
)
def test_known_values_follow_the_process_and_come_back(sampler):
    """At every level with its noise, whatever the sampler, and at the end bit for bit."""
    density, n = plane_mixture(PROCESSES["vp"]), 4000
    values = torch.tensor([[0.3, math.nan]], dtype=F64)
    start = torch.full((n, 2), math.nan, dtype=F64)
    start[:, 1] = 0.1
    target = CompletionTarget(Target(density, generator=seeded(0)), values, KNOWN)
    refined = sampler.refine(target, start, path=True)
    assert same_bits(refined.x[:, 0], torch.full((n,), 0.3, dtype=F64))
    for t, x in refined.path[:-1]:
        if isinstance(t, float) and t > 0.0:
            alpha, sigma = (float(f(t)) for f in (density.process.alpha, density.process.sigma))
            assert_law(x[:, 0], normal_cdf(0.3 * alpha, sigma))
    assert refined.x.isfinite().all()


def test_metropolis_chains_complete_exactly():
    """The ladder of conditionals ends at that of the data: mean and variance of a correlated pair."""
    n = 6000
    target = CompletionTarget(Target(pair(), generator=seeded(0)), torch.tensor([[Y, 0.0]], dtype=F64), KNOWN)
    x = 20.0 * torch.randn(n, 2, dtype=F64, generator=seeded(1))
    y = MetropolisLangevin(24, moves=24, step_size=0.6)(target, x)[:, 1]
    assert abs(float(y.mean()) - MEAN) < 0.02 + Z * math.sqrt(VARIANCE / n)
    assert abs(float(y.var()) / VARIANCE - 1.0) < 0.05 + Z * math.sqrt(2.0 / n)


def test_a_completion_within_a_completion_takes_its_noise_from_the_generator_too():
    density = Correlated([[1.0, RHO, RHO], [RHO, 1.0, RHO], [RHO, RHO, 1.0]], WIDE)
    known, x = torch.eye(3, dtype=torch.bool), torch.zeros(4, 3, dtype=F64)
    target = CompletionTarget(CompletionTarget(density, x, known[0]), x, known[1])
    first, again = (EulerMaruyama(4)(target.with_generator(seeded(0)), x) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, EulerMaruyama(4)(target.with_generator(seeded(1)), x))


def test_the_bias_of_replacement_is_as_stated_and_falls_with_repeats():
    """0.61 of the mean by one way down, 0.96 with ten repeats; guidance by Tweedie's moments has none."""
    n = 20_000

    def share(target, sampler):
        target = target.with_generator(seeded(0))
        y = sampler(target, 20.0 * torch.randn(n, 2, dtype=F64, generator=seeded(1)))[:, 1]
        return float(y.mean()) / MEAN

    noise = Z / math.sqrt(n) / MEAN
    once, often = share(known_first(), DPMSolverSDE(64)), share(known_first(), RePaint())
    assert once == pytest.approx(0.61, abs=0.03 + noise)
    assert often == pytest.approx(0.96, abs=0.03 + noise)
    assert share(posterior_of_pair(), DPMSolverSDE(64)) == pytest.approx(1.0, abs=0.01 + noise)


def test_completion_of_lattice_data_in_an_autoregressive_order():
    """Known first values: the draw alone is exact, so are its frequencies; on the lattice, known values as given."""
    torch.manual_seed(0)
    process = PROCESSES["vp"]
    made = MADE((2,), process, lattice=Lattice(5), hidden=(16,), components=2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.5 * torch.randn_like(p))
    points = made.lattice.points()
    x = torch.stack([points[3].expand(5), points], 1)
    exact = made.log_prob(x).detach().double().softmax(0)
    held = points[3].expand(4000, 1) * torch.tensor([1.0, 0.0])
    drawn = complete(made, held, KNOWN, t_start=0.0, generator=seeded(0))
    counts = made.lattice.nearest(drawn[:, 1]).bincount(minlength=5) / 4000
    assert float((counts - exact).abs().max()) < Z * 0.5 / math.sqrt(4000)
    assert same_bits(drawn[:, 0], held[:, 0])
    refined = complete(made, held[:64], KNOWN, sampler=EulerMaruyama(8), generator=seeded(0))
    assert made.lattice.on_lattice(refined).all()
    assert same_bits(refined[:, 0], held[:64, 0])
    with pytest.raises(ArgumentError, match=r"^x: 4000 of 4000 values are not one of the 5 lattice points"):
        complete(made, held + 0.1, KNOWN)


def test_moves_at_the_start_settle_what_a_short_ladder_cannot_change():
    """Two modes far apart for the noise at T: only the one that the known value belongs to is right."""
    process = VESDE.linear(0.3)
    density = GaussianMixtureDensity(
        process, [0.5, 0.5], torch.tensor([[-0.4, -0.4], [0.4, 0.4]], dtype=F64), torch.tensor([0.1, 0.1], dtype=F64)
    )
    x = torch.tensor([[0.4, 0.0]], dtype=F64).repeat(500, 1)

    def wrong(moves):
        y = complete(density, x, KNOWN, sampler=HeunODE(16), moves=moves, generator=seeded(0))
        return float((y[:, 1] < 0.0).double().mean())

    assert wrong(0) > 0.1
    assert wrong(200) < 0.6 * wrong(0)


def test_completion_takes_rows_masks_contexts_and_failures():
    """A mask for each row; rows of an adaptive sampler keep theirs; guidance inside; a repeated call, the same bits."""
    density = plane_mixture(PROCESSES["ve"])
    x = torch.tensor([[0.3, 0.1], [0.2, -0.4], [0.0, 0.5]], dtype=F64)
    known = torch.tensor([[True, False], [False, True], [True, False]])
    for sampler in (AdaptiveHeun(), EulerMaruyama(8)):
        y = complete(density, x, known, sampler=sampler, generator=seeded(1))
        assert same_bits(y[known], x[known])
        assert same_bits(y, complete(density, x, known, sampler=sampler, generator=seeded(1)))
    torch.manual_seed(0)
    made = MADE((3,), PROCESSES["vp"], hidden=(16,), components=2, classes=2)
    target = guided(made, torch.tensor([0, 1]), 1.0)
    y = complete(target, torch.full((2, 3), 0.2), torch.tensor([True, False, True]), sampler=EulerMaruyama(4))
    assert torch.equal(y[:, [0, 2]], torch.full((2, 2), 0.2))


# Linear measurements.


def test_posteriors_of_gaussian_data_are_exact_at_every_level():
    """Score, log-likelihood and Tweedie's mean against the joint normal distribution of x_t and y."""
    covariance = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.5]], dtype=F64)
    operator = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
    for name, noise in (("vp", 0.1), ("ve", 0.0), ("cosine", 0.3)):
        process = PROCESSES[name]
        density, g = Correlated(covariance, process), seeded(0)
        x, y = density.sample(5, process.T, generator=g), torch.randn(5, 2, dtype=F64, generator=g)
        for t in (0.2 * process.T, process.T):
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            noisy = alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=F64)
            cross = alpha * covariance @ operator.T
            gain = torch.linalg.solve(noisy, cross)
            rest = operator @ covariance @ operator.T + noise**2 * torch.eye(2, dtype=F64) - cross.T @ gain
            likelihood = torch.distributions.MultivariateNormal(x @ gain, rest).log_prob(y)
            score = -torch.linalg.solve(noisy, x.T).T + torch.linalg.solve(rest, (y - x @ gain).T).T @ gain.T
            target, z = PosteriorTarget(density, y, operator, noise).bound(x, t)
            with target.evaluating():
                assert torch.allclose(target.score(z, t), score, rtol=1e-8, atol=1e-8)
                assert torch.allclose(target.log_likelihood(z, t), likelihood, atol=1e-8)
                log_p, both = target.log_density_and_score(z, t)
                assert torch.allclose(log_p, density.log_prob(x, t) + likelihood, atol=1e-8)
                assert torch.allclose(both, score, rtol=1e-8, atol=1e-8)
                each = torch.linspace(0.5 * t, t, 5, dtype=F64)  # a time for each row
                assert torch.allclose(target.score(z, each)[-1], target.score(z, t)[-1], atol=1e-8)
                assert torch.allclose(target.rows(torch.tensor([3])).score(z[3:4], t), score[3:4], atol=1e-8)


def test_a_covariance_that_is_not_positive_is_lifted_to_the_least_one():
    """A score of -2 x / sigma^2, steeper than any ladder's, makes Tweedie's covariance negative."""
    process = VPSDE.at_noise(0.5)
    alpha, sigma = float(process.alpha(process.T)), float(process.sigma(process.T))
    density = CallableDensity(lambda x, t: -x.square().sum(1) / sigma**2, (2,), process)
    x, y, operator = (torch.tensor(rows, dtype=F64) for rows in ([[0.7, -0.2]], [[0.3]], [[2.0, 0.0]]))
    target, z = PosteriorTarget(density, y, operator, 0.0).bound(x, process.T)
    least = 1e-6 * (sigma / alpha) ** 2 * 4.0
    residual = 0.3 + 2.0 * 0.7 / alpha
    expected = -0.5 * (residual**2 / least + math.log(2.0 * math.pi * least))
    with target.evaluating():
        assert float(target.log_likelihood(z, process.T)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_reverse_sde_and_flow_lead_to_the_posterior(noise):
    """Conditional mean and covariance of the pair; at noise 0 the measurement is kept."""
    n, gain = 10_000, 1.0 / (1.0 + noise**2)
    mean = gain * torch.tensor([Y, RHO * Y], dtype=F64)
    covariance = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=F64)
    covariance = covariance - gain * covariance[:, :1] @ covariance[:1]
    x = 20.0 * torch.randn(n, 2, dtype=F64, generator=seeded(1))
    for sampler in (DPMSolverSDE(128), DPMSolver2M(32)):
        y = sampler(posterior_of_pair(noise), x, generator=seeded(2))
        centred = y - mean
        got = centred.T @ centred / n
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        assert ((y.mean(0) - mean).abs() < (0.02 + Z / math.sqrt(n)) * scale + 1e-6).all()
        allowed = (0.03 + Z * math.sqrt(2.0 / n)) * scale[:, None] * scale + 1e-6
        assert ((got - covariance).abs() < allowed).all()


def test_the_first_order_overstates_what_is_not_known():
    """Its posterior is too wide; with the Hessian it is not."""
    n, variance = 10_000, 0.25 / 1.25
    x = 20.0 * torch.randn(n, 2, dtype=F64, generator=seeded(1))
    first, second = (
        float(DPMSolver2M(32)(posterior_of_pair(0.5, second_order=order), x)[:, 0].var()) / variance
        for order in (False, True)
    )
    assert second == pytest.approx(1.0, abs=0.03 + Z * math.sqrt(2.0 / n))
    assert abs(first - 1.0) > 0.1


def test_weights_make_the_posterior_of_a_mixture_exact():
    """Where Tweedie's normal is wrong: the reverse SDE alone misses the posterior weights, particles do not."""
    process, noise, y = VESDE.linear(5.0), 0.5, 0.2
    density = GaussianMixtureDensity(process, [0.3, 0.7], torch.tensor([[-1.0], [1.0]], dtype=F64), [0.3, 0.3])
    evidence = [w * math.exp(-0.5 * (y - m) ** 2 / (0.09 + noise**2)) for w, m in ((0.3, -1.0), (0.7, 1.0))]
    right = evidence[1] / sum(evidence)
    n = 10_000
    target = PosteriorTarget(
        Target(density, generator=seeded(3)),
        torch.tensor([[y]], dtype=F64),
        torch.ones(1, 1, dtype=F64),
        noise,
    )
    start = density.sample(n, 5.0, generator=seeded(1))
    plain = float((EulerMaruyama(128)(target, start)[:, 0] > 0).double().mean())
    refined = AnnealedSMC(128).refine(target, start)
    weighted = float((refined.x[:, 0] > 0).double().mean())
    assert float(refined.info["effective_sample_size"].min()) > 0.2
    allowed = 2.0 * Z * math.sqrt(right * (1.0 - right) / n)  # resampling about doubles the error
    assert abs(weighted - right) < allowed
    assert abs(plain - right) > allowed


def test_a_learned_density_is_measured():
    """Hessians that leave no positive covariance are lifted; float32; both orders."""
    torch.manual_seed(0)
    made = MADE((4,), PROCESSES["vp"], hidden=(16,), components=2)
    operator = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    x = made.sample(8, made.process.T, generator=seeded(0))
    for order in (True, False):
        target = PosteriorTarget(made, torch.tensor([[0.1, 0.3]]), operator, 0.01, second_order=order)
        y = EulerMaruyama(64)(target, x, generator=seeded(1))
        assert y.dtype == torch.float32
        before, after = ((v @ operator.T - target.y).abs().mean() for v in (x, y))
        assert float(after) < 0.5 * float(before)


def test_a_wrong_covariance_is_seen():
    """Planted: the Hessian's sign, with which less would be known after a measurement than before."""

    class Flipped(PosteriorTarget):
        def likelihood(self, clean, slopes, t):
            alpha = self.alpha(t)
            return super().likelihood(clean, lambda v: 2.0 * v / alpha - slopes(v), t)

    n = 4000
    x = 20.0 * torch.randn(n, 2, dtype=F64, generator=seeded(1))
    target = Flipped(pair(), torch.tensor([[Y]], dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64), 0.5)
    y = DPMSolver2M(32).refine(target, x, on_failure="keep").x[:, 0]
    y = y[y.isfinite()]
    assert len(y) < n // 2 or abs(float(y.var()) / 0.2 - 1.0) > 0.03 + Z * math.sqrt(2.0 / n)


# Events.


def test_half_spaces_of_gaussian_data():
    """P(event) of a half-space at each level, and the truncated normal at the end."""
    process, g = VESDE.linear(5.0), seeded(0)
    density = pair(process)
    x = density.sample(5, 2.0, generator=g)
    target, z = EventTarget(density, lambda x: x[:, 0] + x[:, 1] - 1.0).bound(x, 2.0)
    covariance = density.covariance
    noisy = covariance + 4.0 * torch.eye(2, dtype=F64)
    gain = torch.linalg.solve(noisy, covariance).T
    rest = float((covariance - gain @ covariance).sum())
    with target.evaluating():
        expected = torch.special.log_ndtr(((x @ gain.T).sum(1) - 1.0) / math.sqrt(rest))
        assert torch.allclose(target.log_likelihood(z, 2.0), expected, atol=1e-10)
    n = 10_000
    above = EventTarget(Target(density, generator=seeded(2)), lambda x: x[:, 0] - 0.5)
    y = DPMSolverSDE(128)(above, density.sample(n, 5.0, generator=seeded(1)))[:, 0]
    edge = float(torch.special.ndtr(torch.tensor(0.5, dtype=F64)))

    def cdf(v):
        return ((normal_cdf(0.0, 1.0)(v) - edge) / (1.0 - edge)).clip(0.0, 1.0)

    assert_law(y, cdf, bias=0.02)


# Restoration.


def test_known_noise_is_removed_as_the_closed_form_says():
    density = GaussianDensity(PROCESSES["vp"], torch.tensor([0.3, -0.1], dtype=F64), 0.1)
    noisy = density.sample(20, generator=seeded(0)) + 0.05 * torch.randn(20, 2, dtype=F64, generator=seeded(1))
    restored = restore(density, noisy, sigmas=[0.05])
    shrunk = density.mean + (0.01 / (0.01 + 0.0025)) * (noisy - density.mean)
    assert torch.allclose(restored.x, shrunk, atol=1e-10)
    assert torch.allclose(restored.noise, torch.full((20,), 0.05, dtype=F64))


def test_unknown_noise_costs_next_to_nothing():
    """64 values tell the level of their noise nearly, all rows together exactly: 2 % above the least error there is."""
    density = GaussianDensity(VESDE.linear(1.0), torch.zeros(64, dtype=F64), 0.3)
    x = density.sample(2000, generator=seeded(0))
    noisy = x + 0.2 * torch.randn(x.shape, dtype=F64, generator=seeded(1))
    ideal = float((restore(density, noisy, sigmas=[0.2]).x - x).square().mean())
    for shared, allowed in ((False, 1.12), (True, 1.02)):
        restored = restore(density, noisy, shared=shared)
        assert float((restored.x - x).square().mean()) < allowed * ideal
    assert float((restored.noise - 0.2).abs().max()) < 0.02


def test_restored_draws_follow_the_data():
    """Levels drawn from the prior, draws from the posterior: their law is that of the data, whatever was measured."""
    density, n, g = mixture(VESDE.linear(1.0)), 10_000, seeded(0)
    sigmas, prior = [0.0, 0.05, 0.2, 0.8], [1.0, 2.0, 2.0, 1.0]
    level = torch.tensor(sigmas, dtype=F64)[torch.multinomial(torch.tensor(prior), n, replacement=True, generator=g)]
    noisy = density.sample(n, generator=g)
    noisy = noisy + level[:, None] * torch.randn(n, 1, dtype=F64, generator=g)
    restored = restore(density, noisy, sigmas=sigmas, prior=prior, sampler=EulerMaruyama(128), generator=g)

    def cdf(v):
        return sum(
            w * normal_cdf(m, s)(v)
            for w, m, s in zip(
                density.weights.tolist(), density.means[:, 0].tolist(), density.stds[:, 0].tolist(), strict=True
            )
        )

    assert_law(restored.x, cdf, bias=0.01)
    with pytest.raises(AssertionError):  # power: not those of the noisy data, nor means
        assert_law(restore(density, noisy, sigmas=sigmas, prior=prior).x, cdf, bias=0.01)
    assert torch.allclose(
        restored.posterior, time_posterior(density, noisy, [density.process.time_at(v) for v in sigmas], prior=prior)
    )


def test_a_shared_prior_counts_once():
    density = gaussian(VESDE.linear(1.0))
    noisy = density.sample(3, generator=seeded(0))
    posterior = restore(density, noisy, sigmas=[0.1, 0.5], prior=[3.0, 1.0], shared=True).posterior
    each = torch.stack([density.log_density(noisy, t).sum() for t in (0.1, 0.5)])
    assert torch.allclose(posterior[0], (each + torch.tensor([3.0, 1.0], dtype=F64).log()).softmax(0))


def summed(std: float, x: torch.Tensor, sigmas) -> torch.Tensor:
    """p(sigma | all rows of x) for N(0, std^2) data, by direct sum."""
    log_p = [torch.distributions.Normal(0.0, math.hypot(std, v)).log_prob(x).sum() for v in sigmas]
    return torch.stack(log_p).softmax(0)


def test_rows_that_disagree_are_weighed_together():
    """Many values: each row is certain of its own level, and only the sum of log-likelihoods knows which one wins."""
    g = seeded(0)
    density = GaussianDensity(VESDE.linear(1.0), torch.zeros(12288, dtype=F64), 0.05)
    x = density.sample(2, generator=g)
    x += torch.tensor([[0.1], [0.3]], dtype=F64) * torch.randn(x.shape, dtype=F64, generator=g)
    restored = restore(density, x, sigmas=[0.1, 0.3], shared=True)
    assert restored.posterior.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    density = GaussianDensity(VESDE.linear(1.0), torch.zeros(3072, dtype=F64), 0.05)
    x = density.sample(9, generator=g)  # eight rows and an outlier
    x += torch.tensor([0.05] * 8 + [0.5], dtype=F64)[:, None] * torch.randn(x.shape, dtype=F64, generator=g)
    restored = restore(density, x, shared=True)
    assert torch.allclose(restored.posterior[0], summed(0.05, x, restored.sigmas.tolist()), atol=1e-9)
    assert float(restored.noise[0]) == pytest.approx(0.168, abs=0.001)


# Bad input.


def masks() -> dict[str, tuple[object, type[Exception], str]]:
    return {
        "shape": (torch.tensor([True, False, True]), ArgumentError, r"known: got shape \(3,\)"),
        "nothing": (torch.zeros(2, dtype=torch.bool), ArgumentError, "nothing known"),
        "everything": (torch.ones(2, dtype=torch.bool), ArgumentError, "everything known"),
        "dtype": (torch.tensor([1.0, 0.0]), ArgumentTypeError, "known: got torch.float32"),
        "list": ([True, False], ArgumentTypeError, "known: got list"),
    }


@pytest.mark.parametrize("name", masks())
def test_masks_that_do_not_fit(name):
    known, error, message = masks()[name]
    with pytest.raises(error, match=message):
        complete(pair(), torch.zeros(2, 2, dtype=F64), known)


def test_what_cannot_be_completed():
    x = torch.tensor([[math.nan, 0.0]], dtype=F64)
    with pytest.raises(ArgumentError, match="x: got 1 non-finite"):
        complete(pair(), x, KNOWN)
    with pytest.raises(ArgumentError, match="x: got shape"):
        complete(pair(), x[0], KNOWN)
    with pytest.raises(UnsupportedError, match="process: got LevelNoise"):
        complete(ToyLattice(LevelNoise(17), PMF.repeat(2, 1)), torch.zeros(1, 2), KNOWN)
    with pytest.raises(ArgumentError, match="t_start: got 0"):
        complete(pair(), torch.zeros(1, 2, dtype=F64), KNOWN, t_start=0.0)
    with pytest.raises(ArgumentError, match="x: got 3 rows; expected 2"):
        EulerMaruyama(2)(CompletionTarget(pair(), torch.zeros(2, 2, dtype=F64), KNOWN), torch.zeros(3, 2, dtype=F64))
    with pytest.raises(ArgumentError, match="context: got one with a target"):
        complete(Target(pair()), torch.zeros(1, 2, dtype=F64), KNOWN, context=torch.zeros(1, 1))

    class Silent(NoiseConditionalDensity):
        def forward(self, x, t, context=None, *, edges=True):
            return -x.square().sum(1)

    with pytest.raises(UnsupportedError, match="density: got Silent, which cannot sample"):
        complete(Silent((2,), WIDE), torch.zeros(1, 2), KNOWN)


def test_measurements_that_cannot_be():
    density, y, A = pair(), torch.zeros(1, 1, dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64)
    singular = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=F64)
    for arguments, message in (
        ((y, A[:, :1]), "operator: got shape"),
        ((y, A.sum()), r"operator: got shape \(\); expected \(M, \*\(2,\)\)"),
        ((torch.zeros(1, 2, dtype=F64), A), r"y: got shape \(1, 2\)"),
        ((y, A, -1.0), "noise: got -1.0"),
        ((torch.zeros(1, 2, dtype=F64), singular), "operator: got 2 rows of rank 1"),
        ((y * math.nan, A), "y: got 1 non-finite"),
    ):
        with pytest.raises(ArgumentError, match=message):
            PosteriorTarget(density, *arguments)
    x = torch.randn(4, 2, dtype=F64, generator=seeded(0))
    assert EulerMaruyama(8)(PosteriorTarget(density, y.repeat(1, 2), singular, 0.1), x).isfinite().all()
    with pytest.raises(UnsupportedError, match="second condition"):
        EulerMaruyama(8)(PosteriorTarget(PosteriorTarget(density, y, A), y, A), x)
    with pytest.raises(ArgumentError, match="margin: got"):
        EulerMaruyama(8)(EventTarget(density, lambda x: x), x)
    with pytest.raises(ArgumentTypeError, match="margin: got 3"):
        EventTarget(density, 3)
    with pytest.raises(ArgumentTypeError, match="step_by: got"):
        RePaint(step_by=AdaptiveHeun())
    with pytest.raises(ArgumentError, match="sigmas: got"):
        restore(density, x, sigmas=[30.0])
    with pytest.raises(UnsupportedError, match="process: got LevelNoise"):
        restore(ToyLattice(LevelNoise(17), PMF), torch.zeros(1, 1))


def test_repeats_keep_an_unconditional_refinement_where_it_was():
    density, n = gaussian(PROCESSES["vp"]), 20_000
    y = RePaint(64, repeats=3)(density, density.sample(n, density.process.T, generator=seeded(0)), generator=seeded(1))
    assert abs(float(y.mean()) - 0.3) < (0.01 + Z / math.sqrt(n)) * 0.1
    assert float((y - 0.3).square().mean()) / 0.01 == pytest.approx(1.0, abs=0.01 + Z * math.sqrt(2.0 / n))


class Shifted(NoiseConditionalDensity):
    """N(c, 1) at t = 0, and its ladder: each row of the context is a mean."""

    def forward(self, x, t, context=None, *, edges=True):
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None]
        return -0.5 * ((x - alpha * context).square() / (alpha**2 + sigma**2)).sum(1)


def test_rows_of_a_conditioned_target_keep_their_own_context():
    """The targets with a closed-form score around them, row by row and in any order."""
    context, x = torch.tensor([[-3.0, 0.0], [0.0, 2.0], [5.0, 1.0]], dtype=F64), torch.zeros(3, 2, dtype=F64)
    t, index = 1.0, torch.tensor([2, 0])
    target, z = CompletionTarget(Target(Shifted((2,), WIDE), context=context), x, KNOWN).bound(x, t)
    variance = float(WIDE.alpha(t)) ** 2 + float(WIDE.sigma(t)) ** 2
    expected = (float(WIDE.alpha(t)) * context[:, 1] - z[:, 1]) / variance
    with target.evaluating():
        assert torch.allclose(target.score(z, t)[:, 1], expected)
        assert torch.allclose(target.rows(index).score(z[index], t)[:, 1], expected[index])
        likelihood = target.inner.log_prob(target.finished(z, t), t)
        assert torch.equal(target.log_prob(z, t), likelihood)
        assert torch.equal(target.log_density(z, t), likelihood)


def test_a_completion_makes_no_moves_unless_asked():
    """Moves at t_start take draws of their own; without them the default is the same bit for bit."""
    density = Correlated([[1.0, RHO], [RHO, 1.0]], WIDE)
    x = torch.tensor([[Y, 0.0]] * 3, dtype=F64)
    default, none, one = (
        complete(density, x, KNOWN, sampler=HeunODE(2), generator=seeded(0), **moves)
        for moves in ({}, {"moves": 0}, {"moves": 1})
    )
    assert same_bits(default, none)
    assert not same_bits(default, one)


def test_rows_that_fail_are_kept_by_every_way_to_restore():
    """By means as by a sampler: NaN in the row that has failed, and the others as without it."""
    process = VESDE.linear(1.0)
    right = GaussianDensity(process, torch.zeros(2, dtype=torch.float64), 0.5)
    wrong = CallableDensity(
        right.log_prob, (2,), process, score=lambda x, t: right.score(x, t).masked_fill(x[:, :1] > 5.0, math.nan)
    )
    x = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    x[2, 0] = 9.0
    levels = [0.1, 0.2, 0.4]
    with pytest.raises(NonFiniteError):
        restore(wrong, x, sigmas=levels)
    kept = restore(wrong, x, sigmas=levels, on_failure="keep").x
    assert bool(kept[2].isnan().all())
    others = [0, 1, 3]
    torch.testing.assert_close(kept[others], restore(right, x[others], sigmas=levels).x)
