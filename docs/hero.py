"""The figure of the README: what one trained network gives, and what the training buys on images.

Above, a model of two moons that is trained here, in ten seconds: its density and score at four noise levels. Below,
the recorded runs on CIFAR-16 (results/cifar16.json). From the root of the repository:

    python docs/hero.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

from ncml import VPSDE, NCMLObjective
from ncml.densities import MADE
from ncml.training import fit

HERE = Path(__file__).parent
RUNS = {"ml": ("maximum likelihood", "#D55E00"), "vp": ("NCML, VP", "#0072B2"), "ve": ("NCML, VE", "#CC79A7")}
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
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    side = torch.linspace(-HALF, HALF, 160)
    grid, coarse = torch.cartesian_prod(side, side), torch.cartesian_prod(side[7::12], side[7::12])
    for axis, sigma in zip(above.subplots(1, 4), (0.0, 0.1, 0.25, 0.5), strict=True):
        t = process.time_at(sigma)
        with torch.no_grad():
            p = density.log_density(grid, t).exp().reshape(160, 160)
        axis.imshow(p.sqrt().T, origin="lower", extent=(-HALF, HALF, -HALF, HALF), cmap="Blues")
        score = density.score(coarse, t)
        arrows = score / (1 + score.norm(dim=1, keepdim=True))
        axis.quiver(*coarse.T, *arrows.T, color="0.35", scale=20, width=0.005)
        axis.set(xticks=[], yticks=[])
        axis.set_title(rf"$p_t$ and its score, $\sigma_t$ = {sigma:g}", fontsize=10)

    runs = json.loads((HERE / "results" / "cifar16.json").read_text())["runs"]
    left, right = below.subplots(1, 2)
    pis = ("0", "0.5", "1")
    for key, (name, colour) in RUNS.items():
        evaluation = runs[key]["evaluation"]
        bits = [evaluation["bits_per_dim"][pi]["bits"]["mean"] for pi in pis]
        left.plot(range(3), bits, "o-", color=colour, label=name)
        curve = evaluation["robustness"]
        right.plot(curve["sigma_levels"], curve["delta"]["1.0"], "o-", markersize=3, color=colour)
    left.set(xticks=range(3), xticklabels=[f"$\\pi$ = {pi}" for pi in pis], ylabel="bits/dim at t = 0")
    left.set_title("Images with each value moved by one level with probability $\\pi$", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.set(xlabel="noise level $\\sigma_t$ (8-bit levels)", ylabel="cost (bits/dim)", ylim=(0, None))
    right.set_title("What moving every value by a level costs at each noise level", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def source() -> str:
    """What the picture was drawn from, kept inside it, so that a test can tell when it is out of date."""
    files = [HERE / "results" / "cifar16.json", Path(__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


if __name__ == "__main__":
    draw().savefig(HERE / "hero.png", dpi=130, metadata={"Source": source()})
