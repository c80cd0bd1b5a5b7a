"""A density read under another Gaussian process: the closed form of that process, and what it keeps of itself."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace

import pytest
import torch

from ncml import (
    VESDE,
    VPSDE,
    AutoregressiveDensity,
    GaussianProcess,
    Lattice,
    LevelNoise,
    NCMLObjective,
    NoiseConditionalDensity,
    SampleableDensity,
    SubVPSDE,
    generate,
)
from ncml.densities import MADE, NCPN, CallableDensity, GaussianDensity, GaussianMixtureDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.evaluation import robustness_curve
from ncml.sampling import EulerMaruyama
from ncml.score import exact_divergence, log_density_and_score
from tests.problems import PMF, gaussian, mixture, plane_mixture, same_bits, seeded

F64 = torch.float64

OWN = {
    "vp": VPSDE.at_noise(0.5),
    "subvp": SubVPSDE.at_noise(0.5),
    "ve": VESDE.at_noise(0.7),
    "linear-ve": VESDE.linear(0.7),
    "cosine": GaussianProcess(torch.cos, torch.sin, T=0.6),
}
"""Processes with much noise, that densities are built for."""

OTHER = {
    "vp": VPSDE.at_noise(0.3),
    "subvp": SubVPSDE.at_noise(0.3),
    "ve": VESDE.at_noise(0.3),
    "linear-ve": VESDE.linear(0.3),
    "cosine": GaussianProcess(torch.cos, torch.sin, T=0.3),
}
"""Processes whose noise-to-signal ratio stays below that of each of them."""

PAIRS = list(itertools.product(OWN, OTHER))
each_pair = pytest.mark.parametrize(("own", "other"), PAIRS, ids=["-as-".join(pair) for pair in PAIRS])
each_other = pytest.mark.parametrize("other", OTHER.values(), ids=OTHER.keys())


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return bool(((a - b).abs() <= tolerance * (1.0 + b.abs())).all())


def made(lattice=None, dims=2, process=OWN["vp"], dtype=F64, **settings) -> MADE:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        density = MADE((dims,), process, lattice=lattice, hidden=(16,), components=3, **settings).to(dtype)
        for p in density.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return density


# Closed forms.


@each_pair
@pytest.mark.parametrize("make", [mixture, plane_mixture])
def test_it_is_the_density_of_the_other_process(own, other, make):
    process, density = OTHER[other], make(OWN[own]).under(OTHER[other])
    exact = make(process)
    assert density.process == process
    assert density.max_time == process.T
    assert density.event_shape == exact.event_shape
    t = process.T * torch.tensor([0.0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.0], dtype=F64)
    x = torch.randn(8, *exact.event_shape, generator=seeded(0), dtype=F64)
    assert close(density.log_prob(x, t), exact.log_prob(x, t))
    assert close(density.log_density(x, t), exact.log_density(x, t))
    assert close(density.score(x, t), exact.score(x, t))
    for ours, theirs in zip(log_density_and_score(density, x, t), log_density_and_score(exact, x, t), strict=True):
        assert close(ours, theirs)
    assert close(exact_divergence(density, x, t), exact_divergence(exact, x, t), 1e-8)


@each_pair
def test_its_samples_are_those_of_the_other_process(own, other):
    """Draw for draw, and so moment for moment: both are the same function of the same normals."""
    density, exact = mixture(OWN[own]).under(OTHER[other]), mixture(OTHER[other])
    for fraction in (0.0, 0.01, 1.0):
        t = fraction * OTHER[other].T
        ours, theirs = (d.sample(1000, t, generator=seeded(1)) for d in (density, exact))
        assert close(ours, theirs)
        assert close(ours.mean(0), theirs.mean(0))
        assert close(ours.var(0), theirs.var(0))
    times = torch.linspace(0.0, OTHER[other].T, 50, dtype=F64)
    assert close(density.sample(50, times, generator=seeded(2)), exact.sample(50, times, generator=seeded(2)))


@each_pair
def test_at_time_zero_both_are_the_data_bit_for_bit(own, other):
    density = mixture(OWN[own])
    read, x = density.under(OTHER[other]), torch.randn(32, 1, generator=seeded(0), dtype=F64)
    for zero in (0.0, torch.zeros(32), torch.zeros(32, dtype=F64)):
        assert same_bits(read.log_prob(x, zero), density.log_prob(x, zero))
        assert same_bits(read.score(x, zero), density.score(x, zero))
    assert same_bits(read.sample(8, generator=seeded(1)), density.sample(8, generator=seeded(1)))


def test_a_wrong_ratio_shows():
    """Power: read at the same sigma instead of the same sigma / alpha, the likelihood is off by more than 1e-3."""
    own, process = OWN["vp"], OTHER["linear-ve"]
    density, x = mixture(own), torch.linspace(-1, 1, 9, dtype=F64)[:, None]
    wrong = density.log_prob(x, float(own.time_at(process.T)))
    assert float((wrong - mixture(process).log_prob(x, process.T)).abs().max()) > 1e-3


@each_other
def test_float32_agrees_with_float64(other):
    single = GaussianMixtureDensity(OWN["vp"], (0.4, 0.6), torch.tensor([-0.5, 0.4]), (0.1, 0.2)).under(other)
    x, t = torch.randn(16, 1, generator=seeded(0)), torch.linspace(0.05, 0.999, 16) * other.T
    exact = mixture(other)
    assert single.log_prob(x, t).dtype == single.score(x, t).dtype == single.sample(2).dtype == torch.float32
    assert close(single.log_prob(x, t).double(), exact.log_prob(x.double(), t.double()), 1e-4)
    assert close(single.score(x, t).double(), exact.score(x.double(), t.double()), 1e-4)


@each_other
def test_a_network_stays_normalised(other):
    """The integral over the line is 1 at every noise level."""
    density = made(dims=1).under(other)
    grid = torch.linspace(-60.0, 60.0, 240_001, dtype=F64)[:, None]
    step = float(grid[1, 0] - grid[0, 0])
    for fraction in (0.01, 0.3, 1.0):
        with torch.no_grad():
            total = density.log_prob(grid, fraction * other.T).exp().sum() * step
        assert float(total) == pytest.approx(1.0, abs=1e-9)


def test_there_and_back_is_the_density_itself():
    own, process = OWN["subvp"], OTHER["cosine"]
    back = replace(own, T=float(own.time_at_log_snr(process.log_snr(process.T))))
    density = made(process=own)
    twice = density.under(process).under(back)
    x, t = torch.randn(8, 2, generator=seeded(0), dtype=F64), torch.linspace(0.0, back.T, 8, dtype=F64)
    assert close(twice.log_prob(x, t).detach(), density.log_prob(x, t).detach())
    assert density.under(own) is density


# What it keeps.


def test_parameters_are_shared_and_nothing_is_copied():
    density = made()
    read = density.under(OTHER["ve"])
    ours, theirs = list(read.parameters()), list(density.parameters())
    assert len(ours) == len(theirs)
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    assert all(a is b for a, b in zip(read.buffers(), density.buffers(), strict=True))
    x = torch.zeros(2, 2, dtype=F64)
    before = read.log_prob(x, 0.1).detach()
    with torch.no_grad():
        for p in ours:
            p.mul_(1.5)
    assert not torch.equal(read.log_prob(x, 0.1), before)
    assert (read.dtype, read.device) == (density.dtype, density.device)
    assert read.to(torch.float32).dtype == density.dtype == torch.float32
    twin = copy.deepcopy(read)
    assert next(twin.parameters()) is not next(density.parameters())


def test_training_under_the_other_process_trains_the_density():
    density = made()
    read, x = density.under(OTHER["cosine"]), torch.randn(16, 2, generator=seeded(0), dtype=F64)
    NCMLObjective(OTHER["cosine"])(read, x, generator=seeded(1)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in density.parameters())


def test_a_density_keeps_its_kind():
    process = OTHER["ve"]
    plain = CallableDensity(lambda x, t: -x.square().sum(1), (2,), OWN["vp"])
    assert isinstance(made().under(process), AutoregressiveDensity)
    assert isinstance(plain.under(process), SampleableDensity)  # as CallableDensity itself
    assert not isinstance(mixture(OWN["vp"]).under(process), AutoregressiveDensity)

    class Only(NoiseConditionalDensity):
        def forward(self, x, t, context=None, *, edges=True):
            return -x.square().sum(1)

    only = Only((2,), OWN["vp"]).under(process)
    assert not isinstance(only, SampleableDensity)
    with pytest.raises(UnsupportedError, match=r"^density: got"):
        generate(only, 2)


@each_other
@pytest.mark.parametrize("lattice", [None, Lattice(5)], ids=["continuous", "lattice"])
def test_an_autoregressive_density_samples_from_noise(other, lattice):
    """A scaled sample of the density itself from the same noise; and a fixed point of resampling."""
    density = made(lattice, dims=3, order=[2, 0, 1])
    read, noise = density.under(other), density.draw_noise(6, generator=seeded(1))
    assert torch.equal(read.order, density.order)
    assert torch.equal(read.draw_noise(6, generator=seeded(1)), noise)
    own = density.process
    for fraction in (0.0, 0.1, 1.0):
        t = fraction * other.T
        own_time = min(float(own.time_at_log_snr(other.log_snr(t))), own.T)
        ratio = float(own.alpha(own_time) / other.alpha(t))
        x = read.sample(6, t, noise=noise)
        assert close(x, density.sample(6, own_time, noise=noise) / ratio)
        assert close(read.resample(x, noise, t), x)
        assert same_bits(read.sample(6, t, generator=seeded(1)), x)
    with pytest.raises(ArgumentError, match=r"^noise: got"):
        read.sample(5, noise=noise)


@each_other
def test_a_lattice_is_kept(other):
    lattice = Lattice(5)
    density = made(lattice)
    read, points = density.under(other), lattice.points(dtype=F64)
    states = torch.cartesian_prod(points, points)
    assert read.lattice == lattice
    assert same_bits(read.log_prob(states).detach(), density.log_prob(states).detach())
    mass = read.log_prob(states).detach().exp().sum() * lattice.width**2
    assert float(mass) == pytest.approx(1.0, abs=1e-12)
    assert bool(lattice.on_lattice(read.sample(64, generator=seeded(0))).all())
    assert not bool(lattice.on_lattice(read.sample(64, other.T, generator=seeded(0))).all())
    assert same_bits(read.log_density(states + 0.3).detach(), density.log_density(states + 0.3).detach())
    with pytest.raises(ArgumentError, match="lattice points"):
        read.log_prob(states + 0.1)
    samples = generate(read, 8, sampler=EulerMaruyama(steps=4), generator=seeded(1))
    assert bool(lattice.on_lattice(samples).all())


def test_the_exact_density_of_lattice_data_under_another_process():
    own, process = OWN["vp"], OTHER["linear-ve"]
    read, exact = ToyLattice(own, PMF).under(process), ToyLattice(process, PMF)
    x = torch.linspace(-1.3, 1.3, 40, dtype=F64)[:, None]
    for fraction in (0.1, 1.0):
        t = fraction * process.T
        assert close(read.log_prob(x, t), exact.log_prob(x, t), 1e-9)
        assert close(read.score(x, t), exact.score(x, t), 1e-8)


def test_a_context_is_handed_on():
    density = made(context_features=2)
    read, context = density.under(OTHER["ve"]), torch.randn(4, 2, generator=seeded(3), dtype=F64)
    x = torch.randn(4, 2, generator=seeded(0), dtype=F64)
    assert same_bits(read.log_prob(x, 0.0, context), density.log_prob(x, 0.0, context))
    assert read.sample(4, 0.1, context, generator=seeded(1)).shape == (4, 2)
    assert read.score(x, 0.1, context).shape == x.shape
    with pytest.raises(ArgumentError, match=r"^context: got"):
        read.log_prob(x, 0.1)


def test_scores_can_be_differentiated_again():
    density = made().under(OTHER["cosine"])
    x = torch.randn(3, 2, generator=seeded(0), dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: density.score(x, 0.1, create_graph=True), (x,))


def test_an_image_network_is_read_under_another_process():
    torch.manual_seed(0)
    density = NCPN.preset("tiny", (1, 4, 4), OWN["vp"], lattice=Lattice(17), features=8, heads=2).double()
    read = density.under(OTHER["linear-ve"])
    x = read.sample(2, OTHER["linear-ve"].T, generator=seeded(0))
    assert bool(read.score(x, OTHER["linear-ve"].T).isfinite().all())
    assert isinstance(read, AutoregressiveDensity)


def test_hooks_on_the_density_inside_run():
    density, seen = made(), []
    density.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    read, x = density.under(OTHER["ve"]), torch.zeros(3, 2, dtype=F64)
    for call in (
        lambda: read(x, torch.full((3,), 0.1, dtype=F64)),
        lambda: read.log_prob(x, 0.1),
        lambda: read.log_density(x, 0.1),
        lambda: read.score(x, 0.1),
        lambda: log_density_and_score(read, x, 0.1),
        lambda: EulerMaruyama(steps=1)(read, x),
    ):
        seen.clear()
        call()
        assert seen == [3]


# Refusals.


@each_pair
def test_more_noise_than_the_density_knows_is_refused_when_built(own, other):
    """The message names the T to which the other process may run, and that one is taken."""
    small, large = OTHER[own], OWN[other]
    density = mixture(small)
    with pytest.raises(ArgumentError, match=r"^process: got") as raised:
        density.under(large)
    named = float(re.search(r"end the process at T = ([\d.e-]+)", str(raised.value)).group(1))
    assert 0.0 < named < large.T
    shorter = GaussianProcess(torch.cos, torch.sin, named) if other == "cosine" else replace(large, T=named)
    read, x = density.under(shorter), torch.zeros(1, 1, dtype=F64)
    assert close(read.log_prob(x, named), mixture(shorter).log_prob(x, named))


def test_what_cannot_be_translated_is_refused():
    density = mixture(OWN["vp"])
    levels = ToyLattice(LevelNoise(17), PMF)
    none = CallableDensity(lambda x, t: x.sum(1), (2,))
    song = GaussianDensity(VESDE(song=True), 0.0, 1.0)
    for call, error, match in [
        (lambda: density.under(LevelNoise(17)), UnsupportedError, r"^process: got LevelNoise"),
        (lambda: density.under("vp"), UnsupportedError, r"^process: got str"),
        (lambda: density.under(None), UnsupportedError, r"^process: got NoneType"),
        (lambda: density.under(VESDE(T=0.1, song=True)), UnsupportedError, r"^process: got VESDE"),
        (lambda: levels.under(OTHER["vp"]), UnsupportedError, r"^density\.process: got LevelNoise"),
        (lambda: song.under(OTHER["vp"]), UnsupportedError, r"^density\.process: got VESDE"),
        (lambda: none.under(OTHER["vp"]), ArgumentTypeError, r"^density\.process: got None"),
    ]:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize(
    "use",
    [
        lambda d, p: NCMLObjective(p)(d, torch.zeros(4, 1)),
        lambda d, p: generate(d, 2, process=p),
        lambda d, p: EulerMaruyama(steps=1)(d, torch.zeros(2, 1), process=p),
        lambda d, p: EulerMaruyama(steps=1).refine(d, torch.zeros(2, 1), process=p),
        lambda d, p: robustness_curve(d, torch.zeros(2, 1), [0.0], process=p, lattice=Lattice(17)),
    ],
    ids=["objective", "generate", "sampler", "refine", "robustness_curve"],
)
def test_the_error_for_another_process_names_it(use):
    density = GaussianDensity(OWN["vp"], 0.3, 0.1)
    for process, said in ((OTHER["ve"], True), (LevelNoise(17), False)):
        with pytest.raises(ArgumentError, match=r"^process: got") as raised:
            use(density, process)
        assert ("density.under(process)" in str(raised.value)) is said
    with pytest.raises(ArgumentError, match="smaller T"):
        use(density, VESDE.linear(5.0))
    assert math.isfinite(float(NCMLObjective(OTHER["ve"])(density.under(OTHER["ve"]), torch.zeros(4, 1))))


@pytest.mark.parametrize(
    ("process", "remedy"),
    [
        (VPSDE(1.0, 3.0, 1.0), "is the same density"),  # as much noise at T
        (VPSDE(1.0, 1.0, 2.0), "is the same density"),  # less
        (VPSDE(1.0, 1.0, 4.0), "up to a smaller T"),  # more
        (LevelNoise(4), None),  # of another kind
    ],
)
def test_the_error_says_whether_the_other_process_could_be_read(process, remedy):
    density = gaussian(VPSDE(1.0, 1.0, 3.0))
    with pytest.raises(ArgumentError, match=r"^process: got .*; expected VPSDE") as error:
        generate(density, 2, process=process)
    assert ("under(process)" in str(error.value)) is (remedy is not None)
    assert remedy is None or remedy in str(error.value)
