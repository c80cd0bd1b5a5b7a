r"""1. The noise process: how :math:`x` becomes :math:`x_t`.

A :class:`NoiseProcess` turns data :math:`x_0 \sim p_0` into :math:`x_t \sim p_t` for times
:math:`t \in [0, T]`. Time 0 is the data, exactly. The Gaussian processes have

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, z, \qquad z \sim N(0, I), \quad \alpha(0) = 1,\ \sigma(0) = 0,

and solve a linear SDE :math:`dx = f(t)\,x\,dt + g(t)\,dw`, of which they provide the drift, diffusion and transition
kernels: see :mod:`ncml.noise.gaussian`, and :mod:`ncml.noise.sde` for the paper's three in closed form.
:mod:`ncml.noise.discrete` has the paper's level noise, and :mod:`ncml.noise.lattice` the lattice that integer data live
on.

Processes are immutable, made of Python floats, and compared with ``==``: tensors follow the dtype and
device of the arguments, and there is nothing to move. A Python float as time gives 0-d float64 tensors.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ncml.checks import Time, check_generator, kind_of
from ncml.errors import ArgumentError, ArgumentTypeError

__all__ = ["NoiseProcess", "as_process", "as_time"]


def as_time(t: Time) -> Tensor:
    """A time as a tensor of at least float32; Python numbers become 0-d float64.

    The first line of a coefficient such as ``alpha(t)`` in a process of your own.
    """
    if isinstance(t, Tensor):
        if t.dtype is torch.float32 or t.dtype is torch.float64:  # as nearly always: the way of every step
            return t
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

    def checked_noise(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The noise of :meth:`perturb`, drawn if None, else checked: the first line of your own ``perturb``."""
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


def as_process(process: object) -> NoiseProcess:
    """What the argument ``process`` gave, if it is one.

    Raises:
        ArgumentTypeError: It is not; a class is none either.
    """
    if not isinstance(process, NoiseProcess):
        raise ArgumentTypeError(
            f"process: got {kind_of(process)}; expected a NoiseProcess, such as VPSDE.at_noise(0.1)"
        )
    return process
