"""What the checks of the public calls cost: share of a forward and backward pass of MADE 2x128, D = 64, batch 512.

The checks are timed on a density whose ``forward`` costs nothing: what remains of ``log_prob`` above the call
itself, and of the objective above its draws and its arithmetic, written out by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

import ncml
from common import Figure, Report, main, settle_heap, with_backward, without_grad
from ncml import VPSDE, Lattice, NCMLObjective, NoiseConditionalDensity
from ncml.densities import MADE, MAF
from ncml.objective import UniformTimes

D, BATCH, HIDDEN, COMPONENTS = 64, 512, (128, 128), 4
TARGET = 2.0  # per cent
PACKAGE = str(Path(ncml.__file__).parent)


def free(density: NoiseConditionalDensity) -> NoiseConditionalDensity:
    """The density, with a ``forward`` that has its result already."""
    result = torch.zeros(BATCH)
    density.forward = lambda x, t, context=None, *, edges=True: result
    return density


def bare_objective(density: NoiseConditionalDensity, process: VPSDE, x: Tensor) -> Callable[[], Tensor]:
    """What an objective cannot leave out: draws, the perturbed data, the call, the mean."""
    times = UniformTimes()

    def side() -> Tensor:
        t, weight = times(BATCH, process, dtype=x.dtype)
        z = torch.randn(x.shape)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        x_t = torch.where((t == 0)[:, None], x, alpha * x + sigma * z)
        return (weight * -density(x_t, t, None)).sum() / BATCH

    return side


def python_calls(call: Callable[[], object]) -> int:
    """How many functions of the package a call enters."""
    count = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def run(args: argparse.Namespace) -> Report:
    """Measure on lattice and on continuous data."""
    report = Report("checks")
    settle_heap()
    process = VPSDE.at_noise(0.1)
    objective = NCMLObjective(process)
    x, t = Lattice(256).quantize(2.0 * torch.rand(BATCH, D) - 1.0), torch.zeros(BATCH)
    for data, lattice in {"lattice": Lattice(256), "continuous": None}.items():

        def made(lattice: Lattice | None = lattice) -> MADE:
            return MADE((D,), process, lattice=lattice, hidden=HIDDEN, components=COMPONENTS)

        real, empty = made(), free(made())
        sides: dict[str, Callable[[], object]] = {
            "forward and backward": with_backward(real, lambda d=real: d(x, t)),
            "log_prob": without_grad(lambda d=empty: d.log_prob(x, t)),
            "call": without_grad(lambda d=empty: d(x, t)),
            "objective": without_grad(lambda d=empty: objective(d, x)),
            "bare objective": without_grad(bare_objective(empty, process, x)),
        }
        report.time({f"{name}, {data}": side for name, side in sides.items()}, 5 if args.quick else 41)
        for what, bare in (("log_prob", "call"), ("objective", "bare objective")):
            report.figure(
                f"checks of {what} / forward and backward, MADE 2x128, {data}",
                [f"{name}, {data}" for name in (what, bare, "forward and backward")],
                lambda checked, bare, step: 100.0 * (checked - bare) / step,
                TARGET,
                unit="%",
            )
    flow = free(MAF((D,), process, hidden=HIDDEN))
    for what, call in {"objective": lambda: objective(flow, x), "log_prob": lambda: flow.log_prob(x, t)}.items():
        report.figures.append(Figure(f"functions of ncml entered by one call of {what}", python_calls(call), unit=""))
    return report


if __name__ == "__main__":
    main(run, __doc__)
