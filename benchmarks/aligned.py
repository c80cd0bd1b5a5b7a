"""What a fitted grid and scores at the likeliest noise level are worth: errors against the exact flow, not times.

Grids: DDIM with 5, 10 and 20 steps on the mixtures of frontier.py, its error on a grid of ``fit_grid`` over the least
of the other grids. Alignment: mixtures of eight modes, ten steps of DDIM from noise 1 to .02, with all of the noise at
the start and with a fifth of it missing; the error against the exact flow from the level that the samples have.
"""

from __future__ import annotations

import argparse

import torch

from common import Figure, Report, main
from frontier import GRIDS, STOP, mixture, problems
from ncml import VESDE
from ncml.density import AlignedTarget
from ncml.sampling import DDIM, MultistepODE, fit_grid

EXACT = {"grid": "log-snr", "order": 4}


def grids(report: Report, quick: bool) -> None:
    """The fitted grid over the best of the others."""
    for name, (density, x, _) in problems(quick, "mixture").items():
        process = density.process
        stop = float(process.time_at(STOP * float(process.sigma(process.T))))
        exact = MultistepODE(20 if quick else 500, **EXACT)(density, x, None, stop)
        start = density.sample(64, process.T, generator=torch.Generator().manual_seed(5))
        for steps in (5, 10, 20):
            tried = {grid: DDIM(steps, grid=grid) for grid in GRIDS}
            tried["fitted"] = DDIM(grid=fit_grid(density, start, steps, None, stop))
            error = {g: float((s(density, x, None, stop) - exact).square().mean().sqrt()) for g, s in tried.items()}
            ratio = error["fitted"] / min(error[grid] for grid in GRIDS)
            report.figures.append(Figure(f"{name}, {steps} steps: fitted grid / the best of the others", ratio, 1.0))


def alignment(report: Report, quick: bool) -> None:
    """Errors with and without."""
    for dims in (2, 16, 64, 512):
        density = mixture(VESDE.linear(5.0), dims, 0.2, 1)[0]
        generator = torch.Generator().manual_seed(0)
        data = density.sample(20 if quick else 200, 0.0, generator=generator)
        z = torch.randn(data.shape, generator=generator, dtype=data.dtype)
        for noise in (1.0, 0.8):
            x = data + noise * z
            exact = MultistepODE(20 if quick else 300, **EXACT)(density, x, noise, STOP)
            for name, target in (("plain", density), ("aligned", AlignedTarget(density))):
                error = float((DDIM(10)(target, x, 1.0, STOP) - exact).square().mean().sqrt())
                figure = f"{dims} dimensions, {noise:g} of the noise at the start: error, {name}"
                report.figures.append(Figure(figure, error, unit="data units"))


def run(args: argparse.Namespace) -> Report:
    """Both."""
    report = Report("aligned")
    grids(report, args.quick)
    alignment(report, args.quick)
    return report


if __name__ == "__main__":
    main(run, __doc__)
