"""Timing side by side, and figures with their targets.

Every figure is a median over rounds; in each round all sides run in turn, in one process, on one thread, in
CPU time. Other load on the machine hits both sides of a round alike, so ratios repeat where seconds do not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ncml

RESULTS = Path(__file__).parent / "results"
SAMPLE_SECONDS = 5e-3
"""Shortest time that is measured at once; faster sides are repeated within a round."""

WARMUP_SECONDS = 0.2
"""How long each side runs before it is measured."""


def measure(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one call of each side in every round, all sides in turn."""
    repeats = {name: _warm_up(side) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(cpu_seconds(side, repeats[name]) / repeats[name])
    return seconds


def cpu_seconds(side: Callable[[], object], repeats: int) -> float:
    """CPU seconds of so many calls, here or in the process that runs the side."""
    if isinstance(side, Remote):
        return side.cpu_seconds(repeats)
    start = time.process_time()
    for _ in range(repeats):
        side()
    return time.process_time() - start


@dataclass(frozen=True)
class Remote:
    """A side of another process, which runs and times it when it is asked to (see :func:`serve`)."""

    process: subprocess.Popen[str]
    name: str

    def __call__(self) -> None:
        self.cpu_seconds(1)

    def cpu_seconds(self, repeats: int) -> float:
        """CPU seconds of so many calls over there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(repeats, self.name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def serve(sides: Mapping[str, Callable[[], object]]) -> None:
    """Answer each line ``REPEATS NAME`` on stdin with the CPU seconds of so many calls of that side."""
    for line in sys.stdin:
        repeats, _, name = line.strip().partition(" ")
        print(cpu_seconds(sides[name], int(repeats)), flush=True)


def settle_heap() -> None:
    """Use a large block of memory once, as any training process has.

    Until then glibc returns memory to the system after each large free, and the page faults of getting it
    back can be most of what is measured.
    """
    torch.zeros(7 << 20).add_(1.0)


def _warm_up(side: Callable[[], object]) -> int:
    """Run a side for a while; how often to call it within one sample."""
    calls, elapsed = 0, 0.0
    while elapsed < WARMUP_SECONDS or calls < 2:
        elapsed += cpu_seconds(side, 1)
        calls += 1
    return max(1, math.ceil(SAMPLE_SECONDS * calls / elapsed))


@dataclass(frozen=True)
class Figure:
    """One number and what it should be. ``value`` is None where a peer is missing; ``note`` says which."""

    name: str
    value: float | None
    target: float | None = None
    at_least: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED``, ``skipped``, or nothing for a figure without a target."""
        if self.value is None:
            return "skipped"
        if self.target is None:
            return ""
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return "ok" if met else "MISSED"

    def row(self) -> str:
        """One line of the table."""
        bound = "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.target:g}"
        value = "-" if self.value is None else f"{self.value:.3g} {self.unit}"
        return f"{self.name:<84} {bound:>8} {value:>10}  {self.verdict:<7} {self.note}".rstrip()


@dataclass
class Report:
    """The figures of one benchmark, and the seconds behind them."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def time(self, sides: Mapping[str, Callable[[], object]], rounds: int) -> None:
        """:func:`measure`, remembered under the sides' names."""
        self.seconds.update(measure(sides, rounds))

    def figure(
        self,
        name: str,
        sides: Sequence[str],
        formula: Callable[..., float],
        target: float | None = None,
        *,
        at_least: bool = False,
        unit: str = "x",
    ) -> None:
        """Record the median over rounds of a formula of the sides' seconds; skipped where one was not measured."""
        missing = [side for side in sides if side not in self.seconds]
        if missing:
            self.figures.append(Figure(name, None, target, at_least, unit, f"not measured: {', '.join(missing)}"))
            return
        rounds = zip(*(self.seconds[side] for side in sides), strict=True)
        self.figures.append(Figure(name, statistics.median(formula(*row) for row in rounds), target, at_least, unit))

    def ratio(self, name: str, side: str, base: str, target: float | None = None, *, at_least: bool = False) -> None:
        """The figure ``side / base``; both must have been timed together."""
        self.figure(name, (side, base), lambda a, b: a / b, target, at_least=at_least)

    def settings(self) -> dict[str, object]:
        """What else to record beside the environment, for benchmarks that have settings."""
        return {}

    def write(self, path: Path | None = None) -> None:
        """Record the figures, with the environment, in ``path``; in ``results/<name>.json`` if None."""
        RESULTS.mkdir(exist_ok=True)
        record = {
            "benchmark": self.name,
            "environment": environment(),
            **self.settings(),
            "figures": [{**asdict(f), "verdict": f.verdict} for f in self.figures],
            "median_cpu_seconds": {name: statistics.median(values) for name, values in self.seconds.items()},
        }
        (path or RESULTS / f"{self.name}.json").write_text(json.dumps(record, indent=2) + "\n")


def recorded(name: str) -> Report:
    """A report as :meth:`Report.write` left it, without its seconds; empty if it has not been recorded."""
    if not (RESULTS / f"{name}.json").exists():
        return Report(name)
    figures = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return Report(name, [Figure(**{k: v for k, v in figure.items() if k != "verdict"}) for figure in figures])


def environment() -> dict[str, object]:
    """What the numbers depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "ncml": ncml.__version__}
    for peer in ("zuko", "nflows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[peer] = importlib.metadata.version(peer)
    return {
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time, median over rounds",
        **versions,
    }


def cpu_name() -> str:
    """Model of the processor, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def optional(name: str, checkout: str | None = None) -> ModuleType | None:
    """A peer's module, from a checkout if one is given; None, with a line on stderr, if it cannot be imported."""
    if checkout and checkout not in sys.path:
        sys.path.insert(0, checkout)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: not importable ({error}); its rows are skipped", file=sys.stderr)
        return None


class DenseMLP(nn.Module):
    """A masked network's layers without the masks: the arithmetic that it cannot avoid."""

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...], conditioning: int) -> None:
        super().__init__()
        self.shape, self.hidden = (outputs, inputs), hidden
        sizes = zip((inputs, *hidden[:-1]), hidden, strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sizes)
        self.out = nn.Linear(hidden[-1], inputs * outputs)
        self.conditioner = nn.Linear(conditioning, sum(hidden))

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        for layer, shift in zip(self.layers, self.conditioner(conditioning).split(self.hidden, dim=1), strict=True):
            x = F.silu(torch.addmm(shift, x, layer.weight.t()))
        return self.out(x).unflatten(1, self.shape).transpose(1, 2)


def without_grad(function: Callable[[], object]) -> Callable[[], object]:
    """The function under ``no_grad``."""
    return torch.no_grad()(function)


def score_sde_modules(checkout: str | None) -> tuple[ModuleType, ModuleType] | None:
    """score_sde_pytorch's sde_lib and sampling; None without a checkout."""
    if not checkout:
        return None
    # Its sampling.py imports its models, and with them CUDA extensions, for three names.
    models, utils = ModuleType("models"), ModuleType("models.utils")
    utils.from_flattened_numpy = lambda x, shape: torch.from_numpy(x.reshape(shape))  # type: ignore[attr-defined]
    utils.to_flattened_numpy = lambda x: x.detach().numpy().reshape(-1)  # type: ignore[attr-defined]
    utils.get_score_fn = lambda sde, model, **_: model  # type: ignore[attr-defined]
    models.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"models": models, "models.utils": utils})
    sde_lib, sampling = optional("sde_lib", checkout), optional("sampling", checkout)
    return (sde_lib, sampling) if sde_lib and sampling else None


def with_backward(module: nn.Module, log_prob: Callable[[], Tensor]) -> Callable[[], object]:
    """Log-likelihood and its gradient to the parameters, as in a training step."""

    def side() -> None:
        module.zero_grad()
        (-log_prob().mean()).backward()

    return side


def main(run: Callable[[argparse.Namespace], Report], description: str | None) -> None:
    """Command line of one benchmark: run it, print its table, record it."""
    args = parser(description).parse_args()
    report = run(args)
    show([report])
    if not args.quick:
        report.write()


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share; sets one thread and a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--quick", action="store_true", help="few rounds, nothing recorded")
    result.add_argument(
        "--score-sde", default=os.environ.get("SCORE_SDE"), help="checkout of score_sde_pytorch (or $SCORE_SDE)"
    )
    result.add_argument("--azula", default=os.environ.get("AZULA"), help="checkout of azula (or $AZULA)")
    result.add_argument("--tarflow", default=os.environ.get("TARFLOW"), help="checkout of ml-tarflow (or $TARFLOW)")
    result.add_argument("--itarflow", default=os.environ.get("ITARFLOW"), help="checkout of ml-itarflow (or $ITARFLOW)")
    result.add_argument(
        "--before", default=os.environ.get("NCML_BEFORE"), help="checkout of ncml 0.1.0 (or $NCML_BEFORE)"
    )
    return result


def show(reports: list[Report]) -> None:
    """One table of all figures."""
    for report in reports:
        print(f"\n{report.name}")
        for figure in report.figures:
            print("  " + figure.row())
