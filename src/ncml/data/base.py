"""What every data set in the program has: rows in data units, labels, a lattice, and names of classes."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from ncml.checks import check_count
from ncml.data.values import got_for_tensor
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import Lattice

__all__ = ["DataSet", "DataSource", "Rows"]

MIXING_SEED = 1  # of the data set, not of a run: every run is evaluated on the same examples


class DataSet(Protocol):
    """What training and evaluation ask of data: :class:`~ncml.data.Images`, :class:`~ncml.data.Arrays`, or yours."""

    @property
    def labels(self) -> Tensor | None:
        """Classes ``(N,)`` int64, or None."""

    @property
    def lattice(self) -> Lattice | None:
        """The lattice of the values, or None for real numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if there are none."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor | slice, *, device: torch.device | None = None) -> Tensor:
        """Rows in data units, ``(B, *shape)``."""

    def mixed(self, n: int | None = None) -> Self:
        """``n`` of the rows (all if None, or if there are fewer), in the order of a fixed permutation."""


@dataclass(frozen=True)
class DataSource:
    """Which data to train on: what the settings of every source have in common.

    Args:
        name: The source, one of those in the table ``SOURCES``.
    """

    name: str = "mnist"

    place: ClassVar[str] = "folder"
    """The setting that says where the data are."""

    def load(self, *, train: bool, progress: bool = False) -> DataSet:
        """Read the training or the test examples."""
        raise NotImplementedError

    def moved(self, place: Path) -> Self:
        """The same data, in another file or folder."""
        changed: dict[str, Any] = {self.place: place}
        return replace(self, **changed)


class Rows(abc.ABC):
    """Rows with labels: checks, and the choice of some of them."""

    labels: Tensor | None
    classes: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def subset(self, rows: Tensor | slice) -> Self:
        """Some of the rows, with their labels."""

    def mixed(self, n: int | None = None) -> Self:
        """``n`` of the rows (all if None, or if there are fewer), in the order of a fixed permutation.

        Files are often sorted by class: the first rows in file order say nothing about the others.
        """
        n = len(self) if n is None else min(len(self), check_count(n, "n"))
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(MIXING_SEED))[:n])

    def checked(self, rows: Tensor | slice) -> Tensor | slice:
        """Rows as they may be taken: a slice, or integers ``(B,)`` in range."""
        if isinstance(rows, slice):
            return rows
        if not isinstance(rows, Tensor) or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise ArgumentTypeError(f"rows: got {got}; expected a tensor of integers, or a slice")
        if rows.ndim != 1:
            raise ArgumentError(f"rows: got shape {tuple(rows.shape)}; expected (B,)")
        rows = rows.long()
        low, high = (int(v) for v in rows.aminmax()) if rows.numel() else (0, 0)
        if low < 0 or high >= len(self):
            raise ArgumentError(f"rows: got values in [{low}, {high}]; expected 0 .. {len(self) - 1}")
        return rows

    def check_labels(self) -> None:
        """Refuse labels that do not fit the rows or the classes."""
        labels, n = self.labels, len(self)
        if labels is None:
            return
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            raise ArgumentTypeError(f"labels: got {got_for_tensor(labels, 'labels')}; expected torch.int64, or None")
        if labels.shape != (n,):
            raise ArgumentError(f"labels: got shape {tuple(labels.shape)}; expected ({n},), one per example")
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or (self.classes and high >= len(self.classes)):
            expected = f"0 .. {len(self.classes) - 1}, one of the classes" if self.classes else "0 or more"
            raise ArgumentError(f"labels: got values in [{low}, {high}]; expected {expected}")
