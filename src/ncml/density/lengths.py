"""Rows of different lengths in one batch: which positions count, and what the others hold."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ncml.checks import per_example
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError

__all__ = ["check_lengths", "padded", "positions_that_count", "with_padding"]

PADDING = -1.0  # the first point of every lattice


def positions_that_count(x: Tensor, lengths: Tensor) -> Tensor:
    """Whether a position is one of the first ``lengths[b]`` of its row, bool ``(B, l, 1, ...)``."""
    places = torch.arange(x.shape[1], device=x.device).view(1, -1, *[1] * (x.ndim - 2))
    return places < per_example(lengths, x)


def with_padding(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A batch whose padding holds a number, whatever it held before, without a gradient; and which positions count."""
    counts = positions_that_count(x, lengths)
    return torch.where(counts, x, PADDING), counts


def check_lengths(lengths: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Refuse anything but one number of positions per row of a batch ``(B, l, ...)``, 1 to l; returns int64."""
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ArgumentTypeError(
            f"lengths: got {got}; expected a tensor of integers (B,), the number of positions of each row: "
            f"torch.as_tensor(lengths)"
        )
    if lengths.shape != shape[:1] or lengths.device != device:
        raise ArgumentError(
            f"lengths: got shape {tuple(lengths.shape)} on {lengths.device}; expected ({shape[0]},) on {device}, one "
            f"for each row"
        )
    low, high = (int(v) for v in lengths.aminmax()) if lengths.numel() else (1, 1)
    if low < 1 or high > shape[1]:
        raise ArgumentError(f"lengths: got values in [{low}, {high}]; expected 1 to {shape[1]}, the positions of x")
    return lengths.long()


def padded(density: Any, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401
    """A batch whose padding is a value that every check accepts, and the further arguments of its call.

    Raises:
        UnsupportedError: The density, which is given, takes events of one size only.
        ArgumentError, ArgumentTypeError: The lengths do not fit the batch.
    """
    if lengths is None:
        return x, {}
    if "lengths" not in inspect.signature(density.forward).parameters:
        raise UnsupportedError(
            f"lengths: got some and a {type(density).__name__}, whose forward does not take them; expected a density "
            f"over sequences, such as CausalTransformer, or lengths=None"
        )
    if not isinstance(x, Tensor) or x.ndim < 2:
        return x, {"lengths": lengths}  # refused as x
    lengths = check_lengths(lengths, tuple(x.shape), x.device)
    return with_padding(x, lengths)[0], {"lengths": lengths}
