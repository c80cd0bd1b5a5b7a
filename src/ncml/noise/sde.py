r"""The linear SDEs of the paper: VP, sub-VP and VE.

All solve :math:`dx = f(t)\,x\,dt + g(t)\,dw` from the data at :math:`t = 0`. With
:math:`B(t) = \beta_0 t + (\beta_1-\beta_0)\,t^2/2` and :math:`r = \sigma_{max}/\sigma_{min}`:

========  ==================  ===================================  ===================================
process   :math:`\alpha`      :math:`\sigma` (std, not variance)   :math:`g^2`
========  ==================  ===================================  ===================================
VP        :math:`e^{-B/2}`    :math:`\sqrt{1 - e^{-B}}`            :math:`\beta`
sub-VP    :math:`e^{-B/2}`    :math:`1 - e^{-B}`                   :math:`\beta (1 - e^{-2B})`
VE        1                   :math:`\sigma_{min}\sqrt{r^{2t}-1}`  :math:`2\sigma_{min}^2 \ln r\, r^{2t}`
========  ==================  ===================================  ===================================

(Song et al., 2021, "Score-based generative modeling through SDEs", with VE started at the data.)
All are written with ``expm1`` and products, so that they keep full relative precision down to t = 0.

T is a noise level that you pick; ``VPSDE.at_noise(std)`` finds it. The paper's printed values of T do
not give the noise level that it states: see :meth:`VPSDE.paper`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from ncml.checks import Time, check_positive
from ncml.errors import ArgumentError
from ncml.noise.gaussian import LinearSDE, as_interval
from ncml.noise.process import as_time

__all__ = ["VESDE", "VPSDE", "LinearVESDE", "SubVPSDE"]


def _with_noise(process: LinearSDE, std: float) -> float:
    """The T at which a process reaches a noise level, from the inverse it would use itself."""
    std = check_positive(std, "std")
    time = float(process.invert_sigma(torch.tensor(std, dtype=torch.float64)))
    if not 0.0 < time < math.inf:
        raise ArgumentError(
            f"std: got {std:.6g}; expected a noise level between sigma(0) and the limit of {type(process).__name__} "
            f"(1 for VP and sub-VP, in data units)"
        )
    return time


def _as_floats(process: LinearSDE, *names: str) -> None:
    """Check positive fields of a frozen process and store them as Python floats."""
    for name in names:
        object.__setattr__(process, name, check_positive(getattr(process, name), name))


@dataclass(frozen=True)
class _BetaSDE(LinearSDE):
    """What VP and sub-VP share: the schedule beta(t) = beta_min + (beta_max - beta_min) t."""

    T: float = 1.0
    beta_min: float = 0.1
    beta_max: float = 20.0
    paper_T: ClassVar[tuple[float, float]]  # (as the text means it, as printed)

    def __post_init__(self) -> None:
        _as_floats(self, "T", "beta_min", "beta_max")
        last = self.beta_min + (self.beta_max - self.beta_min) * self.T
        if last <= 0.0:
            raise ArgumentError(
                f"T: got {self.T} with beta(T) = {last:.6g}; expected beta(T) > 0, the rate of the noise; "
                f"take a smaller T, or a larger beta_max"
            )

    @classmethod
    def at_noise(
        cls, std: float, *, data_std: float | None = None, beta_min: float = 0.1, beta_max: float = 20.0
    ) -> Self:
        r"""The process whose T has noise of standard deviation ``std`` (data units, below 1).

        Ten 8-bit levels on [-1, 1], the paper's choice, are ``10 * Lattice(256).width``. Taken literally, the paper
        (A.1) means the standard deviation of :math:`x_T - x_0`, which includes the shrinking of the data:

        .. math:: \sqrt{(1 - \alpha(T))^2 s^2 + \sigma(T)^2}

        for values of standard deviation s, ``data_std``. VE processes do not shrink the data, so there the two are the
        same.

        Args:
            std: The standard deviation of the noise, or with ``data_std`` of :math:`x_T - x_0`.
            data_std: Standard deviation over all values of the data, in data units.
            beta_min, beta_max: The schedule.
        """
        process = cls(beta_min=beta_min, beta_max=beta_max)
        T = _with_noise(process, std)
        if data_std is not None:
            T = process._with_difference(float(std), check_positive(data_std, "data_std"), T)
        return replace(process, T=T)

    def _with_difference(self, std: float, data_std: float, upper: float) -> float:
        """Where the standard deviation of x_t - x_0 reaches ``std``, to the last bits; below ``upper``."""
        low, high = 0.0, upper
        while low < (middle := 0.5 * (low + high)) < high:
            t = torch.tensor(middle, dtype=torch.float64)
            shrunk = -math.expm1(-0.5 * float(self._integral(0.0, t)))
            reached = math.hypot(shrunk * data_std, float(self.sigma(t))) >= std
            low, high = (low, middle) if reached else (middle, high)
        return high

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, s: Tensor | float, t: Tensor) -> Tensor:
        """Integral of beta from s to t, as a product: two B's are never subtracted."""
        return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))

    def _time_of_integral(self, b: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * b / (self.beta_min + (self.beta_min**2 + 2.0 * slope * b).sqrt())

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-0.5 * self._integral(0.0, as_time(t)))

    def drift_coefficient(self, t: Time) -> Tensor:
        return -0.5 * self._beta(as_time(t))


@dataclass(frozen=True)
class VPSDE(_BetaSDE):
    r"""Variance preserving SDE, :math:`f = -\beta/2`, :math:`g^2 = \beta` (Song et al., 2021, eq. 11).

    Args:
        T: Largest time. The default is the whole of Song's schedule, far more noise than NCML needs:
            prefer :meth:`at_noise`.
        beta_min, beta_max: The schedule :math:`\beta(t) = \beta_{min} + (\beta_{max} - \beta_{min}) t`, positive
            up to T; it may fall.

    Example:
        >>> process = VPSDE.at_noise(0.1)
        >>> round(float(process.sigma(process.T)), 12)
        0.1
    """

    paper_T: ClassVar[tuple[float, float]] = (0.025, 0.1)

    @classmethod
    def paper(cls, *, as_printed: bool = False) -> Self:
        """The paper's VP process: T = 0.025, or 0.1 with ``as_printed=True``.

        Appendix A.1 prints T = 0.1 for VP and 0.025 for sub-VP, chosen so that the noise at T is
        "about 10 bits" (8-bit levels). At the printed values it is 41 levels for VP and 1.1 for
        sub-VP; exchanged, 11.9 and 13.2. Figure 4 also needs each schedule to cross one level, which
        sub-VP at 0.025 does not. The two values are therefore taken as swapped.
        """
        return cls(T=cls.paper_T[as_printed])

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(-self._integral(0.0, as_time(t)))).sqrt()

    def diffusion(self, t: Time) -> Tensor:
        return self._beta(as_time(t)).sqrt()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        b = self._integral(*as_interval(s, t, self.T))
        return torch.exp(-0.5 * b), (-torch.expm1(-b)).sqrt()

    def invert_sigma(self, sigma: Tensor) -> Tensor:
        return self._time_of_integral(-torch.log1p(-sigma.square()))

    def invert_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(torch.log1p(torch.exp(-log_snr)))


@dataclass(frozen=True)
class SubVPSDE(_BetaSDE):
    r"""Sub-VP SDE, :math:`f = -\beta/2`, :math:`g^2 = \beta(1 - e^{-2B})` (Song et al., 2021, eq. 29).

    Args:
        T: Largest time; prefer :meth:`at_noise`.
        beta_min, beta_max: The schedule, as in :class:`VPSDE`.

    Example:
        >>> process = SubVPSDE.at_noise(0.1)
        >>> round(float(process.sigma(process.T)), 12)
        0.1
    """

    paper_T: ClassVar[tuple[float, float]] = (0.1, 0.025)

    @classmethod
    def paper(cls, *, as_printed: bool = False) -> Self:
        """The paper's sub-VP process: T = 0.1, or 0.025 as printed (see :meth:`VPSDE.paper`)."""
        return cls(T=cls.paper_T[as_printed])

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self._integral(0.0, as_time(t)))

    def diffusion(self, t: Time) -> Tensor:
        t = as_time(t)
        return (-self._beta(t) * torch.expm1(-2.0 * self._integral(0.0, t))).sqrt()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        s, t = as_interval(s, t, self.T)
        b, total = self._integral(s, t), self._integral(0.0, s) + self._integral(0.0, t)
        return torch.exp(-0.5 * b), (torch.expm1(-b) * torch.expm1(-total)).sqrt()

    def invert_sigma(self, sigma: Tensor) -> Tensor:
        return self._time_of_integral(-torch.log1p(-sigma))

    def invert_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._time_of_integral(2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@dataclass(frozen=True)
class VESDE(LinearSDE):
    r"""Variance exploding SDE, :math:`f = 0`, :math:`g^2 = 2\sigma_{min}^2 \ln r\; r^{2t}`.

    Started at the data: :math:`\sigma(t) = \sigma_{min}\sqrt{r^{2t}-1}`, so that :math:`p_0` is the
    data distribution. Song et al. (2021) start at :math:`\sigma(0) = \sigma_{min}`, where every
    likelihood at t = 0 would be one of noisy data; ``song=True`` restores theirs.

    Args:
        T: Largest time; prefer :meth:`at_noise`.
        sigma_min, sigma_max: Scales of the schedule, in data units; :math:`r` is their ratio.
        song: Use :math:`\sigma(t) = \sigma_{min} r^t`. Then ``perturb(x, 0)`` adds noise.

    Example:
        >>> float(VESDE().sigma(0.0)), float(VESDE(song=True).sigma(0.0))
        (0.0, 0.01)
    """

    T: float = 1.0
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    song: bool = False

    def __post_init__(self) -> None:
        _as_floats(self, "T", "sigma_min", "sigma_max")
        if self.sigma_max <= self.sigma_min:
            raise ArgumentError(f"sigma_max: got {self.sigma_max}; expected more than sigma_min = {self.sigma_min}")

    @classmethod
    def at_noise(cls, std: float, *, sigma_min: float = 0.01, sigma_max: float = 50.0, song: bool = False) -> Self:
        """The process whose T has noise of standard deviation ``std`` (data units)."""
        process = cls(sigma_min=sigma_min, sigma_max=sigma_max, song=song)
        return replace(process, T=_with_noise(process, std))

    @classmethod
    def paper(cls, *, as_printed: bool = False) -> Self:
        """The paper's VE process: T = 0.5 with sigma_max = 1 (inferred), or 50 ``as_printed``.

        Appendix A.1 prints T = 0.5. With Song's sigma_max = 50 that is 90 levels of noise, not the
        "about 10" of the text; sigma_max = 1 gives 12.7, in line with the two other processes.
        """
        return cls(T=0.5, sigma_max=50.0 if as_printed else 1.0)

    @staticmethod
    def linear(sigma_max: float) -> LinearVESDE:
        """The process with ``sigma(t) = t`` up to ``sigma_max`` (Karras et al., 2022)."""
        return LinearVESDE(T=sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        if self.song:
            return self.sigma_min * torch.exp(self._log_ratio * t)
        return self.sigma_min * torch.expm1(2.0 * self._log_ratio * t).sqrt()

    def drift_coefficient(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma_min * math.sqrt(2.0 * self._log_ratio) * torch.exp(self._log_ratio * as_time(t))

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        s, t = as_interval(s, t, self.T)
        std = self.sigma_min * torch.exp(self._log_ratio * s) * torch.expm1(2.0 * self._log_ratio * (t - s)).sqrt()
        return torch.ones_like(std), std

    def invert_sigma(self, sigma: Tensor) -> Tensor:
        if self.song:
            return torch.log(sigma / self.sigma_min) / self._log_ratio
        return torch.log1p((sigma / self.sigma_min).square()) / (2.0 * self._log_ratio)

    def invert_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.invert_sigma(torch.exp(-0.5 * log_snr))


@dataclass(frozen=True)
class LinearVESDE(LinearSDE):
    r"""Variance exploding SDE with :math:`\sigma(t) = t`, that is :math:`g^2 = 2t` (Karras et al., 2022).

    The process of iTARFlow (2026). Time is the noise level itself.

    Args:
        T: Largest noise level, in data units.
    """

    T: float = 1.0

    def __post_init__(self) -> None:
        _as_floats(self, "T")

    @classmethod
    def at_noise(cls, std: float) -> Self:
        """The process whose T has noise of standard deviation ``std``: simply ``T = std``."""
        return cls(T=std)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return as_time(t).clone()

    def drift_coefficient(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion(self, t: Time) -> Tensor:
        return (2.0 * as_time(t)).sqrt()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        s, t = as_interval(s, t, self.T)
        std = ((t - s) * (t + s)).sqrt()
        return torch.ones_like(std), std

    def invert_sigma(self, sigma: Tensor) -> Tensor:
        return sigma.clone()

    def invert_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)
