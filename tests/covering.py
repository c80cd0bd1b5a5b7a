"""Which tests execute a line of the library, and how long they take: what :mod:`tests.mutants` chooses tests by."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[1]
# Files that start programs, read pages, test the testing kit, or test what is not mutated.
LEFT_OUT = (
    "audio", "cli_train", "conformance_tools", "data", "demo", "docs", "estimator", "examples", "faults", "foreign",
    "fuzz", "images", "imports", "mutants", "outliers", "packaging", "planted_bugs", "program_review", "sources",
    "statistics",
)  # fmt: skip
SIGNATURES = "tests/test_defaults.py"  # looks at defaults, which are executed at import, by no test
PLAIN = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
SLOW = 4  # seconds of a processor: longer tests are not used


def test_files() -> list[str]:
    out = {ROOT / "tests" / f"test_{name}.py" for name in LEFT_OUT}
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py")) if path not in out]


def processor_seconds() -> float:
    """Of this process and the programs that it ran."""
    return sum(os.times()[:4])


class Mapping:
    """Runs the tests once: which lines each of them executes, and how long it takes."""

    def __init__(self, measured: coverage.Coverage, seconds: Path) -> None:
        self.measured = measured
        self.seconds = seconds
        self.failed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings  # here, since pytest rewrites its plugin when it loads it

        phases = (Phase.explicit, Phase.generate)  # one failure is enough; it need not be a small one
        settings.register_profile("mutants", settings.default, phases=phases, database=None)
        settings.load_profile("mutants")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.nodeid)
        start = processor_seconds()
        try:
            return (yield)
        finally:
            if item.nodeid not in self.failed:
                with self.seconds.open("a") as lines:
                    print(json.dumps([item.nodeid, round(processor_seconds() - start, 3)]), file=lines)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """What a shared fixture executes belongs to all the tests that use it."""
        if fixturedef.scope == "function":
            return (yield)
        self.measured.switch_context(f"fixture {fixturedef.argname} {fixturedef.baseid}")
        try:
            return (yield)
        finally:
            self.measured.switch_context(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        def slow(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGPROF, slow)
        signal.setitimer(signal.ITIMER_PROF, SLOW)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def make_map(folder: str, files: Sequence[str]) -> None:
    """Add some files of tests to the map."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    measured = coverage.Coverage(data_file=Path(folder) / "coverage", source_pkgs=["ncml"], config_file=False)
    measured.load()
    measured.start()
    try:
        pytest.main([*PLAIN, "--maxfail=0", *files], plugins=[Mapping(measured, Path(folder) / "seconds.jsonl")])
    finally:
        measured.stop()
        measured.save()


class Covering:
    """The map that :func:`make_map` wrote."""

    def __init__(self, folder: Path) -> None:
        self.data = coverage.CoverageData(str(folder / "coverage"))
        self.data.read()
        lines = (folder / "seconds.jsonl").read_text().splitlines()
        self.seconds: dict[str, float] = dict(json.loads(line) for line in lines)
        self.known: dict[str, dict[int, list[str]]] = {}

    def files(self) -> list[str]:
        return sorted({name.partition("::")[0] for name in self.seconds})

    def contexts(self, module: str, *spans: tuple[int, int]) -> set[str]:
        """Tests and fixtures that execute one of the lines, of the first span that any of them executes."""
        if module not in self.known:
            path = str(ROOT / "src" / "ncml" / module)
            self.known[module] = self.data.contexts_by_lineno(path)
        for first, last in spans:
            lines = (self.known[module].get(line, []) for line in range(first, last + 1))
            if found := {context for line in lines for context in line} - {""}:
                return found
        return set()

    def chosen(
        self, items: Sequence[pytest.Item], limit: float, module: str, *spans: tuple[int, int]
    ) -> list[pytest.Item]:
        """First the fastest case of each test function, then the others; file by file, the faster files first.

        Where no test executes a line of the first span, those that look at defaults are among them.
        """
        contexts = self.contexts(module, *spans)
        fixtures = [context.split(" ")[1:] for context in contexts if context.startswith("fixture ")]
        at_import = not self.contexts(module, *spans[:1])
        those = [
            item
            for item in items
            if item.nodeid in self.seconds
            and (
                item.nodeid in contexts
                or (at_import and item.nodeid.startswith(SIGNATURES))
                or any(name in item.fixturenames and item.nodeid.startswith(base) for name, base in fixtures)  # type: ignore[attr-defined]
            )
        ]
        those.sort(key=lambda item: self.seconds[item.nodeid])
        rounds: tuple[dict[str, list[pytest.Item]], ...] = ({}, {})
        seen: set[str] = set()
        for item in those:
            function, file = item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]
            rounds[function in seen].setdefault(file, []).append(item)
            seen.add(function)
        ordered = []
        for groups in rounds:
            for group in sorted(groups.values(), key=lambda own: sum(self.seconds[i.nodeid] for i in own) / len(own)):
                ordered += group
        total, fitting = 0.0, []
        for item in ordered:
            if total + self.seconds[item.nodeid] <= limit:
                total += self.seconds[item.nodeid]
                fitting.append(item)
        return fitting
