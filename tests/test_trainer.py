"""The training loop: resumed and divided runs see the same numbers, and a bad step changes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from ncml import VPSDE, GaussianProcess, Lattice, NCMLObjective, NoiseConditionalDensity
from ncml.data import Arrays
from ncml.densities import MAF, GaussianDensity
from ncml.densities.maf import MAFSettings
from ncml.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    LatticeDataWarning,
    NonFiniteError,
    UnsupportedError,
)
from ncml.noise import LevelNoise
from ncml.objective import AtZero, ImportanceTimes, UniformTimes
from ncml.training import (
    EMA,
    DataKind,
    ModelConfig,
    OptimConfig,
    Periodic,
    RunConfig,
    Trainer,
    build_density,
    launch,
    load_density,
    load_into,
    open_checkpoint,
    read_metrics,
)
from ncml.training.checkpoint import density_kind
from ncml.training.draws import BatchDraws, stream_seed
from ncml.training.metrics import numbers as numbers_of
from ncml.training.signals import StopSignals
from tests.training_problems import CONFIG, changed, same_state, trainer

PROCESS = VPSDE.at_noise(0.2)


def numbers(folder):
    """The log without what depends on the clock."""
    timed = ("seconds", "examples_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(folder / "metrics.jsonl")]


# Draws.


def draws(n=10, batch_size=4, seed=0, process=PROCESS, times=None):
    return BatchDraws(n, (1, 2, 2), NCMLObjective(process, times), batch_size, seed)


def test_every_epoch_sees_every_row_once():
    rows = torch.cat([draws().rows(step) for step in range(10)]).view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in rows)
    assert len({tuple(epoch.tolist()) for epoch in rows}) == 4


def test_a_batch_may_be_larger_than_the_data():
    assert torch.bincount(draws(n=3, batch_size=7).rows(0)).tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


def test_draws_are_a_function_of_seed_and_step():
    one, other = draws(), draws()
    other(5)  # in whatever order they are asked for
    for step in (0, 3):
        a, b = one(step), other(step)
        assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("rows", "t", "weight", "noise"))
    assert not torch.equal(one(0).noise, one(1).noise)
    assert not torch.equal(one(0).noise, draws(seed=1)(0).noise)


def test_parts_make_up_the_batch():
    batch = draws()(2)
    for name in ("rows", "t", "weight", "noise"):
        parts = [getattr(batch.part(i, 2).part(j, 2), name) for i in range(2) for j in range(2)]
        assert torch.equal(torch.cat(parts), getattr(batch, name))


def test_draws_know_weights_and_other_processes_noise():
    batch = draws(times=ImportanceTimes((1.0, 3.0), p_zero=0.5), process=LevelNoise(4), batch_size=8)(0)
    assert batch.noise.min() >= 0.0
    inside = batch.weight[batch.t > 0]
    assert set(batch.weight[batch.t == 0].tolist()) == {1.0}
    assert {round(w, 5) for w in inside.tolist()} <= {2.0, round(2 / 3, 5)}


def test_dequantisation_is_drawn_last():
    """The other draws are those of an objective without it, and the uniforms a function of seed and step."""
    lattice = Lattice(17)

    def batches(dequantize, step=3):
        objective = NCMLObjective(PROCESS, dequantize=dequantize)
        return BatchDraws(10, (1, 2, 2), objective, 4, 0)(step)

    plain, with_uniform = batches(None), batches(lattice)
    assert plain.uniform is None
    assert all(torch.equal(getattr(plain, f), getattr(with_uniform, f)) for f in ("rows", "t", "weight", "noise"))
    assert with_uniform.uniform.shape == with_uniform.noise.shape
    assert torch.equal(with_uniform.uniform, batches(lattice).uniform)
    assert not torch.equal(with_uniform.uniform, batches(lattice, 4).uniform)
    parts = [with_uniform.part(i, 2).part(j, 2).uniform for i in range(2) for j in range(2)]
    assert torch.equal(torch.cat(parts), with_uniform.uniform)
    assert plain.part(0, 2).uniform is None


def test_streams_are_different():
    seeds = {
        stream_seed(0, "noise", 1),
        stream_seed(0, "noise", 11),
        stream_seed(0, "order", 1),
        stream_seed(1, "noise", 1),
    }
    assert len(seeds) == 4
    assert all(0 <= s < 2**63 for s in seeds)


# Average, schedule.


def test_average_against_its_definition():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema, expected = EMA([p], 0.9), torch.zeros(3, dtype=torch.float64)
    for i in range(1, 60):
        p.data.fill_(float(i))
        ema.update()
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * i
    torch.testing.assert_close(ema.average[0], expected, rtol=1e-12, atol=0)
    with ema.applied():
        assert torch.equal(p.detach(), ema.average[0])
    assert p.tolist() == [59.0] * 3


def test_average_without_decay_is_the_parameters():
    p = torch.nn.Parameter(torch.zeros(2))
    ema = EMA([p], 0.0)
    p.data.fill_(2.0)
    ema.update()
    assert ema.average[0].tolist() == [2.0, 2.0]


def test_learning_rate():
    optim = OptimConfig(steps=100, warmup=9, learning_rate=2.0)
    assert [optim.learning_rate_at(i) for i in (0, 4)] == pytest.approx([0.2, 1.0], rel=0.01)
    assert optim.learning_rate_at(50) == pytest.approx(1.0)
    assert optim.learning_rate_at(100) == 0.0
    constant = OptimConfig(steps=100, warmup=0, learning_rate=2.0, schedule="constant")
    assert {constant.learning_rate_at(i) for i in (0, 50, 100)} == {2.0}
    falling = replace(constant, schedule="exponential", decay=0.5)
    assert [falling.learning_rate_at(i) for i in range(3)] == [2.0, 1.0, 0.5]
    for wrong in ({"decay": 0.5}, {"schedule": "exponential"}, {"schedule": "exponential", "decay": 1.5}):
        with pytest.raises(ArgumentError, match=r"optim\.decay"):
            replace(constant, **wrong)


# Steps.


def test_first_step_against_plain_torch(tmp_path):
    """One step of the trainer is one step of Adam on the mean of the batch, clipped, per dimension."""
    config = changed(model={"dropout": 0.0}, optim={"steps": 1, "clip_norm": 0.5, "ema": 0.0})
    t = trainer(tmp_path, config)
    model, batch = t.density, t.draws(0)
    reference = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = t.examples.batch(batch.rows)
    x_t = model.process.perturb(x, batch.t, noise=batch.noise)
    loss = -(batch.weight * model(x_t, batch.t)).mean() / 64
    grads = torch.autograd.grad(loss, list(model.parameters()))
    loss = loss.detach()
    norm = torch.cat([g.flatten() for g in grads]).norm()
    t.run()
    line = numbers(tmp_path)[0]
    assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert line["loss"] == pytest.approx(float(loss) * 64, rel=1e-6)
    scale = min(1.0, 0.5 / float(norm))
    rate = config.optim.learning_rate_at(0)
    for (name, p), g in zip(model.named_parameters(), grads, strict=True):
        step = rate * (g * scale) / ((g * scale).abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(p.detach(), reference[name] - step, rtol=1e-4, atol=1e-7)


def test_weights_of_the_times_count(tmp_path):
    """A step under importance-weighted times against the weighted mean; bits/dim at t = 0 are without weights."""
    t = trainer(tmp_path, changed(model={"dropout": 0.0}, optim={"steps": 1, "batch_size": 32}))
    objective = NCMLObjective(t.density.process, ImportanceTimes((1.0, 9.0), p_zero=0.25))
    base = trainer(tmp_path / "fresh", changed(model={"dropout": 0.0}, optim={"steps": 1, "batch_size": 32}))
    t = Trainer(base.fabric, base.density, objective, base.examples, tmp_path, base.optim, base.run_config)
    batch = t.draws(0)
    assert len(set(batch.weight.tolist())) == 3
    x = t.density.process.perturb(t.examples.batch(batch.rows), batch.t, noise=batch.noise)
    nll = -t.density(x, batch.t).detach()
    zero = (nll / (64 * math.log(2)) - math.log2(2 / 16))[batch.t == 0].mean()
    t.run()
    line = numbers(tmp_path)[0]
    assert line["loss"] == pytest.approx(float((batch.weight * nll).mean()), rel=1e-6)
    assert abs(line["loss"] - float(nll.mean())) > 0.1
    assert line["bits_per_dim_zero"] == pytest.approx(float(zero), rel=1e-6)


def test_bits_per_dim_of_the_log(tmp_path):
    """Against the density's own log-likelihoods."""
    t = trainer(tmp_path, changed(model={"dropout": 0.0}, optim={"steps": 1, "batch_size": 20}))
    model, batch = t.density, t.draws(0)
    x = model.process.perturb(t.examples.batch(batch.rows), batch.t, noise=batch.noise)
    bits = model.lattice.bits_per_dim(model.log_prob(x, batch.t).detach(), 64).values
    zero = bits[batch.t == 0].mean()
    t.run()
    line = numbers(tmp_path)[0]
    assert line["bits_per_dim"] == pytest.approx(float(bits.mean()), rel=1e-6)
    assert line["bits_per_dim_zero"] == pytest.approx(float(zero), rel=1e-6)


FLOW = ModelConfig("maf", settings=MAFSettings(transforms=1, hidden=(16,)))


def test_a_flow_is_dequantised_with_the_draws_of_the_step(tmp_path):
    """The loss of the first step against plain torch; in parts as in one; the log's bits/dim as of the lattice."""
    config = replace(CONFIG, model=FLOW, optim=replace(CONFIG.optim, steps=1, ema=0.0))
    t = trainer(tmp_path / "a", config)
    assert t.objective.dequantize == Lattice(17)
    model, batch = t.density, t.draws(0)
    x = t.examples.batch(batch.rows)
    y = x + (2.0 * batch.uniform - 1.0) * Lattice(17).half_width
    nll = -model(model.process.perturb(y, batch.t, noise=batch.noise), batch.t).detach()
    t.run()
    line = numbers(tmp_path / "a")[0]
    assert line["loss"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert line["bits_per_dim"] == pytest.approx(float(nll.mean()) / (64 * math.log(2)) - math.log2(2 / 16), rel=1e-6)
    parts = trainer(tmp_path / "b", changed(config, optim={"accumulate": 4}))
    parts.run()
    assert numbers(tmp_path / "b")[0]["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_a_resumed_flow_is_the_same_flow(tmp_path):
    config = replace(CONFIG, model=FLOW)
    whole = trainer(tmp_path / "whole", changed(config, run={"keep": 9}))
    whole.run()
    part = trainer(tmp_path / "part", config)
    part.load(open_checkpoint(tmp_path / "whole" / "checkpoints" / "step_00000002"))
    part.run()
    a, b = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "part")
    assert same_state(a.training(), b.training())


def test_lines_are_logged_every_so_many_steps_and_at_the_last(tmp_path):
    trainer(tmp_path, replace(CONFIG, model=FLOW, optim=replace(CONFIG.optim, steps=5))).run()
    assert [line["step"] for line in numbers(tmp_path)] == [2, 4, 5]


def test_data_are_asked_for_where_the_model_is(tmp_path):
    devices = set()

    class Placed(Arrays):
        def batch(self, rows, *, device=None):
            devices.add(device)
            return super().batch(rows, device=device)

    base = trainer(tmp_path)
    density = MAF((3,), base.density.process, transforms=1, hidden=(8,))
    x, objective = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), NCMLObjective(density.process)
    run = Trainer(base.fabric, density, objective, Placed(x), tmp_path, base.optim, base.run_config)
    devices.clear()  # what was looked at before
    run.run()
    assert devices == {torch.device("cpu")}


def test_lattice_data_without_a_lattice_are_warned_of(tmp_path):
    base = trainer(tmp_path)
    density = MAF((1, 8, 8), base.density.process, transforms=1, hidden=(8,))
    values = base.examples.batch(slice(0, 200))
    for examples in (Arrays(values), Arrays((values + 1.0) * 8.0)):
        arguments = (base.fabric, density, NCMLObjective(density.process), examples, tmp_path, base.optim)
        with pytest.warns(LatticeDataWarning, match=r"17 evenly spaced values.*dequantize=Lattice\(17\)"):
            Trainer(*arguments, base.run_config)


def test_examples_are_a_data_set_of_floating_values(tmp_path):
    """Integers are refused by the objective, not converted to 0 .. 255."""

    class Raw(Arrays):
        def batch(self, rows, *, device=None):
            return (super().batch(rows, device=device) * 100).to(torch.uint8)

    base = trainer(tmp_path)
    density = MAF((3,), base.density.process, transforms=1, hidden=(8,))
    x, objective = torch.rand(20, 3), NCMLObjective(density.process)
    with pytest.raises(ArgumentTypeError, match=r"examples: got Tensor; expected a data set, such as ncml.data.Arrays"):
        Trainer(base.fabric, density, objective, x, tmp_path, base.optim, base.run_config)
    run = Trainer(base.fabric, density, objective, Raw(x), str(tmp_path), base.optim, base.run_config)
    with pytest.raises(ArgumentTypeError, match=r"x: got dtype torch\.uint8"):
        run.run()


def test_a_bad_row_is_named_before_the_first_step(tmp_path):
    class Table(Arrays):
        """A data set that does not look at its values."""

        def __post_init__(self):
            pass

    base = trainer(tmp_path)
    density = MAF((3,), base.density.process, transforms=1, hidden=(8,))
    x = torch.randn(10_000, 3)
    x[5678, 1] = math.nan
    with pytest.raises(ArgumentError, match="examples: got NaN or infinity in row 5678"):
        Trainer(base.fabric, density, NCMLObjective(density.process), Table(x), tmp_path, base.optim, base.run_config)


def test_it_learns(tmp_path):
    config = changed(
        optim={"steps": 60, "learning_rate": 1e-2, "batch_size": 16}, run={"log_every": 10, "save_every": 60}
    )
    trainer(tmp_path, config).run()
    bits = [line["bits_per_dim_zero"] for line in numbers(tmp_path)]
    assert bits[-1] < bits[0] - 0.5


def test_the_rate_of_a_line_is_that_of_the_step_that_was_taken(tmp_path):
    config = changed(optim={"steps": 6, "warmup": 3}, run={"log_every": 1})
    trainer(tmp_path, config).run()
    rates = [line["learning_rate"] for line in numbers(tmp_path) if "learning_rate" in line]
    assert rates == pytest.approx([config.optim.learning_rate_at(step) for step in range(6)])


def test_accumulated_parts_are_the_whole_batch(tmp_path):
    config = changed(model={"dropout": 0.0})
    whole, parts = trainer(tmp_path / "a", config), trainer(tmp_path / "b", changed(config, optim={"accumulate": 4}))
    whole.run(), parts.run()
    for a, b in zip(whole.density.parameters(), parts.density.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    for a, b in zip(numbers(tmp_path / "a"), numbers(tmp_path / "b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_resumed_run_is_the_same_run(tmp_path):
    """Parameters, average, optimizer and log, bit for bit, with dropout, from every checkpoint."""
    whole = trainer(tmp_path / "whole", changed(run={"keep": 9, "log_every": 3}))
    whole.run()
    for step in (2, 4):
        folder = tmp_path / f"from{step}"
        part = trainer(folder, changed(run={"log_every": 3}))
        (folder / "metrics.jsonl").write_text((tmp_path / "whole" / "metrics.jsonl").read_text() + '{"step": 99, "cu')
        part.load(open_checkpoint(tmp_path / "whole" / "checkpoints" / f"step_{step:08d}"))
        assert part.step == step
        part.run()
        a, b = open_checkpoint(tmp_path / "whole"), open_checkpoint(folder)
        assert same_state(a.model(), b.model())
        assert same_state(a.training(), b.training())
        assert numbers(folder) == numbers(tmp_path / "whole")


def test_resume_would_notice_lost_moments(tmp_path):
    """Power: without the optimizer's state the comparison above fails."""
    whole = trainer(tmp_path / "whole")
    whole.run()
    part = trainer(tmp_path / "part")
    part.load(open_checkpoint(tmp_path / "whole" / "checkpoints" / "step_00000004"))
    part.adam.state.clear()
    part.run()
    assert not same_state(open_checkpoint(tmp_path / "whole").model(), open_checkpoint(tmp_path / "part").model())


def test_checkpoint_holds_the_average(tmp_path):
    t = trainer(tmp_path)
    t.run()
    density, config, kind, checkpoint = load_density(tmp_path)
    assert (config, kind.shape, checkpoint.step) == (CONFIG, (1, 8, 8), 6)
    assert not density.training
    own = dict(t.density.named_parameters())
    for (name, p), average in zip(density.named_parameters(), t.ema.average, strict=True):
        assert torch.equal(p, average)
        assert torch.equal(checkpoint.training()[f"parameter.{name}"], own[name])
    assert any(not torch.equal(p, own[name]) for name, p in density.named_parameters())


def test_old_checkpoints_are_removed(tmp_path):
    trainer(tmp_path, changed(optim={"steps": 8})).run()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000006", "step_00000008"]


def test_other_work_sees_the_average_and_changes_nothing(tmp_path):
    seen = {}

    def action(step):
        seen[step] = [p.detach().clone() for p in t.density.parameters()], t.density.training
        torch.rand(3)  # a generator that the next step would notice
        return {"value": 1.5}

    t = trainer(tmp_path / "a", periodic=[Periodic(2, "work", action)])
    averages = {}
    update = t.ema.update

    def spy():
        update()
        averages[t.step + 1] = [a.clone() for a in t.ema.average]

    t.ema.update = spy
    t.run()
    assert list(seen) == [2, 4, 6]
    for step, (parameters, training) in seen.items():
        assert not training
        assert all(torch.equal(p, a) for p, a in zip(parameters, averages[step], strict=True))
    assert [line["work"]["value"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if "work" in line] == [
        1.5
    ] * 3
    plain = trainer(tmp_path / "b")
    plain.run()
    assert all(torch.equal(p, q) for p, q in zip(t.density.parameters(), plain.density.parameters(), strict=True))


def test_maximum_likelihood_and_classes(tmp_path):
    config = changed(noise={"times": "zero"}, model={"classes": True})
    t = trainer(tmp_path, config)
    assert isinstance(t.draws.objective.times, AtZero)
    t.run()
    assert load_density(tmp_path)[0].classes == 10
    line = numbers(tmp_path)[-1]
    assert line["bits_per_dim"] == line["bits_per_dim_zero"]


def test_bfloat16_is_close_to_float32(tmp_path):
    results = {}
    for precision in ("float32", "bfloat16"):
        config = changed(model={"dropout": 0.0}, optim={"steps": 1}, run={"precision": precision})
        trainer(tmp_path / precision, config).run()
        results[precision] = numbers(tmp_path / precision)[0]["bits_per_dim"]
    assert results["float32"] != results["bfloat16"]
    assert results["bfloat16"] == pytest.approx(results["float32"], abs=2e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_density_in_double_precision_is_trained_in_it(tmp_path, accumulate):
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    density = MAF((2,), PROCESS, transforms=1, hidden=(8,)).double()
    optim = OptimConfig(steps=3, batch_size=16, accumulate=accumulate)
    run = RunConfig(accelerator="cpu", threads=1)
    Trainer(launch(run), density, NCMLObjective(PROCESS), Arrays(x), tmp_path, optim, run).run()
    assert {p.dtype for p in density.parameters()} == {torch.float64}
    assert BatchDraws(4, (2,), NCMLObjective(PROCESS), 2, 0, torch.float64)(0).noise.dtype == torch.float64


# What goes wrong.


def test_half_precision_and_a_term_of_the_score_are_refused_together(tmp_path):
    config = changed(run={"precision": "bfloat16"}, noise={"score_matching": 1.0})
    with pytest.raises(UnsupportedError, match=r"run\.precision: got 'bfloat16' and score_matching"):
        trainer(tmp_path, config)


def test_after_a_bad_part_nothing_of_its_step_is_logged_and_a_second_failure_replaces_the_first(tmp_path):
    """With two parts to a batch, the second of which is bad."""
    config = changed(optim={"accumulate": 2}, run={"log_every": 6})
    for rate in (1e-3, 1e-5):
        t = trainer(tmp_path, replace(config, optim=replace(config.optim, learning_rate=rate)))
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        for folder in (tmp_path / "checkpoints").glob("step_*"):
            folder.rename(tmp_path / f"{folder.name}-{rate}")
        original, calls = t.density.forward, []

        def broken(x, times, context=None, original=original, calls=calls, t=t, **edges):
            calls.append(t.step)
            return original(x, times, context, **edges) * (math.nan if calls.count(3) == 2 else 1.0)

        t.density.forward = broken
        with pytest.raises(NonFiniteError):
            t.run()
        assert not t.density.training
        assert t.window.state(t.fabric)[1] == 3 * config.optim.batch_size
        bundle = open_checkpoint(tmp_path / "checkpoints" / "bad_step_00000003")
        own = dict(t.density.named_parameters())
        assert all(torch.equal(bundle.training()[f"parameter.{n}"], p) for n, p in own.items())


def test_a_nan_loss_stops_before_the_step_and_can_be_repeated(tmp_path):
    t = trainer(tmp_path)
    original = t.density.forward

    def broken(x, times, context=None, **edges):
        return original(x, times, context, **edges) * (math.nan if t.step == 3 else 1.0)

    t.density.forward = broken
    with pytest.raises(NonFiniteError, match=r"loss: got nan .*step 3, seed 0, rows of the data \["):
        t.run()
    assert t.step == 3
    assert all(bool(torch.isfinite(p).all()) for p in t.density.parameters())
    assert all(p.grad is None for p in t.density.parameters())
    report = json.loads((tmp_path / "bad_step_00000003.json").read_text())
    assert report["rows"] == t.draws.rows(3).tolist()
    assert report["t"] == t.draws(3).t.tolist()
    # The bundle holds the parameters before the step, and is not taken for a checkpoint to go on from.
    bundle = open_checkpoint(tmp_path / "checkpoints" / "bad_step_00000003")
    own = dict(t.density.named_parameters())
    assert all(torch.equal(bundle.training()[f"parameter.{n}"], p) for n, p in own.items())
    assert open_checkpoint(tmp_path).step == 2


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    t = trainer(tmp_path)
    before = [p.detach().clone() for p in t.density.parameters()]
    next(t.density.parameters()).register_hook(lambda g: g * math.inf)
    with pytest.raises(NonFiniteError, match="gradient: got a norm of"):
        t.run()
    assert all(torch.equal(p, q) for p, q in zip(t.density.parameters(), before, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    def interrupt(step):
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    t = trainer(tmp_path, changed(run={"save_every": 100}), periodic=[Periodic(3, "interrupt", interrupt)])
    assert t.run() == number
    assert signal.getsignal(number) is handler
    assert open_checkpoint(tmp_path).step == t.step == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"optim": {"batch_size": 8, "accumulate": 3}}, r"optim.batch_size: got 8; expected a multiple of 3"),
        ({"run": {"strategy": "nonsense"}}, "nonsense"),
    ],
)
def test_bad_settings(tmp_path, parts, message):
    with pytest.raises(ArgumentError, match=message):
        trainer(tmp_path, changed(**parts))


@pytest.mark.parametrize(
    ("model", "message"),
    [({"features": 12}, "weights of another model"), ({"features": 12, "heads": 3}, "heads is 2, not 3")],
)
def test_another_network_is_refused_whole(tmp_path, model, message):
    trainer(tmp_path / "a").run()
    other = trainer(tmp_path / "b", changed(model=model))
    before = [p.detach().clone() for p in other.density.parameters()]
    with pytest.raises(CheckpointError, match=message):
        other.load(open_checkpoint(tmp_path / "a"))
    assert all(torch.equal(p, q) for p, q in zip(other.density.parameters(), before, strict=True))
    assert other.step == 0


def test_a_folder_with_later_checkpoints_is_refused(tmp_path):
    trainer(tmp_path).run()
    fresh = trainer(tmp_path)
    with pytest.raises(ArgumentError, match="which has step_00000006, later than step 0"):
        fresh.run()
    assert open_checkpoint(tmp_path).step == 6


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".step_00000002.abcd.tmp"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "step_00000004").mkdir()  # a copy without a manifest
    trainer(tmp_path).run()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    assert open_checkpoint(tmp_path / "checkpoints" / "step_00000004").step == 4


def test_loggers_see_nested_numbers(tmp_path):
    seen = []
    t = trainer(tmp_path, periodic=[Periodic(3, "validation", lambda step: {"bits_per_dim": 1.5})])
    t.fabric.log_dict = lambda numbers, step: seen.append((step, numbers))
    t.run()
    assert (3, {"validation/bits_per_dim": 1.5}) in seen
    assert any("learning_rate" in numbers for _, numbers in seen)


@pytest.fixture
def interruptible():
    """Python's handler of SIGINT, also where the tests were started in the background, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_leaves_at_once(capfd):
    """Repeats within seconds are the launcher's; later ones are the user's."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert capfd.readouterr().err.count("Another, seconds later, stops at once.") == 1
        signals._first -= 10.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_is_caught_also_where_nobody_listens(monkeypatch):
    def away(*arguments):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", away)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT


class Tied(NoiseConditionalDensity):
    """Two names for one parameter."""

    def __init__(self):
        super().__init__((1, 8, 8), VPSDE.at_noise(0.25))
        self.a = torch.nn.Linear(64, 64)
        self.b = torch.nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x, t, context=None, *, edges=True):
        return -(self.b(self.a(x.flatten(1))) - 1.0).square().sum(1)


@pytest.mark.filterwarnings("ignore::ncml.errors.LatticeDataWarning")
def test_tied_parameters_are_resumed_exactly(tmp_path):
    base = trainer(tmp_path / "x")

    def build(folder):
        torch.manual_seed(0)
        density, folder = Tied(), tmp_path / folder
        folder.mkdir()
        objective = NCMLObjective(density.process)
        return Trainer(base.fabric, density, objective, base.examples, folder, base.optim, base.run_config)

    whole, part = build("whole"), build("part")
    whole.run()
    part.load(open_checkpoint(tmp_path / "whole" / "checkpoints" / "step_00000004"))
    part.run()
    assert same_state(open_checkpoint(tmp_path / "whole").training(), open_checkpoint(tmp_path / "part").training())


@pytest.mark.filterwarnings("ignore::ncml.errors.LatticeDataWarning")
def test_nothing_to_train(tmp_path):
    t = trainer(tmp_path)
    density = GaussianDensity(t.density.process, torch.zeros(1, 8, 8), 0.5)
    with pytest.raises(ArgumentError, match="without parameters"):
        Trainer(t.fabric, density, t.objective, t.examples, tmp_path, t.optim, t.run_config)


def test_a_process_of_functions_is_recognised():
    """Its repr has an address, which is another one in the next run."""
    processes = [GaussianProcess(partial(torch.cos), partial(torch.sin), T=0.1) for _ in range(2)]
    kinds = [density_kind(GaussianDensity(process, torch.zeros(2), 1.0)) for process in processes]
    assert kinds[0] == kinds[1]
    assert " at 0x" not in kinds[0]["process"]


@pytest.mark.parametrize("noise", [{"std_in_levels": 3.0}, {"process": "ve"}])
def test_another_process_is_refused(tmp_path, noise):
    """The weights would fit: only what they belong to differs."""
    trainer(tmp_path / "a").run()
    checkpoint = open_checkpoint(tmp_path / "a")
    other = trainer(tmp_path / "b", changed(noise=noise))
    with pytest.raises(CheckpointError, match=r"another density: process is VPSDE\(.*, not V"):
        other.load(checkpoint)
    with pytest.raises(CheckpointError, match="another density"):
        load_into(other.density, checkpoint)
    assert other.step == 0
    fitting = trainer(tmp_path / "c").density
    load_into(fitting, checkpoint)
    assert same_state(dict(fitting.state_dict()), checkpoint.model())


def test_strategies_that_split_the_model_are_refused(tmp_path):
    t = trainer(tmp_path)
    t.fabric._strategy = object()
    with pytest.raises(UnsupportedError, match=r"run.strategy: got object; expected 'auto' or a 'ddp' one"):
        Trainer(t.fabric, t.density, t.objective, t.examples, tmp_path, t.optim, t.run_config)


def test_weights_without_times_are_refused():
    t = UniformTimes()(4, PROCESS)[1]
    objective = NCMLObjective(PROCESS)
    with pytest.raises(ArgumentError, match="weight: got one without t"):
        objective(MAF((2,), PROCESS, hidden=(4,)), torch.zeros(4, 2), weight=t)
    with pytest.raises(ArgumentError, match=r"weight: got shape \(3,\); expected \(4,\)"):
        objective(MAF((2,), PROCESS, hidden=(4,)), torch.zeros(4, 2), t=0.01, weight=torch.ones(3))
    with pytest.raises(ArgumentError, match="weight: got 1 non-finite"):
        objective(
            MAF((2,), PROCESS, hidden=(4,)), torch.zeros(4, 2), t=0.01, weight=torch.tensor([1.0, math.nan, 1.0, 1.0])
        )
    with pytest.raises(TypeError, match="weight: got float"):
        objective(MAF((2,), PROCESS, hidden=(4,)), torch.zeros(4, 2), t=0.01, weight=1.0)


@pytest.mark.parametrize("classes", [False, True])
def test_recomputed_blocks_change_nothing(tmp_path, classes):
    """The same gradients, with dropout, from fewer activations."""
    states, saved = {}, {}
    for recompute in (False, True):
        t = trainer(tmp_path / str(recompute), changed(model={"recompute": recompute, "classes": classes}))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            t.density.train()
            context = torch.arange(4) if classes else None
            t.density(t.examples.batch(torch.arange(4)), torch.zeros(4), context)
        saved[recompute] = sum(kept)
        t.run()
        states[recompute] = open_checkpoint(t.folder).training()
    assert same_state(states[False], states[True])
    assert saved[True] < 0.7 * saved[False]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_give_the_same_likelihood():
    """By dynamo and autograd's tracer, without a C++ compiler; forward, backward, training and evaluation."""
    density = build_density(CONFIG, DataKind((1, 8, 8), 17))
    compiled = build_density(CONFIG, DataKind((1, 8, 8), 17))
    calls = []
    for block in compiled.blocks():
        block.compile(backend=lambda graph, inputs: calls.append(1) or graph.forward)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    t = torch.tensor([0.001, 0.0005, density.process.T])
    for training in (False, True):
        density.train(training), compiled.train(training)
        grads = []
        for d in (density, compiled):
            torch.manual_seed(0)
            grads.append(torch.autograd.grad(d(x, t).sum(), list(d.parameters())))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert len(calls) >= len(set(map(type, compiled.blocks())))
    torch._dynamo.reset()


def test_the_numbers_of_a_line_are_named_by_where_they_stand():
    line = {"step": 3, "loss": 1.5, "note": "x", "validation": {"bits_per_dim": 2, "step": 1}}
    assert dict(numbers_of(line)) == {"loss": 1.5, "validation/bits_per_dim": 2}


@pytest.fixture
def asked(monkeypatch):
    """What Fabric is asked for."""
    asked = {}

    class Recorded:
        def __init__(self, **settings):
            asked.update(settings)

        def launch(self):
            pass

    monkeypatch.setattr("lightning_fabric.Fabric", Recorded)
    return asked


def test_processes_are_shared_out_among_machines(asked, monkeypatch):
    """As torchrun's environment says: six processes, two on each of three machines."""
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch(RunConfig(accelerator="cpu"))
    assert (asked["devices"], asked["num_nodes"]) == (2, 3)
    assert isinstance(asked["num_nodes"], int)


@pytest.mark.parametrize(
    ("accelerator", "gpu", "taken"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", False, "cuda"),
    ],
)
def test_an_accelerator_is_chosen_where_none_is_named(asked, monkeypatch, accelerator, gpu, taken):
    """A CUDA device if there is one, else the processor: Fabric would also take one without float64."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    launch(RunConfig(accelerator=accelerator))
    assert asked["accelerator"] == taken
