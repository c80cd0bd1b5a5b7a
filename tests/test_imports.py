"""What imports what: optional libraries stay out of ``import ncml``, and imports point one way."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ncml
import ncml.densities
from ncml import GaussianProcess, NoiseConditionalDensity, NoiseProcess, Sampler
from ncml.objective import TimeSampler

SOURCE = Path(ncml.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"errors"},
    {"checks", "files", "progress"},
    {"noise"},
    {"density"},
    {"objective", "score", "sampling"},
    {"ncml"},
    {"nn", "report"},
    {"densities"},
    {"data", "evaluation"},
    {"training"},
    {"estimator"},
    {"cli"},
    {"__main__"},
)
"""Lowest first. A module imports from lower layers, and from its own package; "ncml" is the package itself."""

LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}

INTERFACES = {"errors", "checks", "progress", "noise", "density", "objective", "score", "sampling"}
"""All that ``ncml.testing`` may see, and of these not the bundled classes: it must not treat them better than a
user's."""

IDEAS = (NoiseProcess, NoiseConditionalDensity, TimeSampler, Sampler)


def modules_of_the_ideas() -> Iterator[object]:
    for part in (ncml.noise, ncml.densities, ncml.objective, ncml.sampling):
        for info in pkgutil.walk_packages(part.__path__, f"{part.__name__}."):
            yield importlib.import_module(info.name)


def bundled_classes() -> set[str]:
    """Names of the processes, densities, time samplers and samplers that ncml brings, without the interfaces."""
    return {
        name
        for module in modules_of_the_ideas()
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, IDEAS)
        and not inspect.isabstract(value)
        and value is not GaussianProcess
    }


def part_of(module: Path) -> str:
    """The name in LAYERS of a source file."""
    first = module.relative_to(SOURCE).parts[0]
    return "ncml" if first == "__init__.py" else first.removesuffix(".py")


def imports_in(code: str) -> Iterator[str]:
    """What source code imports from the package, anywhere in it: "density", "nn.heads", "ncml", ..."""
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            submodules = [
                a.name for a in node.names if (SOURCE / f"{a.name}.py").exists() or (SOURCE / a.name).is_dir()
            ]
            names = [f"ncml.{name}" for name in submodules] if node.module == "ncml" and submodules else [node.module]
        for name in names:
            if name == "ncml":
                yield "ncml"
            elif name.startswith("ncml."):
                yield name.removeprefix("ncml.")


def imports_of(module: Path) -> set[str]:
    return set(imports_in(module.read_text()))


def names_in(code: str) -> set[str]:
    """Every name that source code imports or speaks of."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


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
    bundled = bundled_classes()
    for module in modules:
        for name in imports_of(module):
            assert name.split(".")[0] in INTERFACES | {"testing"}, f"{module.name} imports ncml.{name}"
        assert names_in(module.read_text()) & bundled == set(), module.name


def test_the_walk_sees_imports():
    """Power: the helpers above find what is known to be there."""
    assert imports_of(SOURCE / "noise" / "sde.py") == {"checks", "errors", "noise.gaussian", "noise.process"}
    assert {"noise", "sampling", "density"} <= imports_of(SOURCE / "__init__.py")
    assert "sampling.sampler" in imports_of(SOURCE / "sampling" / "heun.py")
    assert {"VPSDE", "LevelNoise", "MADE", "NCPN", "AtZero", "EulerMaruyama", "Tweedie"} <= bundled_classes()
    assert (
        bundled_classes() & {"NoiseProcess", "GaussianProcess", "LinearSDE", "DiscreteProcess", "GridSampler"} == set()
    )
    assert "VPSDE" in names_in("import ncml\nprocess = ncml.noise.VPSDE()")
    assert "VPSDE" in names_in("from ncml.noise import VPSDE as V")


# Private names stay in their module.

OTHERS_PRIVATE = {
    "_orig_mod": "where torch.compile keeps the module that it wraps; there is no public name",
    "_dynamo": "torch._dynamo.config, documented under this name",
    "_C": "as _are_functorch_transforms_active",
    "_are_functorch_transforms_active": "whether a transform of torch.func is at work; there is no public name",
    "_current_level": "whether forward-mode differentiation is at work; there is no public name",
    "_softmax_backward_data": "torch's kernel of the gradient of softmax",
    "_foreach_lerp_": "torch's kernels over lists of tensors, with which its optimizers are written",
    "_foreach_copy_": "as _foreach_lerp_",
    "_distribution": "the parts of a flow of nflows, which has no public names for them",
    "_transform": "as _distribution",
    "_embedding_net": "as _distribution",
    "_shape": "as _distribution",
}
"""Names with an underscore that belong to other libraries, and why they are used all the same."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(tree: ast.Module) -> set[str]:
    """What a module defines: functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer":
            names.add(getattr(node.args[0], "value", ""))
    return names


def private_names_from_elsewhere(code: str) -> list[str]:
    """Uses of names with an underscore that the code does not define itself, as ``line: name``."""
    tree, found = ast.parse(code), []
    own = own_names(tree) | OTHERS_PRIVATE.keys()
    for node in ast.walk(tree):
        modules: list[str] = []
        names: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            names = [alias.name for alias in node.names if alias.name != "__main__"]
        elif isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr not in own else []
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "setattr",
            "hasattr",
            "delattr",
        ):
            name = getattr(node.args[1], "value", None)
            names = [name] if isinstance(name, str) and name not in own else []
        parts = [part for module in modules for part in module.split(".") if part != "__future__"]
        found += [f"{node.lineno}: {name}" for name in [*parts, *names] if is_private(name)]
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_no_private_name_crosses_a_module(module):
    """Not by an import, nor as an attribute of something else, nor of a base class in another module."""
    path = module.relative_to(SOURCE).with_suffix("")
    assert [part for part in path.parts if is_private(part)] == []
    assert private_names_from_elsewhere(module.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "from ncml.density.modes import _alone",
        "from ncml._checks import check_input",
        "import ncml._checks",
        "from ncml import _checks",
        "def f(density, x):\n    return density._checked(x)",
        "class Mine(Base):\n    def f(self):\n        return self._secret",
        "class Mine(Base):\n    def f(self):\n        return super()._secret()",
        "secret = getattr(density, '_secret', None)",
        "density.inner._secret = 3\nother.__secret",
    ],
)
def test_planted_private_names_are_seen(code):
    """Power: each way for a private name to cross."""
    assert len(private_names_from_elsewhere(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from ncml.density import usable",
        "from ncml.cli import __main__\nfrom ncml import __version__",
        "class Mine:\n    def __init__(self):\n        self._own = 1\n    def __eq__(self, other):\n"
        "        return self._own == other._own",
        "def _f():\n    return 1\nvalue = _f()",
        "import torch\nlimit = torch._dynamo.config",
        "inner = getattr(wrapper, '_orig_mod', None)",
        "_, x = f()",
    ],
)
def test_own_private_names_are_fine(code):
    assert private_names_from_elsewhere(code) == []


def test_other_libraries_private_names_are_still_needed():
    """An entry that nothing uses any more goes."""
    code = "\n".join(module.read_text() for module in MODULES)
    assert [name for name in OTHERS_PRIVATE if name not in code] == []


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
ncml.NCMLObjective(process)(density, ncml.generate(density, 4))
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
    for part in sorted(parts - {"ncml", "__main__"}):
        module = importlib.import_module(f"ncml.{part}")
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"ncml.{part}.{name}"
    assert all(hasattr(ncml, name) for name in ncml.__all__)
    assert parts & set(ncml.__all__) == set()
