"""Checkpoints: whole or absent, every damaged byte found, nothing unpickled."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ncml import VESDE, Lattice
from ncml.cli import main
from ncml.data import ImageSource
from ncml.densities import MADE, MAF, NCPN, CallableDensity, CausalTransformer, TransformerFlow
from ncml.errors import ArgumentError, CheckpointError, NCMLError
from ncml.training import (
    TrainConfig,
    load_density,
    load_into,
    load_state,
    open_checkpoint,
    read_metrics,
    save_checkpoint,
    save_density,
)
from ncml.training.checkpoint import density_kind, find_checkpoint, manifest_text
from ncml.training.config import from_dict, to_dict
from ncml.training.migration import migrated_config

MODEL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.float64)}
TRAINING = {"parameter.a": torch.zeros(2, 3)}


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "step_00000007", 7, {"config": {"x": 1}}, MODEL, TRAINING)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip(saved, tmp_path):
    checkpoint = open_checkpoint(saved)
    assert (checkpoint.step, checkpoint.info) == (7, {"config": {"x": 1}})
    assert same(checkpoint.model(), MODEL)
    assert same(checkpoint.training(), TRAINING)
    assert open_checkpoint(tmp_path).folder == saved
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000007"]


def test_views_and_other_layouts_are_saved_as_they_read(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {
        "t": base.t() if base.ndim == 2 else base.permute(1, 0, 2, 3),
        "c": base.to(memory_format=torch.channels_last),
    }
    tensors["shared"] = tensors["t"]
    save_checkpoint(tmp_path / "step_00000001", 1, {}, tensors)
    assert same(open_checkpoint(tmp_path).model(), tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_only_tensors_that_share_memory_are_copied(dtype, tmp_path):
    """Saving does not take the memory of the model a second time."""

    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.clone.default:
                copied.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    whole = torch.arange(12).reshape(3, 4).to(dtype)
    tensors = {
        "whole": whole,
        "again": whole,
        "part": torch.arange(10).to(dtype)[:5],
        "more": torch.ones(7, 2).to(dtype),
    }
    with Copies():
        save_checkpoint(tmp_path / "step_00000001", 1, {}, tensors)
    assert copied == [(3, 4), (5,)]
    assert same(open_checkpoint(tmp_path).model(), tensors)


def test_the_latest_is_taken(tmp_path):
    for step in (9, 10, 100_000_000):
        save_checkpoint(tmp_path / "checkpoints" / f"step_{step:08d}", step, {}, MODEL)
    (tmp_path / "checkpoints" / "step_99").mkdir()
    (tmp_path / "checkpoints" / ".step_00000200.ab.tmp").mkdir()
    assert find_checkpoint(tmp_path).name == "step_100000000"


def test_an_evaluation_copy_needs_no_training_state(saved):
    (saved / "training.safetensors").unlink()
    checkpoint = open_checkpoint(saved)
    assert same(checkpoint.model(), MODEL)
    with pytest.raises(CheckpointError, match=r"training.safetensors: not there"):
        checkpoint.training()


def test_tied_tensors_are_stored_twice(tmp_path):
    a = torch.arange(6.0)
    tensors = {"a": a, "b": a, "half": a[:3]}
    save_checkpoint(tmp_path / "step_00000001", 1, {}, tensors)
    assert same(open_checkpoint(tmp_path).model(), tensors)


def test_info_is_json(tmp_path):
    save_checkpoint(tmp_path / "step_00000001", 1, {"a": {2: "two", 10: "ten"}}, MODEL)
    assert open_checkpoint(tmp_path).info == {"a": {"2": "two", "10": "ten"}}
    for bad in ({"a": float("nan")}, {"a": torch.zeros(1)}):
        with pytest.raises(ArgumentError, match="info: got what JSON cannot hold"):
            save_checkpoint(tmp_path / "step_00000002", 2, bad, MODEL)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_never_overwritten(saved):
    with pytest.raises(ArgumentError, match="exists"):
        save_checkpoint(saved, 8, {}, MODEL)
    assert open_checkpoint(saved).step == 7


# Damage.


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "training.safetensors"])
def test_every_flipped_bit_is_found(saved, name):
    """All bits of the manifest and of both files: torch's own format misses most of them."""
    path = saved / name
    raw = path.read_bytes()
    for i in range(len(raw)):
        for bit in range(8) if name != "checkpoint.json" or i % 3 == 0 else (i % 8,):
            path.write_bytes(raw[:i] + bytes([raw[i] ^ (1 << bit)]) + raw[i + 1 :])
            with pytest.raises(CheckpointError):
                open_checkpoint(saved)
    path.write_bytes(raw)
    assert open_checkpoint(saved).step == 7


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "training.safetensors"])
def test_every_truncation_is_found(saved, name):
    raw = (saved / name).read_bytes()
    for n in range(len(raw)):
        (saved / name).write_bytes(raw[:n])
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            open_checkpoint(saved)


def test_mutated_files_are_refused_or_equal(saved):
    """2,000 mutations of several bytes, insertions and swaps, with a fixed seed."""
    draw = random.Random(0)
    names = ["checkpoint.json", "model.safetensors", "training.safetensors"]
    for _ in range(2000):
        path = saved / draw.choice(names)
        original = path.read_bytes()
        raw = bytearray(original)
        for _ in range(draw.randint(1, 4)):
            i, byte = draw.randrange(len(raw)), draw.randrange(256)
            what = draw.choice(["insert", "remove", "replace"])
            raw[i : i + (what != "insert")] = b"" if what == "remove" else bytes([byte])
        path.write_bytes(raw)
        if bytes(raw) == original:
            continue
        with pytest.raises(CheckpointError):
            open_checkpoint(saved)
        path.write_bytes(original)


def resealed(saved, **changes):
    """The checkpoint with a changed manifest whose hash is right again."""
    manifest = json.loads((saved / "checkpoint.json").read_text())["manifest"]
    (saved / "checkpoint.json").write_text(manifest_text({**manifest, **changes}))


class Canary:
    def __reduce__(self):
        return (os.mkdir, (os.environ["NCML_CANARY"],))


def test_a_pickle_is_never_run(saved, tmp_path, monkeypatch):
    """Not even one whose hash is in the manifest."""
    import hashlib

    canary = tmp_path / "canary"
    monkeypatch.setenv("NCML_CANARY", str(canary))
    payload = pickle.dumps(Canary())
    (saved / "model.safetensors").write_bytes(payload)
    with pytest.raises(CheckpointError):
        open_checkpoint(saved)
    files = {"model.safetensors": {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}}
    resealed(saved, files=files)
    with pytest.raises(CheckpointError, match="not safetensors"):
        open_checkpoint(saved).model()
    assert not canary.exists()
    pickle.loads(payload)  # power: the canary does sing
    assert canary.exists()


def test_a_newer_format_is_named(saved):
    resealed(saved, format=3)
    with pytest.raises(CheckpointError, match="format 3; expected at most 2"):
        open_checkpoint(saved)


# A run that version 0.1 left: NCPN with features=4, T at two levels, three steps on digits.

OLD = Path(__file__).parent / "runs" / "version_0_1"
OLD_LOG_PROB = {  # of its first four mixed test images, as version 0.1 gave them
    0.0: [-29.872093200683594, -29.17014503479004, -14.8696928024292, -12.930408477783203],
    0.01: [-81.24219512939453, -80.42768859863281, -87.41926574707031, -88.80482482910156],
}
OLD_LOSSES = [76.35563349723816, 76.37086772918701]  # of the steps 4 and 5, as version 0.1 went on


def test_a_checkpoint_of_version_01_is_the_same_model():
    density, config, kind, checkpoint = load_density(OLD)
    assert (checkpoint.step, checkpoint.info["training_examples"]) == (3, 1437)
    assert (config.model.name, config.model.settings.features, config.noise.std_in_levels) == ("ncpn", 4, 2.0)
    assert (kind.shape, kind.levels, len(kind.classes)) == ((1, 8, 8), 17, 10)
    x = ImageSource("digits").load(train=False).mixed(4).batch(slice(None))
    for t, expected in OLD_LOG_PROB.items():
        assert density.log_prob(x, t).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_run_of_version_01_goes_on(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--optim.steps", "5"]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["loss"] for line in lines[-2:]] == pytest.approx(OLD_LOSSES, rel=1e-5)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"]["name"] == "ncpn"
    assert "network" not in stored
    assert main(["sample", str(tmp_path / "run"), "--images", "1", "--steps", "1"]) == 0


def test_every_setting_of_version_01_has_a_place():
    network = {"preset": "small", "heads": 2, "classes": True, "label_dropout": 0.3, "compile": True}
    old = {"network": {**network, "checkpoint": True}, "noise": {"process": "ve", "levels": 3.0, "times": "zero"}}
    new = from_dict(TrainConfig, migrated_config(old))
    assert (new.model.classes, new.model.compile, new.model.recompute) == (True, True, True)
    assert (new.model.settings.preset, new.model.settings.heads) == ("small", 2)
    assert new.model.settings.label_dropout == 0.3
    assert (new.noise.std_in_levels, new.noise.process, new.noise.times) == (3.0, "ve", "zero")
    assert migrated_config(to_dict(new)) == to_dict(new)  # today's is left alone
    assert migrated_config({"run": {"seed": 1}}) == {"run": {"seed": 1}}  # as is what the defaults are


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", '{"manifest": 3, "sha256": ""}', "[" * 100_000])
def test_other_json_is_refused(saved, text):
    (saved / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        open_checkpoint(saved)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_checkpoint(tmp_path / "nowhere")


# Loading.


def test_what_does_not_fit_leaves_the_model_as_it_was():
    model = torch.nn.Linear(2, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for state in (
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(4)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3, dtype=torch.float64)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "more": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match=r"bias|more"):
            load_state(model, state)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    load_state(model, {"weight": torch.zeros(3, 2), "bias": torch.ones(3)})
    assert model.bias.tolist() == [1.0, 1.0, 1.0]


VE = VESDE.linear(0.5)
SMALL = {"width": 16, "layers": 1}


def transformer(**options):
    return CausalTransformer((6, 1), VE, **{**SMALL, "heads": 2, **options})


def flow(**options):
    return TransformerFlow((1, 4, 4), VE, patch=2, blocks=2, **{**SMALL, "heads": 2, **options})


def made(**options):
    return MADE((3,), VE, hidden=(8,), **options)


def maf(**options):
    return MAF((3,), VE, transforms=2, hidden=(8,), **options)


def ncpn(**options):
    return NCPN.preset("tiny", (1, 4, 4), VE, lattice=Lattice(17), **options)


def own(**options):
    return CallableDensity(torch.nn.Bilinear(3, 10, 1), (3,), VE, **options)


@pytest.mark.parametrize(
    ("build", "other", "named"),
    [
        (transformer, {"heads": 4}, "heads is 2, not 4"),
        (transformer, {"head": "gaussian"}, "head is logistic, not gaussian"),
        (transformer, {"noise_features": 10, "context_features": 6}, "noise_features is 16, not 10"),
        (lambda **options: transformer().extended(20, **options), {"overlap": 2}, "overlap is 3, not 2"),
        (lambda **options: transformer(**options).extended(20, 2), {"heads": 4}, "heads is 2, not 4"),
        (lambda **options: maf(**options).under(VESDE.linear(0.4)), {"data_std": 0.3}, "data_std is None, not 0.3"),
        (flow, {"heads": 4}, "heads is 2, not 4"),
        (flow, {"max_scale": None}, "max_scale is 10.0, not None"),
        (flow, {"data_std": 0.3}, "data_std is None, not 0.3"),
        (flow, {"noise_features": 10, "context_features": 6}, "noise_features is 16, not 10"),
        (made, {"head": "gaussian"}, "head is logistic, not gaussian"),
        (made, {"noise_features": 10, "context_features": 6}, "noise_features is 16, not 10"),
        (made, {"order": (2, 1, 0)}, "another order"),
        (
            lambda **options: made(**{"linear_components": 1, **options}),
            {"linear_components": 2},
            "linear_components is 1, not 2",
        ),
        (maf, {"data_std": 0.3}, "data_std is None, not 0.3"),
        (maf, {"noise_features": 10, "context_features": 6}, "noise_features is 16, not 10"),
        (ncpn, {"heads": 2}, "heads is 4, not 2"),
        (
            lambda **options: own(**{"features": 10, **options}),
            {"features": 4, "context_features": 6},
            "features is 10, not 4",
        ),
    ],
)
def test_weights_are_refused_where_they_are_another_function(build, other, named, tmp_path):
    """The names and shapes of all tensors are the same: only a setting differs."""
    density, different = build(), build(**other)
    before = {name: tensor.clone() for name, tensor in different.state_dict().items()}
    assert {name: t.shape for name, t in density.state_dict().items()} == {name: t.shape for name, t in before.items()}
    folder = save_density(density, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=named):
        load_into(different, folder)
    assert same(dict(different.state_dict()), before)
    load_into(again := build(), folder)
    assert same(dict(again.state_dict()), dict(density.state_dict()))


def test_a_checkpoint_that_knows_no_hidden_settings_is_read(tmp_path):
    density, again = transformer(), transformer()
    kind = {name: value for name, value in density_kind(density).items() if name not in ("settings", "parts")}
    folder = save_checkpoint(tmp_path / "old", 0, {"density": kind}, density.state_dict())
    load_into(again, folder)
    assert same(dict(again.state_dict()), dict(density.state_dict()))


def test_at_most_ten_differences_are_listed():
    with pytest.raises(CheckpointError, match="and 20 more"):
        load_state(torch.nn.Identity(), {f"w{i:02d}": torch.zeros(1) for i in range(30)})


# Writing.


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A file may not grow beyond 20 kB: the write fails, the older checkpoint stays."""
    script = textwrap.dedent("""
        import resource, signal, sys, torch
        from ncml.training import save_checkpoint
        save_checkpoint(sys.argv[1] + "/step_00000001", 1, {}, {"a": torch.zeros(10)})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save_checkpoint(sys.argv[1] + "/step_00000002", 2, {}, {"a": torch.zeros(100_000)})
        except OSError as error:
            print("refused", error.errno)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused 27")  # EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert open_checkpoint(tmp_path).step == 1


KILLED = textwrap.dedent("""
    import os, random, signal, sys, time, torch
    from pathlib import Path
    from ncml.training import open_checkpoint, save_checkpoint

    torch.set_num_threads(1)
    folder, draw, opened = Path(sys.argv[1]), random.Random(0), 0
    big = {"a": torch.arange(200_000.0)}
    save_checkpoint(folder / "warm", 0, {}, big, big)
    second = time.monotonic()
    save_checkpoint(folder / "warmer", 0, {}, big, big)
    one = time.monotonic() - second
    for round in range(100):
        child = os.fork()
        if child == 0:
            step = max([int(p.name[5:]) for p in folder.glob("step_*")], default=0)
            while True:
                step += 1
                save_checkpoint(folder / f"step_{step:08d}", step, {"step": step}, big, big)
        time.sleep(draw.uniform(0.0, 5.0 * one))
        os.kill(child, 9)
        os.waitpid(child, 0)
        found = sorted(folder.glob("step_*"))
        if found:
            checkpoint = open_checkpoint(folder)
            assert checkpoint.step == checkpoint.info["step"] == int(found[-1].name[5:])
            assert torch.equal(checkpoint.model()["a"], big["a"])
            opened += 1
            for old in found[:-1]:
                for f in old.iterdir(): f.unlink()
                old.rmdir()
    print(opened, sum(1 for p in folder.iterdir() if p.name.endswith(".tmp")))
""")


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ncml.training.checkpoint.os.replace", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)") as error:
        save_checkpoint(tmp_path / "step_00000001", 1, {}, {"w": torch.zeros(2)})
    assert error.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def test_killed_while_saving(tmp_path):
    """Kills at random instants of a process that does nothing but save: what is there can be read."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened, interrupted = map(int, done.stdout.split())
    assert opened >= 75
    assert interrupted >= 10  # power: many of the kills did hit a save


def test_errors_are_ncml_errors():
    assert issubclass(CheckpointError, NCMLError)
    assert issubclass(CheckpointError, OSError)
