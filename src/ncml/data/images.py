"""Images as integer levels, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from ncml._checks import check_count, check_probability
from ncml.data.digits import load_digits
from ncml.data.download import download_cifar10, download_mnist
from ncml.data.files import load_cifar10, load_mnist
from ncml.data.folders import list_split, read_images
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.lattice import Lattice

__all__ = ["ImageSource", "Images"]

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOADERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mnist": load_mnist, "cifar10": load_cifar10}
DOWNLOADS: dict[str, Callable[..., Path]] = {"mnist": download_mnist, "cifar10": download_cifar10}
FOLDER_ONLY = {"size": None, "channels": 3, "test_fraction": 0.1, "cache": None}
COARSER = (2, 4, 8, 16, 32, 64, 128, 256)
MIXING_SEED = 1  # of the data set, not of a run: every run is evaluated on the same images
CHUNK = 2048  # images pooled at a time; their sums take four times the memory of levels


@dataclass(frozen=True, eq=False)
class Images:
    """Images as integer levels, which take an eighth to a quarter of the memory of the same numbers as floats.

    Args:
        levels: Integers ``(N, C, H, W)`` in ``0 .. lattice.levels - 1``; uint8 for up to 256 levels.
        labels: Classes, int64 ``(N,)``, from 0; or None.
        lattice: The lattice of the levels.
        classes: Names of the classes; empty if they have none.

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

    def __post_init__(self) -> None:
        self._check_levels()
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_levels(self) -> None:
        k, highest = self.levels, self.lattice.levels - 1
        if not isinstance(k, Tensor) or k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            got = k.dtype if isinstance(k, Tensor) else type(k).__name__
            raise ArgumentTypeError(f"levels: got {got}; expected an integer tensor of levels")
        if highest < 256 and k.dtype != torch.uint8:
            raise ArgumentTypeError(f"levels: got {k.dtype}; expected torch.uint8 for {highest + 1} levels; convert it")
        if k.ndim != 4 or 0 in k.shape:
            raise ArgumentError(f"levels: got shape {tuple(k.shape)}; expected (N, C, H, W), at least one image")
        if highest < torch.iinfo(k.dtype).max or k.dtype.is_signed:  # else every value is a level, also those on disk
            low, high = (int(v) for v in (k.long() if k.dtype != torch.uint8 else k).aminmax())
            if low < 0 or high > highest:
                raise ArgumentError(f"levels: got values in [{low}, {high}]; expected 0 .. {highest}")

    def _check_labels(self, labels: Tensor) -> None:
        n = len(self.levels)
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ArgumentTypeError(f"labels: got {got}; expected torch.int64, or None")
        if labels.shape != (n,):
            raise ArgumentError(f"labels: got shape {tuple(labels.shape)}; expected ({n},), one per image")
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or (self.classes and high >= len(self.classes)):
            expected = f"0 .. {len(self.classes) - 1}, one of the classes" if self.classes else "0 or more"
            raise ArgumentError(f"labels: got values in [{low}, {high}]; expected {expected}")

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
            device: Where to; the device of the levels if None.
            dtype: A floating dtype.

        Raises:
            ArgumentError: Rows are out of range or of another shape.
            ArgumentTypeError: Rows are neither integers nor a slice.
        """
        return self.lattice.to_unit(self.levels[self._checked(rows)].to(device), dtype=dtype)

    def subset(self, rows: Tensor | slice) -> Images:
        """Some of the images, with their labels; a slice shares memory with these.

        Args:
            rows: As for :meth:`batch`; at least one.

        Raises:
            ArgumentError: Rows are out of range or of another shape, or none.
            ArgumentTypeError: Rows are neither integers nor a slice.
        """
        rows = self._checked(rows)
        labels = None if self.labels is None else self.labels[rows]
        return Images(self.levels[rows], labels, self.lattice, self.classes)

    def mixed(self, n: int | None = None) -> Images:
        """``n`` of the images (all if None, or if there are fewer), in the order of a fixed permutation.

        Files often lie class by class: the first images as they come say nothing of the others.
        """
        n = len(self) if n is None else min(len(self), check_count(n, "n"))
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(MIXING_SEED))[:n])

    def _checked(self, rows: Tensor | slice) -> Tensor | slice:
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


@dataclass(frozen=True)
class ImageSource:
    """Which images to train on, as settings that a file or a command line can hold.

    Images are read, limited, padded, pooled and made coarser, in this order.

    Args:
        name: mnist, cifar10, digits (of scikit-learn, 8x8 in 17 levels) or folder, of image files.
        folder: Where the files are. Needed for folder; mnist and cifar10 default to $NCML_DATA/NAME if
            there is such a folder, else they are downloaded; digits has none. A folder of image files has
            subfolders train and test, or is split by test_fraction; in each, subfolders are classes.
        size: Folder only: cut a centred square and resize it to this side; see
            ncml.data.read_image_folder.
        channels: Folder only: 3, or 1 for grey.
        pool: Replace pool x pool pixels by their mean, rounded to the nearest level, ties to the even one. Sides that
            are no multiple of it are first continued with level 0 on the right and below.
        pad: Pixels of level 0 added on all four sides before pooling: with pad=2, pool=2, MNIST is 16x16.
        levels: Number of levels, 256 or a smaller power of two; level k of 256 becomes k * levels // 256.
            digits keep their 17.
        limit: Only the first so many images of each split. In a folder with train and test that is in the
            order of the paths, so class by class; a folder that is split here is shuffled first.
        test_fraction: Folder without train and test only: the share of test images, at least one, chosen by
            a fixed permutation, the same in every run.
        cache: Folder only: keep decoded images in this folder; see ncml.data.read_image_folder.

    Raises:
        ArgumentError: A setting is out of range or does not belong to the source.
    """

    name: Literal["mnist", "cifar10", "digits", "folder"] = "mnist"
    folder: Path | None = None
    size: int | None = None
    channels: Literal[1, 3] = 3
    pool: int = 1
    pad: int = 0
    levels: int = 256
    limit: int | None = None
    test_fraction: float = 0.1
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in ("mnist", "cifar10", "digits", "folder"):
            raise ArgumentError(f"name: got {self.name!r}; expected mnist, cifar10, digits or folder")
        if self.name == "folder" and self.folder is None:
            raise ArgumentError("folder: got None; expected the folder of the image files, for name='folder'")
        if self.name == "digits" and self.folder is not None:
            raise ArgumentError(f"folder: got {self.folder}; expected None, since digits come with scikit-learn")
        for setting, default in FOLDER_ONLY.items():
            if self.name != "folder" and getattr(self, setting) != default:
                raise ArgumentError(
                    f"{setting}: got {getattr(self, setting)!r} with name={self.name!r}; expected {default!r}; "
                    f"it is for name='folder'"
                )
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.channels not in (1, 3):
            raise ArgumentError(f"channels: got {self.channels!r}; expected 1 or 3")
        check_count(self.pool, "pool")
        check_count(self.pad, "pad", minimum=0)
        for setting in ("size", "limit"):
            if getattr(self, setting) is not None:
                check_count(getattr(self, setting), setting)
        check_probability(self.test_fraction, "test_fraction")
        if self.test_fraction == 1.0:
            raise ArgumentError("test_fraction: got 1; expected less, so that there are training images")
        if self.levels not in COARSER:
            raise ArgumentError(f"levels: got {self.levels!r}; expected 256 or a smaller power of two")
        if self.name == "digits" and self.levels != 256:
            raise ArgumentError(f"levels: got {self.levels} with name='digits'; expected 256; digits keep their 17")

    def load(self, *, train: bool, progress: bool = False) -> Images:
        """Read the images.

        Args:
            train: The training images, or the test images.
            progress: Show progress of a download or of reading a folder.

        Raises:
            DatasetError: A file is missing or damaged, or a download failed.
            MissingExtraError: pooch (to download), Pillow (image files) or scikit-learn (digits) is not installed.
        """
        lattice = Lattice(17 if self.name == "digits" else 256)
        levels, labels, classes = self._read(train, lattice, progress)
        levels = _pooled(levels, self.pad, self.pool)
        if self.levels < lattice.levels and self.name != "digits":
            levels, lattice = levels // (256 // self.levels), Lattice(self.levels)
        return Images(levels, labels, lattice, classes)

    def _read(self, train: bool, lattice: Lattice, progress: bool) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
        """The limited images as they are in the files."""
        if self.name == "folder":
            assert self.folder is not None
            images = list_split(self.folder, train=train, test_fraction=self.test_fraction)
            images = images.subset(range(min(len(images.names), self.limit or len(images.names))))
            levels = read_images(images, size=self.size, channels=self.channels, cache=self.cache, progress=progress)
            return levels, images.label_tensor(), images.classes
        if self.name == "digits":
            digits = load_digits()
            x, labels = (digits.train, digits.train_labels) if train else (digits.test, digits.test_labels)
            levels = lattice.nearest(x).to(torch.uint8)
        else:
            levels, labels = LOADERS[self.name](self._files(progress), train=train)
        if self.limit is not None and self.limit < len(levels):
            levels, labels = levels[: self.limit].clone(), labels[: self.limit].clone()  # lets go of the others
        return levels, labels, CIFAR10 if self.name == "cifar10" else DIGITS

    def _files(self, progress: bool) -> Path:
        """The folder with the files of MNIST or CIFAR-10."""
        if self.folder is not None:
            return self.folder
        if "NCML_DATA" in os.environ and (found := Path(os.environ["NCML_DATA"]) / self.name).is_dir():
            return found
        return DOWNLOADS[self.name](progress=progress)


def _pooled(levels: Tensor, pad: int, pool: int) -> Tensor:
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
