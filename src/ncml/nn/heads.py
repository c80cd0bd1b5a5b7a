r"""Mixture heads: a one-dimensional density per value from 3K network outputs.

With logits, means m and log-scales, a component is a logistic or Gaussian F((x - m)/s). On continuous
data its density is F'. On a lattice with half-width :math:`\delta` everything is the window mass

.. math:: \log\frac{F(b) - F(a)}{2\delta}, \qquad a = \frac{x-m-\delta}{s},\quad b = \frac{x-m+\delta}{s}.

At lattice points this is the mass of a bin over its width, and the first and last bin reach to
infinity where edges apply (tails telescope: masses sum to 1). Elsewhere, without edges, it is the
density of the component plus a uniform on :math:`[-\delta, \delta]`, which integrates to 1 over the
line and is smooth; using the edges there would not be a density. For the logistic,

.. math:: \log[F(b)-F(a)] = \log F(b) + \log F(-a) + \log(1 - e^{-2\delta/s})

without branch or cancellation. Heads run in float32 or better with autocast off, whatever the trunk.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ncml.checks import HALF, check_count, per_example
from ncml.noise import Lattice

__all__ = ["HEADS", "GaussianHead", "LogisticHead", "MixtureHead"]

CEILING = 7.0
"""Largest log-scale; a scale of e^7 is flat on any data of order one."""


def pick_component(logits: Tensor, u: Tensor) -> Tensor:
    """The component of a mixture at the quantile ``u``, ``(..., K)`` and ``(..., 1)`` to an index ``(..., 1)``."""
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    below = cumulative < u * cumulative[..., -1:]
    return below.sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)


def open_uniforms(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Uniforms that are never 0 (or 1, by torch's convention), so that every quantile is finite."""
    u = torch.rand(*shape, dtype=dtype, device=device, generator=generator)
    return u.clamp_(min=0.25 * torch.finfo(dtype).eps)


@dataclass(frozen=True)
class MixtureHead(abc.ABC):
    """A mixture of K components per value.

    Args:
        components: Number of components K.
        lattice: The lattice of the data, or None for continuous data.
    """

    components: int = 10
    lattice: Lattice | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", check_count(self.components, "components"))

    @property
    def outputs(self) -> int:
        """Network outputs per value: K logits, K means, K log-scales."""
        return 3 * self.components

    @property
    def floor(self) -> float:
        """Smallest log-scale: 0.23 of a half-width (-7 at 256 levels), or -7 for continuous data."""
        return -7.0 if self.lattice is None else math.log(self.lattice.half_width) - 1.46

    def means_of(self, count: int) -> list[int]:
        """Where in the outputs the means of ``count`` components are that start evenly spread among all."""
        return [self.components + (2 * i + 1) * self.components // (2 * count) for i in range(count)]

    def initial_bias(self) -> Tensor:
        """Outputs to start from: even weights, means spread over [-1, 1], scales to match, ``(3K,)``."""
        k = self.components
        means = torch.linspace(-1.0, 1.0, k + 2)[1:-1]
        return torch.cat([torch.zeros(k), means, torch.full((k,), math.log(1.0 / (k + 1)))])

    def log_prob(self, outputs: Tensor, x: Tensor, edges: Tensor | None = None) -> Tensor:
        """Log-density of each value.

        Args:
            outputs: Network outputs, ``(B, D, 3K)``.
            x: Values, ``(B, D)``, float32 or float64.
            edges: Where the first and last bin reach to infinity, bool ``(B,)``; lattice data only.

        Returns:
            Tensor ``(B, D)`` in nats, in the dtype of ``x``.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            logits, means, log_scales = self._unpack(outputs.to(x.dtype))
            terms = self._log_components(x.unsqueeze(-1), means, log_scales, edges)
            # Normalising afterwards spares a softmax over an axis of K, many times slower than a sum.
            return torch.logsumexp(logits + terms, dim=-1) - torch.logsumexp(logits, dim=-1)

    def log_cells(self, outputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Log-probability of an interval for each value, or log-density where it is a point; continuous data only.

        Args:
            outputs: Network outputs, ``(B, D, 3K)``.
            low, high: The intervals' ends, ``(B, D)``, float32 or float64, ``low <= high``; finite, though as large as
                the dtype allows.

        Returns:
            Tensor ``(B, D)`` in nats. Intervals that cover the line have probabilities that sum to 1.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            logits, means, log_scales = self._unpack(outputs.to(low.dtype))
            terms = self._log_between(low.unsqueeze(-1), high.unsqueeze(-1), means, log_scales)
            return torch.logsumexp(logits + terms, dim=-1) - torch.logsumexp(logits, dim=-1)

    def sample(self, outputs: Tensor, noise: Tensor, on_lattice: Tensor) -> Tensor:
        """Draw values from uniforms: component by inverse CDF, then its quantile, then the window.

        Args:
            outputs: Network outputs, ``(B, D, 3K)``.
            noise: Uniforms on the open unit interval, ``(B, D, 3)``.
            on_lattice: Which rows live on the lattice, bool ``(B,)``; ignored for continuous data.

        Returns:
            Values ``(B, D)``; rounded to the lattice where ``on_lattice``.
        """
        logits, means, raw = self._split(outputs.to(noise.dtype))
        pick = pick_component(logits, noise[..., :1])
        mean, log_scale = means.gather(-1, pick), self.log_scales(raw.gather(-1, pick))
        x = (mean + log_scale.exp() * self._quantile(noise[..., 1:2])).squeeze(-1)
        if self.lattice is None:
            return x
        window = (2.0 * noise[..., 2] - 1.0) * self.lattice.half_width
        return torch.where(on_lattice[:, None], self.lattice.quantize(x), x + window)

    def draw_noise(
        self, n: int, dims: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """The uniforms behind ``n`` samples, ``(n, dims, 3)``, on the open unit interval."""
        return open_uniforms((n, dims, 3), dtype, device, generator)

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and unbounded log-scales, ``(B, D, K)`` each."""
        if outputs.dtype in HALF:
            outputs = outputs.float()
        logits, means, raw = outputs.unflatten(-1, (3, self.components)).unbind(-2)
        return logits, means, raw

    def _unpack(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log-scales, ``(B, D, K)`` each."""
        logits, means, raw = self._split(outputs)
        return logits, means, self.log_scales(raw)

    def log_scales(self, raw: Tensor) -> Tensor:
        """Log-scales softly bounded: a clamp would stop the gradient where a scale must be able to return."""
        return CEILING - F.softplus(CEILING - self.floor - F.softplus(raw - self.floor))

    def _with_edges(self, inside: Tensor, below: Tensor, above: Tensor, x: Tensor, edges: Tensor | None) -> Tensor:
        """Log-masses of windows; of the first and last bin up to infinity where edges apply."""
        assert self.lattice is not None
        if edges is None:
            return inside
        level, edges = self.lattice.nearest(x), edges[:, None, None]
        last = torch.where(edges & (level == self.lattice.levels - 1), above, inside)
        return torch.where(edges & (level == 0), below, last)

    @abc.abstractmethod
    def _log_components(self, x: Tensor, means: Tensor, log_scales: Tensor, edges: Tensor | None) -> Tensor:
        """Log-density of ``x``, ``(B, D, 1)``, under each component, ``(B, D, K)``."""

    @abc.abstractmethod
    def _log_between(self, low: Tensor, high: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """Log-mass between two ends, ``(B, D, 1)``, under each component; where they are equal, log-density there."""

    @abc.abstractmethod
    def _quantile(self, u: Tensor) -> Tensor:
        """Inverse CDF of the standard component."""


@dataclass(frozen=True)
class LogisticHead(MixtureHead):
    """Mixture of logistics (Salimans et al., 2017, "PixelCNN++", in the branch-free form)."""

    def _log_components(self, x: Tensor, means: Tensor, log_scales: Tensor, edges: Tensor | None) -> Tensor:
        inverse = torch.exp(-log_scales)
        if self.lattice is None:
            centred = (x - means) * inverse
            return F.logsigmoid(centred) + F.logsigmoid(-centred) - log_scales
        return self.log_windows(x, means, inverse, edges)

    def inverse_scales(self, raw: Tensor) -> Tensor:
        """``exp(-log-scale)``, in one step."""
        return math.exp(-CEILING) + math.exp(-self.floor) * torch.sigmoid(self.floor - raw)

    def log_windows(self, x: Tensor, means: Tensor, inverse: Tensor, edges: Tensor | None) -> Tensor:
        """Log-density of ``x`` on the lattice or off it; ``(B, ...)`` that broadcast, ``edges`` ``(B,)``."""
        assert self.lattice is not None
        centred, half = (x - means) * inverse, self.lattice.half_width * inverse
        below, above = F.logsigmoid(half + centred), F.logsigmoid(half - centred)  # log F(b), log F(-a)
        between = torch.log(-torch.expm1(-2.0 * half))
        if edges is not None:
            # A bin without an end lacks that factor, and the one between: switched off per value, not per component.
            level, edges = self.lattice.nearest(x), per_example(edges, x)
            start, end = edges & (level == 0), edges & (level == self.lattice.levels - 1)
            keep_above, keep_below, keep_between = (
                mask.logical_not().to(x.dtype) for mask in (start, end, start | end)
            )
            above, below, between = above * keep_above, below * keep_below, between * keep_between
        return above + below + between - math.log(self.lattice.width)

    def _log_between(self, low: Tensor, high: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        inverse, cell = torch.exp(-log_scales), low < high
        width = torch.where(cell, high - low, 1.0) * inverse
        between = torch.where(cell, torch.log(-torch.expm1(-width)), -log_scales)
        return F.logsigmoid((high - means) * inverse) + F.logsigmoid((means - low) * inverse) + between

    def _quantile(self, u: Tensor) -> Tensor:
        return torch.logit(u)


@dataclass(frozen=True)
class GaussianHead(MixtureHead):
    """Mixture of Gaussians. On a lattice it computes in float64, where the difference of CDFs is safe."""

    def _log_components(self, x: Tensor, means: Tensor, log_scales: Tensor, edges: Tensor | None) -> Tensor:
        if self.lattice is None:
            centred = (x - means) * torch.exp(-log_scales)
            return -0.5 * (centred.square() + math.log(2.0 * math.pi)) - log_scales
        inverse = torch.exp(-log_scales.double())
        centred, half = (x.double() - means.double()) * inverse, self.lattice.half_width * inverse
        below, above = torch.special.log_ndtr(half + centred), torch.special.log_ndtr(half - centred)
        # By symmetry work in the left tail: mass = Phi(high) - Phi(low), both at most about 1/2.
        left = torch.where(centred < 0.0, centred, -centred)  # an abs has no second derivative at 0
        high, low = half + left, left - half
        log_high = torch.special.log_ndtr(high)
        inside = log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))
        log_mass = self._with_edges(inside, below, above, x, edges)
        return (log_mass - math.log(self.lattice.width)).to(x.dtype)

    def _log_between(self, low: Tensor, high: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        inverse, cell = torch.exp(-log_scales), low < high
        a, b = ((torch.where(cell, end, at) - means) * inverse for end, at in ((low, -1.0), (high, 1.0)))
        right = a + b > 0.0  # by symmetry work in the left tail
        a, b = torch.where(right, -b, a).double(), torch.where(right, -a, b).double()
        width, middle = torch.where(cell, high - low, 1.0) * inverse, 0.5 * (a + b)
        # Thin cells are their middle's density times the width: of two CDFs their difference would be rounding.
        is_thin = width < 1e-4
        thin = torch.log(width.double()) - 0.5 * (middle.square() + math.log(2.0 * math.pi))
        # Beyond b - 80 there is no mass left beside that below b, and torch has no gradients far out.
        b = b.clamp(max=40.0)
        a = torch.where(is_thin, b - 1.0, torch.maximum(a, b - 80.0))
        log_high = torch.special.log_ndtr(b)
        between = log_high + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_high))
        mass = torch.where(is_thin, thin, between).to(low.dtype)
        return torch.where(cell, mass, self._log_components(low, means, log_scales, None))

    def _quantile(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)


HEADS: dict[str, type[MixtureHead]] = {"logistic": LogisticHead, "gaussian": GaussianHead}
"""By their names in settings."""
