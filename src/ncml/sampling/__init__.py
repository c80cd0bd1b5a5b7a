"""5. Samplers: how a noisy sample at time t is refined to data at time 0, one family per file."""

from ncml.density import Target
from ncml.sampling import grids
from ncml.sampling.adaptive import AdaptiveHeun, AdaptiveSampler, AdaptiveSDE
from ncml.sampling.ancestral import Ancestral
from ncml.sampling.conditional import Restored, complete, restore
from ncml.sampling.discrete import LatticeGibbs, LatticeMetropolis
from ncml.sampling.dpm import DDIM, DPMSolver2M, DPMSolver2MSDE, DPMSolverSDE
from ncml.sampling.er_sde import ERSDE
from ncml.sampling.euler_maruyama import EulerMaruyama
from ncml.sampling.fitted import fit_grid
from ncml.sampling.generate import generate
from ncml.sampling.heun import HeunODE
from ncml.sampling.jacobi import ParallelSamples, allowed_difference, sample_in_parallel
from ncml.sampling.langevin import HMC, AnnealedLangevin, MetropolisLangevin
from ncml.sampling.multistep import MultistepODE
from ncml.sampling.predictor_corrector import PredictorCorrector
from ncml.sampling.repaint import RePaint
from ncml.sampling.sampler import GridSampler, Refined, Sampler
from ncml.sampling.smc import AnnealedSMC
from ncml.sampling.tempering import ParallelTempering
from ncml.sampling.tweedie import Tweedie

__all__ = [
    "DDIM",
    "ERSDE",
    "HMC",
    "AdaptiveHeun",
    "AdaptiveSDE",
    "AdaptiveSampler",
    "Ancestral",
    "AnnealedLangevin",
    "AnnealedSMC",
    "DPMSolver2M",
    "DPMSolver2MSDE",
    "DPMSolverSDE",
    "EulerMaruyama",
    "GridSampler",
    "HeunODE",
    "LatticeGibbs",
    "LatticeMetropolis",
    "MetropolisLangevin",
    "MultistepODE",
    "ParallelSamples",
    "ParallelTempering",
    "PredictorCorrector",
    "RePaint",
    "Refined",
    "Restored",
    "Sampler",
    "Target",
    "Tweedie",
    "allowed_difference",
    "complete",
    "fit_grid",
    "generate",
    "grids",
    "restore",
    "sample_in_parallel",
]
