"""The parts of ``ncml evaluate``: every one is divided over the processes, with the result of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ncml._checks import check_count
from ncml.cli._common import OpenRun, sample_images, shows_progress, start_time
from ncml.data import Images, ImageSource
from ncml.errors import ArgumentError
from ncml.evaluation import (
    DeltaLogP,
    RobustnessCurve,
    auroc_interval,
    features_of,
    fid,
    frechet_distance,
    level_noise_table,
    mean_abs_perturbation,
    ood_statistics,
    robustness_curve,
    train_classifier,
)
from ncml.lattice import BitsPerDim, Lattice
from ncml.training import in_blocks

__all__ = ["EvaluateSettings", "curve", "frechet", "likelihood", "outliers"]

PIS = (0.0, 0.5, 1.0)
Work = Callable[[slice, torch.Generator], dict[str, Tensor]]


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

    def __post_init__(self) -> None:
        for name in ("steps", "classifier_steps", "batch_size", "curve_times"):
            check_count(getattr(self, name), name)
        for name in ("curve_images", "ood_images", "samples", "seed"):
            check_count(getattr(self, name), name, minimum=0)
        if self.images is not None:
            check_count(self.images, "images")
        if self.samples == 1 or (self.fid and not self.samples):
            raise ArgumentError(
                f"samples: got {self.samples}; expected at least 2 for a distance between distributions"
            )


def labels_of(run: OpenRun, images: Images, rows: slice) -> Tensor | None:
    if not run.config.network.classes or images.labels is None:
        return None
    return images.labels[rows].to(run.fabric.device)


def _in_blocks(run: OpenRun, n: int, work: Work, label: str, settings: EvaluateSettings) -> dict[str, Tensor]:
    """Work on ``n`` images, in blocks over the processes."""
    size, seed = settings.batch_size, settings.seed
    return in_blocks(run.fabric, n, size, work, seed=seed, label=label, progress=shows_progress())


def likelihood(run: OpenRun, test: Images, settings: EvaluateSettings) -> dict[str, Any]:
    """Bits/dim at t = 0 for every pi."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        table = level_noise_table(run.density, x, PIS, labels_of(run, test, rows), generator=generator)
        moved = {f"moved {r.pi:g}": torch.full((len(x),), r.moved) for r in table}
        return {**{f"{r.pi:g}": r.bits.values for r in table}, **moved}

    values = _in_blocks(run, len(test), work, "bits/dim", settings)
    return {
        f"{pi:g}": {
            "bits": BitsPerDim(values[f"{pi:g}"], exact=True),
            "moved": float(values[f"moved {pi:g}"].mean()),
        }
        for pi in PIS
    }


def curve(run: OpenRun, test: Images, settings: EvaluateSettings) -> RobustnessCurve | None:
    """The paper's Figure 4 at noise levels that are even in sigma."""
    n = min(settings.curve_images, len(test))
    if n == 0:
        return None
    process, pis = run.process, PIS[1:]
    top = float(process.sigma(process.T))
    times = [float(process.time_at(top * i / max(1, settings.curve_times - 1))) for i in range(settings.curve_times)]

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        curve = robustness_curve(run.density, process, x, times, pis, labels_of(run, test, rows), generator=generator)
        perturbed = {f"{pi:g}": [d.perturbed.values for d in deltas] for pi, deltas in curve.results.items()}
        clean = [d.clean.values for d in curve.results[pis[0]]]
        return {name: torch.stack(v, 1) for name, v in {"clean": clean, **perturbed}.items()}

    values = _in_blocks(run, n, work, "robustness", settings)

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


def outliers(run: OpenRun, test: Images, ood: Path | None, settings: EvaluateSettings) -> dict[str, Any]:
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
    inside = _statistics(run, test.batch(slice(0, n)), "test images", settings)
    result: dict[str, Any] = {}
    for name, x in sets.items():
        outside = _statistics(run, x, name, settings)
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


def _statistics(run: OpenRun, x: Tensor, label: str, settings: EvaluateSettings) -> dict[str, Tensor]:
    """Statistics of images as a model without labels sees them: an outlier has none, so no image may."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        part = x[rows].to(run.fabric.device)
        unlabelled = torch.full((len(part),), -1, device=part.device) if run.density.classes else None
        return ood_statistics(run.density, part, 0.0, unlabelled)

    return _in_blocks(run, len(x), work, label, settings)


def frechet(run: OpenRun, train: Images, test: Images, settings: EvaluateSettings) -> dict[str, Any]:
    """Fréchet distances of direct and two-part samples to the training images, in a classifier's features."""
    assert train.labels is not None
    assert test.labels is not None
    n = settings.samples
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

    real_n = min(n, len(test))
    distances = {"test images": distance(test.batch(slice(0, real_n)))}
    # Classes as often as in the data that the samples are compared with.
    labels = train.mixed(n).labels if run.density.classes else None
    if labels is not None and len(labels) < n:
        labels = labels.repeat(n // len(labels) + 1)[:n]
    inception: dict[str, float] = {}
    ways = {"direct": 0.0} if run.config.noise.times == "zero" else {"direct": 0.0, "two-part": start_time(run, None)}
    for name, t_start in ways.items():
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
            real = (_bytes(train.batch(part)) for part in torch.arange(len(train)).split(500))
            inception[name] = fid(real, [_bytes(part) for part in x.split(500)])
    result = {"distances": distances, "samples": n, "test_images": real_n, "classifier_accuracy": ruler.accuracy}
    return {**result, "fid": inception} if settings.fid else result


def _bytes(x: Tensor) -> Tensor:
    """Images of any lattice in 256 levels, uint8."""
    return Lattice(256).nearest(x).to(torch.uint8)
