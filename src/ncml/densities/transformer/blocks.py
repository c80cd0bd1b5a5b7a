r"""The trunk of a causal transformer, on features in the layout ``(B, l, width)``.

Pre-norm blocks of attention and a perceptron (Radford et al., 2019) with rotary positions (Su et al., 2021),
modulated by the conditioning as in DiT (Peebles and Xie, 2023): with shift b, scale a and gate g of each row,

.. math:: h \leftarrow h + g \odot f\bigl((1 + a) \odot \text{norm}(h) + b\bigr).

Shifts, scales and gates start at zero, so that a new trunk passes on its inputs. The norm is over the features of
one position: a statistic over time would mix what comes before with what comes after.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ncml.checks import check_count, check_probability
from ncml.errors import ArgumentError
from ncml.nn.elementary import attention

__all__ = ["Block", "Rotation", "Trunk", "check_sizes"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of some positions, ``(l, width / heads / 2)`` each."""

ROTARY_BASE = 10_000.0
"""Ratio of the longest to the shortest wavelength of the rotary positions, as published."""

EPSILON = 1e-5
"""Added to the mean square of features before its root is taken."""

BRANCHES = 6
"""Vectors that modulate a block: shift, scale and gate of its attention, and of its perceptron."""


class Block(nn.Module):
    """Attention to the present and to earlier positions, then a perceptron.

    Linear layers have no bias; the shifts before them serve.

    Args:
        width: Number of features.
        heads: Attention heads, of an even width each.
        dropout: Probability of dropping a feature of either branch while training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(width, 3 * width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, modulation: Tensor, rotation: Rotation) -> Tensor:
        """Features of all positions.

        Args:
            h: Features, ``(B, l, width)``.
            modulation: ``(B, 6, 1, width)``, in the order of ``BRANCHES``.
            rotation: Of the l positions.
        """
        shift, scale, gate, *second = modulation.unbind(1)
        query, key, value = self.split(modulated(h, shift, scale), rotation)
        seen = attention(query, key, value)
        h = torch.addcmul(h, gate, self.merge(seen))
        return self.perceptron(h, *second)

    def split(self, h: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(B, heads, l, width / heads)``; the first two rotated to their positions."""
        query, key, value = self.enter(h).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return rotated(query, rotation), rotated(key, rotation), value

    def merge(self, seen: Tensor) -> Tensor:
        """What attention adds to the features, from ``(B, heads, l, width / heads)``."""
        added: Tensor = self.leave(seen.transpose(1, 2).flatten(2))
        return self._dropped(added)

    def perceptron(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """The second branch, and the features with it."""
        added = self.down(F.gelu(self.up(modulated(h, shift, scale))))
        return torch.addcmul(h, gate, self._dropped(added))

    def _dropped(self, h: Tensor) -> Tensor:
        return self.dropout(h) if self.dropout.p > 0.0 else h


class Trunk(nn.Module):
    """Blocks, the vectors that modulate them, and the norm after them.

    Args:
        length: Largest number of positions.
        width: Number of features.
        layers: Number of blocks.
        heads: Attention heads, of an even width each.
        conditioning: Width of the conditioning vector.
        dropout: Probability of dropping a feature of a branch while training.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, length: int, width: int, layers: int, heads: int, conditioning: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.stack = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.modulate = nn.Linear(conditioning, (BRANCHES * layers + 2) * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.recompute = False
        pairs = width // heads // 2
        frequencies = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)
        angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequencies
        # No part of the state: weights of one length serve at any other.
        for name, table in (("cosines", angles.cos()), ("sines", angles.sin())):
            self.register_buffer(name, table.to(self.modulate.weight), persistent=False)

    def forward(self, h: Tensor, conditioning: Tensor) -> Tensor:
        """Features of all positions, each from its own and earlier ones.

        Args:
            h: Features, ``(B, l, width)``.
            conditioning: ``(B, conditioning)``.
        """
        *modulations, last = self.modulations(conditioning)
        rotation = self.rotation(0, h.shape[1])
        for block, modulation in zip(self.stack, modulations, strict=True):
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, modulation, rotation, use_reentrant=False)
            else:
                h = block(h, modulation, rotation)
        return modulated(h, *last.unbind(1))

    def modulations(self, conditioning: Tensor) -> list[Tensor]:
        """Of every block ``(B, 6, 1, width)``, and of the last norm ``(B, 2, 1, width)``, in full precision."""
        with torch.autocast(conditioning.device.type, enabled=False):
            vectors = self.modulate(conditioning.to(self.modulate.weight.dtype)).unflatten(1, (-1, 1, self.width))
        return list(vectors.split([BRANCHES] * len(self.stack) + [2], dim=1))

    def rotation(self, start: int, stop: int) -> Rotation:
        """The rotation of positions ``start`` to ``stop``."""
        return self.cosines[start:stop], self.sines[start:stop]


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The features of each position, normalised (RMS; Zhang and Sennrich, 2019), scaled and shifted.

    In elementary operations, at no cost in time on a CPU: they can be differentiated any number of times, where the
    third derivative of torch's ``layer_norm``, on which training by sliced score matching depends, is wrong (2.13).
    """
    size = torch.rsqrt(h.square().mean(-1, keepdim=True) + EPSILON)
    return torch.addcmul(shift, 1.0 + scale, h * size)


def rotated(h: Tensor, rotation: Rotation) -> Tensor:
    """Pairs of features turned by the angles of their positions, ``(B, heads, l, D)``, in the precision of ``h``."""
    cosines, sines = rotation
    first, second = h.chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
    return turned.to(h.dtype)


def check_sizes(
    shape: tuple[int, ...], width: int, layers: int, heads: int, dropout: float, label_dropout: float
) -> tuple[int, int, int]:
    """Refuse sizes that the architecture cannot have; returns width, layers and heads."""
    if len(shape) != 2:
        raise ArgumentError(f"event_shape: got {shape}; expected (L, C), positions and channels")
    layers, heads = check_count(layers, "layers"), check_count(heads, "heads")
    width = check_count(width, "width", minimum=2)
    if width % (2 * heads):
        raise ArgumentError(f"width: got {width}; expected a multiple of twice the heads, {2 * heads}")
    check_probability(dropout, "dropout")
    check_probability(label_dropout, "label_dropout")
    return width, layers, heads
