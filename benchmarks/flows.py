"""Masked autoregressive flow, D = 64, 5 transforms, hidden 2 x 128, batch 512, against zuko and nflows.

The peers' flows have the same hidden layers and a context of the same width; they are given the noise features,
which ours computes itself. "Dense" is our flow, noise features included, with unmasked layers: what a
log-likelihood must at least compute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common import DenseMLP, Report, main, optional, settle_heap, with_backward, without_grad
from ncml import VPSDE
from ncml.densities import MAF
from ncml.densities.maf import MAX_LOG_SCALE
from ncml.nn.conditioning import Conditioning

D, HIDDEN, TRANSFORMS, BATCH = 64, (128, 128), 5, 512


class DenseFlow(nn.Module):
    """The layers of the flow without masks, and its affine maps."""

    def __init__(self, conditioning: Conditioning) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.nets = nn.ModuleList(DenseMLP(D, 2, HIDDEN, conditioning.features) for _ in range(TRANSFORMS))

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        features, log_det = self.conditioning(t), x.new_zeros(())
        limit = torch.tensor(MAX_LOG_SCALE)
        for net in self.nets:
            raw, shift = net(x, features).unbind(-1)
            log_scale = MAX_LOG_SCALE * raw / torch.hypot(raw, limit)  # as MAF bounds it
            x = torch.addcmul(shift, x, log_scale.exp())
            log_det = log_det + log_scale.sum(1)
        return log_det - 0.5 * (x.square().sum(1) + D * math.log(2.0 * math.pi))


def zuko_flow(context: int) -> nn.Module | None:
    """zuko's MAF with the same network."""
    zuko = optional("zuko")
    return zuko and zuko.flows.MAF(D, context, transforms=TRANSFORMS, hidden_features=HIDDEN, randperm=False)


def nflows_flow(context: int) -> nn.Module | None:
    """nflows' MAF; ``num_blocks=1`` is two hidden layers."""
    if not optional("nflows"):
        return None
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, ReversePermutation

    transforms = []
    for _ in range(TRANSFORMS):
        layer = MaskedAffineAutoregressiveTransform(
            D, HIDDEN[0], context_features=context, num_blocks=1, use_residual_blocks=False
        )
        transforms += [ReversePermutation(D), layer]
    return Flow(CompositeTransform(transforms), StandardNormal([D]))


def run(args: argparse.Namespace) -> Report:
    """Measure the flows."""
    report = Report("flows")
    settle_heap()
    x, t = torch.randn(BATCH, D), torch.full((BATCH,), 0.01)
    maf = MAF((D,), VPSDE.at_noise(0.5), transforms=TRANSFORMS, hidden=HIDDEN)
    features = maf.conditioning(t)
    width = features.shape[1]
    dense, zuko, nflows = DenseFlow(maf.conditioning), zuko_flow(width), nflows_flow(width)

    log_prob: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "MAF": (maf, lambda: maf.log_prob(x, t)),
        "dense": (dense, lambda: dense.log_prob(x, t)),
    }
    sample: dict[str, Callable[[], object]] = {
        "MAF sample": lambda: maf.sample(BATCH, t),
        "MAF one log_prob": without_grad(lambda: maf.log_prob(x, t)),
    }
    if zuko is not None:
        log_prob["zuko"] = zuko, lambda: zuko(features).log_prob(x)
        sample["zuko sample"] = without_grad(lambda: zuko(features).sample())
    if nflows is not None:
        log_prob["nflows"] = nflows, lambda: nflows.log_prob(x, context=features)
        sample["nflows sample"] = without_grad(lambda: nflows.sample(1, context=features))

    rounds = 5 if args.quick else 41
    report.time({f"{name} log_prob": without_grad(f) for name, (_, f) in log_prob.items()}, rounds)
    report.time({f"{name} log_prob+backward": with_backward(m, f) for name, (m, f) in log_prob.items()}, rounds)
    report.time(sample, 2 if args.quick else 9)

    for what in ("log_prob", "log_prob+backward"):
        report.ratio(f"MAF {what} / dense layers", f"MAF {what}", f"dense {what}", 1.15)
    report.ratio("MAF log_prob / zuko", "MAF log_prob", "zuko log_prob", 0.85)
    report.ratio("MAF log_prob / nflows", "MAF log_prob", "nflows log_prob", 0.6)
    report.ratio("MAF log_prob+backward / zuko", "MAF log_prob+backward", "zuko log_prob+backward", 0.85)
    report.ratio("MAF log_prob+backward / nflows", "MAF log_prob+backward", "nflows log_prob+backward")
    report.ratio("MAF sample / zuko", "MAF sample", "zuko sample", 0.08)
    report.ratio("MAF sample / nflows", "MAF sample", "nflows sample")
    report.ratio("MAF sample / its log_prob", "MAF sample", "MAF one log_prob")
    return report


if __name__ == "__main__":
    main(run, __doc__)
