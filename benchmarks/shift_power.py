"""Does anything differ, and which column? FeatureShift beside a test of the marginals and a classifier's.

    python benchmarks/shift_power.py

The breast cancer table in two halves, of whose second one column is shuffled (only its relation to the others is lost),
or moved by half a standard deviation, or nothing is changed. For every seed other halves and another column. Recorded:
how often each test rejects at 5 %, and how often it names the column: by the least p-value, adjusted for looking at
thirty columns, of FeatureShift at sigma = 0.5, and of a permutation test of Kolmogorov and Smirnov's distances column
by column; the classifier two-sample test of ``ncml.evaluation`` names none.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.datasets import load_breast_cancer

from ncml.estimator import FeatureShift, NCMLDensityEstimator
from ncml.estimator.shift import max_p_values
from ncml.evaluation import classifier_test

Array = NDArray[np.float64]
CHANGES = ("nothing", "shuffled", "moved")
TESTS = ("FeatureShift", "marginals", "classifier")
LEVEL = 0.05


def changed(rows: Array, column: int, change: str, random: np.random.Generator) -> Array:
    """The rows with one column changed."""
    out = rows.copy()
    if change == "shuffled":
        out[:, column] = random.permutation(out[:, column])
    if change == "moved":
        out[:, column] += 0.5 * out[:, column].std()
    return out


def of_marginals(first: Array, second: Array, deals: int, random: np.random.Generator) -> Array:
    """P-values of the columns, each looked at alone, adjusted as FeatureShift's are."""
    rows, n = np.concatenate([first, second]), len(first)
    orders = [np.arange(len(rows)), *(random.permutation(len(rows)) for _ in range(deals))]
    found = [[ks_2samp(rows[o[:n], j], rows[o[n:], j]).statistic for j in range(rows.shape[1])] for o in orders]
    return max_p_values(np.array(found))


def p_values(first: Array, second: Array, seed: int, options: argparse.Namespace) -> dict[str, Array]:
    """Of every test, by column where it has one for each."""
    quick = options.quick
    estimator = NCMLDensityEstimator(max_steps=10 if quick else 300, random_state=seed)
    shift = FeatureShift(
        estimator, resamples=3 if quick else options.resamples, steps=2 if quick else 50, random_state=seed
    )
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.from_numpy(rows) for rows in (first, second))
    classified = classifier_test(a, b, steps=10 if quick else 500, generator=generator).p_value
    deals = 3 if quick else 199
    return {
        "FeatureShift": shift.fit(first, second).p_values_,
        "marginals": of_marginals(first, second, deals, np.random.default_rng(seed)),
        "classifier": np.array([classified]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--resamples", type=int, default=39, help="random deals of FeatureShift")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "shift_power.json")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, nothing recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = load_breast_cancer().data
    empty: dict[str, list[bool]] = {test: [] for test in TESTS}
    rejected, named = ({change: {test: list(r) for test, r in empty.items()} for change in CHANGES} for _ in range(2))
    start = time.process_time()
    for seed in range(1 if options.quick else options.seeds):
        for change in CHANGES:
            random = np.random.default_rng(seed)
            mixed = rows[random.permutation(len(rows))]
            column, half = int(random.integers(rows.shape[1])), len(rows) // 2
            second = changed(mixed[half:], column, change, random)
            found = p_values(mixed[:half], second, seed, options)
            for test, values in found.items():
                rejected[change][test].append(bool(values.min() <= LEVEL))
                least = np.flatnonzero(values == values.min())
                named[change][test].append(rejected[change][test][-1] and least.tolist() == [column])
            said = {test: f"{values.min():.3f}" for test, values in found.items()}
            print(f"seed {seed}  column {column:2}  {change:8}  {said}", flush=True)
        if not options.quick:
            settings = {"seeds": seed + 1, "resamples": options.resamples, "level": LEVEL}
            record = {**settings, "rejected": rejected, "named": named, "seconds": time.process_time() - start}
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
