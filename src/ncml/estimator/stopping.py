"""When a fit stops, and with which weights: the average of those so far that held-out rows like best."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.training import EMA

__all__ = ["Watch"]

EVERY = 25  # steps between two looks at the held-out rows
DECAY = 0.99  # of the moving average: its memory of a hundred steps is short against the training


class Watch:
    """A callback of :func:`ncml.training.fit` that averages the weights, looks at held-out rows, and keeps the best.

    Args:
        density: What is trained.
        log_p: The log-likelihood of the held-out rows under the density as it is now, ``(n,)``.
        steps: The last step, after which it looks whatever its number.
        patience: Looks without a better likelihood before it stops the fit.
    """

    def __init__(
        self, density: NoiseConditionalDensity, log_p: Callable[[], Tensor], *, steps: int, patience: int
    ) -> None:
        self.log_p, self.steps, self.patience = log_p, steps, patience
        self.average = EMA(density.parameters(), DECAY)
        self.best, self.at, self.bad = (0.0, -math.inf), 0, 0  # share of rows with a density, and its logarithm's mean
        self.weights = [p.detach().clone() for p in self.average.average]

    def __call__(self, step: int) -> bool:
        self.average.update()
        if step % EVERY and step != self.steps:
            return False
        with self.average.applied():
            log_p = self.log_p()
        # A row that has no density yet must not decide alone.
        finite = log_p.isfinite()
        value = float(finite.double().mean()), float(log_p[finite].mean())
        self.bad += 1
        if value > self.best or self.at == 0:
            self.best, self.at, self.bad = value, step, 0
            self.weights = [p.clone() for p in self.average.average]
        return self.bad >= self.patience

    def finish(self) -> tuple[int, float]:
        """Put the best weights in place; the step they are of, and their likelihood."""
        with torch.no_grad():
            for p, best in zip(self.average.parameters, self.weights, strict=True):
                p.copy_(best)
        share, mean = self.best
        return self.at, mean if share == 1.0 else -math.inf
