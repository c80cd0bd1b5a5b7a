"""What a training step draws, as a function of only the seed and the step.

Every process draws the rows, times, noise and dequantisation of the *global* batch and takes its own part: the same
run on one process or on eight, resumed or not, sees the same numbers, and no state of a generator has
to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ncml.errors import ArgumentError
from ncml.objective import NCMLObjective

__all__ = ["Batch", "BatchDraws", "stream_seed"]


def stream_seed(seed: int, *stream: int | str) -> int:
    """A seed for one of many independent streams of a run, 0 to 2^63 - 1."""
    key = ":".join(map(str, (seed, *stream))).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Batch:
    """The draws of a batch, or of a part of one.

    Args:
        rows: Rows of the data set, ``(B,)`` int64.
        t: Times, ``(B,)``.
        weight: Their weights, ``(B,)``.
        noise: The process's noise, first dimension B.
        uniform: Uniforms on [0, 1) that dequantise the data, first dimension B; None if the objective does not.
    """

    rows: Tensor
    t: Tensor
    weight: Tensor
    noise: Tensor
    uniform: Tensor | None = None

    def part(self, i: int, parts: int) -> Batch:
        """The i-th of ``parts`` equal parts."""
        values: Iterator[Any] = (getattr(self, f.name) for f in fields(self))
        chunks: list[Any] = [None if value is None else value.chunk(parts)[i] for value in values]
        return Batch(*chunks)


@dataclass
class BatchDraws:
    """The global batch of every step.

    Rows go through the data set epoch after epoch, each in an order of its own; a batch may span two.

    Args:
        n: Examples in the data set.
        event_shape: Shape of an example.
        objective: Draws times, noise and, if it dequantises, the uniforms for it.
        batch_size: Examples per step, over all processes.
        seed: Seed of the run.
        dtype: Of times, noise and uniforms.
    """

    n: int
    event_shape: tuple[int, ...]
    objective: NCMLObjective
    batch_size: int
    seed: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ArgumentError("examples: got an empty data set; expected at least one example")
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> Batch:
        """The draws of step ``step``, on the CPU."""
        generator = torch.Generator("cpu").manual_seed(stream_seed(self.seed, "noise", step))
        t, weight = self.objective.draw_times(self.batch_size, generator=generator, device="cpu", dtype=self.dtype)
        like = torch.empty((), dtype=self.dtype, device="cpu").expand(self.batch_size, *self.event_shape)
        noise = self.objective.process.draw_noise(like, generator=generator)
        uniform = None
        if self.objective.dequantize is not None:  # last, so that the other draws are those of a run without it
            uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype, device="cpu")
        return Batch(self.rows(step), t, weight, noise, uniform)

    def rows(self, step: int) -> Tensor:
        """Rows of the data set that step ``step`` sees."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        for epoch in range(first // self.n, (last - 1) // self.n + 1):
            start = epoch * self.n
            parts.append(self._epoch(epoch)[max(first - start, 0) : last - start])
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        """The order of an epoch; the latest is kept."""
        if self._order[0] != epoch:
            generator = torch.Generator("cpu").manual_seed(stream_seed(self.seed, "order", epoch))
            self._order = (epoch, torch.randperm(self.n, generator=generator, device="cpu"))
        return self._order[1]
