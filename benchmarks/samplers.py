"""One step of the reverse SDE: 4096 x 64 and 8 x 64, closed-form score of a Gaussian.

Peers: the Euler-Maruyama predictor of score_sde_pytorch (4-D tensors only) and azula's Ito sampler, both
given the cheapest form of the same score. They are read from checkouts; rows of missing ones are skipped.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor

from common import Report, main, optional, settle_heap, without_grad
from ncml import VPSDE
from ncml.densities import GaussianDensity
from ncml.sampling import AnnealedLangevin, EulerMaruyama, HeunODE

D, STEPS, START, STOP, VARIANCE = 64, 50, 1.0, 1e-3, 0.25


def score_sde_steps(checkout: str | None, batch: int) -> Callable[[], object] | None:
    """``STEPS`` Euler-Maruyama steps of score_sde_pytorch."""
    if not checkout:
        return None
    # Its sampling.py imports its models, and with them CUDA extensions, for three names that are not needed.
    models, utils = types.ModuleType("models"), types.ModuleType("models.utils")
    utils.from_flattened_numpy = utils.to_flattened_numpy = utils.get_score_fn = models.utils = utils
    sys.modules.update({"models": models, "models.utils": utils})
    sde_lib, sampling = optional("sde_lib", checkout), optional("sampling", checkout)
    if not (sde_lib and sampling):
        return None
    sde = sde_lib.VPSDE(N=STEPS)

    def score(x: Tensor, t: Tensor) -> Tensor:
        log_alpha = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
        return -x / (1.0 - (1.0 - VARIANCE) * torch.exp(2.0 * log_alpha))[:, None, None, None]

    predictor = sampling.EulerMaruyamaPredictor(sde, score)
    start, times = torch.randn(batch, D, 1, 1), torch.linspace(START, STOP, STEPS).tolist()

    def steps() -> Tensor:
        x = start
        for t in times:
            x, _ = predictor.update_fn(x, torch.full((batch,), t))
        return x

    return without_grad(steps)


def azula_steps(checkout: str | None, batch: int) -> Callable[[], object] | None:
    """``STEPS`` steps of azula's Ito sampler."""
    azula = checkout and optional("azula", checkout)
    if not azula:
        return None

    class Posterior(azula.denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = azula.noise.VPSchedule()

        def forward(self, x: Tensor, t: Tensor, **_: object) -> object:
            alpha, sigma = self.schedule(t)
            return azula.denoise.DiracPosterior(mean=alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x)

    sampler = azula.sample.ItoSampler(Posterior(), steps=STEPS, silent=True, start=START, stop=STOP)
    x = torch.randn(batch, D)
    return lambda: sampler(x)


def compare(report: Report, args: argparse.Namespace, batch: int, label: str) -> None:
    """Time all samplers at one batch size."""
    process = VPSDE()
    density = GaussianDensity(process, torch.zeros(D), VARIANCE**0.5)
    x, z, t = torch.randn(batch, D), torch.empty(batch, D), torch.full((batch,), 0.5)
    samplers = {
        "Euler-Maruyama": EulerMaruyama(steps=STEPS, grid="uniform"),
        "Heun": HeunODE(steps=STEPS, grid="uniform"),
        "Langevin": AnnealedLangevin(steps=STEPS, grid="uniform", moves=1),
    }
    sides: dict[str, Callable[[], object]] = {
        name: lambda s=s: s(density, process, x, START, STOP) for name, s in samplers.items()
    }
    peers = {"score_sde": score_sde_steps(args.score_sde, batch), "azula Ito": azula_steps(args.azula, batch)}
    sides.update({name: steps for name, steps in peers.items() if steps})
    sides["score"] = without_grad(lambda: repeat(lambda: density.forward_score(x, t)))
    sides["normals"] = lambda: repeat(z.normal_)
    report.time({f"{name}, {label}": side for name, side in sides.items()}, 5 if args.quick else 41)


def repeat(call: Callable[[], object]) -> None:
    """``STEPS`` calls, whose results are dropped at once."""
    for _ in range(STEPS):
        call()


def run(args: argparse.Namespace) -> Report:
    """Measure a large batch with the heap as it comes and settled, and a small one."""
    report = Report("samplers")
    large, settled, small = f"4096 x {D}", f"4096 x {D}, settled heap", f"8 x {D}"
    compare(report, args, 4096, large)
    settle_heap()
    compare(report, args, 4096, settled)
    compare(report, args, 8, small)
    for label, score_sde, azula in ((large, 0.55, 0.7), (settled, None, None), (small, None, None)):
        em = f"Euler-Maruyama, {label}"
        report.ratio(f"Euler-Maruyama step / score_sde's, {label}", em, f"score_sde, {label}", score_sde)
        report.ratio(f"Euler-Maruyama step / azula's Ito, {label}", em, f"azula Ito, {label}", azula)
        report.ratio(f"normals alone / score_sde's step, {label}", f"normals, {label}", f"score_sde, {label}")
    for label, target in ((settled, 100.0), (small, 30.0)):
        score, normals = f"score, {label}", f"normals, {label}"
        for name, scores in (("Euler-Maruyama", 1), ("Heun", 2), ("Langevin", 1)):
            noise = 0 if name == "Heun" else 1
            report.figure(
                f"{name} step above its score and normals, {label}",
                (f"{name}, {label}", score, normals),
                lambda step, s, n, scores=scores, noise=noise: 1e6 * (step - scores * s - noise * n) / STEPS,
                target,
                unit="us",
            )
    return report


if __name__ == "__main__":
    main(run, __doc__)
