"""Why it pays: what one forced error does to the values after it, and where a model's own samples take it.

    python examples/sequences/mechanism.py --problem paths-1e-4 --model made --out runs/sequences

Uses the models that run.py has left there. Of every seed, for maximum likelihood and NCML (`--ways`):

- the likelihood of value i after an error forced upon value j < i of test windows, less that without, over i - j;
- the likelihood of each value of the model's own samples, under the model and, where it is known, under the exact
  distribution;
- the continuation of test prefixes: the continuous ranked probability score over the horizon, and how many of the true
  values lie in the central 90 % of the draws; by NCML also in two parts, from the noise level of its samples.

What mechanism.json holds of other ways and seeds stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cam
import torch
from problems import Problem
from settings import NOISY, Settings, Size
from torch import Tensor

from ncml.densities import MADE, CausalTransformer
from ncml.density import AutoregressiveDensity, CompletionTarget, Target
from ncml.report import environment, write_report
from ncml.sampling import RePaint
from run import load, parsed

ERRORS = (0.1, 0.3)  # forced upon one value, in units of the data
DISTANCES = 16
PREFIXES, DRAWS = 100, 40
# Replacement by itself forgets what the clean prefix says beyond the noisy one; steps that are repeated, 64 scores in
# all, bring back a part of it.
REFINE = RePaint(steps=16, repeats=4)


@torch.no_grad()
def conditionals(density: MADE | CausalTransformer, x: Tensor, sigma: float, given: Tensor | None = None) -> Tensor:
    """Log-likelihood of each value given those before it, in ``x`` or in ``given``, ``(n, length)``."""
    rows = zip(x.split(1000), (x if given is None else given).split(1000), strict=True)
    parts = [density.log_conditionals(part.unsqueeze(2), sigma, given=seen.unsqueeze(2)) for part, seen in rows]
    return torch.cat(parts).squeeze(2).double()


def after_an_error(
    density: MADE | CausalTransformer, x: Tensor, sigma: float, error: float, clean: bool = False
) -> list[float]:
    """Median loss of likelihood, in nats, at 1 to 16 values behind the error; of clean values behind noisy ones."""
    noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    target = x if clean else noisy
    before = conditionals(density, target, sigma, noisy)
    lost: list[list[Tensor]] = [[] for _ in range(DISTANCES)]
    for j in range(8, x.shape[1] - DISTANCES, 6):
        pushed = noisy.clone()
        pushed[:, j] += error
        difference = before - conditionals(density, x if clean else pushed, sigma, pushed)
        for k in range(DISTANCES):
            lost[k].append(difference[:, j + 1 + k])
    return [float(torch.cat(values).median()) for values in lost]


def exact_conditionals(data: Problem, x: Tensor) -> Tensor:
    """The same under the exact distribution."""
    assert data.covariance is not None
    root = torch.linalg.cholesky(data.covariance)
    z = torch.linalg.solve_triangular(root, x.double().T, upper=False).T
    return -0.5 * z.square() - root.diagonal().log() - 0.5 * math.log(2 * math.pi)


def own_samples(density: MADE | CausalTransformer, data: Problem, seed: int, n: int) -> dict[str, list[float]]:
    """Median log-likelihood of each value of n direct samples, and of as many test windows."""
    x = density.sample(n, 0.0, generator=torch.Generator().manual_seed(seed)).squeeze(2)
    result = {
        "samples, under the model": conditionals(density, x, 0.0),
        "test windows, under the model": conditionals(density, data.test[:n], 0.0),
    }
    if data.covariance is not None:
        result["samples, exact"] = exact_conditionals(data, x)
        result["test windows, exact"] = exact_conditionals(data, data.test[:n])
    return {name: terms.median(0).values.tolist() for name, terms in result.items()}


@torch.no_grad()
def continued(density: AutoregressiveDensity, x: Tensor, keep: int, seed: int, sigma: float = 0.0) -> Tensor:
    """Windows at a noise level whose first values are kept and whose others are drawn, one after the other."""
    noise = density.draw_noise(len(x), generator=torch.Generator().manual_seed(seed))
    x = x.unsqueeze(2).clone()
    if isinstance(density, CausalTransformer):
        return density.complete(x, keep, sigma, noise=noise).squeeze(2)
    for i in range(keep, x.shape[1]):
        x[:, i] = density.resample(x, noise, sigma)[:, i]
    return x.squeeze(2)


def scores(draws: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """The CRPS without bias, as a mean and a median over prefixes, and the coverage of 90 %, by position.

    Args:
        draws: ``(draws, prefixes, positions)``.
        truth: ``(prefixes, positions)``.
    """
    n = len(draws)
    ordered = draws.sort(0).values
    ranks = torch.arange(1, n + 1, dtype=draws.dtype)[:, None, None]
    spread = ((2 * ranks - n - 1) * ordered).sum(0) / (n * (n - 1))
    crps = (draws - truth).abs().mean(0) - spread
    inside = (truth >= draws.quantile(0.05, dim=0)) & (truth <= draws.quantile(0.95, dim=0))
    return {
        "crps": crps.mean(0).tolist(),
        "median crps": crps.median(0).values.tolist(),
        "coverage of 90 %": inside.double().mean(0).tolist(),
    }


def refined_continuations(density: AutoregressiveDensity, x: Tensor, keep: int, seed: int, sigma: float) -> Tensor:
    """The same in two parts: drawn at a noise level behind the prefix with noise, refined around the clean one.

    As :func:`ncml.sampling.complete`, but for the draw: a prefix lets it be made value after value.
    """
    known = torch.zeros(x.shape[1], 1, dtype=torch.bool)
    known[:keep] = True
    parts = []
    for i, part in enumerate(x.split(1000)):
        base = Target(density, generator=torch.Generator().manual_seed(1000 * seed + i))
        target, held = CompletionTarget(base, part.unsqueeze(2), known).bound(part.unsqueeze(2), sigma)
        start = continued(density, held.squeeze(2), keep, 1000 * seed + i, sigma)
        parts.append(REFINE(target, start.unsqueeze(2), sigma, on_failure="keep").squeeze(2))
    return torch.cat(parts)


def forecasts(data: Problem, continuation: Callable[[Tensor, int], Tensor], prefixes: int) -> dict[str, list[float]]:
    """Of the second half of test windows, given the first."""
    keep = data.length // 2
    truth = data.test[:: max(1, len(data.test) // PREFIXES)][:prefixes]
    draws = continuation(truth.repeat(DRAWS, 1), keep).view(DRAWS, len(truth), -1)
    return scores(draws[:, :, keep:].double(), truth[:, keep:].double())


def all_forecasts(
    density: AutoregressiveDensity, data: Problem, report: dict[str, Any], prefixes: int
) -> dict[str, Any]:
    """In each way in which the model draws, with the settings that its own samples chose."""
    seed, samples = report["settings"]["seed"], report["samples"]
    if (k := samples["direct"].get("k")) is not None:
        generator = torch.Generator().manual_seed(seed)
        found = forecasts(data, lambda x, keep: cam.rolled_out(density, x[:, :keep], k, generator), prefixes)
        return {"forecasts": {**found, "k": k}}
    result = {"forecasts": forecasts(data, lambda x, keep: continued(density, x, keep, seed), prefixes)}
    if "two-part" in samples:
        sigma = samples["two-part"]["sigma"]
        found = forecasts(data, lambda x, keep: refined_continuations(density, x, keep, seed, sigma), prefixes)
        result["forecasts, refined"] = {**found, "sigma": sigma}
    return result


def exact_forecasts(data: Problem) -> dict[str, list[float]]:
    """The same by draws from the exact conditional distribution: what no model can do better."""
    assert data.covariance is not None
    keep = data.length // 2
    truth = data.test[:: max(1, len(data.test) // PREFIXES)][:PREFIXES].double()
    given, cross, rest = data.covariance[:keep, :keep], data.covariance[keep:, :keep], data.covariance[keep:, keep:]
    gain = torch.linalg.solve(given, cross.T).T
    root = torch.linalg.cholesky(rest - gain @ cross.T)
    noise = torch.randn(
        DRAWS, len(truth), data.length - keep, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return scores(truth[:, :keep] @ gain.T + noise @ root.T, truth[:, keep:])


def measured(folder: Path, model: str, size: Size, data: Problem, ways: list[str], seeds: list[int]) -> dict[str, Any]:
    """All of it for every trained model of the chosen settings."""
    result: dict[str, Any] = {}
    settings = json.loads((folder / "chosen.json").read_text())
    prefixes = min(PREFIXES, size.draws // 50)  # fewer where all is cut short
    for way in ways:
        for seed in seeds:
            chosen = Settings(**{**settings[way], "seed": seed})
            density = load(model, size, data, chosen, folder)
            assert isinstance(density, MADE | CausalTransformer)
            report = json.loads((folder / f"{chosen.name}.json").read_text())
            levels = (0.0, 0.05, 0.1) if way in NOISY else (0.0,)
            result[f"{way}, seed {chosen.seed}"] = {
                "after an error": {
                    f"{error:g}, noise {sigma:g}": after_an_error(
                        density, data.test[:1000], sigma, error, clean=way == "cam"
                    )
                    for error in ERRORS
                    for sigma in levels
                },
                "own samples": own_samples(density, data, chosen.seed, min(2000, size.draws)),
                **all_forecasts(density, data, report, prefixes),
            }
            print(f"{folder.name} {way}, seed {chosen.seed}", flush=True)
    if data.covariance is not None:
        result["exact"] = {"forecasts": exact_forecasts(data)}
    return result


def main() -> None:
    """Measure the models of one folder."""
    torch.set_num_threads(1)
    args, data, size, folder = parsed(__doc__)
    ways = [way for way in args.ways if way != "fixed"]  # which has no model of the data themselves
    result = measured(folder, args.model, size, data, ways, args.seeds)
    file = folder / "mechanism.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    write_report(file, {**before, **result, "environment": environment()})


if __name__ == "__main__":
    main()
