"""The part of ``ncml demo`` on smooth paths, whose exact distribution is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ncml.densities import MADE
from ncml.evaluation import energy_distance
from ncml.noise import VESDE
from ncml.objective import AtZero, LogUniformTimes, NCMLObjective
from ncml.sampling import EulerMaruyama
from ncml.training import fit
from ncml.training.build import parameter_count

__all__ = ["PathsSettings", "kernel", "run_paths"]

SHOWN = 8  # paths of a kind in the figure
HELD_OUT = 2000  # paths for the likelihood


@dataclass(frozen=True)
class PathsSettings:
    """Paths of a Gaussian process, and the two models of them.

    Args:
        length: Number of values in a path.
        kernel_length: Length scale of the squared-exponential kernel, in values.
        nugget: Added to the kernel's diagonal: the variance of the finest detail.
        train: Number of training paths.
        steps, batch_size, learning_rate: Of each model.
        hidden, components: Of the MADE.
        sigma_max, sigma_min: Largest and smallest noise of NCML, in units of the data's standard deviation.
        p_zero: Share of each NCML batch at t = 0.
        t_start: The noise at which two-part samples are drawn.
        refine_steps: Steps of the reverse SDE.
        samples: Number of paths in each set of samples.
    """

    length: int = 64
    kernel_length: float = 6.0
    nugget: float = 1e-4
    train: int = 20000
    steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 1.6e-2
    hidden: tuple[int, ...] = (256, 256)
    components: int = 8
    sigma_max: float = 1.0
    sigma_min: float = 5e-3
    p_zero: float = 0.15
    t_start: float = 0.1
    refine_steps: int = 32
    samples: int = 2000

    def smoke(self) -> PathsSettings:
        """The same at a size that takes seconds and proves nothing."""
        return replace(self, train=500, steps=20, hidden=(32, 32), samples=64, refine_steps=4)


def kernel(settings: PathsSettings) -> Tensor:
    """The covariance of a path, in float64."""
    i = torch.arange(settings.length, dtype=torch.float64)
    smooth = torch.exp(-0.5 * ((i[:, None] - i) / settings.kernel_length) ** 2)
    return smooth + settings.nugget * torch.eye(settings.length, dtype=torch.float64)


def run_paths(
    settings: PathsSettings, generator: Callable[[str], torch.Generator], progress: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train both models, draw from both, refine, and measure everything against the exact distribution.

    Args:
        settings: Everything that this part depends on.
        generator: A stream of random numbers for each purpose.
        progress: Show progress bars.

    Returns:
        The numbers, and paths of every kind for the figure.
    """
    covariance = kernel(settings)
    root = torch.linalg.cholesky(covariance)

    def paths(n: int, purpose: str) -> Tensor:
        noise = torch.randn(n, settings.length, dtype=torch.float64, generator=generator(f"paths, {purpose}"))
        return (noise @ root.T).float()

    train, test, fresh = paths(settings.train, "train"), paths(HELD_OUT, "test"), paths(settings.samples, "fresh")
    process = VESDE.linear(settings.sigma_max)
    objectives = {
        "ML": NCMLObjective(process, AtZero()),
        "NCML": NCMLObjective(process, LogUniformTimes(settings.sigma_min, settings.p_zero)),
    }
    models = {
        name: _train(settings, objective, train, name, generator, progress) for name, objective in objectives.items()
    }
    draws = {
        f"{name} direct": m.sample(settings.samples, 0.0, generator=generator("paths, draws"))
        for name, m in models.items()
    }
    noisy = models["NCML"].sample(settings.samples, settings.t_start, generator=generator("paths, draws"))
    refiner = EulerMaruyama(steps=settings.refine_steps)
    draws["NCML two-part"] = refiner(
        models["NCML"], noisy, settings.t_start, generator=generator("paths, refine"), progress=progress
    )
    limit = 1.05 * float(train.abs().max())
    kinds = {"fresh paths": fresh, **draws}
    report = {
        "parameters": parameter_count(models["NCML"]),
        "exact nats": _entropy(covariance),
        "nats": {
            name: -float(m.log_prob(test).detach().double().mean()) / settings.length for name, m in models.items()
        },
        "limit": limit,
        "exact roughness": math.sqrt(float(6 * covariance[0, 0] - 8 * covariance[0, 1] + 2 * covariance[0, 2])),
        "samples": {name: _measures(x, paths(settings.samples, "ruler"), limit) for name, x in kinds.items()},
    }
    return report, {name: x[:SHOWN] for name, x in kinds.items()}


def _train(
    settings: PathsSettings,
    objective: NCMLObjective,
    train: Tensor,
    name: str,
    generator: Callable[[str], torch.Generator],
    progress: bool,
) -> MADE:
    # Initialisation draws from torch's global state, which callers keep.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("paths, model").initial_seed())
        model = MADE((settings.length,), objective.process, hidden=settings.hidden, components=settings.components)
    fit(
        model,
        objective,
        train,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        clip_norm=20.0,  # nats: windows of many values have large gradients
        generator=generator("paths, batch"),
        progress=progress,
        label=f"paths by {name}",
    )
    return model


def _entropy(covariance: Tensor) -> float:
    """Entropy of a Gaussian in nats per value."""
    return 0.5 * float(torch.linalg.slogdet(covariance).logabsdet) / len(covariance) + 0.5 * math.log(
        2 * math.pi * math.e
    )


def _measures(x: Tensor, ruler: Tensor, limit: float) -> dict[str, float]:
    """How far samples are from fresh paths; the distance leaves out samples beyond the range of the data."""
    inside = x[x.abs().amax(1) <= limit]
    return {
        "beyond": 1.0 - len(inside) / len(x),
        "largest": float(x.abs().max()),
        "energy": energy_distance(inside, ruler) if len(inside) > 1 else math.nan,
        "roughness": float(x.double().diff(n=2, dim=1).square().mean(1).sqrt().median()),
    }
