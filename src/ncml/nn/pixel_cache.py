r"""Sampling from a pixel network with every feature computed once.

The vertical stream is computed a row at a time and the horizontal one a pixel at a time, at coarser
resolutions only where their grid has a point; what a window or an attention looks back at is kept.
The arithmetic is that of one pass over the image, and so are the values.

The state belongs to one :class:`CachedPass`; the network keeps nothing.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.nn.pixel_network import PixelLevel, PixelNetwork
from ncml.nn.pixelcnn import AxialAttention, CausalConv, GatedBlock, Upsample, concat_elu

__all__ = ["CachedPass"]


class CachedPass:
    """One pass over images, row by row and pixel by pixel.

    For every row call :meth:`start_row`, then :meth:`outputs` for each of its pixels in turn, writing
    the pixel into ``x`` before the next; or :meth:`known_row` for a row that is there already.

    Args:
        network: The network, in eval mode.
        x: The images that are being written, ``(B, C, H, W)``.
        conditioning: Conditioning vectors, ``(B, E)``.
    """

    def __init__(self, network: PixelNetwork, x: Tensor, conditioning: Tensor) -> None:
        self.network, self.x = network, x
        batch, _, _, width = x.shape
        self.ones = x.new_ones(batch, 1, 1, width)
        self.level = _Level(network.level, batch, x.shape[2], width, conditioning)

    def _rows(self, top: int, count: int) -> Tensor:
        """Pixels and ones of ``count`` rows from ``top`` on, ``(B, count, W, C + 1)``; zeros above the image."""
        first = max(top, 0)
        pixels = self.x[:, :, first : top + count]
        rows = torch.cat([pixels, self.ones.expand(-1, -1, pixels.shape[2], -1)], dim=1).permute(0, 2, 3, 1)
        return F.pad(rows, (0, 0, 0, 0, count - rows.shape[1], 0))

    def start_row(self, r: int) -> None:
        """Compute the vertical stream of row ``r``, from the rows above it."""
        above = F.pad(self._rows(r - 2, 2), (0, 0, 1, 1))  # a column of padding on either side
        u = _window(self.network.first_vertical, above)
        self.above = _window(self.network.first_above, above[:, 1:])[:, 0]
        self.level.row(r, u)

    def outputs(self, r: int, c: int) -> Tensor:
        """Outputs of the pixel at ``(r, c)``, ``(B, outputs)``."""
        rows = self._rows(r - 1, 2)
        left = rows[:, :, c - 1 : c] if c else torch.zeros_like(rows[:, :, :1])
        h = self.above[:, c] + _window(self.network.first_left, left)[:, 0, 0]
        h = self.level.pixel(r, c, h)
        return cast(Tensor, self.network.out(F.elu(h)))

    def known_row(self, r: int) -> None:
        """Pass over a row that needs no outputs."""
        for c in range(self.x.shape[3]):
            self.outputs(r, c)


def _window(conv: CausalConv, x: Tensor) -> Tensor:
    """The convolution of features that carry their padding already."""
    y = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, conv.stride)
    return y.permute(0, 2, 3, 1)


class _Level:
    """The state of both streams at one resolution."""

    def __init__(self, level: PixelLevel, batch: int, height: int, width: int, e: Tensor) -> None:
        self.coarser = None if level.coarser is None else _Level(level.coarser, batch, height // 2, width // 2, e)
        vertical, horizontal = level.vertical, level.horizontal
        self.u_up = [_RowBlock(cast(GatedBlock, b), e, height) for b in vertical.up]
        self.u_down = [_RowBlock(cast(GatedBlock, b), e, height) for b in vertical.down]
        self.h_up = [_PixelBlock(cast(GatedBlock, b), e, height, width) for b in horizontal.up]
        self.h_down = [_PixelBlock(cast(GatedBlock, b), e, height, width) for b in horizontal.down]
        if self.coarser is not None:
            self.u_downsample = _RowConv(cast(CausalConv, vertical.downsample))
            self.h_downsample = _PixelConv(cast(CausalConv, horizontal.downsample), batch, width)
            self.u_upsample, self.h_upsample = cast(Upsample, vertical.upsample), cast(Upsample, horizontal.upsample)
            weight = self.h_upsample.weight
            self.h_upsample_weight = weight.permute(0, 2, 3, 1).flatten(1)  # (in, 2 * 2 * out)
            self.h_parked = e.new_empty(batch, 2, width, weight.shape[1])

    def row(self, r: int, u: Tensor) -> Tensor:
        """Vertical features of row ``r``, ``(B, 1, W, F)``, from those that enter this resolution."""
        active = concat_elu(u)
        skips = [active]
        self.up_rows = []  # what the horizontal stream takes from this row
        for block in self.u_up:
            u = block(r, u, active, [])
            active = concat_elu(u)
            skips.append(active)
            self.up_rows.append(active[:, 0])
        if self.coarser is None:
            skips.pop()
        else:
            coarse = self.u_downsample(r, u)
            if r % 2 == 0:
                self.u_parked = self.u_upsample(self.coarser.row(r // 2, coarse))
            u = self.u_parked[:, r % 2 : r % 2 + 1]
            active = concat_elu(u)
        self.down_rows = []
        for block in self.u_down:
            u = block(r, u, active, [skips.pop()])
            active = concat_elu(u)
            self.down_rows.append(active[:, 0])
        return u

    def pixel(self, r: int, c: int, h: Tensor) -> Tensor:
        """Horizontal features of the pixel at ``(r, c)``, ``(B, F)``, from those that enter."""
        skips: list[Tensor] = []
        for block, row in zip(self.h_up, self.up_rows, strict=True):
            h, active = block(r, c, h, [row[:, c]])
            skips.append(active)
        if self.coarser is not None:
            skips.append(concat_elu(h))
            self.h_downsample.slot(r, c).copy_(h)
            if r % 2 == 0 and c % 2 == 0:
                coarse = self.coarser.pixel(r // 2, c // 2, self.h_downsample(c))
                self.h_parked[:, :, c : c + 2] = self._upsampled_pixels(coarse)
            h = self.h_parked[:, r % 2, c]
        for block, row in zip(self.h_down, self.down_rows, strict=True):
            h, _ = block(r, c, h, [row[:, c], skips.pop()])
        return h

    def _upsampled_pixels(self, h: Tensor) -> Tensor:
        """The four pixels that come from one, ``(B, 2, 2, F)``."""
        return (h @ self.h_upsample_weight).unflatten(1, (2, 2, -1)) + self.h_upsample.bias


class _RowConv:
    """A convolution of the vertical stream, one row after the other."""

    def __init__(self, conv: CausalConv) -> None:
        self.conv = conv
        self.before: Tensor | None = None

    def __call__(self, r: int, x: Tensor) -> Tensor:
        """Take in row ``r`` and give the output there (at stride 2 used for even rows only)."""
        row = F.pad(x, (0, 0, 1, 1))
        before = torch.zeros_like(row) if self.before is None else self.before
        self.before = row
        return _window(self.conv, torch.cat([before, row], dim=1))


class _PixelConv:
    """A 2x2 convolution of the horizontal stream, one pixel after the other, as one matrix product.

    Kept as ``(B, W + 1, 2 F)``, for every column the features above and those here, so that the window of
    a pixel is a view of the buffer. At these sizes a copy costs as much as the product.
    """

    def __init__(self, conv: CausalConv, batch: int, width: int, bias: Tensor | None = None) -> None:
        self.weight = conv.weight.permute(3, 2, 1, 0).flatten(0, 2)  # (2 * 2 * in, out), columns first
        self.bias = conv.bias if bias is None else bias
        self.features = conv.weight.shape[1]
        self.buffer = conv.weight.new_zeros(batch, width + 1, 2 * self.features)  # zeros left of the image
        self.row = 0

    def slot(self, r: int, c: int) -> Tensor:
        """Where to write the features at ``(r, c)``, ``(B, F)``."""
        if r != self.row:  # what was here is now above
            self.buffer[..., : self.features] = self.buffer[..., self.features :]
            self.row = r
        return self.buffer[:, c + 1, self.features :]

    def __call__(self, c: int) -> Tensor:
        """The output in column ``c`` of the present row, once its own features are in."""
        return torch.addmm(self.bias, self.buffer[:, c : c + 2].flatten(1), self.weight)


def _concat_elu_into(slot: Tensor, x: Tensor) -> Tensor:
    """``concat_elu(x)``, written where it is needed."""
    torch.cat([x, -x], dim=-1, out=slot)
    return F.elu(slot, inplace=True)


class _RowBlock:
    """A block of the vertical stream, one row after the other."""

    def __init__(self, block: GatedBlock, e: Tensor, height: int) -> None:
        self.block = block
        self.conv_in, self.conv_out = _RowConv(block.conv_in), _RowConv(block.conv_out)
        self.shift = block.condition(e)[:, None, None]
        self.column = _Keys(height)

    def __call__(self, r: int, x: Tensor, active: Tensor, skips: list[Tensor]) -> Tensor:
        h = self.conv_in(r, active) + self.shift
        h = self.conv_out(r, concat_elu(self.block.add_skips(h, skips)))
        x = self.block.gate(x, h)
        for attention in _attentions(self.block):
            if attention.axis == "row":  # a row of the vertical stream is known whole
                x = cast(Tensor, attention(x))
            else:
                q, k, v = (z.flatten(0, 2) for z in attention.project(x))  # (B * W, heads, d)
                x = attention.merge(x, self.column(r, q, k, v).reshape(x.shape))
        return x


class _PixelBlock:
    """A block of the horizontal stream, one pixel after the other."""

    def __init__(self, block: GatedBlock, e: Tensor, height: int, width: int) -> None:
        self.block = block
        shift = block.condition(e) + block.conv_in.bias
        self.conv_in = _PixelConv(block.conv_in, len(e), width, shift)
        self.conv_out = _PixelConv(block.conv_out, len(e), width)
        self.skips = [cast(nn.Linear, linear).weight.t() for linear in block.skips]
        self.row = _Keys(width)
        self.columns = [_Keys(height) for _ in range(width)]

    def __call__(self, r: int, c: int, x: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        """New features from ``x``, and the ``concat_elu`` of ``x``."""
        active = _concat_elu_into(self.conv_in.slot(r, c), x)
        h = self.conv_in(c)
        for weight, skip in zip(self.skips, skips, strict=True):
            h.addmm_(skip, weight)
        _concat_elu_into(self.conv_out.slot(r, c), h)
        x = self.block.gate(x, self.conv_out(c))
        for attention in _attentions(self.block):
            keys, position = (self.row, c) if attention.axis == "row" else (self.columns[c], r)
            x = attention.merge(x, keys(position, *attention.project(x)))
        return x, active


class _Keys:
    """Keys and values of the positions so far along one axis."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.stored: Tensor | None = None

    def __call__(self, position: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from ``position`` to it and all before it; ``(N, heads, d)`` to ``(N, heads * d)``."""
        if self.stored is None:
            n, heads, d = q.shape
            self.stored = q.new_empty(2, n, heads, self.length, d)
        self.stored[0, ..., position, :] = k
        self.stored[1, ..., position, :] = v
        keys, values = self.stored[..., : position + 1, :]
        return F.scaled_dot_product_attention(q.unsqueeze(-2), keys, values).flatten(1)


def _attentions(block: GatedBlock) -> list[AxialAttention]:
    return cast("list[AxialAttention]", block.attention)
