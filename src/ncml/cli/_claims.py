"""A paper's numbers beside ours, and whether the two can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ncml.data import ImageSource
from ncml.errors import ArgumentError

__all__ = ["beside_the_paper", "print_claims"]

FID_SAMPLES = 10_000  # the least that published values are of


def beside_the_paper(path: Path, row: str | None, report: dict[str, Any], data: ImageSource) -> list[dict[str, Any]]:
    """Every number of one row of a claims file with ours, where there is one.

    Args:
        path: ``{"source": ..., "requires": {...}, "rows": {name: {table: {quantity: number}}}}``.
        row: Name of the row.
        report: The results so far.
        data: The images they are of.

    Returns:
        One entry per number: table, quantity, paper, ours (or None), comparable, why not.

    Raises:
        ArgumentError: The file is no such file, or has no such row.
    """
    try:
        claims = json.loads(path.read_text(encoding="utf-8"))
        rows, requires = claims["rows"], claims["requires"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"claims: got {path}, which is no file of claims ({error!r})") from error
    if row not in rows:
        raise ArgumentError(f"row: got {row!r}; expected one of {', '.join(map(repr, rows))}")
    reasons = _differences(requires, report, data)
    entries = []
    for table, numbers in rows[row].items():
        for quantity, paper in numbers.items():
            ours, own_reasons = _ours(quantity, report)
            why = reasons + own_reasons
            entries.append(
                {"table": table, "quantity": quantity, "paper": paper, "ours": ours, "comparable": not why, "why": why}
            )
    return entries


def _differences(requires: dict[str, Any], report: dict[str, Any], data: ImageSource) -> list[str]:
    """Why no number on these data can stand beside the paper's."""
    have = {
        "data": data.name,
        "shape": list(report["model"]["images"]["shape"]),
        "levels": report["model"]["images"]["levels"],
        "test_images": report["test_images"],
        "training_images": report["model"].get("training_images"),
        "parameters": report["model"].get("parameters"),
        "steps": report["model"]["step"],
    }
    return [
        f"{name} is {have.get(name)}, not {wanted}" for name, wanted in requires.items() if have.get(name) != wanted
    ]


def _ours(quantity: str, report: dict[str, Any]) -> tuple[float | None, list[str]]:
    """Our number for a quantity such as ``"bits/dim pi=0.5"``, ``"FID"`` or ``"AUROC uniform noise"``."""
    kind, _, rest = quantity.partition(" ")
    if kind == "bits/dim":
        return report["bits_per_dim"][rest.removeprefix("pi=")]["bits"].mean, []
    if kind == "AUROC":
        found = report.get("auroc", {}).get(rest)
        return (None, ["not evaluated"]) if found is None else (found["log_p_plus_log_score_norm"].value, [])
    if kind == "FID":
        frechet = report.get("frechet")
        if frechet is None:
            return None, ["not evaluated"]
        distances = frechet.get("fid", frechet["distances"])
        if "fid" in frechet:
            enough = frechet["samples"] >= FID_SAMPLES
            why = [] if enough else [f"FID is of {frechet['samples']} samples, not {FID_SAMPLES}"]
            return distances.get("two-part", distances["direct"]), why
        return distances.get("two-part", distances["direct"]), ["a classifier's features, not Inception's"]
    raise ArgumentError(f"claims: got the quantity {quantity!r}; expected 'bits/dim pi=...', 'AUROC ...' or 'FID'")


def print_claims(entries: list[dict[str, Any]]) -> None:
    """The table, and under it why numbers cannot be compared."""
    print(f"\n{'':<34}{'paper':>10}{'here':>10}   comparable")
    for entry in entries:
        ours = "-" if entry["ours"] is None else f"{entry['ours']:.3f}"
        name = f"{entry['table']}, {entry['quantity']}"
        print(f"  {name:<32}{entry['paper']:>10.2f}{ours:>10}   {'yes' if entry['comparable'] else 'no'}")
    for reason in dict.fromkeys(reason for entry in entries for reason in entry["why"]):
        print(f"  not comparable: {reason}")
