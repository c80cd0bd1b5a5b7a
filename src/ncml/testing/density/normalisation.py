"""Checks that a density integrates to 1, and that masses sum to 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.density.cubature import MAX_EVALUATIONS, SHIFT, Cubature
from ncml.testing.density.proposals import MAX_DIMS, Proposals, log_volume, too_many
from ncml.testing.expectations import expect, expect_close, require

MAX_STATES = 100_000
"""Most lattice states that are summed over."""

PROPOSALS = 20_000
"""Draws of the importance sampler at each of the times."""

STRATA, FEWER_PROPOSALS = 16, 4_000
"""Drawn times, and proposals at each."""

RESOLVED = 3e-3
"""Largest relative error of an integral that is compared with 1."""

NEARLY = 0.01
"""Integrals that are off by less are taken on a second grid too: a kink between its nodes may have misled the first."""

CAUSES = (
    "a log-determinant, a constant such as log(width), or the sum over dimensions is missing or has the wrong sign, or "
    "a conditional sees its own or a later value (a mask), which brings the total of a trained model above 1"
)


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
    x = case.events(lattice.to_unit(levels.to(case.x.device), dtype=torch.float64))
    for t in case.mass_times:
        log_mass = in_chunks(case.exact.log_prob, x, t, case.one_context(states)) + log_volume(case)
        total = float(log_mass.exp().sum())
        expect(
            abs(total - 1.0) <= case.tolerance(1e-9),
            f"masses that sum to {total:.12g} over all {states} states at t = {t:.3g}",
            f"1 within {case.tolerance(1e-9):.3g}",
            "log_prob is the log of (mass of a bin / its width): look at edge bins (missing, or their sides swapped), "
            "at the half-width 1 / (levels - 1), at log(width), at unnormalised mixture weights, at conditionals that "
            "see their own or a later value (a mask)",
        )


def density_integrates_to_one(case: DensityCase) -> str:
    require(case.dims <= 2, f"quadrature takes 1 or 2 dimensions, not {case.dims}")
    unresolved, notes = [], []
    for t in case.times:
        integral = Cubature(case, t, case.contexts(1))()
        if integral.error > RESOLVED:
            unresolved.append(t)
            continue
        notes += [integral.note] if integral.note else []
        total, error = integral.total, integral.error * integral.total
        if max(case.tolerance(3e-5), 5.0 * error) < abs(total - 1.0) < NEARLY:
            again = Cubature(case, t, case.contexts(1), shift=SHIFT)()
            error += abs(again.total - total) if again.error <= RESOLVED else 0.0
        expect(
            abs(total - 1.0) <= max(case.tolerance(3e-5), 5.0 * error),
            f"an integral of exp(log_density) of {total:.9g} (+- {error:.1g}) at t = {t:.3g}",
            "1",
            f"{CAUSES}; or lattice edges are applied where data are continuous; if the integral is near 0, pass x of "
            "typical data",
        )
    reason = f"{MAX_EVALUATIONS} points do not resolve {_listed(unresolved)}"
    require(not unresolved, reason, f"normalisation was not checked at {_listed(unresolved)}")
    return "; ".join(notes)


def importance_weights_average_to_one(case: DensityCase) -> str:
    require(case.dims > 2, "quadrature is exact for 1 or 2 dimensions")
    require(case.dims <= MAX_DIMS, too_many(case), _unchecked(case, case.times))
    weighted, notes = [], []
    for t in case.times:
        proposals = Proposals(case, t, case.contexts(1), PROPOSALS)
        weighted.append(proposals.degenerate)
        notes += [proposals.note] if proposals.note else []
        if not proposals.degenerate:
            _expect_average_of_one(proposals, t, "")
    bad = [t for t, degenerate in zip(case.times, weighted, strict=True) if degenerate]
    require(not bad, f"importance weights degenerate at {_listed(bad)}", _unchecked(case, bad))
    return "; ".join(notes)


def integral_is_one_at_drawn_times_and_contexts(case: DensityCase) -> str:
    """One time in each sixteenth of the range, and any of the contexts, by importance sampling."""
    first, last = min(case.times), max(case.times)
    require(first < last or case.context is not None, "only one time to check, and no context")
    generator = case.generator(12)
    u = torch.rand(STRATA, dtype=torch.float64, device=case.x.device, generator=generator)
    times = first + (last - first) * (torch.arange(STRATA).to(u) + u) / STRATA
    degenerate = 0
    for i, t in enumerate(times.tolist()):
        context = None
        if case.context is not None:
            row = int(torch.randint(len(case.context), (), device=u.device, generator=generator))
            context = case.contexts(len(case.context))[row : row + 1]  # type: ignore[index]
        proposals = Proposals(case, t, context, FEWER_PROPOSALS, stream=20 + i)
        degenerate += proposals.degenerate
        if not proposals.degenerate:
            _expect_average_of_one(proposals, t, "" if context is None else f", context {_words(context)}")
    require(degenerate < STRATA, "importance weights degenerate at all drawn times")
    return f"importance weights degenerate at {degenerate} of {STRATA} drawn times" if degenerate else ""


def _expect_average_of_one(proposals: Proposals, t: float, where: str) -> None:
    mean, error = proposals.average()
    expect(
        abs(mean - 1.0) <= error + 1e-9,
        f"an integral of exp(log_prob) of {mean:.5f} (importance sampling) at t = {t:.6g}{where}",
        f"1 +- {error:.5f}",
        f"{CAUSES}; at least for this t and context",
    )


def _unchecked(case: DensityCase, times: Sequence[float]) -> str:
    """A note where normalisation was not checked, and how it can be; empty if sums over a lattice did it."""
    lattice = case.density.lattice
    summed = lattice is not None and lattice.levels**case.dims <= MAX_STATES
    left = [t for t in times if not (summed and case.has_masses(t))]
    where = f"in {case.dims} dimensions at {_listed(left)}"
    return f"normalisation was not checked {where}: check an instance of 2 dimensions too" if left else ""


def _listed(times: Sequence[float]) -> str:
    return f"t = {', '.join(f'{t:.3g}' for t in times)}"


def _words(context: Tensor) -> str:
    values = context.flatten().tolist()
    return f"{values[0] if len(values) == 1 else values[:6]}"


CHECKS = (
    log_density_equals_log_prob_where_there_are_no_masses,
    masses_sum_to_one,
    density_integrates_to_one,
    importance_weights_average_to_one,
    integral_is_one_at_drawn_times_and_contexts,
)
