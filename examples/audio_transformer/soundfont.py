"""Recordings out of a SoundFont 2 file, as a folder of WAV files to train on.

    apt-get install fluid-soundfont-gm     # or any other SoundFont; this one is free (MIT licence)
    python soundfont.py /usr/share/sounds/sf2/FluidR3_GM.sf2 audio

Each recording is resampled to one rate (a polyphase filter), its attack is cut, what follows is cut to at most a few
seconds, scaled to one loudness, and rounded to 16 bits; every tenth goes to ``test``. Needs scipy.
"""

from __future__ import annotations

import argparse
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ncml.data import write_wav

SUSTAINED = (
    r"(Soprano|Tenor|Flute|Accordian|Violin|Cello|Viola|Oboe|Clarinet|Strings|Harpsichord|French Horns|Church Organ"
    r"|Ahh Choir|Tuba|Harp) .*|trombone.*"
)
"""Instruments and voices with sustained tones, as Debian's fluid-soundfont-gm names them."""

RIGHT, ROM = 2, 0x8000  # kinds of samples in the header
RIGHT_NAME = re.compile(r"[^A-Za-z]R\)?$")  # some right channels are declared to be mono
LONGEST = 400
"""Of a ratio of rates: 8,000 to 44,100 Hz is 41 : 226 within a tenth of a cent, with a filter of half the length."""

HEADER = struct.Struct("<20s5IBbHH")


@dataclass(frozen=True)
class Sample:
    """A recording: its name, rate and kind, and its 16-bit numbers."""

    name: str
    rate: int
    kind: int
    values: np.ndarray


def chunks(raw: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Name and contents of the chunks that follow each other; lists are named by their type."""
    offset = 0
    while offset + 8 <= len(raw):
        name, size = struct.unpack_from("<4sI", raw, offset)
        body = raw[offset + 8 : offset + 8 + size]
        if len(body) < size:
            raise SystemExit(f"{name!r}: got {len(body)} bytes; expected {size}: the file is cut")
        yield (bytes(body[:4]), body[4:]) if name in (b"RIFF", b"LIST") else (name, body)
        offset += 8 + size + size % 2


def samples(path: Path) -> list[Sample]:
    """All recordings of a SoundFont 2 file, in its order (specification 2.04, sections 6 and 7.10)."""
    raw = path.read_bytes()
    if raw[:4] != b"RIFF" or raw[8:12] != b"sfbk":
        raise SystemExit(f"{path}: got no RIFF sfbk; expected a SoundFont 2 file")
    parts = dict(chunks(dict(chunks(memoryview(raw)))[b"sfbk"]))
    pool = np.frombuffer(dict(chunks(parts[b"sdta"]))[b"smpl"], dtype="<i2")
    found = []
    for fields in HEADER.iter_unpack(dict(chunks(parts[b"pdta"]))[b"shdr"]):
        name, start, end, _, _, rate, _, _, _, kind = fields
        name = name.split(b"\0")[0].decode("latin-1").strip()
        if name != "EOS" and not kind & ROM:
            found.append(Sample(name, rate, kind, pool[start:end]))
    return found


def prepared(sample: Sample, rate: int, attack: float, seconds: float, rms: float) -> np.ndarray | None:
    """A recording as it is written; None if there is nothing behind its attack, or only silence."""
    from scipy.signal import resample_poly

    ratio = Fraction(rate, sample.rate).limit_denominator(LONGEST)
    x = resample_poly(sample.values.astype(np.float64), ratio.numerator, ratio.denominator)
    x = x[round(attack * rate) :][: round(seconds * rate)]
    size = math.sqrt(float(np.mean(x**2))) if len(x) else 0.0
    if size == 0.0:
        return None
    return np.clip(np.round(x * (rms / size)), -(2**15), 2**15 - 1).astype(np.int16)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("soundfont", type=Path)
    parser.add_argument("folder", type=Path, help="where train and test go; must not have them yet")
    parser.add_argument("--names", default=SUSTAINED, help="regular expression of the recordings to take")
    parser.add_argument("--rate", type=int, default=8000, help="samples per second")
    parser.add_argument("--attack", type=float, default=0.05, help="seconds cut at the beginning")
    parser.add_argument("--seconds", type=float, default=2.0, help="at most so many are kept")
    parser.add_argument("--shortest", type=float, default=0.2, help="recordings that are shorter are left out")
    parser.add_argument("--rms", type=float, default=4000.0, help="root mean square that each is scaled to")
    args = parser.parse_args(arguments)
    for split in ("train", "test"):
        (args.folder / split).mkdir(parents=True)
    every = [s for s in samples(args.soundfont) if s.kind != RIGHT and not RIGHT_NAME.search(s.name)]
    chosen = [sample for sample in every if re.fullmatch(args.names, sample.name)]
    if not chosen:
        raise SystemExit(f"{args.soundfont}: got {len(every)} recordings; expected names like {args.names!r}")
    written = clipped = 0
    for sample in chosen:
        x = prepared(sample, args.rate, args.attack, args.seconds, args.rms)
        if x is None or len(x) < args.shortest * args.rate:
            continue
        clipped += int(np.abs(x.astype(int)).max() >= 2**15 - 1)
        name = re.sub(r"[^A-Za-z0-9]+", "_", sample.name.replace("#", "s")).strip("_")
        write_wav(args.folder / ("train" if written % 10 else "test") / f"{written:03}_{name}.wav", x, args.rate)
        written += 1
    print(
        f"{written} of {len(every)} recordings (no right channels) in {args.folder}; {len(chosen) - written} too short "
        f"or silent, {len(every) - len(chosen)} of other names; {clipped} reach the largest number and may be clipped"
    )


if __name__ == "__main__":
    main()
