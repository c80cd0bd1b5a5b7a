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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ncml.checks import check_count
from ncml.data.files import PathLike, whole_file
from ncml.errors import ArgumentError, DatasetError, MissingExtraError
from ncml.progress import progress_bar

__all__ = ["ImageList", "list_images", "list_split", "read_image_folder", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # by content: Pillow's other decoders never see a file
OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK")
ALPHA_MODES = ("LA", "PA", "RGBA")
SIXTEEN_BITS = ";16B"  # in Pillow's names of the raw data of 16-bit PNG files, which it would cut to 8 bits
SPLIT_SEED = 0  # of the data set, not of a run: every run tests on the same images
CACHE_FORMAT = 1

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageList:
    """The images of a folder, before any of them is opened.

    Args:
        root: The folder.
        names: Their paths in it, with "/" between the parts.
        labels: The class of each, or None.
        classes: Names of the classes.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]

    def label_tensor(self) -> Tensor | None:
        """The labels, int64 ``(N,)``."""
        return None if self.labels is None else torch.tensor(self.labels)

    def subset(self, rows: Sequence[int]) -> ImageList:
        """The given rows, in the given order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in rows)
        return ImageList(self.root, tuple(self.names[i] for i in rows), labels, self.classes)


def read_image_folder(
    folder: PathLike,
    *,
    size: int | None = None,
    channels: int = 3,
    cache: PathLike | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """All PNG, JPEG, WebP and BMP files of a folder, at any depth, in the order of their relative paths.

    The subfolders directly below ``folder`` that hold images are the classes, in sorted order; images that lie
    directly in ``folder`` have none. Other files, and everything whose name begins with a dot, are ignored.

    Images of 8 bits per channel are taken as they are. Palettes are looked up; one bit becomes levels 0 and 255;
    transparency is laid over black (level 0); CMYK becomes RGB by Pillow's formula. For three channels grey values
    are repeated, for one channel colours become Pillow's "L", 0.299 R + 0.587 G + 0.114 B. Images of 16 bits per
    channel are refused, since nobody but you knows which 8 of them count. Of an animation the first frame is read;
    colour profiles and EXIF orientation are not applied.

    Args:
        folder: The folder. Links in it may point to files in it, but not out of it and not to folders.
        size: Cut the largest centred square out of each image and resize it to this many pixels a side by Pillow's
            ``BOX`` filter: the mean over the area of each new pixel, within a level, which neither rings nor
            overshoots; to a larger side it repeats pixels. A square of that size already is copied exactly. None
            keeps images as they are; then all must have the same size.
        channels: 3 or 1.
        cache: Keep the decoded levels as a ``.npy`` file in this folder, which is mapped into memory when read
            again. Another list of names, file sizes or times of change, other arguments or another release of
            Pillow make another file. Delete the folder whenever you like.
        progress: Show a progress bar (needs tqdm).

    Returns:
        Levels uint8 ``(N, channels, H, W)``, labels int64 ``(N,)`` or None, and the names of the classes.

    Raises:
        DatasetError: No images; a file that is damaged, too large (Pillow's limit against decompression bombs), of
            another size than the others, of 16 bits, or behind a link that leaves the folder; the message names it.
        MissingExtraError: Pillow is not installed.
    """
    images = list_images(folder)
    levels = read_images(images, size=size, channels=channels, cache=cache, progress=progress)
    return levels, images.label_tensor(), images.classes


def list_images(folder: PathLike) -> ImageList:
    """The image files below a folder, sorted by relative path, with the classes that their first folders are."""
    root = Path(folder)
    names = tuple(sorted(_walk(root)))
    if not names:
        raise DatasetError(f"{root}: got no images; expected files that end in {', '.join(SUFFIXES)}")
    first = [name.partition("/")[0] for name in names if "/" in name]
    if not first:
        return ImageList(root, names, None, ())
    if len(first) < len(names):
        loose = next(name for name in names if "/" not in name)
        raise DatasetError(
            f"{root}: got {len(first)} images in subfolders and {len(names) - len(first)} beside them (first: "
            f"{loose}); expected one or the other, since subfolders are classes; move the images"
        )
    classes = tuple(sorted(set(first)))
    index = {name: i for i, name in enumerate(classes)}
    return ImageList(root, names, tuple(index[name] for name in first), classes)


def list_split(folder: PathLike, *, train: bool, test_fraction: float) -> ImageList:
    """The training or the test images of a folder.

    Those of its subfolders ``train`` and ``test``, with the classes of ``train``, if it has the two. Else a fixed
    permutation of all images gives the test images, ``test_fraction`` of all but at least one, and then the
    training images; it depends on their number alone.
    """
    root = Path(folder)
    present = [name for name in ("train", "test") if (root / name).is_dir()]
    if len(present) == 1:
        raise DatasetError(
            f"{root}: got a subfolder {present[0]} alone; expected train and test, or neither; read another folder, or "
            f"rename it if it is a class"
        )
    if present:
        return _split_folders(root)[0 if train else 1]
    images = list_images(root)
    n = len(images.names)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    tests = min(n - 1, max(1, round(test_fraction * n))) if test_fraction > 0.0 else 0
    rows = order[tests:] if train else order[:tests]
    if not rows:
        raise DatasetError(
            f"{root}: got {n} images and test_fraction={test_fraction}, which leave none to test on; expected more of "
            f"either, or subfolders train and test"
        )
    return images.subset(rows)


def read_images(
    images: ImageList, *, size: int | None, channels: int, cache: PathLike | None = None, progress: bool = False
) -> Tensor:
    """Decode listed images, or map what was decoded before; see :func:`read_image_folder`."""
    if size is not None:
        check_count(size, "size")
    if channels not in (1, 3):
        raise ArgumentError(f"channels: got {channels!r}; expected 1 or 3")
    pillow = _pillow()
    n = len(images.names)
    decoded = _decode(pillow, images, size, channels, progress)
    if cache is None:
        first = next(decoded)
        levels = np.empty((n, *first.shape), dtype=np.uint8)
        levels[0] = first
        for i, pixels in enumerate(decoded, start=1):
            levels[i] = pixels
        return torch.from_numpy(levels)
    path = Path(cache) / f"{_cache_key(pillow, images, size, channels)}.npy"
    mapped = _mapped(path, n, size, channels)
    if mapped is None:
        _write(path, decoded, n)
        mapped = _mapped(path, n, size, channels)
    if mapped is None:
        raise DatasetError(f"{path}: cannot be read after it was written; expected a folder that keeps its files")
    return torch.from_numpy(mapped)


def _split_folders(root: Path) -> tuple[ImageList, ImageList]:
    for name in ("train", "test"):
        if (root / name).is_symlink():
            raise _linked_folder(root / name)
    train, test = list_images(root / "train"), list_images(root / "test")
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown or (train.labels is None) != (test.labels is None):
        raise DatasetError(
            f"{test.root}: got the classes {', '.join(test.classes) or 'none'}; expected those of {train.root}: "
            f"{', '.join(train.classes) or 'none'}; the two must name them alike"
        )
    if test.labels is not None:  # a class may have no test images
        index = [train.classes.index(name) for name in test.classes]
        test = ImageList(test.root, test.names, tuple(index[i] for i in test.labels), train.classes)
    return train, test


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of the image files below a folder, in no order."""
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


def _linked_folder(path: Path) -> DatasetError:
    return DatasetError(
        f"{path}: got a link to a folder; expected the folder itself, since links may count images twice or never end"
    )


def _decode(pillow: ModuleType, images: ImageList, size: int | None, channels: int, progress: bool) -> Iterator[Pixels]:
    """One array ``(channels, H, W)`` per image, all of one shape."""
    first: tuple[int, ...] | None = None
    for name in progress_bar(images.names, progress, "reading images"):
        path = images.root / name
        pixels = _decode_file(pillow, path, size, channels)
        first = first or pixels.shape
        if pixels.shape != first:
            (h, w), (h0, w0) = pixels.shape[1:], first[1:]
            raise DatasetError(
                f"{path}: got {w}x{h} pixels; expected {w0}x{h0}, those of {images.root / images.names[0]}; pass "
                f"size=... to cut and resize all to one size"
            )
        yield pixels


def _decode_file(pillow: ModuleType, path: Path, size: int | None, channels: int) -> Pixels:
    try:
        with open(path, "rb") as file:
            return _decode_stream(pillow, file, size, channels)
    except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
        length = f"{path.stat().st_size:,} bytes" if path.exists() else "no file"
        raise DatasetError(f"{path}: got {length}, {_reason(pillow, error)}") from error


def _reason(pillow: ModuleType, error: Exception) -> str:
    """What is wrong with an image file, what was expected, and what to do."""
    from PIL import UnidentifiedImageError

    if isinstance(error, _DepthError):
        return f"{error}; expected 8 bits per channel; convert the image"
    if isinstance(error, (pillow.DecompressionBombWarning, pillow.DecompressionBombError)):
        return f"too large to decode ({error}); expected a smaller image; resize it, or remove it"
    if isinstance(error, UnidentifiedImageError):
        return f"of none of the formats {', '.join(FORMATS)}, or damaged; get the file again, or remove it"
    return f"damaged ({error}); get the file again, or remove it"


class _DepthError(Exception):
    """An image that is sound but not of 8 bits per channel."""


def _decode_stream(pillow: ModuleType, file: BinaryIO, size: int | None, channels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, none of which is used
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        with pillow.open(file, formats=FORMATS) as image:
            pixels = np.asarray(_converted(pillow, image, size, channels))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _converted(pillow: ModuleType, image: Any, size: int | None, channels: int) -> Any:  # noqa: ANN401 -- Pillow is optional
    """An image as 8-bit grey or RGB, cut and resized."""
    if image.mode not in OPAQUE_MODES + ALPHA_MODES or SIXTEEN_BITS in str(image.tile):
        raise _DepthError(f"{image.size[0]}x{image.size[1]} pixels of mode {image.mode} with 16 bits or more")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, (0, 0, 0, 255)), image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is None or image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), pillow.Resampling.BOX, box=(left, top, left + side, top + side))


def _cache_key(pillow: ModuleType, images: ImageList, size: int | None, channels: int) -> str:
    """Changes with everything that decoded levels depend on."""
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


def _pillow() -> ModuleType:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError("image folders: Pillow is not installed; pip install 'ncml[data]'") from error
    return PIL.Image
