"""Which examples are for testing: decided for each by its own name, so that others may come and go."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

__all__ = ["composed", "split_by_name"]

RULE = "sha256-1"  # another rule makes other test examples, and needs another name


def composed(name: str) -> str:
    """A name with its accents composed (NFC): systems spell them differently."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_by_name(names: Sequence[str], fraction: float) -> tuple[list[int], list[int], str]:
    """Training and test rows, each in the order of a hash of their names; and the rule by which they were chosen.

    A name is for testing if its hash, a number in [0, 1), is below ``fraction``: about that share of many names, the
    same ones whichever others there are. Of two or more examples at least one is for each side: one that would be
    missing is the nearest, which depends on the others, and the rule says so.
    """
    places = [_place(name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (places[i], names[i]))
    below = tests = sum(place < fraction for place in places)
    if fraction > 0.0:
        tests = max(min(1, len(names) - 1), min(below, len(names) - 1))
    return order[tests:], order[:tests], RULE if tests == below else f"{RULE}, and the nearest"


def _place(name: str) -> float:
    """A name's own number in [0, 1)."""
    raw = hashlib.sha256(composed(name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(raw[:6], "big") / 2**48
