"""Readers of real data sets, as integers on a lattice."""

from ncml.data.digits import ImageData, load_digits
from ncml.data.files import load_cifar10, load_mnist, read_cifar10, read_idx

__all__ = ["ImageData", "load_cifar10", "load_digits", "load_mnist", "read_cifar10", "read_idx"]
