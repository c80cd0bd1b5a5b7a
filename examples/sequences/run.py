"""Maximum likelihood, one noise level and NCML on smooth sequences: the same network, steps and seeds for all.

    python examples/sequences/run.py --problem paths-1e-4 --model made --out runs/sequences
    python examples/sequences/run.py --problem recordings --folder FOLDER --model transformer --out runs/sequences
    python examples/sequences/run.py --problem paths-1e-4 --model made --ways cam --out runs/sequences

Some settings of each way of training are tried with one seed and judged on validation windows; the best one is trained
with three others. Noise level and solver of two-part samples are chosen on validation windows, run by run, and looked
at once on test windows. What is there is not run again, unless `--again` asks for it.
`--ways cam` adds a fourth way, a noisy context with clean targets (cam.py), to runs that are there.
docs/results/sequences.py draws the page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cam
import torch
from measures import beyond, measures
from problems import Problem, problem
from safetensors.torch import load_file, save_file
from settings import NOISY, SIZES, WAYS, Settings, Size, at_length, tried
from torch import Tensor

from ncml import NCMLObjective
from ncml.densities import MADE, CausalTransformer
from ncml.density import AutoregressiveDensity
from ncml.evaluation import energy_distance
from ncml.noise import VESDE
from ncml.objective import AtZero, LogUniformTimes
from ncml.progress import progress_bar
from ncml.report import environment, write_report
from ncml.sampling import DPMSolver2M, EulerMaruyama, Sampler, Tweedie

NOISE = (0.02, 0.05, 0.1, 0.3)  # where two-part samples are drawn
SOLVERS: dict[str, Sampler] = {
    "Tweedie": Tweedie(),
    "DPM++ 2M, 16 steps": DPMSolver2M(steps=16),
    "Euler-Maruyama, 32 steps": EulerMaruyama(steps=32),
}
ASTRAY = 0.1  # share of windows beyond the data, with more of which no way of drawing is chosen
REPEATS = 10  # draws of training windows that say how far energy distances differ by chance


def build(model: str, size: Size, data: Problem, settings: Settings) -> AutoregressiveDensity:
    """The network; MADE sees a window as it is, the transformer as a sequence of one channel."""
    process = VESDE.linear(1.0)
    torch.manual_seed(settings.seed)
    if model == "made":
        return MADE(
            (data.length, 1), process, hidden=(size.width,) * size.layers, components=8, dropout=settings.dropout
        )
    return CausalTransformer(
        (data.length, 1), process, width=size.width, layers=size.layers, heads=4, components=8, dropout=settings.dropout
    )


def train(density: AutoregressiveDensity, data: Problem, size: Size, settings: Settings) -> None:
    """AdamW on fresh batches, in place."""
    lowest = settings.sigma_min or data.sigma_min
    times = LogUniformTimes(sigma_min=lowest, p_zero=settings.p_zero) if settings.way in NOISY else AtZero()
    objective = NCMLObjective(
        VESDE.linear(1.0), times, score_matching=settings.score_matching, fokker_planck=settings.fokker_planck
    )
    fixed = settings.sigma if settings.way == "fixed" else None
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        density.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / 100) * 0.5 * (1.0 + math.cos(math.pi * k / size.steps))
    )
    density.train()
    for _ in progress_bar(range(size.steps), sys.stderr.isatty(), settings.name):
        x = data.draw(size.batch, generator).unsqueeze(2)
        if settings.way == "cam":
            loss = cam.loss(density, objective, x, generator)
        else:
            loss = objective(density, x, t=fixed, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(density.parameters(), 20.0)
        optimizer.step()
        schedule.step()
    density.eval()


@torch.no_grad()
def nats(density: AutoregressiveDensity, x: Tensor, sigma: float) -> Tensor:
    """Negative log-likelihood of windows with noise of a level, nats per value."""
    noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    rows = [density.log_prob(part.unsqueeze(2), sigma) for part in noisy.split(1000)]
    return -torch.cat(rows).double() / x.shape[1]


def drawn(density: AutoregressiveDensity, n: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Direct samples at a noise level, ``(n, length)``."""
    parts = [density.sample(min(5000, n - k), sigma, generator=generator) for k in range(0, n, 5000)]
    return torch.cat(parts).squeeze(2)


def refined(
    density: AutoregressiveDensity, x: Tensor, sigma: float, sampler: Sampler, generator: torch.Generator
) -> Tensor:
    """Draws at a noise level, taken down to t = 0; rows whose score overflows are kept as they are."""
    parts = [sampler(density, p.unsqueeze(2), sigma, generator=generator, on_failure="keep") for p in x.split(1000)]
    return torch.cat(parts).squeeze(2)


def grid(settings: Settings) -> Iterator[tuple[float, str]]:
    """Where two-part samples may start, and how they are refined."""
    if settings.way == "ncml":
        yield from ((sigma, solver) for sigma in NOISE for solver in SOLVERS)
    if settings.way == "fixed":
        yield (settings.sigma, "Tweedie")


def judged_by(data: Problem, x: Tensor) -> dict[str, float]:
    """Energy distance to validation windows, of the windows within the range of the data, and the share beyond it."""
    x = x.nan_to_num(1e6)
    inside = x[x.abs().amax(1) <= data.limit]
    energy = energy_distance(inside, data.validation[: len(x)]) if len(inside) > 1 else math.inf
    return {"energy": energy, "share": beyond(data, x)["share"]}


def best_of(cases: list[dict[str, Any]], data: Problem, n: int, generator: torch.Generator) -> dict[str, Any]:
    """Of ways of sampling, the one with the fewest windows beyond the data among those no farther from them.

    Energy distances differ by chance, as those of data do, and windows that leave the range are too few to move them.
    So it is of all whose distance is within one standard deviation of the least.
    """
    fresh = [data.train[torch.randperm(len(data.train), generator=generator)[:n]] for _ in range(REPEATS)]
    chance = float(torch.tensor([energy_distance(x, data.validation[:n]) for x in fresh]).std())
    # Of a few windows that stay, a distance says little.
    usable = [found for found in cases if found["share"] <= ASTRAY] or [min(cases, key=lambda found: found["share"])]
    least = min(found["energy"] for found in usable)
    close = [found for found in usable if found["energy"] <= least + chance]
    return {**min(close, key=lambda found: (found["share"], found["energy"])), "chance": chance}


def choose_refinement(
    density: AutoregressiveDensity, data: Problem, size: Size, settings: Settings, generator: torch.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where two-part samples start, and their solver; and what that was chosen from."""
    n = size.refined // 2
    cases = []
    for sigma, solver in grid(settings):
        x = refined(density, drawn(density, n, sigma, generator), sigma, SOLVERS[solver], generator)
        cases.append({**judged_by(data, x), "sigma": sigma, "solver": solver})
    return best_of(cases, data, n, generator), cases


def choose_feedback(
    density: AutoregressiveDensity, data: Problem, size: Size, generator: torch.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The noise of what is fed back, and what it was chosen from."""
    n = size.refined // 2
    cases = [{**judged_by(data, cam.drawn(density, n, k, generator)), "k": k} for k in cam.FED_BACK]
    return best_of(cases, data, n, generator), cases


def evaluate(
    density: AutoregressiveDensity, data: Problem, size: Size, settings: Settings, tuning: bool
) -> dict[str, Any]:
    """All numbers of one trained model."""
    seed = settings.seed
    part = data.validation if tuning else data.test
    levels = {"fixed": (settings.sigma,), "ncml": (0.0, *NOISE, 1.0)}.get(settings.way, (0.0,))
    rows = {f"{s:g}": nats(density, part, s) for s in levels}
    result: dict[str, Any] = {
        "nats": {s: float(x.mean()) for s, x in rows.items()},
        "median nats": {s: float(x.median()) for s, x in rows.items()},
        "standard error": {s: float(x.std() / math.sqrt(len(x))) for s, x in rows.items()},
        "exact nats": {f"{s:g}": data.entropy(s) for s in levels},
    }
    generator = torch.Generator().manual_seed(seed + 1)
    kinds: dict[str, Any] = {}
    if tuning:
        if settings.way == "fixed":
            x = drawn(density, size.refined // 2, settings.sigma, generator)
            x = refined(density, x, settings.sigma, Tweedie(), generator)
            kinds["Tweedie"] = measures(data, x, part)
        return {**result, "samples": kinds}
    if settings.way == "cam":
        chosen, cases = choose_feedback(density, data, size, generator)
        extra = {"k": chosen["k"], "chance": chosen["chance"], "validation": cases}
        many = cam.drawn(density, size.draws, chosen["k"], generator)
    else:
        extra = {}
        many = drawn(density, size.draws, settings.sigma if settings.way == "fixed" else 0.0, generator)
    kinds["direct"] = {**measures(data, many[:4000], part), **beyond(data, many), "shown": many[:8].tolist(), **extra}
    if settings.way in ("fixed", "ncml"):
        chosen, cases = choose_refinement(density, data, size, settings, generator)  # on validation windows ...
        sigma, solver = chosen["sigma"], chosen["solver"]
        x = refined(density, drawn(density, size.refined, sigma, generator), sigma, SOLVERS[solver], generator)
        kinds["two-part"] = {  # ... and looked at once on test windows
            **measures(data, x, part),
            **beyond(data, x),
            "sigma": sigma,
            "solver": solver,
            "chance": chosen["chance"],
            "shown": x[:8].tolist(),
            "validation": cases,
        }
    return {**result, "samples": kinds}


def run(
    model: str,
    size: Size,
    data: Problem,
    settings: Settings,
    folder: Path,
    tuning: bool,
    settings_of: str | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Train and evaluate one model, or read what it came to, or evaluate it ``again``.

    ``settings_of`` says where its settings are from.
    """
    file = folder / f"{settings.name}.json"
    before = dict(json.loads(file.read_text())) if file.exists() else {}
    if before and (tuning or not again):
        return before
    if before:
        density, seconds = load(model, size, data, settings, folder), before["training seconds"]
        settings_of = before.get("settings of")
    else:
        density = build(model, size, data, settings)
        began, cpu = time.perf_counter(), time.process_time()
        train(density, data, size, settings)
        seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        save_file(density.state_dict(), folder / f"{settings.name}.safetensors")
    report = {
        "problem": data.name,
        "length": data.length,
        "model": model,
        "size": asdict(size),
        "parameters": sum(p.numel() for p in density.parameters()),
        "settings": asdict(settings),
        "settings of": settings_of,
        "training seconds": seconds,
        **evaluate(density, data, size, settings, tuning),
        "environment": environment(),
    }
    if before:
        trained = {name: before["size"][name] for name in ("steps", "batch")}
        report |= {"size": report["size"] | trained, "trained in": before.get("trained in", before["environment"])}
    write_report(file, report)
    print(f"{folder.name} {settings.name}: {report['nats']}, {seconds['cpu']:.0f} s", flush=True)
    return report


def judged(report: dict[str, Any]) -> float:
    """What the settings of a way of training are chosen by: likelihood at t = 0, or samples where there is none."""
    if report["settings"]["way"] == "fixed":
        return float(report["samples"]["Tweedie"]["energy"])
    return float(report["nats"]["0"])


def load(model: str, size: Size, data: Problem, settings: Settings, folder: Path) -> AutoregressiveDensity:
    """A trained model."""
    file = folder / f"{settings.name}.safetensors"
    if not file.exists():
        raise SystemExit(f"{file}: no such weights; remove {settings.name}.json to train this model anew")
    density = build(model, size, data, settings)
    density.load_state_dict(load_file(file))
    return density.eval()


def cut_short(size: Size, data: Problem) -> tuple[Size, Problem]:
    """The same in seconds."""
    few = replace(data, train=data.train[:100], validation=data.validation[:100], test=data.test[:100])
    return replace(size, steps=10, width=32, draws=100, refined=40), few


def parsed(description: str | None) -> tuple[argparse.Namespace, Problem, Size, Path]:
    """The arguments, and what they name: the data, the size of the model, and the folder of its runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", required=True, choices=("paths-1e-4", "paths-1e-8", "recordings"))
    parser.add_argument("--model", required=True, choices=("made", "transformer"))
    parser.add_argument("--length", type=int, default=64, help="values of a window")
    parser.add_argument("--folder", type=Path, help="of the recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/sequences"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, "cam"), default=list(WAYS), help="ways of training")
    parser.add_argument("--settings-of", type=Path, help="folder of other runs, whose chosen.json says how to train")
    parser.add_argument("--score-matching", type=float, default=0.0, help="NCML once more, with this factor")
    parser.add_argument("--fokker-planck", type=float, default=0.0, help="the same, of the Fokker-Planck penalty")
    parser.add_argument("--again", action="store_true", help="evaluate the runs that are there again, but for tuning")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; proves nothing")
    args = parser.parse_args()
    data = problem(args.problem, args.length, args.folder)
    size = at_length(SIZES[args.model, args.problem.split("-")[0]], args.length)
    if args.quick:
        size, data = cut_short(size, data)
    return args, data, size, args.out / f"{data.name}-{args.length}-{args.model}"


def taken_over(folder: Path, ways: list[str]) -> dict[str, Settings]:
    """What was chosen for other runs."""
    file = folder / "chosen.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if missing := [way for way in ways if way not in found]:
        raise SystemExit(f"{file}: nothing chosen for {', '.join(missing)}; run these ways there first")
    return {way: Settings(**found[way]) for way in ways}


def main() -> None:
    """Tune, then run three seeds."""
    torch.set_num_threads(1)
    args, data, size, folder = parsed(__doc__)
    folder.mkdir(parents=True, exist_ok=True)
    floor = measures(data, data.validation[:4000], data.test)
    write_report(folder / "floor.json", {"floor": floor, "limit": data.limit, "quick": args.quick})
    chosen = taken_over(args.settings_of, args.ways) if args.settings_of else {}
    settings_of = args.settings_of.name if args.settings_of else None
    for way in args.ways:
        if way not in chosen:
            settings = tried(way, args.problem, args.model)
            reports = [run(args.model, size, data, s, folder, True) for s in settings]
            chosen[way] = settings[min(range(len(reports)), key=lambda i: judged(reports[i]))]
        for seed in args.seeds:
            run(args.model, size, data, replace(chosen[way], seed=seed), folder, False, settings_of, args.again)
    for term in ("score_matching", "fokker_planck"):
        factor = getattr(args, term)
        for seed in args.seeds if factor and "ncml" in chosen else ():
            more = replace(chosen["ncml"], seed=seed, **{term: factor})
            run(args.model, size, data, more, folder, False, settings_of, args.again)
    file = folder / "chosen.json"
    before = json.loads(file.read_text()) if file.exists() else {}  # other ways may have been run before
    write_report(file, before | {way: asdict(best) for way, best in chosen.items()})


if __name__ == "__main__":
    main()
