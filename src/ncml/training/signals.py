"""Stopping a run by a signal: finish the step, save, exit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


PATIENCE = 2.0  # seconds; launchers pass on a signal that their processes received already


class StopSignals:
    """Catches SIGINT and SIGTERM inside a ``with`` block, and says so. Another, seconds later, acts as usual.

    Attributes:
        received: Number of the signal that came, or 0.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handler) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _handler(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):  # nobody may be listening
                os.write(2, b"\nSignal received: finishing the current work. Another, seconds later, stops at once.\n")
        elif time.monotonic() - self._first > PATIENCE:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        restore: Callable[[int, Any], Any] = signal.signal
        for number, handler in self._before.items():
            restore(number, handler)
        self._before = {}
