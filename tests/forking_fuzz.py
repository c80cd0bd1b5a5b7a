"""The driver that damages files: a few cases of each kind, and that it finds what it is for."""

from __future__ import annotations

import faulthandler
import os
import time
from dataclasses import replace

import pytest

from tests import fuzz

KINDS = fuzz.kinds()


@pytest.mark.parametrize("name", KINDS)
def test_a_few_damaged_files_of_each_kind(name, monkeypatch):
    monkeypatch.setattr(fuzz, "kinds", lambda: {name: KINDS[name]})
    report = fuzz.fuzz(40, seed=1)
    assert report["findings"] == 0, report["kinds"][name]["findings"]
    assert report["kinds"][name]["cases"] == 40
    assert report["kinds"][name]["refused"] > 5


def careless(path):
    return path.read_bytes()[40]


def silent(path):
    """A reader of checkpoints that gives what is there."""
    return (path.parent / "model.safetensors").read_bytes()


def dies(path):
    if len(path.read_bytes()) < 30:
        faulthandler.disable()  # which would print a page
        os.abort()


def greedy(path):
    if len(path.read_bytes()) < 30:
        bytes(2 * fuzz.HEADROOM)


def endless(path):
    if len(path.read_bytes()) < 30:
        while time.monotonic():
            pass


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (careless, "IndexError"),
        (silent, "another value"),
        (dies, "the process died"),
        (greedy, "MemoryError"),
        (endless, "the process died"),
    ],
)
def test_what_it_must_find(read, result, monkeypatch, tmp_path):
    """Planted readers; every finding can be made again, and is kept."""
    kind = KINDS["checkpoint"] if read is silent else replace(KINDS["idx"], beside={})
    monkeypatch.setattr(fuzz, "kinds", lambda: {"own": replace(kind, read=read)})
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.2)
    report = fuzz.fuzz(15, seed=0, keep=tmp_path)
    own = report["kinds"]["own"]
    assert own["cases"] == 15
    assert report["findings"] >= 1
    assert result in own["findings"][0]["result"]
    first = own["findings"][0]
    assert (tmp_path / f"own-{first['case']}-{first['file']}").read_bytes() == fuzz.case(kind, "own", 0, first["case"])[
        1
    ]
