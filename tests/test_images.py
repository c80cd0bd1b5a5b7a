"""Images as levels: the container, the sources, folders of image files, and downloads.

The real files are those of the folder that the environment variable ``NCML_DATA`` names, which CI sets.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import random
import resource
import struct
import sys
import tarfile
import threading
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from sklearn import datasets

from ncml import Lattice
from ncml.data import (
    SOURCES,
    Images,
    ImageSource,
    download,
    folders,
    load_digits,
    load_mnist,
    read_cifar10,
    read_idx,
    read_image_folder,
    split_folders,
)
from ncml.data import images as images_module
from ncml.data.decoding import FORMATS
from ncml.data.split import split_by_name
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError, LeftOutWarning, MissingExtraError
from ncml.evaluation import save_grid
from tests.real_data import needs_data, real


def levels(*shape, seed=0, high=256):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pixels(height, width, channels=3, seed=0):
    """An array as Pillow takes it: ``(H, W, 3)`` or ``(H, W)``."""
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return array if channels == 3 else array[..., 0]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def planes(array):
    """An array of Pillow as ``(C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1) if array.ndim == 3 else array[None]))


# --- Images -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_in_data_units():
    k = levels(5, 3, 4, 2)
    images = Images(k, torch.arange(5), Lattice(256), tuple("abcde"))
    rows = torch.tensor([4, 0, 4])
    expected = k[[4, 0, 4]].double() / 127.5 - 1.0
    batch = images.batch(rows)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, Lattice(256).to_unit(k[[4, 0, 4]]))
    torch.testing.assert_close(images.batch(rows, dtype=torch.float64), expected, rtol=0.0, atol=1e-15)
    assert torch.equal(images.batch(slice(1, 3), device=torch.device("cpu")), images.batch(torch.tensor([1, 2])))
    assert images.batch(rows[:0]).shape == (0, 3, 4, 2)
    assert (len(images), images.shape) == (5, (3, 4, 2))


def test_a_subset_keeps_labels_and_classes():
    images = Images(levels(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0]), Lattice(256), ("a", "b", "c"))
    part = images.subset(torch.tensor([3, 2]))
    assert torch.equal(part.levels, images.levels[[3, 2]])
    assert (part.labels.tolist(), part.classes, part.lattice) == ([1, 2], images.classes, images.lattice)
    assert images.subset(slice(2)).levels.data_ptr() == images.levels.data_ptr()
    assert Images(images.levels, None, Lattice(256)).subset(slice(2)).labels is None


GOOD = {"levels": levels(2, 1, 3, 3), "labels": torch.tensor([0, 1]), "lattice": Lattice(256), "classes": ("a", "b")}
BAD_IMAGES = {
    "floats": ({"levels": torch.zeros(2, 1, 3, 3)}, ArgumentTypeError, "levels: got torch.float32"),
    "array": ({"levels": np.zeros((2, 1, 3, 3), np.uint8)}, ArgumentTypeError, "levels: got ndarray"),
    "bool": ({"levels": torch.zeros(2, 1, 3, 3, dtype=torch.bool)}, ArgumentTypeError, "levels: got torch.bool"),
    "wide": ({"levels": torch.zeros(2, 1, 3, 3).long()}, ArgumentTypeError, "int64; expected torch.uint8 for 256"),
    "rank": ({"levels": levels(2, 3, 3)}, ArgumentError, r"levels: got shape \(2, 3, 3\)"),
    "no images": ({"levels": levels(0, 1, 3, 3), "labels": None}, ArgumentError, "at least one image"),
    "no pixels": ({"levels": levels(2, 1, 0, 3)}, ArgumentError, "levels: got shape"),
    "high": ({"levels": torch.full((2, 1, 3, 3), 17, dtype=torch.uint8), "lattice": Lattice(17)}, ArgumentError, "17"),
    "low": (
        {"levels": torch.full((2, 1, 3, 3), -1, dtype=torch.int32), "lattice": Lattice(1024)},
        ArgumentError,
        r"values in \[-1, -1\]; expected 0 .. 1023",
    ),
    "label dtype": ({"labels": torch.tensor([0, 1]).int()}, ArgumentTypeError, "labels: got torch.int32"),
    "label list": ({"labels": [0, 1]}, ArgumentTypeError, "labels: got list"),
    "label count": ({"labels": torch.tensor([0])}, ArgumentError, r"labels: got shape \(1,\); expected \(2,\)"),
    "label high": ({"labels": torch.tensor([0, 2])}, ArgumentError, r"\[0, 2\]; expected 0 .. 1, one of the classes"),
    "label low": ({"labels": torch.tensor([-1, 0])}, ArgumentError, r"labels: got values in \[-1, 0\]"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_are_checked(change, kind, message):
    Images(**GOOD)
    with pytest.raises(kind, match=message):
        Images(**{**GOOD, **change})


def test_many_levels_are_wider_integers():
    k = torch.tensor([0, 65_535]).reshape(1, 1, 1, 2)
    for dtype in (torch.int32, torch.int64, torch.uint16):
        batch = Images(k.to(dtype), None, Lattice(65_536)).batch(slice(None), dtype=torch.float64)
        assert batch.flatten().tolist() == [-1.0, 1.0]


BAD_ROWS = {
    "high": (torch.tensor([0, 2]), ArgumentError, r"rows: got values in \[0, 2\]; expected 0 .. 1"),
    "negative": (torch.tensor([-1]), ArgumentError, "rows: got values in"),
    "rank": (torch.tensor([[0]]), ArgumentError, r"rows: got shape \(1, 1\)"),
    "floats": (torch.tensor([0.0]), ArgumentTypeError, "rows: got torch.float32"),
    "mask": (torch.tensor([True, False]), ArgumentTypeError, "rows: got torch.bool"),
    "list": ([0], ArgumentTypeError, "rows: got list"),
}


@pytest.mark.parametrize(("rows", "kind", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_are_checked(rows, kind, message):
    images = Images(**GOOD)
    for method in (images.batch, images.subset):
        with pytest.raises(kind, match=message):
            method(rows)
    with pytest.raises(ArgumentError, match="at least one image"):
        images.subset(slice(0))


# --- ImageSource ------------------------------------------------------------------------------------------------------


BAD_SOURCES = {
    "name": ({"name": "svhn"}, "name: got 'svhn'"),
    "no folder": ({"name": "folder"}, "folder: got None"),
    "folder of digits": ({"name": "digits", "folder": Path("x")}, "folder: got x; expected None"),
    "size of mnist": ({"size": 8}, "size: got 8 with name='mnist'"),
    "channels of cifar": ({"name": "cifar10", "channels": 1}, "channels: got 1 with name='cifar10'"),
    "cache of mnist": ({"cache": Path("c")}, "cache: got"),
    "fraction of mnist": ({"test_fraction": 0.2}, "test_fraction: got 0.2"),
    "channels": ({"name": "folder", "folder": Path("x"), "channels": 2}, "channels: got 2; expected 1 or 3"),
    "size": ({"name": "folder", "folder": Path("x"), "size": 0}, "size: got 0"),
    "all to test": ({"name": "folder", "folder": Path("x"), "test_fraction": 1.0}, "test_fraction: got 1"),
    "fraction": ({"name": "folder", "folder": Path("x"), "test_fraction": -0.1}, "test_fraction: got -0.1"),
    "pool": ({"pool": 0}, "pool: got 0"),
    "pad": ({"pad": -1}, "pad: got -1"),
    "limit": ({"limit": 0}, "limit: got 0"),
    "levels": ({"levels": 100}, "levels: got 100; expected 256 or a smaller power of two"),
    "one level": ({"levels": 1}, "levels: got 1;"),
    "levels of digits": ({"name": "digits", "levels": 16}, "digits keep their 17"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_sources_are_checked(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ImageSource(**settings)


def test_a_source_is_a_command_line():
    args = ["--name", "folder", "--folder", "a/b", "--size", "32", "--channels", "1", "--limit", "None"]
    expected = ImageSource("folder", Path("a/b"), size=32, channels=1)
    assert tyro.cli(ImageSource, args=args) == expected
    assert tyro.cli(ImageSource, args=[]) == ImageSource("mnist")


def test_digits_are_those_of_scikit_learn():
    """All 1,797 images once, each with its label; the split is that of load_digits."""
    train, test = (ImageSource("digits").load(train=t) for t in (True, False))
    assert train.levels.dtype == torch.uint8
    assert train.lattice == Lattice(17)
    raw = datasets.load_digits()
    parts = [pair for part in (train, test) for pair in zip(part.levels, part.labels, strict=True)]
    expected = zip(raw.images.astype(np.uint8), raw.target, strict=True)
    assert sorted((bytes(k.numpy()), int(y)) for k, y in parts) == sorted((bytes(k), int(y)) for k, y in expected)
    assert torch.equal(test.batch(slice(None)), load_digits().test)
    assert torch.equal(train.batch(torch.arange(9)), load_digits().train[:9])
    assert train.classes == tuple("0123456789")


@needs_data
def test_mnist_from_the_folder_of_data_sets():
    images = ImageSource("mnist").load(train=False)
    expected, labels = load_mnist(real("mnist"), train=False)
    assert torch.equal(images.levels, expected)
    assert torch.equal(images.labels, labels)
    few = ImageSource("mnist", folder=real("mnist"), limit=3).load(train=True)
    first, _ = load_mnist(real("mnist"), train=True)
    assert torch.equal(few.levels, first[:3])
    assert few.levels.untyped_storage().nbytes() == 3 * 784


@needs_data
@pytest.mark.parametrize(("pad", "pool", "side"), [(0, 2, 14), (2, 2, 16), (0, 3, 10), (1, 1, 30), (0, 28, 1)])
def test_pooling_is_the_rounded_mean(pad, pool, side):
    """Against exact fractions on real images; Python's round also takes ties to the even number."""
    source = ImageSource("mnist", folder=real("mnist"), pad=pad, pool=pool, limit=4)
    raw = load_mnist(real("mnist"), train=False)[0][:4, 0].tolist()
    found = source.load(train=False)
    assert found.shape == (1, side, side)

    def pixel(image, i, j):
        inside = 0 <= i - pad < 28 and 0 <= j - pad < 28
        return image[i - pad][j - pad] if inside else 0

    for image, k in zip(raw, found.levels[:, 0].tolist(), strict=True):
        for i in range(side):
            for j in range(side):
                square = [pixel(image, pool * i + a, pool * j + b) for a in range(pool) for b in range(pool)]
                assert k[i][j] == round(Fraction(sum(square), pool**2))


def test_pooling_in_parts_is_pooling_at_once():
    k = levels(2 * images_module.CHUNK + 3, 1, 3, 2)
    assert torch.equal(images_module.pooled(k, 1, 2), images_module._pool_some(k, 1, 2))


@pytest.mark.parametrize("n", [2, 16, 128])
def test_fewer_levels(n, tmp_path):
    save(tmp_path / "all.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    images = ImageSource("folder", tmp_path, channels=1, levels=n, test_fraction=0.0).load(train=True)
    assert images.levels.flatten().tolist() == [k * n // 256 for k in range(256)]
    assert images.lattice == Lattice(n)
    assert images.batch(slice(None)).aminmax() == (-1.0, 1.0)


def write_mnist(folder, n):
    folder.mkdir()
    k = levels(n, 28, 28, seed=n)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28) + k.numpy().tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(range(n)))
    return k


def test_where_mnist_comes_from(tmp_path, monkeypatch):
    """The folder given, else that of NCML_DATA, else a download."""
    here, there, far = (write_mnist(tmp_path / name, n) for name, n in (("here", 1), ("mnist", 2), ("far", 3)))
    asked = []

    def fake(*, progress):
        asked.append(progress)
        return tmp_path / "far"

    monkeypatch.setitem(SOURCES, "mnist", replace(SOURCES["mnist"], download=fake))
    monkeypatch.setenv("NCML_DATA", str(tmp_path))
    found = ImageSource("mnist", tmp_path / "here").load(train=True)
    assert torch.equal(found.levels[:, 0], here)
    assert torch.equal(ImageSource("mnist").load(train=True).levels[:, 0], there)
    monkeypatch.setenv("NCML_DATA", str(tmp_path / "here"))
    assert asked == []
    assert torch.equal(ImageSource("mnist").load(train=True).levels[:, 0], far)
    monkeypatch.delenv("NCML_DATA")
    assert torch.equal(ImageSource("mnist").load(train=True, progress=True).levels[:, 0], far)
    assert asked == [False, True]


def test_a_label_that_mnist_does_not_have(tmp_path):
    write_mnist(tmp_path / "m", 11)
    with pytest.raises(DatasetError, match="train-labels-idx1-ubyte: got the label 10"):
        load_mnist(tmp_path / "m")


# --- folders: which images --------------------------------------------------------------------------------------------


def test_order_labels_and_what_is_ignored(tmp_path):
    names = ["b/10.png", "b/9.PNG", "a/z/deep/x.jpeg", "a/1.webp", "c-d/1.bmp", "c/1.jpg"]
    for i, name in enumerate(names):
        save(tmp_path / name, pixels(2, 2, seed=i))
    (tmp_path / "empty").mkdir()
    for name in ("b/notes.txt", "b/.hidden.png", ".git/x.png", "b/png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    with pytest.warns(LeftOutWarning, match=r"left out 2 files that are no images .*: b/notes.txt, b/png$"):
        found = folders.list_images(tmp_path)
    assert found.names == ("a/1.webp", "a/z/deep/x.jpeg", "b/10.png", "b/9.PNG", "c-d/1.bmp", "c/1.jpg")
    assert found.classes == ("a", "b", "c", "c-d")
    assert found.labels == (0, 0, 1, 1, 3, 2)
    with pytest.warns(LeftOutWarning):
        k, labels, classes = read_image_folder(tmp_path)
    assert (labels.tolist(), labels.dtype, classes) == ([0, 0, 1, 1, 3, 2], torch.int64, found.classes)
    assert torch.equal(k[2], planes(pixels(2, 2, seed=0)))
    assert torch.equal(k[4], planes(pixels(2, 2, seed=4)))


def test_images_without_classes(tmp_path):
    save(tmp_path / "2.png", pixels(2, 2))
    save(tmp_path / "1.png", pixels(2, 2, seed=1))
    k, labels, classes = read_image_folder(str(tmp_path))
    assert (labels, classes) == (None, ())
    assert torch.equal(k, torch.stack([planes(pixels(2, 2, seed=1)), planes(pixels(2, 2))]))
    save(tmp_path / "a/1.png", pixels(2, 2))
    with pytest.raises(DatasetError, match=r"got 1 images in subfolders and 2 beside them \(first: 1.png\)"):
        read_image_folder(tmp_path)


def test_folders_without_images(tmp_path):
    with pytest.raises(DatasetError, match=r"got no images; expected files of the formats JPEG, PNG"):
        read_image_folder(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: cannot be listed"):
        read_image_folder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="cannot be listed"):
        read_image_folder(save(tmp_path / "file.png", pixels(2, 2)))


def test_links(tmp_path):
    inside, outside = tmp_path / "inside", save(tmp_path / "outside/o.png", pixels(2, 2, seed=1))
    save(inside / "a.png", pixels(2, 2))
    (inside / "b.png").symlink_to("a.png")
    assert torch.equal(read_image_folder(inside)[0], planes(pixels(2, 2)).expand(2, 3, 2, 2))
    (tmp_path / "link").symlink_to(inside)  # the folder itself may be one
    assert len(read_image_folder(tmp_path / "link")[0]) == 2
    link = inside / "d.png"
    for target, message in ((outside, "got a link to .*o.png"), ("e.png", "neither a file nor"), ("d.png", "neither")):
        link.symlink_to(target)
        with pytest.raises(DatasetError, match=message) as error:
            read_image_folder(inside)
        assert str(link) in str(error.value)
        link.unlink()
    for target in (outside.parent, inside):
        (inside / "folder").symlink_to(target)
        with pytest.raises(DatasetError, match="folder: got a link to a folder"):
            read_image_folder(inside)
        (inside / "folder").unlink()
    # One that does not end as an image is not looked into.
    (inside / "c.txt").symlink_to(outside)
    with pytest.warns(LeftOutWarning, match=r"left out 1 file .*c.txt"):
        assert len(read_image_folder(inside)[0]) == 2
    (inside / "c.txt").unlink()
    # A sibling whose name begins alike is outside all the same.
    link.symlink_to(save(tmp_path / "inside2/o.png", pixels(2, 2)))
    with pytest.raises(DatasetError, match="stays in the folder"):
        read_image_folder(inside)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a.png: got neither a file nor a link"):
        read_image_folder(tmp_path)


def numbered(folder, n):
    """Images that carry their number as their level."""
    for i in range(n):
        save(folder / f"{i:03}.png", np.full((1, 1), i, dtype=np.uint8))


def test_the_split_is_fixed(tmp_path):
    numbered(tmp_path, 20)
    source = ImageSource("folder", tmp_path, channels=1, test_fraction=0.2)
    train, test = (source.load(train=t).levels.flatten().tolist() for t in (True, False))
    assert sorted(train + test) == list(range(20))
    assert test == [4, 3, 2]  # a literal: runs of other versions must keep their test images
    assert train[:4] == [5, 12, 16, 8]
    few = ImageSource("folder", tmp_path, channels=1, test_fraction=0.2, limit=3)
    assert few.load(train=True).levels.flatten().tolist() == train[:3]
    assert few.load(train=False).levels.flatten().tolist() == test[:3]


def test_no_image_changes_sides(tmp_path):
    """Whatever is added or removed; so under another root, and with names that another system spells otherwise."""
    numbered(tmp_path / "a", 200)

    def sides(folder):
        return [set(folders.list_split(folder, train=t, test_fraction=0.2).names) for t in (True, False)]

    train, test = sides(tmp_path / "a")
    (tmp_path / "a" / "017.png").unlink()
    save(tmp_path / "a" / "new.png", pixels(1, 1))
    for before, after in zip((train, test), sides(tmp_path / "a"), strict=True):
        assert before - after <= {"017.png"}
        assert after - before <= {"new.png"}
    (tmp_path / "a").rename(tmp_path / "b")
    assert sides(tmp_path / "b")[0] >= train - {"017.png"}
    assert split_by_name(["caf\u00e9", "b"], 0.5) == split_by_name(["cafe\u0301", "b"], 0.5)


@pytest.mark.parametrize(
    ("n", "fraction", "tests"), [(20, 0.0, 0), (1, 0.5, 0), (2, 1e-9, 1), (2, 1 - 1e-9, 1), (9, 1 - 1e-9, 8)]
)
def test_the_share_of_test_images(n, fraction, tests, tmp_path):
    """At least one on each side, if there are two; and about the share that was asked for."""
    numbered(tmp_path, n)
    assert len(folders.list_split(tmp_path, train=True, test_fraction=fraction).names) == n - tests
    if tests:
        assert len(folders.list_split(tmp_path, train=False, test_fraction=fraction).names) == tests
    else:
        with pytest.raises(DatasetError, match=f"got {n} images and test_fraction={fraction}"):
            folders.list_split(tmp_path, train=False, test_fraction=fraction)
    _, share, rule = split_by_name(list(map(str, range(10_000))), 0.1)
    assert abs(len(share) - 1000) < 150  # five standard deviations
    assert rule == "sha256-1"
    assert split_by_name(["a", "b"], 1e-9)[2] != rule  # the test image of two depends on the other one


def test_train_and_test_folders(tmp_path):
    for i, name in enumerate(("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png", "test/a/2.png")):
        save(tmp_path / name, np.full((1, 1), i, dtype=np.uint8))
    source = ImageSource("folder", tmp_path, channels=1)
    train, test = source.load(train=True), source.load(train=False)
    assert (train.levels.flatten().tolist(), train.labels.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert (test.levels.flatten().tolist(), test.labels.tolist()) == ([4, 3], [0, 2])
    assert train.classes == test.classes == ("a", "b", "c")
    assert ImageSource("folder", tmp_path, channels=1, limit=2).load(train=True).labels.tolist() == [0, 1]
    save(tmp_path / "test/d/1.png", pixels(1, 1))
    for t in (True, False):
        with pytest.raises(DatasetError, match=r"got the classes a, c, d; expected those of .*train: a, b, c"):
            source.load(train=t)


@pytest.mark.parametrize(
    ("train", "test"), [("training", "testing"), ("Train", "Test"), ("TRAIN", "Val"), ("train", "validation")]
)
def test_other_names_of_a_split(tmp_path, train, test):
    """Of ten images a class, as they were read as two classes once."""
    for split, n in ((train, 7), (test, 3)):
        for name in "01":
            for i in range(n):
                save(tmp_path / split / name / f"{i}.png", pixels(1, 1))
    source = ImageSource("folder", tmp_path, channels=1)
    found = [source.load(train=t) for t in (True, False)]
    assert [(len(k), k.classes) for k in found] == [(14, ("0", "1")), (6, ("0", "1"))]
    assert split_folders(tmp_path) == (tmp_path / train, tmp_path / test)
    save(tmp_path / "valid/0/1.png", pixels(1, 1))
    if test == "testing":  # three of them: the middle one is not used, and named
        with pytest.warns(LeftOutWarning, match="not used beside training and testing: valid"):
            assert len(source.load(train=False)) == 6
    elif test != "Test":
        with pytest.raises(DatasetError, match=rf"got the subfolders {train}, .*valid.*; expected one for training"):
            source.load(train=True)


def test_classes_are_compared_with_composed_accents(tmp_path):
    save(tmp_path / "train/caf\u00e9/1.png", pixels(1, 1))
    save(tmp_path / "test/cafe\u0301/1.png", pixels(1, 1))
    test = ImageSource("folder", tmp_path).load(train=False)
    assert (test.classes, test.labels.tolist()) == (("caf\u00e9",), [0])


def test_half_a_split_is_refused(tmp_path):
    save(tmp_path / "train/1.png", pixels(1, 1))
    with pytest.raises(DatasetError, match="got the subfolders train; expected one for training"):
        ImageSource("folder", tmp_path).load(train=True)
    (tmp_path / "train/elsewhere").mkdir()
    (tmp_path / "test").symlink_to("train/elsewhere")
    with pytest.raises(DatasetError, match="test: got a link to a folder"):
        ImageSource("folder", tmp_path).load(train=True)
    (tmp_path / "train/elsewhere").rmdir()
    (tmp_path / "test").unlink()
    save(tmp_path / "test/a/1.png", pixels(1, 1))
    with pytest.raises(DatasetError, match=r"got the classes a; expected those of .*: none"):
        ImageSource("folder", tmp_path).load(train=True)


# --- folders: what is in a file ---------------------------------------------------------------------------------------


def decoded(path, **options):
    """The one image of a file, through a folder of its own."""
    k, _, _ = read_image_folder(path.parent, **options)
    assert len(k) == 1
    return k[0]


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_are_exact(name, channels, tmp_path):
    """Rows, columns and channels all in place: height and width differ, and every value is random."""
    array = pixels(5, 7, channels)
    path = save(tmp_path / name, array, **({"lossless": True} if name == "x.webp" else {}))
    assert torch.equal(decoded(path, channels=channels), planes(array))
    if channels == 1:
        assert torch.equal(decoded(path), planes(array).expand(3, -1, -1))


def test_colour_becomes_luma(tmp_path):
    """ITU-R 601-2 in Pillow's 16-bit integers."""
    array = pixels(6, 5)
    r, g, b = planes(array).long()
    luma = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16
    assert torch.equal(decoded(save(tmp_path / "x.png", array), channels=1)[0].long(), luma)


def test_palettes_are_looked_up(tmp_path):
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 1])
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "x.png")
    expected = torch.tensor([[[10, 40], [70, 40]], [[20, 50], [80, 50]], [[30, 60], [90, 60]]], dtype=torch.uint8)
    assert torch.equal(decoded(tmp_path / "x.png"), expected)


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "x.png")
    assert decoded(tmp_path / "x.png", channels=1).flatten().tolist() == [255, 0]


def test_transparency_is_laid_over_black(tmp_path):
    """c a / 255 to half a level, for every mode that has it."""
    rgba = np.dstack([pixels(9, 8), pixels(9, 8, 1, seed=1)])
    Image.fromarray(rgba).save(tmp_path / "x.png")
    expected = torch.from_numpy(rgba[..., :3] * (rgba[..., 3:] / 255.0)).permute(2, 0, 1)
    assert float((decoded(tmp_path / "x.png").double() - expected).abs().max()) <= 0.51
    Image.fromarray(rgba).convert("LA").save(tmp_path / "x.png")
    grey = torch.from_numpy(np.asarray(Image.fromarray(rgba).convert("LA")).astype(float))
    found = decoded(tmp_path / "x.png", channels=1)[0].double()
    assert float((found - grey[..., 0] * grey[..., 1] / 255.0).abs().max()) <= 1.01  # through grey RGB
    Image.fromarray(np.array([[7, 9]], dtype=np.uint8)).save(tmp_path / "x.png", transparency=9)
    assert decoded(tmp_path / "x.png", channels=1).flatten().tolist() == [7, 0]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "values"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "grey+a", "rgb+a"])
def test_sixteen_bits_are_refused(colour, values, tmp_path):
    (tmp_path / "x.png").write_bytes(png(1, 1, 8, colour, b"\0" + b"\x12" * values))
    decoded(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(png(1, 1, 16, colour, b"\0" + b"\x12\x34" * values))
    with pytest.raises(DatasetError, match=r"x.png: got \d+ bytes, 1x1 pixels of mode .* expected 8 bits per channel"):
        decoded(tmp_path / "x.png")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused(side, tmp_path):
    """Pillow only warns of the smaller one."""
    (tmp_path / "x.png").write_bytes(png(side, side, 8, 0, b"\0"))
    with pytest.raises(DatasetError, match=rf"x.png: got \d+ bytes, too large to decode .*{side**2} pixels") as error:
        decoded(tmp_path / "x.png")
    assert str(tmp_path) in str(error.value)


def test_formats_are_told_by_content(tmp_path):
    """A file may have any suffix, but none of Pillow's other decoders ever sees one."""
    grey = pixels(2, 3, 1)
    for i, kind in enumerate(FORMATS):
        name = ("x.jpg", "x.jfif", "x", "x.tif", "x.gif", "x.data")[i % 6]
        path = save(tmp_path / str(i) / name, grey, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
        error = decoded(path, channels=1)[0].double() - torch.from_numpy(grey)
        assert float(error.abs().max()) <= (20.0 if kind == "JPEG" else 0.0), kind
    for other in ("TGA", "EPS", "PDF"):
        path = save(tmp_path / "other/x.jpg", grey, format=other)
        with pytest.raises(DatasetError, match="of none of the formats JPEG, PNG, WEBP, BMP"):
            decoded(path)


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}
"""What undoes each value of the EXIF orientation, after the table of the standard (JEITA CP-3451)."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", UPRIGHT)
def test_photographs_are_upright(kind, value, tmp_path):
    """All eight orientations, and before the square is cut out."""
    square = np.zeros((16, 32), np.uint8)
    square[:8, :16] = 255  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = value
    lossless = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    path = save(tmp_path / "x.png", square, format=kind, exif=exif, **lossless)
    assert torch.equal(decoded(path, channels=1)[0], torch.from_numpy(UPRIGHT[value](square).copy()))
    assert decoded(path, channels=1, size=8)[0].shape == (8, 8)


def test_an_orientation_that_cannot_be_read_is_none(tmp_path):
    path = save(tmp_path / "x.png", pixels(2, 3), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert torch.equal(decoded(path), planes(pixels(2, 3)))


def test_wide_values_in_other_formats_are_refused(tmp_path):
    path = save(tmp_path / "x.tif", np.full((2, 2), 999, np.uint16), format="TIFF")
    with pytest.raises(DatasetError, match="expected 8 bits per channel"):
        decoded(path)
    for wide in (b"P5 2 2 65535\n" + bytes(8), b"P6 1 1 65535\n" + bytes(6)):
        path.write_bytes(wide)
        with pytest.raises(DatasetError, match="expected 8 bits per channel"):
            decoded(path)


def test_a_class_without_readable_images_is_refused(tmp_path):
    """It would vanish from the classes."""
    save(tmp_path / "a/1.png", pixels(1, 1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.heic").write_bytes(b"something else")
    with pytest.raises(DatasetError, match=r"b: got a folder with files of which none is an image"):
        read_image_folder(tmp_path)


def test_box_filter_is_the_mean(tmp_path):
    """A centred square of 8x8 in 11x8 pixels, halved: means of 2x2, which Pillow rounds along each axis."""
    array = pixels(8, 11)
    path = save(tmp_path / "x.png", array)
    square = planes(array)[:, :, 1:9]
    mean = square.double().unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-3, -1))
    assert float((decoded(path, size=4).double() - mean).abs().max()) <= 1.0
    assert torch.equal(decoded(path, size=8), square)
    assert torch.equal(decoded(path, size=16), square.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert decoded(save(tmp_path / "x.png", pixels(11, 8)), size=8).equal(planes(pixels(11, 8))[:, 1:9])
    assert torch.equal(decoded(save(tmp_path / "x.png", pixels(8, 8)), size=8), planes(pixels(8, 8)))


def test_sizes_that_differ_are_named(tmp_path):
    save(tmp_path / "a.png", pixels(4, 6))
    save(tmp_path / "b.png", pixels(6, 4))
    with pytest.raises(DatasetError, match=r"b.png: got 4x6 pixels; expected 6x4, those of .*a.png; pass size="):
        read_image_folder(tmp_path)
    assert read_image_folder(tmp_path, size=4)[0].shape == (2, 3, 4, 4)
    for bad in ({"size": 0}, {"size": 2.0}, {"channels": 4}):
        with pytest.raises(ArgumentError, match=f"{next(iter(bad))}: got"):
            read_image_folder(tmp_path, **bad)


@needs_data
def test_real_photographs(tmp_path):
    """JPEG files of CIFAR-10 are the pictures of its lossless rows: within the loss of JPEG, labels and all."""
    order = []
    with tarfile.open(real("cifar10_jpeg") / "data_batch_1.tar.xz") as tar:
        for member in tar:
            if member.isreg():
                order.append(member.name)
                path = tmp_path / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
            if len(order) == 60:
                break
    images = folders.list_images(tmp_path / "train")
    k, labels, classes = read_image_folder(tmp_path / "train")
    records, official = read_cifar10(real("cifar10") / "data_batch_1.bin")
    rows = [order.index(f"train/{name}") for name in images.names]
    names = (real("cifar10") / "batches.meta.txt").read_text().split()
    assert tuple(names) == SOURCES["cifar10"].classes
    assert [classes[label] for label in labels] == [names[label] for label in official[rows]]
    error = (k.double() - records[rows].double()).abs().mean((1, 2, 3))
    assert float(error.max()) < 13.0  # the largest of all 6,102 pairs; another picture has 35
    for i in range(0, 60, 7):  # and exactly what Pillow decodes
        assert torch.equal(k[i], planes(np.asarray(Image.open(tmp_path / "train" / images.names[i]))))


# --- the cache --------------------------------------------------------------------------------------------------------


def cached(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def photos(tmp_path):
    for i in range(4):
        save(tmp_path / f"photos/{i}.png", pixels(6, 6, seed=i))
    return tmp_path / "photos"


def test_the_cache_saves_decoding(photos, tmp_path, monkeypatch):
    cache = tmp_path / "new/cache"
    plain = read_image_folder(photos)[0]
    first = read_image_folder(photos, cache=cache)[0]
    monkeypatch.setattr(folders, "decode_file", None)  # decoding would now fail
    again = read_image_folder(photos, cache=cache)[0]
    assert torch.equal(plain, first)
    assert torch.equal(plain, again)
    (name,) = cached(cache)
    assert np.array_equal(np.load(cache / name, allow_pickle=False), plain.numpy())
    before = (cache / name).read_bytes()
    again.zero_()  # a caller's mistake stays with the caller
    assert (cache / name).read_bytes() == before
    images = ImageSource("folder", photos, cache=cache, test_fraction=0.0)
    with pytest.raises(TypeError, match="not callable"):  # power: another list of images is decoded
        images.load(train=True)


def test_what_the_cache_depends_on(photos, tmp_path):
    cache = tmp_path / "cache"

    def read(**options):
        k = read_image_folder(photos, cache=cache, **options)[0]
        assert torch.equal(k, read_image_folder(photos, **options)[0])
        return len(cached(cache))

    assert [read(), read(), read(size=3), read(channels=1), read(size=3)] == [1, 1, 2, 3, 3]
    before = os.stat(photos / "1.png")
    save(photos / "1.png", pixels(6, 6, seed=9))
    os.utime(photos / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert read() == 4
    (photos / "3.png").rename(photos / "9.png")
    assert read() == 5
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in photos.iterdir():  # other pictures of the same names, sizes and times
        raw, times = path.read_bytes(), path.stat()
        (copy / path.name).write_bytes(raw[:-1] + b"\0")
        os.utime(copy / path.name, ns=(times.st_atime_ns, times.st_mtime_ns))
    read_image_folder(copy, cache=cache)
    assert len(cached(cache)) == 6


class Canary:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import ncml; ncml.canary_was_here = True",))


def test_a_damaged_cache_is_made_again(photos, tmp_path):
    cache = tmp_path / "cache"
    good = read_image_folder(photos, cache=cache)[0].clone()
    (name,) = cached(cache)
    whole = (cache / name).read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, good.numpy())
    other = io.BytesIO()
    np.save(other, good.numpy().astype(np.float32))
    turned = io.BytesIO()
    np.save(turned, np.asfortranarray(good.numpy()))
    objects = io.BytesIO()
    np.save(objects, np.array([Canary()], dtype=object), allow_pickle=True)
    fewer = io.BytesIO()
    np.save(fewer, good.numpy()[:3])
    damaged = [b"", whole[:-1], whole + b"\0", whole[:100], pickle.dumps(Canary())]
    damaged += [file.getvalue() for file in (buffer, other, turned, objects, fewer)]
    for raw in damaged:
        (cache / name).write_bytes(raw)
        assert torch.equal(read_image_folder(photos, cache=cache)[0], good)
        assert (cache / name).read_bytes() == whole
    assert "canary_was_here" not in vars(sys.modules["ncml"])


def test_a_cache_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file/.*npy: cannot be written"):
        read_image_folder(photos, cache=tmp_path / "file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # a disk that is full after 300 bytes
    try:
        with pytest.raises(DatasetError, match="cannot be written"):
            read_image_folder(photos, cache=tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cached(tmp_path / "full") == []


def test_a_damaged_image_leaves_no_cache(photos, tmp_path):
    raw = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(raw[: len(raw) // 2])
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DatasetError, match=rf"3.png: got {len(raw) // 2:,} bytes, damaged \(.*get the file again"):
            read_image_folder(photos, cache=cache)
    assert cached(tmp_path / "cache") == []


# --- damaged files ----------------------------------------------------------------------------------------------------


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(pixels(8, 6))
FILES = {
    "rgb.png": encoded(PICTURE, "PNG"),
    "palette.png": encoded(PICTURE.convert("P"), "PNG"),
    "alpha.png": encoded(PICTURE.convert("RGBA"), "PNG"),
    "key.png": encoded(PICTURE.convert("L"), "PNG", transparency=5),
    "plain.jpg": encoded(PICTURE, "JPEG"),
    "progressive.jpeg": encoded(PICTURE, "JPEG", progressive=True),
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "lossless.webp": encoded(PICTURE, "WEBP", lossless=True),
    "alpha.webp": encoded(PICTURE.convert("RGBA"), "WEBP"),
    "rgb.bmp": encoded(PICTURE, "BMP"),
}


def mutated(raw, draw):
    """Bytes changed, cut off or put in."""
    raw = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place, what = draw.randrange(len(raw) + 1), draw.randrange(5)
        if what == 0:
            del raw[place:]
        elif what == 1:
            raw[place:place] = draw.randbytes(draw.randrange(8))
        elif place < len(raw):
            raw[place] = draw.choice((0, 255, draw.randrange(256)))
    return bytes(raw)


def survives(read, path, raw):
    """Whether damaged bytes are read; anything but a result or an error of ours fails the test."""
    path.write_bytes(raw)
    try:
        result = read(path)
    except DatasetError:
        return 0
    assert result
    return 1


@pytest.mark.parametrize("name", FILES)
def test_fuzzed_images(name, tmp_path):
    draw = random.Random(name)

    def read(path):
        k, labels, classes = read_image_folder(path.parent, size=draw.choice((None, 4)), channels=draw.choice((1, 3)))
        return k.dtype == torch.uint8 and k.ndim == 4 and (labels, classes) == (None, ())

    assert survives(read, tmp_path / name, FILES[name]) == 1
    read_at_all = sum(survives(read, tmp_path / name, mutated(FILES[name], draw)) for _ in range(400))
    assert 0 < read_at_all < 400


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_seen(name, tmp_path):
    """Unless all pixels are there, as where only the end mark of a PNG is gone."""
    raw, path = FILES[name], tmp_path / name
    path.write_bytes(raw)
    whole, refused = decoded(path), 0
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        try:
            assert torch.equal(decoded(path), whole)
        except DatasetError:
            refused += 1
    assert refused > 0.75 * len(raw)


IDX = struct.pack(">4B2I", 0, 0, 8, 2, 3, 4) + bytes(range(12))
RECORDS = b"".join(bytes([label]) + bytes(3072) for label in (3, 9))


@pytest.mark.parametrize(
    ("read", "name", "raw"),
    [
        (lambda path: read_idx(path).dtype == torch.uint8, "idx", IDX),
        (lambda path: read_idx(path).dtype == torch.uint8, "idx.gz", gzip.compress(IDX, mtime=0)),
        (lambda path: read_cifar10(path)[0].shape[1:] == (3, 32, 32), "cifar.bin", RECORDS),
    ],
    ids=["idx", "gzipped idx", "cifar10"],
)
def test_fuzzed_binary_formats(read, name, raw, tmp_path):
    draw = random.Random(name)
    assert survives(read, tmp_path / name, raw) == 1
    assert sum(survives(read, tmp_path / name, mutated(raw, draw)) for _ in range(1500)) < 1500


def test_fuzzed_cache(photos, tmp_path):
    draw, cache = random.Random(0), tmp_path / "cache"
    good = read_image_folder(photos, cache=cache)[0].clone()
    (name,) = cached(cache)
    header = (cache / name).read_bytes()[:128]
    for _ in range(300):
        damaged = mutated(header, draw)
        (cache / name).write_bytes(damaged + good.numpy().tobytes())
        assert read_image_folder(photos, cache=cache)[0].shape == good.shape


def test_headers_of_nothing(tmp_path):
    """No bytes are needed for none of the images, however large."""
    for shape in ((0, 2**32 - 1, 2**32 - 1, 2**32 - 1), (2**31, 2**31, 0)):
        (tmp_path / "f").write_bytes(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape))
        with pytest.raises(DatasetError, match="got a header of shape"):
            read_idx(tmp_path / "f")
    (tmp_path / "f").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28))
    assert read_idx(tmp_path / "f").shape == (0, 28, 28)


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the files of a folder; yields the folder, its address, and the paths asked for."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    folder, asked = tmp_path / "web", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_port}/", asked
        web.shutdown()
        thread.join()


def archive(members):
    """A gzipped tar of ``(name, content or TarInfo)``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(content)
    return buffer.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


INSIDE = "cifar-10-batches-bin"
MEMBERS = [(f"{INSIDE}/{name}", RECORDS + bytes(3073) * i) for i, name in enumerate(download.CIFAR10_FILES)]


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def test_cifar10_is_downloaded_and_unpacked(server, tmp_path):
    web, url, asked = server
    extras = [(f"{INSIDE}/readme.html", b"x"), ("../evil", b"x"), link(f"{INSIDE}/other", "/etc/passwd"), ("/a", b"x")]
    raw = archive([*extras, *MEMBERS])
    (web / "c.tar.gz").write_bytes(raw)
    target = tmp_path / "new/cifar10"
    assert download._cifar10(target, url + "c.tar.gz", sha256(raw), True) == target
    assert cached(target) == sorted(download.CIFAR10_FILES)  # and no more: neither extras nor the archive
    assert cached(tmp_path) == ["new", "web"]
    for path, content in MEMBERS:
        assert (target / Path(path).name).read_bytes() == content
    assert len(ImageSource("cifar10", target).load(train=True)) == 5 * 2 + sum(range(5))
    download._cifar10(target, url + "c.tar.gz", sha256(raw), True)
    assert asked == ["/c.tar.gz"]  # all there: not again
    (target / "test_batch.bin").unlink()
    (target / "data_batch_1.bin").write_bytes(b"mine")
    download._cifar10(target, url + "c.tar.gz", sha256(raw), False)
    assert (target / "data_batch_1.bin").read_bytes() == b"mine"
    assert (target / "test_batch.bin").read_bytes() == MEMBERS[5][1]


BAD_ARCHIVES = {
    "link": ([link(*MEMBERS[0][:1], "/etc/passwd"), *MEMBERS[1:]], "data_batch_1.bin of type b'2'"),
    "hard link": ([*MEMBERS[:1], link(MEMBERS[1][0], MEMBERS[0][0], tarfile.LNKTYPE)], "data_batch_2.bin of type b'1'"),
    "folder": ([link(MEMBERS[0][0], "", tarfile.DIRTYPE)], "data_batch_1.bin of type b'5'"),
    "device": ([link(MEMBERS[0][0], "", tarfile.CHRTYPE)], "data_batch_1.bin of type b'3'"),
    "large": ([(MEMBERS[0][0], bytes(2**26 + 1))], "67,108,865 bytes; expected a file of at most 67,108,864"),
    "missing": (MEMBERS[:-1], "without cifar-10-batches-bin/batches.meta.txt"),
    "path": ([(f"./{name}", content) for name, content in MEMBERS], "without cifar-10-batches-bin/data_batch_1.bin"),
}


@pytest.mark.parametrize(("members", "message"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_archives_are_not_trusted(members, message, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(archive(members))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match=message):
        download._unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert all(not path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert cached(tmp_path) == ["a.tar.gz", "out"]


def test_fuzzed_archives(tmp_path):
    """The bytes of the archive, and those of the tar inside a sound gzip file."""
    draw = random.Random(0)
    small = archive([(name, content[:50]) for name, content in MEMBERS])
    plain = gzip.decompress(small)
    (tmp_path / "out").mkdir()

    def read(path):
        download._unpack(path, tmp_path / "out")
        found = cached(tmp_path / "out")
        for name in found:
            (tmp_path / "out" / name).unlink()
        return set(found) <= set(download.CIFAR10_FILES)

    for _ in range(400):
        survives(read, tmp_path / "a", mutated(small, draw))
        survives(read, tmp_path / "a", gzip.compress(mutated(plain, draw), 1))
        assert cached(tmp_path) == ["a", "out"]


def test_mnist_is_downloaded(server, tmp_path):
    web, url, asked = server
    write_mnist(tmp_path / "m", 5)
    sums = {}
    for path in (tmp_path / "m").iterdir():
        for split in ("train", "t10k"):
            name = path.name.replace("train", split) + ".gz"
            (web / name).write_bytes(gzip.compress(path.read_bytes()))
            sums[name] = sha256((web / name).read_bytes())
    assert sums.keys() == download.MNIST_SHA256.keys()
    target = download._mnist(tmp_path / "out", url, sums, False)
    for train in (True, False):
        assert torch.equal(load_mnist(target, train=train)[0], load_mnist(tmp_path / "m")[0])
    assert len(asked) == 4
    download._mnist(target, url, sums, False)
    assert len(asked) == 4
    (target / "t10k-labels-idx1-ubyte.gz").unlink()
    (target / "t10k-labels-idx1-ubyte").write_bytes(b"mine, not compressed")
    download._mnist(target, url, sums, False)
    assert len(asked) == 4


def test_failed_downloads_say_what_to_do(server, tmp_path):
    web, url, _ = server
    (web / "c.tar.gz").write_bytes(b"tampered")
    closed = "http://127.0.0.1:9/c.tar.gz"  # the port of "discard": nobody listens
    for address, reason in ((url + "c.tar.gz", "hash"), (url + "none.tar.gz", "404"), (closed, "refused")):
        with pytest.raises(DatasetError, match=reason) as error:
            download._cifar10(tmp_path / "out", address, "0" * 64, False)
        assert str(error.value).startswith(f"{address}: cannot be downloaded")
        assert "folder=..." in str(error.value)
        assert cached(tmp_path / "out") == []
    with pytest.raises(DatasetError, match="hash"):
        download._mnist(tmp_path / "mnist", url, {"c.tar.gz": "0" * 64}, False)
    assert cached(tmp_path / "mnist") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"folder: cannot make .*file"):
        download._cifar10(tmp_path / "file/cifar10", url, "0" * 64, False)


def test_downloads_without_a_folder_go_to_the_cache(server, tmp_path, monkeypatch):
    import pooch

    web, url, _ = server
    (web / "f.gz").write_bytes(b"content")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    assert download._mnist(None, url, {"f.gz": sha256(b"content")}, False) == tmp_path / "cache/ncml/mnist"
    assert (tmp_path / "cache/ncml/mnist/f.gz").read_bytes() == b"content"


def test_the_public_downloads_ask_for_the_official_files(tmp_path, monkeypatch):
    calls = []

    def retrieve(folder, url, known, progress):
        calls.append((url, known, progress))
        raise DatasetError("no network")

    monkeypatch.setattr(download, "_retrieve", retrieve)
    with pytest.raises(DatasetError):
        download.download_cifar10(tmp_path)
    with pytest.raises(DatasetError):
        download.download_mnist(tmp_path, progress=False)
    base = "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
    assert calls[0] == (download.CIFAR10_URL, download.CIFAR10_SHA256, True)
    assert calls[1] == (base, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", False)
    assert all(len(bytes.fromhex(known)) == 32 for known in download.MNIST_SHA256.values())


def test_extras_are_named(photos, monkeypatch):
    for module in ("PIL", "PIL.Image", "pooch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"Pillow is not installed; pip install 'ncml\[data\]'"):
        read_image_folder(photos)
    with pytest.raises(MissingExtraError, match=r"pooch is not installed; pip install 'ncml\[data\]'"):
        download.download_mnist()


def test_progress_is_shown_where_asked(photos, capsys):
    read_image_folder(photos)
    assert capsys.readouterr().err == ""
    read_image_folder(photos, progress=True)
    assert "reading images" in capsys.readouterr().err


def test_mixed_images_are_some_of_all_classes():
    """Class by class as in a folder: the first 50 of 500 would be of one class."""
    levels = torch.arange(500).reshape(500, 1, 1, 1).expand(500, 1, 2, 2) % 256
    labels = torch.arange(500) // 50
    images = Images(levels.to(torch.uint8), labels, Lattice(256), tuple("abcdefghij"))
    some = images.mixed(50)
    assert len(some) == 50
    assert torch.equal(some.levels, images.mixed(400).levels[:50])  # nested, and the same every time
    assert len(some.labels.unique()) == 10
    assert torch.equal(images.mixed().labels.sort().values, labels)
    assert len(images.mixed(10_000)) == 500
    # Labels follow their images.
    assert all(
        int(y) in (int(k) // 50, (int(k) + 256) // 50)
        for k, y in zip(some.levels[:, 0, 0, 0], some.labels, strict=True)
    )
    with pytest.raises(ArgumentError, match="n: got 0"):
        images.mixed(0)


def test_a_grid_is_no_wider_than_its_images(tmp_path):
    save_grid(torch.zeros(2, 1, 4, 4), tmp_path / "grid.png", columns=300, scale=1)
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape[1] < 12


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0), (2, 2, 4, 4), (1, 4, 4)])
def test_a_grid_of_nothing_is_refused(tmp_path, shape):
    with pytest.raises(ArgumentError, match=r"images: got shape .*; expected \(N, C, H, W\) with C = 1 or 3"):
        save_grid(torch.zeros(shape), tmp_path / "grid.png")


def test_samples_that_have_failed_are_white(tmp_path):
    images = torch.full((2, 1, 4, 4), -1.0)
    images[1] = torch.nan
    save_grid(images, tmp_path / "grid.png", columns=2, scale=1)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert set(np.unique(pixels[:, :4])) == {0}
    assert set(np.unique(pixels[:, 4:])) == {255}
