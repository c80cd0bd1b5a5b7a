"""What imports what: optional libraries stay out of ``import ncml``, and imports point one way."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ncml

SOURCE = Path(ncml.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"errors"},
    {"_checks", "_files", "_progress"},
    {"lattice"},
    {"noise"},
    {"sde", "levels"},
    {"density"},
    {"times", "score"},
    {"objective", "sampling"},
    {"ncml"},
    {"nn"},
    {"densities"},
    {"data", "evaluation"},
    {"training"},
    {"estimator"},
    {"cli"},
)
"""Lowest first. A module imports from lower layers, and from its own package; "ncml" is the package itself."""

LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}

INTERFACES = {"errors", "_checks", "lattice", "noise", "density", "times", "objective", "score", "sampling.base"}
"""All that ``ncml.testing`` may see: it must not treat the bundled classes better than a user's."""


def part_of(module: Path) -> str:
    """The name in LAYERS of a source file."""
    first = module.relative_to(SOURCE).parts[0]
    return "ncml" if first == "__init__.py" else first.removesuffix(".py")


def imports_of(module: Path) -> Iterator[str]:
    """What a source file imports from the package, anywhere in it: "density", "nn.heads", "ncml", ..."""
    for node in ast.walk(ast.parse(module.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            submodules = [
                a.name for a in node.names if (SOURCE / f"{a.name}.py").exists() or (SOURCE / a.name).is_dir()
            ]
            names = [f"ncml.{name}" for name in submodules] if node.module == "ncml" and submodules else [node.module]
        for name in names:
            if name == "ncml":
                yield "ncml"
            elif name.startswith("ncml."):
                yield name.removeprefix("ncml.")


def test_every_part_has_a_layer():
    parts = {part_of(module) for module in MODULES} - {"testing"}
    assert parts - LAYER_OF.keys() == set()
    assert len(MODULES) > 30


@pytest.mark.parametrize("part", sorted({part_of(m) for m in MODULES} - {"testing"}))
def test_imports_point_one_way(part):
    for module in MODULES:
        if part_of(module) == part:
            for name in imports_of(module):
                other = name.split(".")[0]
                assert other == part or LAYER_OF[other] < LAYER_OF[part], f"{module.name} imports ncml.{name}"


def test_testing_sees_the_interfaces_only():
    modules = [module for module in MODULES if part_of(module) == "testing"]
    assert modules
    for module in modules:
        for name in imports_of(module):
            assert name in INTERFACES or name.split(".")[0] == "testing", f"{module.name} imports ncml.{name}"


def test_the_walk_sees_imports():
    """Power: the helper above finds what is known to be there."""
    assert set(imports_of(SOURCE / "sde.py")) == {"_checks", "errors", "noise"}
    assert {"sde", "sampling", "density"} <= set(imports_of(SOURCE / "__init__.py"))
    assert "sampling.base" in set(imports_of(SOURCE / "sampling" / "sde.py"))


OPTIONAL = (
    "nflows",
    "zuko",
    "matplotlib",
    "sklearn",
    "tyro",
    "tqdm",
    "scipy",
    "hypothesis",
    "PIL",
    "pooch",
    "lightning_fabric",
)

BLOCKED_IMPORT = f"""
import sys
import torch, numpy  # which may look for optional libraries of their own

before = set(sys.modules)
asked = []

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            asked.append(name)
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import ncml
process = ncml.VPSDE.at_noise(0.1)
import ncml.densities
density = ncml.densities.GaussianDensity(process, 0.3, 0.1)
ncml.NCMLObjective(process)(density, ncml.generate(density, process, 4))
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(asked, sorted(new & set({OPTIONAL!r})), "torchvision" in sys.modules)
"""


def test_import_asks_for_no_optional_library():
    """Not even in vain: with all of them blocked, the core works and none was looked for."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", BLOCKED_IMPORT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["[]", "[]", "False"]


def test_modules_are_short():
    """A module over 400 lines is asking to be divided."""
    long = {str(m.relative_to(SOURCE)): n for m in MODULES if (n := len(m.read_text().splitlines())) > 400}
    assert long == {}


def test_public_names_exist():
    """Every name in an ``__all__`` can be imported; no function shadows a module of the package."""
    parts = {part_of(m) for m in MODULES}
    for part in sorted(parts - {"ncml"}):
        module = importlib.import_module(f"ncml.{part}")
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"ncml.{part}.{name}"
    assert all(hasattr(ncml, name) for name in ncml.__all__)
    assert parts & set(ncml.__all__) == set()
