"""The form of the user's table, and its way to numbers and back: codes for categories, NaN for gaps."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ncml.errors import ArgumentError
from ncml.estimator.advice import advice_on, names_rows
from ncml.estimator.bounds import column_of
from ncml.estimator.frames import (
    CELLS,
    Objects,
    array_of,
    as_pandas,
    as_polars,
    cells_of,
    is_frame,
    is_table,
    objects_of,
    schema_of,
)
from ncml.estimator.traits import Array, numpy_type

__all__ = ["Categories", "TableForm"]

Categories = Iterable[Any] | Mapping[Any, Iterable[Any]]
SHOWN = 8


@dataclass(frozen=True, eq=False)
class TableForm:
    """Labels and types of a table's columns, and the values of those that are categories.

    Args:
        labels: Names of a data frame's columns; indices of those of an array.
        categories: Of a column, by index, the values in the order of their codes 0, 1, ...
        frame: The data frame without its rows; None for arrays.
        dtype: Of an array; None for lists.
        kinds: Of columns of objects that are no categories: ``bool`` or ``int`` where they hold nothing else.
        schema: Of a data frame of polars, which is one of pandas within.
    """

    labels: list[Any]
    categories: dict[int, list[Any]]
    frame: Any
    dtype: Any
    kinds: dict[int, type]
    schema: Any = None

    @classmethod
    def of(cls, X: Any, categories: Categories | None) -> TableForm:  # noqa: ANN401 -- any table
        """Look at a table.

        Args:
            X: The rows.
            categories: Columns that are categories, by name or index, or a mapping of them to their values in order. Of
                a data frame, columns of the dtype ``category`` are some anyway.

        Raises:
            ArgumentError: It names no column, values twice, or ones that the column's type does not have.
        """
        schema, X = schema_of(X), as_pandas(X)
        if is_frame(X):
            labels, kinds = list(X.columns), list(X.dtypes)
            known = {j: list(kind.categories) for j, kind in enumerate(kinds) if hasattr(kind, "categories")}
        else:
            known = {}
            X = array_of(X) if categories is None else objects_of(X)
            labels = list(range(X.shape[1] if is_table(X) else 0))
        dtypes = list(X.dtypes) if is_frame(X) else [getattr(X, "dtype", None)] * len(labels)
        given = categories if isinstance(categories, Mapping) else dict.fromkeys(_listed(categories))
        for key, values in given.items() if labels else ():
            j = column_of(key, labels, "categories")
            if values is None:
                known.setdefault(j, _in_order(_distinct(_present(cells_of(X, j)), key)))
                continue
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise ArgumentError(f"categories: got {values!r} for {key!r}; expected a list of all its values")
            known[j] = list(values)
            if len(_distinct(known[j], key)) < len(known[j]):
                raise ArgumentError(f"categories: got {known[j]!r} for {key!r}; expected every value once")
            if other := [value for value in known[j] if not _missing(value) and not _fits(value, dtypes[j])]:
                kind = dtypes[j] if schema is None else list(schema.values())[j]
                raise ArgumentError(
                    f"categories: got {other[0]!r} for {key!r}, which is no value of its type, {kind}; expected values "
                    f"that are; change the type, to one of text for instance"
                )
        objects = [j for j, dtype in enumerate(dtypes) if isinstance(dtype, np.dtype) and dtype.kind == "O"]
        held = {j: kind for j in objects if j not in known and (kind := _kind(cells_of(X, j))) is not None}
        if is_frame(X):
            return cls(labels, known, X.iloc[:0].copy(), None, held, schema)
        return cls(labels, known, None, getattr(X, "dtype", None), held)

    def joined(self, X: Any, categories: Categories | None) -> TableForm:  # noqa: ANN401 -- any table
        """The form with the categories of further rows too, in columns whose values ``categories`` left open."""
        X = as_pandas(X, "Y")
        X = X if is_frame(X) else objects_of(X)
        if self.differs(X):  # which encode refuses
            return self
        given = categories if isinstance(categories, Mapping) else {}
        closed = {column_of(key, self.labels, "categories") for key, values in given.items() if values is not None}
        known = dict(self.categories)
        for j, values in self.categories.items():
            if j in closed:
                continue
            new = [v for v in _in_order(_distinct(_present(cells_of(X, j)), self.labels[j])) if v not in values]
            known[j] = _in_order(values + new) if values == _in_order(values) else values + new
        return replace(self, categories=known)

    @property
    def declared(self) -> dict[Any, list[Any]]:
        """The categories as the parameter ``categories`` takes them."""
        return {self.labels[j]: values for j, values in self.categories.items()}

    @property
    def floats(self) -> dict[int, np.dtype[Any]]:
        """The types of columns of floats in fewer digits than doubles, by index."""
        types = [self.dtype] * len(self.labels) if self.frame is None else list(self.frame.dtypes)
        floats = {j: np.dtype(numpy_type(kind)) for j, kind in enumerate(types) if getattr(kind, "kind", "O") == "f"}
        return {j: kind for j, kind in floats.items() if kind.itemsize < np.dtype(float).itemsize}

    def names(self, width: int) -> list[Any]:
        """What the columns are called in messages: as in the data frame, or x0, x1, ... of an array of some width."""
        return self.labels if self.frame is not None else [f"x{j}" for j in range(width)]

    def encode(self, X: Any, name: str = "X", *, gaps: bool = True) -> Any:  # noqa: ANN401 -- any table
        """Floats in place of categories, integers, booleans and gaps: a data frame for one, an array otherwise.

        What is neither a data frame nor has categories is returned as it is, unless it holds strings or dates.

        Args:
            X: The rows.
            name: The argument that they are.
            gaps: Whether they may have some, for the remedies.

        Raises:
            ArgumentError: A category that is not known, a column of neither numbers nor categories, or columns of one
                name.
        """
        schema, X = schema_of(X, name), as_pandas(X, name)
        given, masked = getattr(X, "dtype", None), np.ma.is_masked(X)
        if is_frame(X):
            _check_names(X, name)
        else:
            X = objects_of(X) if self.categories else array_of(X)
            if not self.categories and getattr(getattr(X, "dtype", None), "kind", "f") not in "OUSmM":
                return X
        if self.differs(X):
            return X  # about which scikit-learn says what is wrong
        columns, wrong = {}, []
        for j in range(X.shape[1]):
            if j not in self.categories and is_frame(X) and getattr(X.dtypes.iloc[j], "kind", "O") in "biuf":
                columns[j] = X.iloc[:, j].to_numpy(np.float64, na_value=np.nan)
                continue
            column = cells_of(X, j)
            if j in self.categories:
                columns[j] = self._codes(column, j, name, gaps=gaps)
            elif (found := _numbers(column)) is not None:
                columns[j] = found
            else:
                wrong.append(j)
        if not is_frame(X):
            if not self.categories and not any(isinstance(v, CELLS) for j in wrong for v in cells_of(X, j)):
                return X  # odd objects, which scikit-learn names
            if not wrong:
                return np.stack(list(columns.values()), 1)
        if wrong:
            types = list(getattr(X, "dtypes", ())) if schema is None else list(schema.values())
            kinds = f" ({', '.join(str(types[j]) for j in wrong)})" if types else ""
            advice = self._advice(X, wrong, name, gaps=gaps)
            if ":" in advice and schema is not None:
                made = f"pd.DataFrame({name}.to_dict(as_series=False))"
                advice = f"make a data frame of pandas of it, {name} = {made}; {advice}"
            elif ":" in advice and not is_frame(X) and given != np.dtype(object):  # which takes no numbers beside text
                made = _made_of_objects(name, getattr(given, "kind", "O"), masked=masked)
                advice = f"make an array of objects of it, {name} = {made}; {advice}"
            raise ArgumentError(
                f"{name}: got columns {', '.join(str(self.labels[j]) for j in wrong)}{kinds}; expected numbers or "
                f"categories; {advice}"
            )
        frame = type(X)(columns, index=X.index)
        frame.columns = X.columns
        return frame

    def _advice(self, X: Any, wrong: list[int], name: str, *, gaps: bool) -> str:  # noqa: ANN401 -- any table
        """What to do about columns of neither numbers nor categories."""
        own = (
            [] if self.frame is None else [j for j, kind in enumerate(self.frame.dtypes) if hasattr(kind, "categories")]
        )
        declared = [self.labels[j] for j in self.categories if j not in own]
        shared, advice = list(declared), []
        for j in wrong:
            label, values = self.labels[j], _present(cells_of(X, j))
            place = f"{name}[{label!r}]" if is_frame(X) else f"{name}[:, {j}]"
            found = advice_on(label, values, place, gaps=gaps)
            if found is None:
                shared.append(label)
            else:
                advice.append(found)
        if len(shared) > len(declared):
            advice.insert(0, f"declare categories={shared!r}")
        return "; ".join(advice)

    def decode(self, rows: Array) -> Any:  # noqa: ANN401 -- array or data frame
        """Rows of numbers as a table of this form."""
        columns: dict[int, Any] = {j: rows[:, j] for j in range(rows.shape[1])}
        for j, values in self.categories.items():
            codes = np.rint(rows[:, j].clip(0, len(values) - 1)).astype(int)  # a copy of numbers has no last one
            columns[j] = np.fromiter((values[code] for code in codes), dtype=object, count=len(codes))
        for j, kind in self.kinds.items():
            columns[j] = _held(columns[j], np.dtype(kind)).astype(kind).astype(object)
        if self.frame is not None:
            kinds = dict(enumerate(self.frame.dtypes))
            held = {j: column if j in self.categories else _held(column, kinds[j]) for j, column in columns.items()}
            frame = type(self.frame)(held).astype(kinds)
            frame.columns = self.frame.columns
            return frame if self.schema is None else as_polars(frame, self.schema)
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
            if names_rows(distinct, len(codes)):
                keys.append(f"{self.labels[j]} ({distinct} of {len(codes)} rows)")
        if keys:
            warnings.warn(
                f"X: got categories that hardly repeat: {', '.join(keys)}; expected ones that many rows share; "
                f"leave out columns that only name rows, such as keys",
                UserWarning,
                stacklevel=3,
            )

    def differs(self, X: Any) -> bool:  # noqa: ANN401 -- any table
        """Whether a table has other columns than this form."""
        if not is_table(X) or X.shape[1] != len(self.labels):
            return True
        named = self.frame is not None and is_frame(X) and all(isinstance(label, str) for label in self.labels)
        return named and list(X.columns) != self.labels

    def _codes(self, column: Objects, j: int, name: str, *, gaps: bool) -> Array:
        code_of = {value: float(code) for code, value in enumerate(self.categories[j]) if not _missing(value)}
        try:
            codes = np.array(list(map(code_of.get, column)), np.float64)  # NaN where there is none
        except TypeError:  # unhashable, about which there is a message
            _distinct(_present(column), self.labels[j])
            raise
        unknown = _present(column[np.isnan(codes)])
        if unknown:
            known = ", ".join(repr(v) for v in self.categories[j][:SHOWN])
            more = ", ..." if len(self.categories[j]) > SHOWN else ""
            gap = "make a gap of it, " if gaps else ""
            raise ArgumentError(
                f"{name}: got {unknown[0]!r} in {self.labels[j]}, which is not among the categories known of it "
                f"({known}{more}); expected one of these; leave such rows out, {gap}or fit with "
                f"categories={{{self.labels[j]!r}: [...]}}, all values that can come"
            )
        return codes


def _listed(categories: Categories | None) -> Iterable[Any]:
    if isinstance(categories, str):
        raise ArgumentError(f"categories: got {categories!r}; expected a list of columns, [{categories!r}]")
    if not isinstance(categories, Iterable | None):
        raise ArgumentError(f"categories: got {categories!r}; expected a list of columns, or {{column: values}}")
    return () if categories is None else categories


def _made_of_objects(name: str, kind: str, *, masked: bool) -> str:
    """Code for an array of objects with the values of one of some kind, None or NaT where it is masked."""
    if kind in "mM":  # of nanoseconds objects would be integers
        type_ = "datetime64" if kind == "M" else "timedelta64"
        gap = f".filled(np.{type_}('NaT'))" if masked else ""
        return f"{name}.astype('{type_}[us]'){gap}.astype(object)"
    return f"np.where(np.ma.getmaskarray({name}), None, {name}.data)" if masked else f"np.array({name}, dtype=object)"


def _check_names(X: Any, name: str) -> None:  # noqa: ANN401 -- data frame
    """Refuse a data frame without columns, or with several of one name."""
    labels = list(X.columns)
    if not labels:
        raise ArgumentError(f"{name}: got a data frame without columns; expected one at least")
    if len(set(labels)) < len(labels):
        twice = ", ".join(repr(label) for label in dict.fromkeys(labels) if labels.count(label) > 1)
        raise ArgumentError(
            f"{name}: got several columns named {twice}; expected a name for each; rename them, or leave out the "
            f"later ones, {name} = {name}.loc[:, ~{name}.columns.duplicated()]"
        )


def _held(column: Array, dtype: Any) -> Array:  # noqa: ANN401 -- a type of numpy or pandas
    """Numbers in the range of a type, rounded for one of integers; as they are for others."""
    kind = getattr(dtype, "kind", "O")
    if kind == "f":
        most = float(np.finfo(numpy_type(dtype)).max)
        return column.clip(-most, most)
    if kind not in "biu":
        return column
    if kind == "b":
        return np.rint(column.clip(0.0, 1.0))
    whole = np.iinfo(numpy_type(dtype))
    # The largest 64-bit integer is no float: the next float below it is.
    high = float(whole.max) if float(whole.max) == whole.max else float(np.nextafter(float(whole.max), 0.0))
    return np.rint(column.clip(float(whole.min), high))


def _fits(value: Any, dtype: Any) -> bool:  # noqa: ANN401 -- a cell, and a type of numpy or pandas
    """Whether a column of some type can have a value."""
    if hasattr(dtype, "categories"):
        return value in list(dtype.categories)
    kind = getattr(dtype, "kind", "O")
    if kind not in "biuf":
        return True
    if not isinstance(value, (numbers.Real, np.bool_)):
        return False
    return kind == "f" or float(_held(np.array([float(value)]), dtype)[0]) == float(value)


def _numbers(column: Objects) -> Array | None:
    """Floats, NaN for gaps; None if there is anything but numbers."""
    kinds = set(map(type, column))
    if all(issubclass(kind, (numbers.Real, np.bool_)) and not issubclass(kind, CELLS) for kind in kinds):
        return column.astype(np.float64)
    if all(isinstance(v, (numbers.Real, np.bool_)) and not isinstance(v, CELLS) for v in _present(column)):
        return np.array([np.nan if _missing(v) else v for v in column], np.float64)
    return None


def _missing(value: Any) -> bool:  # noqa: ANN401 -- a cell
    if isinstance(value, (str, int)):  # most cells of columns of objects
        return False
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas', which need not be installed
        return True
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def _present(column: Objects) -> list[Any]:
    return [value for value in column if not _missing(value)]


def _kind(column: Objects) -> type | None:
    """``bool`` or ``int`` if there is nothing else in a column of objects."""
    there = _present(column)
    if there and all(isinstance(v, (bool, np.bool_)) for v in there):
        return bool
    return int if there and all(isinstance(v, numbers.Integral) for v in there) else None


def _distinct(values: Iterable[Any], key: Any) -> list[Any]:  # noqa: ANN401 -- a name or an index
    """Every value of a column of categories once."""
    values = list(values)
    try:
        return list(dict.fromkeys(values))
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise ArgumentError(
            f"categories: got cells of {', '.join(kinds)} in {key!r}; expected strings, numbers or other hashable "
            f"values; make strings of them, .astype(str), or leave out the column"
        ) from error


def _in_order(values: list[Any]) -> list[Any]:
    """Sorted where they can be."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda v: (type(v).__name__, str(v)))
