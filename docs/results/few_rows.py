"""Writes few_rows.md from what was recorded (benchmarks/results/few_rows.json).

python docs/results/few_rows.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "benchmarks" / "results" / "few_rows.json"
OTHER = "NCML, linear or not"
OURS = ("NCML", "NCML, dropout 0", OTHER, "maximum likelihood")


def page() -> str:
    """The page, from the record alone."""
    tables = json.loads(RECORD.read_text())["tables"]
    found = [(name, int(rows), ways) for name, table in tables.items() for rows, ways in table["trained"].items()]
    ways = list(found[0][2])
    seeds = len(found[0][2]["NCML"]["mean"])
    pairs = len(found) * seeds
    theirs = [way for way in ways if way not in OURS]
    sizes = sorted({rows for _, rows, _ in found})
    ahead = [[beats(w, theirs) for _, rows, w in found if rows == size] for size in sizes]
    gains: dict[bool, list[float]] = {True: [], False: []}  # over the other choice; True with linear components
    for name, rows, w in found:
        counts = tables[name]["linear"][str(rows)]
        for count, own, other in zip(counts, w["NCML"]["mean"], w[OTHER]["mean"], strict=True):
            gains[count > 0].append(own - other)
    linear, plain = gains[True], gains[False]
    names = [name for name, table in tables.items() if any(map(any, table["linear"].values()))]
    shown = ", ".join(f"{sum(a)} of {len(a)} with {size:,}" for size, a in zip(sizes, ahead, strict=True))
    return f"""# Tables of few rows

`python benchmarks/few_rows.py`. Five tables that scikit-learn brings; a random part of the rows trains, and others
are the figure. The estimator is as it is, its network trained by NCML and by maximum likelihood; with the dropout
of 0 that it has for tables of many rows: the fewer rows for every column, the more it drops
({{func}}`~ncml.estimator.defaults.dropout_for`); and "linear or not" is the other choice of linear components: it has
some where columns are nearly linear in those before, and none elsewhere
({{func}}`~ncml.estimator.defaults.linear_components_for`). Beside it are scikit-learn's densities: the bandwidth of the
kernel density and the number of components and kind of covariances of the mixture are chosen by cross-validation; the
Gaussian has Ledoit and Wolf's shrinkage. Columns on a lattice are spread by uniform noise once, alike for all.
{seeds} seeds.

**What came out.** With dropout the other rows are likelier than without in {better(found, "NCML, dropout 0")} of
{pairs} pairs of part and seed. NCML is ahead of maximum likelihood of the same network in
{better(found, "maximum likelihood")}; dropout, learning rate and when there are linear components were chosen by NCML's
likelihoods, on these tables among others. The estimator has linear components in {len(linear)}
pairs, of {" and ".join(names)}: the other rows are likelier with them than without in {ahead_in(linear)}, by
{mean(linear):.1f} nats in the mean. In the {len(plain)} others they are likelier without in {ahead_in(plain)}, by
{mean(plain):.1f} nats in the mean, {max(plain):.1f} at most and {-min(plain):.1f} behind at worst. Its mean over the
seeds is ahead of the best of scikit-learn's three densities on {sum(map(sum, ahead))} of {len(found)} parts (of tables
with so many rows: {shown}). Where it is behind, and a density of the data is all you want, theirs are the better ones.

## Mean log-likelihood of a row

Nats, in the columns' scales, mean over the seeds; the largest in bold.

{likelihoods(found, ways, "mean")}

## Median row

A few rows far out can rule a mean, of the kernel density above all.

{likelihoods(found, ways, "median")}
"""


def beats(ways: dict[str, Any], others: list[str]) -> bool:
    return mean(ways["NCML"]["mean"]) > max(mean(ways[other]["mean"]) for other in others)


def better(found: list[tuple[str, int, dict[str, Any]]], other: str) -> int:
    """In how many pairs NCML's mean is above another's."""
    return sum(a > b for _, _, w in found for a, b in zip(w["NCML"]["mean"], w[other]["mean"], strict=True))


def ahead_in(gains: list[float]) -> int:
    return sum(gain > 0.0 for gain in gains)


def likelihoods(found: list[tuple[str, int, dict[str, Any]]], ways: list[str], what: str) -> str:
    lines = [f"| table | rows | {' | '.join(ways)} |", "| --- | --- |" + " --- |" * len(ways)]
    for name, rows, by in found:
        values = [mean(by[way][what]) for way in ways]
        shown = [f"**{v:.2f}**" if v == max(values) else f"{v:.2f}" for v in values]
        lines.append(f"| {name} | {rows:,} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "few_rows.md").write_text(page())
