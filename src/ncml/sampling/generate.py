"""Two-part sampling: draw at a noise level where the model is robust, then refine to the data."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ncml.checks import check_count, check_generator
from ncml.density import Target, process_by_name, process_of, sampleable
from ncml.density.target import OnFailure
from ncml.errors import ArgumentError, ArgumentTypeError, FailedRowsWarning
from ncml.noise import NoiseProcess
from ncml.sampling.euler_maruyama import EulerMaruyama
from ncml.sampling.sampler import Sampler, check_on_failure, one_time, rounded

__all__ = ["generate"]


@process_by_name("n", "generate(density, n, process=...)")
def generate(
    density: nn.Module,
    n: int,
    *,
    process: NoiseProcess | None = None,
    sampler: Sampler | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    on_failure: OnFailure = "raise",
) -> Tensor:
    r"""Draw :math:`x_t \sim p_{\theta,t}` and refine it to t = 0 (paper, section 4.2).

    Args:
        density: A density that can sample, or a wrapper of one.
        n: Number of samples.
        process: Its noise process; the density's own if None.
        sampler: How to refine. Default ``EulerMaruyama()``: 128 steps of the reverse SDE.
        t_start: Time to draw at; the process's T if None. 0 is plain sampling, without a sampler.
        t_end: Time to stop at; 0 if None (see :class:`~ncml.Sampler`). Above 0 the samples are still noisy.
        context: Conditioning with ``n`` rows, or None.
        generator: Source of randomness for both parts.
        progress: Show a progress bar for the refinement.
        on_failure: "raise", or "keep" the other samples if the score of some is NaN or infinite: those are then NaN,
            and a warning says how many.

    Returns:
        Samples ``(n, *event_shape)`` at ``t_end`` in data units; at t = 0 those of a lattice density are clamped and
        rounded to the lattice (nowhere earlier: clamping noisy samples would change their distribution).

    Raises:
        UnsupportedError: The density cannot sample, or the sampler needs another kind of process.
    """
    if isinstance(density, Target):
        raise ArgumentTypeError(
            f"density: got a {type(density).__name__}, which has a score but no samples; expected a density; draw a "
            f"start x_T, such as density.sample(n, t=process.T), and call sampler(target, x_T)"
        )
    inner = sampleable(density, "refine samples of your own with sampler(density, x)")
    process = process_of(density, process)
    sampler = EulerMaruyama() if sampler is None else sampler
    if not isinstance(sampler, Sampler):
        raise ArgumentTypeError(f"sampler: got {sampler!r}; expected a Sampler, such as EulerMaruyama(steps=64)")
    n = check_count(n, "n", minimum=0)
    check_on_failure(on_failure)
    check_generator(generator, inner.device)
    t = process.T if t_start is None else one_time(t_start, "t_start", process.T)
    if t == 0.0:
        stop = 0.0 if t_end is None else one_time(t_end, "t_end", process.T)
        if stop != 0.0:
            raise ArgumentError(f"t_end: got {stop:.6g}; expected at most t_start = 0, towards the data")
        x = inner.sample(n, 0.0, context, generator=generator)
    else:  # refused before anything is drawn, if at all
        target = sampler.bind(density, process, context, generator)
        *_, stop = sampler.times_of_call(target, t, t_end)
        x = inner.sample(n, t, context, generator=generator)
        refined = sampler.refine(target, x, t, t_end, generator=generator, progress=progress, on_failure=on_failure)
        x = refined.x
        if "failed" in refined.info:
            warnings.warn(
                f"generate: {len(refined.info['failed'])} of {n} samples failed during the refinement and are NaN",
                FailedRowsWarning,
                stacklevel=3,  # past the decorator
            )
    if inner.lattice is None or not bool(process.on_lattice(stop)):
        return x
    return rounded(x, inner.lattice)
