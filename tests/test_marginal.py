"""MarginalMADE: one normalised density for every set of observed values, blind to what stands in the gaps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NCMLObjective, NoiseConditionalDensity
from ncml.densities import MarginalMADE
from ncml.errors import ArgumentError
from ncml.evaluation import (
    bits_per_dim,
    delta_log_p,
    flow_log_prob,
    fokker_planck_residual,
    ladder_bound,
    level_noise_table,
    mean_abs_perturbation,
    robustness_curve,
)
from ncml.objective import LadderTimes
from ncml.sampling import AnnealedSMC, restore
from ncml.testing import check_density
from tests.problems import seeded

VP = VPSDE.at_noise(0.5)
F64 = torch.float64
STD = 0.7
ORDER = [2, 0, 1]
MASKS = torch.tensor(list(itertools.product([1.0, 0.0], repeat=3)), dtype=torch.float64)


def marginal() -> MarginalMADE:
    """In float64, with conditionals and masks that matter."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        settings = {"hidden": (16, 16), "components": 2, "linear_components": 1, "head": "gaussian", "order": ORDER}
        density = MarginalMADE((3,), VP, **settings).double()
        assert density.net.linear is not None
        for p in density.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return density


@pytest.mark.parametrize("t", [0.0, VP.T])
@pytest.mark.parametrize("mask", MASKS[1:-1], ids=lambda m: "".join(str(int(v)) for v in m))
def test_density_of_the_observed_values_integrates_to_one(mask, t):
    """The trapezoidal rule, with a step below the smallest scale. (The conformance kit integrates whole events.)"""
    density, observed = marginal(), mask.nonzero().flatten()
    grid = torch.linspace(-8.0, 8.0, 257, dtype=torch.float64)
    points = torch.cartesian_prod(*[grid] * len(observed)).reshape(-1, len(observed))
    total = 0.0
    with torch.no_grad():
        for part in points.split(100_000):
            x = torch.full((len(part), 3), 7.0, dtype=torch.float64)  # whatever stands in the gaps
            x[:, observed] = part
            total += float(density.log_prob(x, t, mask.expand(len(part), 3)).exp().sum())
    assert total * float(grid[1] - grid[0]) ** len(observed) == pytest.approx(1.0, abs=1e-4)


def test_gaps_are_no_part_of_the_event():
    density = marginal()
    x = torch.randn(8, 3, generator=seeded(0), dtype=torch.float64)
    other = torch.where(MASKS == 1, x, 9.0)
    assert torch.equal(density.log_prob(x, 0.1, MASKS), density.log_prob(other, 0.1, MASKS))
    assert density.log_prob(x, 0.1, MASKS)[-1].item() == 0.0
    score = density.score(x, 0.1, MASKS)
    assert bool((score[MASKS == 0] == 0.0).all())
    assert bool((score[MASKS == 1] != 0.0).all())
    terms = density.log_conditionals(x, 0.1, MASKS)
    assert bool((terms[MASKS == 0] == 0.0).all())
    assert torch.allclose(terms.sum(1), density.log_prob(x, 0.1, MASKS))


def test_samples_are_those_of_the_density_and_zero_in_the_gaps():
    """The fixed point of the conditionals that the likelihood uses, for every mask."""
    density = marginal()
    rows = MASKS.repeat(4, 1)
    noise = density.draw_noise(len(rows), generator=seeded(0))
    x = density.sample(len(rows), 0.1, rows, noise=noise)
    assert bool((x[rows == 0] == 0.0).all())
    assert bool((x[rows == 1] != 0.0).all())
    assert torch.allclose(density.resample(x, noise, 0.1, rows), x)


def test_it_conforms():
    """As a density of whole events, whose integral is one over all coordinates."""
    density = MarginalMADE((2,), VP, hidden=(8,), components=2)
    report = check_density(density, context=torch.ones(8, 2), samples=500)
    assert dict(report.not_applicable)["context_is_used"] == "all rows of the context are equal"
    assert "density_integrates_to_one" in report.passed


def test_the_mask_is_seen_by_the_conditionals():
    """An observed zero is not a gap."""
    density, x = marginal(), torch.zeros(1, 3, dtype=torch.float64)
    terms = [density.log_conditionals(x, 0.0, mask[None]) for mask in (MASKS[0], MASKS[1])]  # the last value missing
    assert bool((terms[0][:, :2] != terms[1][:, :2]).all())


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, "expected a context"),
        (torch.full((8, 3), 0.5, dtype=torch.float64), "expected the mask"),
        (torch.full((8, 3), torch.nan, dtype=torch.float64), "expected the mask"),
        (torch.ones(8, 2, dtype=torch.float64), r"expected \(B, 3\)"),
    ],
)
def test_wrong_masks(context, message):
    x = torch.zeros(8, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=message):
        marginal().log_prob(x, 0.0, context)
    with pytest.raises(ArgumentError, match=message.replace("B", "8")):
        bits_per_dim(marginal(), x, 0.0, context, lattice=Lattice(9))


def test_bits_are_per_observed_value():
    """Off the lattice, where nothing is drawn; and under level noise, which moves observed values alone."""
    lattice, density, masks = Lattice(9), marginal(), MASKS[:-1]  # the last has no value
    x = lattice.quantize(torch.rand(7, 3, dtype=F64, generator=seeded(1)) * 2.0 - 1.0)
    exact = -density.log_prob(x, 0.1, masks).detach() / (masks.sum(1) * math.log(2.0)) - math.log2(lattice.width)
    assert torch.allclose(bits_per_dim(density, x, 0.1, masks, lattice=lattice).values, exact, atol=1e-12)
    # Where nothing is observed half of the moves are lost.
    x = torch.tensor([[0.0, 0.0, -1.0]], dtype=F64).expand(64, 3)
    (row,) = level_noise_table(density, x, (1.0,), MASKS[1:2].expand(64, 3), lattice=lattice, generator=seeded(2))
    assert row.moved == 1.0


def with_gaps(n=6):
    """Points of a lattice, of which 0 is none, and masks."""
    lattice, masks = Lattice(8), MASKS[:n]
    return lattice, lattice.quantize(torch.rand(n, 3, dtype=F64, generator=seeded(1)) * 2.0 - 1.0), masks


@pytest.mark.parametrize("value", [0.3, -7.0, 1e30])
def test_what_stands_in_gaps_need_not_be_on_the_lattice(value):
    """Nor does it matter, at any time, under level noise, or in training."""
    density, (lattice, x, masks) = marginal(), with_gaps()
    masses = NormalMasses((3,), VP, lattice)
    level = NormalMasses((3,), LevelNoise(8), lattice)
    dequantised = NormalMasses((3,), LevelNoise(8))
    how = {"lattice": lattice}
    calls = [
        lambda x: bits_per_dim(density, x, 0.0, masks, **how, dequantisations=2, importance=2).values,
        lambda x: bits_per_dim(masses, x, 0.0, masks).values,
        lambda x: bits_per_dim(level, x, 0.5, masks).values,
        lambda x: masses.log_prob(x, 0.0, masks),
        lambda x: level_noise_table(density, x, (0.5,), masks, **how)[0].bits.values,
        lambda x: delta_log_p(density, x, 1.0, 0.1, masks, **how).signed,
        lambda x: NCMLObjective(VP, dequantize=lattice)(density, x, masks, generator=how["generator"]),
        lambda x: NCMLObjective(LevelNoise(8))(level, x, masks, generator=how["generator"]),
        lambda x: NCMLObjective(LevelNoise(8), dequantize=lattice)(dequantised, x, masks, generator=how["generator"]),
    ]
    for call in calls:
        found = []
        for there in (x, torch.where(masks == 1, x, value)):
            how["generator"] = seeded(0)
            found.append(torch.as_tensor(call(there)))
        assert torch.equal(*found)
        with pytest.raises(ArgumentError, match="lattice points"):
            call(torch.where(masks == 1, x + 0.01, x))


def test_noise_of_rows_with_gaps_is_that_of_observed_values():
    """What the axis of a curve says: by the same values in a table without gaps."""
    lattice, x, _ = with_gaps()
    first = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64).expand(len(x), 3)
    curve = robustness_curve(marginal(), x, [0.1], (0.5,), first, lattice=lattice, generator=seeded(0))
    assert curve.mean_abs_perturbation == mean_abs_perturbation(VP, x[:, :1], 0.1) / lattice.width


class MaskedNormal(NoiseConditionalDensity):
    """The ladder of N(0, STD^2 I), of the observed values, in closed form."""

    def forward(self, x, t, context=None, *, edges=True):
        variance = (self.process.alpha(t) * STD).square() + self.process.sigma(t).square()
        terms = -0.5 * (x.square() / variance[:, None] + (2.0 * math.pi * variance[:, None]).log())
        return (terms * context).sum(1)

    def observed(self, x, context=None):
        return context != 0


class NormalMasses(MaskedNormal):
    """The same at every time, taken for masses of bins."""

    def forward(self, x, t, context=None, *, edges=True):
        return (torch.distributions.Normal(0.0, STD).log_prob(x) * context).sum(1)


@pytest.mark.parametrize("mask", [(1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_only_observed_values_count_where_a_formula_has_their_number(mask):
    """Under another process, along the Fokker-Planck equation and the flow, in a bound, and in the particles' Z."""
    density = MaskedNormal((3,), VP)
    rows = torch.tensor([mask], dtype=F64).expand(200, 3)
    x = STD * torch.randn(200, 3, generator=seeded(0), dtype=F64) * rows
    other = VESDE.linear(0.5)
    expected = MaskedNormal((3,), other).log_prob(x, 0.3, rows)
    torch.testing.assert_close(density.under(other).log_prob(x, 0.3, rows), expected)
    residual, rise = fokker_planck_residual(density, x, 0.5 * VP.T, rows)
    assert float(residual.abs().max()) < 1e-9 * (1.0 + float(rise.abs().max()))
    torch.testing.assert_close(flow_log_prob(density, x, rows), density.log_prob(x, 0.0, rows), rtol=1e-6, atol=1e-6)
    half = rows[:100]
    bound = ladder_bound(density, x[:100], 0.5 * VP.T, fit=x[100:], context=half, fit_context=half, generator=seeded(1))
    exact = density.log_prob(x[:100], 0.0, half)
    assert float(bound.mean() - exact.mean()) == pytest.approx(0.0, abs=0.2)
    objective = NCMLObjective(VP, LadderTimes((0.5 * VP.T,)), fokker_planck=1.0)
    terms = objective.terms(density, x, rows, generator=seeded(2))
    torch.testing.assert_close(terms.loss, terms.nll, rtol=1e-9, atol=1e-9)
    noise = torch.randn(200, 3, generator=seeded(2), dtype=F64)
    objective = NCMLObjective(VP, score_matching=2.0)
    terms = objective.terms(density, x, rows, t=0.5 * VP.T, noise=noise)
    x_t = VP.perturb(x, 0.5 * VP.T, noise=noise)
    error = (VP.sigma(0.5 * VP.T) * density.score(x_t, 0.5 * VP.T, rows) + noise) * rows
    torch.testing.assert_close(terms.loss - terms.nll, error.square().sum(1))
    start = VP.perturb(x, VP.T, generator=seeded(3)) * rows
    refined = AnnealedSMC(16).refine(density, start, context=rows, generator=seeded(4))
    assert refined.info["log_z"] == pytest.approx(0.0, abs=0.15)


def test_the_number_of_values_is_seen():
    """Planted: all values count, as in a density without gaps."""

    class Forgotten(MaskedNormal):
        def observed(self, x, context=None):
            return None

    density, rows = Forgotten((3,), VP), torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    x = torch.zeros(1, 3, dtype=F64)
    residual, _ = fokker_planck_residual(density, x, 0.5 * VP.T, rows)
    assert abs(float(residual)) > 0.1


def test_a_mask_reaches_the_formulas_of_the_network():
    """All missing: whatever the process, nothing is said, and nothing is told of the noise."""
    density, nothing = marginal(), torch.zeros(5, 3, dtype=F64)
    x = torch.randn(5, 3, generator=seeded(0), dtype=F64)
    under = density.under(VESDE.linear(0.5))
    assert bool((under.log_prob(x, 0.4, nothing) == 0.0).all())
    assert bool((flow_log_prob(density, x, nothing) == 0.0).all())
    assert torch.equal(density.observed(x, MASKS[:5]), MASKS[:5] == 1)
    assert density.observed(x[:0], MASKS[:0]).shape == (0, 3)
    weights = restore(density, x, sigmas=[0.1, 0.2, 0.4], context=nothing).posterior
    torch.testing.assert_close(weights, torch.full_like(weights, 1.0 / 3.0))
