"""Adapters: nflows, zuko, plain functions, and the wrappers that training puts around a density."""

from __future__ import annotations

import copy
import functools
import math

import nflows.distributions
import nflows.flows
import nflows.transforms
import nflows.utils
import pytest
import torch
import zuko
from torch import nn

from ncml import VESDE, VPSDE, NCMLObjective, generate
from ncml.densities import CallableDensity, GaussianDensity, NFlowsDensity, ToyLattice, ZukoDensity
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.nn import NoiseFeatures
from ncml.sampling import EulerMaruyama
from ncml.score import sliced_score_matching
from ncml.testing import check_density
from tests.problems import Wrapper, seeded
from tests.statistics import assert_law, normal_cdf

F64 = torch.float64
VP = VPSDE.at_noise(0.5)
D, WIDTH = 3, 8


# The flows under test.


def _autoregressive(context):
    return nflows.transforms.CompositeTransform(
        [
            nflows.transforms.MaskedAffineAutoregressiveTransform(D, 12, context_features=context),
            nflows.transforms.ReversePermutation(D),
            nflows.transforms.MaskedAffineAutoregressiveTransform(D, 12, context_features=context),
        ]
    )


def _net(inputs, outputs, context):
    return nflows.nn.nets.ResidualNet(inputs, outputs, hidden_features=12, context_features=context, num_blocks=1)


def _coupling(context):
    mask = nflows.utils.create_alternating_binary_mask(D, even=True)
    return nflows.transforms.AffineCouplingTransform(mask, lambda i, o: _net(i, o, context))


def _spline(context):
    mask = nflows.utils.create_alternating_binary_mask(D, even=True)
    return nflows.transforms.CompositeTransform(
        [
            nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
                m, lambda i, o: _net(i, o, context), num_bins=4, tails="linear", tail_bound=3.0
            )
            for m in (mask, 1 - mask)
        ]
    )


def nflow(transform, context=WIDTH):
    return nflows.flows.Flow(transform(context), nflows.distributions.StandardNormal([D]))


def _nflows(transform, process=VP, context=WIDTH, **settings):
    return NFlowsDensity(nflow(transform, context), (D,), process, **settings)


def _zuko(make, process=VP, context=WIDTH, **settings):
    return ZukoDensity(make(context), (D,), process, **settings)


FLOWS = {
    "nflows-maf": lambda **kw: _nflows(_autoregressive, **kw),
    "nflows-coupling": lambda **kw: _nflows(_coupling, **kw),
    "nflows-spline": lambda **kw: _nflows(_spline, **kw),
    "zuko-maf": lambda **kw: _zuko(lambda c: zuko.flows.MAF(D, c, transforms=2, hidden_features=(12,)), **kw),
    "zuko-nsf": lambda **kw: _zuko(lambda c: zuko.flows.NSF(D, c, bins=4, transforms=2, hidden_features=(12,)), **kw),
    "zuko-gmm": lambda **kw: _zuko(lambda c: zuko.flows.GMM(D, c, components=3, hidden_features=(12,)), **kw),
}
flows = pytest.mark.parametrize("name", FLOWS)


def build(name, seed=0, dtype=F64, **settings):
    """An adapter whose flow is far from its initialisation; networks are drawn from the global generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        density = FLOWS[name](**settings).to(dtype)
        for p in density.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return density


def own_log_prob(density, y, features):
    """What the library itself says."""
    if isinstance(density, NFlowsDensity):
        return density.flow.log_prob(y, context=features)
    return density.flow(features).log_prob(y)


X = torch.randn(7, D, dtype=F64, generator=seeded(1))
T = torch.linspace(0.0, VP.T, 7, dtype=F64)


# Likelihoods.


@flows
def test_log_prob_is_the_flows_own_given_the_noise_features(name):
    density = build(name)
    features = NoiseFeatures(VP, WIDTH)(T)
    assert torch.equal(density.log_prob(X, T), own_log_prob(density, X, features))
    assert torch.equal(density.log_density(X, T), density.log_prob(X, T))
    assert density.log_prob(X, T).std() > 0.1


@flows
def test_scaling_adds_its_log_determinant(name):
    density = build(name, data_std=0.3)
    c = 1.0 / ((VP.alpha(T) * 0.3) ** 2 + VP.sigma(T) ** 2).sqrt()
    expected = own_log_prob(density, c[:, None] * X, NoiseFeatures(VP, WIDTH)(T)) + D * c.log()
    assert (density.log_prob(X, T) - expected).abs().max() < 1e-11


@flows
@pytest.mark.parametrize("data_std", [None, 0.5])
def test_the_users_context_comes_after_the_noise_features(name, data_std):
    density = build(name, noise_features=5, context_features=3, data_std=data_std)
    context = torch.randn(7, 3, dtype=F64, generator=seeded(2))
    features = torch.cat([NoiseFeatures(VP, 5)(T), context], dim=1)
    scaled, log_det = density.scaling(X, T)
    expected = own_log_prob(density, scaled, features) + log_det
    assert torch.equal(density.log_prob(X, T, context), expected)
    assert not torch.equal(density.log_prob(X, T, context), density.log_prob(X, T, -context))
    assert density.sample(7, T, context, generator=seeded(0)).shape == (7, D)


@flows
def test_score_is_the_central_difference_of_the_log_density(name):
    density, h = build(name, data_std=0.7), 1e-5
    score = density.score(X, T)
    for i in range(D):
        step = h * torch.eye(D, dtype=F64)[i]
        with torch.no_grad():
            slope = (density.log_density(X + step, T) - density.log_density(X - step, T)) / (2 * h)
        assert (score[:, i] - slope).abs().max() < 1e-5 * (1.0 + slope.abs().max())
    assert all(p.grad is None for p in density.parameters())


@flows
def test_the_score_can_be_differentiated_again(name):
    """In the parameters and in x: against a central difference of the score."""
    density, h = build(name), 1e-5
    x = X[:3].clone().requires_grad_()
    score = density.score(x, 0.01, create_graph=True)
    direction = torch.randn(3, D, dtype=F64, generator=seeded(3))
    (hvp,) = torch.autograd.grad((score * direction).sum(), x, retain_graph=True)
    slope = (density.score(X[:3] + h * direction, 0.01) - density.score(X[:3] - h * direction, 0.01)) / (2 * h)
    assert (hvp - slope).abs().max() < 1e-4 * (1.0 + slope.abs().max())
    gradients = torch.autograd.grad(score.square().sum(), list(density.parameters()), allow_unused=True)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: zuko.flows.SOSPF(2, WIDTH, transforms=1, hidden_features=(8,)),
        lambda: zuko.flows.UNAF(2, WIDTH, transforms=1, hidden_features=(8,)),
        lambda: zuko.flows.CNF(2, WIDTH, hidden_features=(8,)),
    ],
    ids=["sospf", "unaf", "cnf"],
)
def test_flows_without_second_derivatives_give_scores_but_refuse_to_keep_the_graph(make):
    """Their second derivatives come out wrong without an error (off by 65 % for SOSPF in zuko 1.6)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        density = ZukoDensity(make(), (2,), VP).double()
    x = X[:, :2]
    assert bool(density.score(x, 0.01).isfinite().all())
    with pytest.raises(UnsupportedError, match=r"^create_graph: got"):
        density.score(x, 0.01, create_graph=True)
    with pytest.raises(UnsupportedError, match=r"^create_graph: got"):
        sliced_score_matching(density, x, 0.01)


# Sampling.


@flows
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_samples_are_reproducible_and_leave_the_global_generator_alone(name, dtype):
    density = build(name, dtype=dtype, data_std=0.5)
    before = torch.get_rng_state()
    first, second, other = (density.sample(6, VP.T, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.dtype == dtype
    assert first.shape == (6, D)
    assert not first.requires_grad
    density.sample(6, VP.T)
    assert not torch.equal(torch.get_rng_state(), before)


@flows
def test_the_given_generator_advances(name):
    density, generator = build(name), seeded(0)
    first, second = density.sample(4, generator=generator), density.sample(4, generator=generator)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["nflows-maf", "nflows-coupling", "nflows-spline"])
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_samples_of_nflows_map_back_to_the_base(name, t):
    density = build(name, data_std=0.5)
    x = density.sample(20_000, t, generator=seeded(0))
    with torch.no_grad():
        times = torch.full((len(x),), t, dtype=F64)
        z, _ = density.flow._transform(density.scaling(x, times)[0], context=density.conditioning(times))
    for column in z.unbind(1):
        assert_law(column, normal_cdf(0.0, 1.0))


@pytest.mark.parametrize("name", ["zuko-maf", "zuko-nsf"])
def test_samples_of_zuko_map_back_to_the_base(name):
    density = build(name, data_std=0.5)
    x = density.sample(20_000, VP.T, generator=seeded(0))
    with torch.no_grad():
        times = torch.full((len(x),), VP.T, dtype=F64)
        z = density.flow(density.conditioning(times)).transform(density.scaling(x, times)[0])
    for column in z.unbind(1):
        assert_law(column, normal_cdf(0.0, 1.0))


def test_a_base_of_nflows_that_depends_on_the_context_draws_from_the_generator():
    base = nflows.distributions.ConditionalDiagonalNormal([D], context_encoder=nn.Linear(WIDTH, 2 * D))
    flow = nflows.flows.Flow(_autoregressive(WIDTH), base)
    density, before = NFlowsDensity(flow, (D,), VP).double(), torch.get_rng_state()
    first, second = (density.sample(5, 0.01, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (5, D)


def test_a_flow_that_only_looks_like_one_of_nflows_samples():
    class Shifted(nn.Module):
        """N(w c_0, 1), with two public methods and nothing else."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=F64))

        def log_prob(self, x, context):
            return torch.distributions.Normal(self.w * context[:, :1], 1.0).log_prob(x).sum(1)

        def sample(self, n, context):
            noise = torch.randn(len(context), n, D, dtype=F64)
            return self.w * context[:, None, :1] + noise

    density = NFlowsDensity(Shifted(), (D,), VP)
    x = density.sample(2_000, 0.01, generator=seeded(1))
    assert torch.equal(x, density.sample(2_000, 0.01, generator=seeded(1)))
    mean = float(density.conditioning(torch.full((1,), 0.01, dtype=F64))[0, 0])
    for column in x.detach().unbind(1):
        assert_law(column, normal_cdf(mean, 1.0))


def test_sampling_ignores_dropout_and_restores_the_training_flags():
    def noisy(context):
        mask = nflows.utils.create_alternating_binary_mask(D, even=True)
        return nflows.transforms.AffineCouplingTransform(
            mask,
            lambda i, o: nflows.nn.nets.ResidualNet(
                i, o, hidden_features=12, context_features=context, dropout_probability=0.9
            ),
        )

    density = NFlowsDensity(nflow(noisy), (D,), VP).train()
    before = torch.get_rng_state()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(0)))
    noise = torch.randn(6, D, generator=seeded(1))
    expected, _ = (
        copy.deepcopy(density.flow).eval()._transform.inverse(noise, context=density.conditioning(torch.zeros(6)))
    )
    assert torch.equal(density.sample(6, generator=seeded(1)), expected)
    assert all(m.training for m in density.modules())
    assert torch.equal(torch.get_rng_state(), before)


@flows
def test_two_part_generation(name):
    density = build(name, dtype=torch.float32, data_std=0.5)
    x = generate(density, 4, sampler=EulerMaruyama(steps=3), t_start=0.02, generator=seeded(0))
    assert x.shape == (4, D)
    assert bool(x.isfinite().all())


@flows
def test_empty_batches(name):
    density, empty = build(name, data_std=0.5), torch.empty(0, D, dtype=F64)
    assert density.log_prob(empty).shape == (0,)
    assert density.score(empty, VP.T).shape == (0, D)
    assert density.sample(0).shape == (0, D)
    assert density.sample(0).dtype == F64


# What is refused, and what is not.


def test_flows_that_cannot_see_the_noise_level_are_refused():
    class Ignores(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(D))

        def log_prob(self, x, context):
            return torch.distributions.Normal(self.mean, 1.0).log_prob(x).sum(1)

        def forward(self, context):
            return torch.distributions.Independent(
                torch.distributions.Normal(self.mean.expand(len(context), D), 1.0), 1
            )

    refused = [
        (lambda: NFlowsDensity(nflow(_autoregressive, None), (D,), VP), "expected a conditional flow of that context"),
        (lambda: NFlowsDensity(nflow(_coupling, None), (D,), VP), "expected a conditional flow of that context"),
        (lambda: NFlowsDensity(nflow(_autoregressive, 5), (D,), VP), "with a context of width 8"),
        (lambda: NFlowsDensity(nflow(_coupling, 8), (D,), VP, context_features=1), "with a context of width 9"),
        (
            lambda: NFlowsDensity(nflow(_autoregressive), (D + 1,), VP),
            r"events of shape \(4,\).*check event_shape; if of",
        ),
        (
            lambda: NFlowsDensity(nflow(_autoregressive), (1, D, 1), VP),
            r"check event_shape \(a flow of vectors takes \(3,\), and x\.flatten\(1\)\); if of",
        ),
        (lambda: NFlowsDensity(Ignores(), (D,), VP), "ignores its context"),
        (lambda: NFlowsDensity(nn.Linear(D, 1), (D,), VP), "expected a conditional flow"),
        (lambda: ZukoDensity(zuko.flows.MAF(D, 0), (D,), VP), "expected a conditional flow of that context"),
        (lambda: ZukoDensity(zuko.flows.MAF(D, 5), (D,), VP), "with a context of width 8"),
        (lambda: ZukoDensity(zuko.flows.NSF(D, 8), (D,), VP, noise_features=7), "with a context of width 7"),
        (lambda: ZukoDensity(zuko.flows.GMM(D + 1, 8), (D,), VP), r"events of shape \(3,\)"),
        (lambda: ZukoDensity(Ignores(), (D,), VP), "ignores its context"),
    ]
    for make, message in refused:
        with pytest.raises(ArgumentError, match=message):
            make()


def test_a_flow_that_sums_over_the_batch_or_is_no_module_is_refused():
    class Summed(nn.Module):
        def log_prob(self, x, context):
            return (x.sum(1) * context.sum(1)).sum()

    with pytest.raises(ArgumentError, match=r"log_prob of shape \(\) for 4 examples; expected \(4,\)"):
        NFlowsDensity(Summed(), (D,), VP)
    with pytest.raises(ArgumentTypeError, match=r"^flow: got"):
        ZukoDensity(lambda context: None, (D,), VP)


def test_a_flow_that_starts_at_the_identity_is_not_refused():
    """Its log_prob does not depend on the context yet; the probe looks at a perturbed copy."""
    flow = nflow(_autoregressive)
    with torch.no_grad():
        for p in flow.parameters():
            p.zero_()
    contexts = torch.randn(2, 7, WIDTH, generator=seeded(0))
    assert torch.equal(*(flow.log_prob(X.float(), context=c) for c in contexts))
    assert NFlowsDensity(flow, (D,), VP).log_prob(X.float(), 0.0).shape == (7,)
    identity = zuko.flows.MAF(D, WIDTH, transforms=1)
    with torch.no_grad():
        for p in identity.parameters():
            p.zero_()
    assert ZukoDensity(identity, (D,), VP).log_prob(X.float(), 0.0).shape == (7,)


@pytest.mark.parametrize("make", [lambda: nflow(_spline), lambda: zuko.flows.NSF(D, WIDTH)], ids=["nflows", "zuko"])
def test_the_probe_changes_neither_the_flow_nor_any_generator(make):
    with torch.random.fork_rng(devices=[]):
        flow = make().train()
        before, rng = copy.deepcopy(flow.state_dict()), torch.get_rng_state()
        density = (NFlowsDensity if isinstance(flow, nflows.flows.Flow) else ZukoDensity)(flow, (D,), VP)
        assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in density.flow.state_dict().items())
    assert density.flow is flow
    assert all(m.training for m in flow.modules())
    assert all(p.grad is None for p in flow.parameters())


def test_actnorm_is_not_initialised_by_the_probe():
    def with_actnorm(context):
        return nflows.transforms.CompositeTransform([nflows.transforms.ActNorm(D), _autoregressive(context)])

    flow = nflow(with_actnorm)
    NFlowsDensity(flow, (D,), VP)
    assert not bool(flow._transform._transforms[0].initialized)


# Plain functions.


def _log_p(x, t):
    return -0.5 * ((x / (1.0 + t[:, None])).square() + math.log(2.0 * math.pi)).sum(1) - D * torch.log1p(t)


def test_a_function_becomes_a_density():
    density = CallableDensity(_log_p, (D,), VP)
    assert torch.equal(density.log_prob(X, T), _log_p(X, T))
    assert (density.score(X, T) + X / (1.0 + T[:, None]) ** 2).abs().max() < 1e-13
    assert list(density.parameters()) == []


def test_a_function_with_samples_generates():
    def draw(n, t, context, generator):
        return (1.0 + t[:, None]) * torch.randn(n, D, dtype=F64, generator=generator)

    density = CallableDensity(_log_p, (D,), VP, sample=draw)
    assert torch.equal(density.sample(4, 0.02, generator=seeded(1)), draw(4, torch.full((4,), 0.02), None, seeded(1)))
    assert generate(density, 3, sampler=EulerMaruyama(2), generator=seeded(1)).shape == (3, D)
    with pytest.raises(ArgumentError, match=r"^sample: got"):
        CallableDensity(_log_p, (D,), VP, sample=lambda n, t, c, g: torch.zeros(1)).sample(2)
    with pytest.raises(ArgumentTypeError, match=r"^sample: got"):
        CallableDensity(_log_p, (D,), VP, sample=3)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (lambda x: x.sum(1), r"function of \(x\)"),
        (lambda x, *, t: x.sum(1), r"function of \(x, \*, t\)"),
        (nn.Linear(D, 1), r"Linear of \(input\)"),
    ],
)
def test_a_function_of_other_arguments_is_refused_when_it_is_given(module, what):
    expected = r"expected a callable of \(x, t\) or \(x, t, context\); wrap it: lambda x, t: \.\.\.$"
    with pytest.raises(ArgumentTypeError, match=rf"^module: got a {what}, which .* with \(x, t\); {expected}"):
        CallableDensity(module, (D,))
    with pytest.raises(ArgumentTypeError, match=r"^score: got a function of \(x\), which"):
        CallableDensity(_log_p, (D,), score=lambda x: x)


def test_functions_whose_arguments_are_not_known_are_taken():
    """Builtins, decorated functions, arguments of any number."""

    @functools.wraps(torch.sum)
    def wrapped(x, t):
        return x.sum(1)

    x = torch.randn(3, D)
    for module in (wrapped, torch.vmap(lambda x, t: x.sum()), lambda *given: given[0].sum(1)):
        assert torch.equal(CallableDensity(module, (D,)).log_prob(x, 0.5), x.sum(1))
    assert CallableDensity(torch.add, (D,)).event_shape == (D,)
    assert CallableDensity(lambda x, t: x.sum(1), (D,), sample=functools.partial(torch.zeros)).event_shape == (D,)
    context = CallableDensity(lambda x, t, context: x.sum(1) + context, (D,))
    assert torch.equal(context.log_prob(x, 0.5, torch.ones(3)), x.sum(1) + 1.0)


def test_a_function_without_samples_says_how_to_give_them():
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match=r"cannot sample; expected one built with .*sample=\.\.\."):
        generate(CallableDensity(_log_p, (D,), VP), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_function_that_is_flat_in_x_is_refused_where_x_is_noisy(share):
    """Real numbers with Gaussian noise have a density that varies; at t = 0 it may be flat."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return self.level.expand(len(x))

    density, objective, x = CallableDensity(Flat(), (D,), VP), NCMLObjective(VP), torch.zeros(2, D)
    assert objective(density, x, t=0.0).isfinite()
    with pytest.raises(ArgumentError, match=r"^module: got log-densities that do not depend on x .*LevelNoise"):
        objective(density, x, t=share * VP.T)


def test_functions_of_lattice_data_are_a_lattice_density():
    """The methods of a known lattice density, wrapped, are that density again, and conform."""
    exact = ToyLattice(VP, torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=F64))
    density = CallableDensity(
        exact.forward,
        (1,),
        VP,
        sample=lambda n, t, context, generator: exact.sample(n, t, generator=generator),
        lattice=exact.lattice,
        density=lambda x, t: exact(x, t, edges=False),
    )
    points = exact.lattice.points(dtype=F64)[:, None]
    assert torch.equal(density.log_prob(points, 0.0), exact.log_prob(points, 0.0))
    assert torch.equal(density.log_density(points + 0.9, 0.0), exact.log_density(points + 0.9, 0.0))
    assert torch.equal(density.score(points, VP.T), exact.score(points, VP.T))
    assert exact.lattice.on_lattice(generate(density, 5, generator=seeded(0))).all()
    assert {"samples_follow_the_density", "masses_sum_to_one"} <= set(check_density(density, samples=500).passed)
    with pytest.raises(ArgumentError, match=r"^density: got"):
        CallableDensity(exact.forward, (1,), VP, lattice=exact.lattice)


def test_a_module_brings_its_parameters_and_gets_the_context_where_there_is_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(D, dtype=F64))

        def forward(self, x, t, context=None):
            shift = 0.0 if context is None else context
            return _log_p(x - self.mean - shift, t)

    density, context = CallableDensity(Net(), (D,), VP), torch.ones(7, D, dtype=F64)
    assert [name for name, _ in density.named_parameters()] == ["module.mean"]
    assert torch.equal(density.log_prob(X, T, context), _log_p(X - 1.0, T))
    NCMLObjective(VP)(density, X, generator=seeded(0)).backward()
    assert density.module.mean.grad.abs().sum() > 0.0


def test_the_process_of_a_callable_density_is_checked_also_when_its_module_has_another():
    density = CallableDensity(_log_p, (D,), VP)
    with pytest.raises(ArgumentError, match=r"^process: got"):
        NCMLObjective(VESDE())(density, X)
    inner = GaussianDensity(VP, torch.zeros(D, dtype=F64), 1.0)
    outer = CallableDensity(inner, (D,), VESDE.at_noise(0.1))
    with pytest.raises(ArgumentError, match=r"^process: got"):
        NCMLObjective(VP)(outer, X)


# Wrappers.


@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        lambda d: torch.compile(d, backend="eager"),
        lambda d: Wrapper(torch.compile(d, backend="eager")),
        lambda d: torch.compile(Wrapper(d), backend="eager"),
    ],
    ids=["ddp", "compiled", "ddp-of-compiled", "compiled-ddp"],
)
def test_a_wrapped_density_has_the_same_loss_and_gradient_and_its_process_is_still_checked(wrap):
    density = build("zuko-gmm")
    wrapped = wrap(density)
    objective, results = NCMLObjective(VP), []
    for d in (density, wrapped):
        loss = objective(d, X, generator=seeded(0))
        results.append((loss.detach(), torch.autograd.grad(loss, list(density.parameters()))))
    (plain, plain_grads), (loss, grads) = results
    assert abs(float(loss - plain)) < 1e-12
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(grads, plain_grads, strict=True))
    with pytest.raises(ArgumentError, match=r"^process: got"):
        NCMLObjective(VESDE())(wrapped, X)
    with pytest.raises(ArgumentError, match=r"^x: got"):
        objective(wrapped, X[:, :2])


def test_another_process_is_refused_by_samplers_and_generate():
    density, other = build("zuko-gmm"), VPSDE.at_noise(0.4)
    with pytest.raises(ArgumentError, match=r"^process: got"):
        EulerMaruyama(steps=2)(density, X, process=other)
    with pytest.raises(ArgumentError, match=r"^process: got"):
        generate(density, 3, process=other)
