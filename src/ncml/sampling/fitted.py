r"""A grid of times fitted to a density: where its trajectories bend, steps are short."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ncml.checks import check_count
from ncml.density import Target
from ncml.errors import ArgumentError
from ncml.sampling.grids import Given
from ncml.sampling.multistep import MultistepODE

__all__ = ["cheapest_way", "fit_grid"]


def cheapest_way(cost: NDArray[np.float64] | Sequence[Sequence[float]], steps: int) -> list[int]:
    """The path of least cost from the first place to the last, in a given number of steps, by dynamic programming.

    Args:
        cost: Costs of a step from place i to place j > i, ``(n, n)``; the rest is not looked at.
        steps: Number of steps, at most n - 1.

    Returns:
        The places, ``steps + 1`` increasing indices.
    """
    table = np.asarray(cost, dtype=np.float64)
    table = np.where(np.triu(np.ones(table.shape, dtype=bool), 1), table, np.inf)
    reached = np.full(len(table), np.inf)
    reached[0] = 0.0
    before = []
    for _ in range(steps):
        total = reached[:, None] + table
        before.append(total.argmin(0))
        reached = total.min(0)
    way = [len(table) - 1]
    for came_from in reversed(before):
        way.append(int(came_from[way[-1]]))
    return way[::-1]


def fit_grid(
    density: nn.Module | Target,
    x: Tensor,
    steps: int,
    t_start: float | None = None,
    t_end: float | None = None,
    *,
    context: Tensor | None = None,
    candidates: int = 64,
) -> Given:
    r"""The grid of a given number of steps that has the least sum of DDIM's errors along exact trajectories.

    The probability flow is followed exactly from samples x at ``t_start``, through ``candidates`` times evenly spaced
    in log-SNR. A step of DDIM from each to every later one, begun on the trajectory, has an error against it,

    .. math:: c_{ij} = E\, \Bigl\| \frac{\sigma_j}{\sigma_i} x_i
              + \Bigl(\alpha_j - \frac{\sigma_j}{\sigma_i} \alpha_i\Bigr) D(x_i, t_i) - x_j \Bigr\|^2,

    and the path with the least sum of :math:`\sqrt{c}` is found by dynamic programming, as in Chen et al. (2024, "On
    the trajectory regularity of ODE-based diffusion sampling"). The grid serves any sampler that takes steps
    (``DDIM(grid=...)``) and most of all first order and few steps.

    Args:
        density: A density, or a target.
        x: Some samples at ``t_start``, for instance 64: they are followed.
        steps: Number of steps.
        t_start, t_end: As for a sampler; T and 0 if None.
        context: Conditioning with a row per sample, or None.
        candidates: Times to choose among; twice as many scores of x are spent.

    Returns:
        The grid, which ignores the sampler's ``steps``.

    Raises:
        ArgumentError: More steps than candidates; whatever a sampler refuses.

    Example:
        >>> density = GaussianMixtureDensity(VESDE.linear(5.0), [0.5, 0.5], [-1.0, 1.0], 0.2)
        >>> grid = ncml.sampling.fit_grid(density, density.sample(32, 5.0), steps=6)
        >>> len(grid.times), ncml.sampling.DDIM(grid=grid)(density, density.sample(4, 5.0)).shape
        (7, torch.Size([4, 1]))
    """
    steps = check_count(steps, "steps")
    candidates = check_count(candidates, "candidates")
    if steps > candidates:
        raise ArgumentError(f"steps: got {steps}; expected at most candidates = {candidates}")
    if isinstance(x, Tensor) and not len(x):
        raise ArgumentError(f"x: got shape {tuple(x.shape)}; expected at least one sample, which is followed")
    sampler = MultistepODE(candidates, "log-snr", order=3)
    path = sampler.refine(density, x, t_start, t_end, context=context, path=True).path
    times, places = [float(t) for t, _ in path], [y for _, y in path]
    target, _ = sampler.bind(density, context=context).bound(x, times[0])
    cost = np.zeros((len(times), len(times)))
    with target.evaluating(), torch.no_grad():
        alphas, sigmas = ([float(f(t)) for t in times] for f in (target.alpha, target.sigma))
        for i, (t, y) in enumerate(zip(times[:-1], places, strict=False)):
            clean = target.denoise(y.clone(), t)
            for j in range(i + 1, len(times)):
                ratio = sigmas[j] / sigmas[i]
                error = ratio * y + (alphas[j] - ratio * alphas[i]) * clean - places[j]
                cost[i, j] = float(error.double().square().mean().sqrt())
    return Given(tuple(times[i] for i in cheapest_way(cost, min(steps, len(times) - 1))))
