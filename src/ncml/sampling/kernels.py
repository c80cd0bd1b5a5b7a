r"""One step of the process between two noise levels, forward and back, with the log-ratio of the two densities."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ncml.density import Target

__all__ = ["Kernels"]


@dataclass(frozen=True)
class Kernels:
    r"""The process from s to t, :math:`K_f = N(a\,x_s, v)`, and back by the score,
    :math:`K_b = N\left((x_t + v\,\nabla\log p_t(x_t)) / a,\ v / a^2\right)`.

    Args:
        scale: :math:`a`.
        std: :math:`\sqrt v`.
    """

    scale: float
    std: float

    @classmethod
    def between(cls, target: Target, s: float, t: float) -> Kernels:
        """Those from ``s`` up to ``t``, and back."""
        return cls(*target.transition(s, t))

    def forth(self, x_s: Tensor, z: Tensor) -> Tensor:
        """A draw of x_t from normals ``z``."""
        return x_s.mul(self.scale).add_(z, alpha=self.std)

    def back(self, x_t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """A draw of x_s from normals ``z``, given the score at x_t."""
        return x_t.add(score, alpha=self.std**2).add_(z, alpha=self.std).div_(self.scale)

    def log_ratio(self, x_s: Tensor, x_t: Tensor, score: Tensor, dims: int | Tensor) -> Tensor:
        r""":math:`\log K_f(x_t \mid x_s) - \log K_b(x_s \mid x_t)`, ``(B,)``, given the score at x_t.

        Over the ``dims`` values that the density covers; the score of others is 0.
        """
        rest = x_s.mul(self.scale).sub_(x_t)
        # Half the difference of the squares of rest - v score and of rest, over v, without cancellation; the
        # normalising constants differ by the scale.
        terms = score.mul(0.5 * self.std**2).sub_(rest).mul_(score)
        return terms.flatten(1).sum(1) - dims * math.log(self.scale)
