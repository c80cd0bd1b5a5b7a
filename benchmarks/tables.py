"""Tables: the estimators' time at 10,000 x 20, and held-out log-likelihoods against zuko's and nflows' flows.

    python benchmarks/tables.py --data FOLDER [--seconds 25]

FOLDER has ADBench's tables. Of each, half of the normal rows, drawn at random, train (a tenth of them stops early),
and the other half is the figure: mean log-likelihood in nats of standardised rows, and its standard error over rows.
Columns on a lattice or with ties are spread by uniform noise within their step once, alike for all models, which then
see real numbers. All models are trained by the same loop (Adam, a cosine over the time, averaged weights, the best
held-out ones) for the same CPU time each; ncml's at all noise levels, their peers at t = 0 only. One seed, no settings
tuned.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import Figure, Report, optional, parser, recorded, settle_heap, show
from ncml import NCMLObjective
from ncml.densities import MADE, MAF
from ncml.estimator import Columns, NCMLDensityEstimator, NCMLOutlierDetector
from ncml.noise import LinearVESDE
from ncml.objective import LogUniformTimes
from ncml.training import EMA

TABLES = ("2_annthyroid", "23_mammography", "28_pendigits", "30_satellite", "32_shuttle")
PROCESS = LinearVESDE(2.0)
TRANSFORMS, HIDDEN, BINS, BOUND = 5, (128, 128), 8, 5.0
BATCH, DECAY, LOOKS, ROWS = 128, 0.99, 25, 4096
Model = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]


def reach(report: Report, rows: int, rounds: int) -> None:
    """Time to fit, and rows per second scored, on correlated normal columns.

    Then with a tenth of the values missing and a third of the columns rounded, whose steps have exact probabilities.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 20)) @ (np.eye(20) + 0.3 * rng.normal(size=(20, 20)))
    mixed = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    mixed[:, :7] = np.round(mixed[:, :7])
    for name, table in {"": X, ", integers and gaps": mixed}.items():
        fitted: list[NCMLDensityEstimator] = []
        report.time(
            {f"fit{name}": lambda fitted=fitted, t=table: fitted.append(NCMLDensityEstimator(random_state=0).fit(t))},
            rounds,
        )
        detector = NCMLOutlierDetector(NCMLDensityEstimator(max_steps=50), random_state=0).fit(table)
        sides = {
            f"score_samples{name}": lambda m=fitted[-1], t=table: m.score_samples(t),
            f"detector{name}": lambda m=detector, t=table: m.score_samples(t),
        }
        report.time(sides, max(rounds, 3))
        report.figure(f"seconds to fit {rows:,} x 20{name}", [f"fit{name}"], lambda s: s, 30.0, unit="s")
        for side, target in ((f"score_samples{name}", 50_000.0), (f"detector{name}", 10_000.0)):
            what = "score_samples" if side.startswith("score") else "score_samples of the detector"
            report.figure(f"rows/s of {what}{name}", [side], lambda s: rows / s, target, at_least=True, unit="rows/s")


def read(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised rows to train on, to stop by, and to report."""
    with np.load(folder / f"{name}.npz") as table:
        X = table["X"][table["y"] == 0].astype(float)
    X = X[np.random.default_rng(0).permutation(len(X))]
    half = len(X) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = Columns.of(X[:half], [str(j) for j in range(X.shape[1])])
    y = torch.from_numpy(columns.standardise(X))
    z = columns.to_model(y, torch.rand(y.shape, generator=torch.Generator().manual_seed(0)).double())[0].float()
    held = half // 10
    return z[held:half], z[:held], z[half:]


def ours(density: nn.Module, rate: float) -> Model:
    objective = NCMLObjective(PROCESS, LogUniformTimes(0.02, p_zero=0.3))
    return density, lambda x: objective(density, x), lambda x: density.log_prob(x), rate


def theirs(flow: nn.Module, log_p: Callable[[Tensor], Tensor]) -> Model:
    return flow, lambda x: -log_p(x).mean(), log_p, 1e-3


def nflows_flow(d: int, *, spline: bool) -> nn.Module:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

    net = {"num_blocks": 1, "use_residual_blocks": False}  # two hidden layers
    layers = []
    for _ in range(TRANSFORMS):
        layer = (
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                d, HIDDEN[0], num_bins=BINS, tails="linear", tail_bound=BOUND, **net
            )
            if spline
            else MaskedAffineAutoregressiveTransform(d, HIDDEN[0], **net)
        )
        layers += [ReversePermutation(d), layer]
    return Flow(CompositeTransform(layers), StandardNormal([d]))


def models(d: int) -> dict[str, Callable[[], Model]]:
    found: dict[str, Callable[[], Model]] = {
        "ncml's MADE": lambda: ours(MADE((d,), PROCESS, hidden=HIDDEN, components=8, dropout=0.1), 3e-3),
        "ncml's MAF": lambda: ours(MAF((d,), PROCESS, transforms=TRANSFORMS, hidden=HIDDEN), 1e-3),
    }
    if zuko := optional("zuko"):

        def zuko_flow(kind: type[nn.Module], **settings: object) -> Model:
            flow = kind(d, transforms=TRANSFORMS, hidden_features=HIDDEN, **settings)
            return theirs(flow, lambda x: flow().log_prob(x))

        found["zuko's MAF"] = lambda: zuko_flow(zuko.flows.MAF)
        found["zuko's NSF"] = lambda: zuko_flow(zuko.flows.NSF, bins=BINS)
    if optional("nflows"):

        def nflows_model(*, spline: bool) -> Model:
            flow = nflows_flow(d, spline=spline)
            return theirs(flow, flow.log_prob)

        found["nflows' MAF"] = lambda: nflows_model(spline=False)
        found["nflows' NSF"] = lambda: nflows_model(spline=True)
    return found


def train(model: Model, x: Tensor, held: Tensor, seconds: float) -> int:
    """Train for so many CPU seconds, the looks at the held-out rows among them; the steps taken."""
    module, loss_of, log_p, rate = model
    parameters = list(module.parameters())
    optimizer, average = torch.optim.Adam(parameters, lr=rate), EMA(parameters, DECAY)
    best, weights, looks, steps, start = -math.inf, copy.deepcopy(module.state_dict()), 0, 0, time.process_time()
    while (share := (time.process_time() - start) / seconds) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * rate * (1.0 + math.cos(math.pi * share))
        module.train()
        optimizer.zero_grad()
        loss_of(x[torch.randint(len(x), (BATCH,))]).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        average.update()
        steps += 1
        if share * LOOKS >= looks:
            looks += 1
            with average.applied():
                value = float(evaluated(module, log_p, held[:1000]).mean())
                if value > best:
                    best, weights = value, copy.deepcopy(module.state_dict())
    module.load_state_dict(weights)
    return steps


def evaluated(module: nn.Module, log_p: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([log_p(part) for part in x.split(ROWS)]).double()


def likelihoods(report: Report, folder: Path, seconds: float, tables: tuple[str, ...], *, record: bool) -> None:
    """Held-out log-likelihoods; the best of a table's is named in the note."""
    for name in tables:
        x, held, test = read(folder, name)
        values, taken = {}, {}
        for label, build in models(x.shape[1]).items():
            torch.manual_seed(0)
            model = build()
            taken[label] = train(model, x, held, seconds)
            values[label] = evaluated(model[0], model[2], test)
        best = max(values, key=lambda label: float(values[label].mean()))
        for label, value in values.items():
            error = float(value.std()) / len(value) ** 0.5
            behind = float((values[best] - value).mean())
            note = f"+- {error:.2g}; {taken[label]} steps; " + ("best" if label == best else f"{behind:.2f} behind")
            title = f"{name.partition('_')[2]}, {x.shape[1]} columns, {len(x)} rows: {label}"
            report.figures.append(Figure(title, float(value.mean()), unit="nats", note=note))
        if record:
            report.write()  # what there is: the whole takes its time


def run(args: argparse.Namespace) -> Report:
    """Measure both."""
    report = Report("tables")
    settle_heap()
    reach(report, 1000 if args.quick else 10_000, 1 if args.quick else 3)
    if args.data is None:
        print("no --data (or $NCML_DATA): likelihoods as they have been recorded")
        measured = {figure.name for figure in report.figures}
        report.figures += [figure for figure in recorded("tables").figures if figure.name not in measured]
    else:
        folder = args.data / "adbench" if (args.data / "adbench").is_dir() else args.data
        seconds, tables = (0.5, TABLES[:1]) if args.quick else (args.seconds, TABLES)
        likelihoods(report, folder, seconds, tables, record=not args.quick)
    return report


def main() -> None:
    """Command line: as those of the other benchmarks."""
    options = parser(__doc__)
    data = os.environ.get("NCML_DATA")
    options.add_argument("--data", type=Path, default=data and Path(data), help="folder of ADBench (or $NCML_DATA)")
    options.add_argument("--seconds", type=float, default=25.0, help="CPU seconds to train each model")
    args = options.parse_args()
    report = run(args)
    show([report])
    if not args.quick:
        report.write()


if __name__ == "__main__":
    main()
