"""A program as a user with strict types writes it: ``mypy --strict`` passes without casts or ignores."""

from __future__ import annotations

import torch
from torch import Tensor

from ncml import VPSDE, NCMLObjective, Sampler, generate
from ncml.data import Arrays
from ncml.densities import MAF
from ncml.evaluation import auroc_interval, ood_statistics
from ncml.sampling import (
    DDIM,
    ERSDE,
    AdaptiveHeun,
    Ancestral,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    PredictorCorrector,
    Refined,
    Tweedie,
)
from ncml.training import fit


def noise_levels(density: MAF, n: int) -> list[float]:
    """Even in time, from the density's own process."""
    T: float = density.process.T
    return [float(density.process.sigma(T * i / n)) for i in range(n + 1)]


def main() -> dict[str, float]:
    """Train, sample by every kind of sampler, and evaluate; the mean of each result."""
    generator = torch.Generator().manual_seed(0)
    data = Arrays(torch.randn(64, 2, generator=generator))
    x: Tensor = data.batch(slice(None))
    density = MAF((2,), VPSDE.at_noise(0.3), transforms=1, hidden=(8,))
    losses: list[float] = fit(density, NCMLObjective(VPSDE.at_noise(0.3)), x, steps=2, generator=generator)
    samplers: dict[str, Sampler] = {
        "Euler-Maruyama": EulerMaruyama(steps=2),
        "Heun": HeunODE(steps=2),
        "adaptive": AdaptiveHeun(),
        "ancestral": Ancestral(steps=2),
        "DDIM": DDIM(steps=2),
        "DPM": DPMSolver2M(steps=2),
        "ER-SDE": ERSDE(steps=2),
        "corrected": PredictorCorrector(steps=2),
        "Langevin": AnnealedLangevin(steps=2, moves=2),
        "Metropolis": MetropolisLangevin(steps=2, moves=2),
        "Tweedie": Tweedie(),
    }
    means = {name: float(generate(density, 4, sampler=s, generator=generator).mean()) for name, s in samplers.items()}
    refined: Refined = HeunODE(steps=2).refine(density, x[:4], density.process.T)
    inside = ood_statistics(density, x[:32])
    interval = auroc_interval(inside["log_p"], ood_statistics(density, x[32:])["log_p"], generator=generator)
    found = {"loss": losses[-1], "refined": float(refined.x.mean()), "auroc": interval.value}
    return {
        **means,
        **found,
        "noise": noise_levels(density, 4)[-1],
        "log p": float(density.log_prob(x).detach().mean()),
    }
