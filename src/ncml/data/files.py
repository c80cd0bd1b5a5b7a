"""Readers of the official binary formats of CIFAR-10 and MNIST; nothing is unpickled.

Images come as integer levels, uint8 ``(N, C, H, W)``: a :class:`~ncml.Lattice` turns a batch of them
into data units when it is needed, at an eighth of the memory that keeping floats would take.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ncml.errors import DatasetError
from ncml.files import replacing

__all__ = ["load_cifar10", "load_mnist", "read_cifar10", "read_idx"]

CIFAR_RECORD = 1 + 3 * 32 * 32  # a label and three planes of 32x32
CIFAR100_RECORD = CIFAR_RECORD + 1  # a coarse and a fine label
CIFAR_FILES = {True: [f"data_batch_{i}.bin" for i in range(1, 6)], False: ["test_batch.bin"]}
CIFAR100_FILES = ("train.bin", "test.bin", "fine_label_names.txt")
MNIST_FILES = {True: "train", False: "t10k"}
IDX_UINT8 = 0x08
GZIP = b"\x1f\x8b"
MAX_BYTES = 2**31  # no file of these formats comes near; guards against decompression bombs
BLOCK = 2**24  # bytes asked for at once: as many are reserved, however small the file is

PathLike = str | os.PathLike[str]


def load_cifar10(folder: PathLike, *, train: bool = True) -> tuple[Tensor, Tensor]:
    """CIFAR-10 from the unpacked official binary archive (Krizhevsky, 2009).

    Args:
        folder: Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``. Files with
            fewer records than the official 10,000 are fine.
        train: The five training files, or the test file.

    Returns:
        Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``, in the files' order.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    here = {path.name for path in Path(folder).glob("*")}
    if not here.intersection(CIFAR_FILES[train]):
        if here.intersection(CIFAR100_FILES):
            raise DatasetError(f"{folder}: got the files of CIFAR-100; expected those of CIFAR-10's binary version")
        if "data_batch_1" in here:
            raise DatasetError(
                f"{folder}: got CIFAR-10's Python version, whose pickles are never read; expected its binary version, "
                f"cifar-10-binary.tar.gz, unpacked"
            )
    parts = [read_cifar10(Path(folder) / name) for name in CIFAR_FILES[train]]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def load_mnist(folder: PathLike, *, train: bool = True) -> tuple[Tensor, Tensor]:
    """MNIST from the official IDX files, compressed or not (LeCun, Cortes and Burges).

    Args:
        folder: Holds ``train-images-idx3-ubyte`` and its companions, compressed or not, whatever they end in; also
            as ``train-images.idx3-ubyte``, each in a folder of its own, or in ``raw`` or ``MNIST/raw``.
        train: The 60,000 training images, or the 10,000 test images.

    Returns:
        Images uint8 ``(N, 1, 28, 28)`` and labels int64 ``(N,)``.

    Raises:
        DatasetError: A file is missing or damaged, or the two do not belong together.
    """
    name = MNIST_FILES[train]
    paths = [_mnist_file(Path(folder), f"{name}-{kind}", idx) for kind, idx in (("images", 3), ("labels", 1))]
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DatasetError(
            f"{paths[0]}: got images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; "
            f"expected (N, H, W) and (N,)"
        )
    if len(labels) and int(labels.max()) > 9:
        raise DatasetError(f"{paths[1]}: got the label {int(labels.max())}; expected 0 .. 9; get the file again")
    return images[:, None], labels.long()


def read_cifar10(path: PathLike) -> tuple[Tensor, Tensor]:
    """One file of CIFAR-10's binary version: records of a label byte and 3,072 pixel bytes.

    Returns:
        Images uint8 ``(N, 3, 32, 32)`` and labels int64 ``(N,)``.

    Raises:
        DatasetError: The file is missing, empty, not a whole number of records, or has labels above 9.
    """
    raw = _contents(Path(path))
    if raw and len(raw) % CIFAR_RECORD and not len(raw) % CIFAR100_RECORD:
        raise DatasetError(
            f"{path}: got {len(raw):,} bytes, a multiple of {CIFAR100_RECORD:,} as of CIFAR-100; expected CIFAR-10"
        )
    if not raw or len(raw) % CIFAR_RECORD:
        raise DatasetError(
            f"{path}: got {len(raw):,} bytes; expected a positive multiple of {CIFAR_RECORD:,}; the file is cut or is "
            f"not of CIFAR-10's binary version; get it again"
        )
    records = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, CIFAR_RECORD).copy())
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise DatasetError(
            f"{path}: got the label {int(labels.max())}; expected 0 .. 9; the file is damaged; get it again"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def read_idx(path: PathLike) -> Tensor:
    """An IDX file of bytes, gzipped or not, whatever its name.

    Returns:
        Tensor uint8 of the shape that the file's header gives.

    Raises:
        DatasetError: The file is missing, not IDX, of a type other than bytes, or not of the size that
            its header gives.
    """
    path = Path(path)
    raw = _contents(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != IDX_UINT8 or not 1 <= raw[3] <= 4 or len(raw) < 4 + 4 * raw[3]:
        raise DatasetError(f"{path}: got a header {raw[:4].hex(' ')}; expected an IDX file of bytes, 00 00 08 01 to 04")
    header = 4 + 4 * raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise DatasetError(
            f"{path}: got {len(raw):,} bytes; expected {expected:,} for shape {shape}; get the file again"
        )
    if int(np.prod([max(n, 1) for n in shape], dtype=object)) > MAX_BYTES:  # none of it there, and no array holds it
        raise DatasetError(f"{path}: got a header of shape {shape} and no bytes; get the file again")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy())


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` when it is complete; a reader sees all of it or nothing.

    Raises:
        DatasetError: It cannot be written; nothing is left of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}); expected a folder with room; choose another one"
        ) from error


def _mnist_file(folder: Path, start: str, dimensions: int) -> Path:
    """The file by the first of its usual names that is there; by the official one, compressed, if none is."""
    names = [f"{start}{mark}idx{dimensions}-ubyte" for mark in "-."]
    files = [name + end for name in names for end in ("", ".gz")] + [f"{name}/{own}" for name in names for own in names]
    places = [folder / place / name for place in ("", "raw", "MNIST/raw") for name in files]
    return next((path for path in places if path.is_file()), folder / f"{names[0]}.gz")


def _contents(path: Path) -> bytearray:
    """All bytes of a file, unpacked if they are gzip's."""
    raw = bytearray()
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            with gzip.open(file) if packed else file as source:
                while len(raw) <= MAX_BYTES and (block := source.read(BLOCK)):
                    raw += block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path}: got a damaged gzip file ({error}); get it again") from error
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror or error}); expected a file of the data set"
        ) from error
    if len(raw) > MAX_BYTES:
        raise DatasetError(f"{path}: got more than {MAX_BYTES:,} bytes; expected at most as many")
    return raw
