"""``[noise]``: every process and distribution of times of the library, and a default that follows from the data."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ncml import VESDE, VPSDE, Lattice, LevelNoise, LinearVESDE, SubVPSDE
from ncml.cli import main
from ncml.data import Arrays
from ncml.densities import MAF
from ncml.errors import ArgumentError
from ncml.objective import AtZero, ImportanceTimes, LadderTimes, LogUniformTimes, UniformTimes, WeightedTimes
from ncml.training import DataKind, NoiseConfig, TrainConfig, build, build_process, build_times, load_density
from ncml.training.config import from_dict, read_toml, to_dict
from ncml.training.noise import default_noise, last_trained_time, resolved

LATTICE = Lattice(256)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"std_in_levels": 10.0}, VPSDE.at_noise(10.0 * LATTICE.width)),
        ({"std": 0.3, "process": "sub-vp"}, SubVPSDE.at_noise(0.3)),
        ({"std_in_levels": 10.0, "data_std": 0.5}, VPSDE.at_noise(10.0 * LATTICE.width, data_std=0.5)),
        ({"std": 0.3, "process": "ve", "sigma_max": 2.0}, VESDE.at_noise(0.3, sigma_max=2.0)),
        ({"T": 0.5, "process": "ve", "sigma_min": 0.1, "sigma_max": 7.0}, VESDE(0.5, 0.1, 7.0)),
        ({"std": 5.0, "process": "linear-ve"}, LinearVESDE(5.0)),
        ({"T": 0.4, "beta_min": 0.2, "beta_max": 3.0}, VPSDE(0.4, 0.2, 3.0)),
        ({"preset": "paper"}, VPSDE.paper()),
        ({"preset": "paper-as-printed"}, VPSDE.paper(as_printed=True)),
        ({"preset": "paper", "process": "sub-vp"}, SubVPSDE.paper()),
        ({"preset": "paper", "process": "ve"}, VESDE.paper()),
        ({"preset": "paper", "process": "ve", "sigma_max": 3.0}, VESDE(T=0.5, sigma_max=3.0)),
        ({"process": "level-noise", "T": 0.5, "edge": "reflect"}, LevelNoise(256, "reflect", 0.5)),
    ],
)
def test_processes(settings, expected):
    assert build_process(NoiseConfig(**settings), LATTICE) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, UniformTimes()),
        ({"p_zero": 0.5, "t_min": 0.01}, UniformTimes(p_zero=0.5, t_min=0.01)),
        ({"times": "log-uniform"}, LogUniformTimes()),
        ({"times": "log-uniform", "std_min": 0.01, "p_zero": 0.0}, LogUniformTimes(0.01, 0.0)),
        ({"times": "zero"}, AtZero()),
        (
            {"times": "ladder", "ladder": (0.01, 0.02), "lambdas": (0.5, 2.0)},
            LadderTimes.from_lambdas({0.01: 0.5, 0.02: 2.0}),
        ),
        ({"times": "ladder", "ladder": (0.01,)}, LadderTimes.from_lambdas({0.01: 1.0})),
        ({"times": "importance", "bins": (1.0, 3.0), "p_zero": 0.1}, ImportanceTimes((1.0, 3.0), p_zero=0.1)),
        ({"p_zero": 0.0, "t_min": 0.01, "weight": "t"}, WeightedTimes.itarflow()),
    ],
)
def test_times(settings, expected):
    assert build_times(NoiseConfig(**settings)) == expected


def test_every_setting_survives_a_file(tmp_path):
    text = """[noise]
    process = "ve"
    std = 3
    sigma_max = 100
    times = "ladder"
    ladder = [0.1, 0.2]
    lambdas = [1, 0.5]
    """
    (tmp_path / "c.toml").write_text(text)
    noise = read_toml(tmp_path / "c.toml").noise
    assert (noise.std, noise.sigma_max, noise.ladder, noise.lambdas) == (3.0, 100.0, (0.1, 0.2), (1.0, 0.5))
    assert from_dict(NoiseConfig, json.loads(json.dumps(to_dict(noise)))) == noise


# The default.


@pytest.mark.parametrize(("levels", "expected"), [(256, 10.0), (17, 2.0), (64, 7.875), (9, 1.0), (5, 1.0), (2, 0.375)])
def test_the_default_on_a_lattice(levels, expected):
    """As in the paper on 256 levels; on coarser ones a part of the range, and about a level if VP can have it."""
    lattice = Lattice(levels)
    assert default_noise(lattice, None) == pytest.approx(expected, rel=1e-12)
    process = build_process(NoiseConfig(), lattice)
    assert float(process.sigma(process.T)) == pytest.approx(expected * lattice.width, rel=1e-9)


@pytest.mark.parametrize(("levels", "expected"), [(256, 10.0), (257, 0.03 / (2 / 256)), (65_536, 0.03 / (2 / 65_535))])
def test_the_default_on_a_fine_lattice_is_a_share_of_the_data(levels, expected):
    assert default_noise(Lattice(levels), 0.12) == pytest.approx(expected, rel=1e-12)
    x = torch.randint(levels, (64, 3), generator=torch.Generator().manual_seed(0))
    kind = DataKind.of(Arrays(x.int() if levels > 256 else x.byte(), lattice=Lattice(levels)))
    values = Lattice(levels).to_unit(x, dtype=torch.float64)
    assert kind.std == (pytest.approx(float(values.var(0, correction=0).mean().sqrt())) if levels > 256 else None)


def test_every_lattice_has_a_default():
    for levels in [*range(2, 300), 1024, 65_536]:
        for process in ("vp", "sub-vp", "ve", "linear-ve"):
            top = build_process(NoiseConfig(process), Lattice(levels))
            amount = float(top.sigma(top.T)) / Lattice(levels).width
            assert 0.3 < amount < 10.0 + 1e-9  # above the resolution of a lattice, where refinement stops


def test_the_default_of_real_numbers_follows_their_spread():
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]) + 100.0
    kind = DataKind.of(Arrays(x))
    assert kind.std == pytest.approx(math.sqrt((1 + 4 + 9) / 3), rel=0.05)
    process = build_process(NoiseConfig("ve"), None, kind.std)
    assert float(process.sigma(process.T)) == pytest.approx(0.25 * kind.std, rel=1e-6)
    assert DataKind.of(Arrays(torch.ones(4, 2))).std is None  # no spread, no share of it
    assert resolved(NoiseConfig("ve"), None, kind.std).std == 0.25 * kind.std
    assert resolved(NoiseConfig(std=0.1), None, kind.std) == NoiseConfig(std=0.1)


def test_the_spread_is_that_of_rows_from_everywhere(monkeypatch):
    """Files one after another, the later ones louder; and read in blocks, as if at once."""
    x = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x * torch.linspace(0.1, 2.0, 10_000, dtype=torch.float64)[:, None] + torch.arange(3.0)).float()
    exact = float(x.double().var(0, correction=0).mean().sqrt())
    monkeypatch.setattr(build, "STD_VALUES", 100)
    assert DataKind.of(Arrays(x)).std == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(build, "STD_ROWS", 1000)
    assert DataKind.of(Arrays(x)).std == pytest.approx(exact, rel=0.1)


def test_too_much_noise_names_what_to_do():
    with pytest.raises(ArgumentError, match=r"^noise\.std: got none, .* deviation, 100; .*; scale them to a"):
        build_process(NoiseConfig(), None, 100.0)
    with pytest.raises(ArgumentError, match=r"^noise\.std_in_levels: got 9, [^;]*; expected a noise.*linear-ve"):
        build_process(NoiseConfig(std_in_levels=9.0), Lattice(17))
    with pytest.raises(ArgumentError, match=r"^noise\.sigma_max: got 1\.0; expected more than sigma_min = 2\.0$"):
        build_process(NoiseConfig("ve", sigma_min=2.0, sigma_max=1.0), None, 1.0)


def test_the_default_is_said_and_stored(tmp_path, capsys):
    """``ncml train --data.name digits`` at its defaults, but for its length."""
    short = "--optim.steps 1 --optim.batch-size 4 --run.threads 1 --run.accelerator cpu --run.validate-images 4"
    arguments = ["--data.name", "digits", *short.split(), "--run.samples", "1"]
    assert main(["train", "--out", str(tmp_path), *arguments]) == 0
    assert "vp noise up to 2 levels, T = 0.07567 (which follows from the data)" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["noise"]["std_in_levels"] == 2.0
    density, config, _, checkpoint = load_density(tmp_path)
    assert config.noise.std_in_levels == checkpoint.info["noise"]["std_in_levels"] == 2.0
    assert density.process == VPSDE.at_noise(2.0 * Lattice(17).width)
    assert main(["train", "--out", str(tmp_path), "--resume", "--optim.steps", "2"]) == 0


def test_where_samples_may_start():
    process = VPSDE(T=0.1)
    assert last_trained_time(NoiseConfig(), process) == 0.1
    assert last_trained_time(NoiseConfig(times="zero"), process) == 0.0
    assert last_trained_time(NoiseConfig(times="ladder", ladder=(0.02, 0.05)), process) == 0.05
    assert last_trained_time(NoiseConfig(times="ladder", ladder=(0.02, 0.05), lambdas=(1.0, 0.0)), process) == 0.02
    assert last_trained_time(NoiseConfig("level-noise"), LevelNoise(17)) == 0.0
    for alone in (NoiseConfig(p_zero=1.0), NoiseConfig(times="ladder", ladder=(0.02,), lambdas=(0.0,))):
        assert alone.at_zero_only
        assert last_trained_time(alone, process) == 0.0


# What does not fit.


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"std": -1.0}, "std"),
        ({"std_in_levels": 0.0}, "std_in_levels"),
        ({"T": math.inf}, "T"),
        ({"std": 0.1, "std_in_levels": 2.0}, "std"),
        ({"T": 0.1, "preset": "paper"}, "preset"),
        ({"p_zero": 1.5}, "p_zero"),
        ({"sigma_max": 2.0}, "sigma_max"),
        ({"process": "ve", "beta_min": 2.0}, "beta_min"),
        ({"edge": "clip"}, "edge"),
        ({"t_min": 0.1, "times": "zero"}, "t_min"),
        ({"std_min": 0.1}, "std_min"),
        ({"ladder": (0.1,)}, "ladder"),
        ({"times": "ladder"}, "ladder"),
        ({"times": "ladder", "ladder": (0.1,), "lambdas": (1.0, 2.0)}, "lambdas"),
        ({"times": "ladder", "ladder": (0.1, 0.1)}, "ladder"),
        ({"times": "zero", "score_matching": 1.0}, "score_matching"),
        ({"times": "zero", "fokker_planck": 1.0}, "fokker_planck"),
        ({"p_zero": 1.0, "score_matching": 1.0}, "score_matching"),
        ({"p_zero": 1.0, "weight": "t"}, "weight"),
        ({"times": "ladder", "ladder": (0.1,), "lambdas": (0.0,), "fokker_planck": 1.0}, "fokker_planck"),
        ({"times": "importance"}, "bins"),
        ({"bins": (1.0,)}, "bins"),
        ({"process": "linear-ve", "preset": "paper"}, "preset"),
        ({"process": "level-noise", "std": 0.1}, "std"),
        ({"data_std": 0.5}, "data_std"),
        ({"data_std": 0.5, "preset": "paper"}, "data_std"),
        ({"data_std": 0.5, "std": 0.1, "process": "ve"}, "data_std"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ArgumentError, match=rf"^noise[.:].*{name}|^noise\.{name}"):
        NoiseConfig(**settings)


def test_settings_that_do_not_fit_the_data():
    with pytest.raises(ArgumentError, match=r"noise\.std_in_levels"):
        build_process(NoiseConfig(std_in_levels=2.0), None)
    with pytest.raises(ArgumentError, match=r"noise\.process"):
        build_process(NoiseConfig("level-noise"), None)
    for settings in ({"times": "ladder", "ladder": (0.0,)}, {"times": "importance", "bins": (0.0,)}):
        with pytest.raises(ArgumentError, match=r"^noise\."):
            build_times(NoiseConfig(**settings))


def test_unusual_noise_trains_and_samples(tmp_path):
    """A ladder, level noise and weighted times go through training, sampling and evaluation."""
    short = "--data.name digits --optim.steps 2 --optim.batch-size 8 --run.threads 1 --run.accelerator cpu"
    short += " --run.validate-images 4 --run.samples 1 --model.name made --model.hidden 8 --model.components 2"
    kinds = {
        "ladder": "--noise.preset paper --noise.times ladder --noise.ladder 0.005 0.02 --noise.lambdas 1 0.5",
        "levels": "--noise.process level-noise --noise.T 0.5",
        "weighted": "--noise.process linear-ve --noise.std 0.5 --noise.t-min 0.01 --noise.p-zero 0 --noise.weight t",
    }
    for name, noise in kinds.items():
        run = str(tmp_path / name)
        assert main(["train", "--out", run, *short.split(), *noise.split()]) == 0
        assert main(["sample", run, "--images", "2", "--steps", "2"]) == 0
        assert main(["evaluate", run, "--images", "4", "--curve-images", "2", "--ood-images", "4"]) == 0
    assert json.loads((tmp_path / "ladder/samples/sample.json").read_text())["settings"]["t_start"] == 0.02
    assert json.loads((tmp_path / "levels/samples/sample.json").read_text())["settings"]["t_start"] == 0.0
    assert main(["sample", str(tmp_path / "levels"), "--images", "2", "--noise", "1"]) == 2
    assert "robustness" not in json.loads((tmp_path / "levels/evaluation/report.json").read_text())


def test_a_density_without_a_process_gets_the_configured_one():
    from ncml.training import build_objective

    class Free(MAF):
        pass

    density = Free((2,), VPSDE(T=0.1), transforms=1, hidden=(4,))
    density.process = None
    config = TrainConfig(noise=NoiseConfig(std=0.2))
    assert build_objective(config.noise, density, DataKind((2,), std=1.0)).process == VPSDE.at_noise(0.2)
