"""Writes table_likelihood.md from what was recorded (benchmarks/results/table_likelihood.json).

python docs/results/table_likelihood.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "benchmarks" / "results" / "table_likelihood.json"
DROPOUT = 0.1  # with which the estimator's learning rate was chosen
WAYS = ("NCML", "maximum likelihood")


def page() -> str:
    """The page, from the record alone."""
    record = json.loads(RECORD.read_text())
    tables = record["tables"]
    seeds = len(next(iter(tables.values()))["ahead"]["mean"])
    likelihoods = [
        f"| {name} | {t['rows']:,} x {t['columns']} | {mean(t[WAYS[1]]['log_likelihood']):.2f} | "
        f"{mean(t[WAYS[0]]['log_likelihood']):.2f} | {spread(t['ahead']['mean'])} | {spread(t['ahead']['median'])} | "
        f"{mean(t['ahead']['share']):.0%} |"
        for name, t in tables.items()
    ]
    samples = [
        f"| {name} | {', '.join(f'{d:.4f}' for d in t[WAYS[1]]['energy'])} | "
        f"{', '.join(f'{d:.4f}' for d in t[WAYS[0]]['energy'])} | {chosen(t, WAYS[1])} | {chosen(t, WAYS[0])} |"
        for name, t in tables.items()
    ]
    verdicts = {name: verdict(t) for name, t in tables.items()}
    closer = [sum(a < b for a, b in zip(*(t[way]["energy"] for way in WAYS), strict=True)) for t in tables.values()]
    rates = sorted({rate for rate, _ in record["rates_and_dropouts"]})
    dropouts = sorted({dropout for _, dropout in record["rates_and_dropouts"]})
    return f"""# Tables: what noise does to the likelihood

`python benchmarks/table_likelihood.py --data FOLDER`. The estimator's own network, without linear
components, is trained on a random half of the normal rows of ADBench's {len(tables)} tables, at all noise levels (NCML)
and at t = 0 only (maximum likelihood). The likelihood at t = 0 of the other half is compared; {seeds} seeds, each with
halves of its own. Either has the learning
rate and the dropout whose held-out training rows are likeliest, table by table; tried were the rates {shown(rates)},
each with the dropouts {shown(dropouts)}.

**What came out.** Noise in training costs a little likelihood at t = 0 on some tables, and gains some on others. By
more than two standard errors in every seed,

- NCML is ahead on {named(verdicts, "ahead")};
- it is behind on {named(verdicts, "behind")};
- on the others the two are level, or it depends on the seed.

All fits had {record["steps"]:,} steps at most, which NCML has to share among all noise levels.

Samples of NCML are the closer ones by energy distance in {sum(closer)} of {len(closer) * seeds} pairs.

With a dropout of {DROPOUT:g}, this is the number of tables on which NCML's held-out rows are
likeliest at each rate: {often(tables, record["rates_and_dropouts"])}.

| table | rows | maximum likelihood, nats | NCML, nats | NCML ahead by, seed by seed | median row | rows ahead |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(likelihoods)}

Log-likelihoods are means over rows, for values on a lattice the exact probability of the step over its width; the
difference is taken row by row, so that its median and the share of rows say whether a few rows decide.

## Samples

Energy distance of 2,000 draws at t = 0 from rows of the other half, in scales of the columns, values cut at 20; and the
chosen learning rates and dropouts.

| table | maximum likelihood | NCML | chosen: maximum likelihood | chosen: NCML |
| --- | --- | --- | --- | --- |
{chr(10).join(samples)}
"""


def often(tables: dict[str, Any], settings: list[list[float]]) -> str:
    """On how many tables each rate is the best, with this dropout."""
    own = [k for k, (_, dropout) in enumerate(settings) if dropout == DROPOUT]
    best = [settings[max(own, key=t["NCML"]["held_out"].__getitem__)][0] for t in tables.values()]
    return ", ".join(f"{best.count(rate)} at {rate:g}" for rate in sorted(set(best)))


def shown(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def spread(values: list[float]) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)


def chosen(table: dict[str, Any], way: str) -> str:
    rate, dropout = table[way]["chosen"]
    return f"{rate:g}, {dropout:g}"


def verdict(table: dict[str, Any]) -> str:
    """Whether NCML is ahead in every seed by more than two standard errors, behind so, or neither."""
    ahead = [d / e for d, e in zip(table["ahead"]["mean"], table["ahead"]["error"], strict=True)]
    return "ahead" if min(ahead) > 2.0 else "behind" if max(ahead) < -2.0 else "level"


def named(verdicts: dict[str, str], which: str) -> str:
    names = [name for name, found in verdicts.items() if found == which]
    return f"{len(names)} table{'' if len(names) == 1 else 's'}: {', '.join(names)}"


if __name__ == "__main__":
    (HERE / "table_likelihood.md").write_text(page())
