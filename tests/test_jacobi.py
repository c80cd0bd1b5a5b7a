"""Parallel sampling equals sequential sampling of the same noise, in fewer passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ncml import VESDE, AutoregressiveDensity, Lattice, LevelNoise
from ncml.densities import MADE, MAF, NCPN, TransformerFlow
from ncml.errors import ArgumentError, UnsupportedError
from ncml.sampling import jacobi, sample_in_parallel
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


def flows(data_std):
    """With the positions of all layers."""
    maf = MAF((12,), VP, transforms=3, hidden=(32,), data_std=data_std)
    sizes = {"width": 16, "blocks": 3, "layers": 2, "heads": 2}
    transformer = TransformerFlow((1, 8, 12), VP, patch=2, data_std=data_std, **sizes)
    return {"maf": (maf, 3 * 12), "transformer": (transformer, 3 * 24)}


@pytest.mark.parametrize("data_std", [None, 0.4])
@pytest.mark.parametrize("name", ["maf", "transformer"])
def test_layers_of_a_flow_are_inverted_in_parallel(name, data_std):
    """Those of the sequential inverse, in fewer passes; with a tolerance, in fewer still and nearly the same."""
    torch.manual_seed(0)
    flow, positions = flows(data_std)[name]
    flow = perturbed(flow, 0.2).double()
    t = VP.T
    expected = flow.sample(40, t, generator=seeded(1))
    drawn = flow.sample_in_parallel(40, t, generator=seeded(1))
    assert torch.allclose(drawn.x, expected, rtol=0, atol=1e-10)
    assert int(drawn.sweeps.max()) <= positions
    assert float(drawn.sweeps.double().mean()) < positions
    assert drawn.evaluations == int(drawn.sweeps.sum())
    near = flow.sample_in_parallel(40, t, generator=seeded(1), tolerance=0.05)
    assert near.evaluations < drawn.evaluations
    assert float((near.x - expected).abs().mean()) < 0.1 * float(VP.sigma(t))
    rows = torch.linspace(0.1, 1.0, 40, dtype=F64) * t  # a time for each row
    found = flow.sample_in_parallel(40, rows, generator=seeded(2)).x
    assert torch.allclose(found, flow.sample(40, rows, generator=seeded(2)), atol=1e-10)
    assert flow.sample_in_parallel(0, t).x.shape == (0, *flow.event_shape)
    with pytest.raises(ArgumentError, match="tolerance: got"):
        flow.sample_in_parallel(3, 0.0, tolerance=0.1)


def test_a_flow_by_patches_takes_labels_and_noise():
    torch.manual_seed(0)
    flow = perturbed(TransformerFlow((6, 2), VP, patch=1, width=16, blocks=2, layers=1, heads=2, classes=3)).double()
    noise, labels = torch.randn(6, 6, 2, dtype=F64, generator=seeded(0)), torch.arange(6) % 3
    drawn = flow.sample_in_parallel(6, 0.0, labels, noise=noise)
    assert torch.allclose(drawn.x, flow.sample(6, 0.0, labels, noise=noise), atol=1e-10)
    assert not torch.allclose(drawn.x, flow.sample(6, 0.0, labels.flip(0), noise=noise), atol=1e-3)
    with pytest.raises(ArgumentError, match="noise: got shape"):
        flow.sample_in_parallel(5, noise=noise)


def chain(gain: float, dims: int, large: float):
    """Each value is gain times the one before it and some noise, but for a first one, which is alone and large."""

    def redraw(x, rows):
        new = z[rows].clone()
        new[:, 2:] += gain * x[:, 1:-1]
        new[:, 0] += large
        return new

    z = torch.randn(8, dims, generator=seeded(0))
    expected = z.clone()
    expected[:, 0] += large
    for i in range(2, dims):
        expected[:, i] += gain * expected[:, i - 1]
    return redraw, expected


@pytest.mark.parametrize("large", [0.0, 1e4, 1e6])
def test_values_beside_a_large_one_settle_as_well(large):
    """float32; and where each hangs little on the one before it, rounding does not keep it from ending early."""
    for gain, most in ((0.9, 64), (0.3, 20)):
        redraw, expected = chain(gain, 64, large)
        found = jacobi.fixed_point(redraw, torch.zeros(8, 64), torch.zeros(8), 64)
        assert torch.allclose(found.x[:, 1:], expected[:, 1:], rtol=0, atol=3e-5)
        assert int(found.sweeps.max()) <= most
        assert found.evaluations == int(found.sweeps.sum())


def test_what_a_pass_may_change_is_each_rows_own():
    redraw, expected = chain(0.9, 64, 0.0)
    allowed = torch.tensor([1.0, 0.0] * 4)
    found = jacobi.fixed_point(redraw, torch.zeros(8, 64), allowed, 64)
    error = (found.x - expected).abs().amax(1)
    assert float(error[1::2].max()) < 3e-5
    assert float(error[::2].min()) > 0.05
    assert int(found.sweeps[::2].max()) < int(found.sweeps[1::2].min())


def test_what_overflows_ahead_of_the_proven_values_is_a_start_only():
    def redraw(x, rows):
        new = torch.ones_like(x)
        new[:, 1:] = torch.where(x[:, :-1] == 1.0, 1.0, torch.nan)
        return new

    found = jacobi.fixed_point(redraw, torch.zeros(2, 5), torch.zeros(2), 5)
    assert torch.equal(found.x, torch.ones(2, 5))
    assert found.sweeps.tolist() == [5, 5]


@pytest.mark.parametrize("name", ["maf", "transformer"])
def test_a_tolerance_is_one_of_the_data_not_of_what_the_layers_see(name, monkeypatch):
    """Data of size 0.01 are seen at size 1: a tenth of the noise of 0.078 is far more there than here."""
    torch.manual_seed(0)
    wide, narrow = (flows(std)[name][0] for std in (None, 0.01))
    allowed, own = [], jacobi.fixed_point

    def noting(redraw, start, given, passes):
        allowed.append(given)
        return own(redraw, start, given, passes)

    monkeypatch.setattr(jacobi, "fixed_point", noting)
    for flow in (wide, narrow):
        flow.sample_in_parallel(3, VP.T, tolerance=0.1, generator=seeded(0))
    unit = torch.ones(1, *narrow.event_shape)
    scale = float(narrow.scaling(unit, torch.full((1,), VP.T))[0].flatten()[0])
    assert scale > 5.0
    assert torch.allclose(allowed[-1], scale * allowed[0])


@pytest.mark.parametrize("passes", [1, 3])
def test_a_layer_that_is_stopped_early_is_seen(passes, monkeypatch):
    """Planted: fewer passes than positions, and no look at what they change."""
    torch.manual_seed(0)
    flow = perturbed(MAF((12,), VP, transforms=1, hidden=(32,))).double()
    expected = flow.sample(40, VP.T, generator=seeded(1))
    own = jacobi.fixed_point
    monkeypatch.setattr(jacobi, "fixed_point", lambda redraw, start, allowed, _: own(redraw, start, allowed, passes))
    wrong = flow.sample_in_parallel(40, VP.T, generator=seeded(1)).x
    assert not torch.allclose(wrong, expected, rtol=0, atol=1e-10)


def test_a_progress_bar_is_shown_where_asked_for_only(capsys):
    sample_in_parallel(Chain(4, 0.5), 2, generator=seeded(0))
    assert capsys.readouterr().err == ""
    sample_in_parallel(Chain(4, 0.5), 2, generator=seeded(0), progress=True)
    assert capsys.readouterr().err != ""
