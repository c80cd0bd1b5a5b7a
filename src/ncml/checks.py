"""Checks of the public interface, and the two conversions they allow.

A scalar time is expanded to ``(B,)`` and half precision is raised to float32; nothing else is cast,
moved or broadcast.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor

from ncml.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "Time",
    "check_choice",
    "check_context",
    "check_count",
    "check_finite",
    "check_floating",
    "check_generator",
    "check_input",
    "check_nonnegative",
    "check_positive",
    "check_probability",
    "check_time",
    "check_weights",
    "clamp_time",
    "is_real",
    "is_whole",
    "kind_of",
    "per_example",
    "signed",
    "time_in_range",
]

Time: TypeAlias = float | Tensor
"""A Python number, a 0-d tensor, or one time per example, shape ``(B,)``."""

HALF = (torch.float16, torch.bfloat16)
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
ROUNDED = 1.0 + 4.0 * torch.finfo(torch.float32).eps
"""Factor within which a time above T is T, rounded to float32."""


def kind_of(value: object) -> str:
    """What a message calls a value of the wrong kind: its type, or the class that stands where an instance should."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is one integer, of Python or NumPy; a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is one real number, of Python or NumPy; a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_floating(x: Tensor, name: str) -> None:
    """Refuse anything but a real floating tensor."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(
            f"{name}: got {type(x).__name__}; expected a torch.Tensor: torch.as_tensor(numpy.asarray({name}))"
        )
    if not x.is_floating_point():
        hint = "" if x.is_complex() else "; scale integers with Lattice(levels).to_unit()"
        raise ArgumentTypeError(f"{name}: got dtype {x.dtype}; expected a real floating dtype{hint}")


def check_finite(x: Tensor, name: str, remedy: str = "clean the data or pass check_finite=False") -> None:
    """Refuse NaN and infinity, naming how many and where the first one is."""
    # A finite sum proves finite terms in one pass without a mask; only a failure needs the count.
    if math.isfinite(float(x.detach().sum())):
        return
    bad = ~torch.isfinite(x.detach())
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        raise ArgumentError(f"{name}: got {int(bad.sum())} non-finite values, the first at {first}; {remedy}")


def _reshaped(shape: tuple[int, ...], event_shape: tuple[int, ...]) -> str:
    """How a batch of that shape may have been meant."""
    rest = shape[1:]
    if shape == event_shape:
        return "for one example x[None]"
    if (*rest, 1) == event_shape:
        return "for one channel x[..., None]"
    if (1, *rest) == event_shape:
        return "for one channel x[:, None]"
    if len(rest) == len(event_shape):
        for order in itertools.permutations(range(len(rest))):
            if tuple(rest[i] for i in order) == event_shape:
                return f"reorder it: x.permute(0, {', '.join(str(i + 1) for i in order)})"
    if len(rest) == 1 and rest[0] == math.prod(event_shape):
        return f"if it is flattened so: x.unflatten(1, {event_shape})"
    return "x is never broadcast"


def check_input(
    x: Tensor,
    event_shape: tuple[int, ...],
    dtype: torch.dtype | None,
    device: torch.device | None,
    *,
    finite: bool = True,
) -> Tensor:
    """Check a batch against a density and raise half precision to float32."""
    check_floating(x, "x")
    if x.ndim != 1 + len(event_shape) or tuple(x.shape[1:]) != event_shape:
        raise ArgumentError(
            f"x: got shape {tuple(x.shape)}; expected (B, {', '.join(map(str, event_shape))}), "
            f"a batch of events of shape {event_shape}; {_reshaped(tuple(x.shape), event_shape)}"
        )
    if device is not None and x.device != device:
        raise ArgumentError(f"x: got device {x.device}; expected {device}, the density's; move one of them with .to()")
    if dtype in HALF:
        raise ArgumentTypeError(
            f"density: got parameters of dtype {dtype}; expected float32 or float64, in which likelihoods keep their "
            f"digits; keep float32 and run under torch.autocast"
        )
    if x.dtype in HALF:
        x = x.float()
    if dtype is not None and x.dtype != dtype:
        raise ArgumentTypeError(
            f"x: got dtype {x.dtype}; expected {dtype}, the density's; convert x, or the density with .to(dtype)"
        )
    if finite:
        check_finite(x, "x")
    return x


def check_time(t: Time, x: Tensor, T: float = math.inf) -> Tensor:
    """Check times against a batch and expand them to ``(B,)`` in at least float32.

    Raises:
        ArgumentTypeError: ``t`` is neither a number nor a tensor of at least float32 or integers.
        ArgumentError: ``t`` has another shape or device, or lies outside ``[0, T]``.
    """
    if x.ndim == 0:
        raise ArgumentError("x: got a 0-d tensor; expected a batch, (B, *event_shape)")
    n = x.shape[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(t, Tensor) and not is_real(t):
        raise ArgumentTypeError(f"t: got {type(t).__name__}; expected a number or a tensor")
    if isinstance(t, Tensor):
        if t.dtype in HALF:
            raise ArgumentTypeError(f"t: got dtype {t.dtype}, which has 3 digits; expected float32 or float64")
        if t.is_complex() or t.dtype == torch.bool:
            raise ArgumentTypeError(f"t: got dtype {t.dtype}; expected float32 or float64")
        if t.device != x.device:
            raise ArgumentError(f"t: got device {t.device}; expected {x.device}, that of x; move it with .to()")
        if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != n):
            raise ArgumentError(f"t: got shape {tuple(t.shape)}; expected a scalar or ({n},), one time per example")
        t = t.detach().to(dtype)
        low, high = (float(v) for v in t.aminmax()) if t.numel() else (0.0, 0.0)
    else:
        low = high = float(t)
    if not (low >= 0.0 and high <= T * ROUNDED):  # written so that NaN fails
        raise ArgumentError(f"t: got values in [{low:.6g}, {high:.6g}]; expected 0 <= t <= T = {T:.6g}")
    if not isinstance(t, Tensor):
        return torch.full((n,), min(low, T), dtype=dtype, device=x.device)
    if high > T:
        t = t.clamp(max=T)
    return t.expand(n)


def clamp_time(t: float, T: float) -> float:
    """``t``, or T where t is T rounded up to float32; anything else above T is left for the caller to refuse."""
    return T if T < t <= T * ROUNDED else t


def time_in_range(t: Time, T: float) -> float:
    """One time in ``[0, T]`` as a Python float."""
    like = torch.empty(1, dtype=torch.float64, device=t.device if isinstance(t, Tensor) else None)
    return float(check_time(clamp_time(float(t), T) if is_real(t) else t, like, T))


def signed(levels: Tensor) -> Tensor:
    """Integers in a dtype that torch can compute with: its only unsigned one has 8 bits."""
    return levels.to(SIGNED.get(levels.dtype, levels.dtype))


def check_context(context: Tensor | None, n: int, device: torch.device) -> Tensor | None:
    """Check that a context has one row per example on the right device."""
    if context is None:
        return None
    if not isinstance(context, Tensor):
        raise ArgumentTypeError(f"context: got {type(context).__name__}; expected a torch.Tensor or None")
    if context.ndim == 0 or context.shape[0] != n:
        raise ArgumentError(f"context: got shape {tuple(context.shape)}; expected ({n}, ...), one row per example")
    if context.device != device:
        raise ArgumentError(f"context: got device {context.device}; expected {device}, that of x; move it with .to()")
    return context


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator that lives on another device."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise ArgumentTypeError(
            f"generator: got {type(generator).__name__}; expected a torch.Generator or None; "
            f"seed one with torch.Generator().manual_seed(0)"
        )
    if generator.device.type != device.type:
        raise ArgumentError(
            f"generator: got device {generator.device}; expected {device}; create it with torch.Generator(device)"
        )


def check_count(n: int, name: str, minimum: int = 1) -> int:
    """Refuse anything but an integer of at least ``minimum``."""
    if not is_whole(n) or n < minimum:
        raise ArgumentError(f"{name}: got {n!r}; expected an integer >= {minimum}")
    return int(n)


def check_positive(value: float, name: str) -> float:
    """Refuse anything but a finite number above zero."""
    if not is_real(value) or not 0.0 < value < math.inf:
        raise ArgumentError(f"{name}: got {value!r}; expected a finite number > 0")
    return float(value)


def check_nonnegative(value: float, name: str, expected: str = "a finite number >= 0") -> float:
    """Refuse anything but a finite number that is not below zero, which is ``expected`` in the words of the message."""
    if not is_real(value) or not 0.0 <= value < math.inf:
        raise ArgumentError(f"{name}: got {value!r}; expected {expected}")
    return float(value)


def check_weights(weights: Tensor, rows: int, name: str, *, fewest: int = 1) -> Tensor:
    """Weights of rows as shares of the largest, in float64.

    Args:
        weights: What was given.
        rows: How many there are.
        name: The argument.
        fewest: How many shares have to be above 0.
    """
    if not isinstance(weights, Tensor):
        raise ArgumentTypeError(f"{name}: got {kind_of(weights)}; expected a tensor of numbers, one for each row")
    if weights.is_complex():
        raise ArgumentTypeError(f"{name}: got complex numbers; expected real ones, one for each row")
    if weights.shape != (rows,):
        raise ArgumentError(f"{name}: got shape {tuple(weights.shape)}; expected ({rows},), one for each row")
    weights = weights.detach().double()
    fine = (weights >= 0.0) & (weights < math.inf)
    if not bool(fine.all()):
        j = int(fine.logical_not().nonzero()[0])
        raise ArgumentError(f"{name}: got {float(weights[j])} for row {j}; expected finite numbers >= 0")
    largest = float(weights.max()) if rows else 0.0
    shares = weights / largest if largest > 0.0 else weights
    if (some := int(shares.count_nonzero())) < fewest:
        raise ArgumentError(f"{name}: got {some} above zero, as shares of the largest; expected {fewest} at least")
    return shares


def check_choice(value: object, name: str, known: Iterable[object]) -> None:
    """Refuse anything but one of the known values, which the message lists."""
    known = tuple(known)
    if value not in known:
        raise ArgumentError(f"{name}: got {value!r}; expected one of {', '.join(map(repr, known))}")


def check_probability(p: float, name: str) -> None:
    """Refuse anything but a number in [0, 1]."""
    if not is_real(p) or not 0.0 <= p <= 1.0:
        raise ArgumentError(f"{name}: got {p!r}; expected a probability, 0 <= {name} <= 1")


def per_example(v: Tensor, x: Tensor) -> Tensor:
    """View ``(B,)`` so that it broadcasts over a batch of events; scalars pass unchanged."""
    return v.reshape(-1, *([1] * (x.ndim - 1))) if v.ndim else v
