r"""Integer-valued data: levels, bins, bits.

The only module that knows about levels and bits. Data with ``levels`` integer values
:math:`k = 0, \dots, K-1` live on the unit interval as

.. math:: x = \frac{2k}{K-1} - 1 \in [-1, 1], \qquad
          \text{width} = \frac{2}{K-1}, \qquad \delta = \frac{\text{width}}{2},

so that 8-bit images are :math:`x = k/127.5 - 1` and one level is :math:`2/255`. Each lattice point
owns the bin :math:`[x-\delta, x+\delta]`, and a mass :math:`P` on a bin is reported as the density
:math:`P / \text{width}`. One formula then gives bits per dimension for masses and densities alike:

.. math:: \text{bits/dim} = -\frac{\log p(x)}{D \ln 2} - \log_2 \text{width}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ncml.checks import HALF, check_finite, check_floating, check_generator, is_whole, signed
from ncml.errors import ArgumentError, ArgumentTypeError

__all__ = ["BitsPerDim", "Lattice"]

OFF_LATTICE_TOLERANCE = 1e-3
"""How far, in levels, a value may lie from its lattice point (covers float32 rounding)."""


@dataclass(frozen=True)
class Lattice:
    """An evenly spaced grid of ``levels`` points on [-1, 1].

    Args:
        levels: Number of integer values, 2 to 65,536 (256 for 8-bit images, 17 for the digits that
            scikit-learn ships). Beyond that float32 cannot tell neighbouring levels apart.

    Raises:
        ArgumentError: ``levels`` is out of range or not an integer.

    Example:
        >>> Lattice(256).to_unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """

    levels: int = 256

    def __post_init__(self) -> None:
        if not is_whole(self.levels):
            raise ArgumentError(f"levels: got {self.levels!r}; expected an integer, such as 256")
        if not 2 <= self.levels <= 65_536:
            raise ArgumentError(f"levels: got {self.levels}; expected 2 <= levels <= 65536")
        object.__setattr__(self, "levels", int(self.levels))

    @property
    def width(self) -> float:
        """Width of one bin (one level) in data units, ``2 / (levels - 1)``."""
        return 2.0 / (self.levels - 1)

    @property
    def half_width(self) -> float:
        """Half a level, the ``delta`` of the formulas."""
        return 1.0 / (self.levels - 1)

    def points(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """All lattice points in increasing order, shape ``(levels,)``."""
        return self.to_unit(torch.arange(self.levels, device=device), dtype=dtype)

    def to_unit(self, k: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Integers to data units: ``2 k / (levels - 1) - 1``.

        Args:
            k: Integer tensor of any shape with values in ``0 .. levels - 1``.
            dtype: Floating dtype of the result; the default dtype if None.

        Raises:
            ArgumentTypeError: ``k`` is not an integer tensor.
            ArgumentError: A value is out of range.
        """
        if not isinstance(k, Tensor) or k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            got = k.dtype if isinstance(k, Tensor) else type(k).__name__
            raise ArgumentTypeError(f"k: got {got}; expected an integer tensor of levels")
        k = signed(k)
        if k.numel() and (int(k.min()) < 0 or int(k.max()) >= self.levels):
            raise ArgumentError(
                f"k: got values in [{int(k.min())}, {int(k.max())}]; expected 0 .. {self.levels - 1}; "
                f"use Lattice(levels=...) with the number of levels of the data"
            )
        dtype = dtype or torch.get_default_dtype()
        wide = torch.promote_types(dtype, torch.float32)  # half precision would round on the way, up to half a level
        return (k.to(wide) * self.width - 1.0).to(dtype)

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest level of each value, clamped to ``0 .. levels - 1``, int64, same shape."""
        return self._scaled(x).round().clamp(0, self.levels - 1).long()

    def quantize(self, x: Tensor) -> Tensor:
        """Clamp and round to the nearest lattice point, same shape and dtype."""
        return self.to_unit(self.nearest(x), dtype=x.dtype)

    def on_lattice(self, x: Tensor) -> Tensor:
        """Whether each value is a lattice point of [-1, 1] (within 1e-3 level); bool, same shape."""
        return self._distance(x) <= self._tolerance(x.dtype)

    def _distance(self, x: Tensor) -> Tensor:
        """How far each value is from its lattice point, in levels."""
        scaled = self._scaled(x)
        return (scaled - scaled.round().clamp(0, self.levels - 1)).abs()

    def _scaled(self, x: Tensor) -> Tensor:
        """Values in levels, from 0, in at least float32: half precision would round once more."""
        x = x.detach().float() if x.dtype in HALF else x.detach()
        return (x + 1.0) * (0.5 * (self.levels - 1))

    def raised(self, x: Tensor) -> Tensor:
        """Half precision as float32, what it cannot tell from a lattice point moved there; others as they are."""
        if x.dtype not in HALF:
            return x
        near, raised = self._distance(x) <= self._tolerance(x.dtype), x.float()
        point = self.to_unit(self.nearest(x.nan_to_num(0.0)), dtype=torch.float32)
        return raised + torch.where(near, point - raised.detach(), 0.0)  # which keeps the graph of x

    def _tolerance(self, dtype: torch.dtype) -> float:
        """The value itself is rounded to its dtype, which at 16 bits costs more than the usual tolerance."""
        return max(OFF_LATTICE_TOLERANCE, min(torch.finfo(dtype).eps * (self.levels - 1), 0.25))

    def check(self, x: Tensor, name: str = "x") -> None:
        """Raise :class:`~ncml.errors.ArgumentError` unless every value is a lattice point."""
        distance, tolerance = self._distance(x), self._tolerance(x.dtype)
        # One number decides, and NaN is none; only a failure needs the mask.
        if x.numel() and not float(distance.amax()) <= tolerance:
            check_finite(x, name, "clean the data")
            off = distance > tolerance
            value = float(x.detach()[off][0])
            raise ArgumentError(
                f"{name}: {int(off.sum())} of {x.numel()} values are not one of the {self.levels} "
                f"lattice points of [-1, 1] (first: {value:.6g}); "
                f"scale integers with Lattice({self.levels}).to_unit()"
            )

    def dequantize(
        self, x: Tensor, *, uniform: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Uniform dequantisation: ``x + U(-half_width, half_width)``, same shape and dtype.

        Args:
            x: Data on the lattice.
            uniform: Uniforms on [0, 1) of the shape of ``x``; drawn if None.
            generator: Source of randomness.

        A continuous density of the result bounds the mass on the lattice: by Jensen,
        ``E_u log p(x + u) <= log of the mean of p over the bin``.
        """
        check_floating(x, "x")
        check_generator(generator, x.device)
        if uniform is None:
            uniform = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        elif uniform.shape != x.shape or uniform.device != x.device:
            raise ArgumentError(
                f"uniform: got shape {tuple(uniform.shape)} on {uniform.device}; expected that of x, {tuple(x.shape)}, "
                f"on {x.device}"
            )
        return x + (2.0 * uniform.to(x.dtype) - 1.0) * self.half_width

    def bits_per_dim(self, log_prob: Tensor, dims: int | Tensor, *, exact: bool = True) -> BitsPerDim:
        """Bits per dimension from log-densities in nats (see the module's formula).

        Args:
            log_prob: Log-densities in data units, shape ``(B,)``.
            dims: Number of dimensions D of one example, or of each, ``(B,)``.
            exact: False if ``-log_prob`` only bounds the negative log-mass from above.
        """
        counts = torch.as_tensor(dims)
        if bool((counts < 1).any()):
            raise ArgumentError(f"dims: got {dims}; expected the number of values in an example")
        if counts.ndim and counts.shape != log_prob.shape:
            raise ArgumentError(
                f"dims: got shape {tuple(counts.shape)}; expected a number, or {tuple(log_prob.shape)}, one per example"
            )
        bits = -log_prob.detach().double() / (dims * math.log(2.0)) - math.log2(self.width)
        return BitsPerDim(bits, exact=exact)


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Bits per dimension of a set of examples, and what kind of number they are.

    Comparing values of different kinds raises: a bound of 2.8 does not lose to an exact 2.7, and a
    density has no number of bits. Compare ``.mean`` explicitly if that is what you want to say.

    Args:
        values: One value per example, shape ``(B,)``; ``inf`` where the model gives zero mass.
        exact: True for an exact likelihood, False for an upper bound.
        mass: False for values of a density off the lattice, in bits relative to a bin. They can be negative, and only
            compare models of the same noisy data.
    """

    values: Tensor
    exact: bool
    mass: bool = True

    def __post_init__(self) -> None:
        if self.values.numel() == 0:
            raise ArgumentError("bits/dim: got no examples; their mean would be NaN")
        if bool(self.values.isnan().any()):
            raise ArgumentError("bits/dim: got NaN; evaluate log_prob with check_finite=True")

    @property
    def mean(self) -> float:
        """Mean over examples; ``inf`` if any example has zero mass (never averaged away)."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over examples; NaN for one example or infinite values."""
        n = self.values.numel()
        return float(self.values.std() / math.sqrt(n)) if n > 1 else math.nan

    @property
    def infinite(self) -> int:
        """How many examples have zero mass."""
        return int(self.values.isinf().sum())

    @property
    def kind(self) -> str:
        """``"exact"`` or ``"upper bound"`` for masses; ``"density"`` off the lattice."""
        if not self.mass:
            return "density"
        return "exact" if self.exact else "upper bound"

    def __lt__(self, other: BitsPerDim) -> bool:
        return self.mean < self._rival(other)

    def __le__(self, other: BitsPerDim) -> bool:
        return self.mean <= self._rival(other)

    def __gt__(self, other: BitsPerDim) -> bool:
        return self.mean > self._rival(other)

    def __ge__(self, other: BitsPerDim) -> bool:
        return self.mean >= self._rival(other)

    def _rival(self, other: BitsPerDim) -> float:
        """The mean of ``other``, if the two can be ranked."""
        if not isinstance(other, BitsPerDim):
            raise ArgumentTypeError(
                f"cannot rank bits/dim: got {type(other).__name__}; expected BitsPerDim; compare .mean with a number"
            )
        if self.kind != other.kind:
            raise ArgumentTypeError(
                f"cannot rank bits/dim: got {self.kind} against {other.kind}; expected the same kind; "
                f"compare the .mean values and say which is which"
            )
        return other.mean

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        """The mean and how many examples, in place of all values, so that rows of tables can be read."""
        return f"<{self}, n = {self.values.numel()}>"

    def __str__(self) -> str:
        return f"{'' if self.exact else '<= '}{self.mean:.4f} bits/dim{'' if self.mass else ' (density)'}"
