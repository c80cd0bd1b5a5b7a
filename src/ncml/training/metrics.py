"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ncml.errors import ArgumentError
from ncml.files import replacing
from ncml.report import jsonable

__all__ = ["MetricsLog", "numbers", "read_metrics"]


class MetricsLog:
    """Appends to ``metrics.jsonl``; a run that is resumed forgets what lies after its checkpoint.

    Args:
        path: The file.
        step: Steps already done: lines of later steps, and a line cut short, are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= step]
            with replacing(path) as file:
                file.write("".join(_text(line) for line in kept).encode())

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, which has a ``step``."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_text(line))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut short is left out.

    Raises:
        ArgumentError: A line is damaged; the message says which.
    """
    lines = Path(path).read_bytes().split(b"\n")
    complete = lines[:-1]  # what follows the last newline is empty, or cut short
    return [_read_line(line, path, i) for i, line in enumerate(complete, start=1) if line]


def _read_line(text: bytes, path: str | os.PathLike[str], i: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ArgumentError(f"{path}: got a line {i} that is damaged; expected JSON with a step; remove the line")
    return line


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of the log, nested ones as ``validation/bits_per_dim``."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield f"{prefix}{name}", value


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(line), allow_nan=False, ensure_ascii=False) + "\n"
