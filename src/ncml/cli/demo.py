"""``ncml demo``: maximum likelihood against noise conditional maximum likelihood, on smooth paths and real digits."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import check_count
from ncml.cli.demo_paths import PathsSettings, run_paths
from ncml.cli.demo_report import draw_figure, print_report
from ncml.data import ImageData, load_digits
from ncml.densities import MADE
from ncml.evaluation import (
    auroc_interval,
    features_of,
    frechet_distance,
    level_noise_table,
    ood_statistics,
    robustness_curve,
)
from ncml.files import as_folder
from ncml.noise import VPSDE
from ncml.objective import AtZero, NCMLObjective, UniformTimes
from ncml.progress import progress_bar
from ncml.report import environment, write_report
from ncml.sampling import EulerMaruyama
from ncml.training import fit
from ncml.training.build import parameter_count

__all__ = ["DemoSettings", "demo", "run_demo"]

PIS = (0.0, 0.5, 1.0)
CURVE_POINTS = 9
SHOWN = 12  # images per row of the figure
CLASSIFIER_SEED = 0  # of the ruler, not of a run: distances compare between seeds
SMOKE = "A smoke run: models trained for twenty steps, whose numbers say nothing about either method."


@dataclass(frozen=True)
class DemoSettings:
    """Everything that a run depends on, apart from the machine.

    Args:
        seed: Seed of initialisation, batches, noise and samples.
        steps: Optimizer steps of each of the two models.
        batch_size: Images per step.
        hidden: Widths of the hidden layers of the MADE.
        components: Logistic components per pixel.
        dropout: Dropout while training, the same for both models.
        learning_rate: Adam's learning rate at the start, from which it falls to zero along a cosine.
        noise_levels: Noise at T, in levels of 17.
        p_zero: Share of each NCML batch at t = 0.
        samples: Number of images in each set of samples.
        sample_seeds: Number of sets of samples, for the spread of the Fréchet distance.
        refine_steps: Steps of the reverse SDE, not counting a last one by Tweedie's formula.
        classifier_steps: Training steps of the classifier whose features the distance uses.
        paths: The part on smooth paths.
    """

    seed: int = 0
    steps: int = 1500
    batch_size: int = 128
    hidden: tuple[int, ...] = (512, 512, 512)
    components: int = 6
    dropout: float = 0.3
    learning_rate: float = 3e-3
    noise_levels: float = 2.0
    p_zero: float = 0.2
    samples: int = 500
    sample_seeds: int = 3
    refine_steps: int = 63
    classifier_steps: int = 400
    paths: PathsSettings = field(default_factory=PathsSettings)

    def generator(self, purpose: str) -> torch.Generator:
        """Independent streams by purpose: adding one never shifts another."""
        # A hash, since torch keeps only the lower 32 bits of a seed.
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))

    def smoke(self) -> DemoSettings:
        """The same program at a size that takes seconds and proves nothing."""
        return replace(
            self, steps=20, hidden=(32, 32), samples=64, refine_steps=4, classifier_steps=20, paths=self.paths.smoke()
        )


def demo(
    out: Path = Path("runs/demo"),
    seed: int = 0,
    smoke: bool = False,
    threads: int | None = None,
) -> None:
    """Train the same network by maximum likelihood and by NCML, on smooth paths and on real digits, and compare them.

    The exact distribution of the paths is known, so both models can be measured against it; for the digits it prints
    the paper's tables at a small scale. Writes report.json and figure.png.

    Args:
        out: Folder for report.json and figure.png.
        seed: The same seed, machine and number of threads give the same results, bit for bit.
        smoke: Run for only a few seconds, to see that everything works.
        threads: Number of CPU threads; torch's default if not given.
    """
    if threads is not None:
        torch.set_num_threads(check_count(threads, "threads"))
    check_count(seed, "seed", minimum=0)
    settings = DemoSettings(seed=seed)
    as_folder(out).mkdir(parents=True, exist_ok=True)
    wait = "a few seconds" if smoke else "some minutes"
    print(f"Training two models of paths and two of digits, sampling and evaluating them: {wait}.", flush=True)
    report, figure_data = run_demo(settings.smoke() if smoke else settings, progress=sys.stderr.isatty())
    print_report(report)
    if smoke:
        print(SMOKE)
    write_report(out / "report.json", report)
    draw_figure(figure_data, out / "figure.png", SMOKE if smoke else None)
    print(f"\nWrote {out / 'report.json'} and {out / 'figure.png'}.")


def run_demo(settings: DemoSettings, progress: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, evaluate and sample both models.

    Returns:
        The report (JSON-able by :func:`ncml.report.write_report`), and what the figure shows.
    """
    start = time.perf_counter()
    paths, shown_paths = run_paths(settings.paths, settings.generator, progress)
    print(f"smooth paths: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    data = load_digits()
    process = VPSDE.at_noise(settings.noise_levels * data.lattice.width)
    objectives = {
        "ML": NCMLObjective(process, AtZero()),
        "NCML": NCMLObjective(process, UniformTimes(p_zero=settings.p_zero)),
    }
    models, seconds = {}, {}
    for name, objective in objectives.items():
        began = time.perf_counter()
        models[name] = _train(settings, data, objective, name, progress)
        seconds[name] = time.perf_counter() - began
        print(f"trained by {name} in {seconds[name]:.0f} s", file=sys.stderr, flush=True)

    samples = _samples(settings, models, progress)
    distances, accuracy = _frechet(settings, data, samples)
    times = torch.linspace(0.0, process.T, CURVE_POINTS, dtype=torch.float64)
    curves = {
        name: robustness_curve(model, data.test, times, generator=settings.generator("curve"))
        for name, model in models.items()
    }
    report = {
        "settings": asdict(settings),
        "environment": environment(),
        "paths": paths,
        "process": {"name": "VPSDE", **asdict(process), "sigma_T_levels": settings.noise_levels},
        "data": {"name": "scikit-learn digits", "train": len(data.train), "test": len(data.test)},
        "parameters": parameter_count(models["NCML"]),
        "bits_per_dim": {
            name: level_noise_table(model, data.test, PIS, generator=settings.generator("level noise"))
            for name, model in models.items()
        },
        "auroc": {name: _ood(settings, data, model) for name, model in models.items()},
        "frechet": distances,
        "classifier_accuracy": accuracy,
        "robustness": curves,
        "training_seconds": seconds,
        "seconds": time.perf_counter() - start,
    }
    first = {name: sets[0] for name, sets in samples.items()}
    return report, {"paths": shown_paths, "data": data.test[:SHOWN], "samples": first, "curves": curves}


def _train(settings: DemoSettings, data: ImageData, objective: NCMLObjective, name: str, progress: bool) -> MADE:
    # Initialisation and dropout draw from torch's global state, which callers keep.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.generator("model").initial_seed())
        model = MADE(
            tuple(data.train.shape[1:]),
            objective.process,
            lattice=data.lattice,
            hidden=settings.hidden,
            components=settings.components,
            dropout=settings.dropout,
        )
        fit(
            model,
            objective,
            data.train,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            generator=settings.generator("batch"),
            progress=progress,
            label=f"training by {name}",
        )
    return model


def _samples(settings: DemoSettings, models: dict[str, MADE], progress: bool) -> dict[str, list[Tensor]]:
    """Sets of samples by how they were drawn."""
    sampler = EulerMaruyama(steps=settings.refine_steps)
    generator = settings.generator("sample")
    sets: dict[str, list[Tensor]] = {name: [] for name in ("ML direct", "NCML direct", "NCML noisy", "NCML two-part")}
    for _ in progress_bar(range(settings.sample_seeds), progress, "sampling"):
        for name, model in models.items():
            sets[f"{name} direct"].append(model.sample(settings.samples, 0.0, generator=generator))
        ncml = models["NCML"]
        noisy = ncml.sample(settings.samples, ncml.process.T, generator=generator)
        refined = sampler(ncml, noisy, generator=generator)
        sets["NCML noisy"].append(noisy)
        # generate() in two parts, so that the figure can show what refinement does to a sample.
        assert ncml.lattice is not None
        sets["NCML two-part"].append(ncml.lattice.quantize(refined))
    return sets


def _frechet(
    settings: DemoSettings, data: ImageData, samples: dict[str, list[Tensor]]
) -> tuple[dict[str, dict[str, Any]], float]:
    """Fréchet distances to the training images in a classifier's features, and its test accuracy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CLASSIFIER_SEED)
        features = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.Tanh())
        head = nn.Linear(32, 10)
    classifier = nn.Sequential(features, head)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(CLASSIFIER_SEED)
    for _ in range(settings.classifier_steps):
        rows = torch.randint(len(data.train), (settings.batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(classifier(data.train[rows]), data.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = float((classifier(data.test).argmax(1) == data.test_labels).double().mean())
    reference = features_of(features, data.train)
    held_out = frechet_distance(features_of(features, data.test), reference)
    result: dict[str, dict[str, Any]] = {"test images": {"values": [held_out], "mean": held_out, "std": 0.0}}
    for name, sets in samples.items():
        if name == "NCML noisy":
            continue  # shown in the figure; not meant to look like data
        values = torch.tensor([frechet_distance(features_of(features, x), reference) for x in sets])
        result[name] = {"values": values, "mean": float(values.mean()), "std": float(values.std(correction=0))}
    return result, accuracy


def _ood(settings: DemoSettings, data: ImageData, model: MADE) -> dict[str, dict[str, Any]]:
    """AUROC of the test images against three sets of images that are not digits."""
    generator = settings.generator("outliers")
    levels, shape = data.lattice.levels, data.test.shape
    constant = torch.randint(levels, (shape[0], 1, 1, 1), generator=generator).expand(shape)
    outliers = {
        "constant": data.lattice.to_unit(constant),
        "uniform noise": data.lattice.to_unit(torch.randint(levels, shape, generator=generator)),
        "inverted": -data.test,
    }
    inside = ood_statistics(model, data.test)
    result: dict[str, dict[str, Any]] = {}
    for name, x in outliers.items():
        outside = ood_statistics(model, x)
        result[name] = {
            statistic: auroc_interval(inside[statistic], outside[statistic])
            for statistic in ("log_p", "log_p_plus_log_score_norm")
        }
        # A large score is a sign of an outlier, so its negative ranks.
        result[name]["minus_score_norm"] = auroc_interval(-inside["score_norm"], -outside["score_norm"])
    return result
