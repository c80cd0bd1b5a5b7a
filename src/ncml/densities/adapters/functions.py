"""What can be found out about a function from outside: the modules it uses, and what autograd says of its results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["modules_used", "reached"]


def modules_used(functions: Iterable[object]) -> tuple[list[nn.Module], bool, list[str]]:
    """Modules that callables hold, whether a copy would hold copies of them, and global names that may be others.

    Looked through: methods and their objects, ``functools.partial``, closures, default arguments, and the global names
    that a function mentions. If those are several modules, only the caller knows which of them it uses.
    """
    held: dict[nn.Module, bool] = {}
    names: list[str] = []
    seen: set[int] = set()
    todo: list[tuple[Any, bool]] = [(function, True) for function in functions]
    while todo:
        thing, copied = todo.pop(0)
        if isinstance(thing, nn.Module):
            held[thing] = held.get(thing, True) and copied
        if isinstance(thing, nn.Module) or id(thing) in seen:
            continue
        seen.add(id(thing))
        parts: Iterable[Any] = ()
        if isinstance(thing, functools.partial):
            parts = [thing.func, *thing.args, *thing.keywords.values()]
        elif inspect.ismethod(thing):
            owner = thing.__self__
            parts = [owner] if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {}).values()
        elif inspect.isfunction(thing):
            copied = False  # deepcopy keeps functions as they are
            parts, mentioned = _held_by(thing)
            names += mentioned
        elif isinstance(thing, (list, tuple)):
            parts = thing
        elif isinstance(thing, dict):
            parts = thing.values()
        elif callable(thing) and not isinstance(thing, type):
            parts = getattr(thing, "__dict__", {}).values()
        todo += [(part, copied) for part in parts]
    inner = {part for module in held for part in list(module.modules())[1:]}
    return [module for module in held if module not in inner], all(held.values()), names


def _held_by(function: FunctionType) -> tuple[list[Any], list[str]]:
    """What a function's closure, defaults and only global module hold; names of its global modules if several."""
    parts = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    try:
        known = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return parts, []
    named = {k: v for k, v in known.globals.items() if isinstance(v, nn.Module) and v.state_dict()}
    if len(set(named.values())) > 1:
        return [*parts, *known.nonlocals.values()], list(named)
    return [*parts, *known.nonlocals.values(), *named.values()], []


def reached(result: Tensor, inputs: tuple[Tensor | None, ...]) -> tuple[list[Tensor], list[bool]]:
    """The trainable tensors that a result depends on, inputs aside, and which of the inputs it depends on."""
    nodes = [None if v is None else v.grad_fn for v in inputs]
    leaves: list[Tensor] = []
    seen: set[torch.autograd.graph.Node] = set()
    todo = [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:  # what an input was made from is not the function's
            continue
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            leaves.append(variable)
        todo += [following for following, _ in node.next_functions]
    given = [any(v is leaf for leaf in leaves) or (v is not None and v.grad_fn in seen) for v in inputs]
    return [leaf for leaf in leaves if not any(leaf is v for v in inputs)], given
