"""Mutants of the library: ``python -m tests.mutants --mutants 400 --out mutants.json``.

A mutant is a module with one small change (an operator, a constant, a condition, an argument, an assignment: mutmut's
operators) inside a function. The tests that execute the changed line, as a run under coverage found, are run with it,
until one fails: the mutant is killed; or until all passed, or those that fit into a time: it survives. Mutants are
functions of the seed and their number, drawn in proportion to the sizes of the modules. Texts, annotations and
messages of errors are left as they are. Work that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import inspect
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.covering import PLAIN, ROOT, Covering, Mapping, test_files

PACKAGES = ("density", "densities", "evaluation", "nn", "noise", "objective", "sampling", "training")
MODULES = ("checks.py", "score.py")
FIGURES = ("evaluation/plots.py",)
EQUIVALENT = ROOT / "docs" / "results" / "equivalent.json"
NO_END = (10, 10)  # a test that takes so many seconds and so many times its own has no end
WALL = 600  # seconds, for a mutant that waits
MEMORY = 8 * 2**30  # that a mutant may take besides what is there before it


# Mutants.


@dataclass(frozen=True)
class Mutant:
    """One change; ``first`` to ``last`` are its lines, and ``outer`` those of the function around it."""

    module: str
    operator: str
    first: int
    last: int
    outer: tuple[int, int]
    source: str
    change: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.module}:{self.first} {self.operator}: " + " | ".join(self.change)


def modules() -> list[str]:
    base = ROOT / "src" / "ncml"
    found = [path for package in PACKAGES for path in sorted((base / package).rglob("*.py"))]
    names = [*MODULES, *(str(path.relative_to(base)) for path in found if path.name != "__init__.py")]
    return [name for name in names if name not in FIGURES]


def only_said(source: str) -> dict[int, set[str]]:
    """Names that a function, by the line of its def, reads in texts and errors only."""
    found = {}
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        parts = (node for node in ast.walk(function) if isinstance(node, (ast.Raise, ast.JoinedStr)))
        said = {node for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}
        names = (node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
        found[function.lineno] = {node.id for node in said} - {node.id for node in names if node not in said}
    return found


def places(source: str) -> tuple[Any, list[tuple[Any, str, list[Any], tuple[int, int], tuple[int, int]]]]:
    """A parsed module, and each node with what an operator makes of it, its lines and those of its function."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation import mutators

    def is_text(node: Any) -> bool:
        return isinstance(node, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString))

    def only_text(node: Any, mutated: Any) -> bool:
        if isinstance(node, cst.Call):
            kept = [arg for arg in mutated.args if any(arg is own for own in node.args)]
            return any(is_text(arg.value) for arg in node.args if not any(arg is own for own in kept))
        return isinstance(node, (cst.Assign, cst.AnnAssign)) and is_text(node.value)

    said = only_said(source)
    wrapper = MetadataWrapper(cst.parse_module(source))
    positions = wrapper.resolve(PositionProvider)
    found = []

    def visit(node: Any, outer: tuple[int, int] | None, texts: set[str]) -> None:
        if isinstance(node, (cst.Annotation, cst.Raise, cst.Decorator)):
            return
        if isinstance(node, cst.Assign) and getattr(node.targets[0].target, "value", None) in texts:
            return
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("len", "isinstance"):
            return
        where = positions.get(node)
        if isinstance(node, cst.FunctionDef) and outer is None:
            outer = where.start.line, where.end.line
            texts = said[positions[node.name].start.line]
        for kind, operator in mutators.mutation_operators if outer and where else ():
            if isinstance(node, kind) and operator is not mutators.operator_string:
                results = [mutated for mutated in operator(node) if not only_text(node, mutated)]
                if results:
                    name = operator.__name__.removeprefix("operator_")
                    found.append((node, name, results, (where.start.line, where.end.line), outer))
        for child in node.children:
            visit(child, outer, texts)

    visit(wrapper.module, None, set())
    return wrapper.module, found


def mutants(count: int, seed: int) -> list[Mutant]:
    """The first mutants of a seed."""
    names = modules()
    sources = {name: (ROOT / "src" / "ncml" / name).read_text() for name in names}
    sizes = [len(sources[name].splitlines()) for name in names]
    parsed = {name: places(source) for name, source in sources.items()}
    draw, found = random.Random(seed), {}
    while len(found) < count:
        name = draw.choices(names, sizes)[0]
        module, those = parsed[name]
        if not those:
            continue
        node, operator, results, (first, last), outer = draw.choice(those)
        new = module.deep_replace(node, draw.choice(results)).code
        lines = difflib.unified_diff(sources[name].splitlines(), new.splitlines(), lineterm="", n=0)
        change = tuple(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")
        mutant = Mutant(name, operator, first, last, outer, new, change)
        try:
            compile(new, name, "exec")
        except SyntaxError:
            continue
        found.setdefault(mutant.name, mutant)
    return list(found.values())


# One mutant after another.


class AtImportError(Exception):
    """The change is in what a module does when it is imported."""


def changed(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The outermost functions that differ."""
    if old.co_flags & inspect.CO_NEWLOCALS:
        if old != new:
            yield old, new
        return
    inner = [[const for const in code.co_consts if isinstance(const, CodeType)] for code in (old, new)]
    rest = [[repr(const) for const in code.co_consts if not isinstance(const, CodeType)] for code in (old, new)]
    if (
        rest[0] != rest[1]
        or old.co_code != new.co_code
        or old.co_names != new.co_names
        or len(inner[0]) != len(inner[1])
    ):
        raise AtImportError
    for pair in zip(*inner, strict=True):
        yield from changed(*pair)


def apply(path: Path, old: str, new: str) -> None:
    """Exchange the code of the functions that differ, in this process.

    Raises:
        AtImportError: Another process must import the mutant.
    """
    pairs = dict(changed(compile(old, str(path), "exec"), compile(new, str(path), "exec")))
    pairs = {(str(path), code.co_name, code.co_firstlineno): found for code, found in pairs.items()}
    for function in [thing for thing in gc.get_objects() if type(thing) is FunctionType]:
        code = function.__code__
        if found := pairs.get((code.co_filename, code.co_name, code.co_firstlineno)):
            try:
                function.__code__ = found
            except ValueError as error:  # it uses other variables of the functions around it
                raise AtImportError from error


class Running:
    """Runs, in place of pytest's own loop, the tests of each mutant in a process of its own."""

    def __init__(self, those: Sequence[Mutant], cover: Covering, args: argparse.Namespace) -> None:
        self.mutants, self.cover, self.args = those, cover, args
        self.said = os.dup(2)
        self.failed: str | None = None

    pytest_sessionstart = Mapping.pytest_sessionstart

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        done = recorded(self.args.out)
        for i, mutant in enumerate(self.mutants):
            before = done.get(mutant.name, {"result": None})["result"]
            if before == "killed" or (before and not self.args.again):
                continue
            start = time.perf_counter()
            items = self.cover.chosen(
                session.items, self.args.seconds, mutant.module, (mutant.first, mutant.last), mutant.outer
            )
            row = {"result": "at import"} if self.args.again else self.forked(mutant, items)
            if row["result"] == "at import":  # which a fork of this process cannot show
                row = imported(mutant, items, self.args)
            seconds = round(time.perf_counter() - start, 1)
            with self.args.out.open("a") as lines:
                kept = {"name": mutant.name, "module": mutant.module, "operator": mutant.operator}
                print(json.dumps({**kept, "tests": len(items), **row, "seconds": seconds}), file=lines)
            said = f"{i + 1}/{len(self.mutants)} {seconds:.0f} s {row['result']} {row.get('by', '')} {mutant.name}\n"
            os.write(self.said, said.encode())
        return True

    def forked(self, mutant: Mutant, items: Sequence[pytest.Item]) -> dict[str, Any]:
        """In a fork of this process, where everything is imported and collected."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                os.close(reading)
                os.write(writing, json.dumps(self.work(mutant, items)).encode())
            except BaseException:  # of the driver: said, and no result
                os.write(self.said, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            row = json.loads(pipe.read() or "null")
        if row is None and not os.WIFSIGNALED(status):
            raise RuntimeError(f"{mutant.name}: the driver failed")
        return row or {"result": "killed", "by": signal.strsignal(os.WTERMSIG(status))}

    def work(self, mutant: Mutant, items: Sequence[pytest.Item]) -> dict[str, Any]:
        limited()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        path = ROOT / "src" / "ncml" / mutant.module
        old = path.read_text()
        try:
            apply(path, old, old if self.args.control else mutant.source)
        except AtImportError:
            return {"result": "at import"}
        for item, after in itertools.zip_longest(items, items[1:]):
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # no end: the process dies
            signal.setitimer(signal.ITIMER_PROF, NO_END[0] + NO_END[1] * self.cover.seconds[item.nodeid])
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            except KeyboardInterrupt:  # pytest does not call it a failure
                self.failed = item.nodeid
            if self.failed:
                return {"result": "killed", "by": self.failed}
        return {"result": "survived"}


def limited() -> None:
    """Bound the memory and the time of this process."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WALL)


def imported(mutant: Mutant, items: Sequence[pytest.Item], args: argparse.Namespace) -> dict[str, Any]:
    """In a program of its own, which imports the mutant."""
    if not items:
        return {"result": "survived"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        if not args.control:
            (folder / "src" / "ncml" / mutant.module).write_text(mutant.source)
        (folder / "tests").write_text("\n".join(item.nodeid for item in items))
        env = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", *PLAIN, f"@{folder / 'tests'}"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, preexec_fn=limited)
    if done.returncode == 0:
        return {"result": "survived"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"result": "killed", "by": lines[0][:200] if lines else f"status {done.returncode} {done.stderr[-200:]}"}


# What is found.


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of each mutant."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}


def summary(rows: Sequence[dict[str, Any]], equivalent: dict[str, str]) -> dict[str, Any]:
    """Counts, the share killed of the mutants that are not equivalent, and the survivors."""
    packages: dict[str, Counter[str]] = {}
    survivors = []
    for row in rows:
        result = "equivalent" if row["result"] != "killed" and row["name"] in equivalent else row["result"]
        packages.setdefault(row["module"].partition("/")[0], Counter())[result] += 1
        if result != "killed":
            survivors.append({"name": row["name"], "equivalent": equivalent.get(row["name"])})
    total = sum(packages.values(), Counter())
    counts = {result: total[result] for result in ("killed", "survived", "equivalent")}
    score = counts["killed"] / max(1, counts["killed"] + counts["survived"])
    return {"mutants": len(rows), **counts, "score": score, "packages": packages, "survivors": survivors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="of a processor, for the tests of a mutant")
    parser.add_argument("--map", type=Path, default=Path("mutants.map"), help="which tests execute a line; made if new")
    parser.add_argument("--add", nargs="*", default=(), help="files of tests to add to the map first")
    parser.add_argument("--again", action="store_true", help="run the survivors again, each imported afresh")
    parser.add_argument("--control", action="store_true", help="leave out the changes: everything must survive")
    parser.add_argument(
        "--equivalent", type=Path, default=EQUIVALENT, help="names of mutants, and why no test can fail"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("mutants.json"), help="and the results beside it, line by line"
    )
    args = parser.parse_args()
    report, args.out = args.out, args.out.with_suffix(".jsonl")
    if args.add or not args.map.exists():
        command = [
            sys.executable,
            "-c",
            "import sys; from tests.covering import make_map; make_map(sys.argv[1], sys.argv[2:])",
        ]
        subprocess.run([*command, str(args.map), *(args.add or test_files())], check=True)
    those = mutants(args.mutants, args.seed)
    cover = Covering(args.map)
    pytest.main([*PLAIN, *cover.files()], plugins=[Running(those, cover, args)])
    rows = recorded(args.out)
    from ncml.report import environment, write_report  # here, since nothing of the library may be imported before

    found = summary([rows[mutant.name] for mutant in those], json.loads(args.equivalent.read_text()))
    write_report(report, {"seed": args.seed, "seconds": args.seconds, **found, "environment": environment()})
    print(
        f"{found['killed']} of {len(rows)} killed, {found['equivalent']} equivalent: {found['score']:.1%} of the rest"
    )
    return 1 if found["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
