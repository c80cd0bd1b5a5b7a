r"""Likelihoods of one level by way of another: what a ladder's levels say about each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ncml.checks import check_count, check_generator
from ncml.density import check_arguments, inner_density, sampleable
from ncml.errors import ArgumentError
from ncml.noise import Lattice
from ncml.noise.gaussian import as_gaussian

__all__ = ["kernel_gap", "ladder_bound"]


def ladder_bound(
    density: nn.Module,
    x: Tensor,
    t: float,
    *,
    fit: Tensor,
    context: Tensor | None = None,
    fit_context: Tensor | None = None,
    draws: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A bound on the likelihood of data by a model of noisy data and a decoder, for models never trained at t = 0.

    The model draws :math:`x_t \sim p_t` and then data from
    :math:`P(x_0 \mid x_t) = N(D(x_t), w^2)`, a normal around Tweedie's mean whose width is that of the errors on
    ``fit`` (on a lattice the masses of its bins). Its likelihood is at least

    .. math:: E_{q(x_t \mid x_0)}\left[\log p_t(x_t) + \log P(x_0 \mid x_t) - \log q(x_t \mid x_0)\right].

    A bound for *that* model, not for the density's own :math:`p_0`: where it lies above the density's exact value,
    t = 0 is trained less well than t. For normal data of one variance in all directions it is their likelihood exactly,
    draw by draw; for others it lies below, even with the right ladder.

    Args:
        density: A density under a Gaussian process.
        x: Data ``(B, *event_shape)`` at t = 0.
        t: The noise level, above 0.
        fit: Training data, for the width.
        context, fit_context: Conditioning with a row for each of ``x`` and of ``fit``, or None.
        draws: Draws of the noise that are averaged.
        generator: Source of the noise.

    Returns:
        Bounds ``(B,)`` in nats, float64; comparable with ``log_prob(x, 0)``.

    Raises:
        ArgumentError: t = 0, or no rows to fit.
        UnsupportedError: The process is not Gaussian.
    """
    inner = inner_density(density)
    process = as_gaussian(inner.process, "which has levels of noise", "density.process")
    draws = check_count(draws, "draws")
    x, _, context = check_arguments(inner, x, 0.0, context)
    fit, _, fit_context = check_arguments(inner, fit, 0.0, fit_context)
    check_generator(generator, x.device)
    # From t = 0, where some processes have noise already.
    alpha, sigma = (float(v) for v in process.transition(0.0, t))
    if not sigma > 0.0 or not len(fit):
        raise ArgumentError(f"t, fit: got t = {t:.6g} and {len(fit)} rows; expected noise at t, and data to fit to")

    def noisy(clean: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, its noise, and Tweedie's mean."""
        z = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device, generator=generator)
        x_t = alpha * clean + sigma * z
        return x_t, z, (x_t + sigma**2 * inner.score(x_t, t, context)) / alpha

    errors, known = (noisy(fit, fit_context)[2] - fit).double(), inner.observed(fit, fit_context)
    errors = errors if known is None else errors[known]
    width = float(errors.square().mean().sqrt()) if errors.numel() else 0.0
    width = max(width, 1e-6 * sigma / alpha)  # a lattice's values may be found without any error
    total, known = torch.zeros(len(x), dtype=torch.float64, device=x.device), inner.observed(x, context)
    for _ in range(draws):
        x_t, z, mean = noisy(x, context)
        log_q = -0.5 * z.double().square() - math.log(sigma) - 0.5 * math.log(2.0 * math.pi)
        decoded = _decoded(x.double(), mean.double(), width, inner.lattice)
        gained = decoded - log_q if known is None else torch.where(known, decoded - log_q, 0.0)
        total += inner.log_density(x_t, t, context).detach().double() + gained.flatten(1).sum(1)
    return total / draws


def _decoded(x: Tensor, mean: Tensor, width: float, lattice: Lattice | None) -> Tensor:
    """Log-density of each value by the decoder; on a lattice the mass of its bin over the bin's width."""
    u = (x - mean) / width
    if lattice is None:
        return -0.5 * u.square() - math.log(width) - 0.5 * math.log(2.0 * math.pi)
    half, level = lattice.half_width / width, lattice.nearest(x)
    low = torch.where(level == 0, -math.inf, u - half)
    high = torch.where(level == lattice.levels - 1, math.inf, u + half)
    # On the side where both tails are small, so that their difference keeps its digits.
    low, high = torch.where(u > 0, -high, low), torch.where(u > 0, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-300))) - math.log(lattice.width)


@torch.no_grad()
def kernel_gap(
    density: nn.Module,
    x: Tensor,
    t: float,
    *,
    samples: int = 2048,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The log-density at t, minus that of the model's own samples at t = 0 with noise added.

    .. math:: \log p_t(x) - \log \frac1n \sum_i N(x;\ \alpha\,x_0^{(i)},\ \sigma^2), \qquad x_0^{(i)} \sim p_0

    with the scale and noise that the process adds from 0 to t. If a ladder is one process, this is 0 in the limit. It
    needs samples near every x: in more than a few dimensions there are none. The effective share of samples, which is
    returned too, shows this; the gap then says nothing.

    Args:
        density: A density that can sample, under a Gaussian process, without context.
        x: Points ``(B, *event_shape)`` at t.
        t: The noise level, above 0.
        samples: Samples of the model at t = 0.
        generator: Their source.

    Returns:
        Gaps ``(B,)`` in nats, and the effective number of samples behind each, as a share, ``(B,)``.

    Raises:
        UnsupportedError: The density cannot sample, or the process is not Gaussian.
        ArgumentError: t = 0.
    """
    inner = sampleable(density, "the gap is to its own samples")
    process = as_gaussian(inner.process, "which has a kernel", "density.process")
    samples = check_count(samples, "samples")
    x, _, _ = check_arguments(inner, x, t)
    # From t = 0, where some processes have noise already.
    alpha, sigma = (float(v) for v in process.transition(0.0, t))
    if not sigma > 0.0:
        raise ArgumentError(f"t: got {t:.6g}; expected a time with noise")
    clean = inner.sample(samples, 0.0, generator=generator).to(x).flatten(1).double()
    squared = torch.cdist(x.flatten(1).double(), alpha * clean).square() / sigma**2
    log_kernel = -0.5 * squared - clean.shape[1] * (math.log(sigma) + 0.5 * math.log(2.0 * math.pi))
    log_p = inner.log_density(x, t).detach().double()
    share = log_kernel.softmax(1).square().sum(1).reciprocal() / samples
    return log_p - (log_kernel.logsumexp(1) - math.log(samples)), share
