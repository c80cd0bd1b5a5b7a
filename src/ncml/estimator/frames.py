"""Tables as they come: arrays, lists, data frames of pandas, and those of polars as ones of pandas and back."""

from __future__ import annotations

import datetime
import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ncml.errors import ArgumentTypeError

__all__ = [
    "CELLS",
    "Objects",
    "array_of",
    "as_pandas",
    "as_polars",
    "cells_of",
    "is_frame",
    "is_table",
    "objects_of",
    "rows_of",
    "schema_of",
]

Objects = NDArray[np.object_]
CELLS = (str, bytes, datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)  # the last are numbers to numpy

NUMBERS = {f"{u}Int{n}": f"{u}Int{n}" for u in ("", "U") for n in (8, 16, 32, 64)} | {"Boolean": "boolean"}
"""What pandas calls the types of polars whose gaps are no NaN."""


def is_frame(X: Any) -> bool:  # noqa: ANN401 -- any table
    """Whether X is a data frame of pandas."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def schema_of(X: Any, name: str = "X") -> Any:  # noqa: ANN401 -- any table
    """Names and types of the columns of a data frame of polars; None for anything else.

    Args:
        X: The table.
        name: The argument that it is.

    Raises:
        ArgumentTypeError: It is a lazy one, or a series.
    """
    if all(kind.__module__.partition(".")[0] != "polars" for kind in type(X).__mro__):
        return None
    if not hasattr(X, "get_column"):
        made = ", as .collect() makes" if hasattr(X, "collect") else ""
        raise ArgumentTypeError(f"{name}: got a {type(X).__name__} of polars; expected a DataFrame{made}")
    return X.schema


def as_pandas(X: Any, name: str = "X") -> Any:  # noqa: ANN401 -- any table
    """A data frame of pandas for one of polars, with its types; anything else as it is.

    Raises:
        ArgumentTypeError: pandas is not installed.
    """
    schema = schema_of(X, name)
    if schema is None:
        return X
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ArgumentTypeError(
            f"{name}: got a data frame of polars, which takes pandas; expected it to be installed: pip install pandas"
        ) from error
    columns = {}
    for label, kind in schema.items():
        column, type_ = X.get_column(label), kind.base_type().__name__
        if kind.is_float() or (type_ in NUMBERS and column.null_count() == 0):
            columns[label] = column.to_numpy()  # of floats NaN for gaps
        elif type_ in NUMBERS:
            columns[label] = pandas.array(column.to_list(), dtype=NUMBERS[type_])
        elif type_ in ("Enum", "Categorical"):
            known = list(kind.categories) if type_ == "Enum" else None
            columns[label] = pandas.Categorical(column.to_list(), categories=known)
        else:
            columns[label] = pandas.Series(column.to_list(), dtype=object)
    return pandas.DataFrame(columns)


def as_polars(frame: Any, schema: Any) -> Any:  # noqa: ANN401 -- data frames
    """A data frame of pandas without gaps as one of polars, of its types but where floats would not fit them."""
    polars = importlib.import_module("polars")
    columns = []
    for label, kind in schema.items():
        values = frame[label].tolist()
        floats = not kind.is_float() and any(isinstance(value, float) for value in values)
        columns.append(polars.Series(label, values, dtype=polars.Float64 if floats else kind))
    return polars.DataFrame(columns)


def rows_of(X: Any, index: NDArray[np.intp]) -> Any:  # noqa: ANN401 -- any table
    """Some rows of a table, which stays what it is."""
    if is_frame(X):
        return X.iloc[index]
    return (X if hasattr(X, "dtype") or schema_of(X) is not None else objects_of(X))[index]


def array_of(X: Any) -> Any:  # noqa: ANN401 -- any table
    """An array for a tensor, for a masked array, with NaN or None where it is masked, and for lists with text."""
    if isinstance(X, torch.Tensor):
        return (X.float() if X.dtype == torch.bfloat16 else X).detach().cpu().numpy()  # numpy has no bfloat16
    if isinstance(X, np.ma.MaskedArray):
        if not np.ma.is_masked(X):
            return X.data
        if X.dtype.kind in "mM":  # beside None they would become integers
            times = X.data.copy()
            times[np.ma.getmaskarray(X)] = np.array("NaT", X.dtype)
            return times
        gap: Any = np.nan if X.dtype.kind in "biuf" else None
        return np.where(np.ma.getmaskarray(X), gap, X.data)
    rows = X if isinstance(X, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in X) else ()
    return np.asarray(X, dtype=object) if any(isinstance(value, CELLS) for row in rows for value in row) else X


def objects_of(X: Any) -> Any:  # noqa: ANN401 -- any table but a data frame
    """An array; of lists one of their objects, so that numbers beside strings stay numbers."""
    X = array_of(X)
    return X if hasattr(X, "dtype") else np.asarray(X, dtype=object)


def is_table(X: Any) -> bool:  # noqa: ANN401 -- anything
    """Whether X has rows and columns, and is not sparse."""
    return getattr(X, "ndim", 0) == 2 and not hasattr(X, "toarray")


def cells_of(X: Any, j: int) -> Objects:  # noqa: ANN401 -- array or data frame
    """The values of a column, None for the gaps of a data frame."""
    if not is_frame(X):
        # Of dates numpy would make integers, of text and numbers Python's own.
        return np.fromiter(X[:, j], object, len(X)) if X.dtype.kind in "mM" else np.asarray(X[:, j], dtype=object)
    column = X.iloc[:, j]
    values: Objects = column.to_numpy(object, copy=True)
    values[column.isna().to_numpy(bool)] = None
    return values
