"""Files that are replaced whole, and folders that one process has for itself."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ncml.errors import ArgumentError

__all__ = ["as_folder", "only_here", "replacing"]


def as_folder(out: Path) -> Path:
    """Where results go, refused if no folder is there and none can be made.

    Raises:
        ArgumentError: A file is there, or above it, or the folder may not be written to.
    """
    absolute = out.absolute()
    place = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not place.is_dir():
        where = out if place == absolute else f"{out} below {place}"
        raise ArgumentError(f"out: got {where}, which is a file; expected a folder, which is made if it is not there")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArgumentError(f"out: got {out}; expected a place that may be written to, as {place} is not")
    return out


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` when it is complete; a reader sees the old one or the whole new one.

    Raises:
        OSError: It cannot be written; the old one stays, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # replaced already, or never there
            temporary.unlink()


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for the block; one that dies lets go of it. No lock if there are none.

    Raises:
        ArgumentError: Another process has it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArgumentError(
                f"out: got {folder}, where another process is at work; expected a folder for this one alone; wait, or "
                f"take another"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
