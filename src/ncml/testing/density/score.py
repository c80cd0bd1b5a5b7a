"""Checks of a density's score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.errors import UnsupportedError
from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.expectations import expect, expect_close, require

DIRECTIONS = 4
"""Random directions per example in which the score is compared with finite differences."""

STEPS = torch.tensor([1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], dtype=torch.float64)
"""Steps of the finite differences, in data units or in widths of the density if it is wider; the best counts."""


def _unit(score: Tensor) -> float:
    """A width of the density, at least 1, from scores: the median of ``1 / |s|``."""
    slope = float(score.flatten(1).norm(dim=1).median()) / math.sqrt(score[0].numel())
    return max(1.0, 1.0 / slope) if slope > 1e-9 else 1.0


def gradient_or_zero(value: Tensor, x: Tensor) -> Tensor:
    """Gradient of a scalar in ``x``; zero where it does not depend on ``x``."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (result,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if result is None else result


def score_is_the_gradient(case: DensityCase) -> None:
    require(case.has_score, "no score")
    for t in case.times:
        x = case.noisy(t)
        context = case.contexts(x.shape[0])
        score = case.exact.score(x, t, context).flatten(1)
        some = (
            in_chunks(case.exact.log_density, x, t, context) > -math.inf
        )  # elsewhere there is nothing to differentiate
        unit = _unit(score)
        for i in range(DIRECTIONS):
            v = _direction(case, x, i)
            slopes = _slopes(case, x, t, v * unit) / unit
            errors = (slopes - (score * v.flatten(1)).sum(1)).abs()
            error = errors.nan_to_num(nan=math.inf).amin(0) / (1.0 / unit + score.norm(dim=1))
            error = torch.where(some, error, torch.zeros_like(error))
            expect(
                error.max() <= case.tolerance(1e-5),
                f"a slope that differs from finite differences of log_density by {float(error.max()):.3g} (relative) "
                f"at t = {t:.3g}",
                f"at most {case.tolerance(1e-5):.3g}",
                "a term is detached or missing in the score, or forward computes below its dtype; or, very rarely, a "
                "kink of the network (ReLU) lies at a point: another seed= then passes",
            )


def score_matches_autograd(case: DensityCase) -> None:
    require(case.differentiable, "autograd cannot differentiate it")
    x, t, context = case.batch()
    leaf = x.clone().requires_grad_()
    expected = gradient_or_zero(case.exact.log_density(leaf, t, context).sum(), leaf)
    size = 1.0 / _unit(expected) + expected.flatten(1).norm(dim=1)
    scale = size.reshape(-1, *([1] * (x.ndim - 1)))
    expect_close(
        case.exact.score(x, t, context) / scale,
        expected / scale,
        1e-9,
        "score against the gradient of log_density by autograd",
        "forward_score belongs to another density than forward(..., edges=False)",
    )


def score_leaves_no_trace(case: DensityCase) -> None:
    require(case.has_score, "no score")
    density = case.copy().train()
    x, t, context = case.batch(own=True)
    x.requires_grad_()
    gradients = {p: p.grad for p in density.parameters()}
    score = density.score(x, t, context)
    changed = [type(m).__name__ for m in density.modules() if not m.training]
    expect(not score.requires_grad, "a score with a graph", "a detached score", "it would keep every activation alive")
    expect(
        not changed,
        f"training flags changed on {', '.join(changed)}",
        "flags as before the call",
        "score runs in eval mode and restores every flag",
    )
    touched = any(p.grad is not before for p, before in gradients.items()) or x.grad is not None
    expect(
        not touched,
        "gradients left on parameters or on x",
        "none",
        "they would be added to the next training step; use torch.autograd.grad, not .backward()",
    )


def score_runs_in_eval_mode(case: DensityCase) -> None:
    require(case.has_score, "no score")
    x, t, context = case.batch()
    expected = case.exact.score(x, t, context)
    expect_close(
        case.training().score(x, t, context),
        expected,
        1e-9,
        "score of a density in train mode against eval mode",
        "dropout or batch statistics are active in the score; override forward_score, not score",
    )


def score_can_be_differentiated(case: DensityCase) -> None:
    require(case.has_score, "no score")
    x, t, context = case.batch()
    v = _direction(case, x, 0)
    leaf = x.clone().requires_grad_()
    try:
        score = case.exact.score(leaf, t, context, create_graph=True)
        product = gradient_or_zero((score * v).sum(), leaf)
    except (RuntimeError, UnsupportedError) as error:
        require(False, f"no second derivative: {str(error).splitlines()[0]}")
    expect_close(
        score.detach(), case.exact.score(x, t, context), 1e-9, "score with create_graph=True", "it is the same score"
    )
    slopes = [
        (case.exact.score(x + h * v, t, context) - case.exact.score(x - h * v, t, context)) / (2.0 * h)
        for h in STEPS.tolist()
    ]
    scale = 1.0 + product.flatten(1).norm(dim=1)
    errors = torch.stack([(slope - product).flatten(1).norm(dim=1) / scale for slope in slopes])
    worst = float(errors.nan_to_num(nan=math.inf).amin(0).max())
    expect(
        worst <= case.tolerance(1e-4),
        f"a derivative of the score that differs from finite differences by {worst:.3g} (relative)",
        f"at most {case.tolerance(1e-4):.3g}",
        "the graph of the score is cut: build forward_score with create_graph, without detach",
    )


def _direction(case: DensityCase, x: Tensor, stream: int) -> Tensor:
    """A random unit vector per example."""
    v = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=case.generator(100 + stream))
    return v / v.flatten(1).norm(dim=1).reshape(-1, *([1] * (x.ndim - 1)))


def _slopes(case: DensityCase, x: Tensor, t: float, v: Tensor) -> Tensor:
    """Fourth-order central differences of ``log_density`` along ``v``, one row per step."""
    n, context = x.shape[0], case.contexts(x.shape[0])
    moves = torch.cat([STEPS, -STEPS, 2.0 * STEPS, -2.0 * STEPS]).to(x.device)
    points = x + moves.reshape(-1, *([1] * x.ndim)) * v
    repeated = None if context is None else context.repeat(len(moves), *([1] * (context.ndim - 1)))
    log_p = in_chunks(case.exact.log_density, points.flatten(0, 1), t, repeated).reshape(len(moves), n)
    up, down, far_up, far_down = log_p.chunk(4)
    return (8.0 * (up - down) - (far_up - far_down)) / (12.0 * STEPS.to(x.device)[:, None])


CHECKS = (
    score_is_the_gradient,
    score_matches_autograd,
    score_leaves_no_trace,
    score_runs_in_eval_mode,
    score_can_be_differentiated,
)
