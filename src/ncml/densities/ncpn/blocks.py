r"""Building blocks of a pixel network, on features in the layout ``(B, H, W, F)``.

Two streams. Features of the **vertical** one at (r, c) depend on the pixels of rows before r; those of
the **horizontal** one also on the pixels of row r before c. Everything here keeps that, by where a
convolution pads and by what an attention may look at; only the first layers exclude the present pixel.

Normalisation is per position: a statistic over space would mix what comes before with what comes after.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ncml.nn.elementary import attention, elementary
from ncml.nn.norm import LayerNorm

__all__ = ["AxialAttention", "CausalConv", "GatedBlock", "Skip", "Upsample", "concat_elu", "padded_concat_elu"]

Padding = tuple[int, int, int, int]  # top, bottom, left, right; negative ones crop

VERTICAL: tuple[tuple[int, int], Padding] = ((2, 3), (1, 0, 1, 1))
HORIZONTAL: tuple[tuple[int, int], Padding] = ((2, 2), (1, 0, 1, 0))

CACHED_WEIGHTS = 1 << 18
"""Attention weights that are worked on at once: 1 MiB in float32."""


def concat_elu(x: Tensor) -> Tensor:
    """``elu`` of ``x`` and of ``-x``, side by side in the last axis (Salimans et al., 2017)."""
    return F.elu(torch.cat([x, -x], dim=-1))


def padded_concat_elu(x: Tensor, padding: Padding) -> Tensor:
    """``concat_elu(x)`` inside the padding of a convolution, ``(B, top + H, left + W + right, 2F)``."""
    top, _, left, right = padding  # no window of either stream reaches below
    if elementary():
        return F.pad(concat_elu(x), (0, 0, left, right, top, 0))
    return cast(Tensor, _PaddedConcatElu.apply(x, top, left, right))  # type: ignore[no-untyped-call]


class _PaddedConcatElu(torch.autograd.Function):
    """:func:`padded_concat_elu` that saves only its output, which the convolution saves anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: int, left: int, right: int) -> Tensor:  # noqa: ANN401
        batch, height, width, features = x.shape
        out = x.new_empty(batch, top + height, left + width + right, 2 * features)
        out[:, :top] = 0.0
        out[:, top:, :left] = 0.0
        out[:, top:, left + width :] = 0.0
        negative = -x
        below = torch.minimum(x, negative).expm1_()  # one exponential for both halves: elu(x) = max(x, e^-|x| - 1)
        inside = out[:, top:, left : left + width]
        torch.maximum(x, below, out=inside[..., :features])
        torch.maximum(negative, below, out=inside[..., features:])
        ctx.save_for_backward(out)
        ctx.window = (slice(None), slice(top, None), slice(left, left + width))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (out,) = ctx.saved_tensors
        # elu' is 1 where elu is positive and 1 + elu elsewhere.
        slopes = out[ctx.window].clamp(max=0.0).add_(1.0).mul_(gradient[ctx.window])
        positive, negative = slopes.chunk(2, dim=-1)
        return positive - negative, None, None, None


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

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """The convolution of features, which may carry their padding already."""
        if not padded:
            top, bottom, left, right = self.padding
            x = F.pad(x, (0, 0, left, right, top, bottom))
        # A channels_last view; the weight is brought to that layout inside, where autograd does not keep the copy.
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, self.stride).permute(0, 2, 3, 1)


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
        y = F.conv_transpose2d(x.permute(0, 3, 1, 2), self.weight, self.bias, stride=2).permute(0, 2, 3, 1)
        return y[:, :, self.width - 2 :]


class Skip(nn.Linear):
    """A projection of features that skip a part of the network; for both streams, whose windows begin alike."""

    def __init__(self, features: int) -> None:
        super().__init__(2 * features, features, bias=False)

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """The projection; of features inside a padding the part of this width that is not padding."""
        y = super().forward(x)
        # Projected whole, since cutting the padding off before would copy; all windows begin one row above
        # and one column to the left.
        return y if width is None else y[:, 1:, 1 : 1 + width]


def attend(lines: Tensor, causal: bool) -> Tensor:
    """Attention along many short lines.

    Args:
        lines: Queries, keys and values, ``(3, N, d, L)`` for N lines of length L.
        causal: Whether a position sees only itself and those before it.

    Returns:
        Tensor ``(N, d, L)``.
    """
    if elementary():
        return _products(lines, causal)
    return cast(Tensor, _Attend.apply(lines, causal))  # type: ignore[no-untyped-call]


def _products(lines: Tensor, causal: bool) -> Tensor:
    """:func:`attend` as products of matrices."""
    return torch.bmm(lines[2], _attention_weights(lines, causal).transpose(1, 2))


def _attention_weights(lines: Tensor, causal: bool) -> Tensor:
    """Queries by keys, ``(N, L, L)``."""
    _, _, d, length = lines.shape
    mask = lines.new_zeros(length, length)
    if causal:
        mask = mask.fill_(-math.inf).triu_(1)
    return torch.baddbmm(mask, lines[0].transpose(1, 2), lines[1], alpha=d**-0.5).softmax(-1)


class _Attend(torch.autograd.Function):
    """:func:`_products` a few lines at a time, so that their weights stay in the cache and are never kept.

    At these sizes (lines of 8 to 32, heads of 5 to 20 features) torch's fused kernel takes several times as
    long on a CPU, above all backwards and in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, lines: Tensor, causal: bool) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(lines)
        ctx.causal = causal
        out = torch.empty_like(lines[2])
        for part, y in zip(_parts(lines, 1), _parts(out, 0), strict=True):
            torch.bmm(part[2], _attention_weights(part, causal).transpose(1, 2), out=y)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (lines,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return torch.autograd.grad(_products(lines, ctx.causal), lines, gradient, create_graph=True)[0], None
        result = torch.empty_like(lines)
        for part, g, to in zip(_parts(lines, 1), _parts(gradient, 0), _parts(result, 1), strict=True):
            weights = _attention_weights(part, ctx.causal)
            q, k, v = part
            scores = torch._softmax_backward_data(torch.bmm(g.transpose(1, 2), v), weights, -1, weights.dtype)
            torch.bmm(k, scores.transpose(1, 2), out=to[0])
            torch.bmm(q, scores, out=to[1])
            torch.bmm(g, weights, out=to[2])
        result[:2].mul_(lines.shape[2] ** -0.5)
        return result, None


def _parts(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """A batch of lines in parts with ``CACHED_WEIGHTS`` attention weights each."""
    return x.split(max(1, CACHED_WEIGHTS // x.shape[-1] ** 2), dim)


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
        self.norm = LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.out = nn.Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x, self.attend(x) if x.device.type == "cpu" else self.fused(x))

    def attend(self, x: Tensor) -> Tensor:
        """What every position takes from its line, ``(B, H, W, F)``, by products of matrices."""
        # To (q k v, B, H, heads, d, W), or columns likewise, and as one batch of lines in one copy.
        order = (3, 0, 1, 4, 5, 2) if self.axis == "row" else (3, 0, 2, 4, 5, 1)
        y = attend(self._projections(x).permute(order).flatten(1, 3), self.causal)
        batch, height, width, features = x.shape
        if self.axis == "row":
            return y.view(batch, height, features, width).transpose(2, 3)
        return y.view(batch, width, features, height).permute(0, 3, 1, 2)

    def fused(self, x: Tensor) -> Tensor:
        """The same by torch's fused kernel, for a GPU."""
        x = x if self.axis == "row" else x.transpose(1, 2)
        # Four dimensions, (B * H, heads, W, d): with five, torch falls back to a slower algorithm.
        q, k, v = (z.flatten(0, 1).transpose(1, 2) for z in self.project(x))
        y = attention(q, k, v, causal=self.causal).transpose(1, 2).reshape(x.shape)
        return y if self.axis == "row" else y.transpose(1, 2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(..., heads, features / heads)``."""
        q, k, v = self._projections(x).unbind(-3)
        return q, k, v

    def _projections(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.qkv(self.norm(x))).unflatten(-1, (3, self.heads, -1))

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
        self.skips = nn.ModuleList([Skip(features) for _ in range(skips)])
        self.condition = nn.Linear(conditioning, features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = CausalConv(2 * features, 2 * features, kernel, padding)
        self.conv_out.weight.data.mul_(0.1)  # start near the identity
        self.attention = nn.ModuleList(attention)
        self.recompute = False  # while training, keep the inputs only and compute the rest again

    def forward(self, x: Tensor, active: Tensor, skips: list[Tensor], conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """New features and their :meth:`activate`, from ``x``, its own and those of the skips."""
        if self.recompute and self.training and torch.is_grad_enabled():
            inputs = (x, active, skips, conditioning)
            return cast("tuple[Tensor, Tensor]", checkpoint(self._forward, *inputs, use_reentrant=False))
        return self._forward(x, active, skips, conditioning)

    def _forward(self, x: Tensor, active: Tensor, skips: list[Tensor], conditioning: Tensor) -> tuple[Tensor, Tensor]:
        _, h = self.residual(active, skips, conditioning)
        x = self.gate(x, h)
        for layer in self.attention:
            x = layer(x)
        return x, self.activate(x)

    def residual(self, active: Tensor, skips: list[Tensor], conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the second convolution, and what leaves it for the gate."""
        h = self.conv_in(active, padded=True) + self.condition(conditioning)[:, None, None]
        for project, skip in zip(self.skips, skips, strict=True):
            h = h + project(skip, h.shape[2])
        second = self.dropout(self.activate(h))
        return second, self.conv_out(second, padded=True)

    def activate(self, x: Tensor) -> Tensor:
        """``concat_elu`` inside the padding of this stream."""
        return padded_concat_elu(x, self.conv_in.padding)

    @staticmethod
    def gate(x: Tensor, h: Tensor) -> Tensor:
        return x + F.glu(h, dim=-1)
