r"""Statistical bounds and quadrature.

**Statistics.** Each comparison has a false-alarm probability of about :math:`10^{-9}`, two-sided: a suite of a
thousand stays below :math:`10^{-6}`. For a normal statistic that is z = 6.11.

**Quadrature.** Gauss-Legendre panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Z = 6.11
FALSE_ALARM = 1e-9
PANELS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
"""Panel boundaries of one half of the line: finer where the mass is."""


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


def binomial_bound(n: int | Tensor, p: Tensor) -> Tensor:
    """Bound on ``|count - n p|`` for ``n`` trials (Bernstein, no approximation); 0 where p is 0 or 1."""
    log_term = math.log(2.0 / FALSE_ALARM)
    variance = n * p * (1.0 - p)
    bound = log_term / 3.0 + (log_term**2 / 9.0 + 2.0 * variance * log_term).sqrt()
    return torch.where(variance == 0, torch.zeros_like(bound), bound)


def count_tail(count: int, p: Tensor) -> float:
    """Two-sided p-value, at most, of a count of independent events with probabilities ``p`` (Chernoff)."""
    tilt = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64, device=p.device)
    exponent = torch.log1p(p[:, None] * torch.expm1(tilt)).sum(0) - tilt * count
    return min(1.0, 2.0 * math.exp(float(exponent.min())))


def poisson_tail(count: int, mean: float) -> float:
    """Two-sided p-value of a count of rare events; an upper bound for a binomial count's, away from its mean."""
    low = torch.special.gammaincc(torch.tensor(count + 1.0).double(), torch.tensor(mean).double())
    high = torch.special.gammainc(torch.tensor(float(count)).double(), torch.tensor(mean).double()) if count else 1.0
    return min(1.0, 2.0 * min(float(low), float(high)))


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
