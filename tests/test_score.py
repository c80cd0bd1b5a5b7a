"""The score and what is built on it, against closed forms; random probes by enumerating them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ncml import NoiseConditionalDensity
from ncml.densities import CallableDensity, GaussianDensity
from ncml.errors import ArgumentError, ArgumentTypeError, InferenceTensorError, NonFiniteError
from ncml.score import (
    exact_divergence,
    hutchinson_divergence,
    log_density_and_score,
    score_and_divergence,
    sliced_score_matching,
)
from tests.problems import (
    MEAN,
    MEANS,
    SDES,
    STD,
    STDS,
    WEIGHTS,
    each_process,
    each_sde,
    gaussian,
    lattice,
    mixture,
    plane_mixture,
    same_bits,
    seeded,
)
from tests.statistics import assert_mean

F64 = torch.float64
D = 4
GENERATOR = seeded(42)
M0 = torch.randn(D, generator=GENERATOR, dtype=F64)
ROOT = torch.randn(D, D, generator=GENERATOR, dtype=F64)
C0 = ROOT @ ROOT.t() / D + 0.1 * torch.eye(D, dtype=F64)
"""Mean and covariance of correlated Gaussian data."""


def moments(process, t: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * M0, alpha**2 * C0 + sigma**2 * torch.eye(D, dtype=F64)


class AutoregressiveGaussian(NoiseConditionalDensity):
    """The correlated Gaussian by the chain rule: each conditional regresses on the leading block."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        mean, covariance = moments(self.process, float(t[0]))
        centred, total = x - mean, torch.zeros_like(x[:, 0])
        for i in range(D):
            weights = torch.linalg.solve(covariance[:i, :i], covariance[:i, i])
            variance = covariance[i, i] - weights @ covariance[:i, i]
            residual = centred[:, i] - centred[:, :i] @ weights
            total = total - 0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi))
        return total


def points(n: int = 16, dims: int = D) -> Tensor:
    return torch.randn(n, dims, generator=seeded(7), dtype=F64)


@each_sde
@pytest.mark.parametrize("fraction", [0.0, 1e-4, 1e-2, 1.0])
def test_the_score_of_an_autoregressive_model_is_that_of_the_joint(process, fraction):
    """-(C_t)^-1 (x - alpha m) to 1e-12: the gradient flows through every conditional's context."""
    t = fraction * process.T
    density, x = AutoregressiveGaussian((D,), process), points()
    mean, covariance = moments(process, t)
    exact = torch.linalg.solve(covariance, (mean - x).t()).t()
    assert torch.allclose(density.score(x, t), exact, rtol=1e-12, atol=1e-12 * float(exact.abs().max()))
    log_p, score = log_density_and_score(density, x, t)
    joint = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    assert torch.allclose(log_p, joint, rtol=1e-12, atol=1e-12)
    assert torch.allclose(score, exact, rtol=1e-12, atol=1e-12 * float(exact.abs().max()))


@each_process
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_closed_form_scores_equal_autograd(process, fraction):
    t = fraction * process.T
    for density, dims in ((gaussian(process), 1), (mixture(process), 1), (plane_mixture(process), 2)):
        x = points(64, dims)
        ours, autograd = density.score(x, t), log_density_and_score(density, x, t)[1]
        assert torch.allclose(ours, autograd, rtol=1e-12, atol=1e-12 * float(autograd.abs().max()))


@each_sde
def test_divergence_against_the_closed_form(process):
    """Of a Gaussian -trace C_t^-1; of a mixture by the responsibilities: E[tr H] + Var[s]."""
    t = 0.4 * process.T
    density, x = AutoregressiveGaussian((D,), process), points()
    expected = -torch.linalg.inv(moments(process, t)[1]).trace()
    assert torch.allclose(exact_divergence(density, x, t), expected.expand(16), rtol=1e-12)
    x = torch.linspace(-1.0, 1.0, 50, dtype=F64)[:, None]
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    w, m, v = (torch.tensor(u, dtype=F64) for u in (WEIGHTS, MEANS, STDS))
    m, v = alpha * m, (alpha * v).square() + sigma**2
    r = (w.log() - 0.5 * (x - m).square() / v - 0.5 * v.log()).softmax(1)
    s = (m - x) / v
    expected = (r * (s.square() - 1.0 / v)).sum(1) - (r * s).sum(1).square()
    assert torch.allclose(exact_divergence(mixture(process), x, t), expected, rtol=1e-11, atol=1e-10)


def quadratic(matrix: Tensor) -> CallableDensity:
    """log p = -x^T A x / 2, whose score -A x has the divergence -trace A."""
    return CallableDensity(lambda x, t: -0.5 * torch.einsum("bi,ij,bj->b", x, matrix, x), (matrix.shape[0],))


@given(seed=st.integers(0, 2**31), probes=st.integers(1, 3))
def test_rademacher_probes_are_exact_for_a_diagonal_hessian(seed, probes):
    scales = torch.rand(3, generator=seeded(seed), dtype=F64) + 0.1
    estimate = hutchinson_divergence(quadratic(scales.diag()), points(5, 3), probes=probes, generator=seeded(seed + 1))
    assert torch.allclose(estimate, -scales.sum().expand(5), rtol=1e-12)


SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=F64)
AXES = math.sqrt(3.0) * torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
each_probe = pytest.mark.parametrize(("probe", "nodes"), [("rademacher", SIGNS), ("gaussian", AXES)])
"""All sign vectors, and a cubature of degree 3 for the normal: means over them are expectations of v v^T."""


@pytest.fixture
def probe_with(monkeypatch):
    """Make the random directions walk through given nodes, one after another."""

    def install(nodes: Tensor) -> None:
        walk = itertools.cycle(nodes)
        monkeypatch.setattr("ncml.score.random_direction", lambda x, probe, generator: next(walk).expand_as(x))

    return install


@each_probe
def test_hutchinson_is_unbiased(probe_with, probe, nodes):
    """By enumeration: over all probes, and for a single one on average, the trace is exact."""
    density, x = plane_like(), points(6, 3)
    exact = exact_divergence(density, x, 0.5)
    probe_with(nodes)
    whole = hutchinson_divergence(density, x, 0.5, probes=len(nodes), probe=probe)
    assert torch.allclose(whole, exact, rtol=1e-12)
    singles = torch.stack([hutchinson_divergence(density, x, 0.5, probe=probe) for _ in nodes])
    assert torch.allclose(singles.mean(0), exact, rtol=1e-12)
    assert float(singles.std(0).min()) > 1e-2  # the Hessian is not diagonal: one probe is not enough


def plane_like() -> CallableDensity:
    """A density in three dimensions whose Hessian has every entry and varies with x and t."""
    matrix = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.7], [-0.3, 0.7, 3.0]], dtype=F64)

    def log_p(x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * torch.einsum("bi,ij,bj->b", x, matrix, x) * (1.0 + t) - torch.logsumexp(2.0 * x, 1)

    return CallableDensity(log_p, (3,))


@each_probe
def test_probes_have_the_identity_as_second_moment(probe, nodes):
    """What unbiasedness rests on, of the nodes exactly and of the drawn probes statistically."""
    assert torch.allclose(nodes.t() @ nodes / len(nodes), torch.eye(3, dtype=F64), atol=1e-15)
    n = 20_000
    ones = quadratic(torch.ones(2, 2, dtype=F64))  # v^T H v = -(v_1 + v_2)^2
    draws = hutchinson_divergence(ones, torch.zeros(n, 2, dtype=F64), probe=probe, generator=seeded(1))
    assert_mean(draws, -2.0, 2.0 if probe == "rademacher" else math.sqrt(8.0))
    again = hutchinson_divergence(ones, torch.zeros(n, 2, dtype=F64), probe=probe, generator=seeded(1))
    assert same_bits(draws, again)


@each_probe
def test_sliced_score_matching_has_the_right_expectation(probe_with, probe, nodes):
    """E_v = div s + |s|^2 / 2."""
    density, x = plane_like(), points(6, 3)
    probe_with(nodes)
    mean = torch.stack([sliced_score_matching(density, x, 0.5, probe=probe) for _ in nodes]).mean(0)
    expected = exact_divergence(density, x, 0.5) + 0.5 * density.score(x, 0.5).square().sum(1)
    assert torch.allclose(mean, expected, rtol=1e-12)


@each_sde
def test_sliced_score_matching_measures_the_fisher_divergence(process):
    """E_data[loss] + E|s_data|^2 / 2 = E|s_data - s_model|^2 / 2, by quadrature in one dimension."""
    t = 0.5 * process.T
    z, w = np.polynomial.hermite_e.hermegauss(12)
    w = torch.from_numpy(w / w.sum())
    data = gaussian(process)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = alpha * MEAN + math.hypot(alpha * STD, sigma) * torch.from_numpy(z)[:, None]
    truth = data.score(x, t)
    for mean, std in ((0.3, 0.1), (0.2, 0.1), (0.3, 0.3)):
        model = GaussianDensity(process, torch.tensor([mean], dtype=F64), std)
        loss = sliced_score_matching(model, x, t, probe="rademacher", generator=seeded(0)).detach()
        fisher = 0.5 * (truth - model.score(x, t)).square().sum(1)
        assert float(w @ (loss + 0.5 * truth.square().sum(1))) == pytest.approx(float(w @ fisher), rel=1e-11, abs=1e-10)


# Training state, grad modes, gradients.


class Network(nn.Module):
    """A model with dropout and parameters; its log-density is not normalised, which no score cares about."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        h = x if context is None else x * context
        return self.layers(h).squeeze(1) - 0.5 * (1.0 + t) * h.square().sum(1)


@pytest.fixture
def network() -> CallableDensity:
    torch.manual_seed(0)
    return CallableDensity(Network().double(), (3,))


UTILITIES = {
    "score": lambda d, x, c: d.score(x, 0.5, c),
    "log_density_and_score": lambda d, x, c: log_density_and_score(d, x, 0.5, c)[1],
    "exact_divergence": lambda d, x, c: exact_divergence(d, x, 0.5, c),
    "hutchinson_divergence": lambda d, x, c: hutchinson_divergence(d, x, 0.5, c, generator=seeded(1)),
    "score_and_divergence": lambda d, x, c: score_and_divergence(d, x, 0.5, c)[1],
    "score_and_divergence, estimated": lambda d, x, c: score_and_divergence(
        d, x, 0.5, c, probes=2, generator=seeded(1)
    )[1],
    "sliced_score_matching": lambda d, x, c: sliced_score_matching(d, x, 0.5, c, generator=seeded(1)).detach(),
}
each_utility = pytest.mark.parametrize("utility", UTILITIES.values(), ids=UTILITIES.keys())


@each_utility
@pytest.mark.parametrize("with_context", [False, True])
def test_works_in_every_grad_mode_and_leaves_nothing_behind(network, utility, with_context):
    """Under no_grad and inference_mode, in train mode, with x that requires grad: one answer, no traces."""
    x, context = points(5, 3), torch.ones(5, 1, dtype=F64) if with_context else None
    expected = utility(network.eval(), x, context)
    network.train()
    network.module.layers[0].eval()
    flags = [m.training for m in network.modules()]
    results = [utility(network, x, context), utility(network, x.clone().requires_grad_(), context)]
    with torch.no_grad():
        results.append(utility(network, x, context))
    with torch.inference_mode():
        results.append(utility(network, x.clone(), None if context is None else context.clone()).clone())
    assert all(same_bits(r.detach(), expected) for r in results)
    assert [m.training for m in network.modules()] == flags
    assert all(p.grad is None for p in network.parameters())
    assert not expected.requires_grad


def test_training_flags_are_restored_after_an_error(network):
    network.train()
    network.module.layers[3].weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"^score: got"):
        network.score(points(5, 3), 0.5)
    assert all(m.training for m in network.modules())
    with pytest.raises(NonFiniteError, match="log-density: got NaN"):
        log_density_and_score(network, points(5, 3), 0.5)
    assert all(m.training for m in network.modules())


def test_a_score_can_be_differentiated_again(network):
    x = points(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network.score(x, 0.5, create_graph=True), (x,))
    assert network.score(x, 0.5, create_graph=True).requires_grad
    assert not network.score(x, 0.5).requires_grad
    assert x.grad is None


def test_the_divergence_can_be_differentiated_again(network):
    """d/dx of the divergence, against finite differences; and the loss trains the parameters."""
    x = points(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: exact_divergence(network, x, 0.5, create_graph=True), (x,))
    sliced_score_matching(network, points(5, 3), 0.5, generator=seeded(0)).mean().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is None or torch.isfinite(g).all() for g in grads.values())
    assert float(grads["module.layers.0.weight"].abs().min()) > 0.0


@given(rows=st.integers(1, 4), seed=st.integers(0, 2**31), name=st.sampled_from(["score", "log_density", "log_prob"]))
def test_rows_do_not_interact_and_all_forms_of_time_agree(rows, seed, name):
    process, g = SDES["subvp"], seeded(seed)
    density, x = plane_mixture(process), torch.randn(rows, 2, generator=g, dtype=F64)
    t = float(torch.rand((), generator=g)) * process.T
    call = getattr(density, name)
    results = [call(x, form) for form in (t, torch.tensor(t, dtype=F64), torch.full((rows,), t, dtype=F64))]
    assert all(same_bits(r, results[0]) for r in results)
    times = torch.rand(rows, generator=g, dtype=F64) * process.T
    singly = torch.cat([call(x[i : i + 1], times[i : i + 1]) for i in range(rows)])
    assert torch.allclose(call(x, times), singly, rtol=1e-13, atol=1e-13)


def test_half_precision_is_computed_in_single():
    density, x = gaussian(SDES["vp"]), points(5, 1)
    for dtype in (torch.float16, torch.bfloat16):
        score = density.score(x.to(dtype), 0.01)
        assert score.dtype == torch.float32
        assert same_bits(score, density.score(x.to(dtype).float(), 0.01))


@pytest.mark.parametrize("probes", [None, 2])
def test_score_and_divergence_are_those_of_one_pass(network, probes):
    x, calls = points(5, 3), []
    score, divergence = score_and_divergence(network, x, 0.5, probes=probes, generator=seeded(1))
    assert same_bits(score, network.score(x, 0.5))
    if probes is None:
        assert same_bits(divergence, exact_divergence(network, x, 0.5))
    else:
        assert same_bits(divergence, hutchinson_divergence(network, x, 0.5, probes=probes, generator=seeded(1)))
    network.register_forward_hook(lambda *_: calls.append(1))
    score_and_divergence(network, x, 0.5, probes=probes)
    assert len(calls) == 1


def test_an_empty_batch_has_an_empty_score():
    x = torch.zeros(0, 3, dtype=F64)
    density = plane_like()
    assert density.score(x, 0.5).shape == (0, 3)
    log_p, score = log_density_and_score(density, x, 0.5)
    assert (log_p.shape, score.shape) == ((0,), (0, 3))
    assert exact_divergence(density, x).shape == hutchinson_divergence(density, x).shape == (0,)


def test_the_score_of_lattice_data_is_that_of_the_smooth_density():
    """(alpha E[x_0 | x_t] - x_t) / sigma^2, with the posterior by Bayes; log_density, not log_prob."""
    process = SDES["vp"]
    density, x = lattice(process), torch.linspace(-1.5, 1.5, 40, dtype=F64)[:, None]
    t = 0.3 * process.T
    posterior = density.posterior(x, t)[:, 0] @ density.lattice.points(dtype=F64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    expected = (alpha * posterior[:, None] - x) / sigma.square()
    assert torch.allclose(density.score(x, t), expected, rtol=1e-11, atol=1e-9)


class Linear(NoiseConditionalDensity):
    """Whose log-density is linear in x (independent exponential variables): the score is constant."""

    def forward(self, x, t, context=None, *, edges=True):
        return math.log(6.0) * torch.ones_like(x[:, 0]) - x @ torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)


def test_the_divergence_of_a_constant_score_is_zero():
    density, x = Linear((3,)), points(5, 3)
    zeros = torch.zeros(5, dtype=x.dtype)
    for probes in (None, 2):
        score, divergence = score_and_divergence(density, x, probes=probes)
        assert torch.equal(score, -torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype).expand(5, 3))
        assert torch.equal(divergence, zeros)
    assert torch.equal(exact_divergence(density, x, create_graph=True), zeros)
    assert torch.equal(hutchinson_divergence(density, x), zeros)
    assert torch.allclose(sliced_score_matching(density, x), 0.5 * 14.0 + zeros, atol=1e-14)


def test_errors():
    density, x = plane_like(), points(5, 3)
    with pytest.raises(ArgumentError, match=r"^probes: got"):
        hutchinson_divergence(density, x, probes=0)
    with pytest.raises(ArgumentError, match=r"^probes: got"):
        score_and_divergence(density, x, probes=0)
    with pytest.raises(ArgumentError, match=r"^probe: got"):
        hutchinson_divergence(density, x, probe="sphere")
    with pytest.raises(ArgumentError, match=r"^x: got"):
        log_density_and_score(density, x[:, :2])
    for utility in (exact_divergence, hutchinson_divergence, sliced_score_matching, log_density_and_score):
        with pytest.raises(ArgumentTypeError, match=r"^x: got"):
            utility(density, torch.zeros(5, 3, dtype=torch.int64))
    with torch.inference_mode():
        model = CallableDensity(Network().double(), (3,))
    with pytest.raises(InferenceTensorError, match=r"created under torch.inference_mode"):
        model.score(x)
