"""Checks of a sampler, on a Gaussian whose distribution is known at every noise level."""

from __future__ import annotations

from typing import Any

from ncml.checks import check_positive
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import GaussianProcess
from ncml.sampling.sampler import Sampler
from ncml.testing.cases import SamplerCase
from ncml.testing.reference import OrnsteinUhlenbeck
from ncml.testing.report import Check, Report, checks_with, run_all
from ncml.testing.sampler import contract, distribution, failures, refinement, targets

__all__ = ["check_sampler", "sampler_checks"]

CHECKS = (*contract.CHECKS, *targets.CHECKS, *refinement.CHECKS, *failures.CHECKS, *distribution.CHECKS)

TOLERANCE = 0.05
"""Allowed error of the distribution, unless another one is given."""


def check_sampler(
    sampler: Sampler,
    process: GaussianProcess | None = None,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Check that a sampler keeps its contract and leads from the distribution at T to that at t_end.

    It runs on Gaussian data with the exact score, where mean and variance are known at every t. Their
    comparison allows ``tolerance`` for discretisation on top of 6.11 standard errors (false-alarm
    probability 1e-9). The contract is checked with at most 8 steps, the distribution with the sampler's own.

    Measured on one core: 2 s for 64 steps of Euler-Maruyama, 14 s for the defaults of
    :class:`~ncml.sampling.MetropolisLangevin` (576 scores); longer in proportion to the scores.

    Args:
        sampler: The sampler, with as many steps as ``tolerance`` needs.
        process: The process to run it on; if None, ``dx = -x dt + 0.8 dw`` up to t = 0.5, whose drift and
            diffusion both matter.
        tolerance: Allowed error of the mean in standard deviations, and relative error of the variance.
        seed: Seed of every random draw. torch's default generators are left as they were.
        progress: Show a progress bar; None: on a terminal, if tqdm is installed.

    Returns:
        Names of the checks that passed, and of those that do not apply with the reason.

    Raises:
        ConformanceError: Checks failed; the message lists them all.
        ArgumentError: The sampler needs another kind of process: pass one.

    Example:
        >>> from ncml.sampling import HeunODE
        >>> report = check_sampler(HeunODE(steps=16))
        >>> "distribution_at_zero" in report.passed
        True
    """
    return run_all(sampler_checks(process=process, tolerance=tolerance, seed=seed), sampler, progress)


def sampler_checks(**options: Any) -> list[Check[Sampler]]:  # noqa: ANN401
    """The checks of :func:`check_sampler` one by one, for a test suite of your own.

    Args:
        options: Arguments of :func:`check_sampler`, by name.

    Returns:
        Checks to be called with a sampler (see :func:`density_checks`).

    Example:
        >>> import pytest
        >>> from ncml.sampling import HeunODE
        >>> from ncml.testing import sampler_checks
        >>> @pytest.mark.parametrize("check", sampler_checks(tolerance=0.01), ids=str)
        ... def test_my_sampler(check):
        ...     check(HeunODE(steps=16))
    """
    return checks_with(CHECKS, prepared, options)


def prepared(
    sampler: Sampler, process: GaussianProcess | None = None, tolerance: float = TOLERANCE, seed: int = 0
) -> SamplerCase:
    """What the checks work on."""
    if not isinstance(sampler, Sampler):
        raise ArgumentTypeError(f"sampler: got {type(sampler).__name__}; expected a Sampler")
    check_positive(tolerance, "tolerance")
    process = OrnsteinUhlenbeck() if process is None else process
    if not isinstance(process, sampler.needs) or not isinstance(process, GaussianProcess):
        needed = sampler.needs if issubclass(sampler.needs, GaussianProcess) else GaussianProcess
        raise ArgumentError(
            f"process: got {type(process).__name__}; {type(sampler).__name__} expected a {needed.__name__}; "
            f"pass one as process="
        )
    return SamplerCase(sampler, process, tolerance, seed)
