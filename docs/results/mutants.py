"""Writes mutants.table.txt, of which robustness.md makes a part, from mutants.json and mutants-seed1.json.

python docs/results/mutants.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDS = ("mutants.json", "mutants-seed1.json")


def found(counts: dict[str, int]) -> str:
    """How many of the mutants that are not equivalent were killed."""
    killed, total = counts.get("killed", 0), counts.get("killed", 0) + counts.get("survived", 0)
    return f"{killed} of {total} ({100 * killed / total:.1f} %)" if total else "none"


def table() -> str:
    """Both runs as a whole and package by package, then the mutants that are called equivalent."""
    runs: list[dict[str, Any]] = [json.loads((HERE / name).read_text()) for name in RECORDS]
    packages = sorted({package for run in runs for package in run["packages"]})
    lines = [
        "| killed, of those not called equivalent | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |",
        "| --- |" + " --- |" * len(runs),
        "| all | " + " | ".join(map(found, runs)) + " |",
        *(
            f"| `{name}` | " + " | ".join(found(run["packages"].get(name, {})) for run in runs) + " |"
            for name in packages
        ),
        "",
        f"Of seed {runs[0]['seed']}, called equivalent, since no test could fail (`equivalent.json`):",
        "",
        "| mutant | why |",
        "| --- | --- |",
    ]
    for survivor in runs[0]["survivors"]:
        if survivor["equivalent"]:
            where, operator = survivor["name"].partition(": ")[0].split(" ")
            lines.append(f"| `{where}`, {operator.replace('_', ' ')} | {survivor['equivalent']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "mutants.table.txt").write_text(table())
