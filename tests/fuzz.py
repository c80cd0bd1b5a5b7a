"""Damaged files of every kind that ncml reads: ``python -m tests.fuzz --cases 10000 --out report.json``.

Each case is a sound file, mutated (bits flipped, cut, spliced, its header edited, or changed inside its compression or
its checksums), and read in a process whose memory is limited. It must be read, or refused with an NCMLError; a
checkpoint moreover must give the very tensors that were saved. Whatever else happens (another error, a crash, no end)
is a finding: it is in the report, and the file is kept beside it. Cases are functions of the seed, kind and number.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ncml.data import open_wav, read_arrays, read_cifar10, read_idx, read_image_folder, write_wav
from ncml.errors import NCMLError
from ncml.report import environment, write_report
from ncml.training import open_checkpoint, read_metrics, read_toml
from ncml.training.checkpoint import save_checkpoint

HEADROOM = 2**29  # bytes that a reader may take besides what is there before it
CPU_SECONDS = 30  # of one case; more is no end
KEPT = 5  # findings of a kind whose files are kept
INTERESTING = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\1\0", b"\x80\0\0\0")
EXAMPLES = Path(__file__).parents[1] / "examples"

Wrap = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Args:
        files: Sound files by their names.
        read: Takes the path of one; its result is compared with that of the sound file if ``exact``.
        inside: Takes the contents of a sound file to parts that are mutated and put together again by a function.
        beside: Other files that the reader needs.
        exact: Whether a file that is read must give what the sound one gives.
    """

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    inside: Callable[[bytes], tuple[bytes, Wrap]] | None = None
    beside: dict[str, bytes] = field(default_factory=dict)
    exact: bool = False


def mutated(raw: bytes, draw: random.Random, other: bytes) -> bytes:
    """A file with one to eight faults."""
    raw = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        place, what = draw.randrange(len(raw) + 1), draw.randrange(7)
        if what == 0:
            del raw[place:]
        elif what == 1:
            raw[place:place] = draw.randbytes(draw.randrange(1, 9))
        elif what == 2:
            del raw[place : place + draw.randrange(1, 17)]
        elif what == 3:  # a part of another file, or of this one, over this one
            start = draw.randrange(len(other) + 1)
            part = other[start : start + draw.randrange(1, 65)]
            raw[place : place + len(part)] = part
        elif what == 4:  # headers
            word = draw.choice(INTERESTING)
            place = draw.randrange(min(len(raw), 128) + 1)
            raw[place : place + len(word)] = word
        elif raw:
            raw[min(place, len(raw) - 1)] ^= 1 << draw.randrange(8)
    return bytes(raw)


# Sound files.


def _png_chunks(raw: bytes) -> tuple[bytes, Wrap]:
    """The chunks of a PNG file with their checksums mended after the mutation."""

    def wrap(body: bytes) -> bytes:
        stream, out = io.BytesIO(body), [raw[:8]]
        while len(head := stream.read(8)) == 8:
            data = stream.read(min(struct.unpack(">I", head[:4])[0], 2**20))
            stream.read(4)
            out.append(struct.pack(">I", len(data)) + head[4:] + data + struct.pack(">I", zlib.crc32(head[4:] + data)))
        return b"".join(out)

    return raw[8:], wrap


def _member(raw: bytes) -> tuple[bytes, Wrap]:
    """The first array of a .npz file, put into a sound archive again."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    name = next(iter(members))

    def wrap(body: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in members.items():
                file.writestr(member, body if member == name else content)
        return stream.getvalue()

    return members[name], wrap


def _images() -> dict[str, bytes]:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {"rgb": rgb, "grey": rgb.convert("L"), "palette": rgb.convert("P"), "alpha": rgb.convert("RGBA")}
    options: list[tuple[str, str, dict[str, Any]]] = [
        *((f"{mode}.png", mode, {"format": "PNG"}) for mode in modes),
        *((f"{mode}.tif", mode, {"format": "TIFF"}) for mode in modes),
        *((f"{c}.tif", "rgb", {"format": "TIFF", "compression": f"tiff_{c}"}) for c in ("lzw", "adobe_deflate")),
        ("turned.jpg", "rgb", {"format": "JPEG", "exif": exif}),
        ("progressive.jpg", "rgb", {"format": "JPEG", "progressive": True}),
        ("lossless.webp", "rgb", {"format": "WEBP", "lossless": True}),
        ("alpha.webp", "alpha", {"format": "WEBP"}),
        ("rgb.bmp", "rgb", {"format": "BMP"}),
        ("palette.gif", "palette", {"format": "GIF"}),
        ("rgb.ppm", "rgb", {"format": "PPM"}),
    ]
    files = {}
    for name, mode, how in options:
        stream = io.BytesIO()
        modes[mode].save(stream, **how)
        files[name] = stream.getvalue()
    return files


def _recordings(folder: Path) -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    tones = {"int8.wav": np.int8, "int16.wav": np.int16, "float32.wav": np.float32}
    for name, kind in tones.items():
        write_wav(folder / name, (draw.normal(size=(40, 2)) * 20).astype(kind), 8000)
    return {name: (folder / name).read_bytes() for name in tones}


def _checkpoint(folder: Path) -> dict[str, bytes]:
    draw = torch.Generator().manual_seed(0)
    state = {"a.weight": torch.randn(4, 3, generator=draw), "b": torch.arange(5)}
    path = save_checkpoint(folder / "step_00000001", 1, {"density": {"class": "Own"}, "x": [1, 2.5]}, state, state)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _bytes_of(save: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _opened(path: Path) -> Any:
    checkpoint = open_checkpoint(path.parent)
    tensors = {**checkpoint.model(), **{f"training {k}": v for k, v in checkpoint.training().items()}}
    return checkpoint.step, checkpoint.info, {k: (v.dtype, v.tolist()) for k, v in tensors.items()}


def _folder(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_image_folder(path.parent, size=4)


def kinds() -> dict[str, Kind]:
    """Every kind of file; a new reader is an entry."""
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 5, 4, 3) + bytes(range(60))
    records = b"".join(bytes([label]) + bytes(range(256)) * 12 for label in (3, 9))
    x = np.random.default_rng(0).normal(size=(12, 3))
    images = _images()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, recordings = _checkpoint(Path(folder)), _recordings(Path(folder))
    arrays = {
        "a.npy": _bytes_of(lambda s: np.save(s, x)),
        "k.npy": _bytes_of(lambda s: np.save(s, np.arange(24).reshape(12, 2))),
    }
    archives = {
        "a.npz": _bytes_of(lambda s: np.savez(s, x_train=x, x_test=x[:2])),
        "c.npz": _bytes_of(lambda s: np.savez_compressed(s, x=x, y=np.arange(12) % 3)),
    }
    log = "".join(json.dumps({"step": i, "loss": i / 3, "validation": {"bits": 1.0}}) + "\n" for i in range(9))
    return {
        "checkpoint": Kind(checkpoint, _opened, beside=checkpoint, exact=True),
        "idx": Kind({"a": idx}, read_idx),
        "idx.gz": Kind({"a.gz": gzip.compress(idx, mtime=0)}, read_idx, lambda raw: (idx, gzip.compress)),
        "cifar10": Kind({"a.bin": records}, read_cifar10),
        "npy": Kind(arrays, read_arrays),
        "npz": Kind(archives, read_arrays, _member),
        "png": Kind({k: v for k, v in images.items() if k.endswith(".png")}, _folder, _png_chunks),
        "image": Kind({k: v for k, v in images.items() if not k.endswith(".png")}, _folder),
        "wav": Kind(recordings, lambda path: open_wav(path).read()),
        "toml": Kind({f"{p.parent.name}.toml": p.read_bytes() for p in EXAMPLES.glob("*/config.toml")}, read_toml),
        "metrics": Kind({"metrics.jsonl": log.encode()}, read_metrics),
    }


# One case after another.


def case(kind: Kind, name: str, seed: int, i: int) -> tuple[str, bytes]:
    """The i-th damaged file of a kind."""
    draw = random.Random(f"{seed} {name} {i}")
    file = draw.choice(sorted(kind.files))
    raw, other = kind.files[file], kind.files[draw.choice(sorted(kind.files))]
    if kind.inside is not None and draw.random() < 0.5:
        body, wrap = kind.inside(raw)
        return file, wrap(mutated(body, draw, body))
    return file, mutated(raw, draw, other)


def attempt(kind: Kind, folder: Path, file: str, raw: bytes, sound: Any) -> str:
    """Read one file: "read", "refused", or what went wrong. Nothing is left of it."""
    (folder / file).write_bytes(raw)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        found = kind.read(folder / file)
    except NCMLError:
        return "refused"
    except Exception as error:  # what the driver looks for
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        (folder / file).unlink()
        if file in kind.beside:
            (folder / file).write_bytes(kind.beside[file])
    if kind.exact and found != sound:
        return "another value than the sound file's"
    return "read"


def _work(kind: Kind, name: str, seed: int, cases: range, pipe: int) -> None:
    """In a process of its own: the result of each case as a line."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # no end: the process dies, and its parent says so
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch,
        os.fdopen(pipe, "w") as lines,
    ):
        folder, sounds = Path(scratch), {}
        for file, raw in kind.beside.items():
            (folder / file).write_bytes(raw)
        for file, raw in kind.files.items():
            (folder / file).write_bytes(raw)
            sounds[file] = kind.read(folder / file)
            if file not in kind.beside:
                (folder / file).unlink()
        for i in cases:
            print(f"{i} begun", file=lines, flush=True)
            file, raw = case(kind, name, seed, i)
            print(f"{i} {attempt(kind, folder, file, raw, sounds[file])!r}", file=lines, flush=True)


def _results(kind: Kind, name: str, seed: int, cases: int) -> Iterator[tuple[int, str]]:
    """Number and result of every case; a process that dies is followed by another one."""
    start = 0
    while start < cases:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not use
            child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                _work(kind, name, seed, range(start, cases), writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        last = None
        with os.fdopen(reading) as lines:
            for line in lines:
                number, _, text = line.rstrip("\n").partition(" ")
                last = int(number) if text == "begun" else None
                if text != "begun":
                    yield int(number), text.strip("'\"")
                    start = int(number) + 1
        _, status = os.waitpid(child, 0)
        if last is not None:
            yield last, f"the process died (status {status})"
            start = last + 1
        elif status:
            raise RuntimeError(f"{name}: the sound files could not be read")


def fuzz(cases: int, seed: int = 0, only: tuple[str, ...] = (), keep: Path | None = None) -> dict[str, Any]:
    """So many cases of each kind; findings are named, and a few of their files kept in a folder."""
    report: dict[str, Any] = {"seed": seed, "cases": 0, "kinds": {}}
    for name, kind in kinds().items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        counts = {"cases": 0, "read": 0, "refused": 0}
        findings: list[dict[str, Any]] = []
        for i, result in _results(kind, name, seed, cases):
            counts["cases"] += 1
            if result in ("read", "refused"):
                counts[result] += 1
                continue
            file, raw = case(kind, name, seed, i)
            findings.append({"case": i, "file": file, "result": result})
            if keep is not None and len(findings) <= KEPT:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{i}-{file}").write_bytes(raw)
        report["kinds"][name] = {**counts, "findings": findings, "seconds": time.perf_counter() - start}
        report["cases"] += counts["cases"]
    report["findings"] = sum(len(kind["findings"]) for kind in report["kinds"].values())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = fuzz(args.cases, args.seed, tuple(args.only), args.out.with_suffix(".files"))
    write_report(args.out, {**report, "environment": environment()})
    for name, kind in report["kinds"].items():
        counts = f"{kind['cases']:,} cases: {kind['read']:,} read, {kind['refused']:,} refused"
        print(f"{name:<12}{counts}, {len(kind['findings'])} findings, {kind['seconds']:.0f} s")
        for finding in kind["findings"][:KEPT]:
            print(f"    {finding['case']} {finding['file']}: {finding['result']}")
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
