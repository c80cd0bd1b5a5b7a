"""The main job: ``ncml demo`` runs, repeats bit for bit, and reports what it measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import datasets

from ncml.cli import main
from ncml.cli.demo import DemoSettings, run_demo
from ncml.cli.demo_paths import kernel, run_paths
from ncml.data import load_digits
from ncml.report import jsonable

# Fewer samples than features are enough to run.
pytestmark = pytest.mark.filterwarnings("ignore:.* rows of .* features")

TINY = replace(DemoSettings().smoke(), steps=3, samples=20, refine_steps=2, sample_seeds=2, classifier_steps=3)
TINY = replace(TINY, paths=replace(TINY.paths, train=100, steps=3, samples=20, refine_steps=2))


def results(settings):
    report, _ = run_demo(settings)
    return {key: value for key, value in jsonable(report).items() if "seconds" not in key}


def test_smoke_run_prints_the_tables_and_leaves_a_report_and_a_figure(tmp_path, capsys):
    assert main(["demo", "--smoke", "--seed", "3", "--out", str(tmp_path / "a" / "b")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "pi = 0 ",
        "pi = 0.5",
        "pi = 1 ",
        "inverted, log p",
        "constant,",
        "uniform noise,",
        "NCML two-part",
        "Smooth paths",
    ):
        assert line in printed
    report = json.loads((tmp_path / "a" / "b" / "report.json").read_text())
    assert report["settings"]["seed"] == 3
    assert report["environment"]["torch"] == torch.__version__
    assert [row["bits"]["kind"] for row in report["bits_per_dim"]["NCML"]] == ["exact"] * 3
    assert f"{report['bits_per_dim']['ML'][0]['bits']['mean']:.3f}" in printed
    assert (tmp_path / "a" / "b" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_reproduces_bit_for_bit_and_another_does_not():
    torch.manual_seed(7)  # the caller's random state must not matter, nor be touched
    before = torch.get_rng_state()
    first = results(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert results(TINY) == first
    other = results(replace(TINY, seed=1))
    assert other["bits_per_dim"] != first["bits_per_dim"]
    assert other["frechet"]["ML direct"] != first["frechet"]["ML direct"]
    assert other["frechet"]["test images"] == first["frechet"]["test images"]  # one ruler for all seeds


def test_the_truth_about_paths_is_exact():
    """Entropy and roughness against a long way round, and the fresh paths against themselves."""
    settings = replace(TINY.paths, samples=2000)
    covariance = kernel(settings).numpy()
    exact = stats.multivariate_normal(cov=covariance).entropy() / settings.length
    report, shown = run_paths(settings, TINY.generator, False)
    assert report["exact nats"] == pytest.approx(exact, rel=1e-10)
    second = np.diff(np.eye(settings.length), n=2, axis=0)
    rms = np.sqrt(np.trace(second @ covariance @ second.T) / len(second))
    assert report["exact roughness"] == pytest.approx(rms, rel=1e-10)
    fresh = report["samples"]["fresh paths"]
    assert fresh["roughness"] == pytest.approx(rms, rel=0.05)  # a median, of skewed values
    assert abs(fresh["energy"]) < 0.02 < report["samples"]["ML direct"]["energy"]
    assert shown["fresh paths"].shape == (8, settings.length)


def test_both_models_see_the_same_data_and_start():
    """With all mass at t = 0, NCML is maximum likelihood: the two columns must agree to the last bit."""
    report = results(replace(TINY, p_zero=1.0))
    assert report["bits_per_dim"]["ML"] == report["bits_per_dim"]["NCML"]
    assert report["robustness"]["ML"] == report["robustness"]["NCML"]
    paths = results(replace(TINY, paths=replace(TINY.paths, p_zero=1.0)))["paths"]
    assert paths["nats"]["ML"] == paths["nats"]["NCML"]
    assert paths["samples"]["ML direct"] == paths["samples"]["NCML direct"]


def test_digits_are_split_once():
    data = load_digits()
    assert (data.train.shape, data.test.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert bool(data.lattice.on_lattice(torch.cat([data.train, data.test])).all())
    again = load_digits()
    assert torch.equal(data.test, again.test)
    assert torch.equal(data.test_labels, again.test_labels)
    everything = torch.cat([data.train, data.test]).flatten(1).sort(0).values
    raw = datasets.load_digits().data / 8.0 - 1.0
    assert torch.equal(everything, torch.from_numpy(raw).float().sort(0).values)


@pytest.mark.parametrize("args", [["nothing"], ["demo", "--steps"], ["demo", "--seed", "x"]])
def test_wrong_arguments_end_with_status_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert "ncml" in capsys.readouterr().err


def test_no_command_is_a_request_for_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("demo", "train", "sample", "complete", "evaluate"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--smoke", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "file" in capsys.readouterr().err


def test_every_stream_of_random_numbers_depends_on_the_seed():
    """Torch keeps 32 bits of a seed: streams must differ within them, also for large seeds."""
    purposes = ("batch", "sample", "level noise", "outliers", "curve", "model")
    first = {
        (seed, purpose): float(torch.rand((), generator=replace(TINY, seed=seed).generator(purpose)))
        for seed in (0, 1, 2**32, 10**12)
        for purpose in purposes
    }
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize(("option", "value"), [("--threads", "0"), ("--seed", "-1")])
def test_bad_numbers_are_named_without_a_traceback(option, value, tmp_path, capsys):
    assert main(["demo", "--smoke", "--out", str(tmp_path), option, value]) == 2
    assert f"{option[2:]}: got {value}" in capsys.readouterr().err
