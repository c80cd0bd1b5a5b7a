"""What the training program must notice before a run: other data, impossible times, settings that clash."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
import torch

from ncml import VPSDE, Lattice, NCMLObjective
from ncml.cli import main
from ncml.data import Arrays
from ncml.densities import MAF
from ncml.errors import ArgumentError, LatticeDataWarning
from ncml.objective import UniformTimes, WeightedTimes
from ncml.training import ModelConfig, NoiseConfig, OptimConfig, RunConfig, Trainer, launch, read_metrics
from ncml.training.models import build_model, model_settings
from ncml.training.window import Window

PROCESS = VPSDE.at_noise(0.25)
SHORT = ["--optim.steps", "2", "--optim.batch-size", "8", "--run.sample-every", "0", "--run.validate-every", "0"]


def test_the_trainer_warns_of_lattice_data_that_say_so(tmp_path):
    """A flow on integers: their own lattice is no reason to say nothing. And the folder is made."""
    levels = torch.randint(0, 17, (500, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Arrays(levels, None, Lattice(17))
    run, optim = RunConfig(log_every=1, threads=1), OptimConfig(steps=1, batch_size=8)
    fabric = launch(run)
    with pytest.warns(LatticeDataWarning, match="dequantize"):
        Trainer(fabric, MAF((4,), PROCESS, hidden=(8,)), NCMLObjective(PROCESS), examples, tmp_path, optim, run)
    objective = NCMLObjective(PROCESS, dequantize=Lattice(17))
    trainer = Trainer(fabric, MAF((4,), PROCESS, hidden=(8,)), objective, examples, tmp_path / "a" / "b", optim, run)
    assert trainer.run() == 0
    assert read_metrics(tmp_path / "a" / "b" / "metrics.jsonl")


def test_resuming_with_other_data_is_refused(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, levels, rows in (("one", 17, 90), ("two", 100, 90), ("more", 17, 120)):
        x = rng.integers(0, levels, (rows, 3))
        x[0], x[-1] = 0, levels - 1
        np.savez(tmp_path / f"{name}.npz", x_train=x, x_test=x[:10])
    out = str(tmp_path / "run")
    base = ["train", "--data.name", "array", "--model.name", "maf", "--noise.std", "0.1", "--out", out, *SHORT]
    assert main([*base, "--data.file", str(tmp_path / "one.npz")]) == 0
    for name, word in (("two", "levels is 100"), ("more", "training_examples is 120")):
        again = ["--resume", "--optim.steps", "4", "--data.file", str(tmp_path / f"{name}.npz")]
        assert main([*base, *again]) != 0
        said = capsys.readouterr().err
        assert "data: got other data" in said
        assert word in said


def test_times_that_the_process_lacks_are_named_before_the_folder_holds_a_run(tmp_path, capsys):
    base = ["train", "--data.name", "digits", "--model.name", "made", "--out", str(tmp_path / "run"), *SHORT]
    assert main([*base, "--noise.times", "ladder", "--noise.ladder", "5"]) != 0
    assert "noise.ladder" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_weight_that_is_zero_everywhere_is_refused():
    with pytest.raises(ArgumentError, match=r"noise\.weight"):
        NoiseConfig(times="zero", weight="t")


def test_logged_bits_are_without_weights():
    """WeightedTimes with a weight of 10 multiplies the loss, not the bits per dimension."""
    density, lattice = MAF((4,), PROCESS, hidden=(8,)), Lattice(17)
    x = lattice.to_unit(torch.randint(17, (64, 4), generator=torch.Generator().manual_seed(0)))
    lines = []
    for times in (UniformTimes(), WeightedTimes(UniformTimes(), lambda t: 10.0 + 0.0 * t)):
        objective = NCMLObjective(PROCESS, times, dequantize=lattice, reduction="none")
        generator = torch.Generator().manual_seed(1)
        t, weight = objective.draw_times(64, generator=generator)
        window = Window(density, lattice)
        window.add(objective.terms(density, x, t=t, weight=weight, generator=generator))
        lines.append(window.close(launch(RunConfig(threads=1))))
    assert lines[1]["loss"] == pytest.approx(10.0 * lines[0]["loss"], rel=1e-5)
    assert lines[1]["bits_per_dim"] == pytest.approx(lines[0]["bits_per_dim"], rel=1e-5)


def test_a_window_of_the_first_version_is_read():
    window = Window(MAF((4,), PROCESS, hidden=(8,)), Lattice(17))
    window.restore([10.0, 5.0, 2.0, 1.0])
    assert window.sums.tolist() == [10.0, 5.0, 2.0, 1.0, 10.0, 5.0]


# Models of one's own.

MODULE = """
import functools
from typing import Sequence

from ncml.densities import MAF

def lists(event_shape, process, lattice, *, hidden=(8, 8), more: list[int] = [4], width: "Sequence[int]" = (2,)):
    return MAF(event_shape, process, hidden=tuple(hidden))

def anything(event_shape, process, lattice, transforms=1, **settings):
    return MAF(event_shape, process, transforms=transforms, hidden=(8,), **settings)

part = functools.partial(lists, hidden=(4,))

class Maker:
    def __call__(self, event_shape, process, lattice, *, depth: int = 1):
        return MAF(event_shape, process, transforms=depth, hidden=(8,))

maker = Maker()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "review_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "review_models"
    sys.modules.pop("review_models", None)


def test_lists_without_annotation_and_sequences_are_settings(own):
    config = ModelConfig.read({"name": f"{own}:lists", "hidden": [16], "more": [1, 2], "width": [3]}, "model")
    assert (config.settings.hidden, config.settings.more, config.settings.width) == ((16,), (1, 2), (3,))
    assert model_settings(f"{own}:part")().hidden == (4,)
    assert model_settings(f"{own}:maker")().depth == 1
    assert isinstance(functools.partial, type)


@pytest.mark.parametrize("key", ["name", "transforms", "event_shape", "compile"])
def test_further_settings_may_not_take_another_one_s_place(own, key):
    with pytest.raises(ArgumentError, match=f"model.set: got '{key}'"):
        ModelConfig(f"{own}:anything", more={key: 1})


def test_a_further_setting_that_nobody_takes_is_named(own):
    config = ModelConfig(f"{own}:anything", more={"bogus": 1})
    with pytest.raises(ArgumentError, match="bogus"):
        build_model(config, (3,), PROCESS, None, classes=0, seed=0)
