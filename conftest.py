"""The names that examples in docstrings may use without importing them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ncml
import ncml.densities
import ncml.noise
import ncml.objective
import ncml.sampling


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """torch, math and ncml's public names, with a fixed seed for examples that draw without a generator."""
    if isinstance(request.node, pytest.DoctestItem):
        torch.manual_seed(0)
        doctest_namespace.update(math=math, torch=torch, ncml=ncml)
        for module in (ncml, ncml.noise, ncml.densities, ncml.objective, ncml.sampling):
            doctest_namespace.update({name: getattr(module, name) for name in module.__all__})
