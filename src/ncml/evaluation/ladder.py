r"""What a ladder of exact densities knows about itself: a sample's noise level, and whether it is one process.

If every :math:`p_t` is the distribution of the same data under one Gaussian process, they solve its Fokker-Planck
equation. In logarithms, with :math:`s = \nabla\log p_t`,

.. math:: \partial_t \log p_t(x) = -D f - f\, x \cdot s + \tfrac12 g^2 (\nabla\cdot s + \|s\|^2),

and along the probability flow :math:`dx/dt = f x - g^2 s/2` the density changes by the divergence of the flow alone.
A learned ladder does so only approximately; how closely tells whether a refinement by its scores can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_count, check_generator
from ncml.density import (
    NoiseConditionalDensity,
    SampleableDensity,
    check_arguments,
    dims_of,
    evaluating,
    inner_density,
    usable,
)
from ncml.errors import ArgumentError, UnsupportedError
from ncml.evaluation.bridges import kernel_gap, ladder_bound
from ncml.noise import GaussianProcess
from ncml.noise.gaussian import as_gaussian, clean_at_zero
from ncml.progress import progress_bar
from ncml.report import jsonable
from ncml.sampling.sampler import LATTICE_STOP
from ncml.score import score_and_divergence

__all__ = [
    "LadderAudit",
    "audit_ladder",
    "flow_log_prob",
    "fokker_planck_residual",
]


def fokker_planck_residual(
    density: nn.Module,
    x: Tensor,
    t: Time,
    context: Tensor | None = None,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""By how much a ladder misses its Fokker-Planck equation at given points, and :math:`\partial_t \log p_t` itself.

    Args:
        density: A density under a Gaussian process, differentiable in t.
        x: Points ``(B, *event_shape)``.
        t: Times above 0, a number or ``(B,)``.
        context: Conditioning with B rows, or None.
        probes: Random directions for the divergence of the score (Hutchinson's estimate); exact by D backward passes
            if None.
        generator: Source of the directions.

    Returns:
        The residual :math:`R = \partial_t \log p + D f + f x \cdot s - g^2 (\nabla \cdot s + \|s\|^2)/2` and
        :math:`\partial_t \log p`, ``(B,)`` each, in nats per unit of time. R is 0 for the ladder of one process.

    Raises:
        UnsupportedError: The process is not Gaussian, or the density is not differentiable in t.
        ArgumentError: A time of 0, where there is no derivative.
    """
    inner = inner_density(density)
    process = as_gaussian(inner.process, "which has a flow", "density.process")
    x, times, context = check_arguments(inner, x, t, context)
    if not bool((times > 0.0).all()):
        raise ArgumentError("t: got 0; expected times above 0: sigma may rise infinitely steeply there")
    with evaluating(inner), torch.enable_grad():
        leaf, y = usable(times).detach().clone().requires_grad_(), usable(x).detach()
        log_p = inner(y, leaf, context, edges=False)
        rise = torch.autograd.grad(log_p.sum(), leaf, allow_unused=True)[0] if log_p.requires_grad else None
    if rise is None:
        raise UnsupportedError(f"density: got {type(inner).__name__}, whose log-density has no derivative in t")
    score, divergence = score_and_divergence(inner, x, times, context, probes=probes, generator=generator)
    dims = dims_of(inner, x, context)
    return process.fokker_planck(x, times, rise.detach(), score, divergence, dims), rise.detach()


def flow_log_prob(
    density: nn.Module,
    x: Tensor,
    context: Tensor | None = None,
    *,
    t_start: float = 0.0,
    steps: int = 64,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r""":math:`\log p_t(x)` by way of the probability flow to T (Song et al., 2021, eq. 39), with the model's own p_T.

    .. math:: \log p_t(x) = \log p_T(x_T) + \int_t^T \nabla\cdot\left(f x - \tfrac12 g^2 s\right) d\tau

    A model of scores has no other likelihood; here one call of the density gives it, and the difference of the two
    says how consistent the ladder is. Uses the Runge-Kutta method of order 4 in :math:`\sqrt t`, with four divergences
    a step.

    Args:
        density: A density under a Gaussian process.
        x: Points ``(B, *event_shape)`` at ``t_start``.
        context: Conditioning with B rows, or None.
        t_start: Where the points are.
        steps: Steps of the integration.
        probes, generator: As for :func:`fokker_planck_residual`.

    Returns:
        Log-densities ``(B,)`` in nats.
    """
    inner = inner_density(density)
    process = as_gaussian(inner.process, "which has a flow", "density.process")
    steps = check_count(steps, "steps")
    y, _, context = check_arguments(inner, x, t_start, context)
    check_generator(generator, y.device)
    dims = dims_of(inner, y, context)

    def flow(x: Tensor, root: float) -> tuple[Tensor, Tensor]:
        """The derivatives of x and of the integral in the root of time."""
        t = min(root * root, process.T)
        f, g = float(process.drift_coefficient(t)), float(process.diffusion(t))
        score, divergence = score_and_divergence(inner, x, t, context, probes=probes, generator=generator)
        slope = f * x - 0.5 * g * g * score
        return 2.0 * root * slope, 2.0 * root * (dims * f - 0.5 * g * g * divergence)

    low, high = math.sqrt(t_start), math.sqrt(process.T)
    gained = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    h = (high - low) / steps
    for i in range(steps):
        u = low + i * h
        k1, d1 = flow(y, u)
        k2, d2 = flow(y + 0.5 * h * k1, u + 0.5 * h)
        k3, d3 = flow(y + 0.5 * h * k2, u + 0.5 * h)
        k4, d4 = flow(y + h * k3, u + h)
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        gained = gained + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)
    return inner.log_density(y, process.T, context).detach() + gained


@dataclass(frozen=True, eq=False)
class LadderAudit:
    """How consistent a ladder is with its process, level by level.

    Args:
        times: The times, ``(K,)``.
        residual: Root mean square of the Fokker-Planck residual at noisy data, ``(K,)``.
        derivative: The same for the derivative of the log-density in t itself, ``(K,)``.
        flow: Mean and standard deviation over the data of ``flow_log_prob - log_density`` at t = 0, in nats; for
            lattice densities over noisy data, where sigma is 0.3 level: at t = 0 their density is flat over bins, which
            no flow of noisy data leads to.
        entropy: By how much the entropy of the noisy data misses de Bruijn's identity, in nats per unit of time, and
            the standard error of that, ``(K, 2)``.
        bound: Mean over half of the data of :func:`~ncml.evaluation.ladder_bound`, with the other half to fit the
            decoder, less that of ``log_prob`` at t = 0, ``(K,)``: above 0, t = 0 is trained less well than t.
        kernel: Mean of :func:`~ncml.evaluation.kernel_gap`, and of the effective share of its samples, ``(K, 2)``; NaN
            for densities that cannot sample, or with a context.
    """

    times: Tensor
    residual: Tensor
    derivative: Tensor
    flow: tuple[float, float]
    entropy: Tensor
    bound: Tensor
    kernel: Tensor

    @property
    def ratio(self) -> Tensor:
        """Residual over derivative: 0 for one process; at the order of 1, the levels hardly know about each other."""
        return self.residual / self.derivative

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON data."""
        data = {"times": self.times, "residual": self.residual, "derivative": self.derivative, "ratio": self.ratio}
        more = {"flow": list(self.flow), "entropy": self.entropy, "bound": self.bound}
        kernel = {} if bool(self.kernel.isnan().any()) else {"kernel": self.kernel}
        return {key: jsonable(value, key) for key, value in {**data, **more, **kernel}.items()}

    def __str__(self) -> str:
        names = ("t", "residual", "d/dt log p", "ratio", "entropy", "+-", "bound", "kernel", "share")
        lines = ["".join(f"{name:>12}" for name in names)]
        columns = (self.times, self.residual, self.derivative, self.ratio, *self.entropy.T, self.bound, *self.kernel.T)
        lines += ["".join(f"{float(value):12.4g}" for value in row) for row in zip(*columns, strict=True)]
        lines.append(f"log p by the flow, less log p: {self.flow[0]:.4g} +- {self.flow[1]:.4g} nats")
        return "\n".join(lines)


def audit_ladder(
    density: nn.Module,
    x: Tensor,
    times: Sequence[float] | None = None,
    context: Tensor | None = None,
    *,
    steps: int = 32,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> LadderAudit:
    r"""Whether the levels of a ladder belong to one process, by all that they say about each other.

    The Fokker-Planck residual; de Bruijn's identity for the entropy H of the noisy data,

    .. math:: \frac{dH(p_t)}{dt} = D f + \tfrac12 g^2\, E\|s_t\|^2;

    the likelihood of data by way of each level; that of noisy data by the model's own samples; and that of data by way
    of the flow. All are attributes of the result.

    Args:
        density: A density under a Gaussian process.
        x: Data ``(B, *event_shape)`` at t = 0; some hundred rows are enough.
        times: Times to look at, above 0; five noise levels, evenly spaced in sigma, if None.
        context: Conditioning with B rows, or None.
        steps: Steps of the flow.
        probes, generator: As for :func:`fokker_planck_residual`; the generator also draws the noise.
        progress: Show a progress bar (needs tqdm).

    Raises:
        ArgumentError: Fewer than two rows, no times, or a time of 0.
        UnsupportedError: As for :func:`fokker_planck_residual`.
    """
    inner = inner_density(density)
    process = as_gaussian(inner.process, "which has a flow", "density.process")
    x, _, context = check_arguments(inner, x, 0.0, context)
    if len(x) < 2:
        raise ArgumentError(f"x: got {len(x)} rows; expected at least 2")
    if times is None:
        low, top = float(process.sigma(0.0)), float(process.sigma(process.T))
        times = [float(process.time_at(low + (top - low) * i / 5)) for i in range(1, 6)]
    if not len(times):
        raise ArgumentError("times: got none; expected times above 0, or None for five levels of noise")
    # Every other row: data often lie in some order.
    fitted, held = (None, None) if context is None else (context[::2], context[1::2])
    clean, x = x, x if clean_at_zero(process) else process.perturb(x, 0.0, generator=generator)
    exact = inner.log_prob(x[1::2], 0.0, held).detach().double().mean()
    residuals, derivatives, entropies, bounds, kernels = [], [], [], [], []
    for t in progress_bar(list(times), progress, "Fokker-Planck"):
        noisy = process.perturb(clean, t, generator=generator)
        residual, rise = fokker_planck_residual(density, noisy, t, context, probes=probes, generator=generator)
        residuals.append(residual.double().square().mean().sqrt())
        derivatives.append(rise.double().square().mean().sqrt())
        entropies.append(_entropy_missed(inner, process, noisy, t, context, residual, rise))
        bound = ladder_bound(density, x[1::2], t, fit=x[::2], context=held, fit_context=fitted, generator=generator)
        bounds.append(bound.mean() - exact)
        kernels.append(_kernel_gap(density, noisy, t, context, generator))
    t_start, start = 0.0, x
    if inner.lattice is not None:
        least = min(LATTICE_STOP * inner.lattice.width, 0.5 * float(process.sigma(process.T)))
        t_start = float(process.time_at(max(least, float(process.sigma(0.0)))))
        start = process.perturb(clean, t_start, generator=generator)
    by_flow = flow_log_prob(density, start, context, t_start=t_start, steps=steps, probes=probes, generator=generator)
    by_way = (by_flow - inner.log_density(start, t_start, context).detach()).double()
    return LadderAudit(
        times=torch.tensor(list(times), dtype=torch.float64),
        residual=torch.stack(residuals),
        derivative=torch.stack(derivatives),
        flow=(float(by_way.mean()), float(by_way.std())),
        entropy=torch.stack(entropies),
        bound=torch.stack(bounds),
        kernel=torch.stack(kernels),
    )


def _entropy_missed(
    density: NoiseConditionalDensity,
    process: GaussianProcess,
    noisy: Tensor,
    t: float,
    context: Tensor | None,
    residual: Tensor,
    rise: Tensor,
) -> Tensor:
    """By how much the entropy of noisy data misses de Bruijn's identity, and the standard error of that, ``(2,)``."""
    # d/dt E log p_t(x_t), by Ito's formula, plus what de Bruijn says it loses; the divergence is in the residual.
    f, along = float(process.drift_coefficient(t)), (noisy * density.score(noisy, t, context)).flatten(1).sum(1)
    missed = (2.0 * (rise + dims_of(density, noisy, context) * f + f * along) - residual).double()
    return torch.stack([missed.mean(), missed.std() / math.sqrt(len(noisy))])


def _kernel_gap(
    density: nn.Module, noisy: Tensor, t: float, context: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Means of what :func:`kernel_gap` returns, ``(2,)``; NaN for a density that cannot sample, or with a context."""
    if context is None and isinstance(inner_density(density), SampleableDensity):
        with suppress(UnsupportedError):  # one that only its call can tell, such as a function without sample=
            return torch.stack([v.double().mean() for v in kernel_gap(density, noisy, t, generator=generator)])
    return torch.full((2,), math.nan, dtype=torch.float64)
