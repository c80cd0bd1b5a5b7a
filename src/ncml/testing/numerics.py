r"""Statistical bounds and quadrature.

**Statistics.** Each comparison has a false-alarm probability of about :math:`10^{-9}`, two-sided: a suite of a
thousand stays below :math:`10^{-6}`. For a normal statistic that is z = 6.11.

**Quadrature.** Gauss-Legendre panels. The whole line is reached by :math:`x = c + s \sinh y` with
:math:`|y| \le 12`: even steps of s near the centre, and tails out to 80,000 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Z = 6.11
FALSE_ALARM = 1e-9
PANELS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
"""Panel boundaries in y of one half of the line: finer where the mass is."""


def chi2_tail(total: float, n: int) -> float:
    """Two-sided p-value of a sum of ``n`` squared standard normals, exact."""
    half, value = (torch.tensor(0.5 * v, dtype=torch.float64) for v in (n, total))
    tails = torch.special.gammainc(half, value), torch.special.gammaincc(half, value)
    return min(1.0, 2.0 * float(min(tails)))


def dkw_bound(n: int) -> float:
    """Bound on the distance of an empirical CDF of ``n`` draws (Dvoretzky-Kiefer-Wolfowitz)."""
    return math.sqrt(math.log(2.0 / FALSE_ALARM) / (2.0 * n))


def cdf_distance(u: Tensor) -> float:
    """Largest distance between the empirical CDF of values in [0, 1] and the uniform's."""
    u = u.flatten().sort().values
    steps = torch.arange(u.numel() + 1, dtype=u.dtype, device=u.device) / u.numel()
    return float(torch.maximum((steps[1:] - u).max(), (u - steps[:-1]).max()))


def binomial_bound(n: int, p: Tensor) -> Tensor:
    """Bound on ``|count - n p|`` for ``n`` trials (Bernstein, no approximation); 0 where p is 0 or 1."""
    log_term = math.log(2.0 / FALSE_ALARM)
    variance = n * p * (1.0 - p)
    bound = log_term / 3.0 + (log_term**2 / 9.0 + 2.0 * variance * log_term).sqrt()
    return torch.where(variance == 0, torch.zeros_like(bound), bound)


def gauss_legendre(breaks: Tensor, nodes: int = 8) -> tuple[Tensor, Tensor]:
    """Nodes and weights of one Gauss-Legendre rule per interval of the increasing ``breaks``, float64."""
    x, w = (torch.from_numpy(v).to(breaks) for v in np.polynomial.legendre.leggauss(nodes))
    half = 0.5 * breaks.diff()[:, None]
    centre = breaks[:-1, None] + half
    return (centre + half * x).flatten(), (half * w).flatten()


def integrate(function: Callable[[Tensor], Tensor], start: float, length: float) -> float:
    r"""Integral over ``[start, start + length]`` of a function of a vector of times, in float64.

    Substitutes :math:`t = start + length\, u^2`, which removes a square-root singularity at the start.
    """
    u, w = gauss_legendre(torch.linspace(0.0, 1.0, 129, dtype=torch.float64))
    return float((w * 2.0 * length * u * function(start + length * u.square()).double()).sum())


def line_rule(center: float, scale: float, *, splits: int, breaks: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the whole line; ``center`` and ``breaks`` are panel boundaries.

    Args:
        center, scale: Where the integrand lives, roughly.
        splits: Each of the 12 panels (and those between breaks) is divided into so many.
        breaks: Points where the integrand may jump.
    """
    half = torch.tensor(PANELS, dtype=torch.float64)
    y = torch.cat([-half.flip(0)[:-1], half])
    extra = torch.asinh((torch.tensor(list(breaks), dtype=torch.float64) - center) / scale)
    y = torch.cat([y, extra.clamp(-PANELS[-1], PANELS[-1])]).unique()
    parts = torch.arange(splits, dtype=torch.float64) / splits
    y = torch.cat([(y[:-1, None] + y.diff()[:, None] * parts).flatten(), y[-1:]])
    nodes, weights = gauss_legendre(y, nodes=6)
    return center + scale * torch.sinh(nodes), weights * scale * torch.cosh(nodes)
