r"""Robustness to noise of a single level (paper, sections 3.1 and 4.1).

Level noise :math:`p_\pi` moves each value by one level with probability :math:`\pi`, which hardly anyone
can see. How much likelihood it costs is

.. math:: \Delta\log p = \left| E_{p_{data}} \log p_{\theta,t} - E_{p_\pi} \log p_{\theta,t} \right|
          \quad \text{in bits per dimension} \qquad (\text{paper, eq. 8}).

The paper does not say where the level noise enters at t > 0. With ``order="before"`` (default) the data
have it, and then go through the process; with ``"after"`` it is added to :math:`x_t`.

Clean and perturbed data share their random numbers (process noise and dequantisation), as do all
:math:`\pi` and t of a table or curve: differences are between data, not between draws.

A model of :math:`p_{data}` is not asked to score well on :math:`p_\pi`, whose entropy is larger: a small
:math:`\Delta\log p` is robustness, not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ncml.checks import check_choice, check_count, check_generator, check_probability, time_in_range
from ncml.density import check_process, dims_of, inner_density, process_by_name, process_of
from ncml.errors import ArgumentError
from ncml.evaluation.likelihood import check_batch, data_lattice, log_prob_in_batches
from ncml.evaluation.perturbation import mean_abs_perturbation
from ncml.noise import BitsPerDim, GaussianProcess, Lattice, LevelNoise, NoiseProcess
from ncml.progress import progress_bar
from ncml.report import jsonable

__all__ = [
    "DeltaLogP",
    "LevelNoiseRow",
    "RobustnessCurve",
    "delta_log_p",
    "level_noise_table",
    "robustness_curve",
]

Edge = Literal["clip", "reflect"]
Order = Literal["before", "after"]


@dataclass(frozen=True)
class LevelNoiseRow:
    r"""One column of the paper's Table 1: likelihood under :math:`p_\pi`.

    Args:
        pi: Probability that a value moves.
        bits: Bits per dimension of the perturbed data.
        moved: Fraction of values that did move; below ``pi`` where the edge clips.
        n: Number of examples.
    """

    pi: float
    bits: BitsPerDim
    moved: float
    n: int


@dataclass(frozen=True)
class DeltaLogP:
    """The effect of level noise on the likelihood, in bits per dimension (paper, eq. 8).

    Args:
        clean: Bits per dimension of the data.
        perturbed: The same with level noise and the same random numbers.
    """

    clean: BitsPerDim
    perturbed: BitsPerDim

    @property
    def signed(self) -> float:
        """Bits/dim that the noise costs: positive if perturbed data are less likely; NaN for inf - inf."""
        return self.perturbed.mean - self.clean.mean

    @property
    def absolute(self) -> float:
        """The measure of eq. 8."""
        return abs(self.signed)

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`signed` over examples, paired; NaN for one example or infinite values."""
        n = self.clean.values.numel()
        return float((self.perturbed.values - self.clean.values).std() / math.sqrt(n)) if n > 1 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON data."""
        derived = {"signed": self.signed, "absolute": self.absolute, "standard_error": self.standard_error}
        return {key: jsonable(value, key) for key, value in {**derived, **vars(self)}.items()}


@dataclass(frozen=True, eq=False)
class RobustnessCurve:
    """The effect of level noise at several times: the data of the paper's Figure 4.

    Args:
        times: Times, ``(n,)``.
        T: Largest time of the process.
        sigma: Standard deviation of the process's noise at those times, in levels; NaN for processes
            that are not Gaussian.
        mean_abs_perturbation: Mean of ``|x_t - x_0|`` over values and noise, in levels.
        results: For every ``pi`` one :class:`DeltaLogP` per time.
    """

    times: Tensor
    T: float
    sigma: Tensor
    mean_abs_perturbation: Tensor
    results: dict[float, tuple[DeltaLogP, ...]]

    @classmethod
    def of(
        cls,
        process: NoiseProcess,
        x: Tensor,
        times: Sequence[float],
        results: Mapping[float, Sequence[DeltaLogP]],
        *,
        lattice: Lattice,
        seed: int = 0,
    ) -> RobustnessCurve:
        """Results at some times, beside the size of the process's noise in data ``x``, in levels of the lattice.

        The seed is that of the draw by which the size is found, of processes that have no formula for it.
        """
        sigma = [float(process.sigma(t)) if isinstance(process, GaussianProcess) else math.nan for t in times]
        source = torch.Generator(x.device)
        moves = [mean_abs_perturbation(process, x, t, generator=source.manual_seed(seed)) for t in times]
        return cls(
            times=torch.tensor(times, dtype=torch.float64),
            T=process.T,
            sigma=torch.tensor(sigma, dtype=torch.float64) / lattice.width,
            mean_abs_perturbation=torch.tensor(moves, dtype=torch.float64) / lattice.width,
            results={pi: tuple(row) for pi, row in results.items()},
        )

    @property
    def signed(self) -> dict[float, Tensor]:
        """For every ``pi`` the bits/dim that the noise costs, ``(n,)`` float64."""
        return self._collect("signed")

    @property
    def delta(self) -> dict[float, Tensor]:
        """For every ``pi`` the measure of eq. 8 in bits/dim, ``(n,)`` float64."""
        return self._collect("absolute")

    @property
    def standard_error(self) -> dict[float, Tensor]:
        """For every ``pi`` the standard error of :attr:`signed`, ``(n,)`` float64."""
        return self._collect("standard_error")

    def _collect(self, what: str) -> dict[float, Tensor]:
        return {
            pi: torch.tensor([getattr(result, what) for result in results], dtype=torch.float64)
            for pi, results in self.results.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON data."""
        first = next(iter(self.results.values()))
        data = {
            "times": self.times,
            "T": self.T,
            "sigma_levels": self.sigma,
            "mean_abs_perturbation_levels": self.mean_abs_perturbation,
            "clean": [result.clean for result in first],
            "delta": self.delta,
            "signed": self.signed,
            "standard_error": self.standard_error,
        }
        return {key: jsonable(value, key) for key, value in data.items()}


def level_noise_table(
    density: nn.Module,
    x: Tensor,
    pis: Sequence[float] = (0.0, 0.5, 1.0),
    context: Tensor | None = None,
    *,
    edge: Edge = "clip",
    draws: int = 1,
    lattice: Lattice | None = None,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> list[LevelNoiseRow]:
    r"""Bits per dimension at t = 0 of data under level noise, one row per :math:`\pi` (paper, Table 1).

    Args:
        density: The density.
        x: Clean data ``(B, *event_shape)`` on the lattice.
        pis: Probabilities that a value moves; 0 is the data itself.
        context: Conditioning with one row per example, or None.
        edge: What happens at the first and last level, see :class:`~ncml.LevelNoise`. The paper does
            not say; its finite numbers imply clipping.
        draws: Draws of the noise (and of the dequantisation) to average over.
        lattice: The lattice of the data, for a density without one; the results are then upper bounds.
        batch_size: Examples per pass. The result does not depend on it.
        generator: Source of randomness.
        progress: Show progress bars (needs tqdm).

    Raises:
        NCMLError: As :func:`~ncml.evaluation.bits_per_dim`, or a ``pi`` outside [0, 1].

    Example:
        >>> from ncml.densities import ToyLattice
        >>> from ncml.evaluation import level_noise_table
        >>> density = ToyLattice(VPSDE.at_noise(0.1), torch.ones(3, 256))
        >>> x = Lattice(256).to_unit(torch.tensor([[0, 7, 255]]))
        >>> for row in level_noise_table(density, x):
        ...     print(row.pi, row.bits)
        0.0 8.0000 bits/dim
        0.5 8.0000 bits/dim
        1.0 8.0000 bits/dim
    """
    data = _NoisyData(
        density, inner_density(density).process, x, context, lattice, "before", edge, draws, batch_size, generator
    )
    return [
        LevelNoiseRow(pi, data.bits(pi, 0.0, progress), data.moved(pi), data.x.shape[0]) for pi in _checked_pis(pis)
    ]


def delta_log_p(
    density: nn.Module,
    x: Tensor,
    pi: float,
    t: float = 0.0,
    context: Tensor | None = None,
    *,
    process: NoiseProcess | None = None,
    order: Order = "before",
    edge: Edge = "clip",
    draws: int = 1,
    lattice: Lattice | None = None,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> DeltaLogP:
    r"""How much level noise changes the likelihood at time t (paper, eq. 8).

    Args:
        density: The density. One without a lattice sees dequantised data at every t.
        x: Clean data ``(B, *event_shape)`` on the lattice.
        pi: Probability that a value moves.
        t: One time for the whole batch.
        context: Conditioning with one row per example, or None.
        process: Takes x to :math:`x_t`; the density's own if None. Not needed at t = 0.
        order: ``"before"``: level noise, then the process (default). ``"after"``: the process, then
            level noise; where :math:`x_t` is off the lattice that is plus or minus one level without
            edges, since there are none.
        edge, draws, lattice, batch_size, generator, progress: As for :func:`level_noise_table`.

    Raises:
        NCMLError: As :func:`~ncml.evaluation.bits_per_dim`; a ``pi`` outside [0, 1]; t > 0 without a
            process, or with one other than the density's.
    """
    process = inner_density(density).process if process is None else process
    data = _NoisyData(density, process, x, context, lattice, order, edge, draws, batch_size, generator)
    (pi,) = _checked_pis([pi])
    return DeltaLogP(clean=data.bits(0.0, t, progress), perturbed=data.bits(pi, t, progress))


@process_by_name("x", "robustness_curve(density, x, times, process=...)")
def robustness_curve(
    density: nn.Module,
    x: Tensor,
    times: Sequence[float] | Tensor,
    pis: Sequence[float] = (0.5, 1.0),
    context: Tensor | None = None,
    *,
    process: NoiseProcess | None = None,
    order: Order = "before",
    edge: Edge = "clip",
    draws: int = 1,
    lattice: Lattice | None = None,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> RobustnessCurve:
    r""":func:`delta_log_p` at several times, beside the size of the process's noise (paper, Figure 4).

    Args:
        density: The density, or a wrapper of one.
        x: Clean data ``(B, *event_shape)`` on the lattice.
        times: Times in ``[0, T]``; every one costs ``1 + len(pis)`` passes over the data.
        pis: Probabilities that a value moves.
        context, process, order, edge, draws, lattice, batch_size, generator, progress: As for
            :func:`delta_log_p`.

    Raises:
        NCMLError: As :func:`delta_log_p`, or no times.
    """
    process = process_of(density, process)
    data = _NoisyData(density, process, x, context, lattice, order, edge, draws, batch_size, generator)
    ts = [time_in_range(t, process.T) for t in times]
    if not ts:
        raise ArgumentError("times: got none; expected at least one time in [0, T]")
    results: dict[float, list[DeltaLogP]] = {pi: [] for pi in _checked_pis(pis)}
    for t in progress_bar(ts, progress, "robustness"):
        clean = data.bits(0.0, t)
        for pi, row in results.items():
            row.append(DeltaLogP(clean, data.bits(pi, t)))
    return RobustnessCurve.of(process, data.x[data.known], ts, results, lattice=data.lattice, seed=data.seeds[0])


def _checked_pis(pis: Sequence[float]) -> list[float]:
    if len(pis) == 0:
        raise ArgumentError("pis: got none; expected at least one probability")
    for pi in pis:
        check_probability(pi, "pi")
    return [float(pi) for pi in pis]


class _NoisyData:
    """Data under any level noise at any time, drawn with the same random numbers."""

    def __init__(
        self,
        density: nn.Module,
        process: NoiseProcess | None,
        x: Tensor,
        context: Tensor | None,
        lattice: Lattice | None,
        order: Order,
        edge: Edge,
        draws: int,
        batch_size: int,
        generator: torch.Generator | None,
    ) -> None:
        check_choice(order, "order", get_args(Order))
        self.lattice = data_lattice(density, lattice)
        self.level = LevelNoise(self.lattice.levels, edge)
        if process is not None:
            check_process(density, process)
        self.inner = inner_density(density)
        self.x, _, self.context = check_batch(self.inner, x, 0.0, context)
        self.lattice.check(self.x)
        observed = self.inner.observed(self.x, self.context)
        self.known: Any = slice(None) if observed is None else observed
        check_generator(generator, self.x.device)
        # Seeds instead of the numbers themselves: these would be as large as the data, per draw.
        seeds = torch.randint(2**62, (check_count(draws, "draws"),), generator=generator, device=self.x.device)
        self.seeds: list[int] = seeds.tolist()
        self.density, self.process, self.order, self.batch_size = density, process, order, batch_size

    def source(self, seed: int) -> torch.Generator:
        return torch.Generator(self.x.device).manual_seed(seed)

    def bits(self, pi: float, t: float, progress: bool = False) -> BitsPerDim:
        """Bits per dimension of each example, averaged over the draws."""
        t = time_in_range(t, math.inf if self.process is None else self.process.T)
        if self.process is None and t > 0.0:
            raise ArgumentError(f"process: got None with t = {t:.6g}; expected the process that takes x to x_t")
        on_lattice = self.process is None or bool(self.process.on_lattice(t))
        exact = self.inner.lattice is not None or not on_lattice
        nothing_random = pi == 0.0 and t == 0.0 and on_lattice and self.inner.lattice is not None
        times = torch.full((self.x.shape[0],), t, dtype=self.x.dtype, device=self.x.device)
        draws = []
        for seed in self.seeds[:1] if nothing_random else self.seeds:
            y = self._draw(pi, t, on_lattice, self.source(seed))
            log_p = log_prob_in_batches(self.density, y, times, self.context, self.batch_size, progress)
            draws.append(self.lattice.bits_per_dim(log_p, dims_of(self.inner, self.x, self.context)).values)
        return BitsPerDim(torch.stack(draws).mean(0), exact=exact, mass=on_lattice)

    def moved(self, pi: float) -> float:
        """Fraction of values that level noise moved."""
        changed = [self.level.perturb(self.x, pi, generator=self.source(seed)) != self.x for seed in self.seeds]
        return float(torch.stack([c[self.known].double().mean() for c in changed]).mean())

    def _draw(self, pi: float, t: float, on_lattice: bool, source: torch.Generator) -> Tensor:
        # Drawn in this order whatever is used, so that every pi and t sees the same numbers.
        uniforms = self.level.draw_noise(self.x, generator=source)
        noise = None if self.process is None else self.process.draw_noise(self.x, generator=source)

        def level(y: Tensor) -> Tensor:
            return self.level.perturb(y, pi, noise=uniforms)

        def perturb(y: Tensor) -> Tensor:
            return y if self.process is None else self.process.perturb(y, t, noise=noise)

        def dequantize(y: Tensor) -> Tensor:
            return y if self.inner.lattice is not None else self.lattice.dequantize(y, generator=source)

        if on_lattice:
            return dequantize(perturb(level(self.x)) if self.order == "before" else level(perturb(self.x)))
        if self.order == "before":
            return perturb(dequantize(level(self.x)))
        steps = (uniforms >= 1.0 - 0.5 * pi).to(self.x) - (uniforms < 0.5 * pi).to(self.x)
        return perturb(dequantize(self.x)) + self.lattice.width * steps
