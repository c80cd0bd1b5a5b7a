"""Direct samples in parallel: passes against positions, and time against our own cached sampling.

A MADE on handwritten digits (64 values of 17 levels, and as real numbers), a transformer flow on them (64 patches of
one value), and a causal transformer on smooth paths of 256 values, trained here for a minute each. Passes are the mean
over samples (of the flow, over blocks too); each position takes one by the sequential way. Times are CPU time for one
batch of 1 and one of 512 samples (the transformers: 32), of both in turn.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from common import Figure, Report, main, settle_heap
from ncml import VESDE, AutoregressiveDensity, Lattice, NCMLObjective
from ncml.cli.demo_paths import PathsSettings, kernel
from ncml.densities import MADE, CausalTransformer, TransformerFlow
from ncml.sampling import ParallelSamples, sample_in_parallel
from ncml.training import fit

Density = AutoregressiveDensity | TransformerFlow
PROCESS = VESDE.linear(1.0)
LENGTH = 256
NOISES = (0.0, 0.1)


def digits(levels: bool) -> Tensor:
    """Scikit-learn's digits, on their lattice or dequantised."""
    from sklearn.datasets import load_digits

    values = torch.from_numpy(load_digits().data).float()
    spread = 0.0 if levels else torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return (values + spread) / 8.0 - 1.0


def paths(n: int) -> Tensor:
    """Smooth paths of a Gaussian process, as in ``ncml demo``."""
    covariance = kernel(PathsSettings(length=LENGTH))
    noise = torch.randn(n, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (noise @ torch.linalg.cholesky(covariance).T).float().unsqueeze(2)


def problems(quick: bool) -> dict[str, tuple[Density, int]]:
    """Trained densities, and the larger of the two batches."""
    torch.manual_seed(0)
    steps = 2 if quick else 1000
    trained: dict[str, tuple[Density, int]] = {}
    for name, lattice in (("MADE, 64 levels of digits", Lattice(17)), ("MADE, 64 real values of digits", None)):
        made = MADE((64,), PROCESS, lattice=lattice, hidden=(256, 256), components=4)
        fit(made, NCMLObjective(PROCESS), digits(lattice is not None), steps=steps, batch_size=128, learning_rate=2e-3)
        trained[name] = made, 16 if quick else 512
    few = 2 if quick else 400
    flow = TransformerFlow((64, 1), PROCESS, patch=1, width=32, blocks=4, layers=1, heads=4)
    fit(flow, NCMLObjective(PROCESS), digits(False).unsqueeze(2), steps=few, batch_size=64, learning_rate=2e-3)
    trained["transformer flow, 64 real values of digits"] = flow, 4 if quick else 32
    model = CausalTransformer((LENGTH, 1), PROCESS, width=32, layers=2, heads=4, components=4)
    fit(model, NCMLObjective(PROCESS), paths(2000), steps=few, batch_size=16, learning_rate=4e-3)
    trained[f"causal transformer, paths of {LENGTH} values"] = model, 4 if quick else 32
    return trained


def noise_of(density: Density, n: int) -> Tensor:
    """What n samples are drawn from."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(density, TransformerFlow):
        return torch.randn(n, *density.event_shape, generator=generator)
    return density.draw_noise(n, generator=generator)


def in_parallel(density: Density, n: int, t: float, noise: Tensor) -> ParallelSamples:
    """Samples by passes over all positions."""
    if isinstance(density, TransformerFlow):
        return density.sample_in_parallel(n, t, noise=noise)
    return sample_in_parallel(density, n, t, noise=noise)


def run(args: argparse.Namespace) -> Report:
    """Passes, then times."""
    report = Report("parallel")
    settle_heap()
    for name, (density, many) in problems(args.quick).items():
        density.eval()
        blocks = len(density.blocks) if isinstance(density, TransformerFlow) else 1
        dims = math.prod(density.event_shape)
        for t in NOISES:
            noise = noise_of(density, many)
            passes = float(in_parallel(density, many, t, noise).sweeps.double().mean()) / blocks
            figure = f"{name}, noise {t:g}: positions / passes"
            report.figures.append(Figure(figure, dims / passes, 3.0, at_least=True, note=f"{passes:.1f} of {dims}"))
            for n in (1, many):
                rows, label = noise[:n], f"{name}, noise {t:g}, batch {n}"
                report.time(
                    {
                        f"parallel, {label}": lambda d=density, n=n, t=t, r=rows: in_parallel(d, n, t, r),
                        f"cached, {label}": lambda d=density, n=n, t=t, r=rows: d.sample(n, t, noise=r),
                    },
                    1 if args.quick else 5,
                )
                report.ratio(f"{label}: time in parallel / cached", f"parallel, {label}", f"cached, {label}")
    return report


if __name__ == "__main__":
    main(run, __doc__)
