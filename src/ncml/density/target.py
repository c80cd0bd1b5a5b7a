r""":math:`p_t` for one call: a density bound to its process, context and source of randomness.

Samplers see nothing else. Whatever changes the distribution (guidance, conditioning, products) is a target too, which
answers with another score: a subclass, or one built around others (:class:`~ncml.density.ComposedTarget`).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_finite, check_generator, per_example
from ncml.density.checks import check_arguments, observed_dims
from ncml.density.entry import density_and_score_of, inner_density, process_of, score_of
from ncml.density.modes import evaluating, usable
from ncml.errors import NonFiniteError
from ncml.noise import Lattice, NoiseProcess, as_time

__all__ = ["OnFailure", "Target"]

OnFailure = Literal["raise", "keep"]


@dataclass
class _Counts:
    """What the targets of one call share."""

    evaluations: int = 0
    step: int = 0
    failed: Tensor | None = None  # (n,) bool for all rows of the call, once one has failed and failures are kept


class Target:
    r"""The density, process, context and generator of one call; counts the rows that it evaluates.

    Times are a number for all rows, or a tensor with one per row. Coefficients of the process are a float for a
    float, and a tensor that broadcasts over ``x`` for one time per row.

    Args:
        density: A :class:`~ncml.NoiseConditionalDensity`, or a wrapper (DDP, compiled) of one, which is then what
            is called.
        process: Its process; the density's own if None.
        context: Conditioning with one row per example, or None.
        generator: Source of randomness; torch's default generator if None.

    Attributes:
        has_log_density: False for targets that know a score but no density.

    Raises:
        ArgumentError, ArgumentTypeError: No density, no process, or a process other than the density's.
    """

    has_log_density: ClassVar[bool] = True

    def __init__(
        self,
        density: nn.Module,
        *,
        process: NoiseProcess | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        inner = inner_density(density)
        self.density = density
        self.process: Any = process_of(density, process)
        self.lattice: Lattice | None = inner.lattice
        self.context, self.generator = context, generator
        self.dtype, self.device, self.on_failure = inner.dtype, inner.device, "raise"
        self._inner, self._index = inner, None
        self._counts = _Counts()
        self._buffer: Tensor | None = None
        self._places: dict[float, int] = {}
        self._columns: dict[str, list[Any]] = {}
        self._size = 0

    _index: Tensor | None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._inner.event_shape

    def observed(self, x: Tensor) -> Tensor | None:
        """Which values of ``x`` the target covers, bool of its shape; None if all."""
        return self._inner.observed(x, self.context)

    def dims(self, x: Tensor) -> int | Tensor:
        """The number of these values, D or ``(B,)``."""
        return observed_dims(self.observed(x), x)

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of what differs between rows, which are then not exchangeable; empty if nothing does."""
        context = self.context
        return () if context is None or bool((context == context[:1]).all()) else ("context",)

    @property
    def holds_values(self) -> bool:
        """Whether some values are held at the noise of each level, so that ``x`` is not what the score is taken at."""
        return False

    # What a call begins with; the checked edge of samplers uses it.

    def bound(self, x: Tensor, t: Time, *, on_failure: OnFailure = "raise") -> tuple[Target, Tensor]:
        """This target for one call that starts at ``x``, with counts of its own; and a checked copy of ``x``.

        Rows that are not finite have failed from the start, where failures are kept.
        """
        x, _, context = check_arguments(self._inner, x, t, self.context, finite=False)
        if on_failure == "raise":
            check_finite(x, "x", "leave these rows out, or pass on_failure='keep'")
        check_generator(self.generator, x.device)
        target = copy.copy(self)
        with torch.inference_mode(False):  # tensors that autograd can use
            x = x.detach().clone()
            target.context = None if context is None else usable(context)
        target.dtype, target.device, target.on_failure = x.dtype, x.device, on_failure
        target._counts, target._buffer, target._size = _Counts(), None, len(x)
        target._places, target._columns = {}, {}
        if on_failure == "keep":
            target.give_up(~torch.isfinite(x.flatten(1)).all(1))
        return target, x

    def in_call_of(self, other: Target) -> Target:
        """This target as part of another's call, with that one's counts and failures; for targets built around it."""
        target = copy.copy(self)
        target._counts, target._size, target.on_failure = other._counts, other._size, other.on_failure
        return target

    def with_generator(self, generator: torch.Generator | None) -> Target:
        """The same target with another source of randomness."""
        target = copy.copy(self)
        target.generator, target._buffer = generator, None
        return target

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """The mode in which :meth:`score` and its like are called: eval, and without inference mode."""
        return evaluating(self.density)

    def finished(self, x: Tensor, t: Time) -> Tensor:
        """What a call returns for samples ``x`` at ``t``: targets that hold some values put them in place."""
        return x

    def prepare(self, times: Sequence[float]) -> None:
        """Say at which times, decreasing, a call will need coefficients, so that they are computed together.

        One by one they would cost small batches more than the rest of a step.
        """
        self._places, self._columns = {t: i for i, t in enumerate(dict.fromkeys(times))}, {}

    def rows(self, index: Tensor) -> Target:
        """The same target for some of its rows: their context with them, counts and failures shared."""
        target = copy.copy(self)
        target.context = None if self.context is None else self.context[index]
        target._index = index if self._index is None else self._index[index]
        target._buffer = None
        return target

    # The density.

    def score(self, x: Tensor, t: Time) -> Tensor:
        r""":math:`\nabla_x \log p_t(x)`, shape of ``x``.

        Raises:
            NonFiniteError: NaN or infinity in a row, unless failures are kept: then that row's score is NaN.
        """
        y, times = self._entering(x, t)
        score = score_of(self.density, y, times, self.context)
        # A finite sum proves finite terms in one pass; only a failure needs a second look.
        if self._counts.failed is not None or not math.isfinite(score.sum().item()):
            bad = ~torch.isfinite(score.flatten(1)).all(1)
            return score.masked_fill(per_example(self.noted(bad, times, "score"), score), math.nan)
        return score

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        """The score with a graph back to ``x``, to be differentiated again; unchecked."""
        y, times = self._entering(x, t)
        return score_of(self.density, y, times, self.context, create_graph=True)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """The likelihood ``(B,)`` in nats, with the lattice's edges where the process keeps data on it."""
        y, times = self._entering(x, t)
        log_p: Tensor = self.density(y, times, self.context)
        return self.noted_log_density(log_p, times)

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        """The log-density ``(B,)`` in nats, without lattice edges."""
        y, times = self._entering(x, t)
        log_p: Tensor = self.density(y, times, self.context, edges=False)
        return self.noted_log_density(log_p, times)

    def log_density_and_score(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Both from one call of the density; where the density is zero, the score given is 0."""
        y, times = self._entering(x, t)
        log_p, score = density_and_score_of(self.density, y, times, self.context)
        log_p = log_p.detach()
        if self._counts.failed is None and math.isfinite(float(log_p.sum())) and math.isfinite(float(score.sum())):
            return log_p, score
        outside = log_p == -math.inf
        score = score.masked_fill(per_example(outside, score), 0.0)
        bad = log_p.isnan() | (log_p == math.inf) | ~torch.isfinite(score.flatten(1)).all(1)
        failed = self.noted(bad, times, "log-density or score")
        return log_p.masked_fill(failed, math.nan), score.masked_fill(per_example(failed, score), math.nan)

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        r"""Tweedie's formula, :math:`E[x_0 \mid x_t] = (x_t + \sigma_t^2\, \nabla\log p_t(x_t)) / \alpha_t`."""
        sigma, alpha = self.sigma(t), self.alpha(t)
        if isinstance(sigma, float):
            return x.add(self.score(x, t), alpha=sigma**2).div_(alpha)
        return (x + sigma**2 * self.score(x, t)) / alpha

    # The process.

    def alpha(self, t: Time) -> Any:  # noqa: ANN401 -- a float for a float, a tensor for a tensor
        return self._coefficient("alpha", t)

    def sigma(self, t: Time) -> Any:  # noqa: ANN401
        return self._coefficient("sigma", t)

    def drift_coefficient(self, t: Time) -> Any:  # noqa: ANN401
        return self._coefficient("drift_coefficient", t)

    def diffusion(self, t: Time) -> Any:  # noqa: ANN401
        return self._coefficient("diffusion", t)

    def transition(self, s: float, t: float) -> tuple[float, float]:
        """Scale and standard deviation of :math:`x_t` given :math:`x_s`, for ``s <= t``."""
        place = self._places.get(t)
        if place is None or self._places.get(s) != place + 1:
            scale, std = self.process.transition(s, t)
            return float(scale), float(std)
        if (column := self._columns.get("transition")) is None:
            times = torch.tensor(list(self._places), dtype=torch.float64, device="cpu")
            pairs = (part.expand(len(times) - 1).tolist() for part in self.process.transition(times[1:], times[:-1]))
            self._columns["transition"] = column = list(zip(*pairs, strict=True))
        found: tuple[float, float] = column[place]
        return found

    def _coefficient(self, name: str, t: Time) -> Any:  # noqa: ANN401
        coefficient = getattr(self.process, name)
        if isinstance(t, Tensor):
            return coefficient(t).to(self.dtype).reshape(-1, *([1] * len(self._inner.event_shape)))
        place = self._places.get(t)
        if place is None:
            return float(coefficient(as_time(t)))
        if (column := self._columns.get(name)) is None:
            times = torch.tensor(list(self._places), dtype=torch.float64, device="cpu")
            self._columns[name] = column = coefficient(times).expand(len(times)).tolist()
        return column[place]

    # Randomness.

    def normal(self, x: Tensor) -> Tensor:
        """A standard normal tensor like ``x``, valid until the next call."""
        if self._buffer is None or self._buffer.shape != x.shape:
            # Contiguous, so that the noise of a seed does not depend on the memory layout of x.
            self._buffer = torch.empty_like(x, memory_format=torch.contiguous_format)
        return self._buffer.normal_(generator=self.generator)

    def uniform(self, n: int) -> Tensor:
        """``n`` uniforms on [0, 1) in the dtype of the call."""
        return torch.rand(n, dtype=self.dtype, device=self.device, generator=self.generator)

    # What was spent, and what failed.

    @property
    def evaluations(self) -> int:
        """Rows evaluated so far, by this target and those that share its counts."""
        return self._counts.evaluations

    def advance(self) -> None:
        """Count a step, for messages."""
        self._counts.step += 1

    @property
    def failed(self) -> Tensor | None:
        """Which of these rows have failed, ``(B,)`` bool; None if none has, or if a failure raises."""
        failed = self._counts.failed
        return failed if failed is None or self._index is None else failed[self._index]

    def give_up(self, bad: Tensor) -> Tensor:
        """Count some of these rows, ``(B,)`` bool, as failed; returns all of these rows that have failed."""
        counts = self._counts
        if counts.failed is None:
            if not bool(bad.any()):
                return bad
            counts.failed = torch.zeros(self._size, dtype=torch.bool, device=bad.device)
        if self._index is None:
            counts.failed |= bad
            return counts.failed
        counts.failed[self._index] |= bad
        return counts.failed[self._index]

    def resampled(self, rows: Tensor) -> None:
        """Say that row i of the call is now a copy of what row ``rows[i]`` was, along with all that belongs to it."""
        if self._counts.failed is not None:
            self._counts.failed = self._counts.failed[rows]
        self.reorder(rows)

    def reorder(self, rows: Tensor) -> None:
        """Reorder what a target has for each row, other than failures; for targets built around it."""

    def _entering(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """What the density is called with: times ``(B,)``, and zeros for the rows that have failed."""
        self._counts.evaluations += len(x)
        failed = self.failed
        return x if failed is None else x.masked_fill(per_example(failed, x), 0.0), self.row_times(x, t)

    def row_times(self, x: Tensor, t: Time) -> Tensor:
        """The time of each row of ``x``, ``(B,)``, in its dtype, which is that of the call: at least float32."""
        return t.to(x.dtype) if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=x.dtype, device=x.device)

    def noted_log_density(self, log_p: Tensor, times: Tensor) -> Tensor:
        """``log_p``, where -infinity is a value; NaN and infinity are refused, or remembered and NaN."""
        log_p = log_p.detach()
        if self._counts.failed is None and math.isfinite(float(log_p.sum())):
            return log_p
        failed = self.noted(log_p.isnan() | (log_p == math.inf), times, "log-density")
        return log_p.masked_fill(failed, math.nan)

    def noted(self, bad: Tensor, times: Tensor, what: str) -> Tensor:
        """Refuse bad rows, or remember them; returns all of these rows that have failed."""
        if self.on_failure == "raise" and bool(bad.any()):
            rows = bad.nonzero().flatten()
            where = (rows if self._index is None else self._index[rows]).tolist()
            listed = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
            raise NonFiniteError(
                f"{what}: got NaN or infinity for {len(where)} of {len(bad)} samples at t = "
                f"{float(times[rows[0]]):.6g} (step {self._counts.step}; rows {listed}); expected finite values; start "
                f"at a lower t_start, take more steps, or pass on_failure='keep', which gives up these rows only: they "
                f"are where the model is worst"
            )
        return bad if self.on_failure == "raise" else self.give_up(bad)
