"""Tables by NCML and by maximum likelihood: held-out likelihoods at t = 0, and samples.

    python benchmarks/table_likelihood.py --data FOLDER

FOLDER has ADBench's tables, of which the normal rows are taken. For every seed a random half of them trains (a tenth of
it stops early), and the other half is the figure. The same network is trained at all noise levels and at t = 0 only.
Learning rate and dropout of either are the ones, of eight pairs, whose rows held out for stopping are likeliest in the
mean over the seeds, table by table.

Recorded are the mean log-likelihood of the other half, by how much NCML is ahead (mean and median over rows, and the
share of rows), and the energy distance of draws from the other half, in scales of the columns, cut at 20 since single
far values would decide it. Results are written after every table, beside those that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adbench import LARGE, SMALL, STEPS, read, write_report
from ncml.densities import MADE
from ncml.estimator import NCMLDensityEstimator
from ncml.estimator.defaults import SIZE
from ncml.evaluation import energy_distance
from ncml.objective import AtZero

WAYS = {"NCML": None, "maximum likelihood": AtZero()}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DROPOUTS = (0.1, 0.3)
MOST = 20_000  # rows that train
DRAWS = 2000
FARTHEST = 20.0


def network(event_shape, process, dropout: float) -> MADE:
    """The estimator's own, with another dropout, and without linear components."""
    return MADE(event_shape, process, data_std=1.0, **SIZE | {"dropout": dropout})


def halves(X: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and the others."""
    X = X[np.random.default_rng(seed).permutation(len(X))]
    half = len(X) // 2
    return X[:half][:MOST], X[half:]


def compared(X: np.ndarray, seeds: int, settings: list[tuple[float, float]], steps: int) -> dict[str, Any]:
    """What is recorded of a table."""
    record: dict[str, Any] = {"rows": len(X), "columns": X.shape[1]}
    rows: dict[str, list[np.ndarray]] = {}
    trained, others = zip(*(halves(X, seed) for seed in range(seeds)), strict=True)
    for way, times in WAYS.items():
        fitted = [
            [
                NCMLDensityEstimator(
                    partial(network, dropout=dropout),
                    times=times,
                    learning_rate=rate,
                    max_steps=steps,
                    random_state=seed,
                ).fit(train)
                for seed, train in enumerate(trained)
            ]
            for rate, dropout in settings
        ]
        held_out = [float(np.mean([model.validation_score_ for model in models])) for models in fitted]
        best = int(np.argmax(held_out))
        pairs = list(zip(fitted[best], others, strict=True))
        rows[way] = [model.score_samples(other) for model, other in pairs]
        record[way] = {
            "held_out": held_out,
            "chosen": settings[best],
            "log_likelihood": [float(log_p.mean()) for log_p in rows[way]],
            "energy": [distance(model, other, seed) for seed, (model, other) in enumerate(pairs)],
        }
    ahead = [a - b for a, b in zip(*rows.values(), strict=True)]
    record["ahead"] = {
        "mean": [float(d.mean()) for d in ahead],
        "error": [float(d.std(ddof=1) / len(d) ** 0.5) for d in ahead],
        "median": [float(np.median(d)) for d in ahead],
        "share": [float((d > 0.0).mean()) for d in ahead],
    }
    return record


def distance(model: NCMLDensityEstimator, others: np.ndarray, seed: int) -> float:
    """Energy distance of draws from other rows."""

    def standardised(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(model.columns_.standardise(rows).clip(-FARTHEST, FARTHEST))

    return energy_distance(standardised(model.sample(DRAWS, random_state=seed)), standardised(others[:DRAWS]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NCML_DATA", ".")) / "adbench")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="*", default=[*LARGE, *SMALL])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "table_likelihood.json")
    parser.add_argument("--quick", action="store_true", help="one small table, few steps, nothing recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names, seeds, steps, settings = options.tables, options.seeds, STEPS, list(itertools.product(RATES, DROPOUTS))
    if options.quick:
        names, seeds, steps, settings = ["45_wine"], 1, 20, settings[:2]
    names = [name for name in names if (options.data / f"{name}.npz").exists()]
    if not names:
        print(f"skipped: no tables in {options.data}; see https://github.com/Minqi824/ADBench")
        return
    report = {"rates_and_dropouts": settings, "steps": steps, "tables": {}}
    if options.out.exists() and not options.quick:
        report["tables"] = json.loads(options.out.read_text())["tables"]
    for name in names:
        start = time.perf_counter()
        X, y = read(options.data, name)
        record = compared(X[y == 0], seeds, settings, steps)
        report["tables"][name.split("_", 1)[1]] = record
        ahead, energy = record["ahead"], {way: np.mean(record[way]["energy"]) for way in WAYS}
        print(
            f"{name:16} {time.perf_counter() - start:5.0f} s  ahead by {np.round(ahead['mean'], 3)} nats, median "
            f"{np.round(ahead['median'], 3)}  energy {energy['NCML']:.4f}, {energy['maximum likelihood']:.4f}",
            flush=True,
        )
        if not options.quick:
            write_report(options.out, report)


if __name__ == "__main__":
    main()
