"""
The noise ladder, exactly
=========================

A mixture of Gaussians stays one at every noise level, so its densities and scores are
known in closed form. Three noise processes climb the same ladder in different ways.
"""

# %%
# A process takes data to :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,z` with z standard
# normal. The three of the paper are :class:`~ncml.VPSDE`, :class:`~ncml.SubVPSDE` and
# :class:`~ncml.VESDE`; ``at_noise(0.8)`` ends each of them where the noise has a
# standard deviation of 0.8, in the units of the data.

import matplotlib.pyplot as plt
import torch

from ncml import VESDE, VPSDE, SubVPSDE
from ncml.densities import GaussianMixtureDensity

# sphinx_gallery_thumbnail_number = 2
std = 0.8
schedules = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}
ends = {
    "VP": VPSDE.at_noise(std),
    "sub-VP": SubVPSDE.at_noise(std),
    "VE": VESDE.at_noise(std),
}
colours = {"VP": "#009E73", "sub-VP": "#CC79A7", "VE": "#E69F00"}

# %%
# The whole schedules of Song et al., up to t = 1, and the dots where ``at_noise`` ends
# them. Near the data VP and VE have noise like :math:`\sqrt t` and sub-VP like t: twice
# the slope on the logarithmic axes. VE never shrinks the data, sub-VP shrinks them most
# by the time that it reaches a given noise level.

t = torch.logspace(-3, 0, 200, dtype=torch.float64)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for name, process in schedules.items():
    T, style = ends[name].T, {"color": colours[name]}
    right.loglog(t, process.sigma(t), **style, label=name)
    right.plot(T, process.sigma(T), "o", **style)
    dashed = "--" if name == "sub-VP" else "-"  # the alpha of sub-VP is that of VP
    left.plot(t, process.alpha(t), dashed, **style, label=name)
    left.plot(T, process.alpha(T), "o", **style)
right.axhline(std, color="0.6", linewidth=0.8, zorder=0)
left.set(title=r"scale of the data, $\alpha$", xlabel="time t", ylim=(0, 1.05))
right.set(title=r"standard deviation of the noise, $\sigma$", xlabel="time t")
right.legend(frameon=False)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %%
# The ladder: a mixture of three components at seven noise levels, the data at the
# front. Under all processes it melts into about one bump; they differ in where that
# bump is and how wide, since at the same noise they have shrunk the data by different
# factors.

weights, means, stds = (0.5, 0.3, 0.2), (-1.0, 0.4, 1.1), (0.15, 0.2, 0.06)
sigmas = (0.0, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8)
shades = plt.colormaps["viridis"]([i / len(sigmas) for i in range(len(sigmas))])
x = torch.linspace(-3.4, 3.4, 681, dtype=torch.float64)[:, None]

mixtures = {
    name: GaussianMixtureDensity(process, weights, means, stds)
    for name, process in ends.items()
}
figure, axes = plt.subplots(1, 3, figsize=(8, 4), sharey=True, layout="constrained")
for axis, (name, density) in zip(axes, mixtures.items(), strict=True):
    process = density.process
    for i, (sigma, shade) in reversed(
        list(enumerate(zip(sigmas, shades, strict=True)))
    ):
        p = density.log_prob(x, process.time_at(sigma)).exp()
        y = 0.5 * i + p
        axis.fill_between(
            x[:, 0], 0.5 * i, y, color=shade, alpha=0.85, linewidth=0, zorder=-i
        )
        axis.plot(x[:, 0], y, color="white", linewidth=0.8, zorder=-i)
    alpha = float(process.alpha(process.T))
    axis.set_title(rf"{name}, $\alpha(T)$ = {alpha:.2f}")
    axis.set(xlabel="x", xlim=(-3.4, 3.4), ylim=(0, None))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
axes[0].set_yticks(
    [0.5 * i for i in range(len(sigmas))], [f"{sigma:g}" for sigma in sigmas]
)
axes[0].set_ylabel(r"noise level $\sigma$, and above it $p_t(x)$")

# %%
# The score :math:`s = \partial_x \log p_t(x)` is what refines samples. Far from the
# data it is a straight line towards them; it rises between two components, the steeper
# the less noise there is, and there a small error of position decides which way a
# sample goes. By Tweedie's formula it gives the mean of the data that may lie behind a
# noisy x, :math:`E[x_0 \mid x_t = x] = (x + \sigma^2 s)/\alpha`: for noise below the
# widths of the components nearly x itself, then stairs from one component to the next,
# and at the top of the ladder a smooth curve, drawn in from both sides.

density = mixtures["VP"]
process = density.process
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for sigma, shade in list(zip(sigmas, shades, strict=True))[1:]:
    t = process.time_at(sigma)
    score = density.score(x, t)
    left.plot(x, score, color=shade)
    denoised = (x + sigma**2 * score) / process.alpha(t)
    right.plot(x, denoised, color=shade, label=f"{sigma:g}")
left.axhline(0, color="0.6", linewidth=0.8, zorder=0)
left.set(title="score under VP", ylabel="nats per unit of x", ylim=(-12, 12))
right.set(title="posterior mean of the data", ylabel=r"$E[x_0 \mid x_t = x]$")
right.set(xlim=(-2.2, 2.2), ylim=(-2, 2))
for axis in (left, right):
    axis.set_xlabel("x")
    axis.spines[["top", "right"]].set_visible(False)
figure.legend(title=r"noise $\sigma$", loc="outside right center", frameon=False)

# %%
# Is it the gradient? Central differences of the log-density come closer with the square
# of their step h, until rounding, which grows like 1/h, takes over: the V of every
# correct derivative. Autograd has no such step, and agrees to rounding.

steps = torch.logspace(-7, -1, 25, dtype=torch.float64).tolist()

figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
for sigma in (0.05, 0.2, 0.8):
    t = process.time_at(sigma)
    score = density.score(x, t)[:, 0]
    errors = []
    for h in steps:
        rise = density.log_density(x + h, t) - density.log_density(x - h, t)
        errors.append(float((rise / (2 * h) - score).abs().max()))
    shade = shades[sigmas.index(sigma)]
    axis.loglog(steps, errors, "o-", markersize=3, color=shade, label=f"{sigma:g}")

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_density(leaf, t).sum(), leaf)
    difference = (gradient[:, 0] - score).abs().max() / score.abs().max()
    print(f"sigma = {sigma:4}: autograd and score differ by {difference:.0e} relative")
axis.loglog([1e-4, 1e-2], [3e-4, 3e0], "--", color="0.6")
axis.text(1e-3, 6e-2, r"$\propto h^2$", color="0.4", ha="right")
axis.set(xlabel="step h of the differences", ylabel="largest error, nats per unit of x")
axis.legend(title=r"noise $\sigma$", frameon=False)
axis.spines[["top", "right"]].set_visible(False)
