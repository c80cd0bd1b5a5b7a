"""Anomaly detection on ADBench's tables: train on the first half of the normal rows, find the anomalies.

The protocol of Livernoche et al. (2024), whose table ``--published`` reads: training rows are the first half of the
normal rows in file order, test rows the others and all anomalies. There, tables below 1,000 rows are resampled before
the split, and are not comparable. One configuration serves all tables; it was chosen on the five small ones.

    python benchmarks/adbench.py --data FOLDER --published CSV --seeds 5
    python benchmarks/adbench.py --data FOLDER --flow --rates
    python benchmarks/adbench.py --data FOLDER --flow --seeds 5 --only --resume

The last line trains a masked autoregressive flow in place of the estimator's own network; the line before records how
well learning rates suit it, by held-out training rows.
Results are written after every table; ``--resume`` adds to them. ECOD runs where PyOD is installed, and K-DSM
(https://github.com/vicliv/K-DSM) with ``--kdsm CHECKOUT``, at its own settings of 500 epochs, hours of a core, unless
``--kdsm-steps`` says less.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import betabinom
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from common import optional
from ncml.densities import MAF
from ncml.estimator import NCMLDensityEstimator, NCMLOutlierDetector
from ncml.estimator.neighbours import Neighbours
from ncml.objective import AtZero
from ncml.report import write_report

SMALL = ("4_breastw", "14_glass", "18_Ionosphere", "42_WBC", "45_wine")
LARGE = (
    "2_annthyroid",
    "6_cardio",
    "23_mammography",
    "26_optdigits",
    "28_pendigits",
    "30_satellite",
    "32_shuttle",
    "38_thyroid",
    "40_vowels",
)
STEPS = 2000  # the estimator's own
FLOW = {"transforms": 5, "hidden": (128, 128), "data_std": 1.0}
RATES_TRIED = (1e-3, 3e-3, 1e-2, 3e-2)  # of the flow
FLOW_RATE = 1e-2
KDSM_EPOCHS, KDSM_BATCH = 500, 128
RATES = (0.01, 0.05, 0.1)
RESAMPLES = 1000
PYOD = optional("pyod.models.ecod")


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"{name}.npz") as table:
        return table["X"].astype(float), table["y"].astype(int)


def split(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows and their labels, in file order."""
    normal, odd = X[y == 0], X[y == 1]
    half = len(normal) // 2
    return normal[:half], np.concatenate([normal[half:], odd]), np.r_[np.zeros(len(normal) - half), np.ones(len(odd))]


def neighbours(count):
    def nearest(train, test, seed):
        found = NearestNeighbors(n_neighbors=count).fit(train)
        return lambda: -found.kneighbors(test)[0].mean(1)

    return nearest


def time_posterior(train, test, seed):
    """DTE's non-parametric posterior: squared distances to the 5 nearest rows, the nearer the more they weigh."""
    found, dims = NearestNeighbors(n_neighbors=5).fit(train), train.shape[1]

    def score():
        squared = np.maximum(np.square(found.kneighbors(test)[0]), 1e-12)
        weights = np.exp(-(dims / 2 - 1) * np.log(squared / squared.min(1, keepdims=True)))
        return -(weights * squared).sum(1) / weights.sum(1)

    return score


def forest(train, test, seed):
    found = IsolationForest(random_state=seed).fit(train)
    return lambda: found.score_samples(test)


def local_factor(train, test, seed):
    found = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(train)
    return lambda: found.score_samples(test)


def kernel(train, test, seed):
    rows = train if len(train) <= 4000 else train[np.random.default_rng(seed).choice(len(train), 4000, replace=False)]
    found = KernelDensity(bandwidth=0.5, rtol=1e-4).fit(rows)
    return lambda: found.score_samples(test)


def mixture(train, test, seed):
    found = GaussianMixture(min(10, len(train) // 20), reg_covar=1e-3, random_state=seed).fit(train)
    return lambda: found.score_samples(test)


def ecod(train, test, seed):
    found = PYOD.ECOD().fit(train)
    return lambda: -found.decision_function(test)


BASELINES = {
    "k-NN": neighbours(5),
    "1-NN": neighbours(1),
    "DTE-NP": time_posterior,
    "isolation forest": forest,
    "LOF": local_factor,
    "kernel density": kernel,
    "Gaussian mixture": mixture,
} | ({"ECOD": ecod} if PYOD else {})
RIVALS = ("maximum likelihood", "maximum likelihood and neighbours", "k-NN", "1-NN", "K-DSM")  # compared row by row
SEEDED = ("isolation forest", "Gaussian mixture")


def kdsm(checkout: Path, steps: int | None):
    """The method of a checkout of K-DSM, on standardised rows as there; 500 epochs, or fewer that have the steps."""
    sys.path.insert(0, str(checkout))
    from methods.DSM import KDSM

    def method(train, test, seed):
        torch.manual_seed(seed)
        batches = max(1, len(train) // KDSM_BATCH)
        epochs = KDSM_EPOCHS if steps is None else min(KDSM_EPOCHS, -(-steps // batches))
        model = KDSM(seed=seed, epochs=epochs, batch_size=KDSM_BATCH, device="cpu").fit(train)
        return lambda: -model.predict_score(test)

    return method


def measured(score: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    finite = np.nan_to_num(-score, posinf=1e300)
    return {"auroc": roc_auc_score(labels, finite), "ap": average_precision_score(labels, finite)}


def timed(make) -> tuple[np.ndarray, dict[str, float]]:
    start = time.process_time()
    score = make()
    trained = time.process_time()
    values = score()
    return values, {"fit_s": trained - start, "score_s": time.process_time() - trained}


def flow(event_shape, process) -> MAF:
    return MAF(event_shape, process, **FLOW)


def network(options) -> dict:
    """What an estimator is made with."""
    chosen = {"density": flow, "learning_rate": FLOW_RATE} if options.flow else {}
    return {"max_steps": options.steps} | chosen


def rates(X: np.ndarray, y: np.ndarray, options) -> dict[str, list[float]]:
    """Log-likelihood at t = 0 of held-out training rows at every rate, of the flow trained in either way."""
    train, _, _ = split(X, y)
    ways = {"NCML": None, "maximum likelihood": AtZero()}
    return {
        way: [
            NCMLDensityEstimator(**network(options) | {"learning_rate": rate}, times=times, random_state=0)
            .fit(train)
            .validation_score_
            for rate in RATES_TRIED
        ]
        for way, times in ways.items()
    }


def ours(train, test, labels, seed, options) -> tuple[dict, dict[str, np.ndarray]]:
    """The detector as it is, by its ladder alone and by single levels; the same network by maximum likelihood.

    The latter by its log-density, and with a neighbour in the values and the log-density, constant columns apart.
    """
    start = time.process_time()
    estimator = NCMLDensityEstimator(**network(options), random_state=seed)
    model = NCMLOutlierDetector(estimator, calibration=0.0, random_state=seed).fit(train)
    trained = time.process_time()
    scores = {"NCML": model.score_samples(test)}
    record = {"NCML": {"fit_s": trained - start, "score_s": time.process_time() - trained}}
    log_p = model.log_densities(test)
    scores["NCML, ladder alone"] = ((log_p - model.mean_) / model.std_).min(1)
    record["NCML"]["levels"] = [measured(column, labels)["auroc"] for column in log_p.T]
    start = time.process_time()
    likely = NCMLDensityEstimator(**network(options), random_state=seed, times=AtZero())
    likely.fit(train)
    trained = time.process_time()
    scores["maximum likelihood"] = likely.score_samples(test)
    record["maximum likelihood"] = {"fit_s": trained - start, "score_s": time.process_time() - trained}
    scores["maximum likelihood and neighbours"] = beside(likely, train, test)
    for name, density in (("NCML", model.estimator_), ("maximum likelihood", likely)):
        record[name] |= {"steps": density.n_iter_, "held_out": density.validation_score_}
    return {name: record.get(name, {}) | measured(score, labels) for name, score in scores.items()}, scores


def beside(density, train, test) -> np.ndarray:
    """The detector's statistic with the log-density of a model at t = 0 in the place of the ladder."""
    usual = density.score_samples(train)
    rows = [density.columns_.standardise(part) for part in (train, test)]
    ladder = [(density.score_samples(part)[:, None] - usual.mean()) / usual.std() for part in (train, test)]
    return -Neighbours.fit(rows[0], ladder[0], 1).distance(rows[1], ladder[1])


def paired(a: np.ndarray, b: np.ndarray, labels: np.ndarray, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the difference of two AUROCs on the same rows."""
    rng, differences = np.random.default_rng(seed), []
    normal, odd = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    a, b = np.nan_to_num(a, neginf=-1e300), np.nan_to_num(b, neginf=-1e300)
    for _ in range(RESAMPLES if len(labels) < 10_000 else RESAMPLES // 5):
        i, j = rng.choice(normal, len(normal)), rng.choice(odd, len(odd))
        differences.append(quick_auroc(a[i], a[j]) - quick_auroc(b[i], b[j]))
    return np.quantile(differences, [0.025, 0.975]).tolist()


def quick_auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left").sum() + np.searchsorted(ordered, inside, "right").sum()
    return below / (2.0 * len(inside) * len(outside))


def false_alarms(X: np.ndarray, y: np.ndarray, seed: int, options) -> dict[str, list[float]]:
    """Conformal false alarms on normal rows held out at random, with the bounds of 99.9 % for each rate."""
    normal = X[y == 0]
    normal = normal[np.random.default_rng(seed).permutation(len(normal))][:4000]
    half = len(normal) // 2
    estimator = NCMLDensityEstimator(**network(options) | {"max_steps": 200})
    model = NCMLOutlierDetector(estimator, calibration=0.5, random_state=seed).fit(normal[:half])
    p, n, m = model.p_values(normal[half:]), len(model.calibration_scores_), len(normal) - half
    out = {}
    for rate in RATES:
        k = int(np.floor(rate * (n + 1)))
        law = betabinom(m, k, n + 1 - k) if k else None
        bounds = [0.0, 0.0] if law is None else [law.ppf(0.0005) / m, law.ppf(0.9995) / m]
        out[str(rate)] = [float((p <= rate).mean()), *bounds]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NCML_DATA", ".")) / "adbench")
    parser.add_argument("--published", type=Path, help="the published table, CSV")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: results/adbench.json, or adbench-flow.json")
    parser.add_argument("--only", nargs="*", default=[*BASELINES], help="baselines to run")
    parser.add_argument("--tables", nargs="*", default=[*LARGE, *SMALL])
    parser.add_argument(
        "--flow", action="store_true", help="a masked autoregressive flow in place of the estimator's network"
    )
    parser.add_argument("--rates", action="store_true", help="with --flow: only compare learning rates")
    parser.add_argument("--kdsm", type=Path, help="a checkout of K-DSM")
    parser.add_argument("--kdsm-steps", type=int, help="of its training, instead of its 500 epochs")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, at most")
    parser.add_argument("--resume", action="store_true", help="keep what --out has, and run what is missing")
    parser.add_argument("--quick", action="store_true", help="one small table, few steps, nothing recorded")
    options = parser.parse_args()
    if options.out is None:
        options.out = Path(__file__).parent / "results" / ("adbench-flow.json" if options.flow else "adbench.json")
    if options.rates and not options.flow:
        parser.error("--rates: got no --flow, whose rates they are; expected both")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = options.tables
    if options.quick:
        options.steps, options.seeds, names = 20, 1, ["45_wine"]
    names = [name for name in names if (options.data / f"{name}.npz").exists()]
    if not names:
        print(f"skipped: no tables in {options.data}; see https://github.com/Minqi824/ADBench")
        return
    methods = {name: BASELINES[name] for name in options.only}
    if options.kdsm:
        methods["K-DSM"] = kdsm(options.kdsm, options.kdsm_steps)
    published = {}
    if options.published:
        with options.published.open() as file:
            published = {row.pop("Dataset"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}
    report = {
        "protocol": "first half of the normal rows in file order",
        "levels": NCMLOutlierDetector().levels,
        "steps": options.steps,
        "tables": {},
    }
    if (options.resume or options.rates) and options.out.exists():
        report = json.loads(options.out.read_text())
        again = options.kdsm and report.get("kdsm_steps", options.kdsm_steps) != options.kdsm_steps
        if again or report["steps"] != options.steps:
            parser.error(f"--resume: got other steps than those of {options.out}; expected the same, or another --out")
    if options.kdsm:
        report["kdsm_steps"] = options.kdsm_steps
    if options.rates:
        found = {name.split("_", 1)[1]: rates(*read(options.data, name), options) for name in names}
        write_report(options.out, report | {"rates": {"tried": RATES_TRIED, "held_out": found}})
        return
    for seed in range(options.seeds):
        for name in names:
            X, y = read(options.data, name)
            train, test, labels = split(X, y)
            table = report["tables"].setdefault(
                name.split("_", 1)[1],
                {
                    "rows": len(X),
                    "columns": X.shape[1],
                    "train": len(train),
                    "anomalies": int(y.sum()),
                    "published": published.get(name.split("_", 1)[1], {}),
                    "difference": {},
                    "seeds": [],
                },
            )
            done = table["seeds"].pop(seed) if seed < len(table["seeds"]) else {}
            wanted = [method for method in methods if not seed or method in (*SEEDED, "K-DSM")]
            missing = [method for method in wanted if method not in done]
            record, scores = done, {}
            if missing or "NCML" not in done:  # again, if there: its scores are compared with the others'
                record, scores = ours(train, test, labels, seed, options)
                record |= done
            scaler = StandardScaler().fit(train)
            scaled = scaler.transform(train), scaler.transform(test)
            for method in missing:
                make = methods[method]
                scores[method], times = timed(lambda make=make, scaled=scaled, seed=seed: make(*scaled, seed))
                record[method] = measured(scores[method], labels) | times
            if seed == 0:
                if "false_alarms" not in table:
                    table["false_alarms"] = false_alarms(X, y, seed, options)
                others = [other for other in RIVALS if other in scores and other not in table["difference"]]
                table["difference"] |= {other: paired(scores["NCML"], scores[other], labels) for other in others}
            table["seeds"].insert(seed, record)
            line = "  ".join(f"{method} {100 * row['auroc']:.2f}" for method, row in record.items())
            print(f"seed {seed}  {name:16} {record['NCML']['fit_s']:.0f} s  {line}", flush=True)
            if not options.quick:
                write_report(options.out, report)


if __name__ == "__main__":
    main()
