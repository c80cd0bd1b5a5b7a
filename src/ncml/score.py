r"""4. The score :math:`\nabla_x \log p_t(x)` and what is built on it.

``density.score(x, t)`` is the score itself. Here are the log-density and the score from one pass, the
divergence of the score (exact, or estimated from random directions), and the sliced score matching
loss, which compares models by Fisher divergence without the data's score.

:func:`log_density_and_score` calls a wrapper (DDP, ``torch.compile``) that it is given; the others
differentiate twice, which compiled code cannot do, and so run the density inside it eagerly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.checks import HALF, Time, check_count, check_floating, check_generator
from ncml.density import (
    check_arguments,
    check_log_density,
    check_score,
    density_and_score_of,
    evaluating,
    inner_density,
    usable,
)
from ncml.density.gradient import Probe, derivative, random_direction

__all__ = [
    "exact_divergence",
    "hutchinson_divergence",
    "log_density_and_score",
    "score_and_divergence",
    "sliced_score_matching",
]


def log_density_and_score(
    density: nn.Module, x: Tensor, t: Time = 0.0, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r""":math:`\log p_t(x)` without lattice edges and its gradient, from one forward and one backward pass.

    Args:
        density: The density, or a wrapper (DDP, compiled) of one, which is then what is called.
        x: Batch ``(B, *event_shape)`` in data units.
        t: Time, a number or ``(B,)``.
        context: Conditioning with one row per example, or None.

    Returns:
        Log-density ``(B,)`` in nats and score, shape of ``x``; both detached.

    Raises:
        NCMLError: As :meth:`~ncml.NoiseConditionalDensity.score`.
    """
    inner = inner_density(density)
    x, t, context = check_arguments(inner, x, t, context)
    if not len(x):
        return x.new_zeros(0), torch.zeros_like(x)
    with evaluating(density):
        x, t = usable(x), usable(t)
        log_p, score = density_and_score_of(density, x, t, None if context is None else usable(context))
    log_p = check_log_density(log_p, x, t, type(inner).__name__)
    check_score(score, t)
    return log_p.detach(), score


def exact_divergence(
    density: nn.Module,
    x: Tensor,
    t: Time = 0.0,
    context: Tensor | None = None,
    *,
    create_graph: bool = False,
) -> Tensor:
    r"""The divergence of the score, :math:`\sum_i \partial_i s_i = \Delta \log p_t(x)`, by D backward passes.

    Returns:
        Tensor ``(B,)``, in nats per squared data unit. For many dimensions use
        :func:`hutchinson_divergence`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = _leaf(x, create_graph)
        score = inner_density(density).score(x, t, context, create_graph=True)
        total = _trace(score, x, create_graph)
    return total if create_graph else total.detach()


def hutchinson_divergence(
    density: nn.Module,
    x: Tensor,
    t: Time = 0.0,
    context: Tensor | None = None,
    *,
    probes: int = 1,
    probe: Probe = "rademacher",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""An unbiased estimate of the divergence of the score, :math:`E_v[v^\top (\nabla s)\, v]`.

    Args:
        density, x, t, context: As in :func:`log_density_and_score`.
        probes: Random directions per example; the variance falls as 1/probes.
        probe: ``"rademacher"`` (exact when the Hessian is diagonal, so the default) or ``"gaussian"``.
        generator: Source of randomness.

    Returns:
        Tensor ``(B,)``, detached.
    """
    probes = check_count(probes, "probes")
    with torch.inference_mode(False), torch.enable_grad():
        x = _leaf(x, False)
        check_generator(generator, x.device)
        score = inner_density(density).score(x, t, context, create_graph=True)
        return _estimated_trace(score, x, probes, probe, generator)


def score_and_divergence(
    density: nn.Module,
    x: Tensor,
    t: Time = 0.0,
    context: Tensor | None = None,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The score and its divergence, from one pass of the density; for probability flows and their likelihoods.

    Args:
        density, x, t, context: As in :func:`log_density_and_score`.
        probes: Random signs per example for an estimate, as in :func:`hutchinson_divergence`; exact, by D backward
            passes, if None.
        generator: Source of randomness.

    Returns:
        Score, shape of ``x``, and divergence ``(B,)``, detached.
    """
    probes = None if probes is None else check_count(probes, "probes")
    with torch.inference_mode(False), torch.enable_grad():
        x = _leaf(x, False)
        check_generator(generator, x.device)
        score = inner_density(density).score(x, t, context, create_graph=True)
        if probes is None:
            divergence = _trace(score, x, False)
        else:
            divergence = _estimated_trace(score, x, probes, "rademacher", generator)
    return score.detach(), divergence.detach()


def sliced_score_matching(
    density: nn.Module,
    x: Tensor,
    t: Time = 0.0,
    context: Tensor | None = None,
    *,
    probe: Probe = "gaussian",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sliced score matching loss per example (Song et al., 2020a, variance-reduced form).

    .. math:: v^\top (\nabla s)\, v + \tfrac12 \|s\|^2, \qquad v \text{ random with } E[vv^\top] = I,

    whose expectation is the Fisher divergence between data and model up to a constant. Differentiable
    in the parameters, so that it can be trained on or added to a likelihood.

    Returns:
        Tensor ``(B,)``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = _leaf(x, True)
        check_generator(generator, x.device)
        score = inner_density(density).score(x, t, context, create_graph=True)
        v = random_direction(x, probe, generator)
        hv = derivative((score * v).sum(), x, create_graph=True)
        return (hv * v).flatten(1).sum(1) + 0.5 * score.flatten(1).square().sum(1)


def _leaf(x: Tensor, keep_graph: bool) -> Tensor:
    check_floating(x, "x")
    if x.dtype in HALF:  # computed in float32, as by the density
        x = x.float()
    if keep_graph and x.requires_grad:
        return x
    return x.detach().clone().requires_grad_()


def _trace(score: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    flat = score.flatten(1)
    total = x.new_zeros(x.shape[0])
    for i in range(flat.shape[1]):
        row = derivative(flat[:, i].sum(), x, retain_graph=True, create_graph=create_graph)
        total = total + row.flatten(1)[:, i]
    return total


def _estimated_trace(score: Tensor, x: Tensor, probes: int, probe: Probe, generator: torch.Generator | None) -> Tensor:
    total = x.new_zeros(x.shape[0])
    for i in range(probes):
        v = random_direction(x, probe, generator)
        hv = derivative((score * v).sum(), x, retain_graph=i + 1 < probes)
        total += (hv * v).flatten(1).sum(1)
    return total / probes
