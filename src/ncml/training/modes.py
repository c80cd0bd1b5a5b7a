"""The mode in which a density is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ncml.density import check_gradients

__all__ = ["training_mode"]


@contextmanager
def training_mode(density: nn.Module) -> Iterator[None]:
    """The density in train mode, with gradients whatever the caller's mode; in eval mode afterwards.

    Raises:
        InferenceTensorError: A parameter was created under ``torch.inference_mode``.
    """
    check_gradients(density)
    density.train()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        density.eval()
