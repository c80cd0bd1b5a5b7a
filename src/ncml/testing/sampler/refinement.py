"""Checks of what ``refine`` gives back: the samples, what they cost, and the way to them."""

from __future__ import annotations

import torch

from ncml.sampling.sampler import GridSampler
from ncml.testing.cases import FEW, SamplerCase
from ncml.testing.expectations import expect, expect_same_bits, require

WATCHED = (0, 5)
"""Rows whose results are watched while the others change."""


def refine_gives_what_the_call_gives(case: SamplerCase) -> None:
    x = case.start()
    called = case.brief(case.density(), x, generator=case.generator())
    refined = case.brief.refine(case.density(), x, generator=case.generator())
    expect_same_bits(refined.x, called, "refine(...).x against the call", "the call is refine(...).x")
    expect(refined.t == 0.0, f"t = {refined.t}", "0.0, where the samples are", "t is t_end")
    expect("failed" not in refined.info, "info['failed'] without a failure", "no such entry", "no row has failed")


def evaluations_are_counted(case: SamplerCase) -> None:
    density, seen = case.density(), []
    density.register_forward_hook(lambda module, args, result: seen.append(len(args[0])))
    refined = case.brief.refine(density, case.start(), generator=case.generator())
    expect(
        refined.evaluations == sum(seen) == density.rows > 0,
        f"evaluations = {refined.evaluations}, with {sum(seen)} rows in calls of the density and {density.rows} in its "
        f"forward",
        "three equal numbers",
        "evaluate through the target, which counts, and never call density.forward, which hooks do not see",
    )


def path_has_every_step(case: SamplerCase) -> None:
    x, T = case.start(), case.process.T
    plain = case.brief.refine(case.density(), x, generator=case.generator())
    refined = case.brief.refine(case.density(), x, generator=case.generator(), path=True)
    expect(not plain.path, f"a path of {len(plain.path)} states without path=True", "none", "states take memory")
    expect_same_bits(refined.x, plain.x, "the samples with path=True against without", "keep(t, x) only keeps")
    states = len(refined.path)
    expect(states >= 2, f"a path of {states} states", "the start and every step", "call keep(t, x) after each step")
    times = [torch.as_tensor(t, dtype=torch.float64).expand(FEW) for t, _ in refined.path]
    expect(
        bool((times[0] == T).all()) and bool((times[-1] == 0.0).all()),
        f"a path from {float(times[0].max()):.6g} to {float(times[-1].max()):.6g}",
        f"from t_start = {T:.6g} to 0",
        "call keep(s, x) with the time that x has reached",
    )
    rising = int((torch.stack(times).diff(dim=0) > 0).sum())
    expect(rising == 0, f"times that rise {rising} times", "falling times", "samplers go towards the data")
    expect_same_bits(refined.path[0][1], x, "the first state of the path against x", "a path begins at its start")
    expect_same_bits(refined.path[-1][1], refined.x, "the last state of the path against the result", "it ends there")
    storages = {state.untyped_storage().data_ptr() for _, state in refined.path}
    expect(len(storages) == states, "states that share memory", "a copy of each", "later steps write into x")
    if isinstance(case.brief, GridSampler):
        steps = len(case.brief.times(case.process, T, 0.0)) - 1
        expect(
            states == steps + 1,
            f"{states} states for {steps} steps",
            f"{steps + 1}, with the start",
            "call keep once per step",
        )


def rows_do_not_interact(case: SamplerCase) -> None:
    require(not case.sampler.rows_interact, "rows_interact is True")
    x, context = case.start(), torch.linspace(-1.0, 1.0, FEW, dtype=torch.float64)[:, None]
    expected = case.brief(case.density(), x, context=context, generator=case.generator())
    watched = list(WATCHED)
    others = torch.ones(FEW, dtype=torch.bool)
    others[watched] = False
    for factor in (-30.0, 0.0):
        y, other = x.clone(), context.clone()
        y[others] *= factor
        other[others] *= factor
        result = case.brief(case.density(), y, context=other, generator=case.generator())
        expect_same_bits(
            result[watched],
            expected[watched],
            f"rows {watched} after the other rows were multiplied by {factor:.0f}",
            "examples must not interact: no statistics over the batch, the same step or noise whatever the others do, "
            "target.rows(index) for some rows; or say rows_interact = True",
        )


CHECKS = (
    refine_gives_what_the_call_gives,
    evaluations_are_counted,
    path_has_every_step,
    rows_do_not_interact,
)
