"""Two-part sampling: draw at a noise level where the model is robust, refine to the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity, SampleableDensity, check_process
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import NoiseProcess
from ncml.sampling.base import Sampler, as_density, one_time
from ncml.sampling.sde import EulerMaruyama

__all__ = ["generate"]


def generate(
    density: NoiseConditionalDensity,
    process: NoiseProcess,
    n: int,
    *,
    sampler: Sampler | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    r"""Draw :math:`x_t \sim p_{\theta,t}` and refine it to t = 0 (paper, section 4.2).

    Args:
        density: A density that can sample.
        process: Its noise process.
        n: Number of samples.
        sampler: How to refine. Default ``EulerMaruyama()``: 128 steps of the reverse SDE.
        t_start: Where to draw; the process's T if None. 0 is plain sampling, without a sampler.
        t_end: Where to stop; 0 if None (see :class:`~ncml.Sampler`). Above 0 the samples are still noisy.
        context: Conditioning with ``n`` rows, or None.
        generator: Source of randomness for both parts.
        progress: Show a progress bar for the refinement.

    Returns:
        Samples ``(n, *event_shape)`` at ``t_end`` in data units; at t = 0 those of a lattice density are clamped and
        rounded to the lattice (nowhere earlier: clamping noisy samples would change their law).

    Raises:
        UnsupportedError: The density cannot sample, or the sampler needs another kind of process.
    """
    density = as_density(density)
    sampler = EulerMaruyama() if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise ArgumentTypeError(f"sampler: got {sampler!r}; expected a Sampler, such as EulerMaruyama(steps=64)")
    if not isinstance(density, SampleableDensity):
        raise UnsupportedError(
            f"density: got {type(density).__name__}, which cannot sample; expected a SampleableDensity; "
            f"refine samples of your own with sampler(density, process, x)"
        )
    check_process(density, process)
    t = process.T if t_start is None else one_time(t_start, "t_start", process.T)
    if t != 0.0 and not isinstance(process, sampler.needs):
        raise UnsupportedError(
            f"process: got {type(process).__name__}; {type(sampler).__name__} expected a {sampler.needs.__name__}; "
            f"use t_start=0 for plain sampling, or under a GaussianProcess AnnealedLangevin or Tweedie"
        )
    stop = 0.0 if t_end is None else one_time(t_end, "t_end", process.T)
    if not 0.0 <= stop <= max(t, 0.0):  # t itself is checked where it is drawn at
        raise ArgumentError(f"t_end: got {stop:.6g}; expected 0 <= t_end <= t_start = {t:.6g}, towards the data")
    x = density.sample(n, t, context, generator=generator)
    if t != 0.0:
        x = sampler(density, process, x, t, t_end, context=context, generator=generator, progress=progress)  # type: ignore[arg-type]
    clean = stop == 0.0 or bool(process.on_lattice(stop))
    return density.lattice.quantize(x) if density.lattice is not None and clean else x
