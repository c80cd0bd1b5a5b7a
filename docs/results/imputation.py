"""Writes imputation.md from what was recorded (benchmarks/results/imputation.json).

python docs/results/imputation.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "benchmarks" / "results" / "imputation.json"
OURS = ("NCML", "NCML, linear or not", "NCML, twice", "maximum likelihood, twice", "NCML, medians")
SINGLE = ("chained means", "chained trees", "k-NN")  # fill in one value each, as medians do


def page() -> str:
    """The page, from the record alone."""
    record = json.loads(RECORD.read_text())
    tables = record["tables"]
    first = next(iter(tables.values()))["seeds"]
    methods = list(first[0])
    once = sum(row["NCML"]["crps"] < min(row[m]["crps"] for m in others(methods)) for row in rows(tables))
    twice = sum(row["NCML, twice"]["crps"] < row["NCML"]["crps"] for row in rows(tables))
    likely = sum(row["NCML, twice"]["crps"] < row["maximum likelihood, twice"]["crps"] for row in rows(tables))
    nearer = sum(row["NCML, medians"]["crps"] < min(row[m]["crps"] for m in SINGLE) for row in rows(tables))
    closer = sum(row["NCML, twice"]["energy"] < min(row[m]["energy"] for m in others(methods)) for row in rows(tables))
    pairs = len(list(rows(tables)))
    linear = [name for name, t in tables.items() if all(t["linear"])]
    chained = [
        row["NCML, twice"]["crps"] / row["chained equations"]["crps"] for n in linear for row in tables[n]["seeds"]
    ]
    own, other = ([r for t in tables.values() for r in gains(t) if r[0] == wanted] for wanted in (True, False))
    return f"""# Filling gaps in tables

`python benchmarks/imputation.py --data FOLDER`. Of the normal rows of ADBench's tables, and of scikit-learn's breast
cancer table, up to 3,000 (half of them at most) train and up to 300 others are filled; in both, {record["missing"]:.0%}
of the values are missing at random. {len(first)} seeds, each with its own rows and gaps.

- *NCML*: {{class}}`~ncml.estimator.NCMLDensityEstimator`, fitted to the rows with gaps, by `complete`. *Twice*: fitted
  once more, to the training rows that the first fit has filled, as {{class}}`~ncml.estimator.NCMLImputer` does.
  *Maximum likelihood, twice*: the same network, trained at t = 0 only. *Medians*: those of {record["median of"]} draws,
  after two fits. *Linear or not*: one fit with the other choice of linear components; it has some where columns are
  nearly linear in those before ({{func}}`~ncml.estimator.defaults.linear_components_for`).
- *Chained equations* (Bayesian ridge with draws, as MICE has them) or their *means*, *chained trees* (as missForest has
  them) and *k-NN*: scikit-learn's imputers. *Hot deck*: values of other rows, column by column.

NCML, chained equations and the hot deck draw, here {record["draws"]} times; medians, means, trees and k-NN fill in one
value each, nearer to the truth than a draw, but the same for all rows that look alike. The continuous ranked
probability score is fair to both: of one value it is the absolute error, of draws that error less what is due to their
spread. Values are cut at {record["cut"]:g} standard deviations, lest one rules a mean: beside a known value far beyond
all others a gap can be filled with anything.

**What came out.** After one fit NCML's score is better than those of scikit-learn's imputers and the hot deck in
{once} of {pairs} pairs of table and seed. The second fit improves it in {twice}. It is not the noise that makes it so:
beside maximum likelihood, both fitted twice, it is the better one in {likely}. Medians are nearer to the truth than
chained means, chained trees and k-NN in {nearer}. Rows filled by NCML, fitted twice, are closer to fresh rows than
those of scikit-learn's imputers and the hot deck in {closer}.

The estimator has linear components on {" and ".join(linear)}. Its score after one fit is better with than
without in {sum(g < 1 for _, g in own)} of {len(own)} pairs, {1 - geometric_mean([g for _, g in own]):.0%} smaller in
the mean. All the same chained equations, which are linear, are the best there: NCML's score after two fits is
{geometric_mean(chained) - 1:.0%} larger in the mean. Elsewhere the estimator has none, and would be better with them
in {sum(g > 1 for _, g in other)} of {len(other)} pairs, by {1 - 1 / geometric_mean([g for _, g in other]):.0%} in the
mean.

## Continuous ranked probability score of the missing values

In standard deviations of the columns, mean over the seeds; the smallest in bold.

{scores(tables, methods, "crps", 3)}

## Energy distance of filled rows from fresh ones

{scores(tables, methods, "energy", 4)}

## Seconds of a core

To train and to fill 300 rows, {record["draws"]} times where draws are made. (On annthyroid to vowels scikit-learn's
imputers and the hot deck ran on another machine than the rest.)

{scores(tables, methods, "seconds", 1, bold=False)}
"""


def gains(table: dict[str, Any]) -> list[tuple[bool, float]]:
    """Seed by seed whether there are linear components, and the score of one fit over that of the other choice."""
    scores = [row["NCML"]["crps"] / row["NCML, linear or not"]["crps"] for row in table["seeds"]]
    return list(zip(map(bool, table["linear"]), scores, strict=True))


def rows(tables: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for t in tables.values() for row in t["seeds"]]


def others(methods: list[str]) -> list[str]:
    return [m for m in methods if m not in OURS]


def scores(tables: dict[str, Any], methods: list[str], key: str, digits: int, *, bold: bool = True) -> str:
    """A table of the means over the seeds, a row for each method."""
    found = {m: [mean(row[m][key] for row in t["seeds"]) for t in tables.values()] for m in methods}
    least = [min(column) for column in zip(*found.values(), strict=True)]
    names = [f"{name} ({t['columns']} columns)" for name, t in tables.items()]
    lines = ["| method | " + " | ".join(names) + " |", "|" + " --- |" * (1 + len(names))]
    for method, values in found.items():
        shown = [(f"{v:.{digits}f}", bold and v == low) for v, low in zip(values, least, strict=True)]
        lines.append(f"| {method} | " + " | ".join(f"**{v}**" if best else v for v, best in shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "imputation.md").write_text(page())
