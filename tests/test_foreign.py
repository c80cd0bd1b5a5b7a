"""Strangers' models: what is found in a function, what is refused and how, and samplers that know no generator."""

from __future__ import annotations

import copy
import functools
import math
import unittest

import nflows.flows
import nflows.transforms
import numpy as np
import pytest
import scipy.stats
import torch
import zuko
from nflows.distributions import StandardNormal
from nflows.nn.nets import ConvResidualNet, ResidualNet
from torch import nn

from ncml import (
    VPSDE,
    AutoregressiveDensity,
    Lattice,
    LevelNoise,
    NCMLObjective,
    NoiseProcess,
    SampleableDensity,
    generate,
)
from ncml.densities import MADE, MAF, CallableDensity, GaussianDensity, NFlowsDensity, ZukoDensity
from ncml.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    FailedRowsWarning,
    NCMLError,
    NonFiniteError,
    UnsupportedError,
)
from ncml.evaluation import ood_statistics
from ncml.nn import Conditioning, NoiseFeatures
from ncml.objective import AtZero
from ncml.sampling import EulerMaruyama, MetropolisLangevin
from ncml.score import log_density_and_score
from ncml.testing import check_density, density_checks
from ncml.training import fit, load_into, save_density
from tests.problems import same_bits, seeded
from tests.statistics import assert_law, normal_cdf

F64 = torch.float64
D = 2
VP = VPSDE.at_noise(0.5)
X = torch.randn(6, D, generator=seeded(0))
T = torch.linspace(0.0, VP.T, 6)


class Net(nn.Module):
    """N(mean(c), scale) in each coordinate."""

    def __init__(self, width=8):
        super().__init__()
        self.moments = nn.Linear(width, 2 * D)

    def normal(self, c):
        mean, log_std = self.moments(c).chunk(2, dim=1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    def log_p(self, x, c):
        return self.normal(c).log_prob(x)

    def forward(self, x, c):
        return self.log_p(x, c)


def draws(net):
    """A sampler that knows of no generator, as those of other libraries."""
    return lambda n, c, generator: net.normal(c).sample()


def wrapped(function, process=VP, **settings):
    return CallableDensity(function, (D,), process, features=8, **settings)


GLOBAL, OTHER = Net(), Net()


# Features in place of t.


@pytest.mark.parametrize("kind", ["none", "context", "labels"])
def test_features_are_those_of_the_conditioning(kind):
    settings = {"none": {}, "context": {"context_features": 3}, "labels": {"classes": 4}}[kind]
    context = {"none": None, "context": torch.randn(6, 3, generator=seeded(1)), "labels": torch.arange(6) % 4}[kind]
    net = Net(width={"none": 8, "context": 11, "labels": 16}[kind])
    density = wrapped(net, sample=draws(net), **settings)
    c = density.conditioning(T, context)
    assert torch.equal(c[:, :8], NoiseFeatures(VP, 8)(T))
    assert torch.equal(density.log_prob(X, T, context), net.log_p(X, c))
    assert density.sample(6, T, context).shape == (6, D)
    if context is not None:
        changed = density.log_prob(X, T, (context + 1) % 4 if kind == "labels" else -context)
        assert not torch.equal(changed, density.log_prob(X, T, context))
        with pytest.raises(ArgumentError, match=r"^context: got none"):
            density.log_prob(X, T)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_samplers_without_a_generator_draw_from_ours_in_the_dtype_of_the_density(dtype):
    net = Net().to(dtype)

    def draw(n, c, generator):
        assert torch.get_default_dtype() == dtype
        return net.normal(c).mean + torch.randn(n, D)  # the default generator, the default dtype

    density, state = wrapped(net, sample=draw), torch.get_rng_state()
    generator = seeded(1)
    first, second = (density.sample(2000, VP.T, generator=generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert first.dtype == dtype
    assert not torch.equal(first, second)
    assert torch.equal(first, density.sample(2000, VP.T, generator=seeded(1)))
    mean = net.normal(density.conditioning(torch.full((1,), VP.T, dtype=dtype))).mean.detach()
    for column in (first - mean).unbind(1):
        assert_law(column, normal_cdf(0.0, 1.0))
    runs = [generate(density, 4, sampler=EulerMaruyama(2), generator=seeded(2)) for _ in range(2)]
    assert torch.equal(*runs)


# Modules.


class Plain:
    """No module, but holds one."""

    def __init__(self, net):
        self.net = net

    def log_p(self, x, c):
        return self.net.log_p(x, c)


class Called(Plain):
    def __call__(self, x, c):
        return self.net.log_p(x, c)


def closure(net):
    def inner(x, c):
        return net.log_p(x, c)

    return lambda x, c: inner(x, c)


def last(x, c, net):
    return net.log_p(x, c)


HOLDERS = {  # and whether a copy holds a copy of the module
    "module": (lambda net: net, True),
    "method": (lambda net: net.log_p, True),
    "method of an object": (lambda net: Plain(net).log_p, True),
    "object": (Called, True),
    "partial": (lambda net: functools.partial(last, net=net), True),
    "closure": (closure, False),
    "default": (lambda net: lambda x, c, held=(net,): held[0].log_p(x, c), False),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_modules_are_found_where_functions_hold_them(name):
    make, copied = HOLDERS[name]
    net = Net()
    density = wrapped(make(net))
    assert [p.data_ptr() for p in density.parameters()] == [p.data_ptr() for p in net.parameters()]
    assert len(density.state_dict()) == 2
    NCMLObjective(VP)(density, X, generator=seeded(0)).backward()
    assert net.moments.weight.grad.abs().sum() > 0
    if not copied:
        with pytest.raises(UnsupportedError, match=r"^copy: got"):
            copy.deepcopy(density)
        return
    twin = copy.deepcopy(density)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert not torch.equal(twin.log_prob(X, T), density.log_prob(X, T))  # the copy's function uses the copy


def test_a_global_module_is_found_and_of_several_the_caller_says_which():
    assert len(list(wrapped(lambda x, c: GLOBAL.log_p(x, c)).parameters())) == 2
    both = lambda x, c: GLOBAL.log_p(x, c) + OTHER.log_p(x, c)  # noqa: E731
    with pytest.raises(ArgumentError, match=r"^modules: got .*GLOBAL, OTHER"):
        wrapped(both)
    density = wrapped(both, modules=[GLOBAL, OTHER])
    assert len(list(density.parameters())) == 4
    NCMLObjective(VP)(density, X)
    with pytest.raises(ArgumentTypeError, match=r"^modules: got a int"):
        wrapped(both, modules=[3])


@pytest.mark.parametrize("use", [lambda d: NCMLObjective(VP)(d, X), lambda d: d.score(X, 0.01)], ids=["train", "score"])
def test_parameters_that_were_not_found_are_refused(use):
    hidden = {"net": [Plain(Net())]}  # deeper than anything is looked through
    with pytest.raises(ArgumentError, match=r"^modules: got a function of 2 trainable tensors"):
        use(wrapped(lambda x, c: hidden["net"][0].log_p(x, c)))
    net, missing = Net(), Net()
    with pytest.raises(ArgumentError, match=r"^modules: got"):
        use(wrapped(lambda x, c: net.log_p(x, c) + missing.log_p(x, c), modules=[net]))
    hidden["net"][0].net.requires_grad_(False)
    use(wrapped(lambda x, c: hidden["net"][0].log_p(x, c) + net.log_p(x, c), modules=[net]))  # nothing to train


def test_what_made_the_context_is_not_the_functions():
    encoder, net = nn.Linear(1, 3), Net(11)
    density = wrapped(net.log_p, context_features=3)
    context = encoder(torch.ones(6, 1))
    NCMLObjective(VP)(density, X, context).backward()
    assert encoder.weight.grad is not None


# Masses, missing gradients, and scores of one's own.


class Categories(nn.Module):
    """A mass of levels, as a network over tokens gives it."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Embedding(8, 4)

    def forward(self, x, t):
        level = x.clamp(0, 3).long()
        return self.logits((10 * t).long().clamp(max=7)).log_softmax(1).gather(1, level).sum(1)


def test_a_mass_under_gaussian_noise_is_refused():
    density = CallableDensity(Categories(), (D,), VP)
    NCMLObjective(VP, AtZero())(density, X)  # where nothing is known yet: a density may be flat there
    with pytest.raises(ArgumentError, match=r"^module: got log-densities that do not depend on x .*LevelNoise"):
        NCMLObjective(VP)(density, X, t=VP.T)
    with pytest.raises(UnsupportedError, match=r"^score: got .*lattice"):
        density.score(X, 0.0)
    levels = LevelNoise(4)
    exact = CallableDensity(Categories(), (D,), levels, lattice=Lattice(4), density=Categories())
    assert NCMLObjective(levels)(exact, Lattice(4).to_unit(torch.ones(5, D, dtype=torch.long))).isfinite()


def test_a_density_that_is_flat_is_none_of_these():
    box = CallableDensity(lambda x, t: torch.where(x.abs() <= 1.0, -math.log(2.0), 0.0 * x).sum(1), (D,), VP)
    assert torch.equal(box.score(X.clamp(-0.9, 0.9), 0.0), torch.zeros(6, D))


def student(score=True):
    def scale(t):
        return (0.25 + VP.sigma(t).square()).sqrt()[:, None]

    return CallableDensity(
        lambda x, t: torch.as_tensor(scipy.stats.t(4, scale=scale(t)).logpdf(x).sum(1)).to(x),
        (1,),
        VP,
        score=(lambda x, t: -5 * x / (4 * scale(t) ** 2 + x**2)) if score else None,
        sample=lambda n, t, c, g: torch.distributions.StudentT(4.0, scale=scale(t)).sample(),
    )


def test_a_score_stands_in_for_what_autograd_cannot_follow():
    density, x = student(), X[:, :1].double()
    score = density.score(x, 0.01)
    step = 1e-5
    slope = (density.log_density(x + step, 0.01) - density.log_density(x - step, 0.01)) / (2 * step)
    assert (score[:, 0] - slope).abs().max() < 1e-8
    assert torch.equal(log_density_and_score(density, x, 0.01)[1], score)
    assert MetropolisLangevin(4)(density, x.float(), 0.01, 0.01, generator=seeded(0)).shape == (6, 1)
    assert density.under(VPSDE.at_noise(0.4)).score(x, 0.01).shape == x.shape
    with pytest.raises(UnsupportedError, match=r"^create_graph: got"):
        density.score(x, 0.01, create_graph=True)
    with pytest.raises(ArgumentError, match=r"^score: got shape \(6,\)"):
        CallableDensity(lambda x, t: x.sum(1), (D,), score=lambda x, t: x[:, 0]).score(X)
    assert student(score=False).log_prob(x).shape == (6,)
    for lost in (student(score=False), CallableDensity(lambda x, t: x.detach().sum(1), (1,))):
        with pytest.raises(UnsupportedError, match=r"^score: got .*score="):
            lost.score(x)


def test_a_score_of_ones_own_does_not_stop_training():
    net = Net()
    density = wrapped(net.log_p, score=lambda x, c: (net.normal(c).mean - x) / net.normal(c).stddev ** 2)
    NCMLObjective(VP)(density, X).backward()
    assert net.moments.weight.grad.abs().sum() > 0


def outcome(density, *names, **options):
    """Why each of some checks of the kit does not apply, "" where it passes; failures are raised."""
    found = dict.fromkeys(names, "not there")
    for check in density_checks(samples=300, times=(0.0, VP.T), **options):
        if check.id in names:
            try:
                check(density)
                found[check.id] = ""
            except unittest.SkipTest as reason:
                found[check.id] = str(reason)
    return found


def test_the_checks_say_what_does_not_apply():
    by_value, by_autograd = ("score_is_the_gradient", "stein_identities_hold"), ("score_matches_autograd",)
    rest = ("arguments_are_left_alone", "gradient_modes_are_ignored", "rows_are_treated_alone", "hooks_see_every_call")
    every = (*by_value, *by_autograd, "rows_do_not_interact", *rest)
    lost = "autograd cannot differentiate it"
    scored, plain = (outcome(student(score), *every) for score in (True, False))
    assert scored == dict.fromkeys(every, "") | dict.fromkeys((*by_autograd, "rows_do_not_interact"), lost)
    assert plain == scored | dict.fromkeys(by_value, "no score")


# What a model may return, and be.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CallableDensity(Net, (D,)), r"^module: got the class Net; .*an instance"),
        (lambda: CallableDensity(lambda x, t: (x.sum(1), x), (D,)).log_prob(X), r"^module: got a tuple"),
        (lambda: NCMLObjective(VP)(CallableDensity(lambda x, t: (x.sum(1), x), (D,)), X), r"^module: got a tuple"),
        (lambda: CallableDensity(lambda x, t: x, (D,)).log_prob(X), r"^module: got shape \(6, 2\)"),
        (lambda: wrapped(Net(), None), r"^process: got None with features"),
        (lambda: CallableDensity(Net(), (D,), VP, classes=3), r"^context_features, classes: got one without"),
        (lambda: wrapped(Net(), sample=lambda n, c, g: (c, c)).sample(3), r"^sample: got tuple"),
        (lambda: CallableDensity(Net(), (D,), VP, score=4), r"^score: got int"),
        (lambda: ZukoDensity(zuko.flows.MAF, (D,), VP), r"^flow: got the class MAF"),
        (lambda: NCMLObjective(VPSDE), r"^process: got the class VPSDE; .*VPSDE.at_noise"),
        (lambda: NCMLObjective(VP)(nn.Linear(2, 1), X), r"^density: got a Linear.*CallableDensity"),
        (lambda: NCMLObjective(VP)(Net(), X), r"^density: got a Net.*CallableDensity"),
        (lambda: NCMLObjective(VP)(MADE, X), r"^density: got the class MADE; expected an instance"),
        (lambda: NCMLObjective(VP)(lambda x, t: x, X), r"^density: got function.*CallableDensity"),
        (lambda: fit(MADE, NCMLObjective(VP), X), r"^density: got the class MADE"),
        (lambda: fit(MAF((D,), VP), NCMLObjective(VP), X.numpy()), r"^x: got ndarray; .*torch.as_tensor"),
        (lambda: MAF((D,), VP).log_prob(X.numpy()), r"^x: got ndarray; .*torch.as_tensor"),
        (lambda: MAF((D,), VP).log_prob(X[0]), r"^x: got shape \(2,\); .*x\[None\]"),
        (lambda: NCMLObjective(VP)(MAF((D,), VP), np.zeros((3, D))), r"^x: got ndarray; .*torch.as_tensor"),
        (lambda: MADE((D,), VP, lattice=256), r"^lattice: got 256; expected a Lattice"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(make, message):
    with pytest.raises(NCMLError, match=message):
        make()


def test_a_compiled_module_has_scores_and_is_checked():
    net = Net()
    density, plain = wrapped(torch.compile(net, backend="eager")), wrapped(net)
    assert torch.allclose(density.score(X, 0.01), plain.score(X, 0.01), atol=1e-5)
    # Compiled ahead of time, a graph has buffers that its backward pass gives away.
    density = wrapped(torch.compile(Net(), backend="aot_eager"))
    assert not any(outcome(density, "rows_do_not_interact", "score_can_be_differentiated").values())


# The public edge of samples, for any density.


class Chain(AutoregressiveDensity):
    """Two normals in train or eval mode, asked by strangers: nothing is checked in it."""

    def __init__(self, process=VP):
        super().__init__((D,), process)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(D))
        self.calls = 0

    @property
    def order(self):
        return torch.arange(D)

    def forward(self, x, t, context=None, *, edges=True):
        self.calls += 1
        return torch.distributions.Normal(0.0, self.drop(self.scale)).log_prob(x).sum(1)

    def draw_noise(self, n, *, generator=None):
        return torch.randn(n, D, generator=generator)

    def resample(self, x, noise, t=0.0, context=None):
        self.calls += 1
        assert t.shape == (len(x),)
        return noise * self.drop(self.scale)

    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        self.calls += 1
        assert t.shape == (n,)
        noise = self.draw_noise(n, generator=generator) if noise is None else noise
        return noise * self.drop(self.scale)


def test_sampling_is_in_eval_mode_without_gradients_whoever_wrote_it():
    density = Chain().train()
    noise = torch.randn(50, D, generator=seeded(0))
    for x in (density.sample(50, noise=noise), density.resample(torch.zeros(50, D), noise)):
        assert torch.equal(x, noise)
        assert not x.requires_grad
    assert density.training
    assert density.drop.training


def test_no_examples_are_answered_without_the_model():
    density, empty = Chain(), torch.empty(0, D)
    assert density.log_prob(empty).shape == density.log_density(empty, VP.T).shape == (0,)
    assert density.score(empty).shape == density.sample(0, VP.T).shape == (0, D)
    assert density.resample(empty, empty).shape == (0, D)
    assert log_density_and_score(density, empty)[1].shape == (0, D)
    assert NCMLObjective(VP, reduction="none")(density, empty).shape == (0,)
    assert generate(density, 0).shape == (0, D)
    assert EulerMaruyama(2)(density, empty).shape == (0, D)
    assert density.calls == 0
    log_p = density.log_prob(empty.requires_grad_())
    assert log_p.requires_grad


class LogSigma(SampleableDensity):
    """N(0, sigma^2) in terms of log sigma, infinite at t = 0."""

    def __init__(self):
        super().__init__((D,), VP)
        self.scale = nn.Parameter(torch.ones(()))

    def std(self, t):
        return (self.scale * self.process.sigma(t).log()).exp().to(torch.float32)[:, None] * (t / t)[:, None]

    def forward(self, x, t, context=None, *, edges=True):
        return (-0.5 * (x / self.std(t)).square() - self.std(t).log()).sum(1)

    def sample(self, n, t=0.0, context=None, *, generator=None):
        return self.std(t) * torch.randn(n, D, generator=generator)


@pytest.mark.parametrize(
    "use",
    [
        lambda d: d.sample(3, 0.0),
        lambda d: d.sample(2, torch.tensor([0.0, VP.T])),
        lambda d: generate(d, 3, t_start=0.0),
        lambda d: d.log_prob(X, T),
        lambda d: d.score(X, T),
        lambda d: NCMLObjective(VP)(d, X, t=T),
    ],
    ids=["sample", "sample-row", "generate", "log_prob", "score", "objective"],
)
def test_what_is_not_finite_at_zero_only_is_said_to_be(use):
    with pytest.raises(NonFiniteError, match=r"all of them have t = 0: .*log\(sigma\)") as caught:
        use(LogSigma())
    assert "learning rate" not in str(caught.value)
    assert LogSigma().sample(3, VP.T, generator=seeded(0)).isfinite().all()


def test_other_failures_do_not_speak_of_zero():
    broken = CallableDensity(
        lambda x, t: x.sum(1) / 0.0 * 0.0, (D,), VP, sample=lambda n, t, c, g: t[:, None] / 0 * X[:n]
    )
    for use in (lambda: broken.log_prob(X, T), lambda: broken.sample(6, VP.T)):
        with pytest.raises(NonFiniteError) as caught:
            use()
        assert "log(sigma)" not in str(caught.value)
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        NCMLObjective(VP)(broken, X, t=T)


class Masked(NoiseProcess):
    """Sets values to a mask symbol, level 4 of 5, with probability t."""

    T = 1.0
    lattice = Lattice(5)

    def perturb(self, x, t, *, noise=None, generator=None):
        u = torch.rand(x.shape, generator=generator)
        return torch.where(u < torch.as_tensor(t).reshape(-1, 1), 1.0, x)

    def draw_noise(self, x, *, generator=None):
        return torch.rand(x.shape, generator=generator)

    def on_lattice(self, t):
        return torch.ones_like(torch.as_tensor(t), dtype=torch.bool)

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return 0


class Unmasked(Masked):
    """As if the lattice were that of the data, without the symbol."""

    lattice = Lattice(4)

    def perturb(self, x, t, *, noise=None, generator=None):
        return torch.where(super().perturb(x, t, generator=generator) == 1.0, 5.0 / 3.0, x)


def test_noisy_data_are_checked_as_data_are():
    x = torch.full((8, D), -1.0)
    for process, fits in ((Masked(), True), (Unmasked(), False)):
        made = MADE((D,), process, lattice=process.lattice, hidden=(4,), components=1)
        if fits:
            assert NCMLObjective(process)(made, x, t=1.0).isfinite()
            continue
        with pytest.raises(ArgumentError, match=r"^x_t: 16 of 16 values are not one of the 4"):
            NCMLObjective(process)(made, x, t=1.0)


# The adapters.


def coupling(make, dims=D, context=8, embed=lambda net: net):
    mask = torch.arange(dims) % 2
    transform = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
        mask, lambda i, o: embed(make(i, o, context)), num_bins=4, tails="linear", tail_bound=3.0
    )
    return nflows.flows.Flow(transform, StandardNormal([dims]))


def residual(inputs, outputs, context):
    return ResidualNet(inputs, outputs, hidden_features=6, context_features=context, num_blocks=1)


def normed(net):
    for module in net.modules():
        if isinstance(module, nn.Linear):
            with pytest.warns(FutureWarning, match="weight_norm"):
                nn.utils.weight_norm(module)
    net(torch.zeros(1, net.initial_layer.in_features - 8), torch.zeros(1, 8))  # weights that cannot be copied
    return net


def test_weight_normed_networks_are_probed_in_place_and_left_as_they_were():
    flow = coupling(residual, embed=normed).train()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(flow)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    density, rng = NFlowsDensity(flow, (D,), VP), torch.get_rng_state()
    assert all(same_bits(v, before[k]) for k, v in flow.state_dict().items())
    assert all(m.training for m in flow.modules())
    names = ("float64_copy_works", "score_is_the_gradient", "train_mode_is_the_same_function", "hooks_see_every_call")
    assert not any(outcome(density, *names).values())
    assert all(same_bits(v, before[k]) for k, v in flow.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    ignored = coupling(lambda i, o, c: residual(i, o, None), embed=lambda net: net)
    with pytest.raises(ArgumentError, match="expected a conditional flow"):
        NFlowsDensity(ignored, (D,), VP)


@pytest.mark.parametrize("library", ["nflows", "zuko"])
def test_adapters_take_labels_as_made_does(library):
    flow = coupling(residual, context=16) if library == "nflows" else zuko.flows.MAF(D, 16, hidden_features=(6,))
    density = (NFlowsDensity if library == "nflows" else ZukoDensity)(flow, (D,), VP, classes=3)
    labels = torch.tensor([0, 1, 2, -1, 0, 1])
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(3)))
    same = X[:1].expand(4, D)
    assert len(density.log_prob(same, 0.01, labels[:4]).unique()) == 4
    features = Conditioning(VP, 8, classes=3)
    features.load_state_dict(density.conditioning.state_dict())
    assert density.flow_log_prob(flow, X, features(T, labels)).equal(density.log_prob(X, T, labels))
    assert density.sample(6, T, labels).shape == (6, D)
    assert NCMLObjective(VP)(density, X, labels).isfinite()
    with pytest.raises(ArgumentError, match=r"^context: got labels outside"):
        density.log_prob(X, T, labels + 3)


class NoSampler(nn.Module):
    """What normalizing-flows' conditional flows look like to nflows' adapter."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def log_prob(self, x, context):
        return self.net.log_p(x, context)

    def sample(self, n, context):
        return self.net.normal(context).sample(), None


class NoInverse(NoSampler):
    def sample(self, n, context):
        raise nflows.transforms.base.InverseNotAvailable


def test_the_probe_draws_too():
    with pytest.raises(ArgumentError, match=r"^flow: got an error from its sampler .*CallableDensity\(flow.log_prob"):
        NFlowsDensity(NoSampler(), (D,), VP)
    one_way = NFlowsDensity(NoInverse(), (D,), VP)  # a density all the same
    assert one_way.score(X, 0.01).shape == (6, D)
    with pytest.raises(UnsupportedError, match="without an inverse"):
        one_way.sample(2)


@pytest.mark.parametrize("name", ["SimpleRealNVP", "MaskedAutoregressiveFlow"])
def test_flows_of_nflows_that_take_no_context_say_what_to_build(name):
    flow = getattr(nflows.flows, name)(D, 4, num_layers=1, num_blocks_per_layer=1)
    with pytest.raises(ArgumentError, match=rf"A {name} takes no context: build a Flow\(CompositeTransform"):
        NFlowsDensity(flow, (D,), VP)


def test_an_image_flow_is_told_to_spread_its_context():
    def conv(inputs, outputs, context):
        return ConvResidualNet(inputs, outputs, hidden_channels=4, context_channels=context, num_blocks=1)

    flow = coupling(conv)
    flow._distribution = StandardNormal([D, 2, 2])
    with pytest.raises(ArgumentError, match=r"context\[:, :, None, None\].expand"):
        NFlowsDensity(flow, (D, 2, 2), VP)


ZUKO = {
    "SOSPF": lambda: zuko.flows.SOSPF(2, 8, transforms=1, hidden_features=(6,)),
    "UNAF": lambda: zuko.flows.UNAF(2, 8, transforms=1, hidden_features=(6,)),
    "BPF": lambda: zuko.flows.BPF(2, 8, transforms=1, hidden_features=(6,)),
    "NAF": lambda: zuko.flows.NAF(2, 8, transforms=1, hidden_features=(6,)),
    "GF": lambda: zuko.flows.GF(2, 8, transforms=1, hidden_features=(6,)),
}
CONTRACT = (
    "gradient_modes_are_ignored",
    "score_can_be_differentiated",
    "samples_have_shape_and_dtype",
    "empty_batches_work",
)


@pytest.mark.parametrize("name", [*ZUKO, "MADE-MoG"])
def test_other_flows_keep_the_contract(name):
    if name == "MADE-MoG":
        mog = nflows.distributions.MADEMoG(2, 6, 8, num_mixture_components=2)
        identity = nflows.transforms.IdentityTransform()
        density = NFlowsDensity(nflows.flows.Flow(identity, mog), (2,), VP)
    else:
        density = ZukoDensity(ZUKO[name](), (2,), VP)
    reasons = outcome(density, *CONTRACT)
    unsupported = {"score_can_be_differentiated"} if name in ("SOSPF", "UNAF") else set()
    assert {check for check, reason in reasons.items() if reason} == unsupported


# The kit on models that cannot do float64.


class Single(nn.Module):
    """Computes in float32, whatever it is given, as models in the field do."""

    def __init__(self, off=0.0):
        super().__init__()
        self.scale, self.off = nn.Parameter(torch.full((2,), 0.4)), off

    def forward(self, x, t):
        std = (self.scale.float().square() + VP.sigma(t).float()[:, None].square()).sqrt()
        z = x.float() / std
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - std.log().sum(1) + self.off


def single(off=0.0):
    module = Single(off)
    return CallableDensity(
        module,
        (2,),
        VP,
        sample=lambda n, t, c, g: (0.16 + VP.sigma(t).float()[:, None] ** 2).sqrt() * torch.randn(n, 2, generator=g),
    )


def test_models_that_compute_in_float32_are_checked_in_float32():
    integral, single32 = "density_integrates_to_one", {"dtype": torch.float32}
    with pytest.raises(AssertionError, match="float64_copy_works"):
        outcome(single(), "float64_copy_works")
    names = (integral, "score_is_the_gradient", "score_can_be_differentiated", "samples_follow_the_density")
    assert not any(outcome(single(), *names, "rows_are_treated_alone", **single32).values())
    assert outcome(single(), "float64_copy_works", **single32) == {"float64_copy_works": "dtype=torch.float32"}
    with pytest.raises(AssertionError, match=integral):  # 5 % off is seen all the same
        outcome(single(0.05), integral, **single32)
    with pytest.raises(ArgumentError, match=r"^dtype: got"):
        check_density(single(), dtype=torch.float16)


def test_functions_that_cannot_be_copied_are_checked_themselves():
    net = Net()
    density = wrapped(lambda x, c: net.log_p(x, c), sample=draws(net)).train()
    before = copy.deepcopy(net.state_dict())
    kept = ("samples_follow_the_density", "arguments_are_left_alone", "hooks_see_every_call", "float64_copy_works")
    assert not any(outcome(density, *kept, "train_mode_is_the_same_function").values())
    assert all(same_bits(v, before[k]) for k, v in net.state_dict().items())
    assert density.training


# Statistics of rows that overflow, and what is kept.


def test_one_row_that_overflows_costs_the_others_nothing():
    torch.manual_seed(0)
    maf = MAF((D,), VP, transforms=2, hidden=(8,))
    x = torch.cat([X, torch.full((1, D), 1e19), X])
    with pytest.warns(FailedRowsWarning, match=r"1 of 13 examples .*rows 6\)"):
        found = ood_statistics(maf, x)
    clean = ood_statistics(maf, torch.cat([X, X]))
    rest = [i for i in range(13) if i != 6]
    assert all(torch.equal(found[key][rest], clean[key]) for key in clean)
    assert math.isnan(float(found["score_norm"][6]))
    with pytest.warns(FailedRowsWarning, match=r"2 of 2 examples .*; check the parameters, and the input's range"):
        assert bool(ood_statistics(maf, torch.full((2, D), 1e19))["score_norm"].isnan().all())


def test_what_fit_trained_is_saved_and_loaded(tmp_path):
    density, other = (MAF((D,), VP, transforms=1, hidden=(4,)) for _ in range(2))
    fit(density, NCMLObjective(VP), X, steps=2)
    folder = save_density(density, tmp_path / "maf")
    load_into(other, folder)
    assert torch.equal(other.log_prob(X, T), density.log_prob(X, T))
    net = Net()
    save_density(wrapped(net.log_p), tmp_path / "net")
    again = Net()
    load_into(wrapped(again.log_p), str(tmp_path / "net"))
    assert torch.equal(again.moments.weight, net.moments.weight)
    (tmp_path / "file").write_text("")
    for call, kind in (
        (lambda: save_density(density, folder), ArgumentError),
        (lambda: save_density(density, tmp_path / "file" / "below"), CheckpointError),
        (lambda: save_density(CallableDensity(lambda x, t: x.sum(1), (D,)), tmp_path / "none"), ArgumentError),
        (lambda: save_density(Net(), tmp_path / "bare"), ArgumentTypeError),
        (lambda: load_into(density, tmp_path / "nothing"), CheckpointError),
        (lambda: load_into(density, tmp_path / "net"), CheckpointError),
        (lambda: load_into(Net(), folder), ArgumentTypeError),
        (lambda: load_into(GaussianDensity(VP, torch.zeros(D), 1.0), folder), CheckpointError),
    ):
        with pytest.raises(kind):
            call()
