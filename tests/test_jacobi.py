"""Parallel sampling equals sequential sampling of the same noise, in fewer passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ncml import VESDE, AutoregressiveDensity, Lattice, LevelNoise
from ncml.densities import MADE, MAF, NCPN
from ncml.errors import ArgumentError, UnsupportedError
from ncml.sampling import sample_in_parallel
from tests.problems import SDES, gaussian, seeded

F64 = torch.float64
VP = SDES["vp"]


class Chain(AutoregressiveDensity):
    """x_i = slope * x_{i-1} + z_i: every position hangs on the one before, unless the slope is 0."""

    def __init__(self, dims: int, slope: float) -> None:
        super().__init__((dims,), VESDE.linear(1.0))
        self.slope, self.passes = slope, 0

    dtype_follows_input = True

    @property
    def order(self) -> Tensor:
        return torch.arange(self.event_shape[0])

    def forward(self, x, t, context=None, *, edges=True):
        z = x - self.slope * torch.nn.functional.pad(x[:, :-1], (1, 0))
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)

    def draw_noise(self, n, *, generator=None):
        return torch.randn(n, *self.event_shape, generator=generator)

    def resample(self, x, noise, t=0.0, context=None):
        self.passes += 1
        return self.slope * torch.nn.functional.pad(x[:, :-1], (1, 0)) + noise

    def sample(self, n, t=0.0, context=None, *, generator=None, noise=None):
        x = torch.zeros(n, *self.event_shape)
        for _ in range(self.event_shape[0]):
            x = self.resample(x, noise)
        return x


def perturbed(density, scale: float = 0.4):
    """Weights away from the start, where every position is nearly independent of the others."""
    generator = seeded(0)
    with torch.no_grad():
        for p in density.parameters():
            p.add_(scale * torch.randn(p.shape, dtype=p.dtype, generator=generator) / max(p.shape[-1], 1) ** 0.5)
    return density


DENSITIES = {
    "made lattice": lambda: MADE((20,), VP, lattice=Lattice(9), hidden=(32,), components=3),
    "made": lambda: MADE((20,), VP, hidden=(32,), components=3),
    "made order": lambda: MADE((2, 3), VP, hidden=(32,), components=3, order=(5, 0, 3, 1, 4, 2)),
    "made levels": lambda: MADE((12,), LevelNoise(9), lattice=Lattice(9), hidden=(32,), components=3),
    "ncpn": lambda: NCPN(
        (1, 4, 4), VP, lattice=Lattice(16), features=8, blocks=1, resolutions=2, heads=2, components=2
    ),
    "under": lambda: MADE((10,), VP, hidden=(32,), components=3).under(SDES["ve"]),
}


@pytest.mark.parametrize("block", [None, 1, 4])
@pytest.mark.parametrize("name", DENSITIES)
def test_parallel_samples_are_the_sequential_ones(name, block):
    torch.manual_seed(0)
    density = perturbed(DENSITIES[name]()).double()
    if name == "under":
        density.density.double()
    T = density.process.T
    for t in (0.0, 0.3 * T, torch.linspace(0.0, 0.5 * T, 6, dtype=F64)):
        noise = density.draw_noise(6, generator=seeded(1))
        expected = density.sample(6, t, noise=noise)
        drawn = sample_in_parallel(density, 6, t, noise=noise, block=block)
        assert torch.allclose(drawn.x, expected, rtol=0, atol=1e-12)
        assert drawn.evaluations == int(drawn.sweeps.sum())
        assert int(drawn.sweeps.max()) <= len(density.order)
        again = sample_in_parallel(density, 6, t, generator=seeded(1), block=block)
        assert torch.equal(again.x, drawn.x)


def test_a_chain_takes_as_many_sweeps_as_positions_and_independence_two():
    """One sweep draws what does not depend on anything, and one proves it."""
    noise = torch.randn(3, 7, generator=seeded(0))
    chain, free = sample_in_parallel(Chain(7, 0.9), 3, noise=noise), sample_in_parallel(Chain(7, 0.0), 3, noise=noise)
    assert chain.sweeps.tolist() == [7] * 3
    assert torch.allclose(chain.x, Chain(7, 0.9).sample(3, noise=noise), atol=1e-6)
    assert free.sweeps.tolist() == [2] * 3
    assert torch.equal(free.x, noise)


def test_blocks_are_final_one_after_the_other():
    noise = torch.randn(2, 8, generator=seeded(0))
    assert sample_in_parallel(Chain(8, 0.9), 2, noise=noise, block=2).sweeps.tolist() == [8, 8]
    assert int(sample_in_parallel(Chain(8, 0.0), 2, noise=noise, block=2).sweeps.max()) <= 8


def test_a_network_that_runs_away_ahead_of_the_frontier_stays_finite():
    """Squared again and again, values far ahead overflow; the proven ones do not see them."""

    class Squares(Chain):
        def resample(self, x, noise, t=0.0, context=None):
            return torch.nn.functional.pad(x[:, :-1], (1, 0)) ** 4 * 1e12 * (x[:, :1] != noise[:, :1]) + noise

    noise = torch.randn(2, 9, generator=seeded(0))
    drawn = sample_in_parallel(Squares(9, 1.0), 2, noise=noise)
    assert torch.equal(drawn.x, noise)


def test_a_tolerance_is_in_units_of_the_noise():
    density = Chain(30, 0.3)
    noise = density.draw_noise(50, generator=seeded(0))
    exact = sample_in_parallel(density, 50, 0.5, noise=noise)
    near = sample_in_parallel(density, 50, 0.5, noise=noise, tolerance=0.1)
    assert float((near.x - exact.x).abs().max()) <= 0.1 * 0.5 / (1.0 - 0.3) + 1e-6
    assert near.evaluations < 0.7 * exact.evaluations


def test_what_is_asked_for_in_vain():
    with pytest.raises(UnsupportedError, match="density: got GaussianDensity"):
        sample_in_parallel(gaussian(VP), 3)
    density = Chain(3, 0.5)
    with pytest.raises(ArgumentError, match="tolerance: got"):
        sample_in_parallel(density, 3, 0.0, tolerance=0.1)
    with pytest.raises(ArgumentError, match="tolerance: got -1"):
        sample_in_parallel(density, 3, 0.5, tolerance=-1)
    with pytest.raises(ArgumentError, match="block: got 0"):
        sample_in_parallel(density, 3, block=0)
    with pytest.raises(ArgumentError, match="noise: got shape"):
        sample_in_parallel(density, 3, noise=torch.zeros(2, 3))
    assert sample_in_parallel(density, 0).x.shape == (0, 3)


@pytest.mark.parametrize("data_std", [None, 0.4])
def test_layers_of_a_flow_are_inverted_in_parallel(data_std):
    """Those of the sequential inverse, in fewer passes; with a tolerance, in fewer still and nearly the same."""
    torch.manual_seed(0)
    maf = perturbed(MAF((12,), VP, transforms=3, hidden=(32,), data_std=data_std)).double()
    t = VP.T
    expected = maf.sample(40, t, generator=seeded(1))
    drawn = maf.sample_in_parallel(40, t, generator=seeded(1))
    assert torch.allclose(drawn.x, expected, rtol=0, atol=1e-10)
    assert int(drawn.sweeps.max()) <= 3 * 12
    assert float(drawn.sweeps.double().mean()) < 3 * 12
    assert drawn.evaluations == int(drawn.sweeps.sum())
    near = maf.sample_in_parallel(40, t, generator=seeded(1), tolerance=0.05)
    assert near.evaluations < drawn.evaluations
    assert float((near.x - expected).abs().mean()) < 0.1 * float(VP.sigma(t))
    rows = torch.linspace(0.1, 1.0, 40, dtype=F64) * t  # a time for each row
    assert torch.allclose(
        maf.sample_in_parallel(40, rows, generator=seeded(2)).x, maf.sample(40, rows, generator=seeded(2)), atol=1e-10
    )
    with pytest.raises(ArgumentError, match="tolerance: got"):
        maf.sample_in_parallel(3, 0.0, tolerance=0.1)


def test_a_progress_bar_is_shown_where_asked_for_only(capsys):
    sample_in_parallel(Chain(4, 0.5), 2, generator=seeded(0))
    assert capsys.readouterr().err == ""
    sample_in_parallel(Chain(4, 0.5), 2, generator=seeded(0), progress=True)
    assert capsys.readouterr().err != ""
