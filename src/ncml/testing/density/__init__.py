"""Checks of a noise conditional density."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ncml.checks import check_context, check_count, check_input
from ncml.density import NoiseConditionalDensity
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import NoiseProcess
from ncml.testing.cases import DensityCase
from ncml.testing.density import (
    autoregressive,
    contract,
    coverage,
    entry,
    normalisation,
    parameters,
    parts,
    samples,
    score,
)
from ncml.testing.expectations import lattice_points, require
from ncml.testing.report import Check, Report, checks_with, run_all

__all__ = ["check_density", "density_checks"]


def _leaving_no_trace(check: Callable[[DensityCase], str | None]) -> Callable[[DensityCase], str | None]:
    @functools.wraps(check)
    def run(case: DensityCase) -> str | None:
        with case.put_back():
            return check(case)

    return run


def _of_whole_events(check: Callable[[DensityCase], str | None]) -> Callable[[DensityCase], str | None]:
    @functools.wraps(check)
    def run(case: DensityCase) -> str | None:
        require(case.whole, "some values are no part of the event; pass a context in which all are observed")
        return check(case)

    return run


CHECKS = tuple(
    map(
        _leaving_no_trace,
        (
            *contract.CHECKS,
            *entry.CHECKS,
            *score.CHECKS,
            *parameters.CHECKS,
            *parts.CHECKS,
            *autoregressive.CHECKS,
            *map(_of_whole_events, (*normalisation.CHECKS, *samples.CHECKS, *coverage.CHECKS)),
        ),
    )
)

SAMPLES = 2000
"""Own samples for the statistical checks, unless another number is asked for."""


def check_density(
    density: NoiseConditionalDensity,
    x: Tensor | None = None,
    *,
    context: Tensor | None = None,
    times: Sequence[float] | None = None,
    process: NoiseProcess | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    progress: bool | None = None,
) -> Report:
    """Check that a density keeps its contract, is normalised, and agrees with its score and its samples.

    Most checks run on a float64 copy in eval mode in which zero-initialised parameters are small random
    numbers, so that nothing hides behind a layer that is still switched off. The density itself is left
    as it was; one that cannot be copied is checked itself, and then put back. Statistical checks have a
    false-alarm probability of 1e-9 each, and a fixed seed.

    Normalisation is exact (sums over a lattice, cubature) for 1 or 2 dimensions, and statistical
    (importance sampling) up to 10, there also at drawn times and contexts. Samples are compared with the
    density by means of waves (up to 10 dimensions), by the mass near each mode (up to 32), and along lines in any
    number. Beyond 10, build the same architecture with a small event shape to check the rest; the report's notes say
    where normalisation was not checked.

    Measured on one core: below 1 s for a Gaussian, 11 s for a MAF of the default size in 6 dimensions,
    37 s for a MADE of the default size in 2.

    Args:
        density: The density. More is checked of a :class:`~ncml.SampleableDensity` or an
            :class:`~ncml.AutoregressiveDensity`, and of a density with a lattice.
        x: Example data at t = 0, at least 2 rows. Drawn if None: N(0, 0.5^2), or random lattice points.
            Pass it if the density lives elsewhere.
        context: Context for the rows of ``x`` (or any number of rows), for a density that needs one.
        times: Times to check. Default 0, T/10 and T of the process; 0, 0.1 and 1 without one.
        process: The noise process, if the density itself has none; makes the data noisy.
        samples: Number of own samples for the statistical checks; fewer for expensive models.
        seed: Seed of every random draw. torch's default generators are left as they were.
        dtype: What to compute in: torch.float32 for models that cannot do float64, with tolerances to match.
        progress: Show a progress bar; None: on a terminal, if tqdm is installed.

    Returns:
        Names of the checks that passed, and of those that do not apply with the reason; and notes.

    Raises:
        ConformanceError: Checks failed; the message lists them all.
        ArgumentError, ArgumentTypeError: Arguments of the wrong kind, or that do not fit together.

    Example:
        >>> from ncml import VPSDE
        >>> from ncml.densities import GaussianDensity
        >>> report = check_density(GaussianDensity(VPSDE.at_noise(0.5), [0.2, -0.1], 0.5))
        >>> "density_integrates_to_one" in report.passed
        True
    """
    options: dict[str, Any] = {"x": x, "context": context, "times": times, "process": process}
    options |= {"samples": samples, "seed": seed, "dtype": dtype}
    return run_all(density_checks(**options), density, progress)


def density_checks(**options: Any) -> list[Check[NoiseConditionalDensity]]:  # noqa: ANN401
    """The checks of :func:`check_density` one by one, for a test suite of your own.

    Args:
        options: Arguments of :func:`check_density`, by name; they are read when a check is called.

    Returns:
        Checks to be called with a density, in any order; each has its name as ``id``. A check that fails raises a
        :class:`~ncml.errors.ConformanceError`; one that says nothing about the density raises ``unittest.SkipTest``,
        which pytest reports as a skipped test with the reason.

    Example:
        >>> import pytest
        >>> from ncml import VPSDE
        >>> from ncml.densities import MADE
        >>> from ncml.testing import density_checks
        >>> @pytest.mark.parametrize("check", density_checks(samples=500), ids=str)
        ... def test_my_density(check):
        ...     check(MADE((2,), VPSDE.at_noise(0.5), hidden=(8,)))
    """
    return checks_with(CHECKS, prepared, options)


def prepared(
    density: NoiseConditionalDensity,
    x: Tensor | None = None,
    context: Tensor | None = None,
    times: Sequence[float] | None = None,
    process: NoiseProcess | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> DensityCase:
    """What the checks work on."""
    if not isinstance(density, NoiseConditionalDensity):
        raise ArgumentTypeError(f"density: got {type(density).__name__}; expected a NoiseConditionalDensity")
    if process is not None and density.process not in (None, process):
        raise ArgumentError(f"process: got {process}; expected None or {density.process}, the density's own")
    process = density.process if process is None else process
    samples = check_count(samples, "samples", minimum=100)
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentError(f"dtype: got {dtype}; expected torch.float64 or torch.float32")
    if x is None:
        x = _example(density, seed)
    x = check_input(x, density.event_shape, None, density.device).detach().double()
    if x.shape[0] < 2:
        raise ArgumentError(f"x: got {x.shape[0]} rows; expected at least 2, to see whether they interact")
    if context is not None:
        check_context(context, len(context) if isinstance(context, Tensor) and context.ndim else 0, x.device)
    if times is None:
        times = (0.0, 0.1, 1.0) if process is None else (0.0, 0.1 * process.T, process.T)
    limit = math.inf if process is None else process.T
    if not len(times) or not all(0.0 <= t <= limit for t in times):
        raise ArgumentError(f"times: got {times!r}; expected times in [0, T = {limit:.6g}], at least one")
    return DensityCase(density, process, x, context, tuple(float(t) for t in times), samples, seed, dtype)


def _example(density: NoiseConditionalDensity, seed: int) -> Tensor:
    shape = (8, *density.event_shape)
    generator = torch.Generator().manual_seed(seed)
    if density.lattice is not None:
        return lattice_points(density.lattice, shape, generator).to(density.device)
    return 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator).to(density.device)
