"""One step of the reverse SDE: 4096 x 64 and 8 x 64, closed-form score of a Gaussian.

Peers: the Euler-Maruyama predictor of score_sde_pytorch (4-D tensors only) and azula's Ito sampler, both
given the cheapest form of the same score. ``--before`` is a checkout of ncml 0.1.0, whose samplers run in turn
with these, in a process of their own. All are read from checkouts; rows of missing ones are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from common import Figure, Remote, Report, main, optional, score_sde_modules, settle_heap, without_grad
from ncml import VPSDE
from ncml.densities import GaussianDensity
from ncml.density import gradient
from ncml.sampling import AdaptiveHeun, AnnealedLangevin, DPMSolver2M, EulerMaruyama, HeunODE, MetropolisLangevin

HERE = Path(__file__).parent
SAMPLERS_BEFORE = ("Euler-Maruyama", "Heun", "Langevin")
D, STEPS, START, STOP, VARIANCE = 64, 50, 1.0, 1e-3, 0.25


def score_sde_steps(checkout: str | None, batch: int) -> Callable[[], object] | None:
    """``STEPS`` Euler-Maruyama steps of score_sde_pytorch."""
    modules = score_sde_modules(checkout)
    if modules is None:
        return None
    sde_lib, sampling = modules
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


@contextlib.contextmanager
def samplers_before(checkout: str | None, batch: int) -> Iterator[dict[str, Remote]]:
    """The samplers of ncml 0.1.0, with their score and normals, in another process."""
    if not checkout:
        print("ncml 0.1.0: no checkout given (--before); its rows are skipped", file=sys.stderr)
        yield {}
        return
    source = Path(checkout) / "src"
    if not (source / "ncml" / "sampling" / "base.py").exists():
        sys.exit(f"--before: got {checkout}; expected a checkout of ncml 0.1.0, with src/ncml/sampling/base.py")
    command = [sys.executable, str(HERE / "before" / "samplers.py"), str(batch), str(D), str(STEPS)]
    path = os.pathsep.join([str(source), str(HERE)])
    with subprocess.Popen(
        [*command, str(START), str(STOP), str(VARIANCE)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield {name: Remote(process, name) for name in (*SAMPLERS_BEFORE, "score", "normals")}
        assert process.stdin is not None
        process.stdin.close()  # it reads to the end


def compare(report: Report, args: argparse.Namespace, batch: int, label: str, before: bool = False) -> None:
    """Time all samplers at one batch size."""
    density = GaussianDensity(VPSDE(), torch.zeros(D), VARIANCE**0.5)
    x, z, t, u = torch.randn(batch, D), torch.empty(batch, D), torch.full((batch,), 0.5), torch.empty(batch)
    samplers = {
        "Euler-Maruyama": EulerMaruyama(steps=STEPS, grid="uniform"),
        "Heun": HeunODE(steps=STEPS, grid="uniform"),
        "Langevin": AnnealedLangevin(steps=STEPS, grid="uniform", moves=1),
        "DPM-Solver++": DPMSolver2M(steps=STEPS),
        "Metropolis": MetropolisLangevin(steps=STEPS, grid="uniform", moves=1),
        "adaptive Heun": AdaptiveHeun(),
    }
    sides: dict[str, Callable[[], object]] = {
        name: lambda s=s: s(density, x, START, STOP) for name, s in samplers.items()
    }
    peers = {"score_sde": score_sde_steps(args.score_sde, batch), "azula Ito": azula_steps(args.azula, batch)}
    sides.update({name: steps for name, steps in peers.items() if steps})
    sides["score"] = without_grad(lambda: repeat(lambda: density.forward_score(x, t)))
    sides["density and score"] = lambda: repeat(lambda: gradient(density, x, t))
    sides["normals"] = lambda: repeat(z.normal_)
    sides["uniforms"] = lambda: repeat(u.uniform_)
    with samplers_before(args.before, batch) if before else contextlib.nullcontext({}) as remote:
        sides.update({f"{name} of 0.1.0": side for name, side in remote.items()})
        report.time({f"{name}, {label}": side for name, side in sides.items()}, 5 if args.quick else 41)
    if before:
        result = samplers["adaptive Heun"].refine(density, x, START, STOP, path=True)
        overheads(report, label, tries=len(result.path) - 1, scores=result.evaluations / batch)


def repeat(call: Callable[[], object]) -> None:
    """``STEPS`` calls, whose results are dropped at once."""
    for _ in range(STEPS):
        call()


def overheads(report: Report, label: str, tries: int, scores: float) -> None:
    """What a step costs above its scores and its random numbers, and against 0.1.0."""
    target = 30.0 if label.startswith("8 ") else 100.0
    parts = {  # scores, log-densities with score, normals and uniforms of a step
        "Euler-Maruyama": (1, 0, 1, 0),
        "Heun": (2, 0, 0, 0),
        "Langevin": (1, 0, 1, 0),
        "DPM-Solver++": (1, 0, 0, 0),
        "Metropolis": (0, 2, 1, 1),
    }
    measured = ("score", "density and score", "normals", "uniforms")
    for name, counts in parts.items():
        report.figure(
            f"{name} step above its score and normals, {label}",
            [f"{side}, {label}" for side in (name, *measured)],
            lambda step, *rest, n=counts: 1e6 * (step - sum(c * s for c, s in zip(n, rest, strict=True))) / STEPS,
            target if name in SAMPLERS_BEFORE else None,
            unit="us",
        )
        if name not in SAMPLERS_BEFORE:
            continue
        now = report.figures[-1]
        report.figure(
            f"{name} step of 0.1.0 above its score and normals, {label}",
            [f"{side} of 0.1.0, {label}" for side in (name, "score", "normals")],
            lambda step, s, n, counts=counts: 1e6 * (step - counts[0] * s - counts[2] * n) / STEPS,
            unit="us",
        )
        then = report.figures[-1]
        ratio = now.value / then.value if now.value is not None and then.value is not None else None
        report.figures.append(Figure(f"{name} step above these / 0.1.0's, {label}", ratio, 1.0, note=then.note))
    report.figure(
        f"adaptive Heun, a step that is tried, above its two scores, {label}",
        (f"adaptive Heun, {label}", f"score, {label}"),
        lambda step, s: 1e6 * (step - scores * s / STEPS) / tries,
        unit="us",
    )


def run(args: argparse.Namespace) -> Report:
    """Measure a large batch with the heap as it comes and settled, and a small one."""
    report = Report("samplers")
    large, settled, small = f"4096 x {D}", f"4096 x {D}, settled heap", f"8 x {D}"
    compare(report, args, 4096, large)
    settle_heap()
    compare(report, args, 4096, settled, before=True)
    compare(report, args, 8, small, before=True)
    for label, score_sde, azula in ((large, 0.55, 0.7), (settled, None, None), (small, None, None)):
        em = f"Euler-Maruyama, {label}"
        report.ratio(f"Euler-Maruyama step / score_sde's, {label}", em, f"score_sde, {label}", score_sde)
        report.ratio(f"Euler-Maruyama step / azula's Ito, {label}", em, f"azula Ito, {label}", azula)
        report.ratio(f"normals alone / score_sde's step, {label}", f"normals, {label}", f"score_sde, {label}")
    return report


if __name__ == "__main__":
    main(run, __doc__)
