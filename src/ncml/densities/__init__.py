"""Noise conditional densities: closed forms, autoregressive models, flows, and adapters."""

from ncml.densities.adapters import CallableDensity, NFlowsDensity, ZukoDensity
from ncml.densities.closed_form import GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.densities.made import MADE
from ncml.densities.maf import MAF
from ncml.densities.marginal import MarginalMADE
from ncml.densities.ncpn import NCPN
from ncml.densities.transformer import CausalTransformer
from ncml.densities.transformer_flow import FlowGuidance, TransformerFlow, load_tarflow

__all__ = [
    "MADE",
    "MAF",
    "NCPN",
    "CallableDensity",
    "CausalTransformer",
    "FlowGuidance",
    "GaussianDensity",
    "GaussianMixtureDensity",
    "MarginalMADE",
    "NFlowsDensity",
    "ToyLattice",
    "TransformerFlow",
    "ZukoDensity",
    "load_tarflow",
]
