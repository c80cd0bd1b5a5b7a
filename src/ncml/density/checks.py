"""Checks where a density meets its callers: what goes into a call, and what comes out of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ncml.checks import (
    HALF,
    Time,
    check_context,
    check_count,
    check_finite,
    check_floating,
    check_generator,
    check_input,
    check_time,
)
from ncml.density.lengths import PADDING
from ncml.density.modes import evaluating
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ncml.noise import NoiseProcess

if TYPE_CHECKING:
    from ncml.density.interface import AutoregressiveDensity, NoiseConditionalDensity, SampleableDensity

__all__ = [
    "at_zero_only",
    "check_arguments",
    "check_draw",
    "check_given",
    "check_kept",
    "check_log_density",
    "check_noise",
    "check_on_lattice",
    "check_score",
    "checked_resample",
    "checked_sample",
    "gaps_filled",
    "observed_dims",
    "process_by_name",
]

P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(
    density: NoiseConditionalDensity, x: Tensor, t: Time, context: Tensor | None = None, *, finite: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check the arguments of a call and convert what may be converted.

    Args:
        density: Says the event shape, the dtype, the device and the largest time.
        x: Batch ``(B, *event_shape)``; half precision is raised to float32.
        t: A number, a 0-d tensor or ``(B,)``; expanded to ``(B,)``.
        context: One row per example, or None.
        finite: Refuse NaN and infinity in ``x``.

    Raises:
        ArgumentError, ArgumentTypeError: Something does not fit; nothing has changed.
    """
    own = density.own_tensor()
    if density.lattice is not None and isinstance(x, Tensor):
        x = density.lattice.raised(x)
    dtype = None if own is None or density.dtype_follows_input else own.dtype
    x = check_input(x, density.event_shape_for(x), dtype, None if own is None else own.device, finite=finite)
    return x, check_time(t, x, density.max_time), check_context(context, x.shape[0], x.device)


def check_given(given: Tensor | None, x: Tensor, name: str = "given") -> Tensor | None:
    """Check what conditionals are given in place of ``x``, in the same shape; returns it."""
    if given is None:
        return None
    check_floating(given, name)
    if given.shape != x.shape or given.dtype != x.dtype or given.device != x.device:
        raise ArgumentError(
            f"{name}: got shape {tuple(given.shape)}, {given.dtype} on {given.device}; expected {tuple(x.shape)}, "
            f"{x.dtype} on {x.device}, as x"
        )
    check_finite(given, name, "a conditional is given numbers")
    return given


def gaps_filled(density: NoiseConditionalDensity, x: Tensor, context: Tensor | None) -> Tensor:
    """A batch whose gaps hold a value that every check accepts, whatever they held: it is no part of the event."""
    observed = density.observed(x, context)
    return x if observed is None else torch.where(observed, x, PADDING)


def check_on_lattice(density: NoiseConditionalDensity, x: Tensor, t: Tensor, context: Tensor | None) -> None:
    """Refuse values off the density's lattice, if it has one, in rows whose times ``(B,)`` keep data there."""
    if density.lattice is not None and density.process is not None:
        clean, x = density.process.on_lattice(t), gaps_filled(density, x, context)
        density.lattice.check(x if bool(clean.all()) else x[clean])


def check_kept(density: NoiseConditionalDensity, x: Tensor, t: Tensor) -> Tensor:
    """Check values to keep, ``(B, ...)`` at times ``(B,)``: finite, and on the lattice where data are; returns them."""
    check_finite(x, "x", "what is kept must be known")
    if density.lattice is not None:
        density.lattice.check(x[density.process.on_lattice(t)])
    return x


def observed_dims(observed: Tensor | None, x: Tensor) -> int | Tensor:
    """The number of values that count in each example: D if there is no mask, ``(B,)`` otherwise."""
    return math.prod(x.shape[1:]) if observed is None else observed.flatten(1).sum(1).to(x.dtype)


def check_draw(
    density: NoiseConditionalDensity, n: int, t: Time, context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Check the arguments of a call of ``sample``; returns ``(n,)`` times, and the context."""
    n = check_count(n, "n", minimum=0)
    check_generator(generator, density.device)
    rows = torch.empty(n, dtype=density.dtype, device=density.device)
    return check_time(t, rows, density.max_time), check_context(context, n, density.device)


def checked_sample(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A ``sample`` with its checks around it.

    Arguments are checked, times become ``(n,)``, and it is not called for 0 samples. It runs in eval mode, without
    gradients and with autocast off, and what it returns is checked. Arguments of its own, such as a length, may change
    the shape.
    """

    @functools.wraps(sample)
    def checked(
        self: SampleableDensity,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        times, context = check_draw(self, n, t, context, options.get("generator"))
        plain = options.keys() <= {"generator", "noise", "progress"}
        if n == 0 and plain:
            return torch.empty(0, *self.event_shape, dtype=self.dtype, device=self.device)
        with evaluating(self), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            x = sample(self, n, times, context, **options)
        if not isinstance(x, Tensor) or x.shape[:1] != (n,) or (plain and x.shape[1:] != self.event_shape):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(
                f"sample: got {got} from a {type(self).__name__}; expected one tensor of shape "
                f"{(n, *self.event_shape)}, the samples alone"
            )
        if not x.is_floating_point():
            raise ArgumentTypeError(
                f"sample: got {x.dtype} from a {type(self).__name__}; expected values in data units, {self.dtype}; of "
                f"levels Lattice.to_unit makes some"
            )
        if not math.isfinite(float(x.sum())) and bool((bad := ~torch.isfinite(x.flatten(1)).all(1)).any()):
            _raise_non_finite("sample", bad, times)
        own = self.own_tensor()  # a part of a stranger's model may have been left in another dtype
        if own is None:
            return x.detach().float() if x.dtype in HALF else x.detach()
        return x.detach().to(own.dtype)

    return checked


def checked_resample(resample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A ``resample`` with its checks, as in :func:`checked_sample`; as precise as samples, whatever autocast says."""

    @functools.wraps(resample)
    def checked(
        self: AutoregressiveDensity, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None
    ) -> Tensor:
        x, times, context = check_arguments(self, x, t, context)
        if not isinstance(noise, Tensor):
            raise ArgumentTypeError(
                f"noise: got {type(noise).__name__}; expected a tensor; use draw_noise({len(x)}), and keep it"
            )
        if not len(x):
            return x.detach().clone()
        with evaluating(self), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return resample(self, x, noise, times, context)

    return checked


def check_noise(density: AutoregressiveDensity, noise: Tensor, n: int) -> None:
    """Refuse noise unlike what ``draw_noise`` returns for ``n`` samples."""
    expected = (n, *density.draw_noise(0).shape[1:])
    if noise.shape != expected or noise.dtype != density.dtype or noise.device != density.device:
        raise ArgumentError(
            f"noise: got shape {tuple(noise.shape)}, {noise.dtype} on {noise.device}; expected {expected}, "
            f"{density.dtype} on {density.device}; use draw_noise({n})"
        )


def check_log_density(log_p: Tensor, x: Tensor, t: Tensor, name: str, *, finite: bool = True) -> Tensor:
    """Pass on what ``forward`` returned if it is ``(B,)`` without NaN or ``+inf``; half precision becomes float32.

    NaN and ``+inf`` pass where ``finite`` is False.
    """
    if not isinstance(log_p, Tensor) or log_p.shape != x.shape[:1]:
        got = tuple(log_p.shape) if isinstance(log_p, Tensor) else f"a {type(log_p).__name__}"
        raise ArgumentError(
            f"{name}.forward: got {got}; expected one tensor ({x.shape[0]},); return the log-density of each example: "
            f"sum over event dimensions, not over the batch"
        )
    if not log_p.is_floating_point():
        raise ArgumentTypeError(f"{name}.forward: got {log_p.dtype}; expected floating log-densities, {x.dtype}")
    if log_p.dtype in HALF:
        log_p = log_p.float()
    if not finite or math.isfinite(float(log_p.detach().sum())):  # then every term is
        return log_p
    bad = log_p.detach().isnan() | (log_p.detach() == float("inf"))
    if bool(bad.any()):
        _raise_non_finite("log-density", bad, t)
    return log_p


def check_score(score: Tensor, t: Tensor) -> None:
    """Raise :class:`~ncml.errors.NonFiniteError` unless every score is finite."""
    if not bool(torch.isfinite(score).all()):
        _raise_non_finite("score", ~torch.isfinite(score.detach().flatten(1)).all(1), t)


def process_by_name(name: str, call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Tell callers who pass a process after the density, as in version 0.1, the present form of the call.

    Done before the arguments are bound, since those of version 0.1 are one too many.

    Args:
        name: The argument that now follows the density.
        call: The present form.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for value in args[1:3]:  # of a method, the density is the second
                if isinstance(value, NoiseProcess):
                    raise ArgumentTypeError(
                        f"{name}: got a {type(value).__name__}; expected no process in this place since version 0.2: "
                        f"write {call}, or leave process= out where the density has its own"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate


def at_zero_only(bad: Tensor, t: Tensor) -> str:
    """What to say if only the rows at t = 0 are bad: most often, the model takes a logarithm of sigma."""
    if bool((t[bad] != 0).any()) or not bool((t != 0).any() or bad.all()):
        return ""
    return (
        "; all of them have t = 0: if the model takes log(sigma), which is infinite there, give it features that are "
        "finite, such as ncml.nn.NoiseFeatures or CallableDensity(..., features=8)"
    )


def _raise_non_finite(what: str, bad: Tensor, t: Tensor) -> None:
    first = int(bad.nonzero()[0])
    raise NonFiniteError(
        f"{what}: got NaN or infinity for {int(bad.sum())} of {bad.numel()} examples, the first at index {first} "
        f"with t = {float(t[first]):.6g}; expected finite values; check the input's range and the parameters"
        f"{at_zero_only(bad, t)}"
    )
