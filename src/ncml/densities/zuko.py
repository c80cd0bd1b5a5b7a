"""Adapter for flows built with the zuko library."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ncml.densities._flow import FlowDensity, global_random_state

__all__ = ["ZukoDensity"]


class ZukoDensity(FlowDensity):
    """A conditional zuko flow (or anything with ``flow(context).log_prob(x)``) as a noise conditional density.

    The noise level enters as the flow's context, so build it with ``context=noise_features`` (plus
    your own). zuko itself is not imported here.

    Args:
        flow: A lazy distribution: ``flow(context)`` has ``log_prob(x)`` and ``sample()``.
        event_shape: Shape of one example, ``(D,)`` for zuko's flows.
        process: The noise process.
        noise_features: Width of the noise part of the context.
        context_features: Width of the context that you pass to ``log_prob`` and ``sample``, appended
            to the noise features; 0 for none.
        data_std: If given, the flow sees data scaled by ``1 / sqrt(alpha(t)^2 data_std^2 + sigma(t)^2)``,
            and the log-determinant is included.

    Raises:
        ArgumentError: The flow takes no context, one of another width, or ignores it (probed on a
            copy): it would silently ignore t.

    Example:
        >>> import zuko
        >>> density = ZukoDensity(zuko.flows.MAF(2, 8, transforms=2), (2,), VPSDE.at_noise(0.5))
        >>> density.sample(3, t=0.0).shape
        torch.Size([3, 2])
    """

    def flow_log_prob(self, flow: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, flow)(context).log_prob(x))

    def flow_sample(self, flow: nn.Module, context: Tensor, generator: torch.Generator | None) -> Tensor:
        with global_random_state(generator, context.device):
            return cast(Tensor, cast(Any, flow)(context).sample())
