"""The error of the density's own score as a part of the objective: closed forms, and gradients by differences."""

from __future__ import annotations

import math

import pytest
import torch
import zuko

from ncml import VESDE, VPSDE, LevelNoise, NCMLObjective
from ncml.densities import MADE, CallableDensity, CausalTransformer, GaussianDensity, ZukoDensity
from ncml.errors import ArgumentError, NonFiniteError, UnsupportedError
from ncml.objective import LadderTimes
from tests.problems import Wrapper, seeded

F64 = torch.float64
PROCESS = VPSDE.at_noise(0.4)
T = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=F64) * PROCESS.T


def made(**settings) -> MADE:
    torch.manual_seed(0)
    density = MADE((2,), PROCESS, hidden=(8, 8), components=2, noise_features=4, **settings).double()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=F64, generator=seeded(1)))
    return density


def draws(n: int, dims: int = 2):
    return torch.randn(2, n, dims, dtype=F64, generator=seeded(2)).unbind()


def test_a_term_is_the_error_by_hand():
    mean, std = torch.tensor([0.3, -1.0], dtype=F64), 0.7
    density = GaussianDensity(PROCESS, mean, std).double()
    x, z = draws(4)
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64)
    objective = NCMLObjective(PROCESS, reduction="none", score_matching=1.7)
    plain = NCMLObjective(PROCESS, reduction="none")
    got = objective(density, x, t=T, weight=weight, noise=z) - plain(density, x, t=T, weight=weight, noise=z)
    alpha, sigma = PROCESS.alpha(T)[:, None], PROCESS.sigma(T)[:, None]
    score = -(alpha * x + sigma * z - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    expected = 1.7 * weight * 0.5 * (sigma * score + z).square().sum(1)
    assert got[0] == 0.0
    assert (got[1:] - expected[1:]).abs().max() < 1e-12


def test_the_score_is_that_given_the_rows_own_context():
    """Of a Gaussian whose mean the context is, also for the rows beside one at t = 0."""
    centred = GaussianDensity(PROCESS, torch.zeros(2, dtype=F64), 0.7)

    def log_p(x, t, c):
        return centred(x - PROCESS.alpha(t)[:, None] * c, t)

    density = CallableDensity(log_p, event_shape=(2,), process=PROCESS)
    x, z = draws(4)
    means = torch.arange(8, dtype=F64).reshape(4, 2) / 8.0
    objective = NCMLObjective(PROCESS, score_matching=1.0)
    terms = objective.terms(density, x + means, context=means, t=T, noise=z)
    expected = objective.terms(centred, x, t=T, noise=z)
    assert (terms.loss - expected.loss).abs().max() < 1e-10
    assert (terms.nll - expected.nll).abs().max() < 1e-10


def test_the_truth_has_the_error_that_no_score_can_avoid():
    """Half of alpha^2 S^2 / (alpha^2 S^2 + sigma^2) for each dimension; z = 5.2, false alarm 2e-7."""
    std, t = 0.7, 0.6 * PROCESS.T
    density = GaussianDensity(PROCESS, torch.zeros(2, dtype=F64), std)
    n = 100_000
    x = std * torch.randn(n, 2, dtype=F64, generator=seeded(3))
    terms = NCMLObjective(PROCESS, score_matching=1.0).terms(density, x, t=t, generator=seeded(4))
    error = terms.loss - terms.nll
    signal, noise = (float(PROCESS.alpha(t)) * std) ** 2, float(PROCESS.sigma(t)) ** 2
    assert abs(float(error.mean()) - signal / (signal + noise)) < 5.2 * float(error.std()) / math.sqrt(n)


@pytest.mark.parametrize("family", ["made", "transformer"])
def test_the_gradient_is_that_of_the_whole_loss(family):
    """Central differences along random directions of the parameters; without a graph of the score it is far off."""
    if family == "made":
        density, (x, z) = made(), draws(4)
    else:
        torch.manual_seed(0)
        density = CausalTransformer((4, 1), PROCESS, width=8, layers=1, heads=2, components=2).double()
        x, z = (v.unsqueeze(2) for v in draws(4, 4))
    objective = NCMLObjective(PROCESS, score_matching=1.0)
    parameters = [p for p in density.parameters() if p.requires_grad]

    def loss(factor: float = 1.0):
        return NCMLObjective(PROCESS, score_matching=factor)(density, x, t=T, noise=z)

    gradients = torch.autograd.grad(objective(density, x, t=T, noise=z), parameters, allow_unused=True)
    alone = torch.autograd.grad(loss(0.0), parameters, allow_unused=True)
    for k in range(3):
        directions = [torch.randn(p.shape, dtype=F64, generator=seeded(10 + k)) for p in parameters]

        def along(grads, directions=directions):
            return sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None)

        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(step * d)
            values.append(float(loss().detach()))
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.sub_(step * d)
        slope = (values[0] - values[1]) / 2e-5
        assert along(gradients) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert abs(along(alone) - slope) > 1e-3 * abs(slope)  # what a score without a graph would leave


def test_without_the_factor_nothing_changes():
    density, (x, _) = made(), draws(64)
    with_default = NCMLObjective(PROCESS)(density, x, generator=seeded(5))
    assert torch.equal(with_default, NCMLObjective(PROCESS, score_matching=0.0)(density, x, generator=seeded(5)))
    factors = (0.0, 1.0, 3.0)
    none, small, large = (
        NCMLObjective(PROCESS, score_matching=f)(density, x, generator=seeded(5)).item() for f in factors
    )
    assert large - none == pytest.approx(3 * (small - none), rel=1e-10)


def test_a_batch_at_zero_has_no_error_and_a_wrapper_is_seen_through():
    density, (x, z) = made(), draws(4)
    terms = NCMLObjective(PROCESS, score_matching=1.0).terms(density, x, t=0.0)
    assert torch.equal(terms.loss, terms.nll)
    wrapped = torch.compile(density, backend="eager")
    one, two = (NCMLObjective(PROCESS, score_matching=1.0)(d, x, t=T, noise=z).item() for d in (density, wrapped))
    assert one == pytest.approx(two, rel=1e-12)


def test_attention_in_a_wrapper_is_differentiated_twice():
    """The fused kernels of attention have no second derivative, whoever calls them."""
    torch.manual_seed(0)
    density = CausalTransformer((4, 1), PROCESS, width=8, layers=1, heads=2, components=2).double()
    x, z = (v.unsqueeze(2) for v in draws(4, 4))
    losses = []
    for model in (density, Wrapper(density)):
        losses.append(NCMLObjective(PROCESS, score_matching=1.0)(model, x, t=T, noise=z))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


@pytest.mark.parametrize("factors", [{"score_matching": 1.0}, {"fokker_planck": 0.1}])
def test_in_inference_mode(factors):
    """The terms are those of ``no_grad``."""
    density, (x, z) = made(), draws(4)
    objective, seed = NCMLObjective(PROCESS, **factors), 5
    with torch.no_grad():
        expected = objective(density, x, t=T, noise=z, generator=seeded(seed))
    with torch.inference_mode():
        found = objective(density, x.clone(), t=T, noise=z.clone(), generator=seeded(seed))
    assert torch.equal(found, expected)


def test_what_cannot_be_is_refused():
    for factor in (-1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(ArgumentError, match="score_matching: got"):
            NCMLObjective(PROCESS, score_matching=factor)
    with pytest.raises(UnsupportedError, match=r"score_matching: got 1\.0 under LevelNoise"):
        NCMLObjective(LevelNoise(4), score_matching=1.0)
    process = VESDE.linear(1.0)
    flow = ZukoDensity(zuko.flows.SOSPF(2, 8, transforms=1, hidden_features=(8,)), (2,), process)
    for density in (flow, Wrapper(flow)):
        with pytest.raises(UnsupportedError, match="differentiable only once"):
            NCMLObjective(process, LadderTimes((0.5,)), score_matching=1.0)(density, torch.zeros(4, 2))


def test_a_term_that_is_not_finite_is_named():
    """A kink of the log-density at the data: its value is finite, its slope is not."""
    density = CallableDensity(lambda x, t: -(x.abs() + 0.0 * t[:, None]).sqrt().sum(1), (2,), VPSDE.at_noise(0.5))
    objective = NCMLObjective(VPSDE.at_noise(0.5), score_matching=1.0)
    with pytest.raises(NonFiniteError, match="score_matching: got nan at index 0"):
        objective(density, torch.zeros(4, 2), t=0.1, noise=torch.zeros(4, 2))
