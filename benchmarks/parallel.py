"""Direct samples in parallel: passes against positions, and time against our own cached sampling.

A MADE on handwritten digits (64 values of 17 levels, and as real numbers), and a causal transformer on smooth paths of
256 values, trained here for a minute each. Passes are the mean over samples; each position takes one by the sequential
way. Times are CPU time for one batch of 1 and one of 512 samples (the transformer: 32), of both in turn.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from common import Figure, Report, main, settle_heap
from ncml import VESDE, AutoregressiveDensity, Lattice, NCMLObjective
from ncml.densities import MADE, CausalTransformer
from ncml.sampling import sample_in_parallel
from ncml.training import fit

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
    i = torch.arange(LENGTH, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((i[:, None] - i) / 6.0) ** 2) + 1e-4 * torch.eye(LENGTH, dtype=torch.float64)
    noise = torch.randn(n, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (noise @ torch.linalg.cholesky(kernel).T).float().unsqueeze(2)


def problems(quick: bool) -> dict[str, tuple[AutoregressiveDensity, int]]:
    """Trained densities, and the larger of the two batches."""
    torch.manual_seed(0)
    steps = 2 if quick else 1000
    trained: dict[str, tuple[AutoregressiveDensity, int]] = {}
    for name, lattice in (("MADE, 64 levels of digits", Lattice(17)), ("MADE, 64 real values of digits", None)):
        made = MADE((64,), PROCESS, lattice=lattice, hidden=(256, 256), components=4)
        fit(made, NCMLObjective(PROCESS), digits(lattice is not None), steps=steps, batch_size=128, learning_rate=2e-3)
        trained[name] = made, 16 if quick else 512
    model = CausalTransformer((LENGTH, 1), PROCESS, width=32, layers=2, heads=4, components=4)
    few = 2 if quick else 400
    fit(model, NCMLObjective(PROCESS), paths(2000), steps=few, batch_size=16, learning_rate=4e-3)
    trained[f"causal transformer, paths of {LENGTH} values"] = model, 4 if quick else 32
    return trained


def run(args: argparse.Namespace) -> Report:
    """Passes, then times."""
    report = Report("parallel")
    settle_heap()
    for name, (density, many) in problems(args.quick).items():
        density.eval()
        dims = len(density.order)
        for t in NOISES:
            noise = density.draw_noise(many, generator=torch.Generator().manual_seed(1))
            drawn = sample_in_parallel(density, many, t, noise=noise)
            passes = float(drawn.sweeps.double().mean())
            figure = f"{name}, noise {t:g}: positions / passes"
            report.figures.append(Figure(figure, dims / passes, 3.0, at_least=True, note=f"{passes:.1f} of {dims}"))
            for n in (1, many):
                rows, label = noise[:n], f"{name}, noise {t:g}, batch {n}"
                report.time(
                    {
                        f"parallel, {label}": lambda d=density, n=n, t=t, r=rows: sample_in_parallel(d, n, t, noise=r),
                        f"cached, {label}": lambda d=density, n=n, t=t, r=rows: d.sample(n, t, noise=r),
                    },
                    1 if args.quick else 5,
                )
                report.ratio(f"{label}: time in parallel / cached", f"parallel, {label}", f"cached, {label}")
    return report


if __name__ == "__main__":
    main(run, __doc__)
