"""Targets around targets: products and differences of experts, guidance; no sampler knows of them."""

from __future__ import annotations

import math

import pytest
import torch

from ncml import VESDE, VPSDE
from ncml.densities import MADE, CallableDensity, GaussianDensity
from ncml.density import ComposedTarget, Target, guided
from ncml.errors import ArgumentError, NonFiniteError, UnsupportedError
from ncml.sampling import AdaptiveHeun, EulerMaruyama, MetropolisLangevin
from tests.problems import SDES, seeded
from tests.statistics import Z, assert_law, assert_mean, assert_variance, normal_cdf

F64 = torch.float64
VE = VESDE.linear(1.0)


def expert(mean: float, std: float, process=VE) -> GaussianDensity:
    return GaussianDensity(process, torch.tensor([mean], dtype=F64), std)


def product(*experts: tuple[float, float, float], t: float) -> tuple[float, float]:
    """Mean and variance of a product of powers of Gaussians at time t under VE, in closed form."""
    precision = sum(w / (s * s + t * t) for w, _, s in experts)
    return sum(w * m / (s * s + t * t) for w, m, s in experts) / precision, 1.0 / precision


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (1.5, -0.5)])
def test_products_of_gaussian_experts_are_the_closed_form(weights):
    """At one level, by a Metropolis chain; also with an expert that takes away."""
    t, n = 0.5, 20_000
    composed = ComposedTarget(
        (weights[0], Target(expert(-0.4, 0.3), generator=seeded(0))), (weights[1], Target(expert(0.8, 0.9)))
    )
    mean, variance = product((weights[0], -0.4, 0.3), (weights[1], 0.8, 0.9), t=t)
    x = mean + math.sqrt(variance) * torch.randn(n, 1, dtype=F64, generator=seeded(1))
    refined = MetropolisLangevin(1, moves=20, step_size=0.5).refine(composed, x, t, t)
    assert_mean(refined.x, mean, math.sqrt(variance))
    assert_variance(refined.x, mean, variance)
    assert_law(refined.x, normal_cdf(mean, math.sqrt(variance)))
    assert refined.evaluations == 2 * 21 * n


def test_annealed_chains_lead_to_the_product_of_the_data():
    composed = ComposedTarget((1.0, Target(expert(-0.4, 0.3), generator=seeded(0))), (1.0, Target(expert(0.2, 0.4))))
    mean, variance = product((1.0, -0.4, 0.3), (1.0, 0.2, 0.4), t=0.0)
    x = torch.randn(10_000, 1, dtype=F64, generator=seeded(1))
    y = MetropolisLangevin(64, moves=16)(composed, x)
    assert abs(float(y.mean()) - mean) < 0.02 * math.sqrt(variance) + Z * math.sqrt(variance / 10_000)
    assert float(y.var()) == pytest.approx(variance, rel=0.05 + Z * math.sqrt(2 / 10_000))


def test_score_and_log_density_are_weighted_sums():
    one, other = expert(-0.4, 0.3), expert(0.8, 0.9)
    composed, x = ComposedTarget((2.0, Target(one)), (-0.5, Target(other))).bound(torch.randn(5, 1, dtype=F64), 1.0)
    t = torch.full((5,), 0.3, dtype=F64)
    log_p, score = composed.log_density_and_score(x, 0.3)
    assert torch.allclose(log_p, 2.0 * one(x, t) - 0.5 * other(x, t))
    assert torch.allclose(score, 2.0 * one.score(x, 0.3) - 0.5 * other.score(x, 0.3))
    assert torch.allclose(composed.score(x, 0.3), score)
    assert torch.allclose(composed.log_density(x, 0.3), log_p)
    assert composed.evaluations == 20 + 10
    rows = composed.rows(torch.tensor([3, 1]))
    assert torch.allclose(rows.score(x[[3, 1]], 0.3), score[[3, 1]])


def broken_above_two() -> CallableDensity:
    """Its log-density is NaN where x > 2."""
    return CallableDensity(lambda x, t: -x.square().sum(1) * torch.where(x[:, 0] > 2.0, math.nan, 1.0), (1,), VE)


def test_rows_that_fail_in_one_part_fail():
    composed = ComposedTarget((1.0, Target(expert(0.0, 0.5))), (1.0, Target(broken_above_two())))
    x = torch.tensor([[0.5], [3.0], [-0.5]], dtype=F64)
    for sampler in (EulerMaruyama(8), AdaptiveHeun()):
        refined = sampler.refine(composed, x, generator=seeded(0), on_failure="keep")
        assert refined.info["failed"].tolist() == [1]
        assert refined.x[[0, 2]].isfinite().all()


def test_guidance_is_a_product():
    """(1 + w) of the conditional score less w of the unconditional one; at w = 0 the conditional density."""
    process = VPSDE.at_noise(0.5)

    def log_p(x, t, context):
        mean = torch.where(context < 0, 0.0, context.double())
        std = torch.where(context < 0, 1.0, 0.5).double()
        return torch.distributions.Normal(mean, std).log_prob(x[:, 0])

    density = CallableDensity(log_p, (1,), process)
    labels = torch.tensor([1, 2, 1])
    target, x = guided(density, labels, 1.5).bound(torch.tensor([[0.0], [0.5], [-2.0]], dtype=F64), process.T)
    expected = 2.5 * (labels.double() - x[:, 0]) / 0.25 + 1.5 * x[:, 0]
    assert torch.allclose(target.score(x, 0.1)[:, 0], expected)
    plain = EulerMaruyama(8)(guided(density, labels, 0.0, generator=seeded(0)), x)
    assert torch.allclose(plain, EulerMaruyama(8)(density, x, context=labels, generator=seeded(0)))


def test_guidance_of_a_trained_kind_of_model():
    torch.manual_seed(0)
    made = MADE((4,), SDES["vp"], hidden=(16,), components=2, classes=3)
    x = made.sample(6, made.process.T, torch.arange(6) % 3, generator=seeded(0))
    y = EulerMaruyama(4)(guided(made, torch.arange(6) % 3, 2.0, generator=seeded(1)), x)
    assert y.isfinite().all()
    made.train()
    EulerMaruyama(4)(guided(made, torch.arange(6) % 3, 2.0), x)
    assert made.training


def test_what_does_not_fit_together():
    with pytest.raises(ArgumentError, match="parts: got"):
        ComposedTarget()
    with pytest.raises(ArgumentError, match=r"density\.under"):
        ComposedTarget((1.0, Target(expert(0.0, 1.0))), (1.0, Target(expert(0.0, 1.0, SDES["vp"]))))
    with pytest.raises(ArgumentError, match="null: got None"):
        guided(expert(0.0, 1.0), torch.zeros(3, 1), 1.0)

    class ScoreOnly(Target):
        has_log_density = False

    with pytest.raises(UnsupportedError, match="log-density"):
        MetropolisLangevin()(ComposedTarget((1.0, ScoreOnly(expert(0.0, 1.0)))), torch.zeros(2, 1, dtype=F64))


def test_products_of_products_share_counts_and_failures():
    inner = ComposedTarget((1.0, Target(broken_above_two())))
    outer = ComposedTarget((1.0, inner), (0.5, Target(expert(0.0, 0.5))))
    x = torch.tensor([[0.5], [3.0], [-0.5]], dtype=F64)
    refined = EulerMaruyama(4).refine(outer, x, generator=seeded(0), on_failure="keep")
    assert refined.info["failed"].tolist() == [1]
    assert refined.evaluations == 2 * 4 * 3


def test_parts_of_no_weight_are_left_out_and_infinite_gains_are_failures():
    def box(x, t):
        return torch.where(x[:, 0].abs() <= 1.0, 0.0 * x[:, 0], -math.inf)

    uniform, x = Target(CallableDensity(box, (1,), VE)), torch.full((2, 1), 1.5, dtype=F64)
    with_none = ComposedTarget((1.0, Target(expert(0.0, 1.0))), (0.0, uniform))
    target, _ = with_none.bound(x, 0.5)
    assert target.log_density(x, 0.5).isfinite().all()
    assert target.evaluations == 2
    taken, _ = ComposedTarget((1.0, Target(expert(0.0, 1.0))), (-1.0, uniform)).bound(x, 0.5)
    with pytest.raises(NonFiniteError, match="log-density: got NaN or infinity"):
        taken.log_density_and_score(x, 0.5)
    for weights in ((math.nan,), (0.0,)):
        with pytest.raises(ArgumentError, match="parts: got"):
            ComposedTarget(*((w, Target(expert(0.0, 1.0))) for w in weights))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_labels_without_a_sign_have_no_null(dtype):
    with pytest.raises(ArgumentError, match="null: got None"):
        guided(expert(0.0, 1.0), torch.ones(3, dtype=dtype), 1.0)
