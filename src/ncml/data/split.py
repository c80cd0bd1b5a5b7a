"""Which examples are for testing: decided for each by its own name, so that others can be added or removed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "composed", "held_out", "split_by_name"]

RULE = "sha256-1"  # another rule makes other test examples, and needs another name


@dataclass(frozen=True)
class Choice:
    """How the examples of one split were chosen: a checkpoint keeps this, to know later what it was trained on.

    Args:
        rule: "sha256-1" if chosen by hashes of their names ("sha256-1, and the nearest" where one side would have had
            none), "at the end" for the ends of series, or "given" if the files say.
        fraction: The share of test examples, unless the files say which they are.
        digest: Digest of the names of the examples, in any order.
    """

    rule: str
    fraction: float | None
    digest: str

    @classmethod
    def of(cls, names: Iterable[str], fraction: float | None = None, rule: str = "given") -> Choice:
        """The choice of examples with these names."""
        text = "\n".join(sorted(map(composed, names)))
        return cls(rule, fraction, hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32])


def composed(name: str) -> str:
    """A name with its accents composed (NFC): systems spell them differently."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_by_name(names: Sequence[str], fraction: float) -> tuple[list[int], list[int], str]:
    """Training and test rows, each in the order of a hash of their names, and the rule by which they were chosen.

    A name is for testing if its hash, a number in [0, 1), is below ``fraction``: about that share of many names, the
    same ones whichever others there are. If there are two or more examples, each side gets at least one: the nearest
    if it would have none. That one depends on the others, and the rule says so.
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


def held_out(then: Choice | None, now: Choice | None) -> bool | None:
    """Whether a run was trained on none of today's test examples; None if that cannot be told.

    Args:
        then: How the run chose its test examples.
        now: How they are chosen today. They are held out if they are the same ones, or if both were chosen by names
            alone and by the same rule: then a name that is for testing was never for training.
    """
    if then is None or now is None:
        return None
    same_rule = (then.rule, then.fraction) == (now.rule, now.fraction)
    return True if same_rule and (then.digest == now.digest or now.rule == RULE) else None
