"""Progress bars: tqdm where asked for, imported on use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ncml.errors import MissingExtraError

T = TypeVar("T")


def progress_bar(items: Iterable[T], show: bool, label: str) -> Iterable[T]:
    """``items`` themselves, or wrapped in a progress bar."""
    if not show:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingExtraError(
            "progress=True: tqdm is not installed; pip install 'ncml[demo]', or progress=False"
        ) from error
    bar: Iterable[T] = tqdm(items, desc=label, dynamic_ncols=True, leave=False)
    return bar
