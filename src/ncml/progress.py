"""Progress bars: tqdm where asked for, imported on use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

from ncml.errors import MissingExtraError

__all__ = ["ProgressCounter", "discard_output", "print_above", "progress_bar", "progress_counter"]

T = TypeVar("T")


def progress_bar(items: Iterable[T], show: bool, label: str) -> Iterable[T]:
    """``items`` themselves, or wrapped in a progress bar."""
    if not show:
        return items
    bar: Iterable[T] = _tqdm()(items, desc=label, dynamic_ncols=True, leave=False)
    return bar


class ProgressCounter:
    """Counts steps on a progress bar, if there is one; a context manager."""

    def __init__(self, bar: Any = None) -> None:  # noqa: ANN401 -- tqdm's
        self.bar = bar

    def update(self) -> None:
        """Count one step."""
        if self.bar is not None:
            self.bar.update()

    def __enter__(self) -> ProgressCounter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()


def progress_counter(show: bool, label: str, total: int | None) -> ProgressCounter:
    """A counter of steps, whose number may not be known before."""
    return ProgressCounter(_tqdm()(desc=label, total=total, dynamic_ncols=True, leave=False) if show else None)


def print_above(line: str) -> None:
    """Print a line at once, above the progress bars if there are any; for callers that run tqdm already.

    If its reader has gone, as head does, it and what follows are dropped: work is not given up for that.
    """
    with _tqdm().external_write_mode():
        try:
            print(line, flush=True)
        except BrokenPipeError:
            discard_output()


def discard_output() -> None:
    """Drop what is printed from now on, as when its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tqdm() -> Any:  # noqa: ANN401 -- a class
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingExtraError(
            "progress: tqdm is not installed; pip install tqdm, or ask for no bar (progress=False, or verbose=0)"
        ) from error
    return tqdm
