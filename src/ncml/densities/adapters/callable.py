"""Any function of (x, t) that returns log-densities, as a noise conditional density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ncml.checks import Time
from ncml.density import SampleableDensity, check_draw, evaluating
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import Lattice, NoiseProcess

__all__ = ["CallableDensity"]


class CallableDensity(SampleableDensity):
    """Wraps ``module(x, t)``, or ``module(x, t, context)`` where a context is given.

    Functions that are modules bring their parameters, and run in eval mode where a density does.

    Args:
        module: Returns log-densities in nats, ``(B,)``, for ``x`` of shape ``(B, *event_shape)`` and
            ``t`` of shape ``(B,)``; with a ``lattice`` the likelihood, which is the mass of a bin over its
            width where the process keeps data on the lattice.
        event_shape: Shape of one example.
        process: The process that the module's noise conditioning refers to, if any.
        sample: ``sample(n, t, context, generator)`` draws ``n`` examples at times ``t`` of shape ``(n,)``, from
            ``generator`` alone. Without it the density cannot sample.
        lattice: The lattice of the data, if ``module`` gives exact masses on it; needs a process.
        density: As ``module``, without lattice edges: what scores and samplers differentiate (see
            :mod:`ncml.density`). ``module`` itself if None; required with a lattice.

    Raises:
        ArgumentTypeError: Something given is not callable.
        ArgumentError: A lattice without ``density``.

    Example:
        >>> def log_p(x, t):
        ...     return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
        >>> CallableDensity(log_p, event_shape=(3,)).log_prob(torch.zeros(1, 3))
        tensor([-2.7568])
    """

    def __init__(
        self,
        module: Callable[..., Tensor] | nn.Module,
        event_shape: Sequence[int],
        process: NoiseProcess | None = None,
        *,
        sample: Callable[[int, Tensor, Tensor | None, torch.Generator | None], Tensor] | None = None,
        lattice: Lattice | None = None,
        density: Callable[..., Tensor] | nn.Module | None = None,
    ) -> None:
        super().__init__(event_shape, process, lattice)
        if not callable(module):
            raise ArgumentTypeError(f"module: got {type(module).__name__}; expected a callable of (x, t)")
        for name, function, of in (("sample", sample, "n, t, context, generator"), ("density", density, "x, t")):
            if function is not None and not callable(function):
                raise ArgumentTypeError(f"{name}: got {type(function).__name__}; expected a callable of ({of}) or None")
        if lattice is not None and density is None:
            raise ArgumentError(
                "density: got None with a lattice; expected the log-density without lattice edges, a callable of (x, t)"
            )
        self.module = module
        self._sample = sample
        self._density = density

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        return _call(self.module if edges or self._density is None else self._density, x, t, context)

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples with the given function (see :meth:`ncml.SampleableDensity.sample`).

        Raises:
            UnsupportedError: The density was built without ``sample``.
            ArgumentError: The function returned another shape.
        """
        if self._sample is None:
            raise UnsupportedError(
                "density: got a CallableDensity without sample, which cannot sample; expected one built with "
                "CallableDensity(..., sample=...); or refine samples of your own with sampler(density, x)"
            )
        t, context = check_draw(self, n, t, context, generator)
        with evaluating(self), torch.no_grad():
            x = self._sample(n, t, context, generator)
        if not isinstance(x, Tensor) or x.shape != (n, *self.event_shape):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"sample: got {got}; expected a tensor of shape {(n, *self.event_shape)}")
        return x.detach()


def _call(function: Callable[..., Tensor] | nn.Module, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
    return function(x, t) if context is None else function(x, t, context)
