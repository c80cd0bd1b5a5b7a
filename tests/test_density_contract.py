"""What every density promises, whatever it is: dtypes, shapes, modes, copies, gradients, scores."""

from __future__ import annotations

import copy
import io
import math
import re

import nflows.distributions
import nflows.flows
import nflows.transforms
import pytest
import torch
import zuko
from torch import nn

from ncml import VPSDE, Lattice, LevelNoise, NCMLObjective, NoiseConditionalDensity, SampleableDensity, generate
from ncml.densities import (
    MADE,
    MAF,
    NCPN,
    CallableDensity,
    CausalTransformer,
    GaussianDensity,
    NFlowsDensity,
    ToyLattice,
    ZukoDensity,
)
from ncml.density import AutoregressiveDensity, at_zero_only
from ncml.errors import ArgumentError, ArgumentTypeError, InferenceTensorError, NonFiniteError
from ncml.sampling import EulerMaruyama, sample_in_parallel
from ncml.score import exact_divergence, hutchinson_divergence, log_density_and_score
from tests.problems import PMF, plane_mixture, same_bits, seeded

F64 = torch.float64
VP = VPSDE.at_noise(0.2)
LATTICE = Lattice(17)


class Smooth(nn.Module):
    """A normalised density of its own kind: a Gaussian whose width grows with t, shifted by the context."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self, x, t, context=None):
        std = 0.5 + t[:, None]
        shift = 0.0 if context is None else context
        return -0.5 * (((x - self.mean - shift) / std).square() + math.log(2 * math.pi)).sum(1) - 2 * std.log()[:, 0]


def _nflows():
    transform = nflows.transforms.MaskedAffineAutoregressiveTransform(2, 8, context_features=6)
    flow = nflows.flows.Flow(transform, nflows.distributions.StandardNormal([2]))
    return NFlowsDensity(flow, (2,), VP, noise_features=6, data_std=0.5)


BUILDERS = {
    "gaussian": lambda: GaussianDensity(VP, torch.tensor([0.3, -0.1]), torch.tensor([0.1, 0.4])),
    "mixture": lambda: plane_mixture(VP),
    "toy-lattice": lambda: ToyLattice(VP, torch.stack([PMF, PMF.flip(0) + 0.01])),
    "made": lambda: MADE((2,), VP, hidden=(16,), components=3),
    "made-gaussian": lambda: MADE((2,), VP, hidden=(16,), components=3, head="gaussian", order=[1, 0]),
    "made-scaled": lambda: MADE((2,), VP, hidden=(16,), components=3, data_std=0.5),
    "made-lattice": lambda: MADE((2,), VP, lattice=LATTICE, hidden=(16,), components=3),
    "made-levels": lambda: MADE((2,), LevelNoise(17), lattice=LATTICE, hidden=(16,), components=3),
    "maf": lambda: MAF((2,), VP, transforms=2, hidden=(16,), data_std=0.5),
    "nflows": _nflows,
    "zuko": lambda: ZukoDensity(
        zuko.flows.NSF(2, 6, bins=4, transforms=1, hidden_features=(8,)), (2,), VP, noise_features=6
    ),
    "callable": lambda: CallableDensity(Smooth(), (2,), VP, sample=lambda n, t, c, g: torch.randn(n, 2, generator=g)),
}
EVERY = list(BUILDERS)
TRAINED = [n for n in EVERY if n not in ("gaussian", "mixture", "toy-lattice")]
LATTICED = ["toy-lattice", "made-lattice", "made-levels"]
CONTINUOUS = [n for n in EVERY if n not in LATTICED]

every = pytest.mark.parametrize("name", EVERY)
trained = pytest.mark.parametrize("name", TRAINED)
with_score = pytest.mark.parametrize("name", [n for n in EVERY if n != "toy-lattice"])


def build(name, dtype=torch.float32):
    """A density with random parameters; adapters and networks draw them from the global generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        density = BUILDERS[name]().to(dtype)
        for p in density.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return density


def batch(n=6, dtype=torch.float32, seed=0):
    """Lattice points, so that every density accepts them at t = 0."""
    return LATTICE.to_unit(torch.randint(0, 17, (n, 2), generator=seeded(seed)), dtype=dtype)


def mid(density) -> float:
    """A time inside the range, below a fifth of T."""
    return 0.15 * density.process.T


# Shapes and times.


@every
@pytest.mark.parametrize("method", ["log_prob", "log_density", "score"])
def test_results_have_the_stated_shape_dtype_and_device(name, method):
    density, x = build(name), batch()
    result = getattr(density, method)(x, mid(density))
    assert result.shape == (x.shape if method == "score" else (6,))
    assert result.dtype == torch.float32
    assert result.device == x.device
    assert bool(result.isfinite().all())


@every
def test_every_way_of_giving_the_time_gives_the_same_bits(name):
    density, x = build(name), batch()
    t = mid(density)
    ways = [t, torch.tensor(t), torch.tensor(t, dtype=F64), torch.full((6,), t), torch.full((1,), t).expand(6)]
    for method in ("log_prob", "log_density", "score"):
        first, *others = (getattr(density, method)(x, way) for way in ways)
        assert all(same_bits(first, other) for other in others)
    zero = [0, 0.0, torch.tensor(0), torch.zeros(6), torch.zeros(6, dtype=torch.int64)]
    first, *others = (density.log_prob(x, way) for way in zero)
    assert all(same_bits(first, other) for other in others)
    assert same_bits(first, density.log_prob(x))


@every
def test_a_time_a_few_ulp_over_T_is_T(name):
    density, x = build(name), batch()
    T = density.process.T
    assert same_bits(density.log_density(x, T * (1 + 2e-16)), density.log_density(x, T))
    assert same_bits(
        density.log_density(x, torch.full((6,), T).nextafter(torch.tensor(9.0))), density.log_density(x, T)
    )


@every
def test_examples_do_not_interact(name):
    """Splitting and permuting the batch changes nothing, to the last digits of float64."""
    density, x = build(name, F64), batch(dtype=F64)
    t = torch.linspace(0.0, density.process.T, 6, dtype=F64)
    whole, scores = density.log_prob(x, t), density.score(x[1:], t[1:])
    parts = torch.cat([density.log_prob(x[i : i + 1], t[i : i + 1]) for i in range(6)])
    assert (whole - parts).abs().max() <= 1e-10
    flipped = density.score(x[1:].flip(0), t[1:].flip(0)).flip(0)
    assert (scores - flipped).abs().max() <= 1e-9 * (1 + scores.abs().max())


@every
def test_empty_batches(name):
    density, empty = build(name), torch.empty(0, 2)
    for t in (0.0, mid(density), torch.empty(0)):
        assert density.log_prob(empty, t).shape == (0,)
        assert density.log_density(empty, t).shape == (0,)
        assert density.score(empty, t).shape == (0, 2)
    assert log_density_and_score(density, empty, 0.0)[1].shape == (0, 2)
    if isinstance(density, SampleableDensity):
        assert density.sample(0, mid(density)).shape == (0, 2)
    terms = NCMLObjective(density.process, reduction="none")(density, empty)
    assert terms.shape == (0,)


# Layout of the input.


@every
def test_the_layout_of_the_input_does_not_matter_and_it_is_never_written(name):
    density, x = build(name), batch()
    t = mid(density)
    wide = torch.zeros(6, 5)
    wide[:, 1:4:2] = x
    layouts = {
        "strided": wide[:, 1:4:2],
        "transposed": x.t().contiguous().t(),
        "reversed-twice": x.flip(0).flip(0),
        "view": torch.cat([x, x])[6:],
    }
    for layout in layouts.values():
        before, version = layout.clone(), layout._version
        assert torch.equal(layout, x)
        assert (density.log_prob(layout, t) - density.log_prob(x, t)).abs().max() <= 1e-6
        assert (density.score(layout, t) - density.score(x, t)).abs().max() <= 1e-4
        assert torch.equal(layout, before)
        assert layout._version == version
    row = x[:1].expand(6, 2)
    assert (density.score(row, t) - density.score(row.contiguous(), t)).abs().max() <= 1e-4


def test_channels_last_images_are_the_same_images():
    made = MADE((3, 4, 4), VP, lattice=Lattice(5), hidden=(32,), components=2)
    x = Lattice(5).to_unit(torch.randint(0, 5, (2, 3, 4, 4), generator=seeded(0)))
    last = x.contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert same_bits(made.log_prob(last), made.log_prob(x))
    assert (made.score(last, 0.01) - made.score(x, 0.01)).abs().max() <= 1e-5


# Dtypes.


@every
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(name, half):
    density = build(name)
    x = batch().to(half)  # 17 levels are exact in half precision
    for method in ("log_prob", "log_density", "score"):
        for t in (0.0, mid(density)) if name != "toy-lattice" else (mid(density),):
            result = getattr(density, method)(x, t)
            assert result.dtype == torch.float32
            assert same_bits(result, getattr(density, method)(x.float(), t))
    refused = name == "made-levels"  # its process has no score-based samplers
    if not refused:
        assert EulerMaruyama(steps=2)(density, x, 0.01, generator=seeded(0)).dtype == torch.float32


@every
def test_float32_agrees_with_float64(name):
    single, double = build(name), build(name, F64)
    double.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in single.state_dict().items()})
    x, t = batch(), mid(single)
    bits = (single.log_prob(x, t).double() - double.log_prob(x.double(), t)).abs().max() / (2 * math.log(2.0))
    assert bits <= 1e-5
    score = double.score(x.double(), t)
    assert (single.score(x, t).double() - score).norm() <= 1e-5 * score.norm()


@pytest.mark.parametrize("name", ["made", "made-gaussian", "made-lattice", "made-levels", "maf", "callable", "nflows"])
def test_autocast_leaves_results_in_float32_and_close(name):
    density, x = build(name), batch()
    t = mid(density)
    plain = density.log_prob(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, score = density.log_prob(x, t), density.score(x, t)
    assert cast.dtype == score.dtype == torch.float32
    assert (cast - plain).abs().max() <= 0.1
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "build_one",
    [
        lambda: MADE((6,), VP, lattice=Lattice(256), hidden=(32, 32)),
        lambda: NCPN((1, 4, 4), VP, features=8, blocks=1, resolutions=1, heads=2),
        lambda: CausalTransformer((6, 1), VP, lattice=Lattice(256), width=16, layers=1, heads=2),
        lambda: CausalTransformer((6, 1), VP, lattice=Lattice(256), width=16, layers=1, heads=2).extended(9),
    ],
)
def test_samples_are_what_resample_gives_under_autocast_too(build_one):
    """A draw is a fixed point; products in half precision would move it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        density = build_one()
        for p in density.parameters():
            p.add_(0.3 * torch.randn_like(p))
    noise = density.draw_noise(20, generator=seeded(0))
    x = density.sample(20, 0.0, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = density.resample(x, noise, 0.0)
        parallel = sample_in_parallel(density, 20, 0.0, noise=noise).x
    assert (again - x).abs().max() < 1e-6
    assert (parallel - x).abs().max() < 1e-6


class Chain(AutoregressiveDensity):
    """A stranger's: three unit Gaussians, each with a mean that a small network makes of those before it."""

    def __init__(self):
        super().__init__((3,), VP)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))

    @property
    def order(self):
        return torch.arange(3)

    def mean(self, x, t, i):
        return 3.0 * self.net(torch.cat([x * (torch.arange(3) < i), t[:, None]], 1))[:, i].to(x.dtype)

    def forward(self, x, t, context=None, *, edges=True):
        return sum(-0.5 * (x[:, i] - self.mean(x, t, i)) ** 2 - 0.919 for i in range(3))

    def draw_noise(self, n, *, generator=None):
        return torch.randn(n, 3, generator=generator)

    def resample(self, x, noise, t=0.0, context=None):
        return torch.stack([self.mean(x, t, i) + noise[:, i] for i in range(3)], 1)

    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        noise = self.draw_noise(n, generator=generator) if noise is None else noise
        x = torch.zeros(n, 3)
        for i in range(3):
            x[:, i] = self.mean(x, t, i) + noise[:, i]
        return x


def test_a_strangers_samples_and_resamples_are_as_precise_under_autocast():
    density = Chain()
    noise = density.draw_noise(50, generator=seeded(0))
    plain = density.sample(50, 0.0, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = density.sample(50, 0.0, noise=noise)
        assert torch.equal(x, plain)
        assert (density.resample(x, noise, 0.0) - x).abs().max() < 1e-6


@pytest.mark.parametrize("build_one", [Chain, lambda: MADE((3,), VP, hidden=(8,))])
def test_what_resample_draws_with_has_to_be_given(build_one):
    density = build_one()
    with pytest.raises(ArgumentTypeError, match=r"noise: got NoneType; expected a tensor; use draw_noise\(2\)"):
        density.resample(torch.zeros(2, 3), None)


def test_samples_in_half_precision_become_single():
    density = CallableDensity(
        lambda x, t: -x.square().sum(1), (2,), sample=lambda n, t, c, g: torch.ones(n, 2, dtype=torch.bfloat16)
    )
    assert density.sample(3).dtype == torch.float32


def test_samples_have_the_type_of_the_density():
    """Whatever a stranger's sampler was left in."""
    double = CallableDensity(Smooth(), (2,), VP, sample=lambda n, t, c, g: torch.randn(n, 2, dtype=F64, generator=g))
    assert double.sample(3, generator=seeded(0)).dtype == torch.float32
    assert generate(double, 3, sampler=EulerMaruyama(steps=2), generator=seeded(0)).dtype == torch.float32
    whole = CallableDensity(Smooth(), (2,), VP, sample=lambda n, t, c, g: torch.ones(n, 2, dtype=torch.long))
    with pytest.raises(ArgumentTypeError, match=r"sample: got torch.int64 .*Lattice.to_unit"):
        whole.sample(3)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.complex64])
def test_log_densities_are_floating(kind):
    density = CallableDensity(lambda x, t: torch.ones(len(x), dtype=kind), (2,))
    for call in (density.log_prob, density.log_density, density.score):
        with pytest.raises(ArgumentTypeError, match=f"got {kind}; expected floating log-densities"):
            call(batch())


def test_log_densities_in_half_precision_become_single():
    density = CallableDensity(lambda x, t: -x.half().square().sum(1), (2,))
    assert density.log_prob(batch()).dtype == torch.float32


# Modes.


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_do_not_depend_on_the_callers_grad_mode(name, mode):
    density, x = build(name), batch()
    t = mid(density)
    expected = density.score(x, t)
    with mode():
        inside = x.clone()  # an inference tensor under inference_mode
        assert same_bits(density.score(inside, t), expected)
        together = log_density_and_score(density, inside, t)[1]  # by autograd, also where a closed form exists
        assert (together - expected).abs().max() <= 1e-5 * (1.0 + expected.abs().max())
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
    assert not density.score(x, t).requires_grad


@with_score
def test_scores_of_inputs_that_require_grad_touch_no_gradient(name):
    density, x = build(name), batch().requires_grad_()
    t = mid(density)
    assert same_bits(density.score(x, t), density.score(x.detach(), t))
    assert x.grad is None
    assert x.requires_grad
    assert all(p.grad is None for p in density.parameters())
    assert all(p.requires_grad for p in density.parameters())


def test_a_context_from_inference_mode_works_in_every_score():
    density = CallableDensity(lambda x, t, c: -(x * c).square().sum(1), (2,), VP)
    with torch.inference_mode():
        x, context = batch(), torch.ones(6, 2)
        for score in (density.score(x, 0.0, context), log_density_and_score(density, x, 0.0, context)[1]):
            assert (score + 2 * x).abs().max() < 1e-6
        refined = EulerMaruyama(steps=2)(density, x, 0.01, context=context, generator=seeded(0))
        assert refined.shape == x.shape
        assert (exact_divergence(density, x, 0.0, context) + 4.0).abs().max() < 1e-6
        assert (hutchinson_divergence(density, x, 0.0, context) + 4.0).abs().max() < 1e-6


class Dropping(nn.Module):
    """A density with dropout and a submodule in another mode, which may fail on demand."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(2).eval()
        self.fail = False

    def forward(self, x, t):
        if self.fail:
            raise RuntimeError("on demand")
        return -self.drop(self.frozen(x)).square().sum(1)


def test_scores_run_in_eval_mode_and_restore_every_flag_also_after_an_error():
    module = Dropping()
    density = CallableDensity(module, (2,), VP)
    module.drop.train()
    module.frozen.eval()
    flags, before = [m.training for m in density.modules()], torch.get_rng_state()
    assert len(set(flags)) == 2
    x = batch()
    first, second = density.score(x), density.score(x)
    assert same_bits(first, second)
    assert torch.equal(torch.get_rng_state(), before)  # dropout drew nothing
    log_density_and_score(density, x)
    EulerMaruyama(steps=2)(density, x, 0.01, generator=seeded(0))
    assert [m.training for m in density.modules()] == flags
    module.fail = True
    for call in (
        lambda: density.score(x),
        lambda: log_density_and_score(density, x),
        lambda: EulerMaruyama(steps=2)(density, x, 0.01),
    ):
        with pytest.raises(RuntimeError, match="on demand"):
            call()
        assert [m.training for m in density.modules()] == flags
        assert torch.is_grad_enabled()


def test_a_non_finite_score_restores_every_flag():
    density = CallableDensity(lambda x, t: x.abs().sqrt().sum(1), (2,), VP).train()
    with pytest.raises(NonFiniteError, match=r"^score: got"):
        density.score(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert density.training


def test_parameters_made_under_inference_mode_are_refused_with_an_explanation():
    with torch.inference_mode():
        density = build("made")
    x = batch()
    assert density.log_prob(x).shape == (6,)
    for call in (
        lambda: density.score(x),
        lambda: log_density_and_score(density, x),
        lambda: EulerMaruyama(steps=1)(density, x),
    ):
        with pytest.raises(InferenceTensorError, match=r"created under torch\.inference_mode"):
            call()


# Copies and state.


@every
def test_a_deep_copy_is_equal_and_independent(name):
    density, x = build(name), batch()
    twin = copy.deepcopy(density)
    assert same_bits(twin.log_prob(x), density.log_prob(x))
    assert twin.process == density.process
    before = density.log_prob(x)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *(b for b in twin.buffers() if b.is_floating_point())]:
            tensor.mul_(1.5)
    assert same_bits(density.log_prob(x), before)


@every
def test_a_state_dict_round_trip_gives_the_same_bits(name):
    density, other, x = build(name), BUILDERS[name](), batch()
    file = io.BytesIO()
    torch.save(density.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for t in (0.0, mid(density)):
        assert same_bits(other.log_prob(x, t), density.log_prob(x, t))


@every
def test_moving_to_float64_and_back_keeps_the_bits(name):
    density, x = build(name), batch()
    before = density.log_prob(x)
    assert same_bits(density.double().float().log_prob(x), before)


# Gradients and scores.


@trained
def test_every_parameter_gets_a_finite_gradient_from_the_objective(name):
    density, x = build(name), batch(64)
    density.train()
    NCMLObjective(density.process)(density, x, generator=seeded(0)).backward()
    for parameter_name, p in density.named_parameters():
        assert p.grad is not None, parameter_name
        assert bool(p.grad.isfinite().all()), parameter_name
        assert float(p.grad.abs().sum()) > 0.0, parameter_name


@with_score
@pytest.mark.parametrize("fraction", [0.0, 0.15, 1.0])
def test_scores_are_central_differences_of_the_log_density(name, fraction):
    density, x, h = build(name, F64), batch(dtype=F64) + 0.013, 1e-5
    t = fraction * density.process.T
    score = density.score(x, t)
    for i in range(2):
        step = h * torch.eye(2, dtype=F64)[i]
        with torch.no_grad():
            slope = (density.log_density(x + step, t) - density.log_density(x - step, t)) / (2 * h)
        assert (score[:, i] - slope).abs().max() <= 1e-6 * (1.0 + slope.abs().max())
    log_p, same = log_density_and_score(density, x, t)
    assert (same - score).abs().max() <= 1e-10 * (1.0 + score.abs().max())
    assert same_bits(log_p, density.log_density(x, t).detach())


@with_score
def test_the_score_can_be_differentiated_again(name):
    """Divergence by double backward equals the central difference of the score; parameters get gradients."""
    density, x, h = build(name, F64), batch(3, F64) + 0.013, 1e-5
    t = mid(density)
    divergence = torch.zeros(3, dtype=F64)
    for i in range(2):
        step = h * torch.eye(2, dtype=F64)[i]
        divergence += (density.score(x + step, t) - density.score(x - step, t))[:, i] / (2 * h)
    assert (exact_divergence(density, x, t) - divergence).abs().max() <= 1e-5 * (1.0 + divergence.abs().max())
    score = density.score(x, t, create_graph=True)
    if name in TRAINED:
        gradients = torch.autograd.grad(score.square().sum(), list(density.parameters()), allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0.0


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_densities_have_one_likelihood(name):
    density, x = build(name), batch()
    for t in (0.0, mid(density)):
        assert same_bits(density.log_prob(x, t), density.log_density(x, t))


@pytest.mark.parametrize("name", LATTICED)
def test_lattice_densities_sum_to_one_where_the_process_keeps_the_lattice(name):
    density = build(name, F64)
    points = LATTICE.points(dtype=F64)
    states = torch.cartesian_prod(points, points)
    for t in (0.0, 0.4) if name == "made-levels" else (0.0,):
        total = (density.log_prob(states, t).exp() * LATTICE.width**2).sum()
        assert float(total.detach()) == pytest.approx(1.0, abs=1e-12)


@every
def test_log_density_is_finite_for_any_real_x(name):
    density = build(name)
    x = torch.tensor([[0.0, 0.013], [-1.5, 2.0], [30.0, -30.0]])
    t = mid(density)
    assert bool(density.log_density(x, t).isfinite().all())
    if name != "toy-lattice":
        assert bool(density.score(x, t).isfinite().all())


@every
def test_check_finite_can_be_switched_off(name):
    """Then a NaN is met in the result, which is still refused."""
    density, x, t = build(name), batch(), mid(build(name))
    for method in ("log_prob", "log_density", "score"):
        call = getattr(density, method)
        assert same_bits(call(x, t, check_finite=False), call(x, t))
    if name not in LATTICED:
        x[2, 1] = math.nan
        with pytest.raises(NonFiniteError, match="index 2"):
            density.log_density(x, t, check_finite=False)


@every
def test_the_call_is_the_likelihood(name):
    """``density(x, t)`` is what DDP, hooks and compilers see."""
    density, x = build(name), batch()
    t = torch.full((6,), mid(density))
    seen = []
    handle = density.register_forward_hook(lambda module, args, out: seen.append(out))
    value = density(x, t)
    handle.remove()
    assert seen == [value]
    assert same_bits(value, density.log_prob(x, t))


def test_forward_is_all_that_a_subclass_needs():
    class Mine(NoiseConditionalDensity):
        def forward(self, x, t, context=None, *, edges=True):
            return torch.distributions.Normal(0.0, 1.0 + t[:, None]).log_prob(x).sum(1)

    density, x = Mine((2,)), batch()
    assert torch.equal(density.score(x, 0.5), -x / 1.5**2)
    assert density.process is None
    assert density.max_time == math.inf
    assert density.dtype == torch.float32
    assert density.log_prob(x, 1e6).shape == (6,)
    with pytest.raises(TypeError, match="abstract"):
        NoiseConditionalDensity((2,))


class Misshapen(NoiseConditionalDensity):
    """Returns a shape whose sum has a gradient all the same."""

    def __init__(self, kind):
        super().__init__((2,))
        self.kind = kind

    def forward(self, x, t, context=None, *, edges=True):
        log_p = -0.5 * x.square().sum(1)
        return {"mean": log_p.mean(), "outer": log_p[:, None] + log_p, "column": log_p[:, None]}[self.kind]


@pytest.mark.parametrize("kind", ["mean", "outer", "column"])
def test_a_misshapen_likelihood_has_no_score(kind):
    x = torch.ones(8, 2)
    for ask in (Misshapen(kind).score, Misshapen(kind).log_prob, Misshapen(kind).log_density):
        with pytest.raises(ArgumentError, match=r"^Misshapen.forward: got"):
            ask(x)
    process = VPSDE(T=0.05)
    with pytest.raises(ArgumentError, match=r"^Misshapen.forward: got"):
        EulerMaruyama(steps=2)(Misshapen(kind), x, process=process)


@pytest.mark.parametrize(
    ("bad", "t", "said"),
    [
        ([True, False], [0.0, 0.1], True),
        ([True, True], [0.0, 0.0], True),
        ([True, False], [0.0, 0.0], False),  # others at t = 0 are well
        ([True, True], [0.0, 0.1], False),
        ([False, True], [0.0, 0.1], False),
    ],
)
def test_what_fails_at_zero_only_is_said_to_be(bad, t, said):
    hint = at_zero_only(torch.tensor(bad), torch.tensor(t))
    assert ("all of them have t = 0" in hint) is said
    assert bool(hint) is said


def test_log_prob_evaluates_and_the_call_trains():
    torch.manual_seed(0)
    process = VPSDE(T=0.05)
    made = MADE((3,), process, hidden=(64,), dropout=0.5).train()
    x = torch.randn(16, 3)
    assert torch.equal(made.log_prob(x, 0.01), made.log_prob(x, 0.01))
    assert torch.equal(made.log_density(x, 0.01), made.log_prob(x, 0.01))
    assert made.training
    assert made.net.dropout.training
    t = torch.full((16,), 0.01)
    assert not torch.equal(made(x, t), made(x, t))
    assert made.log_prob(x, 0.01).requires_grad
    with torch.no_grad():
        assert not made.log_prob(x, 0.01).requires_grad


def test_half_precision_densities_are_refused_by_name():
    made = MADE((3,), VPSDE(T=0.05), hidden=(8,)).to(torch.bfloat16)
    with pytest.raises(ArgumentTypeError, match=r"^density: got"):
        made.log_prob(torch.zeros(2, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize("lattice", [256, "8 bit"])
def test_a_lattice_that_is_none_is_refused_when_the_density_is_built(lattice):
    with pytest.raises(ArgumentTypeError, match="lattice: got"):
        MADE((3,), VPSDE.at_noise(0.1), lattice=lattice)


def test_large_samples_whose_sum_overflows_are_samples_and_nan_is_none():
    """Rows with the largest float are finite, though their sum is not."""
    largest = torch.full((3, 2), torch.finfo(torch.float32).max)
    density = CallableDensity(lambda x, t: -x.square().sum(1), (2,), VP, sample=lambda n, t, c, g: largest)
    assert torch.equal(density.sample(3), largest)
    broken = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [0.0, 0.0]])
    density = CallableDensity(lambda x, t: -x.square().sum(1), (2,), VP, sample=lambda n, t, c, g: broken)
    with pytest.raises(NonFiniteError, match=r"^sample: got .* the first at index 1 "):
        density.sample(3)


@pytest.mark.parametrize(
    ("shape", "event_shape", "call"),
    [
        ((6, 1), (6, 1), lambda x: x[None]),
        ((2, 6), (6, 1), lambda x: x[..., None]),
        ((2, 4, 4), (1, 4, 4), lambda x: x[:, None]),
        ((2, 3, 6), (6, 3), lambda x: x.permute(0, 2, 1)),
        ((2, 4, 5, 3), (3, 4, 5), lambda x: x.permute(0, 3, 1, 2)),
        ((2, 48), (3, 4, 4), lambda x: x.unflatten(1, (3, 4, 4))),
        ((2, 7), (6, 1), None),
    ],
)
def test_a_shape_that_does_not_fit_is_told_what_may_be_meant(shape, event_shape, call):
    """What the message proposes is a batch of such events."""
    density = CallableDensity(lambda x, t: -x.flatten(1).square().sum(1), event_shape)
    with pytest.raises(ArgumentError) as error:
        density.log_prob(torch.zeros(shape))
    proposal = str(error.value).rpartition("; ")[2]
    if call is None:
        assert proposal == "x is never broadcast"
        return
    x = torch.randn(shape, generator=seeded(0))
    found = eval(proposal[re.search(r"\bx[\[.]", proposal).start() :], {"x": x})  # our own message
    assert torch.equal(found, call(x))
    assert found.shape[1:] == event_shape
