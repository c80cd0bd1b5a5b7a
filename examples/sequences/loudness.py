"""How loud windows are: the median of their standard deviations, of test windows and of those drawn by every way.

    python examples/sequences/loudness.py --problem recordings --folder FOLDER --model made --length 256

Uses the models that run.py has left there, and what it chose for them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from problems import Problem
from settings import Settings
from torch import Tensor

from ncml.report import environment, write_report
from run import SOLVERS, drawn, load, parsed, refined

DRAWS = 1000


def loudness(data: Problem, x: Tensor) -> float:
    """Median standard deviation of the windows within the range of the data."""
    inside = x[x.abs().amax(1) <= data.limit]
    return float(inside.std(1).median()) if len(inside) else float("nan")


def main() -> None:
    """Measure the models of one folder."""
    torch.set_num_threads(1)
    args, data, size, folder = parsed(__doc__)
    chosen = json.loads((folder / "chosen.json").read_text())
    result: dict[str, Any] = {"test windows": loudness(data, data.test)}
    n = min(DRAWS, size.draws)
    for way in (way for way in args.ways if way in ("ml", "ncml")):
        for seed in args.seeds:
            settings = replace(Settings(**chosen[way]), seed=seed)
            density, generator = load(args.model, size, data, settings, folder), torch.Generator().manual_seed(seed)
            found = {"direct": loudness(data, drawn(density, n, 0.0, generator))}
            report = json.loads((folder / f"{settings.name}.json").read_text())
            if (part := report["samples"].get("two-part")) is not None:
                sigma, solver = part["sigma"], SOLVERS[part["solver"]]
                x = refined(density, drawn(density, n, sigma, generator), sigma, solver, generator)
                found["two-part"] = loudness(data, x)
            result[f"{way}, seed {seed}"] = found
            print(f"{folder.name} {way}, seed {seed}: {found}", flush=True)
    file = folder / "loudness.json"
    before = json.loads(file.read_text()) if file.exists() else {}  # of other ways and seeds
    write_report(file, {**before, **result, "environment": environment()})


if __name__ == "__main__":
    main()
