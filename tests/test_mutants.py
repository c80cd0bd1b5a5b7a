"""The driver of mutants: that changes take effect, that what they do is seen, and how tests are chosen."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import coverage
import pytest

from tests import mutants
from tests.covering import ROOT, SIGNATURES, Covering

SOURCE = """
import functools

LIMIT = 3

def plain(x, by=2):
    return x + by

def outer(x):
    def inner(y):
        return x * y
    return inner

class Thing:
    @property
    def double(self):
        return plain(1) * 2

    @functools.lru_cache
    def many(self):
        return [i + 1 for i in range(LIMIT)]
"""


@pytest.fixture
def loaded(tmp_path):
    path = tmp_path / "loaded.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("loaded", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return path, module


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        ("x + by", "x - by", "plain(5)", 3),
        ("x * y", "x / y", "outer(6)(2)", 3),
        ("plain(1) * 2", "plain(1) + 2", "Thing().double", 5),
        ("i + 1", "i + 2", "Thing().many()", [2, 3, 4]),
    ],
)
def test_a_change_in_a_function_takes_effect_where_it_is_known_already(loaded, old, new, before, after):
    path, module = loaded
    names = dict(vars(module))  # what another module would have imported
    assert eval(before, names) != after
    mutants.apply(path, SOURCE, SOURCE.replace(old, new))
    assert eval(before, names) == after


@pytest.mark.parametrize(("old", "new"), [("LIMIT = 3", "LIMIT = 4"), ("by=2", "by=3"), ("class Thing", "class Other")])
def test_a_change_at_import_needs_another_process(loaded, old, new):
    path, _ = loaded
    with pytest.raises(mutants.AtImportError):
        mutants.apply(path, SOURCE, SOURCE.replace(old, new))


LENGTHS = "density/lengths.py"
PLANTED = [  # of density/lengths.py, and what the driver must say
    ("return places < per_example(lengths, x)", "return places <= per_example(lengths, x)", "killed"),
    ("return places < per_example(lengths, x)", "return per_example(lengths, x) > places", "survived"),
    ("return places < per_example(lengths, x)", "\n    while True: pass", "killed"),
    ("return places < per_example(lengths, x)", "import os; os.abort()", "killed"),
    ("PADDING = -1.0", "PADDING = None", "killed"),
]
TEST = "test_what_lies_behind_a_row_never_matters"
PROGRAM = f"""
import json, sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
import pytest
from tests import mutants

class Cover:
    seconds = defaultdict(lambda: 0.1)
    def chosen(self, items, *where):
        return [item for item in items if item.originalname == {TEST!r}][:2]

mutants.NO_END = (0.3, 1)
source = Path({str(ROOT / "src" / "ncml" / LENGTHS)!r}).read_text()
those = [
    mutants.Mutant({LENGTHS!r}, str(i), 1, 1, (1, 1), source.replace(old, new), ())
    for i, (old, new, _) in enumerate([("", "", ""), *{PLANTED!r}])
]
args = Namespace(out=Path(sys.argv[1]), seconds=9.0, again=False, control=False)
pytest.main([*mutants.PLAIN, "tests/test_lengths.py"], plugins=[mutants.Running(those, Cover(), args)])
"""


def test_what_it_must_find(tmp_path):
    """A wrong comparison, one that changes nothing, no end, a crash, a change at import; not what is there already."""
    out = tmp_path / "results.jsonl"
    known = {"name": f"{LENGTHS}:1 0: ", "result": "killed", "by": "an earlier run"}
    out.write_text(json.dumps(known) + "\n")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = mutants.recorded(out)
    assert [row["result"] for row in rows.values()] == ["killed", *(result for *_, result in PLANTED)]
    assert rows[known["name"]] == known


def test_tests_are_chosen_by_the_lines_they_execute(tmp_path):
    """The fastest case of each function first; fixtures count for all who use them; what runs at import, for none."""
    path = str(ROOT / "src" / "ncml" / LENGTHS)
    lines = {"a.py::one[x]": {5}, "a.py::one[y]": {5}, "a.py::two": {6}, "fixture model b.py": {5}, "": {1, 5, 6}}
    data = coverage.CoverageData(str(tmp_path / "coverage"))
    for context, those in lines.items():
        data.set_context(context)
        data.add_lines({path: those})
    seconds = {"a.py::one[x]": 2.0, "a.py::one[y]": 1.0, "a.py::two": 0.1, "b.py::three": 3.0, "b.py::four": 0.1}
    seconds[f"{SIGNATURES}::five"] = 0.2
    data.write()
    (tmp_path / "seconds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seconds.items()))
    cover = Covering(tmp_path)
    names = {name: ["model"] if name == "b.py::three" else [] for name in [*seconds, "a.py::unknown"]}
    items = [SimpleNamespace(nodeid=name, fixturenames=fixtures) for name, fixtures in names.items()]

    def chosen(limit, *spans):
        return [item.nodeid for item in cover.chosen(items, limit, LENGTHS, *spans)]

    assert chosen(9.0, (5, 5)) == ["a.py::one[y]", "b.py::three", "a.py::one[x]"]
    assert chosen(4.5, (5, 5)) == ["a.py::one[y]", "b.py::three"]
    assert chosen(9.0, (5, 6)) == ["a.py::two", "a.py::one[y]", "b.py::three", "a.py::one[x]"]
    assert chosen(9.0, (1, 1), (6, 7)) == ["a.py::two", f"{SIGNATURES}::five"]
    assert chosen(9.0, (7, 7)) == [f"{SIGNATURES}::five"]


def test_equivalent_mutants_are_no_part_of_the_score():
    results = ["killed", "killed", "survived", "killed", "survived"]
    rows = [{"name": str(i), "module": "noise/sde.py", "result": result} for i, result in enumerate(results)]
    found = mutants.summary(rows, {"2": "the same function", "3": "killed all the same", "9": "of another run"})
    assert (found["killed"], found["survived"], found["equivalent"], found["score"]) == (3, 1, 1, 0.75)
    assert found["survivors"] == [{"name": "2", "equivalent": "the same function"}, {"name": "4", "equivalent": None}]
