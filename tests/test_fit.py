"""The training loop: it fits, it repeats, and it stops before a bad step."""

from __future__ import annotations

import copy
import math
import re
import time
import warnings

import pytest
import torch
from torch import nn

from ncml import VPSDE, Lattice, NCMLObjective, NoiseConditionalDensity
from ncml.data import Arrays
from ncml.densities import MADE, MAF, CallableDensity, CausalTransformer
from ncml.errors import (
    ArgumentError,
    ArgumentTypeError,
    ColumnScaleWarning,
    InferenceTensorError,
    LatticeDataWarning,
    NonFiniteError,
    UnsupportedError,
)
from ncml.objective import AtZero
from ncml.training import OptimConfig, RunConfig, Trainer, fit, launch
from ncml.training.table_checks import lattice_of
from tests.problems import seeded

PROCESS = VPSDE.at_noise(0.2)


def ring(n=512):
    angle = torch.linspace(0, 6.28, n)
    return torch.stack([angle.cos(), angle.sin()], 1)


def maf():
    torch.manual_seed(0)
    return MAF((2,), PROCESS, transforms=2, hidden=(16,))


def trained(seed, **settings):
    density = maf()
    losses = fit(density, NCMLObjective(PROCESS), ring(), generator=seeded(seed), **settings)
    return density, losses


def test_loss_falls():
    _, losses = trained(0, steps=150, learning_rate=1e-2)
    assert len(losses) == 150
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 0.15


def test_same_generator_same_bits():
    (a, first), (b, second), (_, third) = trained(1, steps=5), trained(1, steps=5), trained(2, steps=5)
    assert first == second != third
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_callback_gets_the_steps_taken_and_may_end_the_training():
    seen = []
    _, losses = trained(0, steps=9, callback=lambda step: seen.append(step) or step == 3)
    assert seen == [1, 2, 3]
    assert len(losses) == 3


class Broken(NoiseConditionalDensity):
    """NaN from the third call on."""

    def __init__(self):
        super().__init__((2,))
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x, t, context=None, *, edges=True):
        self.calls += 1
        return -x.square().sum(1) * self.scale * (float("nan") if self.calls > 2 else 1.0)


def test_a_nan_stops_before_the_step():
    density = Broken()
    with pytest.raises(NonFiniteError, match="t ="):
        fit(density, NCMLObjective(PROCESS), ring(), steps=10)
    assert density.calls == 3
    assert bool(torch.isfinite(density.scale))


def test_gradients_are_clipped():
    density, reference = maf(), maf()
    fit(density, NCMLObjective(PROCESS, AtZero()), 100.0 * ring(), steps=1, clip_norm=1e-12)
    moved = max(
        float((p - q).detach().abs().max()) for p, q in zip(density.parameters(), reference.parameters(), strict=True)
    )
    # Adam's step is lr g / (|g| + 1e-8): clipped to 1e-12 it is at most 1e-4 of the learning rate.
    assert moved < 1e-6


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": True}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
    ],
)
def test_bad_settings_change_nothing(settings, name):
    density = maf()
    before = copy.deepcopy(density.state_dict())
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        fit(density, NCMLObjective(PROCESS), ring(), **settings)
    assert all(torch.equal(before[k], v) for k, v in density.state_dict().items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_whatever_the_callers_mode(mode):
    expected, _ = trained(0, steps=2)
    density, x = maf(), ring()
    with mode():
        fit(density, NCMLObjective(PROCESS), x, generator=seeded(0), steps=2)
    assert all(torch.equal(p, q) for p, q in zip(density.parameters(), expected.parameters(), strict=True))


def test_nothing_to_train_is_refused():
    with pytest.raises(ArgumentError, match="density: got one without parameters to train"):
        fit(maf().requires_grad_(False), NCMLObjective(PROCESS), ring())


def test_an_empty_data_set_is_refused():
    with pytest.raises(ArgumentError, match="empty"):
        fit(maf(), NCMLObjective(PROCESS), torch.empty(0, 2))


def test_context_rows_follow_their_examples():
    """A model whose likelihood needs the matching label sees it: x = label exactly."""

    class Matches(NoiseConditionalDensity):
        def __init__(self):
            super().__init__((1,))
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.seen = 0.0

        def forward(self, x, t, context=None, *, edges=True):
            self.seen = max(self.seen, float((x.detach()[:, 0] - context).abs().max()))
            return -(x - context[:, None]).square().sum(1) * self.scale

    labels = torch.arange(50)
    density = Matches()
    fit(density, NCMLObjective(PROCESS, AtZero()), labels[:, None].float(), labels, steps=3)
    assert density.seen == 0.0


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    class Steep(NoiseConditionalDensity):
        """A finite likelihood whose gradient is infinite."""

        def __init__(self):
            super().__init__((2,))
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, context=None, *, edges=True):
            return -self.scale.sqrt() - x.square().sum(1)

    density = Steep()
    with pytest.raises(NonFiniteError, match="gradient: got"):
        fit(density, NCMLObjective(PROCESS), ring(), steps=3)
    assert float(density.scale.detach()) == 0.0
    assert not density.training


def test_what_is_no_objective_and_no_tensor_is_refused():
    process = VPSDE.at_noise(0.5)
    density, x = MADE((2,), process, hidden=(8,)), torch.zeros(4, 2)
    with pytest.raises(ArgumentTypeError, match="objective: got NCMLObjective; expected an NCMLObjective, such as"):
        fit(density, NCMLObjective, x)
    with pytest.raises(ArgumentTypeError, match="x: got list; expected one tensor of all training data"):
        fit(density, NCMLObjective(process), [x])


# Data that lie on a lattice that nobody mentioned.


def lattice_data(levels, n=500, low=-1.0, high=1.0):
    k = torch.randint(levels, (n, 2), generator=seeded(0))
    return low + (high - low) * k / (levels - 1)


def without_second_level():
    """Levels 0, 2, 3, ...: the others are still multiples of one spacing apart."""
    x = lattice_data(9, 1000, 0.0, 8.0)
    return x[(x != 1.0).all(1)]


LATTICES = {
    "digits": (lambda: lattice_data(17), 17, False),
    "bits": (lambda: lattice_data(2), 2, False),
    "bytes": (lambda: lattice_data(256, 5000), 256, False),
    "unscaled bytes": (lambda: lattice_data(256, 5000, 0.0, 255.0), 256, True),
    "from 0 to 1": (lambda: lattice_data(256, 5000, 0.0, 1.0), 256, True),
    "missing levels": (without_second_level, 9, True),
    "standardised": (lambda: (lattice_data(17) - 0.3) / 0.7, 17, True),
}


@pytest.mark.parametrize("name", LATTICES)
def test_lattice_data_are_warned_of(name):
    make, levels, scaled = LATTICES[name]
    x = make()
    with pytest.warns(LatticeDataWarning, match=rf"unbounded.*dequantize=Lattice\({levels}\)") as caught:
        fit(maf(), NCMLObjective(PROCESS), x, steps=1)
    assert len(caught) == 1
    assert ("to_unit" in str(caught[0].message)) == scaled
    assert caught[0].filename == __file__  # at the user's call


def test_the_remedy_of_the_warning_works():
    x = lattice_data(17)
    made = MADE((2,), PROCESS, lattice=Lattice(17), hidden=(8,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(maf(), NCMLObjective(PROCESS, dequantize=Lattice(17)), x, steps=1)
        fit(made, NCMLObjective(PROCESS), x, steps=1)
    assert caught == []


def real_numbers():
    generator = seeded(0)
    normal = torch.randn(2000, 2, generator=generator)
    yield "normal", normal
    yield "half precision", normal.half().float()
    yield "rounded to three digits", (normal * 1000).round() / 1000
    yield "bootstrap", normal[torch.randint(50, (2000,), generator=generator)]
    yield "few distinct", torch.tensor([[0.0, 1.0], [2.5, 3.7]])[torch.randint(2, (2000,), generator=generator)]
    yield "constant", torch.ones(2000, 2)
    yield "tiny", torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    yield "tiny lattice", lattice_data(256, 20)
    yield "a grid, once", torch.linspace(-1.0, 1.0, 500)[:, None].expand(500, 2) * torch.tensor([1.0, 0.37])
    yield "a ring", ring(2000)
    mixed = normal.clone()
    mixed[:, 0] = mixed[:, 0].round()
    yield "one column of integers", mixed
    yield "zeros among numbers", torch.where(normal.abs() < 0.5, 0.0, normal)


@pytest.mark.parametrize("name", [name for name, _ in real_numbers()])
def test_real_numbers_are_no_lattice(name):
    x = dict(real_numbers())[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(maf(), NCMLObjective(PROCESS), x, steps=1, batch_size=8)
    assert caught == []


def test_a_large_table_is_looked_at_quickly():
    x = torch.randn(2_000_000, 2, generator=seeded(0))
    start = time.perf_counter()
    assert lattice_of(x) is None
    assert time.perf_counter() - start < 1.0


def test_a_bad_row_is_named_by_its_place_in_the_table():
    x = torch.randn(9000, 2)
    x[567, 1] = float("nan")
    x[8999, 0] = float("inf")
    density = maf()
    before = copy.deepcopy(density.state_dict())
    with pytest.raises(ArgumentError, match="x: got NaN or infinity in row 567"):
        fit(density, NCMLObjective(PROCESS), x, batch_size=32)
    assert all(torch.equal(before[k], v) for k, v in density.state_dict().items())


# Scales of columns.


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1.0, 80.0), None),
        ((1.0, 1e6), r"from a standard deviation of \S+ in column 0 to \S+ in column 1 .*scale every column"),
        ((1e-3, 0.0, 3.0), r"constant columns \(from 0: 1\)"),
        ((0.0, 0.0), None),  # nothing to compare with; a closed form may be meant
    ],
)
@pytest.mark.parametrize("through", ["fit", "Trainer"])
def test_scales_of_columns_are_looked_at(scales, message, through, tmp_path):
    x = torch.randn(500, len(scales), generator=seeded(0)) * torch.tensor(scales)
    density, objective = MAF((len(scales),), PROCESS, hidden=(4,)), NCMLObjective(PROCESS)

    def begin():
        if through == "fit":
            fit(density, objective, x, steps=1)
        else:
            run = RunConfig(accelerator="cpu", threads=1)
            Trainer(launch(run), density, objective, Arrays(x), tmp_path, OptimConfig(), run)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        begin()
    said = [str(w.message) for w in seen if w.category is ColumnScaleWarning]
    assert bool(said) == (message is not None)
    assert message is None or any(re.search(message, text) for text in said)
    assert all(w.filename == __file__ for w in seen if w.category is ColumnScaleWarning)


def test_what_fit_cannot_use_is_said_at_once():
    density = maf()
    with pytest.raises(ArgumentError, match=re.escape("objective: got reduction='none', a loss per example")):
        fit(density, NCMLObjective(PROCESS, reduction="none"), ring())
    with pytest.raises(ArgumentTypeError, match=re.escape("context: got list; expected a torch.Tensor")):
        fit(density, NCMLObjective(PROCESS), ring(), [1] * 512)
    with pytest.raises(ArgumentError, match=re.escape("context: got shape (1, 512); expected (512, ...)")):
        fit(density, NCMLObjective(PROCESS), ring(), torch.zeros(1, 512))
    with pytest.raises(ArgumentError, match="empty data set"):
        fit(density, NCMLObjective(PROCESS), torch.tensor(1.0))


class Detached(MAF):
    """Whose log-likelihoods have lost their graph."""

    def forward(self, x, t, context=None, *, edges=True):
        return super().forward(x, t, context, edges=edges).detach()


def test_a_density_that_cannot_be_trained_is_refused(tmp_path):
    density, run = Detached((2,), PROCESS, transforms=1, hidden=(8,)), RunConfig(accelerator="cpu", threads=1)
    said = "of a Detached that autograd does not connect with its parameters"
    with pytest.raises(UnsupportedError, match=said):
        fit(density, NCMLObjective(PROCESS), ring())
    trainer = Trainer(launch(run), density, NCMLObjective(PROCESS), Arrays(ring()), tmp_path, OptimConfig(), run)
    with pytest.raises(UnsupportedError, match=said):
        trainer.run()


def test_gradients_may_stay_as_they_are():
    assert trained(0, steps=3, clip_norm=math.inf)[1] == trained(0, steps=3, clip_norm=1e9)[1]
    assert trained(0, steps=3, clip_norm=math.inf)[1] != trained(0, steps=3, clip_norm=1e-3)[1]
    for value in (0.0, -1.0, math.nan, "1"):
        with pytest.raises(ArgumentError, match=r"clip_norm: got .*math\.inf clips nothing"):
            trained(0, steps=1, clip_norm=value)


def test_parameters_of_inference_mode_are_refused_and_others_train_in_it(tmp_path):
    run = RunConfig(accelerator="cpu", threads=1)
    density = maf()
    before = [p.detach().clone() for p in density.parameters()]
    with torch.inference_mode():
        inside = maf()
        with pytest.raises(InferenceTensorError, match="build or load the model outside"):
            fit(inside, NCMLObjective(PROCESS), ring())
        optim = OptimConfig(steps=2, batch_size=8)
        trainer = Trainer(launch(run), density, NCMLObjective(PROCESS), Arrays(ring()), tmp_path, optim, run)
        assert trainer.run() == 0
    assert all(not torch.equal(p, q) for p, q in zip(before, density.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: 1000.0 * x + 5000.0, ["root mean square of 5"]),
        (lambda x: 1e-3 * x, ["root mean square of 0.00"]),
        (lambda x: 0.0 * x, []),  # a closed form may be meant
        (lambda x: 3.0 * x + 20.0, []),
    ],
)
def test_sequences_of_another_size_are_warned_of(change, said):
    x = change(torch.randn(64, 6, 1, generator=seeded(0)))
    density = CausalTransformer((6, 1), PROCESS, width=8, layers=1, heads=1, components=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(density, NCMLObjective(PROCESS), x, steps=1)
    found = [str(w.message) for w in seen if w.category is ColumnScaleWarning]
    assert len(found) == len(said)
    assert all(words in message for words, message in zip(said, found, strict=True))


def test_what_lies_behind_the_end_of_a_sequence_is_no_part_of_the_training():
    x = torch.randn(32, 5, 1, generator=seeded(0))
    lengths = torch.arange(32) % 4 + 1
    behind = torch.arange(5) >= lengths[:, None]

    def trained_on(rows, lengths):
        torch.manual_seed(0)
        density = CausalTransformer((5, 1), PROCESS, width=8, layers=1, heads=1, components=1)
        generator = seeded(1)
        return fit(density, NCMLObjective(PROCESS), rows, steps=3, lengths=lengths, generator=generator)

    padded = x.masked_fill(behind[:, :, None], 3.0)
    assert trained_on(x, lengths) == trained_on(padded, lengths) != trained_on(padded, None)
    assert trained_on(x.masked_fill(behind[:, :, None], math.nan), lengths) == trained_on(x, lengths)
    with pytest.raises(ArgumentTypeError, match=re.escape("expected a tensor of integers (B,)")):
        trained_on(x, lengths.tolist())
    with pytest.raises(ArgumentError, match=re.escape("lengths: got values in [1, 6]; expected 1 to 5")):
        trained_on(x, torch.where(lengths == 4, 6, lengths))


def test_what_lies_behind_an_end_is_not_looked_at():
    """Its size says nothing of the data."""
    x = torch.randn(32, 5, 1, generator=seeded(0))
    lengths = torch.arange(32) % 4 + 1
    padded = x.masked_fill((torch.arange(5) >= lengths[:, None])[:, :, None], 1e6)
    density = CausalTransformer((5, 1), PROCESS, width=8, layers=1, heads=1, components=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(density, NCMLObjective(PROCESS), padded, steps=1, lengths=lengths)
        assert seen == []
        fit(density, NCMLObjective(PROCESS), padded, steps=1)
    assert [w.category for w in seen] == [ColumnScaleWarning]


def test_parameters_without_a_gradient_are_refused():
    """Also where the log-likelihood has a graph, of the data or of what a wrapper looks at."""
    unused = nn.Linear(2, 2)
    looked_at = CallableDensity(lambda x, t: -x.square().sum(1), (2,), PROCESS, modules=[unused])
    detached = Detached((2,), PROCESS, transforms=1, hidden=(8,))
    for density, x in ((looked_at, ring()), (detached, ring().requires_grad_())):
        before = [p.detach().clone() for p in density.parameters()]
        with pytest.raises(UnsupportedError, match="does not connect with its parameters"):
            fit(density, NCMLObjective(PROCESS), x, steps=2)
        assert all(torch.equal(p, q) for p, q in zip(before, density.parameters(), strict=True))


def test_the_size_of_a_table_is_told_by_column():
    """The remedy leaves columns of order one, and constant data have none."""
    x = torch.randn(500, 2, generator=seeded(0)) + torch.tensor([1000.0, -1000.0])
    with pytest.warns(ColumnScaleWarning, match=re.escape("scale them: (x - x.mean(0)) / x.std(0)")):
        fit(maf(), NCMLObjective(PROCESS), x, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(maf(), NCMLObjective(PROCESS), torch.full((500, 2), 1e6), steps=1)
