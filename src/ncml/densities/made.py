"""A noise conditional masked autoregressive network with a mixture head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_choice, check_count
from ncml.density import CellDensity, check_arguments, check_given, check_noise, eval_mode
from ncml.errors import ArgumentError
from ncml.nn.conditioning import Conditioning, NoiseScaling
from ncml.nn.heads import HEADS
from ncml.nn.masked import MaskedMLP
from ncml.noise import Lattice, NoiseProcess

__all__ = ["MADE", "MADESettings"]


class MADE(CellDensity):
    r"""Masked autoregressive density (Germain et al., 2015), conditioned on the noise level.

    .. math:: \log p_t(x) = \sum_i \log p_t(x_i \mid x_{<i})

    with a mixture of logistics or Gaussians for each conditional. On a lattice it is an exact mass
    where the process keeps data on the lattice (t = 0 for the SDEs) and a density elsewhere; see
    :mod:`ncml.nn.heads`. Sampling is exact at every t and computes each hidden unit once.

    Args:
        event_shape: Shape of one example; flattened in row-major order.
        process: The noise process.
        lattice: The lattice of the data (scaled to [-1, 1]), or None for continuous data of order one.
        hidden: Widths of the hidden layers. Use at least D, the number of values: with fewer units in a layer, some
            values do not see the one just before them, however long the training.
        components: Mixture components per value.
        head: ``"logistic"`` (default: heavier tails, closed-form window) or ``"gaussian"``.
        dropout: Probability of dropping a hidden unit in training mode (sampling and scores never do).
        data_std: For continuous data: if given, data are first scaled by ``1 / sqrt(alpha(t)^2 data_std^2 +
            sigma(t)^2)``, so that they look alike to the network at every noise level.
        linear_components: How many of the components have a mean with a linear term in the values before, the same at
            every noise level, beside what the network makes of them. Of few examples such components learn nearly
            linear relations that the network would not; the other components are for what is not linear.
        order: A permutation of the flat indices; row-major if None.
        noise_features: Number of noise features.
        context_features: Width of a floating context, 0 for none.
        classes: Number of classes of an integer context, 0 for none; the label -1 is "no label".

    Raises:
        ArgumentError: An unknown head, an order that is not a permutation, bad sizes, ``data_std`` with a lattice.

    Example:
        >>> process = VPSDE.at_noise(2 * Lattice(17).width)
        >>> made = MADE((1, 8, 8), process, lattice=Lattice(17), hidden=(64, 64), components=4)
        >>> made.sample(2, t=0.0).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        lattice: Lattice | None = None,
        hidden: Sequence[int] = (512, 512, 512),
        components: int = 10,
        head: Literal["logistic", "gaussian"] = "logistic",
        dropout: float = 0.0,
        data_std: float | None = None,
        linear_components: int = 0,
        order: Sequence[int] | Tensor | None = None,
        noise_features: int = 16,
        context_features: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__(event_shape, process, lattice)
        check_choice(head, "head", HEADS)
        if lattice is not None and data_std is not None:
            raise ArgumentError(f"data_std: got {data_std} with a lattice, whose steps stay as they are; expected None")
        dims = math.prod(self.event_shape)
        permutation = torch.arange(dims) if order is None else torch.as_tensor(order).detach().cpu().long()
        if permutation.shape != (dims,) or permutation.sort().values.tolist() != list(range(dims)):
            raise ArgumentError(
                f"order: got shape {tuple(permutation.shape)}; expected a permutation of 0 .. {dims - 1}"
            )
        self._head = head
        self.head = HEADS[head](components, lattice)
        self.scaling = NoiseScaling(process, data_std)
        self.conditioning = Conditioning(process, noise_features, context_features, classes)
        linear = self._linear_components = check_count(linear_components, "linear_components", minimum=0)
        if linear > components:
            raise ArgumentError(f"linear_components: got {linear}; expected at most components={components}")
        means = self.head.means_of(linear)
        self.net = MaskedMLP(dims, self.head.outputs, hidden, self.conditioning.features, dropout, means)
        with torch.no_grad():
            self.net.out.bias.copy_(self.head.initial_bias().repeat_interleave(dims))
            self.net.out.weight.mul_(0.1)  # start near the same broad mixture for every value
        self._row_major = permutation.tolist() == list(range(dims))
        # Part of the state: the weights mean nothing in another order.
        self.register_buffer("_order", permutation)
        self.register_load_state_dict_pre_hook(_check_order)  # type: ignore[no-untyped-call]

    _order: Tensor

    def hidden_settings(self) -> dict[str, Any]:
        return {
            "head": self._head,
            "data_std": self.scaling.data_std,
            "noise_features": self.conditioning.noise.features,
            "linear_components": self._linear_components,
        }

    @property
    def order(self) -> Tensor:
        """The flat event indices in the order in which they are sampled, ``(D,)``."""
        return self._order

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        *,
        edges: bool = True,
        given: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood ``(B,)`` in nats; ``given`` as for :meth:`log_conditionals`, to train with."""
        if (low is None) != (high is None):
            alone = "high" if low is None else "low"
            raise ArgumentError(f"low, high: got {alone} alone; expected both ends of the cells, or none")
        on_lattice = self.process.on_lattice(t) if edges and self.lattice is not None else None
        cells = None if low is None or high is None else (low, high)
        return self._terms(x, given, t, context, on_lattice, cells).sum(1)

    def log_conditionals(
        self, x: Tensor, t: Time = 0.0, context: Tensor | None = None, *, given: Tensor | None = None
    ) -> Tensor:
        r"""The terms of ``log_prob``: of each value given those before it, shape of ``x``, in nats; for inspection.

        Arguments and errors as for :meth:`ncml.NoiseConditionalDensity.log_prob`.

        Args:
            given: Values y to condition on in place of those of ``x`` (None): the terms are then
                :math:`\log p_t(x_i \mid y_{<i})`, the distribution that ``resample`` draws from, given y.
        """
        x, t, context = check_arguments(self, x, t, context)
        given = check_given(given, x)
        on_lattice = self.process.on_lattice(t)
        if self.lattice is not None:
            self.lattice.check(x[on_lattice])
        with eval_mode(self):
            return self._restored(self._terms(x, given, t, context, on_lattice))

    def draw_noise(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Uniforms ``(n, D, 3)``: component, quantile, and position in the window."""
        return self.head.draw_noise(n, len(self._order), self.dtype, self.device, generator)

    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        check_noise(self, noise, x.shape[0])
        features, hidden = self.conditioning(t, context), self._hidden(context)
        log_c = self._log_scale(t, x.dtype)
        outputs = self.net(_zeroed(_scaled(self.ordered(x), log_c), hidden), features)
        drawn = self.head.sample(outputs, noise, self.process.on_lattice(t))
        return self._restored(_zeroed(_scaled(drawn, log_c, -1.0), hidden))

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
        features, on_lattice = self.conditioning(t, context), self.process.on_lattice(t)
        hidden = self._hidden(context)
        if noise is None:
            noise = self.draw_noise(n, generator=generator)
        check_noise(self, noise, n)
        x, log_c = noise.new_empty(len(self._order), n), self._log_scale(t, self.dtype)
        with torch.inference_mode():  # which cheapens the many small operations of the pass
            pass_ = self.net.incremental(features)
            for i, index in enumerate(self._order.tolist()):
                outputs = pass_.outputs().t().unsqueeze(1)
                drawn = _scaled(self.head.sample(outputs, noise[:, i : i + 1], on_lattice), log_c, -1.0)[:, 0]
                if place is not None:
                    drawn = place(index, drawn)
                x[i] = _zeroed(drawn, None if hidden is None else hidden[:, i])
                pass_.push(_scaled(x[i][:, None], log_c)[:, 0])
        return self._restored(x.t())

    def _terms(
        self,
        x: Tensor,
        given: Tensor | None,
        t: Tensor,
        context: Tensor | None,
        on_lattice: Tensor | None,
        cells: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Of each value of ``x``, or of its cell, given those before it in ``given``; ``(B, D)``, ordered."""
        features, hidden = self.conditioning(t, context), self._hidden(context)
        log_c = self._log_scale(t, x.dtype)
        values = _zeroed(_scaled(self.ordered(x), log_c), hidden)
        seen = values if given is None else _zeroed(_scaled(self.ordered(given), log_c), hidden)
        outputs = self.net(seen, features)
        if cells is None:
            terms = self.head.log_prob(outputs, values, on_lattice)
            return _zeroed(terms if log_c is None else terms + log_c, hidden)
        low, high = (_scaled(self.ordered(end), log_c) for end in cells)
        terms = self.head.log_cells(outputs, low, high)
        # The probability of a cell is the same in any units; a density is not.
        return _zeroed(terms if log_c is None else torch.where(low < high, terms, terms + log_c), hidden)

    def _log_scale(self, t: Time, dtype: torch.dtype) -> Tensor | None:
        """Logarithm of the factor by which values at t are scaled, ``(B, 1)``; None if they are not."""
        return None if self.scaling.data_std is None else self.scaling.log_scale(t).to(dtype)[:, None]

    def _hidden(self, context: Tensor | None) -> Tensor | None:
        """Which values, in the order of sampling, are no part of the event, bool ``(B, D)``; None if all are."""
        return None

    def ordered(self, x: Tensor) -> Tensor:
        """The values of ``x`` in the order in which they are sampled, ``(B, D)``."""
        flat = x.flatten(1)
        return flat if self._row_major else flat[:, self._order]

    def _restored(self, values: Tensor) -> Tensor:
        if not self._row_major:
            values = values[:, self._order.argsort()]
        return values.reshape(-1, *self.event_shape).contiguous()


def _scaled(values: Tensor, log_c: Tensor | None, power: float = 1.0) -> Tensor:
    return values if log_c is None else values * (power * log_c).exp()


def _zeroed(values: Tensor, hidden: Tensor | None) -> Tensor:
    return values if hidden is None else values.masked_fill(hidden, 0.0)


def _check_order(made: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Refuse a state dict of another order before anything is copied."""
    own, given = cast(MADE, made).order, state.get(f"{prefix}_order")
    if given is not None and given.tolist() != own.tolist():
        raise ArgumentError(
            "order: got a state dict of a density with another order; expected the same order; "
            "build this density with order=state['_order']"
        )


@dataclass(frozen=True)
class MADESettings:
    """The settings of a masked autoregressive network with a mixture head in a configuration.

    Args:
        hidden: Widths of the hidden layers.
        components: Mixture components per value.
        head: Distribution of the components, logistic or gaussian.
        dropout: Probability of dropping a hidden unit in training.
        data_std: Standard deviation of data on no lattice, by which they are scaled at every noise level; no scaling
            if not given.
        linear_components: How many of the components have a mean with a linear term in the values before.
        noise_features: Number of features that encode the noise level.
    """

    hidden: tuple[int, ...] = (512, 512, 512)
    components: int = 10
    head: Literal["logistic", "gaussian"] = "logistic"
    dropout: float = 0.0
    data_std: float | None = None
    linear_components: int = 0
    noise_features: int = 16

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> MADE:
        """The network, with random weights.

        Args:
            event_shape: Shape of one example.
            process: The noise process.
            lattice: The lattice of the data, whose mass it then gives exactly; None for real numbers of order one.
            classes: Number of classes of an integer context, 0 for none.
        """
        return MADE(
            event_shape,
            process,
            lattice=lattice,
            hidden=self.hidden,
            components=self.components,
            head=self.head,
            dropout=self.dropout,
            data_std=self.data_std,
            linear_components=self.linear_components,
            noise_features=self.noise_features,
            classes=classes,
        )
