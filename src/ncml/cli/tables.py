"""The parts of ``ncml evaluate``, each divided over the processes, with the same result as on one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ncml.checks import check_count
from ncml.cli.common import NO_SAMPLES, OpenRun, draw_samples, labels_for, shows_progress, start_time
from ncml.data import DataSet, ImageSource, split_folders
from ncml.data.sources import COARSER
from ncml.density import sampleable
from ncml.errors import ArgumentError, FailedRowsWarning, NonFiniteError
from ncml.evaluation import (
    DeltaLogP,
    RobustnessCurve,
    Typicality,
    auroc_interval,
    features_of,
    fid,
    frechet_distance,
    ladder_statistics,
    level_noise_table,
    ood_statistics,
    robustness_curve,
    train_classifier,
)
from ncml.noise import BitsPerDim, GaussianProcess, Lattice
from ncml.training import in_blocks
from ncml.training.noise import FINE_LEVELS, last_trained_time

__all__ = [
    "EvaluateSettings",
    "curve",
    "frechet",
    "has_curve",
    "has_level_noise",
    "likelihood",
    "log_probability",
    "outliers",
]

PIS = (0.0, 0.5, 1.0)
Work = Callable[[slice, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate, and how much of it.

    Args:
        images: Number of test examples, all if not given; only the Fréchet distances use more.
        curve_images: Number of test examples for the robustness curve; 0 for no curve.
        curve_times: Number of noise levels on the curve.
        ood_images: Number of test examples, and of outliers of each kind, for the out-of-distribution table; 0 for no
            table.
        ood_levels: Number of noise levels above 0 for the table's ladder statistics, which are calibrated on as many
            training examples as there are test examples in the table; 0 for none.
        samples: Number of samples for the Fréchet distances, of images with classes; 0 for no distances.
        steps: Steps of refinement of the samples, not counting a last one by Tweedie's formula.
        fid: Also compute FID, in the features of the Inception network (needs torchmetrics and torch-fidelity).
        classifier_steps: Training steps of the classifier whose features the distances use.
        batch_size: Number of examples at a time; the random draws depend on it.
        seed: Seed of level noise, process noise and samples.
    """

    images: int | None = None
    curve_images: int = 128
    curve_times: int = 7
    ood_images: int = 512
    ood_levels: int = 4
    samples: int = 0
    steps: int = 64
    fid: bool = False
    classifier_steps: int = 1000
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "classifier_steps", "batch_size", "curve_times"):
            check_count(getattr(self, name), name)
        for name in ("curve_images", "ood_images", "ood_levels", "samples", "seed"):
            check_count(getattr(self, name), name, minimum=0)
        if self.images is not None:
            check_count(self.images, "images")
        if self.samples == 1 or (self.fid and not self.samples):
            raise ArgumentError(
                f"samples: got {self.samples}; expected at least 2 for a distance between distributions"
            )


def _labels(run: OpenRun, examples: DataSet, rows: slice) -> Tensor | None:
    return labels_for(run.config, examples, rows, run.fabric.device)


def _in_blocks(run: OpenRun, n: int, work: Work, label: str, settings: EvaluateSettings) -> dict[str, Tensor]:
    """Work on ``n`` examples, in blocks over the processes."""
    size, seed = settings.batch_size, settings.seed
    return in_blocks(run.fabric, n, size, work, seed=seed, label=label, progress=shows_progress())


def log_probability(run: OpenRun, test: DataSet, settings: EvaluateSettings) -> dict[str, Any]:
    """Log-density at t = 0 in nats per example, for data without a lattice."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        with torch.no_grad():
            return {"log_p": run.density.log_prob(x, 0.0, _labels(run, test, rows))}

    values = _in_blocks(run, len(test), work, "log p", settings)["log_p"]
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": float(values.mean()), "standard_error": error, "n": len(values)}


def likelihood(run: OpenRun, test: DataSet, settings: EvaluateSettings) -> dict[str, Any]:
    """Bits/dim at t = 0 for every pi, or for pi = 0 alone where level noise says nothing."""
    pis = PIS if has_level_noise(run) else PIS[:1]

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        labels = _labels(run, test, rows)
        table = level_noise_table(run.density, x, pis, labels, lattice=run.lattice, generator=generator)
        moved = {f"moved {r.pi:g}": torch.full((len(x),), r.moved) for r in table}
        return {**{f"{r.pi:g}": r.bits.values for r in table}, **moved}

    values = _in_blocks(run, len(test), work, run.kind.unit, settings)
    return {
        f"{pi:g}": {
            "bits": BitsPerDim(values[f"{pi:g}"], exact=run.density.lattice is not None),
            "moved": float(values[f"moved {pi:g}"].mean()),
        }
        for pi in pis
    }


def has_level_noise(run: OpenRun) -> bool:
    """Whether the data have levels, and so few that a move by one says something."""
    return run.lattice is not None and run.lattice.levels <= FINE_LEVELS


def has_curve(run: OpenRun, test: DataSet, settings: EvaluateSettings) -> bool:
    """Whether there is what :func:`curve` needs: level noise, Gaussian noise, and examples."""
    n = min(settings.curve_images, len(test))
    return n > 0 and has_level_noise(run) and isinstance(run.process, GaussianProcess)


def curve(run: OpenRun, test: DataSet, settings: EvaluateSettings) -> RobustnessCurve:
    """The paper's Figure 4, at noise levels evenly spaced in sigma."""
    n, lattice, process = min(settings.curve_images, len(test)), run.lattice, run.process
    assert lattice is not None  # has_curve
    assert isinstance(process, GaussianProcess)
    pis = PIS[1:]
    # Of a model by maximum likelihood, which has seen no noise, as far as the process goes.
    top = float(process.sigma(last_trained_time(run.config.noise, process) or process.T))
    times = [float(process.time_at(top * i / max(1, settings.curve_times - 1))) for i in range(settings.curve_times)]

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        x = test.batch(rows, device=run.fabric.device)
        labels = _labels(run, test, rows)
        curve = robustness_curve(
            run.density, x, times, pis, labels, process=process, lattice=lattice, generator=generator
        )
        perturbed = {f"{pi:g}": [d.perturbed.values for d in deltas] for pi, deltas in curve.results.items()}
        clean = [d.clean.values for d in curve.results[pis[0]]]
        return {name: torch.stack(v, 1) for name, v in {"clean": clean, **perturbed}.items()}

    values = _in_blocks(run, n, work, "robustness", settings)
    exact = run.density.lattice is not None

    def bits(name: str, i: int) -> BitsPerDim:
        return BitsPerDim(values[name][:, i], exact=exact or times[i] > 0.0, mass=times[i] == 0.0)

    results = {pi: [DeltaLogP(bits("clean", i), bits(f"{pi:g}", i)) for i in range(len(times))] for pi in pis}
    return RobustnessCurve.of(process, test.batch(slice(0, n)), times, results, lattice=lattice)


def outliers(
    run: OpenRun, test: DataSet, train: DataSet | None, ood: Path | None, settings: EvaluateSettings
) -> dict[str, Any]:
    """AUROC of test data against outliers (paper, Tables 2 and 4), by several statistics.

    The outliers are constant examples and uniform noise on the levels of a lattice; for real numbers, uniform noise
    in the box of the test data. Given training examples, also by what the ladder of noise levels says, calibrated on
    them. Examples whose statistics overflow count as the oddest of all.
    """
    n = min(settings.ood_images, len(test))
    times = [] if train is None else _ladder(run, settings)
    typical: dict[str, Typicality] = {}
    if train is not None:
        some = train.mixed(max(2, n)).batch(slice(None))
        known, sound = _finite(_statistics(run, some, times, "training data", settings))
        _check_sound(sound, "training data", 2)
        typical = {name: Typicality.fit(f) for name, f in _features(known).items()}

    def scores(x: Tensor, label: str) -> tuple[dict[str, Tensor], Tensor]:
        found, fine = _finite(_statistics(run, x, times, label, settings))
        features = _features(found)
        values = {
            **{key: found[key] for key in ("log_p", "log_p_plus_log_score_norm", "score_sum")},
            "minus_score_norm": -found["score_norm"],
            **{name: measure(features[name]) for name, measure in typical.items()},
        }
        return {name: v.new_full(fine.shape, -math.inf).masked_scatter(fine, v) for name, v in values.items()}, fine

    x = test.batch(slice(0, n))
    inside, fine = scores(x, "test data")
    _check_sound(fine, "test data", 1)
    sets = _outlying(run, x[fine], n, settings.seed)
    if ood is not None:
        sets[ood.name.lower()] = _others(run, ood, n)
    result: dict[str, Any] = {}
    for name, others in sets.items():
        outside, _ = scores(others, name)
        result[name] = {key: auroc_interval(inside[key], outside[key]) for key in inside}
    return result


def _outlying(run: OpenRun, x: Tensor, n: int, seed: int) -> dict[str, Tensor]:
    """Sets of ``n`` outliers, to go with test data ``x``."""
    draw = torch.Generator().manual_seed(seed)
    shape, lattice = (n, *run.kind.shape), run.lattice
    if lattice is None:
        low, high = x.amin(0), x.amax(0)
        return {"uniform noise": low + (high - low) * torch.rand(shape, generator=draw)}
    few = (n, shape[1], *[1] * (len(shape) - 2)) if run.kind.is_image else (n, *[1] * (len(shape) - 1))
    constant = torch.randint(lattice.levels, few, generator=draw).expand(shape)
    return {
        "constant": lattice.to_unit(constant),
        "uniform noise": lattice.to_unit(torch.randint(lattice.levels, shape, generator=draw)),
    }


def _check_sound(fine: Tensor, name: str, least: int) -> None:
    """Refuse data of which too few have finite statistics."""
    if int(fine.sum()) < least:
        raise NonFiniteError(
            f"{name}: got log-densities or scores that are NaN or infinite, of {int((~fine).sum())} of {len(fine)} "
            f"examples; expected finite ones; train with a lower learning rate"
        )


def _finite(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The examples whose statistics are all finite, and which they are, ``(B,)``."""
    fine = torch.stack([v.flatten(1).isfinite().all(1) if v.ndim > 1 else v.isfinite() for v in found.values()]).all(0)
    return {name: v[fine] for name, v in found.items()}, fine


def _ladder(run: OpenRun, settings: EvaluateSettings) -> list[float]:
    """Time 0, and times down from T at which the noise halves from one to the next; empty if there is no ladder."""
    process = run.process
    if not isinstance(process, GaussianProcess) or run.config.noise.at_zero_only:
        return []
    top, bottom = (float(process.sigma(t)) for t in (last_trained_time(run.config.noise, process), 0.0))
    sigmas = [top / 2**i for i in reversed(range(settings.ood_levels))]
    return [0.0, *(float(process.time_at(s)) for s in sigmas if s > bottom)]


def _features(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features ``(B, F)`` of each statistic that is calibrated."""
    features = {"typical_log_p": found["log_p"][:, None]}
    if "log_ratios" in found:
        ratios, norms = found["log_ratios"], found["log_score_norms"]
        features |= {"typical_likelihood_ratios": ratios, "typical_score_norms": norms}
        features["typical_ladder"] = torch.cat([ratios, norms], 1)
    return features


def _others(run: OpenRun, folder: Path, n: int) -> Tensor:
    """Images of a folder (its ``test`` if it is split) in the shape and levels of the model's, ``(n, C, H, W)``."""
    data, lattice = run.config.data, run.lattice
    assert lattice is not None  # an image's, which the command has checked
    pool, pad = (data.pool, data.pad) if isinstance(data, ImageSource) else (1, 0)
    channels, height, _ = run.kind.shape  # square, which the command has checked
    split = split_folders(folder) is not None
    source = ImageSource(
        "folder",
        folder,
        size=height * pool - 2 * pad,
        channels=cast("Literal[1, 3]", channels),
        pool=pool,
        pad=pad,
        levels=lattice.levels if lattice.levels in COARSER else 256,
        test_fraction=0.0,
    )
    others = source.load(train=not split, progress=run.first and shows_progress()).mixed(n)
    return lattice.quantize(others.batch(slice(None)))  # of no effect where the levels are the same


def _statistics(
    run: OpenRun, x: Tensor, times: list[float], label: str, settings: EvaluateSettings
) -> dict[str, Tensor]:
    """Statistics of examples as a model without labels sees them: an outlier has none, so no example may."""

    def work(rows: slice, generator: torch.Generator) -> dict[str, Tensor]:
        part = x[rows].to(run.fabric.device)
        unlabelled = torch.full((len(part),), -1, device=part.device) if run.config.model.classes else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FailedRowsWarning)  # such examples are the oddest
            found = ood_statistics(run.density, part, 0.0, unlabelled)
            return found | (ladder_statistics(run.density, part, times, unlabelled) if times else {})

    return _in_blocks(run, len(x), work, label, settings)


def frechet(run: OpenRun, train: DataSet, test: DataSet, settings: EvaluateSettings) -> dict[str, Any]:
    """Fréchet distances of direct and two-part samples to the training images, in a classifier's features."""
    assert train.labels is not None
    assert test.labels is not None
    n, density = settings.samples, sampleable(run.density, NO_SAMPLES, "samples")
    ruler = train_classifier(
        train.batch,
        train.labels,
        test.batch,
        test.labels,
        steps=settings.classifier_steps,
        progress=run.first and shows_progress(),
    )
    reference = features_of(lambda rows: ruler.model.features(train.batch(rows)), torch.arange(len(train)))
    scale = reference.std(0)  # so that every feature counts alike, but for those that never vary
    scale = torch.where(scale > 0.0, scale, 1.0)

    def distance(x: Tensor) -> float:
        return frechet_distance(features_of(ruler.model.features, x) / scale, reference / scale)

    real_n = min(n, len(test))
    distances = {"test images": distance(test.batch(slice(0, real_n)))}
    # Classes as often as in the data that the samples are compared with.
    labels = train.mixed(n).labels if run.config.model.classes else None
    if labels is not None and len(labels) < n:
        labels = labels.repeat(n // len(labels) + 1)[:n]
    inception: dict[str, float] = {}
    last = start_time(run, None)
    ways = {"direct": 0.0, "two-part": last} if last > 0.0 else {"direct": 0.0}
    for name, t_start in ways.items():
        x = draw_samples(
            run.fabric,
            density,
            run.process,
            run.kind,
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
