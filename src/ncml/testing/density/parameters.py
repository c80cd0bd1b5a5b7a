"""Checks of what training follows: the gradients of a density in its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncml.density import NoiseConditionalDensity
from ncml.errors import UnsupportedError
from ncml.testing.cases import DensityCase
from ncml.testing.density.score import STEPS
from ncml.testing.expectations import expect, require

SMALLEST = 0.01
"""Least size of a move of a parameter, where it is near zero."""


def likelihood_has_its_gradient_in_the_parameters(case: DensityCase) -> None:
    density, parameters = _trainable(case)
    x, t, context = case.batch()
    with torch.enable_grad():
        log_p = density(x, t, context)
        slopes = torch.autograd.grad(log_p.sum(), parameters, allow_unused=True) if log_p.requires_grad else ()
    expect(
        any(slope is not None for slope in slopes),
        "log-densities without a graph, and parameters that require gradients",
        "log-densities that autograd can differentiate in them",
        "nothing can be trained: a detach, torch.no_grad, .item() or numpy cuts the graph, or forward uses none of "
        "them; parameters that are not to be trained take requires_grad_(False)",
    )
    for edges in (True, False) if case.density.lattice is not None else (True,):

        def value(edges: bool = edges) -> Tensor:
            result: Tensor = density(x, t, context, edges=edges)
            return result

        _expect_slope(
            case,
            parameters,
            value,
            value,
            f"the log-density{'' if edges else ' without edges'}",
            "a term is detached, computed in numpy or under no_grad: what is trained is not what is computed",
        )


def score_has_its_gradient_in_the_parameters(case: DensityCase) -> None:
    require(case.has_score, "no score")
    density, parameters = _trainable(case)
    x, t, context = case.batch()
    v = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=case.generator(110))

    def value() -> Tensor:
        try:
            score = density.score(x, t, context, create_graph=True)
        except (RuntimeError, UnsupportedError) as error:
            require(False, f"no second derivative: {str(error).splitlines()[0]}")
        return (score * v).flatten(1).sum(1)

    def plain() -> Tensor:
        return (density.score(x, t, context) * v).flatten(1).sum(1)

    _expect_slope(
        case,
        parameters,
        value,
        plain,
        "the score",
        "objectives with a term on the score would train nothing, or something else: build forward_score with "
        "create_graph, without detach",
    )


def _trainable(case: DensityCase) -> tuple[NoiseConditionalDensity, list[nn.Parameter]]:
    """A copy, and what would be trained of it."""
    require(case.density.differentiable, "autograd cannot differentiate it")
    density = case.twin()
    parameters = [p for p in density.parameters() if p.requires_grad and p.is_floating_point()]
    require(bool(parameters), "no parameters to train")
    return density, parameters


def _expect_slope(
    case: DensityCase,
    parameters: list[nn.Parameter],
    value: Callable[[], Tensor],
    plain: Callable[[], Tensor],
    what: str,
    meaning: str,
) -> None:
    """Compare the slope of values ``(B,)`` along a random move of all parameters with finite differences."""
    require(case.dtype == torch.float64, f"dtype={case.dtype}")
    generator = torch.Generator().manual_seed(case.seed)
    moves = []
    for p in parameters:
        size = max(float(p.detach().square().mean().sqrt()), SMALLEST)
        moves.append(size * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p))
    with torch.enable_grad():
        rows = value()
        some = rows.detach().isfinite()  # elsewhere there is nothing to differentiate
        # Of one sign: what all rows have in common, as a log-determinant, must not cancel.
        weights = 0.5 + torch.rand(rows.shape, dtype=torch.float64, generator=generator).to(rows)
        total = torch.where(some, rows * weights, torch.zeros_like(rows)).sum()
        found = torch.zeros((), dtype=torch.float64, device=rows.device)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            parts = [(g * v).sum() for g, v in zip(gradients, moves, strict=True) if g is not None]
            found = torch.stack(parts).sum() if parts else found
    slopes = _differences(parameters, moves, plain)
    slopes = torch.where(some, slopes * weights, torch.zeros_like(slopes))
    errors = (slopes.sum(1) - found).abs() / (1e-3 + slopes.square().sum(1).sqrt())
    error = float(errors.nan_to_num(nan=math.inf).min())
    expect(
        error <= 1e-4,
        f"a gradient of {what} in the parameters that differs from finite differences by {error:.3g} (relative)",
        "at most 0.0001",
        meaning + "; or, very rarely, a kink of the network (ReLU) lies at a point: another seed= then passes",
    )


@torch.no_grad()
def _differences(parameters: list[nn.Parameter], moves: list[Tensor], value: Callable[[], Tensor]) -> Tensor:
    """Fourth-order central differences of ``value()`` along the moves, one row per step; parameters are put back."""
    before = [p.clone() for p in parameters]

    def at(h: float) -> Tensor:
        for p, origin, v in zip(parameters, before, moves, strict=True):
            p.copy_(origin + h * v)
        return value().detach()

    try:
        rows = [(8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h) for h in STEPS.tolist()]
    finally:
        for p, origin in zip(parameters, before, strict=True):
            p.copy_(origin)
    return torch.stack(rows)


CHECKS = (
    likelihood_has_its_gradient_in_the_parameters,
    score_has_its_gradient_in_the_parameters,
)
