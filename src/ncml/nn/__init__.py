"""Building blocks of the bundled models: noise features, masked networks, mixture heads."""

from ncml.nn.conditioning import Conditioning, NoiseFeatures, NoiseScaling
from ncml.nn.heads import GaussianHead, LogisticHead, MixtureHead
from ncml.nn.masked import MaskedMLP
from ncml.nn.norm import LayerNorm

__all__ = [
    "Conditioning",
    "GaussianHead",
    "LayerNorm",
    "LogisticHead",
    "MaskedMLP",
    "MixtureHead",
    "NoiseFeatures",
    "NoiseScaling",
]
