"""Where our own fast paths give way: to the compiler, and to the transforms of ``torch.func``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["attention", "elementary", "transformed"]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    Autograd functions in the cheapest style do not support these, and neither do the fused kernels of attention.
    """
    active: bool = torch._C._are_functorch_transforms_active()  # there are no public names for either
    return active or forward_ad._current_level >= 0


def elementary() -> bool:
    """Whether to write a computation in torch's elementary operations: compiled, which fuses them, or transformed."""
    return torch.compiler.is_compiling() or transformed()


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = True) -> Tensor:
    """Scaled dot-product attention, of ``(B, heads, l, width / heads)`` each, by the fastest kernel that works here."""
    if not torch.compiler.is_compiling() and transformed():
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode, and one derivative only
            return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
