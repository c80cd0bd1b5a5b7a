"""Exponential moving average of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["EMA"]


class EMA:
    r"""The average :math:`\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta`, with a decay that grows.

    .. math:: d_i = \min\left(\text{decay}, \frac{1 + i}{10 + i}\right)

    after i updates, so that the average forgets the random start quickly.

    Args:
        parameters: The parameters, whose values are the start.
        decay: Decay in the long run; 0 follows the parameters exactly.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        with torch.inference_mode(False):  # it is updated outside of it
            self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.parameters, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run a block with the average in place of the parameters."""
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, values)
