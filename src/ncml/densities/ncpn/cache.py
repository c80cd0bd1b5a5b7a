r"""Sampling from a pixel network with every feature computed once.

The vertical stream is computed a row at a time and the horizontal one a pixel at a time, at coarser
resolutions only where their grid has a point; what a window or an attention looks back at is kept.
What a pixel takes from the row above it and from the vertical stream is computed for the row at once.
The arithmetic is that of one pass over the image, and so are the values.

The state belongs to one :class:`CachedPass`; the network keeps nothing.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.densities.ncpn.blocks import AxialAttention, CausalConv, GatedBlock, Upsample, concat_elu
from ncml.densities.ncpn.network import PixelLevel, PixelNetwork

__all__ = ["CachedPass"]


class CachedPass:
    """One pass over images, row by row and pixel by pixel.

    For every row call :meth:`start_row`, then :meth:`outputs` for each of its pixels in turn, writing
    the pixel into ``x`` before the next. Rows that are there already can be taken in by :meth:`fill` first.

    Args:
        network: The network, in eval mode.
        x: The images that are being written, ``(B, C, H, W)``.
        conditioning: Conditioning vectors, ``(B, E)``.
    """

    def __init__(self, network: PixelNetwork, x: Tensor, conditioning: Tensor) -> None:
        self.network, self.x, self.conditioning = network, x, conditioning
        batch, _, height, width = x.shape
        self.ones = x.new_ones(batch, 1, 1, width)
        self.level = _Level(network.level, batch, height, width, conditioning)
        self.left_above, self.left = network.first_left.weight[..., 0].permute(2, 1, 0)  # (C + 1, F) each
        self.out = network.out.weight.t()

    def fill(self, rows: int) -> None:
        """Pass over the first rows of ``x``, all at once; the next row to start is ``rows``."""
        if rows:
            coarsest = 2 ** (self.network.resolutions - 1)
            known = F.pad(self.x[:, :, :rows], (0, 0, 0, -rows % coarsest))  # what is below cannot be seen
            self.level.fill(*self.network.first(known), rows)

    def start_row(self, r: int) -> None:
        """Compute the vertical stream of row ``r``, from the rows above it."""
        above = F.pad(self._rows(r - 2, 2), (0, 0, 1, 1))  # a column of padding on either side
        u = self.network.first_vertical(above, padded=True)
        h = self.network.first_above(above[:, 1:], padded=True)[:, 0] + self.network.first_left.bias
        h[:, 1:] += above[:, 1, 1:-2] @ self.left_above + self.left[-1]  # and the ones of the pixel to the left
        self.h = h.unbind(1)
        self.level.row(r, u)

    def outputs(self, r: int, c: int) -> Tensor:
        """Outputs of the pixel at ``(r, c)``, ``(B, outputs)``."""
        h = torch.addmm(self.h[c], self.x[:, :, r, c - 1], self.left[:-1]) if c else self.h[c]
        return torch.addmm(self.network.out.bias, F.elu(self.level.pixel(r, c, h)), self.out)

    def _rows(self, top: int, count: int) -> Tensor:
        """Pixels and ones of ``count`` rows from ``top`` on, ``(B, count, W, C + 1)``; zeros above the image."""
        first = max(top, 0)
        pixels = self.x[:, :, first : top + count]
        rows = torch.cat([pixels, self.ones.expand(-1, -1, pixels.shape[2], -1)], dim=1).permute(0, 2, 3, 1)
        return F.pad(rows, (0, 0, 0, 0, count - rows.shape[1], 0))


class _Level:
    """The state of both streams at one resolution."""

    def __init__(self, level: PixelLevel, batch: int, height: int, width: int, e: Tensor) -> None:
        self.level = level
        self.coarser = None if level.coarser is None else _Level(level.coarser, batch, height // 2, width // 2, e)
        vertical, horizontal = level.vertical, level.horizontal
        sizes = (batch, height, width)
        self.u_up = [_RowBlock(cast(GatedBlock, b), e, *sizes) for b in vertical.up]
        self.u_down = [_RowBlock(cast(GatedBlock, b), e, *sizes) for b in vertical.down]
        self.h_up = [_PixelBlock(cast(GatedBlock, b), e, *sizes) for b in horizontal.up]
        self.h_down = [_PixelBlock(cast(GatedBlock, b), e, *sizes) for b in horizontal.down]
        if self.coarser is not None:
            self.u_downsample = _RowConv(cast(CausalConv, vertical.downsample))
            self.h_downsample = _PixelConv(cast(CausalConv, horizontal.downsample), batch, width)
            self.u_upsample, self.h_upsample = cast(Upsample, vertical.upsample), cast(Upsample, horizontal.upsample)
            weight = self.h_upsample.weight
            self.h_upsample_weight = weight.permute(0, 2, 3, 1).flatten(1)  # (in, 2 * 2 * out)
            self.u_parked = self.h_parked = e.new_empty(batch, 2, width, weight.shape[1])

    def row(self, r: int, u: Tensor) -> Tensor:
        """Vertical features of row ``r``, ``(B, 1, W, F)``, from those that enter this resolution."""
        active = concat_elu(u)
        skips = [active]
        for block, horizontal in zip(self.u_up, self.h_up, strict=True):
            u = block(r, u, active, [])
            active = concat_elu(u)
            skips.append(active)
            horizontal.start_row(active)
        if self.coarser is None:
            skips.pop()
        else:
            coarse = self.u_downsample(u)
            if r % 2 == 0:
                self.h_downsample.start_row(None)
                self.u_parked = self.u_upsample(self.coarser.row(r // 2, coarse))
            u = self.u_parked[:, r % 2 : r % 2 + 1]
            active = concat_elu(u)
        for block, horizontal in zip(self.u_down, self.h_down, strict=True):
            u = block(r, u, active, [skips.pop()])
            active = concat_elu(u)
            horizontal.start_row(active)
        return u

    def pixel(self, r: int, c: int, h: Tensor) -> Tensor:
        """Horizontal features of the pixel at ``(r, c)``, ``(B, F)``, from those that enter."""
        skips: list[Tensor] = []
        for block in self.h_up:
            h, active = block(r, c, h, None)
            skips.append(active)
        if self.coarser is not None:
            skips.append(concat_elu(h))
            self.h_downsample.slots[c].copy_(h)
            if r % 2 == 0 and c % 2 == 0:
                coarse = self.coarser.pixel(r // 2, c // 2, self.h_downsample(c))
                self.h_parked[:, :, c : c + 2] = self._upsampled_pixels(coarse)
            h = self.h_parked[:, r % 2, c]
        for block in self.h_down:
            h, _ = block(r, c, h, skips.pop())
        return h

    def _upsampled_pixels(self, h: Tensor) -> Tensor:
        """The four pixels that come from one, ``(B, 2, 2, F)``."""
        return (h @ self.h_upsample_weight).unflatten(1, (2, 2, -1)) + self.h_upsample.bias

    def fill(self, u: Tensor, h: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Both streams through this resolution as in one pass, keeping what the row after ``rows`` looks at."""
        level = self.level
        active_u, active_h = level.activate(u, h)
        skips = [(active_u, active_h)]
        for block_u, block_h in zip(self.u_up, self.h_up, strict=True):
            u, active_u = block_u.fill(u, active_u, [], rows)
            h, active_h = block_h.fill(h, active_h, [active_u], rows)
            skips.append((active_u, active_h))
        if self.coarser is None:
            skips.pop()
        else:
            last = rows - 1
            self.u_downsample.before = F.pad(u[:, last : last + 1], (0, 0, 1, 1))
            self.h_downsample.buffer[:, 1:] = h[:, last]
            coarse = cast(CausalConv, level.vertical.downsample)(u), cast(CausalConv, level.horizontal.downsample)(h)
            coarse_u, coarse_h = self.coarser.fill(*coarse, (rows + 1) // 2)
            u, h = self.u_upsample(coarse_u), self.h_upsample(coarse_h)
            top = last - last % 2
            self.u_parked, self.h_parked = u[:, top : top + 2], h[:, top : top + 2]
            active_u, active_h = level.activate(u, h)
        for block_u, block_h in zip(self.u_down, self.h_down, strict=True):
            skip_u, skip_h = skips.pop()
            u, active_u = block_u.fill(u, active_u, [skip_u], rows)
            h, active_h = block_h.fill(h, active_h, [active_u, skip_h], rows)
        return u, h


class _RowConv:
    """A convolution of the vertical stream, one row after the other."""

    def __init__(self, conv: CausalConv) -> None:
        self.conv = conv
        self.before: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Take in the next row and give the output there (at stride 2 used for even rows only)."""
        row = F.pad(x, (0, 0, 1, 1))
        before = torch.zeros_like(row) if self.before is None else self.before
        self.before = row
        return cast(Tensor, self.conv(torch.cat([before, row], dim=1), padded=True))


class _PixelConv:
    """A 2x2 convolution of the horizontal stream, one pixel after the other, as one matrix product.

    Kept as ``(B, W + 1, F)``, the features of the present row after a column of zeros, so that the window of
    a pixel is a view of the buffer. At these sizes a copy costs as much as the product.
    """

    def __init__(self, conv: CausalConv, batch: int, width: int) -> None:
        self.stride, self.bias = conv.stride, conv.bias
        self.above = conv.weight[:, :, :1].to(memory_format=torch.channels_last)
        self.here = conv.weight[:, :, 1].permute(2, 1, 0).flatten(0, 1)  # (2 * in, out), columns first
        self.buffer = conv.weight.new_zeros(batch, width + 1, conv.weight.shape[1])
        self.slots = self.buffer[:, 1:].unbind(1)  # where to write the features of a column
        self.windows = [self.buffer[:, c : c + 2].flatten(1) for c in range(width)]

    def start_row(self, more: Tensor | None) -> None:
        """Take what the finished row brings to the next one, and what else is known of that, ``(B, W, out)``."""
        above = self.buffer.unsqueeze(1).permute(0, 3, 1, 2)
        y = F.conv2d(above, self.above, self.bias, (1, self.stride)).permute(0, 2, 3, 1)[:, 0]
        self.known = (y if more is None else y + more).unbind(1)

    def __call__(self, c: int) -> Tensor:
        """The output at column ``c`` of the present row, once its own features are in."""
        return torch.addmm(self.known[c // self.stride], self.windows[c], self.here)


def _concat_elu_into(slot: Tensor, x: Tensor) -> Tensor:
    """``concat_elu(x)``, written where it is needed."""
    torch.cat([x, -x], dim=-1, out=slot)
    return F.elu(slot, inplace=True)


class _RowBlock:
    """A block of the vertical stream, one row after the other."""

    def __init__(self, block: GatedBlock, e: Tensor, batch: int, height: int, width: int) -> None:
        self.block, self.e = block, e
        self.conv_in, self.conv_out = _RowConv(block.conv_in), _RowConv(block.conv_out)
        self.shift = block.condition(e)[:, None, None]
        self.row, self.column = None, None
        if block.attention:
            self.row, column = cast("list[AxialAttention]", block.attention)
            self.column = _Keys(column, 1, height, batch * width)

    def __call__(self, r: int, x: Tensor, active: Tensor, skips: list[Tensor]) -> Tensor:
        h = self.conv_in(active) + self.shift
        for linear, skip in zip(self.block.skips, skips, strict=True):
            h = h + linear(skip)
        x = self.block.gate(x, self.conv_out(concat_elu(h)))
        if self.row is None or self.column is None:
            return x
        x = self.row(x)  # a row of the vertical stream is known whole
        return self.column(0, r, x.flatten(0, 2)).view(x.shape)

    def fill(self, x: Tensor, active: Tensor, skips: list[Tensor], rows: int) -> tuple[Tensor, Tensor]:
        """The block on rows at once, keeping the last of ``rows``."""
        second, h = self.block.residual(active, skips, self.e)
        self.conv_in.before, self.conv_out.before = (z[:, rows : rows + 1] for z in (active, second))
        x = self.block.gate(x, h)
        if self.row is not None and self.column is not None:
            x = self.column.fill(self.row(x), rows)
        return x, self.block.activate(x)


class _PixelBlock:
    """A block of the horizontal stream, one pixel after the other."""

    def __init__(self, block: GatedBlock, e: Tensor, batch: int, height: int, width: int) -> None:
        self.block, self.e = block, e
        self.conv_in, self.conv_out = (_PixelConv(conv, batch, width) for conv in (block.conv_in, block.conv_out))
        self.shift = block.condition(e)[:, None]
        self.vertical = cast(nn.Linear, block.skips[0])
        self.skip = cast(nn.Linear, block.skips[1]).weight.t() if len(block.skips) > 1 else None
        self.row, self.columns = None, None
        if block.attention:
            row, column = cast("list[AxialAttention]", block.attention)
            self.row, self.columns = _Keys(row, 1, width, batch), _Keys(column, width, height, batch)

    def start_row(self, active: Tensor) -> None:
        """Take what this row of the vertical stream and the row above bring, for all pixels."""
        self.conv_in.start_row(self.vertical(active[:, 0]) + self.shift)
        self.conv_out.start_row(None)

    def __call__(self, r: int, c: int, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
        """New features from ``x``, and the ``concat_elu`` of ``x``."""
        active = _concat_elu_into(self.conv_in.slots[c], x)
        h = self.conv_in(c)
        if skip is not None and self.skip is not None:
            h.addmm_(skip, self.skip)
        _concat_elu_into(self.conv_out.slots[c], h)
        x = self.block.gate(x, self.conv_out(c))
        if self.row is not None and self.columns is not None:
            x = self.columns(c, r, self.row(0, c, x))
        return x, active

    def fill(self, x: Tensor, active: Tensor, skips: list[Tensor], rows: int) -> tuple[Tensor, Tensor]:
        """The block on rows at once, keeping the last of ``rows``."""
        second, h = self.block.residual(active, skips, self.e)
        self.conv_in.buffer.copy_(active[:, rows])  # with its padding, which is one row above and one column left
        self.conv_out.buffer.copy_(second[:, rows])
        x = self.block.gate(x, h)
        if self.row is not None and self.columns is not None:
            x = self.columns.fill(cast(Tensor, self.row.attention(x)), rows)
        return x, self.block.activate(x)


class _Keys:
    """Keys and values of the positions so far along an axis, for each of several groups of lines.

    Args:
        attention: Where they come from.
        groups: Number of groups that are attended to one at a time.
        length: Positions of a line.
        lines: Lines in a group.
    """

    def __init__(self, attention: AxialAttention, groups: int, length: int, lines: int) -> None:
        self.attention, self.heads = attention, attention.heads
        features = attention.out.in_features
        # Lines last, where vectors run: for one query per line, sums are faster than a product of matrices.
        self.stored = attention.out.weight.new_empty(2, groups, length, self.heads, features // self.heads, lines)
        self.groups = self.stored.unbind(1)
        self.qkv, self.out = attention.qkv.weight.clone(), attention.out.weight.t()
        self.qkv[:features] *= (features // self.heads) ** -0.5

    def __call__(self, group: int, position: int, x: Tensor) -> Tensor:
        """Attend from ``position`` to it and all before it, and merge with ``x``, ``(lines, F)``."""
        stored = self.groups[group]
        norm = self.attention.norm
        normed = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        qkv = torch.mm(self.qkv, normed.t()).view(3, *stored.shape[2:])
        stored[:, position] = qkv[1:]
        keys, values = stored[:, : position + 1]
        weights = (keys * qkv[0]).sum(2, keepdim=True).softmax(0)
        attended = (values * weights).sum(0).flatten(0, 1).t()
        return torch.addmm(x, attended, self.out, beta=math.sqrt(0.5), alpha=math.sqrt(0.5))

    def fill(self, x: Tensor, rows: int) -> Tensor:
        """The attention on ``(B, H, W, F)`` at once, keeping what belongs to the first rows."""
        _, k, v = self.attention.project(x[:, :rows])
        for stored, z in zip(self.stored, (k, v), strict=True):
            to = stored[:, :rows]
            to.copy_(z.permute((2, 1, 3, 4, 0) if len(to) > 1 else (1, 3, 4, 0, 2)).reshape(to.shape))
        return cast(Tensor, self.attention(x))
