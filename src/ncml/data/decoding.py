"""One image file to integer levels, by what is in it."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ncml.errors import DatasetError, MissingExtraError

__all__ = ["FORMATS", "Pixels", "decode_file", "is_image", "pillow"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""By content. Pillow's other decoders never see a file: some start other programs, some cut 16 bits to 8 unasked."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""What ends in one of these is an image, also if it is damaged; others are looked into."""

OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
ALPHA_MODES = ("LA", "PA", "RGBA")
WIDE = re.compile(r";(12|16|32)")  # in Pillow's names of raw data that it would cut to 8 bits
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # its values to those of Pillow's Transpose

Pixels = npt.NDArray[np.uint8]


class _DepthError(Exception):
    """An image that is sound but not of 8 bits per channel."""


def decode_file(pillow: ModuleType, path: Path, size: int | None, channels: int) -> Pixels:
    """An image file as levels ``(channels, H, W)``; see :func:`ncml.data.read_image_folder`."""
    try:
        with open(path, "rb") as file:
            return _decode_stream(pillow, file, size, channels)
    except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
        length = f"{path.stat().st_size:,} bytes" if path.exists() else "no file"
        raise DatasetError(f"{path}: got {length}, {_reason(pillow, error)}") from error


def is_image(pillow: ModuleType, path: str | os.PathLike[str]) -> bool:
    """Whether a file of any name begins as an image."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pillow.open(file, formats=FORMATS).close()
    except Exception:  # as above
        return False
    return True


def pillow() -> ModuleType:
    """Pillow's module of images.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError("image folders: Pillow is not installed; pip install 'ncml[data]'") from error
    return PIL.Image


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


def _decode_stream(pillow: ModuleType, file: BinaryIO, size: int | None, channels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        with pillow.open(file, formats=FORMATS) as image:
            pixels = np.asarray(_converted(pillow, image, size, channels))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _converted(pillow: ModuleType, image: Any, size: int | None, channels: int) -> Any:  # noqa: ANN401 -- Pillow is optional
    """An image as 8-bit grey or RGB, upright, cut and resized."""
    if image.mode not in OPAQUE_MODES + ALPHA_MODES or _is_wide(image):
        raise _DepthError(f"{image.size[0]}x{image.size[1]} pixels of mode {image.mode} with 16 bits or more")
    image.load()
    turn = TURNS.get(_orientation(image))  # TIFF files are upright by now, and say so
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, (0, 0, 0, 255)), image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if turn is not None:
        image = image.transpose(turn)
    if size is None or image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), pillow.Resampling.BOX, box=(left, top, left + side, top + side))


def _is_wide(image: Any) -> bool:  # noqa: ANN401 -- as above
    """Whether the file has more than 8 bits per channel."""
    last = image.tile[0][-1] if image.format == "PPM" and image.tile else None
    most = last[-1] if isinstance(last, tuple) and isinstance(last[-1], int) else 255  # PPM's largest value
    return most > 255 or WIDE.search(str(image.tile)) is not None


def _orientation(image: Any) -> int:  # noqa: ANN401 -- as above
    """The EXIF orientation; 1, upright, if there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as for damaged pixels; these are sound
        return 1
