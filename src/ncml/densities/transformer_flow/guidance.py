r"""Guidance of a transformer flow: sharper draws of a class, by what its label changes in every block.

With the mean and log-scale of a patch given its label, :math:`(\mu_c, a_c)`, and without, :math:`(\mu_0, a_0)`, the
patch is drawn with others, at a weight w (0 for none):

- ``"log_scale"``: :math:`a = a_c + w(a_c - a_0)` and :math:`\mu = \mu_c + w(\mu_c - \mu_0)`, as in TarFlow;
- ``"scale"``: the same with :math:`e^a` in place of a, as in iTARFlow; scales can become negative;
- ``"product"``: the Gaussian :math:`\propto N(\mu_c, e^{2a_c})^{1+w} / N(\mu_0, e^{2a_0})^w`, where :math:`a_0` is
  raised to :math:`a_c` if it is smaller, so that there is one; STARFlow's, and an option of iTARFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ncml.checks import check_choice, check_count, check_nonnegative

__all__ = ["FlowGuidance"]

Kind = Literal["log_scale", "scale", "product"]


@dataclass(frozen=True)
class FlowGuidance:
    """How much, and how, a label guides the draws of :meth:`ncml.densities.TransformerFlow.sample`.

    What is drawn is no longer distributed as the density says.

    Args:
        weight: w, at least 0. Published: 2.3 on ImageNet of 64 pixels (TarFlow), 2.1 to 4.2 (iTARFlow).
        kind: ``"log_scale"`` (default), ``"scale"`` or ``"product"``.
        annealed: Let the weight of a patch grow linearly along the block, from 0 at its first patch to w at its last,
            as in the published evaluations (default); else w everywhere.
        blocks: Guide only this many blocks, counted from the noise. None (default) for all, as in both evaluations;
            iTARFlow guides 1 while it trains.

    Raises:
        ArgumentError: A negative weight, an unknown kind, no blocks.
    """

    weight: float
    kind: Kind = "log_scale"
    annealed: bool = True
    blocks: int | None = None

    def __post_init__(self) -> None:
        check_nonnegative(self.weight, "weight")
        check_choice(self.kind, "kind", get_args(Kind))
        if self.blocks is not None:
            check_count(self.blocks, "blocks")

    def __call__(self, log_scale: Tensor, mean: Tensor, place: float) -> tuple[Tensor, Tensor]:
        """Guided scales and means ``(B, P)``, from log-scales and means of rows with labels and of the same without.

        Args:
            log_scale, mean: ``(2 B, P)``.
            place: Of the patch in its block, from 0 to 1.
        """
        (a, a_0), (mean, mean_0) = log_scale.chunk(2), mean.chunk(2)
        w = self.weight * (place if self.annealed else 1.0)
        if self.kind == "product":
            ratio = torch.exp(2.0 * (a - a_0)).clamp(max=1.0)
            precision = 1.0 + w - w * ratio
            return a.exp() * precision.rsqrt(), ((1.0 + w) * mean - w * ratio * mean_0) / precision
        mean = torch.lerp(mean_0, mean, 1.0 + w)
        if self.kind == "scale":
            return torch.lerp(a_0.exp(), a.exp(), 1.0 + w), mean
        return torch.lerp(a_0, a, 1.0 + w).exp(), mean
