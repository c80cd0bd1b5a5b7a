r"""What is missing in rows of a table, drawn given all that is there.

An autoregressive density draws a value given those before it, which is not enough where later ones are known. So for
every row K candidates are drawn: the values that are there are kept, each missing one is drawn given all before it, and
with S the missing ones a candidate weighs what the others say of it,

.. math:: w = \prod_{i \notin S} p(x_i \mid x_{<i}) \propto \frac{p(x_S \mid x_{\setminus S})}{q(x_S)}.

One candidate is picked in proportion to its weight, which is a draw from the conditional law as K grows (sampling
importance resampling). Rounds then bring it closer: for a random part S of a row's missing values new candidates are
drawn, all others staying as they are, and what the row has now is one of them. Such a round leaves the conditional law
as it is, whatever K, so that the rows come to it (iterated sampling importance resampling, `Andrieu, Lee and Vihola,
2018 <https://arxiv.org/abs/1312.6432>`_).

Candidates that know only the values before rarely meet a narrow law which those behind them settle. So after every
round a row moves a few times: for a part S of its missing values and a size s, both random, a centre
:math:`c = x_S + s\, \epsilon` is drawn and places :math:`c + s\, \epsilon_k` around it, with normal :math:`\epsilon`;
one of these and :math:`x_S` is picked in proportion to the density. Seen from the centre all of them are alike but for
the density, so that a move leaves the law as it is too (Tjelmeland, 2004, *Using all Metropolis-Hastings proposals to
estimate mean values*). On a lattice the steps are whole ones, and categories do not move.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncml.density import CellDensity, NoiseConditionalDensity
from ncml.errors import UnsupportedError
from ncml.estimator.columns import ENDLESS, Columns
from ncml.estimator.form import TableForm
from ncml.estimator.frames import as_pandas, as_polars, is_frame
from ncml.estimator.traits import Array, numpy_type
from ncml.progress import progress_counter

__all__ = ["completed", "fillable", "in_form"]

CANDIDATES = 16  # K
MOVES, PLACES = 8, 8  # moves after each round, and from how many places each chooses
FINEST = 1e-3  # size of a move's steps, in scales; the largest is 1
AT_ONCE = 512  # rows
FARTHEST = 1e12  # in scales: beyond, single precision overflows in the network, and nothing was learned


def fillable(density: NoiseConditionalDensity, name: str) -> CellDensity:
    """The density, if it can fill gaps; ``name`` is the argument or method that it is of.

    Raises:
        UnsupportedError: It is no :class:`~ncml.density.CellDensity`.
    """
    if not isinstance(density, CellDensity):
        raise UnsupportedError(
            f"{name}: got a {type(density).__name__}; expected a CellDensity, as the default density is"
        )
    return density


def completed(
    density: CellDensity,
    columns: Columns,
    rows: Array,
    context: Tensor | None,
    *,
    rounds: int,
    draws: int = 1,
    seed: int,
    progress: bool = False,
) -> Array:
    """Rows of the user's table, ``(n, d)``, with missing values drawn in place of NaN.

    Args:
        density: That of whole rows, under its context.
        columns: The columns.
        rows: The rows.
        context: Of a single row, ``(1, ...)``, or None.
        rounds: How often values are drawn anew after the first time, and moved.
        draws: How many are made, of which the median is taken, or the commonest category.
        seed: Of what is drawn.
        progress: Show a progress bar.
    """
    density = copy.deepcopy(density).float()  # draws need no more digits
    context = None if context is None else context.to(density.dtype)
    y = torch.from_numpy(columns.standardise(rows)).clamp(-FARTHEST, FARTHEST)
    incomplete = y.isnan().any(1)
    wanted = y[incomplete].to(density.device).repeat_interleave(draws, 0)
    parts = wanted.split(AT_ONCE) if len(wanted) else ()
    generator, filled = torch.Generator(density.device).manual_seed(seed), []
    with progress_counter(progress, "complete", len(parts) * (1 + rounds)) as counter:
        for part in parts:
            gaps, part = part.isnan(), part.nan_to_num()
            for step in range(1 + rounds):
                u = torch.rand(gaps.shape, device=part.device, generator=generator)
                some = _part(gaps, u) if step else gaps
                part = _redrawn(density, columns, part, some, context, generator, first=step == 0)
                for _ in range(MOVES):
                    part = _moved(density, columns, part, gaps, context, generator)
                counter.update()
            filled.append(part.cpu())
    if filled:
        drawn = torch.cat(filled).unflatten(0, (-1, draws))
        coded = torch.from_numpy(_coded(columns))
        y[incomplete] = torch.where(coded, drawn.mode(1).values, drawn.median(1).values)  # both are draws
    gaps = np.isnan(rows)
    table = np.where(gaps, columns.from_model(columns.to_model(y)[0]), rows)
    for j, (i, slope, intercept) in columns.duplicates.items():  # of what is there, to the last digit
        table[gaps[:, j], j] = slope * table[gaps[:, j], i] + intercept
    return table


def in_form(form: TableForm, filled: Array, rows: Array, X: Any) -> Any:  # noqa: ANN401 -- any table
    """Filled rows in the form of the training table, with every cell of the table X that is there as it is.

    Cells of a column of the same type are taken from X, since integers may have more digits than floats. A column whose
    type would change one, as a type of integers changes 2.5, has floats instead.

    Args:
        form: That of the training table.
        filled: What :func:`completed` gave.
        rows: What it was given, NaN where a value is missing.
        X: The same as the user's table.
    """
    if form.schema is not None:
        return as_polars(in_form(replace(form, schema=None), filled, rows, as_pandas(X)), form.schema)
    table, gaps = form.decode(filled), np.isnan(rows)
    held = np.asarray(form.encode(table), np.float64)  # within the range of its type
    changed, exact = (~gaps & (held != rows)).any(0), np.where(gaps, held, rows)
    if not is_frame(table):
        if isinstance(X, np.ndarray) and X.dtype == table.dtype:
            return np.where(gaps, table, X)
        if changed.any() and table.dtype.kind in "biuf":
            return replace(form, dtype=np.dtype(np.float64)).decode(exact)
        table[:, changed] = exact[:, changed]
        return table
    table = table.set_axis(X.index) if is_frame(X) else table
    for j, label in enumerate(table.columns):
        if is_frame(X) and numpy_type(X.dtypes.iloc[j]) == numpy_type(kind := table.dtypes.iloc[j]):
            table[label] = X.iloc[:, j].where(~gaps[:, j], table.iloc[:, j]).astype(kind)
        elif changed[j]:
            table[label] = exact[:, j]
    return table


def _coded(columns: Columns) -> NDArray[np.bool_]:
    """Which of the columns in use are codes of categories."""
    return np.isin(columns.kept, list(columns.coded))


def _part(marked: Tensor, u: Tensor) -> Tensor:
    """Of the marked values in each row a random half, one at least, by uniform numbers u."""
    u = u.masked_fill(~marked, 1.0)
    return marked & ((u < 0.5) | (u == u.amin(1, keepdim=True)))


@torch.no_grad()
def _redrawn(
    density: CellDensity,
    columns: Columns,
    y: Tensor,
    redraw: Tensor,
    context: Tensor | None,
    generator: torch.Generator,
    *,
    first: bool,
) -> Tensor:
    """Rows with some of their values drawn anew given the others; what they have now is a candidate, unless first."""
    z, low, high, _ = columns.cells(y, None, density.dtype)
    # A cell without ends has the probability 1: what is drawn has no weight of its own.
    low, high = low.masked_fill(redraw, -ENDLESS), high.masked_fill(redraw, ENDLESS)
    kept = redraw.logical_not().repeat_interleave(CANDIDATES, 0)
    if not first:
        kept[::CANDIDATES] = True
    z, low, high = (part.repeat_interleave(CANDIDATES, 0) for part in (z, low, high))
    context = None if context is None else context.expand(len(z), *context.shape[1:])

    def place(j: int, drawn: Tensor) -> Tensor:
        return torch.where(kept[:, j], z[:, j], columns.middle(j, drawn))

    drawn = density.sample(len(z), 0.0, context, generator=generator, place=place)
    log_w = density.log_cells(drawn, low, high, 0.0, context).view(len(y), CANDIDATES)
    log_w = log_w.double().clamp(min=-1e300)  # all candidates alike if what is there is so far off that each weighs 0
    picked = torch.multinomial(log_w.softmax(1), 1, generator=generator)[:, 0]
    picked += torch.arange(0, len(z), CANDIDATES, device=z.device)
    new = columns.standardise(columns.from_model(drawn[picked])).clip(-FARTHEST, FARTHEST)
    return torch.where(redraw, torch.from_numpy(new).to(y), y)


@torch.no_grad()
def _moved(
    density: CellDensity,
    columns: Columns,
    y: Tensor,
    gaps: Tensor,
    context: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Rows with some of their missing values moved by steps of one size, random for every row."""
    n, k = y.shape
    how: dict[str, Any] = {"device": y.device, "dtype": y.dtype, "generator": generator}
    free = gaps & ~torch.from_numpy(_coded(columns)).to(y.device)
    if not bool(free.any()):
        return y
    free = _part(free, torch.rand(n, k, **how))
    size = FINEST ** torch.rand(n, 1, 1, **how)
    width = torch.from_numpy(np.where(np.isfinite(columns.origin), columns.width / columns.scale, 0.0)).to(y)

    def steps(count: int) -> Tensor:
        out = size * torch.randn(n, count, k, **how)
        return torch.where(width > 0.0, (out / width).round() * width, out).masked_fill(~free[:, None], 0.0)

    places = y[:, None] + steps(1) + steps(PLACES)
    places[:, 0] = y
    z, low, high, log_det = columns.cells(places.flatten(0, 1), None, density.dtype)
    context = None if context is None else context.expand(len(z), *context.shape[1:])
    log_w = (density.log_cells(z, low, high, 0.0, context).double() + log_det).view(n, PLACES)
    log_w[:, 0] = log_w[:, 0].clamp(min=-1e300)  # where it stays if none has a density
    picked = torch.multinomial(log_w.softmax(1), 1, generator=generator)[:, 0]
    return places[torch.arange(n, device=y.device), picked]
