"""The real data sets, which lie in the folder that the environment variable ``NCML_DATA`` names; CI sets it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

needs_data = pytest.mark.skipif("NCML_DATA" not in os.environ, reason="NCML_DATA names no folder of data sets")


def real(name: str) -> Path:
    """The folder of a data set."""
    return Path(os.environ["NCML_DATA"]) / name
