"""WAV files as the numbers that they hold, and back.

Written here because no available reader does both: integers (even 24-bit ones) come out exactly as they are, and a
file that ends too early is an error, where libsndfile and scipy return what there is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ncml.checks import check_count, check_finite
from ncml.data.files import PathLike, whole_file
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError

__all__ = ["Wav", "open_wav", "write_wav"]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 20: "G.723", 49: "GSM", 85: "MP3"}
DTYPES = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}
STREAMED = 0xFFFFFFFF  # the size that programs write who do not know it yet
MOST_BYTES = 2**32 - 64
MOST_BLOCK, MOST_PER_SECOND = 2**16 - 1, 2**32 - 1  # bytes, as wide as their fields


@dataclass(frozen=True)
class Wav:
    """What the header of a WAV file says.

    Args:
        path: The file.
        rate: Samples per second.
        channels: Number of channels C.
        bits: Bits of a number: 8, 16, 24 or 32 for integers, 32 or 64 for floating-point numbers.
        floating: Whether they are floating numbers, whose full scale is 1.
        frames: Number of samples T of each channel.
        offset: Where they begin in the file, in bytes.
    """

    path: Path
    rate: int
    channels: int
    bits: int
    floating: bool
    frames: int
    offset: int

    @property
    def form(self) -> str:
        """What the numbers are, in words."""
        return f"{self.bits}-bit {'floats' if self.floating else 'integers'}"

    def read(self) -> npt.NDArray[Any]:
        """The samples ``(T, C)``: integers around 0 (int8, int16 or int32), or finite floating numbers.

        Raises:
            DatasetError: The file cannot be read, or holds NaN or infinity.
        """
        n = self.frames * self.channels
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                raw = file.read(n * self.bits // 8)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if len(raw) != n * self.bits // 8:
            raise DatasetError(f"{self.path}: got a file that changed while it was read; read it again")
        if self.bits == 24:
            parts = np.frombuffer(raw, dtype="u1").reshape(n, 3).astype(np.int32)
            x = ((parts[:, 2] << 24) | (parts[:, 1] << 16) | (parts[:, 0] << 8)) >> 8
        else:
            x = np.frombuffer(raw, dtype=DTYPES[FLOAT if self.floating else PCM, self.bits])
        if self.bits == 8:  # the only ones without a sign
            x = (x ^ 0x80).view(np.int8)
        if self.floating and not np.isfinite(x).all():
            first = int(np.flatnonzero(~np.isfinite(x))[0]) // self.channels
            raise DatasetError(f"{self.path}: got NaN or infinity, first in sample {first}; mend or remove the file")
        return x.reshape(self.frames, self.channels)


def open_wav(path: PathLike) -> Wav:
    """Read the header of a WAV file: integers of 8, 16, 24 or 32 bits, floating numbers of 32 or 64, of any rate.

    Raises:
        DatasetError: The file is missing, not a WAV file, cut short, empty, compressed or of another kind; it is named.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            return _header(path, file, length)
    except OSError as error:
        if isinstance(error, DatasetError):
            raise
        raise _unreadable(path, error) from error


def _header(path: Path, file: Any, length: int) -> Wav:  # noqa: ANN401 -- a binary file
    start = file.read(12)
    if len(start) < 12 or start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise DatasetError(
            f"{path}: got {length:,} bytes that begin with {start[:4]!r}; expected a WAV file, RIFF ... WAVE; convert "
            f"it, or get it again"
        )
    kind = None
    for name, offset, size in _chunks(file, length):
        if name == b"fmt ":
            kind = _format(path, file.read(min(size, 40)))
        elif name == b"data":
            if kind is None:
                raise DatasetError(f"{path}: got samples before their format; the file is damaged; get it again")
            if size == STREAMED:
                raise DatasetError(
                    f"{path}: got a file that was written as a stream and does not say its length; convert it once more"
                )
            if offset + size > length:
                raise DatasetError(
                    f"{path}: got {length - offset:,} bytes of samples; expected {size:,}; the file is cut; copy it"
                )
            tag, channels, rate, bits = kind
            frames, rest = divmod(size, channels * bits // 8)
            if rest or not frames:
                raise DatasetError(
                    f"{path}: got {size:,} bytes of samples; expected a positive multiple of {channels * bits // 8}; "
                    f"the file is empty or damaged; remove it, or get it again"
                )
            return Wav(path, rate, channels, bits, tag == FLOAT, frames, offset)
    raise DatasetError(f"{path}: got no samples; the file is cut or damaged; get it again")


def _chunks(file: Any, length: int) -> Iterator[tuple[bytes, int, int]]:  # noqa: ANN401 -- a binary file
    """Name, offset and size of each chunk, with the file at its offset."""
    offset = 12
    while offset + 8 <= length:
        file.seek(offset)
        name, size = struct.unpack("<4sI", file.read(8))
        yield name, offset + 8, size
        offset += 8 + size + size % 2


def _format(path: Path, raw: bytes) -> tuple[int, int, int, int]:
    """Tag, channels, rate and bits."""
    if len(raw) < 16:
        raise DatasetError(f"{path}: got a format of {len(raw)} bytes; expected 16 or more; get the file again")
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", raw[:16])
    if tag == EXTENSIBLE and len(raw) >= 26:
        (tag,) = struct.unpack("<H", raw[24:26])
    if tag not in (PCM, FLOAT):
        raise DatasetError(
            f"{path}: got compressed samples ({COMPRESSED.get(tag, f'format {tag}')}); expected plain integers or "
            f"floating numbers; convert the file"
        )
    if (tag, bits) not in DTYPES and (tag, bits) != (PCM, 24):
        raise DatasetError(
            f"{path}: got samples of {bits} bits (format {tag}); expected integers of 8, 16, 24 or 32 bits, or "
            f"floating numbers of 32 or 64; convert the file"
        )
    if not channels or not rate or block != channels * bits // 8:
        raise DatasetError(
            f"{path}: got a format of {channels} channels at {rate} Hz in blocks of {block} bytes; the file is "
            f"damaged; get it again"
        )
    return tag, channels, rate, bits


def write_wav(path: PathLike, samples: npt.NDArray[Any], rate: int) -> None:
    """Write a WAV file; an old one is replaced whole.

    Args:
        path: The file.
        samples: ``(T, C)`` or ``(T,)``: int8 (written as 8 bits), int16, or float32, whose full scale is 1.
        rate: Samples per second, an integer.

    Raises:
        ArgumentTypeError: Samples of another type.
        ArgumentError: No samples, another shape, too many for a WAV file, NaN or infinity; a rate that is no integer,
            or more than a WAV file can say.
        DatasetError: It cannot be written.
    """
    x = samples[:, None] if samples.ndim == 1 else samples
    if x.dtype not in (np.int8, np.int16, np.float32):
        raise ArgumentTypeError(f"samples: got {x.dtype}; expected int8, int16 or float32")
    if x.ndim != 2 or 0 in x.shape or x.nbytes > MOST_BYTES:
        raise ArgumentError(f"samples: got shape {samples.shape}; expected (T, C) of at most {MOST_BYTES:,} bytes")
    width, floating = x.dtype.itemsize, x.dtype == np.float32
    channels = x.shape[1]
    block = channels * width
    if block > MOST_BLOCK:
        raise ArgumentError(f"samples: got {channels} channels; expected at most {MOST_BLOCK // width}")
    if check_count(rate, "rate") * block > MOST_PER_SECOND:
        raise ArgumentError(f"rate: got {rate}; expected at most {MOST_PER_SECOND // block} with {channels} channels")
    if floating:
        check_finite(torch.from_numpy(np.ascontiguousarray(x)), "samples", "mend them")
    if x.dtype == np.int8:
        x = x.view(np.uint8) ^ 0x80
    raw = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<")).tobytes()
    # Formats but PCM say how much follows (nothing), and how many frames there are.
    more = struct.pack("<H4sII", 0, b"fact", 4, len(x)) if floating else b""
    layout = (FLOAT if floating else PCM, channels, rate, rate * block, block, 8 * width)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 18 if floating else 16, *layout) + more
    size = 4 + len(head) + 8 + len(raw) + len(raw) % 2
    with whole_file(Path(path)) as file:
        file.write(struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + head + struct.pack("<4sI", b"data", len(raw)))
        file.write(raw + b"\0" * (len(raw) % 2))


def _unreadable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(f"{path}: cannot be read ({error.strerror or error}); expected a WAV file")
