"""
How many refinement steps?
==========================

The error of every sampler against its cost in scores, on a mixture whose law and score
are known exactly: what is left is the error of the steps, and that of a finite sample.
"""

# %%
# A :class:`~ncml.densities.GaussianMixtureDensity` in one dimension has the exact score
# at every noise level, so nothing here is learned. In one dimension the Wasserstein
# distance is easy too: the mean distance between sorted samples and the quantiles of
# the exact law.

import matplotlib.pyplot as plt
import numpy as np
import torch

from ncml import VPSDE
from ncml.densities import GaussianMixtureDensity
from ncml.sampling import AnnealedLangevin, EulerMaruyama, HeunODE, Tweedie

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
# All samplers start from 40,000 quantiles of the exact law at T, and so without the
# error of a finite sample. The ODE is deterministic, adds none, and shows its order 2
# all the way down. The SDE adds noise of its own: its order 1 ends where 40,000 exact
# samples would be no better (grey). Langevin moves need no SDE, only the score, and pay
# for it in steps. Tweedie's formula is one step to the mean, which is not a sample at
# all.

n = 40_000
noisy = quantiles(process.T, n)[:, None]
floor = [wasserstein(density.sample(n)) for _ in range(20)]
steps = 2 ** np.arange(9)
samplers = {
    "reverse SDE": (EulerMaruyama, steps, steps, "o", "#009E73"),
    "ODE, Heun": (HeunODE, steps[:8], 2 * steps[:8], "s", "#CC79A7"),
    "annealed Langevin": (
        AnnealedLangevin,
        steps[1:7],
        4 * steps[1:7] - 3,  # 4 moves a level, and 1 score for the last step
        "^",
        "#E69F00",
    ),
    "Tweedie": (Tweedie, [1], [1], "D", "0.2"),
}

figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
axis.axhspan(min(floor), max(floor), color="0.92", linewidth=0, zorder=-1)
axis.text(1, np.median(floor), "exact samples", color="0.4", va="center")
for name, (sampler, counts, scores, marker, colour) in samplers.items():
    errors = [wasserstein(sampler(int(k))(density, process, noisy)) for k in counts]
    axis.plot(scores, errors, marker=marker, color=colour, label=name)
for order, height in ((1, 0.8), (2, 1.6)):
    guide = height / steps[3:] ** order
    axis.plot(steps[3:], guide, "--", color="0.6", linewidth=1, zorder=0)
    axis.text(280, guide[-1], rf"$\propto 1/n{'^2' * (order == 2)}$", color="0.4")
axis.set_xscale("log", base=2)
axis.set(yscale="log", xlabel="scores per sample", xlim=(0.8, 600))
axis.set_ylabel("Wasserstein distance to the data")
axis.set_xticks(steps, steps)
axis.legend(frameon=False, loc="lower left")
axis.spines[["top", "right"]].set_visible(False)

# %%
# The same as densities, with one score for Tweedie and eight or nine for the others.
# The ODE is close already, the SDE leaves a little too much around the components, and
# Langevin moves at two noise levels leave them far too wide. Tweedie's mean of what may
# lie behind a noisy sample is drawn in from both ends.

eight = {
    "Tweedie": Tweedie(),
    "reverse SDE": EulerMaruyama(8),
    "ODE, Heun": HeunODE(4),
    "annealed Langevin": AnnealedLangevin(3),
}
x = torch.linspace(-2, 2, 401, dtype=torch.float64)
figure, axes = plt.subplots(
    1, 4, figsize=(9, 2.6), sharex=True, sharey=True, layout="constrained"
)
for axis, (name, sampler) in zip(axes, eight.items(), strict=True):
    refined = sampler(density, process, noisy).flatten().numpy()
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
    error = (sampler(density, process, noisy) - clean).square().mean()
    print(f"{name:12} mean square error {error:.3f}")
