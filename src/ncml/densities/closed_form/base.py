"""What the densities in closed form share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncml.density import SampleableDensity
from ncml.errors import ArgumentError
from ncml.noise import Lattice, NoiseProcess

__all__ = ["ClosedForm", "Numbers", "as_float64"]

Numbers = float | Sequence[float] | Tensor


def as_float64(values: Numbers, name: str) -> Tensor:
    """Finite numbers as a detached float64 tensor."""
    tensor = torch.as_tensor(values, dtype=torch.float64).detach()
    if not bool(torch.isfinite(tensor).all()):
        raise ArgumentError(f"{name}: got non-finite values; expected finite numbers")
    return tensor.clone()


class ClosedForm(SampleableDensity):
    """What the closed forms share: buffers in float64, samples in the dtype of the numbers they were given.

    ``.to(dtype)`` and its like change the dtype of samples and buffers.
    """

    dtype_follows_input = True
    _sample_like: Tensor

    def __init__(
        self, event_shape: Sequence[int], process: NoiseProcess, given: object, lattice: Lattice | None = None
    ) -> None:
        super().__init__(event_shape, process, lattice)
        dtype = given.dtype if isinstance(given, Tensor) and given.is_floating_point() else torch.get_default_dtype()
        # A buffer, so that the module's conversions reach it; not part of the state.
        self.register_buffer("_sample_like", torch.empty((), dtype=dtype), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the samples: that of the numbers given (torch's default for plain ones) until converted."""
        return self._sample_like.dtype
