"""The documentation runs, links to what exists, and names everything that is public."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest
import torch
from PIL import Image

import ncml
from ncml.cli import main
from ncml.training import MODELS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)


COMMANDS = ("demo", "train", "sample", "complete", "evaluate")


def blocks(page: Path) -> Iterator[str]:
    """The python blocks of a page, each moved down to its line so that a traceback points there."""
    text = page.read_text()
    for match in re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, match.start(2)) + textwrap.dedent(match[2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: name_of(page))
def test_every_python_block_is_found(page):
    """None is hidden by its indentation or written as another kind of block."""
    fences = re.findall(r"^[ >]*(?:```+|~~~+)(?:py\b|python\S*)", page.read_text(), re.MULTILINE)
    assert len(fences) == len(list(blocks(page)))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one namespace; an assertion in a block is an assertion of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)
    assert "ncml" in {module for block in blocks(page) for module in re.findall(r"^(?:from|import) (\w+)", block, re.M)}


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The ncml commands in a page, in blocks or in line, each with its options; "" for options that stand alone.

    The settings of a model that is not the library's, ``--model.name module:function``, are left out.
    """
    text = page.read_text().replace("\\\n", " ")
    own: set[str] = set()
    for command, rest in re.findall(rf"(?:\bncml|-m ncml\.cli) ({'|'.join(COMMANDS)})\b([^`\n#;|]*)", text):
        given = re.findall(r"(?<=\s)--[a-z][\w.-]*", rest)
        if re.search(r"--model\.name [\w.]+:\w", rest):
            own.update(option for option in given if option.startswith("--model.") and option != "--model.name")
        yield command, [option for option in given if option not in own]
    yield "", [option for option in re.findall(r"`(--[a-z][\w.-]*)[^`\n]*`", text) if option not in own]


def any_model(event_shape, process, lattice, **settings):
    """A model that takes any settings, for the help of the command line."""


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options that the help of each command lists; of training, for every model and source of data."""
    chosen = [["--model.name", name] for name in (*MODELS, f"{__name__}:any_model")]
    chosen += [["--data.name", "array", "--data.file", "x.npy"], ["--data.name", "folder", "--data.folder", "images"]]
    chosen += [["--data.name", "audio", "--data.folder", "x"], ["--data.name", "series", "--data.file", "x.csv"]]
    found: dict[str, set[str]] = {}
    for command in COMMANDS:
        for more in chosen if command == "train" else [[]]:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
                main([command, *more, "--help"])
            found.setdefault(command, set()).update(re.findall(r"--[a-z][\w.-]*", printed.getvalue()))
    torchrun = {"--nnodes", "--node-rank", "--nproc-per-node", "--rdzv-endpoint"}
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")]
    own = {option for script in scripts for option in re.findall(r'"(--[a-z][\w-]*)"', script.read_text())}
    return found | {"": set().union(torchrun, own, *found.values())}


COMMAND_PAGES = [*PAGES, *sorted((ROOT / "examples").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize(
    "page", [page for page in COMMAND_PAGES if any(given for _, given in commands(page))], ids=name_of
)
def test_commands_have_the_options_that_are_written(page, options):
    unknown = [(command, o) for command, given in commands(page) for o in given if o not in options[command]]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_exist(page):
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()) if not re.match(r"\w+:", t)]
    # The gallery is written when the site is built, a page from each program.
    sources = [re.sub(r"(\.\./)?gallery/(plot_\w+)\.rst$", rf"{ROOT}/examples/gallery/\2.py", t) for t in targets]
    assert [t for t in sources if not (page.parent / t).exists()] == []


def public_modules() -> list[ModuleType]:
    """ncml, its modules and its subpackages; a module inside a subpackage exports through it."""
    names = [info.name for info in pkgutil.iter_modules(ncml.__path__) if not info.name.startswith("_")]
    return [ncml, *(importlib.import_module(f"ncml.{name}") for name in names)]


def documented() -> list[object]:
    """What the pages of the reference show: every automodule, and what is in its ``__all__``."""
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    modules = [*map(importlib.import_module, re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE))]
    return [*modules, *(getattr(module, name) for module in modules for name in module.__all__)]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("installation", "learn/install.md"),
        ("anomaly detection", "learn/table.md"),
        ("missing values", "howto/missing_values.md"),
    ],
)
def test_pages_answer_what_newcomers_search_for(words, page):
    """In their titles, which the search of the site puts first."""
    title = (ROOT / "docs" / page).read_text().splitlines()[0]
    assert title.startswith("# ")
    assert words in title.lower()


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_names_are_documented(module):
    """By identity, since a name may be imported from several places and is shown at one."""
    shown = documented()
    names = [name for name in module.__all__ if not name.startswith("__")]
    assert [name for name in names if not any(getattr(module, name) is thing for thing in shown)] == []


def test_the_first_page_of_the_reference_lists_every_public_name():
    page = (ROOT / "docs" / "reference" / "index.md").read_text()
    listed = [importlib.import_module(name) for name in re.findall(r"^\.\. names:: (\S+)$", page, re.MULTILINE)]
    things = [getattr(module, name) for module in listed for name in module.__all__]
    public = [(m.__name__, name) for m in public_modules() for name in m.__all__ if not name.startswith("__")]
    missing = [(m, n) for m, n in public if not any(getattr(sys.modules[m], n) is thing for thing in things)]
    assert missing == []


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_names_have_docstrings(module):
    """The reference leaves out what has none."""
    things = [module, *(getattr(module, name) for name in module.__all__)]
    own = [thing for thing in things if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing)]
    assert [thing for thing in own if not (thing.__doc__ or "").strip()] == []


def test_recorded_numbers_of_the_demo_are_those_of_its_reports():
    """The page is what its script writes, and the README quotes the same means over seeds."""
    folder = ROOT / "docs" / "results"
    script = runpy.run_path(str(folder / "demo.py"))
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("demo-seed*.json"))]
    assert script["page"](reports) == (folder / "demo.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for model in ("ML", "NCML"):
        for i in range(3):
            assert f"{mean(r['bits_per_dim'][model][i]['bits']['mean'] for r in reports):.3f}" in readme
    for name in ("ML direct", "NCML direct", "NCML two-part"):
        assert f"{mean(r['frechet'][name]['mean'] for r in reports):.3f}" in readme
        assert f"{100 * mean(r['paths']['samples'][name]['beyond'] for r in reports):.2f} %" in readme


def test_pages_of_runs_are_what_their_script_writes():
    folder = ROOT / "docs" / "results"
    script = runpy.run_path(str(folder / "ncpn.py"))
    names = [path.name.removesuffix(".words.txt") for path in folder.glob("*.words.txt")]
    assert {"ablation", "cifar16"} <= set(names)
    for name in names:
        assert script["page"](name) == (folder / f"{name}.md").read_text()


def test_the_page_of_sequences_says_what_its_runs_show():
    """It is what its script writes, and its claims hold for every seed; the README has its table in short."""
    folder = ROOT / "docs" / "results"
    script = runpy.run_path(str(folder / "sequences.py"))
    data = json.loads((folder / "sequences.json").read_text())
    assert script["page"](data, (folder / "sequences.page.txt").read_text()) == (folder / "sequences.md").read_text()
    ml, ncml = (
        {name: [run["samples"] for run in script["final"](entry, way)] for name, entry in data.items()}
        for way in ("ml", "ncml")
    )
    smoother = "paths-1e-08-64-made"
    ahead = [r["nats"]["0"] for way in ("ml", "ncml") for r in script["final"](data[smoother], way)]
    assert 0.025 < mean(ahead[:3]) - mean(ahead[3:]) < 0.035
    for a, b in zip(ml[smoother], ncml[smoother], strict=True):  # tuned by likelihood
        assert max(b[kind]["high"] for kind in b) < min(k["direct"]["low"] for k in ml[smoother])
        for other in (a["direct"], b["direct"]):
            assert 1.5 * b["two-part"]["energy inside"] < other["energy inside"]
            assert b["two-part"]["frechet inside"] < other["frechet inside"]
        assert 4.5 < a["direct"]["share"] / b["two-part"]["share"] < 245.0
    ncml[smoother] = [run["samples"] for run in script["final"](data[smoother], "other")]
    for name, kind in (("paths-0.0001-64-made", "two-part"), (smoother, "direct"), ("recordings-64-made", "direct")):
        assert len(ml[name]) == len(ncml[name]) == 3
        assert min(k["direct"]["low"] for k in ml[name]) > max(k[kind]["high"] for k in ncml[name])
    for name in ("paths-0.0001-64-made", "paths-0.0001-64-transformer", smoother):
        for kinds in ncml[name]:
            for key in ("energy inside", "frechet inside"):
                assert kinds["two-part"][key] < kinds["direct"][key]
    assert all(k["two-part"]["high"] < k["direct"]["low"] for k in ncml["paths-0.0001-64-made"])
    for a, b in zip(ml[smoother], ncml[smoother], strict=True):
        assert b["two-part"]["high"] < a["direct"]["low"]
        for other in (a["direct"], b["direct"]):
            assert 8.7 * b["two-part"]["energy inside"] < other["energy inside"]
            assert 3.7 * b["two-part"]["frechet inside"] < other["frechet inside"]
    rough = "paths-0.0001-64-made"
    for a, b in zip(ml[rough], ncml[rough], strict=True):
        assert 12.0 < a["direct"]["share"] / b["two-part"]["share"] < 245.0
    smoother = "paths-1e-08-64-transformer"
    for a, b in zip(ml[smoother], ncml[smoother], strict=True):
        assert 11.0 * b["two-part"]["energy inside"] < a["direct"]["energy inside"]
        assert 4.8 * b["two-part"]["energy inside"] < b["direct"]["energy inside"]
        for other in (a["direct"], b["direct"]):
            assert 8.0 * b["two-part"]["frechet inside"] < other["frechet inside"]
    longer = "recordings-256-made"  # which fade, least in two parts
    loud = data[longer]["loudness"]
    for seed in range(3):
        assert max(loud[f"{way}, seed {seed}"]["direct"] for way in ("ml", "ncml")) < 0.88 * loud["test windows"]
        assert loud[f"ncml, seed {seed}"]["two-part"] > 0.91 * loud["test windows"]
    for a, b in zip(ml[longer], ncml[longer], strict=True):
        assert 1.7 < a["direct"]["energy inside"] / b["two-part"]["energy inside"] < 2.4
        assert 2.6 * b["two-part"]["energy inside"] < b["direct"]["energy inside"]
    assert max(k["direct"]["high"] for k in ncml[longer]) < min(k["direct"]["low"] for k in ml[longer])
    nats = {way: [r["nats"]["0"] for r in script["final"](data["paths-0.0001-64-made"], way)] for way in ("ml", "ncml")}
    assert max(nats["ml"] + nats["ncml"]) < -2.041 + 0.08
    readme = (ROOT / "README.md").read_text()
    assert "\n".join(script["summary"](data)) in readme


def test_the_readme_quotes_the_recorded_runs():
    """The table of CIFAR-16, cell by cell, and the distances of the sentence below it."""
    runs = json.loads((ROOT / "docs" / "results" / "cifar16.json").read_text())["runs"]
    readme = (ROOT / "README.md").read_text()
    for pi in ("0", "0.5", "1"):
        cells = [f"{run['evaluation']['bits_per_dim'][pi]['bits']['mean']:.3f}" for run in runs.values()]
        best = min(cells)
        assert f"| {pi} | " + " | ".join(f"**{c}**" if c == best else c for c in cells) + " |" in readme
    other = json.loads((ROOT / "docs" / "results" / "cifar16-seed1.json").read_text())["runs"]
    clean = {key: run["evaluation"]["bits_per_dim"]["0"]["bits"]["mean"] for key, run in runs.items()}
    shown = [clean[key] for key in ("ml", "vp", "ve")]
    seeds = abs(clean["ml"] - other["ml"]["evaluation"]["bits_per_dim"]["0"]["bits"]["mean"])
    assert seeds > max(shown) - min(shown)
    assert f"the three differ by {max(shown) - min(shown):.3f} bits/dim at most" in readme
    for pi in ("0", "1"):
        ml, vp = (other[key]["evaluation"]["bits_per_dim"][pi]["bits"]["mean"] for key in ("ml", "vp"))
        assert f"{ml:.3f}" in readme
        assert f"{vp:.3f}" in readme
    distance = {key: run["evaluation"]["frechet"]["distances"] for key, run in runs.items()}
    ours, plain, ml = distance["vp"]["two-part"], distance["vp"]["direct"], distance["ml"]["direct"]
    assert f"{ours:.2f} against {plain:.2f} for direct samples of the VP model, {ml:.2f} by ML" in readme


def test_the_figure_of_the_readme_is_that_of_its_script_and_runs():
    script = runpy.run_path(str(ROOT / "docs" / "hero.py"))
    with Image.open(ROOT / "docs" / "hero.png") as picture:
        assert picture.text["Source"] == script["source"](), "run python docs/hero.py"


def test_what_is_said_of_the_detector_is_what_was_recorded():
    """The README's two means, and the words of the page that no number of its own carries."""
    tables = json.loads((ROOT / "benchmarks" / "results" / "adbench.json").read_text())["tables"]
    large = {name: t["seeds"] for name, t in tables.items() if t["rows"] >= 1000}
    score: dict[str, dict[str, float]] = {}
    for method in ("NCML", "maximum likelihood", "k-NN"):
        found = {name: [r[method]["auroc"] for r in seeds if method in r] for name, seeds in large.items()}
        score[method] = {name: 100 * sum(values) / len(values) for name, values in found.items()}
    mean = {method: sum(values.values()) / len(values) for method, values in score.items()}
    readme = (ROOT / "README.md").read_text()
    assert f"mean AUROC of {mean['NCML']:.1f} on nine tables" in readme
    assert f"network by maximum likelihood comes to {mean['maximum likelihood']:.1f}" in readme
    assert abs(mean["NCML"] - mean["k-NN"]) < 0.2
    gain = {name: score["NCML"][name] - score["maximum likelihood"][name] for name in large}
    assert gain.pop("cardio") > 2.0 * abs(sum(gain.values()))  # most of it


def test_what_is_said_of_tables_is_what_was_recorded():
    """How often the shuffled column came first, on how many tables noise helps and costs, and what fills gaps best."""
    words = {1: "one", 2: "two", 3: "three", 5: "five", 7: "seven", 14: "fourteen"}
    results = ROOT / "benchmarks" / "results"
    readme = " ".join((ROOT / "README.md").read_text().split())
    page = " ".join((ROOT / "docs" / "howto" / "tables.md").read_text().split())
    ranks = json.loads((results / "feature_shift.json").read_text())["ranks"]
    noisy, plain, likely = (found.count(1) for found in ranks.values())
    seeds = len(ranks["sigma 0.5"])
    assert f"[{noisy} cases of {seeds}](docs/results/feature_shift.md), maximum likelihood in {likely}." in readme
    times = {1: "once", 2: "twice", 4: "four times"}
    assert f"comes first {noisy} times of {seeds} by scores at half a standard deviation of noise" in page
    assert f"{times[plain]} by scores of the rows themselves, and {times[likely]} after maximum likelihood" in page
    filled = json.loads((results / "imputation.json").read_text())["tables"]
    theirs = ("chained equations", "chained means", "chained trees", "k-NN")
    linear = [name for name, table in filled.items() if any(table["linear"])]
    assert f"better than scikit-learn's imputers on {words[len(filled) - len(linear)]} of {words[len(filled)]}" in page
    assert f"On the other {words[len(linear)]}, whose columns are nearly linear in one another, draws of its" in page
    for name, table in filled.items():
        if name in linear:
            score = {m: mean(row[m]["crps"] for row in table["seeds"]) for m in ("NCML, twice", *theirs)}
            assert min(score, key=score.__getitem__) == "chained equations"
            assert score["NCML, twice"] < 1.1 * score["chained equations"]
        else:
            assert all(row["NCML"]["crps"] < min(row[m]["crps"] for m in theirs) for row in table["seeds"])
    rows = [row for table in filled.values() for row in table["seeds"]]
    better = sum(row["NCML, twice"]["crps"] < row["NCML"]["crps"] for row in rows)
    twice = f"(better in {better} of {len(rows)} trials with many values missing)"
    assert f"trains once more on whole rows {twice}" in page
    script = runpy.run_path(str(ROOT / "docs" / "results" / "few_rows.py"))
    tables = json.loads((results / "few_rows.json").read_text())["tables"]
    trained = [ways for table in tables.values() for ways in table["trained"].values()]
    ahead = sum(script["beats"](ways, [way for way in ways if way not in script["OURS"]]) for ways in trained)
    assert f"[ahead of scikit-learn's in {ahead} cases of {len(trained)}](docs/results/few_rows.md)" in readme
    script = runpy.run_path(str(ROOT / "docs" / "results" / "table_likelihood.py"))
    tables = json.loads((results / "table_likelihood.json").read_text())["tables"]
    verdicts = [script["verdict"](table) for table in tables.values()]
    better, worse = (words[verdicts.count(which)] for which in ("ahead", "behind"))
    assert f"of [{words[len(tables)]} tables](docs/results/table_likelihood.md)" in readme
    assert f"both tuned alike, on {better} better, on {worse} worse." in readme


def test_records_have_no_folders_of_a_machine():
    folders = (ROOT / "docs" / "results", ROOT / "benchmarks" / "results")
    records = [path for folder in folders for path in folder.glob("*.json")]
    assert len(records) > 20
    for path in records:
        assert re.findall(r'"/[A-Za-z][^"]*', path.read_text()) == [], path.name


def test_the_page_of_samplers_says_what_the_frontier_shows(monkeypatch):
    """Its tables are what the script writes, and its words count right."""
    folder = ROOT / "docs" / "results"
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "frontier.py"))
    record = json.loads((ROOT / "benchmarks" / "results" / "frontier.json").read_text())
    assert script["page"](record["figures"]) == (folder / "frontier.table.txt").read_text()
    page = " ".join((ROOT / "docs" / "howto" / "samplers.md").read_text().split())
    (worst,) = (figure["value"] for figure in record["figures"] if figure["value"] > 1.02)
    assert f"Of the {len(record['figures'])} rows a peer leads in one, by a factor of {worst:.2f}" in page
    own = [figure["note"].partition(" by ")[2].partition(";")[0] for figure in record["figures"]]
    corrected = [name for name in own if re.match(r"MultistepODE\(\d, True", name)]
    assert f"In {len(corrected)} of the {len(own)} rows the best of the library has the corrector" in page
    assert script["variance_page"](record["variance"]) == (folder / "frontier.variance.txt").read_text()


def test_the_page_of_images_says_what_its_runs_show():
    """It is what its script writes; NCML is likelier in every seed, and two parts are no better than one."""
    folder = ROOT / "docs" / "results"
    script = runpy.run_path(str(folder / "images.py"))
    data = json.loads((folder / "images.json").read_text())
    assert script["page"](data, (folder / "images.page.txt").read_text()) == (folder / "images.md").read_text()
    ml, ncml = ([run for run in data["mnist-flow"] if run["way"] == way] for way in ("ml", "ncml"))
    assert [run["seed"] for run in ml] == [run["seed"] for run in ncml] == [0, 1, 2]
    assert max(run["bits per dim"] for run in ncml) < min(run["bits per dim"] for run in ml)
    assert all(run["two-part"]["classifier"] > run["direct"]["classifier"] for run in ncml)


def test_the_table_of_mutants_is_what_its_script_writes():
    folder = ROOT / "docs" / "results"
    assert runpy.run_path(str(folder / "mutants.py"))["table"]() == (folder / "mutants.table.txt").read_text()
    first = json.loads((folder / "mutants.json").read_text())
    assert all(row["equivalent"] for row in first["survivors"])
    page = (folder / "robustness.md").read_text()
    for words in (
        f"no test could fail for {first['equivalent']}",
        f"with which all {first['killed'] - 360} are killed",
    ):
        assert words in page


OF_BENCHMARKS = ("benchmarks", "adbench", "feature_shift", "table_likelihood", "few_rows", "imputation")


@pytest.mark.parametrize("name", OF_BENCHMARKS)
def test_page_of_benchmarks_is_what_its_script_writes(name):
    folder = ROOT / "docs" / "results"
    assert runpy.run_path(str(folder / f"{name}.py"))["page"]() == (folder / f"{name}.md").read_text()


def test_the_readme_quotes_the_recorded_benchmarks():
    def figure(file: str, start: str) -> float:
        figures = json.loads((ROOT / "benchmarks" / "results" / file).read_text())["figures"]
        (value,) = (f["value"] for f in figures if f["name"] == start)
        return value

    readme = (ROOT / "README.md").read_text()
    assert f"MAF {figure('flows.json', 'MAF sample / zuko'):.3f}x of" in readme
    settled = figure("samplers.json", "Euler-Maruyama step / score_sde's, 4096 x 64, settled heap")
    assert f"a step takes {settled:.2f}x of score_sde" in readme
    plain, attending = (
        figure("ncpn.json", f"pixel-cnn-pp's loop without attention / sample {what} attention, 16")
        for what in ("without", "with")
    )
    assert f"{plain:.0f} times faster than pixel-cnn-pp's loop without attention, {attending:.0f} times with" in readme
    small, paper = (
        figure("ncpn.json", f"step without attention, {size} / pixel-cnn-pp's") for size in ("small", "paper")
    )
    assert f"{small:.2f}x of pixel-cnn-pp's step (small) and {paper:.2f}x (paper's size)" in readme
    least, most = (figure("ncpn.json", f"step with attention, {size} / without, bf16") for size in ("paper", "small"))
    assert f"makes that {least:.1f} (paper) to {most:.1f} (small, bfloat16) times as long" in readme
    bf16 = figure("ncpn.json", "step without attention, paper, bf16 / pixel-cnn-pp's float32")
    attending = [figure("ncpn.json", f"step with attention, paper / without{p}") for p in (", bf16", "")]
    page = (ROOT / "docs" / "howto" / "gpus.md").read_text()
    assert f"takes {bf16:.2f}x of PixelCNN++'s time, {paper:.2f}x in float32" in page
    assert f"a step takes {attending[0]:.2f}x and {attending[1]:.2f}x of that" in page


ONE_AFTER_THE_OTHER = """
import runpy, sys
for line in sys.stdin.read().splitlines():
    _, *sys.argv = line.split()
    if sys.argv[0] != "-m":
        runpy.run_path(sys.argv[0], run_name="__main__")
        continue
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as done:
        if done.code:
            raise
"""
"""Runs commands of Python as a shell would, in one process, since each start costs seconds."""


def test_the_model_of_the_page_on_own_classes_trains(tmp_path):
    """As the page says: one file outside the package, its data, and the commands, from their folder."""
    page = ROOT / "docs" / "howto" / "own.md"
    (model,) = (block for block in blocks(page) if block.lstrip().startswith("# chain.py"))
    (data,) = (block for block in blocks(page) if block.lstrip().startswith("# waves.npy"))
    (tmp_path / "chain.py").write_text(model.lstrip())
    (tmp_path / "data.py").write_text(data.lstrip())
    lines = [line for line in page.read_text().splitlines() if line.startswith("python -m ncml ")]
    assert [line.split()[3] for line in lines] == ["train", "sample", "evaluate"]
    command, given = [sys.executable, "-c", ONE_AFTER_THE_OTHER], "\n".join(["python data.py", *lines])
    result = subprocess.run(command, cwd=tmp_path, input=given, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "runs" / "chain" / "config.json").read_text())
    assert (config["model"]["name"], config["model"]["width"]) == ("chain:chain", 64)
    assert json.loads((tmp_path / "runs" / "chain" / "evaluation" / "report.json").read_text())
