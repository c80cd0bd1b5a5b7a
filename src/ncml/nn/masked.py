r"""A masked network: output i depends on inputs before i, and on everything through the conditioning.

Hidden units have degrees :math:`0 \dots D-1`, evenly spread and sorted: a unit of degree d sees the
first d inputs, and output i sees units of degree at most i (Germain et al., 2015, "MADE"; units of
degree 0, which see only the conditioning, are added). Since degrees are sorted, the units that
become computable when one more input is known are a contiguous block, so :meth:`MaskedMLP.incremental`
samples by computing each hidden unit once: the arithmetic of one forward pass rather than D.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml._checks import check_count

__all__ = ["MaskedMLP"]


class _MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a mask at every use.

    At every use, so that no optimizer step, ``load_state_dict``, ``.to``, copy or write to ``.data``
    can undo the mask; it costs a few per cent of the product that follows.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedMLP(nn.Module):
    """Masked multilayer perceptron, ``(B, inputs)`` and conditioning to ``(B, inputs, outputs)``.

    Args:
        inputs: Number of inputs D.
        outputs: Numbers per input; those of input i depend on inputs before i only.
        hidden: Widths of the hidden layers, at least one.
        conditioning: Width of the conditioning vector, added to every hidden layer.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int], conditioning: int) -> None:
        super().__init__()
        self.inputs, self.outputs = check_count(inputs, "inputs"), check_count(outputs, "outputs")
        self.hidden = tuple(check_count(h, "hidden") for h in hidden)
        check_count(len(self.hidden), "number of hidden layers")
        position = torch.arange(inputs)
        degrees = [torch.arange(h) * inputs // h for h in self.hidden]
        masks = [degrees[0][:, None] > position[None, :]]
        masks += [b[:, None] >= a[None, :] for a, b in itertools.pairwise(degrees)]
        self.layers = nn.ModuleList([_MaskedLinear(m) for m in masks])
        last = position[:, None] >= degrees[-1][None, :]
        self.out = _MaskedLinear(last.repeat_interleave(outputs, dim=0))
        self.conditioner = nn.Linear(conditioning, sum(self.hidden), bias=False)
        # ends[l][d]: how many units of layer l have a degree below d.
        self.ends = [[int((g < d).sum()) for d in range(inputs + 1)] for g in degrees]

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shifts = self.conditioner(conditioning.to(self.conditioner.weight.dtype)).split(self.hidden, dim=1)
        h = x
        for layer, shift in zip(self.layers, shifts, strict=True):
            h = F.silu(layer(h) + shift)
        outputs: Tensor = self.out(h)
        return outputs.unflatten(1, (self.inputs, self.outputs))

    def incremental(self, conditioning: Tensor) -> IncrementalPass:
        """A pass that takes one input at a time (no gradients); its state is its own."""
        return IncrementalPass(self, conditioning)


class IncrementalPass:
    """One forward pass of a :class:`MaskedMLP`, input by input.

    Alternate :meth:`outputs` (of the next position) and :meth:`push` (its value). Everything is kept
    features first, so that a block of units is a contiguous block of rows.
    """

    def __init__(self, net: MaskedMLP, conditioning: Tensor) -> None:
        self.net = net
        self.position = 0
        weight = net.out.weight
        n = conditioning.shape[0]
        shifts = net.conditioner(conditioning.to(weight.dtype)).t().split(net.hidden)
        self.layers = [cast(nn.Linear, layer) for layer in net.layers]
        self.shifts = [s + layer.bias[:, None] for s, layer in zip(shifts, self.layers, strict=True)]
        self.x = weight.new_empty(net.inputs, n)
        self.h = [weight.new_empty(h, n) for h in net.hidden]
        self.out_weight = weight.unflatten(0, (net.inputs, net.outputs))
        self.out_bias = net.out.bias.unflatten(0, (net.inputs, net.outputs, 1))
        self._extend()

    def outputs(self) -> Tensor:
        """Outputs of the next position, ``(outputs, n)``."""
        i = self.position
        known = self.net.ends[-1][i + 1]
        return torch.addmm(self.out_bias[i], self.out_weight[i, :, :known], self.h[-1][:known])

    def push(self, value: Tensor) -> None:
        """Set the next position to ``value``, ``(n,)``, and compute the units that it completes."""
        self.x[self.position] = value
        self.position += 1
        if self.position < self.net.inputs:
            self._extend()

    def _extend(self) -> None:
        d = self.position
        source = self.x[:d]
        for layer, shift, h, ends in zip(self.layers, self.shifts, self.h, self.net.ends, strict=True):
            rows = slice(ends[d], ends[d + 1])
            if rows.start < rows.stop:
                block = torch.addmm(shift[rows], layer.weight[rows, : source.shape[0]], source, out=h[rows])
                F.silu(block, inplace=True)
            source = h[: rows.stop]
