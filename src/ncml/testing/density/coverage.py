"""Checks that samples are where the mass is, all of it, and independent of each other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.density.cubature import Cubature
from ncml.testing.density.normalisation import MAX_STATES, PROPOSALS
from ncml.testing.density.proposals import MAX_DIMS, Proposals, expect_equal_means, weighted_mean
from ncml.testing.expectations import expect, require
from ncml.testing.independence import expect_independent_pairs, expect_independent_rows
from ncml.testing.numerics import Z, binomial_bound

FEATURES = 8
"""Waves whose means are compared."""

LOOKS = 150_000
"""Most evaluations of an integral that is compared with samples."""

STARTS, CLIMB, MODES, MODE_DIMS = 64, 60, 6, 32
"""Where the search for modes begins, steps of it, modes that are looked at, and most dimensions."""

PAIRS = 128
"""Batches of two rows."""

MISSING = (
    "the sampler misses some of the mass, or draws what has none: a component that is never drawn, a wrong weight, "
    "another order of the parameters"
)


def samples_have_the_means_of_the_density(case: DensityCase) -> str:
    """Means of waves in random directions, by sums, cubature or importance weights against the samples'."""
    density = case.sampleable
    skipped, notes = [], []
    for t in case.times:
        weighted = _weighted(case, t)
        if isinstance(weighted, str):
            skipped.append(f"{weighted} at t = {t:.3g}")
            continue
        x, weights, error, note = weighted
        notes += [note] if note else []
        samples = density.sample(case.samples, t, case.one_context(case.samples), generator=case.generator(5)).double()
        samples = samples.flatten(1)
        center, scale = samples.mean(0), samples.std(0).clamp(min=1e-300)
        generator = case.generator(6)
        wave = torch.randn(case.dims, FEATURES, dtype=torch.float64, device=x.device, generator=generator)
        wave *= torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64, device=x.device).repeat(FEATURES // 4)
        wave /= math.sqrt(case.dims)
        phase = 2.0 * math.pi * torch.rand(FEATURES, dtype=torch.float64, device=x.device, generator=generator)
        expected, variance = weighted_mean((((x - center) / scale) @ wave + phase).cos(), weights)
        values = (((samples - center) / scale) @ wave + phase).cos()
        noise = values.var(0) / len(values) + (variance if error is None else 0.0)
        z = ((values.mean(0) - expected).abs() - (error or 0.0)).clamp(min=0.0) / noise.sqrt().clamp(min=1e-12)
        expect_equal_means(z, f"over {len(values)} samples, in one of {FEATURES} waves, at t = {t:.3g}", MISSING)
    require(len(skipped) < len(case.times), "; ".join(skipped))
    return "; ".join(notes + skipped)


class Weighted(NamedTuple):
    """Points with weights; what means of them may be off by, None if that is up to chance; and a remark."""

    x: Tensor
    weights: Tensor
    error: float | None
    note: str


def _weighted(case: DensityCase, t: float) -> Weighted | str:
    """Weighted points at one time, or why there are none."""
    lattice = case.density.lattice
    if case.has_masses(t) and lattice is not None and lattice.levels**case.dims <= MAX_STATES:
        levels = torch.cartesian_prod(*[torch.arange(lattice.levels)] * case.dims).reshape(-1, case.dims)
        x = lattice.to_unit(levels.to(case.x.device), dtype=torch.float64)
        log_p = in_chunks(case.exact.log_prob, case.events(x), t, case.one_context(len(x)))
        return Weighted(x, log_p.softmax(0), 1e-9, "")
    if not case.has_masses(t) and case.dims <= 2:
        integral = Cubature(case, t, case.contexts(1))(LOOKS)
        if integral.error > 0.02:
            return f"{LOOKS} points do not resolve the density"
        return Weighted(integral.x, integral.mass, integral.error + 1e-4, integral.note)
    if case.dims > MAX_DIMS:
        return f"{case.dims} dimensions are too many for importance weights"
    proposals = Proposals(case, t, case.contexts(1), PROPOSALS)
    if proposals.degenerate:
        return "importance weights degenerate"
    return Weighted(proposals.x, proposals.weights, None, proposals.note)


def samples_reach_every_mode(case: DensityCase) -> str:
    """Modes are sought by climbing from far around; the mass near each, by importance weights, is that of samples."""
    density = case.sampleable
    require(bool(case.density_times), "there are masses at all of these times")
    require(case.dims <= MODE_DIMS, f"{case.dims} dimensions are too many to look for modes")
    found = 0
    for t in case.density_times:
        samples = density.sample(case.samples, t, case.one_context(case.samples), generator=case.generator(5)).double()
        samples = samples.flatten(1)
        for center, root in _modes(case, t, samples):
            region = _mass_near(case, t, center, root)
            if region is None:
                continue
            found += 1
            mass, error, radius = region
            near = torch.linalg.solve_triangular(root, (samples - center).T, upper=False).norm(dim=0) <= radius
            count, n = int(near.sum()), len(samples)
            allowed = float(binomial_bound(n, torch.tensor(min(mass, 1.0), dtype=torch.float64))) + Z * error * n
            expect(
                abs(count - n * mass) <= allowed,
                f"{count} of {n} samples near a mode at x = {[float(f'{v:.4g}') for v in center[:6]]}, t = {t:.3g}",
                f"{n * mass:.0f} +- {allowed:.0f}",
                MISSING,
            )
    require(found > 0, "no mode stands out")
    return ""


def _modes(case: DensityCase, t: float, samples: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Points that climbing leads to, and a triangular root of the covariance of a Gaussian of their curvature."""
    generator, d = case.generator(8), case.dims
    std = samples.std(0).clamp(min=1e-300)
    wide = torch.randn(STARTS, d, dtype=torch.float64, device=samples.device, generator=generator)
    x = torch.cat([samples.mean(0) + 2.5 * std * wide, samples[: STARTS // 4], case.noisy(t).flatten(1)[:STARTS]])
    width = case.widths(samples[:256], t, case.contexts(1))
    step = torch.full((len(x), 1), 0.5, dtype=torch.float64, device=x.device)

    def value(x: Tensor) -> Tensor:
        return in_chunks(case.exact.log_density, case.events(x), t, case.one_context(len(x)))

    def slope(x: Tensor) -> Tensor:
        return in_chunks(case.exact.score, case.events(x), t, case.one_context(len(x))).flatten(1)

    height = value(x)
    kept = height > -math.inf
    x, height, step = x[kept], height[kept], step[kept]
    for _ in range(CLIMB):
        move = step * width.square() * slope(x)
        move *= (3.0 / (move / width).norm(dim=1, keepdim=True).clamp(min=3.0)).clamp(max=1.0)
        higher = value(x + move)
        better = (higher > height)[:, None]
        x, height = torch.where(better, x + move, x), torch.maximum(higher, height)
        step = torch.where(better, 1.5 * step, 0.4 * step)
    result: list[tuple[Tensor, Tensor]] = []
    for i in height.argsort(descending=True).tolist():
        apart = (torch.linalg.solve_triangular(r, (x[i] - c)[:, None], upper=False).norm() for c, r in result)
        if len(result) < MODES and all(float(distance) > 2.0 for distance in apart):
            h = 1e-4 * width
            moved = torch.cat([x[i] + torch.diag(h), x[i] - torch.diag(h)])
            up, down = slope(moved).chunk(2)
            hessian = (up - down) / (2.0 * h[:, None])
            scaled = -0.5 * (hessian + hessian.T) * width[:, None] * width
            curvature, directions = torch.linalg.eigh(scaled.nan_to_num())
            covariance = (directions / curvature.clamp(0.05, 1e4)) @ directions.T
            result.append((x[i], width[:, None] * torch.linalg.cholesky(covariance)))
    return result


def _mass_near(case: DensityCase, t: float, center: Tensor, root: Tensor) -> tuple[float, float, float] | None:
    """Mass of an ellipsoid, its standard error, and the ellipsoid's radius; None if the weights do not tell."""
    d = case.dims
    radius = math.sqrt(d + 1.3 * math.sqrt(2.0 * d) + 0.6)  # nine tenths of a Gaussian
    z = torch.randn(PROPOSALS // 4, d, dtype=torch.float64, device=center.device, generator=case.generator(9))
    inside = z.norm(dim=1) <= radius
    x = center + z[inside] @ root.T
    log_p = in_chunks(case.exact.log_density, case.events(x), t, case.one_context(len(x)))
    log_q = -0.5 * z[inside].square().sum(1) - 0.5 * d * math.log(2.0 * math.pi) - root.diagonal().log().sum()
    weights = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    weights[inside] = (log_p - log_q).exp()
    effective = float(weights.sum()) ** 2 / float(weights.square().sum().clamp(min=1e-300))
    if effective < 0.2 * len(weights):
        return None
    return float(weights.mean()), float(weights.std()) / math.sqrt(len(weights)), radius


def rows_of_samples_are_independent(case: DensityCase) -> None:
    density = case.sampleable
    meaning = "every row has its own noise: no repeated, mirrored or reused draws, and no statistics over the batch"
    for t in case.times:
        rows = case.one_context(case.samples)
        x = density.sample(case.samples, t, rows, generator=case.generator(13)).double()
        expect_independent_rows(x, case.generator(14), f"over {len(x)} samples at t = {t:.3g}", meaning)
    t, generator = max(case.times), case.generator(15)
    pairs = torch.stack([density.sample(2, t, case.one_context(2), generator=generator).double() for _ in range(PAIRS)])
    expect_independent_pairs(pairs, f"at t = {t:.3g}", meaning, case.generator(16))


CHECKS = (
    samples_have_the_means_of_the_density,
    samples_reach_every_mode,
    rows_of_samples_are_independent,
)
