"""Images side by side in one PNG file. Needs Pillow, imported on use."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from ncml.checks import check_count, check_floating
from ncml.errors import ArgumentError, MissingExtraError

__all__ = ["save_grid"]

GAP = 1  # pixels between images


def save_grid(
    images: Tensor, path: str | os.PathLike[str], *, columns: int | None = None, scale: int | None = None
) -> None:
    """Write images as one PNG, row by row.

    Args:
        images: ``(N, C, H, W)`` in data units, [-1, 1] from black to white; values outside are clamped, and NaN, of
            samples that have failed, is white as the gaps are. C is 1 or 3.
        path: The file.
        columns: Images per row; about as many as rows if None.
        scale: Pixels of the file per pixel of an image; 1 from a height of 128 pixels on, more below, if None.

    Raises:
        ArgumentError: No images, or of another shape.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("save_grid: Pillow is not installed; pip install 'ncml[data]'") from error
    check_floating(images, "images")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ArgumentError(
            f"images: got shape {tuple(images.shape)}; expected (N, C, H, W) with C = 1 or 3, and no size of 0"
        )
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else min(check_count(columns, "columns"), n)
    scale = max(1, 128 // height) if scale is None else check_count(scale, "scale")
    rows = math.ceil(n / columns)
    bytes_ = ((images.detach().cpu().float().nan_to_num(1.0).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    canvas = torch.full((channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for i, image in enumerate(bytes_):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        canvas[:, top : top + height, left : left + width] = image
    enlarged = canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).squeeze(-1)
    Image.fromarray(enlarged.contiguous().numpy()).save(path, format="PNG")
