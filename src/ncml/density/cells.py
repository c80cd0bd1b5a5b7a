"""The capability of a density whose conditionals can be integrated over cells, for values on lattices of any kind."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ncml.checks import HALF, Time, check_floating
from ncml.density.checks import check_arguments, check_given
from ncml.density.gradient import derivative
from ncml.density.interface import AutoregressiveDensity
from ncml.density.modes import eval_mode, evaluating, usable
from ncml.errors import ArgumentError, UnsupportedError

__all__ = ["CellDensity"]


class CellDensity(AutoregressiveDensity):
    """An autoregressive density that has the exact probabilities of cells, such as the steps of an integer column."""

    @abc.abstractmethod
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        *,
        edges: bool = True,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`ncml.NoiseConditionalDensity.forward`; with ``low`` and ``high``, both, as :meth:`log_cells`."""

    def check_cells(self) -> None:
        """Refuse a density that has no probabilities of cells after all.

        Raises:
            UnsupportedError: It has a lattice, or a ``forward`` of its own that does not take the ends of cells.
        """
        name = type(self).__name__
        if self.lattice is not None:
            raise UnsupportedError(f"log_cells: got a {name} with a lattice, whose cells log_prob has; expected none")
        parameters = inspect.signature(self.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not (takes_any or {"low", "high"} <= parameters.keys()):
            raise UnsupportedError(
                f"{name}.forward: got ({', '.join(parameters)}); expected low and high too, the ends of the cells of "
                f"values on lattices: def forward(self, x, t, context=None, *, edges=True, low=None, high=None), which "
                f"passes them on"
            )

    def log_cells(self, x: Tensor, low: Tensor, high: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        r"""Log-probability of the cells of some values times the density of the others.

        .. math:: \sum_{i \in I} \log P_t(l_i < X_i < h_i \mid x_{<i}) + \sum_{i \notin I} \log p_t(x_i \mid x_{<i})

        with I the values for which :math:`l_i < h_i`. If every cell has one x, such as its middle, this is the law of
        :meth:`sample` with ``place``, normalised exactly: the probabilities of cells that cover the line sum to 1.
        The call of the density, which takes ``low`` and ``high`` too, trains it.

        Args:
            x: The values, ``(B, *event_shape)``.
            low, high: The ends of their cells, as ``x``: finite; both are x for values without a cell.
            t, context: As for :meth:`ncml.NoiseConditionalDensity.log_prob`.

        Returns:
            ``(B,)`` nats.

        Raises:
            UnsupportedError: As :meth:`check_cells`.
        """
        x, t, context = check_arguments(self, x, t, context)
        self.check_cells()
        low, high = _checked_ends(low, high, x)
        with eval_mode(self):
            return cast(Tensor, self(x, t, context, low=low, high=high))

    def score_cells(self, x: Tensor, low: Tensor, high: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        """The gradient of :meth:`log_cells` in the values without a cell; 0 for the others, whose cells stay.

        Beside cells :meth:`ncml.NoiseConditionalDensity.score` is another: that of their density at x, which training
        on probabilities leaves open.

        Args:
            x, low, high, t, context: As for :meth:`log_cells`.

        Returns:
            Tensor with the shape of ``x``, detached.
        """
        x, _, context = check_arguments(self, x, t, context)
        low, high = _checked_ends(low, high, x)
        with evaluating(self), torch.enable_grad():
            x, cell = usable(x).detach().requires_grad_(), low < high
            low, high = (torch.where(cell, usable(end), x) for end in (low, high))
            log_p = self.log_cells(x, low, high, t, None if context is None else usable(context))
            return derivative(log_p.sum(), x).masked_fill(cell, 0.0)

    @abc.abstractmethod
    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        place: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Draw samples, putting each value in its place, if there is one, before the next is drawn.

        Args:
            n, t, context, generator, noise: As for :meth:`ncml.AutoregressiveDensity.sample`.
            place: Takes a flat index of the event and the values drawn there, ``(n,)``, and returns the values to go
                on with, such as the middles of their cells.

        Returns:
            ``(n, *event_shape)``.
        """


def _checked_ends(low: Tensor, high: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of cells if they are those of ``x``, which has been checked; half precision is raised as there."""
    ends = []
    for end, name in ((low, "low"), (high, "high")):
        check_floating(end, name)
        end = end.float() if end.dtype in HALF else end
        check_given(end, x, name)
        ends.append(end)
    if bool((ends[0] > ends[1]).any()):
        raise ArgumentError("low: got values above high; expected low <= high, and both x for values without a cell")
    return ends[0], ends[1]
