r"""The pixel head: one mixture per pixel, whose components see the channels before theirs.

A component k of a pixel's mixture is a product of discretized logistics over channels, where means
move linearly with earlier channels (Salimans et al., 2017, section 2.2):

.. math:: m_G \leftarrow m_G + \tanh(c_0)\, x_R, \qquad
          m_B \leftarrow m_B + \tanh(c_1)\, x_R + \tanh(c_2)\, x_G.

Each channel is a window mass or window density as in :mod:`ncml.nn.heads`, so the pixel's is exact on
the lattice and a normalised density off it: integrate the last channel first, whatever its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncml.checks import HALF
from ncml.errors import ArgumentError
from ncml.nn.heads import LogisticHead, open_uniforms, pick_component
from ncml.noise import Lattice

__all__ = ["PixelHead"]


@dataclass(frozen=True)
class PixelHead:
    """A mixture of discretized logistics over the channels of a pixel.

    Args:
        channels: 1 or 3.
        components: Number of components K.
        lattice: The lattice of the data.
    """

    channels: int
    components: int
    lattice: Lattice

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ArgumentError(f"channels: got {self.channels}; expected 1 (gray) or 3 (RGB)")

    @property
    def logistic(self) -> LogisticHead:
        """The one-dimensional head that gives each channel its window."""
        return LogisticHead(self.components, self.lattice)

    @property
    def outputs(self) -> int:
        """Network outputs per pixel: K logits; per channel K means and log-scales; K per coefficient."""
        c = self.channels
        return self.components * (1 + 2 * c + c * (c - 1) // 2)

    def initial_bias(self) -> Tensor:
        """Outputs to start from: even weights, means spread over [-1, 1], no coupling of channels."""
        logits, means, scales = self.logistic.initial_bias().split(self.components)
        couplings = torch.zeros(self.components * self.channels * (self.channels - 1) // 2)
        return torch.cat([logits, means.repeat(self.channels), scales.repeat(self.channels), couplings])

    def log_prob(self, outputs: Tensor, x: Tensor, edges: Tensor | None = None) -> Tensor:
        """Log-density of each pixel.

        Args:
            outputs: Network outputs, ``(B, N, outputs)`` for N pixels.
            x: Pixels, ``(B, N, channels)``, float32 or float64.
            edges: Where the first and last bin reach to infinity, bool ``(B,)``.

        Returns:
            Tensor ``(B, N)`` in nats, in the dtype of ``x``.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            # Pixels last, where vectors run: the axes of components and channels are too short for them.
            logits, means, raw, couplings = self._split(outputs.to(x.dtype).transpose(1, 2).contiguous(), dim=1)
            x = x.transpose(1, 2)
            if self.channels == 3:
                red, green = x[:, 0, None], x[:, 1, None]
                c0, c1, c2 = couplings.unbind(1)
                green_means = torch.addcmul(means[:, 1], c0, red)
                blue_means = torch.addcmul(torch.addcmul(means[:, 2], c1, red), c2, green)
                means = torch.stack([means[:, 0], green_means, blue_means], dim=1)
            inverse = self.logistic.inverse_scales(raw)
            terms = self.logistic.log_windows(x.unsqueeze(2), means, inverse, edges).sum(1)
            return torch.logsumexp(logits + terms, dim=1) - torch.logsumexp(logits, dim=1)

    def sample(self, outputs: Tensor, noise: Tensor, on_lattice: Tensor) -> Tensor:
        """Draw pixels: one component per pixel, then channel after channel (rounded before the next).

        Args:
            outputs: Network outputs, ``(B, N, outputs)``.
            noise: Uniforms on the open unit interval, ``(B, N, 1 + 2 channels)``.
            on_lattice: Which rows live on the lattice, bool ``(B,)``.

        Returns:
            Pixels ``(B, N, channels)``.
        """
        logits, means, raw, couplings = self._split(outputs.to(noise.dtype), dim=-1)
        pick = pick_component(logits, noise[..., :1]).unsqueeze(-2)

        def picked(values: Tensor) -> Tensor:
            return values.gather(-1, pick.expand(*values.shape[:-1], 1)).squeeze(-1)

        mean, scale, coupling = picked(means), self.logistic.log_scales(picked(raw)).exp(), picked(couplings)
        quantile, window = noise[..., 1:].unflatten(-1, (2, self.channels)).unbind(-2)
        steps = scale * torch.logit(quantile)
        window = (2.0 * window - 1.0) * self.lattice.half_width
        drawn: list[Tensor] = []
        for c in range(self.channels):
            value = mean[..., c] + steps[..., c]
            for before in range(c):
                value = value + coupling[..., c * (c - 1) // 2 + before] * drawn[before]
            drawn.append(torch.where(on_lattice[:, None], self.lattice.quantize(value), value + window[..., c]))
        return torch.stack(drawn, dim=-1)

    def draw_noise(
        self, n: int, pixels: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """The uniforms behind ``n`` images, ``(n, pixels, 1 + 2 channels)``, on the open unit interval."""
        return open_uniforms((n, pixels, 1 + 2 * self.channels), dtype, device, generator)

    def _split(self, outputs: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Along ``dim``: logits ``K``; means and raw log-scales ``(C, K)``; coefficients ``(C(C-1)/2, K)``."""
        if outputs.dtype in HALF:
            outputs = outputs.float()
        k, c = self.components, self.channels
        pairs = c * (c - 1) // 2
        logits, means, raw, couplings = outputs.split([k, k * c, k * c, k * pairs], dim)
        # tanh of the coefficients, by a kernel that takes a tenth of the time.
        couplings = 2.0 * torch.sigmoid(2.0 * couplings) - 1.0
        return logits, means.unflatten(dim, (c, k)), raw.unflatten(dim, (c, k)), couplings.unflatten(dim, (pairs, k))
