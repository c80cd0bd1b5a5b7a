r"""Completion: some values of an example are known, and the others are drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_finite, check_floating
from ncml.density.around import AroundTarget
from ncml.density.target import OnFailure, Target
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise.gaussian import as_gaussian

__all__ = ["CompletionTarget"]


class CompletionTarget(AroundTarget):
    r""":math:`p_t(x_U \mid x_K = \alpha_t y + \sigma_t z)`: known values K at the noise of each level, U to be drawn.

    The z of a call is drawn at its start, one for each row, and stays: the known values follow the process exactly,
    whatever the steps, and end at y itself, bit for bit. Whatever a sampler carries in their place is ignored.

    At t = 0 this is the conditional density itself. Samplers that move by the log-density
    (:class:`~ncml.sampling.MetropolisLangevin`) follow it at every level, and so end at it in the limit of many moves.
    A reverse SDE or flow does not: it would need the score given :math:`y`, not given its noisy version ("replacement",
    Song et al., 2021, appendix I.2), and learns the known details too late to act on them. On two coordinates with
    correlation 0.8 and a wide ladder, the mean comes out at 0.61 of what it should be and the variance at 1.51;
    :class:`~ncml.sampling.RePaint` brings them to 0.96 and 1.04, :class:`~ncml.density.PosteriorTarget` to 1.

    When targets are nested, this one must be outermost: the others would not see the values it holds.

    Args:
        density: A density under a Gaussian process, or a target.
        x: What is known, in data units at t = 0: ``(B, *event_shape)``, or one row for all; other values are ignored.
        known: Where it is known, bool, of the event's shape, or of that of ``x``.

    Raises:
        ArgumentError: Shapes that do not fit; nothing known, or all; known values that are not finite.
        ArgumentTypeError: A mask that is not bool.
        UnsupportedError: The process is not Gaussian.

    Example:
        >>> density = GaussianDensity(VPSDE.at_noise(0.5), torch.zeros(2), 0.3)
        >>> target = CompletionTarget(density, torch.tensor([[0.5, 0.0]]), torch.tensor([True, False]))
        >>> ncml.sampling.EulerMaruyama(16)(target, torch.randn(4, 2))[:, 0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    per_row = ("values", "known")
    z: Tensor | None = None  # of a call; a target that has been bound keeps it in further calls

    def __init__(self, density: nn.Module | Target, x: Tensor, known: Tensor) -> None:
        super().__init__(density)
        as_gaussian(self.process, "whose noise is added to known values")
        self.values, self.known = checked_mask(x, known, self.event_shape)

    @property
    def holds_values(self) -> bool:
        return True

    def observed(self, x: Tensor) -> Tensor | None:
        inner, free = self.inner.observed(x), ~self.known.expand(x.shape)
        return free if inner is None else free & inner

    def bound(self, x: Tensor, t: Time, *, on_failure: OnFailure = "raise") -> tuple[Target, Tensor]:
        # What stands in the place of known values may be anything, also NaN.
        shape = (len(x), *self.event_shape)
        if x.shape == shape and len(self.known) in (1, len(x)):
            x = torch.where(self.known.to(x.device), 0.0, x)
        target, y = super().bound(x, t, on_failure=on_failure)
        assert isinstance(target, CompletionTarget)
        with torch.inference_mode(False):  # what a sampler writes to, also under a caller's inference mode
            if self.z is None:
                target.z = torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=self.generator)
            return target, target.finished(y, t)

    def rows(self, index: Tensor) -> Target:
        target = super().rows(index)
        assert isinstance(target, CompletionTarget)
        target.z = None if self.z is None else self.z[index]
        return target

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.z = None if self.z is None else self.z[rows]

    def finished(self, x: Tensor, t: Time) -> Tensor:
        """``x`` with the known values in place, as noisy as those of time ``t`` are."""
        x = self.inner.finished(x, t)
        if not isinstance(t, Tensor) and self.sigma(t) == 0.0 and self.alpha(t) == 1.0:
            return torch.where(self.known, self.values, x)
        return torch.where(self.known, self.alpha(t) * self.values + self.sigma(t) * self.z, x)

    def score(self, x: Tensor, t: Time) -> Tensor:
        return self._free(self.inner.score(self.finished(x, t), t))

    def differentiable_score(self, x: Tensor, t: Time) -> Tensor:
        return self._free(self.inner.differentiable_score(self.finished(x, t), t))

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.log_prob(self.finished(x, t), t)

    def log_density(self, x: Tensor, t: Time) -> Tensor:
        return self.inner.log_density(self.finished(x, t), t)

    def log_density_and_score(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        log_p, score = self.inner.log_density_and_score(self.finished(x, t), t)
        return log_p, self._free(score)

    def _free(self, score: Tensor) -> Tensor:
        """The score, 0 where values are known; NaN stays in rows that have failed."""
        return torch.where(self.known & score.isfinite(), 0.0, score)


def checked_mask(x: Tensor, known: Tensor, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Known values, 0 elsewhere, and where they are; ``(B, *event_shape)`` each, or with one row."""
    check_floating(x, "x")
    if tuple(x.shape[1:]) != event_shape or x.ndim != 1 + len(event_shape):
        raise ArgumentError(f"x: got shape {tuple(x.shape)}; expected (B, {', '.join(map(str, event_shape))})")
    if not isinstance(known, Tensor) or known.dtype is not torch.bool:
        got = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise ArgumentTypeError(f"known: got {got}; expected a bool tensor, True where values are known")
    if tuple(known.shape) not in (event_shape, tuple(x.shape)):
        raise ArgumentError(
            f"known: got shape {tuple(known.shape)}; expected {event_shape}, one mask for all examples, or "
            f"{tuple(x.shape)}, that of x"
        )
    mask = (known if known.ndim == x.ndim else known[None]).to(x.device)
    share = mask.flatten(1).double().mean(1)
    if not bool(((share > 0.0) & (share < 1.0)).all()):
        raise ArgumentError(
            f"known: got rows with {'nothing' if bool((share == 0.0).any()) else 'everything'} known; expected some "
            f"values known and some not; samples without knowledge are generate(density, n)"
        )
    values = torch.where(mask, x.detach(), 0.0)
    check_finite(values, "x", "mark these values as not known")
    return values, mask
