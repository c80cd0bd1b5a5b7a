"""Training loops."""

from ncml.training.fit import fit

__all__ = ["fit"]
