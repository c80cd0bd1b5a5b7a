"""Sessions of the project: ``nox`` runs lint, types, tests, doctest and docs.

Each session works in a virtual environment of its own, or with ``--no-venv`` in the one that runs nox,
which then needs the extra ``dev``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "doctest", "docs"]

TWO_PROCESSES = ["-n", "2", "--dist", "worksteal"]  # neither waits while the other has tests left
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MUTATION = "mutmut>=3.8"  # only its operators, for one session
SPHINX = ("sphinx-build", "-W", "-n", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


def install(session: nox.Session, *requirements: str) -> None:
    """Install into the session's own environment, if it has one."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", *requirements)


def oldest() -> list[str]:
    """The lowest version of every requirement of the tests as a pin; all extras name the same.

    Not of torch, whose oldest releases have no build for a CPU on PyPI, nor of typing-extensions, of which others
    need a newer one.
    """
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(row) for row in project["dependencies"]]
    pending, seen = ["test"], {"test"}
    while pending:
        for row in map(Requirement, extras[pending.pop()]):
            new = row.extras - seen if row.name == "ncml" else set()
            pending += new
            seen |= new
            wanted.append(row)
    pins: set[str] = set()
    for row in wanted:
        if row.name not in ("ncml", "torch", "typing-extensions") and (row.marker is None or row.marker.evaluate()):
            (floor,) = row.specifier
            pins.add(f"{row.name}=={floor.version}")
    return sorted(pins)


def run(session: nox.Session, tool: str, *args: str, **env: str) -> None:
    """Run a tool of the environment that has the session's requirements, whatever the PATH."""
    if not session.virtualenv.is_sandboxed:
        tool = str(Path(sys.executable).with_name(tool))
    session.run(tool, *args, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting."""
    install(session, "ruff>=0.9")
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the library, of this file and of a program that uses the library."""
    install(session, "-e", ".[lint]", "nox>=2024.4.15")
    run(session, "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, in two processes of one thread; arguments after ``--`` go to pytest instead."""
    install(session, "-e", ".[test]")
    run(session, "pytest", *(session.posargs or TWO_PROCESSES), **ONE_THREAD)


@nox.session
def floors(session: nox.Session) -> None:
    """The test suite with the oldest versions that the metadata allow, but for torch and Python: those that are here.

    Torch's oldest releases have no build for a CPU on PyPI. Old releases use what newer ones of others deprecate, which
    is no error here.
    """
    install(session, *oldest(), "-e", ".[test]")
    quiet = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
    run(session, "pytest", *quiet, *(session.posargs or TWO_PROCESSES), **ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged files of every kind, into fuzz.json; ``nox -s fuzz -- --cases 10000`` for a hundred thousand."""
    install(session, "-e", ".[test]")
    run(session, "python", "-m", "tests.fuzz", *session.posargs, **ONE_THREAD)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, full disks and the like, into faults.json; ``nox -s faults -- --kills 200`` for more of them."""
    install(session, "-e", ".[test]")
    run(session, "python", "-m", "tests.faults", *session.posargs, **ONE_THREAD)


@nox.session
def mutants(session: nox.Session) -> None:
    """Mutants of the library, into mutants.json; ``nox -s mutants -- --mutants 400`` for as many as are recorded."""
    install(session, "-e", ".[test]", MUTATION)
    run(session, "python", "-m", "tests.mutants", *session.posargs, **ONE_THREAD)


@nox.session
def doctest(session: nox.Session) -> None:
    """The examples in docstrings."""
    install(session, "-e", ".[test]")
    run(session, "pytest", *TWO_PROCESSES, "--doctest-modules", "src/ncml", **ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into docs/_build/html; every warning and every open link is an error."""
    install(session, "-e", ".[docs]")
    run(session, *SPHINX)


@nox.session
def site(session: nox.Session) -> None:
    """The site in a real browser, built again where it is out of date; needs Chromium, or its path in NCML_CHROMIUM."""
    install(session, "-e", ".[docs,browser]")
    run(session, *SPHINX)
    run(session, "pytest", "docs/tests", *session.posargs, **ONE_THREAD)


@nox.session
def demo(session: nox.Session) -> None:
    """``ncml demo``, cut short: that it runs, not what it shows."""
    install(session, "-e", ".[demo]")
    run(session, "ncml", "demo", "--smoke", "--out", session.create_tmp())


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, cut short and without recording."""
    install(session, "-e", ".[test]")
    for script in sorted(Path("benchmarks").glob("*.py")):
        if script.name != "common.py":
            run(session, "python", str(script), "--quick", **ONE_THREAD)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of the test suite, in one process; arguments after ``--`` go to pytest."""
    install(session, "-e", ".[test]")
    run(session, "coverage", "run", "-m", "pytest", *session.posargs, **ONE_THREAD)
    run(session, "coverage", "report", "--skip-covered", "--show-missing")


@nox.session
def build(session: nox.Session) -> None:
    """The source distribution and the wheel, into dist/."""
    install(session, "build>=1.2")
    run(session, "pyproject-build")
