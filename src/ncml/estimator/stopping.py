"""Training that stops early, with the weights whose average so far held-out rows like best."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.errors import LatticeDataWarning
from ncml.objective import NCMLObjective
from ncml.training import EMA, fit

__all__ = ["Watch", "trained"]

EVERY = 25  # steps between two looks at the held-out rows
DECAY = 0.99  # of the moving average: its memory of a hundred steps is short against the training


def trained(
    density: NoiseConditionalDensity,
    objective: NCMLObjective,
    x: Tensor,
    context: Tensor | None,
    *,
    watch: Watch | None,
    **settings: Any,  # noqa: ANN401 -- those of ncml.training.fit
) -> tuple[list[float], int, float]:
    """Train in place; the loss of every step, the step that the weights are of, and what ``watch`` found (or NaN)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LatticeDataWarning)  # the objective spreads such columns
        losses = fit(density, objective, x, context, label="fit", callback=watch, **settings)
    return (losses, len(losses), float("nan")) if watch is None else (losses, *watch.finish())


class Watch:
    """A callback of :func:`ncml.training.fit` that averages the weights, looks at held-out rows, and keeps the best.

    Args:
        density: What is trained.
        log_p: The log-likelihood of the held-out rows under the density as it is now, ``(n,)``.
        row_weights: How much each of them counts, ``(n,)``, in all more than 0.
        steps: The last step, after which it looks whatever its number.
        patience: Looks without a better likelihood before it stops the fit.
    """

    def __init__(
        self,
        density: NoiseConditionalDensity,
        log_p: Callable[[], Tensor],
        row_weights: Tensor,
        *,
        steps: int,
        patience: int,
    ) -> None:
        self.log_p, self.row_weights, self.steps, self.patience = log_p, row_weights, steps, patience
        self.average = EMA(density.parameters(), DECAY)
        self.best, self.at, self.bad = (0.0, -math.inf), 0, 0  # share of rows with a density, and its logarithm's mean
        self.kept = [p.detach().clone() for p in self.average.average]

    def __call__(self, step: int) -> bool:
        self.average.update()
        if step % EVERY and step != self.steps:
            return False
        with self.average.applied():
            log_p = self.log_p()
        # A row that has no density yet must not decide alone.
        finite, weight = log_p.isfinite(), self.row_weights.to(log_p)
        counted = weight[finite].sum()
        value = float(counted / weight.sum()), float((weight * log_p)[finite].sum() / counted)
        self.bad += 1
        if value > self.best or self.at == 0:
            self.best, self.at, self.bad = value, step, 0
            self.kept = [p.clone() for p in self.average.average]
        return self.bad >= self.patience

    def finish(self) -> tuple[int, float]:
        """Put the best weights in place; the step they are of, and their likelihood."""
        with torch.no_grad():
            for p, best in zip(self.average.parameters, self.kept, strict=True):
                p.copy_(best)
        share, mean = self.best
        return self.at, mean if share == 1.0 else -math.inf
