"""
Two moons, end to end
=====================

Train one autoregressive model at every noise level, look at the densities that it has
learned, and sample in two parts: draw at a noise level, refine to the data.
"""

# %%
# The data have unit variance. ``at_noise(0.5)`` ends the noise process where the noise
# has a standard deviation of 0.5, in the units of the data: there the two moons have
# melted into one piece.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons

from ncml import VPSDE, NCMLObjective, generate
from ncml.densities import MADE
from ncml.training import fit

torch.manual_seed(0)
data = torch.tensor(
    make_moons(10_000, noise=0.05, random_state=0)[0], dtype=torch.float32
)
data = (data - data.mean(0)) / data.std(0)

process = VPSDE.at_noise(0.5)
density = MADE((2,), process, hidden=(128, 128), components=10)
losses = fit(
    density,
    NCMLObjective(process),
    data,
    steps=1500,
    batch_size=256,
    learning_rate=5e-3,
)

# %%
# One network, a density for every noise level. The arrows are its score, the gradient
# of the logarithm of the density, which comes with the likelihood by one backward pass.

side = torch.linspace(-2.5, 2.5, 120)
grid = torch.cartesian_prod(side, side)
coarse = torch.cartesian_prod(side[5::10], side[5::10])
times = [0.0] + [process.time_at(sigma) for sigma in (0.1, 0.25, 0.5)]

figure, axes = plt.subplots(
    1, 4, figsize=(9, 2.6), sharex=True, sharey=True, layout="constrained"
)
for axis, t in zip(axes, times, strict=True):
    with torch.no_grad():
        p = density.log_density(grid, t).exp().reshape(120, 120)
    axis.imshow(p.sqrt().T, origin="lower", extent=(-2.5, 2.5, -2.5, 2.5), cmap="Blues")
    arrows = density.score(coarse, t)
    arrows = arrows / (1 + arrows.norm(dim=1, keepdim=True))
    axis.quiver(*coarse.T, *arrows.T, color="0.4", scale=18, width=0.005)
    axis.set(title=rf"$\sigma$ = {float(process.sigma(t)):.2f}", xticks=[], yticks=[])

# %%
# Sampling in two parts. First the model's own sampler, at the largest noise level; then
# the reverse SDE, which needs nothing but the score. The same model also draws at t = 0
# right away, which here leaves fewer points astray: :func:`~ncml.generate` does either,
# so compare them on your data.

figure, axes = plt.subplots(
    1, 4, figsize=(9, 2.6), sharex=True, sharey=True, layout="constrained"
)
for axis, (title, x) in zip(
    axes,
    {
        "drawn at T": density.sample(3000, t=process.T),
        "drawn at T, refined to 0": generate(density, 3000),
        "drawn at 0": generate(density, 3000, t_start=0.0),
        "data": data[:3000],
    }.items(),
    strict=True,
):
    colour = "0.4" if title == "data" else "#0072B2"
    axis.scatter(*x.T, s=1.5, color=colour, linewidths=0)
    axis.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize="medium")

# %%
# The likelihood of the data themselves is exact, and was trained like all the others:

with torch.no_grad():
    print(f"log p of the data: {density.log_prob(data).mean():.3f} nats per example")
