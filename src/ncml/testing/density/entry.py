"""Checks of the one entry into a density, its call: what the public methods are made of, and what hooks see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.density import NoiseConditionalDensity
from ncml.testing.cases import DensityCase
from ncml.testing.expectations import default_rng_restored, expect, expect_close, require


def call_is_log_prob(case: DensityCase) -> None:
    x, t, context = case.batch()
    expect_close(
        case.exact(x, t, context),
        case.exact.log_prob(x, t, context),
        1e-9,
        "density(x, t) against log_prob",
        "training takes the call, evaluation log_prob: both are forward; do not override log_prob",
    )


def call_without_edges_is_log_density(case: DensityCase) -> None:
    x, t, context = case.batch()
    expect_close(
        case.exact(x, t, context, edges=False),
        case.exact.log_density(x, t, context),
        1e-9,
        "density(x, t, edges=False) against log_density",
        "samplers and scores take the call; do not override log_density",
    )


def hooks_see_every_call(case: DensityCase) -> None:
    density = case.copy()
    x, t, context = case.batch(own=True)
    seen: list[nn.Module] = []
    handle = density.register_forward_hook(lambda module, *_: seen.append(module))
    # A score in closed form has no need of the call.
    closed = type(density).forward_score is not NoiseConditionalDensity.forward_score
    for name in case.methods[: 2 if closed else 3]:
        seen.clear()
        getattr(density, name)(x, t, context)
        expect(
            len(seen) > 0,
            f"{name} without a call that a forward hook sees",
            "at least one",
            "go through density(x, t, context, edges=...), not density.forward: compiled models and wrappers are "
            "bypassed otherwise",
        )
    handle.remove()


def train_mode_is_the_same_function(case: DensityCase) -> None:
    x, t, context = case.batch()

    def value(density: NoiseConditionalDensity, seed: int) -> Tensor:
        with default_rng_restored(), torch.no_grad():
            torch.manual_seed(seed)
            result: Tensor = density(x, t, context)
        return result

    evaluated, training = value(case.exact, 0), case.training()
    first, other = value(training, 0), value(training, 1)
    require(torch.equal(first, other), "random in train mode")
    expect_close(
        first,
        evaluated,
        1e-9,
        "the call in train mode against eval mode",
        "nothing random tells them apart, so that what is trained is not what is evaluated",
    )


CHECKS = (
    call_is_log_prob,
    call_without_edges_is_log_density,
    hooks_see_every_call,
    train_mode_is_the_same_function,
)
