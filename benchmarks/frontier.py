"""Error against score evaluations: which solver, and on which grid, comes closest to the exact flow?

Every solver refines the same samples from T to the same time above 0, with 5, 10, 20 and 50 scores per sample, on
three grids of ``ncml.sampling.grids``, which peers take as well. The error is the root mean square distance from where
the exact probability flow leads these samples, in standard deviations of the data: nothing is drawn, so that no noise
of sampling is in it, and the distance of the distributions (W2) is at most that. Problems: mixtures in closed form, and
a MADE and a causal transformer, trained here. A ratio is the best of ncml over the best of all peers.

For samplers that draw, the relative error of the variance on Gaussian data is exact: they are linear there, and what
they make of the start and of each normal that they draw is read off, without sampling.

Peers: azula and the schedulers of diffusers, as installed (``pip install --no-deps azula diffusers``, with what they
import but torchvision), and score_sde_pytorch's flow, from a checkout: an adaptive Runge-Kutta method, with the
tolerance that spends the most within the budget, on times of its own. Missing ones are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import RESULTS, Figure, Report, environment, optional, parser, score_sde_modules, show
from ncml import VESDE, VPSDE, GaussianProcess, NCMLObjective, NoiseConditionalDensity
from ncml.densities import MADE, CausalTransformer, GaussianDensity, GaussianMixtureDensity
from ncml.density import Target
from ncml.sampling import (
    DDIM,
    ERSDE,
    Ancestral,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolverSDE,
    EulerMaruyama,
    GridSampler,
    HeunODE,
    MultistepODE,
)
from ncml.sampling.grids import Given, checked_times

EVALUATIONS = (5, 10, 20, 50)
GRIDS = ("quadratic", "log-snr", "karras")
STOP = 0.02
"""Noise at which all stop, relative to that at T."""

QUICK = 10
"""Steps of the reference in a quick run, which takes one grid and one number of scores."""

Solver = Callable[[Callable[[Tensor, float], Tensor], GaussianProcess, Tensor, list[float]], Tensor]
"""From the denoiser, the process, the start and the times to the end."""


Problem = tuple[NoiseConditionalDensity, Tensor, float]
"""A density, samples at T, and the standard deviation of the data."""


def mixture(process: GaussianProcess, dims: int, std: float, rows: int) -> Problem:
    """Eight modes, away from each other, in closed form."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, dims, dtype=torch.float64, generator=generator)
    density = GaussianMixtureDensity(process, torch.ones(8, dtype=torch.float64), means, std)
    return density, density.sample(rows, process.T, generator=generator), float((means.var(0).mean() + std**2).sqrt())


def trained(density: NoiseConditionalDensity, x: Tensor, steps: int, rows: int) -> Problem:
    """A network after a short training by the paper's objective, in float64 then."""
    generator = torch.Generator().manual_seed(0)
    objective = NCMLObjective(density.process)
    optimizer = torch.optim.Adam(density.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = objective(density, x[torch.randint(len(x), (128,), generator=generator)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    density = density.double().requires_grad_(False)
    start = density.process.perturb(x[:rows].double(), density.process.T, generator=generator)
    return density, start, float(x.var(0).mean().sqrt())


def digits() -> Tensor:
    """Handwritten digits of 64 values in [-1, 1], dequantised."""
    from sklearn.datasets import load_digits

    values = torch.from_numpy(load_digits().data).float()
    generator = torch.Generator().manual_seed(1)
    return (values + torch.rand(values.shape, generator=generator)) / 8.5 - 1.0


def network(kind: str) -> Callable[[int, int], Problem]:
    """A network on digits, to be trained for so many steps, with so many samples to refine."""

    def build(steps: int, rows: int) -> Problem:
        torch.manual_seed(0)
        x, process = digits(), VESDE.linear(1.0)
        if kind == "made":
            return trained(MADE((64,), process, hidden=(128,), components=4), x, steps, rows)
        density = CausalTransformer((8, 8), process, width=32, layers=2, heads=4, components=4)
        return trained(density, x.reshape(-1, 8, 8), steps, rows)

    return build


def problems(quick: bool, only: str) -> dict[str, Problem]:
    """Closed forms under narrow and wide ladders, and two networks; those whose name has ``only`` in it."""
    rows, steps = (16, 2) if quick else (64, 300)
    every: dict[str, Callable[[], Problem]] = {
        "mixture in 2 dimensions, VE to 5": lambda: mixture(VESDE.linear(5.0), 2, 0.2, rows),
        "mixture in 16 dimensions, VE to 5": lambda: mixture(VESDE.linear(5.0), 16, 0.2, rows),
        "mixture in 16 dimensions, VP to 0.5": lambda: mixture(VPSDE.at_noise(0.5), 16, 0.2, rows),
        "mixture in 16 dimensions, VP, T = 1": lambda: mixture(VPSDE(), 16, 0.2, rows),
        "MADE on 8x8 digits, VE to 1": lambda: network("made")(steps, rows // 4),
        "causal transformer on 8x8 digits, VE to 1": lambda: network("transformer")(steps, rows // 4),
    }
    return {name: build() for name, build in every.items() if only in name}


# Solvers.


def ours() -> dict[str, tuple[GridSampler, int]]:
    """The samplers without noise, and their scores per step."""
    kinds = [(order, True, of) for of in ("data", "noise", "flow") for order in (2, 3, 4)]
    kinds += [(1, True, "flow"), (2, False, "flow"), (3, False, "data")]
    several = {
        f"MultistepODE({order}, {corrector}, {of})": MultistepODE(order=order, corrector=corrector, of=of)
        for order, corrector, of in kinds
    }
    several |= {
        f"MultistepODE({order}, {corrector}, {of}, lower final)": MultistepODE(
            order=order, corrector=corrector, of=of, lower_final=True
        )
        for order, corrector, of in (
            (2, False, "data"),
            (2, True, "data"),
            (3, True, "data"),
            (2, True, "flow"),
            (3, True, "flow"),
        )
    }
    single = {
        "DDIM": DDIM(),
        "DPMSolver2M": DPMSolver2M(),
        "DPMSolver2M(lower final)": DPMSolver2M(lower_final=True),
        **several,
    }
    return {**{name: (sampler, 1) for name, sampler in single.items()}, "HeunODE": (HeunODE(), 2)}


def azula_solvers(azula: Any) -> dict[str, tuple[Solver, int]]:
    """azula's samplers on given times."""

    def solver(kind: type, **settings: Any) -> Solver:
        def run(denoise: Any, process: GaussianProcess, x: Tensor, times: list[float]) -> Tensor:
            class Posterior(azula.denoise.Denoiser):
                def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
                    return process.alpha(t), process.sigma(t)

                def forward(self, x: Tensor, t: Tensor, **_: object) -> object:
                    return azula.denoise.DiracPosterior(mean=denoise(x, float(t)))

            class OnTimes(kind):
                timesteps = property(lambda self: torch.tensor(times, dtype=torch.float64))

            return OnTimes(Posterior(), steps=len(times) - 1, silent=True, **settings)(x)

        return run

    sample = azula.sample
    several = {
        f"azula {name}({order})": (solver(getattr(sample, name), order=order), 1)
        for name in ("zABSampler", "vABSampler", "xEABSampler", "REABSampler")
        for order in (2, 3)
        if hasattr(sample, name)
    }
    return {
        **several,
        "azula DDIMSampler": (solver(sample.DDIMSampler), 1),
        "azula HeunSampler": (solver(sample.HeunSampler), 2),
    }


def diffusers_solvers(diffusers: Any) -> dict[str, tuple[Solver, int]]:
    """Schedulers of diffusers on given noise levels; they keep samples scaled to unit variance at large noise."""

    def solver(kind: type, **settings: Any) -> Solver:
        def run(denoise: Any, process: GaussianProcess, x: Tensor, times: list[float]) -> Tensor:
            ratios = [float(process.sigma(t) / process.alpha(t)) for t in times]
            scheduler = kind(prediction_type="sample", final_sigmas_type="sigma_min", **settings)
            scheduler.set_timesteps(len(times) - 1)
            scheduler.sigmas = torch.tensor(ratios, dtype=torch.float64)
            scheduler.timesteps = torch.arange(len(times) - 1)
            y = x / (float(process.alpha(times[0])) * math.hypot(1.0, ratios[0]))
            for i, t in enumerate(times[:-1]):
                clean = denoise(y * math.hypot(1.0, ratios[i]) * float(process.alpha(t)), t)
                scheduler._step_index = i
                y = scheduler.step(clean, i, y).prev_sample
            return y.to(x.dtype) * math.hypot(1.0, ratios[-1]) * float(process.alpha(times[-1]))

        return run

    multistep, unipc = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
    return {
        "diffusers DPMSolverMultistep(2)": (solver(multistep, solver_order=2), 1),
        "diffusers DPMSolverMultistep(3)": (solver(multistep, solver_order=3), 1),
        "diffusers UniPC(2)": (solver(unipc, solver_order=2), 1),
        "diffusers UniPC(3)": (solver(unipc, solver_order=3), 1),
    }


def score_sde_solver(modules: tuple[Any, Any]) -> dict[str, tuple[Solver, int]]:
    """The flow of score_sde_pytorch, whose tensors are 4-D, and float32 between scores."""
    sde_lib, sampling = modules

    def run(denoise: Any, process: GaussianProcess, x: Tensor, times: list[float]) -> Tensor:
        shape = (len(x), math.prod(x.shape[1:]), 1, 1)

        class Process(sde_lib.SDE):
            T = process.T

            def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                return x * float(process.drift_coefficient(t[0])), process.diffusion(t)

            marginal_prob = prior_sampling = prior_logp = None

        def score(y: Tensor, t: Tensor) -> Tensor:
            time, noisy = float(t[0]), y.to(x.dtype).reshape(x.shape)
            alpha, sigma = float(process.alpha(time)), float(process.sigma(time))
            return ((alpha * denoise(noisy, time) - noisy) / sigma**2).reshape(shape).to(y.dtype)

        best = x.new_full(x.shape, math.nan)
        for k in range(17):  # tolerances from 1 down; the first that spends too much ends the search
            rtol = 10.0 ** (-0.5 * k)
            solver = sampling.get_ode_sampler(
                Process(N=1), shape, lambda y: y, rtol=rtol, atol=rtol, eps=times[-1], device=x.device
            )
            y, spent = solver(score, x.reshape(shape))
            if spent > len(times) - 1:
                break
            best = y.to(x.dtype).reshape(x.shape)
        return best

    return {"score_sde RK45": (run, 1)}


# Measurement.


def errors(
    density: NoiseConditionalDensity, x: Tensor, scale: float, peers: dict[str, tuple[Solver, int]], fine: int
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Errors of every solver by grid and number of scores; and the distance of two references from each other."""
    process = density.process
    stop = float(process.time_at(STOP * float(process.sigma(process.T))))
    target, _ = Target(density).bound(x, process.T)

    def denoise(x: Tensor, t: float) -> Tensor:
        return target.denoise(x.clone(), t)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).double().square().mean().sqrt()) / scale

    table: dict[str, dict[str, list[float]]] = {}
    grids, counts = (GRIDS, EVALUATIONS) if fine > QUICK else (GRIDS[1:2], EVALUATIONS[:1])
    with target.evaluating(), torch.no_grad():
        exact = MultistepODE(2 * fine, "log-snr", order=4)(density, x, None, stop)
        other = HeunODE(fine, "karras")(density, x, None, stop)
        for grid in grids:
            for number, evaluations in enumerate(counts):
                results: dict[str, Tensor] = {}
                for name, (sampler, cost) in ours().items():
                    times = checked_times(grid, process, process.T, stop, max(evaluations // cost, 1))
                    settings = {**vars(sampler), "steps": len(times) - 1, "grid": Given(tuple(times))}
                    results[f"ncml {name}"] = type(sampler)(**settings)(density, x, None, stop)
                for name, (solver, cost) in peers.items():
                    times = checked_times(grid, process, process.T, stop, max(evaluations // cost, 1))
                    results[name] = solver(denoise, process, x.clone(), times)
                for name, y in results.items():
                    row = table.setdefault(name, {}).setdefault(grid, [math.nan] * len(EVALUATIONS))
                    row[number] = distance(y, exact)
    return table, distance(exact, other)


def best(table: dict[str, dict[str, list[float]]], number: int, ncml: bool) -> tuple[float, str]:
    """The least error, and whose it is."""
    rows = [
        (row[number], f"{name}, {grid}")
        for name, grids in table.items()
        if name.startswith("ncml ") == ncml
        for grid, row in grids.items()
        if math.isfinite(row[number])
    ]
    return min(rows, default=(math.nan, "none"))


class _Impulses(Target):
    """A target whose k-th normals are 1 in row k + 2, and 0 elsewhere."""

    drawn = 0

    def normal(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[self.drawn + 2 : self.drawn + 3] = 1.0
        self.drawn += 1
        return z


def variance_errors() -> dict[str, list[float]]:
    """Relative errors of the variance at the stop, on data N(0, 0.3^2) under VE to 5, by number of scores."""
    process, std = VESDE.linear(5.0), 0.3
    density = GaussianDensity(process, torch.zeros(1, dtype=torch.float64), std)
    stop = STOP * process.T
    samplers = (EulerMaruyama(), Ancestral(), DPMSolverSDE(), DPMSolver2MSDE(), ERSDE(order=1), ERSDE(order=3))
    found: dict[str, list[float]] = {}
    for sampler in samplers:
        name = f"{type(sampler).__name__}{f'({sampler.order})' if isinstance(sampler, ERSDE) else ''}"
        for steps in EVALUATIONS:
            start = torch.zeros(steps + 3, 1, dtype=torch.float64)
            start[1] = 1.0
            target, x = _Impulses(density).bound(start, process.T)
            settings = {**vars(sampler), "steps": steps, "grid": "log-snr"}
            with target.evaluating(), torch.no_grad():
                y = type(sampler)(**settings).run(target, x, process.T, stop, lambda t, x: None)[0].flatten()
            slope, kicks = float(y[1] - y[0]), y[2:] - y[0]
            variance = slope**2 * (std**2 + process.T**2) + float(kicks @ kicks)
            found.setdefault(name, []).append(variance / (std**2 + stop**2) - 1.0)
    return found


def run(args: argparse.Namespace) -> tuple[Report, dict[str, Any]]:
    """All problems; the ratios as figures with their target, everything else as data."""
    azula, diffusers = optional("azula.sample", args.azula), optional("diffusers")
    peers: dict[str, tuple[Solver, int]] = {}
    if azula:
        peers.update(azula_solvers(sys.modules["azula"]))
    if diffusers:
        try:
            peers.update(diffusers_solvers(diffusers))
        except (ImportError, RuntimeError) as error:
            print(f"diffusers: its schedulers cannot be imported ({error}); skipped", file=sys.stderr)
    if modules := score_sde_modules(args.score_sde):
        peers.update(score_sde_solver(modules))
    report, data = Report("frontier"), {}
    chosen = problems(args.quick, args.only)
    for name, (density, x, scale) in chosen.items():
        print(name, flush=True)
        table, gap = errors(density, x, scale, peers, QUICK if args.quick else 250)
        data[name] = {"reference gap": gap, "errors": table}
        for number, evaluations in enumerate(EVALUATIONS[:1] if args.quick else EVALUATIONS):
            own, theirs = best(table, number, True), best(table, number, False)
            # Where both are at the reference's own accuracy there is nothing to compare.
            ratio = max(own[0], 2.0 * gap) / max(theirs[0], 2.0 * gap) if math.isfinite(theirs[0]) else None
            note = f"{own[0]:.2e} by {own[1].removeprefix('ncml ')}" + (
                f"; {theirs[0]:.2e} by {theirs[1]}" if peers else ""
            )
            report.figures.append(Figure(f"{name}, {evaluations} scores: ncml / best peer", ratio, 1.02, note=note))
    return report, {"problems": data, "variance": variance_errors()}


def draw(data: dict[str, Any], path: Path) -> None:
    """The least error over grids of each family, problem by problem."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = max(2, math.ceil(len(data["problems"]) / 2))
    figure, axes = pyplot.subplots(2, columns, figsize=(4 * columns, 6.5), sharex=True, constrained_layout=True)
    families = ("ncml DDIM", "ncml HeunODE", "ncml DPMSolver2M", "ncml MultistepODE", "azula", "diffusers", "score_sde")
    for axis, (name, problem) in zip(axes.flat, data["problems"].items(), strict=False):
        for family in families:
            grids = [row for key, rows in problem["errors"].items() if key.startswith(family) for row in rows.values()]
            if grids:
                values = [min(filter(math.isfinite, column), default=math.nan) for column in zip(*grids, strict=True)]
                style = "-" if family.startswith("ncml") else "--"
                axis.loglog(EVALUATIONS, values, style, marker="o", ms=3, label=family.removeprefix("ncml "))
        axis.set_title(name, fontsize=9)
        axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axis.minorticks_off()
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("scores per sample")
    figure.supylabel("distance from the exact flow, in standard deviations of the data")
    figure.savefig(path, dpi=110)


def readable(name: str) -> str:
    """A solver's name as the page has it: MultistepODE(2, True, data), karras: order, corrector, polynomial, grid."""
    kind, _, rest = name.partition("(")
    if name.startswith("score_sde"):  # whose times are its own
        return name.partition(",")[0]
    if kind != "MultistepODE":
        return name.replace("(lower final)", ", lower final")
    settings, _, grid = rest.partition("), ")
    order, corrector, *others = settings.split(", ")
    without = [] if corrector == "True" else ["no corrector"]
    return ", ".join([kind, f"order {order}", *others[:1], *without, *others[1:], grid])


def page(figures: list[dict[str, Any]]) -> str:
    """The table of docs/howto/samplers.md, from the notes of the figures."""
    lines, last = ["| problem | scores | ncml | error | peer | error |", "| --- | --- | --- | --- | --- | --- |"], ""
    for figure in figures:
        problem, _, scores = figure["name"].removesuffix(" scores: ncml / best peer").rpartition(", ")
        cells = [part.partition(" by ") for part in figure["note"].split("; ")]
        shown = [cell for error, _, name in cells for cell in (readable(name), f"{float(error):.3g}")]
        lines.append(f"| {' | '.join([problem if problem != last else '', scores, *shown])} |")
        last = problem
    return "\n".join(lines) + "\n"


def variance_page(variance: dict[str, list[float]]) -> str:
    """The table of what samplers that draw make of the variance."""
    lines = [f"| scores | {' | '.join(map(str, EVALUATIONS))} |", "| --- |" + " --- |" * len(EVALUATIONS)]
    for name, errors in variance.items():
        kind, _, order = name.rstrip(")").partition("(")
        label = f"{{class}}`~ncml.sampling.{kind}`{f', order {order}' if order else ''}"
        lines.append(f"| {label} | {' | '.join(f'{error:+.2g}' for error in errors)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, show, and record with a picture; with --only, beside what has been recorded of the other problems."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="problems whose name has this in it")
    args = options.parse_args()
    warnings.filterwarnings("ignore", module="diffusers")
    report, data = run(args)
    show([report])
    for name, values in data["variance"].items():
        print(f"  relative error of the variance, {name}: " + ", ".join(f"{value:+.4f}" for value in values))
    if args.quick:
        return
    path = RESULTS / "frontier.json"
    before = json.loads(path.read_text()) if args.only and path.exists() else {"figures": [], "problems": {}}
    figures = [{**vars(figure), "verdict": figure.verdict} for figure in report.figures]
    figures = [f for f in before["figures"] if args.only not in f["name"]] + figures
    data["problems"] = {**before["problems"], **data["problems"]}
    versions = {**environment(), "clock": "none: errors, not times"}
    record = {"benchmark": "frontier", "environment": versions, "scores": EVALUATIONS, "figures": figures, **data}
    path.write_text(json.dumps(record, indent=1) + "\n")
    results = Path(__file__).parents[1] / "docs" / "results"
    draw(data, results / "frontier.png")
    (results / "frontier.table.txt").write_text(page(figures))
    (results / "frontier.variance.txt").write_text(variance_page(data["variance"]))


if __name__ == "__main__":
    main()
