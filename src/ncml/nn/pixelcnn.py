r"""Building blocks of a pixel network, on features in the layout ``(B, H, W, F)``.

Two streams. Features of the **vertical** one at (r, c) depend on the pixels of rows before r; those of
the **horizontal** one also on the pixels of row r before c. Everything here keeps that, by where a
convolution pads and by what an attention may look at; only the first layers exclude the present pixel.

Normalisation is per position: a statistic over space would mix what comes before with what comes after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["AxialAttention", "CausalConv", "GatedBlock", "Upsample", "concat_elu"]

Padding = tuple[int, int, int, int]  # top, bottom, left, right; negative ones crop

VERTICAL: tuple[tuple[int, int], Padding] = ((2, 3), (1, 0, 1, 1))
HORIZONTAL: tuple[tuple[int, int], Padding] = ((2, 2), (1, 0, 1, 0))


def concat_elu(x: Tensor) -> Tensor:
    """``elu`` of ``x`` and of ``-x``, side by side in the last axis (Salimans et al., 2017)."""
    return F.elu(torch.cat([x, -x], dim=-1))


class CausalConv(nn.Module):
    """A convolution whose window is placed by its padding.

    Args:
        inputs, outputs: Numbers of features.
        kernel: Height and width of the window.
        padding: Zeros added at top, bottom, left and right; negative numbers crop. The output at (r, c)
            sees rows ``r - top .. r - top + height - 1`` and likewise columns.
        stride: Step between outputs.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], padding: Padding, stride: int = 1) -> None:
        super().__init__()
        self.padding, self.stride, self.kernel = padding, stride, kernel
        bound = 1.0 / math.sqrt(inputs * kernel[0] * kernel[1])
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.padding
        padded = F.pad(x, (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)  # a channels_last view
        y = F.conv2d(padded, self.weight.to(memory_format=torch.channels_last), self.bias, self.stride)
        return y.permute(0, 2, 3, 1)


class Upsample(nn.Module):
    """Doubles height and width by a transposed convolution.

    Args:
        features: Number of features.
        width: Width of the kernel: 3 (vertical stream: also from the column before) or 2.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        bound = 1.0 / math.sqrt(2.0 * features)
        self.weight = nn.Parameter(torch.empty(features, features, 2, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(memory_format=torch.channels_last)
        y = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, self.bias, stride=2).permute(0, 2, 3, 1)
        return y[:, :, self.width - 2 :]


class AxialAttention(nn.Module):
    r"""Self-attention along one axis with a rescaled skip, :math:`(x + \mathrm{attention}(x))/\sqrt2`.

    Args:
        features, heads: Number of features, and of heads that share them.
        axis: ``"row"`` (along W) or ``"column"`` (along H).
        causal: Whether a position sees only itself and those before it along the axis.
    """

    def __init__(self, features: int, heads: int, axis: str, causal: bool) -> None:
        super().__init__()
        self.heads, self.axis, self.causal = heads, axis, causal
        self.norm = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.out = nn.Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.axis == "column":
            return self._along_rows(x.transpose(1, 2)).transpose(1, 2)
        return self._along_rows(x)

    def _along_rows(self, x: Tensor) -> Tensor:
        # Four dimensions, (B * H, heads, W, d): with five, torch falls back to a slower algorithm.
        q, k, v = (z.flatten(0, 1).transpose(1, 2) for z in self.project(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.merge(x, y.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(..., heads, features / heads)``."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, v

    def merge(self, x: Tensor, attended: Tensor) -> Tensor:
        """The output projection and the rescaled skip."""
        return (x + self.out(attended)) * math.sqrt(0.5)


class GatedBlock(nn.Module):
    """A gated residual block (Salimans et al., 2017) that sees the conditioning, with axial attention.

    Args:
        features: Number of features F.
        kernel, padding: Window of the stream, ``*VERTICAL`` or ``*HORIZONTAL``.
        skips: How many other features enter, each as ``concat_elu``.
        conditioning: Width of the conditioning vector.
        dropout: Probability of dropping a feature between the two convolutions.
        attention: Row and column attention after the block, or nothing.
    """

    def __init__(
        self,
        features: int,
        kernel: tuple[int, int],
        padding: Padding,
        skips: int,
        conditioning: int,
        dropout: float,
        attention: list[AxialAttention],
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv(2 * features, features, kernel, padding)
        self.skips = nn.ModuleList([nn.Linear(2 * features, features, bias=False) for _ in range(skips)])
        self.condition = nn.Linear(conditioning, features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = CausalConv(2 * features, 2 * features, kernel, padding)
        self.conv_out.weight.data.mul_(0.1)  # start near the identity
        self.attention = nn.ModuleList(attention)
        self.checkpoint = False  # while training, keep the inputs only and compute the rest again

    def forward(self, x: Tensor, active: Tensor, skips: list[Tensor], conditioning: Tensor) -> Tensor:
        """New features from ``x``, its ``concat_elu`` and that of the skips."""
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, active, skips, conditioning, use_reentrant=False)
        return self._forward(x, active, skips, conditioning)

    def _forward(self, x: Tensor, active: Tensor, skips: list[Tensor], conditioning: Tensor) -> Tensor:
        h = self.conv_in(active) + self.condition(conditioning)[:, None, None]
        h = self.conv_out(self.dropout(concat_elu(self.add_skips(h, skips))))
        x = self.gate(x, h)
        for attention in self.attention:
            x = attention(x)
        return x

    def add_skips(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        for linear, skip in zip(self.skips, skips, strict=True):
            h = h + linear(skip)
        return h

    @staticmethod
    def gate(x: Tensor, h: Tensor) -> Tensor:
        return x + F.glu(h, dim=-1)
