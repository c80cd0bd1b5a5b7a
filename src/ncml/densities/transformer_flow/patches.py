"""Events cut into patches: squares of images, pieces of sequences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ncml.checks import check_count
from ncml.errors import ArgumentError

__all__ = ["Patches"]


@dataclass(frozen=True)
class Patches:
    """How events are cut.

    Patches are in row-major order; in a patch the values of an image are in the order of ``(C, p, p)``, those of a
    sequence in that of ``(p, C)``.

    Args:
        event_shape: ``(C, H, W)`` or ``(L, C)``.
        patch: Side of a square p, a divisor of H and W; or length of a piece, a divisor of L.

    Raises:
        ArgumentError: Events of another rank, a patch that does not fit, or a single one.
    """

    event_shape: tuple[int, ...]
    patch: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", check_count(self.patch, "patch"))
        if len(self.event_shape) not in (2, 3):
            raise ArgumentError(
                f"event_shape: got {self.event_shape}; expected (C, H, W), images, or (L, C), sequences; give a "
                f"vector as a sequence of one channel"
            )
        sides = self.event_shape[1:] if len(self.event_shape) == 3 else self.event_shape[:1]
        if any(side % self.patch for side in sides) or self.length < 2:
            raise ArgumentError(
                f"patch: got {self.patch} and events {self.event_shape}; expected a divisor of "
                f"{' and '.join(map(str, sides))} that leaves at least two patches"
            )

    @property
    def length(self) -> int:
        """Number of patches, T."""
        if len(self.event_shape) == 2:
            return self.event_shape[0] // self.patch
        return (self.event_shape[1] // self.patch) * (self.event_shape[2] // self.patch)

    @property
    def size(self) -> int:
        """Number of values of a patch, P."""
        if len(self.event_shape) == 2:
            return self.patch * self.event_shape[1]
        return self.event_shape[0] * self.patch**2

    def split(self, x: Tensor) -> Tensor:
        """``(B, *event_shape)`` to ``(B, T, P)``."""
        if len(self.event_shape) == 2:
            return x.reshape(len(x), self.length, self.size)
        channels, height, width = self.event_shape
        p = self.patch
        grid = x.reshape(len(x), channels, height // p, p, width // p, p)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(x), self.length, self.size)

    def join(self, patches: Tensor) -> Tensor:
        """``(B, T, P)`` to ``(B, *event_shape)``."""
        if len(self.event_shape) == 2:
            return patches.reshape(len(patches), *self.event_shape)
        channels, height, width = self.event_shape
        p = self.patch
        grid = patches.reshape(len(patches), height // p, width // p, channels, p, p)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), *self.event_shape)
