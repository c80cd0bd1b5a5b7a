r"""The sampler interface: a call with checks, :meth:`Sampler.refine`, around any algorithm, :meth:`Sampler.run`.

A sampler takes :math:`x_t` at ``t_start`` to ``t_end``, towards the data, with what a
:class:`~ncml.density.Target` gives: the score, the log-density, the coefficients of the process, normals and
uniforms. Everything is checked once, at the call; ``run`` and ``step`` check nothing.

**Where it ends.** The exact score of lattice data diverges at t = 0, and a head whose narrowest shape is one bin cannot
follow it below about 0.3 levels of noise. For a density with a lattice, and ``t_end=None``, the sampler therefore runs
to where sigma is 0.3 level, and from there one noise-free step by Tweedie's formula leads to t = 0. For other densities
it runs to t = 0.
"""

from __future__ import annotations

import abc
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from ncml.checks import check_choice, check_count, clamp_time, is_real, per_example
from ncml.density import Target, process_by_name
from ncml.density.target import OnFailure
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise import DiscreteProcess, GaussianProcess, Lattice, NoiseProcess
from ncml.noise.gaussian import clean_at_zero
from ncml.progress import progress_counter
from ncml.sampling.grids import Grid, as_grid, checked_times

__all__ = [
    "LATTICE_STOP",
    "GridSampler",
    "Keep",
    "Refined",
    "Sampler",
    "check_on_failure",
    "check_stepper",
    "one_time",
    "rounded",
]

LATTICE_STOP = 0.3
"""Noise, in levels, at which refinement of lattice data stops by default (the head's resolution)."""

Keep = Callable[[float | Tensor, Tensor], None]
"""What ``run`` calls after each step, with the time (or one per row) and the samples there."""


@dataclass(frozen=True, eq=False, repr=False)
class Refined:
    """The result of a refinement.

    Args:
        x: The samples at ``t``, shape as they started; neither clamped nor rounded.
        t: The time that they have reached.
        evaluations: Number of rows that the density evaluated in all; divided by ``len(x)``, the cost of a sample.
        path: With ``path=True`` the start and the state after every step, as pairs of time and samples.
        info: What the sampler reports (acceptance, steps of each row, ...), empty if it had nothing to do; under
            ``"failed"``, the rows that failed and are NaN, if there are any.
    """

    x: Tensor
    t: float
    evaluations: int = 0
    path: tuple[tuple[float | Tensor, Tensor], ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        path = f", path of {len(self.path)}" if self.path else ""
        said = f", info: {', '.join(self.info)}" if self.info else ""
        return f"Refined(x {tuple(self.x.shape)} at t = {self.t:.6g}, {self.evaluations:,} evaluations{path}{said})"


class Sampler(abc.ABC):
    """Refines samples from one noise level to a lower one.

    Subclasses are frozen dataclasses of their settings and implement :meth:`run`; those that step along a fixed
    grid of times are a :class:`GridSampler`. Run :func:`ncml.testing.check_sampler` on them.

    Attributes:
        samples_distribution: True if the results follow the distribution of the data in the limit of much work;
            False for posterior means, which go to t = 0 whatever the lattice.
        needs: The kind of process that the sampler needs.
        needs_log_density: Whether it needs the log-density, and not only its gradient.
        moves_in_place: True for Markov chains, which have something to do when ``t_start == t_end``.
        rows_interact: True if a row's result depends on the other rows on purpose, as with resampling.
    """

    samples_distribution: ClassVar[bool] = True
    needs: ClassVar[type[NoiseProcess]] = GaussianProcess
    needs_log_density: ClassVar[bool] = False
    moves_in_place: ClassVar[bool] = False
    rows_interact: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        step = vars(cls).get("step")
        if step is not None and len(inspect.signature(step).parameters) != 6:
            raise ArgumentTypeError(
                f"{cls.__name__}.step: got ({', '.join(inspect.signature(step).parameters)}); expected, since version "
                f"0.2, a GridSampler with step(self, target, x, t, s, state) that returns (x, state), where target has "
                f"score(x, t), normal(x) and the coefficients"
            )

    @abc.abstractmethod
    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        """Take samples from ``start`` down to ``stop``. Nothing needs checking; ``x`` may be written to.

        Args:
            target: Gives scores, log-densities, coefficients and random numbers.
            x: Samples at ``start``.
            start, stop: Times; equal only for samplers that move in place.
            keep: To be called after each step, with the time reached (or one per row) and the samples there.

        Returns:
            Samples at ``stop``, and anything else to report (``info`` of :class:`~ncml.Refined`).
        """

    def check(self, target: Target, start: float, stop: float) -> None:  # noqa: B027 -- most have nothing to add
        """Refuse what this sampler in particular cannot do; called first, before anything is drawn."""

    def expected_steps(self) -> int | None:
        """How many steps a call takes, for the progress bar; None if that depends."""
        return None

    @process_by_name("x", "sampler(density, x, t_start, t_end, process=...)")
    def __call__(
        self,
        density: nn.Module | Target,
        x: Tensor,
        t_start: float | None = None,
        t_end: float | None = None,
        *,
        process: NoiseProcess | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        on_failure: OnFailure = "raise",
    ) -> Tensor:
        """The samples of :meth:`refine`; arguments and errors are those."""
        return self.refine(
            density,
            x,
            t_start,
            t_end,
            process=process,
            context=context,
            generator=generator,
            progress=progress,
            on_failure=on_failure,
        ).x

    @process_by_name("x", "sampler.refine(density, x, t_start, t_end, process=...)")
    def refine(
        self,
        density: nn.Module | Target,
        x: Tensor,
        t_start: float | None = None,
        t_end: float | None = None,
        *,
        process: NoiseProcess | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        path: bool = False,
        progress: bool = False,
        on_failure: OnFailure = "raise",
    ) -> Refined:
        """Refine samples ``x`` at time ``t_start`` down to ``t_end``.

        Args:
            density: A density, or a wrapper (DDP, ``torch.compile``) of one, which is then what is called; or a
                :class:`~ncml.density.Target`, which has a process and a context already. Run in eval mode; training
                flags are restored.
            x: Samples at ``t_start``, shape ``(B, *event_shape)``, data units. Never written to.
            t_start: Where to start; the process's T if None.
            t_end: Where to stop; if None, t = 0 (for lattice densities by way of 0.3 level).
            process: The process that the samples are noisy under; the density's own if None.
            context: Conditioning with B rows, or None.
            generator: Source of the noise.
            path: Keep the samples after every step.
            progress: Show a progress bar (needs tqdm).
            on_failure: What to do about a row whose score is NaN or infinite: "raise" ends the call without a partial
                result; "keep" gives up that row, which is NaN and named in ``info["failed"]``, and continues with the
                others.

        Returns:
            The samples at ``t_end``, what they cost, and what the sampler reports. With ``t_start == t_end`` a copy of
            ``x``, for which nothing is drawn, unless the sampler moves in place.

        Raises:
            UnsupportedError: The process, or the target, is not of the kind that the sampler needs.
            ArgumentError: Times out of order or range, a process other than the density's, ...
            NonFiniteError: A score is NaN or infinite; the message says in which rows, at which t and step.
        """
        target = self.bind(density, process, context, generator)
        start, rest, stop = self.times_of_call(target, t_start, t_end)
        check_on_failure(on_failure)
        target, x = target.bound(x, start, on_failure=on_failure)
        kept: list[tuple[float | Tensor, Tensor]] = [(start, x.clone())] if path else []
        if x.shape[0] == 0 or (start == stop and not self.moves_in_place):
            return Refined(x, stop, 0, tuple(kept))

        bar = progress_counter(progress, type(self).__name__, self.expected_steps())

        def keep(t: float | Tensor, x: Tensor) -> None:
            target.advance()
            bar.update()
            if path:
                y = target.finished(x, t).clone()
                kept.append((t, y if target.failed is None else y.masked_fill(per_example(target.failed, y), math.nan)))

        info: dict[str, Any] = {}
        with bar, target.evaluating(), torch.no_grad():
            if start > rest or start == stop:
                x, info = self.run(target, x, start, rest, keep)
            if rest > stop:
                x = target.denoise(x, rest)
                keep(stop, x)
        x = target.finished(x, stop)
        if (failed := target.failed) is not None and bool(failed.any()):  # resampling may have replaced them
            x[failed] = math.nan
            info = {**info, "failed": failed.nonzero().flatten()}
        return Refined(x, stop, target.evaluations, tuple(kept), info)

    # The parts of the edge, which ``generate`` goes through before it draws.

    def bind(
        self,
        density: nn.Module | Target,
        process: NoiseProcess | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Target:
        """The target of a call, if this sampler can sample from it."""
        if isinstance(density, Target):
            given = {"process": process, "context": context}
            if names := [name for name, value in given.items() if value is not None]:
                raise ArgumentError(f"{names[0]}: got one with a target; expected None: the target has its own")
            target = density if generator is None else density.with_generator(generator)
            name = type(density).__name__
        else:
            target, name = Target(density, process=process, context=context, generator=generator), "density"
        if not isinstance(target.process, self.needs):
            discrete = isinstance(target.process, DiscreteProcess)
            others = "; LatticeGibbs and LatticeMetropolis refine under discrete ones" if discrete else ""
            raise UnsupportedError(
                f"process: got {type(target.process).__name__}; {type(self).__name__} expected a "
                f"{self.needs.__name__}, since it uses its coefficients{others}; t_start=0 is plain sampling, without "
                f"a sampler"
            )
        if self.needs_log_density and not target.has_log_density:
            raise UnsupportedError(
                f"density: got a {name} with a score but no log-density, which {type(self).__name__} needs; expected "
                f"one with both; or take a sampler that needs the score only, such as EulerMaruyama"
            )
        return target

    def times_of_call(self, target: Target, t_start: float | None, t_end: float | None) -> tuple[float, float, float]:
        """Checked times of a call: where it starts, where the sampler itself stops, and where the samples end up."""
        T = target.process.T
        start = T if t_start is None else one_time(t_start, "t_start", T)
        stop = 0.0 if t_end is None else one_time(t_end, "t_end", T)
        if not (0.0 <= start <= T and stop >= 0.0):
            raise ArgumentError(
                f"t_start, t_end: got {start:.6g}, {stop:.6g}; expected 0 <= t_end <= t_start <= T = {T:.6g}"
            )
        if stop > start:
            raise ArgumentError(
                f"t_end: got {stop:.6g}; expected at most t_start = {start:.6g}: samplers go towards the data"
            )
        rest = self._rest(target, start, stop) if t_end is None else stop
        self.check(target, start, rest)
        return start, rest, stop

    def _rest(self, target: Target, start: float, stop: float) -> float:
        """Where the sampler itself stops: for lattice data at 0.3 level, below which only Tweedie's step is sound."""
        process = target.process
        # A process with noise left at t = 0 has nothing to denoise there: its p_0 is noisy.
        if target.lattice is None or not self.samples_distribution or not clean_at_zero(process):
            return stop
        sigma = LATTICE_STOP * target.lattice.width
        return start if sigma >= float(process.sigma(start)) else float(process.time_at(sigma))


@dataclass(frozen=True)
class GridSampler(Sampler):
    """A sampler that takes the steps of a grid: subclasses write :meth:`~ncml.GridSampler.step`.

    Args:
        steps: Number of steps, at least 1; lattice densities refined with ``t_end=None`` take one more at the end, by
            Tweedie's formula from 0.3 level.
        grid: How the times are spread: a name or function of :mod:`ncml.sampling.grids`. Default ``"quadratic"``,
            :math:`t_i = t_{end} + (t_{start}-t_{end})(1-i/n)^2`.
        denoise_last: Take the last step to t = 0 by Tweedie's formula, without adding noise.
    """

    steps: int = 128
    grid: Grid | str = "quadratic"
    denoise_last: bool = True

    def __post_init__(self) -> None:
        check_count(self.steps, "steps")
        as_grid(self.grid)

    @abc.abstractmethod
    def step(self, target: Target, x: Tensor, t: float, s: float, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """One step from time ``t`` down to ``s < t``; may write into ``x``.

        Args:
            target: Gives scores, coefficients and random numbers.
            x: Samples at time ``t``.
            t, s: Times, as Python floats.
            state: What the last step returned besides the samples; at first what :meth:`begin` gives. Yours to use.

        Returns:
            Samples at ``s``, and the state for the next step.
        """

    def begin(self, times: list[float]) -> Any:  # noqa: ANN401
        """The state of the first step, for samplers that need to know all the times ahead; None for others."""
        return None

    def info(self, state: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the last state has to report (``info`` of :class:`~ncml.Refined`)."""
        return {}

    def check(self, target: Target, start: float, stop: float) -> None:
        self.times(target.process, start, stop)

    def expected_steps(self) -> int | None:
        return self.steps

    def times(self, process: GaussianProcess, start: float, stop: float) -> list[float]:
        """The decreasing times of a call."""
        return checked_times(self.grid, process, start, stop, self.steps)

    def run(self, target: Target, x: Tensor, start: float, stop: float, keep: Keep) -> tuple[Tensor, dict[str, Any]]:
        times = self.times(target.process, start, stop)
        target.prepare(times)
        state = self.begin(times)
        tweedie_last = self.denoise_last and start > stop and clean_at_zero(target.process)
        for t, s in itertools.pairwise(times):
            if s == 0.0 and tweedie_last:
                x = target.denoise(x, t)
            else:
                result = self.step(target, x, t, s, state)
                if not isinstance(result, tuple) or len(result) != 2:  # of one's own: the slip of old habits
                    raise ArgumentTypeError(
                        f"{type(self).__name__}.step: got a {type(result).__name__}; expected a pair, return x, state"
                    )
                x, state = result
            keep(s, x)
        return x, self.info(state)


def rounded(x: Tensor, lattice: Lattice) -> Tensor:
    """Samples at t = 0, clamped and rounded to their lattice; rows that have failed stay NaN."""
    return torch.where(x.isnan(), x, lattice.quantize(x.nan_to_num()))


def check_stepper(sampler: object, name: str) -> None:
    """Refuse, inside another sampler, anything but steps of single rows under a Gaussian process."""
    if not isinstance(sampler, GridSampler):
        raise ArgumentTypeError(f"{name}: got {sampler!r}; expected a GridSampler, such as EulerMaruyama()")
    kind = type(sampler).__name__
    if sampler.rows_interact:
        raise ArgumentError(f"{name}: got {kind}, whose particles have weights; expected a sampler of single rows")
    if not issubclass(GaussianProcess, sampler.needs):
        raise ArgumentError(f"{name}: got {kind}, for a {sampler.needs.__name__}; expected one for a GaussianProcess")


def check_on_failure(on_failure: str) -> None:
    """Refuse anything but the two ways to treat rows that fail."""
    check_choice(on_failure, "on_failure", get_args(OnFailure))


def one_time(t: float | Tensor, name: str, T: float) -> float:
    """One time for the whole batch, as a Python float; T rounded up to float32 counts as T."""
    if t.ndim if isinstance(t, Tensor) else not is_real(t):
        raise ArgumentTypeError(
            f"{name}: got {type(t).__name__}; expected one number: the whole batch is refined together"
        )
    value = clamp_time(float(t), T)
    if math.isnan(value):
        raise ArgumentError(f"{name}: got NaN; expected a time")
    return value
