"""Why does NCML change the model of the data? One thing changed at a time, equal steps, CIFAR-16.

    python examples/cifar16_ncpn/ablation.py --data data/cifar10_jpeg --out runs/ablation

Trains an NCPN without attention once per variant and evaluates each on the same test images with the same
noise: bits/dim at t = 0 under level noise (pi = 0, 0.5, 1), and at noise of half of ten levels. Variants that
are there already are not run again. Writes ablation.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ncml import Lattice, NCMLObjective
from ncml.data import Images, ImageSource
from ncml.densities import NCPN
from ncml.densities.ncpn import NCPNSettings
from ncml.evaluation import bits_per_dim, level_noise_table
from ncml.noise import VPSDE
from ncml.objective import AtZero, LadderTimes, UniformTimes
from ncml.report import environment, write_report
from ncml.training import (
    DataKind,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    Trainer,
    build_density,
    launch,
)
from ncml.training.config import to_dict

LATTICE = Lattice(256)
MIDDLE = 5.0  # levels of noise at which all variants are compared besides t = 0


def time_at(process: VPSDE, levels: float) -> float:
    """The time at which the process has so many levels of noise."""
    return float(process.time_at(levels * LATTICE.width))


def objective(noise: NoiseConfig, process: VPSDE, variant: str) -> NCMLObjective:
    """What a variant minimises."""
    if variant == "maximum likelihood":
        return NCMLObjective(process, AtZero())
    if variant == "t at 5 levels only":
        return NCMLObjective(process, LadderTimes((time_at(process, MIDDLE),)))
    return NCMLObjective(process, UniformTimes(p_zero=noise.p_zero))


VARIANTS: dict[str, dict[str, Any]] = {
    "maximum likelihood": {},
    "NCML (T at 10 levels, atom 0.2)": {},
    "atom 0": {"p_zero": 0.0},
    "atom 0.05": {"p_zero": 0.05},
    "atom 0.5": {"p_zero": 0.5},
    "no indicator of t = 0": {},
    "T at 2 levels": {"std_in_levels": 2.0},
    "T at 5 levels": {"std_in_levels": 5.0},
    "t at 5 levels only": {},
}


def without_indicator(density: NCPN) -> None:
    """Hide from the network whether t is exactly 0."""

    def hide(module: torch.nn.Module, inputs: tuple[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        return features * torch.tensor([0.0] + [1.0] * (features.shape[1] - 1))

    density.noise.register_forward_hook(hide)


def evaluate(density: NCPN, test: Images, images: int) -> dict[str, Any]:
    """Bits/dim of the same images with the same noise for every variant."""
    x = test.mixed(images).batch(slice(None))
    table = level_noise_table(density, x, generator=torch.Generator().manual_seed(0), batch_size=64)
    result: dict[str, Any] = {f"pi = {row.pi:g}": row.bits for row in table}
    process = density.process
    assert isinstance(process, VPSDE)
    if time_at(VPSDE.at_noise(MIDDLE * LATTICE.width), MIDDLE) * (1 - 1e-6) <= process.T:
        t = min(time_at(process, MIDDLE * (1 - 1e-9)), process.T)
        x_t = process.perturb(x, t, generator=torch.Generator().manual_seed(1))
        result["at 5 levels"] = bits_per_dim(density, x_t, t, batch_size=64)
    return result


def run(variant: str, config: TrainConfig, folder: Path, load: Callable[[bool], Images], images: int) -> None:
    """Train and evaluate one variant."""
    fabric = launch(config.run)
    train, test = load(True), load(False)
    density = build_density(config, DataKind.of(train))
    assert isinstance(density, NCPN)
    if variant == "no indicator of t = 0":
        without_indicator(density)
    assert isinstance(density.process, VPSDE)
    goal = objective(config.noise, density.process, variant)
    trainer = Trainer(fabric, density, goal, train, folder, config.optim, config.run, info={"variant": variant})
    if stopped := trainer.run(progress=True):
        sys.exit(128 + stopped)
    with trainer.ema.applied():
        results = evaluate(density, test, images)
    report = {"variant": variant, "seconds": trainer.seconds, "settings": to_dict(config), "results": results}
    write_report(folder / "results.json", report)


def main() -> None:
    """Run what is not there yet, and put everything into one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of 32x32 images with train/ and test/")
    parser.add_argument("--cache", type=Path, help="folder for the decoded images")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="test images")
    options = parser.parse_args()

    warmup = min(100, options.steps // 10)
    source = ImageSource("folder", options.data, size=32, pool=2, cache=options.cache)
    base = TrainConfig(
        data=source,
        model=ModelConfig("ncpn", settings=NCPNSettings(preset="tiny", heads=0)),
        optim=OptimConfig(steps=options.steps, batch_size=32, learning_rate=2e-3, warmup=warmup, ema=0.99),
        run=RunConfig(seed=options.seed, threads=1, log_every=50, save_every=10**9, keep=1),
    )
    reports = []
    for variant, noise in VARIANTS.items():
        folder = options.out / f"seed{options.seed}" / variant.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "results.json").exists():
            config = replace(base, noise=replace(base.noise, **noise))
            run(variant, config, folder, lambda train: source.load(train=train), options.images)
        reports.append(json.loads((folder / "results.json").read_text()))
        print(variant, {name: round(bits["mean"], 4) for name, bits in reports[-1]["results"].items()}, flush=True)
    write_report(options.out / "ablation.json", {"variants": reports, "environment": environment()})


if __name__ == "__main__":
    main()
