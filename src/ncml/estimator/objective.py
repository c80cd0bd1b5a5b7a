"""What an estimator of a table trains: the objective on rows with lattices and gaps, and a density that fits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ncml.checks import kind_of
from ncml.densities import MarginalMADE
from ncml.density import CellDensity, NoiseConditionalDensity, unwrapped
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.estimator.columns import Columns
from ncml.noise import GaussianProcess, NoiseProcess
from ncml.objective import NCMLObjective

__all__ = [
    "DensityFactory",
    "TableObjective",
    "may_have_gaps",
    "score_of_rows",
    "seed_if_none",
    "seed_of",
    "seeded",
    "times_of",
    "untrained_density",
]

DensityFactory = Callable[[Sequence[int], NoiseProcess], NoiseConditionalDensity]


@dataclass(frozen=True)
class TableObjective(NCMLObjective):
    """The objective on standardised rows, float64, whose lattice columns are spread afresh in every batch.

    At t = 0 a :class:`~ncml.density.CellDensity` learns the probabilities of the steps themselves: of spread values it
    would have to learn to be flat within them, which a spike of many equal values does not let it.

    A context is the mask of observed values. In half of the rows of a batch further values are hidden, each with a
    probability that is uniform from row to row, so that every set of observed values is trained.

    Args:
        columns: The columns.
    """

    columns: Columns | None = None

    def __call__(
        self,
        density: nn.Module,
        x: Tensor,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        assert self.columns is not None
        u, inner = None, cast(NoiseConditionalDensity, unwrapped(density))
        if self.columns.jittered:
            u = torch.rand(x.shape, dtype=inner.dtype, device=x.device, generator=generator)
        if context is not None:
            context = _hide_more(context, generator)
        z = self.columns.to_model(x, u)[0].to(inner.dtype)  # beside a bound single precision would lose all digits
        if self.columns.jittered and isinstance(inner, CellDensity):
            density = _OnCells(density, *self.columns.cells(x, None, inner.dtype)[:3])
        return super().__call__(density, z, context, generator=generator, **options)


class _OnCells(nn.Module):
    """The call of a density on a batch whose rows at t = 0 are in cells, :meth:`ncml.density.CellDensity.log_cells`."""

    def __init__(self, density: nn.Module, middle: Tensor, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.module = density
        self.cells = middle, low, high

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        _, low, high = self.cells
        on_cell = (t == 0.0)[:, None] & (low < high)
        x, low, high = (torch.where(on_cell, part, x) for part in self.cells)
        return cast(Tensor, self.module(x, t, context, low=low, high=high))


def score_of_rows(
    density: NoiseConditionalDensity,
    columns: Columns,
    y: Tensor,
    u: Tensor | None,
    t: float,
    mask: Tensor | None = None,
) -> Tensor:
    """The score of standardised rows in what the density sees, spread by ``u`` as for :meth:`Columns.to_model`.

    At t = 0 a :class:`~ncml.density.CellDensity` has learned the probabilities of steps: the score is theirs, and 0 for
    the columns on lattices themselves.
    """
    z = columns.to_model(y, u)[0].to(density.dtype)
    if t == 0.0 and columns.jittered and isinstance(density, CellDensity):
        middle, low, high, _ = columns.cells(y, None, density.dtype)
        z, low, high = (torch.where(low < high, part, z) for part in (middle, low, high))
        return density.score_cells(z, low, high, t, mask)
    return density.score(z, t, mask)


def _hide_more(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """The mask with further zeros in the first half of the rows."""
    u = torch.rand(len(mask), 1 + mask.shape[1], dtype=mask.dtype, device=mask.device, generator=generator)
    kept = u[:, 1:] >= u[:, :1]
    kept[len(mask) // 2 :] = True
    return mask * kept


def untrained_density(
    factory: DensityFactory,
    event_shape: Sequence[int],
    process: NoiseProcess,
    *,
    gaps: bool,
    cells: bool,
    device: str | None = None,
) -> tuple[NoiseConditionalDensity, bool]:
    """What an estimator trains, and whether it is a density of the observed values, whose mask is its context.

    Args:
        factory: The estimator's parameter ``density``, or the default one.
        event_shape, process: Its arguments.
        gaps: Whether rows may have some.
        cells: Whether values have some, as those on a lattice do.
        device: Where it is to be; the CPU if None.

    Raises:
        ArgumentTypeError: The factory returned something else than a density.
        ArgumentError: It returned one that takes no mask, and there are gaps; torch cannot use the device.
        UnsupportedError: It returned a :class:`~ncml.density.CellDensity` that takes no cells, and there are some.
    """
    density = factory(event_shape, process)
    if not isinstance(density, NoiseConditionalDensity):
        raise ArgumentTypeError(
            f"density: got a function that returned {type(density).__name__}; expected a NoiseConditionalDensity"
        )
    marginal = _is_marginal(density)
    if gaps and not marginal:
        raise ArgumentError(
            f"density: got a {type(density).__name__}, which is no density of the observed values given their mask as "
            f"context; expected one for rows with missing values, such as ncml.densities.MarginalMADE(shape, process); "
            f"or impute them"
        )
    if cells and isinstance(density, CellDensity):
        density.check_cells()
    return _placed(density, device), marginal


def _placed(density: NoiseConditionalDensity, device: str | None) -> NoiseConditionalDensity:
    """The density on a device, the CPU if None."""
    try:
        return density.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device: got {device!r}, which torch cannot use ({reason}); expected 'cpu', or 'cuda' beside a GPU"
        ) from error


def _is_marginal(density: NoiseConditionalDensity) -> bool:
    """Whether a density is one of the observed values, whose mask is its context."""
    if isinstance(density, MarginalMADE):
        return True
    x = torch.linspace(-1.0, 1.0, math.prod(density.event_shape), dtype=density.dtype, device=density.device)[None]
    mask = (torch.arange(x.shape[1], device=x.device) % 2).to(x)[None]
    try:
        there, other = (density.log_density(v, 0.0, mask) for v in (x, x * mask))
        nothing = density.log_density(x, 0.0, 0.0 * mask)
    except Exception:  # whatever a density raises that takes no such context
        return False
    return bool((there == other).all()) and bool((nothing == 0.0).all())


def times_of(process: NoiseProcess, levels: Sequence[float], name: str) -> list[float]:
    """The times at which a process has noise levels, which the parameter ``name`` gave.

    Raises:
        ArgumentError: The process does not reach them.
        UnsupportedError: It is not Gaussian.
    """
    if not isinstance(process, GaussianProcess):
        raise UnsupportedError(
            f"{name}: got noise levels under {kind_of(process)}; expected process=None or a GaussianProcess, which has "
            f"a sigma"
        )
    low, high = float(process.sigma(0.0)), float(process.sigma(process.T))
    try:
        return [float(process.time_at(float(level))) for level in levels]
    except ArgumentError as error:
        raise ArgumentError(
            f"{name}: got {', '.join(f'{level:g}' for level in levels)}; expected noise levels from {low:g} to "
            f"{high:.6g}, which is all that {process} has; fit an estimator whose process has more noise at its end"
        ) from error


def seed_of(random_state: Any) -> int:  # noqa: ANN401 -- whatever check_random_state takes
    """A seed for torch from the parameter ``random_state``."""
    return int(check_random_state(random_state).randint(2**31 - 1))


def may_have_gaps(estimator: Any) -> bool:  # noqa: ANN401 -- whatever is given for one
    """Whether an estimator takes rows with gaps; true of what is none, which ``fit`` refuses."""
    return getattr(estimator, "missing", None) is not False


def seed_if_none(estimator: BaseEstimator, random: np.random.RandomState) -> None:
    """Give an estimator a seed unless it has one."""
    if estimator.random_state is None:
        estimator.set_params(random_state=seed_of(random))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own generators from a seed, for initial weights and dropout, and as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
