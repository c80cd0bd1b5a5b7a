"""A transformer flow: its blocks, their inverse with cached keys and values, guidance, and published weights."""

from ncml.densities.transformer_flow.flow import TransformerFlow
from ncml.densities.transformer_flow.guidance import FlowGuidance
from ncml.densities.transformer_flow.published import load_tarflow
from ncml.densities.transformer_flow.settings import TransformerFlowSettings

__all__ = ["FlowGuidance", "TransformerFlow", "TransformerFlowSettings", "load_tarflow"]
