r"""Distributions of noise levels: which times the objective draws, and with what weight.

The objective :math:`E_{t\sim\mu}\,E_{x_t}[-\log p_t(x_t)]` needs a distribution :math:`\mu` over
:math:`[0, T]`. A uniform :math:`\mu` on the continuum gives t = 0 no mass, so the data likelihood, on
which every table is evaluated, would never be trained: the default has an atom at zero.

A :class:`TimeSampler` returns times and weights; the loss is ``sum(weight * nll) / n``. Draws are
spread evenly over a batch (low discrepancy, Kingma et al., 2021, "Variational diffusion models",
I.1), which lowers the variance and leaves each draw's distribution as it is.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ncml.checks import check_count, check_positive, check_probability, clamp_time
from ncml.errors import ArgumentError
from ncml.noise import GaussianProcess, NoiseProcess
from ncml.noise.gaussian import as_gaussian

__all__ = [
    "AtZero",
    "ImportanceTimes",
    "LadderTimes",
    "LogUniformTimes",
    "PlacedTimes",
    "TimeSampler",
    "UniformTimes",
    "WeightedTimes",
]


class TimeSampler(abc.ABC):
    """A distribution over noise levels."""

    @abc.abstractmethod
    def __call__(
        self,
        n: int,
        process: NoiseProcess,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` times and their weights.

        Args:
            n: Number of times, one per example.
            process: Gives T, and the noise levels for samplers that think in sigma.
            generator, device, dtype: As in torch's random functions; at least float32.

        Returns:
            Times ``(n,)`` in ``[0, T]``, and weights ``(n,)`` whose use is ``sum(weight * nll) / n``.
        """


def draw_uniforms(
    n: int,
    low_discrepancy: bool,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """``n`` uniforms on [0, 1): a regular grid shifted around the unit circle, or independent draws.

    Around the circle, so that every row of a batch sees every time: the loss of data in a fixed order
    stays unbiased.
    """
    dtype = torch.promote_types(dtype or torch.float32, torch.float32)
    if not low_discrepancy:
        return torch.rand(n, generator=generator, device=device, dtype=dtype)
    shift = torch.rand(1, generator=generator, device=device, dtype=dtype)
    return (torch.arange(n, device=device, dtype=dtype) / max(n, 1) + shift).frac()


class PlacedTimes(TimeSampler):
    """A distribution that is a function of one uniform per example: subclasses say which."""

    low_discrepancy: bool

    def check(self, process: NoiseProcess) -> None:
        """Refuse a process that the distribution does not fit; called before anything is drawn."""

    @abc.abstractmethod
    def place(self, u: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        """Times and weights from uniforms on [0, 1), all ``(n,)``."""

    def __call__(
        self,
        n: int,
        process: NoiseProcess,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.check(process)
        return self.place(draw_uniforms(n, self.low_discrepancy, generator, device, dtype), process)


def with_atom(u: Tensor, p_zero: float, positive: Callable[[Tensor], Tensor]) -> Tensor:
    """Zero where ``u < p_zero``; elsewhere a positive time, from a uniform on (0, 1]."""
    if p_zero >= 1.0:
        return torch.zeros_like(u)
    v = 1.0 - ((u - p_zero) / (1.0 - p_zero)).clamp(min=0.0, max=1.0 - torch.finfo(u.dtype).eps)
    return torch.where(u < p_zero, torch.zeros_like(u), positive(v))


@dataclass(frozen=True)
class AtZero(TimeSampler):
    """All mass on t = 0: maximum likelihood, bit for bit."""

    def __call__(
        self,
        n: int,
        process: NoiseProcess,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(dtype or torch.float32, torch.float32)
        return torch.zeros(n, device=device, dtype=dtype), torch.ones(n, device=device, dtype=dtype)


@dataclass(frozen=True)
class UniformTimes(PlacedTimes):
    r"""An atom at zero and a uniform: :math:`\mu = p_0\,\delta_0 + (1-p_0)\,U(t_{min}, T]`.

    Args:
        p_zero: Mass of the atom, the share of each batch spent on the data likelihood itself.
        t_min: Lower end of the uniform part.
        low_discrepancy: Spread the draws evenly over the batch.

    Example:
        >>> t, weight = UniformTimes(p_zero=0.5)(4, VPSDE(T=0.1), generator=torch.Generator().manual_seed(0))
        >>> (t == 0).tolist()
        [True, False, False, True]
    """

    p_zero: float = 0.2
    t_min: float = 0.0
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        check_probability(self.p_zero, "p_zero")
        if not 0.0 <= self.t_min < math.inf:
            raise ArgumentError(f"t_min: got {self.t_min!r}; expected a time, 0 <= t_min < T")

    def check(self, process: NoiseProcess) -> None:
        if self.t_min >= process.T:
            raise ArgumentError(f"t_min: got {self.t_min}; expected less than the process's T = {process.T}")

    def place(self, u: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        t = with_atom(u, self.p_zero, lambda v: self.t_min + (process.T - self.t_min) * v)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class LogUniformTimes(PlacedTimes):
    r"""An atom at zero, and :math:`\log \sigma(t)` uniform between two noise levels.

    Spends equal effort on every octave of noise, where a uniform t sees little of the small levels.

    Args:
        sigma_min: Smallest noise level of the continuous part, in data units (default 1e-3, about an
            eighth of an 8-bit level). Going down to the finest structure of the data, such as a level of 16-bit sound,
            improved a MADE's likelihood at t = 0, but not a transformer's; stopping above it leaves more draws for the
            levels where samples begin.
        p_zero: Mass of the atom at t = 0.
        low_discrepancy: Spread the draws evenly over the batch.
    """

    sigma_min: float = 1e-3
    p_zero: float = 0.2
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        check_positive(self.sigma_min, "sigma_min")
        check_probability(self.p_zero, "p_zero")

    def check(self, process: NoiseProcess) -> None:
        process = as_gaussian(process, "which has a sigma(t)")
        bottom, top = (float(process.sigma(t)) for t in (0.0, process.T))
        if not bottom <= self.sigma_min < top:
            least = f"at least sigma(0) = {bottom:.6g} and " if bottom > 0.0 else ""
            raise ArgumentError(f"sigma_min: got {self.sigma_min}; expected {least}less than sigma(T) = {top:.6g}")

    def place(self, u: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        process = cast(GaussianProcess, process)
        top = float(process.sigma(process.T))
        ratio = math.log(self.sigma_min / top)
        t = with_atom(u, self.p_zero, lambda v: process.time_at(top * torch.exp(ratio * (1.0 - v))))
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class LadderTimes(PlacedTimes):
    r"""Finitely many noise levels with given masses (paper, eq. 7).

    With masses :math:`\mu(t)` the objective is :math:`\mu(0)` times

    .. math:: -E\log p_0(x_0) - \sum_{t>0} \lambda_t\, E\log p_t(x_t), \qquad \lambda_t = \mu(t)/\mu(0).

    Args:
        times: The ladder, distinct times in ``[0, T]``.
        masses: Their probabilities; uniform if None. Normalised to sum to 1.
        low_discrepancy: Spread the draws evenly over the batch.
    """

    times: tuple[float, ...]
    masses: tuple[float, ...] = field(default=())
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        times = tuple(float(t) for t in self.times)
        if not times or len(set(times)) != len(times) or not all(0.0 <= t < math.inf for t in times):
            raise ArgumentError(f"times: got {self.times!r}; expected distinct times >= 0")
        masses = tuple(float(m) for m in self.masses) or (1.0,) * len(times)
        if len(masses) != len(times) or not all(0.0 <= m < math.inf for m in masses) or sum(masses) <= 0.0:
            raise ArgumentError(f"masses: got {self.masses!r}; expected {len(times)} numbers >= 0 with a positive sum")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "masses", tuple(m / sum(masses) for m in masses))

    @classmethod
    def from_lambdas(cls, lambdas: dict[float, float], *, low_discrepancy: bool = True) -> LadderTimes:
        r"""The ladder of eq. 7 from its :math:`\lambda_t` at times t > 0 (:math:`\lambda_0 = 1`)."""
        if 0.0 in lambdas:
            raise ArgumentError("lambdas: got a weight for t = 0; expected times > 0 only, since lambda_0 = 1")
        return cls((0.0, *lambdas), (1.0, *lambdas.values()), low_discrepancy)

    @property
    def lambdas(self) -> dict[float, float]:
        r""":math:`\lambda_t = \mu(t)/\mu(0)` for every t > 0 of the ladder."""
        masses = dict(zip(self.times, self.masses, strict=True))
        if not masses.get(0.0):
            raise ArgumentError(
                "times: got a ladder without mass at t = 0; expected t = 0 in it: lambda_t divides by mu(0)"
            )
        return {t: m / masses[0.0] for t, m in masses.items() if t > 0.0}

    def check(self, process: NoiseProcess) -> None:
        if clamp_time(max(self.times), process.T) > process.T:
            raise ArgumentError(f"times: got {max(self.times)}; expected at most the process's T = {process.T}")

    def place(self, u: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        times = [clamp_time(t, process.T) for t in self.times]
        edges = torch.tensor(self.masses, dtype=torch.float64).cumsum(0)[:-1].to(u)
        t = torch.tensor(times, dtype=u.dtype, device=u.device)[torch.bucketize(u, edges, right=True)]
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class ImportanceTimes(PlacedTimes):
    r"""Draws t where it matters, with weights that restore :math:`p_0\delta_0 + (1-p_0)U(0,T]`.

    The proposal is piecewise constant on equal bins of ``(0, T]``: bin k has probability :math:`q_k`
    and weight :math:`(1/K)/q_k`, so the weighted loss is unbiased for the uniform objective. The
    best :math:`q_k` is proportional to the root mean square of the loss's gradient in bin k.

    Args:
        bins: Proposal probabilities of the bins (normalised to sum to 1), all positive.
        p_zero: Mass of the atom at t = 0, in the target and in the proposal.
        low_discrepancy: Spread the draws evenly over the batch.
    """

    bins: Sequence[float]
    p_zero: float = 0.2
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        bins = tuple(float(b) for b in self.bins)
        if not bins or not all(0.0 < b < math.inf for b in bins):
            raise ArgumentError(
                f"bins: got {self.bins!r}; expected positive numbers: a bin without mass would bias the loss"
            )
        check_probability(self.p_zero, "p_zero")
        object.__setattr__(self, "bins", tuple(b / sum(bins) for b in bins))

    def place(self, u: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        q = torch.tensor(self.bins, dtype=u.dtype, device=u.device)
        k = len(self.bins)
        edges = torch.cat([q.new_zeros(1), q.cumsum(0)])
        # The atom comes first; the rest of the unit interval is rescaled to the bins.
        v = with_atom(u, self.p_zero, lambda v: v)
        index = (torch.bucketize(v, edges) - 1).clamp(0, k - 1)
        inside = ((v - edges[index]) / q[index]).clamp(0.0, 1.0)
        zero = v == 0
        t = torch.where(zero, torch.zeros_like(v), (index + inside) * (process.T / k))
        return t, torch.where(zero, torch.ones_like(v), 1.0 / (k * q[index]))


@dataclass(frozen=True)
class WeightedTimes(TimeSampler):
    """Another sampler's times with an extra weight ``w(t)``: a different objective, on purpose.

    Args:
        times: The sampler that draws.
        weight: A function of the times, ``(n,)`` to ``(n,)``.

    Example:
        >>> t, weight = WeightedTimes.itarflow()(3, VESDE.linear(1.0))
        >>> bool((weight == t).all())
        True
    """

    times: TimeSampler
    weight: Callable[[Tensor], Tensor]

    @classmethod
    def itarflow(cls, t_min: float = 0.01) -> WeightedTimes:
        """The weighting ``w(t) = t`` on ``U(t_min, T]`` of iTARFlow (2026); use with ``VESDE.linear``.

        It never trains t = 0, so the data likelihood is not defined by what was trained.
        """
        return cls(UniformTimes(p_zero=0.0, t_min=t_min), torch.clone)

    def __call__(
        self,
        n: int,
        process: NoiseProcess,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        n = check_count(n, "n", minimum=0)
        t, weight = self.times(n, process, generator=generator, device=device, dtype=dtype)
        return t, weight * self.weight(t)
