"""The samplers of ncml 0.1.0, run and timed when ``../samplers.py --before CHECKOUT`` asks for it.

Started by that script with the checkout's ``src`` first on the path; the calls are those of 0.1.0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from common import serve, settle_heap, without_grad
from ncml import VPSDE
from ncml.densities import GaussianDensity
from ncml.sampling import AnnealedLangevin, EulerMaruyama, HeunODE


def main(batch: int, dims: int, steps: int, start: float, stop: float, variance: float) -> None:
    """Serve the sides of one batch size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settle_heap()
    process = VPSDE()
    density = GaussianDensity(process, torch.zeros(dims), variance**0.5)
    x, z, t = torch.randn(batch, dims), torch.empty(batch, dims), torch.full((batch,), 0.5)
    samplers = {
        "Euler-Maruyama": EulerMaruyama(steps=steps, grid="uniform"),
        "Heun": HeunODE(steps=steps, grid="uniform"),
        "Langevin": AnnealedLangevin(steps=steps, grid="uniform", moves=1),
    }
    sides = {name: lambda s=s: s(density, process, x, start, stop) for name, s in samplers.items()}

    def repeat(call: Callable[[], object]) -> None:
        for _ in range(steps):
            call()

    sides["score"] = without_grad(lambda: repeat(lambda: density.forward_score(x, t)))
    sides["normals"] = lambda: repeat(z.normal_)
    serve(sides)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *map(float, sys.argv[4:]))
