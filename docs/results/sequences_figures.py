"""The figures of sequences.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sequences import MODELS, SHORT, final

COLOURS = {"ml": "#D55E00", "ncml": "#0072B2", "cam": "#009E73"}


def draw_paths(folder: Path, file: Path) -> None:
    """Eight windows of every kind, seed 0, and of the process itself."""
    reports = [json.loads(file.read_text()) for file in folder.glob("*seed0.json")]
    entry = {"runs": reports, "chosen": json.loads((folder / "chosen.json").read_text())}
    loaded = {way: runs[0]["samples"] for way in ("ml", "ncml") if (runs := final(entry, way))}
    if len(loaded) < 2:  # the folder is one of other ways: the picture stays as it is
        return
    i = np.arange(len(loaded["ml"]["direct"]["shown"][0]))
    kernel = np.exp(-0.5 * ((i[:, None] - i) / 6.0) ** 2) + 1e-4 * np.eye(len(i))
    shown = {
        "fresh paths": np.random.default_rng(0).multivariate_normal(np.zeros(len(i)), kernel, 8),
        "maximum likelihood": loaded["ml"]["direct"]["shown"],
        "NCML, drawn at t = 0": loaded["ncml"]["direct"]["shown"],
        "NCML, in two parts": loaded["ncml"]["two-part"]["shown"],
    }
    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    for axis, (label, rows) in zip(axes, shown.items(), strict=True):
        for row in rows:
            axis.plot(row, linewidth=1)
        axis.set_title(label, fontsize=10)
        axis.set_ylim(-4, 4)
        axis.set_xlabel("position in the window")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("value")
    figure.savefig(file, dpi=150)


def draw_mechanism(data: dict[str, Any], file: Path) -> None:
    """Loss of likelihood behind a forced error, over the distance."""
    entries = {name: e["mechanism"] for name, e in data.items() if e["mechanism"]}
    figure = Figure(figsize=(8.5, 3.2 * math.ceil(len(entries) / 2)), layout="constrained")
    axes = figure.subplots(math.ceil(len(entries) / 2), 2, squeeze=False).flatten()
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    for axis, (name, found) in zip(axes, entries.items(), strict=False):
        for run, result in found.items():
            if run in ("environment", "exact"):
                continue
            way, seed = run.split(", seed ")
            for key, style in (("0.1, noise 0", "-"), ("0.1, noise 0.1", ":")):
                if key in result["after an error"]:
                    values = result["after an error"][key]
                    names = {"ml": "ML", "ncml": "NCML", "cam": "CAM"}
                    label = f"{names[way]}, {'t = 0' if key.endswith(' 0') else 'sigma .1'}"
                    axis.plot(
                        range(1, len(values) + 1),
                        values,
                        style,
                        color=COLOURS[way],
                        label=label if seed == "0" else None,
                    )
        problem, length, model = name.rsplit("-", 2)
        axis.set_title(f"{SHORT[problem]}, {length} values, {MODELS[model]}", fontsize=9)
        axis.set_xlabel("values behind the error")
        axis.set_ylabel("likelihood lost (nats, median)")
        if axis.get_ylim()[1] > 1.0:
            axis.set_yscale("symlog", linthresh=0.1)
            axis.set_ylim(bottom=-0.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def draw_long(data: dict[str, Any], file: Path) -> None:
    """The share of drawn sequences that have left the range of the data, over their length."""
    entries = {name: entry["long"] for name, entry in data.items() if entry.get("long")}
    if not entries:
        return
    figure = Figure(figsize=(5.0 * len(entries), 3.2), layout="constrained")
    axes = figure.subplots(1, len(entries), squeeze=False, sharey=True)[0]
    kinds = (("ml", "direct", "maximum likelihood", "-"), ("ncml", "direct", "NCML, drawn at t = 0", "-"))
    for axis, (name, found) in zip(axes, entries.items(), strict=True):
        for way, kind, label, style in (*kinds, ("ncml", "two-part", "NCML, in two parts", "--")):
            runs = [run[kind] for key, run in found.items() if key.startswith(f"{way}, seed") and kind in run]
            for i, run in enumerate(runs):
                after = [0, *run["left after"], found["length"]]
                left = [100.0 * k / run["windows"] for k in range(len(run["left after"]) + 1)]
                drawn = {"color": COLOURS[way], "label": "" if i else label}
                drawn |= {"linewidth": 3.5, "alpha": 0.5} if way == "ml" else {}  # seen also where others lie on it
                axis.step(after, [*left, left[-1]], style, where="post", **drawn)
        problem, _, model = name.rsplit("-", 2)
        axis.set_title(f"{SHORT[problem]}, {MODELS[model]}", fontsize=9)
        axis.set_xlabel("values drawn, from windows of 64")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("sequences beyond the data, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)
