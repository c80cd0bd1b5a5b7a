"""``ncml evaluate``: the paper's tables and figures for a trained model, on one process or many."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from ncml.cli.claims import beside_the_paper, print_claims, read_claims
from ncml.cli.common import NO_SAMPLES, OpenRun, open_run, results_folder, shows_progress, test_data, with_place
from ncml.cli.tables import EvaluateSettings, curve, frechet, has_curve, likelihood, log_probability, outliers
from ncml.cli.words import number_of
from ncml.density import sampleable
from ncml.errors import ArgumentError, UnsupportedError
from ncml.evaluation import RobustnessCurve, plot_robustness
from ncml.evaluation.fid import check_inception
from ncml.report import environment, write_report

__all__ = ["evaluate"]

DEFAULTS = EvaluateSettings()
FIGURE = "robustness.png"
STATISTICS = {
    "log_p": "log p (minus the energy)",
    "log_p_plus_log_score_norm": "log p + log |score| (the paper's)",
    "score_sum": "sum of the score",
    "minus_score_norm": "-|score|",
    "typical_log_p": "typical log p",
    "typical_likelihood_ratios": "typical likelihood ratios between levels",
    "typical_score_norms": "typical |score| over levels",
    "typical_ladder": "typical ratios and |score|",
}
"""What the rows of the out-of-distribution table are called; "typical" measures nearness to the training data."""


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    settings: Annotated[EvaluateSettings, tyro.conf.arg(name="")] = DEFAULTS,
    ood: Path | None = None,
    claims: Path | None = None,
    row: str | None = None,
    out: Path | None = None,
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data.folder", aliases=["--data.file"])] = None,
    threads: int | None = None,
) -> None:
    """Evaluate a trained model: likelihood, also under level noise and over t; outliers; Fréchet distances.

    Writes report.json and robustness.png. Likelihoods are those of the test data: exact for models with a lattice,
    bounds (<=) for other models on dequantised levels, and in nats for data without a lattice. Level noise and
    robustness are for data of at most 256 levels: among more, a move by one says nothing. The report is updated after
    each part. For a first look use --images 32, which limits every part except the Fréchet distances.

    Args:
        run: Folder of the run, or of a checkpoint.
        settings: What to evaluate, and how much of it.
        ood: A folder of images to tell from test images, besides constant and random ones; resized to match them.
        claims: A claims.json with a paper's numbers, to print beside these.
        row: Which row of --claims to use.
        out: Folder for the results; if not given, subfolder evaluation of the run's folder.
        data_folder: Where the data are now, if they have moved.
        threads: Number of CPU threads; torch's default if not given.
    """
    start = time.perf_counter()
    if (claims is None) != (row is None):
        raise ArgumentError("claims, row: got one without the other; expected a file of claims and one of its rows")
    beside = None if claims is None or row is None else read_claims(claims, row)
    opened = open_run(run, threads)
    folder = results_folder(run, out, "evaluation")
    data = with_place(opened.config.data, data_folder)
    _check_capabilities(opened, settings, ood)
    every, held_out = test_data(opened, data)
    train = data.load(train=True) if settings.samples or (settings.ood_images and settings.ood_levels) else None
    test = every.mixed(settings.images)
    counted = {"test_examples": len(test), "held_out": held_out}
    report: dict[str, Any] = {"settings": settings, "model": opened.source(), **counted}
    if remark := getattr(every, "remark", ""):
        report["test_data"] = remark

    def keep(**part: Any) -> None:  # noqa: ANN401 -- JSON data
        report.update(part, seconds=time.perf_counter() - start, environment=environment())
        if opened.first:
            folder.mkdir(parents=True, exist_ok=True)
            write_report(folder / "report.json", report)

    def begin(part: str) -> None:
        if opened.first and not shows_progress():  # a bar has its label
            print(f"{part} ...", flush=True)

    keep()  # whether it can be written is better known before
    if opened.first:
        (folder / FIGURE).unlink(missing_ok=True)  # of an earlier evaluation
    begin(f"Likelihoods of {number_of(len(test), 'example')}")
    if opened.lattice is None:
        keep(log_prob=log_probability(opened, test, settings))
    else:
        keep(bits_per_dim=likelihood(opened, test, settings))
    if has_curve(opened, test, settings):
        begin("Robustness over noise levels")
        robustness = curve(opened, test, settings)
        keep(robustness=robustness)
        if opened.first:
            plot_robustness({opened.config.noise.process: robustness}, folder / FIGURE)
    if settings.ood_images:
        begin("Outliers")
        keep(auroc=outliers(opened, test, train if settings.ood_levels else None, ood, settings))
    if train is not None and settings.samples:
        begin(f"Fréchet distances of {number_of(settings.samples, 'sample')}")
        keep(frechet=frechet(opened, train, every.mixed(), settings))
    if beside is not None:
        keep(claims=beside_the_paper(*beside, report, data))
    if opened.first:
        _print(report, folder, opened.kind.unit, opened.config.noise.at_zero_only)


def _check_capabilities(run: OpenRun, settings: EvaluateSettings, ood: Path | None) -> None:
    """Refuse what the model or its data cannot provide, before any work is done.

    Raises:
        ArgumentError: Something is missing in how it was trained, or in the data.
        UnsupportedError: The model lacks a capability.
    """
    if settings.ood_images and run.config.model.classes and not getattr(run.density, "label_dropout", 0.0):
        remedy = "train with model.label_dropout > 0, or " if hasattr(run.density, "label_dropout") else ""
        raise ArgumentError(
            f"ood_images: got {settings.ood_images}, and a model that never saw an example without its label; expected "
            f"0, since outliers have no label; {remedy}use --ood-images 0"
        )
    if ood is not None and not run.kind.is_image:
        raise UnsupportedError(f"ood: got {ood}, and data of shape {run.kind.shape}; expected none: it is for images")
    if ood is not None and not settings.ood_images:
        raise ArgumentError(f"ood: got {ood} and --ood-images 0; expected images of it, or no --ood")
    if ood is not None and not ood.is_dir():
        raise ArgumentError(f"ood: got {ood}; expected a folder of images")
    if ood is not None and run.kind.shape[1] != run.kind.shape[2]:
        raise ArgumentError(
            f"ood: got a folder for a model of {run.kind.shape[1]}x{run.kind.shape[2]} images; expected square ones"
        )
    if settings.samples and settings.fid:
        check_inception()
    if settings.samples:
        sampleable(run.density, NO_SAMPLES, "samples")
        if not run.kind.is_image or run.lattice is None:
            raise UnsupportedError(
                f"samples: got some, and data of shape {run.kind.shape}; expected images in levels, whose classifier "
                f"gives the features of the distance; leave --samples out"
            )
        if not run.kind.classes:
            raise ArgumentError(
                "samples: got some, and images without classes; expected classes, for a classifier and its features; "
                "leave --samples out"
            )


def _print(report: dict[str, Any], folder: Path, unit: str, at_zero_only: bool) -> None:
    """The report in words: what was tested, then the parts that there are."""
    model = report["model"]
    noise = model["config"]["noise"]
    method = "maximum likelihood" if at_zero_only else f"NCML, {noise['process']} noise"
    name, tested = model["config"]["model"]["name"], report["test_examples"]
    unseen = "" if report["held_out"] else ", perhaps among those it was trained on"
    print(f"\n{name}, {method}, after {number_of(model['step'], 'step')}; {number_of(tested, 'test example')}{unseen}")
    if "test_data" in report:
        print(f"Of the test data, {report['test_data']}.")
    if "log_prob" in report:
        found = report["log_prob"]
        print(f"\nlog p at t = 0: {found['mean']:.4f} +- {found['standard_error']:.4f} nats per example")
    if "bits_per_dim" in report:
        _print_bits(report["bits_per_dim"], model["data"]["levels"], unit)
    if "robustness" in report:
        _print_robustness(report["robustness"], unit)
    if "auroc" in report:
        _print_auroc(report["auroc"])
    if "frechet" in report:
        _print_distances(report["frechet"])
    if "claims" in report:
        print_claims(report["claims"])
    print(f"\nWrote {folder / 'report.json'}{' and ' + FIGURE if 'robustness' in report else ''}.")


def _print_bits(rows: dict[str, Any], levels: int, unit: str) -> None:
    """Bits/dim by how probable a move by one level is; of 0 alone, why there are no others."""
    exact, noisy = all(row["bits"].exact for row in rows.values()), len(rows) > 1
    kind, bound = ("exact", "") if exact else ("upper bounds, of dequantised data", "<= ")
    per = unit[0].upper() + unit[1:]
    print(f"\n{per} at t = 0{' under level noise' if noisy else ''} ({kind}; lower is better)")
    for pi, row in rows.items():
        mean = f"{bound}{row['bits'].mean:.4f}"
        moved = f"   ({row['moved']:.0%} of values moved)" if noisy else ""
        print(f"  pi = {pi:<4} {mean:>11} +- {row['bits'].standard_error:.4f}{moved}")
    if not noisy:
        print(f"Level noise and robustness are left out: moving values by one of {levels:,} levels says nothing.")


def _print_robustness(curve: RobustnessCurve, unit: str) -> None:
    print(f"\nWhat level noise costs at time t, Delta log p ({unit})")
    print(f"  {'sigma (levels)':<18}" + "".join(f"{'pi = ' + format(pi, 'g'):>12}" for pi in curve.delta))
    for i, sigma in enumerate(curve.sigma.tolist()):
        print(f"  {sigma:<18.2f}" + "".join(f"{float(v[i]):12.4f}" for v in curve.delta.values()))


def _print_auroc(sets: dict[str, dict[str, Any]]) -> None:
    print("\nAUROC of test data against ... (higher is better)")
    print(f"  {'':<42}" + "".join(f"{name:>24}" for name in sets))
    for key in next(iter(sets.values())):
        print(f"  {STATISTICS[key]:<42}" + "".join(f"{row[key]!s:>24}" for row in sets.values()))


def _print_distances(frechet: dict[str, Any]) -> None:
    print(f"\nFréchet distance, features of a classifier of accuracy {frechet['classifier_accuracy']:.1%} (no FID)")
    for name, value in frechet["distances"].items():
        print(f"  {name:<18}{value:12.4f}")
    for name, value in frechet.get("fid", {}).items():
        print(f"  FID, {name:<13}{value:12.4f}")
