"""Checks of the autoregressive interface: order, causality, and samples as a function of noise."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ncml.density import AutoregressiveDensity
from ncml.testing.cases import DensityCase
from ncml.testing.expectations import default_rng_untouched, expect, expect_close, expect_same_bits, require

ROWS = 8
POSITIONS = 16
"""Most positions whose future is replaced."""


def _autoregressive(case: DensityCase) -> AutoregressiveDensity:
    require(isinstance(case.exact, AutoregressiveDensity), "not an AutoregressiveDensity")
    return cast(AutoregressiveDensity, case.exact)


def order_is_a_permutation(case: DensityCase) -> None:
    order = _autoregressive(case).order
    expect(
        order.dtype == torch.int64 and order.tolist() != [] and sorted(order.tolist()) == list(range(case.dims)),
        f"order = {order.tolist()[:16]} ({order.dtype})",
        f"an int64 permutation of 0 .. {case.dims - 1}",
        "it lists the flat event indices in the order in which they are sampled",
    )


def drawn_noise_has_one_row_per_sample(case: DensityCase) -> None:
    density = _autoregressive(case)
    with default_rng_untouched("draw_noise with a generator"):
        first, again = (density.draw_noise(ROWS, generator=case.generator()) for _ in range(2))
    expect_same_bits(first, again, "draw_noise of equally seeded generators", "draw everything from the generator")
    expect(
        first.shape[0] == ROWS and first.flatten(1).unique(dim=0).shape[0] == ROWS,
        f"noise of shape {tuple(first.shape)} with {first.flatten(1).unique(dim=0).shape[0]} different rows",
        f"{ROWS} different rows",
        "samples must not share noise",
    )


def samples_are_a_function_of_the_noise(case: DensityCase) -> None:
    density = _autoregressive(case)
    noise = density.draw_noise(ROWS, generator=case.generator())
    context = case.contexts(ROWS)
    for t in case.times:
        with default_rng_untouched("sample with noise="):
            first, again = (density.sample(ROWS, t, context, noise=noise) for _ in range(2))
        expect_same_bits(first, again, "two samples of the same noise", "noise= leaves nothing else to draw")
        drawn = density.sample(ROWS, t, context, generator=case.generator())
        expect_same_bits(drawn, first, "sample(generator) against sample(noise=draw_noise(generator))", "draw alike")


def resampling_is_causal(case: DensityCase) -> None:
    density = _autoregressive(case)
    order = density.order
    noise = density.draw_noise(ROWS, generator=case.generator())
    for t in case.times:
        x = case.noisy(t, ROWS)
        other = x[torch.randperm(ROWS, generator=case.generator(5), device=x.device)]
        other = other if case.has_masses(t) else other + 1.0
        before = density.resample(x, noise, t, case.contexts(ROWS)).flatten(1)
        for k in range(0, case.dims, max(1, case.dims // POSITIONS)):
            later = order[k:]
            changed = x.flatten(1).clone()
            changed[:, later] = other.flatten(1)[:, later]
            after = density.resample(changed.reshape(x.shape), noise, t, case.contexts(ROWS)).flatten(1)
            seen = order[: k + 1]
            moved = seen[(after[:, seen] != before[:, seen]).any(0)]
            expect(
                moved.numel() == 0,
                f"index {moved.tolist()[:4]} changed by values at its own or a later position at t = {t:.3g}",
                f"position {k} of the order to depend on the {k} positions before it only, and so on down, bit for bit",
                "a mask is wrong (diagonal included, order reversed): the product of conditionals is not a density",
            )


def samples_are_fixed_points_of_resampling(case: DensityCase) -> None:
    density = _autoregressive(case)
    noise = density.draw_noise(ROWS, generator=case.generator())
    context = case.contexts(ROWS)
    for t in case.times:
        x: Tensor = density.sample(ROWS, t, context, noise=noise)
        expect_close(
            density.resample(x, noise, t, context),
            x,
            1e-7,
            f"resample(sample(noise), noise) against sample(noise) at t = {t:.3g}",
            "both draw position i from the same conditional with the same noise; Jacobi sampling relies on it",
        )


CHECKS = (
    order_is_a_permutation,
    drawn_noise_has_one_row_per_sample,
    samples_are_a_function_of_the_noise,
    resampling_is_causal,
    samples_are_fixed_points_of_resampling,
)
