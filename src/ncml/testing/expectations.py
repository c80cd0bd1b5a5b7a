"""What checks are written with: comparisons that explain themselves, and draws that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ncml.noise import Lattice
from ncml.testing.report import CheckError, NotApplicableError

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def expect(ok: bool | Tensor, got: str, expected: str, meaning: str) -> None:
    """Fail unless ``ok``, saying what was got, what was expected, and what it usually means."""
    if not bool(ok):
        raise CheckError(f"got {got}; expected {expected}; {meaning}")


def require(ok: bool, reason: str, note: str = "") -> None:
    """Declare the running check not applicable unless ``ok``; the report notes it if there is a ``note``."""
    if not ok:
        raise NotApplicableError(reason, note)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit, so that -0.0 differs from 0.0 and NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        a, b = (v.detach().contiguous().view(INTEGERS[v.element_size()]) for v in (a, b))
    return torch.equal(a, b)


def largest_difference(a: Tensor, b: Tensor, scale: Tensor | float = 1.0) -> float:
    """The largest ``|a - b| / scale``; 0 for empty tensors, equal infinities count as equal."""
    if a.numel() == 0:
        return 0.0
    difference = torch.where(a == b, torch.zeros_like(a), (a - b).abs() / scale).detach()
    return float(difference.nan_to_num(nan=float("inf")).max())


def expect_same_bits(a: Tensor, b: Tensor, what: str, meaning: str) -> None:
    """Fail unless two tensors are equal bit for bit."""
    if not same_bits(a, b):
        got = (
            f"a largest difference of {largest_difference(a, b):.3g}"
            if a.shape == b.shape
            else f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
        expect(False, f"{what}: {got} ({a.dtype}, {b.dtype})", "equal bits", meaning)


def expect_close(a: Tensor, b: Tensor, tolerance: float, what: str, meaning: str) -> None:
    """Fail unless ``|a - b| <= tolerance max(1, |b|)`` everywhere (equal infinities count as equal).

    The tolerance is that of float64; float32 has half as many digits.
    """
    tolerance = tolerance**0.5 if a.dtype == torch.float32 else tolerance
    if a.shape != b.shape:
        expect(False, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}", "equal shapes", meaning)
    difference = largest_difference(a, b, b.abs().clamp(min=1.0))
    expect(
        difference <= tolerance, f"{what}: relative difference {difference:.3g}", f"at most {tolerance:.3g}", meaning
    )


def expect_relative(a: Tensor, b: Tensor, tolerance: float, what: str, meaning: str) -> None:
    """Fail unless ``|a - b| <= tolerance |b|`` everywhere: for small numbers that must be precise."""
    error = (a.double() - b.double()).abs() / b.double().abs().clamp(min=1e-300)
    worst = int(error.nan_to_num(nan=float("inf")).argmax())
    expect(
        error.flatten()[worst] <= tolerance,
        f"{what}: {float(a.flatten()[worst]):.9g}, relative error {float(error.flatten()[worst]):.3g}",
        f"{float(b.flatten()[worst]):.9g} within {tolerance:.3g}",
        meaning,
    )


def expect_refused(call: Callable[[], object], what: str, kinds: tuple[type[Exception], ...], meaning: str) -> None:
    """Fail unless ``call`` raises one of the given kinds of error."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        call()
    except kinds:
        return
    except Exception as error:
        raise CheckError(f"got {type(error).__name__} for {what}; expected {names}; {meaning}") from error
    raise CheckError(f"got no error for {what}; expected {names}; {meaning}")


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """A seeded generator on a device."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def default_rng_untouched(what: str) -> Iterator[None]:
    """Fail if a block draws from torch's default generator (of the CPU, or of the current GPU)."""

    def states() -> list[Tensor]:
        gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        return [torch.get_rng_state(), *gpu]

    before = states()
    yield
    expect(
        all(torch.equal(a, b) for a, b in zip(before, states(), strict=True)),
        f"{what} that changed the state of torch's default generator",
        "only the given generator (or noise) to be used",
        "pass generator= on to every random call, or draw under torch.random.fork_rng",
    )


@contextmanager
def default_rng_restored() -> Iterator[None]:
    """Let a block draw from the default generators and put their states back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def lattice_points(lattice: Lattice, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniformly random lattice points, float64, on the generator's device."""
    level = torch.randint(lattice.levels, tuple(shape), generator=generator, device=generator.device)
    return lattice.to_unit(level, dtype=torch.float64)
