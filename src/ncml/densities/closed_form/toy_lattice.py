r"""A lattice variable with a given pmf: exact mass, density, score and posterior at every noise level.

With :math:`P(x_0 = x_k) = P_k` on a :class:`~ncml.Lattice`:

* under a Gaussian process, :math:`p_t = \sum_k P_k\, N(\alpha x_k, \sigma^2)`, a comb of spikes as t -> 0;
* under a discrete process such as :class:`~ncml.LevelNoise`, the pmf times the transition matrix.

Where the process keeps data on the lattice the density is the mass of a bin over its width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ncml.checks import Time, per_example
from ncml.densities.closed_form.base import ClosedForm, Numbers, as_float64
from ncml.density import check_arguments
from ncml.errors import ArgumentError, UnsupportedError
from ncml.noise import DiscreteProcess, GaussianProcess, Lattice, NoiseProcess

__all__ = ["ToyLattice"]


class ToyLattice(ClosedForm):
    """Independent lattice variables with given probabilities.

    Args:
        process: A Gaussian or discrete process.
        pmf: Probabilities, ``(levels,)`` for one dimension (event shape ``(1,)``) or
            ``(*event_shape, levels)``; non-negative, normalised to sum to 1 along the last axis. Samples have
            its dtype.

    Raises:
        UnsupportedError: Another kind of process.
        ArgumentError: Negative probabilities, or rows without mass.
    """

    lattice: Lattice
    pmf: Tensor

    def __init__(self, process: NoiseProcess, pmf: Numbers) -> None:
        if not isinstance(process, (GaussianProcess, DiscreteProcess)):
            raise UnsupportedError(
                f"process: got {type(process).__name__}; expected a GaussianProcess or a DiscreteProcess"
            )
        p = torch.atleast_2d(as_float64(pmf, "pmf"))
        if not bool((p >= 0).all()) or not bool((p.sum(-1) > 0).all()):
            raise ArgumentError("pmf: got negative values or a row without mass; expected probabilities")
        super().__init__(tuple(p.shape[:-1]), process, pmf, Lattice(p.shape[-1]))
        self.register_buffer("pmf", p / p.sum(-1, keepdim=True))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        """Without edges: spikes under a Gaussian process; flat bins, and zero outside, where there is no noise."""
        on_lattice = self.process.on_lattice(t) if edges else torch.zeros_like(t, dtype=torch.bool)
        return self._log_density(x, t, on_lattice)

    def posterior(self, x: Tensor, t: Time) -> Tensor:
        """Probabilities of each level of ``x_0`` given ``x_t = x``, ``(B, *event_shape, levels)``.

        Raises:
            ArgumentError: A value that no level can become by ``t``.
        """
        x, times, _ = check_arguments(self, x, t, None)
        if isinstance(self.process, GaussianProcess):
            log_joint, clean = self._log_joint(x, times)
            exact = torch.nn.functional.one_hot(self.lattice.nearest(x), self.lattice.levels) * self.pmf.to(x.dtype)
            joint = torch.where(per_example(clean, log_joint), exact, log_joint.softmax(-1))
        else:
            matrices = self._matrices(times).to(x.dtype)
            observed = self.lattice.nearest(x)
            rows = torch.stack([m.t()[k] for m, k in zip(matrices, observed, strict=True)])  # P(x_t | x_0 = k)
            joint = self.pmf.to(x.dtype) * rows
        total = joint.sum(-1, keepdim=True)
        impossible = ~(total > 0.0)  # written so that NaN is one
        if bool(impossible.any()):
            raise ArgumentError(
                f"x: got {int(impossible.sum())} of {x.numel()} values that have no mass at their t, the first "
                f"{float(x[impossible.squeeze(-1)][0]):.6g}; expected values that some level can become"
            )
        return joint / total

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        flat = self.pmf.flatten(0, -2)
        levels = torch.multinomial(flat, n, replacement=True, generator=generator).t()
        x = self.lattice.to_unit(levels, dtype=self.dtype).reshape(n, *self.event_shape)
        return self.process.perturb(x, t, generator=generator)

    def _log_density(self, x: Tensor, t: Tensor, edges: Tensor) -> Tensor:
        # Bins: the first and last reach to infinity where edges apply.
        log_mass = self._pmf_at(t).to(x.dtype).log().expand(x.shape[0], *self.event_shape, -1)
        bins = log_mass.gather(-1, self.lattice.nearest(x).unsqueeze(-1)).squeeze(-1) - math.log(self.lattice.width)
        outside = (x.abs() > 1.0 + self.lattice.half_width) & ~per_example(edges, x)
        value = torch.where(outside, torch.full_like(bins, -math.inf), bins)
        if isinstance(self.process, GaussianProcess):
            log_joint, clean = self._log_joint(x, t)
            value = torch.where(per_example(clean, x), value, log_joint.logsumexp(-1))
        else:  # flat on each bin: tied to x, so that derivatives of any order exist, and are 0
            value = value + 0.0 * x.sin()
        return value.flatten(1).sum(1)

    def _log_joint(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``log P_k N(x; alpha x_k, sigma^2)``, ``(B, *event_shape, levels)``, and where sigma is 0."""
        assert isinstance(self.process, GaussianProcess)
        wide = x.unsqueeze(-1)
        alpha, sigma = (per_example(v.to(x.dtype), wide) for v in (self.process.alpha(t), self.process.sigma(t)))
        clean = sigma == 0
        sigma = torch.where(clean, torch.ones_like(sigma), sigma)
        centres = alpha * self.lattice.points(dtype=x.dtype, device=x.device)
        quadratic = ((wide - centres) / sigma).square() + math.log(2.0 * math.pi)
        return self.pmf.to(x.dtype).log() - sigma.log() - 0.5 * quadratic, clean.flatten()

    def _pmf_at(self, t: Tensor) -> Tensor:
        """The pmf of ``x_t`` on the lattice, per example."""
        if isinstance(self.process, GaussianProcess):
            return self.pmf
        return torch.einsum("...k,bkj->b...j", self.pmf, self._matrices(t))

    def _matrices(self, t: Tensor) -> Tensor:
        assert isinstance(self.process, DiscreteProcess)
        values, index = t.unique(return_inverse=True)
        if not values.numel():  # an empty batch
            return self.pmf.new_empty(0, self.lattice.levels, self.lattice.levels)
        return torch.stack([self.process.transition_matrix(float(v)) for v in values]).to(self.pmf)[index]
