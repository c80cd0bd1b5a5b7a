"""What the adapters of flow libraries share: noise features as context, input scaling, the probe."""

from __future__ import annotations

import abc
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, kind_of
from ncml.densities.adapters.drawing import library_draws
from ncml.density import SampleableDensity, eval_mode
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.nn.conditioning import Conditioning, NoiseScaling
from ncml.noise import NoiseProcess

__all__ = ["FlowDensity"]

ROWS = 4
"""Examples that a flow is probed with."""


class FlowDensity(SampleableDensity):
    """A conditional flow of another library, whose context is the noise level (and the user's context).

    Subclasses say how to evaluate and sample ``flow`` given a context ``(B, C)``.
    """

    def __init__(
        self,
        flow: nn.Module,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        noise_features: int = 8,
        context_features: int = 0,
        classes: int = 0,
        data_std: float | None = None,
    ) -> None:
        super().__init__(event_shape, process)
        if not isinstance(flow, nn.Module):
            raise ArgumentTypeError(f"flow: got {kind_of(flow)}; expected a flow, an instance of nn.Module")
        conditioning = Conditioning(process, noise_features, context_features, classes)
        scaling = NoiseScaling(process, data_std)
        self.flow = flow
        with _probed(flow) as probe:
            self._probe(probe, conditioning.features)
        self.conditioning = conditioning
        self.scaling = scaling

    def hidden_settings(self) -> dict[str, Any]:
        return {"data_std": self.scaling.data_std, "noise_features": self.conditioning.noise.features}

    @abc.abstractmethod
    def flow_log_prob(self, flow: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        """Log-density of ``x`` under ``flow`` given ``context``, ``(B,)``."""

    @abc.abstractmethod
    def flow_sample(self, flow: nn.Module, context: Tensor, generator: torch.Generator | None) -> Tensor:
        """One sample of ``flow`` per row of ``context``, ``(B, *event_shape)``, under :func:`library_draws`."""

    def context_hint(self, flow: nn.Module, width: int) -> str:
        """What to do about a flow that does not take its context, if there is more to say than for any flow."""
        return ""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        y, log_det = self.scaling(x, t)
        return self.flow_log_prob(self.flow, y, self._features(t, context)) + log_det

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples by the flow's own sampler (see :meth:`ncml.SampleableDensity.sample`).

        Raises:
            UnsupportedError: The flow has no inverse.
        """
        features = self._features(t, context)
        with library_draws(generator, self.dtype, self.device):
            try:
                x = self.flow_sample(self.flow, features, generator)
            except Exception as error:
                if _has_no_inverse(error):
                    raise UnsupportedError(
                        f"flow: got a {type(self.flow).__name__} without an inverse ({type(error).__name__}); expected "
                        f"one that can sample; or refine samples of your own with sampler(density, x)"
                    ) from error
                raise
        return self.scaling.inverse(x, t)

    def _features(self, t: Time, context: Tensor | None) -> Tensor:
        features: Tensor = self.conditioning(t, context)
        return features.to(self.dtype)

    def _probe(self, flow: nn.Module, width: int) -> None:
        """Refuse a flow that cannot sample, or cannot see its context and so would silently ignore t.

        Its parameters are randomised, so that a flow initialised to the identity, which does not use its context yet,
        is not refused.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS, *self.event_shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        contexts = torch.randn(2, ROWS, width, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        drawn = self._probe_sample(flow, contexts[0])
        for p in flow.parameters():
            if p.is_floating_point():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.add_(noise.to(p), alpha=0.1 / math.sqrt(max(p.shape[-1] if p.ndim else 1, 1)))
        try:
            first, second = (self.flow_log_prob(flow, x, c) for c in contexts)
        except Exception as error:
            raise ArgumentError(
                f"flow: got an error for events of shape {self.event_shape} with a context of width {width} "
                f"({type(error).__name__}: {error}); expected a conditional flow of that context width. "
                f"{self.context_hint(flow, width) or self._general_hint(width)}"
            ) from error
        if not isinstance(first, Tensor) or first.shape != (ROWS,):
            got = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
            raise ArgumentError(f"flow: got log_prob of {got} for {ROWS} examples; expected ({ROWS},)")
        if bool((first == second).all()):
            raise ArgumentError(
                f"flow: got one whose log_prob ignores its context; expected one that uses it, since the context is "
                f"how it sees t; build every transform with context features = {width}"
            )
        if isinstance(drawn, Exception):
            raise ArgumentError(
                f"flow: got an error from its sampler ({type(drawn).__name__}: {drawn}), though its log_prob works; "
                f"expected a flow of the adapter's library; for another one CallableDensity(flow.log_prob, ..., "
                f"features={width}, sample=...)"
            ) from drawn
        if drawn is not None and drawn.shape != x.shape:
            raise ArgumentError(
                f"flow: got samples of shape {tuple(drawn.shape)} for {ROWS} contexts; expected {tuple(x.shape)}"
            )

    def _probe_sample(self, flow: nn.Module, context: Tensor) -> Tensor | Exception | None:
        """Samples, or what went wrong; None if the flow has no inverse."""
        generator = torch.Generator(context.device).manual_seed(0)
        try:
            with library_draws(generator, context.dtype, context.device), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nflows' use of what torch has deprecated is not the caller's affair
                return self.flow_sample(flow, context, generator)
        except Exception as error:
            return None if _has_no_inverse(error) else error

    def _general_hint(self, width: int) -> str:
        size = math.prod(self.event_shape)
        flat = "" if len(self.event_shape) == 1 else f" (a flow of vectors takes ({size},), and x.flatten(1))"
        return (
            f"If the error speaks of the context, build the flow's networks with context features = {width}, or pass "
            f"noise_features= the width they have; if of the inputs, check event_shape{flat}; if of a domain, give "
            f"splines linear tails; if of log_prob or of forward, it is another library's: NFlowsDensity takes flows "
            f"of nflows, ZukoDensity those of zuko, and CallableDensity(flow.log_prob, ..., features={width}) any other"
        )


@contextmanager
def _probed(flow: nn.Module) -> Iterator[nn.Module]:
    """A copy of a flow in eval mode, to be tried out; the flow itself, restored afterwards, if it cannot be copied."""
    try:
        twin = copy.deepcopy(flow).eval()
    except Exception:  # weight norm as hooks, for one, keeps a tensor that cannot be copied
        twin = None
    with torch.no_grad():
        if twin is not None:
            yield twin
            return
        saved = [(v, v.detach().clone()) for v in (*flow.parameters(), *flow.buffers())]
        try:
            with eval_mode(flow):
                yield flow
        finally:
            for tensor, value in saved:
                tensor.copy_(value)


def _has_no_inverse(error: Exception) -> bool:
    """Whether a library says that it cannot sample, as nflows does with an exception of its own."""
    return isinstance(error, NotImplementedError) or type(error).__name__ == "InverseNotAvailable"
