r"""Parallel exact sampling of autoregressive densities, by fixed-point iteration.

A sample is a function of noise, and the fixed point of redrawing every position given those before it:
:math:`x = \text{resample}(x, \text{noise}, t)`. Jacobi iteration redraws all positions at once, in one pass of the
network, and starts again from the result (Song et al., 2021, "Accelerating feedforward computation"). Position i is
final after i + 1 passes whatever the start, and usually much sooner: what agrees with the pass before, up to the first
position that does not, is proven and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ncml.checks import check_count, check_nonnegative, per_example
from ncml.density import (
    AutoregressiveDensity,
    NoiseConditionalDensity,
    check_draw,
    check_noise,
    evaluating,
    inner_density,
)
from ncml.errors import ArgumentError, UnsupportedError
from ncml.noise import GaussianProcess
from ncml.progress import progress_counter

__all__ = ["ParallelSamples", "allowed_difference", "fixed_point", "invert_layers", "sample_in_parallel"]


ROUNDING = 32
"""What a pass of a layer may change, in units of a value's own rounding, or that of 1: the last digits settle last."""


@dataclass(frozen=True)
class ParallelSamples:
    """The result of parallel sampling.

    Args:
        x: Samples ``(n, *event_shape)``.
        sweeps: Passes after which each row was final, ``(n,)``; sequential sampling takes D.
        evaluations: Rows that the network evaluated in all.
    """

    x: Tensor
    sweeps: Tensor
    evaluations: int


@torch.no_grad()
def sample_in_parallel(
    density: nn.Module,
    n: int,
    t: float | Tensor = 0.0,
    context: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    block: int | None = None,
    tolerance: float = 0.0,
    progress: bool = False,
) -> ParallelSamples:
    r"""Draw ``n`` samples in a few passes over all positions: those of ``density.sample`` with the same noise.

    Args:
        density: An :class:`~ncml.AutoregressiveDensity`.
        n: Number of samples.
        t: Time, a number or ``(n,)``.
        context: Conditioning with ``n`` rows, or None.
        generator: Source of the noise; torch's default generator if None.
        noise: What ``density.draw_noise(n)`` returned, to draw the same samples again.
        block: Gauss-Seidel iteration: only this many positions beyond the proven ones are redrawn in a pass, so that
            what lies far ahead does not follow values that are still wrong. None for all of them, Jacobi iteration.
        tolerance: Positions count as agreeing if they differ by this many standard deviations of the noise at t, or
            less. 0 (default) gives those of ``sample``, up to rounding; more is an approximation, for draws that are
            refined afterwards.
        progress: Show a progress bar (needs tqdm).

    Returns:
        The samples, and what they cost.

    Raises:
        UnsupportedError: The density is not autoregressive.
        ArgumentError: A tolerance at t = 0 or without a Gaussian process, noise or times that do not fit.
    """
    inner = inner_density(density)
    if not isinstance(inner, AutoregressiveDensity):
        raise UnsupportedError(
            f"density: got {type(inner).__name__}; expected an AutoregressiveDensity, whose samples are a fixed point"
        )
    times, context = check_draw(inner, n, t, context, generator)
    noise = inner.draw_noise(n, generator=generator) if noise is None else noise
    check_noise(inner, noise, n)
    if block is not None:
        block = check_count(block, "block")
    allowed = allowed_difference(inner, times, tolerance)
    order = inner.order
    dims = len(order)
    with torch.inference_mode(False):  # what is written to, also under a caller's inference mode
        x = torch.zeros(n, *inner.event_shape, dtype=inner.dtype, device=inner.device)
        final = torch.zeros(n, dtype=torch.long, device=x.device)  # how many positions are proven, in the order
        sweeps = torch.zeros_like(final)
    place = torch.arange(dims, device=x.device)
    evaluations = 0
    with evaluating(density), progress_counter(progress, "sweeps", dims) as bar:
        while (live := (final < dims).nonzero().flatten()).numel():
            old = x[live].flatten(1)[:, order]
            given = None if context is None else context[live]
            new = inner.resample(x[live], noise[live], times[live], given).flatten(1)[:, order]
            evaluations += len(live)
            sweeps[live] += 1
            proven = final[live, None]
            # Ahead of what is proven a network may run away: those values only serve as a start, and stay finite.
            ahead = place >= proven + (dims if block is None else block)
            new = torch.where((place > proven) & ~torch.isfinite(new) | ahead, old, new)
            new = torch.where(place < proven, old, new)
            agrees = (new - old).abs() <= allowed[live, None]
            # One more than the first position that differs: that one was drawn from proven ones.
            differs = (place >= proven) & ~agrees
            first = torch.where(differs.any(1), differs.int().argmax(1), dims)
            reach = (first + 1).clamp(max=dims)
            if block is not None:
                reach = torch.minimum(reach, final[live] + block)
            final[live] = torch.maximum(reach, final[live] + 1)
            y = torch.empty_like(new)
            y[:, order] = new
            x[live] = y.reshape(-1, *inner.event_shape)
            bar.update()
    return ParallelSamples(x, sweeps, evaluations)


def fixed_point(
    redraw: Callable[[Tensor, Tensor], Tensor], start: Tensor, allowed: Tensor, passes: int
) -> ParallelSamples:
    """The fixed point of an autoregressive layer, by Jacobi iteration until a pass changes nothing beyond rounding.

    Args:
        redraw: Takes some rows as they are, and their indices; returns them with every position redrawn given those
            before it.
        start: Where to start, ``(n, ...)``; written to.
        allowed: What a pass may still change in a row, ``(n,)``.
        passes: The number of passes after which every position is final.

    Returns:
        The rows, with their passes.
    """
    sweeps = torch.zeros(len(start), dtype=torch.long, device=start.device)
    live = torch.arange(len(start), device=start.device)
    evaluations, rounding = 0, ROUNDING * torch.finfo(start.dtype).eps
    for _ in range(passes):
        if not live.numel():
            break
        old = start[live]
        new = redraw(old, live)
        # Ahead of what is final a network may run away: those values only serve as a start.
        new = torch.where(new.isfinite(), new, old)
        start[live] = new
        sweeps[live] += 1
        evaluations += len(live)
        # Value by value: by the largest of a row, values beside a large one would settle too early.
        slack = per_example(allowed[live], new) + rounding * new.abs().clamp(max=1.0)
        live = live[((new - old).abs() > slack).flatten(1).any(1)]
    return ParallelSamples(start, sweeps, evaluations)


def invert_layers(
    layers: Sequence[Callable[[Tensor, Tensor, Tensor], Tensor]], z: Tensor, allowed: Tensor, passes: int
) -> ParallelSamples:
    """Layers of a flow inverted one after the other, each reading its positions in the order opposite to the last's.

    Args:
        layers: Each takes the layer's output for the rows, the rows as they are, and their indices; returns the rows
            redrawn.
        z: The output of the first of these, ``(n, positions, ...)``.
        allowed, passes: As for :func:`fixed_point`.

    Returns:
        The input of the last, in the order opposite to its own, with the passes of all.
    """
    sweeps, evaluations = torch.zeros(len(z), dtype=torch.long, device=z.device), 0
    for redraw in layers:
        found = fixed_point(partial(redraw, z), torch.zeros_like(z), allowed, passes)
        sweeps, evaluations, z = sweeps + found.sweeps, evaluations + found.evaluations, found.x.flip(1)
    return ParallelSamples(z, sweeps, evaluations)


def allowed_difference(density: NoiseConditionalDensity, times: Tensor, tolerance: float) -> Tensor:
    """The difference within which two values agree, ``(n,)``: this many standard deviations of the noise at each time.

    Raises:
        ArgumentError: A tolerance that is negative, or above 0 where there is no noise.
    """
    check_nonnegative(tolerance, "tolerance", "a number >= 0, in standard deviations of the noise")
    if tolerance == 0.0:
        return torch.zeros_like(times, dtype=density.dtype)
    process = density.process
    if not isinstance(process, GaussianProcess) or not bool((process.sigma(times) > 0).all()):
        raise ArgumentError(
            f"tolerance: got {tolerance:g} where there is no noise to compare with; expected 0, or t > 0 under a "
            f"GaussianProcess"
        )
    return (tolerance * process.sigma(times)).to(density.dtype)
