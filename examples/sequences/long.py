"""Far beyond the window: models of 64 values that draw 2,048, each window from the second half of the one before.

    python examples/sequences/long.py --problem paths-1e-4 --model transformer --out runs/sequences

Uses the causal transformers that run.py has left there, and what it chose for them. Of every seed, for maximum
likelihood and NCML:

- the likelihood of test sequences of 2,048 values under `CausalTransformer.extended`, exact given each prefix;
- how many drawn sequences leave the range of the training windows, and after how many values each does, drawn at t = 0
  and, of paths, in two parts;
- how far the last windows of the drawn sequences are from test windows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from measures import beyond, measures
from problems import Problem, problem, smooth_paths
from settings import Settings, Size
from torch import Tensor

from ncml.densities import CausalTransformer
from ncml.density import AutoregressiveDensity
from ncml.report import environment, write_report
from run import SOLVERS, load, nats, parsed, refined

LENGTH = 2048
DRAWS, REFINED = 400, 200


def left_after(x: Tensor, limit: float) -> list[int]:
    """How many values the sequences have that leave the range of the data before they do, in order."""
    out = x.abs() > limit
    return sorted(out[out.any(1)].int().argmax(1).tolist())


def described(x: Tensor, windows: Problem) -> dict[str, Any]:
    """Of drawn sequences: what left the range, and how far the last windows are from test windows."""
    x = x.nan_to_num(1e6)
    last = measures(windows, x[:, -windows.length :], windows.test)
    return {**beyond(windows, x), "left after": left_after(x, windows.limit), "last window": last}


def evaluated(
    density: AutoregressiveDensity, report: dict[str, Any], data: Problem, windows: Problem, draws: int, test: Tensor
) -> dict[str, Any]:
    """All numbers of one model of long sequences."""
    generator = torch.Generator().manual_seed(report["settings"]["seed"] + 1)
    rows = nats(density, test, 0.0)
    result: dict[str, Any] = {
        "nats": float(rows.mean()),
        "standard error": float(rows.std() / len(rows) ** 0.5),
        "exact nats": data.entropy(0.0),
        "direct": described(density.sample(draws, 0.0, generator=generator).squeeze(2), windows),
    }
    # On recordings refinement adds nothing to windows of 64, and half an hour a model to these.
    if data.covariance is not None and (chosen := report["samples"].get("two-part")):
        sigma, solver = chosen["sigma"], chosen["solver"]
        x = density.sample(draws * REFINED // DRAWS, sigma, generator=generator).squeeze(2)
        x = refined(density, x, sigma, SOLVERS[solver], generator)
        result["two-part"] = {**described(x, windows), "sigma": sigma, "solver": solver}
    return result


def measured(
    folder: Path, size: Size, data: Problem, windows: Problem, ways: list[str], seeds: list[int]
) -> dict[str, Any]:
    """Of every trained model of the chosen settings."""
    settings = json.loads((folder / "chosen.json").read_text())
    draws = min(DRAWS, size.draws // 10)  # fewer where all is cut short
    test = data.test[:: max(1, len(data.test) // draws)][:draws]
    result: dict[str, Any] = {"length": LENGTH, "held-out": described(test, windows)}
    for way in ways:
        for seed in seeds:
            chosen = Settings(**{**settings[way], "seed": seed})
            density = load("transformer", size, windows, chosen, folder)
            assert isinstance(density, CausalTransformer)
            report = json.loads((folder / f"{chosen.name}.json").read_text())
            found = evaluated(density.extended(LENGTH), report, data, windows, draws, test)
            result[f"{way}, seed {seed}"] = found
            kinds = {kind: found[kind]["share"] for kind in ("direct", "two-part") if kind in found}
            print(f"{folder.name} {way}, seed {seed}: {found['nats']:.3f} nats, beyond {kinds}", flush=True)
    return result


def main() -> None:
    """Measure the models of one folder."""
    torch.set_num_threads(1)
    args, windows, size, folder = parsed(__doc__)
    if args.model != "transformer":
        raise SystemExit("--model: got made, whose length is fixed; expected transformer")
    if args.problem == "recordings":
        data = problem(args.problem, LENGTH, args.folder)
    else:
        data = smooth_paths(LENGTH, float(args.problem.removeprefix("paths-")), rows=(1, 1, DRAWS))
    ways = [way for way in args.ways if way in ("ml", "ncml")]
    result = measured(folder, size, data, windows, ways, args.seeds)
    file = folder / "long.json"
    before = json.loads(file.read_text()) if file.exists() else {}  # of other ways and seeds
    write_report(file, {**before, **result, "environment": environment()})


if __name__ == "__main__":
    main()
