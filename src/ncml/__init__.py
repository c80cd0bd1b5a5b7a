"""Noise conditional maximum likelihood.

Train any likelihood model on the data at every noise level t of a process, maximising
``E_t E_{x_t} log p_t(x_t)``; read its score off by autograd; sample by drawing at t > 0, where such
models are robust, and refining to t = 0 along the reverse SDE. The likelihood stays exact.

1. :mod:`ncml.noise`      how x becomes x_t           (:mod:`ncml.sde`, :mod:`ncml.levels`)
2. :mod:`ncml.density`    what log p_t(x) is          (:mod:`ncml.densities`)
3. :mod:`ncml.objective`  what is minimised           (:mod:`ncml.times`)
4. :mod:`ncml.score`      the gradient of log p_t(x)
5. :mod:`ncml.sampling`   how x_t becomes x_0
"""

from ncml.density import AutoregressiveDensity, NoiseConditionalDensity, SampleableDensity
from ncml.errors import NCMLError
from ncml.lattice import BitsPerDim, Lattice
from ncml.levels import LevelNoise
from ncml.noise import DiscreteProcess, GaussianProcess, LinearSDE, NoiseProcess
from ncml.objective import NCMLObjective
from ncml.sampling import Sampler, generate
from ncml.sde import VESDE, VPSDE, LinearVESDE, SubVPSDE

__version__ = "0.1.0"

__all__ = [
    "VESDE",
    "VPSDE",
    "AutoregressiveDensity",
    "BitsPerDim",
    "DiscreteProcess",
    "GaussianProcess",
    "Lattice",
    "LevelNoise",
    "LinearSDE",
    "LinearVESDE",
    "NCMLError",
    "NCMLObjective",
    "NoiseConditionalDensity",
    "NoiseProcess",
    "SampleableDensity",
    "Sampler",
    "SubVPSDE",
    "__version__",
    "generate",
]
