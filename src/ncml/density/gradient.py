"""The gradient of a density's call: the score wherever there is no closed form."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ncml.density.checks import check_log_density
from ncml.errors import UnsupportedError

__all__ = ["gradient"]


def gradient(
    density: nn.Module,
    x: Tensor,
    t: Tensor,
    context: Tensor | None = None,
    *,
    create_graph: bool = False,
    **more: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-density ``(B,)`` of a density or a wrapper of one, and its gradient in ``x``, from one call.

    One backward pass serves the whole batch, since examples do not interact. What there is ``more``, such as lengths,
    goes to the call.
    """
    with torch.enable_grad():
        if not (create_graph and x.requires_grad):
            x = x.detach().requires_grad_()
        with ExitStack() as differentiable:
            if create_graph:  # neither what is compiled nor a fused kernel of attention is differentiable twice
                differentiable.enter_context(torch.compiler.set_stance("force_eager"))
                differentiable.enter_context(sdpa_kernel(SDPBackend.MATH))
            log_p = density(x, t, context, edges=False, **more)
        if not isinstance(log_p, Tensor) or log_p.shape != x.shape[:1]:
            check_log_density(log_p, x, t, type(density).__name__)
        score: Tensor | None = None
        if log_p.requires_grad:
            (score,) = torch.autograd.grad(log_p.sum(), x, create_graph=create_graph, allow_unused=True)
        if score is None:
            raise UnsupportedError(
                f"score: got log-densities of a {type(density).__name__} that autograd does not connect with x; "
                f"expected a differentiable function of x. If its values are categories (x.long(), an embedding), it "
                f"is a mass and no density: give it a lattice and what to differentiate, CallableDensity(..., "
                f"lattice=, density=), or a process on the lattice, LevelNoise. If it leaves torch (numpy, "
                f"scikit-learn, JAX) or detaches, give the score yourself: CallableDensity(..., score=)"
            )
    return log_p, score
