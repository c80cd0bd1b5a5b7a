"""Noise conditional maximum likelihood.

Train any likelihood model on the data at every noise level t of a process, maximising
``E_t E_{x_t} log p_t(x_t)``; read its score off by autograd; sample by drawing at t > 0, where such
models are robust, and refining to t = 0 along the reverse SDE. The likelihood stays exact.

1. :mod:`ncml.noise`      how x becomes x_t
2. :mod:`ncml.density`    what log p_t(x) is          (:mod:`ncml.densities`)
3. :mod:`ncml.objective`  what is minimised, and which t are drawn
4. :mod:`ncml.score`      the gradient of log p_t(x)
5. :mod:`ncml.sampling`   how x_t becomes x_0
"""

from ncml.density import AutoregressiveDensity, NoiseConditionalDensity, SampleableDensity
from ncml.errors import NCMLError
from ncml.noise import (
    VESDE,
    VPSDE,
    BitsPerDim,
    DiscreteProcess,
    GaussianProcess,
    Lattice,
    LevelNoise,
    LinearSDE,
    LinearVESDE,
    NoiseProcess,
    SubVPSDE,
)
from ncml.objective import NCMLObjective
from ncml.sampling import GridSampler, Refined, Sampler, generate

__version__ = "0.2.0"

__all__ = [
    "VESDE",
    "VPSDE",
    "AutoregressiveDensity",
    "BitsPerDim",
    "DiscreteProcess",
    "GaussianProcess",
    "GridSampler",
    "Lattice",
    "LevelNoise",
    "LinearSDE",
    "LinearVESDE",
    "NCMLError",
    "NCMLObjective",
    "NoiseConditionalDensity",
    "NoiseProcess",
    "Refined",
    "SampleableDensity",
    "Sampler",
    "SubVPSDE",
    "__version__",
    "generate",
]
