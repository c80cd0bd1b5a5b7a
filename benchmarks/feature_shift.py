"""Which noise level finds a shuffled column: the breast cancer table in two halves, one column of the second permuted.

    python benchmarks/feature_shift.py
    python benchmarks/feature_shift.py --learning-rate 0.003

For every seed other halves and another column. Recorded: the rank of that column by the statistic (1 is first), at
sigma = 0.5, at t = 0 of the same network, and at t = 0 of a network trained by maximum likelihood.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from ncml.estimator import FeatureShift, NCMLDensityEstimator
from ncml.objective import AtZero

VARIANTS = {"sigma 0.5": (0.5, {}), "t = 0": (0.0, {}), "maximum likelihood": (0.0, {"times": AtZero()})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, help="another than the estimator's own")
    parser.add_argument("--out", type=Path, help="default: results/feature_shift.json, or feature_shift-RATE.json")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, nothing recorded")
    options = parser.parse_args()
    rate = {} if options.learning_rate is None else {"learning_rate": options.learning_rate}
    if options.out is None:
        name = "-".join(["feature_shift", *map(str, rate.values())])
        options.out = Path(__file__).parent / "results" / f"{name}.json"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds, steps, tuned = (1, 10, 2) if options.quick else (options.seeds, 300, 50)
    rows = load_breast_cancer().data
    ranks: dict[str, list[int]] = {name: [] for name in VARIANTS}
    start = time.process_time()
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        mixed = rows[random.permutation(len(rows))]
        first, second = mixed[: len(rows) // 2], mixed[len(rows) // 2 :].copy()
        column = int(random.integers(rows.shape[1]))
        second[:, column] = random.permutation(second[:, column])
        for name, (noise, settings) in VARIANTS.items():
            estimator = NCMLDensityEstimator(max_steps=steps, random_state=seed, **settings, **rate)
            shift = FeatureShift(estimator, noise=noise, resamples=1, steps=tuned, random_state=seed).fit(first, second)
            ranks[name].append(int((shift.statistic_ >= shift.statistic_[column]).sum()))
        print(f"seed {seed}  column {column:2}  { ({name: found[-1] for name, found in ranks.items()}) }", flush=True)
        if not options.quick:
            record = {"ranks": ranks, "columns": rows.shape[1], "seconds": time.process_time() - start}
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
