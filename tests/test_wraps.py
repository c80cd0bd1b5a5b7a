"""Flows of other libraries under a short wrap: a density, trainable, with samples and a score."""

from __future__ import annotations

import nflows.distributions
import nflows.flows
import nflows.transforms as nft
import normflows
import pytest
import torch
import zuko
from nflows.nn.nets import ResidualNet
from torch import nn

from ncml import VPSDE, NCMLObjective
from ncml.densities import CallableDensity, NFlowsDensity, ZukoDensity
from tests.problems import seeded

D, WIDTH = 2, 8
PROCESS = VPSDE.at_noise(0.5)
X = 0.3 * torch.randn(8, D, generator=seeded(0))
T = torch.linspace(0.0, 0.9 * PROCESS.T, 8)
MASK = torch.tensor([1, 0])


def net(inputs, outputs):
    return ResidualNet(inputs, outputs, hidden_features=6, context_features=WIDTH, num_blocks=1)


def couplings():
    tails = {"tails": "linear", "tail_bound": 3.0}
    yield "additive", nft.AdditiveCouplingTransform(MASK, net)
    yield "affine", nft.AffineCouplingTransform(MASK, net)
    for name in ("Linear", "Quadratic", "Cubic", "RationalQuadratic"):
        yield name, getattr(nft, f"Piecewise{name}CouplingTransform")(MASK, net, num_bins=4, **tails)


def autoregressive():
    tails = {"num_bins": 4, "tails": "linear", "tail_bound": 3.0}
    sizes = {"features": D, "hidden_features": 6, "context_features": WIDTH, "num_blocks": 1}
    yield "affine autoregressive", nft.MaskedAffineAutoregressiveTransform(**sizes)
    for name in ("Quadratic", "RationalQuadratic"):
        yield f"{name} autoregressive", getattr(nft, f"MaskedPiecewise{name}AutoregressiveTransform")(**sizes, **tails)
    for name in ("Linear", "Cubic"):  # of the unit square only
        bounded = getattr(nft, f"MaskedPiecewise{name}AutoregressiveTransform")(num_bins=4, **sizes)
        yield f"{name} autoregressive", nft.CompositeTransform([nft.Sigmoid(), bounded, nft.Logit()])


def without_context():
    """Before a layer that takes one."""
    tails = {"num_bins": 4, "tails": "linear", "tail_bound": 3.0}
    yield "ActNorm", nft.ActNorm(D)
    yield "BatchNorm", nft.BatchNorm(D).eval()
    yield "Householder", nft.HouseholderSequence(D, 2)
    yield "LU", nft.LULinear(D)
    yield "QR", nft.QRLinear(D, 2)
    yield "SVD", nft.SVDLinear(D, 2)
    yield "affine of no features", nft.PointwiseAffineTransform(0.1, 2.0)
    yield "identity", nft.IdentityTransform()
    yield "inverse", nft.InverseTransform(nft.LULinear(D))
    yield "leaky", nft.LeakyReLU(0.1)
    yield "log tanh", nft.LogTanh()
    yield "sigmoid and logit", nft.CompositeTransform([nft.Sigmoid(), nft.Logit()])
    yield "squashed", nft.CompositeTransform([nft.CompositeCDFTransform(nft.Sigmoid(), nft.PiecewiseLinearCDF([D]))])
    yield "permutation", nft.Permutation(torch.tensor([1, 0]))
    yield "random permutation", nft.RandomPermutation(D)
    yield "reversed", nft.ReversePermutation(D)
    for name in ("Quadratic", "Cubic", "RationalQuadratic"):
        yield f"{name} CDF", getattr(nft, f"Piecewise{name}CDF")([D], **tails)


def nflows_density(transform, conditional=True):
    parts = [transform] if conditional else [transform, nft.AffineCouplingTransform(MASK, net)]
    flow = nflows.flows.Flow(nft.CompositeTransform(parts), nflows.distributions.StandardNormal([D]))
    return NFlowsDensity(flow, (D,), PROCESS)


ZUKO = {
    "MAF": {"hidden_features": (6,)},
    "NSF": {"hidden_features": (6,), "bins": 4},
    "NCSF": {"hidden_features": (6,), "bins": 4},
    "NICE": {"hidden_features": (6,)},
    "RealNVP": {"hidden_features": (6,)},
    "SOSPF": {"hidden_features": (6,)},
    "NAF": {"hidden_features": (6,)},
    "UNAF": {"hidden_features": (6,)},
    "CNF": {"hidden_features": (6,)},
    "GF": {"hidden_features": (6,)},
    "BPF": {"hidden_features": (6,)},
    "GMM": {"hidden_features": (6,), "components": 2},
}


def features(module, log_p, sample):
    """A function of x and noise features as a density."""
    return CallableDensity(log_p, (D,), PROCESS, features=WIDTH, modules=[module], sample=sample)


def normflows_density(layer):
    base = normflows.distributions.DiagGaussian(D, trainable=False)
    flow = normflows.ConditionalNormalizingFlow(base, [layer])
    return features(flow, lambda x, c: flow.log_prob(x, c), lambda n, c, g: flow.sample(n, c)[0])


class Mixture(nn.Module):
    """A mixture density network made of torch's distributions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(WIDTH, 3 * (1 + 2 * D))

    def distribution(self, c):
        logits, mean, log_std = self.net(c).split([3, 3 * D, 3 * D], dim=1)
        normal = torch.distributions.Normal(mean.view(-1, 3, D), log_std.view(-1, 3, D).exp())
        parts = torch.distributions.Independent(normal, 1)
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), parts)


def mixture():
    model = Mixture()
    return features(
        model, lambda x, c: model.distribution(c).log_prob(x), lambda n, c, g: model.distribution(c).sample()
    )


class ClassConditional(nn.Module):
    """normflows' flow for classes, whose base takes a label beside x."""

    def __init__(self):
        super().__init__()
        base = normflows.distributions.ClassCondDiagGaussian(D, 4)
        layers = [normflows.flows.AffineCouplingBlock(normflows.nets.MLP([1, 6, 2])), normflows.flows.Permute(D)]
        self.flow = normflows.ClassCondFlow(base, layers)

    def level(self, t):
        return (3.0 * t / PROCESS.T).round().long()  # four classes of noise

    def forward(self, x, t):
        return self.flow.log_prob(x, self.level(t))


def class_conditional():
    model = ClassConditional()
    return CallableDensity(model, (D,), PROCESS, sample=lambda n, t, c, g: model.flow.sample(n, model.level(t))[0])


BUILDS = {
    **{f"nflows {n}": lambda t=t: nflows_density(t) for n, t in (*couplings(), *autoregressive())},
    **{f"nflows {n}": lambda t=t: nflows_density(t, conditional=False) for n, t in without_context()},
    **{
        f"zuko {n}": lambda n=n, s=s: ZukoDensity(getattr(zuko.flows, n)(D, WIDTH, **s), (D,), PROCESS)
        for n, s in ZUKO.items()
    },
    "normflows autoregressive spline": lambda: normflows_density(
        normflows.flows.AutoregressiveRationalQuadraticSpline(D, 1, 6, num_context_channels=WIDTH)
    ),
    "normflows coupled spline": lambda: normflows_density(
        normflows.flows.CoupledRationalQuadraticSpline(D, 1, 6, num_context_channels=WIDTH)
    ),
    "normflows masked affine": lambda: normflows_density(
        normflows.flows.MaskedAffineAutoregressive(D, 6, context_features=WIDTH)
    ),
    "normflows classes": class_conditional,
    "mixture density network": mixture,
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_short_wrap_trains_scores_and_samples(name):
    """The score against central differences of the log-density, in float64; all parameters get finite gradients."""
    torch.manual_seed(0)
    density = BUILDS[name]()
    loss = NCMLObjective(PROCESS)(density, X, generator=seeded(1))
    loss.backward()
    gradients = [p.grad for p in density.parameters() if p.grad is not None]
    assert loss.isfinite()
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    samples = density.sample(5, PROCESS.T, generator=seeded(2))
    assert samples.shape == (5, D)
    assert torch.equal(samples, density.sample(5, PROCESS.T, generator=seeded(2)))
    density = density.double()
    x, t, step = X.double(), T.double(), 1e-5 * torch.eye(D, dtype=torch.float64)
    slopes = [(density.log_prob(x + h, t) - density.log_prob(x - h, t)) / 2e-5 for h in step]
    near = 0.05 if "CNF" in name else 1e-4  # whose differences are those of an adaptive solver's steps
    torch.testing.assert_close(density.score(x, t), torch.stack(slopes, 1).detach(), rtol=near, atol=near)
