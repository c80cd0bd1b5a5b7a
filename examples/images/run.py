"""Images once more: maximum likelihood against NCML, direct against two-part samples, the errors of both parts apart.

    python examples/images/run.py --data mnist --model flow --out runs/images
    python examples/images/run.py --data cifar16 --folder FOLDER --model flow --out runs/images
    python examples/images/run.py --data mnist --model flow --ways scored --out runs/images

MNIST or CIFAR-16, a transformer flow or an NCPN, each trained by ``ncml train`` with three seeds. Where two-part
samples start, and the solver, are chosen against training images, run by run, and looked at once against test images.
Distances are Fréchet's in the features of a small classifier, and of EfficientNet-Lite0 where that is installed (see
features.py). `--ways scored` and `--ways planck` are NCML with the error of the model's own score, and with the
Fokker-Planck penalty, beside the likelihood. What is there is not run again. docs/results/images.py draws the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from features import imagenet_features
from torch import Tensor

from ncml import Lattice, SampleableDensity
from ncml.cli import main as ncml
from ncml.data import DataSet
from ncml.evaluation import bits_per_dim, features_of, frechet_distance, train_classifier
from ncml.report import environment, write_report
from ncml.sampling import DPMSolver2M, EulerMaruyama, Sampler, Tweedie
from ncml.training import TrainConfig, load_density

MODELS = {
    "flow": "--model.name transformer-flow --model.patch 2 --model.width 96 --model.layers 2 --model.heads 3",
    "ncpn": "--model.name ncpn --model.preset tiny",
}
DATA = {
    "mnist": "--data.name mnist --data.pad 2 --data.pool 2",
    "cifar16": "--data.name folder --data.size 32 --data.pool 2",
}
NOISY = "--noise.times log-uniform --noise.p-zero 0.3"
WAYS = {
    "ml": "--noise.times zero",
    "ncml": NOISY,
    "scored": f"{NOISY} --noise.score-matching 1",
    "planck": f"{NOISY} --noise.fokker-planck 0.003",
}
NOISE = (0.02, 0.05, 0.1, 0.2)  # where two-part samples start, in data units: from -1 to 1
SOLVERS: dict[str, Sampler] = {
    "Tweedie": Tweedie(),
    "DPM++ 2M, 6 steps": DPMSolver2M(steps=6),
    "Euler-Maruyama, 16 steps": EulerMaruyama(steps=16),
}
LEVELS = Lattice(256)
BATCH = 250

Features = dict[str, Callable[[Tensor], Tensor]]


def images(x: Tensor) -> Tensor:
    """Samples as images: levels of 256; a pixel that is not finite is the darkest."""
    return LEVELS.quantize(x.nan_to_num(-1.0).clamp(-1.0, 1.0))


def drawn(density: SampleableDensity, n: int, t: float, generator: torch.Generator) -> Tensor:
    """Samples at time t."""
    return torch.cat([density.sample(min(BATCH, n - k), t, generator=generator) for k in range(0, n, BATCH)])


def refined(density: SampleableDensity, x: Tensor, t: float, sampler: Sampler, generator: torch.Generator) -> Tensor:
    """Noisy images taken to t = 0."""
    parts = [sampler(density, part, t, generator=generator, on_failure="keep") for part in x.split(BATCH)]
    return torch.cat(parts)


class Distances:
    """Fréchet distances to real images, in every kind of features."""

    def __init__(self, features: Features, real: Tensor) -> None:
        self.features = features
        self.real = {name: features_of(feature, real) for name, feature in features.items()}

    def __call__(self, x: Tensor) -> dict[str, float]:
        found = {name: features_of(feature, x) for name, feature in self.features.items()}
        return {name: frechet_distance(rows, self.real[name]) for name, rows in found.items()}


def examples(config: TrainConfig) -> tuple[DataSet, DataSet]:
    """Images of training and test, in an order that has nothing to do with their classes."""
    parts = [config.data.load(train=train) for train in (True, False)]
    # A folder lies class by class; MNIST's files are mixed.
    train, test = (part.mixed() if config.data.name == "folder" else part for part in parts)
    return train, test


def evaluate(run: Path, rulers: Features, few: int, many: int, seed: int) -> dict[str, Any]:
    """All numbers of one run."""
    density, config, _, _ = load_density(run)
    assert isinstance(density, SampleableDensity)
    process, generator = density.process, torch.Generator().manual_seed(seed + 1)
    train, test = examples(config)
    held, others = (train.batch(slice(k, k + few // 2)) for k in (0, few // 2))
    real = test.batch(slice(0, many))
    own = None if density.lattice is not None else LEVELS
    likelihood = bits_per_dim(density, test.batch(slice(0, few)), lattice=own, generator=generator)
    result: dict[str, Any] = {"bits per dim": likelihood.mean, "standard error": likelihood.standard_error}
    first = {name: feature for name, feature in rulers.items() if name == "classifier"}
    validation, to_test = Distances(first, held), Distances(rulers, real)
    result["held-out"] = to_test(train.batch(slice(few, few + many)))
    result["other images"] = validation(others)["classifier"]  # how far as many real images are: the floor of draws
    result["direct"] = to_test(images(drawn(density, many, 0.0, generator)))
    if config.noise.at_zero_only:
        return result
    parts, choices = [], []
    for sigma in NOISE:
        t = float(process.time_at(sigma))
        noisy = process.perturb(held, t, generator=generator)
        start = drawn(density, len(held), t, generator)
        to_noisy = Distances(first, noisy)
        part = {
            "sigma": sigma,
            "other noisy data": to_noisy(process.perturb(others, t, generator=generator))["classifier"],
            "draws at sigma against noisy data": to_noisy(start)["classifier"],
        }
        for name, sampler in SOLVERS.items():
            real_refined = images(refined(density, noisy, t, sampler, generator))
            both = images(refined(density, start, t, sampler, generator))
            part[name] = {
                "real noisy data refined": validation(real_refined)["classifier"],
                "draws refined": validation(both)["classifier"],
            }
            choices.append((part[name]["draws refined"], sigma, name))
        parts.append(part)
    _, sigma, name = min(choices)
    t = float(process.time_at(sigma))
    two = refined(density, drawn(density, many, t, generator), t, SOLVERS[name], generator)
    return {**result, "parts": parts, "two-part": {**to_test(images(two)), "sigma": sigma, "solver": name}}


def main() -> None:
    """Train, evaluate, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, choices=tuple(DATA))
    parser.add_argument("--model", required=True, choices=tuple(MODELS))
    parser.add_argument("--folder", type=Path, help="of the images, if they are not to be downloaded")
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["ml", "ncml"], help="ways of training")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; proves nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, few, many = (4, 8, 12) if args.quick else (args.steps, 500, 2000)
    shared = f"{DATA[args.data]} {MODELS[args.model]} --noise.process linear-ve --noise.std 0.5 --optim.steps {steps}"
    shared += " --optim.batch-size 32 --optim.learning-rate 2e-3 --optim.warmup 100 --optim.ema 0.995"
    shared += " --run.threads 1 --run.sample-every 0 --run.validate-images 200"
    if args.quick and args.model == "flow":
        shared += " --model.patch 4 --model.width 24 --model.blocks 2 --model.layers 1"
    where = [] if args.folder is None else ["--data.folder", str(args.folder)]
    rulers: Features = {}
    for way in args.ways:
        for seed in args.seeds:
            run = args.out / f"{args.data}-{args.model}" / f"{way}-seed{seed}"
            if (run / "images.json").exists():
                continue
            options = [*shared.split(), *WAYS[way].split(), "--run.seed", str(seed)]
            train = ["train", *options, *where, "--out", str(run), "--resume"]  # or begin
            if not (run / "report.json").exists() and (failed := ncml(train)):
                raise SystemExit(failed)
            if not rulers:
                rulers = measured_by(run, args.quick)
            result = {"way": way, "seed": seed, "steps": steps, **evaluate(run, rulers, few, many, seed)}
            write_report(run / "images.json", {**result, "options": options, "environment": environment()})
            print(json.dumps({k: v for k, v in result.items() if k != "parts"}), flush=True)


def measured_by(run: Path, quick: bool) -> Features:
    """The features in which distances are taken."""
    _, config, _, _ = load_density(run)
    train, test = examples(config)
    assert train.labels is not None
    assert test.labels is not None
    steps = 10 if quick else 1000
    classifier = train_classifier(train.batch, train.labels, test.batch, test.labels, steps=steps)
    rulers: Features = {"classifier": classifier.model.features}
    if (found := imagenet_features()) is not None:
        rulers["EfficientNet-Lite0"] = found
    return rulers


if __name__ == "__main__":
    main()
