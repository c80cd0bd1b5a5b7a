"""Windows of long sequences, cut when a batch asks for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ncml.checks import check_count, signed
from ncml.data.base import Rows
from ncml.data.split import Choice
from ncml.data.values import check_kind, check_values, in_data_units
from ncml.errors import ArgumentError
from ncml.noise import Lattice

__all__ = ["Windows", "cut_windows"]

CHUNK = 4096  # windows looked at at a time


@dataclass(frozen=True, eq=False)
class Windows(Rows):
    """Windows of one length from sequences that are stored once: overlapping windows take no extra memory.

    Args:
        series: All sequences one after another, ``(T, C)``: floating, finite and in data units; or, with a lattice,
            integers in ``0 .. lattice.levels - 1``.
        starts: Where the windows begin, int64 ``(N,)``.
        length: Number of positions in a window.
        lattice: The lattice of integer values; None for real ones.
        rate: Samples per second, for recordings; else None.
        remark: What was left out, in words; empty if nothing was.
        choice: How they were chosen, if they were: the record that a checkpoint keeps.
        ends: Where the sequence of each window ends, int64 ``(N,)``; None if there is only one sequence.

    Raises:
        ArgumentError: There are no windows, they reach beyond the sequences, or a value is not what it should be.
        ArgumentTypeError: Values are of another type.

    Example:
        >>> from ncml.data import Windows
        >>> windows = Windows(torch.arange(5.0)[:, None], torch.tensor([0, 2]), 3)
        >>> len(windows), windows.shape
        (2, (3, 1))
        >>> windows.batch(torch.tensor([1])).flatten()
        tensor([2., 3., 4.])
    """

    series: Tensor
    starts: Tensor
    length: int
    lattice: Lattice | None = None
    rate: int | None = None
    remark: str = ""
    choice: Choice | None = None
    ends: Tensor | None = None
    labels: Tensor | None = field(default=None, init=False)
    classes: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        check_count(self.length, "length")
        check_kind(self.series, self.lattice, "series")
        object.__setattr__(self, "series", signed(self.series))
        x, starts = self.series, self.starts
        if x.ndim != 2 or 0 in x.shape:
            raise ArgumentError(f"series: got shape {tuple(x.shape)}; expected (T, C), at least one position")
        check_values(x, self.lattice, "series", "position")
        if starts.ndim != 1 or starts.dtype != torch.int64 or not starts.numel():
            raise ArgumentError(f"starts: got {starts.dtype} {tuple(starts.shape)}; expected int64 (N,), at least one")
        if int(starts.min()) < 0 or int(starts.max()) + self.length > len(x):
            raise ArgumentError(
                f"starts: got {int(starts.min())} to {int(starts.max())} for windows of {self.length}; expected such "
                f"that they lie within {len(x)} positions"
            )
        ends = self.ends
        if ends is not None and (ends.shape != starts.shape or bool((ends < starts + self.length).any())):
            raise ArgumentError(
                f"ends: got shape {tuple(ends.shape)}; expected {tuple(starts.shape)}, none before its window's end"
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def shape(self) -> tuple[int, int]:
        """``(L, C)``, positions and channels of a window."""
        return self.length, self.series.shape[1]

    def batch(
        self, rows: Tensor | slice, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Windows in data units, ``(B, L, C)``; levels become floats on [-1, 1].

        Args:
            rows: Which windows: integers ``(B,)`` in ``0 .. N - 1``, in any order, or a slice.
            device: Target device; that of the series if None.
            dtype: A floating dtype.
        """
        part = self.series[self.starts[self.checked(rows), None] + self._offsets].to(device)
        return in_data_units(part, self.lattice, dtype)

    def subset(self, rows: Tensor | slice) -> Windows:
        """Some of the windows, of the same series."""
        rows = self.checked(rows)
        return replace(self, starts=self.starts[rows], ends=None if self.ends is None else self.ends[rows])

    def of_length(self, length: int) -> Windows | None:
        """Windows of another length that begin where these do.

        Args:
            length: Number of positions in each.

        Returns:
            Those that end within their sequence; None if there are none.
        """
        ends = len(self.series) if self.ends is None else self.ends
        rows = (self.starts + check_count(length, "length") <= ends).nonzero()[:, 0]
        return replace(self.subset(rows), length=length) if len(rows) else None

    @functools.cached_property
    def _offsets(self) -> Tensor:
        return torch.arange(self.length)


def cut_windows(
    sequences: Sequence[Tensor],
    names: Sequence[str],
    length: int,
    hop: int | None = None,
    *,
    lattice: Lattice | None = None,
    rate: int | None = None,
    min_std: float = 0.0,
    unit: float = 1.0,
    remedy: str = "remove the sequence",
) -> Windows:
    """Windows of sequences, each from within one sequence.

    Args:
        sequences: ``(T_i, C)`` each, of one type; levels of the lattice if there is one.
        names: What messages call them.
        length: Number of positions in a window.
        hop: Positions from the start of one window to that of the next; a whole window if None.
        lattice, rate: As for :class:`Windows`.
        min_std: Windows with a smaller standard deviation are left out and counted.
        unit: The unit of ``min_std``, in data units.
        remedy: What to do about a sequence that is too short, besides a smaller window.

    Returns:
        The windows, whose ``remark`` says how many were left out, and how many positions at the ends of sequences lie
        in no window.

    Raises:
        ArgumentError: A sequence that is shorter than a window, or no window that is left; the message names it.
    """
    hop = length if hop is None else hop
    length = check_count(length, "window")
    hop = check_count(hop, "hop")
    starts, ends, total, unseen = [], [], 0, 0
    for sequence, name in zip(sequences, names, strict=True):
        if len(sequence) < length:
            turned = ""
            if len(sequence) < (channels := sequence.shape[1]):
                turned = f"; series are (positions, channels): if these {channels} are its positions, transpose it"
            raise ArgumentError(
                f"{name}: got {len(sequence)} positions; expected at least {length}, those of a window; take a smaller "
                f"window, or {remedy}{turned}"
            )
        own = torch.arange(0, len(sequence) - length + 1, hop)
        starts.append(own + total)
        unseen += len(sequence) - int(own[-1]) - length + max(0, hop - length) * (len(own) - 1)
        total += len(sequence)
        ends.append(torch.full_like(own, total))
    windows = Windows(torch.cat(list(sequences)), torch.cat(starts), length, lattice, rate, ends=torch.cat(ends))
    loud = torch.ones(len(windows), dtype=torch.bool)
    if min_std > 0.0:
        parts = torch.arange(len(windows)).split(CHUNK)
        stds = [windows.batch(part, dtype=torch.float64).flatten(1).std(1, correction=0) for part in parts]
        loud = torch.cat(stds) >= min_std * unit
    if not bool(loud.any()):
        raise ArgumentError(
            f"min_std: got {min_std:g}, and {len(windows)} windows of a standard deviation of at most "
            f"{float(torch.cat(stds).max()) / unit:g}; expected less"
        )
    said = []
    if left_out := int((~loud).sum()):
        said.append(
            f"{left_out:,} of {len(windows):,} windows, of a standard deviation below {min_std:g}, were left out"
        )
    if unseen:
        said.append(f"{unseen:,} of {total:,} positions lie in no window")
    return replace(windows.subset(loud.nonzero()[:, 0]), remark="; ".join(said))
