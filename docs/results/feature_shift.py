"""Writes feature_shift.md from the recorded benchmark (benchmarks/results/feature_shift.json).

python docs/results/feature_shift.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from scipy.stats import beta, wilcoxon

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "benchmarks" / "results" / "feature_shift.json"


def share(ranks: list[int]) -> str:
    """How often the column comes first, with the 95 % interval of Clopper and Pearson."""
    n, k = len(ranks), ranks.count(1)
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return f"{k} of {n} ({low:.0%} to {high:.0%})"


def page() -> str:
    """The page, from the record alone."""
    ranks = json.loads(RECORD.read_text())["ranks"]
    first, *others = ranks
    rows = "\n".join(f"| {name} | {share(r)} | {median(r):g} | {', '.join(map(str, r))} |" for name, r in ranks.items())
    tests = "; ".join(
        f"{first} against {name}: p = {wilcoxon(ranks[first], ranks[name], alternative='less').pvalue:.2g}"
        for name in others
    )
    return f"""# Which column was shuffled

`python benchmarks/feature_shift.py --seeds {len(ranks[first])}`. The breast cancer table (569 rows, 30 columns) in two
random halves; in the second one column is permuted, so that it alone is distributed as before, and only its relation to
the others is lost. {{class}}`~ncml.estimator.FeatureShift`'s statistic compares, column by column, the scores of two
densities trained on the halves. Where does the shuffled column come among the thirty? Other halves and another column
for every seed.

| scores | first | median rank | ranks, seed by seed |
| --- | --- | --- | --- |
{rows}

One-sided Wilcoxon tests of the paired ranks: {tests}.

*t = 0* and *sigma 0.5* (half a standard deviation of a column) are the same network, trained at every noise level;
*maximum likelihood* is that network trained on the rows alone. Scores of the rows themselves follow the finest detail,
which 284 rows do not determine; with noise they are those of a smooth density, which they do.
"""


if __name__ == "__main__":
    (HERE / "feature_shift.md").write_text(page())
