"""Causal transformer: a training step of the trunk against torch's own layers, and cached sampling.

Training: batch 8, length 256, width 256, 6 layers, 8 heads, without input and output head; forward, backward and
Adam. "torch" is the same stack of ``torch.nn.TransformerEncoderLayer`` with a causal mask, which knows no noise
level. Sampling: batch 16, length 256, against one pass over the drawn prefix per position. Long windows: the whole
model at width 64, 4 layers, 4 heads; a likelihood of two windows of 2,048 positions and its gradient to the parameters,
against the same positions in 16 windows of 256; and what is kept for the backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common import Figure, Report, main, settle_heap, with_backward
from ncml import VESDE
from ncml.densities import CausalTransformer
from ncpn import saved_mebibytes

LENGTH, WIDTH, LAYERS, HEADS = 256, 256, 6, 8
BATCH, SAMPLES = 8, 16
LONG, LONG_BATCH = 2048, 2


class Peer(nn.Module):
    """The same stack of torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.stack = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.stack(h, mask=self.mask, is_causal=True)


def training_step(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Forward, backward and Adam; the gradient reaches the inputs, as it would reach their embedding."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    h, direction = torch.randn(2, BATCH, LENGTH, WIDTH).unbind()
    h.requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        h.grad = None
        forward(h).backward(direction)
        optimizer.step()

    return step


@torch.no_grad()
def by_prefixes(model: CausalTransformer, noise: Tensor, t: float) -> Tensor:
    """Sampling by a pass over the drawn prefix for every position."""
    x = torch.zeros(SAMPLES, 1, 1)
    for i in range(LENGTH):
        drawn = model.resample(x, noise[:, : i + 1], t)[:, i:]
        x = torch.cat([x[:, :i], drawn, drawn], dim=1)  # the last is a place for the next one
    return x[:, :LENGTH]


def run(args: argparse.Namespace) -> Report:
    """Measure training and sampling."""
    report = Report("transformer")
    settle_heap()
    model = CausalTransformer((LENGTH, 1), VESDE.linear(1.0), width=WIDTH, layers=LAYERS, heads=HEADS)
    with torch.no_grad():
        model.trunk.modulate.weight.normal_(std=0.02)  # what is zero may be cheaper
    conditioning, noise = torch.randn(BATCH, WIDTH), model.draw_noise(SAMPLES)
    peer = Peer()
    report.time(
        {
            "trunk": training_step(model.trunk, lambda h: model.trunk(h, conditioning)),
            "torch": training_step(peer, peer),
        },
        3 if args.quick else 15,
    )
    report.ratio("training step of the trunk / torch.nn.TransformerEncoderLayer", "trunk", "torch", 1.10)
    report.time(
        {
            "sample": lambda: model.sample(SAMPLES, 0.1, noise=noise),
            "by prefixes": lambda: by_prefixes(model, noise, 0.1),
        },
        1 if args.quick else 3,
    )
    report.ratio("sampling by a pass over every prefix / cached", "by prefixes", "sample", 20.0, at_least=True)
    long_windows(report, 1 if args.quick else 7)
    return report


def long_windows(report: Report, rounds: int) -> None:
    """Time and memory of a training step at 2,048 positions."""
    model = CausalTransformer((LONG, 1), VESDE.linear(1.0), width=64, layers=4, heads=4)
    x, t = torch.randn(LONG_BATCH, LONG, 1), torch.full((LONG_BATCH,), 0.1)
    short, times = x.reshape(-1, LENGTH, 1), torch.full((LONG_BATCH * LONG // LENGTH,), 0.1)
    sides = {
        "2 x 2048": with_backward(model, lambda: model(x, t)),
        "16 x 256": with_backward(model, lambda: model(short, times)),
    }
    report.time(sides, rounds)
    report.figure("seconds of a step, 2 x 2048 positions", ("2 x 2048",), lambda seconds: seconds, unit="s")
    report.ratio("step of 2 x 2048 positions / of 16 x 256", "2 x 2048", "16 x 256")
    for recompute in (False, True):
        model.recompute_blocks(recompute)
        kept = saved_mebibytes(model, lambda: model(x, t).sum(), LONG_BATCH)
        name = f"kept for the backward pass, each 2048 positions{', blocks recomputed' if recompute else ''}"
        report.figures.append(Figure(name, kept, unit="MiB"))


if __name__ == "__main__":
    main(run, __doc__)
