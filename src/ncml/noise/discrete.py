r"""Discrete processes: level noise, the paper's :math:`p_\pi`: plus or minus one level with probability :math:`\pi`.

.. math:: p_\pi = p_{data} * \mathrm{Categorical}_{\{-1, 0, +1\}}(\pi/2,\ 1-\pi,\ \pi/2)
          \quad\text{on every value independently} \qquad (\text{paper, eq. 5}),

where one unit is one integer level (the paper says "1 bit"). The paper does not say what happens at
the first and last level, where the perturbed value would leave the data's support; see ``edge``.

A model of the data is not asked to score well on :math:`p_\pi`, whose entropy is up to 1.5 bits per
value larger: a small difference is a sign of robustness, not of fit.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ncml.checks import Time, check_choice, check_floating, check_positive, check_time, per_example, time_in_range
from ncml.errors import ArgumentError
from ncml.noise.lattice import Lattice
from ncml.noise.process import NoiseProcess, as_time

__all__ = ["DiscreteProcess", "LevelNoise"]


class DiscreteProcess(NoiseProcess):
    """A process that keeps every value on its ``lattice`` and moves values independently of each other."""

    @property
    @abc.abstractmethod
    def lattice(self) -> Lattice:
        """The lattice that the data live on."""

    @abc.abstractmethod
    def transition_matrix(self, t: float) -> Tensor:
        """Probabilities of moving from level i (row) to level j (column) by ``t``, float64."""


@dataclass(frozen=True)
class LevelNoise(DiscreteProcess):
    r"""The process whose time is :math:`\pi`, the probability that a value moves by one level.

    Args:
        levels: Number of integer levels of the data.
        edge: ``"clip"`` (default, as the paper's finite numbers imply): a value at the first or last
            level that would leave the lattice stays, so it moves with probability :math:`\pi/2` only.
            ``"reflect"``: it moves to its only neighbour, so every value moves with probability
            :math:`\pi`. Leaving the support is not offered: an exact model gives it zero mass.
        T: Largest :math:`\pi`, at most 1.

    Raises:
        ArgumentError: An unknown edge policy, or ``T`` outside (0, 1].

    Example:
        >>> noise = LevelNoise(levels=3, edge="reflect")
        >>> noise.perturb(torch.tensor([[-1.0, 0.0, 1.0]]), 1.0, noise=torch.tensor([[0.1, 0.1, 0.9]]))
        tensor([[ 0., -1.,  0.]])
    """

    levels: int = 256
    edge: Literal["clip", "reflect"] = "clip"
    T: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.edge, "edge", ("clip", "reflect"))
        object.__setattr__(self, "T", check_positive(self.T, "T"))
        if self.T > 1.0:
            raise ArgumentError(f"T: got {self.T}; expected a probability, 0 < T <= 1")
        object.__setattr__(self, "levels", Lattice(self.levels).levels)

    @property
    def lattice(self) -> Lattice:
        """The lattice that the data live on."""
        return Lattice(self.levels)

    def on_lattice(self, t: Time) -> Tensor:
        """True at every time: level noise never leaves the lattice."""
        return torch.ones_like(as_time(t), dtype=torch.bool)

    def draw_noise(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Uniform on [0, 1), shape of ``x``: below ``t/2`` moves down, from ``1 - t/2`` up.

        In at least float32: the 256 uniforms of bfloat16 cannot express small probabilities.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.rand(x.shape, dtype=dtype, device=x.device, generator=generator)

    def perturb(
        self, x: Tensor, t: Time, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Move each value by one level with probability ``t`` (see :meth:`~ncml.NoiseProcess.perturb`).

        Raises:
            ArgumentError: ``x`` is not on the lattice.
        """
        check_floating(x, "x")
        t = check_time(t, x, self.T)
        self.lattice.check(x)
        u = self.checked_noise(x, noise, generator)
        half = per_example(0.5 * t, x)
        step = (u >= 1.0 - half).long() - (u < half).long()
        level = self.lattice.nearest(x)
        moved = level + step
        top = self.levels - 1
        if self.edge == "reflect":
            moved = torch.where((moved < 0) | (moved > top), level - step, moved)
        moved = moved.clamp(0, top)
        # Untouched values return bit for bit, whatever rounding brought them onto the lattice.
        return torch.where(moved == level, x, self.lattice.to_unit(moved, dtype=x.dtype))

    def moved_fraction(self, x: Tensor, t: float) -> float:
        """The expected fraction of the values of ``x`` that move at time ``t`` (0.5 t at a clipped edge)."""
        t = time_in_range(t, self.T)
        level = self.lattice.nearest(x)
        at_edge = ((level == 0) | (level == self.levels - 1)).double().mean().item()
        return t * (1.0 - 0.5 * at_edge) if self.edge == "clip" else t

    def transition_matrix(self, t: float) -> Tensor:
        """Probabilities of moving from level i (row) to level j (column), ``(levels, levels)``, float64."""
        k, t = self.levels, time_in_range(t, self.T)
        move = torch.full((k - 1,), 0.5 * t, dtype=torch.float64)
        matrix = torch.diag(move, 1) + torch.diag(move, -1)
        if self.edge == "reflect":
            matrix[0, 1] = matrix[-1, -2] = t
        return matrix + torch.diag(1.0 - matrix.sum(1))
