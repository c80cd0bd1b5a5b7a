"""What a trainer takes batches from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Examples"]


class Examples(Protocol):
    """A data set: :class:`ncml.data.Images`, :class:`ncml.data.Arrays`, or anything with these."""

    @property
    def labels(self) -> Tensor | None:
        """Classes ``(N,)``, or None."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, *, device: torch.device | None = None) -> Tensor:
        """Rows in data units, ``(B, *event_shape)``."""
