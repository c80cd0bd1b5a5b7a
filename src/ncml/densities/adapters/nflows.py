"""Adapter for flows built with the nflows library."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ncml.densities.adapters.flow import FlowDensity

__all__ = ["NFlowsDensity"]


class NFlowsDensity(FlowDensity):
    """A conditional ``nflows.flows.Flow`` as a noise conditional density.

    The noise level enters as the flow's context, so every transform must be built with
    ``context_features=noise_features`` (plus your own). nflows itself is not imported here. Scores can
    be differentiated again (``create_graph=True``) for every transform of nflows.

    nflows' ``AffineCouplingTransform`` scales by at most 1.001 on the way to the base, so a flow of these alone cannot
    be denser than its base anywhere: use splines or ``MaskedAffineAutoregressiveTransform``.

    Args:
        flow: An nflows flow (duck-typed: ``flow.log_prob(x, context=...)`` and ``flow.sample(1, context=...)``,
            which returns ``(B, 1, *event_shape)``).
        event_shape: Shape of one example, ``(D,)`` for most nflows transforms.
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

    Example:
        >>> from nflows.distributions.normal import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> flow = Flow(MaskedAffineAutoregressiveTransform(2, 16, context_features=8), StandardNormal([2]))
        >>> density = NFlowsDensity(flow, (2,), VPSDE.at_noise(0.5))
        >>> density.score(torch.zeros(1, 2), t=0.01).shape
        torch.Size([1, 2])
    """

    def flow_log_prob(self, flow: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, flow).log_prob(x, context=context))

    def context_hint(self, flow: nn.Module, width: int) -> str:
        if type(flow).__name__ in ("SimpleRealNVP", "MaskedAutoregressiveFlow"):
            return (
                f"A {type(flow).__name__} takes no context: build a Flow(CompositeTransform([...]), "
                f"StandardNormal([D])) of MaskedAffineAutoregressiveTransform(D, hidden, context_features={width}), or "
                f"of coupling transforms whose networks have context_features={width}"
            )
        if len(self.event_shape) == 3 and any(isinstance(m, nn.Conv2d) for m in flow.modules()):
            return (
                f"Convolutional networks take a context of the image's size, and this is a vector of {width} numbers: "
                f"give them context_channels={width} and, in a forward of your own, "
                f"context[:, :, None, None].expand(-1, -1, *x.shape[2:])"
            )
        return ""

    def flow_sample(self, flow: nn.Module, context: Tensor, generator: torch.Generator | None) -> Tensor:
        f = cast(Any, flow)
        base: Any = getattr(f, "_distribution", None)  # private: a flow that only looks like one of nflows has none
        if type(base).__name__ == "StandardNormal":
            # Drawn here, since nflows draws its base in float32 whatever the flow's dtype.
            z = torch.randn(
                context.shape[0],
                *base._shape,
                dtype=context.dtype,
                device=context.device,
                generator=generator,
            )
            x, _ = f._transform.inverse(z, context=f._embedding_net(context))
            return cast(Tensor, x)
        return cast(Tensor, f.sample(1, context=context)).squeeze(1)
