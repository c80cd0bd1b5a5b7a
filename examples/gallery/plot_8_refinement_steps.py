"""
How many refinement steps?
==========================

The error of every sampler against its cost in scores, on a mixture whose density and
score are known exactly: what is left is the error of the steps, and that of a finite
sample.
"""

# %%
# A :class:`~ncml.densities.GaussianMixtureDensity` in one dimension has the exact score
# at every noise level, so nothing here is learned. In one dimension the Wasserstein
# distance is easy too: the mean distance between sorted samples and the quantiles of
# the exact distribution.

import matplotlib.pyplot as plt
import numpy as np
import torch

from ncml import VPSDE
from ncml.densities import GaussianMixtureDensity
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    HeunODE,
    MetropolisLangevin,
    Tweedie,
)

torch.manual_seed(0)
process = VPSDE.at_noise(0.8)
density = GaussianMixtureDensity(
    process, weights=(0.5, 0.3, 0.2), means=(-1.0, 0.4, 1.1), stds=(0.15, 0.2, 0.1)
)


def quantiles(t: float, n: int) -> torch.Tensor:
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid(density.log_prob(x[:, None], t).exp(), x)
    return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, cdf, x[1:]))


def wasserstein(x: torch.Tensor) -> float:
    x = x.flatten().sort().values
    return float((x - quantiles(0.0, len(x))).abs().mean())


# %%
# All samplers start from 40,000 quantiles of the exact distribution at T, and so
# without the error of a finite sample. The three that follow the ODE add none, and show
# their order 2 all the way down: Heun's method with one step for all rows or one for
# each, and DPM-Solver++, with even steps in the signal-to-noise ratio. The SDE adds
# noise of its own: its order 1 ends where 40,000 exact samples would be no better
# (grey). Langevin moves need no SDE, only the score, and pay for it in steps; with the
# Metropolis test, which asks for the density too, they can be larger. Tweedie's formula
# is one step to the mean, which is not a sample at all. What a sampler spent is in the
# result of :meth:`~ncml.Sampler.refine`.

n = 40_000
noisy = quantiles(process.T, n)[:, None]
floor = [wasserstein(density.sample(n)) for _ in range(20)]
steps = (2 ** np.arange(9)).tolist()
samplers = {
    "reverse SDE": ([EulerMaruyama(k) for k in steps], "o", "#009E73"),
    "ODE, Heun": ([HeunODE(k) for k in steps[:8]], "s", "#CC79A7"),
    "ODE, adaptive Heun": (
        [AdaptiveHeun(rtol=tol, atol=tol) for tol in (0.1, 0.03, 0.01, 3e-3, 1e-3)],
        "v",
        "#0072B2",
    ),
    "ODE, DPM-Solver++": ([DPMSolver2M(k) for k in steps], "P", "#56B4E9"),
    "annealed Langevin": (
        [AnnealedLangevin(k, moves=4, step_size=0.2) for k in steps[1:7]],
        "^",
        "#E69F00",
    ),
    "... with Metropolis' test": (
        [MetropolisLangevin(k, moves=4) for k in steps[1:7]],
        "<",
        "#D55E00",
    ),
    "Tweedie": ([Tweedie()], "D", "0.2"),
}

figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
axis.axhspan(min(floor), max(floor), color="0.92", linewidth=0, zorder=-1)
axis.text(1, np.median(floor), "exact samples", color="0.4", va="center")
for name, (family, marker, colour) in samplers.items():
    results = [sampler.refine(density, noisy) for sampler in family]
    scores = [result.evaluations / n for result in results]
    errors = [wasserstein(result.x) for result in results]
    axis.plot(scores, errors, marker=marker, markersize=5, color=colour, label=name)
for order, height in ((1, 0.8), (2, 1.6)):
    guide = height / np.array(steps[3:]) ** order
    axis.plot(steps[3:], guide, "--", color="0.6", linewidth=1, zorder=0)
    axis.text(280, guide[-1], rf"$\propto 1/n{'^2' * (order == 2)}$", color="0.4")
axis.set_xscale("log", base=2)
axis.set(yscale="log", xlabel="scores per sample", xlim=(0.8, 600))
axis.set_ylabel("Wasserstein distance to the data")
axis.set_xticks(steps, steps)
axis.legend(frameon=False, loc="lower left")
axis.spines[["top", "right"]].set_visible(False)

# %%
# The same as densities, with one score for Tweedie and seven or eight for the others.
# The ODE by Heun's method is close already, the SDE leaves a little too much around the
# components, and DPM-Solver++, most of whose steps are at small noise, a little too
# little, and too far apart.
# Tweedie's mean of what may lie behind a noisy sample is drawn in from both ends.

eight = {
    "Tweedie": Tweedie(),
    "reverse SDE": EulerMaruyama(8),
    "ODE, Heun": HeunODE(4),
    "ODE, DPM-Solver++": DPMSolver2M(8),
}
x = torch.linspace(-2, 2, 401, dtype=torch.float64)
figure, axes = plt.subplots(
    1, 4, figsize=(9, 2.6), sharex=True, sharey=True, layout="constrained"
)
for axis, (name, sampler) in zip(axes, eight.items(), strict=True):
    refined = sampler(density, noisy).flatten().numpy()
    colour = samplers[name][-1]
    axis.hist(refined, bins=100, range=(-2, 2), density=True, color=colour, alpha=0.6)
    axis.plot(x, density.log_prob(x[:, None]).exp(), color="black", linewidth=1)
    axis.set(title=name, xlabel="x", yticks=[], ylim=(0, 1.4))
    axis.spines[["top", "right", "left"]].set_visible(False)

# %%
# What a mean is good for is to denoise: no estimate of :math:`x_0` from :math:`x_t` has
# a smaller mean square error than Tweedie's. A sample of what may lie behind has
# exactly twice that error, and that is what the reverse SDE draws.

clean = density.sample(n)
noisy = process.perturb(clean, process.T)
for name, sampler in {
    "Tweedie": Tweedie(),
    "reverse SDE": EulerMaruyama(128),
    "ODE, Heun": HeunODE(64),
}.items():
    error = (sampler(density, noisy) - clean).square().mean()
    print(f"{name:12} mean square error {error:.3f}")
