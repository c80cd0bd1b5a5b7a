"""Compare recordings by their average log spectra, and draw spectrograms.

    python spectra.py runs/audio/samples-noise0 audio/test

The distance is the root mean square, over frequencies, of the difference of mean log power spectra, in dB. Beside it:
the distance between two halves of the real recordings, which is what chance alone makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ncml.data import open_wav

FRAME = 256


def read(folder: Path) -> tuple[list[np.ndarray], int]:
    """The first channels of the WAV files of a folder, in units of full scale, and their one rate."""
    files = [open_wav(path) for path in sorted(folder.glob("*.wav"))]
    if not files:
        raise SystemExit(f"{folder}: got no WAV files")
    for file in files:
        if file.rate != files[0].rate:
            raise SystemExit(
                f"{file.path}: got {file.rate} Hz; expected {files[0].rate}, as {files[0].path}; resample it"
            )
        if file.frames < FRAME:
            raise SystemExit(f"{file.path}: got {file.frames} samples; expected at least {FRAME}, those of a frame")
    full = [1.0 if file.floating else 2.0 ** (file.bits - 1) for file in files]
    return [file.read()[:, 0] / size for file, size in zip(files, full, strict=True)], files[0].rate


def spectrogram(x: np.ndarray) -> np.ndarray:
    """Log power in dB, ``(frames, frequencies)``, of half overlapping Hann windows of a recording of one loudness."""
    x = x / max(float(np.sqrt(np.mean(x**2))), 1e-9)
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME)[:: FRAME // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2 / FRAME
    return 10.0 * np.log10(power + 1e-6)


def average(recordings: list[np.ndarray]) -> np.ndarray:
    """The mean log spectrum; every recording counts alike."""
    return np.mean([spectrogram(x).mean(0) for x in recordings], axis=0)


def distance(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Between two sets of recordings, in dB."""
    return float(np.sqrt(np.mean((average(first) - average(second)) ** 2)))


def draw(path: Path, named: dict[str, list[np.ndarray]], rate: int) -> None:
    """Spectrograms of the first four recordings of each set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(named), 4, figsize=(12, 2.6 * len(named)), squeeze=False, layout="constrained")
    for row, (name, recordings) in zip(axes, named.items(), strict=True):
        for axis, x in zip(row, recordings, strict=False):
            extent = (0.0, len(x) / rate, 0.0, rate / 2000)
            axis.imshow(spectrogram(x).T, origin="lower", aspect="auto", extent=extent, vmin=-50, vmax=20, cmap="magma")
            axis.set(title=name, xlabel="seconds", ylabel="kHz")
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawn", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument(
        "--figure", type=Path, help="where spectrograms go; spectra.png beside the drawn ones if not given"
    )
    args = parser.parse_args(arguments)
    (drawn, rate), (real, real_rate) = read(args.drawn), read(args.real)
    if rate != real_rate:
        raise SystemExit(f"{args.drawn}: got {rate} Hz; expected {real_rate}, as in {args.real}; resample them")
    if len(real) < 2:
        raise SystemExit(f"{args.real}: got one recording; expected two or more, whose halves are compared")
    split = distance(real[::2], real[1::2])
    largest = max(float(np.abs(x).max()) for x in drawn)
    apart = distance(drawn, real)
    print(f"average log spectra of {len(drawn)} drawn and {len(real)} real recordings: {apart:.1f} dB apart")
    print(f"two halves of the real ones: {split:.1f} dB; largest number drawn: {largest:.2f} of full scale")
    path = args.figure or args.drawn / "spectra.png"
    draw(path, {"drawn": drawn, "real": real}, rate)
    print(f"spectrograms: {path}")


if __name__ == "__main__":
    main()
