r"""The sampler interface, and the loop that all samplers share.

A sampler takes :math:`x_t` to :math:`x_s` for a decreasing grid of times, using the score of the
density and the coefficients of the process. Arguments are validated once, at the call; the loop
checks nothing but that scores are finite.

**The end of the way.** The exact score of lattice data diverges at t = 0, and a head whose narrowest
shape is one bin cannot follow it below about 0.3 levels of noise. For a density with a lattice, and
``t_end=None``, refinement therefore stops where sigma is 0.3 level and takes one noise-free step to
t = 0 by Tweedie's formula. For other densities it runs to t = 0.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ncml._checks import check_count, check_generator, clamp_time
from ncml._progress import progress_bar
from ncml.density import NoiseConditionalDensity, check_process, evaluating, unwrapped
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError, UnsupportedError
from ncml.noise import GaussianProcess, LinearSDE

__all__ = ["LATTICE_STOP", "Sampler", "Score", "as_density", "one_time", "tweedie"]

Score = Callable[[Tensor, float], Tensor]
"""The score of ``x`` at one time for the whole batch."""

LATTICE_STOP = 0.3
"""Noise, in levels, at which refinement of lattice data stops by default (the head's resolution)."""


def tweedie(x: Tensor, t: float, score: Score, process: GaussianProcess) -> Tensor:
    r"""Posterior mean :math:`E[x_0 \mid x_t] = (x_t + \sigma_t^2\, \nabla\log p_t(x_t)) / \alpha_t`."""
    sigma, alpha = float(process.sigma(t)), float(process.alpha(t))
    return x.add(score(x, t), alpha=sigma**2).div_(alpha)


@dataclass(frozen=True)
class Sampler(abc.ABC):
    """Refines samples from one noise level to a lower one.

    Subclasses are frozen dataclasses of their settings and implement :meth:`step`. Run
    :func:`ncml.testing.check_sampler` on them.

    Args:
        steps: Number of steps, at least 1.
        grid: ``"quadratic"``, :math:`t_i = t_{end} + (t_{start}-t_{end})(1-i/n)^2`, which takes small
            steps where the noise of VP and VE falls fast (default), or ``"uniform"``.
        denoise_last: Take the last step to t = 0 by Tweedie's formula, without adding noise. Lattice densities
            refined with ``t_end=None`` always do.

    Attributes:
        samples_law: True if the results follow the law of the data in the limit of many steps; False
            for posterior means.
        needs: The kind of process that the sampler needs.
    """

    steps: int = 128
    grid: Literal["quadratic", "uniform"] = "quadratic"
    denoise_last: bool = True

    samples_law: ClassVar[bool] = True
    needs: ClassVar[type[GaussianProcess]] = LinearSDE

    def __post_init__(self) -> None:
        check_count(self.steps, "steps")
        if self.grid not in ("quadratic", "uniform"):
            raise ArgumentError(f"grid: got {self.grid!r}; expected 'quadratic' or 'uniform'")

    @abc.abstractmethod
    def step(
        self, x: Tensor, t: float, s: float, score: Score, process: GaussianProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        """One step from time ``t`` down to ``s < t``; may write into ``x``.

        Args:
            x: Samples at time ``t``.
            t, s: Times, as Python floats.
            score: Gives the score of a batch at one time.
            process: Gives the coefficients.
            noise: Gives a standard normal tensor like ``x``, valid until its next call.
        """

    def times(self, t_start: float, t_end: float, steps: int) -> list[float]:
        """The ``steps + 1`` decreasing times of the grid, from ``t_start`` to ``t_end``."""
        power = 2 if self.grid == "quadratic" else 1
        inner = [t_end + (t_start - t_end) * (1.0 - i / steps) ** power for i in range(1, steps)]
        return [t_start, *inner, t_end]

    def __call__(
        self,
        density: NoiseConditionalDensity,
        process: GaussianProcess,
        x: Tensor,
        t_start: float | None = None,
        t_end: float | None = None,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Refine samples ``x`` at time ``t_start`` down to ``t_end``.

        Args:
            density: Gives the score, also from inside DDP or ``torch.compile``. Run in eval mode; its
                training flags are restored.
            process: The process that the samples are noisy under.
            x: Samples at ``t_start``, shape ``(B, *event_shape)``, data units. Never written to.
            t_start: Where to start; the process's T if None.
            t_end: Where to stop; if None t = 0, for lattice densities by way of 0.3 level.
            context: Conditioning with B rows, or None.
            generator: Source of the noise.
            progress: Show a progress bar (needs tqdm).

        Returns:
            Samples at ``t_end``, shape of ``x``, neither clamped nor rounded. With
            ``t_start == t_end`` a copy of ``x``, and nothing is drawn.

        Raises:
            UnsupportedError: The process is not of the kind that the sampler needs.
            ArgumentError: Times out of order or range, another process than the density's, ...
            NonFiniteError: A score is NaN or infinite; the message says at which t and step.
        """
        if not isinstance(process, self.needs):
            raise UnsupportedError(
                f"process: got {type(process).__name__}; {type(self).__name__} expected a {self.needs.__name__}, "
                f"since it uses its coefficients"
            )
        density = as_density(density)
        check_process(density, process)
        start = process.T if t_start is None else one_time(t_start, "t_start", process.T)
        stop = 0.0 if t_end is None else one_time(t_end, "t_end", process.T)
        if stop > start:
            raise ArgumentError(
                f"t_end: got {stop:.6g}; expected at most t_start = {start:.6g}: samplers go towards the data"
            )
        if start > process.T or stop < 0.0:
            raise ArgumentError(
                f"t_start, t_end: got {start:.6g}, {stop:.6g}; expected 0 <= t_end <= t_start <= T = {process.T:.6g}"
            )
        x, _, context = density._checked(x, start, context)
        check_generator(generator, x.device)
        if start == stop or x.shape[0] == 0:
            return x.detach().clone()

        plan = self.plan(density, process, start, None if t_end is None else stop)
        # Below the lattice's stop only Tweedie's step is sound, also for samplers with a last step of their own.
        # A process with noise left at t = 0 has nothing to denoise there: its p_0 is noisy.
        tweedie_last = _ends_clean(process) and (self.denoise_last or (t_end is None and density.lattice is not None))
        with evaluating(density), torch.no_grad():
            context = context.clone() if context is not None and context.is_inference() else context
            return self._run(
                _Scorer(density, context, x.shape[0]),
                process,
                x.detach().clone(),
                plan,
                tweedie_last,
                generator,
                progress,
            )

    def plan(
        self, density: NoiseConditionalDensity, process: GaussianProcess, t_start: float, t_end: float | None
    ) -> list[float]:
        """The grid of one call: to t = 0, or for lattice densities to 0.3 level and then to 0."""
        if t_end is None and density.lattice is not None and _ends_clean(process):
            sigma = LATTICE_STOP * density.lattice.width
            t_stop = float(process.time_at(sigma)) if sigma < float(process.sigma(process.T)) else process.T
            if self.steps == 1 or t_stop >= t_start:
                return [t_start, 0.0]
            return [*self.times(t_start, t_stop, self.steps - 1), 0.0]
        return self.times(t_start, t_end or 0.0, self.steps)

    def _run(
        self,
        score: _Scorer,
        process: GaussianProcess,
        x: Tensor,
        times: list[float],
        tweedie_last: bool,
        generator: torch.Generator | None,
        progress: bool,
    ) -> Tensor:
        # Contiguous, so that the noise of a seed does not depend on the memory layout of x.
        buffer = torch.empty_like(x, memory_format=torch.contiguous_format)

        def noise() -> Tensor:
            return buffer.normal_(generator=generator)

        pairs = list(itertools.pairwise(times))
        for i, (t, s) in enumerate(progress_bar(pairs, progress, type(self).__name__)):
            score.position = i
            if s == 0.0 and tweedie_last:
                x = tweedie(x, t, score, process)
            else:
                x = self.step(x, t, s, score, process, noise)
        return x


class _Scorer:
    """The score of a density at one time for the whole batch, checked to be finite."""

    def __init__(self, density: NoiseConditionalDensity, context: Tensor | None, n: int) -> None:
        self.density, self.context, self.n = density, context, n
        self.position = 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        times = torch.full((self.n,), t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        score = self.density.forward_score(x, times, self.context)
        # A finite sum proves finite terms in one pass; only a failure needs a second look.
        if not math.isfinite(score.sum().item()) and not bool(torch.isfinite(score).all()):
            bad = (~torch.isfinite(score.flatten(1)).all(1)).nonzero().flatten().tolist()
            rows = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise NonFiniteError(
                f"score: got NaN or infinity for {len(bad)} of {self.n} samples at t = {t:.6g} (step {self.position}; "
                f"rows {rows}); expected finite values; start at a lower t_start, take more steps, or leave these "
                f"rows out: they are where the model is worst"
            )
        return score


def as_density(density: nn.Module) -> NoiseConditionalDensity:
    """The density itself, out of the wrappers that samplers have no use for."""
    inner = unwrapped(density)
    if inner is None:
        raise ArgumentTypeError(
            f"density: got {type(density).__name__}; expected a NoiseConditionalDensity; wrap it in CallableDensity"
        )
    return inner


def _ends_clean(process: GaussianProcess) -> bool:
    return float(process.sigma(0.0)) == 0.0


def one_time(t: float | Tensor, name: str, T: float) -> float:
    """One time for the whole batch, as a Python float; T rounded up to float32 counts as T."""
    if isinstance(t, bool) or not isinstance(t, (int, float, Tensor)) or (isinstance(t, Tensor) and t.ndim):
        raise ArgumentTypeError(
            f"{name}: got {type(t).__name__}; expected one number: the whole batch is refined together"
        )
    value = clamp_time(float(t), T)
    if math.isnan(value):
        raise ArgumentError(f"{name}: got NaN; expected a time")
    return value
