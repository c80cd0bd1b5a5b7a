r"""Gaussians and their mixtures: the exact :math:`p_t` under every Gaussian process.

If :math:`x_0 \sim N(m, s^2)` then :math:`x_t \sim N(\alpha m,\ \alpha^2 s^2 + \sigma^2)`, component by
component in a mixture. These densities are the ground truth of the tests; they have no trained
parameters, keep their numbers as float64 buffers and compute in the dtype of ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncml.checks import Time, per_example
from ncml.densities.closed_form.base import ClosedForm, Numbers, as_float64
from ncml.errors import ArgumentError
from ncml.noise import GaussianProcess, NoiseProcess
from ncml.noise.gaussian import as_gaussian

__all__ = ["GaussianDensity", "GaussianMixtureDensity"]


class _Gaussians(ClosedForm):
    """Closed forms under Gaussian processes."""

    process: GaussianProcess

    def __init__(self, event_shape: Sequence[int], process: NoiseProcess, given: object) -> None:
        super().__init__(event_shape, as_gaussian(process, "which keeps Gaussians Gaussian"), given)


class GaussianDensity(_Gaussians):
    r"""A Gaussian with independent coordinates, :math:`x_0 \sim N(m, s^2)`, at every noise level.

    .. math:: p_t = N(\alpha(t)\, m,\ \alpha(t)^2 s^2 + \sigma(t)^2)

    Args:
        process: A Gaussian process.
        mean: Means, of the event's shape; a number means one dimension, event shape ``(1,)``.
        std: Standard deviations, a number or of the event's shape.

    Raises:
        UnsupportedError: The process is not Gaussian.
        ArgumentError: Shapes that do not fit, or ``std <= 0``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, process: NoiseProcess, mean: Numbers, std: Numbers) -> None:
        m = torch.atleast_1d(as_float64(mean, "mean"))
        s = as_float64(std, "std")
        if s.ndim and s.shape != m.shape:
            raise ArgumentError(f"std: got shape {tuple(s.shape)}; expected a number or {tuple(m.shape)}, that of mean")
        if not bool((s > 0).all()):
            raise ArgumentError("std: got values <= 0; expected standard deviations > 0")
        super().__init__(tuple(m.shape), process, mean)
        self.register_buffer("mean", m)
        self.register_buffer("std", s)  # a number stays one, so that the variance is one number per example

    def _scales(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Scale of the mean and variance of ``x_t``, broadcastable to the batch, in the dtype of ``x``."""
        alpha, sigma = per_example(self.process.alpha(t), x), per_example(self.process.sigma(t), x)
        return alpha, (alpha * self.std.to(x.dtype)).square() + sigma.square()

    def _moments(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        alpha, variance = self._scales(x, t)
        return alpha * self.mean.to(x.dtype), variance

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        mean, variance = self._moments(x, t)
        terms = (x - mean).square() / variance + variance.log() + math.log(2.0 * math.pi)
        return -0.5 * terms.flatten(1).sum(1)

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        alpha, variance = self._scales(x, t)
        # Two passes, one temporary: samplers call this at every step, where memory costs more than arithmetic.
        return torch.addcmul(x, alpha, self.mean.to(x.dtype), value=-1.0).mul_(-1.0 / variance)

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        z = torch.randn(n, *self.event_shape, dtype=self.dtype, device=self.device, generator=generator)
        mean, variance = self._moments(z, t)
        return mean + variance.sqrt() * z


class GaussianMixtureDensity(_Gaussians):
    r"""A mixture of Gaussians with independent coordinates, at every noise level.

    .. math:: p_t = \sum_k w_k\, N(\alpha m_k,\ \alpha^2 s_k^2 + \sigma^2)

    Args:
        process: A Gaussian process.
        weights: ``(K,)``, positive; normalised to sum to 1.
        means: ``(K, *event_shape)``; ``(K,)`` means one dimension, event shape ``(1,)``.
        stds: A number, one per component ``(K,)``, or of the shape of the means.

    Raises:
        UnsupportedError: The process is not Gaussian.
        ArgumentError: Shapes that do not fit, weights or standard deviations that are not positive.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __init__(self, process: NoiseProcess, weights: Numbers, means: Numbers, stds: Numbers) -> None:
        w, m, s = as_float64(weights, "weights"), as_float64(means, "means"), as_float64(stds, "stds")
        if w.ndim != 1 or w.numel() == 0 or not bool((w > 0).all()):
            raise ArgumentError(f"weights: got {w.tolist()}; expected K positive numbers")
        k = w.shape[0]
        m = m[:, None] if m.ndim == 1 else m
        if m.ndim < 2 or m.shape[0] != k:
            raise ArgumentError(f"means: got shape {tuple(m.shape)}; expected ({k}, *event_shape), one row per weight")
        if s.ndim == 1 and s.shape[0] == k:
            s = s.reshape(k, *([1] * (m.ndim - 1)))
        if s.ndim and (s.ndim != m.ndim or any(a not in (1, b) for a, b in zip(s.shape, m.shape, strict=True))):
            raise ArgumentError(f"stds: got shape {tuple(s.shape)}; expected a number, ({k},) or {tuple(m.shape)}")
        if not bool((s > 0).all()):
            raise ArgumentError("stds: got values <= 0; expected standard deviations > 0")
        super().__init__(tuple(m.shape[1:]), process, means)
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", m)
        self.register_buffer("stds", s.expand(m.shape).clone())

    def _moments(self, like: Tensor, t: Time, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Means and variances of components; ``like`` gives dtype and rank, with components in dim 1."""
        alpha, sigma = per_example(self.process.alpha(t), like), per_example(self.process.sigma(t), like)
        means, stds = self.means[rows].to(like.dtype), self.stds[rows].to(like.dtype)
        return alpha * means, (alpha * stds).square() + sigma.square()

    def _log_terms(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``log(w_k N_k(x))``, ``(B, K)``, and each component's score, ``(B, K, *event_shape)``."""
        wide = x.unsqueeze(1)
        means, variances = self._moments(wide, t)
        terms = (wide - means).square() / variances + variances.log() + math.log(2.0 * math.pi)
        return self.weights.to(x.dtype).log() - 0.5 * terms.flatten(2).sum(2), (means - wide) / variances

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        return self._log_terms(x, t)[0].logsumexp(1)

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        log_terms, scores = self._log_terms(x, t)
        responsibilities = log_terms.softmax(1).reshape(*log_terms.shape, *([1] * (x.ndim - 1)))
        return (responsibilities * scores).sum(1)

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        z = torch.randn(n, *self.event_shape, dtype=self.dtype, device=self.device, generator=generator)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        mean, variance = self._moments(z, t, component)
        return mean + variance.sqrt() * z
