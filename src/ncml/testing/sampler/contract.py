"""Checks of what every sampler promises: times, dtypes, generators, modes."""

from __future__ import annotations

import math
from functools import partial

import torch

from ncml.testing.cases import FEW, SamplerCase
from ncml.testing.expectations import (
    default_rng_restored,
    default_rng_untouched,
    expect,
    expect_refused,
    expect_same_bits,
    require,
)


def equal_times_return_a_copy(case: SamplerCase) -> None:
    require(not case.sampler.moves_in_place, "moves_in_place is True")
    x, T = case.start(), case.process.T
    # Posterior means are those of the data: such samplers go to t = 0 only.
    for t in (0.0, 0.5 * T, T) if case.sampler.samples_distribution else (0.0,):
        density, generator = case.density(), case.generator()
        before = generator.get_state()
        with default_rng_untouched("a call with t_start == t_end"):
            y = case.brief(density, x, t, t, generator=generator)
        expect_same_bits(y, x, "the result of t_start == t_end against x", "there is nothing to do")
        expect(y.data_ptr() != x.data_ptr(), "x itself", "a copy", "the caller may write into the result")
        expect(
            torch.equal(generator.get_state(), before) and not density.calls,
            f"{len(density.calls)} calls of the density, or draws from the generator, with t_start == t_end",
            "none",
            "return early; or say moves_in_place = True, if it is a Markov chain",
        )


def equal_times_move_a_chain(case: SamplerCase) -> None:
    require(case.sampler.moves_in_place, "moves_in_place is False")
    x, T = case.start(), case.process.T
    for t in (0.5 * T, T):
        density, generator = case.density(), case.generator()
        before = generator.get_state()
        y = case.brief(density, x, t, t, generator=generator)
        expect(
            bool((y != x).any(1).all()) and bool(density.calls) and not torch.equal(generator.get_state(), before),
            f"{int((y == x).all(1).sum())} of {FEW} rows unmoved, {len(density.calls)} calls of the density, with "
            f"t_start == t_end = {t:.3g}",
            "moves, drawn from the generator",
            "moves_in_place = True says that the sampler is a Markov chain at one level",
        )


def result_has_shape_and_dtype(case: SamplerCase) -> None:
    for dtype in (torch.float32, torch.float64):
        for rows in (0, 1, FEW):
            x = case.start(rows).to(dtype)
            y = case.brief(case.density(), x, generator=case.generator())
            expect(
                (y.shape, y.dtype, y.requires_grad) == (x.shape, dtype, False),
                f"{tuple(y.shape)}, {y.dtype}, requires_grad={y.requires_grad}",
                f"{tuple(x.shape)}, {dtype}, detached",
                "the result is a batch like x; an empty batch gives an empty batch",
            )


def input_is_left_alone(case: SamplerCase) -> None:
    x = case.start()
    before = x.clone()
    case.brief(case.density(), x, generator=case.generator())
    expect_same_bits(x, before, "x after the call", "clone x before the first step, which may write into its argument")


def noise_comes_from_the_generator(case: SamplerCase) -> None:
    density, x = case.density(), case.start()
    with default_rng_untouched("a call with a generator"):
        first, again, other = (case.brief(density, x, generator=case.generator(i)) for i in (0, 0, 1))
    expect_same_bits(first, again, "two calls with equally seeded generators", "draw everything from the generator")
    with default_rng_restored():
        calls = [case.brief(density, x) for _ in range(2)]
    expect(
        torch.equal(first, other) == torch.equal(*calls),
        "a sampler that draws with a generator but not without, or the other way round",
        "noise from the generator, or else from torch's default generator",
        "never reseed, and draw with target.normal and target.uniform",
    )


def gradient_modes_are_ignored(case: SamplerCase) -> None:
    density, x = case.density(), case.start()
    expected = case.brief(density, x, generator=case.generator())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = case.brief(density, x.clone(), generator=case.generator())
        expect_same_bits(y, expected, f"the result under {mode.__name__}", "the score needs gradients: switch them on")


def density_runs_in_eval_mode(case: SamplerCase) -> None:
    density = case.density().train()
    density.child.eval()
    case.brief(density, case.start(), generator=case.generator())
    trained = sum(call.training for call in density.calls)
    expect(
        trained == 0,
        f"{trained} calls of a density in train mode",
        "eval mode",
        "dropout or batch statistics would be active in the score; use ncml.density.evaluating",
    )
    expect(
        density.training and not density.child.training,
        f"training flags ({density.training}, {density.child.training})",
        "(True, False), as before the call",
        "restore every flag, not just the outermost",
    )


def context_reaches_the_density(case: SamplerCase) -> None:
    density = case.density()
    context = case.contexts()
    case.brief(density, case.start(), context=context, generator=case.generator())
    # A call may be of some of the rows.
    arrived = [c.context is not None and bool(torch.isin(c.context, context).all()) for c in density.calls]
    seen = torch.cat([c.context.flatten() for c in density.calls if c.context is not None] or [context[:0, 0]])
    expect(
        bool(arrived) and all(arrived) and bool(torch.isin(context, seen).all()),
        f"the context in {sum(arrived)} of {len(arrived)} calls of the density, {seen.unique().numel()} of its "
        f"{FEW} rows in all",
        "in all of them, and all rows",
        "the target has the context of its rows; take the scores from it, those of some rows from target.rows(index)",
    )


def times_out_of_order_are_refused(case: SamplerCase) -> None:
    density, x, T = case.density(), case.start(), case.process.T
    for start, end in ((0.2 * T, 0.6 * T), (1.5 * T, 0.0), (T, -0.1 * T), (math.nan, 0.0)):
        expect_refused(
            partial(case.brief, density, x, start, end),
            f"t_start = {start:.3g}, t_end = {end:.3g} with T = {T:.3g}",
            (ValueError,),
            "samplers go towards the data, from t_start <= T down to t_end >= 0",
        )


CHECKS = (
    equal_times_return_a_copy,
    equal_times_move_a_chain,
    result_has_shape_and_dtype,
    input_is_left_alone,
    noise_comes_from_the_generator,
    gradient_modes_are_ignored,
    density_runs_in_eval_mode,
    context_reaches_the_density,
    times_out_of_order_are_refused,
)
