"""Records runs of ``ncml train`` that were evaluated, and writes their page.

From the root of the repository, with runs/cifar16/{ml,vp,sub-vp,ve} trained and evaluated (examples/cifar16_ncpn):

    python docs/results/ncpn.py record cifar16 runs/cifar16 --commit "$(git rev-parse --short HEAD)"
    python docs/results/ncpn.py ablation runs/ablation/ablation.json --commit "$(git rev-parse --short HEAD)"
    python docs/results/ncpn.py ablation runs/models.json --commit "$(git rev-parse --short HEAD)"
    python docs/results/ncpn.py pages
    python docs/results/ncpn.py figures # again, from what was recorded
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = {"ml": "ML", "vp": "NCML, VP", "sub-vp": "NCML, sub-VP", "ve": "NCML, VE"}
COLOURS = {"ml": "#D55E00", "vp": "#0072B2", "sub-vp": "#009E73", "ve": "#CC79A7"}
OTHER = "CIFAR-10, large network: not comparable"
FOLDERS = ("folder", "cache", "ood", "out", "run", "claims")
SHOWN = 16  # samples in a row of the picture
STATISTICS = {
    "log_p": r"$\log p$",
    "log_p_plus_log_score_norm": r"$\log p + \log\lVert\nabla\log p\rVert$ (paper)",
    "minus_score_norm": r"$-\lVert\nabla\log p\rVert$",
    "score_sum": "sum of the score",
    "typical_log_p": r"typical $\log p$",
    "typical_likelihood_ratios": "typical ratios between levels",
    "typical_score_norms": "typical score norms over levels",
    "typical_ladder": "typical ratios and norms",
}
"""Of the tables of outliers; typical: how near to training data. Older records lack the last five."""


def record(name: str, folder: Path, commit: str) -> None:
    """Put the reports of all runs of a folder into one file, and their pictures beside it."""
    runs = {}
    for key in NAMES:
        run = folder / key
        if not (run / "evaluation" / "report.json").exists():
            continue
        training = json.loads((run / "report.json").read_text())
        evaluation = json.loads((run / "evaluation" / "report.json").read_text())
        model = evaluation.pop("model")
        evaluation["settings"] = {k: v for k, v in evaluation["settings"].items() if k not in FOLDERS}
        runs[key] = {
            "settings": relative(training["settings"]),
            "environment": training["environment"],
            "parameters": training["parameters"],
            "training_examples": training["training_examples"],
            "training_seconds": training["training_seconds"],
            "step": model["step"],
            "evaluation": evaluation,
        }
    (HERE / f"{name}.json").write_text(json.dumps({"commit": commit, "runs": runs}, indent=1) + "\n")
    draw(name, runs)
    draw_samples(name, folder)
    draw_completions(name, folder)


def draw_samples(name: str, folder: Path) -> None:
    """Samples of every run that has some, a row for direct and one for two-part samples; of a single run, all."""
    import numpy as np
    import torch

    from ncml import Lattice
    from ncml.evaluation import save_grid

    paths = [folder / key / way / "samples.npy" for key in NAMES for way in ("direct", "two-part")]
    found = [torch.from_numpy(np.load(path, allow_pickle=False)) for path in paths if path.exists()]
    if found:
        shown, columns = (None, 10) if len(found) == 1 else (SHOWN, SHOWN)  # labels go round by ten
        rows = torch.cat([Lattice(256).to_unit(levels[:shown]) for levels in found])
        save_grid(rows, HERE / f"{name}-samples.png", columns=columns, scale=3)


def draw_completions(name: str, folder: Path) -> None:
    """The completions of every run that has some, side by side."""
    from PIL import Image

    paths = [folder / key / "completions" / "completions.png" for key in NAMES]
    grids = [Image.open(path).convert("RGB") for path in paths if path.exists()]
    if grids:
        gap = 12
        size = sum(grid.width + gap for grid in grids) - gap, max(grid.height for grid in grids)
        joined, left = Image.new("RGB", size, "white"), 0
        for grid in grids:
            joined.paste(grid, (left, 0))
            left += grid.width + gap
        joined.save(HERE / f"{name}-completions.png")


def relative(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of folders only."""
    data = {k: Path(v).name if k in FOLDERS and v else v for k, v in settings["data"].items()}
    return {**settings, "data": data}


def draw(name: str, runs: dict[str, Any]) -> None:
    """What level noise costs over t, and the size of the noise: the paper's Figure 4, with ML as its competitor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    *left, right = figure.subplots(1, 3)
    for key, run in runs.items():
        curve = run["evaluation"]["robustness"]
        style = {"marker": "o", "markersize": 3, "color": COLOURS[key], "label": NAMES[key]}
        for axis, pi in zip(left, ("0.5", "1.0"), strict=True):
            if key == "ml":  # which knows t = 0 only
                axis.axhline(curve["delta"][pi][0], color=COLOURS[key], linestyle=":", label="ML at t = 0")
            else:
                axis.plot(curve["sigma_levels"], curve["delta"][pi], **style)
        if key != "ml":
            times = [t / curve["T"] for t in curve["times"]]
            right.plot(times, curve["mean_abs_perturbation_levels"], **style)
    for axis, pi in zip(left, (0.5, 1), strict=True):
        axis.set_title(f"Cost of level noise, $\\pi$ = {pi:g}", fontsize=10)
        axis.set_xlabel("noise level $\\sigma(t)$ (levels)")
        axis.set_ylabel("$\\Delta$ log p (bits/dim)")
    right.set_title("Size of the noise", fontsize=10)
    right.set_xlabel("t / T")
    right.set_ylabel("mean $|x_t - x_0|$ (levels)")
    right.axhline(1.0, color="0.4", linestyle=":")  # what level noise moves a value by
    for axis in (*left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    left[0].legend(frameon=False, fontsize=8)
    figure.savefig(HERE / f"{name}.png", dpi=130)


def record_ablation(path: Path, commit: str) -> None:
    """Keep the results of the ablation, or of models_on_digits.py, without folders of the machine."""
    data = json.loads(path.read_text())
    for variant in data.get("variants", ()):
        variant["settings"] = relative(variant["settings"])
    name = "models" if "kinds" in data else "ablation"
    (HERE / f"{name}.json").write_text(json.dumps({"commit": commit, **data}, indent=1) + "\n")


def models_table(data: dict[str, Any]) -> list[str]:
    """One row per kind of model and way of training: means over the seeds, and how they spread."""
    names = {"made": "MADE", "ncpn": "NCPN", "maf": "MAF, dequantised (bounds, <=)"}
    ways = {"ml": "ML", "ncml": "NCML"}
    machine, seeds = data["environment"], sorted({run["seed"] for run in data["runs"]})
    lines = [
        f"{data['training_images']:,} training and {data['test_images']} test images of 8x8 pixels in 17 levels; VP",
        f"noise of 2 levels at T; {len(seeds)} seeds, means and standard deviations over them.",
        f"torch {machine['torch']}, {machine['device']}, one thread.",
        f"Commit {data['commit']}.",
        "",
        r"| | parameters | bits/dim, $\pi$ = 0 | $\pi$ = 0.5 | $\pi$ = 1 | $\Delta \log p$, $\pi$ = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, name in names.items():
        for way, label in ways.items():
            runs = [run for run in data["runs"] if (run["model"], run["method"]) == (kind, way)]
            columns = [[run["bits"][pi] for run in runs] for pi in ("0", "0.5", "1")]
            columns.append([last - first for first, last in zip(columns[0], columns[2], strict=True)])
            cells = [f"{statistics.mean(c):.3f} ± {statistics.stdev(c):.3f}" for c in columns]
            lines.append(f"| {name}, {label} | {runs[0]['parameters']:,} | " + " | ".join(cells) + " |")
    return lines


def best(values: list[float], lower: bool = True, digits: int = 3) -> list[str]:
    """Cells of a row, the best in bold, if they differ."""
    rounded = [round(v, digits) for v in values]
    winner = min(rounded) if lower else max(rounded)
    return [f"**{v:.{digits}f}**" if v == winner and len(set(rounded)) > 1 else f"{v:.{digits}f}" for v in rounded]


def table(head: str, keys: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    """A table with one column per run."""
    lines = ["", f"| {head} | " + " | ".join(NAMES[k] for k in keys) + " |", "| --- |" + " --- |" * len(keys)]
    return lines + [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows]


def paper(keys: list[str]) -> dict[str, list[str]]:
    """The paper's numbers for NCPN on CIFAR-10, a cell for each run, by what they are called in its claims.json."""
    claims = json.loads((HERE.parents[1] / "examples" / "cifar10_ncpn" / "claims.json").read_text())["rows"]
    runs = {"ml": "NCPN (ML)", "vp": "NCPN (NCML-VP)", "sub-vp": "NCPN (NCML-subVP)", "ve": "NCPN (NCML-VE)"}
    numbers = [{name: v for table in claims[runs[key]].values() for name, v in table.items()} for key in keys]
    return {name: [f"{n[name]:.2f}" for n in numbers] for name in numbers[0]}


def results(data: dict[str, Any], claims: dict[str, list[str]]) -> list[str]:
    """The tables of one recorded set of runs, with a paper's numbers for other runs beside them, if there are any."""
    runs: dict[str, Any] = data["runs"]
    keys = list(runs)
    evaluations = [run["evaluation"] for run in runs.values()]
    rows = []
    for pi in ("0", "0.5", "1"):
        bits = [e["bits_per_dim"][pi]["bits"] for e in evaluations]
        moved = evaluations[0]["bits_per_dim"][pi]["moved"]
        error = max(b["standard_error"] for b in bits)
        label = rf"$\pi$ = {pi} ({moved:.0%} of the values move; s.e. {error:.3f})"
        rows.append((label, best([b["mean"] for b in bits])))
        if claims:
            rows.append((f"... paper, {OTHER}", claims[f"bits/dim pi={pi}"]))
    lines = table("bits/dim at t = 0, exact, test images (lower is better)", keys, rows)

    rows = []
    for outliers in evaluations[0]["auroc"]:
        for key, label in STATISTICS.items():
            found = [e["auroc"].get(outliers, {}).get(key) for e in evaluations]
            if not any(found):
                continue
            width = max(0.5 * (f["high"] - f["low"]) for f in found if f)
            cells = iter(best([f["value"] for f in found if f], lower=False))
            label += f" (± {width:.3f})" if width >= 5e-4 else ""
            rows.append((f"{outliers}, {label}", [next(cells) if f else "-" for f in found]))
            if key == "log_p_plus_log_score_norm" and f"AUROC {outliers}" in claims:
                rows.append((f"... paper, {OTHER}", claims[f"AUROC {outliers}"]))
    lines += table("AUROC, test images against ... (higher is better)", keys, rows)

    if "frechet" in evaluations[0]:
        rows = []
        for way in ("direct", "two-part"):
            values = [e["frechet"]["distances"].get(way) for e in evaluations]
            rows.append((f"{way} samples", ["-" if v is None else f"{v:.2f}" for v in values]))
        reference = evaluations[0]["frechet"]["distances"]["test images"]
        rows.append(("as many test images", [f"{reference:.2f}"] * len(keys)))
        lines += table("Fréchet distance, a classifier's features (lower is better; no FID)", keys, rows)
    return lines


def either(values: dict[str, Any], new: str, old: str) -> Any:
    """A value by its name, or by the one that it had in version 0.1."""
    return values[new if new in values else old]


def conditions(data: dict[str, Any]) -> list[str]:
    """How the runs were made."""
    run = next(iter(data["runs"].values()))
    settings, machine = run["settings"], run["environment"]
    optim, noise, network = settings["optim"], settings["noise"], either(settings, "model", "network")
    levels, tested = either(noise, "std_in_levels", "levels"), either(run["evaluation"], "test_examples", "test_images")
    minutes = ", ".join(f"{r['training_seconds'] / 60:.0f}" for r in data["runs"].values())
    return [
        f"NCPN `{network['preset']}` ({run['parameters']:,} parameters), {run['step']} steps of {optim['batch_size']}",
        f"of {either(run, 'training_examples', 'training_images'):,} images, learning rate {optim['learning_rate']:g},",
        f"seed {settings['run']['seed']}; noise up to {levels:g} levels, a share of",
        f"{noise['p_zero']:g} of each batch at t = 0 (all of it for ML). {tested:,} test",
        f"images. torch {machine['torch']}, {machine['device']}, {machine['threads']} thread(s); training took",
        f"{minutes} minutes, with other work on the machine. Commit {data['commit']}.",
    ]


def pages() -> None:
    """Write the pages of what has been recorded."""
    for path in sorted(HERE.glob("*.words.txt")):
        name = path.name.removesuffix(".words.txt")
        (HERE / f"{name}.md").write_text(page(name))


def page(name: str) -> str:
    """The words, with the tables of the record in their place."""
    data = json.loads((HERE / f"{name}.json").read_text())
    if "kinds" in data:
        body = models_table(data)
    elif "variants" in data:
        body = ablation_table(data)
    else:
        claims = paper(list(data["runs"])) if name.startswith("cifar") else {}
        body = [*conditions(data), *results(data, claims)]
    return (HERE / f"{name}.words.txt").read_text().replace("(tables)", "\n".join(body))


def ablation_table(data: dict[str, Any]) -> list[str]:
    """One row per variant."""
    settings = data["variants"][0]["settings"]
    optim = settings["optim"]
    lines = [
        f"NCPN `tiny` without attention, {optim['steps']} steps of {optim['batch_size']}, learning rate",
        f"{optim['learning_rate']:g}, one seed, VP noise; the same test images and the same noise for all. Commit",
        f"{data['commit']}.",
        "",
        r"| one thing changed | $\pi$ = 0 | $\pi$ = 0.5 | $\pi$ = 1 | t with 5 levels of noise |",
        "| --- | --- | --- | --- | --- |",
    ]
    for variant in data["variants"]:
        bits = [variant["results"].get(key) for key in ("pi = 0", "pi = 0.5", "pi = 1", "at 5 levels")]
        cells = " | ".join("-" if b is None else f"{b['mean']:.3f}" for b in bits)
        lines.append(f"| {variant['variant']} | {cells} |")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("record")
    add.add_argument("name")
    add.add_argument("folder", type=Path)
    add.add_argument("--commit", required=True)
    add = commands.add_parser("ablation")
    add.add_argument("path", type=Path)
    add.add_argument("--commit", required=True)
    commands.add_parser("pages")
    commands.add_parser("figures")
    options = parser.parse_args()
    if options.command == "record":
        record(options.name, options.folder, options.commit)
    elif options.command == "ablation":
        record_ablation(options.path, options.commit)
    elif options.command == "figures":
        for path in sorted(HERE.glob("*.words.txt")):
            name = path.name.removesuffix(".words.txt")
            if (HERE / f"{name}.png").exists():
                draw(name, json.loads((HERE / f"{name}.json").read_text())["runs"])
    else:
        pages()


if __name__ == "__main__":
    main()
