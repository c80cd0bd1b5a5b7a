r"""Gaussian processes and linear SDEs: :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,z`."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import TypeGuard

import torch
from torch import Tensor

from ncml.checks import ROUNDED, Time, check_finite, check_floating, check_positive, check_time, kind_of, per_example
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.noise.process import NoiseProcess, as_time

__all__ = ["GaussianProcess", "LinearSDE", "as_gaussian", "as_interval", "clean_at_zero"]


class GaussianProcess(NoiseProcess):
    r"""The noise process :math:`x_t = \alpha(t) x_0 + \sigma(t) z`; unrelated to Gaussian-process regression.

    Built from any two functions alpha and sigma. It solves the SDE :math:`dx = f x\,dt + g\,dw` with

    .. math:: f = \frac{d \log \alpha}{dt}, \qquad g^2 = \frac{d \sigma^2}{dt} - 2 f \sigma^2,

    which are found by differentiating the functions; :class:`LinearSDE` is for processes that have f and g in closed
    form. Immutable; equal to another with the same two functions and T.

    Args:
        alpha: Scale :math:`\alpha(t)`, with ``alpha(0) == 1``; a function of a tensor.
        sigma: Standard deviation :math:`\sigma(t)`, with ``sigma(0) == 0``, strictly increasing.
        T: Largest time.

    Raises:
        ArgumentError: The functions do not start at the data or do not end with a positive alpha, or ``T`` is not
            positive.

    Example:
        >>> cosine = GaussianProcess(lambda t: torch.cos(t), lambda t: torch.sin(t), T=0.1)
        >>> float(cosine.sigma(0.1))
        0.09983341664682815
    """

    def __init__(self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], T: float = 1.0) -> None:
        self._alpha, self._sigma = alpha, sigma
        self.T = check_positive(T, "T")
        start = float(self.alpha(0.0)), float(self.sigma(0.0))
        if start != (1.0, 0.0):
            raise ArgumentError(
                f"alpha, sigma: got alpha(0), sigma(0) = {start}; expected (1, 0): time 0 is the data itself"
            )
        end = float(self.alpha(self.T)), float(self.sigma(self.T))
        if not (0.0 < end[0] < math.inf and math.isfinite(end[1])):
            raise ArgumentError(
                f"T: got alpha(T), sigma(T) = {end}; expected finite numbers and a positive alpha, by which samplers "
                f"divide; end the process where something of the data is left"
            )

    def __setattr__(self, name: str, value: object) -> None:
        # New names are for the __init__ of subclasses; what is there enters the hash, and stays.
        if name in vars(self):
            raise FrozenInstanceError(f"{name}: got a new value; processes are immutable; build another one")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{name}: got del; processes are immutable; build another one")

    def __repr__(self) -> str:
        settings = (f"{k.lstrip('_')}={getattr(v, '__name__', repr(v))}" for k, v in vars(self).items())
        return f"{type(self).__name__}({', '.join(settings)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), tuple(vars(self).values())))

    def alpha(self, t: Time) -> Tensor:
        """Scale of the data at time ``t``, same shape as ``t``."""
        return torch.as_tensor(self._alpha(as_time(t)))

    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise at time ``t`` in data units, same shape as ``t``."""
        return torch.as_tensor(self._sigma(as_time(t)))

    def log_snr(self, t: Time) -> Tensor:
        r"""Log signal-to-noise ratio :math:`2 \log(\alpha/\sigma)`; infinite at ``t = 0``."""
        return 2.0 * (self.alpha(t).log() - self.sigma(t).log())

    def time_at(self, sigma: Time) -> Tensor:
        """The time whose noise has standard deviation ``sigma``, the inverse of :meth:`sigma`.

        Args:
            sigma: Standard deviation(s) in data units, ``0 <= sigma <= sigma(T)``.

        Raises:
            ArgumentError: The process does not reach that noise level by T.
        """
        sigma = as_time(sigma)
        bottom, top = float(self.sigma(0.0)), float(self.sigma(self.T))
        if sigma.numel():
            low, high = float(sigma.min()), float(sigma.max())
            slack = 4.0 * torch.finfo(sigma.dtype).eps
            if not (low >= bottom * (1.0 - slack) and high <= top * (1.0 + slack)):
                raise ArgumentError(
                    f"sigma: got values in [{low:.6g}, {high:.6g}]; expected {bottom:.6g} <= sigma <= sigma(T) = "
                    f"{top:.6g}; build the process with at_noise(std) for a larger T"
                )
        # At the top T itself: where sigma has saturated (at 1, for VP) its inverse is not finite.
        return torch.where(sigma >= top, self.T, self.invert_sigma(sigma).clamp(0.0, self.T))

    def time_at_log_snr(self, log_snr: Time) -> Tensor:
        """The time with a log signal-to-noise ratio, the inverse of :meth:`log_snr`; infinity gives 0.

        Raises:
            ArgumentError: The process does not reach that ratio by T.
        """
        log_snr = as_time(log_snr)
        low, high = float(self.log_snr(self.T)), float(self.log_snr(0.0))
        slack = 16.0 * torch.finfo(log_snr.dtype).eps
        least, most = low - slack * max(1.0, abs(low)), high + slack * max(1.0, abs(high))
        if log_snr.numel() and not (float(log_snr.min()) >= least and float(log_snr.max()) <= most):
            raise ArgumentError(
                f"log_snr: got values in [{float(log_snr.min()):.6g}, {float(log_snr.max()):.6g}]; expected "
                f"log_snr(T) = {low:.6g} to {high:.6g}"
            )
        return torch.where(log_snr <= low, self.T, self.invert_log_snr(log_snr).clamp(0.0, self.T))

    def invert_sigma(self, sigma: Tensor) -> Tensor:
        """The time at which :meth:`sigma` has given values; override where there is a closed form."""
        return self._bisect(self.sigma, sigma)

    def invert_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which :meth:`log_snr` has given values; override where there is a closed form."""
        return self._bisect(lambda t: -self.log_snr(t), -log_snr)

    def _bisect(self, increasing: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """Where a function of time has a value, to the last bit, in float64."""
        low = torch.zeros_like(value, dtype=torch.float64)
        high = torch.full_like(low, self.T)
        for _ in range(120):
            middle = 0.5 * (low + high)
            below = increasing(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(value == increasing(torch.zeros_like(low)), torch.zeros_like(high), high).to(value.dtype)

    def drift_coefficient(self, t: Time) -> Tensor:
        r"""The :math:`f = d\log\alpha/dt` of the drift ``f(t) x``, same shape as ``t``."""
        t, positive = self._differentiable(t)
        with torch.inference_mode(False), torch.enable_grad():
            f = _slope(self.alpha(positive).log(), positive)
        return f.to(t.dtype)

    def diffusion(self, t: Time) -> Tensor:
        r"""The :math:`g = \sqrt{d\sigma^2/dt - 2 f \sigma^2}` of ``g(t) dw``, same shape as ``t``."""
        t, positive = self._differentiable(t)
        # Of the variance: sigma itself may rise infinitely steeply from 0.
        with torch.inference_mode(False), torch.enable_grad():
            variance = self.sigma(positive).square()
            rise = _slope(variance, positive)
        g2 = rise - 2.0 * self.drift_coefficient(positive.detach()) * variance.detach()
        return g2.clamp(min=0.0).sqrt().to(t.dtype)

    def _differentiable(self, t: Time) -> tuple[Tensor, Tensor]:
        """The time, and a float64 leaf a little above 0 where it is 0: there the limit is meant."""
        with torch.inference_mode(False):
            t = as_time(t).detach()
            return t, t.double().clamp(min=1e-9 * self.T).clone().requires_grad_()

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Forward drift ``f(t) x``, shape of ``x``; ``t`` is a number or ``(B,)``."""
        return (per_example(self.drift_coefficient(t), x) * x).to(x.dtype)

    def fokker_planck(
        self,
        x: Tensor,
        t: Time,
        rise: Tensor,
        score: Tensor,
        divergence: Tensor,
        dims: int | Tensor | None = None,
    ) -> Tensor:
        r"""By how much a log-density misses the Fokker-Planck equation of this process: 0 if it belongs to the process.

        .. math:: R = \partial_t \log p_t + D f + f\, x \cdot s - \tfrac12 g^2 \left(\nabla \cdot s + \|s\|^2\right)

        Args:
            x: Points ``(B, *event_shape)``, of D values each.
            t: Times above 0, a number or ``(B,)``.
            rise: :math:`\partial_t \log p_t(x)`, ``(B,)`` in nats per unit of time.
            score: :math:`s = \nabla \log p_t(x)`, shape of ``x``.
            divergence: :math:`\nabla \cdot s`, or an estimate of it, ``(B,)``.
            dims: D, a number or ``(B,)``, if the density covers only some of the values; all of them if None.

        Returns:
            R, ``(B,)`` in nats per unit of time.
        """
        f, g = self.drift_coefficient(t).to(x.dtype), self.diffusion(t).to(x.dtype)
        along = (x * score).flatten(1).sum(1)
        squared = score.flatten(1).square().sum(1)
        dims = math.prod(x.shape[1:]) if dims is None else dims
        return rise + dims * f + f * along - 0.5 * g * g * (divergence + squared)

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Scale and standard deviation of :math:`x_t` given :math:`x_s`, for :math:`s \le t`.

        .. math:: x_t \mid x_s \sim N(a\,x_s,\ v), \qquad a = \alpha_t/\alpha_s,
                  \quad v = \sigma_t^2 - a^2 \sigma_s^2.

        Raises:
            ArgumentError: Not ``0 <= s <= t <= T``.
        """
        s, t = as_interval(s, t, self.T)
        scale = self.alpha(t) / self.alpha(s)
        variance = self.sigma(t).square() - (scale * self.sigma(s)).square()
        return scale, variance.clamp(min=0.0).sqrt()

    def on_lattice(self, t: Time) -> Tensor:
        """True exactly where there is no noise and no shrinking: at ``t = 0``."""
        t = as_time(t)
        return (self.sigma(t) == 0) & (self.alpha(t) == 1)

    def perturb(
        self, x: Tensor, t: Time, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw :math:`x_t = \alpha(t)\,x + \sigma(t)\,z` (see :meth:`NoiseProcess.perturb`)."""
        check_floating(x, "x")
        t = check_time(t, x, self.T)
        check_finite(x, "x", "clean the data")
        z = self.checked_noise(x, noise, generator)
        alpha, sigma, clean = (per_example(v, x) for v in (self.alpha(t), self.sigma(t), self.on_lattice(t)))
        # The selection keeps t = 0 bit for bit: -0.0 + 0.0 would lose its sign.
        return torch.where(clean, x, (alpha * x + sigma * z).to(x.dtype))


def as_interval(s: Time, t: Time, T: float) -> tuple[Tensor, Tensor]:
    """Two times as tensors.

    Raises:
        ArgumentError: Not ``0 <= s <= t <= T`` (T may have been rounded up to float32).
    """
    early, late = as_time(s), as_time(t)
    ordered = (early >= 0.0) & (early <= late) & (late <= T * ROUNDED)
    if not bool(ordered.all()):
        raise ArgumentError(f"s, t: got s = {s}, t = {t}; expected 0 <= s <= t <= T = {T:.6g}; noise only grows with t")
    return early, late


def as_gaussian(process: NoiseProcess | None, why: str, name: str = "process") -> GaussianProcess:
    """A process that has to be Gaussian.

    Args:
        process: The process.
        why: What it is needed for, as the message goes on after "expected a GaussianProcess".
        name: The argument that it is.

    Raises:
        UnsupportedError: It is not.
    """
    if not isinstance(process, GaussianProcess):
        raise UnsupportedError(f"{name}: got {kind_of(process)}; expected a GaussianProcess, {why}")
    return process


def clean_at_zero(process: NoiseProcess) -> TypeGuard[GaussianProcess]:
    """Whether the process is Gaussian and starts at the data, without noise."""
    return isinstance(process, GaussianProcess) and float(process.sigma(0.0)) == 0.0


def _slope(values: Tensor, t: Tensor) -> Tensor:
    """The derivative of a function of time, given its values; 0 for constants, which know nothing of ``t``."""
    if not values.requires_grad:
        return torch.zeros_like(t)
    (slope,) = torch.autograd.grad(values.sum(), t, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


class LinearSDE(GaussianProcess):
    r"""A Gaussian process that solves :math:`dx = f(t)\,x\,dt + g(t)\,dw` from the data at :math:`t=0`.

    Subclasses are frozen dataclasses with a field ``T`` and implement :meth:`alpha`, :meth:`sigma`,
    :meth:`drift_coefficient` and :meth:`diffusion`; they may override :meth:`~ncml.GaussianProcess.transition` and
    ``invert_sigma`` with closed forms that do not cancel.
    """

    def __init__(self) -> None:
        name = type(self).__name__
        raise ArgumentTypeError(
            f"{name}: got no __init__; expected a field T; decorate it with @dataclass(frozen=True)"
        )

    @abc.abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Scale of the data at time ``t``, same shape as ``t``."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise at time ``t`` in data units, same shape as ``t``."""

    @abc.abstractmethod
    def drift_coefficient(self, t: Time) -> Tensor:
        """The ``f`` of the drift ``f(t) x``, same shape as ``t``."""

    @abc.abstractmethod
    def diffusion(self, t: Time) -> Tensor:
        """The ``g`` of ``g(t) dw``, same shape as ``t``."""
