"""The mode in which a density is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["training_mode"]


@contextmanager
def training_mode(density: nn.Module) -> Iterator[None]:
    """The density in train mode, with gradients whatever the caller's mode; in eval mode afterwards."""
    density.train()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        density.eval()
