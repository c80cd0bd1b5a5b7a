"""Sequences cut into windows: recordings in a folder of WAV files, and series in NumPy or CSV files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ncml.checks import check_count, check_positive, check_probability
from ncml.data.base import DataSource
from ncml.data.folders import split_folders
from ncml.data.series import read_series
from ncml.data.split import Choice, split_by_name
from ncml.data.wav import Wav, open_wav
from ncml.data.windows import Windows, cut_windows
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError
from ncml.noise import Lattice
from ncml.progress import progress_bar

__all__ = ["AudioSource", "SeriesSource"]

MOST_BITS = 16  # of integers that are levels
OTHER_AUDIO = (".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".rf64", ".w64")


@dataclass(frozen=True)
class AudioSource(DataSource):
    """Windows of the WAV files in a folder: settings for a file or the command line.

    A folder has subfolders train and test (or training, testing, val, valid, validation, in upper or lower case), or
    is split by test_fraction, file by file. Files at any depth are read, in the order of their paths; all must have
    the same rate. Integers of 8 or 16 bits are levels of a lattice, whose bits per sample are exact. Integers of more
    bits and floating-point numbers are real numbers, with a full scale of 1 times the gain.

    Args:
        name: audio. The other sources have settings of their own: mnist, cifar10, digits, folder, array, series.
        folder: The folder with the files.
        window: Number of samples in a window.
        hop: Samples from the start of one window to that of the next; a whole window if not given. Samples left over
            at the end of a file are in no window; their number is reported.
        mono: Take the mean of the channels, rounded to the nearest level. Otherwise all files must have the same number
            of channels, and a window has them all.
        levels: Number of levels: if not given, that of the files; a smaller power of two for coarser levels (from
            integers of any width); 0 for real numbers, whatever the files hold.
        gain: Factor on real numbers: models work best with a standard deviation of about 1.
        min_std: Leave out windows whose standard deviation is smaller, where full scale is 1; their number is reported.
            400 of 16 bits is 0.0122.
        test_fraction: Folder without train and test only: the approximate share of test files, at least one. A hash of
            each file's path in the folder decides, so adding or removing files does not move the others.

    Raises:
        ArgumentError: A setting is out of range.
    """

    name: str = "audio"
    folder: Path | None = None
    window: int = 256
    hop: int | None = None
    mono: bool = False
    levels: int | None = None
    gain: float = 1.0
    min_std: float = 0.0
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_settings(self, "audio", "folder", "the folder of the WAV files")
        powers = [0, *(2**k for k in range(1, MOST_BITS + 1))]
        if self.levels is not None and self.levels not in powers:
            raise ArgumentError(f"levels: got {self.levels!r}; expected a power of two up to 65536, or 0 for none")
        check_positive(self.gain, "gain")
        if not 0.0 <= self.min_std <= 1.0:
            raise ArgumentError(f"min_std: got {self.min_std!r}; expected 0 to 1, in units of full scale")

    def load(self, *, train: bool, progress: bool = False) -> Windows:
        """Read the recordings of one split and cut them.

        Args:
            train: The training recordings, or the test recordings.
            progress: Show a progress bar over the files (needs tqdm).

        Raises:
            DatasetError: There are no files, or one is damaged, compressed, shorter than a window, or differs from the
                first in rate, form or number of channels; the message names it.
        """
        assert self.folder is not None
        # The headers of both splits: a rate that only test files have would be noticed too late.
        splits = _splits(self)
        every = {which: [open_wav(path) for path in paths] for which, (paths, _) in splits.items()}
        first = (every[True] + every[False])[0]
        for wav in every[True] + every[False]:
            self._check_alike(wav, first)
        lattice = self._lattice(first)
        files = every[train]
        read = progress_bar(files, progress, "reading recordings")
        sequences = [torch.from_numpy(self._numbers(wav, lattice)) for wav in read]
        try:
            windows = cut_windows(
                sequences,
                [str(wav.path) for wav in files],
                self.window,
                self.hop,
                lattice=lattice,
                rate=first.rate,
                min_std=self.min_std,
                unit=self.gain if lattice is None else 1.0,
                remedy="remove the file",
            )
            return replace(windows, choice=splits[train][1])
        except ArgumentError as error:
            raise DatasetError(str(error)) from error

    def to_wav(self, x: Tensor, lattice: Lattice | None) -> npt.NDArray[Any]:
        """Samples ``(T, C)`` in data units, converted to what a WAV file holds: int8, int16 or float32."""
        if lattice is None:
            return np.asarray(x.float().numpy() / np.float32(self.gain))
        bits = 8 if lattice.levels <= 256 else 16
        step = 2**bits // lattice.levels
        k = lattice.nearest(x) * step + step // 2 - 2 ** (bits - 1)
        return np.asarray(k.numpy().astype(np.int8 if bits == 8 else np.int16))

    def _check_alike(self, wav: Wav, first: Wav) -> None:
        """Refuse a file that does not go with the first one."""
        remedies = [
            (wav.rate == first.rate, f"{wav.rate} Hz", f"{first.rate} Hz", "resample it"),
            (
                self.mono or wav.channels == first.channels,
                f"{wav.channels} channels",
                f"{first.channels}",
                "convert it, or take mono",
            ),
            (
                self.levels is not None or wav.form == first.form,
                wav.form,
                first.form,
                "convert it, or say how many levels",
            ),
        ]
        for alike, got, expected, remedy in remedies:
            if not alike:
                raise DatasetError(f"{wav.path}: got {got}; expected {expected}, as {first.path}; {remedy}")
        if self.levels and (wav.floating or wav.bits < self.levels.bit_length() - 1):
            raise DatasetError(
                f"{wav.path}: got {wav.form} and levels={self.levels}; expected integers with as many levels; take "
                f"levels=0 for real numbers"
            )

    def _lattice(self, first: Wav) -> Lattice | None:
        if self.levels is not None:
            return Lattice(self.levels) if self.levels else None
        return None if first.floating or first.bits > MOST_BITS else Lattice(2**first.bits)

    def _numbers(self, wav: Wav, lattice: Lattice | None) -> npt.NDArray[Any]:
        """The samples as levels, or as real numbers times the gain."""
        x = wav.read()
        if self.mono and wav.channels > 1:
            mean = x.mean(1, dtype=np.float64, keepdims=True)
            x = mean if wav.floating else mean.round().astype(np.int64)
        full = 2 ** (wav.bits - 1)
        if lattice is None:
            return np.asarray((x * (self.gain if wav.floating else self.gain / full)).astype(np.float32))
        levels = (x.astype(np.int64) + full) // (2 * full // lattice.levels)
        return np.asarray(levels.astype(np.uint8 if lattice.levels <= 256 else np.int32))


def _splits(source: AudioSource) -> dict[bool, tuple[list[Path], Choice]]:
    """The training and the test files of a folder, each in the order of their paths, and how they were chosen."""
    assert source.folder is not None
    root = source.folder

    def chosen(files: list[Path], folder: Path, *how: Any) -> tuple[list[Path], Choice]:  # noqa: ANN401 -- of a choice
        return files, Choice.of((path.relative_to(folder).as_posix() for path in files), *how)

    if (given := split_folders(root)) is not None:
        return {which: chosen(_listed(part), part) for which, part in zip((True, False), given, strict=True)}
    files = _listed(root)
    *both, rule = split_by_name([path.relative_to(root).as_posix() for path in files], source.test_fraction)
    if not all(both):
        raise DatasetError(
            f"{root}: got {len(files)} files and test_fraction={source.test_fraction}, which leave none to test on; "
            f"expected more of either, or subfolders train and test"
        )
    parts = [[files[i] for i in sorted(rows)] for rows in both]
    return {
        which: chosen(part, root, source.test_fraction, rule) for which, part in zip((True, False), parts, strict=True)
    }


def _listed(root: Path) -> list[Path]:
    """The WAV files of a folder, at any depth; recordings in other formats are an error, not passed over."""
    files = sorted(path for path in root.rglob("*") if not path.name.startswith(".") and path.is_file())
    other = [path for path in files if path.suffix.lower() in OTHER_AUDIO]
    if other:
        raise DatasetError(
            f"{other[0]}: got {len(other)} recordings of other formats; expected WAV files; convert or move them"
        )
    found = [path for path in files if path.suffix.lower() in (".wav", ".wave")]
    if not found:
        what = "no recordings" if root.is_dir() else "no folder"
        raise DatasetError(f"{root}: got {what}; expected a folder with files that end in .wav")
    return found


@dataclass(frozen=True)
class SeriesSource(DataSource):
    """Windows of series in a NumPy or CSV file: settings for a file or the command line.

    A .npy file has one series, T or T x C, or several, B x T x C: T times, with C numbers at each. A .npz file has
    such arrays x_train and x_test, or x alone. A .csv file has a header and one time per row. Integers 0, 1, ... in a
    NumPy file are levels of a lattice; numbers in a CSV file are real. A file without a split is split in time: the
    last test_fraction of each series is for testing.

    Args:
        name: series. The other sources have settings of their own: mnist, cifar10, digits, folder, array, audio.
        file: The .npy, .npz or .csv file.
        window: Number of times in a window.
        hop: Times from the start of one window to that of the next; a whole window if not given. Times left over at
            the end of a series are in no window; their number is reported.
        columns: For a .csv file: the names of the columns to read; all except the time if not given.
        time: For a .csv file: the name of the column of time stamps, numbers or ISO 8601 dates, which must be regular.
        levels: Number of levels of integers; if not given, one more than the largest value in the file.
        test_fraction: The share at the end of each series that is for testing, if the file does not split it.

    Raises:
        ArgumentError: A setting is out of range, or of another kind of file.
    """

    place: ClassVar[str] = "file"

    name: str = "series"
    file: Path | None = None
    window: int = 256
    hop: int | None = None
    columns: tuple[str, ...] = ()
    time: str | None = None
    levels: int | None = None
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_settings(self, "series", "file", "the .npy, .npz or .csv file")
        csv = isinstance(self.file, Path) and self.file.suffix.lower() == ".csv"
        for setting, belongs in (("columns", csv), ("time", csv), ("levels", not csv)):
            if getattr(self, setting) and not belongs:
                raise ArgumentError(
                    f"{setting}: got {getattr(self, setting)!r} with {self.file}; expected none; it is for "
                    f"{'NumPy' if csv else 'CSV'} files"
                )

    def load(self, *, train: bool, progress: bool = False) -> Windows:
        """Read the series of one split and cut them.

        Args:
            train: The training part, or the test part.
            progress: Not used, since a single file is read in one go.

        Raises:
            DatasetError: The file is missing or damaged, or holds NaN, irregular time stamps, or a series shorter
                than a window; the message names it.
        """
        assert self.file is not None
        found = read_series(
            self.file,
            train=train,
            columns=self.columns,
            time=self.time,
            levels=self.levels,
            test_fraction=self.test_fraction,
        )
        part, remedy = ("training" if train else "test") + " part", "remove the series"
        if found.cut:
            remedy = f"a {'smaller' if train else 'larger'} test_fraction than {self.test_fraction:g}"
        names = [f"{self.file}: series {i}, {part}" for i in range(len(found.series))]
        try:
            choice = Choice.of(map(_digest, found.series), *((self.test_fraction, "at the end") if found.cut else ()))
            windows = cut_windows(found.series, names, self.window, self.hop, lattice=found.lattice, remedy=remedy)
            return replace(windows, choice=choice)
        except (ArgumentError, ArgumentTypeError) as error:
            raise DatasetError(f"{error}" if str(self.file) in str(error) else f"{self.file}: {error}") from error


def _digest(series: Tensor) -> str:
    """What a series is told from others by: its length, and a hash of its numbers."""
    return f"{len(series)} {hashlib.sha256(series.numpy().tobytes()).hexdigest()[:32]}"


def _check_settings(source: Any, name: str, place: str, expected: str) -> None:  # noqa: ANN401 -- either source
    """What both sources have in common."""
    if source.name != name:
        raise ArgumentError(f"name: got {source.name!r}; expected {name!r}")
    if getattr(source, place) is None:
        raise ArgumentError(f"{place}: got None; expected {expected}, for name={name!r}")
    if isinstance(getattr(source, place), str):
        object.__setattr__(source, place, Path(getattr(source, place)))
    check_count(source.window, "window")
    if source.hop is not None:
        check_count(source.hop, "hop")
    check_probability(source.test_fraction, "test_fraction")
    if source.test_fraction == 1.0:
        raise ArgumentError("test_fraction: got 1; expected less, so that something is left to train on")
