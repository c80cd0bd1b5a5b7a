"""Derivatives of a density's call: the score where there is no closed form, and with it the slope in t."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ncml.density.checks import check_log_density
from ncml.errors import ArgumentError, UnsupportedError

__all__ = ["Probe", "derivative", "gradient", "random_direction", "slopes"]

Probe = Literal["rademacher", "gaussian"]


def gradient(
    density: nn.Module,
    x: Tensor,
    t: Tensor,
    context: Tensor | None = None,
    *,
    create_graph: bool = False,
    **more: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """Log-density ``(B,)`` of a density or a wrapper of one, and its gradient in ``x``, from one call.

    One backward pass serves the whole batch, since examples do not interact. Anything in ``more``, such as lengths, is
    passed to the call.
    """
    with torch.enable_grad():
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        log_p = _called(density, x, t, context, create_graph, more)
        score: Tensor | None = None
        if log_p.requires_grad:
            (score,) = torch.autograd.grad(log_p.sum(), x, create_graph=create_graph, allow_unused=True)
        if score is None:
            raise _disconnected(density)
    return log_p, score


def slopes(density: nn.Module, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient in ``x`` and the derivative in ``t``, ``(B,)``, from one call; both with their graph.

    ``x`` and ``t`` ``(B,)`` require gradients.
    """
    with torch.enable_grad():
        log_p = _called(density, x, t, context, True, {})
        score: Tensor | None = None
        if log_p.requires_grad:
            score, rise = torch.autograd.grad(log_p.sum(), (x, t), create_graph=True, allow_unused=True)
        if score is None:
            raise _disconnected(density)
        if rise is None:
            raise UnsupportedError(f"density: got {type(density).__name__}, whose log-density has no derivative in t")
    return score, rise


def derivative(
    value: Tensor,
    x: Tensor,
    along: Tensor | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tensor:
    """The derivative of a value in ``x``, zeros where it does not depend on it: a score may be constant.

    For a tensor, the derivative of its product with ``along``, which has the shape of the tensor.
    """
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(
        value, x, along, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return slope


def random_direction(x: Tensor, probe: Probe, generator: torch.Generator | None) -> Tensor:
    """A random v of the shape and dtype of ``x`` with E[v v^T] = I, for Hutchinson's estimate of a trace."""
    if probe == "gaussian":
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    if probe == "rademacher":
        bits = torch.randint(0, 2, x.shape, device=x.device, generator=generator)
        return (2 * bits - 1).to(x.dtype)
    raise ArgumentError(f"probe: got {probe!r}; expected 'rademacher' or 'gaussian'")


def _called(
    density: nn.Module, x: Tensor, t: Tensor, context: Tensor | None, twice: bool, more: dict[str, Any]
) -> Tensor:
    """The log-density, to be differentiated once or ``twice``."""
    with ExitStack() as differentiable:
        if twice:  # neither what is compiled nor a fused kernel of attention is differentiable twice
            differentiable.enter_context(torch.compiler.set_stance("force_eager"))
            differentiable.enter_context(sdpa_kernel(SDPBackend.MATH))
        log_p: Tensor = density(x, t, context, edges=False, **more)
    if not isinstance(log_p, Tensor) or log_p.shape != x.shape[:1] or not log_p.is_floating_point():
        check_log_density(log_p, x, t, type(density).__name__)
    return log_p


def _disconnected(density: nn.Module) -> UnsupportedError:
    return UnsupportedError(
        f"score: got log-densities of a {type(density).__name__} that autograd does not connect with x; "
        f"expected a differentiable function of x. If its values are categories (x.long(), an embedding), it "
        f"is a mass and no density: give it a lattice and what to differentiate, CallableDensity(..., "
        f"lattice=, density=), or a process on the lattice, LevelNoise. If it leaves torch (numpy, "
        f"scikit-learn, JAX) or detaches, give the score yourself: CallableDensity(..., score=)"
    )
