"""MarginalMADE: one normalised density for every set of observed values, blind to what stands in the gaps."""

from __future__ import annotations

import itertools

import pytest
import torch

from ncml import VPSDE
from ncml.densities import MarginalMADE
from ncml.errors import ArgumentError
from ncml.testing import check_density
from tests.problems import seeded

VP = VPSDE.at_noise(0.5)
ORDER = [2, 0, 1]
MASKS = torch.tensor(list(itertools.product([1.0, 0.0], repeat=3)), dtype=torch.float64)


def marginal() -> MarginalMADE:
    """In float64, with conditionals and masks that matter."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        density = MarginalMADE((3,), VP, hidden=(16, 16), components=2, head="gaussian", order=ORDER).double()
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
    with pytest.raises(ArgumentError, match=message):
        marginal().log_prob(torch.zeros(8, 3, dtype=torch.float64), 0.0, context)
