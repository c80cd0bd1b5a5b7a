"""The metadata agree with each other, and the package keeps its promises about what it needs."""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ncml
from tests import strict_client

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(r) for r in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(r) for r in rows] for name, rows in PROJECT["optional-dependencies"].items()}
OPTIONAL = ["hypothesis", "lightning_fabric", "matplotlib", "nflows", "PIL", "pooch", "safetensors", "scipy"]
OPTIONAL += ["sklearn", "torchvision", "tqdm", "tyro", "zuko"]


def expanded(extra: str) -> set[str]:
    """The names that an extra brings, through the extras that it refers to."""
    names = set()
    for requirement in EXTRAS[extra]:
        if requirement.name == "ncml":
            names.update(*(expanded(inner) for inner in requirement.extras))
        else:
            names.add(requirement.name)
    return names


def test_versions_agree():
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert PROJECT["version"] == ncml.__version__ == citation == changelog


def test_core_requirements_are_few_and_open():
    assert [r.name for r in CORE] == ["torch", "numpy", "typing-extensions"]
    for requirement in CORE:
        assert [s.operator for s in requirement.specifier] == [">="], requirement


def test_every_requirement_has_one_floor():
    """That ``nox -s floors`` tries: a lower one of another extra would never be installed."""
    floors: dict[str, set[str]] = {}
    for requirement in (*CORE, *(r for rows in EXTRAS.values() for r in rows)):
        for specifier in requirement.specifier:
            if specifier.operator == ">=":
                floors.setdefault(requirement.name, set()).add(specifier.version)
    assert {name: bounds for name, bounds in floors.items() if len(bounds) > 1} == {}


def test_the_torch_bound_of_dev_is_that_of_the_constraints():
    constraint = Requirement((ROOT / "constraints.txt").read_text().strip())
    (floor,) = CORE[0].specifier
    (dev,) = (r for r in EXTRAS["dev"] if r.name == "torch")
    assert constraint.name == "torch"
    assert dev.specifier == SpecifierSet(f"{floor},{constraint.specifier}")
    assert [r for name, rows in EXTRAS.items() if name != "dev" for r in rows if r.name == "torch"] == []


def test_dev_brings_every_other_extra():
    everything = set().union(*(expanded(extra) for extra in EXTRAS if extra != "dev"))
    assert everything - expanded("dev") == set()


def test_no_extra_brings_torchvision_or_a_local_build():
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert not any("torchvision" in expanded(extra) for extra in EXTRAS)
    assert "+cpu" not in text
    assert "===" not in text


def test_every_subpackage_imports_without_the_extras():
    """Evaluation, the command line and the rest too: what needs an extra asks for it when it is used."""
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({OPTIONAL}))  # importing any of them raises
import ncml
for info in pkgutil.iter_modules(ncml.__path__, "ncml."):
    if info.name != "ncml.__main__":  # runs the command line
        importlib.import_module(info.name)
print(len([name for name in sys.modules if name.startswith("ncml.")]))
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.stderr == ""
    assert int(result.stdout) > 30


def ci_commands() -> list[str]:
    """What CI runs of nox, in order: the command of the README and the browser's session."""
    return [line for line in (ROOT / ".ci/run").read_text().splitlines() if "nox --no-venv" in line]


def test_ci_runs_the_command_of_the_readme():
    command, _ = ci_commands()
    assert command.startswith("python3 -m venv .venv && ")
    assert command in (ROOT / "README.md").read_text().splitlines()


def test_ci_runs_the_default_sessions_and_the_browser():
    default, browser = (command.partition(" --no-venv -s ")[2].split() for command in ci_commands())
    noxfile = ast.parse((ROOT / "noxfile.py").read_text()).body
    assignments = {ast.unparse(node.targets[0]): node.value for node in noxfile if isinstance(node, ast.Assign)}
    assert default == ast.literal_eval(assignments["nox.options.sessions"])
    assert browser == ["site"]
    assert "site" in [node.name for node in noxfile if isinstance(node, ast.FunctionDef)]


def test_ci_fails_clearly_without_the_data(tmp_path):
    script = tmp_path / "clone/.ci/run"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / ".ci/run").read_text())
    result = subprocess.run(["bash", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"got no folder {tmp_path}/shared/data" in result.stderr
    assert not (tmp_path / "clone/.venv").exists()


def test_the_package_is_typed():
    assert (ROOT / "src/ncml/py.typed").is_file()


def test_the_strictly_typed_program_runs():
    """That it is well typed is for the session of types, which checks it with the library."""
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert mypy["strict"]
    assert "tests/strict_client.py" in mypy["files"]
    found = strict_client.main()
    assert all(map(math.isfinite, found.values()))
    assert found["noise"] == pytest.approx(0.3)


def test_every_extra_for_users_is_in_the_table_of_the_installation():
    page = (ROOT / "docs" / "learn" / "install.md").read_text()
    table = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    listed = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert listed == EXTRAS.keys() - {"test", "lint", "docs", "browser"}  # parts of dev
