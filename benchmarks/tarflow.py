"""The transformer flow against TarFlow's own program: its likelihoods, a training step, and sampling.

32 x 32 colour images in patches of 4, width 128, 4 blocks of 2 layers, batch 16; and in patches of 2, 4 times as many.
The step is forward, backward and AdamW, the loss each program's own; ours is told the noise level besides. Sampling is
``reverse`` of theirs with its cache, and ``sample`` of ours. With ``--tarflow`` and ``--itarflow`` (or $TARFLOW and
$ITARFLOW), checkouts of apple/ml-tarflow and apple/ml-itarflow, random weights of theirs, moved so that none is zero,
are loaded, and their log-likelihoods and samples compared; nothing of theirs is copied here.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from common import Figure, Report, main, settle_heap
from ncml import VESDE
from ncml.densities import FlowGuidance, TransformerFlow, load_tarflow

SHAPE, WIDTH, BLOCKS, LAYERS, BATCH = (3, 32, 32), 128, 4, 2, 16
CLASSES = 5


def program(name: str, checkout: str | None) -> ModuleType | None:
    """The file of both programs that has the network; they have the same name."""
    path = Path(checkout or "") / "transformer_flow.py"
    if not checkout or not path.exists():
        print(f"{name}: no checkout with transformer_flow.py; its rows are skipped", file=sys.stderr)
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved(module: nn.Module, by: float = 0.02) -> Any:
    """The module with every parameter moved: what is zero may be cheaper, or agree by chance."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def loaded(peer: nn.Module, noise: float | tuple[float, float]) -> TransformerFlow:
    """The peer's weights as a density."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), Path(folder) / "weights.pth")
        return load_tarflow(Path(folder) / "weights.pth", SHAPE, noise)


@torch.no_grad()
def differences(report: Report, name: str, peer: Any, noise: float | tuple[float, float]) -> None:
    """How far log-likelihoods and samples are apart, in float64: their ``.float()`` is made to keep it."""
    flow, timed = loaded(peer, noise).double(), isinstance(noise, tuple)
    x, labels = torch.randn(BATCH, *SHAPE, dtype=torch.float64), torch.arange(BATCH) % CLASSES
    t = torch.full((BATCH,), 0.05, dtype=torch.float64)
    more = {"t": t[:, None]} if timed else {}
    single, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double  # type: ignore[method-assign]
    try:
        z, _, log_det, *_ = peer.double()(x, labels, **more)
        dims = z[0].numel()
        theirs = -0.5 * (z.square().sum((1, 2)) + dims * math.log(2.0 * math.pi)) + dims * log_det
        value = float((flow.log_prob(x, t, labels) - theirs).abs().max())
        report.figures.append(Figure(f"{name}: largest difference of log-likelihoods", value, 1e-5, unit="nats"))
        noise_ = flow.noise_of(x, t, labels)
        patches = flow.patches.split(noise_)
        for guidance in (None, FlowGuidance(1.5, kind="scale" if timed else "log_scale")):
            theirs = peer.reverse(
                patches.clone(), labels, guidance=0 if guidance is None else 1.5, annealed_guidance=True, **more
            )
            drawn = flow.sample(BATCH, t, labels, noise=noise_, guidance=guidance)
            value = float((drawn - theirs).abs().max())
            kind = "" if guidance is None else "guided "
            report.figures.append(Figure(f"{name}: largest difference of {kind}samples", value, 1e-10, unit=""))
    finally:
        torch.Tensor.float = single  # type: ignore[method-assign]


def step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)

    def side() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return side


def timed(report: Report, tarflow: ModuleType | None, patch: int, rounds: int) -> None:
    """A training step, and sampling."""
    flow = moved(
        TransformerFlow(
            SHAPE, VESDE.linear(0.3), patch=patch, width=WIDTH, blocks=BLOCKS, layers=LAYERS, heads=WIDTH // 64
        )
    )
    x, t = torch.randn(BATCH, *SHAPE), torch.linspace(0.0, 0.3, BATCH)
    noise = torch.randn(BATCH, *SHAPE)
    steps, samples = f"step, patch {patch}", f"sample, patch {patch}"
    training = {steps: step(flow, lambda: -flow(x, t).mean())}
    sampling: dict[str, Callable[[], object]] = {samples: lambda: flow.sample(BATCH, 0.3, noise=noise)}
    if tarflow is not None:
        peer = moved(tarflow.Model(3, 32, patch, WIDTH, BLOCKS, LAYERS))

        def loss() -> Tensor:
            z, _, log_det = peer(x)
            return peer.get_loss(z, log_det)

        training[f"tarflow's {steps}"] = step(peer, loss)
        patches = flow.patches.split(noise)
        sampling[f"tarflow's {samples}"] = torch.no_grad()(lambda: peer.reverse(patches.clone()))
    report.time(training, rounds)
    report.time(sampling, max(1, rounds // 3))
    report.ratio(f"training {steps} / TarFlow's", steps, f"tarflow's {steps}", 1.0)
    report.ratio(f"{samples}, with caches / TarFlow's", samples, f"tarflow's {samples}", 0.6)


def run(args: argparse.Namespace) -> Report:
    """Compare, then measure."""
    report = Report("tarflow")
    settle_heap()
    tarflow, itarflow = program("tarflow", args.tarflow), program("itarflow", args.itarflow)
    if tarflow is not None:
        differences(report, "TarFlow", moved(tarflow.Model(3, 32, 4, WIDTH, 3, LAYERS, num_classes=CLASSES)), 0.05)
    if itarflow is not None:
        peer = itarflow.Model(3, 32, [4], [WIDTH], 3, [1, 2, 2], num_classes=CLASSES)
        differences(report, "iTARFlow", moved(peer), (0.01, 0.3))
    timed(report, tarflow, 4, 3 if args.quick else 25)
    if not args.quick:
        timed(report, tarflow, 2, 9)
    return report


if __name__ == "__main__":
    main(run, __doc__)
