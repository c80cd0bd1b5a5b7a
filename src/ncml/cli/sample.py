"""``ncml sample`` and ``ncml complete``: samples from a trained model."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from torch import Tensor

from ncml.checks import check_count
from ncml.cli.common import (
    SAMPLERS,
    OpenRun,
    class_labels,
    draw_samples,
    long_enough,
    open_run,
    results_folder,
    sample_length,
    shows_progress,
    start_time,
    test_data,
    with_place,
)
from ncml.cli.words import number_of
from ncml.data import AudioSource, Windows, write_wav
from ncml.errors import ArgumentError, UnsupportedError
from ncml.evaluation import save_grid
from ncml.noise import GaussianProcess, Lattice
from ncml.report import environment, write_report
from ncml.sampling import EulerMaruyama
from ncml.training import in_blocks
from ncml.training.signals import StopSignals

__all__ = ["complete", "sample"]

STALE = {
    "sample": ("samples_[0-9]*.wav",),
    "complete": ("completion_[0-9]*_draw_[0-9]*.wav", "original_[0-9]*.wav", "completions_[0-9]*.wav"),
}
"""Recordings left by an earlier call, perhaps of more samples, or under the old names of completions."""


def sample(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    images: Annotated[int, tyro.conf.arg(aliases=["--n"])] = 16,
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None,
    noise: float | None = None,
    sampler: str = "euler-maruyama",
    steps: int = 64,
    length: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    threads: int | None = None,
) -> int:
    """Draw samples from a trained model at a noise level, then refine them until the noise is gone.

    Writes samples.npy (N x ...: integer levels for data on a lattice, else floats), sample.json, for images
    samples.png, and for recordings one WAV file per sample, at the rate of the data. A signal (such as Ctrl-C) stops
    after the current batch; a second one, seconds later, stops at once. What has been drawn by then is written.

    Args:
        run: Folder of the run, or of a checkpoint.
        out: Folder for the results; if not given, subfolder samples (or samples-noise0-cat, say) of the run's folder.
        images: Number of samples, whether images or anything else.
        label: Class by name or number, for a model with classes; if not given, all classes in turn.
        noise: Standard deviation of the noise to draw at, in levels if the data have a lattice, else in data units.
            0 for plain sampling; if not given, the most noise that the model was trained with.
        sampler: Method of refinement: euler-maruyama, heun, ddim,
            dpm-solver-2m, dpm-solver-sde, dpm-solver-2m-sde, er-sde, ancestral, langevin or metropolis.
        steps: Steps of refinement, each of one score evaluation (for heun, two).
            Models with a lattice take one more at the end, by Tweedie's formula.
        length: Number of positions of each sample, for sequences.
            Beyond the model's window, each further window continues from the last half of the one before.
        seconds: The same in seconds, for recordings.
        seed: The same seed, batch size and machine give the same samples, on any number of processes.
        batch_size: Number of samples to draw at a time.
        threads: Number of CPU threads; torch's default if not given.
            For a small model on a busy machine use 1: several would wait for one another.
    """
    check_count(images, "images")
    check_count(batch_size, "batch_size")
    start = time.perf_counter()
    check_count(steps, "steps")
    if sampler not in SAMPLERS:
        raise ArgumentError(f"sampler: got {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    opened = open_run(run, threads)
    density = long_enough(opened, sample_length(opened, length, seconds), "sample")
    labels = class_labels(opened, label, images)
    t_start = start_time(opened, noise)
    # A folder for each kind of samples: they are there to be compared.
    kind = "samples" + ("" if noise is None else f"-noise{noise:g}") + ("" if label is None else f"-{label}")
    kind += "" if sampler == "euler-maruyama" else f"-{sampler}"
    folder = results_folder(run, out, kind)
    process = opened.process
    with StopSignals() as signals:
        x = draw_samples(
            opened.fabric,
            density,
            process,
            opened.kind,
            images,
            labels=labels,
            t_start=t_start,
            steps=steps,
            sampler=sampler,
            seed=seed,
            batch_size=batch_size,
            progress=shows_progress(),
            signals=signals,
        )
    settings = {
        "images": images,
        "drawn": len(x),
        "class": label,
        "t_start": t_start,
        "noise": float(process.sigma(t_start)) / opened.unit if isinstance(process, GaussianProcess) else None,
        "noise_unit": "data" if opened.lattice is None else "levels",
        "sampler": sampler,
        "steps": steps,
        "length": density.event_shape[0] if opened.kind.is_sequence else None,
        "seed": seed,
        "batch_size": batch_size,
    }
    every_class = len(opened.kind.classes) if labels is not None and label is None else None
    _write(opened, folder, "sample", x, settings, time.perf_counter() - start, columns=every_class)
    return _status(opened, signals, len(x), images)


def complete(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    rows: int | None = None,
    images: int = 8,
    draws: int = 3,
    noise: float = 0.0,
    steps: int = 64,
    length: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data.folder", aliases=["--data.file"])] = None,
    threads: int | None = None,
) -> int:
    """Keep the first rows of test images, or positions of sequences, and draw the rest several times.

    Writes completions.npy, originals.npy and complete.json, which says which completion is which; for images
    completions.png, each row of which shows an image, what is kept of it, and its completions (paper, Figure 5); for
    recordings the WAV files original_K.wav and completion_K_draw_J.wav. Originals of sequences are as long as their
    completions if any of the test data are long enough, else windows. A signal (such as Ctrl-C) stops after the
    current four images or sequences; what has been completed by then is written.

    Args:
        run: Folder of the run, or of a checkpoint.
        out: Folder for the results; if not given, subfolder completions of the run's folder.
        rows: Number of rows of each image, or positions of each sequence, to keep; half if not given.
        images: Number of test images or sequences.
        draws: Number of completions of each.
        noise: Noise to draw at, in levels if the data have a lattice, else in data units.
            0 draws from the model of the data themselves, exactly. Above 0, noise is added to the kept rows,
            the rest is drawn below them, all of it is refined, and the kept rows are put back:
            what is drawn then fits their noisy version.
        steps: Steps of refinement, not counting a last one by Tweedie's formula.
        length: Positions of each completed sequence, as for ncml sample; a window if not given.
        seconds: The same in seconds, for recordings.
        seed: Seed of everything that is drawn.
        data_folder: Where the data are now, if they have moved.
        threads: Number of CPU threads; torch's default if not given.
            For a small model on a busy machine use 1: several would wait for one another.
    """
    check_count(images, "images")
    check_count(draws, "draws")
    start = time.perf_counter()
    check_count(steps, "steps")
    opened = open_run(run, threads)
    positions = sample_length(opened, length, seconds)
    completing = _need_completion(opened, positions)
    axis = 1 if opened.kind.is_sequence else 2  # of a batch: positions, or rows
    window = opened.kind.shape[axis - 1]
    most = min(window, positions or window)
    rows = most // 2 if rows is None else rows
    if not 0 <= rows <= most:
        of = "rows of an image" if axis == 2 else "positions" + (" of the model's window" if most == window else "")
        raise ArgumentError(
            f"rows: got {rows}; expected 0 to {most}: how many of the {most} {of} are kept; leave it out for half"
        )
    t_start = start_time(opened, noise)
    folder = results_folder(run, out, "completions")
    found = test_data(opened, with_place(opened.config.data, data_folder))[0]
    if positions is not None and isinstance(found, Windows):
        found = found.of_length(positions) or found
    test = found.mixed(images)
    n = len(test)
    x = test.batch(slice(None))
    labels = test.labels if opened.config.model.classes else None
    with StopSignals() as signals:
        completed = _completions(opened, completing, x, labels, rows, draws, t_start, steps, seed, signals)
    x = x[: len(completed)]
    settings = {
        "images": n,
        "completed": len(x),
        "rows": rows,
        "draws": draws,
        "noise": noise,
        "steps": steps,
        "length": positions,
        "seed": seed,
    }
    grid = None
    if opened.kind.is_image:
        kept = x.clone()
        kept[:, :, rows:] = 0.0
        grid = torch.cat([torch.stack([x, kept], 1), completed], 1).flatten(0, 1)
    took = time.perf_counter() - start
    _write(opened, folder, "complete", completed.flatten(0, 1), settings, took, grid, 2 + draws, originals=x)
    return _status(opened, signals, len(x), n)


def _need_completion(run: OpenRun, positions: int | None) -> Any:  # noqa: ANN401 -- whatever has a method complete
    """The density, if it can complete images or sequences of this many positions.

    Raises:
        UnsupportedError: It has no ``complete``, or the data are neither.
    """
    if not callable(getattr(run.density, "complete", None)):
        raise UnsupportedError(
            f"complete: got a {type(run.density).__name__} ({run.config.model.name}), which cannot; expected a density "
            f"with complete(x, rows, t, context, generator=...), such as ncpn or causal-transformer"
        )
    if not (run.kind.is_image or run.kind.is_sequence):
        raise UnsupportedError(
            f"complete: got data of shape {run.kind.shape}; expected images (C, H, W), C = 1 or 3, or sequences (L, C)"
        )
    return long_enough(run, positions, "complete")


def _completions(
    run: OpenRun,
    density: Any,  # noqa: ANN401 -- whatever has a method complete
    x: Tensor,
    labels: Tensor | None,
    rows: int,
    draws: int,
    t: float,
    steps: int,
    seed: int,
    signals: StopSignals,
) -> Tensor:
    """Completions ``(N, draws, ...)`` at t = 0; fewer than N if a signal came."""
    process, lattice = run.process, run.lattice
    sampler = EulerMaruyama(steps=steps)
    axis, progress = 1 if run.kind.is_sequence else 2, shows_progress()
    more = {"progress": progress} if "progress" in inspect.signature(density.complete).parameters else {}

    def work(block: slice, generator: torch.Generator) -> dict[str, Tensor]:
        clean = x[block].to(density.device).repeat_interleave(draws, 0)
        context = None if labels is None else labels[block].to(density.device).repeat_interleave(draws)
        noisy = process.perturb(clean, t, generator=generator)
        y = density.complete(noisy, rows, t, context, generator=generator, **more)
        if t > 0.0:
            y = sampler(density, y, t, process=process, context=context, generator=generator, progress=progress)
        y.narrow(axis, 0, rows).copy_(clean.narrow(axis, 0, rows))
        return {"x": (y if lattice is None else lattice.nearest(y)).unflatten(0, (-1, draws))}

    every = in_blocks(run.fabric, len(x), 4, work, seed=seed, label="completing", progress=progress, signals=signals)
    done = every["x"]
    return done.float() if lattice is None else lattice.to_unit(done.long())


def _status(run: OpenRun, signals: StopSignals, done: int, wanted: int) -> int:
    """The exit status: 0, or 128 + the signal that stopped it, in which case a line says so."""
    if done == wanted:
        return 0
    if run.first:
        print(f"Stopped by signal {signals.received} after {done} of {wanted}.")
    return 128 + signals.received


def _write(
    run: OpenRun,
    folder: Path,
    name: str,
    x: Tensor,
    settings: dict[str, Any],
    seconds: float,
    grid: Tensor | None = None,
    columns: int | None = None,
    originals: Tensor | None = None,
) -> None:
    """Write the picture, the numbers, and how they came about; for completions, the originals too."""
    if not run.first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    title = {"sample": "samples", "complete": "completions"}[name]
    report: dict[str, Any] = {"settings": settings, "model": run.source(), "seconds": seconds}
    report["environment"] = environment()
    arrays, stems = {title: x}, {title: _numbered(title, len(x))}
    if originals is not None:
        n = len(originals)
        draws = len(x) // n
        arrays["originals"], stems["originals"] = originals, _numbered("original", n)
        stems[title] = [f"{k}_{draw}" for k in _numbered("completion", n) for draw in _numbered("draw", draws)]
        report[title] = [{"original": i // draws, "draw": i % draws} for i in range(len(x))]  # row by row
    written = [*(f"{array}.npy" for array in arrays), f"{name}.json"]
    if run.kind.is_image:
        save_grid(x if grid is None else grid, folder / f"{title}.png", columns=columns)
        written.insert(0, f"{title}.png")
    if isinstance(run.config.data, AudioSource) and run.kind.rate is not None:
        for old in (path for pattern in STALE[name] for path in folder.glob(pattern)):
            old.unlink()
        for k, (array, recordings) in enumerate(arrays.items()):
            for stem, recording in zip(stems[array], recordings, strict=True):
                write_wav(folder / f"{stem}.wav", run.config.data.to_wav(recording, run.lattice), run.kind.rate)
            ends = dict.fromkeys([f"{stems[array][0]}.wav", f"{stems[array][-1]}.wav"])  # one, if it is the same
            written.insert(k, " to ".join(ends))
        for entry, stem in zip(report.get(title, []), stems[title], strict=False):
            entry["file"] = f"{stem}.wav"
    for array, values in arrays.items():
        np.save(folder / f"{array}.npy", _as_stored(values, run.lattice), allow_pickle=False)
    write_report(folder / f"{name}.json", report)
    what = number_of(len(x), "image" if run.kind.is_image else title.removesuffix("s"))
    *most, last = [f"{folder / written[0]}", *written[1:]]
    print(f"{what} in {seconds:.1f} s: {', '.join(most)} and {last}")


def _numbered(name: str, n: int) -> list[str]:
    """``name_0`` to ``name_9`` and so on, with numbers of equal width."""
    return [f"{name}_{i:0{len(str(n - 1))}}" for i in range(n)]


def _as_stored(x: Tensor, lattice: Lattice | None) -> npt.NDArray[Any]:
    """Floats in data units, or levels for data on a lattice."""
    if lattice is None:
        return np.asarray(x.numpy())
    return np.asarray(lattice.nearest(x).numpy().astype(np.uint8 if lattice.levels <= 256 else np.uint16))
