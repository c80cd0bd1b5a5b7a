"""Images as integer levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from ncml.data.base import Rows
from ncml.data.split import Choice
from ncml.data.values import got_for_tensor
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import Lattice

__all__ = ["Images", "pooled"]

CHUNK = 2048  # images pooled at a time; their sums take four times the memory of levels


@dataclass(frozen=True, eq=False)
class Images(Rows):
    """Images as integer levels, which take an eighth to a quarter of the memory that floats would.

    Args:
        levels: Integers ``(N, C, H, W)`` in ``0 .. lattice.levels - 1``; uint8 for up to 256 levels.
        labels: Classes, int64 ``(N,)``, from 0; or None.
        lattice: The lattice of the levels.
        classes: Names of the classes; empty if there are none.
        choice: How the images were chosen, if they were: the record that a checkpoint keeps.

    Raises:
        ArgumentError: A shape, level or label does not fit, or there are no images.
        ArgumentTypeError: Levels or labels are of another type.

    Example:
        >>> from ncml.data import Images
        >>> images = Images(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), None, ncml.Lattice(256))
        >>> len(images), images.shape
        (1, (1, 1, 2))
        >>> images.batch(slice(1))
        tensor([[[[-1.,  1.]]]])
    """

    levels: Tensor
    labels: Tensor | None
    lattice: Lattice
    classes: tuple[str, ...] = ()
    choice: Choice | None = None

    def __post_init__(self) -> None:
        self._check_levels()
        self.check_labels()

    def _check_levels(self) -> None:
        k, highest = self.levels, self.lattice.levels - 1
        if not isinstance(k, Tensor) or k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise ArgumentTypeError(f"levels: got {got_for_tensor(k, 'levels')}; expected an integer tensor of levels")
        if highest < 256 and k.dtype != torch.uint8:
            raise ArgumentTypeError(f"levels: got {k.dtype}; expected torch.uint8 for {highest + 1} levels; convert it")
        if k.ndim != 4 or 0 in k.shape:
            raise ArgumentError(f"levels: got shape {tuple(k.shape)}; expected (N, C, H, W), at least one image")
        if highest < torch.iinfo(k.dtype).max or k.dtype.is_signed:  # else every value is a level, also those on disk
            low, high = (int(v) for v in (k.long() if k.dtype != torch.uint8 else k).aminmax())
            if low < 0 or high > highest:
                raise ArgumentError(f"levels: got values in [{low}, {high}]; expected 0 .. {highest}")

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, c, h, w = self.levels.shape
        return c, h, w

    def batch(
        self, rows: Tensor | slice, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Images in data units, ``(B, C, H, W)`` on [-1, 1]; levels move to the device and become floats there.

        Args:
            rows: Which images: integers ``(B,)`` in ``0 .. N - 1`` on the device of the levels, in any order, or a
                slice.
            device: Target device; that of the levels if None.
            dtype: A floating dtype.

        Raises:
            ArgumentError: Rows are out of range or of another shape.
            ArgumentTypeError: Rows are neither integers nor a slice.
        """
        return self.lattice.to_unit(self.levels[self.checked(rows)].to(device), dtype=dtype)

    def subset(self, rows: Tensor | slice) -> Images:
        """Some of the images, with their labels; a slice shares memory with these.

        Args:
            rows: As for :meth:`batch`; at least one.

        Raises:
            ArgumentError: Rows are out of range or of another shape, or none.
            ArgumentTypeError: Rows are neither integers nor a slice.
        """
        rows = self.checked(rows)
        labels = None if self.labels is None else self.labels[rows]
        return Images(self.levels[rows], labels, self.lattice, self.classes, self.choice)


def pooled(levels: Tensor, pad: int, pool: int) -> Tensor:
    """Pad with level 0 and take the mean over squares of ``pool`` pixels, rounded half to even."""
    if pad == 0 and pool == 1:
        return levels
    return torch.cat([_pool_some(part, pad, pool) for part in levels.split(CHUNK)])


def _pool_some(levels: Tensor, pad: int, pool: int) -> Tensor:
    height, width = (side + 2 * pad for side in levels.shape[-2:])
    padded = zero_pad(levels, (pad, pad + -width % pool, pad, pad + -height % pool))
    if pool == 1:
        return padded
    squares = padded.unflatten(-1, (-1, pool)).unflatten(-3, (-1, pool))
    mean = squares.sum((-3, -1), dtype=torch.int32).double() / pool**2
    return mean.round().to(levels.dtype)
