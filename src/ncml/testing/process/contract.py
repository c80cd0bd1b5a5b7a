"""Checks of what every noise process promises."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import (
    default_rng_restored,
    default_rng_untouched,
    expect,
    expect_close,
    expect_refused,
    expect_same_bits,
    require,
)


def largest_time_is_a_positive_number(case: ProcessCase) -> None:
    T = case.process.T
    expect(
        isinstance(T, (int, float)) and 0.0 < T < math.inf,
        f"T = {T!r}",
        "a finite Python number > 0",
        "processes are made of Python floats, so that they follow the dtype and device of the data",
    )


def perturb_keeps_shape_and_dtype(case: ProcessCase) -> None:
    for dtype in (torch.float32, torch.float64):
        x = case.x.to(dtype)
        for rows in (x, x[:1], x[:0]):
            y = case.process.perturb(rows, case.process.T, generator=case.generator())
            expect(
                (y.shape, y.dtype, y.device) == (rows.shape, rows.dtype, rows.device),
                f"{tuple(y.shape)}, {y.dtype}, {y.device}",
                f"{tuple(rows.shape)}, {rows.dtype}, {rows.device}",
                "x_t has the shape, dtype and device of x; cast coefficients with .to(x.dtype)",
            )


def perturb_leaves_its_arguments_alone(case: ProcessCase) -> None:
    x, noise, t = case.x.clone(), case.noise(case.x), case.times
    before = noise.clone()
    y = case.process.perturb(x, t, noise=noise)
    y.add_(1.0)
    case.process.perturb(x, 0.0, noise=noise).add_(1.0)
    meaning = "x, t and noise are never written to, and the result is never a view of them; return a new tensor"
    expect_same_bits(x, case.x, "x after perturb", meaning)
    expect_same_bits(noise, before, "noise after perturb", meaning)
    expect_same_bits(t, case.times, "t after perturb", meaning)


def perturb_ignores_memory_layout(case: ProcessCase) -> None:
    noise = case.noise(case.x)
    strided = torch.stack([case.x, case.x], dim=-1)[..., 0]
    expect_close(
        case.process.perturb(strided, case.times, noise=noise),
        case.process.perturb(case.x, case.times, noise=noise),
        1e-12,
        "perturb of a strided view against that of a contiguous tensor",
        "something reads the storage rather than the values, such as .view() or .data_ptr()",
    )


def perturb_at_zero_returns_the_data(case: ProcessCase) -> None:
    require(case.starts_at_data, "starts_at_data=False")
    noise = case.noise(case.x)
    meaning = (
        "t = 0 is the data itself: every likelihood at t = 0 would otherwise be one of noisy data; "
        "select x where t == 0 (-0.0 + 0.0 loses its sign)"
    )
    for dtype in (torch.float32, torch.float64):
        x = case.x.to(dtype)
        expect_same_bits(case.process.perturb(x, 0.0, noise=noise.to(dtype)), x, "perturb(x, 0) against x", meaning)
    mixed = case.process.perturb(case.x, case.times, noise=noise)
    expect_same_bits(mixed[:1], case.x[:1], "the row with t = 0 of a batch of mixed times against x", meaning)


def times_as_number_and_tensor_agree(case: ProcessCase) -> None:
    noise, t = case.noise(case.x), 0.37 * case.process.T
    number = case.process.perturb(case.x, t, noise=noise)
    scalar = torch.tensor(t, dtype=torch.float64, device=case.x.device)
    for name, form in (("0-d tensor", scalar), ("(B,) tensor", scalar.repeat(case.x.shape[0]))):
        expect_same_bits(
            case.process.perturb(case.x, form, noise=noise),
            number,
            f"perturb with t as {name} against a Python float",
            "all forms of t mean the same; expand t to (B,) before using it",
        )


def perturb_treats_rows_alone(case: ProcessCase) -> None:
    noise, t = case.noise(case.x), 0.5 * case.process.T
    whole = case.process.perturb(case.x, t, noise=noise)
    parts = [case.process.perturb(case.x[i : i + 1], t, noise=noise[i : i + 1]) for i in range(case.x.shape[0])]
    expect_close(
        torch.cat(parts),
        whole,
        1e-12,
        "rows perturbed one by one against together",
        "examples must not interact: use no statistics over the batch",
    )


def rows_use_their_own_time(case: ProcessCase) -> None:
    noise, times = case.noise(case.x), case.times
    whole = case.process.perturb(case.x, times, noise=noise)
    parts = [case.process.perturb(case.x[i : i + 1], float(t), noise=noise[i : i + 1]) for i, t in enumerate(times)]
    expect_close(
        torch.cat(parts),
        whole,
        1e-12,
        "a batch of different times against row by row",
        "each row has its own t; do not use t[0] or t.mean(); view t as (B, 1, ..., 1)",
    )


def generator_gives_the_noise(case: ProcessCase) -> None:
    with default_rng_untouched("perturb with a generator"):
        first, again = (case.process.perturb(case.x, case.process.T, generator=case.generator()) for _ in range(2))
    expect_same_bits(
        first, again, "two calls with equally seeded generators", "draw everything from the given generator"
    )
    expect(
        not torch.equal(case.noise(case.x), case.noise(case.x, 1)),
        "the same noise from two differently seeded generators",
        "different draws",
        "the generator is ignored",
    )


def given_noise_is_used(case: ProcessCase) -> None:
    noise, other = case.noise(case.x), case.noise(case.x, 1)
    with default_rng_untouched("perturb with noise="):
        given = case.process.perturb(case.x, case.process.T, noise=noise)
    expect_same_bits(
        given,
        case.process.perturb(case.x, case.process.T, generator=case.generator()),
        "perturb(noise=draw_noise(x)) against perturb with the same generator",
        "both must draw alike, so that noise can be drawn once and shared out; draw with self.draw_noise",
    )
    if case.lattice is None:  # the moves of a discrete process may be rare; they are counted elsewhere
        expect(
            not torch.equal(given, case.process.perturb(case.x, case.process.T, noise=other)),
            "the same x_t from different noise=",
            "x_t as a function of the given noise",
            "the noise argument is ignored",
        )


def noise_is_fresh(case: ProcessCase) -> None:
    x = case.x[:1].expand(64, *case.x.shape[1:]).double()
    meaning = "every value of every row gets its own noise: draw a tensor of the shape of x, at every call"
    noise = case.noise(x)
    expect(noise.unique().numel() == noise.numel(), "draw_noise with repeated values", "independent draws", meaning)
    with default_rng_restored():
        calls = [case.process.draw_noise(x) for _ in range(2)]
    expect(not torch.equal(*calls), "the same noise from two calls without a generator", "fresh noise", meaning)
    if case.lattice is None:
        y = case.process.perturb(x, case.process.T, generator=case.generator())
        expect(y.flatten(1).unique(dim=0).shape[0] == y.shape[0], "equal x_t of different rows", "fresh noise", meaning)


def bad_times_are_refused(case: ProcessCase) -> None:
    T, n = case.process.T, case.x.shape[0]
    bad: dict[str, float | Tensor] = {
        "t = -0.1 T": -0.1 * T,
        "t = 1.5 T": 1.5 * T,
        "t = NaN": math.nan,
        "t of shape (B + 1,)": case.times.new_full((n + 1,), T),
        "t of shape (B, 1)": case.times[:, None],
    }
    for what, t in bad.items():
        expect_refused(
            partial(case.process.perturb, case.x, t),
            what,
            (ValueError, TypeError),
            "such a t would give noise of another level, silently; require 0 <= t <= T and the shape () or (B,)",
        )


def bad_data_are_refused(case: ProcessCase) -> None:
    process, T = case.process, case.process.T
    expect_refused(
        lambda: process.perturb(case.x.to(torch.uint8), T), "uint8 data", (TypeError,), "integers wrap silently"
    )
    expect_refused(
        lambda: process.perturb(case.x, T, noise=case.noise(case.x)[:1]),
        "noise of another shape than x",
        (ValueError, TypeError),
        "it would be broadcast: rows would share noise",
    )


def equality_and_hash_are_by_value(case: ProcessCase) -> None:
    process: Any = case.process
    twin = copy.deepcopy(process)
    meaning = "objectives and samplers compare processes with ==; make it a frozen dataclass of Python floats"
    expect(process == twin, "a copy that is not equal", "process == copy", meaning)
    expect(hash(process) == hash(twin), "a copy with another hash", "equal hashes", meaning)
    expect(process != object(), "equality with an unrelated object", "process != object()", meaning)
    settings = dataclasses.fields(process) if dataclasses.is_dataclass(process) else ()
    if any(f.name == "T" and f.init for f in settings):
        other = dataclasses.replace(process, T=0.5 * process.T)
        expect(process != other, "equality with a process of another T", "process != other", meaning)


def on_lattice_has_the_shape_of_t(case: ProcessCase) -> None:
    for t, shape in ((0.0, ()), (case.process.T, ()), (case.times, tuple(case.times.shape))):
        on = case.process.on_lattice(t)
        expect(
            isinstance(on, Tensor) and on.dtype == torch.bool and tuple(on.shape) == shape,
            f"{on!r}",
            f"a bool tensor of shape {shape}",
            "on_lattice answers for every t; it decides where likelihoods are masses",
        )
    if case.starts_at_data:
        expect(
            case.process.on_lattice(0.0),
            "on_lattice(0) = False",
            "True: at t = 0 the data are untouched",
            "lattice densities would give up their exact masses at t = 0",
        )


CHECKS = (
    largest_time_is_a_positive_number,
    perturb_keeps_shape_and_dtype,
    perturb_leaves_its_arguments_alone,
    perturb_ignores_memory_layout,
    perturb_at_zero_returns_the_data,
    times_as_number_and_tensor_agree,
    noise_is_fresh,
    perturb_treats_rows_alone,
    rows_use_their_own_time,
    generator_gives_the_noise,
    given_noise_is_used,
    bad_times_are_refused,
    bad_data_are_refused,
    equality_and_hash_are_by_value,
    on_lattice_has_the_shape_of_t,
)
