"""
A flow of nflows, wrapped
=========================

A spline flow built with `nflows <https://github.com/bayesiains/nflows>`_ is trained at
every noise level: what the flow must be given for it, and what it then has.
"""

# %%
# The flow sees the noise level as its context: every transform is built with
# ``context_features=8``, the width of the noise features that
# :class:`~ncml.densities.NFlowsDensity` computes from t. That is all that it takes; a
# flow that would ignore its context is refused.

import matplotlib.pyplot as plt
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    ReversePermutation,
)

from ncml import VPSDE, NCMLObjective, generate
from ncml.densities import NFlowsDensity
from ncml.sampling import EulerMaruyama
from ncml.training import fit

torch.manual_seed(0)
layers = []
for _ in range(2):
    layers += [
        ReversePermutation(2),
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features=2,
            hidden_features=64,
            context_features=8,
            num_blocks=1,
            num_bins=12,
            tails="linear",
            tail_bound=4.0,
        ),
    ]
flow = Flow(CompositeTransform(layers), StandardNormal([2]))

process = VPSDE.at_noise(0.3)
density = NFlowsDensity(flow, (2,), process)

# %%
# A pinwheel of five arms, and a thousand steps on all of its noise levels.


def pinwheel(
    arm: torch.Tensor | int, radius: torch.Tensor, width: torch.Tensor
) -> torch.Tensor:
    angle = 2 * torch.pi * arm / 5 + 0.35 * radius.exp()
    along = torch.stack([angle.cos(), angle.sin()], dim=1)
    across = torch.stack([-angle.sin(), angle.cos()], dim=1)
    return radius[:, None] * along + width[:, None] * across


n = 20_000
data = pinwheel(
    torch.randint(5, (n,)), 1 + 0.35 * torch.randn(n), 0.06 * torch.randn(n)
)
losses = fit(
    density,
    NCMLObjective(process),
    data,
    steps=1000,
    batch_size=256,
    learning_rate=5e-3,
)

# %%
# The density at three noise levels, and where the score points: along the arrows the
# noise is undone. Near t = 0 a flow shows its nature: it bends one round blob into five
# arms, and leaves bridges between them where there are no data.

side = torch.linspace(-2.2, 2.2, 200)
grid = torch.cartesian_prod(side, side)
coarse = torch.cartesian_prod(side[4::12], side[4::12])

figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for axis, sigma in zip(axes, (0.0, 0.1, 0.3), strict=True):
    t = float(process.time_at(sigma))
    with torch.no_grad():
        p = density.log_prob(grid, t).exp().reshape(200, 200)
    extent = (-2.2, 2.2, -2.2, 2.2)
    axis.imshow(p.sqrt().T, origin="lower", extent=extent, cmap="Blues")
    if sigma > 0:
        arrows = density.score(coarse, t)
        arrows = arrows / (3 + arrows.norm(dim=1, keepdim=True))
        axis.quiver(*coarse.T, *arrows.T, color="0.3", scale=20, width=0.004)
    axis.set(title=rf"$\sigma$ = {sigma:g}", xticks=[], yticks=[])

# %%
# Samples drawn at t = 0 by the flow alone, and drawn at T and refined. Refinement
# cannot know more than the flow whose score it follows, so whether it helps is to be
# measured: below is the share of points that are further from every arm than three
# times its width. For this flow plain sampling is the better choice.

sampler = EulerMaruyama(steps=64)
samples = {
    "data": data[:3000],
    "drawn at 0": density.sample(3000),
    "drawn at T": density.sample(3000, t=process.T),
    "refined from T": generate(density, 3000, sampler=sampler),
}
radius = torch.linspace(0, 2.5, 500)
arms = torch.cat([pinwheel(k, radius, 0 * radius) for k in range(5)])

figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for axis, (name, x) in zip(axes, samples.items(), strict=True):
    axis.scatter(*x.T, s=1, color="0.5" if name == "data" else "#0072B2", linewidths=0)
    axis.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[], aspect="equal")
    axis.set_title(name)
    far = (torch.cdist(x, arms).min(dim=1).values > 0.18).float().mean()
    print(f"{name:15} {far:6.1%} far from the arms")
