"""The driver that disturbs runs: each fault once, and that it sees what did not hold."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest

from tests.faults import Faults


@pytest.fixture(scope="module")
def those(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"), seed=0)


@pytest.fixture(autouse=True)
def _afresh(those):
    those.failed = []


def test_a_few_kills(those):
    report = those.kills(3)
    assert those.failed == []
    assert report["kills"] == 3


@pytest.mark.parametrize("fault", ["full_disk", "read_only", "two_runs", "clock"])
def test_each_fault(those, fault):
    getattr(those, fault)()
    assert those.failed == []


def test_other_weights_are_seen(those):
    folder = those.scratch / "other"
    assert those.run(folder, lambda: None, "--run.seed", "1") == 0
    those.same_as_undisturbed(folder, "another seed")
    assert [what.partition(": ")[2] for what in those.failed] == [
        "the same weights and moments as undisturbed",
        "the same log as undisturbed",
    ]


def test_a_damaged_checkpoint_is_seen(those):
    folder = those.scratch / "damaged"
    shutil.copytree(those.reference, folder)
    for path in folder.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    those.same_as_undisturbed(folder, "damaged")
    assert len(those.failed) == 1
    assert "model.safetensors" in those.failed[0]


def test_two_runs_in_one_folder_are_seen(those, monkeypatch):
    """Without the lock."""
    monkeypatch.setattr("ncml.cli.train.only_here", lambda folder: nullcontext())
    shutil.rmtree(those.scratch / "shared", ignore_errors=True)
    those.two_runs()
    assert any(what.startswith("a second run: status 2, not") for what in those.failed)
