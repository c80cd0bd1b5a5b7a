"""Checks of training data before the first step: numbers that are not finite, scales, lattices nobody mentioned."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError, ColumnScaleWarning, LatticeDataWarning
from ncml.objective import NCMLObjective

__all__ = ["check_rows", "lattice_of", "warn_of_data"]

MOST_POINTS = 1024  # more distinct values in a sample are no lattice worth the name
REPEATS = 8  # on average, of every distinct value: less often says nothing
SAMPLE = 65_536  # values looked at
TOLERANCE = 1e-3  # of the spacing, as for values off a Lattice
MOST_ROUNDING = 0.05  # more of the spacing cannot be told from no lattice
CHUNK = 4096
MOST_SIZE = 100.0  # root mean square of values, or one over it: models start for data of order one
MOST_SCALE = 100.0  # between spreads of columns: noise of a quarter of the one is 25 times the other
SHOWN = 5


def check_rows(batch: Callable[[slice], Tensor], n: int, name: str) -> None:
    """Refuse a table with NaN or infinity, naming its first bad row.

    Args:
        batch: Takes a slice of rows to their values.
        n: Number of rows.
        name: What the message calls the table.
    """
    for start in range(0, n, CHUNK):
        x = batch(slice(start, min(n, start + CHUNK)))
        if not x.is_floating_point() or bool(torch.isfinite(x.sum())):
            continue
        bad = ~torch.isfinite(x.flatten(1)).all(1)
        if bool(bad.any()):
            raise ArgumentError(
                f"{name}: got NaN or infinity in row {start + int(bad.nonzero()[0])}; expected finite numbers; clean "
                f"the data"
            )


def lattice_of(x: Tensor) -> tuple[int, float, float] | None:
    """Number of points, first and last one of a lattice that all values lie on, if there is one that is plain to see.

    That takes few distinct values, each of which occurs often, at distances that are multiples of the smallest.
    """
    values = _some(x)
    points, counts = values.unique(return_counts=True)
    if not 2 <= len(points) <= MOST_POINTS:
        return None
    span = float(points[-1] - points[0])
    gaps = points.diff()
    distinct = torch.cat([gaps > 1e-6 * span, torch.tensor([True])])  # the others differ by rounding
    points, gaps = points[distinct], points[distinct].diff()
    if len(points) < 2 or values.numel() < REPEATS * len(points) or float(counts.double().median()) < 2.0:
        return None
    step = float(gaps.min())
    rounding = 4.0 * torch.finfo(torch.float32).eps * float(points.abs().max()) / step
    multiples = gaps / step
    off = float((multiples - multiples.round()).abs().max())
    if rounding > MOST_ROUNDING or off > max(TOLERANCE, rounding) or span / step > 65_535:
        return None
    return round(span / step) + 1, float(points[0]), float(points[-1])


def warn_of_data(density: NoiseConditionalDensity, objective: NCMLObjective, x: Tensor, stacklevel: int) -> None:
    """Warn if data that are taken for real numbers lie on a lattice, or have other scales than models are made for."""
    if density.lattice is not None or objective.dequantize is not None:
        return
    told = _warn_of_scales(x, stacklevel + 1)
    found = lattice_of(x)
    if found is None:
        if not told:
            _warn_of_size(x, stacklevel + 1)
        return
    levels, low, high = found
    scale = ""
    if abs(low + 1.0) > 1e-3 or abs(high - 1.0) > 1e-3:
        scale = f", with the data as integers from 0 and scaled to [-1, 1] by Lattice({levels}).to_unit"
    warnings.warn(
        f"x: got data on {levels} evenly spaced values ({low:g} to {high:g}) and a {type(density).__name__} without a "
        f"lattice: its likelihood at t = 0 is unbounded there, and training finds that out; expected "
        f"NCMLObjective(process, dequantize=Lattice({levels})){scale}; or a density with that lattice",
        LatticeDataWarning,
        stacklevel=stacklevel + 1,
    )


def _some(x: Tensor) -> Tensor:
    """Values spread over the data, in which neighbours may be alike, in double precision."""
    values = x.detach().flatten()
    return values[:: max(1, -(-values.numel() // SAMPLE))].double().cpu()


def _warn_of_scales(x: Tensor, stacklevel: int) -> bool:
    """Warn of constant columns of a table, and of columns of very different scales; returns whether it said the latter.

    Noise has one size for all columns, and a column without spread has no density.
    """
    if x.ndim != 2 or len(x) < 2:
        return False
    std = x.double().std(0)
    spread = std > 1e-7 * x.double().abs().amax(0)  # less is rounding
    if (constant := (~spread).nonzero().flatten().tolist()) and bool(spread.any()):
        listed = ", ".join(map(str, constant[:SHOWN])) + (", ..." if len(constant) > SHOWN else "")
        warnings.warn(
            f"x: got a table with constant columns (from 0: {listed}), whose likelihood is unbounded; leave them out",
            ColumnScaleWarning,
            stacklevel=stacklevel + 1,
        )
    small = int(std.masked_fill(~spread, torch.inf).argmin())
    large = int(std.argmax())
    ratio = float(std[large] / std[small]) if bool(spread.any()) else 1.0
    if ratio > MOST_SCALE:
        warnings.warn(
            f"x: got columns of very different scales, from a standard deviation of {float(std[small]):.3g} in column "
            f"{small} to {float(std[large]):.3g} in column {large} (from 0): noise has one size for all; expected a "
            f"ratio of at most {MOST_SCALE:g}, not {ratio:.3g}; scale every column: (x - x.mean(0)) / x.std(0)",
            ColumnScaleWarning,
            stacklevel=stacklevel + 1,
        )
    return ratio > MOST_SCALE


def _warn_of_size(x: Tensor, stacklevel: int) -> None:
    """Warn of data that are not of order one."""
    values = _some(x)
    size = float(values.square().mean().sqrt()) if values.numel() else 0.0
    if (size > MOST_SIZE or 0.0 < size < 1.0 / MOST_SIZE) and bool((values != values[0]).any()):
        each = "0" if x.ndim == 2 else ""  # columns of a table may lie anywhere
        warnings.warn(
            f"x: got data with a root mean square of {size:.3g}; expected data of order one, for which models and "
            f"learning rates are made; scale them: (x - x.mean({each})) / x.std({each})",
            ColumnScaleWarning,
            stacklevel=stacklevel + 1,
        )
