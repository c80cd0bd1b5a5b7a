"""Markov chains at one level: Hamiltonian moves on mixtures, Metropolis and Gibbs moves on enumerable lattices."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from ncml import VESDE, DiscreteProcess, Lattice, LevelNoise, SampleableDensity, generate
from ncml.densities import GaussianMixtureDensity, ToyLattice
from ncml.density import Target
from ncml.errors import ArgumentError, NonFiniteError, UnsupportedError
from ncml.sampling import HMC, AnnealedLangevin, LatticeGibbs, LatticeMetropolis, MetropolisLangevin, Sampler
from tests.problems import PMF, PROCESSES, gaussian, plane_mixture, seeded
from tests.statistics import Z, assert_frequencies, assert_law, assert_mean, assert_variance, normal_cdf

F64 = torch.float64
VE = VESDE.linear(1.0)


# Hamiltonian moves.


def test_one_leap_is_a_langevin_move():
    density = plane_mixture(PROCESSES["vp"])
    x = density.sample(20, density.process.T, generator=seeded(0))
    mala = MetropolisLangevin(8, moves=3).refine(density, x, generator=seeded(1))
    hmc = HMC(8, moves=3, leaps=1).refine(density, x, generator=seeded(1))
    assert torch.allclose(hmc.x, mala.x, rtol=0, atol=1e-10)
    assert torch.equal(hmc.info["acceptance"], mala.info["acceptance"])


def test_stationary_moments_where_unadjusted_moves_are_visibly_wrong():
    """At one level, with long steps: mean, variance and law within 6.11 standard errors."""
    process, t, n = VE, 0.5, 20_000
    density = gaussian(process)
    std = math.sqrt(0.01 + t * t)
    x = density.sample(n, t, generator=seeded(0))
    hmc = HMC(1, moves=10, leaps=2, step_size=0.5).refine(density, x, t, t, generator=seeded(1))
    assert_mean(hmc.x, 0.3, std)
    assert_variance(hmc.x, 0.3, std**2)
    assert_law(hmc.x, normal_cdf(0.3, std))
    assert 0.5 < float(hmc.info["acceptance"][0]) < 0.999
    assert hmc.evaluations == (10 * 2 + 1) * n
    raw = AnnealedLangevin(1, moves=30, step_size=0.5)(density, x, t, t, generator=seeded(1))
    with pytest.raises(AssertionError, match="variance ratio"):
        assert_variance(raw, 0.3, std**2)


def test_modes_keep_their_weights_when_started_at_data():
    """Two modes, one level: from data the weights stay; from one mode they come back over a low enough barrier."""
    density, t, n = GaussianMixtureDensity(VE, [0.3, 0.7], [-0.6, 0.6], 0.2), 0.3, 10_000
    x = density.sample(n, t, generator=seeded(0)).double()
    kept = HMC(1, moves=5).refine(density, x, t, t, generator=seeded(1)).x
    assert abs(float((kept > 0).double().mean() - (x > 0).double().mean())) < 2.0 * Z * math.sqrt(0.21 / n)
    moved = HMC(1, moves=80).refine(density, torch.full_like(x[:1500], 0.6), t, t, generator=seeded(1)).x
    exact = float((density.sample(200_000, t, generator=seeded(2)) > 0).double().mean())
    assert abs(float((moved > 0).double().mean()) - exact) < 0.02 + Z * math.sqrt(0.21 / 1500)


@dataclass(frozen=True)
class _Untested(HMC):
    """Planted: moves that are always taken."""

    def proposal(self, target, x, s, epsilon, score):
        y, log_q, score_y, _ = super().proposal(target, x, s, epsilon, score)
        return y, log_q, score_y, torch.full_like(log_q, math.inf)


def test_moves_without_a_test_are_seen():
    density, t = gaussian(VE), 0.5
    x = density.sample(20_000, t, generator=seeded(0))
    wrong = _Untested(1, moves=10, leaps=2, step_size=0.5)(density, x, t, t, generator=seeded(1))
    with pytest.raises(AssertionError, match="variance ratio"):
        assert_variance(wrong, 0.3, 0.01 + t * t)


# Lattices that can be enumerated.


class Table(SampleableDensity):
    """Any joint pmf of two values on a lattice under a discrete process, with its ladder by matrix products."""

    dtype_follows_input = True

    def __init__(self, process: DiscreteProcess, pmf) -> None:
        super().__init__((2,), process, process.lattice)
        self.pmf = pmf / pmf.sum()

    def at(self, t: float):
        matrix = self.process.transition_matrix(t)
        return matrix.T @ self.pmf @ matrix

    def forward(self, x, t, context=None, *, edges=True):
        levels = self.lattice.nearest(x)
        mass = torch.ones(len(x), dtype=F64)
        for value in t.unique():
            rows = t == value
            mass[rows] = self.at(float(value))[levels[rows, 0], levels[rows, 1]]
        return (mass.log() - 2.0 * math.log(self.lattice.width)).to(x.dtype)

    def sample(self, n, t=0.0, context=None, *, generator=None):
        flat = torch.multinomial(self.at(float(t[0])).flatten(), n, replacement=True, generator=generator)
        k = self.lattice.levels
        return self.lattice.to_unit(torch.stack([flat // k, flat % k], 1), dtype=F64)


@dataclass(frozen=True)
class Uniform(DiscreteProcess):
    """Values are replaced by uniform ones with probability t: another discrete process than the library's."""

    levels: int = 4
    T: float = 0.8

    @property
    def lattice(self) -> Lattice:
        return Lattice(self.levels)

    def on_lattice(self, t):
        return torch.ones_like(torch.as_tensor(t), dtype=torch.bool)

    def transition_matrix(self, t):
        k = self.levels
        return (1.0 - t) * torch.eye(k, dtype=F64) + t / k

    def perturb(self, x, t, *, noise=None, generator=None):
        u = torch.rand(x.shape, dtype=F64, generator=generator)
        v = torch.randint(0, self.levels, x.shape, generator=generator)
        return torch.where(u < t, self.lattice.to_unit(v, dtype=x.dtype), x)


def correlated(process: DiscreteProcess) -> Table:
    k = torch.arange(process.levels, dtype=F64)
    return Table(process, torch.exp(-0.7 * (k[:, None] - k).abs() - 0.2 * k))


PROCESSES_ON_LATTICES = {"clip": LevelNoise(4), "reflect": LevelNoise(4, edge="reflect"), "uniform": Uniform()}
each_lattice = pytest.mark.parametrize("process", PROCESSES_ON_LATTICES.values(), ids=PROCESSES_ON_LATTICES.keys())


def counts(lattice: Lattice, x):
    levels = lattice.nearest(x)
    return (levels[:, 0] * lattice.levels + levels[:, 1]).bincount(minlength=lattice.levels**2)


@each_lattice
def test_metropolis_moves_keep_every_level(process):
    density, n = correlated(process), 6000
    for t in (0.0, 0.5 * process.T):
        x = density.sample(n, t, generator=seeded(0))
        refined = LatticeMetropolis(1, moves=10).refine(density, x, t, t, generator=seeded(1))
        assert_frequencies(counts(process.lattice, refined.x), density.at(t).flatten())
        assert float((refined.x != x).any(1).double().mean()) > 0.5
        assert refined.evaluations == 11 * n
    annealed = LatticeMetropolis(4, moves=24)(density, density.sample(n, process.T, generator=seeded(2)))
    assert_frequencies(counts(process.lattice, annealed), density.at(0.0).flatten(), bias=0.01)


@each_lattice
def test_the_reverse_kernel_leads_from_every_level_to_the_data(process):
    """x_0 and x_t have the joint law of data and their noise: 16 x 16 cells for LevelNoise by conditional tables."""
    density, n, t = correlated(process), 8000, 0.6 * process.T
    noisy = density.sample(n, t, generator=seeded(0))
    clean = LatticeGibbs(sweeps=4)(density, noisy, t, generator=seeded(1))
    assert_frequencies(counts(process.lattice, clean), density.at(0.0).flatten())
    matrix = process.transition_matrix(t)
    fixed = process.lattice.to_unit(torch.tensor([[1, 2]]), dtype=F64).repeat(n, 1)
    drawn = LatticeGibbs(sweeps=8)(density, fixed, t, generator=seeded(2))
    posterior = density.pmf * matrix[:, 1][:, None] * matrix[:, 2]
    assert_frequencies(counts(process.lattice, drawn), (posterior / posterior.sum()).flatten())
    half = LatticeGibbs(sweeps=4)(density, noisy, t, 0.5 * t, generator=seeded(3))
    assert_frequencies(counts(process.lattice, half), density.at(0.5 * t).flatten())


def test_independent_values_take_one_sweep_and_generate_takes_the_sampler():
    process = LevelNoise(17)
    density, n = ToyLattice(process, PMF), 20_000
    x = generate(density, n, sampler=LatticeGibbs(1), generator=seeded(0))
    assert_frequencies(process.lattice.nearest(x).flatten().bincount(minlength=17), PMF)


def test_a_wrong_matrix_is_seen():
    """Planted: the probabilities of the other direction, which differ at a reflecting edge."""

    class Transposed(LevelNoise):
        def transition_matrix(self, t):
            return super().transition_matrix(t).T

    right = correlated(LevelNoise(4, edge="reflect"))
    wrong = Table(Transposed(4, edge="reflect"), right.pmf)
    noisy = right.sample(20_000, 0.9, generator=seeded(0))
    clean = LatticeGibbs(4)(wrong, noisy, 0.9, generator=seeded(1))
    with pytest.raises(AssertionError, match="frequencies off"):
        assert_frequencies(counts(right.lattice, clean), right.pmf.flatten())


@pytest.mark.parametrize("sampler", [LatticeMetropolis(), LatticeGibbs()], ids=lambda s: type(s).__name__)
def test_what_lattice_samplers_need(sampler: Sampler):
    with pytest.raises(UnsupportedError, match="process: got LinearVESDE"):
        sampler(gaussian(VE), torch.zeros(2, 1, dtype=F64))
    density = correlated(LevelNoise(4))
    assert sampler(density, torch.zeros(0, 2, dtype=F64)).shape == (0, 2)
    x = density.sample(5, 0.5, generator=seeded(0))
    a, b = (sampler(density, x, 0.5, generator=seeded(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert density.lattice.on_lattice(a).all()


def test_settings_of_chains():
    with pytest.raises(ArgumentError, match="leaps: got 0"):
        HMC(leaps=0)
    for kind, name in itertools.product((LatticeMetropolis, LatticeGibbs), ("moves", "sweeps")):
        if name in kind.__dataclass_fields__:
            with pytest.raises(ArgumentError, match=f"{name}: got 0"):
                kind(**{name: 0})


@pytest.mark.parametrize("sampler", [LatticeMetropolis(2, moves=8), LatticeGibbs()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_have_failed_leave_the_others_alone(sampler, value):
    """Failed from the start: NaN at the end and on the path, and no part of the acceptance."""
    density = correlated(LevelNoise(4))
    x = density.sample(6, 0.5, generator=seeded(0))
    bad = torch.cat([x, torch.full((3, 2), value, dtype=F64)])
    for stop in (0.0, 0.2):
        kept = sampler.refine(density, bad, 0.5, stop, generator=seeded(1), on_failure="keep", path=True)
        assert kept.info["failed"].tolist() == [6, 7, 8]
        assert kept.x[:6].isfinite().all()
        assert kept.path[-1][0] == stop
        assert torch.equal(kept.path[-1][1].nan_to_num(9.0), kept.x.nan_to_num(9.0))
    if isinstance(sampler, LatticeMetropolis):
        rates = kept.info["acceptance"] * 6 * 8
        assert torch.allclose(rates, rates.round())  # of six rows with eight moves


GAPS = torch.tensor([[0.4, 0.0, 0.2, 0.0, 0.4]], dtype=F64)


@pytest.mark.parametrize("sampler", [LatticeGibbs(20), LatticeMetropolis(4, moves=200)], ids=["gibbs", "metropolis"])
def test_states_without_mass_are_left(sampler):
    """Levels that no data have: noisy samples stand on them, and none may be given back."""
    density = ToyLattice(LevelNoise(5), GAPS.repeat(2, 1))
    noisy = density.sample(2000, 0.3, generator=seeded(0))
    refined = sampler(density, noisy, 0.3, generator=seeded(1))
    assert bool((density.log_prob(refined) > -math.inf).all())


def test_levels_without_mass_are_never_drawn():
    """By the least and the largest uniform: 1 was 0 or 2, but were it not for their mass most likely 1."""
    density = ToyLattice(LevelNoise(5), GAPS)
    noisy = density.lattice.to_unit(torch.tensor([[1], [3]]), dtype=F64)
    for u in (0.0, math.nextafter(1.0, 0.0)):

        class Planted(Target):
            def uniform(self, n, u=u):
                return torch.full((n,), u, dtype=F64)

        refined = LatticeGibbs(1)(Planted(density), noisy, 0.3)
        assert bool((density.log_prob(refined) > -math.inf).all())


def test_states_without_mass_are_failures():
    """In ten dimensions one sweep does not leave them: they are named, or given up."""
    density = ToyLattice(LevelNoise(5), GAPS.repeat(10, 1))
    noisy = density.sample(200, 1.0, generator=seeded(0))
    with pytest.raises(NonFiniteError, match="log-mass: got NaN or infinity for"):
        LatticeGibbs(1)(density, noisy, 1.0, generator=seeded(1))
    kept = LatticeGibbs(1)(density, noisy, 1.0, generator=seeded(1), on_failure="keep")
    good = kept.isfinite().all(1)
    assert 0 < int(good.sum()) < 200
    assert bool((density.log_prob(kept[good]) > -math.inf).all())
