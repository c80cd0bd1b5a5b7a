"""The examples: every configuration runs, cut short, on synthetic images of the kind that it is for."""

from __future__ import annotations

import json
import math
import re
import runpy
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncml.cli import main
from ncml.cli.claims import read_claims
from ncml.data import AudioSource, ImageSource, open_wav, write_wav
from ncml.training import DataKind, TrainConfig, build_density, read_toml

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*_ncpn/*.toml"))

CUT_SHORT = """
    --model.features 8 --model.blocks 1 --model.resolutions 2 --model.heads 2 --model.components 2
    --model.no-compile --optim.steps 2 --optim.batch-size 2 --run.validate-images 2 --run.samples 2
    --run.precision float32 --run.accelerator cpu --run.threads 1
"""


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few random images as a folder of photographs, as CIFAR-10's binary files and as MNIST's."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / "folder" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = torch.randint(256, (40, 48, 3), dtype=torch.uint8, generator=generator())
                Image.fromarray(pixels.numpy()).save(root / "folder" / split / name / f"{i}.png")
    (root / "SVHN").symlink_to(root / "folder" / "test" / "cat")
    (root / "cifar10").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = torch.randint(256, (2, 3073), dtype=torch.uint8, generator=generator())
        records[:, 0] %= 10
        (root / "cifar10" / f"{name}.bin").write_bytes(records.numpy().tobytes())
    (root / "mnist").mkdir()
    for name in ("train", "t10k"):
        pixels = torch.randint(256, (4, 28, 28), dtype=torch.uint8, generator=generator()).numpy().tobytes()
        (root / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 4, 28, 28) + pixels)
        (root / "mnist" / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 4) + bytes([0, 3, 9, 1]))
    return root


def test_there_are_five():
    names = ["celeba64", "cifar10", "cifar16", "imagenet64", "mnist"]
    assert [path.parent.name for path in CONFIGS if path.name == "config.toml"] == [f"{name}_ncpn" for name in names]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_runs_cut_short(config, data, tmp_path):
    """Train, evaluate and, where there are claims, stand beside a row of them."""
    name = config.parent.name
    source = read_toml(config).data.name
    run = tmp_path / "run"
    where = ["--data.folder", str(data / source)]
    if read_toml(config).data.cache is not None:
        where += ["--data.cache", str(tmp_path / "cache")]
    assert main(["train", "--config", str(config), "--out", str(run), *where, *CUT_SHORT.split()]) == 0
    shape = {"celeba64": [3, 64, 64], "imagenet64": [3, 64, 64], "cifar10": [3, 32, 32], "cifar16": [3, 16, 16]}
    shape["mnist"] = [1, 16, 16]
    assert json.loads((run / "report.json").read_text())["data"]["shape"] == shape[name.removesuffix("_ncpn")]
    claims = EXAMPLES / name / "claims.json"
    rows = json.loads(claims.read_text())["rows"] if claims.exists() else {None: {}}
    for row in [*rows][:1]:
        beside = [] if row is None else ["--claims", str(claims), "--row", row]
        few = ["--images", "2", "--curve-images", "0", "--ood-images", "2", "--ood", str(data / "SVHN")]
        assert main(["evaluate", str(run), *few, *beside]) == 0
        report = json.loads((run / "evaluation" / "report.json").read_text())
        for claim in report.get("claims", []):
            assert not claim["comparable"]
            assert claim["why"]
            assert claim["ours"] is not None or claim["quantity"] == "FID"


@pytest.mark.parametrize("name", ["celeba64_ncpn", "cifar10_ncpn", "imagenet64_ncpn"])
def test_papers_networks_have_the_papers_size(name):
    config = read_toml(EXAMPLES / name / "config.toml")
    eager = replace(config, model=replace(config.model, compile=False))  # importing a compiler takes its time
    density = build_density(eager, DataKind((3, 32, 32), 256))
    assert 73.0e6 < sum(p.numel() for p in density.parameters()) < 74.0e6
    assert config.model.settings.dropout == (0.25 if name == "cifar10_ncpn" else 0.0)
    assert config.noise.std_in_levels == 10.0


def test_official_hyper_parameters_are_those_of_pixel_cnn():
    """What train.py of github.com/openai/pixel-cnn has, typed a second time; the paper's dropout."""
    config = read_toml(EXAMPLES / "cifar10_ncpn" / "official.toml")
    optim, model = config.optim, config.model.settings
    assert [optim.learning_rate_at(i) for i in (0, 1, 500_000)] == pytest.approx(
        [1e-3, 9.99995e-4, 8.20848e-5], rel=1e-5
    )
    assert (optim.batch_size, optim.init_examples, optim.ema) == (8 * 12, 100, 0.9995)
    assert (optim.beta1, optim.beta2) == (0.95, 0.9995)
    assert (model.weight_norm, model.dropout, model.preset) == (True, 0.25, "paper")


def test_claims_are_the_papers():
    """Numbers of Tables 1, 3 and 4 that were typed a second time, from the paper."""
    names = ("cifar10", "imagenet64", "celeba64")
    files = [EXAMPLES / f"{name}_ncpn" / "claims.json" for name in names]
    cifar, imagenet, celeba = (json.loads(file.read_text())["rows"] for file in files)
    table = {row: [*tables["Table 1"].values()] for row, tables in cifar.items() if "Table 1" in tables}
    assert table == {
        "NCPN (ML)": [46.72, 2.91, 3.83, 3.99],
        "NCPN (NCML-VE)": [32.71, 2.87, 3.75, 3.95],
        "NCPN (NCML-subVP)": [23.42, 2.95, 3.69, 3.94],
        "NCPN (NCML-VP)": [12.09, 3.20, 3.62, 3.91],
        "VDM": [7.41, 2.49, 3.75, 3.97],
        "ScoreFlow": [5.40, 2.90, 3.82, 3.99],
        "VDVAE": [2.84, 3.90, 4.10],
        "Flow++": [3.09, 3.86, 4.08],
        "DenseFlow": [48.15, 2.98, 3.80, 4.02],
        "PixelCNN++": [55.72, 2.92, 3.84, 4.01],
        "PixelSNAIL": [36.62, 2.85, 3.83, 3.99],
        "Sparse Transformer": [37.50, 2.80, 3.82, 3.98],
    }
    assert [[*t["Table 1"].values()] for t in imagenet.values()] == [
        [3.49, 3.68, 3.88], [3.32, 3.67, 3.85], [3.36, 3.66, 3.82], [3.43, 3.63, 3.79],
        [3.40, 3.76, 3.88], [3.52, 3.66, 3.82], [3.69, 3.82, 3.99], [3.35, 3.68, 3.85], [3.52, 3.84, 4.00],
        [3.44, 3.73, 3.89],
    ]  # fmt: skip
    others = {row: [*tables["Table 2"].values()] for row, tables in cifar.items() if "Table 2" in tables}
    assert others == {
        "PixelCNN++": [0.32, 0.0, 1.0], "GLOW": [0.24, 0.0, 1.0], "EBM": [0.63, 0.30, 1.0], "AR-CSM": [0.68, 0.57, 0.95]
    }  # fmt: skip
    for file in files:
        for row in json.loads(file.read_text())["rows"]:
            numbers, _, bound = read_claims(file, row)
            assert numbers
            assert bound == (row in {"VDM", "ScoreFlow", "VDVAE", "Flow++", "DenseFlow"})
    assert [[*t["Table 3"].values()] for t in celeba.values()] == [
        [2.25, 3.72, 4.35], [2.22, 3.63, 4.21], [2.31, 3.44, 3.98], [2.48, 3.14, 3.67]
    ]  # fmt: skip
    auroc = [v for tables in cifar.values() for k, v in tables.items() if "4" in k]
    assert [[*a.values()] for a in auroc] == [[0.35, 0.1, 1.0], [0.43, 0.56, 1.0], [0.65, 0.59, 1.0], [0.74, 0.68, 1.0]]


def test_the_ablation_runs(data, tmp_path):
    """All variants, two steps each."""
    script = EXAMPLES / "cifar16_ncpn" / "ablation.py"
    arguments = ["--data", data / "folder", "--out", tmp_path, "--steps", "1", "--images", "2"]
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    variants = json.loads((tmp_path / "ablation.json").read_text())["variants"]
    assert len(variants) == 9
    bits = {v["variant"]: v["results"] for v in variants}
    assert all(set(r) >= {"pi = 0", "pi = 0.5", "pi = 1"} for r in bits.values())
    assert "at 5 levels" in bits["T at 5 levels"]
    assert "at 5 levels" not in bits["T at 2 levels"]
    means = [r["pi = 0"]["mean"] for r in bits.values()]
    assert len(set(means)) >= 5  # the variants do differ, after a single step


def test_commands_of_the_readmes_exist():
    """Every option that an example's README mentions is known to the command line."""
    text = "".join(p.read_text() for p in EXAMPLES.glob("*/README.md")) + (EXAMPLES / "README.md").read_text()
    options = set(re.findall(r"(--(?:data|model|noise|optim|run)\.[a-z-]+)", text))
    assert {"--data.folder", "--noise.process", "--noise.times", "--model.classes"} <= options
    audio = ["--data.name", "audio", "--data.folder", "x"]
    chosen = (["train"], ["train", "--model.name", "causal-transformer", *audio], ["evaluate"])
    commands = [[sys.executable, "-m", "ncml.cli", *words, "--help"] for words in chosen]
    helped = "".join(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    assert [option for option in options if option not in helped] == []


def test_the_table_of_the_gallery_names_every_program():
    text = (EXAMPLES / "README.md").read_text()
    programs = [path.name for path in sorted((EXAMPLES / "gallery").glob("*.py"))]
    assert re.findall(r"^\| \[(\S+)\]\(gallery/\1\) \| \d+ s \|", text, re.MULTILINE) == programs


def test_the_comparison_of_models_runs(tmp_path):
    """Every kind of model, trained both ways, a step or two each."""
    script, out = EXAMPLES / "models_on_digits.py", tmp_path / "models.json"
    arguments = ["--out", str(out), "--seeds", "1", "--images", "8", "--share", "0.001"]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert [(r["model"], r["method"], r["exact"]) for r in runs] == [
        (model, method, model != "maf") for model in ("made", "ncpn", "maf") for method in ("ml", "ncml")
    ]


# Recordings.


def soundfont(names: dict[str, tuple[int, int, list[int]]]) -> bytes:
    """A SoundFont 2 file of samples by name: rate, kind and numbers."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    pool, headers = b"", b""
    for name, (rate, kind, values) in names.items():
        start = len(pool) // 2
        pool += struct.pack(f"<{len(values)}h", *values)
        fields = (start, len(pool) // 2, 0, 0, rate, 60, 0, 0, kind)
        headers += struct.pack("<20s5IBbHH", name.encode(), *fields)
        pool += bytes(92)  # the specification's 46 zeros
    headers += struct.pack("<20s5IBbHH", b"EOS", *[0] * 9)
    parts = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"odd"))
    parts += chunk(b"LIST", b"sdta" + chunk(b"smpl", pool)) + chunk(b"LIST", b"pdta" + chunk(b"shdr", headers))
    return chunk(b"RIFF", b"sfbk" + parts)


def script(name: str) -> dict[str, object]:
    return runpy.run_path(str(EXAMPLES / "audio_transformer" / name))


def test_recordings_out_of_a_soundfont(tmp_path, capsys):
    """Right channels, other names and short ones stay out; what is written has the rate, loudness and pitch."""
    rate, tone = 32_000, 1000.0
    sine = [round(9000 * math.sin(2 * math.pi * tone * i / rate)) for i in range(rate)]
    names = {f"Flute {i}(L)": (rate, 4, sine) for i in range(11)}
    names |= {"Flute 0(R)": (rate, 2, sine), "Strings E3R": (rate, 1, sine), "Gun": (rate, 1, sine)}
    names |= {"Tuba F#3": (rate, 1, sine[:1000]), "Cello C#4(L)": (44_100, 4, sine), "Oboe": (rate, 0x8001, sine)}
    (tmp_path / "a.sf2").write_bytes(soundfont(names))
    main_of = script("soundfont.py")["main"]
    main_of([str(tmp_path / "a.sf2"), str(tmp_path / "out")])
    assert "12 of 14 recordings" in capsys.readouterr().out
    assert [p.name for p in sorted((tmp_path / "out" / "test").iterdir())] == [
        "000_Flute_0_L.wav",
        "010_Flute_10_L.wav",
    ]
    source = AudioSource(folder=tmp_path / "out", window=1000)
    train = source.load(train=True)
    assert (train.rate, len(train)) == (8000, 9 * 7 + 5)  # 0.95 s each, and 0.67 s of the last
    x = train.series[: 7 * 1000, 0].double() - 2**15
    assert float(x.square().mean().sqrt()) == pytest.approx(4000, rel=0.01)
    for i, expected in ((0, tone), (-5000, tone * 44_100 / rate)):
        part = train.series[i:, 0][:5000].double()
        spectrum = torch.fft.rfft(part - part.mean()).abs()
        assert int(spectrum.argmax()) * 8000 / 5000 == pytest.approx(expected, abs=1.7)
    (tmp_path / "b.sf2").write_bytes(soundfont(names)[:-2000])
    for path, message in ((tmp_path / "b.sf2", "the file is cut"), (EXAMPLES / "README.md", "expected a SoundFont 2")):
        with pytest.raises(SystemExit, match=message):
            main_of([str(path), str(tmp_path / path.stem)])


def test_the_audio_configuration_runs_and_is_compared(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(2):
            x = torch.randint(-9000, 9000, (600,), generator=torch.Generator().manual_seed(i)).short()
            write_wav(tmp_path / "data" / split / f"{i}.wav", x.numpy(), 8000)
    run = str(tmp_path / "run")
    config = ["--config", str(EXAMPLES / "audio_transformer" / "config.toml"), "--data.folder", str(tmp_path / "data")]
    short = "--optim.steps 2 --run.validate-images 2 --run.accelerator cpu --run.threads 1 --model.width 8"
    assert main(["train", "--out", run, *config, *short.split(), "--optim.batch-size", "2"]) == 0
    assert main(["sample", run, "--images", "2", "--seconds", "0.05", "--noise", "0"]) == 0
    script("spectra.py")["main"]([f"{run}/samples-noise0", str(tmp_path / "data" / "test")])
    said = capsys.readouterr().out
    assert re.search(r"2 drawn and 2 real recordings: \d+\.\d dB apart", said)
    assert (tmp_path / "run" / "samples-noise0" / "spectra.png").stat().st_size > 1000


def test_spectra_are_apart_by_what_is_known():
    """White noise against itself, and against noise without its upper half: 10 log10 of the power there."""
    generator, distance = np.random.default_rng(0), script("spectra.py")["distance"]
    white = [generator.normal(size=8000) for _ in range(8)]
    assert distance(white, [3.0 * x for x in white]) < 1e-9  # loudness is not compared
    assert distance(white[::2], white[1::2]) < 0.5
    lines = np.fft.rfft(white, axis=1)
    lines[:, 2000:] *= 0.1
    darker = [*np.fft.irfft(lines, axis=1)]
    # Power 1/2 + 1/200 in all: +2.97 dB below and -17.03 above the edge.
    assert distance(white, darker) == pytest.approx(math.sqrt((2.97**2 + 17.03**2) / 2), abs=0.4)


def recording(folder, name, frames, rate=8000, channels=1, kind="i2"):
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(frames).integers(-90, 90, (frames, channels)) * (100 if kind == "i2" else 1)
    write_wav(folder / name, x.astype(kind), rate)


@pytest.mark.parametrize(
    ("drawn", "real", "message"),
    [
        ([300, 300], [300], "real: got one recording; expected two"),
        ([300, 255], [300, 300], "1.wav: got 255 samples; expected at least 256"),
        ([300], [300, (300, 16_000)], "1.wav: got 16000 Hz; expected 8000, as .*0.wav"),
        ([(300, 16_000)], [300, 300], "drawn: got 16000 Hz; expected 8000, as in .*real"),
    ],
)
def test_spectra_refuse_recordings_that_cannot_be_compared(tmp_path, drawn, real, message):
    for folder, sizes in (("drawn", drawn), ("real", real)):
        for i, size in enumerate(sizes):
            recording(tmp_path / folder, f"{i}.wav", *(size if isinstance(size, tuple) else (size,)))
    with pytest.raises(SystemExit, match=message):
        script("spectra.py")["main"]([str(tmp_path / "drawn"), str(tmp_path / "real")])


def test_windows_of_recordings_for_the_comparison(tmp_path):
    """The last window is one of them, a file of one window has it, and other kinds of files are refused."""
    windows = runpy.run_path(str(EXAMPLES / "sequences" / "problems.py"))["windows"]
    for frames, expected in ((64, 1), (191, 1), (192, 2), (193, 2), (63, 0)):
        recording(tmp_path, f"{frames}.wav", frames)
        if expected:
            found, rate = windows([tmp_path / f"{frames}.wav"], 64)
            assert (found.shape, rate) == ((expected, 64), 8000)
    x = open_wav(tmp_path / "192.wav").read()[:, 0]
    found, _ = windows([tmp_path / "192.wav"], 64)
    assert torch.equal(found, torch.from_numpy(np.stack([x[:64], x[128:]])).float() / 8000.0)
    recording(tmp_path, "stereo.wav", 200, channels=2)
    recording(tmp_path, "bytes.wav", 200, kind="i1")
    recording(tmp_path, "faster.wav", 200, rate=16_000)
    for name, message in (
        ("stereo", "2 channels of 16 bits"),
        ("bytes", "1 channels of 8 bits"),
        ("faster", "at 16000 Hz"),
        ("63", "without a window of 64"),
    ):
        first = [] if name == "63" else [tmp_path / "192.wav"]
        with pytest.raises(SystemExit, match=message):
            windows([*first, tmp_path / f"{name}.wav"], 64)


def test_images_of_a_folder_are_compared_in_an_order_without_classes(tmp_path, monkeypatch):
    for split, count in (("train", 20), ("test", 6)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (i, 100 * (name == "dog"), 0)).save(tmp_path / split / name / f"{i}.png")
    monkeypatch.syspath_prepend(str(EXAMPLES / "images"))
    examples = runpy.run_path(str(EXAMPLES / "images" / "run.py"))["examples"]
    config = TrainConfig(data=ImageSource("folder", tmp_path, size=32, pool=2))
    train, test = examples(config)
    assert [len(part) for part in (train, test)] == [40, 12]
    for part in (train, test):
        assert set(part.labels[: len(part) // 2].tolist()) == {0, 1}


def test_the_comparison_on_images_runs(tmp_path):
    """Cut short, from a folder of photographs to the table."""
    for split, count in (("train", 20), ("test", 6)):
        for name in ("cat", "dog"):
            (tmp_path / "folder" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator())
                Image.fromarray(pixels.numpy()).save(tmp_path / "folder" / split / name / f"{i}.png")
    arguments = [
        "--data",
        "cifar16",
        "--folder",
        str(tmp_path / "folder"),
        "--model",
        "flow",
        "--seeds",
        "0",
        "--quick",
    ]
    command = [sys.executable, str(EXAMPLES / "images" / "run.py"), *arguments, "--out", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = runpy.run_path(str(EXAMPLES.parent / "docs" / "results" / "images.py"))
    data = page["collect"](tmp_path / "runs", {})
    ml, ncml = data["cifar16-flow"]
    assert "two-part" not in ml
    assert ncml["two-part"]["solver"] in ncml["parts"][0]
    # Four steps have learnt nothing: a model without an idea costs 8 bits, and its start somewhat more.
    assert 7.5 < ml["bits per dim"] < 10.0
    assert "| NCML, in two parts |" in page["page"](data, "(tables)")
    scored = {"cifar16-flow": [{**ncml, "way": "scored"}]}  # alone it has a page as well
    assert "| NCML and score matching, in two parts |" in page["page"](scored, "(tables)")
    with pytest.raises(SystemExit, match=r"cifar16-flow: got runs of \[4, 1500\] steps"):
        page["collect"](tmp_path / "runs", {"cifar16-flow": [{**ncml, "seed": 1, "steps": 1500}]})
