"""What one run of checks works on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ncml.checks import Time
from ncml.density import NoiseConditionalDensity, SampleableDensity
from ncml.errors import UnsupportedError
from ncml.noise import DiscreteProcess, GaussianProcess, Lattice, NoiseProcess
from ncml.sampling.sampler import Sampler
from ncml.testing.expectations import generator_on, require
from ncml.testing.reference import KnownGaussian
from ncml.testing.report import CheckError, told

CHUNK = 16_384
"""Rows evaluated at once."""

ROWS, FEW = 4096, 8
"""Samples refined where their distribution is looked at, and where it is not."""

BRIEF = 8
"""Steps of a sampler where its distribution is not looked at."""


@dataclass(frozen=True)
class ProcessCase:
    """A process, a batch of data for it in float64, and what its author says about it."""

    process: NoiseProcess
    x: Tensor
    starts_at_data: bool
    seed: int

    @property
    def lattice(self) -> Lattice | None:
        return self.process.lattice if isinstance(self.process, DiscreteProcess) else None

    @property
    def times(self) -> Tensor:
        """One time per row, from 0 to T."""
        return torch.linspace(0.0, self.process.T, self.x.shape[0], dtype=torch.float64, device=self.x.device)

    def generator(self, stream: int = 0) -> torch.Generator:
        return generator_on(self.x.device, self.seed + stream)

    def noise(self, x: Tensor, stream: int = 0) -> Tensor:
        return self.process.draw_noise(x, generator=self.generator(stream))


@dataclass(frozen=True)
class DensityCase:
    """A density, a batch of data for it with its context, the times to check, and the dtype to compute in."""

    density: NoiseConditionalDensity
    process: NoiseProcess | None
    x: Tensor
    context: Tensor | None
    times: tuple[float, ...]
    samples: int
    seed: int
    dtype: torch.dtype = torch.float64
    saved: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def dims(self) -> int:
        return math.prod(self.density.event_shape)

    @cached_property
    def exact(self) -> NoiseConditionalDensity:
        """A copy in float64 and eval mode, whose zero-initialised parameters are no longer zero.

        A layer that starts at zero would hide from every check what lies behind it.
        """
        twin = self._copied(self.density).to(self.dtype).eval()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for p in twin.parameters():
                if p.is_floating_point() and not bool(p.any()):
                    noise = torch.randn(p.shape, dtype=torch.float64, generator=generator)
                    p.copy_(noise.to(p.device) * 0.3 / math.sqrt(max(p.shape[-1] if p.ndim > 1 else 1, 1)))
        return twin

    def copy(self) -> NoiseConditionalDensity:
        """A copy in eval mode with the dtype and parameters of the density, which itself stays untouched."""
        density = self._copied(self.density)
        if density is self.density:
            self._restore()
        return density.eval()

    def twin(self) -> NoiseConditionalDensity:
        """Another copy of :attr:`exact`."""
        return self._copied(self.exact)

    def training(self) -> NoiseConditionalDensity:
        """A copy of :attr:`exact` in train mode."""
        return self.twin().train()

    def _copied(self, density: NoiseConditionalDensity) -> NoiseConditionalDensity:
        """A copy; of a density that cannot be copied itself, which :meth:`put_back` restores."""
        try:
            return copy.deepcopy(density)
        except Exception:
            if not self.saved:
                tensors = (*density.parameters(), *density.buffers())
                self.saved.extend((v, v.data, v.data.clone()) for v in tensors)
            return density

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Run a block, and leave a density that cannot be copied as it was.

        What is compiled runs eagerly: its graph serves one backward pass only, and every dtype would compile anew.
        """
        modes = [(module, module.training) for module in self.density.modules()]
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._restore()
            for module, mode in modes:
                module.training = mode

    def _restore(self) -> None:
        for tensor, own, value in self.saved:
            tensor.data = own.copy_(value)

    def tolerance(self, in_float64: float) -> float:
        """How far results may be off: half of float64's digits, with half as many to compute in."""
        return in_float64 if self.dtype == torch.float64 else math.sqrt(in_float64)

    @cached_property
    def can_sample(self) -> bool:
        """Whether the density can draw; one that only may be able to says so with an UnsupportedError."""
        if not isinstance(self.exact, SampleableDensity):
            return False
        try:
            self.exact.sample(1, self.times[0], self.contexts(1), generator=self.generator())
        except UnsupportedError:
            return False
        except Exception as error:
            raise CheckError(told(error, " from sample", expected="samples")) from error
        return True

    @cached_property
    def has_score(self) -> bool:
        """Whether the density has a score; one without says so with an UnsupportedError."""
        t, density = self.times[-1], self.copy()
        try:
            density.score(self.noisy(t, 1).to(density.dtype), t, self.contexts(1, own=True))
        except UnsupportedError:
            return False
        except Exception:  # which the checks of the score report
            return True
        return True

    @property
    def whole(self) -> bool:
        """Whether every value of an event is observed, in all of the contexts."""
        x, _, context = self.batch()
        mask = self.exact.observed(x, context)
        return mask is None or bool(mask.all())

    @property
    def differentiable(self) -> bool:
        """Whether autograd can differentiate the log-density."""
        return self.density.differentiable and self.has_score

    @property
    def methods(self) -> tuple[str, ...]:
        """The public ways to evaluate it."""
        return ("log_prob", "log_density", "score") if self.has_score else ("log_prob", "log_density")

    @property
    def sampleable(self) -> SampleableDensity:
        require(self.can_sample, "cannot sample")
        return cast(SampleableDensity, self.exact)

    def generator(self, stream: int = 0) -> torch.Generator:
        return generator_on(self.x.device, self.seed + stream)

    def contexts(self, n: int, *, own: bool = False, dtype: torch.dtype | None = None) -> Tensor | None:
        """A context for ``n`` rows, those given in turn: in ``dtype`` (by default the copy's), or in its ``own``."""
        if self.context is None:
            return None
        rows = self.context[torch.arange(n, device=self.context.device) % self.context.shape[0]]
        if not rows.is_floating_point():
            return rows
        return rows.to(self.density.dtype if own else dtype or self.dtype)

    def has_masses(self, t: float) -> bool:
        """Whether ``log_prob`` at ``t`` is the mass of a bin over its width."""
        return self.density.lattice is not None and self.process is not None and bool(self.process.on_lattice(t))

    @property
    def mass_times(self) -> list[float]:
        return [t for t in self.times if self.has_masses(t)]

    @property
    def density_times(self) -> list[float]:
        return [t for t in self.times if not self.has_masses(t)]

    def noisy(self, t: Time, rows: int | None = None) -> Tensor:
        """Data at time ``t`` (without a process, the data themselves)."""
        x = self.x[torch.arange(rows or self.x.shape[0], device=self.x.device) % self.x.shape[0]]
        x = x if self.process is None else self.process.perturb(x, t, generator=self.generator(7))
        return x.to(self.dtype)

    def batch(self, *, own: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Data at all times in turn, with times and contexts; in float64, or the density's ``own`` dtype."""
        n = max(4, self.x.shape[0], len(self.times))
        times = torch.tensor(self.times, dtype=torch.float64, device=self.x.device)
        t = times[torch.arange(n, device=self.x.device) % len(self.times)]
        x = self.noisy(t, n)
        return x.to(self.density.dtype) if own else x, t, self.contexts(n, own=own)

    def draw(self, t: float, n: int | None = None, stream: int = 0) -> Tensor:
        """Samples of the float64 copy at time ``t``."""
        n = n or self.samples
        return self.sampleable.sample(n, t, self.contexts(n), generator=self.generator(stream)).double()

    def typical(self, t: float, n: int = 256, stream: int = 0, context: Tensor | None = None) -> Tensor:
        """Points where the density lives: its own samples, or the data at time ``t``."""
        rows = self.contexts(n) if context is None else context.expand(n, *context.shape[1:])
        try:
            return self.sampleable.sample(n, t, rows, generator=self.generator(stream)).double()
        except Exception:  # cannot sample, or fails to, which other checks report
            return self.noisy(t, max(self.x.shape[0], n))

    def widths(self, x: Tensor, t: float, context: Tensor | None = None) -> Tensor:
        """How wide the density is along each coordinate around typical ``x``: that of a Gaussian with these scores."""
        std = x.flatten(1).std(0).clamp(min=1e-300)
        rows = self.contexts(len(x)) if context is None else context.expand(len(x), *context.shape[1:])
        try:
            score = in_chunks(self.exact.score, x.reshape(-1, *self.density.event_shape), t, rows).flatten(1)
        except Exception:  # no score here, or none at all, which other checks report
            return std
        slope = score.abs().median(0).values / 0.6745
        return torch.where(slope * std > 1.0, 1.0 / slope, std)

    def one_context(self, n: int) -> Tensor | None:
        """The first context for ``n`` rows."""
        context = self.contexts(1)
        return None if context is None else context.expand(n, *context.shape[1:])

    def events(self, flat: Tensor) -> Tensor:
        """Rows ``(n, D)`` as events."""
        return flat.reshape(-1, *self.density.event_shape)


@dataclass(frozen=True)
class SamplerCase:
    """A sampler, a process, and how far its results may be from the exact distribution."""

    sampler: Sampler
    process: GaussianProcess
    tolerance: float
    seed: int

    @cached_property
    def brief(self) -> Sampler:
        """The sampler with few steps, for checks of its contract, which cannot depend on their number."""
        if not self.has_setting("steps"):
            return self.sampler
        try:
            return self.with_settings(steps=min(self.sampler.steps, BRIEF))  # type: ignore[attr-defined]
        except ValueError:
            return self.sampler

    def has_setting(self, name: str) -> bool:
        """Whether the sampler is a dataclass with a field of this name."""
        field = getattr(self.sampler, "__dataclass_fields__", {}).get(name)
        return field is not None and bool(field.init)

    def with_settings(self, **settings: float) -> Sampler:
        """The sampler with other settings."""
        sampler: Any = self.sampler
        return cast(Sampler, replace(sampler, **settings))

    def density(self) -> KnownGaussian:
        """Data whose distribution is known at every noise level; a new record of calls."""
        return KnownGaussian(self.process)

    def generator(self, stream: int = 0) -> torch.Generator:
        return generator_on(torch.device("cpu"), self.seed + stream)

    def contexts(self) -> Tensor:
        """A context for a few rows, another one for each unless they interact."""
        context = torch.linspace(-1.0, 1.0, FEW, dtype=torch.float64)[:, None]
        return context[:1].expand_as(context) if self.sampler.rows_interact else context

    def start(self, rows: int = FEW, t: float | None = None) -> Tensor:
        """Exact samples at ``t`` (default T), float64."""
        density = self.density()
        mean, variance = density.moments(self.process.T if t is None else t)
        z = torch.randn(rows, *density.event_shape, dtype=torch.float64, generator=self.generator(1))
        return mean + math.sqrt(variance) * z


def in_chunks(function: Callable[..., Tensor], x: Tensor, t: float, context: Tensor | None) -> Tensor:
    """``function(x, t, context)`` of a density's method, without gradients, a limited number of rows at a time.

    In the dtype of the density, where its parameters have one; the result is float64.
    """
    density: NoiseConditionalDensity = function.__self__  # type: ignore[attr-defined]
    own = density.own_tensor()

    def parts() -> Iterator[Tensor]:
        for i in range(0, x.shape[0], CHUNK):
            rows = slice(i, i + CHUNK)
            given = x[rows] if own is None else x[rows].to(own.dtype)
            yield function(given, t, None if context is None else context[rows]).double()

    with torch.no_grad():
        return torch.cat(list(parts()))
