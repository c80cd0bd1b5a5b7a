"""A noisy context with clean targets, as in CAM (Pasini et al., 2024, https://arxiv.org/abs/2411.18447).

What the network is given has noise of a random level k, which it is told; what it predicts is clean:

    L = -E log p(x_i | (x + k z)_<i, k).

At k = 0 that is plain likelihood. Samples are drawn value after value, each fed back with a little noise. CAM's own
k is uniform, blends data with noise and belongs to a diffusion model of music; here the levels are those of NCML, so
that all that differs between the two is whether targets are noisy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ncml.densities import MADE, CausalTransformer
from ncml.densities.transformer.cache import CachedPass
from ncml.density import AutoregressiveDensity
from ncml.objective import NCMLObjective

FED_BACK = (0.0, 0.02, 0.05)  # noise of what is fed back, of which one is chosen
ROWS = 5000  # drawn at once

Following = Callable[[Tensor | None, Tensor], Tensor]


def loss(density: AutoregressiveDensity, objective: NCMLObjective, x: Tensor, generator: torch.Generator) -> Tensor:
    """Mean negative log-likelihood of clean windows given noisy ones, at the objective's levels."""
    levels, _ = objective.draw_times(len(x), generator=generator, dtype=x.dtype)
    noisy = objective.process.perturb(x, levels, generator=generator)
    return -density(x, levels, given=noisy).mean()


def step_by_step(density: AutoregressiveDensity, k: Tensor) -> Following:
    """A function that takes what was fed back last, ``(n, 1)`` or None, and uniforms ``(n, 1, 3)``: the next values."""
    clean = torch.ones_like(k, dtype=torch.bool)
    if isinstance(density, CausalTransformer):
        features = density.embed(density.conditioning(k, None))
        cache = CachedPass(density.trunk, features, density.event_shape[0])

        def by_transformer(last: Tensor | None, noise: Tensor) -> Tensor:
            entering = density.first.expand(len(k), 1, -1) if last is None else density.enter(last.unsqueeze(1))
            return density.head.sample(cache.extend(entering)[:, -1], noise, clean)

        return by_transformer
    assert isinstance(density, MADE)
    network = density.net.incremental(density.conditioning(k, None))

    def by_made(last: Tensor | None, noise: Tensor) -> Tensor:
        if last is not None:
            network.push(last[:, 0])
        return density.head.sample(network.outputs().t().unsqueeze(1), noise, clean)

    return by_made


@torch.inference_mode()
def rolled_out(density: AutoregressiveDensity, prefix: Tensor, k: float, generator: torch.Generator) -> Tensor:
    """Windows drawn value after value behind a prefix; the network sees them, prefix and all, with noise k.

    Args:
        density: In eval mode, over windows of one channel, ``(length, 1)``.
        prefix: ``(n, keep)``; what it holds stays as it is.
        k: The noise of what is fed back, which the network is told. 0 is ``density.sample``.
        generator: Of the uniforms behind the values, and of the noise.
    """
    n, keep = prefix.shape
    noise = density.draw_noise(n, generator=generator).view(n, -1, 1, 3)
    following = step_by_step(density, torch.full((n,), k))
    x = prefix.new_empty(n, density.event_shape[0])
    last = None
    for i in range(x.shape[1]):
        drawn = following(last, noise[:, i])
        x[:, i] = prefix[:, i] if i < keep else drawn[:, 0]
        last = x[:, i : i + 1] + (k * torch.randn(n, 1, generator=generator) if k else 0.0)
    return x


def drawn(density: AutoregressiveDensity, n: int, k: float, generator: torch.Generator) -> Tensor:
    """Samples whose values are fed back with noise k, ``(n, length)``."""
    parts = [torch.empty(min(ROWS, n - i), 0) for i in range(0, n, ROWS)]
    return torch.cat([rolled_out(density, part, k, generator) for part in parts])
