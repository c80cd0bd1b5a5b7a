"""Writes sequences.md from sequences.json and sequences.page.txt beside it.

To record them anew, see examples/sequences/README.md; then, from the root of the repository,

    python docs/results/sequences.py --collect runs/sequences
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = {"made": "MADE", "transformer": "causal transformer"}
PROBLEMS = {
    "paths-0.0001": "Smooth paths, 1e-4 on the kernel's diagonal",
    "paths-1e-08": "Smooth paths, 1e-8 on the kernel's diagonal",
    "recordings": "Instrument recordings, 16 bits, 8 kHz",
}
SHORT = {"paths-0.0001": "paths, 1e-4", "paths-1e-08": "paths, 1e-8", "recordings": "recordings"}
ROWS = (
    ("ml", "direct", "maximum likelihood"),
    ("fixed", "direct", "one noise level, drawn there"),
    ("fixed", "two-part", "one noise level, then Tweedie"),
    ("ncml", "direct", "NCML, drawn at t = 0"),
    ("ncml", "two-part", "NCML, in two parts"),
    ("first", "direct", "maximum likelihood, other settings"),
    ("other", "direct", "NCML, other settings, drawn at t = 0"),
    ("other", "two-part", "NCML, other settings, in two parts"),
    ("cam", "direct", "CAM, noisy context, fed back with noise"),
    ("scored", "direct", "NCML and score matching, drawn at t = 0"),
    ("scored", "two-part", "NCML and score matching, in two parts"),
    ("planck", "direct", "NCML and Fokker-Planck penalty, drawn at t = 0"),
    ("planck", "two-part", "NCML and Fokker-Planck penalty, in two parts"),
)
TERMS = {"scored": "score_matching", "planck": "fokker_planck"}  # what is added to NCML, its settings otherwise
PICTURE = "paths-0.0001-64-made"  # whose windows are drawn
WAYS = {"ml": "maximum likelihood", "fixed": "one level", "ncml": "NCML", "cam": "CAM"}
OTHER = {"first": "ml", "other": "ncml"}  # tested with other settings than those that were chosen
WAYS |= {way: f"other settings of {WAYS[own]}" for way, own in OTHER.items()}
NOISE = {"p_zero": 0.15, "sigma_min": 0.0}  # how NCML and CAM draw levels, by default: 0 is for
SMALLEST = {"paths-0.0001": 0.005, "paths-1e-08": 0.005, "recordings": 0.002}
TUNING = 100  # the first seed that is not for the test


def named(settings: dict[str, Any]) -> str:
    """What tells runs apart."""
    return json.dumps(settings, sort_keys=True)


def collect(runs: Path, recorded: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page needs, without the samples themselves; what is not there, as it was recorded."""
    result = dict(recorded)
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        entry = dict(result.get(folder.name, {"mechanism": None}))
        reports = {named(run["settings"]): run for run in entry.get("runs", ())}
        for file in sorted(folder.glob("*seed*.json")):
            report = json.loads(file.read_text())
            for kind in report["samples"].values():
                kind.pop("shown", None)
            reports[named(report["settings"])] = report
        entry["runs"] = list(reports.values())
        if (file := folder / "floor.json").exists():
            entry["floor"] = json.loads(file.read_text())
        # One way after the other may have been run, here or elsewhere.
        for name in ("chosen", "mechanism", "long", "loudness"):
            if (file := folder / f"{name}.json").exists():
                entry[name] = {**(entry.get(name) or {}), **json.loads(file.read_text())}
        result[folder.name] = entry
    return result


def levels(problem: str, settings: dict[str, Any]) -> str:
    """How often t = 0 is drawn, and where the noise ends."""
    return f"{settings['p_zero']:g} at t = 0, noise down to {settings['sigma_min'] or SMALLEST[problem]:g}"


def final(entry: dict[str, Any], way: str) -> list[dict[str, Any]]:
    """The test runs of the chosen settings of a way of training, or of others of it, by seed."""
    own = {**OTHER, **dict.fromkeys(TERMS, "ncml")}.get(way, way)
    chosen = entry.get("chosen", {}).get(own)

    def kind(settings: dict[str, Any]) -> str:
        terms = [name for name, term in TERMS.items() if settings[term]]
        same = all(settings[name] == value for name, value in chosen.items() if name != "seed")
        return terms[0] if terms else own if same else {v: k for k, v in OTHER.items()}.get(own, "")

    tested = [r for r in entry["runs"] if r["settings"]["way"] == own and r["settings"]["seed"] < TUNING]
    found = [r for r in tested if chosen is not None and kind(r["settings"]) == way]
    return sorted(found, key=lambda r: r["settings"]["seed"])


def number(value: float | str) -> str:
    """Three significant digits; what is infinite is recorded as a word."""
    value = float(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def cells(values: list[float]) -> str:
    """One value per seed."""
    return " / ".join(number(v) for v in values)


def likelihood(entry: dict[str, Any], way: str, recordings: bool) -> str:
    """Per value at t = 0: bits above none for recordings, nats otherwise; dash where it was never trained."""
    runs = final(entry, way)
    if any("0" not in run["nats"] for run in runs):
        return "-"
    return " / ".join(bits_or_nats(run["nats"]["0"], recordings) for run in runs)


def share(kinds: list[dict[str, Any]]) -> str:
    """Windows beyond the data, in percent, with the interval of each seed."""
    return " / ".join(f"{k['share']:.2%} ({k['low']:.2%} .. {k['high']:.2%})" for k in kinds)


def main_table(name: str, entry: dict[str, Any]) -> list[str]:
    """The table of one problem and model."""
    recordings = name.startswith("recordings")
    draws, parts = (entry["runs"][0]["size"].get(kind, 4000) for kind in ("draws", "refined"))
    unit = "bits per sample" if recordings else "nats per value"
    lines = [
        f"| | {unit}, t = 0 | windows beyond the data, of {draws:,} (two parts: {parts:,}) | energy distance | "
        "Fréchet | log spectrum, dB | roughness |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, kind, label in ROWS:
        kinds = [run["samples"][kind] for run in final(entry, way) if kind in run["samples"]]
        if not kinds:
            continue
        lines.append(
            f"| {label} | {likelihood(entry, way, recordings) if kind == 'direct' else ''} | {share(kinds)} | "
            f"{cells([k['energy inside'] for k in kinds])} | {cells([k['frechet inside'] for k in kinds])} | "
            f"{cells([k['spectrum inside, dB'] for k in kinds])} | {cells([k['roughness']['median'] for k in kinds])} |"
        )
    floor = entry["floor"]["floor"]
    exact = final(entry, "ncml")[0]["exact nats"]["0"] if final(entry, "ncml") else None
    lines.append(
        f"| *held-out windows* | {'' if exact is None else f'{exact:.3f} (exact)'} | | {number(floor['energy'])} | "
        f"{number(floor['frechet'])} | {number(floor['spectrum inside, dB'])} | "
        f"{number(floor['roughness']['median'])} |"
    )
    return lines


def with_blown_up(entry: dict[str, Any]) -> list[str]:
    """The same distances with every window."""
    lines = ["| with every window | energy distance | Fréchet | largest value |", "| --- | --- | --- | --- |"]
    for way, kind, label in ROWS:
        kinds = [run["samples"][kind] for run in final(entry, way) if kind in run["samples"]]
        if kinds:
            columns = (cells([k[key] for k in kinds]) for key in ("energy", "frechet", "largest"))
            lines.append(f"| {label} | " + " | ".join(columns) + " |")
    return lines


def chosen(name: str, entry: dict[str, Any]) -> str:
    """What was chosen on validation windows."""
    words = []
    for way, label in WAYS.items():
        if runs := final(entry, way):
            s = runs[0]["settings"]
            setting = f"learning rate {s['learning_rate']:g}"
            setting += f", weight decay {s['weight_decay']:g}, dropout {s['dropout']:g}" if s["weight_decay"] else ""
            setting += f", sigma {s['sigma']:g}" if way == "fixed" else ""
            if way in ("ncml", "other", "cam"):
                setting += f", {levels(name.rsplit('-', 2)[0], s)}"
            if (source := runs[0].get("settings of")) and source != name:  # else from earlier runs of the same
                setting += f" (taken over from {source})"
            words.append(f"{label}: {setting}")
    said = f"Chosen: {'; '.join(words)}."
    starts = [
        f"{r['samples']['two-part']['sigma']:g} ({r['samples']['two-part']['solver']})" for r in final(entry, "ncml")
    ]
    if starts:
        said += f" Two-part samples start at {', '.join(starts)}."
    if fed_back := [f"{r['samples']['direct']['k']:g}" for r in final(entry, "cam")]:
        said += f" CAM feeds back noise of {', '.join(fed_back)}."
    return said


def excess(entry: dict[str, Any]) -> list[str]:
    """Nats above the exact entropy at every level, where it is known."""
    runs = final(entry, "ncml")
    if not runs or runs[0]["exact nats"]["0"] is None:
        return []
    levels = list(runs[0]["nats"])
    lines = ["", "| nats per value above the exact entropy | " + " | ".join(f"t = {s}" for s in levels) + " |"]
    lines.append("| --- |" + " --- |" * len(levels))
    for way in (*WAYS, *TERMS):
        for run in final(entry, way):
            row = [f"{run['nats'][s] - run['exact nats'][s]:.3f}" if s in run["nats"] else "" for s in levels]
            lines.append(f"| {way}, seed {run['settings']['seed']} | " + " | ".join(row) + " |")
    return lines


def tried_cell(case: dict[str, Any]) -> str:
    """Energy distance, and the share of windows beyond the data where that was looked at."""
    return number(case["energy"]) + (f" ({case['share']:.2%})" if "share" in case else "")


def grids(entry: dict[str, Any]) -> list[str]:
    """The whole grid on validation windows, and what was tried in training."""
    lines = []
    for run in final(entry, "ncml"):
        cases = run["samples"]["two-part"]["validation"]
        solvers = list(dict.fromkeys(c["solver"] for c in cases))
        sigmas = list(dict.fromkeys(c["sigma"] for c in cases))
        value = {(c["sigma"], c["solver"]): tried_cell(c) for c in cases}
        seed, chance = run["settings"]["seed"], run["samples"]["two-part"].get("chance")
        head = "" if chance is None else f" (+- {number(chance)} by chance; beyond the data)"
        lines += ["", f"| NCML, seed {seed}: energy distance on validation{head} | " + " | ".join(solvers) + " |"]
        lines.append("| --- |" + " --- |" * len(solvers))
        lines += [f"| from sigma {s:g} | " + " | ".join(value[s, v] for v in solvers) + " |" for s in sigmas]
    if runs := final(entry, "cam"):
        levels = [c["k"] for c in runs[0]["samples"]["direct"]["validation"]]
        head = " | ".join(f"noise {k:g} fed back" for k in levels)
        lines += ["", f"| CAM: energy distance on validation | {head} |", "| --- |" + " --- |" * len(levels)]
        for run in runs:
            row = [tried_cell(c) for c in run["samples"]["direct"]["validation"]]
            lines.append(f"| seed {run['settings']['seed']} | " + " | ".join(row) + " |")
    lines += ["", "| tried with one seed | nats per value on validation |", "| --- | --- |"]
    for run in entry["runs"]:
        s = run["settings"]
        if s["seed"] >= TUNING:
            keys = {"sigma": 0.0, **NOISE, "learning_rate": 2e-3, "weight_decay": 0.0, "dropout": 0.0}
            differs = ", ".join(f"{k} {s[k]:g}" for k, usual in keys.items() if s[k] != usual) or "as it is"
            nats = ", ".join(f"{v:.3f} at {k}" for k, v in list(run["nats"].items())[:1])
            lines.append(f"| {s['way']}: {differs} | {nats} |")
    return lines


def forecasts(entry: dict[str, Any]) -> list[str]:
    """CRPS over the horizon."""
    if not entry["mechanism"]:
        return []
    found = {name: run for name, run in entry["mechanism"].items() if name != "environment"}
    longest = max(len(run["forecasts"]["crps"]) for run in found.values())
    horizons = [h for h in (1, 2, 4, 8, 16, 32, 64, 128) if h <= longest]
    lines = [
        "",
        "| continuation of test windows: median CRPS at horizon | "
        + " | ".join(map(str, horizons))
        + " | in the 90 % band |",
        "| --- |" + " --- |" * (len(horizons) + 1),
    ]
    for name in sorted(found, key=lambda name: name == "exact"):  # last, whatever was run after it
        for key, label in (("forecasts", name), ("forecasts, refined", f"{name}, refined")):
            if f := found[name].get(key):
                inside = sum(f["coverage of 90 %"]) / len(f["coverage of 90 %"])
                values = [number(f["median crps"][h - 1]) for h in horizons]
                lines.append(f"| {label} | " + " | ".join(values) + f" | {inside:.0%} |")
    return lines


def bits_or_nats(nats: float, recordings: bool) -> str:
    """Bits per sample of recordings, nats per value otherwise."""
    return f"{nats / math.log(2) + math.log2(8000):.3f}" if recordings else f"{nats:.3f}"


def loud(entry: dict[str, Any]) -> list[str]:
    """How loud windows are, one value per seed, where that was measured."""
    if not (found := entry.get("loudness")):
        return []
    lines = ["", "| | median standard deviation of a window |", "| --- | --- |"]
    for way, kind, label in ROWS:
        values = [run[kind] for key, run in sorted(found.items()) if key.startswith(f"{way}, seed") and kind in run]
        if values:
            lines.append(f"| {label} | {cells(values)} |")
    return [*lines, f"| *test windows* | {number(found['test windows'])} |"]


def far_beyond(name: str, entry: dict[str, Any]) -> list[str]:
    """Sequences far longer than the window, one value per seed."""
    problem, _, model = name.rsplit("-", 2)
    recordings, long = problem == "recordings", entry["long"]
    seeds = {way: [run for key, run in long.items() if key.startswith(f"{way}, seed")] for way in ("ml", "ncml")}
    first = max((runs[0] for runs in seeds.values() if runs), key=len)  # with two parts, if any has them
    unit = "bits per sample, t = 0" if recordings else f"nats per value, t = 0 (exact {first['exact nats']:.3f})"
    parts = f" (two parts: {first['two-part']['windows']})" if "two-part" in first else ""
    lines = [
        f"| {PROBLEMS[problem]}, {MODELS[model]} | {unit} | "
        f"beyond the data, of {first['direct']['windows']}{parts} | "
        "last window: energy distance | roughness |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, kind, label in ROWS:
        if not seeds.get(way) or kind not in seeds[way][0]:
            continue
        own = seeds[way]
        likely = " / ".join(bits_or_nats(run["nats"], recordings) for run in own) if kind == "direct" else ""
        last = [run[kind]["last window"] for run in own]
        lines.append(
            f"| {label} | {likely} | {share([run[kind] for run in own])} | "
            f"{cells([k.get('energy inside', math.nan) for k in last])} | "
            f"{cells([k['roughness']['median'] for k in last])} |"
        )
    held = long["held-out"]
    return [
        *lines,
        f"| *test sequences* | | {held['share']:.2%} | {number(held['last window']['energy'])} | "
        f"{number(held['last window']['roughness']['median'])} |",
        "",
    ]


def span(values: list[float], form: str) -> str:
    """The least and the largest value, once where they look alike."""
    return " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))


def summary(data: dict[str, Any]) -> list[str]:
    """The table in short, for the README too: one row for each problem, length and model, of ranges over seeds."""
    lines = [
        "| | negative log-likelihood of a value at t = 0: ML / NCML "
        "| % of windows that leave the data: ML / NCML / in two parts "
        "| energy distance from test windows: ML / NCML / in two parts |",
        "| --- | --- | --- | --- |",
    ]
    order = list(SHORT)
    rows = sorted((name.rsplit("-", 2) for name in data), key=lambda row: (order.index(row[0]), int(row[1]), row[2]))
    for problem, length, model in rows:
        ml, *variants = (final(data["-".join((problem, length, model))], way) for way in ("ml", "ncml", "other"))
        rates = [{run["settings"]["learning_rate"] for run in runs} for runs in variants]
        # Other settings only where they are of the rate that was tuned, as maximum likelihood's is.
        variants = [runs for runs, rate in zip(variants, rates, strict=True) if runs and rate == rates[0]]
        for ncml in variants if ml else ():
            kinds = (ml, "direct"), (ncml, "direct"), (ncml, "two-part")
            ways = [[run["samples"][kind] for run in runs] for runs, kind in kinds]
            recordings = problem == "recordings"
            nats = [[float(bits_or_nats(r["nats"]["0"], recordings)) for r in runs] for runs in (ml, ncml)]
            columns = (
                " / ".join(span(values, ".2f") for values in nats) + (" bits" if recordings else " nats"),
                " / ".join(span([100.0 * kind["share"] for kind in seeds], ".2f") for seeds in ways),
                " / ".join(span([kind["energy inside"] for kind in seeds], ".3f") for seeds in ways),
            )
            label = f"{SHORT[problem]}, {length} values, {MODELS[model].split()[-1]}"
            label += f", {levels(problem, ncml[0]['settings'])}" if len(variants) > 1 else ""
            lines.append(f"| {label} | {' | '.join(columns)} |")
    return lines


def page(data: dict[str, Any], words: str) -> str:
    """The page, from the numbers and the words alone."""
    lines = []
    for name, entry in data.items():
        problem, length, model = name.rsplit("-", 2)
        parameters, size = (entry["runs"][0][key] for key in ("parameters", "size"))
        lines += [
            f"### {PROBLEMS[problem]}: {MODELS[model]}, windows of {length}",
            "",
            f"{parameters:,} parameters, {size['steps']} steps of {size['batch']}. {chosen(name, entry)}",
            "",
            *main_table(name, entry),
            *loud(entry),
            *excess(entry),
            *forecasts(entry),
            "",
        ]
    appendix = []
    for name, entry in data.items():
        problem, length, model = name.rsplit("-", 2)
        appendix += [
            f"### {PROBLEMS[problem]}, {MODELS[model]}, {length}",
            "",
            *with_blown_up(entry),
            *grids(entry),
            "",
        ]
    beyond = [line for name, entry in data.items() if entry.get("long") for line in far_beyond(name, entry)]
    parts = {"(summary)": summary(data), "(tables)": lines, "(long)": beyond, "(appendix)": appendix}
    for place, part in parts.items():
        words = words.replace(place, "\n".join(part).strip())
    return words


def main() -> None:
    """Write the page, after collecting the runs if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="folder of the runs")
    args = parser.parse_args()
    if args.collect:
        file = HERE / "sequences.json"
        data = collect(args.collect, json.loads(file.read_text()) if file.exists() else {})
        file.write_text(json.dumps(data) + "\n")
        from sequences_figures import draw_long, draw_mechanism, draw_paths

        if (args.collect / PICTURE / "chosen.json").exists():
            draw_paths(args.collect / PICTURE, HERE / "sequences-paths.png")
        draw_mechanism(data, HERE / "sequences-errors.png")
        draw_long(data, HERE / "sequences-long.png")
    data = json.loads((HERE / "sequences.json").read_text())
    (HERE / "sequences.md").write_text(page(data, (HERE / "sequences.page.txt").read_text()))


if __name__ == "__main__":
    main()
