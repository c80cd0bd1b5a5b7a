"""The second figure of the README: what one trained network gives.

A model of two moons that is trained here, in ten seconds: its density and score at four noise levels. From the root of
the repository:

    python docs/hero.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

from ncml import VPSDE, NCMLObjective
from ncml.densities import MADE
from ncml.training import fit

HERE = Path(__file__).parent
HALF = 2.4  # of the side of a panel


def moons() -> tuple[MADE, VPSDE]:
    """The model of the gallery's first example."""
    torch.manual_seed(0)
    data = torch.tensor(make_moons(10_000, noise=0.05, random_state=0)[0], dtype=torch.float32)
    data = (data - data.mean(0)) / data.std(0)
    process = VPSDE.at_noise(0.5)
    density = MADE((2,), process, hidden=(128, 128), components=10)
    fit(density, NCMLObjective(process), data, steps=1500, batch_size=256, learning_rate=5e-3)
    return density, process


def draw() -> Figure:
    """The figure."""
    density, process = moons()
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    side = torch.linspace(-HALF, HALF, 160)
    grid, coarse = torch.cartesian_prod(side, side), torch.cartesian_prod(side[7::12], side[7::12])
    for axis, sigma in zip(figure.subplots(1, 4), (0.0, 0.1, 0.25, 0.5), strict=True):
        t = process.time_at(sigma)
        with torch.no_grad():
            p = density.log_density(grid, t).exp().reshape(160, 160)
        axis.imshow(p.sqrt().T, origin="lower", extent=(-HALF, HALF, -HALF, HALF), cmap="Blues")
        score = density.score(coarse, t)
        arrows = score / (1 + score.norm(dim=1, keepdim=True))
        axis.quiver(*coarse.T, *arrows.T, color="0.35", scale=20, width=0.005)
        axis.set(xticks=[], yticks=[])
        axis.set_title(rf"$p_t$ and its score, $\sigma_t$ = {sigma:g}", fontsize=10)

    return figure


def source() -> str:
    """What the picture was drawn by, kept inside it, so that a test can tell when it is out of date."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


if __name__ == "__main__":
    draw().savefig(HERE / "hero.png", dpi=130, metadata={"Source": source()})
