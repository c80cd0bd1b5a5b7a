"""Figures: robustness curves and grids of images. Needs matplotlib, imported on use."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncml.errors import ArgumentError, MissingExtraError
from ncml.evaluation.robustness import RobustnessCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_images", "plot_robustness"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

SPREAD = 0.2  # of the last time: earlier ones would lie on top of each other
MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_robustness(
    curves: Mapping[str, RobustnessCurve], path: str | os.PathLike[str] | None = None, *, relative: bool = False
) -> Figure:
    r"""The paper's Figure 4: :math:`\Delta\log p` against t for every :math:`\pi`, and the size of the noise.

    The axis of t is logarithmic down to the smallest time above 0, and 0 has a place of its own to the left: what level
    noise costs falls within the first hundredths of T.

    Args:
        curves: Curves by their labels, all with the same ``pi``.
        path: Where to save the figure (the suffix says the format); not saved if None.
        relative: Plot against t / T, which lays processes with different T on top of each other.

    Returns:
        The figure, of which matplotlib keeps no other reference.

    Raises:
        ArgumentError: No curves, or curves with different ``pi``.
        MissingExtraError: matplotlib is not installed.
    """
    if not curves:
        raise ArgumentError("curves: got none; expected at least one")
    pis = list(next(iter(curves.values())).results)
    if any(list(curve.results) != pis for curve in curves.values()):
        raise ArgumentError("curves: got different pis; expected the same for all curves of one figure")
    figure = _figure(3.6 * (len(pis) + 1), 3.2)
    axes = figure.subplots(1, len(pis) + 1, squeeze=False)[0]
    for i, (label, curve) in enumerate(curves.items()):
        order = curve.times.argsort()
        times = (curve.times / curve.T if relative else curve.times)[order].tolist()
        series = [*(curve.delta[pi] for pi in pis), curve.mean_abs_perturbation]
        for axis, values in zip(axes, series, strict=True):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axis.plot(
                times, values[order].tolist(), color=colour, marker=marker, markersize=4, label=label, clip_on=False
            )
    for axis, pi in zip(axes, pis, strict=False):
        axis.set_title(rf"$\pi$ = {pi:g}")
        axis.set_ylabel(r"$\Delta$ log p (bits/dim)")
    axes[-1].set_title("Size of the noise")
    axes[-1].set_ylabel(r"mean $|x_t - x_0|$ (levels)")
    axes[-1].axhline(1.0, color="0.4", linestyle=":", linewidth=1.2)
    axes[-1].text(1.0, 1.0, "1 level", color="0.4", ha="right", va="bottom", transform=axes[-1].get_yaxis_transform())
    every = [float(t / curve.T if relative else t) for curve in curves.values() for t in curve.times]
    first, last = min((t for t in every if t > 0.0), default=0.0), max(every)
    for axis in axes:
        axis.set_xlabel("t / T" if relative else "t")
        if first < SPREAD * last:
            axis.set_xscale("symlog", linthresh=first, linscale=0.4)
        axis.set_xlim(0.0, last or None)
        axis.set_ylim(bottom=0.0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    return _saved(figure, path)


def plot_images(rows: Mapping[str, Tensor] | Sequence[Tensor], path: str | os.PathLike[str] | None = None) -> Figure:
    """Rows of images, such as samples before and after refinement.

    Args:
        rows: Batches ``(N, C, H, W)`` of gray (C = 1) or RGB (C = 3) images in [-1, 1], by their labels
            or without. Values outside are clamped for display. Rows may differ in N, not in size.
        path: Where to save the figure; not saved if None.

    Returns:
        The figure, of which matplotlib keeps no other reference.

    Raises:
        ArgumentError: No images, or not of that shape.
        MissingExtraError: matplotlib is not installed.
    """
    named: list[tuple[str | int, Tensor]] = [*(rows.items() if isinstance(rows, Mapping) else enumerate(rows))]
    if not named:
        raise ArgumentError("rows: got none; expected at least one batch of images")
    size = named[0][1].shape[1:]
    for name, images in named:
        if images.ndim != 4 or 0 in images.shape or images.shape[1] not in (1, 3) or images.shape[1:] != size:
            raise ArgumentError(
                f"rows[{name!r}]: got shape {tuple(images.shape)}; expected (N, C, H, W) with C = 1 or 3, "
                f"the same C, H, W in all rows"
            )
    channels, height, width = size
    columns, gap = max(images.shape[0] for _, images in named), math.ceil(width / 16)
    labelled = isinstance(rows, Mapping)
    figure = _figure(0.9 * columns, (0.9 * height / width + 0.25 * labelled) * len(named))
    axes = figure.subplots(len(named), 1, squeeze=False)[:, 0]
    for (name, images), axis in zip(named, axes, strict=True):
        strip = torch.ones(channels, height, columns * (width + gap) - gap)
        for i, image in enumerate(images.detach().float().cpu()):
            start = i * (width + gap)
            strip[:, :, start : start + width] = 0.5 * (image.clamp(-1.0, 1.0) + 1.0)
        axis.imshow(strip.permute(1, 2, 0).numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_axis_off()
        if labelled:
            axis.set_title(str(name), loc="left", fontsize=9)
    return _saved(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots: matplotlib is not installed; pip install 'ncml[viz]'") from error
    # Not through pyplot: no global state, no window, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
