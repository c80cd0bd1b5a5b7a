"""The residual of the Fokker-Planck equation as a part of the objective: closed forms, and gradients by differences."""

from __future__ import annotations

import math

import pytest
import torch
import zuko
from torch import nn

from ncml import VESDE, VPSDE, GaussianProcess, Lattice, LevelNoise, NCMLObjective
from ncml.densities import MADE, MAF, NCPN, CallableDensity, CausalTransformer, TransformerFlow, ZukoDensity
from ncml.errors import ArgumentError, UnsupportedError
from ncml.objective import LadderTimes
from ncml.objective.score_terms import score_terms
from tests.problems import SDES, WHOLE_SDES, each_process, gaussian, mixture, plane_mixture, seeded

F64 = torch.float64
PROCESS = VPSDE.at_noise(0.4)
T = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=F64) * PROCESS.T
Z = 5.2
"""False alarm 2e-7."""

each_kind = pytest.mark.parametrize("process", [SDES["vp"], WHOLE_SDES["vp"], SDES["subvp"], SDES["ve"]])


class Stretched(nn.Module):
    """A normal ladder that solves no equation: c times as wide as the truth, N(0, alpha^2 S + sigma^2 I)."""

    def __init__(self, process, c, S) -> None:
        super().__init__()
        self.process, self.S = process, torch.as_tensor(S, dtype=F64)
        self.log_c = nn.Parameter(torch.tensor(math.log(c), dtype=F64))

    def covariance(self, t):
        noise = torch.eye(len(self.S), dtype=F64)
        return self.process.alpha(t)[:, None, None] ** 2 * self.S + self.process.sigma(t)[:, None, None] ** 2 * noise

    def forward(self, x, t):
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(self.S), dtype=F64), self.covariance(t))
        return normal.log_prob(x * (-self.log_c).exp()) - len(self.S) * self.log_c

    def density(self):
        return CallableDensity(self, event_shape=(len(self.S),), process=self.process)

    def draw(self, t, generator):
        """Of the truth."""
        root = torch.linalg.cholesky(self.covariance(t))
        return (root @ torch.randn(len(t), len(self.S), 1, dtype=F64, generator=generator)).squeeze(2)

    def residual(self, x, t):
        r"""Per unit of log(sigma / alpha): :math:`\sigma^2 (c^2 - 1) (|s|^2 - tr M^{-1})`, M the model's covariance."""
        c2 = float(self.log_c.detach().exp()) ** 2
        inverse = torch.linalg.inv(c2 * self.covariance(t))
        squared = (inverse @ x[:, :, None]).square().sum((1, 2))
        trace = inverse.diagonal(dim1=1, dim2=2).sum(1)
        return self.process.sigma(t) ** 2 * (c2 - 1.0) * (squared - trace)


CORRELATED = [[0.30, 0.20, -0.10], [0.20, 0.25, 0.05], [-0.10, 0.05, 0.20]]
DIAGONAL = [[0.09, 0.0], [0.0, 0.04]]


def term(process, density, x_t, t, generator=None, factor=1.0, graph=False):
    """The term at given noisy points, without the likelihood, beside which small ones would be rounded away."""
    noise = torch.zeros_like(x_t)
    value = score_terms(
        density, process, x_t, t, None, noise, score_matching=0.0, fokker_planck=factor, generator=generator
    )
    return value if graph else value.detach()


def made():
    torch.manual_seed(0)
    density = MADE((2,), PROCESS, hidden=(8, 8), components=2, noise_features=4).double()
    return moved(density)


def moved(density):
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=seeded(1)))
    return density


NETWORKS = {
    "made": (made, (2,)),
    "maf": (lambda: moved(MAF((3,), PROCESS, transforms=2, hidden=(8,)).double()), (3,)),
    "transformer": (
        lambda: moved(CausalTransformer((4, 1), PROCESS, width=8, layers=1, heads=2, components=2).double()),
        (4, 1),
    ),
    "flow": (
        lambda: moved(TransformerFlow((4, 1), PROCESS, patch=1, width=8, blocks=2, layers=1, heads=2).double()),
        (4, 1),
    ),
    "ncpn": (
        lambda: NCPN(
            (1, 4, 4), PROCESS, lattice=Lattice(5), features=8, blocks=1, resolutions=1, heads=2, components=2
        ).double(),
        (1, 4, 4),
    ),
}


def data(name, n=4):
    shape = NETWORKS[name][1]
    if name == "ncpn":
        return Lattice(5).to_unit(torch.randint(0, 5, (n, *shape), generator=seeded(2)), dtype=F64)
    return torch.randn(n, *shape, dtype=F64, generator=seeded(2))


def each_probe(monkeypatch, dims):
    """Run a function with every pair of probes, and average."""

    def mean(function):
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * dims).reshape(-1, dims)
        values = []
        for first in signs:
            for second in signs:
                walk = iter((first, second))
                monkeypatch.setattr(
                    "ncml.objective.score_terms.random_direction",
                    lambda x, probe, generator, walk=walk: next(walk).expand_as(x),
                )
                values.append(function())
        return torch.stack(values).mean(0)

    return mean


@each_process
@pytest.mark.parametrize("build", [gaussian, mixture])
def test_the_truth_has_no_residual(process, build):
    """One value has no correlations, whose estimate would be noisy: the root of the term itself is 0."""
    density = build(process)
    t = torch.linspace(1e-3, 1.0, 12, dtype=F64) * process.T
    x = density.sample(12, t, generator=seeded(0))
    assert float((2.0 * term(process, density, x, t)).sqrt().max()) < 1e-9


@each_process
def test_the_truth_has_no_residual_in_two_dimensions(process, monkeypatch):
    density = plane_mixture(process)
    t = torch.linspace(1e-3, 1.0, 12, dtype=F64) * process.T
    x = density.sample(12, t, generator=seeded(0))
    term_of = each_probe(monkeypatch, 2)(lambda: term(process, density, x, t))
    assert float(term_of.abs().max()) < 1e-12


@each_kind
@pytest.mark.parametrize("c", [0.8, 1.3])
def test_a_term_is_the_residual_by_hand(process, c):
    wrong = Stretched(process, c, DIAGONAL)
    t = torch.linspace(0.05, 1.0, 8, dtype=F64) * process.T
    x = wrong.draw(t, seeded(3))
    expected = 0.5 * 1.7 * wrong.residual(x, t).square()
    got = term(process, wrong.density(), x, t, factor=1.7)
    assert float((got / expected - 1.0).abs().max()) < 1e-8


@each_kind
def test_its_expectation_over_the_truth(process):
    """With V_i the truth's variances: half of (c^2 - 1)^2 (sum_i 2 a_i^2 + (1/c^2 - 1)^2 (sum_i b_i)^2)."""
    c, n = 1.25, 40_000
    wrong = Stretched(process, c, DIAGONAL)
    t = torch.full((n,), 0.6 * process.T, dtype=F64)
    got = term(process, wrong.density(), wrong.draw(t, seeded(4)), t)
    variance = wrong.covariance(t[:1])[0].diagonal()
    # |s|^2 - tr is a sum of (u_i / c^2 - 1) / (c^2 V_i), u_i of one degree of freedom: mean 1, variance 2.
    unit = process.sigma(t[:1]) ** 2 * (c**2 - 1.0) / (c**2 * variance)
    expected = 0.5 * ((2.0 * unit**2 / c**4).sum() + ((1.0 / c**2 - 1.0) * unit.sum()) ** 2)
    assert abs(float(got.mean() - expected)) < Z * float(got.std()) / math.sqrt(n)


@pytest.mark.parametrize("process", [SDES["vp"], SDES["subvp"], SDES["ve"], VPSDE.at_noise(0.7)])
def test_two_probes_estimate_the_square_without_bias(process, monkeypatch):
    wrong = Stretched(process, 1.2, CORRELATED)
    t = torch.linspace(0.2, 1.0, 4, dtype=F64) * process.T
    x = wrong.draw(t, seeded(5))
    mean = each_probe(monkeypatch, 3)(lambda: term(process, wrong.density(), x, t))
    assert torch.allclose(mean, 0.5 * wrong.residual(x, t).square(), rtol=1e-7, atol=1e-12)


def test_probes_are_drawn_from_the_generator_and_one_for_both_would_show():
    process, n = VPSDE.at_noise(0.7), 40_000
    wrong = Stretched(process, 1.2, CORRELATED)
    t = torch.full((n,), 0.5 * process.T, dtype=F64)
    x = wrong.draw(t[:1], seeded(5)).expand(n, -1)
    got = term(process, wrong.density(), x, t, seeded(6))
    expected = 0.5 * float(wrong.residual(x[:1], t[:1])[0]) ** 2
    error = float(got.std()) / math.sqrt(n)
    assert abs(float(got.mean()) - expected) < Z * error
    precision = torch.linalg.inv(1.2**2 * wrong.covariance(t[:1])[0])
    off = precision - precision.diagonal().diag()
    bias = float(process.sigma(t[0])) ** 4 * float(off.square().sum())  # half of the variance of a probe's estimate
    assert bias > 2.0 * Z * error
    again, other = (term(process, wrong.density(), x[:50], t[:50], seeded(s)) for s in (6, 7))
    assert torch.equal(again, term(process, wrong.density(), x[:50], t[:50], seeded(6)))
    assert not torch.equal(again, other)


@pytest.mark.parametrize("process", [SDES["vp"], SDES["ve"], WHOLE_SDES["subvp"]])
@pytest.mark.parametrize("c", [0.7, 1.5])
def test_its_gradient_alone_pulls_a_wrong_width_to_the_right_one(process, c):
    wrong = Stretched(process, c, [[0.0004]])
    density = wrong.density()
    optimizer = torch.optim.Adam([wrong.log_c], lr=0.02)
    generator = seeded(8)
    for _ in range(150):
        t = (0.5 + 0.5 * torch.rand(64, dtype=F64, generator=generator)) * process.T
        loss = term(process, density, wrong.draw(t, generator), t, graph=True).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(float(wrong.log_c.detach())) < 0.03 < abs(math.log(c))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_gradient_of_the_whole_loss(name):
    """Central differences along a random direction of the parameters, with the same probes."""
    torch.manual_seed(0)
    density, x = NETWORKS[name][0]().eval(), data(name)
    z = torch.randn(x.shape, dtype=F64, generator=seeded(9))
    parameters = [p for p in density.parameters() if p.requires_grad]

    def loss(factor=1.0):
        objective = NCMLObjective(PROCESS, fokker_planck=factor, score_matching=0.5)
        return objective(density, x, t=T, noise=z, generator=seeded(10))

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
    directions = [torch.randn(p.shape, dtype=F64, generator=seeded(11)) for p in parameters]

    def moved_by(step):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)

    values = []
    for step in (2e-6, -4e-6):
        moved_by(step)
        with torch.no_grad():
            values.append(float(loss()))
    moved_by(2e-6)
    along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    assert along == pytest.approx((values[0] - values[1]) / 4e-6, rel=1e-4)
    assert float(loss().detach()) != float(loss(0.0).detach())


def test_without_the_factor_nothing_changes_and_both_terms_add_up():
    density, x = made(), data("made", 64)
    plain = NCMLObjective(PROCESS)(density, x, generator=seeded(5)).item()

    def more(**factors):
        return NCMLObjective(PROCESS, **factors)(density, x, generator=seeded(5)).item() - plain

    assert more(fokker_planck=0.0) == 0.0
    one = more(fokker_planck=1.0)
    assert more(fokker_planck=3.0) == pytest.approx(3.0 * one, rel=1e-10)
    both = more(fokker_planck=1.0, score_matching=2.0)
    assert both == pytest.approx(one + more(score_matching=2.0), rel=1e-10)


def test_a_batch_at_zero_has_no_term_and_finite_gradients():
    density, x = made(), data("made")
    objective = NCMLObjective(PROCESS, fokker_planck=1.0)
    terms = objective.terms(density, x, t=0.0)
    assert torch.equal(terms.loss, terms.nll)
    terms.loss.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in density.parameters() if p.grad is not None)
    mixed = objective.terms(density, x, t=T, generator=seeded(1))
    assert mixed.loss[0] == mixed.nll[0]
    assert bool((mixed.loss[1:] != mixed.nll[1:]).all())


def test_a_wrapper_is_seen_through_and_no_graph_is_kept_without_gradients():
    density, x = made(), data("made")
    z = torch.randn(x.shape, dtype=F64, generator=seeded(9))
    objective = NCMLObjective(PROCESS, fokker_planck=1.0)
    models = (density, torch.compile(density, backend="eager"))
    one, two = (objective(d, x, t=T, noise=z, generator=seeded(1)).item() for d in models)
    assert one == pytest.approx(two, rel=1e-12)
    with torch.no_grad():
        silent = objective(density, x, t=T, noise=z, generator=seeded(1))
    assert not silent.requires_grad
    assert silent.item() == pytest.approx(one, rel=1e-12)


def test_rows_keep_their_own_context():
    wrong = Stretched(PROCESS, 1.3, DIAGONAL)

    def log_p(x, t, c):
        return wrong(x - PROCESS.alpha(t)[:, None] * c, t)

    density = CallableDensity(log_p, event_shape=(2,), process=PROCESS)
    x = data("made")
    z = torch.randn(x.shape, dtype=F64, generator=seeded(9))
    means = torch.arange(8, dtype=F64).reshape(4, 2) / 8.0
    objective = NCMLObjective(PROCESS, fokker_planck=1.0)
    terms = objective.terms(density, x + means, context=means, t=T, noise=z)
    expected = objective.terms(wrong.density(), x, t=T, noise=z)
    assert (terms.loss - expected.loss).abs().max() < 1e-9


def test_what_cannot_be_is_refused():
    for factor in (-1.0, math.inf, math.nan, True, "1"):
        with pytest.raises(ArgumentError, match="fokker_planck: got"):
            NCMLObjective(PROCESS, fokker_planck=factor)
    with pytest.raises(UnsupportedError, match=r"fokker_planck: got 1\.0 under LevelNoise"):
        NCMLObjective(LevelNoise(4), fokker_planck=1.0)
    grows = GaussianProcess(lambda t: torch.exp(t), lambda t: t * torch.exp(-3.0 * t), T=0.3)
    with pytest.raises(UnsupportedError, match=r"fokker_planck: got 1\.0 under GaussianProcess.*g\(t\) is 0"):
        NCMLObjective(grows, fokker_planck=1.0)
    NCMLObjective(grows, score_matching=1.0)
    process = VESDE.linear(1.0)
    objective = NCMLObjective(process, LadderTimes((0.5,)), fokker_planck=1.0)
    flow = ZukoDensity(zuko.flows.SOSPF(2, 8, transforms=1, hidden_features=(8,)), (2,), process)
    given = CallableDensity(
        lambda x, t: -x.square().sum(1) / (1.0 + t), event_shape=(2,), process=process, score=lambda x, t: -x
    )
    timeless = CallableDensity(lambda x, t: -x.square().sum(1), event_shape=(2,), process=process)
    reasons = {"differentiable only once": flow, "function of its own": given, "no derivative in t": timeless}
    for reason, density in reasons.items():
        with pytest.raises(UnsupportedError, match=reason):
            objective(density, torch.zeros(4, 2))
    sequences = CausalTransformer((4, 1), process, width=8, layers=1, heads=2, components=2)
    with pytest.raises(UnsupportedError, match="lengths: got some and fokker_planck"):
        objective(sequences, torch.zeros(2, 4, 1), lengths=torch.tensor([2, 4]))


def test_a_constant_score_has_a_residual():
    """log p = -(1 + t) c x under sigma = t: R = -c x - t |s|^2, since g^2 = 2t; times 2 sigma^2 / g^2 = t."""
    c, process = torch.tensor([1.0, 2.0], dtype=F64), VESDE.linear(1.0)
    density = CallableDensity(lambda x, t: -(1.0 + t) * (x @ c), (2,), process)
    x, t = torch.randn(4, 2, dtype=F64, generator=seeded(0)), torch.linspace(0.2, 0.8, 4, dtype=F64)
    residual = t * (-(x @ c) - t * (1.0 + t) ** 2 * 5.0)
    torch.testing.assert_close(term(process, density, x, t), 0.5 * residual.square())
