r"""Targets built from targets: products, differences and guidance, which samplers need not know of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ncml.checks import Time, per_example
from ncml.density.around import check_free
from ncml.density.target import OnFailure, Target
from ncml.errors import ArgumentError
from ncml.noise import NoiseProcess

__all__ = ["ComposedTarget", "guided"]


class ComposedTarget(Target):
    r"""The product :math:`\prod_j p_{j,t}^{w_j}`, up to a constant: experts, differences, guidance.

    Score and log-density are the weighted sums of the parts'. The product of noisy densities is not the noisy product
    (Du et al., 2023, "Reduce, reuse, recycle"): at t = 0 the two are equal, and samplers that move by the log-density
    at each level (:class:`~ncml.sampling.MetropolisLangevin`) follow the product there, while a reverse SDE does so
    only roughly.

    Args:
        parts: Pairs of a weight and a target, of one process and event shape; the first one's lattice and
            generator are those of the product. Negative weights take something away; parts of weight 0 are left out.

    Raises:
        ArgumentError: No parts, or parts that do not fit together.
        UnsupportedError: A :class:`~ncml.density.CompletionTarget` among them.

    Example:
        >>> process = VPSDE.at_noise(0.5)
        >>> one, other = (GaussianDensity(process, [m], 0.3) for m in (-0.2, 0.2))
        >>> both = ComposedTarget((1.0, Target(one)), (1.0, Target(other)))
        >>> ncml.sampling.EulerMaruyama(16)(both, torch.zeros(4, 1)).shape
        torch.Size([4, 1])
    """

    def __init__(self, *parts: tuple[float, Target]) -> None:
        if not parts or not all(isinstance(part, Target) and math.isfinite(weight) for weight, part in parts):
            raise ArgumentError(f"parts: got {parts!r}; expected pairs of a finite weight and a Target, at least one")
        first = parts[0][1]
        super().__init__(first.density, process=first.process, context=first.context, generator=first.generator)
        for _, part in parts:
            check_free(part, "parts")
        for _, part in parts[1:]:
            if part.process != first.process or part.event_shape != first.event_shape:
                raise ArgumentError(
                    f"parts: got {part.event_shape} under {part.process} beside {first.event_shape} under "
                    f"{first.process}; expected one event shape and process; see density.under(process)"
                )
        self.parts = tuple((weight, part) for weight, part in parts if weight != 0.0)
        if not self.parts:
            raise ArgumentError("parts: got weights of 0 only; expected something to sample from")

    @property
    def has_log_density(self) -> bool:  # type: ignore[override]
        return all(part.has_log_density for _, part in self.parts)

    def observed(self, x: Tensor) -> Tensor | None:
        masks = [part.observed(x) for _, part in self.parts]
        known = [mask for mask in masks if mask is not None]
        return torch.stack(known).any(0) if len(known) == len(masks) else None

    @property
    def differing(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, part in self.parts for name in part.differing))

    def bound(self, x: Tensor, t: Time, *, on_failure: OnFailure = "raise") -> tuple[Target, Tensor]:
        target, y = super().bound(x, t, on_failure=on_failure)
        assert isinstance(target, ComposedTarget)
        target.parts = tuple(
            (weight, part.bound(x, t, on_failure=on_failure)[0].in_call_of(target)) for weight, part in self.parts
        )
        return target, y

    def in_call_of(self, other: Target) -> Target:
        target = super().in_call_of(other)
        assert isinstance(target, ComposedTarget)
        target.parts = tuple((weight, part.in_call_of(other)) for weight, part in self.parts)
        return target

    def with_generator(self, generator: torch.Generator | None) -> Target:
        target = super().with_generator(generator)
        assert isinstance(target, ComposedTarget)
        target.parts = tuple((weight, part.with_generator(generator)) for weight, part in self.parts)
        return target

    def rows(self, index: Tensor) -> Target:
        target = super().rows(index)
        assert isinstance(target, ComposedTarget)
        target.parts = tuple((weight, part.rows(index)) for weight, part in self.parts)
        return target

    def prepare(self, times: Sequence[float]) -> None:
        super().prepare(times)
        for _, part in self.parts:
            part.prepare(times)

    def reorder(self, rows: Tensor) -> None:
        for _, part in self.parts:
            part.reorder(rows)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _, part in self.parts:
                stack.enter_context(part.evaluating())
            yield

    def score(self, x: Tensor, t: Time) -> Tensor:
        return _summed([weight * part.score(x, t) for weight, part in self.parts])

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        return _summed([weight * part.differentiable_score(x, t) for weight, part in self.parts])

    def finished(self, x: Tensor, t: Time) -> Tensor:
        for _, part in self.parts:
            x = part.finished(x, t)
        return x

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return self._checked(_summed([weight * part.log_prob(x, t) for weight, part in self.parts]), t)

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        return self._checked(_summed([weight * part.log_density(x, t) for weight, part in self.parts]), t)

    def log_density_and_score(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        both = [(weight, *part.log_density_and_score(x, t)) for weight, part in self.parts]
        log_p = self._checked(_summed([w * log_p for w, log_p, _ in both]), t)
        score = _summed([w * score for w, _, score in both])
        return log_p, score.masked_fill(per_example(log_p.isnan(), score), math.nan)

    def _checked(self, log_p: Tensor, t: Time) -> Tensor:
        """Taking away a density that is 0 leaves infinity, which counts as a failure."""
        return self.noted_log_density(log_p, self.row_times(log_p, t))


def guided(
    density: nn.Module,
    context: Tensor,
    weight: float,
    *,
    null: Tensor | None = None,
    process: NoiseProcess | None = None,
    generator: torch.Generator | None = None,
) -> ComposedTarget:
    r"""Classifier-free guidance: the target :math:`p_t(x \mid c)^{1 + w} / p_t(x)^w` (Ho and Salimans, 2022).

    Args:
        density: A density that was trained with some labels dropped (``label_dropout``).
        context: What to condition on, one row per example.
        weight: The w; 0 is the conditional density itself.
        null: The context that stands for none; by default the label -1 for every row of integer labels.
        process: The density's process; its own if None.
        generator: Source of randomness.

    Returns:
        A target, to be given to a sampler in place of the density.

    Raises:
        ArgumentError: A context that is not of integer labels, without ``null``.
    """
    if null is None:
        signed = isinstance(context, Tensor) and context.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        if not signed:
            raise ArgumentError(
                "null: got None with a context that is not signed integer labels; expected what means no context"
            )
        null = torch.full_like(context, -1)
    parts = ((1.0 + weight, context), (-float(weight), null))
    targets = [(w, Target(density, process=process, context=c, generator=generator)) for w, c in parts]
    return ComposedTarget(*targets)


def _summed(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
