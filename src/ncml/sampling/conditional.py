"""Completion and restoration of data in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ncml.checks import check_count, check_finite, check_generator, per_example
from ncml.density import (
    AutoregressiveDensity,
    CompletionTarget,
    SampleableDensity,
    Target,
    check_arguments,
    inner_density,
    sampleable,
    time_posterior,
)
from ncml.density.target import OnFailure
from ncml.errors import ArgumentError
from ncml.noise import VESDE
from ncml.noise.gaussian import as_gaussian
from ncml.sampling.langevin import MetropolisLangevin
from ncml.sampling.repaint import RePaint
from ncml.sampling.sampler import LATTICE_STOP, Sampler, one_time, rounded

__all__ = ["Restored", "complete", "restore"]


@torch.no_grad()
def complete(
    density: nn.Module | Target,
    x: Tensor,
    known: Tensor,
    *,
    sampler: Sampler | None = None,
    t_start: float | None = None,
    moves: int = 0,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    on_failure: OnFailure = "raise",
) -> Tensor:
    r"""Draw what is not known of ``x``, given what is (inpainting, imputation).

    First the rest is drawn at ``t_start``: an autoregressive density draws each value given those before it, known ones
    among them; any other draws regardless of what is known. ``moves`` of :class:`~ncml.sampling.MetropolisLangevin`
    then let it fit all that is known, before the sampler refines it to t = 0. Use moves if the noise at ``t_start`` is
    small: what a sample shows is settled by then, and refinement cannot change it.

    Args:
        density: A density that can sample, or a target of one (such as :func:`~ncml.density.guided`).
        x: Data ``(B, *event_shape)``; whatever stands in place of unknown values is ignored.
        known: Bool, True where values are known, of the event's shape or of that of ``x``.
        sampler: How to refine; ``RePaint()`` by default: 32 steps of the reverse SDE, ten times each. Its bias is
            stated at :class:`~ncml.density.CompletionTarget`.
        t_start: Time to draw at; the process's T if None. 0 with an autoregressive density for the draw alone, without
            moves or sampler, which is exact if the known values are the first in its order.
        moves: Metropolis moves at ``t_start``, one log-density with its score each.
        context: Conditioning with B rows, or None.
        generator: Source of randomness.
        progress: Show a progress bar for the refinement.
        on_failure: See :meth:`~ncml.Sampler.refine`.

    Returns:
        Completed data ``(B, *event_shape)``: known values bit for bit; for a lattice density clamped and rounded.

    Raises:
        ArgumentError: Masks that do not fit, nothing or everything known, known values off a density's lattice.
        UnsupportedError: The density cannot sample, or not under this process.

    Example:
        >>> density = GaussianDensity(VPSDE.at_noise(0.5), torch.zeros(2), 0.3)
        >>> complete(density, torch.tensor([[0.5, 0.0]]), torch.tensor([True, False]))[:, 0]
        tensor([0.5000])
    """
    base = density if isinstance(density, Target) else Target(density, context=context)
    if isinstance(density, Target) and context is not None:
        raise ArgumentError("context: got one with a target; expected None: the target has its own")
    base = base if generator is None else base.with_generator(generator)
    target = CompletionTarget(base, x, known)
    inner = sampleable(base.density, "refine a start of your own: sampler(CompletionTarget(density, x, known), start)")
    if inner.lattice is not None:
        inner.lattice.check(target.values[target.known.expand_as(target.values)])
    moves = check_count(moves, "moves", minimum=0)
    check_generator(base.generator, inner.device)
    t = target.process.T if t_start is None else one_time(t_start, "t_start", target.process.T)
    if t == 0.0 and not isinstance(inner, AutoregressiveDensity):
        raise ArgumentError(
            f"t_start: got 0 for a {type(inner).__name__}; expected a time above 0: without refinement what is drawn "
            f"knows nothing of what is known"
        )
    bound, held = target.bound(torch.where(target.known, target.values, 0.0), t)
    assert isinstance(bound, CompletionTarget)
    start = _drawn(inner, held, bound, t, base)
    if moves and t > 0.0:
        start = MetropolisLangevin(1, moves=moves)(bound, start, t, t, on_failure=on_failure)
    if t > 0.0:
        sampler = RePaint() if sampler is None else sampler
        y = sampler(bound, start, t, progress=progress, on_failure=on_failure)
    else:
        y = start
    if inner.lattice is not None:
        y = rounded(y, inner.lattice)
    return torch.where(target.known, target.values.to(y.dtype), y)


def _drawn(inner: SampleableDensity, held: Tensor, target: CompletionTarget, t: float, base: Target) -> Tensor:
    """A draw at t around the values that are held; for an autoregressive density one that heeds those before."""
    n = len(held)
    if not isinstance(inner, AutoregressiveDensity):
        return torch.where(target.known, held, inner.sample(n, t, base.context, generator=base.generator))
    noise = inner.draw_noise(n, generator=base.generator)
    x = held
    for _ in range(len(inner.order)):  # the fixed point, after so many passes at the latest
        new = inner.resample(x, noise, t, base.context)
        # Ahead of what is final a network may run away: those values only serve as a start.
        new = torch.where(target.known, held, torch.where(new.isfinite(), new, x))
        if torch.equal(new, x):
            break
        x = new
    return x


@dataclass(frozen=True, eq=False)
class Restored:
    """The result of a restoration.

    Args:
        x: Restored data, ``(B, *event_shape)``.
        sigmas: The noise levels that were considered, ``(K,)``.
        posterior: Their probabilities for each row, ``(B, K)``.
    """

    x: Tensor
    sigmas: Tensor
    posterior: Tensor

    @property
    def noise(self) -> Tensor:
        """The expected noise of each row, ``(B,)``."""
        return self.posterior @ self.sigmas


@torch.no_grad()
def restore(
    density: nn.Module,
    x: Tensor,
    *,
    sigmas: Sequence[float] | None = None,
    prior: Sequence[float] | None = None,
    shared: bool = False,
    sampler: Sampler | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_failure: OnFailure = "raise",
) -> Restored:
    r"""Remove normal noise of unknown strength from ``x = x_0 + sigma z``, by the noise level's posterior.

    The density is read under :math:`\sigma = t` (:meth:`~ncml.NoiseConditionalDensity.under`), and every level weighted
    by :math:`p(\sigma \mid x)` (:func:`~ncml.density.time_posterior`):

    .. math:: E[x_0 \mid x] = \sum_k p(\sigma_k \mid x)\, \left(x + \sigma_k^2\, \nabla\log p_{\sigma_k}(x)\right),

    the mean with the least squared error; with a sampler, draws: of a level from its posterior, and of the data by
    refining from there.

    Args:
        density: A density under a Gaussian process that starts at the data.
        x: Noisy data ``(B, *event_shape)``, not scaled.
        sigmas: The noise levels to consider, in data units; 32 if None, evenly spaced in log, up to the density's
            largest and down to a hundredth of it (0.3 level for lattice data).
        prior: Their masses; uniform if None.
        shared: All rows have the same noise, which is judged by all of them together.
        sampler: Draws by this sampler instead of means.
        context: Conditioning with B rows, or None.
        generator: Source of the draws' randomness.
        on_failure: See :meth:`~ncml.Sampler.refine`.

    Returns:
        Restored data, with what is known about the noise. Neither clamped nor rounded.

    Raises:
        UnsupportedError: The process is not Gaussian, or noisy at t = 0.
        ArgumentError: Levels beyond the density's largest.

    Example:
        >>> density = GaussianDensity(VPSDE.at_noise(0.5), torch.zeros(64), 0.3)
        >>> noisy = density.sample(8) + 0.2 * torch.randn(8, 64)
        >>> bool(((restore(density, noisy, shared=True).noise - 0.2).abs() < 0.02).all())
        True
    """
    inner = inner_density(density)
    process = as_gaussian(inner.process, "whose noise is normal")
    top = float(process.sigma(process.T) / process.alpha(process.T))
    least = 0.01 * top if inner.lattice is None else min(LATTICE_STOP * inner.lattice.width, 0.5 * top)
    levels = [least * (top / least) ** (k / 31) for k in range(32)] if sigmas is None else [float(v) for v in sigmas]
    if not levels or not all(0.0 <= v <= top * (1.0 + 1e-6) for v in levels):
        raise ArgumentError(
            f"sigmas: got {levels}; expected noise levels between 0 and the density's largest, {top:.6g}"
        )
    levels = [min(v, top) for v in levels]
    ladder = inner.under(VESDE.linear(top))
    x, _, context = check_arguments(ladder, x, 0.0, context)
    check_finite(x, "x", "complete these values first")
    posterior = time_posterior(ladder, x, levels, context, prior=prior, shared=shared)
    y = torch.zeros_like(x)
    if sampler is None:
        target, _ = Target(ladder, context=context).bound(x, 0.0, on_failure=on_failure)
        with target.evaluating(), torch.no_grad():
            for k, sigma in enumerate(levels):
                weight = per_example(posterior[:, k].to(x.dtype), x)
                y = y + weight * (x if sigma == 0.0 else target.denoise(x.clone(), sigma))
    elif len(x):
        drawn = torch.multinomial(posterior, 1, generator=generator)[:, 0]
        for k in drawn.unique().tolist():
            rows = (drawn == k).nonzero()[:, 0]
            given = None if context is None else context[rows]
            y[rows] = sampler(ladder, x[rows], levels[k], context=given, generator=generator, on_failure=on_failure)
    return Restored(y, torch.tensor(levels, dtype=torch.float64), posterior)
