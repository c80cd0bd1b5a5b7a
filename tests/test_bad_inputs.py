"""What every public call does with every kind of bad input, as one table.

Each row names a call, the class of the error it must raise, and how its message begins: with the argument (a
regular expression). Every row also checks that the error is an ``NCMLError``, that its message says what was got
and expected, and that nothing changed: parameters, buffers, gradients, training flags, inputs, generators, grad
mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from ncml import (
    VESDE,
    VPSDE,
    BitsPerDim,
    GaussianProcess,
    Lattice,
    LevelNoise,
    LinearSDE,
    LinearVESDE,
    NCMLError,
    NCMLObjective,
    NoiseConditionalDensity,
    SubVPSDE,
    generate,
)
from ncml.densities import (
    MADE,
    MAF,
    CallableDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    NFlowsDensity,
    ToyLattice,
    ZukoDensity,
)
from ncml.errors import ArgumentError, ArgumentTypeError, InferenceTensorError, NonFiniteError, UnsupportedError
from ncml.evaluation import robustness_curve
from ncml.nn import Conditioning, GaussianHead, LogisticHead, MaskedMLP, NoiseFeatures, NoiseScaling
from ncml.objective import (
    AtZero,
    ImportanceTimes,
    LadderTimes,
    LogUniformTimes,
    UniformTimes,
    WeightedTimes,
)
from ncml.sampling import (
    AdaptiveHeun,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    GridSampler,
    HeunODE,
    MetropolisLangevin,
    Sampler,
    Tweedie,
)
from ncml.score import exact_divergence, hutchinson_divergence, log_density_and_score, sliced_score_matching
from tests.problems import seeded

F64, META = torch.float64, torch.device("meta")
NAN, INF = math.nan, math.inf
VP = VPSDE.at_noise(0.2)
LEVELS = LevelNoise(5)
L5 = Lattice(5)
B, D = 4, 3
STILL = (EulerMaruyama(), HeunODE(), DPMSolver2M(), AdaptiveHeun(), Tweedie())
MOVING = (AnnealedLangevin(steps=2), MetropolisLangevin(steps=2))
EVERY_SAMPLER = (*STILL, *MOVING)


class OnCuda(torch.Generator):
    """A generator that says it lives on another device, where there is none."""

    device = torch.device("cuda")


class Bare(NoiseConditionalDensity):
    def forward(self, x, t, context=None, *, edges=True):
        return x.sum(1)


class World:
    """The objects that the calls use; built once, and compared with itself after every call."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            small = {"hidden": (8,), "components": 2, "noise_features": 4}
            self.made = MADE((D,), VP, lattice=L5, **small).train()
            self.levels = MADE((D,), LEVELS, lattice=L5, **small)
            self.labelled = MADE((D,), VP, lattice=L5, classes=3, **small)
            self.with_context = MAF((D,), VP, transforms=1, hidden=(8,), context_features=2)
            self.maf = MAF((D,), VP, transforms=1, hidden=(8,)).train()
            with torch.inference_mode():
                self.frozen = MAF((D,), VP, transforms=1, hidden=(8,))
        self.gaussian = GaussianDensity(VP, torch.zeros(D), 1.0)
        self.toy = ToyLattice(VP, [[0.2, 0.1, 0.3, 0.3, 0.1]] * D)
        self.generator = seeded(0)
        self.x = L5.to_unit(torch.randint(0, 5, (B, D), generator=seeded(1)))
        self.z = torch.randn(B, D, generator=seeded(2))
        self.t = torch.tensor([0.0, 0.01, 0.02, VP.T])

    def densities(self) -> dict[str, NoiseConditionalDensity]:
        return {k: v for k, v in vars(self).items() if isinstance(v, NoiseConditionalDensity)}

    def state(self) -> dict[str, object]:
        """Everything that a refused call could have changed."""
        state: dict[str, object] = {
            "generator": self.generator.get_state(),
            "global generator": torch.get_rng_state(),
            "grad mode": torch.is_grad_enabled(),
            "x": self.x.clone(),
            "x version": self.x._version,
        }
        for name, density in self.densities().items():
            for key, tensor in {**dict(density.named_parameters()), **dict(density.named_buffers())}.items():
                state[f"{name}.{key}"] = tensor.detach().clone()
            state[f"{name} gradients"] = sum(p.grad is not None for p in density.parameters())
            state[f"{name} flags"] = [m.training for m in density.modules()]
        return state


@dataclass(frozen=True)
class Row:
    id: str
    call: Callable[[World], object]
    error: type[Exception]
    message: str
    says_expected: bool = True


ROWS: list[Row] = []


def row(key: str, error: type[Exception], message: str, call: Callable[[World], object], **kwargs: bool) -> None:
    ROWS.append(Row(key, call, error, message, **kwargs))


# x, in every call that takes it. Each call takes the world, a density's name, and the bad x.

CALLS: dict[str, Callable[[World, str, object], object]] = {
    "log_prob": lambda w, d, x: getattr(w, d).log_prob(x),
    "log_density": lambda w, d, x: getattr(w, d).log_density(x, 0.01),
    "score": lambda w, d, x: getattr(w, d).score(x, 0.01),
    "log_density_and_score": lambda w, d, x: log_density_and_score(getattr(w, d), x, 0.01),
    "objective": lambda w, d, x: NCMLObjective(VP)(getattr(w, d), x, t=0.0, noise=w.z, generator=w.generator),
    "sampler": lambda w, d, x: EulerMaruyama(steps=2)(getattr(w, d), x, generator=w.generator),
}

BAD_X: dict[str, tuple[type[Exception], str, Callable[[World], object]]] = {
    "uint8": (
        ArgumentTypeError,
        r"x: got",
        lambda w: torch.zeros(B, D, dtype=torch.uint8),
    ),
    "int64": (ArgumentTypeError, r"x: got", lambda w: torch.zeros(B, D, dtype=torch.int64)),
    "bool": (ArgumentTypeError, r"x: got", lambda w: torch.zeros(B, D, dtype=torch.bool)),
    "complex": (ArgumentTypeError, r"x: got", lambda w: torch.zeros(B, D, dtype=torch.cfloat)),
    "numpy": (ArgumentTypeError, r"x: got", lambda w: np.zeros((B, D))),
    "float64": (
        ArgumentTypeError,
        r"x: got",
        lambda w: w.x.double(),
    ),
    "nan": (
        ArgumentError,
        r"x: got 2 non-finite values, the first at \(1, 2\); ",
        lambda w: _with(w.x, NAN, (1, 2), (3, 0)),
    ),
    "inf": (
        ArgumentError,
        r"x: got 1 non-finite values, the first at \(3, 1\)",
        lambda w: _with(w.x, INF, (3, 1)),
    ),
    "-inf": (
        ArgumentError,
        r"x: got 1 non-finite values, the first at \(0, 0\)",
        lambda w: _with(w.x, -INF, (0, 0)),
    ),
    "unbatched": (ArgumentError, r"x: got", lambda w: w.x[0]),
    "extra-dimension": (ArgumentError, r"x: got", lambda w: w.x[None]),
    "narrow": (ArgumentError, r"x: got", lambda w: w.x[:, :1]),
    "wide": (ArgumentError, r"x: got", lambda w: w.x.repeat(1, 2)),
    "scalar": (ArgumentError, r"x: got", lambda w: torch.tensor(0.5)),
    "device": (
        ArgumentError,
        r"x: got",
        lambda w: w.x.to(META),
    ),
}


def _with(x: torch.Tensor, value: float, *places: tuple[int, int]) -> torch.Tensor:
    x = x.clone()
    for place in places:
        x[place] = value
    return x


for _call_name, _call in CALLS.items():
    for _input, (_error, _message, _make) in BAD_X.items():
        row(
            f"{_call_name}-x-{_input}",
            _error,
            _message,
            lambda w, call=_call, make=_make: call(w, "made", make(w)),
            says_expected="non-finite" not in _message,
        )

for _input in ("uint8", "bool", "complex", "numpy"):
    _error, _message, _make = BAD_X[_input]
    row(f"perturb-x-{_input}", _error, _message, lambda w, make=_make: VP.perturb(make(w), 0.01, generator=w.generator))
    row(f"levels-x-{_input}", _error, _message, lambda w, make=_make: LEVELS.perturb(make(w), 0.1))
for _input in ("narrow", "nan", "float64", "device", "uint8"):
    _error, _message, _make = BAD_X[_input]
    row(
        f"resample-x-{_input}",
        _error,
        _message,
        lambda w, make=_make: w.made.resample(make(w), torch.full((B, D, 3), 0.5)),
        says_expected=_input != "nan",
    )
    row(
        f"closed-form-x-{_input}",
        _error if _input != "float64" else NonFiniteError,
        _message if _input != "float64" else "never",
        lambda w, make=_make: w.gaussian.log_prob(make(w)),
        says_expected=_input != "nan",
    )
ROWS = [r for r in ROWS if r.message != "never"]  # closed forms follow the dtype of x

row(
    "log_prob-x-off-lattice",
    ArgumentError,
    r"x: .* values",
    lambda w: w.made.log_prob(torch.cat([w.x[:, :2], torch.full((B, 1), 0.3)], 1)),
    says_expected=False,
)
row(
    "log_prob-x-outside",
    ArgumentError,
    r"x: .* values",
    lambda w: w.made.log_prob(torch.full((B, D), 1.5)),
    says_expected=False,
)
row(
    "log_prob-x-raw-levels",
    ArgumentError,
    r"x: .*lattice points",
    lambda w: w.toy.log_prob(torch.full((B, D), 4.0)),
    says_expected=False,
)
row(
    "log_prob-x-off-lattice-at-pi",
    ArgumentError,
    r"x: .*lattice points",
    lambda w: w.levels.log_prob(w.x + 0.1, 0.5),
    says_expected=False,
)
row(
    "log_prob-x-off-lattice-in-one-row",
    ArgumentError,
    r"x: .* values",
    lambda w: w.made.log_prob(w.x + 0.1, w.t),
    says_expected=False,
)
row(
    "levels-x-off-lattice",
    ArgumentError,
    r"x: .* values",
    lambda w: LEVELS.perturb(w.z, 0.1, generator=w.generator),
    says_expected=False,
)
row(
    "objective-empty",
    ArgumentError,
    r"x: got",
    lambda w: NCMLObjective(VP)(w.made, w.x[:0]),
)


# t, in every call that takes it.

T_CALLS: dict[str, Callable[[World, object], object]] = {
    "log_prob": lambda w, t: w.made.log_prob(w.x, t),
    "log_density": lambda w, t: w.made.log_density(w.x, t),
    "score": lambda w, t: w.made.score(w.x, t),
    "log_density_and_score": lambda w, t: log_density_and_score(w.made, w.x, t),
    "objective": lambda w, t: NCMLObjective(VP)(w.made, w.x, t=t, generator=w.generator),
    "perturb": lambda w, t: VP.perturb(w.x, t, generator=w.generator),
    "levels": lambda w, t: LevelNoise(5, T=VP.T).perturb(w.x, t, generator=w.generator),
    "sample": lambda w, t: w.made.sample(B, t, generator=w.generator),
    "sample-closed-form": lambda w, t: w.gaussian.sample(B, t, generator=w.generator),
}

BAD_T: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "bool": (ArgumentTypeError, r"t: got", lambda: True),
    "str": (ArgumentTypeError, r"t: got", lambda: "0.1"),
    "list": (ArgumentTypeError, r"t: got", lambda: [0.0] * B),
    "column": (ArgumentError, r"t: got", lambda: torch.zeros(B, 1)),
    "one": (
        ArgumentError,
        r"t: got",
        lambda: torch.zeros(1),
    ),
    "too-many": (ArgumentError, r"t: got", lambda: torch.zeros(B + 1)),
    "negative": (ArgumentError, r"t: got", lambda: -1e-9),
    "negative-row": (ArgumentError, r"t: got", lambda: torch.tensor([0.0, 0.0, -0.01, 0.0])),
    "above-T": (ArgumentError, r"t: got", lambda: VP.T * 1.001),
    "above-T-row": (ArgumentError, r"t: got", lambda: torch.tensor([0.0, 1.0, 0.0, 0.0])),
    "nan": (ArgumentError, r"t: got", lambda: NAN),
    "nan-row": (ArgumentError, r"t: got", lambda: torch.tensor([0.0, NAN, 0.0, 0.0])),
    "inf": (ArgumentError, r"t: got", lambda: INF),
    "bfloat16": (
        ArgumentTypeError,
        r"t: got",
        lambda: torch.zeros(B, dtype=torch.bfloat16),
    ),
    "float16": (ArgumentTypeError, r"t: got", lambda: torch.tensor(0.0, dtype=torch.float16)),
    "bool-tensor": (ArgumentTypeError, r"t: got", lambda: torch.zeros(B, dtype=torch.bool)),
    "complex": (ArgumentTypeError, r"t: got", lambda: torch.zeros(B, dtype=torch.cfloat)),
    "device": (
        ArgumentError,
        r"t: got",
        lambda: torch.zeros(B, device=META),
    ),
}

for _call_name, _t_call in T_CALLS.items():
    for _input, (_error, _message, _t_make) in BAD_T.items():
        row(
            f"{_call_name}-t-{_input}",
            _error,
            _message,
            lambda w, call=_t_call, make=_t_make: call(w, make()),
        )


# Contexts.

CONTEXT = torch.zeros(B, 2)
for _name, _method in {
    "log_prob": lambda d, w, c: d.log_prob(w.x, 0.0, c),
    "score": lambda d, w, c: d.score(w.x, 0.0, c),
    "sample": lambda d, w, c: d.sample(B, 0.0, c, generator=w.generator),
}.items():
    for _input, _error, _message, _density, _context in [
        ("list", ArgumentTypeError, r"context: got", "labelled", [0] * B),
        ("scalar", ArgumentError, r"context: got", "labelled", torch.tensor(0)),
        ("rows", ArgumentError, r"context: got", "with_context", CONTEXT[:3]),
        ("one-row", ArgumentError, r"context: got", "with_context", CONTEXT[:1]),
        ("device", ArgumentError, r"context: got", "with_context", CONTEXT.to(META)),
        ("missing", ArgumentError, r"context: got", "labelled", None),
        ("unexpected", ArgumentError, r"context: got", "maf", CONTEXT),
        ("width", ArgumentError, r"context: got", "with_context", CONTEXT[:, :1]),
        ("rank", ArgumentError, r"context: got", "with_context", CONTEXT[:, 0]),
        ("integers", ArgumentTypeError, r"context: got", "with_context", CONTEXT.long()),
        (
            "float-labels",
            ArgumentTypeError,
            r"context: got",
            "labelled",
            CONTEXT[:, 0],
        ),
        ("bool-labels", ArgumentTypeError, r"context: got", "labelled", torch.zeros(B, dtype=torch.bool)),
        ("one-hot", ArgumentTypeError, r"context: got", "labelled", CONTEXT.long()),
        ("label-3", ArgumentError, r"context: got labels outside", "labelled", torch.tensor([0, 3, 0, 0])),
        ("label--2", ArgumentError, r"context: got labels outside", "labelled", torch.tensor([0, 0, -2, 0])),
    ]:
        row(
            f"{_name}-context-{_input}",
            _error,
            _message,
            lambda w, method=_method, d=_density, c=_context: method(getattr(w, d), w, c),
            says_expected="outside" not in _message,
        )


# Generators and noise.

for _name, _draw in {
    "perturb": lambda w, g: VP.perturb(w.x, 0.01, generator=g),
    "levels": lambda w, g: LEVELS.perturb(w.x, 0.1, generator=g),
    "dequantize": lambda w, g: L5.dequantize(w.x, generator=g),
    "made": lambda w, g: w.made.sample(2, generator=g),
    "maf": lambda w, g: w.maf.sample(2, generator=g),
    "gaussian": lambda w, g: w.gaussian.sample(2, generator=g),
    "toy-lattice": lambda w, g: w.toy.sample(2, generator=g),
    "objective": lambda w, g: NCMLObjective(VP)(w.made, w.x, generator=g),
    "sampler": lambda w, g: EulerMaruyama(steps=1)(w.made, w.x, generator=g),
    "generate": lambda w, g: generate(w.made, 2, generator=g),
    "hutchinson": lambda w, g: hutchinson_divergence(w.maf, w.x, generator=g),
    "sliced": lambda w, g: sliced_score_matching(w.maf, w.x, generator=g),
}.items():
    row(
        f"{_name}-generator-device",
        ArgumentError,
        r"generator: got",
        lambda w, draw=_draw: draw(w, OnCuda()),
    )
    row(
        f"{_name}-generator-seed",
        ArgumentTypeError,
        r"generator: got",
        lambda w, draw=_draw: draw(w, 0),
    )

for _name, _perturb in {
    "perturb": lambda w, noise: VP.perturb(w.x, 0.01, noise=noise),
    "levels": lambda w, noise: LEVELS.perturb(w.x, 0.1, noise=noise),
    "objective": lambda w, noise: NCMLObjective(VP)(w.made, w.x, t=0.0, noise=noise),
}.items():
    for _input, _error, _message, _noise in [
        ("shape", ArgumentError, r"noise: got", torch.zeros(B, 1)),
        (
            "dtype",
            ArgumentTypeError,
            r"noise: got",
            torch.zeros(B, D, dtype=F64),
        ),
        ("device", ArgumentError, r"noise: got", torch.zeros(B, D, device=META)),
    ]:
        row(f"{_name}-noise-{_input}", _error, _message, lambda w, f=_perturb, noise=_noise: f(w, noise))

for _name, _use in {
    "sample": lambda w, noise: w.made.sample(B, noise=noise, generator=w.generator),
    "resample": lambda w, noise: w.made.resample(w.x, noise),
}.items():
    for _input, _message, _noise in [
        (
            "rows",
            r"noise: got",
            torch.full((1, D, 3), 0.5),
        ),
        ("shape", r"noise: got", torch.full((B, D), 0.5)),
        ("dtype", r"noise: got", torch.full((B, D, 3), 0.5, dtype=F64)),
        ("device", r"noise: got", torch.full((B, D, 3), 0.5, device=META)),
    ]:
        row(f"made-{_name}-noise-{_input}", ArgumentError, _message, lambda w, f=_use, noise=_noise: f(w, noise))


# Numbers of samples.

for _name, _n in [("negative", -1), ("bool", True), ("float", 2.0), ("str", "3")]:
    for _density in ("made", "maf", "gaussian", "toy"):
        row(
            f"{_density}-n-{_name}",
            ArgumentError,
            r"n: got",
            lambda w, n=_n, d=_density: getattr(w, d).sample(n, generator=w.generator),
        )
    row(
        f"generate-n-{_name}",
        ArgumentError,
        r"n: got",
        lambda w, n=_n: generate(w.made, n, generator=w.generator),
    )


# What models return.


def _returning(value: Callable[[torch.Tensor], object]) -> CallableDensity:
    return CallableDensity(lambda x, t: value(x), (D,), VP)


for _name, _got, _value in [
    ("column", r"\(4, 1\)", lambda x: x.sum(1, keepdim=True)),
    ("summed", r"\(\)", lambda x: x.sum()),
    ("per-dimension", r"\(4, 3\)", lambda x: x),
    ("short", r"\(3,\)", lambda x: x.sum(1)[:3]),
    ("number", r"float", lambda x: 0.0),
    ("nothing", r"NoneType", lambda x: None),
]:
    for _method_name in ("log_prob", "log_density"):
        row(
            f"{_method_name}-returns-{_name}",
            ArgumentError,
            r"module: got",
            lambda w, value=_value, m=_method_name: getattr(_returning(value), m)(w.x),
        )
    if _name in ("column", "summed", "per-dimension", "short"):
        row(
            f"objective-returns-{_name}",
            ArgumentError,
            r"module: got",
            lambda w, value=_value: NCMLObjective(VP)(_returning(value), w.x, t=0.0, noise=w.z),
        )
    if _name != "short":
        row(
            f"log_density_and_score-returns-{_name}",
            ArgumentError,
            r"module: got",
            lambda w, value=_value: log_density_and_score(_returning(value), w.x),
        )


def _bad_at_two(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.cat([x[:2].sum(1) * 0 - 1.0, x[2:3].sum(1) * 0 + value, x[3:].sum(1) * 0 - 3.0])


for _name, _bad in [("nan", NAN), ("plus-inf", INF)]:
    for _method_name in ("log_prob", "log_density"):
        row(
            f"{_method_name}-is-{_name}",
            NonFiniteError,
            r"log-density: got NaN or infinity for 1 of 4 examples, the first at index 2 with t = 0.02",
            lambda w, bad=_bad, m=_method_name: getattr(_returning(_bad_at_two(bad)), m)(w.x, w.t),
        )
for _name, _bad, _got in [("nan", NAN, "nan"), ("plus-inf", INF, "-inf"), ("minus-inf", -INF, "inf")]:
    row(
        f"objective-log-p-{_name}",
        NonFiniteError,
        r"loss: got",
        lambda w, bad=_bad: NCMLObjective(VP)(_returning(_bad_at_two(bad)), w.x, t=w.t, noise=w.z),
    )
row(
    "objective-log-p-all-nan",
    NonFiniteError,
    r"loss: got",
    lambda w: NCMLObjective(VP)(_returning(lambda x: x.sum(1) * NAN), w.x, t=0.0, noise=w.z),
)

CUSP = CallableDensity(lambda x, t: (x - 0.5).abs().sqrt().sum(1), (D,), VP)  # finite, with an infinite slope
row(
    "score-non-finite",
    NonFiniteError,
    r"score: got",
    lambda w: CUSP.score(torch.zeros(B, D).index_fill(0, torch.tensor([1]), 0.5), w.t),
)
for _sampler in (EulerMaruyama(steps=3, grid="uniform"), HeunODE(steps=3, grid="uniform")):
    row(
        f"{type(_sampler).__name__}-score-non-finite",
        NonFiniteError,
        r"score: got",
        lambda w, sampler=_sampler: sampler(CUSP, torch.full((B, D), 0.5), 0.03, generator=w.generator),
    )
row(
    "log_density_and_score-frozen",
    InferenceTensorError,
    r"density: got parameters created under torch.inference_mode\(\).*build or load the model outside",
    lambda w: log_density_and_score(w.frozen, w.x),
    says_expected=False,
)
row(
    "score-frozen",
    InferenceTensorError,
    r"density: got",
    lambda w: w.frozen.score(w.x),
    says_expected=False,
)
row(
    "sampler-frozen",
    InferenceTensorError,
    r"density: got",
    lambda w: EulerMaruyama(steps=1)(w.frozen, w.x, generator=w.generator),
    says_expected=False,
)


# Processes that do not fit.

OTHER = VPSDE.at_noise(0.3)
for _name, _use_other in {
    "objective": lambda w: NCMLObjective(OTHER)(w.made, w.x, generator=w.generator),
    "objective-callable": lambda w: NCMLObjective(OTHER)(_returning(lambda x: x.sum(1)), w.x, generator=w.generator),
    "sampler": lambda w: EulerMaruyama(steps=1)(w.made, w.x, process=OTHER, generator=w.generator),
    "langevin": lambda w: AnnealedLangevin(steps=1)(w.made, w.x, process=OTHER, generator=w.generator),
    "tweedie": lambda w: Tweedie()(w.made, w.x, process=OTHER),
    "generate": lambda w: generate(w.made, 2, process=OTHER, generator=w.generator),
}.items():
    row(
        f"{_name}-other-process",
        ArgumentError,
        r"process: got",
        _use_other,
    )
for _sampler in EVERY_SAMPLER:
    row(
        f"{type(_sampler).__name__}-levels",
        UnsupportedError,
        r"process: got",
        lambda w, s=_sampler: s(w.levels, w.x, generator=w.generator),
    )
    row(
        f"{type(_sampler).__name__}-no-process",
        ArgumentTypeError,
        r"process: got",
        lambda w, s=_sampler: s(Bare((D,)), w.x, generator=w.generator),
    )
    row(
        f"{type(_sampler).__name__}-process-str",
        ArgumentTypeError,
        r"process: got",
        lambda w, s=_sampler: s(w.made, w.x, process="vp", generator=w.generator),
    )
row(
    "generate-levels",
    UnsupportedError,
    r"process: got",
    lambda w: generate(w.levels, 2, generator=w.generator),
)
row(
    "generate-no-process",
    ArgumentTypeError,
    r"process: got",
    lambda w: generate(CallableDensity(lambda x, t: x.sum(1), (D,)), 2, generator=w.generator),
)
row(
    "generate-not-sampleable",
    UnsupportedError,
    r"density: got",
    lambda w: generate(CUSP, 2, generator=w.generator),
)


# Calls in the order of arguments of version 0.1, and classes written for it: the error names the present form.

for _sampler in EVERY_SAMPLER:
    for _name, _old in {
        "call": lambda s, w: s(w.made, VP, w.x, generator=w.generator),
        "refine": lambda s, w: s.refine(w.made, VP, w.x, generator=w.generator),
        "call-times": lambda s, w: s(w.made, VP, w.x, VP.T, 0.0, generator=w.generator),
        "other-process": lambda s, w: s(w.made, OTHER, w.x, generator=w.generator),
    }.items():
        row(
            f"{type(_sampler).__name__}-0.1-{_name}",
            ArgumentTypeError,
            r"x: got a VPSDE; expected no process in this place.*\(density, x, t_start, t_end, process=\.\.\.\)",
            lambda w, s=_sampler, old=_old: old(s, w),
        )
    row(
        f"{type(_sampler).__name__}-0.1-levels",
        ArgumentTypeError,
        r"x: got a LevelNoise; expected no process in this place",
        lambda w, s=_sampler: s(w.levels, LEVELS, w.x, generator=w.generator),
    )
row(
    "generate-0.1",
    ArgumentTypeError,
    r"n: got a VPSDE; expected no process in this place.*generate\(density, n, process=\.\.\.\)",
    lambda w: generate(w.made, VP, generator=w.generator),
)
row(
    "generate-0.1-n",
    ArgumentTypeError,
    r"n: got a VPSDE; expected no process in this place.*generate\(density, n, process=\.\.\.\)",
    lambda w: generate(w.made, VP, 2, generator=w.generator),
)
row(
    "robustness_curve-0.1",
    ArgumentTypeError,
    r"x: got a VPSDE; expected no process in this place.*robustness_curve\(density, x, times, process=\.\.\.\)",
    lambda w: robustness_curve(w.made, VP, w.x, [0.0], generator=w.generator),
)
row(
    "robustness_curve-0.1-pis",
    ArgumentTypeError,
    r"x: got a VPSDE; expected no process in this place.*robustness_curve\(density, x, times, process=\.\.\.\)",
    lambda w: robustness_curve(w.made, VP, w.x, [0.0], (0.5,), generator=w.generator),
)
row(
    "objective-0.1-reduction",
    ArgumentTypeError,
    r"dequantize: got",
    lambda w: NCMLObjective(VP, AtZero(), "none"),
)


def _a_density_of_version_0_1(w):
    class Old(NoiseConditionalDensity):
        def forward(self, x, t, context=None):
            return x.sum(1)


def _a_sampler_of_version_0_1(w):
    class Old(Sampler):
        def step(self, x, t, s, score, process, noise):
            return x


def _a_grid_sampler_of_version_0_1(w):
    class Old(GridSampler):
        def step(self, x, t, s, score, process, noise):
            return x


row(
    "density-0.1-forward",
    ArgumentTypeError,
    r"Old.forward: got \(self, x, t, context\); expected .*def forward\(self, x, t, context=None, \*, edges=True\)",
    _a_density_of_version_0_1,
)
for _name, _make_class in {
    "sampler": _a_sampler_of_version_0_1,
    "grid-sampler": _a_grid_sampler_of_version_0_1,
}.items():
    row(
        f"{_name}-0.1-step",
        ArgumentTypeError,
        r"Old.step: got \(self, x, t, s, score, process, noise\); expected.*step\(self, target, x, t, s, state\)",
        _make_class,
    )


# Samplers.

for _cls in (EulerMaruyama, HeunODE, AnnealedLangevin, MetropolisLangevin, DPMSolver2M):
    for _steps in (0, -1, 2.0, True, "3", None):
        row(
            f"{_cls.__name__}-steps-{_steps}",
            ArgumentError,
            r"steps: got",
            lambda w, cls=_cls, steps=_steps: cls(steps=steps),
        )
    row(
        f"{_cls.__name__}-grid",
        ArgumentError,
        r"grid: got",
        lambda w, cls=_cls: cls(grid="cosine"),
    )
    row(
        f"{_cls.__name__}-grid-3",
        ArgumentTypeError,
        r"grid: got",
        lambda w, cls=_cls: cls(grid=3),
    )
    row(
        f"{_cls.__name__}-grid-rises",
        ArgumentError,
        r"grid: got",
        lambda w, cls=_cls: cls(grid=lambda process, a, b, n: [a, b, a, b])(w.maf, w.x, generator=w.generator),
    )
for _name in ("rtol", "atol", "first_step"):
    for _value in (0.0, -0.1, NAN, INF, True, "0.1"):
        row(
            f"adaptive-{_name}-{_value}",
            ArgumentError,
            rf"{_name}: got",
            lambda w, name=_name, value=_value: AdaptiveHeun(**{name: value}),
        )
row(
    "adaptive-max_steps",
    ArgumentError,
    r"max_steps: got",
    lambda w: AdaptiveHeun(max_steps=0),
)
row(
    "sampler-on_failure",
    ArgumentError,
    r"on_failure: got",
    lambda w: EulerMaruyama()(w.maf, w.x, on_failure="skip", generator=w.generator),
)
row(
    "tweedie-t-end",
    ArgumentError,
    r"t_end: got",
    lambda w: Tweedie()(w.maf, w.x, 0.02, 0.01),
)
for _cls in (AnnealedLangevin, MetropolisLangevin):
    for _moves in (0, 1.5, True):
        row(
            f"{_cls.__name__}-moves-{_moves}",
            ArgumentError,
            r"moves: got",
            lambda w, cls=_cls, moves=_moves: cls(moves=moves),
        )
    for _size in (0.0, -0.1, NAN, INF, True, "0.1"):
        row(
            f"{_cls.__name__}-step_size-{_size}",
            ArgumentError,
            r"step_size: got",
            lambda w, cls=_cls, size=_size: cls(step_size=size),
        )
for _name, _error, _message, _start, _stop in [
    (
        "order",
        ArgumentError,
        r"t_end: got",
        0.01,
        0.02,
    ),
    ("above-T", ArgumentError, r"t_start, t_end: got", 0.5, 0.0),
    ("negative", ArgumentError, r"t_start, t_end: got", 0.01, -0.01),
    ("both-above-T", ArgumentError, r"t_start, t_end: got", 0.5, 0.5),
    ("nan-start", ArgumentError, r"t_start: got", NAN, 0.0),
    ("nan-end", ArgumentError, r"t_end: got", 0.01, NAN),
    ("bool", ArgumentTypeError, r"t_start: got", True, 0.0),
    ("str", ArgumentTypeError, r"t_end: got", 0.01, "0"),
    ("rows", ArgumentTypeError, r"t_start: got", torch.zeros(B), 0.0),
]:
    row(
        f"sampler-times-{_name}",
        _error,
        _message,
        lambda w, a=_start, b=_stop: EulerMaruyama(steps=2)(w.maf, w.x, a, b, generator=w.generator),
    )
for _name, _start, _message in [
    ("above-T", 0.5, r"t_start, t_end: got"),
    ("negative", -0.01, r"t_start, t_end: got"),
    ("nan", NAN, r"t_start: got"),
]:
    row(
        f"generate-t-{_name}",
        ArgumentError,
        _message,
        lambda w, t=_start: generate(w.maf, 2, t_start=t, generator=w.generator),
    )


# Scores and divergences.

row(
    "hutchinson-probes",
    ArgumentError,
    r"probes: got",
    lambda w: hutchinson_divergence(w.maf, w.x, probes=0),
)
for _name, _estimate in {"hutchinson": hutchinson_divergence, "sliced": sliced_score_matching}.items():
    row(
        f"{_name}-probe",
        ArgumentError,
        r"probe: got",
        lambda w, f=_estimate: f(w.maf, w.x, probe="uniform", generator=w.generator),
    )
for _name, _estimate in {
    "exact": exact_divergence,
    "hutchinson": hutchinson_divergence,
    "sliced": sliced_score_matching,
}.items():
    row(f"{_name}-x", ArgumentError, r"x: got", lambda w, f=_estimate: f(w.maf, w.x[:, :1]))


# Lattices and bits.

for _levels in (1, 0, -3, 65_537, 2.5, True, "256"):
    row(
        f"lattice-levels-{_levels}",
        ArgumentError,
        r"levels: got",
        lambda w, levels=_levels: Lattice(levels),
    )
    row(
        f"level-noise-levels-{_levels}",
        ArgumentError,
        r"levels: got",
        lambda w, levels=_levels: LevelNoise(levels),
    )
for _name, _error, _message, _k in [
    ("float", ArgumentTypeError, r"k: got", torch.zeros(2)),
    ("bool", ArgumentTypeError, r"k: got", torch.zeros(2, dtype=torch.bool)),
    ("list", ArgumentTypeError, r"k: got", [0, 1]),
    ("above", ArgumentError, r"k: got", torch.arange(6)),
    ("negative", ArgumentError, r"k: got", torch.tensor([-1, 2])),
]:
    row(f"to_unit-{_name}", _error, _message, lambda w, k=_k: L5.to_unit(k))
row(
    "dequantize-uint8",
    ArgumentTypeError,
    r"x: got",
    lambda w: L5.dequantize(torch.zeros(2, dtype=torch.uint8)),
)
row(
    "bits-dims",
    ArgumentError,
    r"dims: got",
    lambda w: L5.bits_per_dim(torch.zeros(2), 0),
)
row(
    "bits-empty",
    ArgumentError,
    r"bits/dim: got",
    lambda w: L5.bits_per_dim(torch.zeros(0), 1),
    says_expected=False,
)
row(
    "bits-nan",
    ArgumentError,
    r"bits/dim: got",
    lambda w: L5.bits_per_dim(torch.tensor([NAN]), 1),
    says_expected=False,
)
row(
    "bits-rank-bound-against-exact",
    ArgumentTypeError,
    r"cannot rank bits/dim: got exact against upper bound; expected the same kind",
    lambda w: BitsPerDim(torch.ones(1), exact=True) < BitsPerDim(torch.ones(1), exact=False),
)


# Processes.

for _name, _cls in {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "linear-ve": LinearVESDE,
    "levels": LevelNoise,
}.items():
    for _T in (0.0, -1.0, NAN, INF, True, "1"):
        row(
            f"{_name}-T-{_T}",
            ArgumentError,
            r"T: got",
            lambda w, cls=_cls, T=_T: cls(T=T),
        )
for _name, _cls in {"vp": VPSDE, "subvp": SubVPSDE}.items():
    for _field in ("beta_min", "beta_max"):
        row(
            f"{_name}-{_field}",
            ArgumentError,
            rf"{_field}: got 0.0; expected a finite number > 0",
            lambda w, cls=_cls, field=_field: cls(**{field: 0.0}),
        )
    for _std in (1.0, 3.0):
        row(
            f"{_name}-at_noise-{_std}",
            ArgumentError,
            r"std: got",
            lambda w, cls=_cls, std=_std: cls.at_noise(std),
        )
for _name, _cls in {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}.items():
    for _std in (0.0, -0.1, NAN, True, "0.1"):
        row(
            f"{_name}-at_noise-{_std}",
            ArgumentError,
            r"std: got",
            lambda w, cls=_cls, std=_std: cls.at_noise(std),
        )
row(
    "ve-sigmas",
    ArgumentError,
    r"sigma_max: got",
    lambda w: VESDE(sigma_max=0.01),
)
row("ve-sigma-min", ArgumentError, r"sigma_min: got", lambda w: VESDE(sigma_min=0.0))
row(
    "ve-song-below",
    ArgumentError,
    r"std: got",
    lambda w: VESDE.at_noise(0.005, song=True),
)
row("ve-linear", ArgumentError, r"T: got", lambda w: VESDE.linear(-1.0))
row(
    "levels-edge",
    ArgumentError,
    r"edge: got",
    lambda w: LevelNoise(5, edge="extend"),
)
row(
    "levels-pi-above-one",
    ArgumentError,
    r"T: got",
    lambda w: LevelNoise(5, T=1.5),
)
for _pi in (-0.1, 1.1, NAN):
    row(
        f"levels-pi-{_pi}",
        ArgumentError,
        r"t: got",
        lambda w, pi=_pi: LEVELS.perturb(w.x, pi, generator=w.generator),
    )
row(
    "functions-T",
    ArgumentError,
    r"T: got",
    lambda w: GaussianProcess(torch.cos, torch.sin, T=0),
)
row(
    "functions-start",
    ArgumentError,
    r"alpha, sigma: got",
    lambda w: GaussianProcess(torch.cos, torch.cos),
)
for _sigma in (-0.1, 0.21, NAN):
    row(
        f"time_at-{_sigma}",
        ArgumentError,
        r"sigma: got",
        lambda w, sigma=_sigma: VP.time_at(sigma),
    )


class NoFields(LinearSDE):
    alpha = sigma = drift_coefficient = diffusion = lambda self, t: t


row(
    "sde-no-dataclass",
    ArgumentTypeError,
    r"NoFields: got",
    lambda w: NoFields(),
)


# Distributions of times.

for _p in (-0.1, 1.1, NAN, True, "0.5"):
    for _name, _make_times in {
        "uniform": lambda p: UniformTimes(p_zero=p),
        "log-uniform": lambda p: LogUniformTimes(p_zero=p),
        "importance": lambda p: ImportanceTimes((1.0,), p_zero=p),
    }.items():
        row(
            f"{_name}-p_zero-{_p}",
            ArgumentError,
            r"p_zero: got",
            lambda w, make=_make_times, p=_p: make(p),
        )
row(
    "uniform-t_min",
    ArgumentError,
    r"t_min: got",
    lambda w: UniformTimes(t_min=-0.1),
)
row("uniform-t_min-nan", ArgumentError, r"t_min: got", lambda w: UniformTimes(t_min=NAN))
row(
    "uniform-t_min-above-T",
    ArgumentError,
    r"t_min: got",
    lambda w: UniformTimes(t_min=0.5)(4, VP, generator=w.generator),
)
row(
    "log-uniform-sigma_min",
    ArgumentError,
    r"sigma_min: got",
    lambda w: LogUniformTimes(0.0),
)
row(
    "log-uniform-sigma_min-above",
    ArgumentError,
    r"sigma_min: got",
    lambda w: LogUniformTimes(0.3)(4, VP, generator=w.generator),
)
row(
    "log-uniform-process",
    UnsupportedError,
    r"process: got",
    lambda w: LogUniformTimes()(4, LEVELS, generator=w.generator),
)
for _times in ((), (0.1, 0.1), (-0.1,), (NAN,), (INF,)):
    row(
        f"ladder-times-{_times}",
        ArgumentError,
        r"times: got",
        lambda w, times=_times: LadderTimes(times),
    )
for _masses in ((1.0,), (-1.0, 2.0), (0.0, 0.0), (NAN, 1.0)):
    row(
        f"ladder-masses-{_masses}",
        ArgumentError,
        r"masses: got",
        lambda w, masses=_masses: LadderTimes((0.0, 0.1), masses),
    )
row(
    "ladder-lambda-zero",
    ArgumentError,
    r"lambdas: got",
    lambda w: LadderTimes.from_lambdas({0.0: 1.0}),
)
row("ladder-no-zero", ArgumentError, r"times: got", lambda w: LadderTimes((0.1,)).lambdas)
row(
    "ladder-above-T",
    ArgumentError,
    r"times: got",
    lambda w: LadderTimes((0.0, 1.0))(4, VP, generator=w.generator),
)
for _bins in ((), (0.0, 1.0), (-1.0,), (INF,), (NAN,)):
    row(
        f"importance-bins-{_bins}",
        ArgumentError,
        r"bins: got",
        lambda w, bins=_bins: ImportanceTimes(bins),
    )
row(
    "weighted-n",
    ArgumentError,
    r"n: got",
    lambda w: WeightedTimes(AtZero(), torch.clone)(-1, VP, generator=w.generator),
)


# The objective.

row("objective-process", ArgumentTypeError, r"process: got", lambda w: NCMLObjective("vp"))
row("objective-times", ArgumentTypeError, r"times: got", lambda w: NCMLObjective(VP, 0.1))
row(
    "objective-reduction",
    ArgumentError,
    r"reduction: got",
    lambda w: NCMLObjective(VP, reduction="average"),
)
row(
    "objective-context",
    ArgumentError,
    r"context: got",
    lambda w: NCMLObjective(VP)(w.with_context, w.x, CONTEXT[:1], generator=w.generator),
)


# Densities.


for _shape in ((), (0,), (-2,), (2.0,), (True,), "ab", 3, None):
    row(
        f"density-event_shape-{_shape}",
        ArgumentError,
        r"event_shape: got",
        lambda w, shape=_shape: Bare(shape),
    )
row("density-process", ArgumentTypeError, r"process: got", lambda w: Bare((2,), "vp"))
row(
    "density-lattice-alone",
    ArgumentTypeError,
    r"process: got",
    lambda w: Bare((2,), None, L5),
)
for _name, _make_density in {
    "bare": lambda: Bare((2,), LEVELS, Lattice(3)),
    "made": lambda: MADE((2,), LEVELS, lattice=Lattice(3), hidden=(4,)),
    "toy": lambda: ToyLattice(LEVELS, [0.2, 0.3, 0.5]),
}.items():
    row(
        f"{_name}-lattice-of-another-process",
        ArgumentError,
        r"lattice: got",
        lambda w, make=_make_density: make(),
    )

for _name, _error, _message, _make_density in [
    (
        "process",
        UnsupportedError,
        r"process: got",
        lambda: GaussianDensity(LEVELS, 0.0, 1.0),
    ),
    (
        "std-shape",
        ArgumentError,
        r"std: got",
        lambda: GaussianDensity(VP, [0.0, 0.0], [1.0] * 3),
    ),
    ("std-zero", ArgumentError, r"std: got", lambda: GaussianDensity(VP, 0.0, 0.0)),
    ("std-nan", ArgumentError, r"std: got non-finite values; expected", lambda: GaussianDensity(VP, 0.0, NAN)),
    ("mean-inf", ArgumentError, r"mean: got non-finite values; expected", lambda: GaussianDensity(VP, INF, 1.0)),
]:
    row(f"gaussian-{_name}", _error, _message, lambda w, make=_make_density: make())
for _name, _error, _message, _arguments in [
    ("process", UnsupportedError, r"process: got", (LEVELS, [1.0], [0.0], 1.0)),
    (
        "weights-negative",
        ArgumentError,
        r"weights: got",
        (VP, [1.0, -1.0], [0.0, 1.0], 1.0),
    ),
    (
        "weights-zero",
        ArgumentError,
        r"weights: got",
        (VP, [1.0, 0.0], [0.0, 1.0], 1.0),
    ),
    ("weights-empty", ArgumentError, r"weights: got", (VP, [], [], 1.0)),
    (
        "means",
        ArgumentError,
        r"means: got",
        (VP, [1.0, 1.0], [0.0] * 3, 1.0),
    ),
    (
        "stds",
        ArgumentError,
        r"stds: got",
        (VP, [1.0, 1.0], [0.0] * 2, [1.0] * 3),
    ),
    ("stds-zero", ArgumentError, r"stds: got", (VP, [1.0, 1.0], [0.0] * 2, [1.0, 0.0])),
    ("nan", ArgumentError, r"means: got non-finite values; expected", (VP, [1.0], [NAN], 1.0)),
]:
    row(f"mixture-{_name}", _error, _message, lambda w, arguments=_arguments: GaussianMixtureDensity(*arguments))
for _name, _message, _pmf in [
    ("negative", r"pmf: got", [0.5, -0.5]),
    ("no-mass", r"pmf: got", [[0.5, 0.5], [0.0, 0.0]]),
    ("nan", r"pmf: got non-finite values; expected", [0.5, NAN]),
    ("one-level", r"levels: got", [1.0]),
]:
    row(f"toy-pmf-{_name}", ArgumentError, _message, lambda w, pmf=_pmf: ToyLattice(VP, pmf))
row(
    "toy-process",
    UnsupportedError,
    r"process: got",
    lambda w: ToyLattice("vp", [0.5, 0.5]),
)

for _name, _message, _settings in [
    ("head", r"head: got", {"head": "cauchy"}),
    ("order-shape", r"order: got", {"order": [0, 1]}),
    ("order-repeated", r"order: got", {"order": [0, 1, 1]}),
    ("dropout", r"dropout: got", {"dropout": 1.5}),
    ("components", r"components: got", {"components": 0}),
    ("hidden", r"hidden: got", {"hidden": (8, 0)}),
    ("hidden-none", r"number of hidden layers: got", {"hidden": ()}),
    ("noise_features", r"noise_features: got", {"noise_features": 1}),
    ("context_features", r"context_features: got", {"context_features": -1}),
    ("classes", r"classes: got", {"classes": 2.0}),
    (
        "both",
        r"context_features, classes: got",
        {"context_features": 1, "classes": 2},
    ),
    ("linear", r"linear_components: got -1; expected an integer >= 0", {"linear_components": -1}),
    (
        "linear-many",
        r"linear_components: got 3; expected at most components=2",
        {"components": 2, "linear_components": 3},
    ),
]:
    row(
        f"made-{_name}",
        ArgumentError,
        _message,
        lambda w, settings=_settings: MADE((3,), VP, **{"hidden": (8,), **settings}),
    )
row(
    "made-process",
    ArgumentTypeError,
    r"process: got",
    lambda w: MADE((3,), None, hidden=(8,)),
)
row(
    "maf-transforms",
    ArgumentError,
    r"transforms: got",
    lambda w: MAF((3,), VP, transforms=0),
)
for _std in (0.0, -1.0, NAN, True):
    row(
        f"maf-data_std-{_std}",
        ArgumentError,
        r"data_std: got",
        lambda w, std=_std: MAF((3,), VP, data_std=std),
    )
    row(
        f"made-data_std-{_std}",
        ArgumentError,
        r"data_std: got",
        lambda w, std=_std: MADE((3,), VP, hidden=(8,), data_std=std),
    )
row(
    "made-data_std-lattice",
    ArgumentError,
    r"data_std: got 0.5 with a lattice.*; expected None",
    lambda w: MADE((3,), VP, hidden=(8,), lattice=Lattice(4), data_std=0.5),
)
row(
    "maf-data_std-levels",
    UnsupportedError,
    r"process: got",
    lambda w: MAF((3,), LEVELS, data_std=1.0),
)
row(
    "callable-module",
    ArgumentTypeError,
    r"module: got",
    lambda w: CallableDensity(3, (2,)),
)
row(
    "callable-sample-arguments",
    ArgumentTypeError,
    r"sample: got a function of \(n\), which cannot be called with \(n, t, context, generator\); expected",
    lambda w: CallableDensity(lambda x, t: x.sum(1), (2,), sample=lambda n: torch.zeros(n, 2)),
)
row(
    "callable-features-arguments",
    ArgumentTypeError,
    r"module: got a function of \(x, t, context\), which cannot be called with \(x, c\); expected",
    lambda w: CallableDensity(lambda x, t, context: x.sum(1), (2,), VP, features=8),
)
for _name, _adapter in {"nflows": NFlowsDensity, "zuko": ZukoDensity}.items():
    row(
        f"{_name}-flow",
        ArgumentTypeError,
        r"flow: got",
        lambda w, f=_adapter: f("maf", (2,), VP),
    )
    row(
        f"{_name}-flow-unconditional",
        ArgumentError,
        r"flow: got",
        lambda w, f=_adapter: f(nn.Identity(), (2,), VP),
    )
    row(
        f"{_name}-process",
        ArgumentTypeError,
        r"process: got",
        lambda w, f=_adapter: f(nn.Identity(), (2,), None),
    )


# Building blocks.

row("features-process", ArgumentTypeError, r"process: got", lambda w: NoiseFeatures("vp"))
row("conditioning-features", ArgumentError, r"noise_features: got", lambda w: Conditioning(VP, True))
row(
    "scaling-process",
    UnsupportedError,
    r"process: got",
    lambda w: NoiseScaling(LEVELS, 1.0),
)
row("masked-inputs", ArgumentError, r"inputs: got", lambda w: MaskedMLP(0, 1, (4,), 1))
row("masked-outputs", ArgumentError, r"outputs: got", lambda w: MaskedMLP(2, 0, (4,), 1))
for _head in (LogisticHead, GaussianHead):
    row(
        f"{_head.__name__}-components",
        ArgumentError,
        r"components: got",
        lambda w, head=_head: head(0),
    )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("case", ROWS, ids=lambda r: r.id)
def test_bad_input(case: Row, world: World):
    constructs = case.id.split("-")[0] in CONSTRUCTORS_THAT_DRAW
    with torch.random.fork_rng(devices=[], enabled=constructs):
        before = world.state()
        with pytest.raises(case.error, match=re.compile(f"^(?:{case.message})", re.DOTALL)) as raised:
            case.call(world)
        after = world.state()
    assert isinstance(raised.value, NCMLError)
    if case.says_expected:
        assert re.search(r"got .*expected", str(raised.value), re.DOTALL)
    for name, value in before.items():
        if constructs and name == "global generator":
            continue
        if isinstance(value, torch.Tensor):
            same = value.dtype == after[name].dtype and torch.equal(value, after[name])
        else:
            same = value == after[name]
        assert same, f"{name} changed"


CONSTRUCTORS_THAT_DRAW = {"made", "maf"}
"""Rows whose networks may draw initial weights before a later argument is refused."""


def test_row_names_are_unique():
    assert len({r.id for r in ROWS}) == len(ROWS)


def test_refused_inputs_are_not_written():
    """The bad tensor itself stays as it was, bit for bit."""
    w = World()
    for make in (lambda: _with(w.x, NAN, (1, 2)), lambda: w.x.double(), lambda: w.x[:, :1]):
        x = make()
        before, version = x.clone(), x._version
        for call in CALLS.values():
            with pytest.raises((ValueError, TypeError)):
                call(w, "made", x)
        assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))
        assert x._version == version


# What looks odd but is allowed.


def test_minus_infinity_is_a_value_in_evaluation_but_not_in_training():
    density = _returning(lambda x: x.sum(1) - INF)
    x = torch.zeros(2, D)
    assert density.log_prob(x).tolist() == [-INF, -INF]
    assert Lattice(256).bits_per_dim(density.log_prob(x), D).infinite == 2
    with pytest.raises(NonFiniteError):
        NCMLObjective(VP)(density, x, t=0.0)


def test_integer_times_are_promoted():
    w = World()
    assert torch.equal(w.made.log_prob(w.x, torch.zeros(B, dtype=torch.int64)), w.made.log_prob(w.x, 0))


def test_equal_start_and_end_return_a_copy_without_a_call_or_a_draw():
    calls = []
    density = CallableDensity(lambda x, t: calls.append(1) or x.sum(1), (D,), VP)
    x, generator = torch.randn(B, D, generator=seeded(0)), seeded(1)
    before = generator.get_state()
    for sampler in STILL:
        refined = sampler(density, x, 0.02, 0.02, generator=generator)
        assert torch.equal(refined, x)
        assert refined.data_ptr() != x.data_ptr()
    assert calls == []
    assert torch.equal(generator.get_state(), before)


def test_markov_chains_have_something_to_do_at_one_level():
    density, x = GaussianDensity(VP, torch.zeros(D), 1.0), torch.randn(B, D, generator=seeded(0))
    for sampler in MOVING:
        assert not torch.equal(sampler(density, x, 0.02, 0.02, generator=seeded(1)), x)
