"""Writes images.md from images.json and images.page.txt beside it.

To record them anew, see examples/images/README.md; then, from the root of the repository,

    python docs/results/images.py --collect runs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = {"flow": "transformer flow", "ncpn": "NCPN"}
DATA = {"mnist": "MNIST at 16x16", "cifar16": "CIFAR-16"}
WAYS = {
    "ml": "maximum likelihood",
    "ncml": "NCML",
    "scored": "NCML and score matching",
    "planck": "NCML and Fokker-Planck penalty",
}


def collect(runs: Path, recorded: dict[str, Any]) -> dict[str, Any]:
    """The runs by data and model; of others, as recorded."""
    found = dict(recorded)
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        new = [json.loads(file.read_text()) for file in sorted(folder.glob("*/images.json"))]
        latest = {(run["way"], run["seed"]): run for run in (*found.get(folder.name, ()), *new)}
        steps = {run["steps"] for run in latest.values()}
        if len(steps) > 1:
            raise SystemExit(f"{folder}: got runs of {sorted(steps)} steps, with those recorded; expected one number")
        found[folder.name] = [latest[key] for key in sorted(latest)]
    return found


def cells(values: list[float], form: str = ".3g") -> str:
    """One value per seed."""
    return " / ".join(f"{value:,.0f}" if value >= 1000.0 else f"{value:{form}}" for value in values)


def main_table(runs: list[dict[str, Any]]) -> list[str]:
    """Likelihood and distances, one value per seed."""
    rulers = list(runs[0]["direct"])
    heads = "".join(f" Fréchet, {name} |" for name in rulers)
    lines = [
        f"| 2,000 images a side; less is better | bits/dim at t = 0 |{heads} starts at sigma, solver |",
        "| --- |" + " --- |" * (len(rulers) + 2),
    ]
    for way, label in WAYS.items():
        own = [run for run in runs if run["way"] == way]
        for kind, name in (("direct", f"{label}, drawn at t = 0"), ("two-part", f"{label}, in two parts")):
            if own and kind in own[0]:
                bits = cells([run["bits per dim"] for run in own], ".3f") if kind == "direct" else ""
                distances = "".join(f" {cells([run[kind][ruler] for run in own])} |" for ruler in rulers)
                starts = (
                    "; ".join(f"{r[kind]['sigma']:g}, {r[kind]['solver']}" for r in own) if kind != "direct" else ""
                )
                lines.append(f"| {name} | {bits} |{distances} {starts} |")
    floor = "".join(f" {cells([runs[0]['held-out'][ruler]])} |" for ruler in rulers)
    return [*lines, f"| *training images* | |{floor} |"]


def parts(runs: list[dict[str, Any]], way: str) -> list[str]:
    """The errors of the two parts, one value per seed."""
    own = [run for run in runs if run["way"] == way]
    if not own:
        return []
    solvers = [name for name in own[0]["parts"][0] if isinstance(own[0]["parts"][0][name], dict)]
    head = "".join(f" {solver}: noisy images refined | draws refined |" for solver in solvers)
    lines = [
        f"| {WAYS[way]}, 250 images a side: sigma | other noisy images | draws |{head}",
        "| --- | --- | --- |" + " --- | --- |" * len(solvers),
    ]
    for i, part in enumerate(own[0]["parts"]):
        same = [run["parts"][i] for run in own]
        kinds = ("other noisy data", "draws at sigma against noisy data")
        row = [f"{part['sigma']:g}", *(cells([p[kind] for p in same]) for kind in kinds)]
        for solver in solvers:
            row += [cells([p[solver][kind] for p in same]) for kind in ("real noisy data refined", "draws refined")]
        lines.append("| " + " | ".join(row) + " |")
    clean = cells([own[0]["other images"]])
    return [*lines, "", f"*Other images without noise: {clean}; compare refined draws with this.*", ""]


def page(data: dict[str, Any], words: str) -> str:
    """The page, from the numbers and the words alone."""
    lines = []
    for name, runs in data.items():
        kind, model = name.split("-")
        lines += [
            f"## {DATA[kind]}: {MODELS[model]}, {runs[0]['steps']:,} steps",
            "",
            *main_table(runs),
            "",
            *(line for way in ("ncml", "scored") for line in parts(runs, way)),
            "",
        ]
    return words.replace("(tables)", "\n".join(lines).strip())


def main() -> None:
    """Write the page, after collecting the runs if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="folder of the runs")
    args = parser.parse_args()
    file = HERE / "images.json"
    data = json.loads(file.read_text()) if file.exists() else {}
    if args.collect:
        data = collect(args.collect, data)
        file.write_text(json.dumps(data) + "\n")
    (HERE / "images.md").write_text(page(data, (HERE / "images.page.txt").read_text()))


if __name__ == "__main__":
    main()
