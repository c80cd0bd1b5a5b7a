"""Level noise, the paper's p_pi: exact probabilities by enumerating the uniform noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncml import Lattice, LevelNoise
from ncml.errors import ArgumentError, ArgumentTypeError
from tests.problems import same_bits, seeded
from tests.statistics import assert_frequencies

GRID = 64
"""The noise takes the midpoints of this many cells: probabilities of multiples of 1/64 are then exact."""
MIDPOINTS = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID

edges = st.sampled_from(["clip", "reflect"])
each_edge = pytest.mark.parametrize("edge", ["clip", "reflect"])


def moves(process: LevelNoise, pi: float) -> torch.Tensor:
    """Frequencies of going from level i (row) to level j (column) over the whole noise grid."""
    k = process.levels
    x = process.lattice.points(dtype=torch.float64)[:, None].expand(k, GRID)
    moved = process.lattice.nearest(process.perturb(x, pi, noise=MIDPOINTS.expand(k, GRID)))
    return torch.nn.functional.one_hot(moved, k).double().mean(1)


@given(levels=st.integers(2, 20), edge=edges, sixtyfourths=st.integers(0, 32))
def test_perturb_has_the_transition_probabilities(levels, edge, sixtyfourths):
    process, pi = LevelNoise(levels, edge), 2 * sixtyfourths / GRID
    matrix = process.transition_matrix(pi)
    assert torch.equal(moves(process, pi), matrix)
    assert torch.equal(matrix.sum(1), torch.ones(levels, dtype=torch.float64))


@each_edge
@pytest.mark.parametrize("pi", [0.0, 0.25, 0.5, 1.0])
def test_probabilities_by_hand(edge, pi):
    """Inside: pi/2, 1 - pi, pi/2. At an edge: half the moves stay (clip) or all go to the neighbour (reflect)."""
    matrix = moves(LevelNoise(5, edge), pi)
    for k in (1, 2, 3):
        expected = torch.zeros(5, dtype=torch.float64)
        expected[[k - 1, k, k + 1]] = torch.tensor([pi / 2, 1 - pi, pi / 2], dtype=torch.float64)
        assert torch.equal(matrix[k], expected)
    inward = pi if edge == "reflect" else pi / 2
    assert matrix[0].tolist() == [1 - inward, inward, 0, 0, 0]
    assert matrix[4].tolist() == [0, 0, 0, inward, 1 - inward]


@each_edge
def test_moved_fraction_is_the_fraction_that_moves(edge):
    process = LevelNoise(5, edge)
    k = torch.tensor([0, 0, 1, 2, 4])
    x = process.lattice.to_unit(k, dtype=torch.float64)
    stay = moves(process, 0.5).diagonal()[k]
    assert process.moved_fraction(x, 0.5) == pytest.approx(1.0 - float(stay.mean()), abs=1e-15)


@given(levels=st.integers(2, 256), edge=edges, pi=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_moves_by_at_most_one_level_and_never_leaves(levels, edge, pi, seed):
    process, g = LevelNoise(levels, edge), seeded(seed)
    k = torch.randint(0, levels, (40,), generator=g)
    x = process.lattice.to_unit(k)[:, None]
    moved = process.perturb(x, pi, generator=g)
    assert process.lattice.on_lattice(moved).all()
    assert int((process.lattice.nearest(moved)[:, 0] - k).abs().max()) <= 1
    assert process.on_lattice(pi)


@each_edge
def test_values_that_stay_return_bit_for_bit(edge):
    """However they were rounded onto the lattice, and negative zero too."""
    process = LevelNoise(3, edge)
    x = torch.tensor([[-0.0, 1e-4, -1.0, 1.0, 0.9999]])
    stay = torch.full_like(x, 0.5)
    assert same_bits(process.perturb(x, 0.9, noise=stay), x)
    assert same_bits(process.perturb(x, 0.0, generator=seeded(0)), x)
    assert same_bits(process.perturb(x, 0.0, noise=torch.zeros_like(x)), x)


def test_below_half_pi_moves_down_and_from_one_minus_half_pi_up():
    process = LevelNoise(3)
    x = torch.zeros(1, 4, dtype=torch.float64)
    u = torch.tensor([[0.25 - 1e-12, 0.25, 0.75 - 1e-12, 0.75]], dtype=torch.float64)
    assert process.perturb(x, 0.5, noise=u).tolist() == [[-1.0, 0.0, 0.0, 1.0]]


def test_every_row_has_its_own_time():
    x, u = torch.zeros(3, 2), torch.full((3, 2), 0.2)
    moved = LevelNoise(3).perturb(x, torch.tensor([0.0, 0.3, 0.5]), noise=u)
    assert moved.tolist() == [[0.0, 0.0], [0.0, 0.0], [-1.0, -1.0]]


@each_edge
def test_frequencies_of_drawn_noise(edge):
    """Statistical, false alarm 1e-9 per category."""
    process, n = LevelNoise(5, edge), 20_000
    x = process.lattice.points().repeat(n, 1)
    moved = process.lattice.nearest(process.perturb(x, 0.3, generator=seeded(5)))
    for level, row in enumerate(process.transition_matrix(0.3)):
        assert_frequencies(torch.bincount(moved[:, level], minlength=5), row)


def test_paper_s_changed_fraction():
    """pi = 0.5 on inner 8-bit levels changes half of the values."""
    x = Lattice().to_unit(torch.randint(1, 255, (100, 3072), generator=seeded(1)))
    process = LevelNoise()
    moved = process.perturb(x, 0.5, generator=seeded(2)) != x
    assert_frequencies(torch.bincount(moved.flatten().long()), torch.tensor([0.5, 0.5]))
    assert process.moved_fraction(x, 0.5) == 0.5


def test_entropy_that_it_adds():
    """Up to 1.5 bits per value at pi = 1/2 and 1 bit at pi = 1."""
    process = LevelNoise(9)
    for pi, bits in ((0.5, 1.5), (1.0, 1.0)):
        row = process.transition_matrix(pi)[4]
        assert -float(torch.special.xlogy(row, row).sum()) / math.log(2.0) == pytest.approx(bits, rel=1e-14)


def test_errors():
    with pytest.raises(ArgumentError, match=r"^edge: got"):
        LevelNoise(17, "wrap")
    with pytest.raises(ArgumentError, match=r"^T: got"):
        LevelNoise(17, T=1.5)
    with pytest.raises(ArgumentError, match=r"^levels: got"):
        LevelNoise(1)
    with pytest.raises(ArgumentError, match="not one of the 17 lattice points"):
        LevelNoise(17).perturb(torch.tensor([[0.03]]), 0.5)
    with pytest.raises(ArgumentError, match="expected 0 <= t <= T"):
        LevelNoise(17).perturb(torch.zeros(1, 1), 1.1)
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match=r"^t: got .*; expected 0 <= t <= T = 1"):
            LevelNoise(17).transition_matrix(t)
        with pytest.raises(ArgumentError, match=r"^t: got .*; expected 0 <= t <= T = 1"):
            LevelNoise(17).moved_fraction(torch.ones(1), t)
    with pytest.raises(ArgumentTypeError, match=r"got dtype torch.uint8"):
        LevelNoise(17).perturb(torch.zeros(1, 1, dtype=torch.uint8), 0.5)
    assert LevelNoise(17) == LevelNoise(17, "clip") != LevelNoise(17, "reflect")


def test_half_precision_data_move_as_often_as_others():
    """Uniforms of bfloat16 are multiples of 1/256 and would move 0.4 and 0.7 per cent. Statistical."""
    process, n = LevelNoise(3), 200_000
    x = torch.zeros(n, 1, dtype=torch.bfloat16)
    noise = process.draw_noise(x, generator=seeded(7))
    assert noise.dtype == torch.float32
    moved = process.perturb(x, 0.01, noise=noise)
    assert moved.dtype == torch.bfloat16
    assert_frequencies(torch.bincount(process.lattice.nearest(moved).flatten()), torch.tensor([0.005, 0.99, 0.005]))
    assert torch.equal(moved, process.perturb(x, 0.01, generator=seeded(7)))
    with pytest.raises(ArgumentTypeError, match=r"^noise: got"):
        process.perturb(x, 0.01, noise=noise.bfloat16())
