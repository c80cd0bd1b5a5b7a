r"""Columns of a table, from the units of the user to those of a density, and back.

A row goes through three maps, column by column:

.. math:: x \;\to\; y = \frac{x + w\,(u - \tfrac12) - c}{s} \;\to\; z = g(y),

with c the median, or a bound, beside which no digit is lost, s the standard deviation of the middle 99 %, w the step
of a column on a lattice (0 for real numbers) with u uniform on [0, 1), and g the identity or, within bounds, a
logarithm or a logit. The log-density of x is that of z plus :math:`\log|dz/dx|`; on a lattice it is the probability of
the value divided by w, so that for integers it is the probability itself. Missing values are NaN; c, s, w and the rest
are those of the values that are there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncml.errors import ArgumentError
from ncml.estimator.bounds import Bounds, bounds_of
from ncml.estimator.traits import HUGE, Array, affine_copy, check_magnitudes, column_lattice, spread, tied_share

__all__ = ["ENDLESS", "Columns"]

TIES = 0.1  # a real column with more tied rows than this is jittered
TIED_WIDTH = 0.01  # in scales of the column
MARGIN = 1e-6  # keeps jittered values off the ends of their step
THIN = 256.0  # roundings; the probability of a cell of fewer would be off by more than half a per cent
ENDLESS = 1e30  # stands for infinity as the end of a cell
FARTHEST = 1e15  # scales from the centre: farther is no number of the same kind, and too much for single precision


@dataclass(frozen=True, eq=False)
class Columns:
    """What was seen in the columns of a training table; ``of`` looks at one.

    Args:
        names: Names of all columns.
        kept: Indices of the k columns that the density sees.
        constant: Columns with one value, index to value.
        duplicates: Columns that are an affine function of an earlier one, index to (that index, slope, intercept).
        centre, scale: Of the kept columns, ``(k,)``; the centre of those within bounds is one of these.
        width: Width of the uniform noise that spreads a column's values, 0 for real numbers, ``(k,)``.
        origin: A point of each lattice; NaN for columns that lie on none, ``(k,)``.
        low, high: Bounds of what ``width`` made of the kept columns, infinite if there is none, ``(k,)``.
        after: Centre and scale once more, behind the logarithm or logit, ``(2, k)``.
        coded: Columns of codes, by index.
        first, last: Between which draws lie: within the bounds by a step of the column's type of floats at least, where
            they are real numbers, ``(k,)``.
    """

    names: tuple[str, ...]
    kept: NDArray[np.intp]
    constant: dict[int, float]
    duplicates: dict[int, tuple[int, float, float]]
    centre: Array
    scale: Array
    width: Array
    origin: Array
    low: Array
    high: Array
    after: Array
    coded: frozenset[int]
    first: Array
    last: Array

    @classmethod
    def of(
        cls,
        X: Array,
        names: Sequence[Any],
        bounds: Bounds | None = None,
        codes: Mapping[int, int] | None = None,
        types: Mapping[int, np.dtype[Any]] | None = None,
    ) -> Columns:
        """Look at a table, ``(n, d)``, NaN where a value is missing.

        Args:
            X: The rows.
            names: Names of the columns, which may be numbers.
            bounds: For a column, by name or index, the values between which it lies, None for infinity.
            codes: Columns of codes 0, 1, ... by index, and how many there are.
            types: Types of floats that columns of the table have, by index; doubles if not given.

        Raises:
            ArgumentError: A column without a value; every column is constant; values too large, too small or too far
                from the others; bounds that name no column, or that real values reach.
        """
        there = ~np.isnan(X)
        if empty := [str(names[j]) for j in range(X.shape[1]) if not there[:, j].any()]:
            raise ArgumentError(
                f"X: got no value in {', '.join(empty)}; expected some in every column; leave such columns out"
            )
        low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
        check_magnitudes(low, high, names)
        constant = {j: float(low[j]) for j in range(X.shape[1]) if low[j] == high[j]}
        kept, duplicates = _copies_apart(X, [j for j in range(X.shape[1]) if j not in constant])
        if not kept:
            raise ArgumentError(
                f"X: got {X.shape[0]} rows that are all the same; expected a column with several values, which has a "
                f"density"
            )
        values = [X[there[:, j], j] for j in kept]
        centre = np.array([np.median(column) for column in values])
        scale = np.array([spread(column) for column in values])
        lattices = [column_lattice(column) for column in values]
        width = np.array([step for step, _ in lattices])
        origin = np.array([start for _, start in lattices])
        codes = dict(codes or {})
        coded = np.isin(kept, list(codes))
        width[coded], origin[coded] = 1.0, 0.0
        tied = np.array([tied_share(column) > TIES for column in values]) & (width == 0.0)
        width = np.where(tied, TIED_WIDTH * scale, width)
        low, high = bounds_of(bounds, names, X, kept, duplicates, width, origin, codes)
        low[coded], high[coded] = -0.5, np.array([codes.get(j, 0) for j in kept])[coded] - 0.5
        centre = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, centre))
        _check_near(X[:, kept], centre, scale, [names[j] for j in kept])
        columns = cls(
            tuple(map(str, names)),
            np.array(kept),
            constant,
            duplicates,
            centre,
            scale,
            width,
            origin,
            low,
            high,
            np.stack([np.zeros(len(kept)), np.ones(len(kept))]),
            frozenset(codes),
            *_inside(low, high, width, [(types or {}).get(j, np.dtype(float)) for j in kept]),
        )
        if np.isinf(low).all() and np.isinf(high).all():
            return columns
        y = columns.standardise(X)
        bent = columns.to_model(torch.from_numpy(np.nan_to_num(y)))[0].numpy()
        for k in np.flatnonzero(np.isfinite(low) | np.isfinite(high)):
            column = bent[~np.isnan(y[:, k]), k]
            columns.after[:, k] = column.mean(), max(column.std(ddof=1), 1e-3)
        return columns

    @property
    def jittered(self) -> bool:
        """Whether any column is spread by uniform noise."""
        return bool((self.width > 0.0).any())

    def standardise(self, X: Array) -> Array:
        """The kept columns in units of their scale, ``(n, k)``; a gap is filled where the column's copy has a value."""
        gaps = [j for j, (i, _, _) in self.duplicates.items() if np.isnan(X[:, i]).any()]
        if gaps:
            X = X.copy()
            for j in gaps:
                i, slope, intercept = self.duplicates[j]
                X[:, i] = np.where(np.isnan(X[:, i]), (X[:, j] - intercept) / slope, X[:, i])
        with np.errstate(over="ignore"):  # of new rows
            return np.clip((X[:, self.kept] - self.centre) / self.scale, -HUGE, HUGE)

    def to_model(self, y: Tensor, u: Tensor | None = None, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Standardised rows as the density sees them, and the log-determinant of the way from the user's units.

        Args:
            y: What :meth:`standardise` gave, ``(n, k)``, with 0 for missing values.
            u: Uniforms on [0, 1) of that shape or one that broadcasts; the middle of every step if None.
            observed: Which values are there and count in the log-determinant, bool ``(n, k)``; all if None.

        Returns:
            ``(n, k)`` and ``(n,)``. Values at or beyond a bound are put just inside it, with a log-determinant of
            minus infinity.
        """
        z, terms = self._bent(y, u)
        return z, (terms if observed is None else terms.where(observed, 0.0)).sum(1)

    def _bent(self, y: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What :meth:`to_model` gives, the log-determinant column by column, ``(n, k)`` each."""
        if u is not None and self.jittered:
            y = y + self._as(self.width / self.scale, y) * (u.clamp(MARGIN, 1.0 - MARGIN) - 0.5)
        terms = -self._as(np.log(self.scale), y).expand(y.shape)
        bounded = np.isfinite(self.low) | np.isfinite(self.high)
        if not bounded.any():
            return y, terms
        z, terms = y.clone(), terms.clone()
        ends = np.stack(self._ends(), 1)
        for j in np.flatnonzero(bounded):
            low, high = ends[j].tolist()
            value = y[:, j]
            smallest = torch.finfo(y.dtype).tiny
            inside = (value > low) & (value < high)
            parts = [(value - low).clamp(min=smallest).log() if np.isfinite(low) else torch.zeros_like(value)]
            parts.append((high - value).clamp(min=smallest).log() if np.isfinite(high) else torch.zeros_like(value))
            slope = -parts[0] - parts[1] + (float(np.log(high - low)) if np.isfinite(high - low) else 0.0)
            centre, scale = self.after[:, j].tolist()
            z[:, j] = (parts[0] - parts[1] - centre) / scale
            terms[:, j] += torch.where(inside, slope - float(np.log(scale)), -torch.inf)
        return z, terms

    def _ends(self) -> tuple[Array, Array]:
        """The bounds in standardised units, ``(k,)`` each."""
        return (self.low - self.centre) / self.scale, (self.high - self.centre) / self.scale

    def cells(
        self, y: Tensor, observed: Tensor | None = None, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Standardised rows as the density sees them, with the cell of each value on a lattice, whole steps long.

        Args:
            y, observed: As for :meth:`to_model`.
            dtype: That of the density. Cells whose ends it can hardly tell apart, such as those of large counts in
                single precision, are left out: there the density at the middle is that of the cell.

        Returns:
            The middles z and the cells' ends, ``(n, k)`` each, of that dtype, equal where there is no cell; and what
            turns the log-probability of the cells, times the density of the rest, into the log-density of the rows,
            ``(n,)``.
        """
        z, terms = self._bent(y)
        half, on = self._as(0.5 * self.width / self.scale, y), np.isfinite(self.origin)
        first, last = (self._as(end, y) for end in self._ends())
        low = self._bent(y - half)[0].where(y - half > first + MARGIN * half, -ENDLESS)
        high = self._bent(y + half)[0].where(y + half < last - MARGIN * half, ENDLESS)
        cell = high - low > THIN * torch.finfo(dtype).eps * (1.0 + z.abs())
        cell &= torch.as_tensor(on, device=y.device)
        # Of the log-determinant there stays what is infinite, beyond the bounds; the rest becomes 1 / width.
        log_width = self._as(np.log(self.width, where=on, out=np.zeros_like(self.width)), y)
        terms = torch.where(cell & terms.isfinite(), -log_width, terms)
        log_det = (terms if observed is None else terms.where(observed, 0.0)).sum(1)
        low, high = (torch.where(cell, end, z).to(dtype) for end in (low, high))
        return z.to(dtype), low, high, log_det

    def middle(self, k: int, z: Tensor) -> Tensor:
        """Draws of one column put in the middle of their cell, ``(n,)``; as they are if it lies on no lattice."""
        if not np.isfinite(self.origin[k]):
            return z
        one = self._one(k)
        return one.to_model(torch.from_numpy(one.standardise(one.from_model(z[:, None]))))[0][:, 0].to(z)

    def _one(self, k: int) -> Columns:
        """The kept column with that number, as a table of its own."""
        parts = {
            name: getattr(self, name)[[k]]
            for name in ("centre", "scale", "width", "origin", "low", "high", "first", "last")
        }
        names = (self.names[self.kept[k]],)
        return replace(
            self, names=names, kept=np.array([0]), constant={}, duplicates={}, after=self.after[:, [k]], **parts
        )

    def from_model(self, z: Tensor) -> Array:
        """Rows of the user's table from draws of the density, ``(n, k)`` to ``(n, d)``."""
        y = z.double().cpu().numpy()
        y = y * self.after[1] + self.after[0]
        low, high = self._ends()
        below, above = np.isfinite(low), np.isfinite(high)
        kept = np.empty_like(y)
        with np.errstate(over="ignore"):  # the limit, a bound or infinity, is right
            for j in range(y.shape[1]):
                if below[j] and above[j]:
                    kept[:, j] = low[j] + (high[j] - low[j]) / (1.0 + np.exp(-y[:, j]))
                elif below[j]:
                    kept[:, j] = low[j] + np.exp(y[:, j])
                elif above[j]:
                    kept[:, j] = high[j] - np.exp(-y[:, j])
                else:
                    kept[:, j] = y[:, j]
        kept = kept * self.scale + self.centre
        on = np.isfinite(self.origin)
        step, start = self.width[on], self.origin[on]
        kept[:, on] = start + step * np.round((kept[:, on] - start) / step)
        kept = kept.clip(self.first, self.last)
        X = np.empty((len(kept), len(self.names)))
        X[:, self.kept] = kept
        for j, value in self.constant.items():
            X[:, j] = value
        for j, (i, slope, intercept) in self.duplicates.items():
            X[:, j] = slope * X[:, i] + intercept
        return X

    def residuals(self, X: Array) -> Array:
        """By how much rows break what was always so in training, in scales, ``(n, d)``.

        They are 0 for the kept columns, and where a value is missing. A constant column's scale is 1 or the size of its
        constant, whichever is larger. Codes are as they were or not, 0 or the sign of the difference,
        also where a column of numbers is the copy of one of codes.
        """
        r = np.zeros_like(X)
        for j, value in self.constant.items():
            off = X[:, j] - value
            r[:, j] = np.sign(off) if j in self.coded else off / max(1.0, abs(value))
        scales = dict(zip(self.kept.tolist(), self.scale.tolist(), strict=True))
        for j, (i, slope, intercept) in self.duplicates.items():
            off = X[:, j] - slope * X[:, i] - intercept
            # Of two copies with noise of their own, the difference has the variance of both.
            r[:, j] = off / (np.sqrt(2.0) * abs(slope) * scales[i])
            if j in self.coded or i in self.coded:
                other = np.abs(off) >= 0.5 * (1.0 if j in self.coded else abs(slope))
                r[other, j] = np.sign(off[other])
        r[~(np.abs(r) >= 1e-6)] = 0.0  # rounding, and gaps
        return r

    def repair(self, X: Array) -> Array:
        """The way on which half the squared :meth:`residuals` fall fastest, in scales, ``(n, d)``."""
        r = self.residuals(X)
        way = -r
        for j, (i, slope, _) in self.duplicates.items():
            way[:, j] = -r[:, j] / np.sqrt(2.0)
            way[:, i] += np.sign(slope) * r[:, j] / np.sqrt(2.0)
        return way

    def warn(self) -> None:
        """Say which columns the density does not see."""
        if self.constant:
            named = ", ".join(self.names[j] for j in self.constant)
            warnings.warn(f"X: constant columns are set aside: {named}", UserWarning, stacklevel=3)
        if self.duplicates:
            pairs = ", ".join(f"{self.names[j]} (of {self.names[i]})" for j, (i, _, _) in self.duplicates.items())
            warnings.warn(f"X: duplicated columns are set aside: {pairs}", UserWarning, stacklevel=3)

    @staticmethod
    def _as(values: Array, like: Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)


def _copies_apart(X: Array, indices: list[int]) -> tuple[list[int], dict[int, tuple[int, float, float]]]:
    """Which of some columns are kept, and which are an affine function of a kept one: (its index, slope, intercept)."""
    kept: list[int] = []
    duplicates: dict[int, tuple[int, float, float]] = {}
    for j in indices:
        found = next(((i, *line) for i in kept if (line := affine_copy(X[:, i], X[:, j])) is not None), None)
        if found is None:
            kept.append(j)
        else:
            duplicates[j] = found
    return kept, duplicates


def _check_near(X: Array, centre: Array, scale: Array, names: Sequence[Any]) -> None:
    """Refuse columns with a value so far from the others that single precision would lose these."""
    ends = np.stack([np.nanmin(X, axis=0), np.nanmax(X, axis=0)])
    far = np.abs((ends - centre) / scale)
    if (far > FARTHEST).any():
        place = np.unravel_index(far.argmax(), far.shape)
        raise ArgumentError(
            f"X: got {ends[place]:g} in {names[int(place[1])]}, {far[place]:.1g} times its other values' spread from "
            f"them; expected numbers of one kind; make a gap (NaN) of a code for missing values"
        )


def _inside(low: Array, high: Array, width: Array, types: Sequence[np.dtype[Any]]) -> tuple[Array, Array]:
    """The first and last values of draws: the bounds before spreading, or the real numbers of some type between them.

    On a bound the density of real numbers is 0, and a fit to them is refused.
    """
    first, last = low + 0.5 * width, high - 0.5 * width
    for k in np.flatnonzero(width == 0.0).tolist():
        with np.errstate(over="ignore"):  # of bounds that the type does not reach
            first[k] = np.nextafter(types[k].type(low[k]), types[k].type(np.inf))
            last[k] = np.nextafter(types[k].type(high[k]), types[k].type(-np.inf))
    return first, last
