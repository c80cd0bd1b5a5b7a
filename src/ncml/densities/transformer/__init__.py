"""A causal transformer over sequences: its blocks, its head, and sampling with cached keys and values."""

from ncml.densities.transformer.settings import CausalTransformerSettings
from ncml.densities.transformer.transformer import CausalTransformer

__all__ = ["CausalTransformer", "CausalTransformerSettings"]
