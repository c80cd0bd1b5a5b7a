"""The readers, on the real files and on damaged ones.

The real files are those of the folder that the environment variable ``NCML_DATA`` names, which CI sets.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import pytest
import torch

from ncml import VPSDE, Lattice, NCMLError
from ncml.data import load_cifar10, load_mnist, read_cifar10, read_idx
from ncml.densities import NCPN
from ncml.errors import DatasetError
from ncml.evaluation import level_noise_table
from tests.real_data import needs_data, real


def idx(shape, payload):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + payload


@needs_data
def test_mnist_is_the_official_one():
    """Against the published MD5 sums of the four official files, which cover headers and every byte."""
    images, labels = load_mnist(real("mnist"), train=False)
    assert (images.shape, labels.shape) == ((10_000, 1, 28, 28), (10_000,))
    whole = idx((10_000, 28, 28), images.numpy().tobytes())
    assert hashlib.md5(whole).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    assert (
        hashlib.md5(idx((10_000,), labels.byte().numpy().tobytes())).hexdigest() == "27ae3e4e09519cfbb04c329615203637"
    )
    images, labels = load_mnist(real("mnist"))
    assert images.shape == (60_000, 1, 28, 28)
    whole = idx((60_000, 28, 28), images.numpy().tobytes())
    assert hashlib.md5(whole).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"


@needs_data
def test_cifar10_has_the_documented_rows():
    images, labels = load_cifar10(real("cifar10"))
    assert images.shape == (5085, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.bincount(labels).tolist() == [517, 524, 490, 493, 537, 475, 503, 516, 529, 501]
    images, labels = load_cifar10(real("cifar10"), train=False)
    assert torch.bincount(labels).tolist() == [105, 93, 100, 104, 92, 87, 114, 102, 110, 110]
    # Planes and rows are not exchanged: neighbours along each axis are alike, channels of a pixel too.
    x = images.double()
    spread = float(x.std())
    for a, b in ((x[..., 1:], x[..., :-1]), (x[:, :, 1:], x[:, :, :-1]), (x[:, 1:], x[:, :-1])):
        assert float((a - b).square().mean().sqrt()) < 0.6 * spread


@needs_data
def test_real_images_have_exact_bits():
    """From file to bits/dim: eight bits or a little more before training, and finite under level noise."""
    images, _ = load_cifar10(real("cifar10"), train=False)
    x = Lattice(256).to_unit(images[:4, :, 8:16, 8:16])
    torch.manual_seed(0)
    ncpn = NCPN.preset("tiny", (3, 8, 8), VPSDE.at_noise(10 * Lattice(256).width))
    rows = level_noise_table(ncpn, x, generator=torch.Generator().manual_seed(0))
    assert [row.bits.exact for row in rows] == [True] * 3
    assert all(6.5 < row.bits.mean < 10.0 for row in rows)


def test_round_trip_of_written_files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(256, (7, 3073), generator=generator, dtype=torch.uint8)
    records[:, 0] %= 10
    (tmp_path / "test_batch.bin").write_bytes(records.numpy().tobytes())
    images, labels = load_cifar10(tmp_path, train=False)
    assert torch.equal(labels, records[:, 0].long())
    assert int(images[3, 1, 2, 5]) == int(records[3, 1 + 1024 + 2 * 32 + 5])
    pixels = torch.randint(256, (5, 4, 3), generator=generator, dtype=torch.uint8)
    for name, write in (("a", Path.write_bytes), ("a.gz", lambda path, raw: path.write_bytes(gzip.compress(raw)))):
        write(tmp_path / name, idx((5, 4, 3), pixels.numpy().tobytes()))
        assert torch.equal(read_idx(tmp_path / name), pixels)


DAMAGED = {
    "cut cifar": (read_cifar10, "f.bin", bytes(3072), "3,072 bytes.*multiple of 3,073"),
    "empty cifar": (read_cifar10, "f.bin", b"", "0 bytes"),
    "label": (read_cifar10, "f.bin", bytes([10]) + bytes(3072), "label 10"),
    "pickle": (read_cifar10, "f.bin", pickle.dumps({"data": 1}), "bytes"),
    "short idx": (read_idx, "f", b"\0\0\x08", "header"),
    "cut header": (read_idx, "f", b"\0\0\x08\x03\0\0\0\1", "header"),
    "floats": (read_idx, "f", b"\0\0\x0d\x01\0\0\0\0", "header 00 00 0d 01"),
    "cut idx": (read_idx, "f", idx((2, 2), b"abc"), "15 bytes; expected 16 for shape"),
    "long idx": (read_idx, "f", idx((2, 2), b"abcde"), "17 bytes; expected 16"),
    "overflowing idx": (read_idx, "f", idx((2**31, 2**31, 8), b""), "expected 36,893,488,147,419,103,248"),
    "cut gzip": (read_idx, "f.gz", gzip.compress(idx((2, 2), b"abcd"))[:-6], "gzip"),
    "flipped gzip": (read_idx, "f.gz", gzip.compress(idx((2, 2), b"abcd"))[:-8] + bytes(8), "gzip"),
    "neither": (read_idx, "f.gz", b"hello", "header 68 65"),
    "cifar100": (read_cifar10, "f.bin", bytes(2 * 3074), "a multiple of 3,074 as of CIFAR-100"),
}


@pytest.mark.parametrize(("read", "name", "raw", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named(read, name, raw, message, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DatasetError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert isinstance(error.value, (NCMLError, OSError))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train.bin", "test.bin", "fine_label_names.txt"), "the files of CIFAR-100; expected those of CIFAR-10"),
        (("data_batch_1", "test_batch"), "Python version, whose pickles are never read; expected its binary version"),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_other_versions_of_cifar_are_named(tmp_path, files, message, train):
    for name in files:
        (tmp_path / name).write_bytes(bytes(3074))
    with pytest.raises(DatasetError, match=message):
        load_cifar10(tmp_path, train=train)


@pytest.mark.parametrize(
    "name",
    [
        "t10k-{}-idx{}-ubyte",
        "t10k-{}-idx{}-ubyte.gz",
        "t10k-{}.idx{}-ubyte",
        "t10k-{}.idx{}-ubyte.gz",
        "t10k-{0}-idx{1}-ubyte/t10k-{0}-idx{1}-ubyte",
        "t10k-{0}-idx{1}-ubyte/t10k-{0}.idx{1}-ubyte",
        "raw/t10k-{}-idx{}-ubyte",
        "MNIST/raw/t10k-{}-idx{}-ubyte.gz",
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_usual_names_of_mnist_whatever_they_hold(tmp_path, name, pack):
    """Packed or not is told by content, not by the name."""
    for kind, shape, payload in (("images", (2, 1, 3), b"abcdef"), ("labels", (2,), b"\7\1")):
        path = tmp_path / name.format(kind, len(shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(idx(shape, payload)))
    images, labels = load_mnist(tmp_path, train=False)
    assert bytes(images.numpy()) == b"abcdef"
    assert labels.tolist() == [7, 1]


def test_missing_and_mismatched_files(tmp_path):
    with pytest.raises(DatasetError, match=r"data_batch_1.bin: cannot be read"):
        load_cifar10(tmp_path)
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        load_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx((2, 1, 1), b"ab"))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((3,), b"abc"))
    with pytest.raises(DatasetError, match=r"\(2, 1, 1\).*\(3,\)"):
        load_mnist(tmp_path)


def test_every_truncation_of_an_idx_file_is_seen(tmp_path):
    raw = idx((3, 2), b"abcdef")
    for n in range(len(raw)):
        (tmp_path / "f").write_bytes(raw[:n])
        with pytest.raises(DatasetError):
            read_idx(tmp_path / "f")
