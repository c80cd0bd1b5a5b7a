"""Sources of data: arrays of numbers beside images, one table, and nothing that is unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from ncml import VPSDE, Lattice, NCMLObjective
from ncml.cli import main
from ncml.cli.train import check_data
from ncml.data import (
    SOURCES,
    Arrays,
    ArraySource,
    Choice,
    DataSource,
    Images,
    ImageSource,
    SeriesSource,
    SourceKind,
    folders,
    held_out,
    read_arrays,
    source_settings,
)
from ncml.densities import CausalTransformer
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError, LeftOutWarning
from ncml.training import DataKind, TrainConfig, load_density, read_metrics
from ncml.training.checkpoint import Checkpoint
from ncml.training.config import from_dict, to_dict

X = np.random.default_rng(0).normal(size=(40, 3))
K = np.random.default_rng(1).integers(0, 5, (40, 2, 2))
SHORT = """
    --optim.steps 3 --optim.batch-size 8 --optim.warmup 1 --run.threads 1 --run.accelerator cpu --run.log-every 1
    --run.validate-images 6 --run.samples 2
"""
SHORT = SHORT.split()


# The data set.


def test_rows_of_real_numbers():
    x = torch.from_numpy(X)
    arrays = Arrays(x, torch.arange(40), classes=tuple(map(str, range(40))))
    assert (len(arrays), arrays.shape, arrays.lattice) == (40, (3,), None)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(arrays.batch(rows), x[rows].float())
    assert torch.equal(arrays.batch(slice(2, 4), dtype=torch.float64), x[2:4])
    some = arrays.subset(rows)
    assert torch.equal(some.values, x[rows])
    assert torch.equal(some.labels, rows)
    mixed = arrays.mixed()
    assert sorted(mixed.labels.tolist()) == list(range(40)) != mixed.labels.tolist()
    assert torch.equal(arrays.mixed(5).values, mixed.values[:5])


def test_levels_of_any_shape():
    arrays = Arrays(torch.from_numpy(K), lattice=Lattice(5))
    assert torch.equal(arrays.batch(slice(None)), Lattice(5).to_unit(torch.from_numpy(K)))
    assert arrays.shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "lattice", "error", "words"),
    [
        (torch.zeros(3), None, ArgumentError, "shape"),
        (torch.zeros(0, 3), None, ArgumentError, "shape"),
        (torch.zeros(3, 2, dtype=torch.long), None, ArgumentTypeError, "floating"),
        (torch.zeros(3, 2), Lattice(5), ArgumentTypeError, "integers"),
        (torch.zeros(3, 2, dtype=torch.bool), None, ArgumentTypeError, "bool"),
        (torch.full((3, 2), 5), Lattice(5), ArgumentError, "0 .. 4"),
        (torch.full((3, 2), -1), Lattice(5), ArgumentError, "0 .. 4"),
        (torch.tensor([[1.0], [2.0], [float("nan")], [float("inf")]]), None, ArgumentError, "2 of 4 rows.*row 2"),
    ],
)
def test_what_is_no_data_is_refused(values, lattice, error, words):
    with pytest.raises(error, match=f"values: .*{words}"):
        Arrays(values, lattice=lattice)


def test_what_is_no_tensor_gets_the_remedy():
    for make in (
        lambda: Arrays(X),
        lambda: Images(K, None, Lattice(5)),
        lambda: Arrays(torch.zeros(2, 2), np.zeros(2)),
    ):
        with pytest.raises(ArgumentTypeError, match=r"got ndarray \(no tensor: torch.as_tensor\(numpy.asarray\("):
            make()


def test_large_finite_numbers_are_fine():
    """Their sum is not."""
    assert len(Arrays(torch.full((4, 2), 3e38))) == 4


# Files.


def test_two_splits(tmp_path):
    y = np.arange(40) % 4
    names = {"x_train": X[:30], "x_test": X[30:], "y_train": y[:30], "y_test": y[30:]}
    np.savez(tmp_path / "a.npz", **names)
    train, test = (read_arrays(tmp_path / "a.npz", train=train) for train in (True, False))
    assert torch.equal(train.values, torch.from_numpy(X[:30]).float())
    assert torch.equal(test.labels, torch.from_numpy(y[30:]))
    assert train.classes == test.classes == ("0", "1", "2", "3")
    np.savez_compressed(tmp_path / "b.npz", train=X[:30], test=X[30:])
    assert torch.equal(read_arrays(tmp_path / "b.npz").values, train.values)
    assert read_arrays(tmp_path / "b.npz").labels is None


def test_labels_that_are_no_classes(tmp_path):
    """Times or keys as labels would make as many classes as the largest."""
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(40) + 1_700_000_000)
    with pytest.raises(DatasetError, match=r"a\.npz: y: got labels up to 1700000039; .* at most 65536"):
        read_arrays(tmp_path / "a.npz")


def test_values_that_single_precision_cannot_tell_apart(tmp_path):
    """In one column of many; a column that is constant but for rounding is fine."""
    x = np.column_stack([X, 0.3 + 1e-17 * np.arange(40), 0.1 + np.spacing(0.1) * (np.arange(40) % 3)])
    np.save(tmp_path / "a.npy", x)
    assert len(read_arrays(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", np.column_stack([x, 1.7e9 + np.arange(40.0)]))
    with pytest.raises(DatasetError, match=r"values between 1700000000 and 1700000039, which single precision"):
        read_arrays(tmp_path / "a.npy")


@pytest.mark.parametrize("write", [lambda p: np.save(p / "f.npy", X), lambda p: np.savez(p / "f.npz", x=X)])
def test_one_array_is_split_once(tmp_path, write):
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    train, test = (read_arrays(path, train=train, test_fraction=0.25) for train in (True, False))
    assert len(train) + len(test) == 40
    # A literal: runs of other versions must keep their test rows.
    assert (len(test), test.choice.digest) == (10, "8d6ba52992aa208f8d925ae09218aecb")
    everything = torch.cat([train.values, test.values])
    assert torch.equal(everything.sort(0).values, torch.from_numpy(X).float().sort(0).values)
    assert torch.equal(read_arrays(path, train=False, test_fraction=0.25).values, test.values)
    assert not torch.equal(test.values, torch.from_numpy(X[:10]).float())


def test_no_row_changes_sides(tmp_path):
    """Whatever is added, removed or sorted, in whatever floating type; equal rows are told apart by their number."""
    x = np.concatenate([X, X[:3], np.zeros((60, 3))]).astype(np.float32)

    def sides(rows):
        np.save(tmp_path / "x.npy", rows)
        both = [read_arrays(tmp_path / "x.npy", train=train, test_fraction=0.3) for train in (True, False)]
        return [Counter(map(tuple, part.values.tolist())) for part in both]

    train, test = sides(x)
    assert min(part[(0.0, 0.0, 0.0)] for part in (train, test)) > 5  # equal rows on both sides
    for rows in (x[::-1], x.astype(np.float64), x * np.array([1, 1, 1.0]), x + np.array([-0.0, -0.0, 0.0])):
        assert sides(rows) == [train, test]
    more = sides(np.concatenate([np.random.default_rng(5).normal(size=(50, 3)), x[1:]]))
    lost = Counter([tuple(x[0].tolist())])
    for before, after in zip((train, test), more, strict=True):
        assert before - after <= lost


def test_labels_follow_their_rows(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.arange(40.0)[:, None], labels=np.arange(40))
    for train in (True, False):
        arrays = read_arrays(tmp_path / "a.npz", train=train)
        assert torch.equal(arrays.values[:, 0].long(), arrays.labels)
        assert len(arrays.classes) == 40


def test_integers_have_a_lattice_which_both_splits_share(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.minimum(K, 2), x_test=K)
    assert read_arrays(tmp_path / "a.npz").lattice == read_arrays(tmp_path / "a.npz", train=False).lattice == Lattice(5)
    assert read_arrays(tmp_path / "a.npz", levels=9).lattice == Lattice(9)
    assert read_arrays(tmp_path / "a.npz").values.dtype == torch.uint8
    np.save(tmp_path / "b.npy", K.astype(np.uint16) * 1000)
    wide = read_arrays(tmp_path / "b.npy")
    assert wide.lattice == Lattice(4001)
    assert int(wide.values.max()) == 4000
    np.save(tmp_path / "c.npy", np.arange(40) % 3)  # one value a row
    assert read_arrays(tmp_path / "c.npy").shape == (1,)


def test_other_byte_orders_and_layouts(tmp_path):
    for i, x in enumerate((X.astype(">f8"), np.asfortranarray(X), X.astype(np.float16))):
        np.savez(tmp_path / f"{i}.npz", x_train=x, x_test=x)
        expected = torch.from_numpy(np.ascontiguousarray(x.astype(np.float32)))
        assert torch.equal(read_arrays(tmp_path / f"{i}.npz").values, expected)


class Canary:
    def __reduce__(self):
        return (os.mkdir, (os.environ["NCML_CANARY"],))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("NCML_CANARY", str(canary))
    objects = np.array([Canary()], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Canary()))
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(DatasetError, match=name):
            read_arrays(tmp_path / name)
    assert not canary.exists()
    pickle.loads((tmp_path / "c.npy").read_bytes())  # power: the canary does sing
    assert canary.exists()


def test_a_table_of_another_kind_is_told_where_to_go(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DatasetError, match=r"a\.csv: got a \.csv file; .*data\.name series.*ncml\.estimator") as caught:
        read_arrays(tmp_path / "a.csv")
    assert "pickle" not in str(caught.value)


NAN = X.copy()
NAN[12, 1] = np.nan

BAD = {
    "text": ({"x": np.array([["a"], ["b"]])}, {}, "x: got dtype"),
    "complex": ({"x": X * 1j}, {}, "x: got dtype complex"),
    "empty": ({"x": np.zeros((0, 2))}, {}, r"x: got shape \(0, 2\)"),
    "no data": ({"z": X, "q": X}, {}, "got the arrays q, z; expected x"),
    "one split": ({"x_train": X}, {}, "x_train"),
    "other columns": ({"x_train": X, "x_test": X[:, :2]}, {}, "x_test"),
    "other types": ({"x_train": X, "x_test": X.astype(np.float32)}, {}, "x_test"),
    "nan": ({"x_train": NAN, "x_test": X}, {}, "x_train: values: got NaN or infinity in 1 of 40 rows.*row 12"),
    "nan, to be split": ({"x": NAN}, {}, r"x: got NaN or infinity \(.*\) in 1 of 40 rows, the first in row 12"),
    "too large, to be split": ({"x": X * 1e300}, {}, r"in 40 of 40 rows, the first in row 0"),
    "too large": ({"x_train": X * 1e300, "x_test": X}, {}, "x_train: values: got NaN or infinity"),
    "negative": ({"x": K - 1}, {}, "integers from -1; expected levels from 0; add 1, or"),
    "all zero": ({"x": 0 * K}, {}, "integers up to 0"),
    "codes": ({"x": K * 100_000}, {}, "integers up to 400000"),
    "few levels": ({"x": K}, {"levels": 3}, "integers up to 4; expected at most 2"),
    "levels of floats": ({"x": X}, {"levels": 3}, "floating numbers and levels=3"),
    "short labels": ({"x": X, "y": np.arange(3)}, {}, "3 labels in y; expected 40"),
    "float labels": ({"x": X, "y": np.zeros(40)}, {}, "y: got float64"),
    "negative labels": (
        {"x_train": X, "x_test": X, "y_train": -np.ones(40, int), "y_test": np.zeros(40, int)},
        {},
        "-1",
    ),
    "half the labels": ({"x_train": X, "x_test": X, "y_train": np.zeros(40, int)}, {}, "labels of one split"),
    "one row": ({"x": X[:1]}, {}, "got one row"),
}


@pytest.mark.parametrize(("arrays", "settings", "message"), BAD.values(), ids=BAD)
def test_bad_arrays_are_named(tmp_path, arrays, settings, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as error:
        read_arrays(tmp_path / "bad.npz", train="one row" not in message, **settings)
    assert "bad.npz" in str(error.value)


def test_damaged_files_are_named(tmp_path):
    """Cut short anywhere, or with bytes changed: an error that names the file, or what was saved."""
    stream = io.BytesIO()
    np.savez(stream, x_train=X, x_test=X)
    whole, path, draw = stream.getvalue(), tmp_path / "f.npz", random.Random(0)
    files = [whole[:n] for n in range(0, len(whole), 97)]
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        files.append(bytes(raw))
    refused = 0
    for raw in files:
        path.write_bytes(raw)
        try:
            assert read_arrays(path).shape == (3,)
        except DatasetError as error:
            assert "f.npz" in str(error)  # noqa: PT017 -- either is right
            refused += 1
    assert refused > 100
    for name, raw in {"empty.npy": b"", "text.npy": b"hello", "zip.npz": b"PK"}.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DatasetError, match=name):
            read_arrays(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as file:
        file.writestr("x.npy", b"not an array")
    with pytest.raises(DatasetError, match=r"z\.npz"):
        read_arrays(tmp_path / "z.npz")
    with pytest.raises(DatasetError, match="nowhere"):
        read_arrays(tmp_path / "nowhere.npz")


# Settings, and the table.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"file": "a.npz", "name": "mnist"},
        {"file": "a.npz", "limit": 0},
        {"file": "a.npz", "levels": 1},
        {"file": "a.npz", "test_fraction": 1.0},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ArgumentError):
        ArraySource(**settings)


def test_a_limit_and_another_place(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    source = ArraySource(file=Path("nowhere.npz"), limit=7).moved(tmp_path / "a.npz")
    assert len(source.load(train=True)) == 7
    assert len(ArraySource(file=tmp_path / "a.npz", limit=2).load(train=False)) == 2
    assert ImageSource("folder", Path("a")).moved(Path("b")).folder == Path("b")


def test_unknown_sources_list_the_known_ones(capsys, tmp_path):
    with pytest.raises(ArgumentError, match="data.name: got 'radio'; expected one of " + ", ".join(SOURCES)):
        source_settings("radio")
    assert main(["train", "--data.name", "radio", "--out", str(tmp_path / "run")]) == 2
    assert ", ".join(SOURCES) in capsys.readouterr().err
    with pytest.raises(ArgumentError, match=r"data\.pool"):
        from_dict(TrainConfig, {"data": {"name": "array", "file": "a.npz", "pool": 2}})


def test_a_source_is_one_entry(tmp_path, monkeypatch):
    """Settings, a reader and an entry of the table: the program knows it."""

    @dataclass(frozen=True)
    class Circles(DataSource):
        """Points on circles.

        Args:
            name: circles.
            radius: Of the circle.
        """

        name: str = "circles"
        radius: float = 1.0

        place: ClassVar[str] = "folder"

        def load(self, *, train, progress=False):
            return SOURCES[self.name].read(self, train, progress)

    def read(source, train, progress):
        angle = torch.linspace(0.0, 6.28, 100 if train else 20)
        return Arrays(source.radius * torch.stack([angle.cos(), angle.sin()], 1))

    monkeypatch.setitem(SOURCES, "circles", SourceKind("circles", Circles, read))
    run = str(tmp_path)
    arguments = ["--data.name", "circles", "--data.radius", "0.5", "--model.name", "maf", "--model.transforms", "1"]
    assert main(["train", "--out", run, *SHORT, *arguments]) == 0
    assert load_density(run)[1].data == Circles(radius=0.5)
    assert main(["evaluate", run, "--ood-images", "8"]) == 0


def test_images_are_as_before():
    images = ImageSource("digits").load(train=True)
    assert isinstance(images, Images)
    assert images.lattice == Lattice(17)
    assert images.classes == SOURCES["digits"].classes


# Through the program.


@pytest.mark.parametrize("model", ["maf", "made"])
def test_a_table_of_real_numbers(tmp_path, capsys, model):
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(40) % 3)
    run = tmp_path / "run"
    arguments = ["--data.name", "array", "--data.file", str(tmp_path / "a.npz"), "--model.name", model]
    arguments += ["--model.hidden", "8", "8", "--model.classes", "--run.validate-every", "3"]
    assert main(["train", "--out", str(run), *SHORT, *arguments]) == 0
    density, config, kind, _ = load_density(run)
    assert (kind.shape, kind.levels, kind.classes) == ((3,), None, ("0", "1", "2"))
    test = config.data.load(train=False)
    some = test.mixed(6)
    expected = float(density.log_prob(some.batch(slice(None)), 0.0, some.labels).detach().mean())
    log = [line["validation"] for line in read_metrics(run / "metrics.jsonl") if "validation" in line]
    assert log == [{"log_prob": pytest.approx(expected, rel=1e-5)}]
    assert f"log p = {expected:.3f} nats per example" in capsys.readouterr().out
    drawn = np.load(run / "samples_00000003.npy", allow_pickle=False)
    assert drawn.shape == (2, 3)
    assert main(["sample", str(run), "--images", "5", "--class", "1", "--steps", "3"]) == 0
    samples = np.load(run / "samples-1" / "samples.npy", allow_pickle=False)
    assert (samples.shape, samples.dtype) == ((5, 3), np.float32)
    assert not list(run.rglob("*.png"))
    settings = json.loads((run / "samples-1" / "sample.json").read_text())["settings"]
    assert settings["noise_unit"] == "data"
    assert settings["noise"] == pytest.approx(0.25 * kind.std, rel=1e-5)
    assert main(["sample", str(run), "--noise", "9"]) == 2
    assert "noise: got 9; expected 0 to" in capsys.readouterr().err
    assert main(["evaluate", str(run)]) == 2  # outliers have no label
    assert main(["evaluate", str(run), "--ood-images", "0"]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text())
    whole = density.log_prob(test.mixed().batch(slice(None)), 0.0, test.mixed().labels)
    assert report["log_prob"]["mean"] == pytest.approx(float(whole.detach().mean()), rel=1e-5)
    assert "bits_per_dim" not in report
    assert "robustness" not in report
    for wrong in (["complete", str(run)], ["evaluate", str(run), "--ood-images", "0", "--samples", "8"]):
        assert main(wrong) == 2


def test_a_table_of_integers(tmp_path):
    """Exact bits of an autoregressive model with the lattice, and integers out."""
    np.save(tmp_path / "k.npy", K)
    run = tmp_path / "run"
    arguments = ["--data.name", "array", "--data.file", str(tmp_path / "k.npy"), "--model.name", "made"]
    assert main(["train", "--out", str(run), *SHORT, *arguments, "--model.hidden", "8"]) == 0
    assert load_density(run)[0].lattice == Lattice(5)
    assert main(["sample", str(run), "--images", "6", "--steps", "3"]) == 0
    samples = np.load(run / "samples" / "samples.npy", allow_pickle=False)
    assert (samples.shape, samples.dtype) == ((6, 2, 2), np.uint8)
    assert samples.max() <= 4
    assert main(["evaluate", str(run), "--ood-images", "4"]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["bits_per_dim"]["0"]["bits"]["kind"] == "exact"
    (tmp_path / "k.npy").rename(tmp_path / "moved.npy")
    assert main(["evaluate", str(run), "--ood-images", "0"]) == 2
    assert main(["evaluate", str(run), "--ood-images", "0", "--data.file", str(tmp_path / "moved.npy")]) == 0


@pytest.mark.filterwarnings("ignore:.* rows of .* features")
def test_images_in_an_array(tmp_path):
    """Arrays of the shape of images are images: pictures, completions, a classifier's distances."""
    generator = np.random.default_rng(0)
    names = {"x_train": (24, 1, 8, 8), "x_test": (12, 1, 8, 8)}
    arrays = {name: generator.integers(0, 16, shape) for name, shape in names.items()}
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(24) % 2, y_test=np.arange(12) % 2)
    run = tmp_path / "run"
    arguments = ["--data.name", "array", "--data.file", str(tmp_path / "a.npz"), "--model.features", "8"]
    arguments += ["--model.heads", "0", "--model.classes"]
    assert main(["train", "--out", str(run), *SHORT, *arguments]) == 0
    assert (run / "samples_00000003.png").exists()
    assert main(["complete", str(run), "--images", "2", "--draws", "1", "--steps", "2"]) == 0
    few = ["--samples", "4", "--steps", "1", "--classifier-steps", "2", "--curve-images", "0", "--ood-images", "4"]
    assert main(["evaluate", str(run), *few]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert set(report["frechet"]["distances"]) == {"test images", "direct", "two-part"}
    assert main(["evaluate", str(run), *few, "--ood-levels", "0"]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert "typical_ladder" not in report["auroc"]["constant"]
    assert set(report["frechet"]["distances"]) == {"test images", "direct", "two-part"}


def test_sequences_of_different_lengths_are_no_array(tmp_path):
    """What numpy makes of them; and the way that is named trains on them."""
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros(3), np.ones(5)]
    np.save(tmp_path / "x.npy", ragged, allow_pickle=True)
    for source in (ArraySource(file=tmp_path / "x.npy"), SeriesSource(file=tmp_path / "x.npy", window=2)):
        with pytest.raises(DatasetError, match=r"of Python objects; .* windows of one length, or pad them .*lengths="):
            source.load(train=True)
    process = VPSDE.at_noise(0.2)
    density = CausalTransformer((5, 1), process, width=8, layers=1, heads=2)
    x = torch.zeros(2, 5, 1)
    for padded, sequence in zip(x, ragged, strict=True):
        padded[: len(sequence), 0] = torch.tensor(sequence)
    loss = NCMLObjective(process)(density, x, lengths=torch.tensor([3, 5]))
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in density.parameters())


def test_ncpn_on_a_table_is_refused_before_training(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    arguments = ["--data.name", "array", "--data.file", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    assert main(["train", *SHORT, *arguments]) == 2
    assert "model.name: got 'ncpn' and data of shape (" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_without_a_file(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data.name", "array", "--help"])
    assert stop.value.code == 0
    assert "--data.file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data.name", "array"])
    assert "--data.file" in capsys.readouterr().err


# What was trained on.


def test_what_was_trained_on_is_never_called_held_out(tmp_path, capsys):
    """A folder without splits, of 20 images: one more, one moved, and a run that does not say."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    run, images = str(tmp_path / "run"), ["--data.folder", str(tmp_path / "images")]
    model = ["--model.features", "8", "--model.heads", "0"]
    base = ["train", "--out", run, "--data.name", "folder", "--data.channels", "1", *images, *model, *SHORT]
    assert main(base) == 0
    said = capsys.readouterr().out
    assert said.count("Classes: a, b.") == 1
    resume, few = (
        ["train", "--out", run, "--resume", "--optim.steps", "4"],
        ["--curve-images", "0", "--ood-images", "0"],
    )

    def evaluated():
        assert main(["evaluate", run, *few]) == 0
        report = json.loads((tmp_path / "run" / "evaluation" / "report.json").read_text())
        said = capsys.readouterr().out
        assert ("cannot be told" in said) == ("perhaps among those" in said) == (not report["held_out"])
        return report["held_out"]

    assert evaluated()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a" / "new.png")
    assert evaluated()  # the others stayed where they were
    assert main(resume) == 2
    assert "training_examples is" in capsys.readouterr().err
    (tmp_path / "images" / "a" / "new.png").unlink()
    train = folders.list_split(tmp_path / "images", train=True, test_fraction=0.1).names
    (tmp_path / "images" / train[0]).rename(tmp_path / "images" / "a" / "renamed_0.png")
    assert len(folders.list_split(tmp_path / "images", train=True, test_fraction=0.1).names) == len(train)
    assert main(resume) == 2  # as many, but others
    assert "some training examples are others" in capsys.readouterr().err
    (tmp_path / "images" / "a" / "renamed_0.png").rename(tmp_path / "images" / train[0])
    (tmp_path / "images" / "test").mkdir()
    for name in train[:4]:  # moved to the other side by hand
        target = tmp_path / "images" / "test" / name
        target.parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).rename(target)
    (tmp_path / "images" / "train").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).rename(tmp_path / "images" / "train" / name)
    assert not evaluated()


def test_a_table_that_lost_rows(tmp_path, capsys):
    run, arguments = str(tmp_path / "run"), ["--data.name", "array", "--data.file", str(tmp_path / "x.npy")]
    np.save(tmp_path / "x.npy", X)
    base = ["train", "--out", run, *SHORT, *arguments, "--model.name", "maf", "--model.transforms", "1"]
    assert main(base) == 0
    np.save(tmp_path / "x.npy", X[1:][::-1])
    assert main(["evaluate", run, "--ood-images", "0"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation" / "report.json").read_text())["held_out"] is True
    np.save(tmp_path / "x.npy", X[::-1])
    assert main([*base, "--resume", "--optim.steps", "4"]) == 0  # sorted otherwise: the same rows
    np.save(tmp_path / "x.npy", X + 1.0)
    capsys.readouterr()
    assert main([*base, "--resume", "--optim.steps", "5"]) == 2
    assert "data: got other data than the run began with" in capsys.readouterr().err


def test_series_are_known_by_their_numbers(tmp_path, capsys):
    """Others of the same size are not those of the run; a file that gives its split needs no fraction."""
    rng = np.random.default_rng(0)
    whole, split, other = (tmp_path / f"{name}.npz" for name in ("whole", "split", "other"))
    np.savez(whole, x=rng.normal(size=(140, 2)))
    for file in (split, other):
        np.savez(file, x_train=rng.normal(size=(100, 2)), x_test=rng.normal(size=(40, 2)))

    def choice(file, fraction=0.2):
        return SeriesSource(file=file, window=10, test_fraction=fraction).load(train=False).choice

    assert held_out(choice(split, 0.1), choice(split, 0.3)) is True
    assert held_out(choice(split), choice(other)) is None
    assert held_out(choice(whole), choice(whole)) is True
    assert held_out(choice(whole), choice(whole, 0.3)) is None
    assert (choice(split).rule, choice(whole).rule) == ("given", "at the end")
    base = ["train", "--out", str(tmp_path / "run"), *SHORT, "--data.name", "series", "--data.window", "10"]
    base += ["--model.name", "maf", "--model.transforms", "1"]
    assert main([*base, "--data.file", str(split)]) == 0
    capsys.readouterr()
    assert main([*base, "--data.file", str(split), "--resume", "--optim.steps", "4"]) == 0
    split.write_bytes(other.read_bytes())
    capsys.readouterr()
    assert main([*base, "--data.file", str(split), "--resume", "--optim.steps", "5"]) == 2
    assert "some training examples are others" in capsys.readouterr().err


def test_a_run_that_does_not_say_what_it_was_trained_on(tmp_path):
    """As those of version 0.1, which split folders otherwise."""
    kind = DataKind((3,), None, (), 1.0)
    old = Checkpoint(tmp_path, 1, {"data": to_dict(kind), "training_examples": 7})
    with pytest.raises(ArgumentError, match="does not say which examples were for training"):
        check_data(old, kind, 7, Choice("sha256-1", 0.1, "x"))
    check_data(old, kind, 7, None)  # MNIST's are always the same
    check_data(old, kind, 7, Choice("given", None, "x"))  # by the files, as then
    assert held_out(None, Choice("given", None, "x")) is None


def test_messages_name_options(tmp_path, capsys):
    for i, side in enumerate((4, 6)):
        Image.new("L", (side, 4)).save(tmp_path / f"{i}.png")
    place = ["--data.name", "folder", "--data.folder", str(tmp_path), "--data.test-fraction", "0"]
    assert main(["train", "--out", str(tmp_path / "run"), *place]) == 2
    said = capsys.readouterr().err
    assert "pass --data.size ... to cut" in said
    assert "size=" not in said
    assert main(["train", "--out", str(tmp_path / "run"), *place, "--data.size", "4", "--data.limit", "1"]) == 2
    assert "and --data.test-fraction 0.0, which leave none to test on" in capsys.readouterr().err
    place = ["--data.name", "digits", "--model.features", "9"]
    assert main(["train", "--out", str(tmp_path / "run"), *place]) == 2
    assert "expected a divisor of --model.features 9" in capsys.readouterr().err


def test_odd_sizes_get_a_remedy_that_works(tmp_path, capsys):
    """In the words of the program: padding all sides never makes an odd side even."""
    for i in range(4):
        Image.new("L", (9, 6), i).save(tmp_path / f"{i}.png")
    short = "--model.features 8 --model.blocks 1 --model.heads 0 --model.components 2 --optim.steps 1"
    short += " --optim.batch-size 2 --run.sample-every 0 --run.validate-every 0 --run.threads 1"
    place = ["--data.name", "folder", "--data.folder", str(tmp_path), "--data.channels", "1", *short.split()]
    assert main(["train", "--out", str(tmp_path / "run"), *place]) == 2
    said = capsys.readouterr().err
    assert "divisible by 2 for --model.resolutions 2; take fewer resolutions" in said
    assert "levels=" not in said
    assert main(["train", "--out", str(tmp_path / "run"), *place, "--model.resolutions", "1"]) == 0


def test_warnings_are_lines(monkeypatch):
    """Without the place in the code where they are raised, and only while a command runs."""
    said = []

    def command(arguments):
        said.append(warnings.formatwarning(LeftOutWarning("left out 1 file"), LeftOutWarning, "folders.py", 3))
        return 0

    usual = warnings.formatwarning
    monkeypatch.setattr("ncml.cli.commands.run_command", command)
    assert main(["train"]) == 0
    assert said == ["ncml: LeftOutWarning: left out 1 file\n"]
    assert warnings.formatwarning is usual
