"""The ``[noise]`` of a configuration: which process, how much noise, and how often each level of it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ncml.checks import check_positive, check_probability
from ncml.errors import ArgumentError
from ncml.noise import VESDE, VPSDE, GaussianProcess, Lattice, LevelNoise, LinearVESDE, NoiseProcess, SubVPSDE
from ncml.objective import (
    AtZero,
    ImportanceTimes,
    LadderTimes,
    LogUniformTimes,
    NCMLObjective,
    TimeSampler,
    UniformTimes,
    WeightedTimes,
)

__all__ = [
    "FINE_LEVELS",
    "NoiseConfig",
    "build_process",
    "build_times",
    "check_times",
    "default_noise",
    "describe_noise",
    "last_trained_time",
    "noise_unit",
    "resolved",
]

PAPER_LEVELS = 10.0  # of 256, the noise at T in the paper
COARSE_STD = 0.25  # at most so much of the data's range [-1, 1], if their levels are coarser
COARSEST_STD = 0.75  # but a level if it can be: VP and sub-VP end below 1
STD_MIN = 1e-3  # of log-uniform times: an eighth of a level of 256
DATA_SHARE = 0.25  # of the standard deviation of data without a lattice, or on a fine one
FINE_LEVELS = 256  # more of them are a fine lattice

SCHEDULES: dict[str, tuple[str, ...]] = {
    "vp": ("beta_min", "beta_max"),
    "sub-vp": ("beta_min", "beta_max"),
    "ve": ("sigma_min", "sigma_max"),
    "linear-ve": (),
    "level-noise": ("edge",),
}
CLASSES: dict[str, Any] = {"vp": VPSDE, "sub-vp": SubVPSDE, "ve": VESDE, "linear-ve": LinearVESDE}
PARAMETERS: dict[str, tuple[str, ...]] = {
    "uniform": ("t_min",),
    "log-uniform": ("std_min",),
    "ladder": ("ladder", "lambdas"),
    "importance": ("bins",),
    "zero": (),
}
"""What belongs to one distribution of the times alone."""


@dataclass(frozen=True)
class NoiseConfig:
    r"""The noise process, and how often each of its levels is trained.

    The amount of noise at T is set in one of four ways: std, std_in_levels, T or preset. If none is given, it follows
    from the data: 10 levels of 256, as in the paper; less on coarser lattices (2 of 17); a quarter of the standard
    deviation for data without a lattice or with more than 256 levels. What was chosen is printed when training starts,
    and stored.

    Args:
        process: vp, sub-vp or ve, from the paper; linear-ve (sigma = t); or, for data on a lattice, level-noise: every
            value moves by one level with probability t. A model of level-noise draws samples at t = 0 only.
        std: Standard deviation of the noise at T, in data units.
        std_in_levels: The same, in levels of the data's lattice.
        data_std: For vp and sub-vp: the standard deviation of the data's values, in data units. If given, std or
            std_in_levels is that of x_T - x_0, as the paper has it, which includes a little from shrinking the data.
        T: The largest time, given directly; for level-noise, a probability.
        preset: paper for the paper's T and schedule of this process, or paper-as-printed for exactly the numbers that
            it prints, which do not give the noise that it states.
        beta_min: For vp and sub-vp: beta(0).
        beta_max: For vp and sub-vp: beta(1).
        sigma_min: For ve: the scale of its smallest noise, in data units.
        sigma_max: For ve: sigma(1), in data units.
        edge: For level-noise: whether to clip or reflect at the first and last level.
        times: How t is drawn in training. uniform, log-uniform (in the noise level) and importance (uniform, but drawn
            by bins and weighted to make up for it) also draw t = 0 itself; ladder has finitely many levels (paper,
            eq. 7); zero is t = 0 only, which is maximum likelihood.
        p_zero: Share of each batch at t = 0, for uniform, log-uniform and importance.
        score_matching: Weight of the error of the model's own score, which is added to the loss at t > 0; makes a step
            two to three times as expensive.
        fokker_planck: Weight of the residual of the Fokker-Planck equation, which is added to the loss at t > 0 so
            that the levels belong to one process; makes a step about seven times as expensive.
        t_min: For uniform: the smallest positive time.
        std_min: For log-uniform: the smallest positive noise, in data units; 1e-3 if not given. For a good likelihood
            try the finest structure of the data, such as one level if there are many (3e-5 for 16 bits in [-1, 1]).
        ladder: For ladder: its times above 0; the time 0 is always included.
        lambdas: For ladder: the weight of each of these times, where t = 0 has weight 1; all 1 if not given.
        bins: For importance: how often to draw from each of the equal bins of (0, T], relative to one another.
        weight: t to weight every term by its time, as iTARFlow does with linear-ve; one for plain NCML. With t, the
            likelihood at t = 0 is not trained and the share p_zero of each batch is wasted: set it to 0.
    """

    process: Literal["vp", "sub-vp", "ve", "linear-ve", "level-noise"] = "vp"
    std: float | None = None
    std_in_levels: float | None = None
    data_std: float | None = None
    T: float | None = None
    preset: Literal["paper", "paper-as-printed"] | None = None
    beta_min: float | None = None
    beta_max: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    edge: Literal["clip", "reflect"] | None = None
    times: Literal["uniform", "log-uniform", "zero", "ladder", "importance"] = "uniform"
    p_zero: float = 0.2
    score_matching: float = 0.0
    fokker_planck: float = 0.0
    t_min: float | None = None
    std_min: float | None = None
    ladder: tuple[float, ...] = ()
    lambdas: tuple[float, ...] = ()
    bins: tuple[float, ...] = ()
    weight: Literal["one", "t"] = "one"

    def __post_init__(self) -> None:
        for name in (
            "std", "std_in_levels", "data_std", "T", "beta_min", "beta_max", "sigma_min", "sigma_max", "std_min"
        ):  # fmt: skip
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), f"noise.{name}")
        check_probability(self.p_zero, "noise.p_zero")
        if len(self.amounts) > 1:
            raise ArgumentError(f"noise: got {' and '.join(self.amounts)}; expected one of them: each sets the noise")
        if self.data_std is not None and not (
            self.process in ("vp", "sub-vp") and self.amounts in (["std"], ["std_in_levels"])
        ):
            raise ArgumentError(
                f"noise.data_std: got {self.data_std:g}; expected none; it is for vp and sub-vp, with std or "
                f"std_in_levels"
            )
        self._check_belongs("process", SCHEDULES)
        self._check_belongs("times", PARAMETERS)
        if self.times == "ladder" and not self.ladder:
            raise ArgumentError("noise.ladder: got none with times='ladder'; expected its times above 0")
        if self.lambdas and len(self.lambdas) != len(self.ladder):
            raise ArgumentError(
                f"noise.lambdas: got {len(self.lambdas)}; expected {len(self.ladder)}, one for each time of the ladder"
            )
        if len(set(self.ladder)) < len(self.ladder):
            raise ArgumentError(f"noise.ladder: got {self.ladder!r}; expected every time once")
        for name in ("score_matching", "fokker_planck"):
            if self.at_zero_only and getattr(self, name):
                raise ArgumentError(
                    f"noise.{name}: got {getattr(self, name):g} and t = 0 alone; expected 0: it is of scores at t > 0"
                )
        if self.at_zero_only and self.weight == "t":
            raise ArgumentError("noise.weight: got 't' and t = 0 alone, whose weight is 0; expected 'one'")
        if self.times == "importance" and not self.bins:
            raise ArgumentError("noise.bins: got none with times='importance'; expected at least one")
        if self.process in ("linear-ve", "level-noise") and self.preset is not None:
            raise ArgumentError(
                f"noise.preset: got {self.preset!r} with process={self.process!r}; expected vp, sub-vp or ve, the "
                f"processes of the paper"
            )
        if self.process == "level-noise" and (self.std is not None or self.std_in_levels is not None):
            raise ArgumentError("noise.std: got one with process='level-noise'; expected T, the probability of a move")

    @property
    def at_zero_only(self) -> bool:
        """Whether no time above 0 is trained, which is maximum likelihood."""
        if self.times == "ladder":
            return bool(self.lambdas) and not any(self.lambdas)
        return self.times == "zero" or self.p_zero == 1.0

    @property
    def amounts(self) -> list[str]:
        """Which of the settings that say how much noise there is are given."""
        return [name for name in ("std", "std_in_levels", "T", "preset") if getattr(self, name) is not None]

    @property
    def shares(self) -> dict[float, float]:
        """The times of the ladder above 0, and the lambda of each."""
        return dict(zip(self.ladder, self.lambdas or (1.0,) * len(self.ladder), strict=True))

    def _check_belongs(self, choice: str, table: dict[str, tuple[str, ...]]) -> None:
        """Refuse a setting of another process, or of another distribution of the times."""
        chosen = getattr(self, choice)
        for owner, names in table.items():
            for name in names:
                if name not in table[chosen] and getattr(self, name) not in (None, ()):
                    raise ArgumentError(
                        f"noise.{name}: got {getattr(self, name)!r} with {choice}={chosen!r}; expected none; it is for "
                        f"{choice}={owner!r}"
                    )


def noise_unit(lattice: Lattice | None) -> float:
    """What noise is counted in, in data units: a level of the lattice, or 1."""
    return 1.0 if lattice is None else lattice.width


def default_noise(lattice: Lattice | None, data_std: float | None) -> float:
    """The noise at T that follows from the data: in levels of their lattice, or else in data units."""
    if lattice is None or (lattice.levels > FINE_LEVELS and data_std):
        return DATA_SHARE * (data_std or 1.0) / noise_unit(lattice)
    coarse = max(COARSE_STD, min(lattice.width, COARSEST_STD))
    return min(PAPER_LEVELS, coarse / lattice.width)


def resolved(noise: NoiseConfig, lattice: Lattice | None, data_std: float | None) -> NoiseConfig:
    """The configuration with its amount of noise filled in, if it was left to the data."""
    if noise.amounts or noise.process == "level-noise":
        return noise
    amount = default_noise(lattice, data_std)
    return replace(noise, std=amount) if lattice is None else replace(noise, std_in_levels=amount)


def build_process(noise: NoiseConfig, lattice: Lattice | None, data_std: float | None = None) -> NoiseProcess:
    """The configured process.

    Args:
        noise: The configuration.
        lattice: The lattice of the data, or None.
        data_std: Their standard deviation, which the default follows where there is no lattice, or a fine one.

    Raises:
        ArgumentError: More noise than the process can have, or levels for data without a lattice.
    """
    given, noise = noise.amounts, resolved(noise, lattice, data_std)
    if noise.process == "level-noise":
        if lattice is None:
            raise ArgumentError("noise.process: got 'level-noise' and data without a lattice; expected a Gaussian one")
        return LevelNoise(lattice.levels, noise.edge or "clip", 1.0 if noise.T is None else noise.T)
    if noise.std_in_levels is not None and lattice is None:
        raise ArgumentError(
            f"noise.std_in_levels: got {noise.std_in_levels:g} and data without a lattice; expected noise.std, in the "
            f"units of the data"
        )
    kind = CLASSES[noise.process]
    schedule = {n: getattr(noise, n) for n in SCHEDULES[noise.process] if getattr(noise, n) is not None}
    if noise.preset is not None:
        process = kind.paper(as_printed=noise.preset == "paper-as-printed")
        return replace(process, **schedule) if schedule else process
    if noise.T is not None:
        return kind(T=noise.T, **schedule)
    std = noise.std if noise.std is not None else (noise.std_in_levels or 0.0) * noise_unit(lattice)
    if noise.data_std is not None:
        schedule["data_std"] = noise.data_std
    try:
        return kind.at_noise(std, **schedule)
    except ArgumentError as error:
        if noise.process == "ve":  # which has no limit; it is its own schedule that does not fit
            raise ArgumentError(f"noise.{error}") from error
        name = "std" if noise.std is not None else "std_in_levels"
        if not given and data_std:
            raise ArgumentError(
                f"noise.std: got none, so that it is {DATA_SHARE:g} of the data's standard deviation, {data_std:.6g}; "
                f"expected data of order one, for which the models and the noise of {noise.process} are made; scale "
                f"them to a standard deviation of about 1"
            ) from error
        shown = f", a noise of {std:.3g} for {lattice.levels} levels" if name != "std" and lattice is not None else ""
        expected = str(error).partition("; ")[2]
        raise ArgumentError(
            f"noise.{name}: got {getattr(noise, name):g}{shown}; {expected}; take less noise, or process ve or "
            f"linear-ve, which have no limit; or scale the data"
        ) from error


def build_times(noise: NoiseConfig) -> TimeSampler:
    """The configured distribution of the times."""
    makers: dict[str, Callable[[], TimeSampler]] = {
        "uniform": lambda: UniformTimes(p_zero=noise.p_zero, t_min=noise.t_min or 0.0),
        "log-uniform": lambda: LogUniformTimes(noise.std_min or STD_MIN, noise.p_zero),
        "zero": AtZero,
        "ladder": lambda: LadderTimes.from_lambdas(noise.shares),
        "importance": lambda: ImportanceTimes(noise.bins, p_zero=noise.p_zero),
    }
    try:
        times = makers[noise.times]()
    except ArgumentError as error:
        raise ArgumentError(f"noise.{error}") from error
    return times if noise.weight == "one" else WeightedTimes(times, torch.clone)


def check_times(objective: NCMLObjective, noise: NoiseConfig) -> None:
    """Refuse times that the process does not have, by the name of their setting, before a run begins."""
    setting = {"uniform": "t_min", "log-uniform": "std_min", "ladder": "ladder"}.get(noise.times, "times")
    try:
        objective.draw_times(1, generator=torch.Generator().manual_seed(0))
    except ArgumentError as error:
        raise ArgumentError(f"noise.{setting}: {error}") from error


def last_trained_time(noise: NoiseConfig, process: NoiseProcess) -> float:
    """The largest time that training draws: where samples may start."""
    if noise.at_zero_only or not isinstance(process, GaussianProcess):
        return 0.0
    if noise.times != "ladder":
        return process.T
    return min(max((t for t, share in noise.shares.items() if share), default=0.0), process.T)


def describe_noise(noise: NoiseConfig, process: NoiseProcess, lattice: Lattice | None) -> str:
    """The process and how much noise it has, in words."""
    if not isinstance(process, GaussianProcess):
        return f"{noise.process} up to T = {process.T:g}"
    top = float(process.sigma(process.T))
    amount = top / noise_unit(lattice)
    unit = "in data units" if lattice is None else "level" if amount == 1.0 else "levels"
    said = f"{noise.process} noise up to {amount:.4g} {unit}, T = {process.T:.4g}"
    return said if noise.amounts else f"{said} (which follows from the data)"
