"""Sphinx configuration. Building needs no network, and the built site needs none either."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import pydoc
import re
import sys
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import PycodeError
from sphinx.ext import autosummary
from sphinx.pycode import ModuleAnalyzer

import ncml

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the gallery runs in several processes

project = "ncml"
author = "The ncml developers"
copyright = "2026, The ncml developers"
version = release = ncml.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax from a package, not from a CDN
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "names",  # docs/_ext: tables of what modules export
    "options",  # docs/_ext: tables of a command's options and of a configuration's keys
]
exclude_patterns = ["_build", "_ext", "tests"]
nitpicky = True

html_theme = "furo"
html_title = f"ncml {release}"
html_copy_source = False
html_show_sphinx = False

html_static_path = ["_static"]
html_css_files = ["ncml.css"]
html_favicon = "_static/favicon.svg"

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.",)  # after which a summary goes on
autosummary_generate = False  # the tables of the reference's first page link to the pages written by hand

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"

sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "capture_repr": (),  # only what is printed
    "parallel": 2,
    "doc_module": ("ncml",),
    "reference_url": {"ncml": None},  # names in the code link to the reference
    "show_signature": False,
    "plot_gallery": True,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,  # its page asks another host for scripts
    "remove_config_comments": True,
}

autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "member-order": "bysource",
    "special-members": "__call__",
    # A class as an attribute, which would be listed as an alias of it, and methods that scikit-learn adds.
    "exclude-members": "needs, set_fit_request, set_score_request",
}
autodoc_inherit_docstrings = False  # an override is described once, in its base class
autodoc_typehints_format = "short"
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

TORCH = "https://docs.pytorch.org/docs/stable/"
GENERATED = TORCH + "generated/torch."
NUMPY = "https://numpy.org/doc/stable/reference/"
SKLEARN = "https://scikit-learn.org/stable/modules/generated/"
LINKS = {
    **dict.fromkeys(("torch.Tensor", "Tensor"), TORCH + "tensors.html#torch.Tensor"),
    "torch.device": TORCH + "tensor_attributes.html#torch.device",
    "torch.dtype": TORCH + "tensor_attributes.html#torch.dtype",
    "torch.nn.modules.module.Module": GENERATED + "nn.Module.html#torch.nn.Module",
    **dict.fromkeys(("torch.Generator", "torch._C.Generator"), GENERATED + "Generator.html#torch.Generator"),
    "hypothesis.strategies.SearchStrategy": "https://hypothesis.readthedocs.io/",
    "Fabric": "https://lightning.ai/docs/fabric/stable/api/generated/lightning.fabric.fabric.Fabric.html",
    "Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
    "torch.nn.modules.linear.Linear": GENERATED + "nn.Linear.html#torch.nn.Linear",
    "torch.nn.modules.normalization.LayerNorm": GENERATED + "nn.LayerNorm.html#torch.nn.LayerNorm",
    "numpy.ndarray": NUMPY + "generated/numpy.ndarray.html#numpy.ndarray",
    "numpy.dtype": NUMPY + "generated/numpy.dtype.html#numpy.dtype",
    "numpy.int64": NUMPY + "arrays.scalars.html#numpy.int64",
    "numpy.float64": NUMPY + "arrays.scalars.html#numpy.float64",
    **{
        f"sklearn.{name}": f"{SKLEARN}sklearn.{name}.html#sklearn.{name}"
        for name in (
            "base.BaseEstimator",
            "base.DensityMixin",
            "base.OneToOneFeatureMixin",
            "base.OutlierMixin",
            "base.TransformerMixin",
            "model_selection.GridSearchCV",
        )
    },
    "Figure": "https://matplotlib.org/stable/api/figure_api.html#matplotlib.figure.Figure",
}
"""The few names of other projects that the reference mentions; inventories would have to be fetched."""


def arrange(module: Any) -> None:
    """Let a module show what its package exports of it, if anything, in the order of the source."""
    if not hasattr(module, "__all__"):
        return
    package = sys.modules[module.__name__.rpartition(".")[0]]
    names = [name for name in module.__all__ if name in package.__all__ and package is not ncml] or module.__all__
    source = Path(module.__file__).read_text(encoding="utf-8")
    matches = {name: re.search(rf"^((class|def) )?{name}\b", source, re.MULTILINE) for name in names}
    if not hasattr(module, "__path__"):  # what a module takes from another is shown there
        names = [name for name in names if matches[name]]
    module.__all__ = sorted(names, key=lambda name: match.start() if (match := matches[name]) else len(source))


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Links that Sphinx leaves open: other projects' names, and ncml's under another import path."""
    target = node["reftarget"]
    if target in LINKS:
        return nodes.reference("", "", content, refuri=LINKS[target])
    module, _, last = target.rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return nodes.reference("", "", content, refuri=f"https://docs.python.org/3/library/{module}.html#{target}")
    found: Any = pydoc.locate(target if target.startswith("ncml.") else f"{node.get('py:module', 'ncml')}.{target}")
    if found is None:
        return None
    if isinstance(found, (TypeVar, ParamSpec)):
        return content
    python = env.domains.python_domain
    for name in python.objects:
        if name.endswith("." + last) and pydoc.locate(name) is found:
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def is_private(base: type) -> bool:
    """Whether a class of the library is one that it does not export."""
    package = ".".join(base.__module__.split(".")[:2])
    return package.startswith("ncml.") and base.__name__ not in sys.modules[package].__all__


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[type]) -> None:
    """Show the public classes that a private base stands for, instead of the private base."""
    while any(map(is_private, bases)):
        bases[:] = [shown for base in bases for shown in (base.__bases__ if is_private(base) else (base,))]
    bases[:] = [base for base in bases if base is not object]


def written(name: str, value: Any) -> list[str]:
    """The text below a module's variable, wherever it is defined."""
    for module in [module for key, module in sys.modules.items() if key.startswith("ncml.")]:
        if vars(module).get(name) is value:
            with contextlib.suppress(PycodeError):
                analyzer = ModuleAnalyzer.for_module(module.__name__)
                if ("", name) in analyzer.find_attr_docs():
                    return [*analyzer.find_attr_docs()["", name]]
    return []


def tidy(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put right what was taken for something else."""
    if what == "module" and lines:
        lines[0] = re.sub(r"^\d\. ", "", lines[0])  # the five ideas are numbered; here it would start a list
    if what == "data" and not (isinstance(obj, type) or callable(obj)):  # else it is the text of its type
        lines[:] = written(name.rpartition(".")[2], obj) or lines
    for i, line in enumerate(lines):
        lines[i] = re.sub(r"(?<![*\\`])\*\*(?=\w+\))", r"\*\*", line)  # a parameter, and no bold type
    if what == "property":
        for i, line in enumerate(lines):
            if line.startswith(":type: "):  # Napoleon takes a first line "a: b" for a type and its description
                del lines[i]
                lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> None:
    for info in pkgutil.walk_packages(ncml.__path__, "ncml."):
        if "._" not in info.name:
            arrange(importlib.import_module(info.name))
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-docstring", tidy, priority=600)  # after Napoleon
