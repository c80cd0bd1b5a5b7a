"""Levels, bins and bits."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncml import VPSDE, BitsPerDim, Lattice, LevelNoise, NCMLObjective
from ncml.densities import GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError
from tests.problems import same_bits, seeded
from tests.statistics import assert_law

levels_ = st.integers(2, 65_536)
dtypes = st.sampled_from([torch.float32, torch.float64])


@given(levels=levels_, dtype=dtypes, position=st.floats(0.0, 1.0))
def test_every_level_survives_the_round_trip(levels, dtype, position):
    lattice = Lattice(levels)
    k = torch.tensor([0, round(position * (levels - 1)), levels - 1])
    x = lattice.to_unit(k, dtype=dtype)
    assert x.dtype == dtype
    assert torch.equal(lattice.nearest(x), k)
    assert lattice.on_lattice(x).all()
    lattice.check(x)
    assert torch.allclose(x.double(), 2.0 * k.double() / (levels - 1) - 1.0, atol=2 * torch.finfo(dtype).eps, rtol=0)


@given(levels=st.integers(2, 1024), dtype=dtypes, x=st.floats(-3.0, 3.0))
def test_quantize_finds_the_nearest_point_and_keeps_it(levels, dtype, x):
    lattice = Lattice(levels)
    value = torch.tensor([x], dtype=dtype)
    q = lattice.quantize(value)
    distances = (lattice.points(dtype=dtype) - value).abs()
    assert float((q - value).abs()) <= float(distances.min()) + 4 * torch.finfo(dtype).eps
    assert same_bits(lattice.quantize(q), q)
    assert float(q.abs()) <= 1.0 + 2 * torch.finfo(dtype).eps


@given(levels=st.integers(2, 1024), shift=st.floats(0.01, 0.99), position=st.floats(0.0, 1.0))
def test_values_between_the_points_are_off_the_lattice(levels, shift, position):
    lattice = Lattice(levels)
    k = round(position * (levels - 2))
    x = torch.tensor([2.0 * (k + shift) / (levels - 1) - 1.0], dtype=torch.float64)
    assert not lattice.on_lattice(x).any()
    with pytest.raises(ArgumentError, match=r"1 of 1 values are not one of the .* lattice points.*to_unit"):
        lattice.check(x)


def test_eight_bit_images():
    lattice = Lattice()
    assert (lattice.levels, lattice.width, lattice.half_width) == (256, 2 / 255, 1 / 255)
    points = lattice.points(dtype=torch.float64)
    assert points[0] == -1.0
    assert points[-1] == 1.0
    assert torch.allclose(points, torch.arange(256, dtype=torch.float64) / 127.5 - 1.0, atol=1e-15, rtol=0)
    assert torch.equal(lattice.to_unit(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("x", [-1.0 - 2 / 255, 1.0 + 2 / 255])
def test_points_beyond_the_ends_are_off_the_lattice(x):
    assert not Lattice().on_lattice(torch.tensor(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_on_the_lattice(dtype):
    lattice = Lattice(17)
    assert lattice.on_lattice(lattice.points(dtype=dtype)).all()


def test_a_uniform_pmf_has_exactly_eight_bits():
    """-log p / (D ln 2) + log2(127.5), with log2(127.5) = 6.994353."""
    lattice, dims = Lattice(256), 3072
    log_p = torch.full((4,), -dims * math.log(256 * lattice.width), dtype=torch.float64)
    bits = lattice.bits_per_dim(log_p, dims)
    assert torch.allclose(bits.values, torch.full((4,), 8.0, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(lattice.bits_per_dim(torch.zeros(1), 1)) == pytest.approx(6.994353, abs=5e-7)


@given(levels=st.integers(2, 1024), dims=st.integers(1, 4000), log_mass=st.floats(-20.0, 0.0))
def test_bits_of_a_mass_do_not_depend_on_the_width(levels, dims, log_mass):
    """A mass P per value, reported as the density P / width, costs -log2 P bits."""
    lattice = Lattice(levels)
    log_p = torch.tensor([dims * (log_mass - math.log(lattice.width))], dtype=torch.float64)
    assert float(lattice.bits_per_dim(log_p, dims)) == pytest.approx(-log_mass / math.log(2.0), abs=1e-11)


def test_dequantization_is_uniform_on_the_bin():
    lattice, n = Lattice(17), 20_000
    x = lattice.points(dtype=torch.float64)[[0, 5, 16]].repeat(n, 1)
    y = lattice.dequantize(x, generator=seeded(1))
    offset = (y - x) / lattice.width + 0.5
    assert (offset >= 0).all()
    assert (offset < 1).all()
    assert torch.equal(lattice.nearest(y), lattice.nearest(x))
    for column in offset.unbind(1):
        assert_law(column, lambda u: u)
    assert same_bits(y, lattice.dequantize(x, generator=seeded(1)))


def test_dequantization_bounds_the_bits_from_above():
    """Jensen: the mean of log p(x + u) is at most the log of the mean of p over the bin."""
    lattice = Lattice(17)
    x = lattice.points(dtype=torch.float64)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000 - 0.5
    density = torch.distributions.Normal(0.1, 0.2).log_prob(x[:, None] + lattice.width * u)
    bound = lattice.bits_per_dim(density.mean(1), 1, exact=False)
    exact = lattice.bits_per_dim(density.logsumexp(1) - math.log(1000), 1)
    assert (bound.values > exact.values).all()


def test_exact_values_and_bounds_are_not_ranked():
    exact, bound = BitsPerDim(torch.tensor([3.0, 5.0]), exact=True), BitsPerDim(torch.tensor([3.5]), exact=False)
    assert str(exact) == "4.0000 bits/dim"
    assert f"{[exact]}" == f"[<4.0000 bits/dim, n = {exact.values.numel()}>]"
    assert str(bound) == "<= 3.5000 bits/dim"
    assert (exact.kind, bound.kind) == ("exact", "upper bound")
    assert float(exact) == exact.mean == 4.0
    assert exact.standard_error == pytest.approx(1.0)
    assert BitsPerDim(torch.tensor([3.5]), exact=True) < exact
    assert not exact < BitsPerDim(torch.tensor([3.5]), exact=True)
    with pytest.raises(ArgumentTypeError, match="got exact against upper bound"):
        _ = exact < bound


def test_bits_are_exact_unless_they_are_said_to_bound():
    low, high = (Lattice(256).bits_per_dim(torch.tensor([log_p]), 1) for log_p in (2.0, 1.0))
    assert low.exact is True
    assert low < high
    assert low < BitsPerDim(high.values, exact=True)
    assert str(low)[0] != "<"
    with pytest.raises(ArgumentTypeError, match="got exact against upper bound"):
        _ = low < Lattice(256).bits_per_dim(torch.tensor([1.0]), 1, exact=False)


def test_rankings_agree():
    low, high = (BitsPerDim(torch.tensor([v]), exact=True) for v in (3.0, 4.0))
    same, bound = BitsPerDim(torch.tensor([2.5, 3.5]), exact=True), BitsPerDim(torch.tensor([3.5]), exact=False)
    assert low < high
    assert low <= high
    assert high > low
    assert high >= low
    assert low <= same
    assert low >= same
    assert not low < same
    assert not low > same
    assert not high <= low
    for rank in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(ArgumentTypeError, match="got exact against upper bound"):
            rank(low, bound)
        with pytest.raises(ArgumentTypeError, match=r"got float; expected BitsPerDim; compare \.mean"):
            rank(low, 3.5)
        with pytest.raises(ArgumentTypeError, match=r"compare \.mean"):
            rank(3.5, low)


def test_zero_mass_is_never_averaged_away():
    bits = Lattice(256).bits_per_dim(torch.tensor([-1.0, -math.inf, 2.0]), 1)
    assert bits.mean == math.inf
    assert bits.infinite == 1
    with pytest.raises(ArgumentError, match="got no examples"):
        Lattice(256).bits_per_dim(torch.zeros(0), 1)
    with pytest.raises(ArgumentError, match="got NaN"):
        Lattice(256).bits_per_dim(torch.tensor([math.nan]), 1)
    with pytest.raises(ArgumentError, match=r"^dims: got shape \(3, 1\); expected a number, or \(3,\)"):
        Lattice(256).bits_per_dim(torch.zeros(3), torch.tensor([[1], [2], [3]]))
    with pytest.raises(ArgumentError, match=r"^dims: got"):
        Lattice(256).bits_per_dim(torch.zeros(1), 0)


@pytest.mark.parametrize("levels", [1, 65_537, 256.0, True])
def test_bad_numbers_of_levels(levels):
    with pytest.raises(ArgumentError, match=r"^levels: got"):
        Lattice(levels)


def test_integers_only_and_in_range():
    with pytest.raises(ArgumentTypeError, match="expected an integer tensor"):
        Lattice(17).to_unit(torch.zeros(2))
    with pytest.raises(ArgumentError, match=r"got values in \[0, 17\]; expected 0 .. 16"):
        Lattice(17).to_unit(torch.tensor([0, 17]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16])
def test_every_integer_dtype_has_levels(dtype):
    k = torch.tensor([0, 8, 16])
    assert torch.equal(Lattice(17).to_unit(k.to(dtype)), Lattice(17).to_unit(k))
    with pytest.raises(ArgumentError, match=r"got values in \[0, 17\]; expected 0 .. 16"):
        Lattice(17).to_unit(torch.tensor([0, 17]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_half_precision_is_rounded_once(dtype, levels):
    """To the nearest of its values, so that what is rounded to the lattice, or moved by level noise, is on it."""
    lattice = Lattice(levels)
    points = lattice.points(dtype=dtype)
    assert torch.equal(points, lattice.points(dtype=torch.float32).to(dtype))
    lattice.check(lattice.quantize(torch.linspace(-1.2, 1.2, 1001).to(dtype)))
    lattice.check(LevelNoise(levels).perturb(points[:, None], 1.0, generator=seeded(0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_half_precision_holds_the_levels(dtype, levels):
    """Rounded points are the points again, for the lattice and for densities on it."""
    lattice = Lattice(levels)
    exact = lattice.points(dtype=torch.float64)
    half = exact.to(dtype)
    assert torch.equal(lattice.nearest(half), torch.arange(levels))
    lattice.check(half)
    assert torch.equal(lattice.raised(half), lattice.points(dtype=torch.float32))
    off = torch.tensor([0.49], dtype=dtype) * lattice.width - 1.0
    if levels < 256:  # between the first two, where half precision can tell
        assert torch.equal(lattice.raised(off), off.float())
    density = ToyLattice(VPSDE.at_noise(0.08), torch.ones(3, levels))
    x = half[torch.randint(levels, (6, 3), generator=seeded(0))]
    expected = density.log_prob(lattice.quantize(x.float()))
    assert torch.equal(density.log_prob(x), expected)
    x_ = half[:1].expand(1, 3).clone().requires_grad_()
    lattice.raised(x_).sum().backward()
    assert torch.equal(x_.grad, torch.ones_like(x_))
    with pytest.raises(ArgumentError, match="x: got 1 non-finite"):
        density.log_prob(torch.cat([x[:, :2], torch.full((6, 1), math.nan, dtype=dtype)], 1)[:1])
    objective = NCMLObjective(VPSDE.at_noise(0.08), dequantize=lattice)
    plain = GaussianDensity(VPSDE.at_noise(0.08), torch.zeros(3), 0.5)
    assert bool(objective(plain, x, generator=seeded(1)).isfinite())
