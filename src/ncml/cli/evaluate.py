"""``ncml evaluate``: the paper's tables and figures for a trained model, on one process or many."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from torch import Tensor

from ncml.cli._claims import beside_the_paper, print_claims
from ncml.cli._common import OpenRun, open_run, sample_images, shows_progress, start_time
from ncml.data import Images, ImageSource
from ncml.errors import ArgumentError
from ncml.evaluation import (
    DeltaLogP,
    RobustnessCurve,
    auroc_interval,
    environment,
    features_of,
    fid,
    frechet_distance,
    level_noise_table,
    mean_abs_perturbation,
    ood_statistics,
    plot_robustness,
    robustness_curve,
    train_classifier,
    write_report,
)
from ncml.lattice import BitsPerDim, Lattice
from ncml.training import in_blocks

__all__ = ["EvaluateSettings", "evaluate"]

PIS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate, and how much of it.

    Args:
        images: Test images for the likelihoods; all if not given.
        curve_images: Test images for the robustness curve, 0 for none.
        curve_times: Noise levels of the curve.
        ood_images: Images on either side of the out-of-distribution table, 0 for none.
        samples: Samples for the Fréchet distances, 0 for none.
        steps: Steps of the refinement of samples.
        fid: Also FID, in the features of the Inception network (needs torchmetrics and torch-fidelity).
        classifier_steps: Training steps of the classifier whose features the distances use.
        batch_size: Images at a time; part of what the draws depend on.
        seed: Seed of level noise, process noise and samples.
    """

    images: int | None = None
    curve_images: int = 128
    curve_times: int = 7
    ood_images: int = 512
    samples: int = 0
    steps: int = 64
    fid: bool = False
    classifier_steps: int = 1000
    batch_size: int = 64
    seed: int = 0


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    settings: Annotated[EvaluateSettings, tyro.conf.arg(name="")] = EvaluateSettings(),
    ood: Path | None = None,
    claims: Path | None = None,
    row: str | None = None,
    out: Path | None = None,
    threads: int | None = None,
) -> None:
    """Evaluate a trained model: bits/dim under level noise, robustness over t, outliers, Fréchet distances.

    Writes report.json and robustness.png. All likelihoods are exact, of the test images, at the model's own t.

    Args:
        run: Folder of the run, or of a checkpoint.
        settings: What to evaluate, and how much of it.
        ood: A folder of images to tell from the test images, besides constant and random ones; resized as these are.
        claims: A claims.json with a paper's numbers, to put beside these.
        row: Which row of it.
        out: Folder for the results; ``evaluation`` in that of the run if not given.
        threads: Number of CPU threads.
    """
    start = time.perf_counter()
    opened = open_run(run, threads)
    data = opened.config.data
    test = data.load(train=False, progress=opened.first and shows_progress()).mixed(settings.images)
    report: dict[str, Any] = {"settings": settings, "model": opened.source(), "test_images": len(test)}
    report["bits_per_dim"] = _likelihood(opened, test, settings)
    curve = _curve(opened, test, settings)
    if curve is not None:
        report["robustness"] = curve
    if settings.ood_images:
        report["auroc"] = _outliers(opened, test, ood, settings)
    if settings.samples:
        report["frechet"] = _frechet(opened, test, settings)
    if claims is not None:
        report["claims"] = beside_the_paper(claims, row, report, data)
    report |= {"seconds": time.perf_counter() - start, "environment": environment()}
    if opened.first:
        folder = out or run / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder / "report.json", report)
        if curve is not None:
            plot_robustness({opened.config.noise.process: curve}, folder / "robustness.png")
        _print(report, folder)


def _labels(run: OpenRun, images: Images, rows: slice) -> Tensor | None:
    if not run.config.network.classes or images.labels is None:
        return None
    return images.labels[rows].to(run.fabric.device)


def _likelihood(run: OpenRun, test: Images, settings: EvaluateSettings) -> dict[str, Any]:
    """Bits/dim at t = 0 for every pi."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        table = level_noise_table(run.density, x, PIS, _labels(run, test, rows), generator=generator)
        moved = {f"moved {r.pi:g}": torch.full((len(x),), r.moved) for r in table}
        return {**{f"{r.pi:g}": r.bits.values for r in table}, **moved}

    values = in_blocks(
        run.fabric,
        len(test),
        settings.batch_size,
        work,
        seed=settings.seed,
        label="bits/dim",
        progress=shows_progress(),
    )
    return {
        f"{pi:g}": {
            "bits": BitsPerDim(values[f"{pi:g}"], exact=True),
            "moved": float(values[f"moved {pi:g}"].mean()),
        }
        for pi in PIS
    }


def _curve(run: OpenRun, test: Images, settings: EvaluateSettings) -> RobustnessCurve | None:
    """The paper's Figure 4 at noise levels that are even in sigma."""
    n = min(settings.curve_images, len(test))
    if n == 0:
        return None
    process, pis = run.process, PIS[1:]
    top = float(process.sigma(process.T))
    times = [float(process.time_at(top * i / max(1, settings.curve_times - 1))) for i in range(settings.curve_times)]

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        curve = robustness_curve(run.density, process, x, times, pis, _labels(run, test, rows), generator=generator)
        perturbed = {f"{pi:g}": [d.perturbed.values for d in deltas] for pi, deltas in curve.results.items()}
        clean = [d.clean.values for d in curve.results[pis[0]]]
        return {name: torch.stack(v, 1) for name, v in {"clean": clean, **perturbed}.items()}

    size = settings.batch_size
    values = in_blocks(run.fabric, n, size, work, seed=settings.seed, label="robustness", progress=shows_progress())

    def bits(name: str, i: int) -> BitsPerDim:
        return BitsPerDim(values[name][:, i], exact=True, mass=times[i] == 0.0)

    x = test.batch(slice(0, n))
    width = run.lattice.width
    return RobustnessCurve(
        times=torch.tensor(times, dtype=torch.float64),
        T=process.T,
        sigma=torch.tensor([float(process.sigma(t)) / width for t in times], dtype=torch.float64),
        mean_abs_perturbation=torch.tensor([mean_abs_perturbation(process, x, t) / width for t in times]).double(),
        results={pi: tuple(DeltaLogP(bits("clean", i), bits(f"{pi:g}", i)) for i in range(len(times))) for pi in pis},
    )


def _outliers(run: OpenRun, test: Images, ood: Path | None, settings: EvaluateSettings) -> dict[str, Any]:
    """AUROC of test images against images that are none (paper, Tables 2 and 4), by several statistics."""
    n = min(settings.ood_images, len(test))
    draw = torch.Generator().manual_seed(settings.seed)
    levels, shape = run.kind.levels, (n, *run.kind.shape)
    constant = torch.randint(levels, (n, shape[1], 1, 1), generator=draw).expand(shape)
    sets = {
        "constant": run.lattice.to_unit(constant),
        "uniform noise": run.lattice.to_unit(torch.randint(levels, shape, generator=draw)),
    }
    if ood is not None:
        sets[ood.name.lower()] = _others(run, ood).mixed(settings.ood_images).batch(slice(None))
    inside = _statistics(run, test.batch(slice(0, n)), _labels(run, test, slice(0, n)), "test images", settings)
    result: dict[str, Any] = {}
    for name, x in sets.items():
        unlabelled = torch.full((len(x),), -1) if run.config.network.classes else None
        outside = _statistics(run, x, unlabelled, name, settings)
        result[name] = {
            statistic: auroc_interval(sign * inside[key], sign * outside[key], generator=draw)
            for statistic, key, sign in (
                ("log_p", "log_p", 1.0),
                ("log_p_plus_log_score_norm", "log_p_plus_log_score_norm", 1.0),
                ("minus_score_norm", "score_norm", -1.0),
            )
        }
    return result


def _others(run: OpenRun, folder: Path) -> Images:
    """The images of a folder (of its ``test`` if it is split) in the shape and levels of the model's."""
    data = run.config.data
    channels, height, _ = run.kind.shape
    size = height * data.pool - 2 * data.pad
    split = all((folder / name).is_dir() for name in ("train", "test"))
    source = ImageSource(
        "folder",
        folder,
        size=size,
        channels=cast("Literal[1, 3]", channels),
        pool=data.pool,
        pad=data.pad,
        levels=min(256, run.kind.levels),
        test_fraction=0.0,
    )
    others = source.load(train=not split, progress=run.first and shows_progress())
    if (others.shape, others.lattice) != (run.kind.shape, run.lattice):
        raise ArgumentError(
            f"ood: got images {others.shape} in {others.lattice.levels} levels; expected {run.kind.shape} in "
            f"{run.kind.levels}, as the model's"
        )
    return others


def _statistics(
    run: OpenRun, x: Tensor, labels: Tensor | None, label: str, settings: EvaluateSettings
) -> dict[str, Tensor]:
    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        context = None if labels is None else labels[rows].to(run.fabric.device)
        return ood_statistics(run.density, x[rows].to(run.fabric.device), 0.0, context)

    return in_blocks(
        run.fabric, len(x), settings.batch_size, work, seed=settings.seed, label=label, progress=shows_progress()
    )


def _frechet(run: OpenRun, test: Images, settings: EvaluateSettings) -> dict[str, Any]:
    """Fréchet distances of direct and two-part samples to the training images, in a classifier's features."""
    train = run.config.data.load(train=True)
    if train.labels is None or test.labels is None:
        raise ArgumentError(
            "samples: got images without classes; expected some: the distance uses a classifier's features"
        )
    ruler = train_classifier(
        train.batch,
        train.labels,
        test.batch,
        test.labels,
        steps=settings.classifier_steps,
        progress=run.first and shows_progress(),
    )
    reference = features_of(lambda rows: ruler.model.features(train.batch(rows)), torch.arange(len(train)))
    scale = reference.std(0)  # so that every feature counts alike

    def distance(x: Tensor) -> float:
        return frechet_distance(features_of(ruler.model.features, x) / scale, reference / scale)

    distances = {"test images": distance(test.batch(slice(0, settings.samples)))}
    inception: dict[str, float] = {}
    ways = {"direct": 0.0} if run.config.noise.times == "zero" else {"direct": 0.0, "two-part": start_time(run, None)}
    for name, t_start in ways.items():
        n = settings.samples
        labels = torch.arange(n) % len(run.kind.classes) if run.config.network.classes else None
        x = sample_images(
            run.fabric,
            run.density,
            n,
            labels=labels,
            t_start=t_start,
            steps=settings.steps,
            seed=settings.seed,
            batch_size=settings.batch_size,
            progress=shows_progress(),
        )
        distances[name] = distance(x)
        if settings.fid:
            real = (_bytes(run, train.batch(part)) for part in torch.arange(len(train)).split(500))
            inception[name] = fid(real, [_bytes(run, part) for part in x.split(500)])
    result = {"distances": distances, "samples": settings.samples, "classifier_accuracy": ruler.accuracy}
    return {**result, "fid": inception} if settings.fid else result


def _bytes(run: OpenRun, x: Tensor) -> Tensor:
    """Images of any lattice in 256 levels, uint8."""
    return Lattice(256).nearest(run.lattice.quantize(x)).to(torch.uint8)


def _print(report: dict[str, Any], folder: Path) -> None:
    model = report["model"]
    noise = model["config"]["noise"]
    method = (
        "maximum likelihood" if noise["times"] == "zero" else f"NCML, {noise['process']}, {noise['levels']:g} levels"
    )
    print(f"\n{method}, after {model['step']} steps; {report['test_images']:,} test images")
    print("\nBits/dim at t = 0 under level noise (exact; lower is better)")
    for pi, row in report["bits_per_dim"].items():
        bits = row["bits"]
        print(f"  pi = {pi:<4} {bits.mean:8.4f} +- {bits.standard_error:.4f}   ({row['moved']:.0%} of values moved)")
    if "robustness" in report:
        curve = report["robustness"]
        print("\nWhat level noise costs at time t, Delta log p (bits/dim)")
        print(f"  {'sigma (levels)':<18}" + "".join(f"{'pi = ' + format(pi, 'g'):>12}" for pi in curve.delta))
        for i, sigma in enumerate(curve.sigma.tolist()):
            print(f"  {sigma:<18.2f}" + "".join(f"{float(v[i]):12.4f}" for v in curve.delta.values()))
    if "auroc" in report:
        print("\nAUROC of test images against ... (higher is better)")
        print(f"  {'':<18}{'log p':>24}{'log p + log |score|':>24}{'-|score|':>24}")
        for name, row in report["auroc"].items():
            print(f"  {name:<18}" + "".join(f"{value!s:>24}" for value in row.values()))
    if "frechet" in report:
        frechet = report["frechet"]
        print(f"\nFréchet distance, features of a classifier of accuracy {frechet['classifier_accuracy']:.1%} (no FID)")
        for name, value in frechet["distances"].items():
            print(f"  {name:<18}{value:12.4f}")
        for name, value in frechet.get("fid", {}).items():
            print(f"  FID, {name:<13}{value:12.4f}")
    if "claims" in report:
        print_claims(report["claims"])
    print(f"\nWrote {folder / 'report.json'}.")
