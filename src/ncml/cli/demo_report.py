"""How ``ncml demo`` shows its results: a table on the terminal and one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ncml.errors import MissingExtraError

__all__ = ["draw_figure", "print_report"]

STATISTICS = {
    "log_p": "log p",
    "minus_score_norm": "-|score|",
    "log_p_plus_log_score_norm": "log p + log |score| (paper)",
}


def print_report(report: dict[str, Any]) -> None:
    """Print the tables, with the better of the two models marked in every row."""
    _print_paths(report["paths"], report["settings"]["paths"])
    process, settings, data = report["process"], report["settings"], report["data"]
    print(f"\nDigits 8x8, 17 levels: {data['train']} training and {data['test']} test images, seed {settings['seed']}")
    print(
        f"The same MADE ({report['parameters']:,} parameters), {settings['steps']} steps of {settings['batch_size']};"
    )
    print(f"NCML with VP noise up to {process['sigma_T_levels']:g} levels (T = {process['T']:.4f}).")
    ml, ncml = report["bits_per_dim"]["ML"], report["bits_per_dim"]["NCML"]
    _heading("Bits/dim at t = 0 under level noise (exact, test images; lower is better)", "ML", "NCML")
    for a, b in zip(ml, ncml, strict=True):
        _row(f"pi = {a.pi:g}  ({a.moved:.0%} of values moved)", a.bits.mean, b.bits.mean, lower=True)
        if a.pi == 0:
            print(f"    standard error of the difference: {_paired_error(a.bits.values - b.bits.values):.4f}")

    _heading("AUROC, test images against ... (higher is better)", "ML", "NCML")
    for name, statistics in report["auroc"]["ML"].items():
        for key, label in STATISTICS.items():
            _row(f"{name}, {label}", float(statistics[key]), float(report["auroc"]["NCML"][name][key]), lower=False)

    print("\nFréchet distance to the training images (lower is better)")
    print(f"  in 32 features of a classifier trained here, test accuracy {report['classifier_accuracy']:.1%};")
    print(f"  {settings['sample_seeds']} sets of {settings['samples']} samples: mean +- standard deviation over sets")
    best = min((d["mean"], name) for name, d in report["frechet"].items() if name != "test images")[1]
    for name, d in report["frechet"].items():
        mark = " *" if name == best else ""
        print(f"  {name:<44}{d['mean']:>10.3f} +- {d['std']:.3f}{mark}")
    print("\n* the better number for this seed, whatever the spread. An AUROC below 0.5 ranks the wrong way round.")
    threads = report["environment"]["threads"]
    print(f"{report['seconds']:.0f} s on {threads} thread{'' if threads == 1 else 's'}.")


def _print_paths(paths: dict[str, Any], settings: dict[str, Any]) -> None:
    """The numbers on paths, and the exact ones."""
    print(f"\nSmooth paths of {settings['length']} values: {settings['train']:,} paths of a Gaussian process")
    print(f"The same MADE ({paths['parameters']:,} parameters), {settings['steps']} steps of {settings['batch_size']}.")
    _heading("Nats per value at t = 0 (fresh paths; lower is better)", "ML", "NCML", "exact")
    nats = paths["nats"]
    _row("", nats["ML"], nats["NCML"], lower=True, exact=paths["exact nats"])
    print(f"\n{settings['samples']:,} samples of each\n  {'':<24}{'beyond the data':>17}{'largest':>11}", end="")
    print(f"{'roughness':>11}{'energy distance':>17}")
    for name, found in paths["samples"].items():
        print(f"  {name:<24}{found['beyond']:>17.2%}{found['largest']:>11.4g}{found['roughness']:>11.3f}", end="")
        print(f"{found['energy']:>17.4f}")
    print(f"  Two-part: drawn at noise {settings['t_start']:g}, refined in {settings['refine_steps']} steps.", end="")
    print(f" Exact roughness: {paths['exact roughness']:.3f}.")
    print("  The distance is to other fresh paths, leaving out samples beyond the data.")


def _paired_error(difference: Tensor) -> float:
    return float(difference.std() / len(difference) ** 0.5)


def _heading(title: str, *columns: str) -> None:
    print(f"\n{title}\n  {'':<44}" + "".join(f"{c:>10}  " for c in columns))


def _row(label: str, ml: float, ncml: float, lower: bool, exact: float | None = None) -> None:
    ml, ncml = round(ml, 3), round(ncml, 3)  # as printed: no winner between equal figures
    better = min(ml, ncml) if lower else max(ml, ncml)
    cells = "".join(f"{v:>10.3f}{' *' if v == better and ml != ncml else '  '}" for v in (ml, ncml))
    truth = "" if exact is None else f"{exact:>10.3f}"
    print(f"  {label:<44}{cells}{truth}".rstrip())


def draw_figure(shown: dict[str, Any], path: Path, title: str | None = None) -> None:
    """Paths at the top; below them rows of images on the left, the robustness curves of both models on the right."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("demo: matplotlib is not installed; pip install 'ncml[demo]'") from error
    samples = shown["samples"]
    rows = {
        "data": shown["data"],
        "ML, direct samples": samples["ML direct"],
        "NCML, direct samples (t = 0)": samples["NCML direct"],
        "NCML, part one: drawn at t = T": samples["NCML noisy"],
        "NCML, part two: the same, refined to t = 0": samples["NCML two-part"],
    }
    count = len(shown["data"])
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 1.0], height_ratios=[2.4, 4.6])
    left, right = figure.add_subfigure(grid[1, 0]), figure.add_subfigure(grid[1, 1])
    _draw_paths(figure.add_subfigure(grid[0, :]), shown["paths"])
    for axis, (label, images) in zip(left.subplots(len(rows), 1), rows.items(), strict=True):
        axis.imshow(_strip(images[:count]).numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_axis_off()

    robustness, likelihood = right.subplots(2, 1, sharex=True)
    for (name, curve), colour in zip(shown["curves"].items(), ("#D55E00", "#0072B2"), strict=True):
        style = {"marker": "o", "markersize": 3, "color": colour}
        for (pi, values), line in zip(curve.delta.items(), (":", "-"), strict=True):
            robustness.plot(curve.sigma, values, line, label=f"{name}, $\\pi$ = {pi:g}", **style)
        clean = [result.clean.mean for result in next(iter(curve.results.values()))]
        likelihood.plot(curve.sigma, clean, label=name, **style)
    robustness.set_title("Cost of moving values by one level", fontsize=10)
    robustness.set_ylabel("$\\Delta$ log p (bits/dim)")
    robustness.set_ylim(bottom=0)
    likelihood.set_title("Fit to the noisy data (ML is trained at t = 0 only)", fontsize=10)
    likelihood.set_ylabel("-log p$_t$ (bits/dim)")
    likelihood.set_xlabel("noise level $\\sigma(t)$ (levels)")
    for axis in (robustness, likelihood):
        axis.legend(frameon=False, fontsize=8, handlelength=3)
        axis.grid(alpha=0.3)
    if title is not None:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _draw_paths(figure: Any, paths: dict[str, Tensor]) -> None:  # noqa: ANN401 -- a part of matplotlib's figure
    """Some paths of every kind, side by side."""
    titles = {
        "fresh paths": "the data: smooth paths",
        "ML direct": "drawn by ML",
        "NCML direct": "drawn by NCML at t = 0",
    }
    axes = figure.subplots(1, len(paths), sharey=True)
    for axis, (name, rows) in zip(axes, paths.items(), strict=True):
        axis.plot(rows.T.numpy(), linewidth=0.9)
        axis.set_title(titles.get(name, "drawn by NCML with noise, refined"), fontsize=10)
        axis.set_ylim(-4, 4)
        axis.grid(alpha=0.3)


def _strip(images: Tensor) -> Tensor:
    """Images ``(N, 1, H, W)`` side by side with a white gap, ``(H, N (W + 1) - 1)``."""
    padded = torch.nn.functional.pad(images.clamp(-1, 1)[:, 0], (0, 1), value=1.0)
    return torch.cat(list(padded), dim=1)[:, :-1]
