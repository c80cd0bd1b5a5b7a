"""3. The objective: what is minimised, and which noise levels are drawn."""

from ncml.objective.objective import LossTerms, NCMLObjective
from ncml.objective.times import (
    AtZero,
    ImportanceTimes,
    LadderTimes,
    LogUniformTimes,
    PlacedTimes,
    TimeSampler,
    UniformTimes,
    WeightedTimes,
)

__all__ = [
    "AtZero",
    "ImportanceTimes",
    "LadderTimes",
    "LogUniformTimes",
    "LossTerms",
    "NCMLObjective",
    "PlacedTimes",
    "TimeSampler",
    "UniformTimes",
    "WeightedTimes",
]
