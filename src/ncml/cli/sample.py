"""``ncml sample`` and ``ncml complete``: images from a trained model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ncml._checks import check_count
from ncml.cli._common import (
    OpenRun,
    class_labels,
    open_run,
    results_folder,
    sample_images,
    shows_progress,
    start_time,
    with_folder,
)
from ncml.errors import ArgumentError
from ncml.evaluation import environment, save_grid, write_report
from ncml.sampling import EulerMaruyama
from ncml.training import in_blocks

__all__ = ["complete", "sample"]


def sample(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    images: int = 16,
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None,
    noise: float | None = None,
    steps: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    threads: int | None = None,
) -> None:
    """Draw images from a trained model: at a noise level, then refined to the data.

    Writes samples.png, samples.npy (integer levels, N x C x H x W) and sample.json.

    Args:
        run: Folder of the run, or of a checkpoint.
        out: Folder for the results; if not given samples, or samples-noise0-cat and the like, in that of the run.
        images: Number of images.
        label: Class by name or number, for a model with classes; all of them in turn if not given.
        noise: Where to draw, in levels of noise: 0 for plain sampling. If not given, the most that the
            model was trained with.
        steps: Steps of the refinement, each one score.
        seed: Same seed, batch size and machine: same images, on any number of processes.
        batch_size: Images at a time.
        threads: Number of CPU threads.
    """
    check_count(images, "images")
    check_count(batch_size, "batch_size")
    start = time.perf_counter()
    opened = open_run(run, threads)
    labels = class_labels(opened, label, images)
    t_start = start_time(opened, noise)
    x = sample_images(
        opened.fabric,
        opened.density,
        images,
        labels=labels,
        t_start=t_start,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        progress=shows_progress(),
    )
    settings = {
        "images": images,
        "class": label,
        "t_start": t_start,
        "noise_levels": float(opened.process.sigma(t_start)) / opened.lattice.width,
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
    }
    every_class = len(opened.kind.classes) if labels is not None and label is None else None
    # A folder for each kind of samples: they are there to be compared.
    kind = "samples" + ("" if noise is None else f"-noise{noise:g}") + ("" if label is None else f"-{label}")
    folder = results_folder(run, out, kind)
    _write(opened, folder, "sample", x, settings, time.perf_counter() - start, columns=every_class)


def complete(
    run: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    rows: int | None = None,
    images: int = 8,
    draws: int = 3,
    noise: float = 0.0,
    steps: int = 64,
    seed: int = 0,
    data_folder: Annotated[Path | None, tyro.conf.arg(name="data.folder")] = None,
    threads: int | None = None,
) -> None:
    """Keep the first rows of test images and draw the rest several times (paper, Figure 5).

    Writes completions.png (each row: image, what is kept, completions), completions.npy and complete.json.

    Args:
        run: Folder of the run, or of a checkpoint.
        out: Folder for the results; ``completions`` in that of the run if not given.
        rows: Rows of each image to keep; half if not given.
        images: Number of test images.
        draws: Completions of each.
        noise: Draw at this noise, in levels, below noisy rows, refine the whole and put the kept rows back: what is
            drawn then fits their noisy version. 0 draws from the data's own model, exactly.
        steps: Steps of the refinement.
        seed: Seed.
        data_folder: Where the images are, if no longer where they were.
        threads: Number of CPU threads.
    """
    check_count(images, "images")
    check_count(draws, "draws")
    start = time.perf_counter()
    opened = open_run(run, threads)
    height = opened.kind.shape[1]
    rows = height // 2 if rows is None else rows
    if not 0 <= rows <= height:
        raise ArgumentError(f"rows: got {rows}; expected 0 to {height}")
    test = with_folder(opened.config.data, data_folder).load(train=False).mixed(images)
    n = len(test)
    x = test.batch(slice(None))
    labels = test.labels if opened.config.network.classes else None
    completed = _completions(opened, x, labels, rows, draws, start_time(opened, noise), steps, seed)
    kept = x.clone()
    kept[:, :, rows:] = 0.0
    grid = torch.cat([torch.stack([x, kept], 1), completed], 1).flatten(0, 1)
    settings = {"images": n, "rows": rows, "draws": draws, "noise_levels": noise, "steps": steps, "seed": seed}
    folder = results_folder(run, out, "completions")
    _write(opened, folder, "complete", completed.flatten(0, 1), settings, time.perf_counter() - start, grid, 2 + draws)


def _completions(
    run: OpenRun, x: Tensor, labels: Tensor | None, rows: int, draws: int, t: float, steps: int, seed: int
) -> Tensor:
    """Completions ``(N, draws, C, H, W)`` at t = 0."""
    density, process, lattice = run.density, run.process, run.lattice
    sampler = EulerMaruyama(steps=steps)

    def work(block: slice, generator: torch.Generator) -> dict[str, Tensor]:
        clean = x[block].to(density.device).repeat_interleave(draws, 0)
        context = None if labels is None else labels[block].to(density.device).repeat_interleave(draws)
        y = density.complete(process.perturb(clean, t, generator=generator), rows, t, context, generator=generator)
        if t > 0.0:
            y = sampler(density, process, y, t, context=context, generator=generator)
        y[:, :, :rows] = clean[:, :, :rows]
        return {"levels": lattice.nearest(y).unflatten(0, (-1, draws))}

    done = in_blocks(run.fabric, len(x), 4, work, seed=seed, label="completing", progress=shows_progress())
    return lattice.to_unit(done["levels"].long())


def _write(
    run: OpenRun,
    folder: Path,
    name: str,
    x: Tensor,
    settings: dict[str, Any],
    seconds: float,
    grid: Tensor | None = None,
    columns: int | None = None,
) -> None:
    """The picture, the numbers, and how they came about."""
    if not run.first:
        return
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    title = {"sample": "samples", "complete": "completions"}[name]
    save_grid(x if grid is None else grid, folder / f"{title}.png", columns=columns)
    levels = run.lattice.nearest(x).numpy().astype(np.uint8 if run.kind.levels <= 256 else np.uint16)
    np.save(folder / f"{title}.npy", levels, allow_pickle=False)
    report = {"settings": settings, "model": run.source(), "seconds": seconds, "environment": environment()}
    write_report(folder / f"{name}.json", report)
    print(f"{len(x)} images in {seconds:.1f} s: {folder / f'{title}.png'}, {title}.npy and {name}.json")
