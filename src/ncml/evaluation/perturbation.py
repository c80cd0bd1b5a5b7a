"""How far a noise process moves data: the right-hand panel of the paper's Figure 4."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.checks import check_finite, check_floating, check_generator, is_real, time_in_range
from ncml.errors import ArgumentError
from ncml.noise import GaussianProcess, Lattice, LevelNoise, NoiseProcess
from ncml.noise.gaussian import as_gaussian

__all__ = ["crossing_time", "mean_abs_perturbation"]


def mean_abs_perturbation(
    process: NoiseProcess, x: Tensor, t: float, *, generator: torch.Generator | None = None
) -> float:
    r"""Mean of :math:`|x_t - x_0|` over the values of x and the noise, in data units.

    Exact for Gaussian processes, where :math:`x_t - x_0 \sim N(\mu, \sigma^2)` with
    :math:`\mu = (\alpha - 1) x_0`, so that the mean of its absolute value (folded normal) is

    .. math:: \sigma \sqrt{2/\pi}\; e^{-\mu^2 / 2\sigma^2} + \mu \operatorname{erf}(\mu / \sqrt 2 \sigma),

    and for :class:`~ncml.LevelNoise` (moved fraction times one level). For other processes it is the
    mean over one draw per value.

    Args:
        process: The noise process.
        x: Data of any shape, at least one value.
        t: One time in ``[0, T]``.
        generator: Source of the draw, where there is one.

    Raises:
        ArgumentError: An empty or non-finite ``x``, or t out of range.
    """
    t = time_in_range(t, process.T)
    _check_values(x)
    if isinstance(process, GaussianProcess):
        return _GaussianMeanAbs(process, x)(t)
    if isinstance(process, LevelNoise):
        process.lattice.check(x)
        return process.moved_fraction(x, t) * process.lattice.width
    check_generator(generator, x.device)
    return float((process.perturb(x, t, generator=generator) - x).abs().double().mean())


def crossing_time(process: NoiseProcess, x: Tensor, lattice: Lattice, *, levels: float = 1.0) -> float:
    r"""The time at which :func:`mean_abs_perturbation` reaches ``levels`` levels.

    The paper finds models robust to level noise from about the time at which the process moves each
    value by one level (section 4.1).

    Args:
        process: A Gaussian process whose mean perturbation grows with t, as those of ncml do.
        x: Data of any shape.
        lattice: Says how wide a level is.
        levels: The perturbation to reach.

    Returns:
        The time, to the last bits of float64; 0 if it is already there at t = 0.

    Raises:
        UnsupportedError: The process is not Gaussian.
        ArgumentError: The process does not reach it by T, or it is negative.
    """
    process = as_gaussian(process, "whose mean perturbation grows with t")
    _check_values(x)
    if not is_real(levels) or not levels >= 0.0:  # NaN fails too
        raise ArgumentError(f"levels: got {levels!r}; expected a mean perturbation >= 0")
    mean_abs, target = _GaussianMeanAbs(process, x), levels * lattice.width
    low, high = 0.0, process.T
    if mean_abs(high) < target:
        raise ArgumentError(
            f"levels: got {levels}; expected at most {mean_abs(high) / lattice.width:.6g}, the mean perturbation at T; "
            f"build the process with at_noise(std) for a larger T"
        )
    if mean_abs(low) >= target:
        return 0.0
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if mean_abs(middle) < target else (low, middle)
    return high


def _check_values(x: Tensor) -> None:
    check_floating(x, "x")
    if x.numel() == 0:
        raise ArgumentError(f"x: got shape {tuple(x.shape)}; expected at least one value")
    check_finite(x, "x", "clean the data")


class _GaussianMeanAbs:
    """Mean of ``|x_t - x_0|`` as a function of t, over the distinct absolute values of ``x``."""

    def __init__(self, process: GaussianProcess, x: Tensor) -> None:
        self.process = process
        values, counts = x.detach().double().abs().unique(return_counts=True)
        self.values, self.weights = values, counts.double() / x.numel()

    def __call__(self, t: float) -> float:
        mean = (1.0 - float(self.process.alpha(t))) * self.values
        sigma = float(self.process.sigma(t))
        if sigma > 0.0:
            u = mean / (math.sqrt(2.0) * sigma)
            mean = sigma * math.sqrt(2.0 / math.pi) * torch.exp(-u.square()) + mean * torch.erf(u)
        return float((self.weights * mean).sum())
