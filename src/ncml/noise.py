r"""1. The noise process: how :math:`x` becomes :math:`x_t`.

A :class:`NoiseProcess` turns data :math:`x_0 \sim p_0` into :math:`x_t \sim p_t` for times
:math:`t \in [0, T]`. Time 0 is the data, exactly. The Gaussian processes have

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, z, \qquad z \sim N(0, I), \quad \alpha(0) = 1,\ \sigma(0) = 0,

and those that solve a linear SDE :math:`dx = f(t)\,x\,dt + g(t)\,dw` also know their drift, their
diffusion and their transition kernels. :mod:`ncml.sde` has the three of the paper, and
:mod:`ncml.levels` its discrete test noise.

Processes are immutable, made of Python floats, and compared with ``==``: tensors follow the dtype and
device of the arguments, and there is nothing to move. A Python float as time gives 0-d float64 tensors.

"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import torch
from torch import Tensor

from ncml._checks import Time, check_finite, check_floating, check_generator, check_positive, check_time, per_example
from ncml.errors import ArgumentError, ArgumentTypeError

__all__ = ["DiscreteProcess", "GaussianProcess", "LinearSDE", "NoiseProcess"]


def as_time(t: Time) -> Tensor:
    """A time as a tensor of at least float32; Python numbers become 0-d float64."""
    if isinstance(t, Tensor):
        return t.to(torch.promote_types(t.dtype, torch.float32))
    # On the CPU whatever the default device: a 0-d tensor combines with any, and reads without waiting.
    return torch.tensor(float(t), dtype=torch.float64, device="cpu")


class NoiseProcess(abc.ABC):
    """How data become noisy: the only thing that the objective needs to know.

    Subclasses have an attribute ``T`` (the largest time, a Python float) and implement
    :meth:`perturb` and :meth:`on_lattice`. Run :func:`ncml.testing.check_noise_process` on them.
    """

    T: float

    @abc.abstractmethod
    def perturb(
        self, x: Tensor, t: Time, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``x_t`` given ``x_0 = x``.

        Args:
            x: Data, shape ``(B, *event_shape)``, floating. Never written to.
            t: Time, a number or ``(B,)``, ``0 <= t <= T``. Rows with ``t = 0`` return bit for bit.
            noise: What :meth:`draw_noise` returns; drawn if None.
            generator: Source of randomness when ``noise`` is None.

        Returns:
            Tensor with the shape, dtype and device of ``x``.

        Raises:
            ArgumentError: Shapes, devices or values that do not fit.
            ArgumentTypeError: Integer data or half-precision times.
        """

    @abc.abstractmethod
    def on_lattice(self, t: Time) -> Tensor:
        """Whether lattice data stay on their lattice at time ``t``; bool tensor of the shape of t."""

    def draw_noise(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The noise that :meth:`perturb` turns into a perturbation: standard normal, shape of ``x``."""
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    def _noise(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Check or draw the noise of :meth:`perturb`."""
        if noise is None:
            check_generator(generator, x.device)
            return self.draw_noise(x, generator=generator)
        if noise.shape != x.shape or noise.device != x.device:
            raise ArgumentError(
                f"noise: got shape {tuple(noise.shape)} on {noise.device}; expected {tuple(x.shape)} on {x.device}"
            )
        expected = self.draw_noise(x[:0]).dtype
        if noise.dtype != expected:
            raise ArgumentTypeError(f"noise: got dtype {noise.dtype}; expected {expected}, that of draw_noise(x)")
        return noise


class DiscreteProcess(NoiseProcess):
    """A process that keeps every value on a lattice and moves values independently of each other."""

    @abc.abstractmethod
    def transition_matrix(self, t: float) -> Tensor:
        """Probabilities of moving from level i (row) to level j (column) by ``t``, float64."""


class GaussianProcess(NoiseProcess):
    r"""The process :math:`x_t = \alpha(t) x_0 + \sigma(t) z`, from any two functions.

    Immutable; equal to another one of the same two functions and T.

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
            if not (low >= bottom and high <= top * (1.0 + 4.0 * torch.finfo(sigma.dtype).eps)):
                raise ArgumentError(
                    f"sigma: got values in [{low:.6g}, {high:.6g}]; expected {bottom:.6g} <= sigma <= sigma(T) = "
                    f"{top:.6g}; build the process with at_noise(std) for a larger T"
                )
        # At the top T itself: where sigma has saturated (at 1, for VP) its inverse is not finite.
        return torch.where(sigma >= top, self.T, self._invert_sigma(sigma).clamp(0.0, self.T))

    def _invert_sigma(self, sigma: Tensor) -> Tensor:
        """Bisection in float64, to the last bit of ``sigma(t)``."""
        low = torch.zeros_like(sigma, dtype=torch.float64)
        high = torch.full_like(low, self.T)
        for _ in range(120):
            middle = 0.5 * (low + high)
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(sigma == 0, torch.zeros_like(high), high).to(sigma.dtype)

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
        z = self._noise(x, noise, generator)
        alpha, sigma, clean = (per_example(v, x) for v in (self.alpha(t), self.sigma(t), self.on_lattice(t)))
        # The selection keeps t = 0 bit for bit: -0.0 + 0.0 would lose its sign.
        return torch.where(clean, x, (alpha * x + sigma * z).to(x.dtype))


class LinearSDE(GaussianProcess):
    r"""A Gaussian process that solves :math:`dx = f(t)\,x\,dt + g(t)\,dw` from the data at :math:`t=0`.

    Subclasses are frozen dataclasses with a field ``T`` and implement :meth:`alpha`, :meth:`sigma`,
    :meth:`drift_coefficient` and :meth:`diffusion`; they may override :meth:`transition` and
    ``_invert_sigma`` with closed forms that do not cancel.
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

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Forward drift ``f(t) x``, shape of ``x``; ``t`` is a number or ``(B,)``."""
        return (per_example(self.drift_coefficient(t), x) * x).to(x.dtype)

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Scale and standard deviation of :math:`x_t` given :math:`x_s`, for :math:`s \le t`.

        .. math:: x_t \mid x_s \sim N(a\,x_s,\ v), \qquad a = \alpha_t/\alpha_s,
                  \quad v = \sigma_t^2 - a^2 \sigma_s^2.
        """
        scale = self.alpha(t) / self.alpha(s)
        variance = self.sigma(t).square() - (scale * self.sigma(s)).square()
        return scale, variance.clamp(min=0.0).sqrt()
