"""What the objective asks of a density's score beside the likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.density import score_of
from ncml.noise import GaussianProcess

__all__ = ["score_error"]


def score_error(
    density: nn.Module, process: GaussianProcess, x_t: Tensor, t: Tensor, context: Tensor | None, noise: Tensor
) -> Tensor:
    """Half of the squared error of the score, in units of the noise; 0 at t = 0, where there is none."""
    noisy = t > 0.0
    # One row at least: every process of a distributed run makes the same calls.
    rows = noisy.nonzero()[:, 0] if bool(noisy.any()) else torch.zeros(1, dtype=torch.long, device=t.device)
    given = None if context is None else context[rows]
    score = score_of(density, x_t[rows], t[rows], given, create_graph=torch.is_grad_enabled())
    sigma = process.sigma(t[rows]).to(score.dtype).view(-1, *[1] * (score.ndim - 1))
    squared = 0.5 * (sigma * score + noise[rows]).flatten(1).square().sum(1)
    error = torch.zeros_like(squared[:1]).expand(len(t)).index_put((rows,), squared)
    return torch.where(noisy, error, 0.0)
