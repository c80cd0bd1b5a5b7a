"""The inverse of a block, one patch after the other, with the keys and values of those that have been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.densities.transformer_flow.blocks import AffineBlock, Layer

__all__ = ["Guide", "invert"]

Guide = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""From log-scales and means, of the rows with their labels and then of the same rows without, and from the place of the
patch between 0 and 1, to the scales and means to draw with."""


def invert(block: AffineBlock, z: Tensor, features: Tensor, guide: Guide | None = None) -> Tensor:
    """The patches that a block standardises to ``z``, in eval mode and without gradients.

    Args:
        block: The block.
        z: Standardised patches, ``(B, T, P)``.
        features: Of noise level and label, ``(B, F)``; with a guide ``(2 B, F)``, first with the labels, then without.
        guide: Changes the parameters on the way.
    """
    c = block.embed(features)
    last = z.shape[1] - 1
    layers = [_CachedLayer(cast(Layer, layer), len(c), last) for layer in block.layers]
    enter, leave = _transposed(block.enter), _transposed(block.leave)
    shifts = block.positions[:, None] + c
    x = torch.empty_like(z)
    outputs = block.first(c)
    for i in range(last + 1):
        log_scale, mean = block.parameters_of(outputs)
        scale, mean = (log_scale.exp(), mean) if guide is None else guide(log_scale, mean, i / last)
        x[:, i] = value = torch.addcmul(mean, z[:, i], scale)
        if i < last:
            h = torch.addmm(shifts[i], value if guide is None else value.repeat(2, 1), enter[0]).add_(enter[1])
            for layer in layers:
                h = layer.extend(h, i)
            outputs = torch.addmm(leave[1], h, leave[0])
    return x


class _CachedLayer:
    """One pass of a layer over rows of positions as they come; its state is its own.

    Args:
        layer: The layer.
        rows: Number of rows B.
        length: Number of positions that there will be.
    """

    def __init__(self, layer: Layer, rows: int, length: int) -> None:
        self.before_attention = _settings(layer.before_attention)
        self.before_perceptron = _settings(layer.before_perceptron)
        self.leave, self.up, self.down = _transposed(layer.leave), _transposed(layer.up), _transposed(layer.down)
        weight, bias = _transposed(layer.enter)
        width = len(weight)
        head = width // layer.heads
        scale = torch.ones_like(bias)
        scale[:width] = 1.0 / math.sqrt(head)  # of the queries
        self.enter = weight * scale, bias * scale
        self.parts, self.queries = (rows, 3, layer.heads, head), (rows * layer.heads, 1, head)
        cache = weight.new_empty(2, rows, layer.heads, length, head)
        self.keys, self.values = cache[0].flatten(0, 1).mT, cache[1].flatten(0, 1)
        self.places = cache.permute(3, 1, 0, 2, 4)  # of each position, (B, 2, heads, width / heads)

    def extend(self, h: Tensor, i: int) -> Tensor:
        """Features ``(B, width)`` of position i, from those that enter the layer."""
        split = torch.addmm(self.enter[1], torch.layer_norm(h, *self.before_attention), self.enter[0]).view(self.parts)
        self.places[i] = split[:, 1:]
        # Two products of matrices are faster here than the fused attention of many queries.
        weights = torch.bmm(split[:, 0].reshape(self.queries), self.keys[:, :, : i + 1])
        seen = torch.bmm(weights.softmax(-1), self.values[:, : i + 1]).view_as(h)
        h = torch.addmm(self.leave[1], seen, self.leave[0]).add_(h)
        hidden = F.gelu(torch.addmm(self.up[1], torch.layer_norm(h, *self.before_perceptron), self.up[0]))
        return torch.addmm(self.down[1], hidden, self.down[0]).add_(h)


def _transposed(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer as ``addmm`` takes them fastest when rows are few."""
    return linear.weight.t().contiguous(), linear.bias


def _settings(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    """What ``torch.layer_norm`` takes beside the features."""
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps
