"""The data: smooth paths with an exact distribution, and recordings of instruments."""

from __future__ import annotations

import math
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SCALE = 8000.0  # of the recordings: their standard deviation becomes .5
HOP = 128
QUIET = 400.0  # windows of a smaller standard deviation are left out: notes decay


@dataclass(frozen=True)
class Problem:
    """Windows of one length, of order one.

    Args:
        name: What the files of its runs are called.
        length: Values of a window.
        draw: A fresh training batch of n windows, dequantised where the data are integers.
        train: Training windows, for the measures.
        validation: Windows on which everything is chosen.
        test: Windows of the last look.
        sigma_min: The smallest noise level of the continuous part of the times.
        covariance: Of the exact distribution, if there is one.
        rate: Samples per second, if it can be heard.
    """

    name: str
    length: int
    draw: Callable[[int, torch.Generator], Tensor]
    train: Tensor
    validation: Tensor
    test: Tensor
    sigma_min: float
    covariance: Tensor | None = None
    rate: int | None = None

    @property
    def limit(self) -> float:
        """Beyond this a window has left the range of the data: 1.05 times the largest training value."""
        return 1.05 * float(self.train.abs().max())

    def entropy(self, sigma: float) -> float | None:
        """Nats per value of the exact distribution with noise; what no model can go below."""
        if self.covariance is None:
            return None
        noisy = self.covariance + sigma**2 * torch.eye(self.length, dtype=torch.float64)
        return 0.5 * float(torch.linalg.slogdet(noisy).logabsdet) / self.length + 0.5 * math.log(2 * math.pi * math.e)


def smooth_paths(length: int, nugget: float, rows: tuple[int, int, int] = (20_000, 4000, 4000)) -> Problem:
    """Paths of a Gaussian process with a squared-exponential kernel of length 6 and ``nugget`` on its diagonal.

    ``rows`` are those of the parts for training, validation and test.
    """
    i = torch.arange(length, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((i[:, None] - i) / 6.0) ** 2) + nugget * torch.eye(length, dtype=torch.float64)
    root = torch.linalg.cholesky(kernel)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        # In double precision: the fine structure is lost in the last digits of single precision.
        return (torch.randn(n, length, generator=generator, dtype=torch.float64) @ root.T).float()

    parts = [draw(n, torch.Generator().manual_seed(seed)) for seed, n in zip((1001, 1002, 1003), rows, strict=True)]
    return Problem(f"paths-{nugget:g}", length, draw, *parts, sigma_min=0.005, covariance=kernel)


def recordings(length: int, folder: Path) -> Problem:
    """Windows of 16-bit recordings; every tenth training recording is the validation part."""
    files = sorted((folder / "train").glob("*.wav"))
    if not files:
        raise SystemExit(
            f"{folder}: no recordings, expected train/*.wav and test/*.wav; see the README beside this file"
        )
    train, rate = windows([f for i, f in enumerate(files) if i % 10 != 5], length)
    validation, _ = windows([f for i, f in enumerate(files) if i % 10 == 5], length)
    test, _ = windows(sorted((folder / "test").glob("*.wav")), length)

    def dequantised(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + (torch.rand(x.shape, generator=generator) - 0.5) / SCALE

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return dequantised(train[torch.randint(len(train), (n,), generator=generator)], generator)

    fixed = torch.Generator().manual_seed(1002)
    return Problem(
        "recordings",
        length,
        draw,
        train,
        dequantised(validation, fixed),
        dequantised(test, fixed),
        sigma_min=0.002,
        rate=rate,
    )


def windows(files: list[Path], length: int) -> tuple[Tensor, int]:
    """Windows of every recording, and their rate."""
    rows, rate = [], 0
    for file in files:
        with wave.open(str(file)) as sound:
            form = sound.getnchannels(), 8 * sound.getsampwidth(), sound.getframerate()
            if form[:2] != (1, 16) or rate not in (0, form[2]):
                raise SystemExit(
                    f"{file}: got {form[0]} channels of {form[1]} bits at {form[2]} Hz; expected one of 16 bits, "
                    f"all at the same rate; convert it"
                )
            rate = form[2]
            x = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32)
        rows += [x[i : i + length] for i in range(0, len(x) - length + 1, HOP) if x[i : i + length].std() > QUIET]
    if not rows:
        raise SystemExit(f"got {len(files)} recordings without a window of {length} samples that is loud enough")
    return torch.from_numpy(np.stack(rows)) / SCALE, rate


def problem(name: str, length: int, folder: Path | None) -> Problem:
    """The problem of a name: paths-1e-4, paths-1e-8 or recordings."""
    if name == "recordings":
        if folder is None:
            raise SystemExit("recordings: expected --folder FOLDER with train/*.wav and test/*.wav")
        return recordings(length, folder)
    return smooth_paths(length, float(name.removeprefix("paths-")))
