"""Writes benchmarks.md from the recorded benchmarks (benchmarks/results/*.json).

python docs/results/benchmarks.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
TITLES = {
    "ncpn": "NCPN against pixel-cnn-pp",
    "made": "MADE",
    "flows": "Flows, against zuko and nflows",
    "score": "Scores",
    "samplers": "Samplers, against score_sde_pytorch and azula",
    "checks": "Checks of the public calls",
    "transformer": "The causal transformer, against torch's layers",
    "tarflow": "The transformer flow, against TarFlow",
    "parallel": "Direct samples in parallel, against cached sampling",
    "aligned": "Fitted grids and aligned scores (errors, not times)",
    "tables": "Tables, against the flows of zuko and nflows",
}
NOTES = {
    "tarflow": "A step of ours also has the noise level in every block, a bound on scales, and a layer norm that is\n"
    "right to the third derivative.",
}
OPTIONS = {
    "ncpn": " --pixel-cnn-pp PATH",
    "samplers": " --score-sde PATH --azula PATH --before PATH",
    "tarflow": " --tarflow PATH --itarflow PATH",
    "tables": " --data PATH",
}


def table(name: str) -> list[str]:
    """The figures of one benchmark and the command that records them."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    machine = record["environment"]
    lines = [
        f"## {TITLES[name]}",
        "",
        f"`python benchmarks/{name}.py{OPTIONS.get(name, '')}`; {machine['machine']}, {machine['threads']} thread,",
        f"torch {machine['torch']}; {machine['clock']}.",
        "",
        "| figure | target | measured | |",
        "| --- | --- | --- | --- |",
    ]
    for figure in record["figures"]:
        bound = ">=" if figure["at_least"] else "<="
        target = "" if figure["target"] is None else f"{bound} {figure['target']:g}"
        value = "-" if figure["value"] is None else f"{figure['value']:.3g} {figure['unit']}"
        verdict = "**missed**" if figure["verdict"] == "MISSED" else figure["verdict"]
        lines.append(f"| {figure['name']} | {target} | {value} | {verdict} |")
    return [*lines, "", *([NOTES[name], ""] if name in NOTES else [])]


def page() -> str:
    """The page, from the records alone."""
    lines = [
        "# Benchmarks",
        "",
        "Ratios of CPU time, of two sides that ran in turn in one process on one thread, medians over rounds; missed",
        "targets are marked. How to read them: `benchmarks/README.md`. This page is written by",
        "`docs/results/benchmarks.py`.",
        "",
    ]
    for name in TITLES:
        if (RESULTS / f"{name}.json").exists():
            lines += table(name)
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "benchmarks.md").write_text(page())
