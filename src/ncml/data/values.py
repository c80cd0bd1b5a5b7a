"""What the values of a data set may be: finite real numbers, or levels of a lattice."""

from __future__ import annotations

import torch
from torch import Tensor

from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import Lattice

__all__ = ["check_kind", "check_values", "got_for_tensor", "in_data_units"]


def check_kind(x: Tensor, lattice: Lattice | None, name: str) -> None:
    """Refuse anything but real numbers, or integers where there is a lattice.

    Raises:
        ArgumentTypeError: No tensor, or one of another dtype.
    """
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise ArgumentTypeError(
            f"{name}: got {got_for_tensor(x, name)}; expected a tensor of real numbers, or of integers"
        )
    if x.is_floating_point() == (lattice is not None):
        expected = "integers, the levels of the lattice" if lattice is not None else "a floating dtype"
        raise ArgumentTypeError(f"{name}: got {x.dtype} and lattice={lattice}; expected {expected}")


def check_values(x: Tensor, lattice: Lattice | None, name: str, row: str = "row") -> None:
    """Refuse numbers that are not finite, also in single precision, in which batches are; or no levels of a lattice.

    Args:
        x: Of a dtype that :func:`check_kind` lets pass, signed, and not empty.
        lattice: The lattice of integers; None for real numbers.
        name: What the message calls them.
        row: What it calls one of them.

    Raises:
        ArgumentError: There are some; those that are not finite are named with their row.
    """
    if lattice is not None:
        low, high = (int(v) for v in x.aminmax())
        if low < 0 or high >= lattice.levels:
            raise ArgumentError(f"{name}: got values in [{low}, {high}]; expected 0 .. {lattice.levels - 1}")
        return
    if not bool(torch.isfinite(x.sum())) and (bad := ~torch.isfinite(x.flatten(1)).all(1)).any():
        raise ArgumentError(
            f"{name}: got NaN or infinity in {int(bad.sum())} of {len(x)} {row}s, the first in {row} "
            f"{int(bad.nonzero()[0])}; clean the data"
        )
    if x.dtype == torch.float64 and bool((x.abs() > torch.finfo(torch.float32).max).any()):
        raise ArgumentError(
            f"{name}: got numbers up to {float(x.abs().max()):g}; expected at most 3e38, for single precision; change "
            f"the unit"
        )


def in_data_units(x: Tensor, lattice: Lattice | None, dtype: torch.dtype) -> Tensor:
    """Real numbers in a dtype; levels as floats on [-1, 1]."""
    return x.to(dtype) if lattice is None else lattice.to_unit(x, dtype=dtype)


def got_for_tensor(value: object, name: str) -> str:
    """What an error got in place of a tensor of some dtype, with the remedy for arrays and tables."""
    if isinstance(value, Tensor):
        return str(value.dtype)
    return f"{type(value).__name__} (no tensor: torch.as_tensor(numpy.asarray({name})))"
