"""How accurate the samplers are: tables of errors and orders of convergence, without sampling."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from ncml import VESDE, VPSDE, SubVPSDE
from ncml.densities import GaussianDensity
from ncml.sampling import AnnealedLangevin, EulerMaruyama, HeunODE
from tests.affine import Kicked, affine_steps, noisy_moments, refined_moments, variance_error
from tests.problems import LINEAR_SDES, MEAN, SDES, STD, each_sde, mixture

F64 = torch.float64
EULER, HEUN = EulerMaruyama(grid="uniform"), HeunODE(grid="uniform")
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)


def orders(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(
    ("sampler", "name", "errors"),
    [
        (EULER, "vp", (8.57e-3, 5.05e-3, 2.71e-3, 1.40e-3, 7.11e-4, 3.58e-4, 1.80e-4, 9.01e-5)),
        (EULER, "subvp", (3.82e-2, 2.20e-2, 1.16e-2, 5.97e-3, 3.02e-3, 1.52e-3, 7.62e-4, 3.82e-4)),
        (EULER, "ve", (4.77e-2, 2.70e-2, 1.42e-2, 7.27e-3, 3.67e-3, 1.85e-3, 9.25e-4, 4.63e-4)),
        (HEUN, "vp", (5.19e-3, 1.31e-3, 3.28e-4, 8.22e-5, 2.06e-5, 5.14e-6, 1.29e-6, 3.21e-7)),
        (HEUN, "subvp", (2.29e-3, 4.33e-4, 9.42e-5, 2.20e-5, 5.32e-6, 1.31e-6, 3.24e-7, 8.08e-8)),
        (HEUN, "ve", (6.97e-3, 1.63e-3, 3.93e-4, 9.67e-5, 2.40e-5, 5.97e-6, 1.49e-6, 3.72e-7)),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_variance_error_table(sampler, name, errors):
    """Relative error of the variance for n = 8 ... 1024 uniform steps, to three digits; and the order."""
    measured = [variance_error(sampler, SDES[name], n) for n in SIZES]
    for ours, expected in zip(measured, errors, strict=True):
        assert ours == pytest.approx(expected, abs=0.6 * 10.0 ** (math.floor(math.log10(expected)) - 2))
    low, high = (0.98, 1.02) if sampler is EULER else (1.97, 2.03)
    assert all(low <= order <= high for order in orders(measured)[4:])


@each_sde
@pytest.mark.parametrize("n", [8, 64])
def test_heun_is_a_recursion_written_out(process, n):
    """Heun's method for the standard deviation and mean of a Gaussian, in plain numbers, Euler's step last."""

    def slope(x: float, t: float) -> float:
        mean, variance = noisy_moments(process, t)
        f, g = float(process.drift_coefficient(t)), float(process.diffusion(t))
        return f * x + 0.5 * g * g * (x - mean) / variance

    def end(x: float) -> float:
        for i in range(n):
            t, s = process.T * (1 - i / n), process.T * (1 - (i + 1) / n)
            h, first = t - s, slope(x, t)
            x -= h * first if i == n - 1 else 0.5 * h * (first + slope(x - h * first, s))
        return x

    mean, variance = noisy_moments(process, process.T)
    expected = end(mean), (end(mean + math.sqrt(variance)) - end(mean)) ** 2
    assert refined_moments(HEUN, process, n) == pytest.approx(expected, rel=1e-9)


def test_the_last_step_of_heun_keeps_fine_detail():
    """Data of std 1e-4: Heun's own last step is off by 7.7e-3, Euler's by 3.2e-4 (root mean square)."""
    process, g = VPSDE.at_noise(0.5), torch.Generator().manual_seed(0)
    density = GaussianDensity(process, torch.full((1,), 0.3, dtype=F64), 1e-4)
    x = HeunODE()(density, density.sample(4000, process.T, generator=g))
    assert float((x - 0.3).square().mean().sqrt()) < 4e-4


@pytest.mark.parametrize(
    ("name", "errors"),
    [("vp", (6.4e-4, 8.0e-5, 9.9e-6)), ("subvp", (1.2e-2, 1.5e-3, 1.9e-4)), ("ve", (0.0, 0.0, 0.0))],
)
def test_mean_error_of_euler_maruyama(name, errors):
    """In units of the data's standard deviation, at n = 8, 64, 512; VE keeps means exactly."""
    for n, expected in zip((8, 64, 512), errors, strict=True):
        error = abs(refined_moments(EULER, SDES[name], n)[0] - MEAN) / STD
        assert error == pytest.approx(expected, rel=0.02, abs=1e-13)


@pytest.mark.parametrize(("sampler", "order"), [(EulerMaruyama(), 1.0), (HeunODE(), 2.0)])
@pytest.mark.parametrize("name", LINEAR_SDES)
def test_the_quadratic_grid_keeps_the_order(sampler, order, name):
    errors = [variance_error(sampler, LINEAR_SDES[name], n) for n in (64, 128, 256)]
    assert orders(errors) == pytest.approx([order] * 2, abs=0.1)


def test_the_quadratic_grid_pays_where_noise_falls_fast():
    """Under VP, sigma ~ sqrt(t): at equal cost the quadratic grid has less than two thirds of the error."""
    for n in (16, 64, 256):
        assert variance_error(EulerMaruyama(), SDES["vp"], n) < 0.66 * variance_error(EULER, SDES["vp"], n)


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
@pytest.mark.parametrize("n", [1, 2, 7, 128])
def test_grids(grid, n):
    start, end = 0.3, 0.1
    times = EulerMaruyama(n, grid).times(SDES["ve"], start, end)
    power = 1 if grid == "uniform" else 2
    assert times[0] == start
    assert times[-1] == end
    assert times == pytest.approx([end + (start - end) * (1 - i / n) ** power for i in range(n + 1)], rel=1e-15)
    assert all(t > s for t, s in itertools.pairwise(times))


# Errors that must not pass.


@dataclass(frozen=True)
class Printed(EulerMaruyama):
    """The paper's eq. 4 as printed: dx = [f + g^2 + grad log p] dt + g dw."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * (f * x + g * g + target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


@dataclass(frozen=True)
class WrongSign(EulerMaruyama):
    """+ g^2 s in the drift."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * (f * x + g * g * target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


@dataclass(frozen=True)
class NotSquared(EulerMaruyama):
    """g where g^2 belongs."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * (f * x - g * target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


@dataclass(frozen=True)
class WithoutDrift(EulerMaruyama):
    """f forgotten: right for VE only."""

    def step(self, target, x, t, s, state):
        h, g = t - s, target.diffusion(t)
        return x + h * g * g * target.score(x, t) + g * math.sqrt(h) * target.normal(x), None


@dataclass(frozen=True)
class ForwardDrift(EulerMaruyama):
    """f with the sign of the forward SDE: right for VE only."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x + h * (f * x + g * g * target.score(x, t)) + g * math.sqrt(h) * target.normal(x), None


@dataclass(frozen=True)
class WholeScoreODE(HeunODE):
    """The probability flow without its factor 1/2, and so without noise to make up for it."""

    def step(self, target, x, t, s, state):
        h, f, g = t - s, target.drift_coefficient(t), target.diffusion(t)
        return x - h * (f * x - g * g * target.score(x, t)), None


def is_right(sampler, process) -> bool:
    """Mean and variance of the data after 128 steps, within the discretisation errors of the tables."""
    mean, variance = refined_moments(sampler, process, 128)
    return abs(mean - MEAN) < 1.5e-4 and abs(variance / STD**2 - 1.0) < 5e-3


@each_sde
@pytest.mark.parametrize("sampler", [EULER, HEUN], ids=lambda s: type(s).__name__)
def test_the_reverse_sde_and_the_probability_flow_are_right(sampler, process):
    assert is_right(sampler, process)


@each_sde
@pytest.mark.parametrize("wrong", [Printed, WrongSign, NotSquared, WholeScoreODE], ids=lambda s: s.__name__)
def test_planted_errors_are_noticed(wrong, process):
    assert not is_right(wrong(grid="uniform"), process)


@pytest.mark.parametrize("name", ["vp", "subvp"])
@pytest.mark.parametrize("wrong", [WithoutDrift, ForwardDrift], ids=lambda s: s.__name__)
def test_planted_errors_of_the_drift_are_noticed(wrong, name):
    assert not is_right(wrong(grid="uniform"), SDES[name])


def test_values_of_the_printed_equation():
    """What eq. 4 gives as printed, at n = 128: for VE it explodes."""
    moments = {name: refined_moments(Printed(grid="uniform"), process, 128) for name, process in SDES.items()}
    assert moments["vp"] == pytest.approx((0.280, 0.527), abs=6e-4)
    assert moments["subvp"] == pytest.approx((-5.0, 7.7e4), rel=0.01)
    assert moments["ve"] == pytest.approx((-6e5, 3.8e15), rel=0.05)
    wrong = [refined_moments(WrongSign(grid="uniform"), process, 128)[1] for process in SDES.values()]
    assert wrong == pytest.approx([0.053, 0.059, 0.053], abs=6e-4)
    assert refined_moments(EULER, SDES["vp"], 128) == pytest.approx((0.30000, 0.00999), abs=6e-6)


# Paths, and laws that are not Gaussian.


@each_sde
def test_strong_order_of_euler_maruyama(process):
    """Root mean square distance to 4,096 steps on the same Brownian path, exactly.

    The end of a path is affine in its start and its increments, so the distance follows from the weights of
    each increment: c_i / sqrt(h) times the product of the a's after it.
    """
    fine = 4096

    def response(n: int) -> tuple[float, float, np.ndarray]:
        """Weights of the start and of each fine increment, and the constant."""
        steps = affine_steps(EULER, process, n)
        a, b = np.array([step.a for step in steps]), np.array([step.b for step in steps])
        after = np.append(np.cumprod(a[::-1])[::-1][1:], 1.0)
        kicks = np.array([step.c / math.sqrt(step.t - step.s) for step in steps]) * after
        return float(a.prod()), float(b @ after), np.repeat(kicks, fine // n)

    slope, constant, kicks = response(fine)
    mean, variance = noisy_moments(process, process.T)
    errors = []
    for n in (8, 16, 32, 64, 128, 256):
        da, db, dk = (ours - exact for ours, exact in zip(response(n), (slope, constant, kicks), strict=True))
        errors.append(math.sqrt((da * mean + db) ** 2 + da**2 * variance + float(dk @ dk) * process.T / fine))
    assert orders(errors) == pytest.approx([1.0] * 5, abs=0.1)
    if isinstance(process, VPSDE):
        assert [errors[0], errors[-1]] == pytest.approx([4.83e-3, 1.47e-4], rel=0.1)  # an earlier Monte Carlo estimate


def refined_density(process, n: int, cells: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """The density, on a grid of x, of mixture samples refined by n Euler-Maruyama steps.

    A step maps x to an increasing function of x, read off the sampler's own ``step``, and adds normal noise:
    a change of variables by cubic splines, and a convolution by FFT.
    """
    density = mixture(process)
    x = torch.linspace(-2.0, 2.0, cells + 1, dtype=F64)[:-1]
    grid, width, zero = x.numpy(), 4.0 / cells, torch.zeros(1, 1, dtype=F64)
    frequencies = 2.0 * np.pi * np.fft.rfftfreq(cells, width)
    p = density.log_prob(x[:, None], process.T).exp().numpy()

    def step(x: torch.Tensor, z: float, t: float, s: float) -> torch.Tensor:
        target, x = Kicked(density).bound(x, t)
        target.noise = zero + z
        return EULER.step(target, x, t, s, None)[0]

    for t, s in itertools.pairwise(replace(EULER, steps=n).times(process, process.T, 0.0)):
        mapped = step(x[:, None], 0.0, t, s)[:, 0].numpy()
        still, kicked = (step(zero, z, t, s) for z in (0.0, 1.0))
        inverse = CubicSpline(mapped, grid)
        inside = (grid >= mapped[0]) & (grid <= mapped[-1])
        moved = np.zeros(cells)
        moved[inside] = CubicSpline(grid, p)(inverse(grid[inside])) * inverse(grid[inside], 1)
        smoothing = np.exp(-0.5 * (float(kicked - still) * frequencies) ** 2)
        p = np.fft.irfft(np.fft.rfft(moved) * smoothing, cells)
    return grid, p


@pytest.mark.parametrize(
    ("name", "distances"),
    [
        ("vp", (2.172e-3, 1.168e-3, 6.041e-4, 3.070e-4)),
        ("subvp", (8.067e-3, 4.260e-3, 2.181e-3, 1.103e-3)),
        ("ve", (8.836e-3, 4.718e-3, 2.418e-3, 1.222e-3)),
    ],
)
def test_law_of_refined_mixtures(name, distances):
    """Total variation from the data at n = 8, 16, 32, 64: the law itself converges with order 1."""
    process, errors = SDES[name], []
    for n in (8, 16, 32, 64):
        x, p = refined_density(process, n)
        truth = mixture(process).log_prob(torch.from_numpy(x)[:, None], 0.0).exp().numpy()
        assert p.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-8)
        errors.append(0.5 * float(np.abs(p - truth).sum()) * (x[1] - x[0]))
    assert errors == pytest.approx(list(distances), rel=1e-3)
    assert all(0.88 <= order <= 1.02 for order in orders(errors))


# Langevin dynamics at one noise level.


@pytest.mark.parametrize("name", LINEAR_SDES)
@pytest.mark.parametrize("step_size", [0.01, 0.1, 0.5])
def test_langevin_is_stationary_at_the_level(name, step_size):
    """Mean alpha m; variance v / (1 - epsilon / 2v), too large by at most step_size / 2 relative."""
    process, sampler = LINEAR_SDES[name], AnnealedLangevin(moves=1, step_size=step_size, grid="uniform")
    for step in affine_steps(sampler, process, 4)[:-1]:
        mean, variance = noisy_moments(process, step.s)
        epsilon = step_size * float(process.sigma(step.s)) ** 2
        rescaling = min(float(process.alpha(step.s)) / float(process.alpha(step.t)), math.exp(step_size))
        a = step.a / rescaling  # of the move that follows
        assert 0.0 < a < 1.0
        assert step.b / (1.0 - a) == pytest.approx(mean, rel=1e-9)
        stationary = step.c**2 / (1.0 - a**2)
        assert stationary == pytest.approx(variance / (1.0 - 0.5 * epsilon / variance), rel=1e-9)
        assert 1.0 < stationary / variance < 1.0 / (1.0 - 0.5 * step_size)


def test_langevin_only_rescales_without_noise():
    (*_, last) = affine_steps(AnnealedLangevin(moves=1), SDES["vp"], 4)
    assert last[:3] == (pytest.approx(1.0 / float(SDES["vp"].alpha(last.t)), rel=1e-14), 0.0, 0.0)


def test_the_papers_processes_refine_as_well():
    """At the paper's (exchanged) times 256 steps leave less than one per cent of variance error."""
    for process in (VPSDE.paper(), SubVPSDE.paper(), VESDE.paper()):
        assert variance_error(EulerMaruyama(), process, 256) < 1e-2
        assert variance_error(HeunODE(), process, 64) < 1e-3
