"""Adapter for flows built with the zuko library."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ncml.densities.adapters.flow import FlowDensity

__all__ = ["ZukoDensity"]

ONCE_DIFFERENTIABLE = {"SOSPF", "UNAF", "CNF", "UMNN", "FFJTransform"}
"""Modules of zuko that integrate numerically: autograd returns wrong second derivatives, without an error."""


class ZukoDensity(FlowDensity):
    """A conditional zuko flow (or anything with ``flow(context).log_prob(x)``) as a noise conditional density.

    The noise level enters as the flow's context, so build it with ``context=noise_features`` (plus
    your own). zuko itself is not imported here.

    Scores work for every flow. Differentiating them again (``create_graph=True``, divergences, score
    matching) works for MAF, NSF, GMM and the like, and is refused for SOSPF, UNAF and CNF.

    Args:
        flow: A lazy distribution: ``flow(context)`` has ``log_prob(x)`` and ``sample()``.
        event_shape: Shape of one example, ``(D,)`` for zuko's flows.
        process: The noise process.
        noise_features: Width of the noise part of the context.
        context_features: Width of the context that you pass to ``log_prob`` and ``sample``, appended
            to the noise features; 0 for none.
        classes: Number of classes of an integer context, 0 for none; the label -1 is "no label". Labels are embedded
            in a vector of ``noise_features`` numbers, so that the flow's context is twice as wide.
        data_std: If given, the flow sees data scaled by ``1 / sqrt(alpha(t)^2 data_std^2 + sigma(t)^2)``,
            and the log-determinant is included.

    Raises:
        ArgumentError: The flow takes no context, or one of another width, or ignores it (probed on a copy), and so
            would silently ignore t; or it cannot sample.
        UnsupportedError: ``create_graph=True`` for a flow that is differentiable only once.

    Example:
        >>> import zuko
        >>> density = ZukoDensity(zuko.flows.MAF(2, 8, transforms=2), (2,), VPSDE.at_noise(0.5))
        >>> density.sample(3, t=0.0).shape
        torch.Size([3, 2])
    """

    def flow_log_prob(self, flow: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, flow)(context).log_prob(x))

    def flow_sample(self, flow: nn.Module, context: Tensor, generator: torch.Generator | None) -> Tensor:
        return cast(Tensor, cast(Any, flow)(context).sample())

    @property
    def twice_differentiable(self) -> bool:  # type: ignore[override]
        return not {type(m).__name__ for m in self.flow.modules()} & ONCE_DIFFERENTIABLE
