"""Long series of numbers in NumPy and CSV files."""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ncml.data.arrays import SPLIT, WHOLE, as_values, check_numbers, lattice_for, load_arrays
from ncml.errors import ArgumentError, DatasetError
from ncml.noise import Lattice

__all__ = ["SeriesData", "read_csv", "read_series"]

Numbers = npt.NDArray[Any]
IRREGULAR = 1e-3  # of the step between two times: more is no rounding
GAPS = ("", "-", "?", "na", "n/a", "nil", "none", "null", "missing")  # what a cell without a number says, in any case


@dataclass(frozen=True)
class SeriesData:
    """Series of one split.

    Args:
        series: ``(T_i, C)`` each: real numbers, or levels of the lattice.
        lattice: The lattice of integers, or None.
        cut: Whether the splits were cut from each series, rather than given by the file.
    """

    series: tuple[Tensor, ...]
    lattice: Lattice | None
    cut: bool


def read_series(
    path: Path,
    *,
    train: bool,
    columns: Sequence[str] = (),
    time: str | None = None,
    levels: int | None = None,
    test_fraction: float = 0.1,
) -> SeriesData:
    """The series of one split of a file; see :class:`ncml.data.SeriesSource`.

    Raises:
        DatasetError: The file is missing, damaged, or holds something other than series of finite numbers.
    """
    if path.suffix.lower() == ".csv":
        arrays: dict[str, Numbers] = {"x": read_csv(path, columns=columns, time=time)}
    else:
        arrays = load_arrays(path)
    names = {which: next((n for n in known if n in arrays), None) for which, known in SPLIT.items()}
    whole = next((n for n in WHOLE if n in arrays), None) or (next(iter(arrays)) if len(arrays) == 1 else None)
    pair = names[True], names[False]
    if pair[0] is not None and pair[1] is not None:
        parts = {which: check_numbers(path, str(name), arrays[str(name)]) for which, name in names.items()}
    elif whole is not None and pair == (None, None):
        x = _shaped(path, whole, check_numbers(path, whole, arrays[whole]))
        cut = x.shape[1] - round(test_fraction * x.shape[1])
        parts = {True: x[:, :cut], False: x[:, cut:]}
    else:
        raise DatasetError(
            f"{path}: got the arrays {', '.join(sorted(arrays)) or 'none'}; expected x, or x_train and x_test"
        )
    parts = {which: _shaped(path, str(names[which] or whole), x) for which, x in parts.items()}
    if parts[True].shape[2] != parts[False].shape[2] or parts[True].dtype != parts[False].dtype:
        raise DatasetError(
            f"{path}: got {parts[True].shape[2]} numbers ({parts[True].dtype}) at each time to train on and "
            f"{parts[False].shape[2]} ({parts[False].dtype}) to test on; expected the same"
        )
    lattice = lattice_for(path, [x for x in parts.values() if x.size], levels)
    try:
        return SeriesData(tuple(as_values(x, lattice) for x in parts[train]), lattice, None in pair)
    except ArgumentError as error:
        raise DatasetError(f"{path}: {error}") from error


def _shaped(path: Path, name: str, x: Numbers) -> Numbers:
    """Several series, ``(B, T, C)``."""
    if x.ndim > 3:
        raise DatasetError(f"{path}: {name}: got shape {x.shape}; expected T, T x C or B x T x C")
    x = x[:, None] if x.ndim == 1 else x
    x = x[None] if x.ndim == 2 else x
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        b, t, c = (int(i) for i in np.argwhere(~finite)[0])
        raise DatasetError(
            f"{path}: {name}: got NaN or infinity in {int((~finite).sum())} places, first in series {b} at time {t}, "
            f"number {c}; fill or cut the gaps"
        )
    return x


def read_csv(path: Path, *, columns: Sequence[str] = (), time: str | None = None) -> Numbers:
    """The numbers of a CSV file with a header, float64 ``(T, C)``.

    Args:
        path: The file, in UTF-8, with commas.
        columns: Which columns to read; all except the time if none are named.
        time: The column of time stamps, numbers or ISO 8601 dates; checked, but not part of the result.

    Raises:
        DatasetError: A row differs in length, a cell is not a finite number, a column does not exist, or times are
            not regular; the message gives the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(i, row) for i, row in enumerate(csv.reader(file, strict=True), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); expected a CSV file in UTF-8") from error
    if len(rows) < 2:
        raise DatasetError(f"{path}: got {len(rows)} lines; expected a header and at least one row")
    header = [name.strip() for name in rows[0][1]]
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        decimal = ", decimal=','" if any(len(row) > 1 for _, row in rows) else ""
        raise DatasetError(
            f"{path}: line {rows[0][0]}: got {other!r} between the columns; expected commas; save it anew: "
            f"pd.read_csv({path.name!r}, sep={other!r}{decimal}).to_csv({path.name!r}, index=False)"
        )
    if all(map(_is_number, header)):
        raise DatasetError(
            f"{path}: line {rows[0][0]}: got numbers alone, {', '.join(header)}; expected a header with the names of "
            f"the columns; add one"
        )
    chosen = list(columns) or [name for name in header if name != time]
    for name in [*chosen, *([] if time is None else [time])]:
        if header.count(name) != 1:
            raise DatasetError(f"{path}: got the columns {', '.join(header)}; expected one named {name!r}")
    places = [header.index(name) for name in chosen]
    values = np.empty((len(rows) - 1, len(chosen)))
    for k, (line, row) in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DatasetError(f"{path}: line {line}: got {len(row)} cells; expected {len(header)}, as in the header")
        for j, place in enumerate(places):
            values[k, j] = _number(path, line, header[place], row[place])
    if time is not None:
        _check_times(path, time, [(line, row[header.index(time)]) for line, row in rows[1:]])
    return values


def _check_times(path: Path, time: str, cells: list[tuple[int, str]]) -> None:
    """Refuse times that are not regular."""
    days = [day for _, cell in cells if (day := _day(cell)) is not None]  # 20200131, which is a number as well
    times = days if len(days) == len(cells) else [_time(path, line, cell) for line, cell in cells]
    unit = "" if times is not days and all(_is_number(cell) for _, cell in cells) else " seconds"
    for k, (line, _) in enumerate(cells):
        if k > 1:
            step, first = times[k] - times[k - 1], times[1] - times[0]
            if not abs(step - first) <= IRREGULAR * abs(first):
                raise DatasetError(
                    f"{path}: line {line}: got a step of {step:g}{unit} in {time}; expected {first:g}, as between "
                    f"the first rows; resample the series, or if that does not matter, name the columns to read, "
                    f"without time"
                )
        elif k == 1 and not times[1] > times[0]:
            raise DatasetError(f"{path}: line {line}: got times that do not increase; expected regular ones; sort it")


def _day(cell: str) -> float | None:
    """A date without marks between year, month and day, in seconds; None if it is not one, of these centuries."""
    if not re.fullmatch(r"(1[89]|20|21)\d{6}", cell.strip()):
        return None
    try:
        day = datetime.datetime.strptime(cell.strip(), "%Y%m%d")
    except ValueError:
        return None
    return (day - datetime.datetime(1970, 1, 1)).total_seconds()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        remedy = "fill the gap, or choose columns"
        if not _is_number(cell) and cell.strip().lower() not in GAPS:
            remedy = "it is not a number: correct it, or choose columns"
        if _moment(cell) is not None:
            remedy = f"name the column of time stamps (time={column!r}), or choose columns"
        raise DatasetError(f"{path}: line {line}: got {cell!r} in {column}; expected a finite number; {remedy}")
    return value


def _time(path: Path, line: int, cell: str) -> float:
    """A time stamp as a number: seconds if it is a date."""
    try:
        if np.isfinite(number := float(cell)):
            return number
    except ValueError:
        pass
    if (seconds := _moment(cell)) is None:
        raise DatasetError(f"{path}: line {line}: got the time {cell!r}; expected a number or an ISO 8601 date")
    return seconds


def _moment(cell: str) -> float | None:
    """An ISO 8601 date in seconds; None if it is not one."""
    try:
        # Python 3.10 knows no Z; without a zone, days have 24 hours.
        moment = datetime.datetime.fromisoformat(cell.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    zone = moment.tzinfo or datetime.timezone.utc
    return (moment.replace(tzinfo=zone) - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)).total_seconds()
