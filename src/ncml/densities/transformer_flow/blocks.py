r"""The blocks of a transformer flow, on patches in the layout ``(B, T, P)``.

A block standardises every patch by a mean and a log-scale that depend on the patches before it, the noise level and
the label,

.. math:: z_i = \bigl(x_i - \mu(x_{<i}, t)\bigr) \odot e^{-a(x_{<i}, t)},

where :math:`\mu` and a come from a causal transformer as TarFlow has it (Zhai et al., 2024): learned positions, layer
norms before attention and perceptron, no norm behind them, and outputs that start at zero, so that a new block is the
identity. The conditioning vector c is added to every patch's features, as in iTARFlow (2026). There the first patch
of a block passes unchanged, so that neither noise nor label reaches it; here its mean and log-scale are linear in c,
and start at zero.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ncml.nn.elementary import attention
from ncml.nn.norm import LayerNorm

__all__ = ["AffineBlock", "Layer"]


class Layer(nn.Module):
    """Attention to the present and to earlier positions, then a perceptron.

    Args:
        width: Number of features.
        heads: Attention heads, a divisor of the width.
        dropout: Probability of dropping a feature of either branch while training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = LayerNorm(width), LayerNorm(width)
        self.enter, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Features of all positions, ``(B, l, width)``."""
        query, key, value = (part.transpose(1, 2) for part in self.split(h))
        seen = attention(query, key, value)
        return self.perceptron(h + self.dropped(self.leave(seen.transpose(1, 2).flatten(2))))

    def split(self, h: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``(..., heads, width / heads)`` each."""
        return self.enter(self.before_attention(h)).unflatten(-1, (3, self.heads, -1)).unbind(-3)

    def perceptron(self, h: Tensor) -> Tensor:
        """The second branch, and the features with it."""
        return h + self.dropped(self.down(F.gelu(self.up(self.before_perceptron(h)))))

    def dropped(self, h: Tensor) -> Tensor:
        """What a branch adds, with dropout."""
        return cast(Tensor, self.dropout(h)) if self.dropout.p > 0.0 else h


class AffineBlock(nn.Module):
    """One autoregressive block.

    Args:
        length: Number of patches T, at least 2.
        size: Number of values of a patch, P.
        embed: From the features of noise level and label, ``(B, F)``, to c, ``(B, width)``.
        width: Number of features.
        layers: Number of layers.
        heads: Attention heads, a divisor of the width.
        dropout: Probability of dropping a feature of a layer's branch while training.
        max_scale: Bound on the factor by which a block scales a value, either way; None for none.
    """

    def __init__(
        self,
        length: int,
        size: int,
        embed: nn.Module,
        *,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        max_scale: float | None,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.enter = nn.Linear(size, width)
        self.positions = nn.Parameter(0.01 * torch.randn(length - 1, width))  # the last patch is nobody's past
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.leave = nn.Linear(width, 2 * size)
        self.first = nn.Linear(width, 2 * size)
        for linear in (self.leave, self.first):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.curvature = 0.0 if max_scale is None else math.log(max_scale) ** -2
        self.recompute = False

    def forward(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised patches ``(B, T, P)``, and the log-determinant, ``(B,)``.

        Args:
            x: Patches, ``(B, T, P)``.
            features: Of noise level and label, ``(B, F)``.
        """
        log_scale, mean = self.parameters_given(x, features)
        with torch.autocast(x.device.type, enabled=False):
            return (x - mean) * torch.exp(-log_scale), -log_scale.sum((1, 2))

    def parameters_given(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale a and mean of every patch given those before it, ``(B, T, P)``; arguments as for the call."""
        with torch.autocast(x.device.type, enabled=False):  # the values keep their digits
            c = self.embed(features)
            # The last patch comes along unused: attention to 64 positions costs less than to 63.
            h = self.enter(x) + F.pad(self.positions, (0, 0, 0, 1)) + c[:, None]
        for layer in self.layers:
            again = self.recompute and torch.is_grad_enabled()
            h = checkpoint(layer, h, use_reentrant=False) if again else layer(h)
        with torch.autocast(x.device.type, enabled=False):
            later = self.leave(h.to(x.dtype))[:, :-1]
            return self.parameters_of(torch.cat([self.first(c)[:, None], later], dim=1))

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale a and mean of the values, from the outputs of a position, ``(..., 2 P)``."""
        log_scale, mean = outputs.chunk(2, dim=-1)
        if self.curvature:  # within log(max_scale): odd, smooth to every order, and cheaper than a tanh
            one = log_scale.new_ones(())
            log_scale = log_scale * torch.rsqrt(torch.addcmul(one, log_scale, log_scale, value=self.curvature))
        return log_scale, mean
