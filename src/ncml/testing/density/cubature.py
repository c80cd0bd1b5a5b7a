r"""Integrals of a density over all of one- or two-dimensional space, by cells that divide where they must.

Space is reached by :math:`x = c + s \sinh y` with :math:`|y| \le 12` in each dimension, divided into cells with six
Gauss-Legendre nodes in each direction. A cell is divided while its parts add up to something else, and while it is
coarser than the density where there are samples or data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncml.testing.cases import CHUNK, DensityCase
from ncml.testing.expectations import expect
from ncml.testing.numerics import PANELS, gauss_legendre

MAX_EVALUATIONS = 700_000
"""Most evaluations of the density in one integral."""

SETTLED = 1e-6
"""Share of the integral by which a cell and its parts may differ."""

NEGLIGIBLE = 1e-10
"""Share of the integral, per node, that counts as nothing."""

PER_WIDTH, NEAR = 4.0, 5.0
"""Width of a cell near samples, at most, and how near they are, in widths of the density."""

SHIFT = 1.0 / 3.0
"""By how much of its scale to move a second grid: a kink beside an edge of cells, unseen, is then amid cells."""


@dataclass(frozen=True)
class Integral:
    """Nodes of a settled integral.

    Args:
        x: Nodes, ``(N, d)``.
        mass: Density at the node times its volume, ``(N,)``; sums to ``total``.
        error: Relative error, estimated from the last division of each cell.
        note: What was odd on the way; empty if nothing was.
    """

    x: Tensor
    mass: Tensor
    total: float
    error: float
    note: str = ""


class Cubature:
    """Integrates ``exp(log_density)`` at one time and context, on a grid that is moved by ``shift`` of its scale."""

    def __init__(self, case: DensityCase, t: float, context: Tensor | None, shift: float = 0.0) -> None:
        self.case, self.t, self.context = case, t, context
        typical = case.typical(t).flatten(1)
        self.scale = typical.std(0).clamp(min=1e-6 * (1e-6 + typical.abs().amax(0)))
        self.center = typical.mean(0) + shift * self.scale
        self.width = case.widths(typical, t)
        self.typical = typical - self.center
        unit, weight = gauss_legendre(torch.tensor([0.0, 1.0], dtype=torch.float64), nodes=6)
        d = case.dims
        self.unit = torch.cartesian_prod(*[unit] * d).reshape(-1, d).to(typical)
        self.weight = torch.cartesian_prod(*[weight] * d).reshape(-1, d).prod(1).to(typical)
        self.evaluations, self.outside, self.ends = 0, 0, False

    def first(self) -> tuple[Tensor, Tensor]:
        """Lower and upper corners in y of the first cells."""
        half = torch.tensor(PANELS, dtype=torch.float64)
        whole = torch.cat([-half.flip(0)[:-1], half])
        lattice, lows, highs = self.case.density.lattice, [], []
        for c, s in zip(self.center.tolist(), self.scale.tolist(), strict=True):
            edges = whole
            if lattice is not None:  # a density on bins may jump from bin to bin
                bins = -1.0 + (2.0 * torch.arange(lattice.levels + 1).double() - 1.0) * lattice.half_width
                edges = torch.cat([edges, ((bins - c) / s).asinh().clamp(-PANELS[-1], PANELS[-1])]).unique()
            lows.append(edges[:-1])
            highs.append(edges[1:])
        d = self.case.dims
        low, high = (torch.cartesian_prod(*sides).reshape(-1, d).to(self.center) for sides in (lows, highs))
        return low, high

    def nodes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes ``(C, N, d)`` of cells in y, and their masses ``(C, N)``."""
        y = low[:, None] + (high - low)[:, None] * self.unit
        volume = (self.scale * y.cosh()).prod(2) * (high - low).prod(1)[:, None] * self.weight
        x = self.center + self.scale * y.sinh()
        log_p = self.log_density(x.flatten(0, 1)).reshape(volume.shape)
        mass = volume * log_p.exp()
        self.ends = self.ends or bool((log_p == -math.inf).any())
        bad = ~(log_p < math.inf)  # +inf, and NaN
        if bool(bad.any()):
            mass = self.without_far_nodes(x, mass, bad)
        return x, mass

    def log_density(self, x: Tensor) -> Tensor:
        """The call itself, which may be NaN."""
        self.evaluations += len(x)
        values = []
        with torch.no_grad():
            for part in x.split(CHUNK):
                rows = len(part)
                t = part.new_full((rows,), self.t)
                context = None if self.context is None else self.context.expand(rows, *self.context.shape[1:])
                values.append(
                    self.case.exact(part.reshape(-1, *self.case.density.event_shape), t, context, edges=False)
                )
        return torch.cat(values).double()

    def without_far_nodes(self, x: Tensor, mass: Tensor, bad: Tensor) -> Tensor:
        """Nodes that are not finite count as no mass where no mass is as far out as they are."""
        distance = ((x - self.center) / self.scale).abs().amax(2)
        sound = torch.where(bad, torch.zeros_like(mass), mass)
        matters = sound > NEGLIGIBLE * sound.sum()
        far = float(distance[matters].max()) if bool(matters.any()) else 0.0
        nearest = int(torch.where(bad, distance, math.inf).argmin())
        expect(
            float(distance.flatten()[nearest]) > far,
            f"a log-density of NaN or +inf at x = {x.flatten(0, 1)[nearest].tolist()}, t = {self.t:.3g}",
            "a number, or -inf, wherever there is mass",
            "the model overflows near its data",
        )
        self.outside += int(bad.sum())
        return sound

    def coarse(self, low: Tensor, high: Tensor) -> Tensor:
        """Whether a cell is near typical points, and coarser than the density there.

        The tail of a mode that is narrower than a cell may lie between the nodes of the next one.
        """
        x_low, x_high = (self.scale * edge.sinh() for edge in (low, high))
        wide = ((x_high - x_low) > PER_WIDTH * self.width).any(1)
        low, high = x_low[wide] - NEAR * self.width, x_high[wide] + NEAR * self.width
        near = (self.typical >= low[:, None]) & (self.typical <= high[:, None])
        wide[wide.clone()] = near.all(2).any(1)
        return wide

    def mixed(self, low: Tensor, high: Tensor, mass: Tensor, corners: Tensor, least: float) -> Tensor:
        """Whether the density ends inside a cell, perhaps between its nodes and a corner, where that matters."""
        y = low[:, None] + 2.0 * (high - low)[:, None] * corners
        x = self.center + self.scale * y.sinh()
        p = self.log_density(x.flatten(0, 1)).exp().reshape(len(y), -1)
        volume = (x.amax(1) - x.amin(1)).prod(1)
        nothing = (p == 0).any(1) | (mass == 0).any(1)
        return nothing & (p.amax(1) * volume + mass.sum(1) > least)

    def __call__(self, budget: int = MAX_EVALUATIONS) -> Integral:
        """Divide cells until all have settled, or the budget is spent."""
        d = self.case.dims
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5])] * d).reshape(-1, d).to(self.center)
        low, high = self.first()
        if len(low) * len(self.unit) > budget:  # a lattice of many bins
            return Integral(self.center[None], self.center[:1], math.inf, math.inf)
        x, mass = self.nodes(low, high)
        done_x: list[Tensor] = []
        done_mass: list[Tensor] = []
        total, error, last = float(mass.sum()), 0.0, math.inf
        calm = torch.zeros(len(low), dtype=torch.bool, device=low.device)  # settled once, perhaps by accident
        while len(low) and self.evaluations + len(low) * 2**d * len(self.unit) <= budget:
            parent = mass.sum(1)
            size = (high - low) / 2.0
            low = (low[:, None] + 2.0 * size[:, None] * corners).flatten(0, 1)
            high = low + size.repeat_interleave(2**d, dim=0)
            x, mass = self.nodes(low, high)
            change = (mass.sum(1).reshape(-1, 2**d).sum(1) - parent).abs()
            total = float(mass.sum()) + sum(float(m.sum()) for m in done_mass)
            settled = change <= SETTLED * total
            done = (change <= 0.01 * SETTLED * total) | (settled & calm)
            moving = ~done.repeat_interleave(2**d) & (mass.sum(1) > 0.01 * SETTLED * total)
            moving |= self.coarse(low, high)
            if self.ends:
                moving |= self.mixed(low, high, mass, corners, 0.01 * SETTLED * total)
            error += float(change[~moving.reshape(-1, 2**d).any(1)].sum())
            last = float(change.sum())
            done_x.append(x[~moving].flatten(0, 1))
            done_mass.append(mass[~moving].flatten())
            low, high, x, mass = low[moving], high[moving], x[moving], mass[moving]
            calm = settled.repeat_interleave(2**d)[moving]
        if len(low):
            error += last
            done_x.append(x.flatten(0, 1))
            done_mass.append(mass.flatten())
        note = (
            f"{self.outside} far nodes that are not finite count as no mass at t = {self.t:.3g}" if self.outside else ""
        )
        error = error / total if total else math.inf
        return Integral(torch.cat(done_x), torch.cat(done_mass), total, error, note)
