"""Writes demo.md from the reports of ``ncml demo`` beside it, one per seed.

To record them anew, from the root of the repository:

    for seed in 0 1 2; do ncml demo --seed $seed --out runs/demo-$seed; done
    for seed in 0 1 2; do cp runs/demo-$seed/report.json docs/results/demo-seed$seed.json; done
    cp runs/demo-0/figure.png docs/results/demo-seed0.png
    python docs/results/demo.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median

HERE = Path(__file__).parent
STATISTICS = {
    "log_p": r"$\log p$",
    "minus_score_norm": r"$-\lVert\nabla\log p\rVert$",
    "log_p_plus_log_score_norm": r"$\log p + \log\lVert\nabla\log p\rVert$ (paper)",
}


def cell(values: list[float]) -> str:
    """Mean over seeds, and the smallest and largest."""
    return f"{mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def row(label: str, ml: list[float], ncml: list[float], lower: bool) -> str:
    """One line of a table, the better mean in bold."""
    a, b = round(mean(ml), 3), round(mean(ncml), 3)
    cells = [cell(ml), cell(ncml)]
    if a != b:
        better = int((b < a) == lower)
        cells[better] = f"**{cells[better]}**"
    return f"| {label} | {cells[0]} | {cells[1]} |"


def paths_lines(reports: list[dict]) -> list[str]:
    """The part on smooth paths."""
    settings, first = reports[0]["settings"]["paths"], reports[0]["paths"]
    found = [r["paths"] for r in reports]
    lines = [
        "## Smooth paths",
        "",
        f"Paths of {settings['length']} values of a Gaussian process (squared-exponential kernel of length",
        f"{settings['kernel_length']:g}, {settings['nugget']:g} on its diagonal), whose exact distribution is known. A",
        f"MADE of {first['parameters']:,} parameters, {settings['steps']} steps of {settings['batch_size']} of",
        f"{settings['train']:,} paths, noise $\\sigma_t = t$ up to {settings['sigma_max']:g}.",
        "",
        "| nats per value at t = 0, fresh paths (lower is better) | ML | NCML | exact |",
        "| --- | --- | --- | --- |",
        row("", *([p["nats"][name] for p in found] for name in ("ML", "NCML")), lower=True)
        + f" {first['exact nats']:.3f} |",
        "",
        f"| {settings['samples']:,} samples | beyond the data | roughness, median | energy distance to fresh paths |",
        "| --- | --- | --- | --- |",
    ]
    for name in first["samples"]:
        kinds = [p["samples"][name] for p in found]
        beyond = [k["beyond"] for k in kinds]
        share = f"{mean(beyond):.2%} ({min(beyond):.2%} .. {max(beyond):.2%})"
        energy = [k["energy"] for k in kinds]
        distance = f"{mean(energy):.4f} ({min(energy):.4f} .. {max(energy):.4f})"
        lines.append(f"| {name} | {share} | {cell([k['roughness'] for k in kinds])} | {distance} |")
    return [
        *lines,
        "",
        "A path is beyond the data if it has a value beyond 1.05 times the largest of all training paths; the distance",
        "leaves such paths out. Roughness is the root mean square of second differences (exact value:",
        f"{first['exact roughness']:.3f}). Two-part samples are drawn at noise {settings['t_start']:g} and refined in",
        f"{settings['refine_steps']} steps.",
        "",
        "![Seed 0: paths; samples of digits, and what one level of noise costs](demo-seed0.png)",
        "",
    ]


def page(reports: list[dict]) -> str:
    """The page, from the reports alone."""
    first = reports[0]
    settings, environment, process, data = (first[key] for key in ("settings", "environment", "process", "data"))
    seeds = ", ".join(str(r["settings"]["seed"]) for r in reports)
    seconds = median(r["seconds"] for r in reports)
    lines = [
        "# The demo, three seeds",
        "",
        f"`ncml demo` trains the same network by maximum likelihood (ML) and by NCML. Seeds {seeds}; torch",
        f"{environment['torch']}, {environment['threads']} threads, {seconds:.0f} s a run (median).",
        "Cells give the mean over training seeds, with the smallest and the largest; the better mean is bold.",
        "",
        *paths_lines(reports),
        "## Digits",
        "",
        f"The digits of scikit-learn ({data['train']} training and {data['test']} test images of 8x8 pixels in 17",
        f"levels): a MADE of {first['parameters']:,} parameters, {settings['steps']} steps of",
        f"{settings['batch_size']}, VP noise up to {process['sigma_T_levels']:g} levels. Compare the figures only with",
        "each other, not with published ones.",
        "",
        "| bits/dim, exact, test images (lower is better) | ML | NCML |",
        "| --- | --- | --- |",
    ]
    for i, entry in enumerate(first["bits_per_dim"]["ML"]):
        ml, ncml = ([r["bits_per_dim"][name][i]["bits"]["mean"] for r in reports] for name in ("ML", "NCML"))
        lines.append(row(rf"$\pi$ = {entry['pi']:g} ({entry['moved']:.0%} of the values move)", ml, ncml, lower=True))
    lines += ["", "| AUROC, test images against ... (higher is better) | ML | NCML |", "| --- | --- | --- |"]
    for outlier in first["auroc"]["ML"]:
        for key, label in STATISTICS.items():
            ml, ncml = ([r["auroc"][name][outlier][key]["value"] for r in reports] for name in ("ML", "NCML"))
            lines.append(row(f"{outlier}, {label}", ml, ncml, lower=False))
    lines += [
        "",
        f"| Fréchet distance to the training images, {settings['samples']} samples (lower is better) | |",
        "| --- | --- |",
    ]
    for name in first["frechet"]:
        lines.append(f"| {name} | {cell([r['frechet'][name]['mean'] for r in reports])} |")
    lines += [
        "",
        "The distance is computed in 32 features of one small classifier",
        f"(test accuracy {first['classifier_accuracy']:.1%}), the same for all seeds; each run averages over",
        f"{settings['sample_seeds']} sets of samples. It is not the FID of the literature; the 360 test images",
        "show its scale. An AUROC below 0.5 means the wrong order: there the score tends to be larger on the",
        "digits than on the outliers.",
        "",
        "Recorded by:",
        "",
        "```bash",
        *(line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    ")),
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    paths = sorted(HERE.glob("demo-seed*.json"))
    (HERE / "demo.md").write_text(page([json.loads(path.read_text()) for path in paths]))
