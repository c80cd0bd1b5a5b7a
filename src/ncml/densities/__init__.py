"""Noise conditional densities: closed forms, autoregressive models, flows, and adapters."""

from ncml.densities.adapters import CallableDensity, NFlowsDensity, ZukoDensity
from ncml.densities.closed_form import GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.densities.made import MADE
from ncml.densities.maf import MAF
from ncml.densities.ncpn import NCPN
from ncml.densities.transformer import CausalTransformer

__all__ = [
    "MADE",
    "MAF",
    "NCPN",
    "CallableDensity",
    "CausalTransformer",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "NFlowsDensity",
    "ToyLattice",
    "ZukoDensity",
]
