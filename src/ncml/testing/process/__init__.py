"""Checks of a noise process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncml.checks import check_floating
from ncml.noise import DiscreteProcess, Lattice, NoiseProcess
from ncml.noise.process import as_process
from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import lattice_points
from ncml.testing.process import contract, discrete, gaussian, sde
from ncml.testing.report import Check, Report, checks_with, run_all

__all__ = ["check_noise_process", "process_checks"]

CHECKS = (*contract.CHECKS, *gaussian.CHECKS, *sde.CHECKS, *discrete.CHECKS)


def check_noise_process(
    process: NoiseProcess,
    x: Tensor | None = None,
    *,
    starts_at_data: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Check that a noise process keeps its contract, and that its closed forms belong together.

    Takes a few tenths of a second. Statistical checks have a false-alarm probability of 1e-9 each, and a fixed seed.

    Args:
        process: The process. Beyond the interface of :class:`~ncml.NoiseProcess`, more is checked of a
            :class:`~ncml.GaussianProcess` (its SDE among it) or a :class:`~ncml.noise.DiscreteProcess`.
        x: An example batch, at least 2 rows, for a process that takes events of one kind only. Drawn if
            None: standard normal, or on the lattice of a discrete process.
        starts_at_data: False for a process that is already noisy at t = 0, on purpose.
        seed: Seed of every random draw. torch's default generators are left as they were.
        progress: Show a progress bar; None: on a terminal, if tqdm is installed.

    Returns:
        Names of the checks that passed, and of those that do not apply with the reason.

    Raises:
        ConformanceError: Checks failed; the message lists them all.
        ArgumentTypeError: ``process`` is not a NoiseProcess, or ``x`` not floating.

    Example:
        >>> from ncml import VPSDE
        >>> report = check_noise_process(VPSDE.at_noise(0.1))
        >>> report.not_applicable[0][0]
        'discrete_process_stays_on_its_lattice'
    """
    return run_all(process_checks(x=x, starts_at_data=starts_at_data, seed=seed), process, progress)


def process_checks(**options: Any) -> list[Check[NoiseProcess]]:  # noqa: ANN401
    """The checks of :func:`check_noise_process` one by one, for a test suite of your own.

    Args:
        options: Arguments of :func:`check_noise_process`, by name.

    Returns:
        Checks to be called with a process (see :func:`density_checks`).

    Example:
        >>> import pytest
        >>> from ncml import VPSDE
        >>> from ncml.testing import process_checks
        >>> @pytest.mark.parametrize("check", process_checks(), ids=str)
        ... def test_my_process(check):
        ...     check(VPSDE.at_noise(0.1))
    """
    return checks_with(CHECKS, prepared, options)


def prepared(process: NoiseProcess, x: Tensor | None = None, starts_at_data: bool = True, seed: int = 0) -> ProcessCase:
    """What the checks work on."""
    as_process(process)
    if x is None:
        x = _example(process.lattice if isinstance(process, DiscreteProcess) else None, seed)
    check_floating(x, "x")
    return ProcessCase(process, x.detach().double().clone(), starts_at_data, seed)


def _example(lattice: Lattice | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if lattice is not None:
        return lattice_points(lattice, (8, 3, 4), generator)
    x = torch.randn(8, 3, 4, dtype=torch.float64, generator=generator)
    x[:, 0, :2] = torch.tensor([0.0, -0.0])
    return x
