"""Tensors and tables from NumPy files, as real numbers or as integer levels; nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncml.checks import signed
from ncml.data.base import Rows
from ncml.data.files import PathLike
from ncml.data.split import Choice, split_by_name
from ncml.data.values import check_kind, check_values, in_data_units
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError
from ncml.noise import Lattice

__all__ = ["Arrays", "read_arrays"]

WHOLE = ("x", "X", "data")
SPLIT = {True: ("x_train", "train"), False: ("x_test", "test")}
LABELS = ("y", "labels")
MOST_CLASSES = 65_536
ROWS = 4096  # looked at at a time
MOST_ROUNDING = 0.01  # of the range of a column, by single precision
ALIKE = 1e-12  # of their size: values that differ by less are one but for rounding
SPLIT_LABELS = {True: ("y_train", "train_labels"), False: ("y_test", "test_labels")}


@dataclass(frozen=True, eq=False)
class Arrays(Rows):
    """Rows of numbers of any shape: real ones in data units, or integer levels of a lattice.

    Args:
        values: ``(N, *shape)``: floating, finite and in data units; or, with a lattice, integers in
            ``0 .. lattice.levels - 1``.
        labels: Classes, int64 ``(N,)``, from 0; or None.
        lattice: The lattice of integer values; None for real ones.
        classes: Names of the classes; empty if there are none.
        choice: How the rows were chosen, if they were: the record that a checkpoint keeps.

    Raises:
        ArgumentError: A shape, value or label does not fit, or there are no rows; NaN and infinity are named with
            their row.
        ArgumentTypeError: Values or labels are of another type.

    Example:
        >>> from ncml.data import Arrays
        >>> arrays = Arrays(torch.tensor([[0.5, 2.0], [1.0, -3.0]]))
        >>> len(arrays), arrays.shape, arrays.lattice
        (2, (2,), None)
        >>> arrays.batch(torch.tensor([1]))
        tensor([[ 1., -3.]])
    """

    values: Tensor
    labels: Tensor | None = None
    lattice: Lattice | None = None
    classes: tuple[str, ...] = ()
    choice: Choice | None = None

    def __post_init__(self) -> None:
        check_kind(self.values, self.lattice, "values")
        if self.values.ndim < 2 or 0 in self.values.shape:
            raise ArgumentError(f"values: got shape {tuple(self.values.shape)}; expected (N, ...), at least one row")
        object.__setattr__(self, "values", signed(self.values))
        check_values(self.values, self.lattice, "values")
        self.check_labels()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.values.shape[1:])

    def batch(
        self, rows: Tensor | slice, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Rows in data units, ``(B, *shape)``; levels become floats on [-1, 1].

        Args:
            rows: Which rows: integers ``(B,)`` in ``0 .. N - 1``, in any order, or a slice.
            device: Target device; that of the values if None.
            dtype: A floating dtype.
        """
        return in_data_units(self.values[self.checked(rows)].to(device), self.lattice, dtype)

    def subset(self, rows: Tensor | slice) -> Arrays:
        """Some of the rows, with their labels; a slice shares memory with these."""
        rows = self.checked(rows)
        labels = None if self.labels is None else self.labels[rows]
        return Arrays(self.values[rows], labels, self.lattice, self.classes, self.choice)


def read_arrays(path: PathLike, *, train: bool = True, levels: int | None = None, test_fraction: float = 0.1) -> Arrays:
    """One split of the arrays of a ``.npz`` or ``.npy`` file.

    Args:
        path: The file. A ``.npz`` has ``x_train`` and ``x_test`` (or ``train`` and ``test``), or ``x`` alone, with
            labels ``y_train`` and ``y_test``, or ``y``. A ``.npy`` is ``x``.
        train: The training rows, or the test rows.
        levels: Number of levels of integers; if None, one more than the largest value in the file.
        test_fraction: The approximate share of test rows of ``x``, at least one. A hash of each row's numbers decides,
            so adding, removing or sorting rows does not move the others between the two.

    Raises:
        DatasetError: The file is missing or damaged, holds Python objects or text, has other arrays, or values that
            are not finite or below 0; the message names the array.
    """
    path = Path(path)
    arrays = load_arrays(path)
    name, x, labels, every, choice = _split(path, arrays, train, test_fraction)
    lattice = lattice_for(path, every, levels)
    if x.ndim == 1:
        x = x[:, None]
    every_label = _labels_of(arrays)
    for own, labels_ in every_label.items():
        if labels_.size and int(labels_.max()) >= MOST_CLASSES:
            raise DatasetError(
                f"{path}: {own}: got labels up to {int(labels_.max())}; expected classes 0, 1, ..., at most "
                f"{MOST_CLASSES}; number them, or save what they are under another name"
            )
    try:
        values = as_values(x, lattice)
        top = max((int(v.max()) for v in every_label.values() if v.size), default=-1)
        classes = tuple(map(str, range(top + 1))) if labels is not None else ()
        classified = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return Arrays(values, classified, lattice, classes, choice)
    except (ArgumentError, ArgumentTypeError) as error:
        raise DatasetError(f"{path}: {name}: {error}") from error


def load_arrays(path: Path) -> dict[str, Any]:
    """All arrays of a file by their names; that of a ``.npy`` is ``x``."""
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"x": loaded}
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected a .npz or .npy file") from error
    except Exception as error:  # numpy's and zipfile's readers of damaged files raise errors of many kinds
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            hint = (
                f"got a {path.suffix} file; expected .npz or .npy; a series is read by data.name series, a table with "
                f"categories and gaps by pandas and ncml.estimator; save one of numbers alone with numpy.save"
            )
        elif "object arrays" in str(error).lower():
            hint = (
                "got an array of Python objects; expected one of numbers; sequences of different lengths are no array: "
                "cut them to windows of one length, or pad them and train in Python, by "
                "ncml.training.fit(density, objective, x, lengths=lengths)"
            )
        elif "pickle" in str(error).lower():  # numpy's words advise to trust it
            hint = "got a file of another kind, or of objects; expected a .npz or .npy file of numbers"
        else:
            hint = f"got a file that is not a .npz or .npy file of numbers, or is damaged ({error})"
        raise DatasetError(f"{path}: {hint}") from error
    for name, x in arrays.items():
        if not isinstance(x, np.ndarray):  # numpy hands over what is no array as bytes
            raise DatasetError(f"{path}: {name}: got a member that is not an array; save the file with numpy.savez")
    return arrays


def _find(arrays: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _split(
    path: Path, arrays: dict[str, Any], train: bool, test_fraction: float
) -> tuple[str, Any, Any, list[Any], Choice]:
    """Name and values of one split, its labels, the arrays that are data, and how rows were chosen."""
    found = {which: _find(arrays, names) for which, names in SPLIT.items()}
    if (first := found[True]) is not None and (second := found[False]) is not None:
        name = first if train else second
        label_names = {which: _find(arrays, names) for which, names in SPLIT_LABELS.items()}
        if (label_names[True] is None) != (label_names[False] is None):
            raise DatasetError(f"{path}: got labels of one split alone; expected y_train and y_test, or neither")
        label_name = label_names[train]
        every = [check_numbers(path, n, arrays[n]) for n in (first, second)]
        if every[0].shape[1:] != every[1].shape[1:] or every[0].dtype != every[1].dtype:
            raise DatasetError(
                f"{path}: got {first} of {every[0].dtype} {every[0].shape[1:]} and {second} of {every[1].dtype} "
                f"{every[1].shape[1:]} a row; expected the same of both"
            )
        labels = None if label_name is None else _label_array(path, label_name, arrays[label_name])
        x = every[0 if train else 1]
        return name, x, labels, every, Choice.of(_names(x))
    whole = _find(arrays, WHOLE) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if whole is None or any(found.values()):
        raise DatasetError(
            f"{path}: got the arrays {', '.join(sorted(arrays)) or 'none'}; expected x, or x_train and x_test"
        )
    x = check_numbers(path, whole, arrays[whole])
    _check_finite(path, whole, x)  # before the split, so that rows have the numbers that they have in the file
    label_name = _find(arrays, LABELS)
    labels = None if label_name is None else _label_array(path, label_name, arrays[label_name])
    if labels is not None and len(labels) != len(x):
        raise DatasetError(f"{path}: got {len(labels)} labels in {label_name}; expected {len(x)}, one per row")
    n = len(x)
    names = _names(x)
    *both, rule = split_by_name(names, test_fraction)
    rows = both[0 if train else 1]
    if not rows:
        count, purpose = "one row" if n == 1 else f"{n} rows", "train" if train else "test"
        raise DatasetError(
            f"{path}: got {count} and test_fraction={test_fraction}, which leave none to {purpose} on; expected more "
            f"of either, or arrays x_train and x_test"
        )
    choice = Choice.of((names[i] for i in rows), test_fraction, rule)
    return whole, x[rows], None if labels is None else labels[rows], [x], choice


def _names(x: Any) -> list[str]:  # noqa: ANN401 -- an array
    """A name for each row: the hash of its numbers, and how many rows before it have the same ones."""
    kind = np.float32 if x.dtype.kind == "f" else np.int64
    with np.errstate(over="ignore"):  # infinity is refused with its row
        rows = np.ascontiguousarray(x.astype(kind)) + kind(0)  # -0.0 is 0.0
    seen: Counter[str] = Counter()
    names = []
    for row in rows:
        name = hashlib.sha256(row.tobytes()).hexdigest()[:32]
        names.append(f"{name} {seen[name]}")
        seen[name] += 1
    return names


def check_numbers(path: Path, name: str, x: Any) -> Any:  # noqa: ANN401 -- an array
    if x.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: {name}: got dtype {x.dtype}; expected real numbers, or integers for levels")
    if x.ndim == 0 or x.size == 0:
        raise DatasetError(f"{path}: {name}: got shape {x.shape}; expected (N, ...), at least one row")
    return x


def _check_finite(path: Path, name: str, x: Any) -> None:  # noqa: ANN401 -- an array
    if x.dtype.kind != "f":
        return
    bad = ~(np.abs(x) <= np.finfo(np.float32).max).reshape(len(x), -1).all(1)  # written so that NaN is bad
    if bad.any():
        raise DatasetError(
            f"{path}: {name}: got NaN or infinity (or beyond 3e38) in {int(bad.sum())} of {len(x)} rows, the "
            f"first in row {int(bad.argmax())}; clean the data"
        )


def _label_array(path: Path, name: str, y: Any) -> Any:  # noqa: ANN401 -- an array
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DatasetError(f"{path}: {name}: got {y.dtype} of shape {y.shape}; expected integers (N,), from 0")
    return y


def _labels_of(arrays: dict[str, Any]) -> dict[str, Any]:
    names = [_find(arrays, names) for names in (LABELS, *SPLIT_LABELS.values())]
    return {name: arrays[name] for name in names if name is not None}


def lattice_for(path: Path, every: list[Any], levels: int | None) -> Lattice | None:
    """The lattice of integers: that of all arrays of the file, so that both splits have the same."""
    if every[0].dtype.kind == "f":
        if levels is not None:
            raise DatasetError(
                f"{path}: got floating numbers and levels={levels}; expected integers, 0 .. {levels - 1}; save the "
                f"data as integers, or leave levels out"
            )
        return None
    low, high = min(int(x.min()) for x in every), max(int(x.max()) for x in every)
    if low < 0:
        raise DatasetError(
            f"{path}: got integers from {low}; expected levels from 0; add {-low}, or save real numbers as floats"
        )
    if levels is None and not 1 <= high < 65_536:
        raise DatasetError(
            f"{path}: got integers up to {high}; expected levels, 0 to at most 65535 and not all 0; save counts or "
            f"codes of other kinds as floats"
        )
    if levels is not None and high >= levels:
        raise DatasetError(f"{path}: got integers up to {high}; expected at most {levels - 1}, for levels={levels}")
    return Lattice(high + 1 if levels is None else levels)


def _check_told_apart(x: Any, values: Any) -> None:  # noqa: ANN401 -- arrays
    """Refuse columns whose values, in single precision, are mostly rounding."""
    with np.errstate(invalid="ignore"):
        reach = np.ptp(x, axis=0)
        parts = [slice(k, k + ROWS) for k in range(0, len(x), ROWS)]
        rounding = np.max([np.abs(x[part] - values[part]).max(0) for part in parts], 0)
        differ = reach > ALIKE * np.abs(values).max(0)
    lost = np.isfinite(reach) & (rounding > MOST_ROUNDING * reach) & differ
    if lost.any():
        column = x[(slice(None), *(int(i) for i in np.argwhere(lost)[0]))]
        raise ArgumentError(
            f"got values between {column.min():.10g} and {column.max():.10g}, which single precision cannot tell "
            f"apart; expected larger differences; subtract their mean, or change the unit"
        )


def as_values(x: Any, lattice: Lattice | None) -> Tensor:  # noqa: ANN401 -- an array
    """Real numbers as float32, levels in as few bytes as they need.

    Raises:
        ArgumentError: Single precision cannot tell the values of a column apart.
    """
    if lattice is None:
        with np.errstate(over="ignore"):  # infinity is refused with its row
            values = np.ascontiguousarray(x.astype(np.float32))
        if x.dtype.itemsize > values.dtype.itemsize:
            _check_told_apart(x, values)
        return torch.from_numpy(values)
    small = np.uint8 if lattice.levels <= 256 else np.int32
    return torch.from_numpy(np.ascontiguousarray(x.astype(small)))
