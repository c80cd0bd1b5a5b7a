"""Readers of real data sets, as integers on a lattice."""

from ncml.data.digits import ImageData, load_digits

__all__ = ["ImageData", "load_digits"]
