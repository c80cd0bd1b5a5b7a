"""Scores at the likeliest noise level, and grids fitted to a density: closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ncml import VESDE, VPSDE
from ncml.densities import GaussianDensity, GaussianMixtureDensity
from ncml.density import AlignedTarget, Target
from ncml.errors import ArgumentError, UnsupportedError
from ncml.sampling import DDIM, MultistepODE, fit_grid
from ncml.sampling.fitted import cheapest_way
from ncml.testing.sampler.targets import ScoreOnly
from tests.problems import seeded

VE = VESDE.linear(5.0)


def modes(dims: int) -> GaussianMixtureDensity:
    means = torch.randn(8, dims, dtype=torch.float64, generator=seeded(0))
    return GaussianMixtureDensity(VE, torch.ones(8, dtype=torch.float64), means, 0.2)


@pytest.mark.parametrize("process", [VE, VPSDE()])
def test_the_likeliest_level_of_a_gaussian(process):
    """Of N(0, v I) the variance at t* is the mean square of the row, within the bracket."""
    std, t = 0.3, float(process.time_at(0.6))
    density = GaussianDensity(process, torch.zeros(50, dtype=torch.float64), std)
    unit = torch.randn(6, 50, dtype=torch.float64, generator=seeded(0))
    unit = unit / unit.square().mean(1, keepdim=True).sqrt()
    ratio = float(process.sigma(t) / process.alpha(t))
    noise = ratio * torch.tensor([0.5, 0.8, 0.95, 1.0, 1.2, 2.0], dtype=torch.float64)
    # A row whose mean square is the variance at the level of that noise-to-signal ratio.
    levels = process.time_at_log_snr(-2.0 * noise.log())
    variance = process.alpha(levels) ** 2 * std**2 + process.sigma(levels) ** 2
    target = AlignedTarget(density, within=0.3, levels=9)
    found = target.likeliest_time(unit * variance.sqrt()[:, None], t)
    expected = noise.clamp(ratio / 1.3, ratio * 1.3)
    assert torch.allclose(process.sigma(found) / process.alpha(found), expected, rtol=2e-3)


def test_tweedies_formula_leads_where_it_leads_from_the_likeliest_level():
    density = modes(16)
    x = 1.15 * density.sample(10, 1.0, generator=seeded(1))
    target, _ = AlignedTarget(density).bound(x, 1.0)
    times = target.likeliest_time(x, 1.0)
    assert (times > 1.0).sum() > 5
    clean = Target(density).denoise(x, times)
    assert torch.allclose(target.denoise(x, 1.0), clean, atol=1e-12)
    each = torch.full((10,), 1.0, dtype=torch.float64)
    assert torch.allclose(target.denoise(x, each), clean, atol=1e-12)
    with torch.enable_grad():
        y = x.clone().requires_grad_()
        assert torch.allclose(target.differentiable_score(y, 1.0), target.score(x, 1.0), atol=1e-12)


def test_missing_noise_is_noticed():
    """A fifth of the noise missing at the start, against the exact flow from the level that the samples have."""
    density = modes(64)
    data = density.sample(100, 0.0, generator=seeded(1))
    x = data + 0.8 * torch.randn(data.shape, dtype=torch.float64, generator=seeded(2))
    exact = MultistepODE(200, order=4)(density, x, 0.8, 0.02)

    def error(target):
        return float((DDIM(10)(target, x, 1.0, 0.02) - exact).square().mean().sqrt())

    assert error(AlignedTarget(density)) < 0.4 * error(density)
    counted = DDIM(10).refine(AlignedTarget(density, levels=3), x, 1.0, 0.02)
    assert counted.evaluations == 10 * (3 + 1) * 100


def test_alignment_is_refused_without_what_it_needs():
    density = modes(2)
    with pytest.raises(UnsupportedError, match="expected a log-density"):
        AlignedTarget(ScoreOnly(density))
    with pytest.raises(ArgumentError, match="levels: got 4; expected an odd number"):
        AlignedTarget(density, levels=4)
    with pytest.raises(ArgumentError, match="within: got 0"):
        AlignedTarget(density, within=0.0)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_cheapest_way_is_the_best_of_all(steps):
    cost = np.random.default_rng(steps).random((9, 9)) ** 3
    every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
    best = min(every, key=lambda way: sum(cost[i, j] for i, j in itertools.pairwise(way)))
    assert cheapest_way(cost, steps) == list(best)


@pytest.mark.parametrize("stop", [0.1, 0.0])
def test_a_fitted_grid_beats_the_others(stop):
    density = modes(2)
    x = density.sample(64, VE.T, generator=seeded(3))
    exact = MultistepODE(300, order=4)(density, x, None, stop)
    start = density.sample(64, VE.T, generator=seeded(4))

    def error(steps, grid):
        return float((DDIM(steps, grid=grid)(density, x, None, stop) - exact).square().mean().sqrt())

    for steps in (5, 10):
        grid = fit_grid(density, start, steps, t_end=stop)
        assert len(grid.times) == steps + 1
        assert error(steps, grid) < 0.97 * min(error(steps, name) for name in ("quadratic", "log-snr", "karras"))
    with pytest.raises(ArgumentError, match="steps: got 9; expected at most candidates = 8"):
        fit_grid(density, start, 9, candidates=8)
    with pytest.raises(ArgumentError, match=r"x: got shape \(0, .*at least one sample"):
        fit_grid(density, start[:0], 4)
