"""Folders of image files, as integer levels.

Every file is decoded to its last pixel: a damaged one is an error here, not a surprise in the middle of training.
Listing comes before decoding, so that a split or a limit decodes only what it keeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ncml.checks import check_count
from ncml.data.decoding import FORMATS, SUFFIXES, Pixels, decode_file, is_image, pillow
from ncml.data.files import PathLike, whole_file
from ncml.data.split import Choice, composed, split_by_name
from ncml.errors import ArgumentError, DatasetError, LeftOutWarning
from ncml.progress import progress_bar

__all__ = ["ImageList", "list_images", "list_split", "read_image_folder", "read_images", "split_folders"]

TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation")
CACHE_FORMAT = 2


@dataclass(frozen=True)
class ImageList:
    """The images of a folder, before any of them is opened.

    Args:
        root: The folder.
        names: Their paths in it, with "/" between the parts.
        labels: The class of each, or None.
        classes: Names of the classes.
        choice: How they were chosen, if they are one side of a split.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    choice: Choice | None = None

    def label_tensor(self) -> Tensor | None:
        """The labels, int64 ``(N,)``."""
        return None if self.labels is None else torch.tensor(self.labels)

    def subset(self, rows: Sequence[int]) -> ImageList:
        """The given rows, in the given order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in rows)
        return replace(self, names=tuple(self.names[i] for i in rows), labels=labels)


def read_image_folder(
    folder: PathLike,
    *,
    size: int | None = None,
    channels: int = 3,
    cache: PathLike | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """All PNG, JPEG, WebP, BMP, GIF, TIFF and PPM files of a folder, at any depth, in the order of their paths.

    The subfolders directly below ``folder`` are the classes, in sorted order; images that lie directly in ``folder``
    have none. Images are recognised by their content, whatever they are called; other files are left out with a
    warning, and those whose names begin with a dot without one.

    Images of 8 bits per channel are taken as they are. Palettes are looked up; one bit becomes levels 0 and 255;
    transparency is laid over black (level 0); CMYK becomes RGB by Pillow's formula. For three channels grey values
    are repeated; for one channel colours become Pillow's "L", 0.299 R + 0.587 G + 0.114 B. Images of 16 bits per
    channel are refused, since nobody but you knows which 8 of them count. Photographs are turned upright according to
    their EXIF orientation. Only the first frame of an animation is read; colour profiles are not applied.

    Args:
        folder: The folder. Links in it may point to files in it, but not out of it and not to folders.
        size: Cut the largest centred square out of each image and resize it to this many pixels a side by Pillow's
            ``BOX`` filter: the mean over the area of each new pixel, within a level, which neither rings nor
            overshoots; to a larger side it repeats pixels. A square that already has this size is copied exactly. None
            keeps images as they are; then all must have the same size.
        channels: 3 or 1.
        cache: Keep the decoded levels as a ``.npy`` file in this folder, which is mapped into memory when read
            again. A change in names, file sizes or modification times, in the arguments or in the release of Pillow
            makes a new file. Delete the folder whenever you like.
        progress: Show a progress bar (needs tqdm).

    Returns:
        Levels uint8 ``(N, channels, H, W)``, labels int64 ``(N,)`` or None, and the names of the classes.

    Raises:
        DatasetError: No images, or none in the folder of a class that has other files; a file that is damaged, too
            large (Pillow's limit against decompression bombs), of a different size from the others, of 16 bits, or
            behind a link that leaves the folder; the message names it.
        MissingExtraError: Pillow is not installed.

    Warns:
        LeftOutWarning: Files that are not images.
    """
    images = list_images(folder)
    levels = read_images(images, size=size, channels=channels, cache=cache, progress=progress)
    return levels, images.label_tensor(), images.classes


def list_images(folder: PathLike) -> ImageList:
    """The image files below a folder, sorted by relative path; the first folder of each path is its class."""
    root = Path(folder)
    left_out: list[str] = []
    names = tuple(sorted(_walk(root, left_out)))
    if not names:
        raise DatasetError(f"{root}: got no images; expected files of the formats {', '.join(FORMATS)}")
    first = [composed(name.partition("/")[0]) for name in names if "/" in name]
    if first and len(first) < len(names):
        loose = next(name for name in names if "/" not in name)
        raise DatasetError(
            f"{root}: got {len(first)} images in subfolders and {len(names) - len(first)} beside them (first: "
            f"{loose}); expected one or the other, since subfolders are classes; move the images"
        )
    empty = sorted({composed(name.partition("/")[0]) for name in left_out if "/" in name} - set(first)) if first else ()
    if empty:
        raise DatasetError(
            f"{root / empty[0]}: got a folder with files of which none is an image that can be read; expected images "
            f"of the class {empty[0]}; convert them, or move the folder"
        )
    if left_out:
        shown = ", ".join(sorted(left_out)[:5]) + (", ..." if len(left_out) > 5 else "")
        files = "1 file that is no image" if len(left_out) == 1 else f"{len(left_out)} files that are no images"
        _warn_of_left_out(f"{root}: left out {files} of the formats {', '.join(FORMATS)}: {shown}")
    if not first:
        return ImageList(root, names, None, ())
    classes = tuple(sorted(set(first)))
    index = {name: i for i, name in enumerate(classes)}
    return ImageList(root, names, tuple(index[name] for name in first), classes)


def list_split(folder: PathLike, *, train: bool, test_fraction: float) -> ImageList:
    """The training or the test images of a folder.

    Those of :func:`split_folders`, with the classes of the training folder. Otherwise each image's own path decides:
    about ``test_fraction`` of all are test images, and adding or removing files does not move the others.
    """
    root = Path(folder)
    if (given := split_folders(root)) is not None:
        return _given(*given)[0 if train else 1]
    images = list_images(root)
    *both, rule = split_by_name(images.names, test_fraction)
    rows = both[0 if train else 1]
    if not rows:
        raise DatasetError(
            f"{root}: got {len(images.names)} images and test_fraction={test_fraction}, which leave none to test on; "
            f"expected more of either, or subfolders train and test"
        )
    chosen = images.subset(rows)
    return replace(chosen, choice=Choice.of(chosen.names, test_fraction, rule))


def split_folders(folder: PathLike) -> tuple[Path, Path] | None:
    """The subfolders of a folder with the training and the test examples, or None if it has neither.

    They are called train or training, and test or testing, in upper or lower case; failing a test folder, val, valid
    or validation.

    Raises:
        DatasetError: One of the two is missing, or there are several of one kind.
    """
    root = Path(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:  # listing it says why
        return None
    found = [[root / name for name in names if name.lower() in kind] for kind in (TRAIN, TEST, VALIDATION)]
    train, test = found[0], found[1] or found[2]
    if not any(found):
        return None
    if len(train) != 1 or len(test) != 1:
        got = ", ".join(path.name for kind in found for path in kind)
        raise DatasetError(
            f"{root}: got the subfolders {got}; expected one for training (train) and one for testing (test), or "
            f"neither; read another folder, or rename what is a class"
        )
    for path in (*train, *test):
        if path.is_symlink():
            raise _linked_folder(path)
    if others := [name for name in names if root / name not in (*train, *test) and not name.startswith(".")]:
        _warn_of_left_out(f"{root}: not used beside {train[0].name} and {test[0].name}: {', '.join(others)}")
    return train[0], test[0]


def read_images(
    images: ImageList, *, size: int | None, channels: int, cache: PathLike | None = None, progress: bool = False
) -> Tensor:
    """Decode listed images, or map what was decoded before; see :func:`read_image_folder`."""
    if size is not None:
        size = check_count(size, "size")
    if channels not in (1, 3):
        raise ArgumentError(f"channels: got {channels!r}; expected 1 or 3")
    library = pillow()
    n = len(images.names)
    decoded = _decode(library, images, size, channels, progress)
    if cache is None:
        first = next(decoded)
        levels = np.empty((n, *first.shape), dtype=np.uint8)
        levels[0] = first
        for i, pixels in enumerate(decoded, start=1):
            levels[i] = pixels
        return torch.from_numpy(levels)
    path = Path(cache) / f"{_cache_key(library, images, size, channels)}.npy"
    mapped = _mapped(path, n, size, channels)
    if mapped is None:
        _write(path, decoded, n)
        mapped = _mapped(path, n, size, channels)
    if mapped is None:
        raise DatasetError(f"{path}: cannot be read after it was written; expected a folder that keeps its files")
    return torch.from_numpy(mapped)


def _given(*folders: Path) -> tuple[ImageList, ImageList]:
    """The images of the two folders of a split, with the classes of the first."""
    train, test = (replace(images, choice=Choice.of(images.names)) for images in map(list_images, folders))
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown or (train.labels is None) != (test.labels is None):
        raise DatasetError(
            f"{test.root}: got the classes {', '.join(test.classes) or 'none'}; expected those of {train.root}: "
            f"{', '.join(train.classes) or 'none'}; the two must name them alike"
        )
    if test.labels is not None:  # a class may have no test images
        index = [train.classes.index(name) for name in test.classes]
        test = replace(test, labels=tuple(index[i] for i in test.labels), classes=train.classes)
    return train, test


def _walk(root: Path, left_out: list[str]) -> Iterator[str]:
    """Relative paths of the image files below a folder, in no order; those of other files are put into a list."""
    inside = os.path.join(os.path.realpath(root), "")
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            raise DatasetError(
                f"{root / folder}: cannot be listed ({error.strerror or error}); expected a folder of images"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{folder}{entry.name}/")
            elif entry.is_symlink() and os.path.isdir(entry.path):
                raise _linked_folder(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES):
                _check_file(entry, inside)
                yield folder + entry.name
            elif entry.is_file(follow_symlinks=False) and is_image(pillow(), entry.path):
                yield folder + entry.name
            else:
                left_out.append(folder + entry.name)


def _check_file(entry: os.DirEntry[str], inside: str) -> None:
    """Refuse links out of the folder, and pipes and devices, which might never end."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not target.startswith(inside):
            raise DatasetError(
                f"{entry.path}: got a link to {target}; expected one that stays in the folder; copy the file"
            )
    if not os.path.isfile(entry.path):
        raise DatasetError(f"{entry.path}: got neither a file nor a link to one; expected an image; remove it")


def _warn_of_left_out(text: str) -> None:
    warnings.warn(text, LeftOutWarning, stacklevel=3)


def _linked_folder(path: Path) -> DatasetError:
    return DatasetError(
        f"{path}: got a link to a folder; expected the folder itself, since links may count images twice or never end"
    )


def _decode(pillow: ModuleType, images: ImageList, size: int | None, channels: int, progress: bool) -> Iterator[Pixels]:
    """One array ``(channels, H, W)`` per image, all of one shape."""
    first: tuple[int, ...] | None = None
    for name in progress_bar(images.names, progress, "reading images"):
        path = images.root / name
        pixels = decode_file(pillow, path, size, channels)
        first = first or pixels.shape
        if pixels.shape != first:
            (h, w), (h0, w0) = pixels.shape[1:], first[1:]
            raise DatasetError(
                f"{path}: got {w}x{h} pixels; expected {w0}x{h0}, those of {images.root / images.names[0]}; pass "
                f"size=... to cut and resize all to one size"
            )
        yield pixels


def _cache_key(pillow: ModuleType, images: ImageList, size: int | None, channels: int) -> str:
    """A key that changes with everything that decoded levels depend on."""
    try:
        stats = [os.stat(images.root / name) for name in images.names]
    except OSError as error:
        raise DatasetError(f"{error.filename}: cannot be read ({error.strerror}); expected an image") from error
    files = [[name, s.st_size, s.st_mtime_ns] for name, s in zip(images.names, stats, strict=True)]
    key = [CACHE_FORMAT, pillow.__version__, os.path.realpath(images.root), size, channels, files]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _mapped(path: Path, n: int, size: int | None, channels: int) -> Pixels | None:
    """A file of the cache, mapped into memory, or None if it is not there or not whole."""
    try:
        # Copy on write: a caller who writes to the levels changes neither the file nor ends with a crash.
        levels = np.load(path, mmap_mode="c", allow_pickle=False)
    except Exception:  # numpy's parser of headers raises errors of many kinds; the file is made again
        return None
    if not isinstance(levels, np.memmap) or levels.dtype != np.uint8 or levels.ndim != 4:
        return None
    whole = path.stat().st_size == levels.offset + levels.nbytes and levels.flags.c_contiguous
    fits = levels.shape[:2] == (n, channels) and (size is None or levels.shape[2:] == (size, size))
    return levels if whole and fits else None


def _write(path: Path, decoded: Iterator[Pixels], n: int) -> None:
    """Images into a ``.npy`` file, one at a time, since all of them may not fit in memory."""
    with whole_file(path) as file:
        for i, pixels in enumerate(decoded):
            if i == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, *pixels.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(pixels.tobytes())
