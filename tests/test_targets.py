"""Targets at their edges: far from an event, at t = 0, one inside another."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from ncml import VESDE, VPSDE, GaussianProcess, NoiseConditionalDensity, generate
from ncml.densities import CallableDensity, GaussianDensity
from ncml.density import (
    AlignedTarget,
    AroundTarget,
    CompletionTarget,
    ComposedTarget,
    EventTarget,
    PosteriorTarget,
    Target,
)
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.sampling import DDIM, Ancestral, AnnealedSMC, EulerMaruyama, ParallelTempering
from tests.problems import each_process, gaussian, seeded
from tests.statistics import Z, assert_law, normal_cdf

F64 = torch.float64
UNIT = VESDE.linear(1.0)


def normal(dims: int = 1, dtype: torch.dtype = F64) -> GaussianDensity:
    """N(0, I) under sigma = t."""
    return GaussianDensity(UNIT, torch.zeros(dims, dtype=dtype), 1.0)


# Events.


@pytest.mark.parametrize("u", [-1e4, -300.0, -20.0, -2.0, 0.0, 3.0, 300.0])
def test_far_from_an_event_the_gradient_keeps_its_digits(u):
    """In float32, against the hazard's continued fraction far out and the quotient of densities near."""
    target, x = EventTarget(normal(dtype=torch.float32), lambda x: x[:, 0]).bound(torch.zeros(1, 1), 1.0)
    std = math.sqrt(0.5)  # of x_0 given x_1, with mean x_1 / 2
    x[:] = 2.0 * std * u
    with target.evaluating():
        got = float(target.score(x, 1.0) + 0.5 * x)
    if u < -10.0:
        hazard = -u + 1.0 / (-u + 2.0 / (-u + 3.0 / -u))
    else:
        hazard = math.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi) / (0.5 * math.erfc(-u / math.sqrt(2.0)))
    assert got == pytest.approx(0.5 * hazard / std, rel=2e-5, abs=1e-30)


def test_rows_from_far_outside_come_to_an_event():
    """Data of one width in a thousand of the noise, so that u is 1e4 at the start: cancelled, it leads to 1e8."""
    density = GaussianDensity(UNIT, torch.zeros(1), 1e-3)
    target = EventTarget(density, lambda x: x[:, 0] - 10.0)
    x = EulerMaruyama(64)(target, density.sample(200, 1.0, generator=seeded(0)), generator=seeded(1))
    assert float((x - 10.0).abs().max()) < 1.0


def test_particles_follow_an_event_to_the_data():
    """The half of the normal distribution beyond 0, by weights at t = 0 that are 0 or 1."""
    density, n = normal(), 20_000
    target = EventTarget(Target(density, generator=seeded(1)), lambda x: x[:, 0])
    g = seeded(0)
    start = density.sample(n, generator=g).abs() + torch.randn(n, 1, dtype=F64, generator=g)  # the event's own p_T
    refined = AnnealedSMC().refine(target, start)
    assert float(refined.x.min()) > 0.0
    # Resampled particles depend on each other: as if a third of them did not.
    assert_law(refined.x[::3, 0], lambda v: (2.0 * normal_cdf(0.0, 1.0)(v) - 1.0).clip(0.0, 1.0))
    with target.bound(refined.x, 0.0)[0].evaluating():
        at_zero, x = target.bound(torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64), 0.0)
        assert at_zero.log_likelihood(x, 0.0).tolist() == [-math.inf, -math.inf, 0.0]
        assert torch.equal(at_zero.score(x, 0.0), -x)


def test_an_event_that_is_flat_here_pulls_nowhere():
    target, x = EventTarget(normal(), lambda x: (x[:, 0] - 1.0).relu()).bound(torch.zeros(1, 1, dtype=F64), 0.5)
    with target.evaluating():
        log_p, score = target.log_density_and_score(x, 0.5)
    assert log_p.tolist() == [-math.inf]
    assert torch.equal(score, torch.zeros(1, 1, dtype=F64))


# Measurements.


def test_measurements_without_noise_have_no_density_at_the_data():
    """Particles end by Tweedie's formula, or the measurement has noise: mean 1/2 given y = 1 with noise 1."""
    density, n, y = normal(2), 20_000, torch.tensor([[1.0]], dtype=F64)
    operator = torch.tensor([[1.0, 0.0]], dtype=F64)
    x = density.sample(n, 1.0, generator=seeded(0))
    exact = PosteriorTarget(Target(density, generator=seeded(1)), y, operator)
    with pytest.raises(ArgumentError, match=r"noise: got 0 .*noise > 0.*denoise_last=True"):
        AnnealedSMC(4)(exact, x)
    assert torch.allclose(AnnealedSMC(4, denoise_last=True)(exact, x)[:, 0], y[0])
    x[:, 0] = 0.5 + math.sqrt(1.5) * torch.randn(n, dtype=F64, generator=seeded(2))  # the posterior's own p_T
    noisy = AnnealedSMC(32)(PosteriorTarget(Target(density, generator=seeded(1)), y, operator, 1.0), x)
    assert float(noisy[:, 0].mean()) == pytest.approx(0.5, abs=2.0 * Z * math.sqrt(0.5 / n))


class Linear(NoiseConditionalDensity):
    """Whose log-density is -c x: the score is constant, and its derivative zero."""

    C = torch.tensor([1.0, 2.0], dtype=F64)

    def forward(self, x, t, context=None, *, edges=True):
        return -x @ self.C


def test_a_constant_score_is_given_what_is_known():
    """sigma = .5: the clean x - sigma^2 c has the variance sigma^2, the measurement that and .1^2."""
    density, x = Linear((2,), UNIT), torch.randn(3, 2, dtype=F64, generator=seeded(0))
    operator, y = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([[0.2]], dtype=F64)
    pull = (0.2 - (x[:, 0] - 0.25)) / (0.25 + 0.01)
    expected = -Linear.C + torch.stack([pull, torch.zeros(3, dtype=F64)], 1)
    torch.testing.assert_close(PosteriorTarget(density, y, operator, 0.1).score(x, 0.5), expected)
    event = EventTarget(density, lambda x: x[:, 0] - 0.1)
    u = ((x[:, 0] - 0.25 - 0.1) / 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(torch.special.log_ndtr(u).sum(), u)
    expected = -Linear.C + torch.stack([slope / 0.5, torch.zeros(3, dtype=F64)], 1)
    torch.testing.assert_close(event.score(x, 0.5), expected)


# One inside another.


HELD = torch.tensor([True, False])


def completion(n: int = 1) -> CompletionTarget:
    return CompletionTarget(normal(2), torch.linspace(0.0, 1.0, 2 * n, dtype=F64).reshape(n, 2), HELD)


AROUND = {
    "composed": lambda inner: ComposedTarget((1.0, Target(normal(2))), (0.5, inner)),
    "first": lambda inner: ComposedTarget((1.0, inner)),
    "measured": lambda inner: PosteriorTarget(inner, torch.ones(1, 1, dtype=F64), torch.ones(1, 2, dtype=F64)),
    "event": lambda inner: EventTarget(inner, lambda x: x[:, 0]),
    "aligned": AlignedTarget,
}


@pytest.mark.parametrize("name", AROUND)
def test_values_are_held_by_the_outermost_target(name):
    """Inside of another it is refused, however deep; around it, known values come back."""
    around = AROUND[name]
    for inner in (completion(), CompletionTarget(completion(), torch.ones(1, 2, dtype=F64), ~HELD)):
        with pytest.raises(UnsupportedError, match="put CompletionTarget outermost"):
            around(inner)
    outer = CompletionTarget(around(Target(normal(2))), torch.full((1, 2), 0.3, dtype=F64), HELD)
    x = EulerMaruyama(4)(outer, torch.randn(3, 2, dtype=F64, generator=seeded(0)), generator=seeded(1))
    assert x[:, 0].tolist() == [0.3] * 3


class Numbered(AroundTarget):
    """Answers as the target inside does, and has a number for each row."""

    per_row = ("number",)

    def __init__(self, inner: Target, number: torch.Tensor) -> None:
        super().__init__(inner)
        self.number = number


@pytest.fixture
def numbered() -> tuple[Target, torch.Tensor]:
    """N(c, 1) of four rows, each with its c and two numbers, in a call at x; the numbers are of another precision."""
    mean, x = torch.arange(4.0), torch.tensor([[0.0], [1.0], [3.0], [1.0]], dtype=F64)
    density = CallableDensity(lambda x, t, c: -0.5 * (x[:, 0] - c).square(), (1,), UNIT)
    target = Numbered(Numbered(Target(density, context=mean), 10.0 * mean), 100.0 * mean)
    return target.bound(x, 0.5, on_failure="keep")


def test_a_target_around_another_answers_as_that_one_does(numbered):
    target, x = numbered
    score = torch.arange(4.0, dtype=F64)[:, None] - x
    log_p = -0.5 * score[:, 0].square()
    leaf = x.clone().requires_grad_()
    differentiable = target.differentiable_score(leaf, 0.5)
    assert torch.equal(torch.autograd.grad(differentiable.sum(), leaf)[0], -torch.ones_like(x))
    assert torch.equal(differentiable, score)
    assert torch.equal(target.score(x, 0.5), score)
    assert torch.equal(target.log_prob(x, 0.5), log_p)
    assert torch.equal(target.log_density(x, 0.5), log_p)
    both = target.log_density_and_score(x, 0.5)
    assert torch.equal(both[0], log_p)
    assert torch.equal(both[1], score)


def test_what_belongs_to_a_row_goes_with_it(numbered):
    """Contexts, failures, and numbers of every target: rows chosen, chosen again, and in another order."""
    target, _ = numbered
    assert not target.number.is_inference()  # so that autograd may keep it
    assert target.number.dtype == F64
    target.give_up(torch.tensor([False, True, False, False]))
    some = target.rows(torch.tensor([3, 1, 0]))
    for few, rows in ((some, [3, 1, 0]), (some.rows(torch.tensor([2, 1])), [0, 1])):
        assert few.context.tolist() == few.inner.inner.context.tolist() == rows
        assert few.number.tolist() == [100 * i for i in rows]
        assert few.inner.number.tolist() == [10 * i for i in rows]
        assert few.failed.tolist() == few.inner.failed.tolist() == [i == 1 for i in rows]
    target.reorder(torch.tensor([2, 2, 0, 1]))
    assert target.number.tolist() == [200, 200, 0, 100]
    assert target.inner.number.tolist() == [20, 20, 0, 10]


def test_a_product_hands_its_generator_to_all_parts():
    """Whatever a part draws; here a part that moves the score of the call by a draw of its own."""

    class Drawing(Target):
        def bound(self, x, t, *, on_failure="raise"):
            target, y = super().bound(x, t, on_failure=on_failure)
            target.shift = torch.randn(1, dtype=F64, generator=self.generator)
            return target, y

        def score(self, x, t):
            return super().score(x, t) + self.shift

    product = ComposedTarget((1.0, Target(normal())), (1.0, Drawing(normal())))
    x = torch.zeros(2, 1, dtype=F64)
    a, b = (EulerMaruyama(2)(product, x, generator=seeded(0)) for _ in range(2))
    assert torch.equal(a, b)


def test_what_differs_between_particles_is_named():
    x = torch.zeros(2, 2, dtype=F64)
    measured = PosteriorTarget(normal(2), x[:, :1] + torch.arange(2.0)[:, None], torch.ones(1, 2, dtype=F64), 1.0)
    cases = ((measured, "y"), (ComposedTarget((1.0, measured), (1.0, measured)), "y"), (completion(2), "values"))
    for target, name in cases:
        with pytest.raises(ArgumentError, match=f"^{name}: got rows that differ"):
            AnnealedSMC(2)(target, x)


def test_a_target_does_not_generate():
    with pytest.raises(ArgumentTypeError, match=r"density: got a CompletionTarget.*sampler\(target, x_T\)"):
        generate(completion(), 3)


COEFFICIENTS = ("alpha", "sigma", "drift_coefficient", "diffusion")


@each_process
@pytest.mark.parametrize("ahead", [True, False])
def test_coefficients_are_those_of_the_process_whether_asked_for_ahead_or_not(process, ahead):
    """Among the times of a call, outside of them, at repeated ones; and pairs that are neighbours or not."""
    target, times = Target(gaussian(process)), [process.T * u for u in (1.0, 0.7, 0.2, 0.0)]
    if ahead:
        target.prepare([process.T, 0.5 * process.T])
        [getattr(target, name)(process.T) for name in COEFFICIENTS]  # of times that are then forgotten
        target.prepare([*times, 0.0])
    for t in (*times, 0.3 * process.T):
        found = [getattr(target, name)(t) for name in COEFFICIENTS]
        assert all(isinstance(value, float) for value in found)
        expected = [float(getattr(process, name)(t)) for name in COEFFICIENTS]
        assert found == pytest.approx(expected, rel=1e-14)
    for s, t in ((times[1], times[0]), (0.0, times[2]), (times[2], times[0]), (times[1], times[1])):
        assert target.transition(s, t) == pytest.approx([float(v) for v in process.transition(s, t)], rel=1e-12)


class _Counting(GaussianProcess):
    """Remembers for how many times its alpha was asked, call by call; nothing shrinks."""

    def __init__(self) -> None:
        self.asked = []
        super().__init__(lambda t: torch.ones(()), lambda t: t)

    def alpha(self, t):
        self.asked.append(torch.as_tensor(t).numel())
        return super().alpha(t)


@pytest.mark.parametrize("around", [lambda d: Target(d), AlignedTarget, lambda d: ComposedTarget((1.0, Target(d)))])
def test_a_call_asks_for_a_coefficient_once(around):
    """A constant, too, and through targets around targets."""
    process = _Counting()
    density = GaussianDensity(process, torch.zeros(1, dtype=torch.float64), 0.3)
    target, _ = around(density).bound(torch.zeros(2, 1, dtype=torch.float64), 1.0)
    times = [1.0, 0.5, 0.25]
    target.prepare(times)
    for each in {target, getattr(target, "inner", target), *(part for _, part in getattr(target, "parts", ()))}:
        process.asked.clear()
        assert [each.alpha(t) for t in times] == [1.0] * 3
        assert process.asked == [3]


def test_one_target_serves_calls_on_other_grids():
    """Each as a target of its own would: coefficients of one call are not those of the next."""
    density = gaussian(VPSDE())
    target, x = Target(density), density.sample(5, 1.0, generator=seeded(0))
    for sampler, start in ((DDIM(8), 1.0), (DDIM(16), 1.0), (DDIM(8), 0.5), (Ancestral(8), 0.5), (Ancestral(8), 1.0)):
        found = sampler(target.with_generator(seeded(1)), x, start)
        assert torch.equal(found, sampler(Target(density, generator=seeded(1)), x, start))


def test_coefficients_are_told_apart_whatever_their_functions_are_called():
    """Both of one name, as a decorator leaves them; and one that has no name."""

    def named(f):
        def wrapper(self, t):
            return f(self, t)

        return wrapper

    class Named(VPSDE):
        alpha, sigma = named(VPSDE.alpha), named(VPSDE.sigma)

        @property
        def diffusion(self):
            return functools.partial(VPSDE.diffusion, self)

    target = Target(gaussian(Named()))
    target.prepare([1.0, 0.5, 0.0])
    for name in COEFFICIENTS:
        assert getattr(target, name)(0.5) == pytest.approx(float(getattr(VPSDE(), name)(0.5)))


@pytest.mark.parametrize(
    "sampler", [EulerMaruyama(6), AnnealedSMC(6), ParallelTempering(7, "uniform", rounds=2), Ancestral(6)]
)
def test_samplers_ask_for_a_coefficient_once(sampler):
    class Counting(VPSDE):
        def sigma(self, t):
            asked.append(torch.as_tensor(t).numel())
            return super().sigma(t)

        def transition(self, s, t):
            moved.append(torch.as_tensor(t).numel())
            return super().transition(s, t)

    asked, moved = [], []
    density = gaussian(Counting())
    x = density.sample(4, 1.0, generator=seeded(0))
    asked.clear()
    sampler(density, x, None, 0.1, generator=seeded(1))
    assert len([n for n in asked if n == 1]) < 4
    assert len(moved) <= 1


def test_measurements_of_another_precision_and_margins_without_a_gradient():
    density = normal(dtype=torch.float32)
    x, one = torch.zeros(2, 1), torch.ones(1, 1)
    expected = PosteriorTarget(density, one, one, noise=0.1).score(x, 1.0)
    torch.testing.assert_close(PosteriorTarget(density, one.double(), one, noise=0.1).score(x, 1.0), expected)
    for margin in (lambda x: torch.ones(len(x)), lambda x: torch.ones(len(x), requires_grad=True)):
        with pytest.raises(ArgumentError, match="margin: got values that autograd does not connect with x"):
            EventTarget(density, margin).score(x, 1.0)
