"""Checks: run alone, or all together into a report."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import SkipTest

from ncml.errors import ArgumentTypeError, ConformanceError
from ncml.progress import progress_bar

__all__ = ["Check", "CheckError", "NotApplicableError", "Report", "checks_with", "run_all", "told"]

Case = TypeVar("Case")
Subject = TypeVar("Subject")

PACKAGES = {"site-packages", "dist-packages"}
"""Folders of installed packages, which hold no file of the object's author."""


class CheckError(Exception):
    """A check does not hold; becomes a ConformanceError that names the check."""


class NotApplicableError(SkipTest):
    """A check says nothing about this object; the message is the reason.

    Args:
        reason: Why.
        note: What the report's notes say of it too, where nothing else checks what this check is about.
    """

    def __init__(self, reason: str, note: str = "") -> None:
        super().__init__(reason)
        self.note = note


@dataclass(frozen=True)
class Report:
    """What was checked. Every check of the kit is in one of the three lists: nothing is left out silently.

    Args:
        subject: What was checked, in words.
        passed: Names of the checks that ran and passed, in order.
        failed: Names of the checks that failed, each with what was got and what was expected.
        not_applicable: Names of the checks that say nothing about the object, each with the reason.
        notes: Names of checks with what was odd or left out on the way, or with what nothing has checked.
    """

    subject: str
    passed: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    not_applicable: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        counts = [f"{len(self.passed)} checks passed"]
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        counts += [f"{len(self.not_applicable)} not applicable"]
        lines = [f"{self.subject}: {', '.join(counts)}"]
        lines += [f"  failed          {name}: {text}" for name, text in self._failures()]
        lines += [f"  passed          {name}" for name in self.passed]
        lines += [f"  not applicable  {name}: {reason}" for name, reason in self.not_applicable]
        lines += [f"  note            {name}: {text}" for name, text in self.notes]
        return "\n".join(lines)

    def error(self, cause: BaseException | None = None) -> ConformanceError:
        """The error that lists what failed, and has this report as its ``report``."""
        texts = [f"check {name!r} failed: {text}" for name, text in self._failures()]
        total = len(self.passed) + len(self.failed) + len(self.not_applicable)
        many = [f"{len(self.failed)} of {total} checks failed", *(f"  {text}" for text in texts)]
        error = ConformanceError(f"{self.subject}: " + (texts[0] if len(texts) == 1 else "\n".join(many)))
        error.report = self
        error.__cause__ = cause
        error.__suppress_context__ = True
        return error

    def _failures(self) -> list[tuple[str, str]]:
        """The failures, those in the same words as one: its name, and its words with the other names."""
        names: dict[str, list[str]] = {}
        for name, text in self.failed:
            names.setdefault(text, []).append(name)
        others = {text: f" (also: {', '.join(those[1:])})" if those[1:] else "" for text, those in names.items()}
        return [(those[0], text + others[text]) for text, those in names.items()]


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One check: call it with the object to be checked. Its name is its ``id`` and its ``str``.

    Args:
        function: What is checked, of a case; may return a note.
        prepare: Makes the case from the object: anew for each check, so that none can spoil another.

    Raises:
        ConformanceError: When called, if the check fails, or if an error of the object interrupts it.
        unittest.SkipTest: When called, if the check says nothing about the object. Test runners, pytest among them,
            report such a test as skipped, with the reason.
    """

    function: Callable[[Any], str | None]
    prepare: Callable[[Subject], Any]

    @property
    def id(self) -> str:
        """The name of the check."""
        return self.function.__name__

    def __str__(self) -> str:
        return self.id

    def __call__(self, subject: Subject) -> None:
        failure, _ = self.outcome(subject)
        if failure is not None:
            text, cause = failure
            raise Report(type(subject).__name__, failed=((self.id, text),)).error(cause)

    def outcome(self, subject: Subject) -> tuple[tuple[str, Exception | None] | None, str]:
        """What failed, with the error of the object that was the cause, if any; None if nothing did. And a note."""
        case = self.prepare(subject)
        try:
            note = self.function(case)
        except NotApplicableError:
            raise
        except CheckError as failure:
            return (str(failure), failure.__cause__ if isinstance(failure.__cause__, Exception) else None), ""
        except Exception as error:
            return (told(error, expected="no error"), error), ""
        return None, note or ""


def told(error: Exception, origin: str = "", *, expected: str) -> str:
    """An error of the object in the words of a failure; what it expected is said once, by itself if it can."""
    text = f"got {type(error).__name__}{origin}: {error}{_place(error)}"
    return text if "; expected " in str(error) else f"{text}; expected {expected}"


def _place(error: Exception) -> str:
    """Where, in a file of the object's author, an error came from; nothing if it is nowhere in such a file."""
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    paths = [(Path(frame.filename), frame.lineno) for frame in frames if not frame.filename.startswith("<")]
    theirs = {ours, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))}
    own = [(path, line) for path, line in paths if theirs.isdisjoint(path.parents) and PACKAGES.isdisjoint(path.parts)]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""


def run_all(checks: Sequence[Check[Subject]], subject: Subject, progress: bool | None = None) -> Report:
    """Run every check, whatever the others say, with a progress bar (None: on a terminal, if tqdm is there).

    Raises:
        ConformanceError: At the end, if checks failed; it lists them all.
    """
    checks[0].prepare(subject)  # refuses bad arguments before anything runs
    if progress is None:
        progress = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    passed: list[str] = []
    failed: list[tuple[str, str]] = []
    not_applicable: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    causes: list[Exception] = []
    for check in progress_bar(checks, progress, f"checks of {type(subject).__name__}"):
        try:
            failure, note = check.outcome(subject)
        except NotApplicableError as reason:
            not_applicable.append((check.id, str(reason)))
            notes += [(check.id, reason.note)] if reason.note else []
            continue
        if failure is None:
            passed.append(check.id)
            notes += [(check.id, note)] if note else []
            continue
        failed.append((check.id, failure[0]))
        causes += [] if failure[1] is None else [failure[1]]
    report = Report(type(subject).__name__, tuple(passed), tuple(failed), tuple(not_applicable), tuple(notes))
    if failed:
        raise report.error(causes[0] if causes else None)
    return report


def checks_with(
    functions: Sequence[Callable[[Case], str | None]],
    prepare: Callable[..., Case],
    options: dict[str, Any],
) -> list[Check[Any]]:
    """The checks of some functions, with options for their preparation.

    Raises:
        ArgumentTypeError: There is no such option.
    """
    known = list(inspect.signature(prepare).parameters)[1:]
    for name in options:
        if name not in known:
            raise ArgumentTypeError(f"{name}: got an option of this name; expected one of {', '.join(known)}")

    def prepared(subject: Any) -> Case:  # noqa: ANN401
        return prepare(subject, **options)

    return [Check(function, prepared) for function in functions]
