"""How samples differ from data, by measures that a handful of far windows does not rule."""

from __future__ import annotations

from typing import Any

import torch
from problems import Problem
from scipy.stats import beta
from torch import Tensor

from ncml.evaluation import energy_distance, frechet_distance

ROWS = 2000  # of the energy distance, on either side


def log_spectrum(x: Tensor) -> Tensor:
    """Mean power spectrum of windows, in decibels."""
    window = torch.hann_window(x.shape[1], periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(x.double() * window).abs().square()
    return 10.0 * (power.mean(0) + 1e-12).log10()


def roughness(x: Tensor) -> Tensor:
    """Root mean square of second differences, of each window."""
    return x.double().diff(n=2, dim=1).square().mean(1).sqrt()


def beyond(problem: Problem, x: Tensor) -> dict[str, Any]:
    """Windows beyond the range of the data, with Clopper and Pearson's 95 % interval of their share."""
    n, k = len(x), int((x.abs().amax(1) > problem.limit).sum())
    return {
        "windows": n,
        "beyond": k,
        "share": k / n,
        "low": float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0,
        "high": float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0,
        "largest": float(x.abs().max()),
    }


def measures(problem: Problem, x: Tensor, real: Tensor) -> dict[str, Any]:
    """Distances of samples to data; those named "inside" leave out windows beyond the range of the data."""
    inside = x[x.abs().amax(1) <= problem.limit]
    result: dict[str, Any] = {
        "frechet": frechet_distance(x, real),
        "roughness": {"median": float(roughness(x).median()), "mean": float(roughness(x).mean())},
        "energy": energy_distance(x[:ROWS], real[:ROWS]),
    }
    if len(inside) > 1:
        result["frechet inside"] = frechet_distance(inside, real)
        result["energy inside"] = energy_distance(inside[:ROWS], real[:ROWS])
        difference = log_spectrum(inside) - log_spectrum(real)
        result["spectrum inside, dB"] = float(difference.square().mean().sqrt())
    return result
