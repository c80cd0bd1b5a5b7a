"""Every bug planted in code that passes the conformance kit is caught, and by the check that names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ncml.errors import ConformanceError
from ncml.testing import Check, density_checks, process_checks, sampler_checks
from tests.planted import Bug
from tests.planted.densities import DENSITIES, DENSITY_BUGS, OPTIONS
from tests.planted.processes import PROCESS_BUGS, PROCESSES
from tests.planted.samplers import SAMPLER_BUGS, SAMPLERS


def assert_caught(bug: Bug, kind: type, checks: list[Check]) -> None:
    """The bug is planted in the original, and the check that names it fails, saying what it got and expected."""
    mutant = bug.mutant()
    assert isinstance(mutant, kind)
    (check,) = (check for check in checks if check.id == bug.check)
    with pytest.raises(ConformanceError, match=f"check '{bug.check}' failed: got .*; expected ") as caught:
        check(mutant)
    assert str(caught.value).startswith(type(mutant).__name__)
    assert "AttributeError" not in str(caught.value)  # the bug, and no slip in planting it


def named(problems: dict[str, object]) -> Callable[..., pytest.MarkDecorator]:
    return lambda argument: pytest.mark.parametrize(argument, problems.values(), ids=problems.keys())


def assert_passes(name: str, subject: object, checks: list[Check], bugs: dict[str, Bug]) -> None:
    """The original holds in every check that a bug planted in it is to fail."""
    wanted = {bug.check for bug in bugs.values() if bug.original == name}
    assert wanted
    for check in checks:
        if check.id in wanted:
            check(subject)


@pytest.mark.parametrize("name", PROCESSES)
def test_original_process_passes(name):
    assert_passes(name, PROCESSES[name], process_checks(), PROCESS_BUGS)


@named(PROCESS_BUGS)("bug")
def test_bug_of_a_process_is_caught(bug):
    assert_caught(bug, type(PROCESSES[bug.original]), process_checks())


@pytest.mark.parametrize("name", DENSITIES)
def test_original_density_passes(name):
    assert_passes(name, DENSITIES[name](), density_checks(**OPTIONS.get(name, {})), DENSITY_BUGS)


@named(DENSITY_BUGS)("bug")
def test_bug_of_a_density_is_caught(bug):
    kind = type(DENSITIES[bug.original]())
    assert_caught(bug, kind, density_checks(**OPTIONS.get(bug.original, {})))


@pytest.mark.parametrize("name", SAMPLERS)
def test_original_sampler_passes(name):
    assert_passes(name, SAMPLERS[name], sampler_checks(), SAMPLER_BUGS)


@named(SAMPLER_BUGS)("bug")
def test_bug_of_a_sampler_is_caught(bug):
    assert_caught(bug, type(SAMPLERS[bug.original]), sampler_checks())


@pytest.mark.parametrize(
    ("checks", "bugs"),
    [(process_checks(), PROCESS_BUGS), (density_checks(), DENSITY_BUGS), (sampler_checks(), SAMPLER_BUGS)],
    ids=["process", "density", "sampler"],
)
def test_every_check_of_the_kit_catches_a_bug(checks, bugs):
    assert {check.id for check in checks} == {bug.check for bug in bugs.values()}
