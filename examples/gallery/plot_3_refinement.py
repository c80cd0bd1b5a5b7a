"""
Refinement, step by step
========================

A spiral is drawn at a noise level and refined to the data by the score of the same
model: where the points go, and how the reverse SDE and the ODE take them there.
"""

# %%
# The spiral turns twice. Noise of 0.3 closes the gaps between its arms: what is drawn
# at T need only know the spiral roughly, and the score has to do the rest.

from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import hsv_to_rgb

from ncml import VPSDE, NCMLObjective
from ncml.densities import MADE
from ncml.sampling import EulerMaruyama, HeunODE
from ncml.training import fit

# sphinx_gallery_thumbnail_number = 2


def spiral(radius: torch.Tensor) -> torch.Tensor:
    angle = 4 * torch.pi * radius
    return 2 * radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


torch.manual_seed(0)
data = spiral(torch.rand(20_000).sqrt())
data += 0.04 * torch.randn(data.shape)

process = VPSDE.at_noise(0.3)
density = MADE((2,), process, hidden=(128, 128), components=12)
losses = fit(
    density,
    NCMLObjective(process),
    data,
    steps=1500,
    batch_size=256,
    learning_rate=4e-3,
)

# %%
# A sampler goes from any time to any earlier one, so the way can be looked at in parts:
# 128 steps of the reverse SDE in all, with stops. Every point keeps the colour of the
# direction in which it was drawn. Most end on an arm nearby, so the colours stay where
# they were.

noisy = density.sample(4000, t=process.T)
sampler = EulerMaruyama(steps=32)
stops = (0.3, 0.15, 0.08, 0.03, 0.0)
ladder = [noisy]
for start, end in pairwise(float(process.time_at(sigma)) for sigma in stops):
    ladder.append(sampler(density, ladder[-1], start, end))

hue = torch.atan2(noisy[:, 1], noisy[:, 0]) / (2 * torch.pi) + 0.5
colours = hsv_to_rgb([(h, 0.75, 0.85) for h in hue.tolist()])
figure, axes = plt.subplots(
    1, 5, figsize=(9, 2.1), sharex=True, sharey=True, layout="constrained"
)
for axis, sigma, x in zip(axes, stops, ladder, strict=True):
    axis.scatter(*x.T, s=1, c=colours, linewidths=0)
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[], yticks=[], aspect="equal")
    axis.set_title(rf"$\sigma$ = {sigma:g}")

# %%
# The same sixty points on two ways. The reverse SDE adds noise as it goes and forgets
# where it came from; the probability flow ODE is deterministic and smooth. Both have
# the same distribution at every noise level if the score is exact. With ``path=True``
# :meth:`~ncml.Sampler.refine` keeps the samples of every step.

figure, axes = plt.subplots(
    1, 2, figsize=(8, 4.1), sharex=True, sharey=True, layout="constrained"
)
refined = {}
for axis, (name, sampler) in zip(
    axes,
    {"reverse SDE": EulerMaruyama(steps=100), "ODE": HeunODE(steps=100)}.items(),
    strict=True,
):
    result = sampler.refine(density, noisy[:3000], path=True)
    refined[name] = result.x
    axis.scatter(*data[:6000].T, s=1, color="0.85", linewidths=0)
    path = torch.stack([x for _, x in result.path], dim=1)
    for line, colour in zip(path[:60], colours, strict=False):
        axis.plot(*line.T, color=colour, linewidth=0.9)
        axis.plot(*line[0], "o", color=colour, markersize=3, markerfacecolor="white")
        axis.plot(*line[-1], "o", color=colour, markersize=4)
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[], yticks=[], aspect="equal")
    axis.set_title(f"{name}: from T (open) to 0 (filled)")

# %%
# Is it better than drawing at t = 0 right away? Not here. Count the points that are
# further from the curve than four times the spread of the data around it. A mixture
# with enough components draws a spiral well by itself, and a refinement is only as good
# as the score, which has to be right at every noise level on the way: measure before
# you refine.

curve = spiral(torch.linspace(0, 1, 2000))
for name, x in {
    "data": data[:3000],
    "drawn at 0": density.sample(3000),
    **{f"drawn at T, {name}": x for name, x in refined.items()},
}.items():
    distance = torch.cdist(x, curve).min(dim=1).values
    far = (distance > 0.16).float().mean()
    print(f"{name:25} {far:6.1%} far from the spiral")
