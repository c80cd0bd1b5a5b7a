"""Any function of (x, t) that returns log-densities, as a noise conditional density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentTypeError
from ncml.noise import NoiseProcess

__all__ = ["CallableDensity"]


class CallableDensity(NoiseConditionalDensity):
    """Wraps ``module(x, t)``, or ``module(x, t, context)`` where a context is given.

    Args:
        module: Returns log-densities in nats, ``(B,)``, for ``x`` of shape ``(B, *event_shape)`` and
            ``t`` of shape ``(B,)``. The parameters of an ``nn.Module`` become those of the density.
        event_shape: Shape of one example.
        process: The process that the module's noise conditioning refers to, if any.

    Example:
        >>> def log_p(x, t):
        ...     return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
        >>> CallableDensity(log_p, event_shape=(3,)).log_prob(torch.zeros(1, 3))
        tensor([-2.7568])
    """

    def __init__(
        self, module: Callable[..., Tensor] | nn.Module, event_shape: Sequence[int], process: NoiseProcess | None = None
    ) -> None:
        super().__init__(event_shape, process)
        if not callable(module):
            raise ArgumentTypeError(f"module: got {type(module).__name__}; expected a callable of (x, t)")
        self.module = module

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.module(x, t) if context is None else self.module(x, t, context)
