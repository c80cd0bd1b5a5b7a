"""A pass of a trunk that takes positions as they come, and keeps the keys and values of those that it has seen."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ncml.densities.transformer.blocks import Block, Trunk, modulated

__all__ = ["CachedPass"]


class CachedPass:
    """One pass over sequences, in eval mode and without gradients; its state is its own.

    Args:
        trunk: The trunk.
        conditioning: ``(B, conditioning)``.
        length: Number of positions that there will be at most.
    """

    def __init__(self, trunk: Trunk, conditioning: Tensor, length: int) -> None:
        self.trunk = trunk
        self.blocks = [cast(Block, block) for block in trunk.stack]
        *modulations, last = trunk.modulations(conditioning)
        self.modulations = [modulation.unbind(1) for modulation in modulations]
        self.last = last.unbind(1)
        size = (len(conditioning), self.blocks[0].heads, length, trunk.width // self.blocks[0].heads)
        self.keys, self.values = ([conditioning.new_empty(size) for _ in self.blocks] for _ in range(2))
        self.position = 0

    def extend(self, h: Tensor) -> Tensor:
        """What the trunk makes of further positions.

        Args:
            h: Their features, ``(B, l, width)``; a single position, unless the pass has seen none yet.

        Returns:
            Tensor ``(B, l, width)``.
        """
        start, stop = self.position, self.position + h.shape[1]
        rotation = self.trunk.rotation(start, stop)
        layers = zip(self.blocks, self.modulations, self.keys, self.values, strict=True)
        for block, (shift, scale, gate, *second), keys, values in layers:
            query, key, value = block.split(modulated(h, shift, scale), rotation)
            keys[:, :, start:stop] = key
            values[:, :, start:stop] = value
            # The last position sees all of them; of several ones each sees those up to its own.
            seen = F.scaled_dot_product_attention(
                query, keys[:, :, :stop], values[:, :, :stop], is_causal=h.shape[1] > 1
            )
            h = block.perceptron(torch.addcmul(h, gate, block.merge(seen)), *second)
        self.position = stop
        return modulated(h, *self.last)
