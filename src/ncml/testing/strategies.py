"""Hypothesis strategies for property-based tests of processes, densities and samplers.

>>> from hypothesis import given
>>> from ncml import VPSDE
>>> from ncml.testing import strategies
>>> process = VPSDE.at_noise(0.1)
>>> @given(x=strategies.batches((3,)), t=strategies.times(process))
... def test_shape(x, t):
...     assert process.perturb(x, t).shape == x.shape

Needs the extra ``ncml[testing]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncml.errors import ArgumentError, MissingExtraError
from ncml.noise import GaussianProcess, Lattice, LinearSDE, NoiseProcess
from ncml.testing.reference import OrnsteinUhlenbeck

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError(
        "ncml.testing.strategies: got no hypothesis; expected it to be installed; pip install 'ncml[testing]'"
    ) from error

__all__ = [
    "batches",
    "event_shapes",
    "gaussian_processes",
    "generators",
    "lattice_batches",
    "lattices",
    "linear_sdes",
    "row_times",
    "times",
]

WIDTHS = {torch.float32: 32, torch.float64: 64}


def event_shapes(*, max_dims: int = 3, max_side: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of one example, of 1 to ``max_dims`` dimensions."""
    return st.lists(st.integers(1, max_side), min_size=1, max_size=max_dims).map(tuple)


def times(process: NoiseProcess) -> st.SearchStrategy[float]:
    """Times from 0 to T, both included and often drawn, down to denormal numbers."""
    return st.sampled_from((0.0, process.T)) | st.floats(0.0, process.T)


@st.composite
def row_times(draw: st.DrawFn, process: NoiseProcess, rows: int) -> Tensor:
    """One time per row, ``(rows,)`` float64."""
    values = draw(st.lists(times(process), min_size=rows, max_size=rows))
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def batches(
    draw: st.DrawFn,
    event_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    min_rows: int = 1,
    max_rows: int = 4,
    bound: float = 100.0,
) -> Tensor:
    """Batches ``(B, *event_shape)`` of finite numbers within ``bound``, with zeros of both signs.

    Args:
        event_shape: Shape of one example; the numbers are drawn one by one, so keep it small.
        dtype: float32 or float64.
        min_rows, max_rows: Range of B.
        bound: Largest absolute value.
    """
    if dtype not in WIDTHS:
        raise ArgumentError(f"dtype: got {dtype}; expected torch.float32 or torch.float64")
    shape = (draw(st.integers(min_rows, max_rows)), *event_shape)
    # Python's bounds must be numbers of the width that is drawn.
    limit = float(torch.tensor(bound, dtype=dtype))
    number = st.floats(-limit, limit, width=WIDTHS[dtype])  # type: ignore[arg-type]
    size = math.prod(shape)
    return torch.tensor(draw(st.lists(number, min_size=size, max_size=size)), dtype=dtype).reshape(shape)


def lattices(*, max_levels: int = 256) -> st.SearchStrategy[Lattice]:
    """Lattices of 2 to ``max_levels`` levels."""
    return st.integers(2, max_levels).map(Lattice)


@st.composite
def lattice_batches(
    draw: st.DrawFn,
    lattice: Lattice,
    event_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    min_rows: int = 1,
    max_rows: int = 4,
) -> Tensor:
    """Batches ``(B, *event_shape)`` of lattice points, first and last level included."""
    shape = (draw(st.integers(min_rows, max_rows)), *event_shape)
    size = math.prod(shape)
    levels = draw(st.lists(st.integers(0, lattice.levels - 1), min_size=size, max_size=size))
    return lattice.to_unit(torch.tensor(levels, dtype=torch.int64), dtype=dtype).reshape(shape)


@st.composite
def gaussian_processes(draw: st.DrawFn) -> GaussianProcess:
    r"""Processes :math:`\alpha = e^{-at}`, :math:`\sigma = b\,t^c` that are known by these two functions only."""
    rate = draw(st.floats(0.0, 3.0))
    scale = draw(st.floats(0.01, 3.0))
    power = draw(st.floats(0.5, 2.0))
    return GaussianProcess(lambda t: torch.exp(-rate * t), lambda t: scale * t.pow(power), T=draw(st.floats(0.1, 2.0)))


@st.composite
def linear_sdes(draw: st.DrawFn) -> LinearSDE:
    r"""The SDEs :math:`dx = -a\,x\,dt + b\,dw` with constant coefficients."""
    return OrnsteinUhlenbeck(
        T=draw(st.floats(0.01, 2.0)), rate=draw(st.floats(0.01, 3.0)), diffusivity=draw(st.floats(0.01, 3.0))
    )


def generators() -> st.SearchStrategy[torch.Generator]:
    """Seeded generators on the CPU."""
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
