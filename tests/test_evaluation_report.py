"""Reports as strict JSON, written atomically, and figures that show what they say."""

import dataclasses
import getpass
import json
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

import ncml
import ncml.evaluation
from ncml import BitsPerDim, Lattice
from ncml.densities import ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, MissingExtraError
from ncml.evaluation import AUROC, level_noise_table, plot_images, plot_robustness, robustness_curve
from ncml.report import environment, write_report
from tests.problems import PMF, SDES, seeded


def strict(path):
    """The file as strict JSON: NaN and Infinity are refused."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_every_public_name_is_there():
    assert sorted(ncml.evaluation.__all__) == ncml.evaluation.__all__
    assert all(hasattr(ncml.evaluation, name) for name in ncml.evaluation.__all__)


# Environment.


def test_the_environment_says_what_matters_and_not_where():
    data = environment()
    assert (data["ncml"], data["torch"], data["numpy"]) == (ncml.__version__, torch.__version__, np.__version__)
    assert (data["python"], data["machine"]) == (platform.python_version(), platform.machine())
    assert (data["threads"], data["cpu_count"]) == (torch.get_num_threads(), os.cpu_count())
    assert data["device"] == "cpu" or torch.cuda.is_available()
    for private in (platform.node(), os.getcwd(), sys.prefix, os.path.expanduser("~"), getpass.getuser()):
        assert private not in data.values()
    assert not any(os.sep in str(value) for value in data.values())


# Reports.


@dataclasses.dataclass(frozen=True)
class Result:
    name: str
    values: torch.Tensor


def test_a_report_survives_the_round_trip(tmp_path):
    path = tmp_path / "report.json"
    data = {
        "environment": environment(),
        "text": "Fréchet π",
        "numbers": [1, 0.1, True, None, np.float32(0.5), np.int64(7)],
        "special": (math.inf, -math.inf, math.nan, np.float64("nan")),
        "tensor": torch.tensor([[1.0, math.inf]]),
        "array": np.array([1, 2]),
        "result": Result("x", torch.tensor(2.5, dtype=torch.float64)),
        "auroc": AUROC(0.5, 0.4, 0.6, 0.95, 10, 20),
        0.5: "a number as key",
    }
    write_report(path, data)
    back = strict(path)
    assert back["environment"] == environment()
    assert back["text"] == "Fréchet π"
    assert back["numbers"] == [1, 0.1, True, None, 0.5, 7]
    assert back["special"] == ["inf", "-inf", "nan", "nan"]
    assert back["tensor"] == [[1.0, "inf"]]
    assert back["array"] == [1, 2]
    assert back["result"] == {"name": "x", "values": 2.5}
    assert back["auroc"] == {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95, "n_in": 10, "n_out": 20}
    assert back["0.5"] == "a number as key"
    assert list(back) == [str(key) for key in data]  # the order is kept


def test_floats_are_written_to_the_last_bit(tmp_path):
    values = torch.rand(100, dtype=torch.float64, generator=seeded(0)).tolist()
    write_report(tmp_path / "r.json", {"values": values})
    assert strict(tmp_path / "r.json")["values"] == values


def test_bits_per_dim_say_what_they_are(tmp_path):
    exact = BitsPerDim(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), exact=True)
    bound = BitsPerDim(torch.tensor([1.0, math.inf], dtype=torch.float64), exact=False)
    write_report(tmp_path / "r.json", {"exact": exact, "bound": [bound]})
    back = strict(tmp_path / "r.json")
    assert back["exact"] == {
        "mean": 2.0,
        "kind": "exact",
        "standard_error": pytest.approx(1 / math.sqrt(3), abs=1e-15),
        "infinite": 0,
        "n": 3,
    }
    assert back["bound"] == [{"mean": "inf", "kind": "upper bound", "standard_error": "nan", "infinite": 1, "n": 2}]


def test_tables_and_curves_can_be_reported(tmp_path):
    process = SDES["vp"]
    density = ToyLattice(process, PMF)
    x = density.sample(20, generator=seeded(1))
    table = level_noise_table(density, x, generator=seeded(2))
    curve = robustness_curve(density, x, [0.0, process.T], generator=seeded(3))
    write_report(tmp_path / "r.json", {"table": table, "curve": curve, "delta": curve.results[0.5][0]})
    back = strict(tmp_path / "r.json")
    assert [row["bits"]["mean"] for row in back["table"]] == [row.bits.mean for row in table]
    assert back["curve"] == curve.to_dict()
    assert back["delta"]["signed"] == curve.signed[0.5][0]
    assert back["delta"]["clean"]["kind"] == "exact"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"a": [1, {2, 3}]}, r"data\['a'\]\[1\]: got set"),
        ({"a": Result("x", torch.float32)}, r"data\['a'\]\.values: got dtype"),
        ({"a": Result}, r"data\['a'\]: got type"),
        ({"a": 1j}, "got complex"),
    ],
)
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, data, match):
    path = tmp_path / "r.json"
    write_report(path, {"old": 1})
    with pytest.raises(ArgumentTypeError, match=match):
        write_report(path, data)
    assert strict(path) == {"old": 1}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "r.json"
    write_report(path, {"old": 1})

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, {"new": 2})
    assert strict(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_the_old_report_is_there_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path, replace = tmp_path / "r.json", os.replace
    write_report(path, {"old": 1})
    seen = []

    def look(source, target):
        seen.append((strict(path), strict(tmp_path / os.path.basename(source))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_report(str(path), {"new": 2})
    assert seen == [({"old": 1}, {"new": 2})]
    assert strict(path) == {"new": 2}


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "missing" / "r.json", {})


# Figures.


@pytest.fixture(scope="module")
def curves():
    def curve(process):
        density = ToyLattice(process, PMF)
        x = density.sample(20, generator=seeded(4))
        return robustness_curve(density, x, [process.T, 0.0, process.T / 2], generator=seeded(5))

    return {name: curve(process) for name, process in SDES.items()}


@pytest.mark.parametrize("relative", [False, True])
def test_the_robustness_figure_shows_the_curves(curves, relative, tmp_path):
    figure = plot_robustness(curves, tmp_path / "figure.png", relative=relative)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    left, middle, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(curves)
    for i, curve in enumerate(curves.values()):
        order = curve.times.argsort()
        times = curve.times[order] / (curve.T if relative else 1.0)
        series = [curve.delta[0.5], curve.delta[1.0], curve.mean_abs_perturbation]
        for axis, values in zip((left, middle, right), series, strict=True):
            assert axis.lines[i].get_xdata() == pytest.approx(times.tolist())
            assert axis.lines[i].get_ydata() == pytest.approx(values[order].tolist())
    assert right.lines[-1].get_ydata() == [1.0, 1.0]
    assert [axis.get_xlabel() for axis in figure.axes] == ["t / T" if relative else "t"] * 3
    assert "bits/dim" in left.get_ylabel()
    assert "levels" in right.get_ylabel()


def test_the_robustness_figure_resolves_what_happens_near_zero(curves):
    """Times even in sigma, of which five of seven lie in the first half: all markers apart, and 0 has its place."""
    some = next(iter(curves.values()))
    times = torch.tensor([0.0, 0.0015, 0.0047, 0.0084, 0.0123, 0.0163, 0.0204], dtype=torch.float64)
    row = [i % 3 for i in range(7)]
    many = dataclasses.replace(
        some,
        times=times,
        sigma=some.sigma[row],
        mean_abs_perturbation=some.mean_abs_perturbation[row],
        results={pi: tuple(result[i] for i in row) for pi, result in some.results.items()},
    )
    figure = plot_robustness({"a": many})
    figure.draw_without_rendering()
    axis = figure.axes[0]
    places = axis.transAxes.inverted().transform(axis.transData.transform([(t, 0.0) for t in times.tolist()]))[:, 0]
    assert places[0] == pytest.approx(0.0, abs=1e-6)
    assert places[-1] == pytest.approx(1.0, abs=1e-6)
    assert min(np.diff(places)) > 0.04  # 12 of 300 dots; a straight axis would have the first two in 0.07
    assert places[1] - places[0] > 0.2


def test_curves_of_one_figure_have_the_same_pis(curves):
    one = next(iter(curves.values()))
    other = dataclasses.replace(one, results={0.5: one.results[0.5]})
    with pytest.raises(ArgumentError, match="different pis"):
        plot_robustness({"a": one, "b": other})
    with pytest.raises(ArgumentError, match=r"^curves: got"):
        plot_robustness({})
    assert len(plot_robustness({"b": other}).axes) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_value_for_value(channels, tmp_path):
    images = Lattice(256).to_unit(torch.randint(256, (3, channels, 4, 5), generator=seeded(6)))
    figure = plot_images({"data": images, "fewer": images[:2]}, tmp_path / "images.png")
    assert (tmp_path / "images.png").stat().st_size > 500
    shown = [torch.from_numpy(np.asarray(axis.images[0].get_array())) for axis in figure.axes]
    first, second = (array.reshape(4, 17, channels) for array in shown)  # two gaps of one pixel
    for i, image in enumerate(images):
        assert torch.allclose(first[:, 6 * i : 6 * i + 5].permute(2, 0, 1), (image + 1) / 2, atol=1e-6)
    assert (first[:, 5] == 1).all()
    assert torch.equal(second[:, :11], first[:, :11])
    assert (second[:, 11:] == 1).all()
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["data", "fewer"]
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)


def test_images_are_clamped_and_need_no_labels():
    figure = plot_images([torch.tensor([[[[-3.0, 5.0]]]])])
    assert np.asarray(figure.axes[0].images[0].get_array()).ravel().tolist() == [0.0, 1.0]
    assert figure.axes[0].get_title(loc="left") == ""


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [torch.zeros(2, 4, 4)],
        [torch.zeros(2, 2, 4, 4)],
        [torch.zeros(0, 1, 4, 4)],
        [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 5, 4)],
    ],
)
def test_what_is_no_image_is_refused(rows):
    with pytest.raises(ArgumentError, match="rows"):
        plot_images(rows)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, curves):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"ncml\[viz\]"):
        plot_robustness(curves)
    with pytest.raises(MissingExtraError, match=r"ncml\[viz\]"):
        plot_images([torch.zeros(1, 1, 2, 2)])


def test_matplotlib_is_imported_on_use_only():
    code = "import sys, ncml.evaluation; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
