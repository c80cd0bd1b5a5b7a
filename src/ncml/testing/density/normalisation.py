"""Checks that a density integrates to 1, and that masses sum to 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.noise import Lattice
from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.expectations import expect, expect_close, require
from ncml.testing.numerics import Z, line_rule

MAX_STATES = 100_000
"""Most lattice states that are summed over."""

MAX_EVALUATIONS = 700_000
"""Most evaluations of the density in one integral."""

MAX_SAMPLED_DIMS = 10
"""Most dimensions for importance sampling, whose weights degenerate beyond."""

PROPOSALS = 20_000
"""Draws of the importance sampler."""

DEGREES = 5
"""Degrees of freedom of its Student-t proposals, which have heavier tails than most densities."""


def log_density_equals_log_prob_where_there_are_no_masses(case: DensityCase) -> None:
    require(bool(case.density_times), "there are masses at all of these times")
    for t in case.density_times:
        x = case.noisy(t)
        context = case.contexts(x.shape[0])
        expect_close(
            case.exact.log_prob(x, t, context),
            case.exact.log_density(x, t, context),
            1e-9,
            f"log_prob against log_density at t = {t:.3g}",
            "the first and last bin reach to infinity only where process.on_lattice(t); elsewhere, and for "
            "continuous data, both are the same function",
        )


def masses_sum_to_one(case: DensityCase) -> None:
    lattice = case.density.lattice
    require(lattice is not None and bool(case.mass_times), "no masses: no lattice, or the process leaves it")
    assert lattice is not None
    states = lattice.levels**case.dims
    require(states <= MAX_STATES, f"{lattice.levels}^{case.dims} states are too many to sum over")
    levels = torch.cartesian_prod(*[torch.arange(lattice.levels)] * case.dims).reshape(states, -1)
    x = _events(case, lattice.to_unit(levels.to(case.x.device), dtype=torch.float64))
    for t in case.mass_times:
        log_mass = in_chunks(case.exact.log_prob, x, t, _one_context(case, states)) + _log_volume(case, lattice)
        total = float(log_mass.exp().sum())
        expect(
            abs(total - 1.0) <= case.tolerance(1e-9),
            f"masses that sum to {total:.12g} over all {states} states at t = {t:.3g}",
            f"1 within {case.tolerance(1e-9):.3g}",
            "log_prob is the log of (mass of a bin / its width): look at edge bins (missing, or their sides swapped), "
            "at the half-width 1 / (levels - 1), at log(width), at unnormalised mixture weights",
        )


def density_integrates_to_one(case: DensityCase) -> None:
    require(case.dims <= 2, f"quadrature takes 1 or 2 dimensions, not {case.dims}")
    unresolved = []
    for t in case.times:
        total, error = _integral(case, t)
        if error > 3e-3:
            unresolved.append(t)
            continue
        expect(
            abs(total - 1.0) <= max(case.tolerance(1e-5), 5.0 * error * total),
            f"an integral of exp(log_density) of {total:.9g} (+- {error * total:.1g}) at t = {t:.3g}",
            "1",
            "a log-determinant, a constant such as log(width), or the sum over dimensions is missing, or lattice edges "
            "are applied where data are continuous; if the integral is near 0, pass x of typical data",
        )
    require(not unresolved, f"{MAX_EVALUATIONS} points do not resolve t = {', '.join(f'{t:.3g}' for t in unresolved)}")


def importance_weights_average_to_one(case: DensityCase) -> None:
    require(case.dims > 2, "quadrature is exact for 1 or 2 dimensions")
    require(
        case.dims <= MAX_SAMPLED_DIMS,
        f"normalisation cannot be checked in {case.dims} dimensions; build the same architecture with fewer",
    )
    degenerate = []
    for t in case.times:
        proposals, log_q = _proposals(case, t)
        log_p = in_chunks(case.exact.log_prob, proposals, t, _one_context(case, PROPOSALS))
        weights = (log_p - log_q).exp()
        mean, error = float(weights.mean()), float(weights.std()) / math.sqrt(PROPOSALS)
        if not float(weights.square().sum()) * 0.02 * PROPOSALS < float(weights.sum()) ** 2:
            degenerate.append(t)
            continue
        expect(
            abs(mean - 1.0) <= Z * error + 1e-9,
            f"an integral of exp(log_prob) of {mean:.5f} +- {error:.5f} (importance sampling) at t = {t:.3g}",
            f"1 within {Z} standard errors",
            "a log-determinant, a constant such as log(width), or the sum over dimensions is missing",
        )
    require(not degenerate, f"importance weights degenerate at t = {', '.join(f'{t:.3g}' for t in degenerate)}")


def _integral(case: DensityCase, t: float) -> tuple[float, float]:
    """The integral of exp(log_density) at ``t``, refined until it settles, and its last relative change."""
    typical = case.typical(t).flatten(1)
    centers, scales = typical.mean(0).tolist(), typical.std(0).clamp(min=1e-6).tolist()
    lattice = case.density.lattice
    # A density on bins may jump from bin to bin.
    breaks = [] if lattice is None else [-1.0 + (2 * k - 1) * lattice.half_width for k in range(lattice.levels + 1)]
    total, error, splits = math.inf, math.inf, 4 if case.dims == 1 else 1
    while error > 1e-6:
        rules = [line_rule(c, s, splits=splits, breaks=breaks) for c, s in zip(centers, scales, strict=True)]
        nodes, weights = (torch.cartesian_prod(*parts).reshape(-1, case.dims) for parts in zip(*rules, strict=True))
        if nodes.shape[0] > MAX_EVALUATIONS:
            break
        x = _events(case, nodes.to(case.x.device))
        log_p = in_chunks(case.exact.log_density, x, t, _one_context(case, x.shape[0]))
        previous, total = total, float((weights.prod(1).to(log_p) * log_p.exp()).sum())
        # Relative, so that a grid that misses all of the mass is not taken for a settled one.
        error, splits = abs(total - previous) / total if total else math.inf, 2 * splits
    return total, error


def _proposals(case: DensityCase, t: float) -> tuple[Tensor, Tensor]:
    """Points around the density, drawn from a known distribution, and its log-density."""
    typical = case.typical(t).flatten(1)
    if case.has_masses(t):
        return _lattice_proposals(case, typical)
    generator, d = case.generator(11), case.dims
    scale = torch.linalg.cholesky(typical.T.cov() + 1e-12 * torch.eye(d).to(typical))
    z, chi = (
        torch.randn(PROPOSALS, k, dtype=torch.float64, device=case.x.device, generator=generator) for k in (d, DEGREES)
    )
    mix = chi.square().sum(1) / DEGREES
    r = z / mix.sqrt()[:, None]
    log_q = (
        math.lgamma(0.5 * (DEGREES + d))
        - math.lgamma(0.5 * DEGREES)
        - 0.5 * d * math.log(math.pi * DEGREES)
        - scale.diagonal().log().sum()
        - 0.5 * (DEGREES + d) * (r.square().sum(1) / DEGREES).log1p()
    )
    return _events(case, typical.mean(0) + r @ scale.T), log_q


def _lattice_proposals(case: DensityCase, typical: Tensor) -> tuple[Tensor, Tensor]:
    """Lattice points with the marginals of ``typical``, a tenth of them uniform."""
    lattice = case.density.lattice
    assert lattice is not None
    one_hot = torch.nn.functional.one_hot(lattice.nearest(typical), lattice.levels)
    pmf = 0.9 * one_hot.double().mean(0) + 0.1 / lattice.levels
    levels = torch.multinomial(pmf, PROPOSALS, replacement=True, generator=case.generator(11)).T
    log_q = pmf.log().gather(1, levels.T).sum(0) - _log_volume(case, lattice)
    return _events(case, lattice.to_unit(levels, dtype=torch.float64)), log_q


def _events(case: DensityCase, flat: Tensor) -> Tensor:
    return flat.reshape(-1, *case.density.event_shape)


def _one_context(case: DensityCase, n: int) -> Tensor | None:
    """The first context for all ``n`` points of an integral."""
    context = case.contexts(1)
    return None if context is None else context.expand(n, *context.shape[1:])


def _log_volume(case: DensityCase, lattice: Lattice) -> float:
    """Log of the volume of a bin, which turns a density into a mass."""
    return case.dims * math.log(lattice.width)


CHECKS = (
    log_density_equals_log_prob_where_there_are_no_masses,
    masses_sum_to_one,
    density_integrates_to_one,
    importance_weights_average_to_one,
)
