"""NCPN on a GPU: is it right there, and how fast?

    python benchmarks/gpu/run.py --out results            # everything, some 20 minutes on a large card
    python benchmarks/gpu/run.py --out results --only correctness small
    python benchmarks/gpu/run.py --device cpu --quick     # that the script works; proves nothing

Correctness first: likelihoods, scores, samples and whole-Jacobian zeros on the card against the CPU, in float32 and
with a bfloat16 trunk. Then times by CUDA events (20 warm-up and 50 timed calls, medians): training steps with TF32,
bfloat16, compiled blocks and fused Adam switched on one after the other, their memory and their share of the
card's measured bfloat16 matrix products; sampling; the loss. ``--pixel-cnn-pp`` is a checkout to compare with.
Writes ``gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ncml import VPSDE, Lattice, NCMLObjective, generate
from ncml.densities import NCPN
from ncml.report import environment
from ncml.sampling import EulerMaruyama
from ncml.score import log_density_and_score

sys.path.insert(0, str(Path(__file__).parents[1]))

SHAPE = (3, 32, 32)
LATTICE = Lattice(256)
PROCESS = VPSDE.at_noise(10 * LATTICE.width)


class Bench:
    """Where to run, how often, and what came out."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.warmup, self.rounds = (1, 2) if quick else (20, 50)
        self.quick = quick
        self.results: dict[str, Any] = {}

    def milliseconds(self, call: Callable[[], object], rounds: int | None = None) -> float:
        """Median time of a call, on the device."""
        rounds = self.rounds if rounds is None else min(rounds, self.rounds)
        for _ in range(min(self.warmup, rounds)):
            call()
        times = []
        for _ in range(rounds):
            if self.cuda:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end))
            else:
                begin = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    def peak_gib(self, call: Callable[[], object]) -> float | None:
        """Largest memory allocated during a call."""
        if not self.cuda:
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**30

    def network(self, preset: str, **changes: Any) -> NCPN:
        """A network with weights that depend on the preset only."""
        torch.manual_seed(0)
        return NCPN.preset(preset, SHAPE, PROCESS, **changes).to(self.device)

    def images(self, n: int) -> Tensor:
        """Images of 8-bit noise."""
        levels = torch.randint(256, (n, *SHAPE), generator=torch.Generator().manual_seed(1))
        return LATTICE.to_unit(levels).to(self.device)


def correctness(bench: Bench) -> dict[str, Any]:
    """The card against the CPU, and bfloat16 against float32, for a network with weights away from their start."""
    torch.manual_seed(0)
    here = NCPN.preset("small", SHAPE, PROCESS)
    with torch.no_grad():
        for p in here.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    there = NCPN.preset("small", SHAPE, PROCESS).to(bench.device)
    there.load_state_dict(here.state_dict())
    here.eval(), there.eval()
    x, t = bench.images(8).cpu(), torch.tensor([0.0] * 4 + [PROCESS.T] * 4)
    dims = x[0].numel() * torch.log(torch.tensor(2.0))
    a, b = here.log_prob(x, t).detach(), there.log_prob(x.to(bench.device), t.to(bench.device)).detach().cpu()
    score, other = here.score(x, t), there.score(x.to(bench.device), t.to(bench.device)).cpu()
    with torch.autocast(bench.device.type, torch.bfloat16):
        half = there.log_prob(x.to(bench.device), t.to(bench.device)).detach().cpu()
    noise = here.draw_noise(4, generator=torch.Generator().manual_seed(2))
    rows = slice(0, 1) if bench.quick else slice(0, 4)
    drawn, again = (
        here.sample(len(noise[rows]), noise=noise[rows]),
        there.sample(len(noise[rows]), noise=noise[rows].to(bench.device)),
    )
    parameters = there.resample(again, noise[rows].to(bench.device))
    return {
        "bits_per_dim_device_minus_cpu": float(((a - b) / dims).abs().max()),
        "score_relative_l2": float((score - other).norm() / score.norm()),
        "bits_per_dim_bfloat16_minus_float32": float(((half - b) / dims).abs().max()),
        "result_under_autocast_is_float32": half.dtype == torch.float32,
        "pixels_sampled_otherwise_than_on_cpu": float((drawn != again.cpu()).float().mean()),
        "pixels_resampled_otherwise_than_sampled": float((parameters != again).float().mean()),
        "gradients_of_later_pixels": leak(there, x[:1].to(bench.device), bench),
        "gradients_of_later_pixels_bfloat16": leak(there, x[:1].to(bench.device), bench, autocast=True),
    }


def leak(density: NCPN, x: Tensor, bench: Bench, autocast: bool = False) -> float:
    """Largest derivative of a pixel's log-likelihood in the pixels after it; exactly 0 if it is autoregressive."""
    height, width = SHAPE[1:]
    worst = 0.0
    for r, c in ((0, 0), (3, 31), (4, 0), (16, 17), (31, 30)):
        y = x.clone().requires_grad_()
        kept: list[Tensor] = []
        hook = density.network.register_forward_hook(lambda module, inputs, outputs, kept=kept: kept.append(outputs))
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
            density(y, torch.zeros(1, device=x.device))
        hook.remove()
        (gradient,) = torch.autograd.grad(kept[0][0, r * width + c].float().square().sum(), y)
        later = torch.arange(height * width, device=x.device).reshape(height, width) >= r * width + c
        worst = max(worst, float(gradient[0, :, later].abs().max()))
    return worst


def matmul_rate(bench: Bench) -> float:
    """TFLOP/s of a large bfloat16 matrix product, the ceiling of everything else."""
    n = 256 if bench.quick else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    return 2 * n**3 / (bench.milliseconds(lambda: a @ a) * 1e9)


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 products of float32 matrices and convolutions, or none."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def training(bench: Bench, preset: str, batches: tuple[int, ...], peer: str | None) -> dict[str, Any]:
    """Training steps, one thing switched on after the other."""
    results: dict[str, Any] = {}
    for batch in (2,) if bench.quick else batches:
        x, objective = bench.images(batch), NCMLObjective(PROCESS)
        fast = {"tf32": True, "autocast": True, "fused": bench.cuda}
        variants: dict[str, dict[str, Any]] = {
            "float32": {},
            "tf32": {"tf32": True},
            "bfloat16": {"tf32": True, "autocast": True},
            "bfloat16, fused Adam": fast,
            "bfloat16, fused Adam, compiled": {**fast, "compile": True},
            "the same without attention": {**fast, "compile": True, "heads": 0},
            "the same with recomputed blocks": {**fast, "compile": True, "recompute": True},
        }
        if bench.quick:
            variants = {name: v for name, v in variants.items() if not v.get("compile")}
        for name, how in variants.items():
            changes = {"heads": how["heads"]} if "heads" in how else {}
            density = bench.network(preset, **changes)
            if how.get("compile"):
                density.compile_blocks()
            if how.get("recompute"):
                density.recompute_blocks()
            step = training_step(bench, density, partial(loss_of, objective, x), how)
            with tf32(how.get("tf32", False)):
                begin = time.perf_counter()
                step()
                first = time.perf_counter() - begin
                entry = {
                    "milliseconds": bench.milliseconds(step),
                    "first_call_seconds": first,
                    "peak_gib": bench.peak_gib(step),
                }
            entry["images_per_second"] = 1e3 * batch / entry["milliseconds"]
            if name == "float32":
                with FlopCounterMode(display=False) as counter:
                    step()
                flops = counter.get_total_flops()
                results[f"batch {batch}: FLOPs of a step"] = flops
            if "heads" not in how and "recompute" not in how:
                entry["share_of_matmul_rate"] = (
                    flops / (entry["milliseconds"] * 1e9) / bench.results["matmul_tflops_bfloat16"]
                )
            results[f"batch {batch}: {name}"] = entry
            print(preset, batch, name, json.dumps(entry), flush=True)
            del density, step
        if peer:
            results[f"batch {batch}: pixel-cnn-pp float32"] = peer_step(bench, preset, x, peer)
    return results


def loss_of(objective: NCMLObjective, x: Tensor, density: nn.Module) -> Tensor:
    """The objective of a batch."""
    return objective(density, x)


def training_step(
    bench: Bench, network: nn.Module, loss: Callable[[nn.Module], Tensor], how: dict[str, Any]
) -> Callable[[], None]:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=bool(how.get("fused")))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bool(how.get("autocast"))):
            value = loss(network)
        value.backward()
        optimizer.step()

    return step


def peer_step(bench: Bench, preset: str, x: Tensor, checkout: str) -> dict[str, Any]:
    """The peer's step at equal blocks and features, float32 without TF32."""
    import ncpn as cpu_benchmark

    peer = cpu_benchmark.Peer(checkout)
    size = cpu_benchmark.PAPER if preset == "paper" else cpu_benchmark.SMALL
    network = peer.network(size).to(bench.device)
    with torch.device(bench.device), tf32(False):  # its masks are made on the default device
        step = training_step(bench, network, lambda n: peer.loss(x, n(x)), {})
        return {"milliseconds": bench.milliseconds(step), "peak_gib": bench.peak_gib(step)}


def sampling(bench: Bench, preset: str) -> dict[str, Any]:
    """Cached sampling, a refinement step, a score, beside one pass over the same images."""
    density = bench.network(preset).eval()
    results: dict[str, Any] = {}
    for batch in (2,) if bench.quick else (1, 16, 64, 256):
        x, t = bench.images(batch), PROCESS.T
        with torch.no_grad():
            one_pass = bench.milliseconds(partial(density.log_prob, x, t), rounds=20)
            sample = bench.milliseconds(partial(density.sample, batch), rounds=1 if batch > 16 else 3)
        pair = bench.milliseconds(partial(log_density_and_score, density, x, t), rounds=20)
        refine = bench.milliseconds(partial(EulerMaruyama(steps=4), density, x, t), rounds=5) / 4
        results[f"batch {batch}"] = {
            "pass_ms": one_pass,
            "sample_ms": sample,
            "naive_over_cached": SHAPE[1] * SHAPE[2] * one_pass / sample,
            "score_over_log_prob": pair / one_pass,
            "refinement_step_over_score": refine / pair,
        }
        print(preset, batch, json.dumps(results[f"batch {batch}"]), flush=True)
    assert generate(density, 1, sampler=EulerMaruyama(steps=1)).shape == (1, *SHAPE)
    return results


def loss(bench: Bench) -> dict[str, float]:
    """The mixture of logistics, forward and backward, for 64 images."""
    head = bench.network("small").head
    n = 2 if bench.quick else 64
    outputs = torch.randn(n, SHAPE[1] * SHAPE[2], head.outputs, device=bench.device).mul(0.5).requires_grad_()
    pixels = bench.images(n).flatten(2).transpose(1, 2)

    def call() -> None:
        torch.autograd.grad(head.log_prob(outputs, pixels).sum(), outputs)

    milliseconds = bench.milliseconds(call)
    moved = n * SHAPE[1] * SHAPE[2] * (2 * head.outputs + 3 + 1) * 4  # outputs and gradients, pixels, likelihoods
    return {"milliseconds": milliseconds, "gigabytes_per_second_at_least": moved / (milliseconds * 1e6)}


def main() -> None:
    """Run the parts, each recorded as soon as it is there."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda")
    options.add_argument("--out", type=Path)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--only", nargs="*")
    options.add_argument("--pixel-cnn-pp", default=os.environ.get("PIXEL_CNN_PP"))
    args = options.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: no CUDA device; --device cpu --quick shows that the script works")
    bench = Bench(args.device, args.quick)
    parts: dict[str, Callable[[], Any]] = {
        "correctness": lambda: correctness(bench),
        "loss": lambda: loss(bench),
        "small": lambda: training(bench, "tiny" if args.quick else "small", (64, 256), args.pixel_cnn_pp),
        "small sampling": lambda: sampling(bench, "tiny" if args.quick else "small"),
        "paper": lambda: training(bench, "paper", (64, 256), args.pixel_cnn_pp),
        "paper sampling": lambda: sampling(bench, "paper"),
    }
    bench.results = {"environment": environment(), "matmul_tflops_bfloat16": matmul_rate(bench)}
    for name in args.only or [part for part in parts if not (args.quick and part.startswith("paper"))]:
        bench.results[name] = parts[name]()
        print(name, json.dumps(bench.results[name], indent=1), flush=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "gpu.json").write_text(json.dumps(bench.results, indent=1) + "\n")


if __name__ == "__main__":
    main()
