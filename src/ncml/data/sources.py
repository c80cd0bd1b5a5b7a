"""Where data come from: one table of sources, with their settings for a file or the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ncml.checks import check_count, check_probability
from ncml.data.arrays import Arrays, read_arrays
from ncml.data.base import DataSet, DataSource
from ncml.data.digits import load_digits
from ncml.data.download import download_cifar10, download_mnist
from ncml.data.files import load_cifar10, load_mnist
from ncml.data.folders import list_split, read_images
from ncml.data.images import Images, pooled
from ncml.data.sequences import AudioSource, SeriesSource
from ncml.errors import ArgumentError
from ncml.noise import Lattice

__all__ = ["COARSER", "SOURCES", "ArraySource", "ImageSource", "SourceKind", "source_settings"]

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER_ONLY = {"size": None, "channels": 3, "test_fraction": 0.1, "cache": None}
COARSER = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class ImageSource(DataSource):
    """Which images to train on: settings for a file or the command line.

    Images are read, limited, padded, pooled and reduced to fewer levels, in this order.

    Args:
        name: mnist, cifar10, digits (scikit-learn's, 8x8 in 17 levels) or folder (of image files). With settings of
            their own: array (numbers in a NumPy file), audio (a folder of recordings), series (numbers over time in
            a file).
        folder: Where the files are. Required for folder. For mnist and cifar10 the default is $NCML_DATA/NAME if that
            folder exists, else they are downloaded; digits has none. A folder of image files has subfolders train and
            test (or training, testing, val, valid, validation, in upper or lower case), or else is split by
            test_fraction; subfolders within these are classes.
        size: Folder only: cut out a centred square and resize it to this side; see ncml.data.read_image_folder.
        channels: Folder only: 3, or 1 for grey.
        pool: Replace each square of pool x pool pixels by its mean, rounded to the nearest level (ties to the even
            one). Sides that are not a multiple of pool are first extended with level 0, on the right and at the bottom.
        pad: Pixels of level 0 to add on all four sides before pooling: pad=2 and pool=2 make MNIST 16x16.
        levels: Number of levels, 256 or a smaller power of two; level k of 256 becomes k * levels // 256. digits keep
            their 17.
        limit: Use only this many images of each split, the first ones. If a folder has train and test, they are taken
            in the order of their paths, so class by class; a folder that is split here is shuffled first.
        test_fraction: Folder without train and test only: the approximate share of test images, at least one. The path
            of each image decides, so adding or removing images does not move the others between the two.
        cache: Folder only: keep decoded images in this folder; see ncml.data.read_image_folder.

    Raises:
        ArgumentError: A setting is out of range or does not belong to the source.
    """

    name: str = "mnist"
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
        known = [kind.name for kind in SOURCES.values() if kind.settings is ImageSource]
        if self.name not in known:
            raise ArgumentError(f"name: got {self.name!r}; expected one of {', '.join(known)}")
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
        levels, labels, classes, lattice, *choice = SOURCES[self.name].read(self, train, progress)
        levels = pooled(levels, self.pad, self.pool)
        if self.levels < lattice.levels and self.name != "digits":
            levels, lattice = levels // (256 // self.levels), Lattice(self.levels)
        return Images(levels, labels, lattice, classes, *choice)

    def limited(self, levels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The first images, up to the limit."""
        if self.limit is not None and self.limit < len(levels):
            return levels[: self.limit].clone(), labels[: self.limit].clone()  # lets go of the others
        return levels, labels

    def files(self, progress: bool) -> Path:
        """The folder with the files of a data set that can be downloaded."""
        if self.folder is not None:
            return self.folder
        if "NCML_DATA" in os.environ and (found := Path(os.environ["NCML_DATA"]) / self.name).is_dir():
            return found
        download = SOURCES[self.name].download
        assert download is not None
        return download(progress=progress)


@dataclass(frozen=True)
class ArraySource(DataSource):
    """Tensors or tables in a NumPy file: settings for a file or the command line.

    A .npz file has the arrays x_train and x_test (or train and test), or x alone, which is split by test_fraction; a
    .npy file is x. Each is N x ..., one example per row. Integers 0, 1, ... are levels of a lattice; floating-point
    numbers have no lattice. Labels are integers: y_train and y_test, or y alongside x. Nothing is ever unpickled.

    Args:
        name: array. The other sources have settings of their own: mnist, cifar10, digits, folder, audio, series.
        file: The .npz or .npy file.
        levels: Number of levels of integers; if not given, one more than the largest value in the file.
        limit: Use only this many examples of each split, the first ones; x, which is split here, is shuffled first.
        test_fraction: The approximate share of test examples of x, at least one. The numbers in each row decide, so
            adding or removing rows does not move the others between the two.

    Raises:
        ArgumentError: A setting is out of range.
    """

    place: ClassVar[str] = "file"

    name: str = "array"
    file: Path | None = None
    levels: int | None = None
    limit: int | None = None
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.name != "array":
            raise ArgumentError(f"name: got {self.name!r}; expected 'array'")
        if self.file is None:
            raise ArgumentError("file: got None; expected the .npz or .npy file, for name='array'")
        if self.limit is not None:
            check_count(self.limit, "limit")
        if self.levels is not None:
            Lattice(self.levels)
        check_probability(self.test_fraction, "test_fraction")
        if self.test_fraction == 1.0:
            raise ArgumentError("test_fraction: got 1; expected less, so that there are training examples")

    def load(self, *, train: bool, progress: bool = False) -> Arrays:
        """Read the examples.

        Args:
            train: The training examples, or the test examples.
            progress: Not used, since a single file is read in one go.

        Raises:
            DatasetError: The file is missing or damaged, holds Python objects, or lacks the arrays it should have.
        """
        return SOURCES[self.name].read(self, train, progress)


@dataclass(frozen=True)
class SourceKind:
    """One source of data: an entry of ``SOURCES``, which is all that a new source needs.

    Args:
        name: What ``data.name`` calls it.
        settings: The dataclass of its settings, a :class:`DataSource`.
        read: A function of the settings, whether to read the training split, and whether to show progress; returns
            what the ``load`` of the settings turns into a data set.
        download: Downloads the files, if they can be downloaded, and returns their folder.
        classes: Names of the classes, if they are known beforehand.
    """

    name: str
    settings: type[DataSource]
    read: Callable[[Any, bool, bool], Any]
    download: Callable[..., Path] | None = None
    classes: tuple[str, ...] = ()


RawImages = tuple[Tensor, Tensor | None, tuple[str, ...], Lattice]


def _read_files(load: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[ImageSource, bool, bool], RawImages]:
    """A reader of images in 256 levels from the folder of a data set's files."""

    def read(source: ImageSource, train: bool, progress: bool) -> RawImages:
        levels, labels = source.limited(*load(source.files(progress), train=train))
        return levels, labels, SOURCES[source.name].classes, Lattice(256)

    return read


def _read_digits(source: ImageSource, train: bool, progress: bool) -> RawImages:
    digits = load_digits()
    x, labels = (digits.train, digits.train_labels) if train else (digits.test, digits.test_labels)
    levels, labels = source.limited(digits.lattice.nearest(x).to(torch.uint8), labels)
    return levels, labels, SOURCES[source.name].classes, digits.lattice


def _read_folder(source: ImageSource, train: bool, progress: bool) -> tuple[Any, ...]:
    assert source.folder is not None
    images = list_split(source.folder, train=train, test_fraction=source.test_fraction)
    images = images.subset(range(min(len(images.names), source.limit or len(images.names))))
    levels = read_images(images, size=source.size, channels=source.channels, cache=source.cache, progress=progress)
    return levels, images.label_tensor(), images.classes, Lattice(256), images.choice


def _read_array(source: ArraySource, train: bool, progress: bool) -> Arrays:
    assert source.file is not None
    arrays = read_arrays(source.file, train=train, levels=source.levels, test_fraction=source.test_fraction)
    return arrays if source.limit is None or source.limit >= len(arrays) else arrays.subset(slice(0, source.limit))


def _load(source: DataSource, train: bool, progress: bool) -> DataSet:
    return source.load(train=train, progress=progress)


SOURCES = {
    kind.name: kind
    for kind in (
        SourceKind("mnist", ImageSource, _read_files(load_mnist), download_mnist, DIGITS),
        SourceKind("cifar10", ImageSource, _read_files(load_cifar10), download_cifar10, CIFAR10),
        SourceKind("digits", ImageSource, _read_digits, classes=DIGITS),
        SourceKind("folder", ImageSource, _read_folder),
        SourceKind("array", ArraySource, _read_array),
        SourceKind("audio", AudioSource, _load),
        SourceKind("series", SeriesSource, _load),
    )
}
"""Every source of data, by its name."""


def source_settings(name: object) -> type[DataSource]:
    """The dataclass of a source's settings.

    Raises:
        ArgumentError: There is no such source; the known ones are listed.
    """
    kind = SOURCES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ArgumentError(f"data.name: got {name!r}; expected one of {', '.join(SOURCES)}")
    return kind.settings
