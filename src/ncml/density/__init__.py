"""2. The noise conditional density: what log p_t(x) is; its interface, capabilities and checks."""

from ncml.density.aligned import AlignedTarget
from ncml.density.around import AroundTarget
from ncml.density.cells import CellDensity
from ncml.density.checks import (
    at_zero_only,
    check_arguments,
    check_draw,
    check_given,
    check_kept,
    check_log_density,
    check_noise,
    check_on_lattice,
    check_score,
    gaps_filled,
    process_by_name,
)
from ncml.density.completion import CompletionTarget
from ncml.density.composed import ComposedTarget, guided
from ncml.density.entry import (
    check_process,
    density_and_score_of,
    dims_of,
    inner_density,
    process_of,
    sampleable,
    score_of,
    slopes_of,
    unwrapped,
)
from ncml.density.gradient import gradient
from ncml.density.interface import (
    AutoregressiveDensity,
    NoiseConditionalDensity,
    SampleableDensity,
)
from ncml.density.levels import time_posterior
from ncml.density.modes import check_gradients, eval_mode, evaluating, usable
from ncml.density.posterior import EventTarget, GuidedTarget, PosteriorTarget
from ncml.density.target import Target

__all__ = [
    "AlignedTarget",
    "AroundTarget",
    "AutoregressiveDensity",
    "CellDensity",
    "CompletionTarget",
    "ComposedTarget",
    "EventTarget",
    "GuidedTarget",
    "NoiseConditionalDensity",
    "PosteriorTarget",
    "SampleableDensity",
    "Target",
    "at_zero_only",
    "check_arguments",
    "check_draw",
    "check_given",
    "check_gradients",
    "check_kept",
    "check_log_density",
    "check_noise",
    "check_on_lattice",
    "check_process",
    "check_score",
    "density_and_score_of",
    "dims_of",
    "eval_mode",
    "evaluating",
    "gaps_filled",
    "gradient",
    "guided",
    "inner_density",
    "process_by_name",
    "process_of",
    "sampleable",
    "score_of",
    "slopes_of",
    "time_posterior",
    "unwrapped",
    "usable",
]
