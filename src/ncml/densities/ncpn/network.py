"""The two-stream pixel network: PixelCNN++'s U-shape, with the conditioning and attention in every block."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ncml.densities.ncpn.blocks import (
    HORIZONTAL,
    VERTICAL,
    AxialAttention,
    CausalConv,
    GatedBlock,
    Upsample,
    padded_concat_elu,
)

__all__ = ["PixelLevel", "PixelNetwork"]


class Stream(nn.Module):
    """One stream at one resolution: blocks on the way up and down, and the steps to the next resolution."""

    def __init__(
        self,
        vertical: bool,
        up: int,
        down: int,
        features: int,
        heads: int,
        conditioning: int,
        dropout: float,
        more: bool,
    ) -> None:
        super().__init__()
        kernel, padding = VERTICAL if vertical else HORIZONTAL

        def block(skips: int) -> GatedBlock:
            # A row of the vertical stream is known whole, so it may attend to all of itself.
            kinds = [("row", not vertical), ("column", True)] if heads else []
            attention = [AxialAttention(features, heads, axis, causal) for axis, causal in kinds]
            return GatedBlock(features, kernel, padding, skips, conditioning, dropout, attention)

        self.up = nn.ModuleList([block(0 if vertical else 1) for _ in range(up)])
        self.down = nn.ModuleList([block(1 if vertical else 2) for _ in range(down)])
        self.downsample = CausalConv(features, features, kernel, padding, stride=2) if more else None
        self.upsample = Upsample(features, kernel[1]) if more else None


class PixelLevel(nn.Module):
    """Both streams at one resolution, and the coarser resolutions inside."""

    def __init__(
        self, resolutions: int, blocks: int, features: int, heads: int, conditioning: int, dropout: float
    ) -> None:
        super().__init__()
        more = resolutions > 1
        # At the coarsest level the last features going up are the first going down, not a skip.
        down = blocks + 1 if more else blocks
        sizes = (blocks, down, features, heads, conditioning, dropout, more)
        self.vertical, self.horizontal = Stream(True, *sizes), Stream(False, *sizes)
        self.coarser = PixelLevel(resolutions - 1, blocks, features, heads, conditioning, dropout) if more else None

    def forward(self, u: Tensor, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal features through this and all coarser resolutions."""
        active_u, active_h = self.activate(u, h)
        skips = [(active_u, active_h)]
        for up_u, up_h in zip(self.vertical.up, self.horizontal.up, strict=True):
            u, active_u = up_u(u, active_u, [], e)
            h, active_h = up_h(h, active_h, [active_u], e)
            skips.append((active_u, active_h))
        if self.coarser is None:
            skips.pop()
        else:
            coarse_u = cast(CausalConv, self.vertical.downsample)(u)
            coarse_h = cast(CausalConv, self.horizontal.downsample)(h)
            coarse_u, coarse_h = self.coarser(coarse_u, coarse_h, e)
            u, h = cast(Upsample, self.vertical.upsample)(coarse_u), cast(Upsample, self.horizontal.upsample)(coarse_h)
            active_u, active_h = self.activate(u, h)
        for down_u, down_h in zip(self.vertical.down, self.horizontal.down, strict=True):
            skip_u, skip_h = skips.pop()
            u, active_u = down_u(u, active_u, [skip_u], e)
            h, active_h = down_h(h, active_h, [active_u, skip_h], e)
        return u, h

    @staticmethod
    def activate(u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``concat_elu`` of both streams, inside the padding of their convolutions."""
        return padded_concat_elu(u, VERTICAL[1]), padded_concat_elu(h, HORIZONTAL[1])


class PixelNetwork(nn.Module):
    """Outputs for every pixel from the pixels before it, in row-major order.

    Args:
        channels: Channels of the image.
        outputs: Outputs per pixel.
        resolutions: Number of resolutions; height and width are divisible by ``2 ** (resolutions - 1)``.
        blocks: Blocks per resolution and stream.
        features: Number of features.
        heads: Attention heads after each block; 0 for no attention.
        conditioning: Width of the conditioning vector.
        dropout: Dropout inside the blocks.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        resolutions: int,
        blocks: int,
        features: int,
        heads: int,
        conditioning: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        inputs = channels + 1  # and a channel of ones, which tells the image from its padding
        self.first_vertical = CausalConv(inputs, features, (2, 3), (2, -1, 1, 1))
        self.first_above = CausalConv(inputs, features, (1, 3), (1, -1, 1, 1))
        self.first_left = CausalConv(inputs, features, (2, 1), (1, 0, 1, -1))
        self.level = PixelLevel(resolutions, blocks, features, heads, conditioning, dropout)
        self.out = nn.Linear(features, outputs)
        self.out.weight.data.mul_(0.1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """``(B, C, H, W)`` and ``(B, conditioning)`` to ``(B, H W, outputs)``.

        In memory the pixels come last, as the head wants them: written so by the product, they need no copy.
        """
        _, h = self.level(*self.first(x), conditioning)
        active, weight, bias = nn.functional.elu(h).flatten(1, 2), self.out.weight, self.out.bias
        return torch.baddbmm(bias[:, None], weight.expand(len(active), -1, -1), active.mT).mT

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vertical and horizontal features from the pixels, ``(B, H, W, F)`` each."""
        pixels = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).permute(0, 2, 3, 1)
        return self.first_vertical(pixels), self.first_above(pixels) + self.first_left(pixels)
