"""The directive ``options``: a table of a function's parameters or a dataclass's fields, from its docstring.

``{options} MODULE:NAME [PREFIX]`` shows how each is written on the command line or (with a prefix) in a file;
``:names: a=B`` renames some, ``:skip: a b`` leaves some out.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import docstring_parser
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx


def rows(thing: Any) -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each parameter or field."""
    words = {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(thing.__doc__).params}
    for name, parameter in inspect.signature(thing).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            continue  # a part with a table of its own
        default = "" if parameter.default is inspect.Parameter.empty else shown(parameter.default)
        yield name, default, words[name]


def shown(value: Any) -> str:
    """A default as one types it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


class Options(Directive):
    required_arguments = 1
    optional_arguments = 1
    option_spec: ClassVar = {"names": directives.unchanged, "skip": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        thing = getattr(importlib.import_module(module), name)
        prefix = self.arguments[1] if len(self.arguments) > 1 else "--"
        renamed = dict(pair.split("=") for pair in self.options.get("names", "").split())
        table, group = nodes.table(classes=["options"]), nodes.tgroup(cols=3)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (30, 15, 55)]
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        head += row(*([nodes.Text(title)] for title in ("option" if prefix == "--" else "key", "default", "meaning")))
        for key, default, words in rows(thing):
            if key in self.options.get("skip", "").split():
                continue
            written = renamed.get(key) or prefix + (key.replace("_", "-") if prefix.startswith("--") else key)
            words = re.sub(r"\*\*(?=\w+\))", r"\*\*", words)  # a parameter, and no bold type
            meaning, messages = self.state.inline_text(words, self.lineno)
            body += row([nodes.literal(text=written)], [nodes.literal(text=default)] if default else [], meaning)
            body[-1][-1] += messages
        return [table]


def row(*cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("options", Options)
    return {"parallel_read_safe": True}
