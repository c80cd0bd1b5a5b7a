"""NCPN against pixel-cnn-pp: training step, memory, mixture loss, score and sampling, 3x32x32.

Both networks have the same blocks, features, resolutions and mixture components; dropout is off in both. Without
attention (``heads=0``) ours is theirs, with the noise level in every block and without weight normalisation.

``--pixel-cnn-pp`` is a checkout of github.com/pclucas14/pixel-cnn-pp (or ``$PIXEL_CNN_PP``). As published it does not
import under Python 3 and wants a GPU: both are corrected in memory. Rows of a missing peer are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common import Figure, Report, parser, settle_heap, show, without_grad
from ncml import VPSDE, Lattice
from ncml.densities import NCPN
from ncml.score import log_density_and_score

SHAPE = (3, 32, 32)
PIXELS = SHAPE[1] * SHAPE[2]
COMPONENTS = 10
Side = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """One size of both networks, and its targets."""

    name: str
    blocks: int
    features: int
    batch: int
    rounds: int
    eager: float
    autocast: float | None


SMALL = Size("small", 2, 40, 8, 11, 0.80, None)
PAPER = Size("paper", 5, 160, 4, 3, 0.88, 0.55)


class Peer:
    """pixel-cnn-pp from a checkout: its network and its loss."""

    def __init__(self, checkout: str) -> None:
        for name in ("utils", "layers", "model"):
            source = (Path(checkout) / f"{name}.py").read_text()
            module = types.ModuleType(name)
            sys.modules[name] = module  # the files import each other
            code = source.replace("print e\n", "print(e)\n").replace(".cuda()", "")
            exec(compile(code, name, "exec"), module.__dict__)
        self.loss: Callable[[Tensor, Tensor], Tensor] = sys.modules["utils"].discretized_mix_logistic_loss

    def network(self, size: Size) -> nn.Module:
        """Their network without dropout, in training mode."""
        network: nn.Module = sys.modules["model"].PixelCNN(size.blocks, size.features, COMPONENTS)
        for module in network.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        return network

    def training(self, size: Size) -> tuple[Callable[[], Tensor], nn.Module]:
        """The loss of a batch, in float32, and its network."""
        network, x = self.network(size), images(size.batch)
        return lambda: self.loss(x, network(x).float()), network


class NCPNReport(Report):
    """A report that also records the settings behind its figures."""

    def settings(self) -> dict[str, object]:
        """What both networks have in common."""
        sizes = {s.name: {"blocks": s.blocks, "features": s.features, "batch": s.batch} for s in (SMALL, PAPER)}
        alike = {"image": SHAPE, "resolutions": 3, "components": COMPONENTS, "dropout": 0.0, "sizes": sizes}
        return {"settings": alike}

    def add(self, name: str, value: float | None, target: float | None = None, unit: str = "x") -> None:
        """Record a figure that is not made of CPU times."""
        self.figures.append(Figure(name, value, target, unit=unit, note="" if value else "not measured: pixel-cnn-pp"))


def ours(size: Size, heads: int) -> NCPN:
    """Our network of one size."""
    torch.manual_seed(0)
    process = VPSDE.at_noise(10 * Lattice(256).width)
    preset = {"blocks": size.blocks, "features": size.features, "components": COMPONENTS}
    return NCPN(SHAPE, process, resolutions=3, heads=heads, **preset)


def images(n: int) -> Tensor:
    """Images of uniform 8-bit noise."""
    return Lattice(256).quantize(2.0 * torch.rand(n, *SHAPE) - 1.0)


def training_step(network: nn.Module, loss: Callable[[], Tensor], autocast: bool = False) -> Side:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def our_loss(density: NCPN, size: Size) -> Callable[[], Tensor]:
    """Minus the log-likelihood of a batch at t = 0, the mean over images."""
    x, t = images(size.batch), torch.zeros(size.batch)
    return lambda: -density(x, t).mean()


def train(report: NCPNReport, peer: Peer | None, size: Size, quick: bool) -> None:
    """Training steps of one size, against the peer's and our own without attention, and what they save."""
    sides: dict[str, Side] = {}
    saved: dict[str, float] = {}
    for heads, what in ((0, "without attention"), (8, "with attention")):
        density = ours(size, heads)
        loss = our_loss(density, size)
        saved[what] = saved_mebibytes(density, loss, size.batch)
        sides[f"step {what}, {size.name}"] = training_step(density, loss)
        sides[f"step {what}, {size.name}, bf16"] = training_step(density, loss, autocast=True)
        if size is SMALL and not quick:
            sides[f"step {what}, {size.name}, compiled"] = compiled_step(report, size, heads, what)
    if peer:
        loss, network = peer.training(size)
        saved["by pixel-cnn-pp"] = saved_mebibytes(network, loss, size.batch)
        sides[f"pixel-cnn-pp step, {size.name}"] = training_step(network, loss)
        sides[f"pixel-cnn-pp step, {size.name}, bf16"] = training_step(network, loss, autocast=True)
    report.time(sides, 2 if quick else size.rounds)

    plain, full = f"step without attention, {size.name}", f"step with attention, {size.name}"
    theirs = f"pixel-cnn-pp step, {size.name}"
    report.ratio(f"{plain} / pixel-cnn-pp's", plain, theirs, size.eager)
    report.ratio(f"{plain}, bf16 / pixel-cnn-pp's float32", f"{plain}, bf16", theirs, size.autocast)
    report.ratio(f"pixel-cnn-pp's own in bf16 / float32, {size.name}", f"{theirs}, bf16", theirs)
    report.ratio(f"{full} / without", full, plain, 1.35)
    report.ratio(f"{full} / without, bf16", f"{full}, bf16", f"{plain}, bf16", 1.35)
    if size is SMALL:
        report.ratio(f"{plain}, compiled / pixel-cnn-pp's", f"{plain}, compiled", theirs, 0.62)
        report.ratio(f"{full}, compiled / without", f"{full}, compiled", f"{plain}, compiled")
    for what, mebibytes in saved.items():
        report.add(f"saved per image {what}, {size.name}", mebibytes, unit="MiB")
    ratio = saved["without attention"] / saved["by pixel-cnn-pp"] if peer else None
    report.add(f"saved without attention / by pixel-cnn-pp, {size.name}", ratio, 0.5)


def compiled_step(report: NCPNReport, size: Size, heads: int, what: str) -> Side:
    """A step with every gated block compiled, after two calls, which are timed with nothing compiled on disk."""
    density = ours(size, heads)
    density.compile_blocks()
    step = training_step(density, our_loss(density, size))
    with tempfile.TemporaryDirectory() as cache, environment_variables(TORCHINDUCTOR_CACHE_DIR=cache):
        start = time.perf_counter()
        step()
        step()
        seconds = time.perf_counter() - start
    report.add(f"compilation {what}, {size.name}: wall time", seconds, None if heads else 45.0, unit="s")
    return step


@contextlib.contextmanager
def environment_variables(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def saved_mebibytes(network: nn.Module, loss: Callable[[], Tensor], batch: int) -> float:
    """What autograd saves for the backward pass besides the parameters, in MiB per image."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, tuple[int, object]] = {}  # the storages are held, so that no address is counted twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(size for size, _ in saved.values()) / 2**20 / batch


def mixture_loss(report: NCPNReport, peer: Peer | None, quick: bool) -> None:
    """The mixture of logistics, forward and backward, 8 images, on outputs as their networks leave them in memory."""
    head, x, edges = ours(SMALL, 0).head, images(8), torch.ones(8, dtype=torch.bool)
    outputs = (0.5 * torch.randn(8, head.outputs, PIXELS)).requires_grad_()
    pixels = x.flatten(2).transpose(1, 2)
    sides: dict[str, Side] = {
        "mixture loss": lambda: torch.autograd.grad(head.log_prob(outputs.mT, pixels, edges).sum(), outputs)
    }
    if peer:
        theirs = (0.5 * torch.randn(8, head.outputs, *SHAPE[1:])).requires_grad_()
        sides["pixel-cnn-pp loss"] = lambda: torch.autograd.grad(peer.loss(x, theirs), theirs)
    report.time(sides, 5 if quick else 41)
    report.ratio("mixture loss with backward / pixel-cnn-pp's", "mixture loss", "pixel-cnn-pp loss", 0.5)


def score(report: NCPNReport, _: Peer | None, quick: bool) -> None:
    """Log-density and score in one pass, against the log-density alone."""
    x, t = images(SMALL.batch), torch.full((SMALL.batch,), 0.001)
    for heads, what in ((0, "without"), (8, "with")):
        density = ours(SMALL, heads).eval()
        log_prob, both = f"log_prob {what} attention", f"log-density and score {what} attention"
        sides = {log_prob: without_grad(lambda d=density: d.log_prob(x, t))}
        sides[both] = lambda d=density: log_density_and_score(d, x, t)
        report.time(sides, 3 if quick else 11)
        report.ratio(f"{both} / log_prob", both, log_prob, 2.3)


def sampling(report: NCPNReport, peer: Peer | None, quick: bool) -> None:
    """Cached sampling against the peer's loop (1,024 passes, of which one is timed), and completion of images."""
    for batch, targets in (1, (50.0, None)), (16, (300.0, 150.0)):
        sides: dict[str, Side] = {}
        theirs, x = f"pixel-cnn-pp pass, {batch}", images(batch)
        if peer:
            network = peer.network(SMALL).eval()
            sides[theirs] = without_grad(lambda network=network, x=x: network(x, sample=True))
        for heads, what in ((0, "without"), (8, "with")):
            density = ours(SMALL, heads).eval()
            sides[f"sample {what} attention, {batch}"] = lambda d=density, n=batch: d.sample(n)
            sides[f"complete {what} attention, {batch}"] = lambda d=density, x=x: d.complete(x, SHAPE[1] // 2)
        report.time(sides, 1 if quick else 5)
        for what, target in zip(("without", "with"), targets, strict=True):
            sample, complete = (f"{side} {what} attention, {batch}" for side in ("sample", "complete"))
            name = f"pixel-cnn-pp's loop without attention / {sample}"
            report.figure(name, (theirs, sample), lambda a, b: PIXELS * a / b, target, at_least=True)
            report.ratio(f"completion of half the rows / {sample}", complete, sample)
        if quick:
            return


PARTS: dict[str, Callable[[NCPNReport, Peer | None, bool], None]] = {
    "small": lambda report, peer, quick: train(report, peer, SMALL, quick),
    "paper": lambda report, peer, quick: train(report, peer, PAPER, quick),
    "loss": mixture_loss,
    "score": score,
    "sampling": sampling,
}


def run(args: argparse.Namespace) -> NCPNReport:
    """Every part, or ``args.only``; with ``--quick`` not the paper's size, and nothing compiled."""
    warnings.filterwarnings("ignore", module="torch")  # the peer's deprecated functions
    report = NCPNReport("ncpn")
    peer = Peer(args.pixel_cnn_pp) if args.pixel_cnn_pp else None
    if peer is None:
        print("pixel-cnn-pp: no checkout given; its rows are skipped", file=sys.stderr)
    settle_heap()
    for part in getattr(args, "only", None) or [p for p in PARTS if not (args.quick and p == "paper")]:
        PARTS[part](report, peer, args.quick)
    return report


def add_options(arguments: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The option that ``run`` needs besides those that all benchmarks share."""
    arguments.add_argument(
        "--pixel-cnn-pp", default=os.environ.get("PIXEL_CNN_PP"), help="checkout of pixel-cnn-pp (or $PIXEL_CNN_PP)"
    )
    return arguments


def main() -> None:
    """Command line: run the parts, print the table, record it."""
    arguments = add_options(parser(__doc__))
    arguments.add_argument("--only", nargs="+", choices=PARTS, help="some parts only")
    arguments.add_argument("--json", type=Path, help="where to record; results/ncpn.json unless --quick or --only")
    args = arguments.parse_args()
    report = run(args)
    show([report])
    if args.json or not (args.quick or args.only):
        report.write(args.json)


if __name__ == "__main__":
    main()
