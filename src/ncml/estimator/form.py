"""The form of the user's table, and its way to numbers and back: codes for categories, NaN for gaps."""

from __future__ import annotations

import datetime
import numbers
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncml.errors import ArgumentError
from ncml.estimator.columns import column_of
from ncml.estimator.traits import Array

__all__ = ["Categories", "TableForm", "is_frame", "rows_of"]

Categories = Iterable[Any] | Mapping[Any, Iterable[Any]]
Objects = NDArray[np.object_]
SHOWN = 8
FEWEST = 20  # rows that can show that categories name them


@dataclass(frozen=True, eq=False)
class TableForm:
    """Labels and types of a table's columns, and the values of those that are categories.

    Args:
        labels: Names of a data frame's columns; indices of those of an array.
        categories: Of a column, by index, the values in the order of their codes 0, 1, ...
        frame: The data frame without its rows; None for arrays.
        dtype: Of an array; None for lists.
        kinds: Of columns of objects that are no categories: ``bool`` or ``int`` where they hold nothing else.
    """

    labels: list[Any]
    categories: dict[int, list[Any]]
    frame: Any
    dtype: Any
    kinds: dict[int, type]

    @classmethod
    def of(cls, X: Any, categories: Categories | None) -> TableForm:  # noqa: ANN401 -- any table
        """Look at a table.

        Args:
            X: The rows.
            categories: Columns that are categories, by name or index, or a mapping of them to their values in order. Of
                a data frame, columns of the dtype ``category`` are some anyway.

        Raises:
            ArgumentError: It names no column, or values twice.
        """
        if is_frame(X):
            labels, kinds = list(X.columns), list(X.dtypes)
            known = {j: list(kind.categories) for j, kind in enumerate(kinds) if hasattr(kind, "categories")}
        else:
            known = {}
            X = X if categories is None else _objects(X)
            labels = list(range(X.shape[1] if getattr(X, "ndim", 0) == 2 else 0))
        given = categories if isinstance(categories, Mapping) else dict.fromkeys(_listed(categories))
        for key, values in given.items() if labels else ():
            j = column_of(key, labels, "categories")
            if values is None:
                known.setdefault(j, _in_order(_column(X, j)))
                continue
            known[j] = list(values)
            if len(set(known[j])) < len(known[j]):
                raise ArgumentError(f"categories: got {known[j]!r} for {key!r}; expected every value once")
        dtypes = list(X.dtypes) if is_frame(X) else [getattr(X, "dtype", None)] * len(labels)
        objects = [j for j, dtype in enumerate(dtypes) if isinstance(dtype, np.dtype) and dtype.kind == "O"]
        held = {j: kind for j in objects if j not in known and (kind := _kind(_column(X, j))) is not None}
        if is_frame(X):
            return cls(labels, known, X.iloc[:0].copy(), None, held)
        return cls(labels, known, None, getattr(X, "dtype", None), held)

    @property
    def declared(self) -> dict[Any, list[Any]]:
        """The categories as the parameter ``categories`` takes them."""
        return {self.labels[j]: values for j, values in self.categories.items()}

    def encode(self, X: Any) -> Any:  # noqa: ANN401 -- any table
        """Floats in place of categories, integers, booleans and gaps: a data frame for one, an array otherwise.

        What is neither a data frame nor has categories is returned as it is, unless it holds strings.

        Raises:
            ArgumentError: A category that is not known, or a column of neither numbers nor categories.
        """
        if not is_frame(X):
            if self.categories:
                X = _objects(X)
            elif getattr(getattr(X, "dtype", None), "kind", "f") not in "OUS":
                return X
        if self._of_another_form(X):
            return X  # about which scikit-learn says what is wrong
        columns, wrong = {}, []
        for j in range(X.shape[1]):
            if j not in self.categories and is_frame(X) and getattr(X.dtypes.iloc[j], "kind", "O") in "biuf":
                columns[j] = X.iloc[:, j].to_numpy(np.float64, na_value=np.nan)
                continue
            column = _column(X, j)
            if j in self.categories:
                columns[j] = self._codes(column, j)
            elif not all(isinstance(v, (numbers.Real, np.bool_)) for v in _present(column)):
                wrong.append(j)
            else:
                columns[j] = np.array([np.nan if _missing(v) else v for v in column], np.float64)
        if not is_frame(X):
            if not self.categories and not any(isinstance(v, (str, bytes)) for v in np.asarray(X).flat):
                return X  # odd objects, which scikit-learn names
            if not wrong:
                return np.stack(list(columns.values()), 1)
        if wrong:
            kinds = "" if not is_frame(X) else f" ({', '.join(str(X.dtypes.iloc[j]) for j in wrong)})"
            raise ArgumentError(
                f"X: got columns {', '.join(str(self.labels[j]) for j in wrong)}{kinds}; expected numbers or "
                f"categories; {self._advice(X, wrong)}"
            )
        frame = type(X)(columns, index=X.index)
        frame.columns = X.columns
        return frame

    def _advice(self, X: Any, wrong: list[int]) -> str:  # noqa: ANN401 -- any table
        """What to do about columns of neither numbers nor categories."""
        own = (
            [] if self.frame is None else [j for j, kind in enumerate(self.frame.dtypes) if hasattr(kind, "categories")]
        )
        declared = [self.labels[j] for j in self.categories if j not in own]
        shared, advice = list(declared), []
        for j in wrong:
            label, values = self.labels[j], _present(_column(X, j))
            words = [value for value in values if not _reads_as_number(value)]
            if any(isinstance(value, (datetime.date, np.datetime64)) for value in values):
                advice.append(f"make days since the first one of the dates in {label}")
            elif not words:
                advice.append(f"make numbers of the text in {label}")
            elif 2 * len(words) < len(values):
                advice.append(f"make a gap (NaN) of {words[0]!r} in {label}, and numbers of the rest")
            elif _names_rows(len(set(words)), len(words)):
                advice.append(f"leave out {label}, which only names rows")
            else:
                shared.append(label)
        if len(shared) > len(declared):
            advice.insert(0, f"declare categories={shared!r}")
        return "; ".join(advice)

    def decode(self, rows: Array) -> Any:  # noqa: ANN401 -- array or data frame
        """Rows of numbers as a table of this form."""
        columns: dict[int, Any] = {j: rows[:, j] for j in range(rows.shape[1])}
        for j, values in self.categories.items():
            codes = np.rint(rows[:, j]).astype(int)
            columns[j] = np.array([values[code] for code in codes], dtype=object)
        for j, kind in self.kinds.items():
            columns[j] = _held(columns[j], np.dtype(kind)).astype(kind).astype(object)
        if self.frame is not None:
            kinds = dict(enumerate(self.frame.dtypes))
            held = {j: column if j in self.categories else _held(column, kinds[j]) for j, column in columns.items()}
            frame = type(self.frame)(held).astype(kinds)
            frame.columns = self.frame.columns
            return frame
        if not self.categories and getattr(self.dtype, "kind", "f") in "biuf":
            return rows if self.dtype is None else _held(rows, self.dtype).astype(self.dtype)
        table = np.empty(rows.shape, dtype=object)
        for j, column in columns.items():
            table[:, j] = column if j in self.categories else _held(column, self.dtype)
        # Text as wide as the longest category, of which the training table may have had shorter ones alone.
        return table.astype(self.dtype.kind if self.dtype.kind in "US" else self.dtype)

    def warn(self, rows: Array) -> None:
        """Say which categories, in encoded rows ``(n, d)``, name rows more than they tell of them."""
        keys = []
        for j in self.categories:
            codes = rows[~np.isnan(rows[:, j]), j]
            distinct = len(np.unique(codes))
            if _names_rows(distinct, len(codes)):
                keys.append(f"{self.labels[j]} ({distinct} of {len(codes)} rows)")
        if keys:
            warnings.warn(
                f"X: got categories that hardly repeat: {', '.join(keys)}; expected ones that many rows share; "
                f"leave out columns that only name rows, such as keys",
                UserWarning,
                stacklevel=3,
            )

    def _of_another_form(self, X: Any) -> bool:  # noqa: ANN401 -- array or data frame
        if getattr(X, "ndim", 0) != 2 or X.shape[1] != len(self.labels):
            return True
        named = self.frame is not None and is_frame(X) and all(isinstance(label, str) for label in self.labels)
        return named and list(X.columns) != self.labels

    def _codes(self, column: Objects, j: int) -> Array:
        code_of = {value: float(code) for code, value in enumerate(self.categories[j])}
        unknown = [v for v in _present(column) if v not in code_of]
        if unknown:
            known = ", ".join(repr(v) for v in self.categories[j][:SHOWN])
            more = ", ..." if len(self.categories[j]) > SHOWN else ""
            raise ArgumentError(
                f"X: got {unknown[0]!r} in {self.labels[j]}, which was not among its categories in training ({known}"
                f"{more}); expected one of these; leave such rows out, make a gap of it, or fit with "
                f"categories={{{self.labels[j]!r}: [...]}}, all values that can come"
            )
        return np.array([np.nan if _missing(v) else code_of[v] for v in column], np.float64)


def _names_rows(distinct: int, rows: int) -> bool:
    """Whether categories of so many distinct values are names of the rows, such as keys."""
    return rows >= FEWEST and 2 * distinct > rows


def _reads_as_number(value: Any) -> bool:  # noqa: ANN401 -- a cell
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def is_frame(X: Any) -> bool:  # noqa: ANN401 -- any table
    """Whether X is a data frame of pandas."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def rows_of(X: Any, index: NDArray[np.intp]) -> Any:  # noqa: ANN401 -- any table
    """Some rows of a table, which stays what it is."""
    if is_frame(X):
        return X.iloc[index]
    return (X if hasattr(X, "dtype") else _objects(X))[index]


def _listed(categories: Categories | None) -> Iterable[Any]:
    if isinstance(categories, str):
        raise ArgumentError(f"categories: got {categories!r}; expected a list of columns, [{categories!r}]")
    return () if categories is None else categories


def _objects(X: Any) -> Any:  # noqa: ANN401 -- array or list
    """An array as it is; of lists one of their objects, so that numbers beside strings stay numbers."""
    return X if hasattr(X, "dtype") else np.asarray(X, dtype=object)


def _column(X: Any, j: int) -> Objects:  # noqa: ANN401 -- array or data frame
    """The values of a column, None for the gaps of a data frame."""
    if not is_frame(X):
        return np.asarray(X[:, j], dtype=object)
    column = X.iloc[:, j]
    values: Objects = column.to_numpy(object, copy=True)
    values[column.isna().to_numpy(bool)] = None
    return values


def _held(column: Array, dtype: Any) -> Array:  # noqa: ANN401 -- a type of numpy or pandas
    """Numbers in the range of a type, rounded for one of integers; as they are for others."""
    kind = getattr(dtype, "kind", "O")
    if kind == "f":
        most = float(np.finfo(getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))).max)
        return column.clip(-most, most)
    if kind not in "biu":
        return column
    if kind == "b":
        return np.rint(column.clip(0.0, 1.0))
    whole = np.iinfo(getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype)))
    # The largest 64-bit integer is no float: the next float below it is.
    high = float(whole.max) if float(whole.max) == whole.max else float(np.nextafter(float(whole.max), 0.0))
    return np.rint(column.clip(float(whole.min), high))


def _missing(value: Any) -> bool:  # noqa: ANN401 -- a cell
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas', which need not be installed
        return True
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def _present(column: Objects) -> list[Any]:
    return [value for value in column if not _missing(value)]


def _kind(column: Objects) -> type | None:
    """``bool`` or ``int`` if there is nothing else in a column of objects."""
    there = _present(column)
    if there and all(isinstance(v, (bool, np.bool_)) for v in there):
        return bool
    return int if there and all(isinstance(v, numbers.Integral) for v in there) else None


def _in_order(column: Objects) -> list[Any]:
    """Distinct values, sorted where they can be."""
    values = list(dict.fromkeys(_present(column)))
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda v: (type(v).__name__, str(v)))
