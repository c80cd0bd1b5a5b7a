r"""The head: the distribution of the values of a position, given the features there.

Channels are autoregressive, :math:`p(x_i \mid h) = \prod_c p(x_{i,c} \mid h, x_{i,<c})`, by a masked network
(:class:`~ncml.nn.MaskedMLP`) over the channels of a position whose conditioning is its features h: the parameters of
channel c's mixture see the values of earlier channels, and no others, for any number of channels. (NCPN's linear
dependence of the means needs a head of its own for three of them, and logistics.) Each conditional is a mixture of
:mod:`ncml.nn.heads`: an exact mass on the lattice, a normalised density off it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.nn.heads import MixtureHead
from ncml.nn.masked import MaskedMLP

__all__ = ["SequenceHead"]


class SequenceHead(nn.Module):
    """Mixtures over the channels of every position.

    Args:
        channels: Number of channels C.
        width: Number of features h, and of hidden units.
        mixture: The distribution of one value, from 3K outputs.
    """

    def __init__(self, channels: int, width: int, mixture: MixtureHead) -> None:
        super().__init__()
        self.channels, self.mixture = channels, mixture
        self.net = MaskedMLP(channels, mixture.outputs, (width,), width)
        with torch.no_grad():
            self.net.out.bias.copy_(mixture.initial_bias().repeat_interleave(channels))
            self.net.out.weight.mul_(0.1)  # start near the same broad mixture for every value

    def log_prob(self, h: Tensor, x: Tensor, edges: Tensor | None, given: Tensor | None = None) -> Tensor:
        """Log-density of each value, ``(B, l, C)`` in nats, in the dtype of ``x`` whatever that of ``h``.

        Args:
            h: Features, ``(B, l, width)``.
            x: Values, ``(B, l, C)``.
            edges: Where the first and last bin reach to infinity, bool ``(B,)``.
            given: Values whose earlier channels a channel is given, of the shape of ``x``; those of ``x`` if None.
        """
        with torch.autocast(h.device.type, enabled=False):
            log_p = self.mixture.log_prob(self._outputs(h, x if given is None else given), x.flatten(1), edges)
        return log_p.view(x.shape)

    def resample(self, h: Tensor, x: Tensor, noise: Tensor, on_lattice: Tensor) -> Tensor:
        """Every value redrawn given the features and the earlier channels in ``x``, all in one pass.

        Args:
            h, x: As for :meth:`log_prob`.
            noise: Uniforms, ``(B, l, C, 3)``.
            on_lattice: Which rows live on the lattice, bool ``(B,)``.
        """
        with torch.autocast(h.device.type, enabled=False):
            drawn = self.mixture.sample(self._outputs(h, x), noise.flatten(1, 2), on_lattice)
        return drawn.view(x.shape)

    def sample(self, h: Tensor, noise: Tensor, on_lattice: Tensor) -> Tensor:
        """The values ``(B, C)`` of one position, channel after channel.

        Args:
            h: Its features, ``(B, width)``.
            noise: Uniforms, ``(B, C, 3)``.
            on_lattice: As for :meth:`resample`.
        """
        pass_ = self.net.incremental(h)
        for c in range(self.channels):
            outputs = pass_.outputs().t().unsqueeze(1)
            pass_.push(self.mixture.sample(outputs, noise[:, c : c + 1], on_lattice)[:, 0])
        return pass_.x.t()

    def _outputs(self, h: Tensor, x: Tensor) -> Tensor:
        """The parameters of every value's mixture, ``(B, l C, 3K)``."""
        outputs = self.net(x.flatten(0, 1), h.flatten(0, 1))
        return outputs.reshape(len(x), x.shape[1] * self.channels, self.mixture.outputs)
