"""Checks of what every density promises."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch

from ncml.testing.cases import DensityCase
from ncml.testing.density.score import gradient_or_zero
from ncml.testing.expectations import expect, expect_close, expect_refused, expect_same_bits, require


def float64_copy_works(case: DensityCase) -> None:
    require(case.dtype == torch.float64, f"dtype={case.dtype}")
    x, t, context = case.batch()
    log_p = case.exact.log_prob(x, t, context)
    expect(
        log_p.dtype == torch.float64,
        f"log_prob in {log_p.dtype} of a copy converted with .double()",
        "float64",
        "a density follows .to(dtype); create tensors with the dtype of x and keep constants in buffers",
    )


def float32_agrees_with_float64(case: DensityCase) -> None:
    """The same numbers in both, as far as x in float32 is known at all."""
    require(case.density.dtype == torch.float32, f"its dtype is {case.density.dtype}")
    require(case.dtype == torch.float64, f"dtype={case.dtype}")
    require(case.exact is not case.density, "it cannot be copied")
    require(case.has_score, "it has no score, which says how much rounding x matters")
    single = copy.deepcopy(case.exact).float()
    double = copy.deepcopy(single).double()
    for t in case.times:
        x, context = case.noisy(t, 64).float(), case.contexts(64, dtype=torch.float32)
        wide = None if context is None else context.double() if context.is_floating_point() else context
        for name in ("log_prob", "log_density"):
            coarse = getattr(single, name)(x, t, context).detach().double()
            fine = getattr(double, name)(x.double(), t, wide).detach()
            score = double.score(x.double(), t, wide)
            rounding = (x.double() * score).abs().flatten(1).sum(1)
            allowed = 0.01 + 1e-4 * fine.abs() + 64.0 * torch.finfo(torch.float32).eps * rounding
            error = torch.where(coarse == fine, torch.zeros_like(fine), (coarse - fine).abs())
            worst = int((error / allowed).nan_to_num(nan=math.inf).argmax())
            expect(
                error[worst] <= allowed[worst],
                f"{name} in float32 {float(coarse[worst]):.9g} at t = {t:.3g}",
                f"its value in float64, {float(fine[worst]):.9g}, within {float(allowed[worst]):.2g}",
                "large numbers cancel, or a part runs in half precision: keep log-densities and times in float32",
            )


def evaluations_repeat(case: DensityCase) -> None:
    x, t, context = case.batch()
    for name in case.methods:
        method = getattr(case.exact, name)
        expect_close(
            method(x, t, context),
            method(x, t, context),
            1e-9,
            f"{name} against itself, of the same arguments",
            "something is drawn in eval mode, or left behind by a call: F.dropout drops always unless it is given "
            "training=self.training",
        )


def parameters_are_read_at_every_call(case: DensityCase) -> None:
    require(case.exact is not case.density, "it cannot be copied")
    used, fresh = case.twin(), case.twin()
    require(any(p.is_floating_point() for p in used.parameters()), "no parameters")
    x, t, context = case.batch()
    for name in case.methods:
        getattr(used, name)(x, t, context)
    with torch.no_grad():
        for p in (*used.parameters(), *fresh.parameters()):
            if p.is_floating_point():
                p.mul_(1.01)
    for name in case.methods:
        expect_close(
            getattr(used, name)(x, t, context),
            getattr(fresh, name)(x, t, context),
            1e-9,
            f"{name} with parameters that have changed since the last call against a density never called before",
            "something computed from parameters is kept: it is stale after a training step, load_state_dict or an "
            "average of parameters; compute it at every call",
        )


def log_prob_is_one_number_per_example(case: DensityCase) -> None:
    x, t, context = case.batch(own=True)
    for name in ("log_prob", "log_density"):
        value = getattr(case.copy(), name)(x, t, context)
        expect(
            (tuple(value.shape), value.device) == ((x.shape[0],), x.device) and value.is_floating_point(),
            f"{name} of shape {tuple(value.shape)}, {value.dtype} on {value.device}",
            f"({x.shape[0]},), floating, on {x.device}",
            "sum over event dimensions, not over the batch",
        )


def empty_batches_work(case: DensityCase) -> None:
    x, context = case.x[:0].to(case.density.dtype), case.contexts(0, own=True)
    for t in case.times:
        for name in case.methods:
            shape = tuple(x.shape) if name == "score" else (0,)
            value = getattr(case.copy(), name)(x, t, context)
            expect(
                tuple(value.shape) == shape,
                f"{name} of shape {tuple(value.shape)} for an empty batch",
                f"{shape}",
                "the last batch of a filtered data set may be empty; avoid .view(-1) and statistics over the batch",
            )


def times_as_number_and_tensor_agree(case: DensityCase) -> None:
    density = case.copy()
    for t in case.times:
        x = case.noisy(t).to(case.density.dtype)
        context = case.contexts(x.shape[0], own=True)
        scalar = torch.tensor(t, dtype=torch.float64, device=x.device)
        for name in ("log_prob", "log_density"):
            method = getattr(density, name)
            for form in (scalar, scalar.repeat(x.shape[0])):
                expect_same_bits(
                    method(x, form, context),
                    method(x, t, context),
                    f"{name} at t = {t:.3g} as a tensor of shape {tuple(form.shape)} against a Python float",
                    "all forms of t mean the same; override forward, not log_prob",
                )


def arguments_are_left_alone(case: DensityCase) -> None:
    x, t, context = case.batch(own=True)
    density = case.copy()
    given = [v.clone() for v in (x, t, context) if v is not None]
    for name in case.methods:
        getattr(density, name)(x, t, context)
        for before, after in zip(given, (v for v in (x, t, context) if v is not None), strict=True):
            expect_same_bits(after, before, f"an argument after {name}", "arguments are never written to")


def memory_layout_is_ignored(case: DensityCase) -> None:
    x, t, context = case.batch()
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for name in case.methods:
        method = getattr(case.exact, name)
        expect_close(
            method(strided, t, context),
            method(x, t, context),
            1e-9,
            f"{name} of a strided view against that of a contiguous tensor",
            "use .reshape or .flatten, not .view",
        )


def gradient_modes_are_ignored(case: DensityCase) -> None:
    x, t, context = case.batch()
    meaning = "evaluation runs under no_grad or inference_mode; do not switch gradients off (or on) by hand"
    for name in case.methods:
        method = getattr(case.exact, name)
        expected = method(x, t, context).detach()
        with torch.no_grad():
            expect_close(method(x, t, context), expected, 1e-9, f"{name} under no_grad", meaning)
        with torch.inference_mode():
            inside = (v if v is None else v.clone() for v in (x, t, context))
            expect_close(method(*inside), expected, 1e-9, f"{name} under inference_mode", meaning)


def rows_do_not_interact(case: DensityCase) -> None:
    require(case.differentiable, "autograd cannot differentiate it")
    x, t, context = case.batch()
    x, t, context = x[:4], t[:4], None if context is None else context[:4]
    for training in (False, True):
        density = case.training() if training else case.exact
        for edges in (True, False):  # its call: the public methods always evaluate in eval mode
            leaf = x.clone().requires_grad_()
            log_p = density(leaf, t, context, edges=edges)
            for i in range(4):
                slopes = gradient_or_zero(log_p[i], leaf)
                slopes[i] = 0.0
                expect(
                    not slopes.any(),
                    f"d log p_{i} / d x_j (edges={edges}) up to {float(slopes.abs().max()):.3g} for j != i in "
                    f"{'train' if training else 'eval'} mode",
                    "exactly 0",
                    "examples interact, and one backward pass would mix their scores; BatchNorm is the usual cause: "
                    "use LayerNorm or GroupNorm",
                )


def rows_are_treated_alone(case: DensityCase) -> None:
    x, t, context = case.batch()
    backwards = torch.arange(x.shape[0] - 1, -1, -1, device=x.device)
    for name in ("log_prob", "log_density"):
        method = getattr(case.exact, name)
        whole = method(x, t, context)
        order = method(x[backwards], t[backwards], None if context is None else context[backwards])
        expect_close(
            order[backwards], whole, 1e-9, f"{name} of the batch in another order", "a row depends on its position"
        )
        parts = [
            method(x[i : i + 1], float(t[i]), None if context is None else context[i : i + 1])
            for i in range(x.shape[0])
        ]
        expect_close(
            torch.cat(parts),
            whole,
            1e-9,
            f"{name} row by row against the batch",
            "each row has its own x, t and context; do not use t[0], and no statistics over the batch",
        )


def time_is_used(case: DensityCase) -> None:
    require(len(case.times) > 1, "only one time to check")
    x = case.noisy(max(case.times))
    values = [case.exact.log_density(x, t, case.contexts(x.shape[0])) for t in case.times]
    expect(
        any(not torch.equal(v, values[0]) for v in values[1:]),
        f"the same log-densities at t = {', '.join(f'{t:.3g}' for t in case.times)}",
        "different ones",
        "the density ignores t: condition the network on it (Conditioning), or build the flow with a context",
    )


def context_is_used(case: DensityCase) -> None:
    require(case.context is not None, "no context given")
    x, t, context = case.batch()
    assert context is not None
    require(bool((context != context.roll(1, 0)).any()), "all rows of the context are equal")
    same_x, same_t = x[:1].expand_as(x), t[:1].expand_as(t)
    values = case.exact.log_density(same_x, same_t, context)
    expect(
        bool((values != values[0]).any()),
        "the same log-density of one x under different contexts",
        "different ones",
        "the density ignores its context",
    )


def bad_arguments_are_refused(case: DensityCase) -> None:
    density = case.copy()
    x, context = case.x.to(density.dtype), case.contexts(case.x.shape[0], own=True)
    value = (ValueError,)
    meaning = "let log_prob of the base class check arguments, and override forward"
    expect_refused(lambda: density.log_prob(x.to(torch.uint8), 0.0, context), "x of dtype uint8", (TypeError,), meaning)
    expect_refused(lambda: density.log_prob(x[None], 0.0, context), "x with one more dimension", value, meaning)
    expect_refused(lambda: density.log_prob(x * math.nan, 0.0, context), "x of NaN", value, meaning)
    expect_refused(lambda: density.log_prob(x, -0.1, context), "t = -0.1", value, meaning)
    expect_refused(
        lambda: density.log_prob(x, torch.zeros(x.shape[0] + 1, device=x.device), context),
        "t of shape (B + 1,)",
        value,
        meaning,
    )
    off = x if density.lattice is None else x + 0.37 * density.lattice.width
    for t in case.mass_times:
        expect_refused(
            partial(density.log_prob, off, t, context),
            f"x off the lattice at t = {t:.3g}",
            value,
            "there are only masses at this t; " + meaning,
        )


CHECKS = (
    float64_copy_works,
    float32_agrees_with_float64,
    evaluations_repeat,
    parameters_are_read_at_every_call,
    log_prob_is_one_number_per_example,
    empty_batches_work,
    arguments_are_left_alone,
    times_as_number_and_tensor_agree,
    rows_do_not_interact,
    rows_are_treated_alone,
    memory_layout_is_ignored,
    gradient_modes_are_ignored,
    time_is_used,
    context_is_used,
    bad_arguments_are_refused,
)
