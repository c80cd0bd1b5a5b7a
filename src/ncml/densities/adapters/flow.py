"""What the adapters of flow libraries share: noise features as context, input scaling, the probe."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ncml.checks import Time
from ncml.density import SampleableDensity, check_draw, evaluating
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.nn.conditioning import Conditioning, NoiseScaling
from ncml.noise import NoiseProcess

__all__ = ["FlowDensity", "global_random_state"]


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
        data_std: float | None = None,
    ) -> None:
        super().__init__(event_shape, process)
        if not isinstance(flow, nn.Module):
            raise ArgumentTypeError(f"flow: got {type(flow).__name__}; expected an nn.Module")
        conditioning = Conditioning(process, noise_features, context_features)
        scaling = None if data_std is None else NoiseScaling(process, data_std)
        self.flow = flow
        self._probe(flow, conditioning.features)
        self.conditioning = conditioning
        self.scaling = scaling

    @abc.abstractmethod
    def flow_log_prob(self, flow: nn.Module, x: Tensor, context: Tensor) -> Tensor:
        """Log-density of ``x`` under ``flow`` given ``context``, ``(B,)``."""

    @abc.abstractmethod
    def flow_sample(self, flow: nn.Module, context: Tensor, generator: torch.Generator | None) -> Tensor:
        """One sample of ``flow`` per row of ``context``, ``(B, *event_shape)``."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        features = self._features(t, context)
        if x.shape[0] == 0:  # some libraries cannot reshape an empty batch
            return x.flatten(1).sum(1)
        if self.scaling is None:
            return self.flow_log_prob(self.flow, x, features)
        y, log_det = self.scaling(x, t)
        return self.flow_log_prob(self.flow, y, features) + log_det

    @torch.no_grad()
    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        t, context = check_draw(self, n, t, context, generator)
        features = self._features(t, context)
        if n == 0:
            return torch.empty(0, *self.event_shape, dtype=self.dtype, device=self.device)
        with evaluating(self), torch.no_grad():  # dropout would sample another density than the one evaluated
            x = self.flow_sample(self.flow, features, generator)
        return x if self.scaling is None else self.scaling.inverse(x, t)

    def _features(self, t: Tensor, context: Tensor | None) -> Tensor:
        return self.conditioning(t, context).to(self.dtype)

    @torch.no_grad()
    def _probe(self, flow: nn.Module, width: int) -> None:
        """Refuse a flow that cannot see its context: it would silently ignore t.

        Works on a copy in eval mode with randomised parameters, so that a flow initialised to the
        identity, which does not use its context yet, is not refused.
        """
        try:
            probe = copy.deepcopy(flow).eval()
        except Exception as error:
            raise ArgumentError(f"flow: got one that cannot be copied ({error}); expected a copyable module") from error
        generator = torch.Generator().manual_seed(0)
        for p in probe.parameters():
            if p.is_floating_point():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.add_(noise.to(p), alpha=0.1 / math.sqrt(max(p.shape[-1] if p.ndim else 1, 1)))
        x = torch.randn(4, *self.event_shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        contexts = torch.randn(2, 4, width, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        try:
            first, second = (self.flow_log_prob(probe, x, c) for c in contexts)
        except Exception as error:
            raise ArgumentError(
                f"flow: got an error for events of shape {self.event_shape} with a context of width {width} "
                f"({type(error).__name__}: {error}); expected a conditional flow of that context width. If the "
                f"error speaks of the context, build the flow's networks with context features = {width}, or pass "
                f"noise_features= the width they have; if of the inputs, check event_shape; if of a domain, give "
                f"splines linear tails; if of log_prob or of forward, it is another library's: NFlowsDensity takes "
                f"flows of nflows, ZukoDensity those of zuko"
            ) from error
        if first.shape != (4,):
            raise ArgumentError(f"flow: got log_prob of shape {tuple(first.shape)} for 4 examples; expected (4,)")
        if bool((first == second).all()):
            raise ArgumentError(
                f"flow: got one whose log_prob ignores its context; expected one that uses it, since the context is "
                f"how it sees t; build every transform with context features = {width}"
            )


@contextmanager
def global_random_state(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let a library that only knows torch's global random state draw from ``generator``.

    With no generator the global state itself is used, and advances; otherwise it is left untouched.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device))
    cuda = device.type == "cuda"
    # Not torch.manual_seed, which would also reseed devices whose state is not restored.
    own = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
    with torch.random.fork_rng(devices=[device] if cuda else []):
        own.manual_seed(seed)
        yield
