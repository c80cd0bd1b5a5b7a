"""The comparison on smooth sequences: it runs, cut short, to its page; and what only a noisy context does."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ncml.data import write_wav
from ncml.densities import MADE, CausalTransformer
from ncml.noise import VESDE
from ncml.objective import AtZero, NCMLObjective

EXAMPLES = Path(__file__).parents[1] / "examples"


def generator():
    return torch.Generator().manual_seed(0)


def compare_sequences(out, *arguments, scripts=("run.py", "mechanism.py")):
    """The comparison on sequences and the mechanism behind it, cut short, with one seed."""
    for script in scripts:
        command = [sys.executable, str(EXAMPLES / "sequences" / script), *arguments, "--seeds", "0", "--quick"]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def sequences_page(runs):
    """The record of runs, collected twice, which is once, and the page of it."""
    page = runpy.run_path(str(EXAMPLES.parent / "docs" / "results" / "sequences.py"))
    data = page["collect"](runs, page["collect"](runs, {}))
    return page, data, page["page"](data, "(tables)(long)(appendix)")


def test_the_comparison_on_sequences_runs(tmp_path):
    """Cut short, with the mechanism behind it, to the page; a noisy context joins what is there."""
    arguments = ("--problem", "paths-1e-4", "--model", "made", "--length", "32")
    compare_sequences(tmp_path, *arguments, scripts=("run.py", "mechanism.py", "loudness.py"))
    results = tmp_path / "paths-0.0001-32-made"
    chosen = json.loads((results / "chosen.json").read_text())
    assert chosen["ncml"]["way"] == "ncml"
    reports = [json.loads(file.read_text()) for file in results.glob("*seed0.json")]
    assert {report["settings"]["way"] for report in reports} == {"ml", "fixed", "ncml"}
    # Half the log-determinant of the covariance, by another library.
    i = np.arange(32)
    kernel = np.exp(-0.5 * ((i[:, None] - i) / 6.0) ** 2) + 1e-4 * np.eye(32)
    exact = stats.multivariate_normal(cov=kernel).entropy() / 32
    for report in reports:
        assert report["exact nats"].get("0", exact) == pytest.approx(exact, rel=1e-8)
    mechanism = json.loads((results / "mechanism.json").read_text())
    assert len(mechanism["ncml, seed 0"]["after an error"]["0.1, noise 0.05"]) == 16
    sigma = next(r["samples"]["two-part"]["sigma"] for r in reports if r["settings"]["way"] == "ncml")
    refined = mechanism["ncml, seed 0"]["forecasts, refined"]
    assert (len(refined["crps"]), refined["sigma"]) == (16, sigma)

    before = {file: file.stat().st_mtime_ns for file in results.glob("*seed*")}
    compare_sequences(tmp_path, *arguments, "--ways", "cam")
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert {**json.loads((results / "chosen.json").read_text()), "cam": None} == {**chosen, "cam": None}
    page, data, text = sequences_page(tmp_path)
    entry = data[results.name]
    assert {*entry["mechanism"]} == {"ml, seed 0", "ncml, seed 0", "cam, seed 0", "exact", "environment"}
    assert [*entry["mechanism"]["cam, seed 0"]] == [*mechanism["ml, seed 0"]]
    (cam,) = page["final"](entry, "cam")
    assert [c["k"] for c in cam["samples"]["direct"]["validation"]] == [0.0, 0.02, 0.05]
    (ncml,) = page["final"](entry, "ncml")
    for drawn, keys in ((cam["samples"]["direct"], ["k"]), (ncml["samples"]["two-part"], ["sigma", "solver"])):
        cases = drawn["validation"]
        taken = next(c for c in cases if all(c[key] == drawn[key] for key in keys))
        usable = [c for c in cases if c["share"] <= 0.1] or [taken]
        allowed = min(c["energy"] for c in usable) + drawn["chance"]
        assert taken["energy"] <= allowed
        assert taken["share"] == min(c["share"] for c in usable if c["energy"] <= allowed)
    assert "windows beyond the data, of 100 (" in text
    loud = entry["loudness"]
    assert {*loud} == {"test windows", "ml, seed 0", "ncml, seed 0", "environment"}
    assert 0.3 < loud["test windows"] < 1.0  # of paths of variance 1, less their means
    assert [*loud["ml, seed 0"], *loud["ncml, seed 0"]] == ["direct", "direct", "two-part"]
    assert "| *test windows* | 0." in text
    assert "| CAM, noisy context, fed back with noise | " in text
    table = text[text.index("| continuation") :].splitlines()
    table = table[: table.index("")]
    assert {line.count("|") for line in table} == {table[0].count("|")}
    rows = [line.split(" | ")[0] for line in table[2:]]
    assert rows == ["| ml, seed 0", "| ncml, seed 0", "| ncml, seed 0, refined", "| cam, seed 0", "| exact"]


def test_settings_of_other_runs_are_taken_over(tmp_path):
    """By a transformer on recordings, with what the page says of them; what nobody chose is refused."""
    for split, count in (("train", 6), ("test", 2)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(count):
            x = torch.randint(-9000, 9000, (600,), generator=torch.Generator().manual_seed(i)).short()
            write_wav(tmp_path / "data" / split / f"{i}.wav", x.numpy(), 8000)
    (tmp_path / "shorter").mkdir()
    settings = {way: {"way": way, "seed": 100, "learning_rate": 0.004} for way in ("ncml", "cam")}
    (tmp_path / "shorter" / "chosen.json").write_text(json.dumps(settings))
    arguments = ["--problem", "recordings", "--folder", str(tmp_path / "data"), "--model", "transformer"]
    arguments += ["--length", "32", "--settings-of", str(tmp_path / "shorter")]
    compare_sequences(tmp_path / "runs", *arguments, "--ways", "ncml", "cam")
    report = next((tmp_path / "runs").glob("*/ncml*seed0.json"))
    before = json.loads(report.read_text())
    longer = {**before, "size": {**before["size"], "steps": 77}}  # as if the sizes had changed since
    report.write_text(json.dumps({**longer, "samples": {}}))
    compare_sequences(tmp_path / "runs", *arguments, "--ways", "ncml", "--again", scripts=("run.py",))
    again = json.loads(report.read_text())
    assert again.pop("trained in") == before["environment"]
    assert {**again, "environment": None} == {**longer, "environment": None}
    page, data, text = sequences_page(tmp_path / "runs")
    (entry,) = data.values()
    assert [run["settings"]["seed"] for run in entry["runs"]] == [0, 0]
    for way, label in (("ncml", "NCML"), ("cam", "CAM")):
        assert len(page["final"](entry, way)) == 1
        assert f"{label}: learning rate 0.004, 0.15 at t = 0, noise down to 0.002 (taken over from shorter)" in text
    with pytest.raises(AssertionError, match="nothing chosen for ml, fixed; run these ways there first"):
        compare_sequences(tmp_path / "runs", *arguments, scripts=("run.py",))


@pytest.fixture
def run(monkeypatch):
    """What run.py defines."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "sequences"))
    found = runpy.run_path(str(EXAMPLES / "sequences" / "run.py"))
    for name in ("cam", "measures", "problems", "settings"):  # other examples have modules of such names
        sys.modules.pop(name)
    return found


def test_sequences_far_beyond_the_window(tmp_path):
    """To the page: by both ways of drawing, with likelihoods near those of windows."""
    arguments = ("--problem", "paths-1e-4", "--model", "transformer", "--ways", "ml", "ncml")
    compare_sequences(tmp_path, *arguments, scripts=("run.py", "long.py"))
    page, data, text = sequences_page(tmp_path)
    (entry,) = data.values()
    for way, kinds in (("ml", ["direct"]), ("ncml", ["direct", "two-part"])):
        found = entry["long"][f"{way}, seed 0"]
        assert [kind for kind in ("direct", "two-part") if kind in found] == kinds
        for kind in kinds:
            assert len(found[kind]["left after"]) == found[kind]["beyond"]
        (report,) = page["final"](entry, way)
        assert found["nats"] == pytest.approx(report["nats"]["0"], abs=0.3)
    assert entry["long"]["held-out"]["beyond"] == 0
    assert text.count("| NCML, in two parts |") == 3  # the table, the sequences, and with every window
    compare_sequences(tmp_path, *arguments[:-1], scripts=("long.py",))  # maximum likelihood alone: the other one stays
    _, data, _ = sequences_page(tmp_path)
    (after,) = data.values()
    assert after["long"]["ncml, seed 0"] == entry["long"]["ncml, seed 0"]
    for way, label in (("ml", "maximum likelihood"), ("ncml", "NCML, drawn at t = 0")):
        alone = {key: value for key, value in entry["long"].items() if key in (f"{way}, seed 0", "held-out")}
        table = page["far_beyond"]("paths-0.0001-64-transformer", {**entry, "long": alone})
        assert [line.split(" | ")[0] for line in table[2:3]] == [f"| {label}"]


def test_where_sequences_leave_the_data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "sequences"))
    left_after = runpy.run_path(str(EXAMPLES / "sequences" / "long.py"))["left_after"]
    for name in ("cam", "measures", "problems", "settings", "run"):
        sys.modules.pop(name)
    x = torch.zeros(4, 9)
    x[1, 5], x[1, 2], x[3, 0] = 3.0, -3.0, 2.1
    assert left_after(x, 2.0) == [0, 2]


def test_starts_are_chosen_by_windows_beyond_the_data_where_distances_are_alike(run):
    data = run["problem"]("paths-1e-4", 16, None)
    cases = [{"energy": 0.0, "share": 0.02}, {"energy": 1e-4, "share": 0.01}, {"energy": 9.0, "share": 0.0}]
    chosen = run["best_of"](cases, data, 500, generator())
    assert chosen["share"] == 0.01
    assert 1e-4 < chosen["chance"] < 0.05


def test_starts_after_which_many_windows_are_astray_are_no_choice(run):
    """However near to the data those are that stay."""
    data = run["problem"]("paths-1e-4", 16, None)
    astray = data.draw(1000, generator())
    astray[:101] = 1e9
    cases = [run["judged_by"](data, x) for x in (astray, 1.2 * data.draw(1000, generator()))]
    assert cases[0]["energy"] < cases[1]["energy"]
    assert run["best_of"](cases, data, 500, generator())["share"] == cases[1]["share"] < 0.1
    worse = {"energy": -1.0, "share": 0.9}
    assert run["best_of"]([worse, cases[0]], data, 500, generator())["share"] == 0.101


def test_weights_that_are_not_there_are_named(run, tmp_path):
    size, data = run["cut_short"](run["SIZES"]["made", "paths"], run["problem"]("paths-1e-4", 16, None))
    with pytest.raises(SystemExit, match=r"ml-seed3\.safetensors: no such weights"):
        run["load"]("made", size, data, run["Settings"]("ml", 3), tmp_path)


def test_longer_windows_are_drawn_less_often(run):
    """By the ratio of their lengths; in two parts by its root. Up to 64 values nothing changes."""
    size = run["SIZES"]["made", "paths"]
    assert [run["at_length"](size, length) for length in (32, 64)] == [size, size]
    assert run["at_length"](size, 256) == replace(size, draws=12_500, refined=2000)


def sequence_models():
    """A MADE and a transformer over eight values, of which later ones depend on earlier ones."""
    for kind, settings in ((MADE, {"hidden": (16, 16)}), (CausalTransformer, {"width": 16, "layers": 1, "heads": 2})):
        torch.manual_seed(0)
        model = kind((8, 1), VESDE.linear(1.0), components=3, **settings).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator()))
        yield model


def test_what_is_fed_back_with_noise_is_what_the_network_sees():
    """Without noise the model's own samples; with it the fixed point of redrawing given the noisy values; a prefix
    stays, and the loss without noise is the likelihood."""
    cam = runpy.run_path(str(EXAMPLES / "sequences" / "cam.py"))
    for model in sequence_models():
        noise = model.draw_noise(50, generator=generator())
        plain = model.sample(50, noise=noise).squeeze(2)
        assert torch.allclose(cam["drawn"](model, 50, 0.0, generator()), plain, atol=1e-5)
        prefix = plain[:, :3]
        assert torch.equal(cam["rolled_out"](model, prefix, 0.1, generator())[:, :3], prefix)
        for keep in (0, 3):
            source = generator()
            x = cam["rolled_out"](model, plain[:, :keep], 0.1, source)
            again = generator()  # the same numbers in the same order: uniforms, then noise value by value
            uniforms = model.draw_noise(50, generator=again)
            fed_back = x + 0.1 * torch.cat([torch.randn(50, 1, generator=again) for _ in range(8)], dim=1)
            redrawn = model.resample(fed_back.unsqueeze(2), uniforms, 0.1).squeeze(2)
            assert torch.allclose(redrawn[:, keep:], x[:, keep:], atol=1e-4)
        x = plain.unsqueeze(2)
        loss = cam["loss"](model, NCMLObjective(model.process, AtZero()), x, generator())
        assert torch.equal(loss, -model(x, torch.zeros(50)).mean())
