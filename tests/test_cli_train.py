"""``ncml train``, ``sample``, ``complete`` and ``evaluate``, as a user runs them, on one process and on two."""

from __future__ import annotations

import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ncml import VPSDE, Lattice, generate
from ncml.cli import common, main, tables
from ncml.data import Arrays, ImageSource
from ncml.densities import NCPN
from ncml.errors import ArgumentError, NonFiniteError
from ncml.evaluation import Typicality, auroc, bits_per_dim, ladder_statistics, level_noise_table, ood_statistics
from ncml.sampling import HeunODE
from ncml.training import TrainConfig, load_density, open_checkpoint, read_metrics, read_toml
from ncml.training.config import from_dict, to_dict
from ncml.training.draws import stream_seed
from tests.training_problems import same_state

SMALL = """
    --data.name digits --model.features 8 --model.blocks 1 --model.heads 2 --model.components 2
    --noise.std-in-levels 2 --optim.steps 8 --optim.batch-size 8 --optim.warmup 2 --run.threads 1 --run.accelerator cpu
    --run.log-every 2 --run.save-every 2 --run.validate-every 4 --run.validate-images 20 --run.sample-every 8
    --run.samples 4
"""
SMALL = SMALL.split()

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def ncml(*arguments, check=True, **options):
    command = [sys.executable, "-W", "error::UserWarning:ncml", "-m", "ncml.cli", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=check, **options)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ncml.cli"]
    return subprocess.run([*command, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--help"], ["sample", "--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    """``ncml ... | head``: what ends by SIGPIPE says nothing."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ncml.cli", *arguments]
    ended = subprocess.run(command, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_training_goes_on_without_its_reader(tmp_path):
    """It is told at every validation how it fares; who stops listening after the first one stops nothing."""
    script = "import os, sys; sys.exit(os.system(sys.argv[1]) and 1)"
    out = tmp_path / "run"
    train = f"{sys.executable} -m ncml.cli train --out {out} --data.name digits --model.name made --model.hidden 8"
    train += " --optim.steps 30 --optim.batch-size 4 --run.validate-every 1 --run.validate-images 4 --run.threads 1"
    subprocess.run([sys.executable, "-c", script, f"{train} | head -n 6"], env=ENVIRONMENT, capture_output=True)
    report = json.loads((out / "report.json").read_text())
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 30
    assert report["training_seconds"] > 0.0


def test_without_noise_it_is_maximum_likelihood(tmp_path, capsys):
    """Said alike by training and by evaluation."""
    out = tmp_path / "run"
    settings = "--data.name digits --model.name made --model.hidden 8 --noise.p-zero 1 --optim.steps 1 --run.threads 1"
    assert main(["train", "--out", str(out), *settings.split(), "--run.sample-every", "0"]) == 0
    assert "maximum likelihood" in capsys.readouterr().out
    assert main(["evaluate", str(out), "--images", "4", "--ood-images", "0", "--samples", "0"]) == 0
    assert "made, maximum likelihood, after 1 step;" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(folder), *SMALL]) == 0
    return folder


def held_out(n):
    """The test images that the commands take."""
    return ImageSource("digits").load(train=False).mixed(n)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


# What a run leaves.


def test_train_leaves_what_it_says(run):
    names = {p.name for p in run.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "report.json", "samples_00000008.png"}
    report = json.loads((run / "report.json").read_text())
    assert report["settings"]["model"]["features"] == 8
    assert (report["training_examples"], report["processes"], report["data"]["levels"]) == (1437, 1, 17)
    assert report["parameters"] == sum(p.numel() for p in load_density(run)[0].parameters())
    assert report["environment"]["torch"] == torch.__version__
    with Image.open(run / "samples_00000008.png") as picture:
        assert picture.size == (2 * 9 * 16 - 16, 2 * 9 * 16 - 16)


def test_validation_is_that_of_the_average(run):
    """The last line of the log against the library's own bits/dim of the checkpoint."""
    density, *_ = load_density(run)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation" in line] == [4, 8]
    expected = bits_per_dim(density, held_out(20).batch(slice(None))).mean
    assert lines[-1]["validation"]["bits_per_dim"] == pytest.approx(expected, rel=1e-6)


def test_sample(run, tmp_path):
    for name, arguments in {"a": [], "b": ["--noise", "0"], "c": ["--seed", "1"]}.items():
        assert (
            main(["sample", str(run), "--images", "5", "--steps", "3", "--out", str(tmp_path / name), *arguments]) == 0
        )
    a, b, c = (np.load(tmp_path / n / "samples.npy", allow_pickle=False) for n in "abc")
    assert a.shape == b.shape == (5, 1, 8, 8)
    assert a.dtype == np.uint8
    assert a.max() <= 16
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)
    settings = json.loads((tmp_path / "a" / "sample.json").read_text())
    assert settings["settings"]["t_start"] == load_density(run)[0].process.T
    assert json.loads((tmp_path / "b" / "sample.json").read_text())["settings"]["t_start"] == 0.0
    assert settings["model"]["step"] == 8


def test_results_are_not_put_in_the_place_of_a_file(run, tmp_path, capsys):
    (tmp_path / "here").write_text("mine")
    for command in ("sample", "complete", "evaluate"):
        assert main([command, str(run), "--out", str(tmp_path / "here")]) == 2
        assert "which is a file; expected a folder" in capsys.readouterr().err
    for command in (["train", *SMALL], ["demo", "--smoke"]):
        assert main([*command, "--out", str(tmp_path / "here")]) == 2
        assert "which is a file; expected a folder" in capsys.readouterr().err
    assert (tmp_path / "here").read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/run", r"out: got \S+/file/run below \S+/file, which is a file; expected a folder"),
        ("theirs/new/run", r"out: got \S+/theirs/new/run; expected a place that may be written to, as \S+ is not"),
    ],
)
def test_where_results_go_is_known_before_there_are_some(run, tmp_path, capsys, monkeypatch, place, message):
    """Before data are read and samples are drawn, also by a first start with --resume."""
    (tmp_path / "file").touch()
    (tmp_path / "theirs").mkdir()
    here = tmp_path / "theirs"  # to which root may write anyway
    monkeypatch.setattr("ncml.files.os.access", lambda path, mode: path != here or not mode & os.W_OK)
    monkeypatch.setattr(ImageSource, "load", None)
    monkeypatch.setattr("ncml.cli.sample.draw_samples", None)
    settings = {"train": SMALL, "sample": [str(run)], "complete": [str(run)], "evaluate": [str(run)]}
    settings["train --resume"] = SMALL
    for command, arguments in settings.items():
        assert main([*command.split(), *arguments, "--out", str(tmp_path / place)]) == 2
        assert re.search(message, capsys.readouterr().err), command
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "theirs"]


def test_sample_with_another_sampler(run, tmp_path, capsys):
    """The named one, with as many steps; and --n, since not everything is an image."""
    arguments = ["--n", "3", "--steps", "2", "--batch-size", "3", "--sampler", "heun"]
    assert main(["sample", str(run), "--out", str(tmp_path / "s"), *arguments]) == 0
    density, _, kind, _ = load_density(run)
    generator = torch.Generator().manual_seed(stream_seed(0, "sampling", 0))
    expected = generate(density, 3, sampler=HeunODE(steps=2), generator=generator)
    found = np.load(tmp_path / "s" / "samples.npy", allow_pickle=False)
    assert np.array_equal(found, kind.lattice.nearest(expected).numpy())
    assert json.loads((tmp_path / "s" / "sample.json").read_text())["settings"]["sampler"] == "heun"
    assert main(["sample", str(run), "--sampler", "euler"]) == 2
    assert "sampler: got 'euler'; expected one of euler-maruyama, heun" in capsys.readouterr().err


def signalled(function, at, number):
    """The function, during whose call number ``at`` a signal comes."""
    calls = []

    def called(*args, **options):
        calls.append(args)
        if len(calls) == at:
            signal.raise_signal(number)
        return function(*args, **options)

    return called


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_samples_drawn_before_a_signal_are_kept(run, tmp_path, monkeypatch, capsys, number):
    """Those of the batches that are done, and of the one that is being drawn: the first of the whole draw."""
    arguments = ["--n", "7", "--batch-size", "2", "--steps", "2"]
    assert main(["sample", str(run), "--out", str(tmp_path / "all"), *arguments]) == 0
    monkeypatch.setattr(common, "generate", signalled(common.generate, 2, number))
    capsys.readouterr()
    assert main(["sample", str(run), "--out", str(tmp_path / "some"), *arguments]) == 128 + number
    assert f"Stopped by signal {int(number)} after 4 of 7." in capsys.readouterr().out
    every, some = (np.load(tmp_path / n / "samples.npy", allow_pickle=False) for n in ("all", "some"))
    assert (len(every), len(some)) == (7, 4)
    assert np.array_equal(some, every[:4])
    settings = json.loads((tmp_path / "some" / "sample.json").read_text())["settings"]
    assert (settings["images"], settings["drawn"]) == (7, 4)


def test_a_signal_in_the_last_batch_stops_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "generate", signalled(common.generate, 2, signal.SIGINT))
    arguments = ["--n", "3", "--batch-size", "2", "--steps", "2"]
    assert main(["sample", str(run), "--out", str(tmp_path), *arguments]) == 0
    assert len(np.load(tmp_path / "samples.npy", allow_pickle=False)) == 3


def test_completions_before_a_signal_are_kept(run, tmp_path, monkeypatch):
    arguments = ["--rows", "5", "--images", "6", "--draws", "2", "--steps", "2"]
    assert main(["complete", str(run), "--out", str(tmp_path / "all"), *arguments]) == 0
    monkeypatch.setattr(NCPN, "complete", signalled(NCPN.complete, 1, signal.SIGINT))
    assert main(["complete", str(run), "--out", str(tmp_path / "some"), *arguments]) == 130
    every, some = (np.load(tmp_path / n / "completions.npy", allow_pickle=False) for n in ("all", "some"))
    assert (len(every), len(some)) == (12, 8)
    assert np.array_equal(some, every[:8])
    with Image.open(tmp_path / "some" / "completions.png") as picture:
        assert picture.height == 4 * 9 * 16 - 16


def test_the_bars_of_a_draw_say_how_long_it_takes(run, tmp_path, monkeypatch, capsys):
    """One for the batches, one for the steps of each: a single batch may take long."""
    monkeypatch.setattr("ncml.cli.sample.shows_progress", lambda: True)
    assert main(["sample", str(run), "--n", "2", "--steps", "3", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "sampling" in said
    assert "EulerMaruyama" in said
    few = ["--images", "1", "--draws", "1", "--steps", "2", "--noise", "1.5"]
    assert main(["complete", str(run), *few, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "completing" in said
    assert "rows" in said
    assert "EulerMaruyama" in said


@pytest.mark.parametrize("noise", ["0", "1.5"])
def test_complete_keeps_the_rows(run, tmp_path, capsys, noise):
    arguments = ["--rows", "5", "--images", "3", "--draws", "2", "--steps", "3", "--noise", noise]
    assert main(["complete", str(run), "--out", str(tmp_path), *arguments]) == 0
    completed = np.load(tmp_path / "completions.npy", allow_pickle=False).reshape(3, 2, 8, 8)
    levels = held_out(3).levels.numpy()
    assert np.array_equal(completed[:, :, :5], np.repeat(levels, 2, 1)[:, :, :5])
    assert np.array_equal(np.load(tmp_path / "originals.npy", allow_pickle=False), levels)
    assert not np.array_equal(completed[:, 0, 5:], completed[:, 1, 5:])
    assert (tmp_path / "completions.png").exists()
    assert main(["complete", str(run), "--rows", "9"]) == 2
    assert "rows: got 9; expected 0 to 8: how many of the 8 rows of an image are kept" in capsys.readouterr().err


CLAIMS = {
    "requires": {"data": "digits", "test_images": 360},
    "rows": {"ours": {"Table 1": {"bits/dim pi=0.5": 3.0, "FID": 9.0}, "Table 2": {"AUROC constant": 0.7}}},
}


@pytest.mark.filterwarnings("ignore:.* rows of .* features")
def test_evaluate_against_the_library(run, tmp_path, capsys):
    """The report's numbers, computed again by the library's functions; the paper's beside them."""
    (tmp_path / "claims.json").write_text(json.dumps(CLAIMS))
    (tmp_path / "Noise").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 12, 15), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "Noise" / f"{i}.png")
    arguments = ["--images", "40", "--curve-images", "16", "--curve-times", "3", "--ood-images", "16", "--samples", "8"]
    arguments += [
        "--steps",
        "2",
        "--classifier-steps",
        "20",
        "--claims",
        str(tmp_path / "claims.json"),
        "--row",
        "ours",
        "--ood",
        str(tmp_path / "Noise"),  # in 256 levels, brought to the digits' 17
    ]
    assert main(["evaluate", str(run), "--out", str(tmp_path / "e"), *arguments]) == 0
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    density, *_ = load_density(run)
    x = held_out(40).batch(slice(None))
    table = level_noise_table(density, x, [0.0])
    assert report["bits_per_dim"]["0"]["bits"]["mean"] == pytest.approx(table[0].bits.mean, rel=1e-6)
    assert report["bits_per_dim"]["1"]["moved"] > report["bits_per_dim"]["0.5"]["moved"] > 0.2
    assert report["bits_per_dim"]["0"]["moved"] == 0.0
    curve = report["robustness"]
    assert curve["sigma_levels"] == pytest.approx([0.0, 1.0, 2.0], rel=1e-9)
    clean = bits_per_dim(density, x[:16])
    assert curve["clean"][0]["mean"] == pytest.approx(clean.mean, rel=1e-6)
    assert [c["kind"] for c in curve["clean"]] == ["exact", "density", "density"]
    assert set(report["auroc"]) == {"constant", "uniform noise", "noise"}
    assert {row["log_p"]["n_out"] for row in report["auroc"].values()} == {16, 5}
    assert report["auroc"]["constant"]["typical_ladder"]["value"] == pytest.approx(ladder_auroc(density), abs=1e-9)
    assert set(report["frechet"]["distances"]) == {"test images", "direct", "two-part"}
    claims = {c["quantity"]: c for c in report["claims"]}
    assert claims["bits/dim pi=0.5"]["ours"] == report["bits_per_dim"]["0.5"]["bits"]["mean"]
    assert claims["bits/dim pi=0.5"]["why"] == ["test_images is 40, not 360"]
    assert claims["AUROC constant"]["ours"] == report["auroc"]["constant"]["log_p_plus_log_score_norm"]["value"]
    assert (tmp_path / "e" / "robustness.png").exists()
    printed = capsys.readouterr().out
    assert "not comparable: test_images is 40, not 360" in printed
    assert f"{report['bits_per_dim']['0']['bits']['mean']:.4f}" in printed


def ladder_auroc(density):
    """Against 16 constant images, by the library's functions."""
    process, draw = density.process, torch.Generator().manual_seed(0)
    constant = density.lattice.to_unit(torch.randint(17, (16, 1, 1, 1), generator=draw).expand(16, 1, 8, 8))
    times = [0.0, *(float(process.time_at(float(process.sigma(process.T)) / k)) for k in (8, 4, 2, 1))]
    known, inside, outside = (
        torch.cat([*ladder_statistics(density, x, times).values()], 1)
        for x in (
            ImageSource("digits").load(train=True).mixed(16).batch(slice(None)),
            held_out(16).batch(slice(None)),
            constant,
        )
    )
    typical = Typicality.fit(known)
    return auroc(typical(inside), typical(outside))


@pytest.mark.filterwarnings("ignore:.* rows of .* features")
def test_evaluate_hands_fid_its_images(run, tmp_path, monkeypatch):
    """The training images and the samples in 256 levels; the paper's FID beside it, if there were enough samples."""
    seen = []

    def fake_fid(real, fake):
        seen.append((torch.cat(list(real)), torch.cat(list(fake))))
        return 7.5

    monkeypatch.setattr("ncml.cli.tables.fid", fake_fid)
    monkeypatch.setattr("ncml.cli.evaluate.check_inception", lambda: None)
    (tmp_path / "claims.json").write_text(json.dumps({"requires": {}, "rows": {"r": {"Table 1": {"FID": 9.0}}}}))
    few = ["--images", "4", "--curve-images", "0", "--ood-images", "0", "--samples", "4", "--steps", "1"]
    few += ["--fid", "--classifier-steps", "1", "--claims", str(tmp_path / "claims.json"), "--row", "r"]
    assert main(["evaluate", str(run), "--out", str(tmp_path), *few]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frechet"]["fid"] == {"direct": 7.5, "two-part": 7.5}
    assert [c["ours"] for c in report["claims"]] == [7.5]
    assert report["claims"][0]["why"] == ["FID is of 4 samples, not 10000"]
    real, samples = seen[0]
    levels = ImageSource("digits").load(train=True).levels
    assert torch.equal(real, (levels.double() / 16 * 255).round().to(torch.uint8))
    assert (samples.shape, samples.dtype) == ((4, 1, 8, 8), torch.uint8)


def test_classes(tmp_path):
    folder = tmp_path / "run"
    settings = ["--model.classes", "--optim.steps", "2", "--run.sample-every", "2"]
    assert main(["train", "--out", str(folder), *SMALL, *settings]) == 0
    for label in ("3", None):
        arguments = [] if label is None else ["--class", label]
        assert main(["sample", str(folder), "--images", "4", "--noise", "0", *arguments]) == 0
    assert main(["complete", str(folder), "--images", "2", "--draws", "1"]) == 0
    assert main(["evaluate", str(folder), "--images", "16", "--curve-images", "0", "--ood-images", "16"]) == 0
    assert main(["sample", str(folder), "--class", "twelve"]) == 2
    # Outliers have no label, so no image may: the statistics are those of unlabelled images on both sides.
    report = json.loads((folder / "evaluation" / "report.json").read_text())
    density, *_ = load_density(folder)
    draw = torch.Generator().manual_seed(0)
    constant = density.lattice.to_unit(torch.randint(17, (16, 1, 1, 1), generator=draw).expand(16, 1, 8, 8))
    inside, outside = (
        ood_statistics(density, x, 0.0, torch.full((16,), -1)) for x in (held_out(16).batch(slice(None)), constant)
    )
    assert report["auroc"]["constant"]["log_p"]["value"] == auroc(inside["log_p"], outside["log_p"])


def test_outliers_need_a_model_that_knows_unlabelled_images(tmp_path, capsys):
    folder = tmp_path / "run"
    settings = ["--model.classes", "--model.label-dropout", "0", "--optim.steps", "1", "--run.sample-every", "0"]
    assert main(["train", "--out", str(folder), *SMALL, *settings]) == 0
    assert main(["evaluate", str(folder)]) == 2
    assert "never saw an example without its label" in capsys.readouterr().err


def test_results_of_a_checkpoint_go_beside_the_run(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert main(["sample", str(copy / "checkpoints" / "step_00000006"), "--images", "1", "--noise", "0"]) == 0
    assert json.loads((copy / "samples-noise0" / "sample.json").read_text())["model"]["step"] == 6


def test_what_the_first_lines_say(tmp_path, capsys):
    small = [*SMALL, "--optim.steps", "1", "--run.sample-every", "0"]
    assert main(["train", "--out", str(tmp_path / "run"), *small, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert f"No run in {tmp_path / 'run'} yet: starting one." in printed
    assert "The model does not use these 10 classes; --model.classes conditions on them." in printed
    bits = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["validation"]["bits_per_dim"]
    assert f"Step 1: Held-out images at t = 0: {bits:.3f} bits/dim." in printed
    assert "Training: 1 step of " in printed
    assert "Trained 1 step in " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood", "nowhere"], "ood: got nowhere; expected a folder of images"),
        (["--ood", ".", "--ood-images", "0"], "ood: got . and --ood-images 0"),
        (["--samples", "4", "--fid"], "fid: needs torchmetrics and torch-fidelity"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_any_work(run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluation_stays_within_the_noise_that_was_trained(tmp_path):
    """A ladder may end below T."""
    noise = ["--noise.times", "ladder", "--noise.ladder", "0.001"]
    run = str(tmp_path / "run")
    assert main(["train", "--out", run, *SMALL, "--run.sample-every", "0", *noise]) == 0
    few = ["--images", "4", "--curve-images", "4", "--curve-times", "3", "--ood-images", "0", "--out", str(tmp_path)]
    assert main(["evaluate", run, *few]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    process = VPSDE.at_noise(2.0 * Lattice(17).width)
    top = float(process.sigma(0.001)) / Lattice(17).width
    assert max(report["robustness"]["sigma_levels"]) == pytest.approx(top)


def test_an_earlier_figure_is_removed(run, tmp_path):
    (tmp_path / "robustness.png").write_bytes(b"old")
    few = ["--images", "4", "--curve-images", "0", "--ood-images", "0", "--out", str(tmp_path)]
    assert main(["evaluate", str(run), *few]) == 0
    assert not (tmp_path / "robustness.png").exists()


def test_images_that_have_moved(tmp_path):
    """The folder of a run may have been relative to another place."""
    for split in ("train", "test"):
        for i in range(4):
            path = tmp_path / "here" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 60 * i).save(path)
    where = ["--data.name", "folder", "--data.channels", "1", "--data.folder", str(tmp_path / "here")]
    run = str(tmp_path / "run")
    assert main(["train", "--out", run, *SMALL, *where, "--run.sample-every", "0", "--noise.std-in-levels", "20"]) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert main(["complete", run, "--images", "1", "--draws", "1"]) == 2
    moved = ["--data.folder", str(tmp_path / "there")]
    assert main(["complete", run, "--images", "1", "--draws", "1", *moved]) == 0
    few = ["--images", "2", "--curve-images", "0", "--ood-images", "0"]
    assert main(["evaluate", run, *few, *moved]) == 0
    assert (
        main(["train", "--out", run, "--resume", "--optim.steps", "9", "--data.folder", str(tmp_path / "there")]) == 0
    )


# Stopped and resumed.


def test_killed_runs_go_on_bit_for_bit(run, tmp_path):
    """kill -9 at random instants, until it is through; the same weights, moments and log as in one go."""
    folder, draw = tmp_path / "run", random.Random(1)
    kills = 0
    for _ in range(12):
        command = [sys.executable, "-m", "ncml.cli", "train", "--out", str(folder), "--resume", *SMALL]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = None
        while process.poll() is None:
            begun = (folder / "checkpoints").exists()
            if begun and deadline is None and kills < 3:
                deadline = time.monotonic() + draw.uniform(0.0, 0.4)
            if deadline is not None and time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 1
    a, b = open_checkpoint(run), open_checkpoint(folder)
    assert same_state(a.model(), b.model())
    assert same_state(a.training(), b.training())
    assert losses(folder) == losses(run)


def test_a_signal_saves_and_says_so(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "ncml.cli", "train", "--out", str(folder), *SMALL, "--optim.steps", "100000"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    while not (folder / "checkpoints").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"Stopped by signal 15 after step {open_checkpoint(folder).step}, saved" in printed


def test_more_steps_and_nothing_else(run, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *SMALL, "--optim.schedule", "constant"]) == 0
    assert main(["train", "--out", str(folder), "--resume", "--optim.steps", "10"]) == 0
    assert open_checkpoint(folder).step == 10
    assert json.loads((folder / "config.json").read_text())["optim"]["schedule"] == "constant"
    assert main(["train", "--out", str(folder), "--resume", "--optim.batch-size", "4"]) == 2
    assert main(["train", "--out", str(folder)]) == 2


def test_a_file_at_resumption_is_not_ignored(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    stored = json.loads((folder / "config.json").read_text())
    (tmp_path / "c.toml").write_text('[data]\nname = "digits"\n[optim]\nsteps = 9\nbatch_size = 4\n')
    assert main(["train", "--out", str(folder), "--resume", "--config", str(tmp_path / "c.toml")]) == 2
    assert "optim.batch_size: 8 -> 4" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text()) == stored


@pytest.mark.parametrize("text", ["[]", "{", "3", "[" * 100_000])
def test_a_damaged_configuration(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    assert main(["train", "--out", str(tmp_path), "--resume"]) == 2
    assert "config.json: got" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_before_data_are_read(run, tmp_path, capsys, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    path = open_checkpoint(tmp_path / "run").folder / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(ImageSource, "load", None)
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "training.safetensors: got" in capsys.readouterr().err


def test_a_run_that_went_on_while_data_were_read_is_resumed_from_where_it_is(run, tmp_path, capsys, monkeypatch):
    """Not from the checkpoint that was the latest before, which may be gone."""
    out, load = tmp_path / "run", ImageSource.load
    shutil.copytree(run, out)
    folder = open_checkpoint(out).folder
    later = folder.rename(tmp_path / folder.name)

    def read(*arguments, **more):
        if later.exists():
            later.rename(folder)
        return load(*arguments, **more)

    monkeypatch.setattr(ImageSource, "load", read)
    assert main(["train", "--out", str(out), "--resume", "--optim.steps", "10"]) == 0
    assert "Going on after step 8" in capsys.readouterr().out


def test_a_refused_start_leaves_nothing(tmp_path):
    """So that the corrected command is a first start again."""
    for wrong in (["--optim.accumulate", "3"], ["--noise.std-in-levels", "20"]):
        assert main(["train", "--out", str(tmp_path / "run"), *SMALL, *wrong]) == 2
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "samples: got 1"),
        (["--fid"], "samples: got 0"),
        (["--batch-size", "0"], "batch_size: got 0"),
        (["--curve-images", "-1"], "curve_images: got -1"),
    ],
)
def test_evaluate_refuses_before_it_works(run, tmp_path, capsys, arguments, message):
    assert main(["evaluate", str(run), "--out", str(tmp_path / "e"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("claims", "row", "message"),
    [
        (CLAIMS, "theirs", "row: got 'theirs'; expected one of 'ours'"),
        ({"rows": {}}, "ours", "no file of claims"),
        ({"requires": {}, "rows": {"ours": 3}}, "ours", "no file of claims"),
        ({"requires": {}, "rows": {"ours": {"T": {"bits/dim pi=0.7": 3}}}}, "ours", "the quantity 'bits/dim pi=0.7'"),
        (CLAIMS, None, "got one without the other"),
    ],
)
def test_claims_are_read_before_it_works(run, tmp_path, capsys, claims, row, message):
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    arguments = ["--claims", str(tmp_path / "claims.json"), *([] if row is None else ["--row", row])]
    assert main(["evaluate", str(run), "--out", str(tmp_path / "e"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_claims_that_are_not_there(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--claims", str(tmp_path / "none.json"), "--row", "ours"]) == 2
    assert "claims: got" in (said := capsys.readouterr().err)
    assert "none.json, which cannot be read (No such file or directory); expected a file" in said


# Several processes.


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_train_sample_and_evaluate_as_one(run, tmp_path):
    """The same losses within 1e-5 (no dropout here), the same samples and likelihoods from the same weights."""
    drawing = [run, "--images", 5, "--steps", 2, "--batch-size", 2, "--threads", 1]
    evaluating = [run, "--images", 30, "--curve-images", 10, "--curve-times", 2, "--ood-images", 10]
    evaluating += ["--batch-size", 8, "--threads", 1]
    assert main(["sample", *map(str, drawing), "--out", str(tmp_path / "s1")]) == 0
    assert main(["evaluate", *map(str, evaluating), "--out", str(tmp_path / "e1")]) == 0
    commands = (  # each started anew: one process group after another in one program may hang
        ["train", "--out", tmp_path / "two", *SMALL],
        ["sample", *drawing, "--out", tmp_path / "s2"],
        ["evaluate", *evaluating, "--out", tmp_path / "e2"],
    )
    for command in commands:
        done = torchrun(*command)
        assert done.returncode == 0, done.stderr

    assert json.loads((tmp_path / "two" / "report.json").read_text())["processes"] == 2
    one, two = losses(run), losses(tmp_path / "two")
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-5)
    validation = [
        [line["validation"]["bits_per_dim"] for line in read_metrics(f / "metrics.jsonl") if "validation" in line]
        for f in (run, tmp_path / "two")
    ]
    assert validation[1] == pytest.approx(validation[0], rel=1e-4)
    assert np.array_equal(np.load(tmp_path / "s1/samples.npy"), np.load(tmp_path / "s2/samples.npy"))
    e1, e2 = (json.loads((tmp_path / e / "report.json").read_text()) for e in ("e1", "e2"))
    for part in ("bits_per_dim", "robustness", "auroc"):
        assert e1[part] == e2[part]


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.features", "9"], "--model.heads: got 2; expected a divisor of --model.features 9"),
        (["--data.name", "mnist", "--data.folder", "nowhere"], "nowhere"),
        (["--config", "nowhere.toml"], "config: got nowhere.toml, where there is no file"),
        (["--config", "."], "config: got ., where there is no file; expected a TOML file, or the config.json of a run"),
        (["--run.strategy", "nonsense"], "nonsense"),
    ],
)
def test_errors_of_the_user(tmp_path, capsys, arguments, message):
    before = set(tmp_path.iterdir())
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.batch-size", "0"], "optim.batch_size: got 0; expected an integer >= 1"),
        (["--noise.std-in-levels", "-1"], "noise.std_in_levels: got -1.0"),
        (["--optim.stepz", "3"], "--optim.steps"),
        (["--noise.process", "vq"], "sub-vp"),
    ],
)
def test_options_that_cannot_be_parsed(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--out", str(tmp_path / "run"), *SMALL, *arguments])
    said = capsys.readouterr().err.replace("│", " ")  # some releases of tyro draw a box, which breaks lines
    assert message in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_gets_suggestions_of_its_own_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--steps", "4"])
    said = capsys.readouterr().err
    assert "--optim.steps" in said
    assert "refinement" not in said  # of which the other commands have --steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nstepz = 3", r"optim\.stepz: got a name that is not known; expected one of steps, batch_size"),
        ("[optim]\nsteps = '3'", r"optim\.steps: got '3'; expected int"),
        ("[optim]\nsteps = 3.5", r"optim\.steps: got 3\.5; expected int"),
        ("[optim]\nsteps = true", r"optim\.steps: got True; expected int"),
        ("[noise]\nprocess = 'vq'", r"noise\.process: got 'vq'; expected one of 'vp', 'sub-vp', 've', 'linear-ve'"),
        ("[run]\nloggers = 'wandb'", r"run\.loggers: got 'wandb'; expected a list, such as \['wandb'\]"),
        ("[model]\nname = 'made'\nhidden = 64", r"model\.hidden: got 64; expected a list, such as \[64\]"),
        ("optim = 3", r"optim: got 3"),
        ("optim = [", "not TOML"),
        ("optim = " + "[" * 5000, "not TOML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        read_toml(tmp_path / "config.toml")


def test_a_file_then_options(tmp_path):
    text = '[optim]\nsteps = 2\nlearning_rate = 1\n[data]\nname = "digits"\n[run]\nloggers = []\n'
    (tmp_path / "c.toml").write_text(text)
    arguments = ["--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "r"), "--optim.steps", "1"]
    assert main(["train", *SMALL, *arguments]) == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["optim"]["steps"], config["optim"]["learning_rate"]) == (1, 1.0)


def test_the_settings_of_a_run_are_a_file_too(run, tmp_path, capsys):
    """As another run recorded them, with options that override."""
    arguments = ["--config", str(run / "config.json"), "--out", str(tmp_path / "r"), "--optim.steps", "1"]
    assert main(["train", *arguments]) == 0
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "r"))
    assert new == {**old, "optim": {**old["optim"], "steps": 1}}
    (tmp_path / "broken.json").write_text("{")
    assert main(["train", "--config", str(tmp_path / "broken.json"), "--out", str(tmp_path / "r2")]) == 2
    assert "broken.json: got a file that is not JSON" in capsys.readouterr().err


def test_configurations_survive_json():
    config = from_dict(TrainConfig, {"data": {"name": "folder", "folder": "a/b"}, "run": {"loggers": ["wandb"]}})
    assert config.data.folder == Path("a/b")
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_tensorboard(tmp_path):
    assert main(["train", "--out", str(tmp_path), *SMALL, "--run.loggers", "tensorboard", "--optim.steps", "2"]) == 0
    assert any("tfevents" in p.name for p in tmp_path.rglob("*"))


def test_a_run_can_be_recorded_for_a_page(run, tmp_path):
    """By the script of the results pages: tables, figures and pictures, and no folder of the machine."""
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "vp")
    few = ["--images", "10", "--curve-images", "4", "--curve-times", "2", "--ood-images", "8", "--ood-levels", "1"]
    assert main(["evaluate", str(runs / "vp"), *few, "--threads", "1"]) == 0
    assert main(["complete", str(runs / "vp"), "--images", "1", "--draws", "1", "--steps", "2"]) == 0
    assert (
        main(["sample", str(runs / "vp"), "--images", "2", "--noise", "0", "--out", str(runs / "vp" / "direct")]) == 0
    )
    script = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "results" / "ncpn.py"))
    here = tmp_path / "page"
    here.mkdir()
    script["record"].__globals__["HERE"] = here
    script["record"]("digits", runs, "0000000")
    assert {path.name for path in here.iterdir()} == {
        "digits.json",
        "digits.png",
        "digits-samples.png",
        "digits-completions.png",
    }
    text = (here / "digits.json").read_text()
    assert str(tmp_path) not in text
    data = json.loads(text)
    assert any("typical ratios" in line for line in script["results"](data, {}))
    assert "8 steps of 8" in " ".join(script["conditions"](data))


def test_a_row_that_overflows_is_the_oddest_and_ends_nothing(tmp_path):
    """One of many numbers is 3e25, whose square single precision does not hold."""
    x = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    x[70, 0] = 3e25
    np.savez(tmp_path / "x.npz", x_train=x[:60], x_test=x[60:])
    run = str(tmp_path / "run")
    data = ["--data.name", "array", "--data.file", str(tmp_path / "x.npz"), "--model.name", "maf"]
    short = "--optim.steps 2 --run.threads 1 --run.accelerator cpu --run.validate-images 4 --noise.std 0.5"
    assert main(["train", "--out", run, *data, *short.split()]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["evaluate", run, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "uniform noise" in report["auroc"]


@pytest.mark.parametrize("failing", [3, 6])
def test_examples_that_overflow_come_below_all_others(monkeypatch, failing):
    """Half of six constant images, or all of them; the others are likelier than data, as simple images are."""

    def statistics(density, x, t, context):
        log_p = torch.arange(-100.0, -70.0, 5.0) if bool((x == 0.5).all()) else torch.full((6,), -10.0)
        if not bool((x == 0.5).all()):
            log_p[6 - failing :] = math.nan
        names = ("log_p", "score_norm", "log_p_plus_log_score_norm", "score_sum")
        return dict.fromkeys(names, log_p)

    monkeypatch.setattr(tables, "ood_statistics", statistics)
    test = Arrays(torch.full((6, 1, 4, 4), 0.5))
    config = SimpleNamespace(model=SimpleNamespace(classes=0))
    kind = SimpleNamespace(shape=(1, 4, 4), is_image=True)
    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=1, is_global_zero=True)
    run = SimpleNamespace(density=None, fabric=fabric, config=config, kind=kind, lattice=Lattice(256), first=False)
    monkeypatch.setattr(tables, "_in_blocks", lambda run, n, work, label, settings: work(slice(0, n), None))
    found = tables.outliers(run, test, None, None, tables.EvaluateSettings(ood_images=6))
    for name in ("constant", "uniform noise"):
        assert found[name]["log_p"].value == failing / 6


def test_test_data_that_all_overflow_end_the_evaluation(monkeypatch):
    nothing = torch.full((6,), math.nan)
    names = ("log_p", "score_norm", "log_p_plus_log_score_norm", "score_sum")
    monkeypatch.setattr(tables, "_statistics", lambda *_: dict.fromkeys(names, nothing))
    with pytest.raises(NonFiniteError, match=re.escape("test data: got log-densities or scores")):
        tables.outliers(None, Arrays(torch.zeros(6, 1, 4, 4)), None, None, tables.EvaluateSettings(ood_images=6))
