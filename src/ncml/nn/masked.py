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

from ncml.checks import check_count, check_probability

__all__ = ["MaskedMLP"]


FAR = 5.0
"""Where inputs level off in linear terms, which one odd input would otherwise move without limit."""


def _levelled(x: Tensor) -> Tensor:
    """Near x where that is small, and never beyond :data:`FAR`; smooth."""
    x = x.clamp(-1e4, 1e4)  # powers of more would overflow
    return x * (1.0 + (x / FAR).square().square()).pow(-0.25)


class _MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a mask at every use.

    At every use, so that no optimizer step, ``load_state_dict``, ``.to``, copy or write to ``.data``
    can undo the mask; it costs a few per cent of the product that follows.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, *, bias: bool) -> None:
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)

    def shifted(self, x: Tensor, shift: Tensor) -> Tensor:
        """The product plus ``shift``, ``(B, out_features)``, in one call."""
        return torch.addmm(shift, x, (self.weight * self.mask).t())


class MaskedMLP(nn.Module):
    """Masked multilayer perceptron, ``(B, inputs)`` and conditioning to ``(B, inputs, outputs)``.

    Args:
        inputs: Number of inputs D.
        outputs: Numbers per input; those of input i depend only on inputs before i.
        hidden: Widths of the hidden layers, at least one. With fewer than D units, outputs miss some of the inputs
            before them: a layer of h units passes on at most h of the D pasts.
        conditioning: Width of the conditioning vector, added to every hidden layer.
        dropout: Probability of dropping a hidden unit in training mode.
        linear: Which of the outputs of input i also have a linear term in the inputs before i, the same for all of them
            and for every conditioning: a direct connection, zero at the start, of which nothing is dropped. Inputs are
            of order one; those far out count as 5 or -5 there.
    """

    linear_outputs: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        conditioning: int,
        dropout: float = 0.0,
        linear: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = check_count(inputs, "inputs"), check_count(outputs, "outputs")
        self.hidden = tuple(check_count(h, "hidden") for h in hidden)
        check_count(len(self.hidden), "number of hidden layers")
        check_probability(dropout, "dropout")
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(inputs)
        degrees = [torch.arange(h) * inputs // h for h in self.hidden]
        masks = [degrees[0][:, None] > position[None, :]]
        masks += [b[:, None] >= a[None, :] for a, b in itertools.pairwise(degrees)]
        self.layers = nn.ModuleList([_MaskedLinear(m, bias=False) for m in masks])
        # Rows of one kind of output are contiguous, so that heads work on long vectors.
        self.out = _MaskedLinear((position[:, None] >= degrees[-1][None, :]).repeat(outputs, 1), bias=True)
        self.conditioner = nn.Linear(conditioning, sum(self.hidden))
        self.linear = _MaskedLinear(position[:, None] > position[None, :], bias=False) if linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            chosen = torch.zeros(outputs)
            chosen[list(linear)] = 1.0
            self.register_buffer("linear_outputs", chosen, persistent=False)
        # ends[l][d]: how many units of layer l have a degree below d.
        self.ends = [[int((g < d).sum()) for d in range(inputs + 1)] for g in degrees]

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shifts = self.conditioner(conditioning.to(self.conditioner.weight.dtype)).split(self.hidden, dim=1)
        h = x
        for layer, shift in zip(self.layers, shifts, strict=True):
            h = F.silu(cast(_MaskedLinear, layer).shifted(h, shift))
            if self.dropout.p > 0.0:
                h = self.dropout(h)
        outputs: Tensor = self.out(h).view(len(x), self.outputs, self.inputs)
        if self.linear is not None:
            outputs = torch.addcmul(outputs, self.linear_outputs[:, None], self.linear(_levelled(x))[:, None])
        return outputs.transpose(1, 2)

    def incremental(self, conditioning: Tensor) -> IncrementalPass:
        """A pass that takes one input at a time (no gradients); its state is its own."""
        return IncrementalPass(self, conditioning)


class IncrementalPass:
    """One forward pass of a :class:`MaskedMLP`, input by input.

    Alternate :meth:`outputs` (of the next position) and :meth:`push` (its value). Everything is kept
    features first, so that the units of one degree are a contiguous block of rows. Blocks stop where the
    masks do, so the plain weights are used.
    """

    def __init__(self, net: MaskedMLP, conditioning: Tensor) -> None:
        self.ends = net.ends
        self.position = 0
        weight, bias = net.conditioner.weight.detach(), net.conditioner.bias.detach()
        # Hidden units start as what the conditioning adds to them.
        self.h = torch.addmm(bias[:, None], weight, conditioning.detach().to(weight.dtype).t()).split(net.hidden)
        self.x = weight.new_empty(net.inputs, len(conditioning))
        # All views at once: the loop would spend most of its time on making them.
        units = [[b - a for a, b in itertools.pairwise(ends)] for ends in net.ends]
        self.blocks = [
            list(zip(cast(nn.Linear, layer).weight.detach().split(n), h.split(n), strict=True))
            for n, layer, h in zip(units, net.layers, self.h, strict=True)
        ]
        self.rows = self.x.unbind()
        self.out_weights = net.out.weight.detach().unflatten(0, (net.outputs, net.inputs)).unbind(1)
        self.out_biases = net.out.bias.detach().unflatten(0, (net.outputs, net.inputs, 1)).unbind(1)
        self.linear = None
        if net.linear is not None:
            self.linear = net.linear_outputs, net.linear.weight.detach(), torch.empty_like(self.x)
        self._extend()

    def outputs(self) -> Tensor:
        """Outputs of the next position, ``(outputs, n)``."""
        i = self.position
        known = self.ends[-1][i + 1]
        out = torch.addmm(self.out_biases[i], self.out_weights[i].narrow(1, 0, known), self.h[-1].narrow(0, 0, known))
        if self.linear is not None:
            chosen, weight, levelled = self.linear
            out.addr_(chosen, weight[i, :i] @ levelled[:i])
        return out

    def push(self, value: Tensor) -> None:
        """Set the next position to ``value``, ``(n,)``, and compute the units that it completes."""
        self.rows[self.position].copy_(value)
        if self.linear is not None:
            self.linear[-1][self.position] = _levelled(value)
        self.position += 1
        if self.position < len(self.rows):
            self._extend()

    def _extend(self) -> None:
        d = self.position
        source, known = self.x, d
        for blocks, h, ends in zip(self.blocks, self.h, self.ends, strict=True):
            if ends[d] < ends[d + 1]:
                weight, block = blocks[d]
                F.silu(block.addmm_(weight.narrow(1, 0, known), source.narrow(0, 0, known)), inplace=True)
            source, known = h, ends[d + 1]
