"""Writes feature_shift.md from what was recorded (benchmarks/results/feature_shift*.json and shift_power.json).

python docs/results/feature_shift.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from scipy.stats import beta, wilcoxon

HERE = Path(__file__).parent
RECORDS = HERE.parents[1] / "benchmarks" / "results"


def share(k: int, n: int) -> str:
    """How often something came out, with the 95 % interval of Clopper and Pearson."""
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return f"{k} of {n} ({low:.0%} to {high:.0%})"


def page() -> str:
    """The page, from the record alone."""
    ranks = json.loads((RECORDS / "feature_shift.json").read_text())["ranks"]
    slow = json.loads((RECORDS / "feature_shift-0.003.json").read_text())["ranks"]
    slower = ", ".join(f"{found.count(1)} ({name})" for name, found in slow.items())
    first, *others = ranks
    rows = "\n".join(
        f"| {name} | {share(r.count(1), len(r))} | {median(r):g} | {', '.join(map(str, r))} |"
        for name, r in ranks.items()
    )
    tests = "; ".join(
        f"{first} against {name}: p = {wilcoxon(ranks[first], ranks[name], alternative='less').pvalue:.2g}"
        for name in others
    )
    return f"""# Which column was shuffled

`python benchmarks/feature_shift.py --seeds {len(ranks[first])}`. The breast cancer table (569 rows, 30 columns) is
split into two random halves, and one column of the second half is permuted: taken alone it is distributed as before,
and only its relation to the others is lost. {{class}}`~ncml.estimator.FeatureShift`'s statistic compares, column by
column, the scores of two densities, each trained on one half. How high does it rank the shuffled column among the
thirty? The halves and the column are different for every seed.

| scores | first | median rank | ranks, seed by seed |
| --- | --- | --- | --- |
{rows}

One-sided Wilcoxon tests of the paired ranks: {tests}.

*t = 0* and *sigma 0.5* (half a standard deviation of a column) are the same network, trained at every noise level;
*maximum likelihood* is that network trained on the rows alone. Scores at t = 0 follow the finest detail of the density,
which 284 rows do not determine; scores at noise are those of a smooth density, which they do determine.

With a smaller learning rate (`--learning-rate 0.003`) it comes first in {slower} of the same cases.

{power()}"""


def power() -> str:
    """How often tests reject, and name the column."""
    record = json.loads((RECORDS / "shift_power.json").read_text())
    rejected, named, n = record["rejected"], record["named"], record["seeds"]
    rows = "\n".join(
        f"| {test} | "
        + " | ".join(share(sum(rejected[change][test]), n) for change in rejected)
        + " | "
        + " | ".join("-" if test == "classifier" else f"{sum(named[c][test])} of {n}" for c in ("shuffled", "moved"))
        + " |"
        for test in rejected["nothing"]
    )
    return f"""## Does anything differ?

`python benchmarks/shift_power.py`: how often tests reject at 5 % when nothing was changed, when a column was
shuffled, and when it was moved by half a standard deviation; and how often they name that column and no other.
FeatureShift deals out the rows anew {record["resamples"]} times; *marginals* is a permutation test of
Kolmogorov-Smirnov distances, column by column, adjusted for looking at thirty; *classifier* is the classifier
two-sample test, which names no column.

| test | rejects: nothing changed | shuffled | moved | names it: shuffled | moved |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


if __name__ == "__main__":
    (HERE / "feature_shift.md").write_text(page())
