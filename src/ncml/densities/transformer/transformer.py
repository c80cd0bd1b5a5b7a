"""A causal transformer over sequences, conditioned on the noise level."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ncml.checks import (
    Time,
    check_choice,
    check_context,
    check_count,
    check_generator,
    check_input,
    check_time,
    is_whole,
)
from ncml.densities.transformer.blocks import Block, Trunk, check_sizes
from ncml.densities.transformer.cache import CachedPass
from ncml.densities.transformer.extended import ExtendedSequence, check_overlap
from ncml.densities.transformer.head import SequenceHead
from ncml.density import (
    AutoregressiveDensity,
    check_arguments,
    check_given,
    check_kept,
    eval_mode,
    evaluating,
    gradient,
)
from ncml.density.lengths import check_lengths, positions_that_count, with_padding
from ncml.errors import ArgumentError
from ncml.nn.conditioning import Conditioning, dropped_labels
from ncml.nn.heads import HEADS, open_uniforms
from ncml.noise import Lattice, NoiseProcess
from ncml.progress import progress_counter

__all__ = ["CausalTransformer"]


class CausalTransformer(AutoregressiveDensity):
    r"""A causal transformer over sequences ``(B, l, C)`` of up to L positions with C channels each.

    .. math:: \log p_t(x) = \sum_{i=1}^{l} \sum_{c=1}^{C} \log p_t(x_{i,c} \mid x_{<i}, x_{i,<c})

    The input of a position is the values of the position before it, as they are (a learned vector for the first), and
    its output the mixtures of its own values (:mod:`ncml.densities.transformer.head`). The noise level, and the class
    or the context vector, modulate every block (:mod:`ncml.densities.transformer.blocks`), so that the first
    position sees them as well as the last. Nothing normalises over the batch or over time.

    Since nothing depends on what comes later, sequences may be shorter than L wherever ``x`` is an argument, and the
    result is exact: ``log_prob`` of the first l positions is that of their marginal distribution. Rows of different
    lengths share a batch with ``lengths=``, one number for each, in ``log_prob``, ``score``, ``sample`` and the
    objective. :meth:`extended` is for sequences longer than L. Positions enter only by their distances, and no
    parameter depends on L: ``larger.load_state_dict(model.state_dict())`` gives these weights to a model of another L.

    Args:
        event_shape: ``(L, C)``.
        process: The noise process.
        lattice: The lattice of the data (scaled to [-1, 1]), whose mass it then gives exactly where the process keeps
            data on it, and a density elsewhere; up to 65,536 levels. None for continuous data of order one.
        width: Number of features of a position, a multiple of twice the heads.
        layers: Number of blocks.
        heads: Attention heads.
        components: Mixture components per value.
        head: ``"logistic"`` (default: heavier tails, closed-form window) or ``"gaussian"``.
        dropout: Probability of dropping a feature of a block's branch in training mode.
        noise_features: Number of noise features.
        context_features: Width of a floating context ``(B, context_features)``, 0 for none.
        classes: Number of classes of an integer context ``(B,)``; -1 is "no label". 0 for none.
        label_dropout: Probability of training an example as unlabelled. Drawn, as dropout is, from torch's own
            generator: seed it with ``torch.manual_seed``.

    Raises:
        ArgumentError: Events that are not sequences, an unknown head, sizes that do not fit.

    Example:
        >>> process = VESDE.linear(1.0)
        >>> model = CausalTransformer((64, 1), process, width=32, layers=2, heads=4)
        >>> x = model.sample(3, t=0.1)
        >>> model.log_prob(x[:, :10], t=0.1).shape  # of the first ten positions
        torch.Size([3])
        >>> model.complete(x, keep=64, t=0.1, length=100).shape
        torch.Size([3, 100, 1])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        lattice: Lattice | None = None,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        components: int = 10,
        head: Literal["logistic", "gaussian"] = "logistic",
        dropout: float = 0.0,
        noise_features: int = 16,
        context_features: int = 0,
        classes: int = 0,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(event_shape, process, lattice)
        width, layers, heads = check_sizes(self.event_shape, width, layers, heads, dropout, label_dropout)
        check_choice(head, "head", HEADS)
        length, channels = self.event_shape
        self.label_dropout = label_dropout
        self.conditioning = Conditioning(process, noise_features, context_features, classes)
        self.embed = nn.Sequential(
            nn.Linear(self.conditioning.features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self._hidden = {"head": head, "heads": heads, "noise_features": self.conditioning.noise.features}
        self.first = nn.Parameter(torch.randn(width))
        self.enter = nn.Linear(channels, width)
        self.trunk = Trunk(length, width, layers, heads, width, dropout)
        self.head = SequenceHead(channels, width, HEADS[head](components, lattice))

    # The density.

    def hidden_settings(self) -> dict[str, Any]:
        return self._hidden

    @property
    def order(self) -> Tensor:
        """Position after position, and the channels of a position one after the other, ``(L C,)``."""
        return torch.arange(self.event_shape[0] * self.event_shape[1], device=self.device)

    def event_shape_for(self, x: Tensor) -> tuple[int, ...]:
        """``(l, C)`` for a batch of sequences of any length l up to L."""
        length, channels = self.event_shape
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != channels:
            return self.event_shape
        if not 1 <= x.shape[1] <= length:
            raise ArgumentError(
                f"x: got {x.shape[1]} positions, shape {tuple(x.shape)}; expected 1 to {length}; take "
                f"model.extended({x.shape[1]}), or a longer window: longer.load_state_dict(model.state_dict())"
            )
        return (x.shape[1], channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        *,
        edges: bool = True,
        lengths: Tensor | None = None,
        given: Tensor | None = None,
        keep: int = 0,
    ) -> Tensor:
        """Log-likelihood ``(B,)`` in nats, after ``keep`` positions; ``given`` as in :meth:`log_conditionals`."""
        on_lattice = self.process.on_lattice(t) if edges and self.lattice is not None else None
        x, counts = (x, None) if lengths is None else with_padding(x, lengths)
        if given is not None and lengths is not None:
            given, _ = with_padding(given, lengths)
        terms = self._terms(x, given, t, context, on_lattice)
        return (terms if counts is None else terms.masked_fill(~counts, 0.0))[:, keep:].sum((1, 2))

    def log_conditionals(
        self, x: Tensor, t: Time = 0.0, context: Tensor | None = None, *, given: Tensor | None = None
    ) -> Tensor:
        """The terms of ``log_prob``: of each value given those before it, ``(B, l, C)`` in nats; for inspection.

        Arguments and errors as for :meth:`ncml.NoiseConditionalDensity.log_prob`; ``given``, values to condition on in
        place of those of ``x``, as in :meth:`ncml.densities.MADE.log_conditionals`.
        """
        x, t, context = check_arguments(self, x, t, context)
        given = check_given(given, x)
        on_lattice = self.process.on_lattice(t)
        if self.lattice is not None:
            self.lattice.check(x[on_lattice])
        with eval_mode(self):
            return self._terms(x, given, t, context, on_lattice)

    def forward_score(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        *,
        create_graph: bool = False,
        lengths: Tensor | None = None,
        keep: int = 0,
    ) -> Tensor:
        options = {"lengths": lengths, "keep": keep or None}
        more: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return gradient(self, x, t, context, create_graph=create_graph, **more)[1]

    def extended(self, length: int, overlap: int | None = None) -> ExtendedSequence:
        """The distribution of longer sequences, window after window: what :meth:`sample` draws beyond L.

        Args:
            length: Number of positions.
            overlap: As for :meth:`complete`.

        Returns:
            A density over ``(length, C)`` with the same parameters: likelihoods, scores, samples to refine.

        Example:
            >>> model = CausalTransformer((16, 1), VESDE.linear(1.0), width=32, layers=2, heads=4)
            >>> generate(model.extended(50), 2).shape
            torch.Size([2, 50, 1])
        """
        return ExtendedSequence(self, length, overlap)

    # The repeated part of the network.

    def blocks(self) -> list[Block]:
        """The blocks, the repeated part of the network."""
        return [cast(Block, block) for block in self.trunk.stack]

    def compile_blocks(self) -> None:
        """Compile every block with ``torch.compile``, on its first use; sampling does not use them compiled."""
        for block in self.blocks():
            block.compile()

    def recompute_blocks(self, enabled: bool = True) -> None:
        """Keep only what enters each block, and recompute its inside in the backward pass."""
        self.trunk.recompute = enabled

    # Samples.

    def draw_noise(self, n: int, *, generator: torch.Generator | None = None, length: int | None = None) -> Tensor:
        """Uniforms ``(n, length, C, 3)``: component, quantile, and position in the window; ``length`` is L if None."""
        shape = (n, self.event_shape[0] if length is None else length, self.event_shape[1], 3)
        return open_uniforms(shape, self.dtype, self.device, generator)

    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        """Redraw every value given those before it in ``x``, all in one pass.

        Arguments and result as in :meth:`ncml.AutoregressiveDensity.resample`; ``x`` may be shorter than L, and
        ``noise`` with it.
        """
        noise = self._noise(len(x), x.shape[1], noise, None)
        return self.head.resample(self._features(x, t, context), x, noise, self.process.on_lattice(t))

    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        length: int | None = None,
        lengths: Tensor | None = None,
        overlap: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw ``n`` sequences, every key and value computed once.

        Args:
            n, t, context, generator: As in :meth:`ncml.SampleableDensity.sample`.
            noise: What :meth:`draw_noise` returned for this length, to draw the same sequences again.
            length: Number of positions; L if None. Beyond L see :meth:`complete`.
            lengths: Number of positions of each sequence, ``(n,)``, instead of ``length``; zeros follow them.
            overlap: As for :meth:`complete`.
            progress: Show a progress bar over positions (needs tqdm).

        Returns:
            Tensor ``(n, length, C)``; ``(n, max(lengths), C)``.
        """
        if lengths is not None:
            if length is not None:
                raise ArgumentError(f"length: got {length} and lengths; expected one of them")
            lengths = check_lengths(lengths, (n, sys.maxsize), self.device)
            length = int(lengths.max()) if n else None
        start = torch.empty(n, 0, self.event_shape[1], dtype=self.dtype, device=self.device)
        x = self._continued(start, length, overlap, noise, generator, t, context, progress)
        return x if lengths is None else x.masked_fill(~positions_that_count(x, lengths), 0.0)

    def complete(
        self,
        x: Tensor,
        keep: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        length: int | None = None,
        overlap: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        r"""Keep the first positions of sequences and draw the rest.

        Up to L positions that is a draw from the model's distribution given what is kept; beyond, from that of
        :meth:`extended`. Windows begin every L - overlap positions, however many are kept, and each value is drawn
        exactly given those of the first window with it that precede it,

        .. math:: x_i \sim p_t(x_i \mid x_{s:i}), \qquad \text{overlap} \le i - s < L.

        Args:
            x: Sequences at time ``t``, ``(B, l, C)``; l may be more or less than L, and what lies beyond the kept
                positions does not matter.
            keep: Number of positions to keep, 0 to l.
            t, context, generator, progress: As for :meth:`sample`.
            noise: What :meth:`draw_noise` returned for this length; that of the kept positions is not used.
            length: Number of positions of the result, at least ``keep``; the larger of L and ``keep`` if None.
            overlap: Number of positions that a window takes over from the one before, 1 to L - 1. Half of L if None:
                more is closer to an endless context, and costs a pass over them every L - overlap positions.

        Returns:
            Tensor ``(B, length, C)``, whose first positions are those of ``x`` bit for bit.
        """
        shape = (x.shape[1], self.event_shape[1]) if isinstance(x, Tensor) and x.ndim == 3 else self.event_shape
        x = check_input(x, shape, self.dtype, self.device, finite=False)
        t, context = check_time(t, x, self.max_time), check_context(context, len(x), x.device)
        check_generator(generator, x.device)
        if not is_whole(keep) or not 0 <= keep <= x.shape[1]:
            raise ArgumentError(f"keep: got {keep!r}; expected a number of positions, 0 to {x.shape[1]}, those of x")
        x = check_kept(self, x.detach()[:, :keep], t)
        return self._continued(x, length, overlap, noise, generator, t, context, progress)

    def _continued(
        self,
        prefix: Tensor,
        length: int | None,
        overlap: int | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
        t: Time,
        context: Tensor | None,
        progress: bool,
    ) -> Tensor:
        """Sequences that start with a prefix, window after window."""
        (n, keep, channels), window = prefix.shape, self.event_shape[0]
        length = max(window, keep) if length is None else check_count(length, "length", minimum=max(keep, 1))
        overlap = check_overlap(overlap, window, length)
        noise = self._noise(n, length, noise, generator)
        x = prefix.new_empty(n, length, channels)
        x[:, :keep] = prefix
        if n == 0:
            return x
        on_lattice = self.process.on_lattice(t)
        counter = progress_counter(progress, "positions", length - keep)
        autocast = torch.autocast(self.device.type, enabled=False)
        # Inference mode cheapens the many small operations.
        with counter as steps, evaluating(self), torch.inference_mode(), autocast:
            conditioning = self._conditioning(t, context)
            while keep < length:
                # The first window with this position, of those that begin every L - overlap positions.
                begin = 0 if keep < window else keep - overlap - (keep - overlap) % (window - overlap)
                stop = min(begin + window, length)
                cache = CachedPass(self.trunk, conditioning, stop - begin)
                h = cache.extend(self._inputs(x[:, begin : keep + 1]))
                for i in range(keep, stop):
                    x[:, i] = self.head.sample(h[:, -1], noise[:, i], on_lattice)
                    if i + 1 < stop:
                        h = cache.extend(self.enter(x[:, i : i + 1]))
                    steps.update()
                keep = stop
        return x

    def _noise(self, n: int, length: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The noise of ``n`` sequences, drawn if None, else checked."""
        if noise is None:
            return self.draw_noise(n, generator=generator, length=length)
        expected = (n, length, self.event_shape[1], 3)
        if noise.shape != expected or noise.dtype != self.dtype or noise.device != self.device:
            raise ArgumentError(
                f"noise: got shape {tuple(noise.shape)}, {noise.dtype} on {noise.device}; expected {expected}, "
                f"{self.dtype} on {self.device}; use draw_noise({n}, length={length})"
            )
        return noise

    # The network.

    def _terms(
        self, x: Tensor, given: Tensor | None, t: Tensor, context: Tensor | None, on_lattice: Tensor | None
    ) -> Tensor:
        """Of each value of ``x`` given those before it in ``given``, shape of ``x``."""
        given = x if given is None else given
        return self.head.log_prob(self._features(given, t, context), x, on_lattice, given)

    def _features(self, x: Tensor, t: Time, context: Tensor | None) -> Tensor:
        """What the trunk makes of every position, ``(B, l, width)``."""
        with torch.autocast(x.device.type, enabled=False):  # the values keep their digits
            inputs, conditioning = self._inputs(x), self._conditioning(t, context)
        return cast(Tensor, self.trunk(inputs, conditioning))

    def _inputs(self, x: Tensor) -> Tensor:
        """Of each position the values of the one before, as features; what the last one holds does not matter."""
        return torch.cat([self.first.expand(len(x), 1, -1), self.enter(x[:, :-1])], dim=1)

    def _conditioning(self, t: Time, context: Tensor | None) -> Tensor:
        if self.training and context is not None and self.conditioning.classes:
            context = dropped_labels(context, self.conditioning.classes, self.label_dropout)
        return cast(Tensor, self.embed(self.conditioning(t, context).to(self.first.dtype)))
