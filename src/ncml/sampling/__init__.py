"""5. Samplers: how a noisy sample at time t is refined to data at time 0, one family per file."""

from ncml.sampling.base import Sampler
from ncml.sampling.generate import generate
from ncml.sampling.langevin import AnnealedLangevin
from ncml.sampling.ode import HeunODE
from ncml.sampling.sde import EulerMaruyama
from ncml.sampling.tweedie import Tweedie

__all__ = ["AnnealedLangevin", "EulerMaruyama", "HeunODE", "Sampler", "Tweedie", "generate"]
