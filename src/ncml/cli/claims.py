"""A paper's numbers beside ours, and whether the two can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ncml.checks import check_choice
from ncml.data import DataSource
from ncml.errors import ArgumentError

__all__ = ["beside_the_paper", "print_claims", "read_claims"]

BITS = {f"bits/dim pi={pi}": pi for pi in ("0", "0.5", "1")}
FID_SAMPLES = 10_000  # the fewest that published values use


Row = dict[str, dict[str, float]]


def read_claims(path: Path, row: str) -> tuple[Row, dict[str, Any], bool]:
    """One row of a claims file: ``{table: {quantity: number}}``, what it requires of the data, whether it is a bound.

    Args:
        path: ``{"source": ..., "requires": {...}, "rows": {name: {table: {quantity: number}}}}``, and perhaps
            ``"bounds": [name, ...]``: the rows whose bits/dim are upper bounds.
        row: Name of the row.

    Raises:
        ArgumentError: It is not such a file, has no such row, or has an unknown quantity.
    """
    try:
        claims = json.loads(path.read_text(encoding="utf-8"))
        rows, requires, bounds = dict(claims["rows"]), dict(claims["requires"]), list(claims.get("bounds", []))
        tables = {name: {q: {t: float(v) for t, v in n.items()} for q, n in r.items()} for name, r in rows.items()}
    except OSError as error:
        raise ArgumentError(f"claims: got {path}, which cannot be read ({error.strerror}); expected a file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"claims: got {path}, which is no file of claims ({error!r})") from error
    check_choice(row, "row", tables)
    for quantity in (quantity for numbers in tables[row].values() for quantity in numbers):
        if quantity not in BITS and quantity != "FID" and not quantity.startswith("AUROC "):
            expected = ", ".join(map(repr, [*BITS, "FID", "AUROC ..."]))
            raise ArgumentError(f"claims: got the quantity {quantity!r}; expected one of {expected}")
    return tables[row], requires, row in bounds


def beside_the_paper(
    row: Row, requires: dict[str, Any], bound: bool, report: dict[str, Any], data: DataSource
) -> list[dict[str, Any]]:
    """Every number of a row, with ours where there is one.

    Args:
        row, requires, bound: What :func:`read_claims` returned.
        report: The results so far.
        data: The data that they are for.

    Returns:
        One entry per number: table, quantity, paper, ours (or None), comparable, why not.
    """
    reasons = _differences(requires, report, data)
    entries = []
    for table, numbers in row.items():
        for quantity, paper in numbers.items():
            ours, own_reasons = _ours(quantity, report)
            why = reasons + own_reasons
            if quantity in BITS and ours is not None and bound != (not _exact(quantity, report)):
                why = [*why, f"the paper's is {'a bound' if bound else 'exact'}, and this one is not"]
            entries.append(
                {"table": table, "quantity": quantity, "paper": paper, "ours": ours, "comparable": not why, "why": why}
            )
    return entries


def _differences(requires: dict[str, Any], report: dict[str, Any], data: DataSource) -> list[str]:
    """Why no number on these data is comparable with the paper's."""
    have = {
        "data": data.name,
        "shape": list(report["model"]["data"]["shape"]),
        "levels": report["model"]["data"]["levels"],
        "test_images": report["test_examples"],
        "training_images": report["model"].get("training_examples"),
        "parameters": report["model"].get("parameters"),
        "steps": report["model"]["step"],
    }
    return [
        f"{name} is {have.get(name)}, not {wanted}" for name, wanted in requires.items() if have.get(name) != wanted
    ]


def _exact(quantity: str, report: dict[str, Any]) -> bool:
    return bool(report["bits_per_dim"][BITS[quantity]]["bits"].exact)


def _ours(quantity: str, report: dict[str, Any]) -> tuple[float | None, list[str]]:
    """Our number for a quantity such as ``"bits/dim pi=0.5"``, ``"FID"`` or ``"AUROC uniform noise"``."""
    if quantity in BITS:
        if "bits_per_dim" not in report:
            return None, ["the data have no levels"]
        row = report["bits_per_dim"].get(BITS[quantity])
        return (None, ["among so many levels a move by one says nothing"]) if row is None else (row["bits"].mean, [])
    if quantity.startswith("AUROC "):
        found = report.get("auroc", {}).get(quantity.removeprefix("AUROC "))
        return (None, ["not evaluated"]) if found is None else (found["log_p_plus_log_score_norm"].value, [])
    frechet = report.get("frechet")
    if frechet is None:
        return None, ["not evaluated"]
    distances = frechet.get("fid", frechet["distances"])
    ours = distances.get("two-part", distances["direct"])
    if "fid" not in frechet:
        return ours, ["a classifier's features, not Inception's"]
    enough = frechet["samples"] >= FID_SAMPLES
    return ours, [] if enough else [f"FID is of {frechet['samples']} samples, not {FID_SAMPLES}"]


def print_claims(entries: list[dict[str, Any]]) -> None:
    """Print the table, and below it why numbers cannot be compared."""
    print(f"\n{'':<34}{'paper':>10}{'here':>10}   comparable")
    for entry in entries:
        ours = "-" if entry["ours"] is None else f"{entry['ours']:.3f}"
        name = f"{entry['table']}, {entry['quantity']}"
        print(f"  {name:<32}{entry['paper']:>10.2f}{ours:>10}   {'yes' if entry['comparable'] else 'no'}")
    for reason in dict.fromkeys(reason for entry in entries for reason in entry["why"]):
        print(f"  not comparable: {reason}")
