"""Rows of different lengths in one batch, and sequences beyond a model's window."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NCMLObjective, NoiseConditionalDensity, generate
from ncml.densities import MADE, CausalTransformer
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.evaluation import bits_per_dim, delta_log_p, level_noise_table, robustness_curve
from ncml.objective import AtZero
from ncml.sampling import HeunODE
from tests.problems import every_state, same_bits, seeded

F64 = torch.float64
VP = VPSDE.at_noise(0.2)
LENGTHS = torch.tensor([3, 1, 6, 5])


def model(event_shape=(6, 2), kind=CausalTransformer, process=VP, **settings) -> CausalTransformer:
    """In float64, with conditionals that depend strongly on what comes before them."""
    small = {"width": 16, "layers": 2, "heads": 2, "components": 3, "noise_features": 6, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = kind(event_shape, process, **small).double()
        with torch.no_grad():
            for p in built.parameters():
                p.add_(torch.randn(p.shape, dtype=F64) / math.sqrt(p.shape[-1] if p.ndim > 1 else 4.0))
    return built


def rows(lattice=None, n=4, length=6):
    x = torch.rand(n, length, 2, dtype=F64, generator=seeded(1)) * 2.0 - 1.0
    return x if lattice is None else lattice.quantize(x)


def with_padding(x, value):
    behind = torch.arange(x.shape[1])[:, None] >= LENGTHS[:, None, None]
    return torch.where(behind, value, x)


def apart(density, x, t, context=None):
    """The likelihoods of the prefixes, row by row, without lengths."""
    given = [None if context is None else context[i : i + 1] for i in range(len(x))]
    return torch.cat([density.log_prob(x[i : i + 1, :n], t, given[i]) for i, n in enumerate(LENGTHS.tolist())])


def wrong_about_padding(density) -> bool:
    """Whether lengths give something else than the marginals, or the padding matters."""
    x = rows(density.lattice)
    wrong = (density.log_prob(x, VP.T, lengths=LENGTHS) - apart(density, x, VP.T)).abs().max() > 1e-10
    first, second = (density.score(with_padding(x, v), VP.T, lengths=LENGTHS) for v in (0.5, -7.0))
    return bool(wrong) or not same_bits(first, second)


# Rows of different lengths.


@pytest.mark.parametrize("lattice", [None, Lattice(5), Lattice(65_536)], ids=["continuous", "5", "65536"])
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_each_row_has_the_likelihood_of_its_prefix(lattice, t):
    for settings in ({}, {"classes": 3}):
        density = model(lattice=lattice, **settings)
        context = torch.tensor([0, 2, -1, 1]) if settings else None
        x = rows(lattice)
        expected = apart(density, x, t, context)
        assert (density.log_prob(x, t, context, lengths=LENGTHS) - expected).abs().max() < 1e-11
        assert (
            density.log_prob(x, t, context, lengths=torch.full((4,), 6)) - density.log_prob(x, t, context)
        ).abs().max() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 0.123])
@pytest.mark.parametrize("lattice", [None, Lattice(5)], ids=["continuous", "lattice"])
def test_what_lies_behind_a_row_never_matters(lattice, value):
    """Bit for bit: likelihoods, scores, the loss, every parameter's gradient, and bits."""
    density, objective = model(lattice=lattice), NCMLObjective(VP)
    parameters = list(density.parameters())
    x, results = rows(lattice), []
    for filling in (-1.0, value):
        y = with_padding(x, filling)
        likelihoods = [density.log_prob(y, t, lengths=LENGTHS) for t in (0.0, VP.T)]
        smooth = density.log_density(y, 0.0, lengths=LENGTHS)
        score = density.score(y, VP.T, lengths=LENGTHS)
        assert bool((score[with_padding(torch.zeros_like(x), 1.0) == 1.0] == 0.0).all())
        loss = objective(density, y, generator=seeded(3), lengths=LENGTHS)
        gradients = torch.autograd.grad(loss, parameters)
        bits = bits_per_dim(density, y, lattice=lattice or Lattice(5), t=VP.T, lengths=LENGTHS).values
        results.append([*likelihoods, smooth, score, loss.detach(), *gradients, bits])
    for first, second in zip(*results, strict=True):
        assert same_bits(first.detach(), second.detach())


def test_the_padding_has_no_gradient_where_data_have_one():
    density = model()
    x = with_padding(rows(), 3.0).requires_grad_()
    for loss in (
        NCMLObjective(VP)(density, x, generator=seeded(0), lengths=LENGTHS),
        density.log_prob(x, lengths=LENGTHS).sum(),
    ):
        (gradient,) = torch.autograd.grad(loss, x)
        behind = with_padding(torch.zeros_like(gradient), 1.0) == 1.0
        assert bool((gradient[behind] == 0.0).all())
        assert bool((gradient[~behind] != 0.0).all())
    score = density.score(x.detach(), VP.T, lengths=LENGTHS, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(score.square().sum(), list(density.parameters()))[0]).all()


def test_figures_per_dimension_divide_by_what_counts():
    lattice = Lattice(65_536)
    density, x = model(lattice=lattice), rows(lattice)
    values = bits_per_dim(density, with_padding(x, float("nan")), lengths=LENGTHS, batch_size=3).values
    expected = -apart(density, x, 0.0) / (2 * LENGTHS * math.log(2.0)) - math.log2(lattice.width)
    assert torch.allclose(values, expected.detach(), rtol=1e-12)
    loss = NCMLObjective(VP, AtZero())(density, x, lengths=LENGTHS)
    assert loss.item() == pytest.approx(-apart(density, x, 0.0).mean().item(), rel=1e-12)


def test_level_noise_of_shorter_sequences_counts_their_own_values():
    """Without noise it is the likelihood in bits, which no longer window changes."""
    lattice = Lattice(9)
    density, x = model(lattice=lattice), rows(lattice, length=3)
    exact = -density.log_prob(x).detach() / (6 * math.log(2.0)) - math.log2(lattice.width)
    (row,) = level_noise_table(density, x, (0.0,))
    assert torch.allclose(row.bits.values, exact, atol=1e-12)
    assert torch.allclose(delta_log_p(density, x, 0.5).clean.values, exact, atol=1e-12)
    curve = robustness_curve(density, x, [0.0], (0.5,))
    assert torch.allclose(curve.results[0.5][0].clean.values, exact, atol=1e-12)


def test_samples_of_different_lengths():
    density = model()
    noise = density.draw_noise(4, generator=seeded(0), length=9)
    lengths = torch.tensor([3, 1, 9, 5])
    drawn = density.sample(4, 0.05, noise=noise, lengths=lengths)
    whole = density.sample(4, 0.05, noise=noise, length=9)
    for row, complete, n in zip(drawn, whole, lengths.tolist(), strict=True):
        assert torch.equal(row[:n], complete[:n])
        assert bool((row[n:] == 0.0).all())
    with pytest.raises(ArgumentError, match="length: got 3 and lengths"):
        density.sample(4, length=3, lengths=lengths)
    assert density.sample(0, lengths=torch.zeros(0, dtype=torch.int64)).shape == (0, 6, 2)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 1, 7, 5]), r"lengths: got values in \[1, 7\]; expected 1 to 6"),
        (torch.tensor([3, 0, 6, 5]), r"lengths: got values in \[0, 6\]"),
        (torch.tensor([3, 1]), r"lengths: got shape \(2,\)"),
        (LENGTHS.double(), "lengths: got torch.float64"),
        ([3, 1, 6, 5], "lengths: got list"),
    ],
    ids=["long", "zero", "few", "floats", "list"],
)
def test_lengths_that_do_not_fit(lengths, message):
    density, x = model(), rows()
    calls = (density.log_prob, density.log_density, density.score)
    for call in (*calls, lambda x, lengths: NCMLObjective(VP)(density, x, lengths=lengths)):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
            call(x, lengths=lengths)


def test_densities_of_one_size_refuse_lengths():
    density = MADE((6, 2), VP, hidden=(8,)).double()
    for call in (density.log_prob, density.score, lambda x, lengths: NCMLObjective(VP)(density, x, lengths=lengths)):
        with pytest.raises(UnsupportedError, match="lengths: got some and a MADE"):
            call(rows(), lengths=LENGTHS)


class Walk(NoiseConditionalDensity):
    """Each value is normal around the one before it: a density over sequences as a user writes it."""

    def __init__(self, process=VP):
        super().__init__((6,), process)
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=F64))

    def forward(self, x, t, context=None, *, edges=True, lengths=None):
        before = nn.functional.pad(x, (1, 0))[:, :-1]
        log_p = -0.5 * (x - self.slope * before).square() / (1.0 + self.process.sigma(t).square())[:, None]
        return (log_p if lengths is None else log_p * (torch.arange(6) < lengths[:, None])).sum(1)


def test_a_forward_with_lengths_is_all_that_a_score_of_them_needs():
    x = rows()[..., 0]
    score = Walk().score(x, VP.T, lengths=LENGTHS)
    assert not score[torch.arange(6) >= LENGTHS[:, None]].any()
    whole = Walk().score(x[2:3], VP.T)
    assert whole.all()
    assert same_bits(score[2:3], whole)
    graph = Walk().score(x.requires_grad_(), VP.T, create_graph=True, lengths=LENGTHS)
    assert torch.autograd.grad(graph.sum(), x)[0].any()


class Wrapper(nn.Module):
    """What DDP is to a density: another module, whose call goes to it."""

    def __init__(self, module):
        super().__init__()
        self.module, self.seen = module, []

    def forward(self, *arguments, **more):
        self.seen.append(sorted(more))
        return self.module(*arguments, **more)


def test_lengths_go_through_wrappers():
    density, x = model(), rows()
    wrapper = Wrapper(density)
    loss = NCMLObjective(VP)(wrapper, x, generator=seeded(0), lengths=LENGTHS)
    assert loss.item() == NCMLObjective(VP)(density, x, generator=seeded(0), lengths=LENGTHS).item()
    assert wrapper.seen == [["lengths"]]


class OneMore(CausalTransformer):
    """Counts a position too many."""

    def forward(self, x, t, context=None, *, edges=True, lengths=None):
        return super().forward(
            x, t, context, edges=edges, lengths=None if lengths is None else (lengths + 1).clamp(max=x.shape[1])
        )


class Unmasked(CausalTransformer):
    """Divides by what counts, but sums over everything."""

    def forward(self, x, t, context=None, *, edges=True, lengths=None):
        return super().forward(x, t, context, edges=edges)


@pytest.mark.parametrize("kind", [OneMore, Unmasked])
def test_planted_mistakes_about_padding_are_seen(kind):
    assert not wrong_about_padding(model())
    assert wrong_about_padding(model(kind=kind))


# Beyond the window.


def test_longer_sequences_are_drawn_given_their_context():
    density = model((4, 1), classes=3, label_dropout=0.0)
    longer, labels = density.extended(9), torch.tensor([0, 2, 1])
    noise = longer.draw_noise(3, generator=seeded(2))
    drawn = longer.sample(3, 0.05, labels, noise=noise)
    assert torch.equal(drawn, density.sample(3, 0.05, labels, noise=noise, length=9))
    assert not torch.allclose(drawn, longer.sample(3, 0.05, labels.flip(0), noise=noise))


@pytest.mark.parametrize(("overlap", "length"), [(None, 17), (1, 12), (4, 8), (3, 5), (2, 3)])
@pytest.mark.parametrize("lattice", [None, Lattice(65_536)], ids=["continuous", "lattice"])
def test_the_density_of_longer_sequences_is_that_of_their_continuation(overlap, length, lattice):
    """Every value's conditional in the first window that has it: the window's likelihood less that of its overlap."""
    density = model((5, 2), lattice=lattice)
    longer = density.extended(length, overlap)
    x, step = rows(lattice, 3, length), 5 - (2 if overlap is None else overlap)
    for t in (0.0, VP.T):
        terms, done, begin = [], 0, 0
        while done < length:
            part = x[:, begin : begin + 5]
            both = part[:, : done - begin]
            terms.append(density.log_prob(part, t) - (density.log_prob(both, t) if done else 0.0))
            done, begin = begin + part.shape[1], begin + step
        assert (longer.log_prob(x, t) - sum(terms)).abs().max() < 1e-10
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(longer(y, torch.full((3,), VP.T, dtype=F64), edges=False).sum(), y)
    assert (longer.score(x, VP.T) - expected).abs().max() < 1e-10 * expected.abs().max()
    noise = longer.draw_noise(3, generator=seeded(2))
    drawn = longer.sample(3, 0.05, noise=noise)
    assert torch.equal(drawn, density.sample(3, 0.05, noise=noise, length=length, overlap=overlap))
    assert (longer.resample(drawn, noise, 0.05) - drawn).abs().max() < 1e-11 * drawn.abs().max().clamp(min=1.0)
    assert HeunODE(steps=2)(longer, x, VP.T).shape == x.shape
    for keep in range(length + 1):  # with the noise of the sample the rest is the sample's own
        done = longer.complete(drawn, keep, 0.05, generator=seeded(2))
        assert torch.equal(done[:, :keep], drawn[:, :keep])
        assert (done - drawn).abs().max() < 1e-11 * drawn.abs().max().clamp(min=1.0)


def test_masses_of_longer_sequences_sum_to_one():
    lattice = Lattice(3)
    states = every_state(lattice, 6, 1)
    for overlap in (1, 2):
        longer = model((3, 1), process=LevelNoise(3), lattice=lattice).extended(6, overlap)
        p = (longer.log_prob(states, 0.5) + 6 * math.log(lattice.width)).exp().detach()
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-11)
        assert float(p.max() / p.min()) > 10.0
        assert longer.order.tolist() == list(range(6))


def test_what_the_error_of_a_long_sequence_names_works():
    short, longer = model((5, 2)), model((9, 2))
    x = rows(length=9)
    with pytest.raises(
        ArgumentError, match=r"model\.extended\(9\), or .*longer\.load_state_dict\(model\.state_dict\(\)\)"
    ):
        short.log_prob(x)
    assert short.extended(9).log_prob(x).shape == (4,)
    longer.load_state_dict(short.state_dict())
    assert torch.allclose(longer.log_prob(x[:, :5]), short.log_prob(x[:, :5]))


def test_longer_sequences_refuse_what_does_not_fit():
    density = model((5, 2))
    for arguments in ((0,), (8, 0), (8, 5)):
        with pytest.raises(ArgumentError):
            density.extended(*arguments)
    with pytest.raises(ArgumentError, match=r"^x: got"):
        density.extended(8).log_prob(rows(length=9))
    assert density.extended(8).log_prob(rows(length=7)).shape == (4,)


# Long windows.


def test_a_window_of_2048_positions():
    """Shapes, causality at both ends and in the middle, lengths, and a sample that continues a prefix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        density = CausalTransformer((2048, 1), VESDE.linear(1.0), width=4, layers=1, heads=1, components=2)
    x = torch.randn(2, 2048, 1, generator=seeded(0))
    terms = density.log_conditionals(x, 0.1)
    assert terms.shape == (2, 2048, 1)
    assert terms.sum((1, 2)).allclose(density.log_prob(x, 0.1), rtol=1e-5)
    for k in (0, 1023, 2046):
        changed = x.clone()
        changed[:, k] += 1.0
        moved = (density.log_conditionals(changed, 0.1) != terms).any(0).flatten()
        assert not bool(moved[:k].any())
        assert bool(moved[k : k + 2].all())
    lengths = torch.tensor([2048, 700])
    assert density.log_prob(x, 0.1, lengths=lengths)[1].allclose(density.log_prob(x[1:, :700], 0.1)[0], rtol=1e-5)
    assert density.score(x, 0.1).isfinite().all()
    done = density.complete(x, 2000, 0.1, generator=seeded(1))
    assert torch.equal(done[:, :2000], x[:, :2000])
    assert generate(density.extended(2100), 1, t_start=0.0, generator=seeded(0)).shape == (1, 2100, 1)
