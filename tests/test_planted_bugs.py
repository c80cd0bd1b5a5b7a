"""Every bug planted in code that passes the conformance kit is caught, and by the check that names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ncml.errors import ConformanceError
from ncml.testing import check_density, check_noise_process, check_sampler, densities, processes, samplers
from tests.planted.densities import DENSITIES, DENSITY_BUGS, OPTIONS
from tests.planted.processes import PROCESS_BUGS, PROCESSES
from tests.planted.samplers import SAMPLER_BUGS, SAMPLERS


def assert_caught(mutant: object, check: Callable[..., object], name: str, **options: object) -> None:
    with pytest.raises(ConformanceError, match=f"check '{name}' failed: got .*; expected ") as caught:
        check(mutant, **options)
    assert str(caught.value).startswith(type(mutant).__name__)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_original_process_passes(process):
    assert check_noise_process(process).passed


@pytest.mark.parametrize("bug", PROCESS_BUGS.values(), ids=PROCESS_BUGS.keys())
def test_bug_of_a_process_is_caught(bug):
    mutant = bug.mutant()
    assert isinstance(mutant, type(PROCESSES[bug.original]))
    assert_caught(mutant, check_noise_process, bug.check)


@pytest.mark.parametrize("name", DENSITIES)
def test_original_density_passes(name):
    assert check_density(DENSITIES[name](), **OPTIONS.get(name, {})).passed


@pytest.mark.parametrize("bug", DENSITY_BUGS.values(), ids=DENSITY_BUGS.keys())
def test_bug_of_a_density_is_caught(bug):
    mutant = bug.mutant()
    assert isinstance(mutant, type(DENSITIES[bug.original]()))
    assert_caught(mutant, check_density, bug.check, **OPTIONS.get(bug.original, {}))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_original_sampler_passes(sampler):
    assert check_sampler(sampler).passed


@pytest.mark.parametrize("bug", SAMPLER_BUGS.values(), ids=SAMPLER_BUGS.keys())
def test_bug_of_a_sampler_is_caught(bug):
    mutant = bug.mutant()
    assert isinstance(mutant, type(SAMPLERS[bug.original]))
    assert_caught(mutant, check_sampler, bug.check)


@pytest.mark.parametrize(
    ("kit", "bugs"),
    [(processes, PROCESS_BUGS), (densities, DENSITY_BUGS), (samplers, SAMPLER_BUGS)],
    ids=["processes", "densities", "samplers"],
)
def test_every_check_of_the_kit_catches_a_bug(kit, bugs):
    assert {check.__name__ for check in kit.CHECKS} == {bug.check for bug in bugs.values()}
