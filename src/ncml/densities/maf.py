"""A noise conditional masked autoregressive flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_count
from ncml.density import SampleableDensity, check_draw
from ncml.nn.conditioning import Conditioning, NoiseScaling
from ncml.nn.masked import MaskedMLP
from ncml.noise import Lattice, NoiseProcess
from ncml.sampling.jacobi import ParallelSamples, allowed_difference, invert_layers

__all__ = ["MAF", "MAFSettings"]

MAX_LOG_SCALE = math.log(10.0)
"""Bound on the log-scale of one layer; a stack multiplies.

Measured on a ring in the plane: with a factor of 1000 per layer the scores far from the data grew so
large that two thirds of the refinements diverged; with 10 none did, and the likelihood was better.
"""

# A 0-d tensor on the CPU goes with any dtype and device, as a number does.
_LIMIT = torch.tensor(MAX_LOG_SCALE, dtype=torch.float64, device="cpu")


class MAF(SampleableDensity):
    r"""Masked autoregressive flow (Papamakarios et al., 2017), conditioned on the noise level.

    A stack of layers :math:`z_i = x_i\, e^{a_i(x_{<i})} + m_i(x_{<i})` in alternating orders, onto a
    standard normal:

    .. math:: \log p_t(x) = \log N(z; 0, I) + \sum_{\text{layers}} \sum_i a_i.

    Sampling inverts each layer by computing every hidden unit once, so it costs the arithmetic of one
    forward pass rather than D.

    Args:
        event_shape: Shape of one example; flattened in row-major order.
        process: The noise process.
        transforms: Number of layers.
        hidden: Widths of each layer's hidden layers. Use at least D, the number of values: with fewer units, some
            values do not see the one just before them in that layer's order.
        data_std: If given, data are first scaled by ``1 / sqrt(alpha(t)^2 data_std^2 + sigma(t)^2)``.
        noise_features: Number of noise features.
        context_features: Width of a floating context, 0 for none.
        classes: Number of classes of an integer context, 0 for none; the label -1 is "no label".

    Example:
        >>> maf = MAF((2,), VPSDE.at_noise(0.5), transforms=3, hidden=(32,))
        >>> maf.log_prob(maf.sample(5, t=0.01), t=0.01).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        transforms: int = 5,
        hidden: Sequence[int] = (128, 128),
        data_std: float | None = None,
        noise_features: int = 16,
        context_features: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__(event_shape, process)
        dims = math.prod(self.event_shape)
        self.scaling = NoiseScaling(process, data_std)
        self.conditioning = Conditioning(process, noise_features, context_features, classes)
        features = self.conditioning.features
        nets = [MaskedMLP(dims, 2, hidden, features) for _ in range(check_count(transforms, "transforms"))]
        for net in nets:
            net.out.weight.data.mul_(0.1)  # start near the identity
            net.out.bias.data.zero_()
        self.nets = nn.ModuleList(nets)

    def hidden_settings(self) -> dict[str, Any]:
        return {"data_std": self.scaling.data_std, "noise_features": self.conditioning.noise.features}

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        features = self.conditioning(t, context)
        z, log_det = self.scaling(x, t)
        z = z.flatten(1)
        for net in self.nets:
            z = z.flip(1)
            # Under autocast only the network's products are in half precision; what follows is not.
            raw, shift = net(z, features).to(z.dtype).mT.unbind(1)
            log_scale = _bounded(raw)
            z = torch.addcmul(shift, z, log_scale.exp())
            log_det = log_det + log_scale.sum(1)
        return log_det - 0.5 * (z.square().sum(1) + z.shape[1] * math.log(2.0 * math.pi))

    def sample(
        self, n: int, t: Time = 0.0, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        features = self.conditioning(t, context)
        dims = math.prod(self.event_shape)
        z = torch.randn(n, dims, dtype=self.dtype, device=self.device, generator=generator)
        with torch.inference_mode():  # which cheapens the many small operations of the passes
            for net in reversed(self.nets):
                z = _invert(cast(MaskedMLP, net), z, features).flip(1)
        return self.scaling.inverse(z.clone().reshape(n, *self.event_shape), t)  # an ordinary tensor again

    @torch.no_grad()
    def sample_in_parallel(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        tolerance: float = 0.0,
    ) -> ParallelSamples:
        """The samples of ``sample`` with the same generator, up to rounding, by Jacobi iteration of each layer.

        A layer is inverted by passes over all positions at once, each from the result of the one before, until nothing
        changes: position i is final after i + 1 of them, and usually much sooner (Song et al., 2021, "Accelerating
        feedforward computation").

        Args:
            n, t, context, generator: As for :meth:`ncml.SampleableDensity.sample`.
            tolerance: How much the last pass may still change, in standard deviations of the noise at t, for draws that
                are refined afterwards; 0 for not at all. The error of a sample is of this order.

        Returns:
            The samples; passes of each row, added over layers (D for each layer in sequence); and rows evaluated.

        Raises:
            ArgumentError: A tolerance where there is no noise.
        """
        times, context = check_draw(self, n, t, context, generator)
        allowed = allowed_difference(self, times, tolerance)
        features = self.conditioning(times, context)
        dims = math.prod(self.event_shape)
        z = torch.randn(n, dims, dtype=self.dtype, device=self.device, generator=generator)
        allowed = allowed * self.scaling.log_scale(times).exp().to(z.dtype)  # the layers see scaled data

        def redrawn(net: nn.Module, z: Tensor, x: Tensor, rows: Tensor) -> Tensor:
            raw, shift = net(x, features[rows]).mT.unbind(1)
            return cast(Tensor, (z[rows] - shift) / _bounded(raw).exp())

        layers = [partial(redrawn, net) for net in reversed(self.nets)]
        with torch.autocast(z.device.type, enabled=False):
            found = invert_layers(layers, z, allowed, dims)
        return replace(found, x=self.scaling.inverse(found.x.reshape(n, *self.event_shape), times))


def _bounded(raw: Tensor) -> Tensor:
    """Log-scales within ``MAX_LOG_SCALE``: odd, smooth to every order, and half the cost of a tanh."""
    return MAX_LOG_SCALE * raw / torch.hypot(raw, _LIMIT)


def _invert(net: MaskedMLP, z: Tensor, features: Tensor) -> Tensor:
    """The x with ``z = x exp(a(x)) + m(x)``, one dimension after the other."""
    pass_ = net.incremental(features)
    for column in z.t().contiguous():
        raw, shift = pass_.outputs()
        pass_.push((column - shift) / _bounded(raw).exp())
    return pass_.x.t()


@dataclass(frozen=True)
class MAFSettings:
    """The settings of a masked autoregressive flow in a configuration.

    Args:
        transforms: Number of layers of the flow.
        hidden: Widths of the hidden layers in the network of each of these.
        data_std: Standard deviation of the data, by which they are scaled at every noise level; no scaling if not
            given.
        noise_features: Number of features that encode the noise level.
    """

    transforms: int = 5
    hidden: tuple[int, ...] = (128, 128)
    data_std: float | None = None
    noise_features: int = 16

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> MAF:
        """The flow, with random weights; it has no lattice, so data on one have to be dequantised.

        Args:
            event_shape: Shape of one example.
            process: The noise process.
            lattice: The lattice of the data, which a flow does not use.
            classes: Number of classes of an integer context, 0 for none.
        """
        return MAF(
            event_shape,
            process,
            transforms=self.transforms,
            hidden=self.hidden,
            data_std=self.data_std,
            noise_features=self.noise_features,
            classes=classes,
        )
