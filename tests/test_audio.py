"""Recordings and series: WAV files number by number, windows, splits, and what is wrong with a file.

Oracles: scipy's and the standard library's writers and readers of WAV files, and windows cut by hand.
"""

from __future__ import annotations

import json
import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from ncml import Lattice
from ncml.cli import main
from ncml.data import Arrays, AudioSource, SeriesSource, Windows, cut_windows, open_wav, write_wav
from ncml.errors import ArgumentError, ArgumentTypeError, DatasetError
from ncml.training import load_density, read_metrics
from tests.real_data import needs_data, real

DRAW = np.random.default_rng(0)


def signal(kind: str, frames: int = 41, channels: int = 2):
    """Numbers over the whole range of a kind of samples, its ends among them."""
    if kind.startswith("f"):
        return DRAW.normal(size=(frames, channels)).astype(kind)
    low, high = (-(2**23), 2**23 - 1) if kind == "i3" else (np.iinfo(kind).min, np.iinfo(kind).max)
    x = DRAW.integers(low, high, (frames, channels), endpoint=True)
    x[0], x[1] = low, high
    return x.astype("i4" if kind == "i3" else kind)


def write(path: Path, x, rate: int = 8000) -> None:
    """By other programs: scipy, and for 24 bits the standard library."""
    if x.dtype == np.int32 and abs(x).max() < 2**23 + 1:
        with wave.open(str(path), "wb") as file:
            file.setparams((x.shape[1], 3, rate, 0, "NONE", ""))
            file.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in x.flatten()))
    else:
        wavfile.write(path, rate, x)


def wav(tag=1, channels=1, rate=8000, bits=16, data=b"\1\0\2\0", before=b"", block=None, size=None, extra=b""):
    """The bytes of a WAV file, part by part."""
    block = channels * bits // 8 if block is None else block
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + extra
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + before
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Files.


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["u1", "i2", "i3", "i4", "f4", "f8"])
def test_every_number_of_files_by_other_programs(tmp_path, kind, channels):
    x = signal(kind, channels=channels)
    write(tmp_path / "a.wav", x, 44_100)
    found = open_wav(tmp_path / "a.wav")
    expected = x.astype(int) - 128 if kind == "u1" else x
    assert (found.rate, found.channels, found.frames) == (44_100, channels, 41)
    assert (found.bits, found.floating) == (8 * int(kind[1]), kind[0] == "f")
    assert np.array_equal(found.read(), expected)


@pytest.mark.parametrize("kind", ["i1", "i2", "f4"])
@pytest.mark.parametrize("frames", [1, 40])
def test_what_is_written_is_read_by_other_programs(tmp_path, kind, frames):
    x = signal(kind, frames + 1, 3)[1:]
    write_wav(tmp_path / "a.wav", x, 22_050)
    rate, read = wavfile.read(tmp_path / "a.wav")
    assert rate == 22_050
    assert np.array_equal(read.astype(float) - 128 if kind == "i1" else read, x)
    assert np.array_equal(open_wav(tmp_path / "a.wav").read(), x)
    if kind != "f4":
        with wave.open(str(tmp_path / "a.wav")) as file:
            assert file.getparams()[:4] == (3, int(kind[1]), 22_050, frames)
    write_wav(tmp_path / "b.wav", x[:, 0], 22_050)
    assert np.array_equal(open_wav(tmp_path / "b.wav").read(), x[:, :1])


def test_other_chunks_and_the_extensible_format(tmp_path):
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    guid = b"\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    files = [wav(before=odd), wav(tag=0xFFFE, extra=struct.pack("<HHI", 22, 16, 4) + guid), wav() + b"behind it"]
    for raw in files:
        (tmp_path / "a.wav").write_bytes(raw)
        assert open_wav(tmp_path / "a.wav").read().tolist() == [[1], [2]]


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path, whole = tmp_path / "cut.wav", wav(data=bytes(range(60)))
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DatasetError, match=r"cut\.wav"):
            open_wav(path)
    path.write_bytes(whole)
    assert open_wav(path).frames == 30


BAD = {
    "no WAV": (b"OggS" + bytes(40), "begin with b'OggS'; expected a WAV"),
    "mu-law": (wav(tag=7, bits=8), r"compressed samples \(mu-law\)"),
    "ADPCM": (wav(tag=2, bits=4, block=1), r"compressed samples \(ADPCM\)"),
    "unknown": (wav(tag=999), r"compressed samples \(format 999\)"),
    "12 bits": (wav(bits=12), "samples of 12 bits"),
    "half floats": (wav(tag=3, bits=16), "samples of 16 bits"),
    "no samples": (wav(data=b""), "got 0 bytes of samples"),
    "half a frame": (wav(data=b"abc"), "got 3 bytes of samples; expected a positive multiple of 2"),
    "too short": (wav(size=100), "got 4 bytes of samples; expected 100; the file is cut"),
    "a stream": (wav(size=2**32 - 1), "does not say its length"),
    "no rate": (wav(rate=0), "1 channels at 0 Hz"),
    "no channels": (wav(channels=0, block=2), "0 channels"),
    "other blocks": (wav(block=4), "in blocks of 4 bytes"),
    "only samples": (b"RIFF\0\0\0\0WAVEdata\2\0\0\0ab", "samples before their format"),
    "NaN": (wav(tag=3, bits=32, data=struct.pack("<ff", 0.0, float("nan"))), "NaN or infinity, first in sample 1"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_named(tmp_path, raw, message):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / "bad.wav").write_bytes(raw)
    write(tmp_path / "test" / "good.wav", signal("i2"))
    with pytest.raises(DatasetError, match=message) as error:
        open_wav(tmp_path / "train" / "bad.wav").read()
    assert "bad.wav" in str(error.value)
    with pytest.raises(DatasetError, match=r"bad\.wav"):
        AudioSource(folder=tmp_path, window=1).load(train=True)


@pytest.mark.parametrize("x", [np.zeros((2, 2), "i4"), np.zeros((2, 2)), np.zeros(0, "i2"), np.zeros((2, 2, 2), "i2")])
def test_what_cannot_be_written(tmp_path, x):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"^samples: got"):
        write_wav(tmp_path / "a.wav", x, 8000)
    with pytest.raises(DatasetError, match="cannot be read"):
        open_wav(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("x", "rate", "message"),
    [
        (np.zeros((2, 1), "i2"), 8000.0, r"^rate: got 8000\.0; expected an integer >= 1"),
        (np.zeros((2, 1), "i2"), 0, r"^rate: got 0"),
        (np.zeros((2, 1), "i2"), True, r"^rate: got True"),
        (np.zeros((2, 1), "i2"), 2**31, r"^rate: got 2147483648; expected at most 2147483647 with 1 channels"),
        (np.zeros((1, 70_000), "i2"), 8000, r"^samples: got 70000 channels; expected at most 32767"),
        (np.zeros((1, 65_536), "i1"), 8000, r"^samples: got 65536 channels; expected at most 65535"),
        (np.array([0.0, math.nan], "f4"), 8000, r"^samples: got 1 non-finite values"),
    ],
)
def test_what_no_wav_file_can_say_is_not_written(tmp_path, x, rate, message):
    with pytest.raises(ArgumentError, match=message):
        write_wav(tmp_path / "a.wav", x, rate)
    assert not list(tmp_path.iterdir())


def test_the_largest_header_is_read(tmp_path):
    write_wav(tmp_path / "a.wav", np.ones((1, 32_767), "i2"), np.int64(65_538))
    found = open_wav(tmp_path / "a.wav")
    assert (found.rate, found.channels) == (65_538, 32_767)
    write_wav(tmp_path / "b.wav", np.ones(2, "i1"), 2**32 - 1)
    assert open_wav(tmp_path / "b.wav").rate == 2**32 - 1


# Windows.


@pytest.mark.parametrize(("length", "hop"), [(4, None), (4, 1), (4, 3), (4, 6), (7, 2)])
def test_windows_are_those_cut_by_hand(length, hop):
    sequences = [torch.arange(7.0).view(-1, 1), torch.arange(100.0, 113.0).view(-1, 1)]
    by_hand, seen = [], set()
    for x in sequences:
        for i in range(0, len(x) - length + 1, hop or length):
            by_hand.append(x[i : i + length])
            seen |= set(x[i : i + length].flatten().tolist())
    windows = cut_windows(sequences, ["a", "b"], length, hop)
    assert torch.equal(windows.batch(slice(None)), torch.stack(by_hand))
    assert (windows.remark or "0 of 20").startswith(f"{20 - len(seen)} of 20")
    rows = torch.tensor([1, 0, 1])
    assert torch.equal(windows.batch(rows), torch.stack(by_hand)[rows])
    assert torch.equal(windows.subset(rows).batch(slice(1, 3)), torch.stack(by_hand)[[0, 1]])
    assert sorted(windows.mixed().starts.tolist()) == windows.starts.tolist()
    assert windows.series.numel() == 20  # however much windows overlap


def test_quiet_windows_are_left_out_and_counted():
    x = torch.cat([torch.zeros(10), 0.1 * torch.tensor([1.0, -1.0]).repeat(5), torch.full((5,), 3.0)])[:, None]
    windows = cut_windows([x], ["a"], 5, min_std=0.05)
    assert windows.starts.tolist() == [10, 15]
    assert windows.remark == "3 of 5 windows, of a standard deviation below 0.05, were left out"
    with pytest.raises(ArgumentError, match=r"5 windows of a standard deviation of at most 0\.09"):
        cut_windows([x], ["a"], 5, min_std=0.2)
    scaled = cut_windows([10.0 * x], ["a"], 5, min_std=0.05, unit=10.0)
    assert (scaled.starts.tolist(), scaled.remark) == (windows.starts.tolist(), windows.remark)
    with pytest.raises(ArgumentError, match=r"min_std: got 0\.2, .* of at most 0\.09"):
        cut_windows([10.0 * x], ["a"], 5, min_std=0.2, unit=10.0)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_levels_of_any_integer_type(dtype):
    levels = torch.tensor([[0], [40_000], [65_535]]).to(dtype)
    lattice = Lattice(65_536)
    expected = lattice.to_unit(torch.tensor([[0], [40_000], [65_535]]))
    assert torch.equal(Arrays(levels, lattice=lattice).batch(slice(None)), expected)
    assert torch.equal(Windows(levels, torch.tensor([0]), 3, lattice).batch(slice(None))[0], expected)


def test_numbers_beyond_single_precision():
    x = torch.tensor([[1e300], [0.0]], dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"values: got numbers up to 1e\+300"):
        Arrays(x)
    with pytest.raises(ArgumentError, match=r"series: got numbers up to 1e\+300"):
        Windows(x, torch.tensor([0]), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5), torch.tensor([0]), 2), "series: got shape"),
        ((torch.zeros(5, 1), torch.tensor([4]), 2), "starts: got 4 to 4"),
        ((torch.zeros(5, 1), torch.tensor([-1]), 2), "starts: got -1"),
        ((torch.zeros(5, 1), torch.tensor([], dtype=torch.int64), 2), "at least one"),
        ((torch.zeros(5, 1), torch.tensor([0]), 0), "length: got 0"),
        ((torch.tensor([[0.0], [float("nan")]]), torch.tensor([0]), 1), "position 1"),
        ((torch.tensor([[0], [3]]), torch.tensor([0]), 1, Lattice(3)), r"got values in \[0, 3\]"),
        ((torch.tensor([[0], [3]]), torch.tensor([0]), 1), "got torch.int64"),
    ],
)
def test_windows_refuse_what_does_not_fit(arguments, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Windows(*arguments)


def test_windows_of_another_length_stay_within_their_sequence():
    sequences = [torch.arange(6.0)[:, None], 10.0 + torch.arange(9.0)[:, None]]
    windows = cut_windows(sequences, ["a", "b"], 4, 2)
    assert windows.starts.tolist() == [0, 2, 6, 8, 10]
    longer = windows.of_length(6)
    assert longer.batch(slice(None))[:, :, 0].tolist() == [[*range(6)], [*range(10, 16)], [*range(12, 18)]]
    assert longer.of_length(7).batch(slice(None))[:, :, 0].tolist() == [[*range(10, 17)], [*range(12, 19)]]
    assert windows.of_length(9).subset(torch.tensor([0])).batch(slice(None)).flatten().tolist() == [*range(10, 19)]
    assert windows.of_length(10) is None
    assert len(windows.of_length(3)) == 5
    one = Windows(torch.arange(5.0)[:, None], torch.tensor([0, 2]), 3)  # of a single sequence
    assert one.of_length(4).starts.tolist() == [0]
    with pytest.raises(ArgumentError, match="length: got 0"):
        one.of_length(0)
    for ends in (torch.tensor([2, 5]), torch.tensor([5])):
        with pytest.raises(ArgumentError, match="ends: got shape"):
            Windows(one.series, one.starts, 3, ends=ends)


# Folders of recordings.


def folder(path: Path, kind="i2", files=6, frames=40, channels=1, **changes) -> Path:
    for i in range(files):
        (path / f"sub{i % 2}").mkdir(parents=True, exist_ok=True)
        write(path / f"sub{i % 2}" / f"{i}.wav", signal(kind, frames, channels), changes.get(str(i), 8000))
    return path


@pytest.mark.parametrize("kind", ["u1", "i2", "i3", "i4", "f4", "f8"])
def test_samples_in_data_units_and_back_to_a_file(tmp_path, kind):
    x = signal(kind, 64, 2)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "a.WAV", x)
    source = AudioSource(folder=tmp_path, window=64, gain=3.0)
    data = source.load(train=False)
    (found,) = data.batch(slice(None))
    bits = 8 * int(kind[1])
    if kind in ("u1", "i2"):
        assert data.lattice == Lattice(2**bits)
        expected = data.lattice.to_unit(torch.from_numpy(x.astype(int) - (0 if kind == "u1" else -(2**15))))
    else:
        assert data.lattice is None
        expected = torch.from_numpy(3.0 * x.astype(float) / (1.0 if kind[0] == "f" else 2.0 ** (bits - 1))).float()
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert data.rate == 8000
    write_wav(tmp_path / "out.wav", source.to_wav(found, data.lattice), data.rate)
    again = open_wav(tmp_path / "out.wav").read()
    if data.lattice is not None:
        assert np.array_equal(again, open_wav(tmp_path / "test" / "a.WAV").read())
    else:
        assert np.allclose(3.0 * again, expected.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "levels"), [("u1", 4), ("i2", 256), ("i2", 1024), ("i3", 65_536), ("i4", 65_536)])
def test_coarser_levels_hold_equal_shares_of_the_finer_ones(tmp_path, kind, levels):
    bits = 8 * int(kind[1])
    source = AudioSource(folder=folder(tmp_path, kind), window=40, levels=levels)
    data = source.load(train=True)
    # Every file has the lowest and the highest level.
    assert (int(data.series.min()), int(data.series.max())) == (0, levels - 1)
    first = sorted(tmp_path.rglob("*.wav"))[0]
    x = open_wav(first).read().astype(np.int64) + 2 ** (bits - 1)
    both = torch.cat([data.series, source.load(train=False).series]).view(-1, 40)
    assert (both == torch.from_numpy(x.flatten() >> (bits - levels.bit_length() + 1))).all(1).any()
    written = source.to_wav(data.lattice.to_unit(data.series.long()), data.lattice)
    width = 8 * written.dtype.itemsize
    assert np.array_equal((written.astype(int) + 2 ** (width - 1)) >> (width - levels.bit_length() + 1), data.series)


def test_mono_is_the_mean_and_zero_levels_are_real_numbers(tmp_path):
    x = signal("i2", 32, 2)
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.wav", x)
    mono = AudioSource(folder=tmp_path, window=32, mono=True).load(train=True)
    assert mono.shape == (32, 1)
    assert np.array_equal(mono.series[:, 0] - 2**15, np.round(x.astype(float).mean(1)))
    write(tmp_path / "train" / "b.wav", x[:, :1])  # mono takes any number of channels
    assert len(AudioSource(folder=tmp_path, window=32, mono=True).load(train=True)) == 2
    real = AudioSource(folder=tmp_path, window=32, mono=True, levels=0, gain=2.0).load(train=False)
    assert np.allclose(real.series[:, 0], 2.0 * x.astype(float).mean(1).round() / 2**15, rtol=1e-6)


def test_files_are_split_by_their_names(tmp_path):
    source = AudioSource(folder=folder(tmp_path, files=40), window=40, test_fraction=0.3)
    train, test = source.load(train=True), source.load(train=False)
    assert len(train) + len(test) == 40
    assert 4 <= len(test) <= 20  # of Binomial(40, 0.3): outside with probability 0.006, but the names are fixed
    rows = {tuple(row.tolist()) for row in test.series.view(-1, 40)}
    write(tmp_path / "sub0" / "another.wav", signal("i2", 40, 1))
    after = {tuple(row.tolist()) for row in source.load(train=False).series.view(-1, 40)}
    assert rows <= after
    assert len(after - rows) <= 1
    with pytest.raises(DatasetError, match="leave none to test on"):
        AudioSource(folder=tmp_path, test_fraction=0.0).load(train=True)


def changed(path: Path, what: str) -> None:
    """A folder with something that does not go with the rest."""
    other = path / "sub1" / "5.wav"
    if what == "rate":
        write(other, signal("i2", 40, 1), 16_000)
    elif what == "channels":
        write(other, signal("i2", 40, 2))
    elif what == "form":
        write(other, signal("f4", 40, 1))
    elif what == "short":
        write(other, signal("i2", 39, 1))
    elif what == "flac":
        other.rename(other.with_suffix(".flac"))
    elif what == "one":
        (path / "sub0").rename(path / "train")
    elif what == "none":
        for file in path.rglob("*.wav"):
            file.unlink()
    elif what == "away":
        path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("rate", r"5\.wav: got 16000 Hz; expected 8000 Hz, as .*\.wav; resample it"),
        ("channels", r"5\.wav: got 2 channels; expected 1, as"),
        ("form", r"5\.wav: got 32-bit floats; expected 16-bit integers"),
        ("short", r"5\.wav: got 39 positions; expected at least 40, .* or remove the file$"),
        ("flac", r"5\.flac: got 1 recordings of other formats"),
        ("one", "got the subfolders train; expected one for training"),
        ("none", "got no recordings"),
        ("away", "got no folder; expected a folder with files that end in"),
    ],
)
def test_files_that_do_not_go_together_are_named(tmp_path, what, message):
    changed(folder(tmp_path), what)
    source = AudioSource(folder=tmp_path, window=40)
    splits = (True, False) if what in ("rate", "channels", "form") else (True,)  # the file is one to train on
    for train in splits:
        with pytest.raises(DatasetError, match=message):
            source.load(train=train)


@pytest.mark.parametrize(
    "settings",
    [{}, {"folder": "a", "name": "mnist"}, {"folder": "a", "window": 0}, {"folder": "a", "hop": 0}]
    + [
        {"folder": "a", name: value}
        for name, value in {"levels": 3, "gain": 0.0, "min_std": 2, "test_fraction": 1.0}.items()
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ArgumentError):
        AudioSource(**settings)


def test_levels_need_integers(tmp_path):
    for kind, levels in (("f4", 256), ("u1", 512)):
        source = AudioSource(folder=folder(tmp_path / kind, kind), window=40, levels=levels)
        with pytest.raises(DatasetError, match=f"levels={levels}; expected integers with as many levels"):
            source.load(train=True)


@needs_data
def test_the_instrument_recordings():
    """Counts and loudness as the data set's description has them."""
    source = AudioSource(folder=real("audio"), window=64, hop=128, min_std=400 / 2**15)
    train, test = source.load(train=True), source.load(train=False)
    assert (len(train.series), len(test.series)) == (1_963_911, 224_238)
    assert (train.rate, train.lattice, train.shape) == (8000, Lattice(65_536), (64, 1))
    assert float((train.series.double() - 2**15).square().mean().sqrt()) == pytest.approx(4000, rel=0.02)
    assert train.remark.startswith("2 of 15,341 windows")
    last = sorted((real("audio") / "test").iterdir())[-1]
    rate, x = wavfile.read(last)
    assert (rate, x.tolist()) == (8000, (test.series[-len(x) :, 0] - 2**15).tolist())


# Series.


def csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


T = np.arange(100)
REAL = np.stack([np.sin(T / 5.0), T / 100.0], 1)


@pytest.mark.parametrize("shape", ["T", "TC", "BTC"])
def test_a_series_is_split_in_time(tmp_path, shape):
    x = {"T": REAL[:, 0], "TC": REAL, "BTC": np.stack([REAL, 2.0 * REAL])}[shape]
    np.save(tmp_path / "x.npy", x)
    source = SeriesSource(file=tmp_path / "x.npy", window=20, hop=10, test_fraction=0.2)
    train, test = source.load(train=True), source.load(train=False)
    every = np.reshape(x, (-1, 100, 1 if shape == "T" else 2)).astype(np.float32)
    by_hand = [row[i : i + 20] for row in every for i in range(0, 61, 10)]
    assert np.array_equal(train.batch(slice(None)), np.stack(by_hand))
    assert np.array_equal(test.batch(slice(None)), every[:, 80:])
    assert train.lattice is None


def test_given_splits_levels_and_csv_files(tmp_path):
    counts = np.random.default_rng(0).integers(0, 7, (3, 50, 1))
    np.savez(tmp_path / "x.npz", x_train=counts[:2], x_test=counts[2:])
    source = SeriesSource(file=tmp_path / "x.npz", window=25)
    train = source.load(train=True)
    assert (train.lattice, len(train)) == (Lattice(7), 4)
    assert np.array_equal(source.load(train=False).series, counts[2])
    lines = "\n".join(f"2024-01-{1 + t // 24:02} {t % 24:02}:00,{a!r},{b!r}" for t, (a, b) in enumerate(REAL.tolist()))
    path = csv(tmp_path / "x.csv", f"when,level,share\n{lines}\n")
    source = SeriesSource(file=path, window=10, time="when", test_fraction=0.2)
    assert np.array_equal(source.load(train=True).series, REAL[:80].astype(np.float32))
    one = SeriesSource(file=str(path), window=10, time="when", columns=("share",)).load(train=False)
    assert np.array_equal(one.series, REAL[90:, 1:].astype(np.float32))


NAN = REAL.copy()
NAN[7, 1] = np.nan
BAD_SERIES = {
    "nan": (NAN, {}, r"bad\.npy: x: got NaN or infinity in 1 places, first in series 0 at time 7, number 1"),
    "too many axes": (np.zeros((2, 2, 2, 2)), {}, r"expected T, T x C or B x T x C"),
    "short": (
        REAL[:30],
        {},
        r"bad\.npy: series 0, test part: got 3 positions; expected at least 10, .* or a larger test_fraction than 0\.1",
    ),
    "no header": ("0,1\n1,2\n2,3\n", {}, r"bad\.csv: line 1: got numbers alone, 0, 1; expected a header"),
    "text": (np.array(["a", "b"]), {}, r"bad\.npy: x: got dtype"),
    "negative": (T - 1, {}, r"bad\.npy: got integers from -1"),
    "gap": (
        "t,a\n0,1\n1,2\n3,3\n4,4\n",
        {"time": "t"},
        r"line 4: got a step of 2 in t; expected 1,.*name the columns to read",
    ),
    "backwards": ("t,a\n1,1\n0,2\n", {"time": "t"}, r"bad\.csv: line 3: got times that do not increase"),
    "no time": ("t,a\nnoon,1\n", {"time": "t"}, r"bad\.csv: line 2: got the time 'noon'"),
    "no column": ("t,a\n0,1\n", {"columns": ("b",)}, r"bad\.csv: got the columns t, a; expected one named 'b'"),
    "dates without a name": ("a,b\n0,2020-01-01\n", {}, r"got '2020-01-01' in b; .*stamps \(time='b'\)"),
    "empty cell": ("a,b\n0,1\n2,\n", {}, r"bad\.csv: line 3: got '' in b; expected a finite number; fill the gap"),
    "nan cell": ("a,b\n0,nan\n2,1\n", {}, r"bad\.csv: line 2: got 'nan' in b; .*; fill the gap"),
    "NA cell": ("a,b\n0,NA\n2,1\n", {}, r"bad\.csv: line 2: got 'NA' in b; .*; fill the gap"),
    "short row": ("a,b\n0,1\n2\n", {}, r"bad\.csv: line 3: got 1 cells; expected 2"),
    "no rows": ("a,b\n", {}, r"bad\.csv: got 1 lines"),
    "semicolons": ("a;b\n0;1\n", {}, r"line 1: got ';' between the columns; expected commas; .*'bad\.csv', sep=';'\)"),
    "decimal commas": ("a;b\n0,5;1\n", {}, r"expected commas; save it anew: .*'bad\.csv', sep=';', decimal=','\)"),
    "nan as time": ("t,a\nnan,1\nnan,2\n", {"time": "t"}, r"bad\.csv: line 2: got the time 'nan'"),
    "a missing day": (
        "t,a\n20200130,1\n20200131,2\n20200202,3\n",
        {"time": "t"},
        r"bad\.csv: line 4: got a step of 172800 seconds in t; expected 86400",
    ),
    "a missing hour": (
        "t,a\n2020-01-01T00:00,1\n2020-01-01T01:00,2\n2020-01-01T03:00,3\n",
        {"time": "t"},
        r"bad\.csv: line 4: got a step of 7200 seconds in t; expected 3600",
    ),
    "text in a cell": ("a,b\n0,1\n2,abc\n", {}, r"got 'abc' in b; expected a finite number; it is not a number"),
    "channels first": (
        REAL.T,
        {"test_fraction": 0.9},
        r"got 2 positions; .*series are \(positions, channels\): if these 100 are its positions, transpose it",
    ),
    "seconds since 1970": (1.7e9 + T, {}, r"bad\.npy: got values between 17000000\d\d.*subtract their mean"),
    "too small": (1e-50 * (1.0 + T), {}, r"single precision cannot tell apart"),
}


@pytest.mark.parametrize(("content", "settings", "message"), BAD_SERIES.values(), ids=BAD_SERIES)
def test_bad_series_are_named(tmp_path, content, settings, message):
    path = tmp_path / ("bad.csv" if isinstance(content, str) else "bad.npy")
    if isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    with pytest.raises(DatasetError, match=message):
        SeriesSource(file=path, window=10, **settings).load(train=False)


def test_what_the_errors_of_series_name_works(tmp_path):
    """Irregular times with the columns named, a larger share to test on, and the training part."""
    path = csv(tmp_path / "x.csv", "".join(["t,a\n", *(f"{t * t},{t}\n" for t in range(40))]))
    assert np.array_equal(SeriesSource(file=path, window=10, columns=("a",)).load(train=True).series[:, 0], T[:36])
    source = SeriesSource(file=path, window=10, columns=("a",), test_fraction=0.25)
    assert np.array_equal(source.load(train=False).series[:, 0], T[30:40])
    with pytest.raises(DatasetError, match=r"series 0, training part: .* or a smaller test_fraction than 0\.9"):
        SeriesSource(file=path, window=10, columns=("a",), test_fraction=0.9).load(train=True)
    np.savez(tmp_path / "x.npz", x_train=REAL, x_test=REAL[:5])
    with pytest.raises(DatasetError, match=r"series 0, test part: got 5 positions; .* or remove the series"):
        SeriesSource(file=tmp_path / "x.npz", window=10).load(train=False)


def test_dates_without_marks_are_dates(tmp_path):
    """20200131 and 20200201 are a day apart; numbers that are no dates are numbers."""
    path = csv(tmp_path / "x.csv", "".join(["t,a\n", *(f"202001{k},{k}\n" for k in range(30, 32)), "20200201,32\n"]))
    assert SeriesSource(file=path, window=1, time="t", test_fraction=0.3).load(train=True).series.flatten()[0] == 30.0
    path = csv(tmp_path / "y.csv", "".join(["t,a\n", *(f"{20200130 + 70 * k},{k}\n" for k in range(5))]))
    assert len(SeriesSource(file=path, window=1, time="t", test_fraction=0.2).load(train=True)) == 4


def test_settings_of_series(tmp_path):
    for settings in ({}, {"file": Path("a.npy"), "time": "t"}, {"file": Path("a.csv"), "levels": 4}):
        with pytest.raises(ArgumentError):
            SeriesSource(**settings)
    for name in ("none.npy", "none.csv"):
        with pytest.raises(DatasetError, match=name):
            SeriesSource(file=tmp_path / name).load(train=True)
    np.savez(tmp_path / "x.npz", x_train=REAL, x_test=REAL[:, :1])
    with pytest.raises(DatasetError, match=r"x\.npz: got 2 numbers .* to train on and 1"):
        SeriesSource(file=tmp_path / "x.npz").load(train=True)


# Through the program.

SHORT = """
    --optim.steps 2 --optim.batch-size 8 --optim.warmup 1 --run.threads 1 --run.accelerator cpu
    --run.validate-images 4 --run.samples 2 --model.name causal-transformer --model.width 8 --model.layers 1
    --model.heads 2 --model.components 2
"""
SHORT = SHORT.split()


@pytest.mark.parametrize("kind", ["i2", "u1", "f4"])
def test_from_recordings_to_recordings(tmp_path, capsys, kind):
    """train, sample, complete, evaluate: files of two windows and more, at the rate of the data, in their bits."""
    source = folder(tmp_path / "data", kind, files=8, frames=50, channels=2)
    run = tmp_path / "run"
    data = ["--data.name", "audio", "--data.folder", str(source), "--data.window", "16", "--data.hop", "8"]
    assert main(["train", "--out", str(run), *SHORT, *data]) == 0
    said = capsys.readouterr().out
    assert "Of the training data, 14 of 350 positions lie in no window." in said
    integers = kind != "f4"
    assert ("bits per sample" if integers else "nats per example") in said
    density, config, shape, _ = load_density(run)
    assert (shape.rate, shape.shape, config.data.hop) == (8000, (16, 2), 8)

    few = ["--images", "2", "--steps", "2"]
    for options, folder_, frames in ((["--seconds", "0.005"], "samples", 40), (["--noise", "0"], "samples-noise0", 16)):
        assert main(["sample", str(run), *few, *options]) == 0
        files = sorted((run / folder_).glob("*.wav"))
        assert [file.name for file in files] == ["samples_0.wav", "samples_1.wav"]
        samples = np.load(run / folder_ / "samples.npy", allow_pickle=False)
        assert samples.shape == (2, frames, 2)
        for file, sample in zip(files, samples, strict=True):
            found = open_wav(file)
            assert (found.rate, found.form) == (8000, open_wav(source / "sub0" / "0.wav").form)
            half = 2 ** (found.bits - 1) if integers else 0
            assert np.array_equal(found.read() + float(half), sample)

    test = config.data.load(train=False).of_length(20).mixed(2)
    x = test.batch(slice(None))
    assert x.shape[1] == 20  # the originals are as long as the completions
    out = run / "completions"
    capsys.readouterr()
    for draws in (3, 2):  # fewer than last time: none of the old ones stay
        more = ["--draws", str(draws), "--rows", "5", "--seconds", "0.0025"]
        assert main(["complete", str(run), *few, *more]) == 0
        files = [f"completion_{k}_draw_{j}.wav" for k in (0, 1) for j in range(draws)]
        assert sorted(file.name for file in out.glob("*.wav")) == [*files, "original_0.wav", "original_1.wav"]
        assert f"{files[0]} to {files[-1]}, original_0.wav to original_1.wav" in capsys.readouterr().out
        entries = json.loads((out / "complete.json").read_text())["completions"]
        completed = np.load(out / "completions.npy", allow_pickle=False)
        assert [entry["file"] for entry in entries] == files
        for entry, row in zip(entries, completed, strict=True):
            wav, original = open_wav(out / entry["file"]), config.data.to_wav(x[entry["original"]], test.lattice)
            assert (entry["file"], wav.frames) == (f"completion_{entry['original']}_draw_{entry['draw']}.wav", 20)
            assert np.array_equal(wav.read()[:5], original[:5])
            assert np.array_equal(wav.read() + float(2 ** (wav.bits - 1) if integers else 0), row)
    originals = np.load(out / "originals.npy", allow_pickle=False)
    for k in (0, 1):
        read = open_wav(out / f"original_{k}.wav").read()
        assert np.array_equal(read, config.data.to_wav(x[k], test.lattice))
        assert np.array_equal(read + float(2 ** (wav.bits - 1) if integers else 0), originals[k])
    one = ["--images", "1", "--draws", "1", "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncml.cli.sample.shows_progress", lambda: True)
        assert main(["complete", str(run), *one, "--length", "200"]) == 0  # longer than any recording
    assert "/192 [" in capsys.readouterr().err  # positions that are drawn
    assert open_wav(out / "original_0.wav").frames == 16
    # Half of what is drawn is kept, of what is shorter than a window too.
    assert main(["complete", str(run), *one, "--length", "4"]) == 0
    assert open_wav(out / "original_0.wav").frames == 4
    assert "1 completion in " in capsys.readouterr().out
    assert json.loads((out / "complete.json").read_text())["settings"]["rows"] == 2
    for length, whole in (([], "16 positions of the model's window"), (["--length", "4"], "4 positions")):
        assert main(["complete", str(run), *few, "--rows", "17", *length]) == 2
        expected = f"expected 0 to {whole.split()[0]}: how many of the {whole} are kept"
        assert expected in capsys.readouterr().err
    # Fewer samples than last time: none of the old ones stay.
    assert main(["sample", str(run), "--images", "1", "--noise", "0", "--length", "3"]) == 0
    assert [open_wav(file).frames for file in (run / "samples-noise0").glob("*.wav")] == [3]

    claims = tmp_path / "claims.json"
    claims.write_text(json.dumps({"requires": {}, "rows": {"ours": {"T": {"bits/dim pi=0.5": 3.0}}}}))
    few = ["--images", "4", "--curve-images", "2", "--curve-times", "2", "--ood-images", "4"]
    assert main(["evaluate", str(run), *few, "--claims", str(claims), "--row", "ours"]) == 0
    said = capsys.readouterr().out
    assert ("Bits per sample at t = 0" in said) == integers
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["test_data"] == "2 of 50 positions lie in no window"
    if integers:
        some = config.data.load(train=False).mixed(4).batch(slice(None))
        bits = -density.log_prob(some).detach().double() / (32 * np.log(2.0)) - np.log2(density.lattice.width)
        assert report["bits_per_dim"]["0"]["bits"]["mean"] == pytest.approx(float(bits.mean()), rel=1e-5)
    # One of 65,536 levels says nothing.
    assert ("one of 65,536 levels says nothing" in said) == (kind == "i2")
    assert list(report.get("bits_per_dim", {})) == {"i2": ["0"], "u1": ["0", "0.5", "1"], "f4": []}[kind]
    assert (report["claims"][0]["ours"] is None) == (kind != "u1")
    assert ("Delta log p (bits per sample)" in said) == (kind == "u1")
    assert ("robustness" in report) == (run / "evaluation" / "robustness.png").exists() == (kind == "u1")
    for wrong in (["--seconds", "0"], ["--seconds", "1", "--length", "3"], ["--length", "0"]):
        assert main(["sample", str(run), *wrong]) == 2


@pytest.mark.parametrize("watched", [False, True])
def test_training_says_how_far_it_is(tmp_path, capsys, monkeypatch, watched):
    """A line at each validation, on a terminal or not, in the unit that the bar and the last line have."""
    monkeypatch.setattr("ncml.cli.train.shows_progress", lambda: watched)
    data = ["--data.name", "audio", "--data.folder", str(folder(tmp_path / "data", "i2", files=4, frames=50))]
    run = tmp_path / "run"
    more = ["--data.window", "16", "--run.validate-every", "1", "--run.log-every", "1"]
    assert main(["train", "--out", str(run), *SHORT, *data, *more]) == 0
    said = capsys.readouterr()
    bits = [line["validation"]["bits_per_dim"] for line in read_metrics(run / "metrics.jsonl") if "validation" in line]
    lines = [line for line in said.out.splitlines() if line.startswith("Step ")]
    assert len(bits) == 2
    assert lines == [
        f"Step {k}: Held-out examples at t = 0: {value:.3f} bits per sample." for k, value in enumerate(bits, start=1)
    ]
    assert said.out.splitlines()[-1].endswith(lines[-1].removeprefix("Step 2:"))
    assert ("bits per sample, " in said.err) == watched
    assert "bits/dim" not in said.out + said.err


def test_series_through_the_program(tmp_path, capsys):
    np.save(tmp_path / "x.npy", REAL)
    run = str(tmp_path / "run")
    data = ["--data.name", "series", "--data.file", str(tmp_path / "x.npy"), "--data.window", "10", "--data.hop", "1"]
    assert main(["train", "--out", run, *SHORT, *data]) == 0
    assert main(["sample", run, "--images", "2", "--length", "25", "--steps", "2"]) == 0
    samples = np.load(tmp_path / "run" / "samples" / "samples.npy", allow_pickle=False)
    assert samples.shape == (2, 25, 2)
    assert not list(tmp_path.rglob("*.wav"))
    assert main(["complete", run, "--images", "1", "--draws", "2", "--rows", "4"]) == 0
    out = tmp_path / "run" / "completions"
    completed, originals = (np.load(out / f"{name}.npy", allow_pickle=False) for name in ("completions", "originals"))
    assert json.loads((out / "complete.json").read_text())["completions"] == [
        {"original": 0, "draw": 0},
        {"original": 0, "draw": 1},
    ]
    assert np.array_equal(completed[:, :4], originals[[0, 0], :4])
    assert not (completed[0, 4:] == completed[1, 4:]).any()
    assert not (completed[:, 4:] == originals[[0, 0], 4:]).any()
    assert main(["sample", run, "--seconds", "1"]) == 2
    assert "expected data with a rate" in capsys.readouterr().err
    made = ["--model.name", "made", "--model.hidden", "8"]
    assert main(["train", "--out", f"{run}2", *SHORT[:16], *data, *made]) == 0
    assert main(["sample", f"{run}2", "--images", "2", "--length", "25"]) == 2
    assert "whose samples have one size" in capsys.readouterr().err
