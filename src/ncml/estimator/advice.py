"""What to do about a column of neither numbers nor categories: dates, durations, numbers in text, names of rows."""

from __future__ import annotations

import datetime
import decimal
import numbers
import re
from typing import Any

import numpy as np

__all__ = ["advice_on", "names_rows"]

FEWEST = 20  # rows that can show that categories name them
MARKS = "[%$€£ ]"  # beside a number in text
WITH_COMMAS = "[%$€£ ,]"
GROUPED = r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?"  # 1,234.56
DAY = r"(\d{1,2})([/.-])(\d{1,2})\2(?:\d{4}|\d{2})\b.*"  # 31/12/2020, or with the month first


def advice_on(label: Any, values: list[Any], place: str, *, gaps: bool) -> str | None:  # noqa: ANN401 -- a name
    """What to do about a column, with code of pandas for it; None: declare it as categories.

    Args:
        label: Its name.
        values: Its cells, without gaps.
        place: The column as the user writes it, such as ``X['size']``.
        gaps: Whether rows may have gaps.
    """
    if _all(values, (datetime.timedelta, np.timedelta64)):
        return f"make days of the durations in {label}: {place} = pd.to_timedelta({place}) / pd.Timedelta(days=1)"
    # Commas group thousands if one stands before a point, or beside numbers without any, and none stands elsewhere.
    commas = [value for value in values if isinstance(value, str) and "," in value and re.search(r"\d", value)]
    decided = any("." in value for value in commas) or any(map(_is_number, values))
    thousands = decided and all(map(_is_grouped, commas))
    for reads, make in ((_is_date, _days), (_is_number_or_grouped if thousands else _is_number, _numbers)):
        read = [value for value in values if reads(value)]
        if 2 * len(read) <= len(values):
            continue
        odd = next((value for value in values if not reads(value)), None)
        wanted, cells, code = make(read, place, ", errors='coerce'" if odd is not None and gaps else "")
        if odd is None:
            return f"make {wanted} of the {cells} in {label}: {code}"
        if gaps:
            return f"make a gap (NaN) of {odd!r} in {label}, and {wanted} of the rest: {code}"
        return f"leave out rows with {odd!r} in {label}, and make {wanted} of the rest: {code}"
    if _all(values, (complex, np.complexfloating)):
        return f"make two columns of the complex numbers in {label}: the real and the imaginary parts"
    if _all(values, str) and all(_is_number(value.replace(",", "")) for value in values):
        if any(re.search(MARKS, value) for value in values):
            code = f"pd.to_numeric(pd.Series({place}).replace('{WITH_COMMAS}', '', regex=True))"
            return f"make numbers of the text in {label}: {place} = {code}"
        return (
            f"make numbers of the text in {label}: read it by pd.read_csv with thousands=',', or with decimal=',' and "
            f"thousands='.'"
        )
    try:
        few = not names_rows(len(set(values)), len(values))
    except TypeError:  # unhashable
        few = False
    if few:
        return None
    if _all(values, (str, bytes, numbers.Real)):
        return f"leave out {label}, which only names rows, or make numbers of it"
    return f"leave out {label}, or make numbers of its cells ({type(values[0]).__name__})"


def names_rows(distinct: int, rows: int) -> bool:
    """Whether categories of so many distinct values are names of the rows, such as keys."""
    return rows >= FEWEST and 2 * distinct > rows


def _days(values: list[Any], place: str, coerce: str) -> tuple[str, str, str]:
    """What to make of which cells, with its code: from one origin, so that those of later tables mean the same."""
    text = [value.strip() for value in values if isinstance(value, str)]
    days = [found for value in text if (found := re.fullmatch(DAY, value))]
    moments = [value if isinstance(value, datetime.datetime) else _moment(str(value)) for value in values]
    zone = any(moment is not None and moment.tzinfo is not None for moment in moments)
    options, cells, column = ", format='mixed'" if text else "", "dates", place
    if days:
        # With dots the day is first everywhere; otherwise either may be.
        first = any(int(found[1]) > 12 or found[2] == "." for found in days)
        unsure = not first and all(int(found[3]) <= 12 for found in days)
        if len(days) == len(text):
            options += f", dayfirst={first}"
            cells += " (month first, or else dayfirst=True)" if unsure else ""
        else:  # dayfirst=True turns the others round as well
            parts = r"\3-\2-\1" if first else r"\3-\1-\2"
            cells += r" (month first, or else '\3-\2-\1')" if unsure else ""
            column = rf"{place}.astype(str).str.replace(r'^(\d+)[/.-](\d+)[/.-](\d{{4}})', r'{parts}', regex=True)"
    options += ", utc=True" if zone else ""
    dates = f"pd.to_datetime({column}{options}{coerce})"
    if all(map(_is_period, values)):
        dates = f"pd.PeriodIndex({place}).to_timestamp()"
    origin = "pd.Timestamp('2000-01-01', tz='UTC')" if zone else "pd.Timestamp('2000-01-01')"
    return "days", cells, f"{place} = ({dates} - {origin}) / pd.Timedelta(days=1)"


def _numbers(values: list[Any], place: str, coerce: str) -> tuple[str, str, str]:
    """What to make of which cells, with its code."""
    decimals = not any(isinstance(value, (str, bytes)) for value in values) and decimal.Decimal in map(type, values)
    wanted, cells = ("floats", "decimals") if decimals else ("numbers", "text")
    code = f"{place} = {place}.astype(float)"
    if any(isinstance(value, str) and not _floats(value) for value in values):
        marks = WITH_COMMAS if any(map(_is_grouped, values)) else MARKS
        code = f"{place} = pd.to_numeric(pd.Series({place}).replace('{marks}', '', regex=True){coerce})"
    elif coerce:
        code = f"{place} = pd.to_numeric({place}{coerce})"
    return wanted, cells, code


def _all(values: list[Any], kinds: type | tuple[type, ...]) -> bool:
    return all(isinstance(value, kinds) for value in values)


def _is_period(value: Any) -> bool:  # noqa: ANN401 -- a cell
    return type(value).__name__ == "Period"  # pandas', which need not be installed


def _is_date(value: Any) -> bool:  # noqa: ANN401 -- a cell
    if isinstance(value, str):
        return _moment(value) is not None or re.fullmatch(DAY, value.strip()) is not None
    return isinstance(value, (datetime.date, np.datetime64)) or _is_period(value)


def _moment(cell: str) -> datetime.datetime | None:
    """An ISO 8601 date, or month; None if it is none. Without marks, as in 20200131, it is a number."""
    cell = cell.strip().replace("Z", "+00:00")  # Python 3.10 knows no Z
    cell = cell.replace("/", "-", 2) if cell[4:5] == "/" else cell
    if cell[4:5] != "-" or "W" in cell:
        return None
    try:
        return datetime.datetime.fromisoformat(f"{cell}-01" if len(cell) == len("2020-01") else cell)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:  # noqa: ANN401 -- a cell
    return _floats(re.sub(MARKS, "", value) if isinstance(value, str) else value)


def _is_grouped(value: Any) -> bool:  # noqa: ANN401 -- a cell
    """Whether it is a number in text whose commas may group thousands."""
    return isinstance(value, str) and re.fullmatch(GROUPED, re.sub(MARKS, "", value)) is not None


def _is_number_or_grouped(value: Any) -> bool:  # noqa: ANN401 -- a cell
    return _is_number(value) or _is_grouped(value)


def _floats(value: Any) -> bool:  # noqa: ANN401 -- a cell
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
