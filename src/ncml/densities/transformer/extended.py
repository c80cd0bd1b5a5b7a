r"""Sequences longer than a model's window, each value drawn given those in its own window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ncml.checks import Time, check_count
from ncml.density import AutoregressiveDensity
from ncml.errors import ArgumentError

if TYPE_CHECKING:
    from ncml.densities.transformer.transformer import CausalTransformer

__all__ = ["ExtendedSequence", "check_overlap"]


class ExtendedSequence(AutoregressiveDensity):
    r"""The distribution of sequences ``(length, C)`` that a model of windows of L positions gives, window after window.

    Windows begin every L - o positions, o being the overlap; each takes over the last o positions of the one before:

    .. math:: \log p_t(x) = \log p_t(x_{1:L}) + \sum_{k \ge 1} \left[\log p_t(x_{s_k+1:s_k+L})
              - \log p_t(x_{s_k+1:s_k+o})\right], \qquad s_k = k (L - o).

    The terms are the model's own likelihoods of sequences of up to L positions, so this one is normalised and exact,
    and its samples are those of ``CausalTransformer.sample`` with ``length``. It is not the distribution of a
    model of a larger L: it forgets what lies before a window. Sequences may be shorter than ``length``.

    Args:
        model: The model of a window, whose parameters these are.
        length: Number of positions.
        overlap: Number of positions that a window takes over from the one before, 1 to L - 1; half of L if None.
    """

    def __init__(self, model: CausalTransformer, length: int, overlap: int | None = None) -> None:
        length = check_count(length, "length")
        window, channels = model.event_shape
        super().__init__((length, channels), model.process, model.lattice)
        self.model, self.window = model, window
        self.overlap = check_overlap(overlap, window, length)

    def hidden_settings(self) -> dict[str, Any]:
        return {"overlap": self.overlap}

    @property
    def order(self) -> Tensor:
        """Position after position, and the channels of a position one after the other, ``(length C,)``."""
        return torch.arange(self.event_shape[0] * self.event_shape[1], device=self.device)

    def event_shape_for(self, x: Tensor) -> tuple[int, ...]:
        """``(l, C)`` for a batch of sequences of any length l up to that of these."""
        length, channels = self.event_shape
        fits = isinstance(x, Tensor) and x.ndim == 3 and x.shape[2] == channels and 1 <= x.shape[1] <= length
        return (x.shape[1], channels) if fits else self.event_shape

    def windows(self, length: int) -> Iterator[tuple[slice, int]]:
        """Where each window of a sequence lies, and how many of its positions the one before it has too."""
        start = kept = 0
        while start + kept < length:
            stop = min(start + self.window, length)
            yield slice(start, stop), kept
            start, kept = stop - self.overlap, self.overlap

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        total = torch.zeros_like(x[:, 0, 0])
        for part, kept in self.windows(x.shape[1]):
            total = total + self.model(x[:, part], t, context, edges=edges, keep=kept)
        return total

    def forward_score(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor:
        # Window by window, so that the memory is that of one.
        score = torch.zeros_like(x)
        for part, kept in self.windows(x.shape[1]):
            score[:, part] += self.model.forward_score(x[:, part], t, context, create_graph=create_graph, keep=kept)
        return score

    def draw_noise(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Uniforms ``(n, length, C, 3)``."""
        return self.model.draw_noise(n, generator=generator, length=self.event_shape[0])

    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        expected = (*x.shape, 3)
        if noise.shape != expected or noise.dtype != self.dtype:  # a part of another length would do for each window
            raise ArgumentError(
                f"noise: got shape {tuple(noise.shape)}, {noise.dtype}; expected {expected}, {self.dtype}, for every "
                f"position of x; use that of draw_noise({len(x)}), cut as x is"
            )
        y = torch.empty_like(x)
        for part, kept in self.windows(x.shape[1]):
            y[:, part][:, kept:] = self.model.resample(x[:, part], noise[:, part], t, context)[:, kept:]
        return y

    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        length, overlap = self.event_shape[0], self.overlap
        return self.model.sample(n, t, context, generator=generator, noise=noise, length=length, overlap=overlap)

    def complete(
        self,
        x: Tensor,
        keep: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Keep the first positions of sequences and draw the rest, up to ``length``; see the model's ``complete``."""
        return self.model.complete(
            x,
            keep,
            t,
            context,
            generator=generator,
            length=self.event_shape[0],
            overlap=self.overlap,
            progress=progress,
        )


def check_overlap(overlap: int | None, window: int, length: int) -> int:
    """The overlap of windows of a sequence, half of one if None."""
    overlap = window // 2 if overlap is None else check_count(overlap, "overlap")
    if length > window == 1:
        raise ArgumentError(f"length: got {length}; expected 1: windows of one position cannot overlap")
    if length > window and not 0 < overlap < window:
        raise ArgumentError(
            f"overlap: got {overlap}; expected 1 to {window - 1} positions, fewer than the {window} of the window"
        )
    return overlap
