"""The directive ``names``: a table of everything that a module exports, one line each, with links to the reference."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.autosummary import Autosummary


class Names(Autosummary):
    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        self.env.ref_context["py:module"] = module.__name__
        self.options["nosignatures"] = None
        self.content = StringList([name for name in module.__all__ if not name.startswith("__")], module.__name__)
        return super().run()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("names", Names)
    return {"parallel_read_safe": True}
