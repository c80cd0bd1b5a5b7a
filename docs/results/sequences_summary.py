"""The table of smooth sequences in short, for the page and the README: the range over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["summary"]

PROBLEMS = {"paths-0.0001": "paths, 1e-4", "paths-1e-08": "paths, 1e-8", "recordings": "recordings"}
MODELS = {"made": "MADE", "transformer": "transformer"}
COLUMNS = (("ml", "direct"), ("ncml", "direct"), ("ncml", "two-part"))


def span(values: list[float], form: str) -> str:
    """The least and the largest value, once where they look alike."""
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _order(row: list[str]) -> tuple[int, int, str]:
    problem, length, model = row
    return list(PROBLEMS).index(problem), int(length), model


def summary(
    data: dict[str, Any],
    final: Callable[[dict[str, Any], str], list[dict[str, Any]]],
    likelihood: Callable[[float, bool], str],
) -> list[str]:
    """One row for each problem, length and model.

    Args:
        data: What was recorded.
        final: The test runs of an entry and a way of training.
        likelihood: From nats, and whether they are of recordings, the figure in the unit of the problem.
    """
    lines = [
        "| | at t = 0: ML / NCML | % of windows that leave the data: ML / NCML / in two parts | "
        "energy distance from test windows: ML / NCML / in two parts |",
        "| --- | --- | --- | --- |",
    ]
    for problem, length, model in sorted((name.rsplit("-", 2) for name in data), key=_order):
        name = f"{problem}-{length}-{model}"
        runs = {way: final(data[name], way) for way in ("ml", "ncml")}
        if not all(runs.values()):
            continue
        recordings = problem == "recordings"
        figures = [span([float(likelihood(r["nats"]["0"], recordings)) for r in runs[way]], ".2f") for way in runs]
        kinds = [[run["samples"][kind] for run in runs[way]] for way, kind in COLUMNS]
        shares = [span([100.0 * kind["share"] for kind in seeds], ".2f") for seeds in kinds]
        energies = [span([kind["energy inside"] for kind in seeds], ".3f") for seeds in kinds]
        lines.append(
            f"| {PROBLEMS[problem]}, {length} values, {MODELS[model]} | {' / '.join(figures)} "
            f"{'bits' if recordings else 'nats'} | {' / '.join(shares)} | {' / '.join(energies)} |"
        )
    return lines
