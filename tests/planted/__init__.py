"""Code that passes the conformance kit, and the same code with one bug in it.

The bugs are those that this kind of library really has: misprints of the literature, slips in signs and
powers, lattice edges where there are none, masks, couplings, noise that is not fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Bug(NamedTuple):
    """A planted bug: the code it is planted in, the mutant, and the check that must find it."""

    original: str
    mutant: Callable[[], object]
    check: str
