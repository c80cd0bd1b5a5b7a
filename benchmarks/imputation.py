"""Filling gaps: ncml's completions against scikit-learn's imputers, on ADBench's tables and one of scikit-learn's.

    python benchmarks/imputation.py --data FOLDER

FOLDER has ADBench's tables, of which the normal rows are taken; scikit-learn brings the breast cancer table. Rows are
in an order of their own for every seed. A fifth of all values, at random, is missing in the rows that train and in
those that are filled. Recorded are, in scales (standard deviations of the columns in the training rows),

- the continuous ranked probability score of the missing values, E|X - x| - E|X - X'| / 2 with X, X' draws and x the
  true value: the smaller, the better the law that is drawn from; of a method that fills with one value it is the
  absolute error;
- the energy distance of the filled rows from further whole rows: whether they look like rows.

Values are cut at 20 scales: a row with a known value far beyond all others can be filled with anything, and none is to
rule a mean.

Nothing is tuned. The same network by maximum likelihood is trained at t = 0 only. "Twice" is fitted once more, to the
training rows that the first fit has filled, as NCMLImputer does; "medians" are its, of 25 draws each. Results are
written after every table, beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 -- IterativeImputer needs it
from sklearn.impute import IterativeImputer, KNNImputer

from adbench import STEPS, read
from ncml.estimator import NCMLDensityEstimator, NCMLImputer
from ncml.estimator.defaults import LINEAR_COMPONENTS, dropout_for, marginal_density
from ncml.evaluation import energy_distance
from ncml.objective import AtZero
from ncml.report import write_report

TABLES = ("2_annthyroid", "6_cardio", "23_mammography", "28_pendigits", "40_vowels", "30_satellite")
SCIKIT = "breast-cancer"  # of scikit-learn
MISSING = 0.2
TRAIN, TEST, DRAWS = 3000, 300, 4
MEDIAN_OF = 25  # draws
FARTHEST = 20.0  # where values are cut, so that none rules a mean


def fitted(train, seed, steps, *, fits=2, **settings):
    estimator = NCMLDensityEstimator(max_steps=steps, random_state=seed, **settings)
    return NCMLImputer(estimator, fits=fits, draws=MEDIAN_OF, random_state=seed).fit(train)


def drawn(train, test, seed, steps, **settings):
    density = fitted(train, seed, steps, **settings).estimator_
    return [density.complete(test, seed + k) for k in range(DRAWS)]


def linear_components(train, seed):
    """Of the estimator's network for these rows."""
    density = NCMLDensityEstimator(max_steps=1, random_state=seed).fit(train).density_
    return density.hidden_settings()["linear_components"]


def linear_or_not(train, test, seed, steps):
    """With linear components where the estimator has none, without them where it has some."""
    linear = LINEAR_COMPONENTS - linear_components(train, seed)
    settings = {"dropout": dropout_for(*train.shape), "linear_components": linear}
    return drawn(train, test, seed, steps, fits=1, density=partial(marginal_density, **settings))


def medians(train, test, seed, steps):
    return [fitted(train, seed, steps).transform(test)]


def chained(train, test, seed, steps):
    """Chained equations (MICE): Bayesian ridge regressions, with draws from their posteriors."""
    imputers = [IterativeImputer(sample_posterior=True, random_state=seed + k) for k in range(DRAWS)]
    return [imputer.fit(train).transform(test) for imputer in imputers]


def chained_means(train, test, seed, steps):
    """The same with the means of the posteriors."""
    return [IterativeImputer(random_state=seed).fit(train).transform(test)]


def trees(train, test, seed, steps):
    """Chained equations with trees, as missForest has them."""
    forest = ExtraTreesRegressor(20, random_state=seed)
    return [IterativeImputer(forest, max_iter=3, random_state=seed).fit(train).transform(test)]


def neighbours(train, test, seed, steps):
    return [KNNImputer(weights="distance").fit(train).transform(test)]


def hot_deck(train, test, seed, steps):
    """Values of other rows, column by column."""
    rng = np.random.default_rng(seed)
    known = [column[~np.isnan(column)] for column in train.T]
    drawn = [np.stack([rng.choice(column, len(test)) for column in known], 1) for _ in range(DRAWS)]
    return [np.where(np.isnan(test), values, test) for values in drawn]


METHODS = {
    "NCML": partial(drawn, fits=1),
    "NCML, linear or not": linear_or_not,
    "NCML, twice": drawn,
    "maximum likelihood, twice": partial(drawn, times=AtZero()),
    "NCML, medians": medians,
    "chained equations": chained,
    "chained means": chained_means,
    "chained trees": trees,
    "k-NN": neighbours,
    "hot deck": hot_deck,
}


def read_rows(folder: Path, name: str) -> np.ndarray:
    """The table, or the normal rows of one of ADBench's."""
    if name == SCIKIT:
        return load_breast_cancer().data
    X, y = read(folder, name)
    return X[y == 0]


def measured(draws: list[np.ndarray], truth: np.ndarray, gaps: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """What is recorded of rows in scales."""
    truth, others, *draws = (x.clip(-FARTHEST, FARTHEST) for x in (truth, others, *draws))
    error = np.mean([np.abs(x - truth) for x in draws], 0)
    pairs = [np.abs(draws[i] - draws[j]) for i in range(len(draws)) for j in range(i)]
    crps = (error - 0.5 * np.mean(pairs, 0) if pairs else error)[gaps]
    energy = energy_distance(torch.from_numpy(draws[0]), torch.from_numpy(others))
    return {"crps": float(crps.mean()), "median": float(np.median(crps)), "energy": energy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NCML_DATA", ".")) / "adbench")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="*", default=[*TABLES, SCIKIT])
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS], help="others stay as they are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "imputation.json")
    parser.add_argument("--quick", action="store_true", help="one table, few steps, nothing recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names, seeds, steps = options.tables, options.seeds, STEPS
    if options.quick:
        names, seeds, steps = [SCIKIT], 1, 10
    if missing := [name for name in names if name != SCIKIT and not (options.data / f"{name}.npz").exists()]:
        print(f"skipped: {', '.join(missing)}, not in {options.data}; see https://github.com/Minqi824/ADBench")
    names = [name for name in names if name not in missing]
    report = {"missing": MISSING, "draws": DRAWS, "median of": MEDIAN_OF, "cut": FARTHEST, "steps": steps, "tables": {}}
    if options.out.exists() and not options.quick:
        report["tables"] = json.loads(options.out.read_text())["tables"]
    for name in names:
        X, title = read_rows(options.data, name), name.split("_", 1)[-1]
        rows: list[dict[str, dict[str, float]]] = report["tables"].get(title, {}).get("seeds", [])
        rows += [{} for _ in range(seeds - len(rows))]
        linear = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            mixed = X[rng.permutation(len(X))]
            train = mixed[: min(TRAIN, len(X) // 2)]
            further = mixed[len(train) :][: 4 * TEST]
            test, others = np.split(further, [min(TEST, len(further) // 2)])
            varied = train.std(0) > 1e-9  # a column that is constant in training says nothing
            mean, scale = train.mean(0)[varied], train.std(0)[varied]
            train, test, others = ((x[:, varied] - mean) / scale for x in (train, test, others))
            holed = [np.where(rng.random(x.shape) < MISSING, np.nan, x) for x in (train, test)]
            linear.append(linear_components(holed[0], seed))
            for method in options.methods:
                start = time.process_time()
                draws = METHODS[method](*holed, seed, steps)
                seconds = time.process_time() - start
                rows[seed][method] = {**measured(draws, test, np.isnan(holed[1]), others), "seconds": seconds}
            rows[seed] = {method: rows[seed][method] for method in METHODS if method in rows[seed]}
            shown = "  ".join(f"{method} {found['crps']:.3f}" for method, found in rows[seed].items())
            print(f"{name:16} seed {seed}  {shown}", flush=True)
        report["tables"][title] = {"rows": len(X), "columns": X.shape[1], "linear": linear, "seeds": rows}
        if not options.quick:
            write_report(options.out, report)


if __name__ == "__main__":
    main()
