"""Do models of different kinds fail equally when values move by one level (paper, section 3.2)?

    python examples/models_on_digits.py --out runs/models.json

Trains a MADE, an NCPN and a masked autoregressive flow (on dequantised levels), each by maximum likelihood and by NCML,
with several seeds, on handwritten digits of 8x8 pixels in 17 levels, and evaluates all on the same test images with the
same level noise. Writes one JSON file after every run; runs that are in it are not made again. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ncml import VPSDE, Lattice, NCMLObjective
from ncml.data import ImageData, load_digits
from ncml.densities import MADE, MAF, NCPN
from ncml.density import NoiseConditionalDensity
from ncml.evaluation import level_noise_table
from ncml.objective import AtZero, UniformTimes
from ncml.report import environment, write_report
from ncml.training import fit

LATTICE = Lattice(17)
PROCESS = VPSDE.at_noise(2 * LATTICE.width)
PIS = (0.0, 0.5, 1.0)
METHODS = {"ml": AtZero(), "ncml": UniformTimes(p_zero=0.2)}


@dataclass(frozen=True)
class Kind:
    """How a kind of model is trained."""

    steps: int
    batch_size: int
    learning_rate: float


KINDS = {"made": Kind(800, 128, 3e-3), "ncpn": Kind(500, 16, 3e-3), "maf": Kind(1500, 128, 1e-3)}


def build(kind: str, shape: tuple[int, ...]) -> NoiseConditionalDensity:
    """A model with random weights."""
    if kind == "made":
        return MADE(shape, PROCESS, lattice=LATTICE, hidden=(256, 256), components=6, dropout=0.3)
    if kind == "ncpn":
        return NCPN.preset("tiny", shape, PROCESS, lattice=LATTICE, heads=0, dropout=0.2)
    return MAF(shape, PROCESS, transforms=4, hidden=(128,))


def run(kind: str, method: str, seed: int, data: ImageData, share: float) -> dict[str, Any]:
    """Train and evaluate one model."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    density = build(kind, tuple(data.train.shape[1:]))
    settings, generator = KINDS[kind], torch.Generator().manual_seed(seed)
    objective = NCMLObjective(PROCESS, METHODS[method], dequantize=None if density.lattice is not None else LATTICE)
    fit(
        density,
        objective,
        data.train,
        steps=max(1, round(share * settings.steps)),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        generator=generator,
        progress=True,
        label=f"{kind}, {method}, seed {seed}",
    )
    seconds = time.perf_counter() - started
    rows = level_noise_table(density, data.test, PIS, lattice=LATTICE, generator=torch.Generator().manual_seed(0))
    return {
        "model": kind,
        "method": method,
        "seed": seed,
        "parameters": sum(p.numel() for p in density.parameters()),
        "seconds": seconds,
        "exact": density.lattice is not None,
        "bits": {f"{row.pi:g}": row.bits.mean for row in rows},
        "moved": {f"{row.pi:g}": row.moved for row in rows},
    }


def main() -> None:
    """Make the runs that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/models.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=360, help="test images")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps, to try it out")
    options = parser.parse_args()

    torch.set_num_threads(1)
    data = load_digits()
    data = replace(data, test=data.test[: options.images])
    runs: list[dict[str, Any]] = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    done = {(r["model"], r["method"], r["seed"]) for r in runs}
    for seed in range(options.seeds):
        for kind in KINDS:
            for method in METHODS:
                if (kind, method, seed) not in done:
                    runs.append(run(kind, method, seed, data, options.share))
                    kinds = {name: vars(k) for name, k in KINDS.items()}
                    head = {"kinds": kinds, "share": options.share, "environment": environment()}
                    images = {"training_images": len(data.train), "test_images": len(data.test)}
                    write_report(options.out, {**head, **images, "runs": runs})
                    print(kind, method, seed, {k: round(v, 3) for k, v in runs[-1]["bits"].items()}, flush=True)


if __name__ == "__main__":
    main()
