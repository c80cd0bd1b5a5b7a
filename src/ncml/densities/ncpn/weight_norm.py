r"""Weight normalisation of a pixel network, and its initialisation from data (Salimans and Kingma, 2016).

Every weight becomes :math:`w = g\, v/\lVert v\rVert`, with one :math:`g` for each output feature, as in PixelCNN++.
Attention and the conditioning, which PixelCNN++ does not have, stay as they are.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ncml.densities.ncpn.blocks import CausalConv, GatedBlock, Skip, Upsample
from ncml.densities.ncpn.network import PixelNetwork

__all__ = ["normalise_weights", "standardise_by_data"]

DIRECTION_STD = 0.05
"""Standard deviation of v, as in PixelCNN++'s code: how fast Adam turns a direction depends on it."""

SMALL = 0.1
"""Standard deviation, at first, of what enters a gate, and of the outputs around where they start."""


def normalise_weights(network: PixelNetwork) -> None:
    """Split the weights of convolutions, skips and outputs into direction and length; the function stays the same."""
    for layer in network.modules():
        if isinstance(layer, (CausalConv, Upsample, Skip)) or layer is network.out:
            weight_norm(layer, dim=1 if isinstance(layer, Upsample) else 0)
            with torch.no_grad():
                direction = _split(layer)[1]
                direction.mul_(DIRECTION_STD / direction.std())


@torch.no_grad()
def standardise_by_data(network: PixelNetwork, x: Tensor, conditioning: Tensor) -> None:
    """Set lengths and biases so that on these images every feature of a layer has mean 0 and standard deviation 1.

    In one pass: every layer sees the images through layers that are already set. For what enters a gate, and for the
    outputs, the standard deviation is 0.1; the mean of the outputs becomes the bias that they had.

    Args:
        network: A network after :func:`normalise_weights`.
        x: Images, ``(B, C, H, W)``.
        conditioning: Their conditioning, ``(B, conditioning)``.
    """
    blocks = [module for module in network.modules() if isinstance(module, GatedBlock)]
    gates = {block.conv_out for block in blocks}
    biases = {skip: block.conv_in.bias for block in blocks for skip in block.skips}  # of what they are added to
    last: list[Tensor] = []

    def standardise(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401 -- torch's hooks
        variance, mean = torch.var_mean(output, (0, 1, 2), correction=0)
        scale = _scale(SMALL if layer in gates else 1.0, variance)
        length, _ = _split(layer)
        length.mul_(scale.view_as(length))
        if layer in biases:
            biases[layer].sub_(scale * mean)
        else:
            bias = cast(Tensor, layer.bias)
            bias.copy_(scale * (bias - mean))
        return scale * (output - mean)

    layers = [module for module in network.modules() if isinstance(module, (CausalConv, Upsample, Skip))]
    hooks = [layer.register_forward_hook(standardise) for layer in layers]
    hooks.append(network.level.register_forward_hook(lambda _module, _inputs, outputs: last.append(outputs[1])))
    try:
        network(x, conditioning)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = F.linear(F.elu(last[-1]), network.out.weight)
    variance, mean = torch.var_mean(outputs, (0, 1, 2), correction=0)
    scale = _scale(SMALL, variance)
    length, _ = _split(network.out)
    length.mul_(scale[:, None])
    network.out.bias.sub_(scale * mean)


def _scale(std: float, variance: Tensor) -> Tensor:
    """Factors that lead to a standard deviation; 1 where nothing varies, as of features that see padding alone."""
    return torch.where(variance > 1e-8, std / (variance + 1e-8).sqrt(), 1.0)


def _split(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Lengths and directions of a layer's weight."""
    parametrization: Any = layer.parametrizations
    return parametrization.weight.original0, parametrization.weight.original1
