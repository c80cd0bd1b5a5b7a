"""MADE, D = 64: log-likelihood against the same layers without masks, sampling against D full passes.

"Dense" is unmasked layers of the same sizes with the same noise features and mixture head. Also what the
checks of the public ``log_prob`` cost in a training step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common import DenseMLP, Report, main, settle_heap, with_backward, without_grad
from ncml import VPSDE, Lattice
from ncml.densities import MADE

D, BATCH = 64, 512
SIZES = {"2x128, K=4": ((128, 128), 4), "3x512, K=10": ((512, 512, 512), 10)}
DATA = {"lattice": Lattice(256), "continuous": None}


def full_passes(made: MADE, noise: Tensor, t: Tensor) -> Tensor:
    """Sampling by D full passes, the fixed point of ``resample``."""
    x = torch.zeros(len(noise), D)
    for _ in range(D):
        x = made.resample(x, noise, t)
    return x


def compare(report: Report, label: str, made: MADE, x: Tensor, rounds: int) -> None:
    """Time one model and record its figures."""
    t = torch.zeros(BATCH)
    noise = made.draw_noise(BATCH)
    dense = DenseMLP(D, made.head.outputs, made.net.hidden, made.conditioning.features)
    dense.out.load_state_dict(made.net.out.state_dict())  # the head's cost depends on its inputs

    def dense_log_prob() -> Tensor:
        edges = None if made.lattice is None else made.process.on_lattice(t)
        return made.head.log_prob(dense(x, made.conditioning(t)), x, edges).sum(1)

    log_prob: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "MADE": (made, lambda: made.log_prob(x, t)),
        "forward": (made, lambda: made(x, t)),
        "dense": (dense, dense_log_prob),
    }
    plain = {f"{n} log_prob, {label}": without_grad(f) for n, (_, f) in log_prob.items()}
    training = {f"{n} log_prob+backward, {label}": with_backward(m, f) for n, (m, f) in log_prob.items()}
    report.time(plain | training, rounds)
    sampling = {
        f"sample, {label}": lambda: made.sample(BATCH, t, noise=noise),
        f"D passes, {label}": lambda: full_passes(made, noise, t),
        f"one log_prob, {label}": plain[f"MADE log_prob, {label}"],
    }
    report.time(sampling, max(rounds // 5, 2))

    for what in ("log_prob", "log_prob+backward"):
        report.ratio(
            f"MADE {what} / dense layers and head, {label}", f"MADE {what}, {label}", f"dense {what}, {label}", 1.15
        )
    report.ratio(f"MADE D full passes / sample, {label}", f"D passes, {label}", f"sample, {label}", 8.0, at_least=True)
    report.ratio(f"MADE sample / its log_prob, {label}", f"sample, {label}", f"one log_prob, {label}", 8.0)
    report.figure(
        f"checks of log_prob / forward and backward, {label}",
        (f"MADE log_prob, {label}", f"forward log_prob, {label}", f"forward log_prob+backward, {label}"),
        lambda checked, forward, step: 100.0 * (checked - forward) / step,
        2.0,
        unit="%",
    )


def run(args: argparse.Namespace) -> Report:
    """Measure every size on lattice and continuous data."""
    report = Report("made")
    settle_heap()
    process = VPSDE.at_noise(0.1)
    for size, (hidden, components) in SIZES.items():
        for data, lattice in DATA.items():
            made = MADE((D,), process, lattice=lattice, hidden=hidden, components=components)
            x = Lattice(256).quantize(2.0 * torch.rand(BATCH, D) - 1.0)
            compare(report, f"{size}, {data}", made, x, 5 if args.quick else 21)
    return report


if __name__ == "__main__":
    main(run, __doc__)
