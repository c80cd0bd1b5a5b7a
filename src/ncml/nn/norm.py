r"""Layer normalisation that can be differentiated any number of times.

Training by sliced score matching takes the third derivative of the network, and that of torch's ``layer_norm`` is wrong
(2.13): its double backward treats the mean and the deviation as constants. Here the first backward pass is torch's own
kernel, unless its graph is needed; then it is written in elementary operations. So is the whole layer when it is
compiled, which fuses them, or transformed by ``torch.func``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ncml.nn.elementary import elementary

__all__ = ["LayerNorm"]

EPSILON = 1e-5
"""Added to the variance before its root is taken."""


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension, with gain and bias, at its speed; right to every order.

    Args:
        width: Size of the last dimension.

    Example:
        >>> LayerNorm(2)(torch.tensor([1.0, 3.0]))
        tensor([-1.0000,  1.0000], grad_fn=<_LayerNormBackward>)
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, EPSILON)

    def forward(self, h: Tensor) -> Tensor:
        if h.dtype != self.weight.dtype and h.device.type != "cpu":  # under autocast; torch's kernel there wants one
            h = h.to(self.weight.dtype)
        if elementary():
            return torch.addcmul(self.bias, _standardised(h)[0], self.weight)
        normalised: Tensor = _LayerNorm.apply(h, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return normalised


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401 -- autograd's
        normalised, mean, size = torch.native_layer_norm(h, h.shape[-1:], weight, bias, EPSILON)
        ctx.save_for_backward(h, weight, bias, mean, size)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 -- autograd's
        h, weight, bias, mean, size = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grads: tuple[Tensor | None, ...] = torch.ops.aten.native_layer_norm_backward.default(
                gradient, h, h.shape[-1:], mean, size, weight, bias, ctx.needs_input_grad
            )
            return grads
        unit, size = _standardised(h)
        inner = gradient * weight
        to_h = size * (inner - inner.mean(-1, keepdim=True) - unit * (inner * unit).mean(-1, keepdim=True))
        rows = tuple(range(h.ndim - 1))
        return to_h, (gradient * unit).sum(rows), gradient.sum(rows)


def _standardised(h: Tensor) -> tuple[Tensor, Tensor]:
    """``h`` minus its mean, divided by its standard deviation; and the reciprocal of the latter."""
    centred = h - h.mean(-1, keepdim=True)
    size = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPSILON)
    return centred * size, size
