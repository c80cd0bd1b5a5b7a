"""The score by autograd against the log-likelihood: MADE, MAF and the adapters, D = 64, batch 512.

The unit is the model's own ``log_prob`` without gradients. One backward pass to the input costs about as
much as the forward pass, so 2 is the ideal; a training step, which also needs gradients to the weights, is 3.
"""

from __future__ import annotations

import argparse

import torch

from common import Report, main, optional, settle_heap, with_backward, without_grad
from ncml import VPSDE, Lattice, NoiseConditionalDensity
from ncml.densities import MADE, MAF, NFlowsDensity, ZukoDensity

D, HIDDEN, BATCH, T = 64, (128, 128), 512, 0.01
NOISE_FEATURES = 8


def densities() -> dict[str, NoiseConditionalDensity]:
    """The models that are measured."""
    process, lattice = VPSDE.at_noise(0.1), Lattice(256)
    models: dict[str, NoiseConditionalDensity] = {
        "MADE 2x128, K=4, lattice": MADE((D,), process, lattice=lattice, hidden=HIDDEN, components=4),
        "MADE 3x512, K=10, lattice": MADE((D,), process, lattice=lattice),
        "MADE 3x512, K=10, continuous": MADE((D,), process),
        "MAF 5x(2x128)": MAF((D,), process, hidden=HIDDEN),
    }
    if zuko := optional("zuko"):
        flow = zuko.flows.MAF(D, NOISE_FEATURES, transforms=5, hidden_features=HIDDEN)
        models["ZukoDensity of MAF"] = ZukoDensity(flow, (D,), process, noise_features=NOISE_FEATURES)
    if optional("nflows"):
        from nflows.distributions.normal import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform

        layers = [
            MaskedAffineAutoregressiveTransform(
                D, HIDDEN[0], context_features=NOISE_FEATURES, num_blocks=1, use_residual_blocks=False
            )
            for _ in range(5)
        ]
        flow = Flow(CompositeTransform(layers), StandardNormal([D]))
        models["NFlowsDensity of MAF"] = NFlowsDensity(flow, (D,), process, noise_features=NOISE_FEATURES)
    return models


def run(args: argparse.Namespace) -> Report:
    """Measure the score of every model."""
    report = Report("score")
    settle_heap()
    x = 2.0 * torch.rand(BATCH, D) - 1.0
    for name, density in densities().items():
        sides = {
            f"{name}, log_density": without_grad(lambda d=density: d.log_density(x, T)),
            f"{name}, score": lambda d=density: d.score(x, T),
            f"{name}, step": with_backward(density, lambda d=density: d.log_density(x, T)),
        }
        report.time(sides, 9 if args.quick else 31)
        target = None if "Density" in name else 2.3
        report.ratio(f"score / log-likelihood, {name}", f"{name}, score", f"{name}, log_density", target)
        report.ratio(f"score / forward and backward, {name}", f"{name}, score", f"{name}, step")
    return report


if __name__ == "__main__":
    main(run, __doc__)
