"""What targets built around another target share."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ncml.checks import Time
from ncml.density.modes import usable
from ncml.density.target import OnFailure, Target
from ncml.errors import ArgumentError, UnsupportedError

__all__ = ["AroundTarget", "check_free"]


class AroundTarget(Target):
    """A target that answers with a function of another target's score and log-density; this class, with these.

    Subclasses override ``score`` and its like. Tensors with a row for each row of the call are named in ``per_row``;
    one with a single row serves all rows.

    Args:
        density: A density, or a target (guided, a product, ...).

    Attributes:
        per_row: Names of the attributes that go with the rows.
    """

    per_row: ClassVar[tuple[str, ...]] = ()

    def __init__(self, density: nn.Module | Target) -> None:
        inner = density if isinstance(density, Target) else Target(density)
        super().__init__(inner.density, process=inner.process, context=inner.context, generator=inner.generator)
        self.inner = inner

    @property
    def has_log_density(self) -> bool:  # type: ignore[override]
        return self.inner.has_log_density

    def observed(self, x: Tensor) -> Tensor | None:
        return self.inner.observed(x)

    @property
    def differing(self) -> tuple[str, ...]:
        own = {name: getattr(self, name) for name in self.per_row}
        return (*self.inner.differing, *(name for name, v in own.items() if not bool((v == v[:1]).all())))

    @property
    def holds_values(self) -> bool:
        return self.inner.holds_values

    def bound(self, x: Tensor, t: Time, *, on_failure: OnFailure = "raise") -> tuple[Target, Tensor]:
        for name in self.per_row:
            if len(getattr(self, name)) not in (1, len(x)):
                raise ArgumentError(
                    f"x: got {len(x)} rows; expected {len(getattr(self, name))}, as many as the target has {name}"
                )
        target, y = super().bound(x, t, on_failure=on_failure)
        assert isinstance(target, AroundTarget)
        target.inner = self.inner.bound(x, t, on_failure=on_failure)[0].in_call_of(target)
        with torch.inference_mode(False):  # tensors that autograd can use
            for name in self.per_row:
                value = usable(getattr(self, name)).to(y.device)
                value = value.to(y.dtype) if value.is_floating_point() else value
                setattr(target, name, value.expand(len(y), *value.shape[1:]))
        return target, y

    def in_call_of(self, other: Target) -> Target:
        target = super().in_call_of(other)
        assert isinstance(target, AroundTarget)
        target.inner = self.inner.in_call_of(other)
        return target

    def with_generator(self, generator: torch.Generator | None) -> Target:
        target = super().with_generator(generator)
        assert isinstance(target, AroundTarget)
        target.inner = self.inner.with_generator(generator)
        return target

    def rows(self, index: Tensor) -> Target:
        target = super().rows(index)
        assert isinstance(target, AroundTarget)
        target.inner = self.inner.rows(index)
        target._take(index)
        return target

    def prepare(self, times: Sequence[float]) -> None:
        super().prepare(times)
        self.inner.prepare(times)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)
        self._take(rows)

    def _take(self, index: Tensor) -> None:
        for name in self.per_row:
            setattr(self, name, getattr(self, name)[index])

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return self.inner.evaluating()

    def finished(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.finished(x, t)

    def score(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.score(x, t)

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.differentiable_score(x, t)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.log_prob(x, t)

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.log_density(x, t)

    def log_density_and_score(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        return self.inner.log_density_and_score(x, t)


def check_free(target: Target, name: str) -> None:
    """Refuse a target that holds values inside one that needs more than its score, and would get it at other values.

    Raises:
        UnsupportedError: The target holds values.
    """
    if target.holds_values:
        raise UnsupportedError(
            f"{name}: got a {type(target).__name__} that holds known values, which what is around it would not see; "
            f"expected one that holds none: put CompletionTarget outermost"
        )
