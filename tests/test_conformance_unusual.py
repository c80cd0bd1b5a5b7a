"""Objects that are right and unusual pass the conformance kit: none of its checks is a false alarm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ncml import VESDE, VPSDE, GaussianProcess, LevelNoise, SampleableDensity
from ncml.densities import CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.density import check_draw
from ncml.sampling import EulerMaruyama, HeunODE, PredictorCorrector
from ncml.testing import check_density, check_noise_process, check_sampler
from ncml.testing.reference import OrnsteinUhlenbeck
from tests.problems import seeded

VP = VPSDE.at_noise(0.5)


class Independent(SampleableDensity):
    """Independent coordinates of one of torch's distributions, whose scale is ``spread(t)``."""

    def __init__(self, dims, kind, spread=lambda t: 1.0 + t):
        super().__init__((dims,))
        self.kind, self.spread = kind, spread

    def forward(self, x, t, context=None, *, edges=True):
        scale = self.spread(t)[:, None].to(x.dtype)
        return (self.kind.log_prob(x / scale) - scale.log()).sum(1)

    def sample(self, n, t=0.0, context=None, *, generator=None):
        t, _ = check_draw(self, n, t, context, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torch's distributions take no generator
            torch.manual_seed(seed)
            x = self.kind.sample((n, *self.event_shape))
        return (x.double() * self.spread(t)[:, None]).to(self.dtype)


class Bounded(torch.distributions.Distribution):
    """Values in [-1, 1], with the density ``1 + slope x`` over 2; ``-inf`` outside."""

    def __init__(self, slope):
        super().__init__(validate_args=False)
        self.slope = slope

    def log_prob(self, value):
        inside = value.abs() <= 1.0
        held = torch.where(inside, value, torch.zeros_like(value))
        return torch.where(inside, (0.5 * (1.0 + self.slope * held)).log() + 0.0 * value, -math.inf)

    def sample(self, shape=()):
        u = torch.rand(shape, dtype=torch.float64)
        if self.slope == 0.0:
            return 2.0 * u - 1.0
        s = self.slope
        return (((1.0 - s) ** 2 + 4.0 * s * u).sqrt() - 1.0) / s


class Correlated(SampleableDensity):
    """A Gaussian whose coordinates have the correlation .95, under VP."""

    def __init__(self, dims, std=0.5, rho=0.95):
        super().__init__((dims,), VP)
        self.register_buffer("covariance", std**2 * (rho * torch.ones(dims, dims) + (1.0 - rho) * torch.eye(dims)))

    def root(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        alpha, sigma = (c(t.double())[:, None, None] for c in (VP.alpha, VP.sigma))
        eye = torch.eye(*self.covariance.shape, dtype=torch.float64)
        return torch.linalg.cholesky(alpha**2 * self.covariance.double() + sigma**2 * eye).to(dtype)

    def forward(self, x, t, context=None, *, edges=True):
        root = self.root(t, x.dtype)
        z = torch.linalg.solve_triangular(root, x[..., None], upper=False)[..., 0]
        log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * z.square().sum(1) - log_det - 0.5 * x.shape[1] * math.log(2.0 * math.pi)

    def sample(self, n, t=0.0, context=None, *, generator=None):
        t, _ = check_draw(self, n, t, context, generator)
        z = torch.randn(n, *self.event_shape, 1, dtype=self.dtype, generator=generator)
        return (self.root(t, self.dtype) @ z)[..., 0]


def mixture(weights, means, stds, process=VP):
    return GaussianMixtureDensity(process, weights, torch.as_tensor(means, dtype=torch.float32), stds)


def around(center, scale, dims=2):
    return center + scale * torch.randn(16, dims, generator=seeded(1))


DENSITIES = {
    "uniform on a square": (lambda: Independent(2, Bounded(0.0)), {"x": around(0.0, 0.2).clamp(-0.9, 0.9)}),
    "bounded, sloping": (lambda: Independent(1, Bounded(0.6)), {"x": around(0.0, 0.2, 1).clamp(-0.9, 0.9)}),
    "Student-t, 3 degrees": (lambda: Independent(2, torch.distributions.StudentT(3.0)), {}),
    "Cauchy": (lambda: Independent(1, torch.distributions.Cauchy(0.0, 1.0)), {}),
    "Laplace": (lambda: Independent(2, torch.distributions.Laplace(0.0, 0.3)), {}),
    "far modes": (lambda: mixture([0.5, 0.5], [[-10.0, 3.0], [10.0, -3.0]], 0.3), {}),
    "far modes in 5 dimensions": (lambda: mixture([0.4, 0.6], 8.0 * torch.eye(5)[:2], 0.3), {}),
    "scale 1e6": (
        lambda: GaussianDensity(VESDE.linear(1e6), [3e6, -1e6], 1e6),
        {"x": around(0.0, 1e6)},
    ),
    "fifty components": (
        lambda: mixture(torch.rand(50, generator=seeded(2)) + 0.1, torch.randn(50, 2, generator=seeded(3)), 0.2),
        {},
    ),
    "unequal scales": (lambda: GaussianDensity(VP, [0.0, 50.0], [1e-2, 20.0]), {"x": around(0.0, 1.0)}),
    "correlation .95 in 10 dimensions": (lambda: Correlated(10), {}),
    "std 1e-3": (lambda: GaussianDensity(VP, [0.3, -0.2], 1e-3), {"x": around(0.0, 1e-3) + torch.tensor([0.3, -0.2])}),
    "two levels": (lambda: ToyLattice(VP, torch.tensor([[0.3, 0.7], [0.9, 0.1]])), {}),
    "a level without mass": (lambda: ToyLattice(LevelNoise(4), torch.tensor([0.5, 0.0, 0.2, 0.3])), {}),
    "cosine process": (
        lambda: GaussianDensity(GaussianProcess(torch.cos, torch.sin, T=1.2), [0.2, -0.5], [0.1, 0.4]),
        {},
    ),
    "one dimension": (lambda: mixture([0.1, 0.9], [[-2.0], [1.0]], [[0.05], [0.4]]), {}),
    "twelve dimensions, three modes": (lambda: mixture([0.2, 0.5, 0.3], torch.eye(12)[:3] * 2.0, 0.3), {}),
}
REASONS = {
    "uniform on a square": ("stein_identities_hold", "jumps"),
    "bounded, sloping": ("stein_identities_hold", "jumps"),
}
"""Checks that cannot say anything, and the word that says why."""


@pytest.mark.parametrize("name", DENSITIES)
def test_unusual_densities_conform(name):
    build, options = DENSITIES[name]
    report = check_density(build(), samples=1000, **options)
    skipped = dict(report.not_applicable)
    assert "samples_follow_the_density" in report.passed
    assert "rows_of_samples_are_independent" in report.passed
    if name in REASONS:
        check, reason = REASONS[name]
        assert reason in skipped[check]


@pytest.mark.parametrize(
    "process",
    [
        VPSDE(T=1e-4),
        VESDE.at_noise(1e3),
        OrnsteinUhlenbeck(T=5.0),
        GaussianProcess(torch.cos, torch.sin, T=1.5),
        GaussianProcess(lambda t: torch.ones_like(t), lambda t: t.square(), T=2.0),
        LevelNoise(2),
        LevelNoise(256, T=1e-3),
    ],
    ids=str,
)
def test_unusual_processes_conform(process):
    assert check_noise_process(process).passed


@pytest.mark.parametrize(
    "sampler", [EulerMaruyama(steps=48, grid="uniform"), HeunODE(steps=24), PredictorCorrector()], ids=str
)
def test_samplers_conform_from_other_seeds(sampler):
    assert check_sampler(sampler, seed=5).passed


def test_parameters_that_nothing_depends_on_are_seen():
    """Though the log-density has a graph, of what the wrapper looks at."""
    density = CallableDensity(lambda x, t: -0.5 * x.square().sum(1) - 0.9189385, (1,), modules=[nn.Linear(2, 2)])
    with pytest.raises(AssertionError, match="log-densities without a graph, and parameters that require gradients"):
        check_density(density, samples=500)
