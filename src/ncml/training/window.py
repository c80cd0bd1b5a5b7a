"""What is measured between two lines of the log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncml.density import NoiseConditionalDensity
from ncml.noise import Lattice
from ncml.objective import LossTerms
from ncml.training.parallel import reduced

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Window", "unit_of_bits"]


def unit_of_bits(rate: int | None) -> str:
    """What bits are counted per: a sample for recordings, which have a rate, else a dimension."""
    return "bits/dim" if rate is None else "bits per sample"


class Window:
    """Sums over the steps since the last line.

    Args:
        density: Has a shape, and perhaps a lattice.
        lattice: Says what a nat is in bits per dimension; the density's lattice if None.
        unit: What bits are called.
    """

    def __init__(
        self, density: NoiseConditionalDensity, lattice: Lattice | None = None, unit: str = "bits/dim"
    ) -> None:
        self.unit = unit
        self.dims = math.prod(density.event_shape)
        self.lattice = density.lattice or lattice
        self.norm = math.nan
        self._start()

    def _start(self) -> None:
        # Loss, its examples; negative log-likelihood at t = 0, its examples; the same at every t, without weights; in
        # float64, on the device.
        self.sums: Tensor = torch.zeros(6, dtype=torch.float64)

    @torch.no_grad()
    def add(self, terms: LossTerms) -> None:
        """Add the results of a batch."""
        loss, nll = terms.loss.detach().double(), terms.nll.detach().double()
        seen = (terms.weight > 0).double()  # what has no weight is not trained
        zero = seen * (terms.t == 0)
        n = loss.new_full((), len(loss))
        new = torch.stack([loss.sum(), n, (zero * nll).sum(), zero.sum(), (seen * nll).sum(), seen.sum()])
        self.sums = self.sums.to(new.device) + new

    def close(self, fabric: Fabric) -> dict[str, float]:
        """Means over all processes, and a new start."""
        loss, n, zero, n_zero, nll, n_seen = reduced(fabric, self.sums, "sum").tolist()
        line = {"loss": loss / max(n, 1.0), "gradient_norm": self.norm}
        if self.lattice is not None:
            if n_seen:
                line["bits_per_dim"] = self._bits(nll, n_seen)
            if n_zero:
                line["bits_per_dim_zero"] = self._bits(zero, n_zero)
        self._start()
        return line

    def _bits(self, nll: float, n: float) -> float:
        assert self.lattice is not None
        return nll / (n * self.dims * math.log(2.0)) - math.log2(self.lattice.width)

    def summary(self, line: dict[str, float]) -> str:
        """A few words for the progress bar."""
        if "bits_per_dim" not in line:
            return f"{line['loss']:.4g} nats"
        zero = f", {line['bits_per_dim_zero']:.3f} at t=0" if "bits_per_dim_zero" in line else ""
        return f"{line['bits_per_dim']:.3f} {self.unit}{zero}"

    def state(self, fabric: Fabric) -> list[float]:
        """The sums over all processes, for a checkpoint; called on every process."""
        return reduced(fabric, self.sums, "sum").tolist()

    def restore(self, state: list[float]) -> None:
        """Continue from :meth:`state`."""
        loss, n, *_ = state
        state = state if len(state) == 6 else [*state, loss, n]  # version 0.1 had four, and no weights
        self.sums = torch.tensor(state, dtype=torch.float64)
