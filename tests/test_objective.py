"""The objective: its true values by quadrature, its special cases bit for bit, its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NCMLObjective
from ncml.densities import CallableDensity, GaussianDensity
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ncml.objective import AtZero, ImportanceTimes, LadderTimes, UniformTimes, WeightedTimes
from tests.problems import (
    MEAN,
    MEANS,
    PMF,
    SDES,
    STD,
    STDS,
    WEIGHTS,
    Wrapper,
    each_process,
    each_sde,
    gaussian,
    lattice,
    mixture,
    same_bits,
    seeded,
)
from tests.statistics import assert_law, assert_mean

F64 = torch.float64
PROCESS = SDES["vp"]

# Data as quadrature nodes and weights: E h(x_0, z) is a weighted sum over nodes, without sampling.


def normal_nodes(step: float) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule for a standard normal, which converges exponentially for analytic functions."""
    z = torch.arange(-8.5, 8.5 + step, step, dtype=F64)
    weight = torch.exp(-0.5 * z.square())
    return z, weight / weight.sum()


def gaussian_nodes() -> tuple[Tensor, Tensor]:
    """N(0.3, 0.1^2) by three Gauss-Hermite nodes, exact up to degree 5; log p_t has degree 2."""
    z, weight = np.polynomial.hermite_e.hermegauss(3)
    return MEAN + STD * torch.from_numpy(z), torch.from_numpy(weight / weight.sum())


def mixture_nodes(step: float) -> tuple[Tensor, Tensor]:
    z, weight = normal_nodes(step)
    x = [m + s * z for m, s in zip(MEANS, STDS, strict=True)]
    return torch.cat(x), torch.cat([w * weight for w in WEIGHTS])


def time_nodes(T: float, n: int = 12) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes on [0, T] with weights that sum to 1."""
    t, weight = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(0.5 * T * (t + 1.0)), torch.from_numpy(0.5 * weight)


def expected_loss(density: nn.Module, process, data, noise, times) -> float:
    """E of the objective over data, noise and times, each given as (nodes, weights)."""
    objective = NCMLObjective(process, reduction="none")
    (x, wx), (z, wz), (t, wt) = data, noise, times
    total = 0.0
    for time, weight in zip(t.tolist(), wt.tolist(), strict=True):
        pairs = torch.cartesian_prod(x, z)
        terms = objective(density, pairs[:, :1], t=time, noise=pairs[:, 1:])
        total += weight * float(terms @ torch.cartesian_prod(wx, wz).prod(1))
    return total


CLEAN = (torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))


@pytest.mark.parametrize(("name", "value"), [("vp", 0.78245980), ("subvp", 0.83772976), ("ve", 0.82307377)])
def test_value_for_gaussian_data(name, value):
    """J = (1/T) int E log p_t dt at the exact T of ten levels; the loss of the true model is -J."""
    process, hermite = SDES[name], gaussian_nodes()
    noise = ((hermite[0] - MEAN) / STD, hermite[1])
    loss = expected_loss(gaussian(process), process, hermite, noise, time_nodes(process.T))
    assert -loss == pytest.approx(value, abs=1e-8)
    assert -expected_loss(gaussian(process), process, hermite, noise, CLEAN) == pytest.approx(0.88364656, abs=1e-8)


@pytest.mark.parametrize(("name", "value"), [("vp", -0.25510752), ("subvp", -0.21920761), ("ve", -0.23364902)])
def test_value_for_mixture_data(name, value):
    process = SDES[name]
    data, noise = mixture_nodes(0.125), normal_nodes(0.25)
    loss = expected_loss(mixture(process), process, data, noise, time_nodes(process.T, 8))
    assert -loss == pytest.approx(value, abs=1e-8)
    fine = expected_loss(mixture(process), process, mixture_nodes(0.02), CLEAN, CLEAN)
    assert -fine == pytest.approx(-0.20102904, abs=1e-8)


@each_sde
def test_no_model_beats_the_truth(process):
    """Gibbs: the expected loss of any other model is larger, at every noise level."""
    hermite = gaussian_nodes()
    noise = ((hermite[0] - MEAN) / STD, hermite[1])
    for t in (0.0, 0.3 * process.T, process.T):
        times = (torch.tensor([t], dtype=F64), torch.ones(1, dtype=F64))
        best = expected_loss(gaussian(process), process, hermite, noise, times)
        for mean, std in ((MEAN + 0.01, STD), (MEAN, 1.05 * STD), (MEAN, 0.95 * STD), (-MEAN, STD)):
            wrong = GaussianDensity(process, torch.tensor([mean], dtype=F64), std)
            assert expected_loss(wrong, process, hermite, noise, times) > best + 1e-5


def test_value_for_level_noise_by_enumeration():
    """p_pi is discrete: the expectation is a sum over levels and noise, and equals the entropy."""
    process = LevelNoise(17)
    density, objective = lattice(process), NCMLObjective(process, reduction="none")
    x = density.lattice.points(dtype=F64)
    pairs = torch.cartesian_prod(x, (torch.arange(64, dtype=F64) + 0.5) / 64)
    terms = objective(density, pairs[:, :1], t=0.25, noise=pairs[:, 1:]).reshape(17, 64).mean(1)
    noisy = PMF @ process.transition_matrix(0.25)
    entropy = -float(noisy @ noisy.log()) + math.log(density.lattice.width)
    assert float(PMF @ terms) == pytest.approx(entropy, abs=1e-12)


# Special cases.


class Affine(nn.Module):
    """A trainable log-density that needs no library: the objective must be content with a call."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.1, -0.2], dtype=dtype))
        self.log_std = nn.Parameter(torch.tensor([0.3, -0.5], dtype=dtype))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        variance = torch.exp(2.0 * self.log_std) + t[:, None]
        shift = 0.0 if context is None else context
        return -0.5 * ((x - self.mean - shift).square() / variance + variance.log() + math.log(2 * math.pi)).sum(1)


class Returning(nn.Module):
    """A model that returns what a function of (x, t, context) does."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.function(x, t, context)


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_maximum_likelihood_bit_for_bit(n, dtype):
    """All mass on t = 0 is plain maximum likelihood: the same loss and gradients, no bit apart."""
    model, x = Affine(dtype), torch.randn(n, 2, generator=seeded(n), dtype=dtype)
    loss = NCMLObjective(VPSDE(), AtZero())(model, x, generator=seeded(0))
    plain = -model(x, torch.zeros(n, dtype=dtype)).mean()
    assert same_bits(loss.detach(), plain.detach())
    for ours, theirs in zip(
        torch.autograd.grad(loss, model.parameters()), torch.autograd.grad(plain, model.parameters()), strict=True
    ):
        assert same_bits(ours, theirs)


@each_process
def test_other_ways_to_say_maximum_likelihood(process):
    density, x = gaussian(process), torch.randn(16, 1, generator=seeded(0))
    expected = -density.log_prob(x, 0.0).mean()
    for times in (AtZero(), UniformTimes(p_zero=1.0), LadderTimes((0.0,))):
        assert same_bits(NCMLObjective(process, times)(density, x, generator=seeded(1)), expected)


@given(lambdas=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_eq_6_is_mu_0_times_eq_7(lambdas):
    """E_mu E -log p_t = mu(0) [E -log p_0 + sum_t lambda_t E -log p_t], lambda_t = mu(t) / mu(0)."""
    ladder = LadderTimes.from_lambdas({PROCESS.T * (i + 1) / 5: k / 4 for i, k in enumerate(lambdas)})
    density, (x, z) = gaussian(PROCESS), torch.randn(2, 1, 1, generator=seeded(1), dtype=F64)
    # Equal data and noise in every row: a batch of 4 + sum(4 lambda) spread evenly is the sum over the ladder.
    n = 4 + sum(lambdas)
    eq6 = NCMLObjective(PROCESS, ladder)(density, x.expand(n, 1), noise=z.expand(n, 1), generator=seeded(2))
    nll = {t: NCMLObjective(PROCESS)(density, x, t=t, noise=z) for t in ladder.times}
    eq7 = nll[0.0] + sum(weight * nll[t] for t, weight in ladder.lambdas.items())
    assert float(eq6) == pytest.approx(float(ladder.masses[0] * eq7), rel=1e-12)


def test_itarflow_s_objective():
    """w(t) = t on VE with sigma = t: sum of t nll, divided by n and not by the sum of weights."""
    process = VESDE.linear(0.5)
    times, model, x = WeightedTimes.itarflow(), Affine(), torch.randn(64, 2, generator=seeded(0))
    z = torch.randn(64, 2, generator=seeded(1))
    loss = NCMLObjective(process, times)(model, x, noise=z, generator=seeded(2))
    t, _ = times(64, process, generator=seeded(2))
    expected = -(t * model(x + t[:, None] * z, t)).sum() / 64
    assert torch.allclose(loss, expected, rtol=1e-6, atol=0)


# Mechanics.


def test_reductions_and_weights():
    times, model, x = ImportanceTimes((4.0, 1.0)), Affine(), torch.randn(32, 2, generator=seeded(0))

    def loss(reduction):
        return NCMLObjective(PROCESS, times, reduction=reduction)(model, x, generator=seeded(3))

    terms = loss("none")
    assert terms.shape == (32,)
    assert same_bits(loss("sum"), terms.sum())
    assert same_bits(loss("mean"), terms.sum() / 32)
    t, weight = times(32, PROCESS, generator=seeded(3))
    g = seeded(3)
    times(32, PROCESS, generator=g)
    x_t = PROCESS.perturb(x, t, generator=g)
    assert torch.equal(terms, -weight * model(x_t, t))
    assert NCMLObjective(PROCESS, reduction="none")(model, x[:0]).shape == (0,)


def test_the_default_times_have_an_atom():
    assert NCMLObjective(PROCESS).times == UniformTimes(p_zero=0.2)


def test_every_row_has_its_own_time_and_noise():
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x, t, context):
        seen.append((x, t))
        return x.sum(1)

    x = torch.zeros(16, 2)
    NCMLObjective(PROCESS, UniformTimes(p_zero=0.25))(Returning(model), x, generator=seeded(0))
    ((x_t, t),) = seen
    assert (t == 0).sum() == 4
    assert len(set(t.tolist())) == 13
    noisy = x_t[t > 0]
    assert len(set(noisy.flatten().tolist())) == noisy.numel()
    assert (x_t[t == 0] == 0).all()


def test_same_seed_same_loss():
    objective, model, x = NCMLObjective(PROCESS), Affine(), torch.randn(8, 2, generator=seeded(0))
    first, second, other = (objective(model, x, generator=seeded(s)) for s in (1, 1, 2))
    assert same_bits(first.detach(), second.detach())
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    objective(model, x, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_all_forms_of_time_give_the_same_loss():
    objective, model = NCMLObjective(PROCESS), Affine()
    x, z = (torch.randn(8, 2, generator=seeded(i)) for i in (0, 1))
    forms = (0.01, torch.tensor(0.01), torch.full((8,), 0.01))
    first, *others = (objective(model, x, t=t, noise=z).detach() for t in forms)
    assert all(same_bits(first, other) for other in others)


def test_context_reaches_the_model_and_data_are_left_alone():
    objective, model = NCMLObjective(PROCESS), Affine()
    x, context = torch.randn(8, 2, generator=seeded(0)), torch.ones(8, 1)
    before = x.clone()
    shifted = objective(model, x, context, t=0.0)
    assert float(shifted.detach()) == pytest.approx(float(objective(model, x - 1.0, t=0.0).detach()), rel=1e-6)
    assert same_bits(x, before)


def test_half_precision_data_are_computed_in_single():
    model, x = Affine(), torch.randn(8, 2, generator=seeded(0)).to(torch.bfloat16)
    loss = NCMLObjective(PROCESS)(model, x, generator=seeded(1))
    assert same_bits(loss.detach(), NCMLObjective(PROCESS)(model, x.float(), generator=seeded(1)).detach())


def test_minimising_it_finds_the_truth():
    """The exact expectation over noisy data alone has its minimum at the mean and std of the clean data."""
    x, w = gaussian_nodes()
    pairs, weights = torch.cartesian_prod(x, (x - MEAN) / STD), torch.cartesian_prod(w, w).prod(1)
    parameters = nn.Parameter(torch.tensor([0.0, math.log(0.3)], dtype=F64))

    def log_p(x, t):
        mean, variance = PROCESS.alpha(t) * parameters[0], (2 * parameters[1]).exp() * PROCESS.alpha(t) ** 2
        variance = variance + PROCESS.sigma(t) ** 2
        return -0.5 * ((x[:, 0] - mean) ** 2 / variance + variance.log())

    density = CallableDensity(log_p, (1,), PROCESS, modules=[nn.ParameterList([parameters])])
    objective = NCMLObjective(PROCESS, reduction="none")
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective(density, pairs[:, :1], t=PROCESS.T, noise=pairs[:, 1:]) @ weights
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    assert float(parameters[0].detach()) == pytest.approx(MEAN, abs=1e-5)
    assert float(parameters[1].detach().exp()) == pytest.approx(STD, abs=1e-5)


# Errors.


def test_another_process_is_refused_also_inside_a_wrapper():
    density, x = gaussian(SDES["vp"]), torch.zeros(4, 1)
    for wrapped in (density, Wrapper(density)):
        assert NCMLObjective(SDES["vp"])(wrapped, x, generator=seeded(0)).ndim == 0
        with pytest.raises(ArgumentError, match=r"^process: got"):
            NCMLObjective(SDES["ve"])(wrapped, x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_likelihoods_are_loud(value):
    def model(x, t, context):
        return torch.where(torch.arange(4) == 2, value, x.sum(1))

    with pytest.raises(NonFiniteError, match=r"at index 2 with t = 0.01 \(1 of 4 examples.*\[-0, -0\]"):
        NCMLObjective(PROCESS)(Returning(model), torch.zeros(4, 1), t=0.01, noise=torch.zeros(4, 1))
    with pytest.raises(NonFiniteError, match=r"\(4 of 4 examples\); expected finite values"):
        NCMLObjective(PROCESS)(Returning(lambda x, t, context: x.sum(1) * value), torch.zeros(4, 1), t=0.01)


def test_huge_finite_likelihoods_are_fine():
    """Their sum overflows; none of them is infinite."""
    x = torch.full((4, 1), 3e38)
    terms = NCMLObjective(PROCESS, reduction="none")(Returning(lambda x, t, context: x[:, 0]), x, t=0.0)
    assert terms.tolist() == [-x[0, 0].item()] * 4


@pytest.mark.parametrize("shape", [(4, 1), (), (4, 3)])
def test_models_must_return_one_number_per_example(shape):
    with pytest.raises(ArgumentError, match=r"got log-likelihoods of shape .*; expected \(4,\)"):
        NCMLObjective(PROCESS)(Returning(lambda x, t, context: torch.zeros(shape)), torch.zeros(4, 3))


def test_bad_arguments():
    model = Affine()
    with pytest.raises(ArgumentError, match="got an empty batch"):
        NCMLObjective(PROCESS)(model, torch.zeros(0, 2))
    with pytest.raises(ArgumentTypeError, match=r"got dtype torch.uint8"):
        NCMLObjective(PROCESS)(model, torch.zeros(4, 2, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="expected 0 <= t <= T"):
        NCMLObjective(PROCESS)(model, torch.zeros(4, 2), t=1.0)
    with pytest.raises(ArgumentTypeError, match=r"^process: got"):
        NCMLObjective("vp")
    with pytest.raises(ArgumentTypeError, match=r"^times: got"):
        NCMLObjective(PROCESS, 0.1)
    with pytest.raises(ArgumentError, match=r"^reduction: got"):
        NCMLObjective(PROCESS, reduction="median")


def test_weights_that_are_not_numbers_are_refused():
    """1 / sigma^2 is infinite at t = 0: with the atom there, the loss would be NaN without a word."""
    process = VPSDE.at_noise(0.1)
    density = GaussianDensity(process, mean=torch.zeros(2), std=0.5)
    times = WeightedTimes(UniformTimes(p_zero=0.5), lambda t: 1.0 / process.sigma(t) ** 2)
    with pytest.raises(ArgumentError, match=r"weight: got \d+ non-finite"):
        NCMLObjective(process, times)(density, torch.zeros(8, 2))


def test_weights_of_another_shape_are_refused():
    process = VPSDE.at_noise(0.1)
    density = GaussianDensity(process, mean=torch.zeros(2), std=0.5)
    times = WeightedTimes(UniformTimes(), lambda t: t[:, None])
    with pytest.raises(ArgumentError, match="weights of shape"):
        NCMLObjective(process, times)(density, torch.zeros(8, 2))


# Dequantisation.

LATTICE = Lattice(5)


def lattice_points(n: int, dims: int = 2, dtype: torch.dtype = F64) -> Tensor:
    return LATTICE.to_unit(torch.randint(0, 5, (n, dims), generator=seeded(0)), dtype=dtype)


class Seeing(nn.Module):
    """A model that remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.x, self.t = Affine(F64), torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self.x, self.t = x.detach(), t
        return self.model(x, t, context)


def test_dequantised_data_are_uniform_in_their_bin():
    model, x = Seeing(), lattice_points(20_000)
    NCMLObjective(PROCESS, AtZero(), dequantize=LATTICE)(model, x, generator=seeded(1))
    position = (model.x - x) / LATTICE.width + 0.5
    assert float(position.min()) >= 0.0
    assert float(position.max()) <= 1.0
    for column in position.unbind(1):
        assert_law(column, lambda u: u)
    at_edge = x.abs() == 1.0  # the first and last bin are as wide as the others
    assert_law(position[at_edge], lambda u: u)
    correlation = (position[:, 0] - 0.5) * (position[:, 1] - 0.5) * 12.0
    assert_mean(correlation, 0.0, 1.0)


@each_process
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_dequantised_loss_is_the_explicit_one(process, fraction):
    """Dequantised, then made noisy: the same numbers as by hand."""
    model, x, t = Affine(F64), lattice_points(32), fraction * process.T
    z = torch.randn(32, 2, generator=seeded(1), dtype=F64)
    u = torch.rand(32, 2, generator=seeded(2), dtype=F64)
    loss = NCMLObjective(process, dequantize=LATTICE)(model, x, t=t, noise=z, uniform=u)
    y = x + (2.0 * u - 1.0) * LATTICE.half_width
    expected = -model(process.perturb(y, t, noise=z), torch.full((32,), t, dtype=F64)).mean()
    assert same_bits(loss.detach(), expected.detach())
    middle = torch.full((32, 2), 0.5, dtype=F64)  # no move at all
    plain = NCMLObjective(process)(model, x, t=t, noise=z)
    still = NCMLObjective(process, dequantize=LATTICE)(model, x, t=t, noise=z, uniform=middle)
    assert same_bits(still.detach(), plain.detach())


def test_level_noise_is_dequantised_after_it():
    """Its steps are of whole levels, so that the data must be on the lattice when they are taken."""
    process, model, x = LevelNoise(5), Seeing(), lattice_points(64)
    z, u = process.draw_noise(x, generator=seeded(1)), torch.rand(64, 2, generator=seeded(2), dtype=F64)
    NCMLObjective(process, dequantize=LATTICE)(model, x, t=0.7, noise=z, uniform=u)
    moved = process.perturb(x, 0.7, noise=z)
    assert not torch.equal(moved, x)
    assert same_bits(model.x, LATTICE.dequantize(moved, uniform=u))


def test_dequantisation_draws_after_the_times_and_the_noise():
    """So that times and noise of a seed are the same with it and without."""
    times, x = UniformTimes(p_zero=0.25), lattice_points(32)
    plain, model = Seeing(), Seeing()
    NCMLObjective(PROCESS, times)(plain, x, generator=seeded(3))
    NCMLObjective(PROCESS, times, dequantize=LATTICE)(model, x, generator=seeded(3))
    g = seeded(3)
    t, _ = times(32, PROCESS, generator=g, dtype=F64)
    z = PROCESS.draw_noise(x, generator=g)
    assert same_bits(plain.t, t)
    assert same_bits(plain.x, PROCESS.perturb(x, t, noise=z))
    y = LATTICE.dequantize(x, generator=g)
    assert same_bits(model.t, t)
    assert same_bits(model.x, PROCESS.perturb(y, t, noise=z))
    twice = [NCMLObjective(PROCESS, dequantize=LATTICE)(model, x, generator=seeded(s)).detach() for s in (4, 4, 5)]
    assert same_bits(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])
    state = torch.get_rng_state()
    NCMLObjective(PROCESS, dequantize=LATTICE)(model, x, generator=seeded(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_call_dequantises_anew():
    model, x, g = Seeing(), lattice_points(8), seeded(0)
    objective = NCMLObjective(PROCESS, AtZero(), dequantize=LATTICE)
    seen = []
    for _ in range(2):
        objective(model, x, generator=g)
        seen.append(model.x)
    assert not bool((seen[0] == seen[1]).any())
    assert LATTICE.on_lattice(x).all()


def test_its_expectation_is_the_bound_of_the_likelihood():
    """E_u -log N(x + u; m, s) = log s sqrt(2 pi) + ((x - m)^2 + width^2 / 12) / 2 s^2."""
    density, n = GaussianDensity(PROCESS, torch.tensor([0.2], dtype=F64), 0.3), 40_000
    x = torch.full((n, 1), 0.5, dtype=F64)
    terms = NCMLObjective(PROCESS, AtZero(), dequantize=LATTICE, reduction="none")(density, x, generator=seeded(6))
    expected = math.log(0.3 * math.sqrt(2 * math.pi)) + (0.3**2 + LATTICE.width**2 / 12) / (2 * 0.3**2)
    assert_mean(terms, expected, float(terms.std()))
    assert float(terms.std()) > 0.1


def test_half_precision_data_are_dequantised_in_single():
    model, x = Affine(), lattice_points(8, dtype=torch.bfloat16)
    objective = NCMLObjective(PROCESS, dequantize=LATTICE)
    loss = objective(model, x, generator=seeded(1))
    assert same_bits(loss.detach(), objective(model, x.float(), generator=seeded(1)).detach())


def test_what_cannot_be_dequantised_is_refused():
    objective, model, x = NCMLObjective(PROCESS, dequantize=LATTICE), Affine(F64), lattice_points(4)
    exact = CallableDensity(
        lambda x, t: -x.square().sum(1), (2,), PROCESS, lattice=LATTICE, density=lambda x, t: -x.square().sum(1)
    )
    continuous = GaussianDensity(PROCESS, torch.zeros(2, dtype=F64), 1.0)

    for density in (exact, Wrapper(exact)):
        with pytest.raises(ArgumentError, match=r"^dequantize: got"):
            objective(density, x)
    for density in (model, continuous):
        for t in (None, 0.0, PROCESS.T):
            with pytest.raises(ArgumentError, match="lattice points"):
                objective(density, x + 0.1, t=t)
    with pytest.raises(ArgumentError, match=r"^uniform: got"):
        objective(model, x, uniform=torch.rand(4, 1))
    with pytest.raises(ArgumentError, match=r"^uniform: got"):
        NCMLObjective(PROCESS)(model, x, uniform=torch.rand(4, 2))
    with pytest.raises(ArgumentTypeError, match=r"^dequantize: got"):
        NCMLObjective(PROCESS, dequantize=5)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_log_densities_are_floating(kind):
    density = CallableDensity(lambda x, t: torch.ones(len(x), dtype=kind), (2,), PROCESS)
    with pytest.raises(ArgumentTypeError, match=f"got log-likelihoods of {kind}; expected floating ones"):
        NCMLObjective(PROCESS)(density, torch.zeros(3, 2))
