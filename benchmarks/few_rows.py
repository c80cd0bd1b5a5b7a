"""Tables of few rows: held-out likelihoods of the estimator beside scikit-learn's densities.

    python benchmarks/few_rows.py

Of five tables that scikit-learn brings, a random part of 50 to 1,200 rows trains, and the others (800 at most) are the
figure: the mean and the median over rows of the log-likelihood, nats, in the columns' scales. Columns on a lattice or
with ties are spread by uniform noise within their step once, alike for all, and constant columns are left out. The
estimator is as it is, by NCML and by maximum likelihood; with the dropout that it has for many rows; and without linear
components where it has some, with them where it has none. scikit-learn's have what they need by cross-validation: the
bandwidth of a kernel density, the number of components and the kind of covariances of a Gaussian mixture; a Gaussian
has Ledoit and Wolf's shrinkage. Results are written after every table, beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from ncml.estimator import Columns, NCMLDensityEstimator
from ncml.estimator.defaults import LINEAR_COMPONENTS, default_density, dropout_for, linear_components_for
from ncml.objective import AtZero
from ncml.report import write_report

TABLES = {
    "iris": load_iris,
    "wine": load_wine,
    "diabetes": load_diabetes,
    "breast-cancer": load_breast_cancer,
    "digits": load_digits,
}
ROWS = (50, 100, 200, 400, 1200)
MOST_SHARE, MOST_OTHERS = 0.7, 800
MANY = 0.0  # the estimator's dropout for many rows
Way = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def read(name: str) -> np.ndarray:
    """Real columns in their scales, none of them constant or a copy."""
    X = TABLES[name]().data.astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = Columns.of(X, [str(j) for j in range(X.shape[1])])
    y = torch.from_numpy(columns.standardise(X))
    u = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return columns.to_model(y, u)[0].numpy()


def ncml(train: np.ndarray, others: np.ndarray, seed: int, **settings) -> np.ndarray:
    return NCMLDensityEstimator(random_state=seed, **settings).fit(train).score_samples(others)


def changed(
    train: np.ndarray, others: np.ndarray, seed: int, *, change: Callable[[dict], dict], **settings
) -> np.ndarray:
    """By NCML with changes to what the estimator's own network goes by."""
    own = {"dropout": dropout_for(*train.shape), "linear_components": linear_components_for(train)}
    return ncml(train, others, seed, density=partial(default_density, **own | change(own)), **settings)


def other_choice(own: dict) -> dict:
    return {"linear_components": LINEAR_COMPONENTS - own["linear_components"]}


def theirs(train: np.ndarray, others: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The log-density of a model that is fitted to standardised rows."""
    scaler = StandardScaler().fit(train)
    return score(scaler.transform(train), scaler.transform(others)) - np.log(scaler.scale_).sum()


def kernel(train: np.ndarray, others: np.ndarray) -> np.ndarray:
    return GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.05, 2.0, 25)}).fit(train).score_samples(others)


def mixture(train: np.ndarray, others: np.ndarray) -> np.ndarray:
    settings = {"n_components": [1, 2, 3, 5, 8], "covariance_type": ["full", "diag"]}
    return GridSearchCV(GaussianMixture(reg_covar=1e-3, random_state=0), settings).fit(train).score_samples(others)


def gaussian(train: np.ndarray, others: np.ndarray) -> np.ndarray:
    fitted = LedoitWolf().fit(train)
    return multivariate_normal(fitted.location_, fitted.covariance_).logpdf(others)


WAYS: dict[str, Way] = {
    "NCML": partial(ncml),
    f"NCML, dropout {MANY:g}": partial(changed, change=lambda own: {"dropout": MANY}),
    "NCML, linear or not": partial(changed, change=other_choice),
    "maximum likelihood": partial(ncml, times=AtZero()),
    "kernel density": lambda train, others, _: theirs(train, others, kernel),
    "Gaussian mixture": lambda train, others, _: theirs(train, others, mixture),
    "Gaussian": lambda train, others, _: theirs(train, others, gaussian),
}


def compared(X: np.ndarray, rows: int, seeds: int, quick: bool) -> tuple[dict[str, dict[str, list[float]]], list[int]]:
    """Mean and median log-likelihood of other rows by every way, and linear components of the estimator, per seed."""
    linear = []
    found: dict[str, dict[str, list[float]]] = {name: {"mean": [], "median": []} for name in WAYS}
    for seed in range(seeds):
        X = X[np.random.default_rng(seed).permutation(len(X))]
        train, others = X[:rows], X[rows:][:MOST_OTHERS]
        linear.append(linear_components_for(train))
        for name, way in WAYS.items():
            steps = {"max_steps": 20} if quick and isinstance(way, partial) else {}
            log_p = way(train, others, seed, **steps)
            found[name]["mean"].append(float(log_p.mean()))
            found[name]["median"].append(float(np.median(log_p)))
    return found, linear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="*", default=[*TABLES], choices=[*TABLES])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "few_rows.json")
    parser.add_argument("--quick", action="store_true", help="one table, few rows and steps, nothing recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report: dict = {"tables": {}}
    if options.out.exists() and not options.quick:
        report["tables"] = json.loads(options.out.read_text())["tables"]
    names, sizes, seeds = (["iris"], (50,), 1) if options.quick else (options.tables, ROWS, options.seeds)
    for name in names:
        X = read(name)
        record = report["tables"][name] = {"rows": len(X), "columns": X.shape[1], "trained": {}, "linear": {}}
        for rows in (rows for rows in sizes if rows <= MOST_SHARE * len(X)):
            start = time.perf_counter()
            found, linear = compared(X, rows, seeds, options.quick)
            record["trained"][rows], record["linear"][rows] = found, linear
            shown = "  ".join(f"{way} {np.mean(v['mean']):.2f}" for way, v in found.items())
            print(f"{name:14} {rows:5}  {time.perf_counter() - start:4.0f} s  {shown}", flush=True)
        if not options.quick:
            write_report(options.out, report)


if __name__ == "__main__":
    main()
