"""Checks of processes that keep values on a lattice."""

from __future__ import annotations

from typing import cast

import torch

from ncml.noise import DiscreteProcess, Lattice
from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import expect, expect_close, require
from ncml.testing.independence import expect_independent_columns, expect_independent_rows
from ncml.testing.numerics import binomial_bound

DRAWS, FEWEST = 100_000, 4_000
"""Moves drawn in all, and at least from each level."""


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
    levels, size = lattice.levels, case.x[0].numel()
    each = max(FEWEST, DRAWS // levels)
    for t in (0.3 * process.T, process.T):
        matrix = process.transition_matrix(t)
        # Every level, in turn along each row.
        start = torch.arange(-(-levels * each // size) * size, device=case.x.device) % levels
        x = lattice.to_unit(start, dtype=torch.float64).reshape(-1, *case.x.shape[1:])
        y = lattice.nearest(process.perturb(x, t, generator=case.generator())).flatten()
        counts = torch.bincount(start * levels + y, minlength=levels**2).reshape(levels, levels).double()
        n = counts.sum(1, keepdim=True)
        bound = binomial_bound(n, matrix)
        excess = (counts - n * matrix).abs() - bound
        i, j = divmod(int(excess.argmax()), levels)
        expect(
            float(excess[i, j]) <= 0.0,
            f"{int(counts[i, j])} of {int(n[i])} moves from level {i} to {j} at t = {t:.3g}",
            f"{float(n[i] * matrix[i, j]):.0f} +- {float(bound[i, j]):.0f}",
            "perturb and transition_matrix disagree (noise applied twice? half the probability per side? edges? a "
            "level that never moves?)",
        )


def moves_are_independent(case: ProcessCase) -> None:
    process, lattice = _discrete(case)
    n = max(256, 32_768 // case.x[0].numel())
    start = torch.full((n, *case.x.shape[1:]), lattice.levels // 2, device=case.x.device)
    y = process.perturb(lattice.to_unit(start, dtype=torch.float64), process.T, generator=case.generator(1))
    require(bool((y != y.flatten()[0]).any()), "nothing moves")
    where = f"of {n} rows at t = {process.T:.3g}"
    meaning = "every value moves by its own chance: draw a tensor of the shape of x"
    expect_independent_rows(y, case.generator(2), where, meaning)
    expect_independent_columns(y, case.generator(3), where, meaning)


CHECKS = (
    discrete_process_stays_on_its_lattice,
    transition_matrix_is_stochastic,
    moves_match_the_transition_matrix,
    moves_are_independent,
)
