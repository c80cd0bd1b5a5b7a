"""Noise conditional densities: closed forms, autoregressive models, flows, and adapters."""

from ncml.densities.callable import CallableDensity
from ncml.densities.closed_form import GaussianDensity, GaussianMixtureDensity
from ncml.densities.made import MADE
from ncml.densities.maf import MAF
from ncml.densities.ncpn import NCPN
from ncml.densities.nflows import NFlowsDensity
from ncml.densities.toy_lattice import ToyLattice
from ncml.densities.zuko import ZukoDensity

__all__ = [
    "MADE",
    "MAF",
    "NCPN",
    "CallableDensity",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "NFlowsDensity",
    "ToyLattice",
    "ZukoDensity",
]
