"""A masked autoregressive network for rows with gaps: one density for every set of observed values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ncml.densities.made import MADE
from ncml.errors import ArgumentError
from ncml.noise import NoiseProcess

__all__ = ["MarginalMADE"]


class MarginalMADE(MADE):
    r"""The density of the values that are observed, whichever they are, by masked training.

    The context is the mask m, ``(B, D)``: 1 for an observed value, 0 for a missing one, in row-major order and the
    density's dtype. Missing values are zero to the network, and their terms are left out,

    .. math:: \log p_t(x_{obs} \mid m) = \sum_{i : m_i = 1} \log p_t(x_i \mid x_j,\, j < i,\, m_j = 1;\, m),

    so that for every mask this is a normalised density of the observed values at every t. The value at a missing place
    does not matter; the score and the samples are 0 there. With a mask of ones it is a density of whole events, as
    :class:`~ncml.densities.MADE` is; with all missing, :math:`\log p = 0`.

    Nothing but training makes these densities the marginals of one another: train with values hidden at random in
    addition to those that are missing, as :class:`~ncml.estimator.NCMLDensityEstimator` does. Values hidden at random
    teach :math:`p(x_{obs})`, and rows with gaps of their own :math:`p(x_{obs} \mid m)`. The two are the same if gaps
    have nothing to do with the values; if they do, the density is that of rows with such gaps.

    Args:
        event_shape, process, hidden, components, head, dropout, data_std, linear_components, order, noise_features: As
            for :class:`~ncml.densities.MADE`.

    Example:
        >>> density = MarginalMADE((3,), VPSDE.at_noise(0.5), hidden=(16,), components=2)
        >>> x = torch.tensor([[0.3, torch.nan, -0.2]])
        >>> density.log_prob(x.nan_to_num(), context=x.isfinite().float()).shape
        torch.Size([1])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        hidden: Sequence[int] = (512, 512, 512),
        components: int = 10,
        head: Literal["logistic", "gaussian"] = "logistic",
        dropout: float = 0.0,
        data_std: float | None = None,
        linear_components: int = 0,
        order: Sequence[int] | Tensor | None = None,
        noise_features: int = 16,
    ) -> None:
        super().__init__(
            event_shape,
            process,
            hidden=hidden,
            components=components,
            head=head,
            dropout=dropout,
            data_std=data_std,
            linear_components=linear_components,
            order=order,
            noise_features=noise_features,
            context_features=math.prod(event_shape),
        )

    def observed(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        if context is None:
            return None
        expected = tuple(x.flatten(1).shape)
        if tuple(context.shape) != expected:
            raise ArgumentError(f"context: got shape {tuple(context.shape)}; expected {expected}, the mask")
        return (context != 0).reshape(x.shape)

    def _hidden(self, context: Tensor | None) -> Tensor | None:
        assert context is not None  # the conditioning has refused it
        hidden = context == 0
        if not bool((hidden | (context == 1)).all()):
            raise ArgumentError("context: got values other than 0 and 1; expected the mask, 1 for what is observed")
        return self.ordered(hidden)
