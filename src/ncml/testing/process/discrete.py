"""Checks of processes that keep values on a lattice."""

from __future__ import annotations

from typing import cast

import torch

from ncml.noise import DiscreteProcess, Lattice
from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import expect, expect_close, require
from ncml.testing.numerics import binomial_bound

DRAWS = 20_000
"""Moves drawn from each level."""


def _discrete(case: ProcessCase) -> tuple[DiscreteProcess, Lattice]:
    require(isinstance(case.process, DiscreteProcess), "not a DiscreteProcess")
    process = cast(DiscreteProcess, case.process)
    return process, process.lattice


def discrete_process_stays_on_its_lattice(case: ProcessCase) -> None:
    process, lattice = _discrete(case)
    y = process.perturb(case.x, case.times, generator=case.generator())
    expect(
        lattice.on_lattice(y).all(),
        f"{int((~lattice.on_lattice(y)).sum())} of {y.numel()} values off the lattice",
        f"one of the {lattice.levels} lattice points of [-1, 1]",
        "a discrete process never leaves the lattice; clip or reflect at its ends",
    )
    expect(process.on_lattice(case.times).all(), "on_lattice(t) false", "True at every t", "it says where x_t lives")


def transition_matrix_is_stochastic(case: ProcessCase) -> None:
    process, lattice = _discrete(case)
    for t in case.times.tolist():
        matrix = process.transition_matrix(t)
        shape = (lattice.levels, lattice.levels)
        expect(
            matrix.dtype == torch.float64 and tuple(matrix.shape) == shape and bool((matrix >= 0).all()),
            f"{tuple(matrix.shape)}, {matrix.dtype}, smallest entry {float(matrix.min()):.3g}",
            f"{shape} probabilities in float64",
            "entry (i, j) is the probability to move from level i to level j",
        )
        total = matrix.sum(1)
        expect_close(total, torch.ones_like(total), 1e-12, f"row sums at t = {t:.3g}", "every row is a distribution")
    start = process.transition_matrix(0.0)
    expect(
        torch.equal(start, torch.eye(lattice.levels, dtype=torch.float64)),
        "transition_matrix(0) that moves",
        "the identity",
        "t = 0 is the data itself",
    )


def moves_match_the_transition_matrix(case: ProcessCase) -> None:
    process, lattice = _discrete(case)
    top = lattice.levels - 1
    for t in (0.3 * process.T, process.T):
        matrix = process.transition_matrix(t)
        for level in sorted({0, 1, top // 2, top - 1, top}):
            x = lattice.points(dtype=torch.float64)[level].expand(-(-DRAWS // case.x[0].numel()), *case.x.shape[1:])
            y = process.perturb(x, t, generator=case.generator(level))
            counts = torch.bincount(lattice.nearest(y).flatten(), minlength=lattice.levels).double()
            n = y.numel()
            excess = (counts - n * matrix[level]).abs() - binomial_bound(n, matrix[level])
            j = int(excess.argmax())
            expect(
                float(excess[j]) <= 0.0,
                f"{int(counts[j])} of {n} moves from level {level} to {j} at t = {t:.3g}",
                f"{n * float(matrix[level, j]):.0f} +- {float(binomial_bound(n, matrix[level, j])):.0f}",
                "perturb and transition_matrix disagree (noise applied twice? half the probability per side? edges?)",
            )


CHECKS = (
    discrete_process_stays_on_its_lattice,
    transition_matrix_is_stochastic,
    moves_match_the_transition_matrix,
)
