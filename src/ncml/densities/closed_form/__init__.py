"""Densities in closed form: the ground truth of tests."""

from ncml.densities.closed_form.gaussian import GaussianDensity, GaussianMixtureDensity
from ncml.densities.closed_form.toy_lattice import ToyLattice

__all__ = ["GaussianDensity", "GaussianMixtureDensity", "ToyLattice"]
