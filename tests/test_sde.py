"""The linear SDEs: every formula against ODE solutions, limits, and literal values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from ncml import VESDE, VPSDE, Lattice, LevelNoise, LinearVESDE, SubVPSDE
from ncml.densities import GaussianDensity
from ncml.errors import ArgumentError
from ncml.score import exact_divergence
from tests.problems import LEVEL, PROCESSES, SDES, WHOLE_SDES, each_linear_sde, each_whole_sde, plane_mixture, seeded

L = math.log(5000.0)
"""Logarithm of sigma_max / sigma_min."""

times_ = st.floats(0.0, 1.0)


@st.composite
def sdes(draw):
    """A process with any schedule."""
    low, ratio, T = draw(st.floats(0.01, 5.0)), draw(st.floats(1.0, 200.0)), draw(st.floats(1e-3, 1.0))
    kind = draw(st.sampled_from(["vp", "subvp", "ve", "linear-ve"]))
    if kind == "ve":
        return VESDE(T=T, sigma_min=low, sigma_max=1.5 * low * ratio)
    if kind == "linear-ve":
        return VESDE.linear(T)
    return (VPSDE if kind == "vp" else SubVPSDE)(T=T, beta_min=low, beta_max=low * ratio)


def integrate(process, s: float, t: float) -> tuple[float, float]:
    """Scale and variance of x_t given x_s, by solving a' = f a and v' = 2 f v + g^2.

    Over [0, 1] with the variance in units of t - s, so that short intervals lose no digits.
    """
    h = t - s

    def slope(u: float, y: list[float]) -> list[float]:
        f, g = float(process.drift_coefficient(s + u * h)), float(process.diffusion(s + u * h))
        return [h * f * y[0], 2.0 * h * f * y[1] + g * g]

    y = solve_ivp(slope, (0.0, 1.0), [1.0, 0.0], method="DOP853", rtol=3e-14, atol=1e-40).y[:, -1]
    return float(y[0]), float(y[1]) * h


@each_whole_sde
@pytest.mark.parametrize(
    ("s", "t"), [(0.0, 1e-5), (0.0, 0.01), (0.0, 0.9), (1e-3, 1e-3 + 1e-5), (0.02, 0.3), (0.5, 0.50001), (0.89, 0.9)]
)
def test_kernels_solve_the_sde(process, s, t):
    scale, std = process.transition(s, t)
    a, v = integrate(process, s, t)
    assert float(scale) == pytest.approx(a, rel=1e-11)
    assert float(std) ** 2 == pytest.approx(v, rel=1e-11)


@each_whole_sde
@pytest.mark.parametrize("t", [1e-6, 1e-4, 0.02, 0.5, 1.0])
def test_marginals_solve_the_sde(process, t):
    a, v = integrate(process, 0.0, t)
    assert float(process.alpha(t)) == pytest.approx(a, rel=1e-11)
    assert float(process.sigma(t)) ** 2 == pytest.approx(v, rel=1e-11)


def test_song_s_ve_solves_the_same_sde_from_noisy_data():
    song = VESDE(song=True)
    _, v = integrate(song, 0.0, 0.7)
    assert float(song.sigma(0.0)) == 0.01
    assert float(song.sigma(0.7)) ** 2 == pytest.approx(v + 0.01**2, rel=1e-11)
    assert float(song.sigma(0.7)) == pytest.approx(0.01 * 5000**0.7, rel=1e-13)
    assert float(song.time_at(song.sigma(0.7))) == pytest.approx(0.7, rel=1e-13)
    assert not song.on_lattice(0.0)


def b(t: float) -> float:
    """B(t) = t (0.1 + 9.95 t)."""
    return t * (0.1 + 9.95 * t)


TABLE = {
    "vp": {
        "f": lambda t: -0.5 * (0.1 + 19.9 * t),
        "g2": lambda t: 0.1 + 19.9 * t,
        "alpha": lambda t: math.exp(-0.5 * b(t)),
        "sigma2": lambda t: 1.0 - math.exp(-b(t)),
        "snr": lambda t: 1.0 / math.expm1(b(t)),
    },
    "subvp": {
        "f": lambda t: -0.5 * (0.1 + 19.9 * t),
        "g2": lambda t: (0.1 + 19.9 * t) * (1.0 - math.exp(-2.0 * b(t))),
        "alpha": lambda t: math.exp(-0.5 * b(t)),
        "sigma2": lambda t: (1.0 - math.exp(-b(t))) ** 2,
        "snr": lambda t: 1.0 / (4.0 * math.sinh(0.5 * b(t)) ** 2),
    },
    "ve": {
        "f": lambda t: 0.0,
        "g2": lambda t: 2.0 * L * 0.01**2 * 5000 ** (2 * t),
        "alpha": lambda t: 1.0,
        "sigma2": lambda t: 0.01**2 * (5000 ** (2 * t) - 1.0),
        "snr": lambda t: 1.0 / (0.01**2 * math.expm1(2 * L * t)),
    },
    "linear-ve": {
        "f": lambda t: 0.0,
        "g2": lambda t: 2.0 * t,
        "alpha": lambda t: 1.0,
        "sigma2": lambda t: t * t,
        "snr": lambda t: 1.0 / t**2,
    },
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("t", [0.01, 0.2, 0.8])
def test_closed_forms(name, t):
    process, row = WHOLE_SDES[name], TABLE[name]
    assert float(process.drift_coefficient(t)) == pytest.approx(row["f"](t), rel=1e-13)
    assert float(process.diffusion(t)) ** 2 == pytest.approx(row["g2"](t), rel=1e-12)
    assert float(process.alpha(t)) == pytest.approx(row["alpha"](t), rel=1e-13)
    assert float(process.sigma(t)) ** 2 == pytest.approx(row["sigma2"](t), rel=1e-11)
    assert float(process.log_snr(t)) == pytest.approx(math.log(row["snr"](t)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "g0", "small_sigma", "limit"),
    [
        ("vp", 0.31623, lambda t: math.sqrt(0.1 * t), 1.0),
        ("subvp", 0.0, lambda t: 0.1 * t, 2.0),
        ("ve", 0.041273, lambda t: 0.01 * math.sqrt(2 * L * t), 1.0),
        ("linear-ve", 0.0, lambda t: t, 2.0),
    ],
)
def test_limits_at_zero(name, g0, small_sigma, limit):
    process, t = WHOLE_SDES[name], 1e-9
    assert float(process.diffusion(0.0)) == pytest.approx(g0, rel=1e-4)
    assert float(process.sigma(t)) == pytest.approx(small_sigma(t), rel=1e-6)
    ratio = t * float(process.diffusion(t)) ** 2 / float(process.sigma(t)) ** 2
    assert ratio == pytest.approx(limit, rel=1e-6)


@given(s=times_, t=times_)
def test_the_variance_of_the_subvp_kernel(s, t):
    """expm1(-(B_t - B_s)) expm1(-(B_t + B_s)) = sigma_t^2 - a^2 sigma_s^2, which cancels for s near t."""
    s, t = sorted((s, t))
    process = SubVPSDE()
    scale, std = process.transition(s, t)
    difference = float(process.sigma(t)) ** 2 - float(scale * process.sigma(s)) ** 2
    assert float(std) ** 2 == pytest.approx(difference, rel=1e-9, abs=1e-15)
    assert float(scale) == pytest.approx(math.exp(-0.5 * (b(t) - b(s))), rel=1e-13)


@given(process=sdes(), a=times_, b=times_, c=times_)
def test_kernels_compose(process, a, b, c):
    """Chapman-Kolmogorov: from s to t to u is from s to u; from 0 it is the marginal (squares underflow at 1e-150)."""
    s, t, u = sorted(process.T * v for v in (a, b, c))
    (a1, s1), (a2, s2), (a3, s3) = process.transition(s, t), process.transition(t, u), process.transition(s, u)
    assert float(a3) == pytest.approx(float(a1 * a2), rel=1e-12)
    assert float(s3) ** 2 == pytest.approx(float((a2 * s1).square() + s2.square()), rel=1e-9, abs=1e-150)
    a0, s0 = process.transition(0.0, u)
    assert float(a0) == pytest.approx(float(process.alpha(u)), rel=1e-14)
    assert float(s0) == pytest.approx(float(process.sigma(u)), rel=1e-12, abs=1e-150)


@given(process=sdes(), t=times_)
def test_no_time_no_change(process, t):
    scale, std = process.transition(t * process.T, t * process.T)
    assert (float(scale), float(std)) == (1.0, 0.0)


@given(process=sdes(), fraction=st.floats(1e-6, 1.0), x=st.floats(-10.0, 10.0))
def test_coefficients_fit_the_marginals(process, fraction, x):
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, by automatic differentiation."""
    t = fraction * process.T
    time = torch.tensor(t, dtype=torch.float64)
    d_alpha = float(torch.autograd.functional.jacobian(process.alpha, time))
    d_variance = float(torch.autograd.functional.jacobian(lambda t: process.sigma(t).square(), time))
    f, g2, variance = (
        float(process.drift_coefficient(t)),
        float(process.diffusion(t)) ** 2,
        float(process.sigma(t)) ** 2,
    )
    assert d_alpha == pytest.approx(f * float(process.alpha(t)), rel=1e-12)
    assert d_variance == pytest.approx(2 * f * variance + g2, rel=1e-9, abs=1e-12 * g2)
    assert float(process.drift(torch.tensor([[x]], dtype=torch.float64), t)) == f * x


@given(process=sdes(), fraction=times_)
def test_every_schedule_inverts(process, fraction):
    std = fraction * float(process.sigma(process.T))
    assert float(process.sigma(process.time_at(std))) == pytest.approx(std, rel=1e-9, abs=1e-150)


@each_whole_sde
def test_single_precision_keeps_its_digits_down_to_zero(process):
    """Relative error of float32 against float64 for t down to 1e-12; the naive 1 - exp loses all digits."""
    t = torch.logspace(-12, 0, 200)
    wide = t.double()
    for name in ("alpha", "sigma", "diffusion", "drift_coefficient"):
        narrow, exact = getattr(process, name)(t), getattr(process, name)(wide)
        assert narrow.dtype == torch.float32
        assert torch.allclose(narrow.double(), exact, rtol=3e-6, atol=0), name
    for narrow, exact in zip(process.transition(0.5 * t, t), process.transition(0.5 * wide, wide), strict=True):
        assert torch.allclose(narrow.double(), exact, rtol=3e-6, atol=0)
    std = process.sigma(t[t < 0.5])
    assert torch.allclose(process.time_at(std).double(), process.time_at(std.double()), rtol=3e-6, atol=0)


@each_linear_sde
def test_half_precision_times_are_raised(process):
    """Coefficients never come out below float32."""
    t = torch.tensor([0.0, 0.5], dtype=torch.bfloat16) * 0.01
    assert process.sigma(t).dtype == process.alpha(t).dtype == process.diffusion(t).dtype == torch.float32
    x = torch.ones(2, 3, dtype=torch.float16)
    assert process.drift(x, torch.tensor([0.0, 0.01])).dtype == torch.float16


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize(("s", "t"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (0.5, math.nan)])
def test_transitions_against_time_or_beyond_it_are_refused(process, s, t):
    with pytest.raises(ArgumentError, match=r"^s, t: got .*; expected 0 <= s <= t <= T"):
        process.transition(s * process.T, t * process.T)
    rows = torch.tensor([0.1, t]) * process.T
    with pytest.raises(ArgumentError, match=r"^s, t: got"):
        process.transition(torch.tensor([0.0, s]) * process.T, rows)


# How much noise.


@pytest.mark.parametrize(
    ("build", "std", "T"),
    [
        (VPSDE.at_noise, 10 * LEVEL, 0.0203796078),
        (SubVPSDE.at_noise, 10 * LEVEL, 0.0857168119),
        (VESDE.at_noise, 10 * LEVEL, 0.2427679676),
        (LinearVESDE.at_noise, 10 * LEVEL, 10 * LEVEL),
    ],
)
def test_ten_levels(build, std, T):
    process = build(std)
    assert math.isclose(process.T, T, rel_tol=5e-9)
    assert float(process.sigma(process.T)) == pytest.approx(std, rel=1e-14)


@pytest.mark.parametrize(
    ("levels", "vp", "subvp", "ve"),
    [
        (10.0, 0.02038, 0.08572, 0.2428),
        (10.0 * math.sqrt(math.pi / 2.0), 0.02662, 0.09708, 0.2689),
        (10.0 * 0.5, 0.008389, 0.05858, 0.1641),
    ],
    ids=["std", "mean absolute value", "data on [0, 1] have levels half as wide"],
)
def test_other_readings_of_ten_levels(levels, vp, subvp, ve):
    """What T is if "about 10" is not the standard deviation on [-1, 1]."""
    for kind, T in ((VPSDE, vp), (SubVPSDE, subvp), (VESDE, ve)):
        assert math.isclose(kind.at_noise(levels * LEVEL).T, T, rel_tol=5e-4)


def test_other_readings_under_song_s_ve():
    for levels, T in ((10.0, 0.2418), (12.533, 0.2683), (5.0, 0.1604)):
        assert math.isclose(VESDE.at_noise(levels * LEVEL, song=True).T, T, rel_tol=5e-4)


@pytest.mark.parametrize(("kind", "T"), [(VPSDE, 0.02037), (SubVPSDE, 0.08421), (VESDE, 0.2428)])
def test_root_mean_square_change_of_ten_levels(kind, T):
    """With the shrinking included: E (x_T - x_0)^2 = (1 - alpha)^2 E x^2 + sigma^2, E x^2 = 0.2557."""
    process = kind()

    def change(t):
        shrink = (1.0 - float(process.alpha(t))) ** 2 * 0.2557
        return math.sqrt(shrink + float(process.sigma(t)) ** 2) / LEVEL

    assert change(T) == pytest.approx(10.0, rel=1.5e-3)


@pytest.mark.parametrize(
    ("name", "alpha", "shrink"), [("vp", 0.99692, 0.39), ("subvp", 0.95998, 5.10), ("ve", 1.0, 0.0)]
)
def test_shrinking_at_ten_levels(name, alpha, shrink):
    process = SDES[name]
    assert float(process.alpha(process.T)) == pytest.approx(alpha, abs=5e-6)
    assert (1.0 - float(process.alpha(process.T))) / LEVEL == pytest.approx(shrink, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "crossings", "shares"),
    [
        ("vp", (5.5e-5, 1.52e-4, 5.82e-4), (0.003, 0.007, 0.029)),
        ("subvp", (0.01116, 0.01547, 0.02355), (0.130, 0.181, 0.275)),
        ("ve", (0.00316, 0.00840, 0.02815), (0.013, 0.035, 0.116)),
    ],
)
def test_times_at_which_small_levels_are_crossed(name, crossings, shares):
    process = SDES[name]
    for levels, crossing, share in zip((0.3, 0.5, 1.0), crossings, shares, strict=True):
        t = float(process.time_at(levels * LEVEL))
        assert t == pytest.approx(crossing, rel=1e-2)
        assert t / process.T == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize(
    ("process", "levels"),
    [
        (VPSDE.paper(as_printed=True), 41.06),
        (SubVPSDE.paper(as_printed=True), 1.107),
        (VESDE.paper(as_printed=True), 90.15),
        (VPSDE.paper(), 11.88),
        (SubVPSDE.paper(), 13.22),
        (VESDE.paper(), 12.69),
        (VESDE(T=0.5, sigma_max=1.0, song=True), 12.75),
        (VESDE(T=0.1), 2.70),
        (VESDE(T=0.1, song=True), 2.99),
        (VESDE(T=0.025), 0.93),
        (VPSDE(T=0.5), 122.4),
        (SubVPSDE(T=0.5), 117.4),
    ],
)
def test_noise_at_the_papers_times(process, levels):
    assert float(process.sigma(process.T)) / LEVEL == pytest.approx(levels, abs=0.06 if levels > 100 else 0.006)


def test_the_printed_times_of_vp_and_subvp_are_exchanged():
    """Only the exchanged values give about ten levels, and let sub-VP cross one level in mean |noise|."""
    assert (VPSDE.paper().T, VPSDE.paper(as_printed=True).T) == (0.025, 0.1)
    assert (SubVPSDE.paper().T, SubVPSDE.paper(as_printed=True).T) == (0.1, 0.025)
    mean_abs = {p: math.sqrt(2 / math.pi) * float(p.sigma(p.T)) / LEVEL for p in (VPSDE.paper(), SubVPSDE.paper())}
    assert list(mean_abs.values()) == pytest.approx([9.48, 10.55], abs=6e-3)
    printed = SubVPSDE.paper(as_printed=True)
    assert math.sqrt(2 / math.pi) * float(printed.sigma(printed.T)) / LEVEL == pytest.approx(0.88, abs=5e-3)


@given(std=st.floats(1e-6, 0.999))
def test_at_noise_reaches_the_noise(std):
    for kind in (VPSDE, SubVPSDE, VESDE, LinearVESDE):
        process = kind.at_noise(std)
        assert float(process.sigma(process.T)) == pytest.approx(std, rel=1e-9)
    assert VESDE.linear(std) == LinearVESDE.at_noise(std) == LinearVESDE(T=std)


def test_at_noise_keeps_the_schedule():
    assert VPSDE.at_noise(0.1, beta_min=1.0, beta_max=2.0) == VPSDE(
        T=VPSDE.at_noise(0.1, beta_min=1.0, beta_max=2.0).T, beta_min=1.0, beta_max=2.0
    )
    assert VESDE.at_noise(0.1, sigma_max=1.0).sigma_max == 1.0
    constant = VPSDE.at_noise(0.5, beta_min=2.0, beta_max=2.0)
    assert math.isclose(constant.T, -math.log(0.75) / 2.0, rel_tol=1e-14)


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE])
@pytest.mark.parametrize("std", [1.0, 1.5, 0.0, -0.1, math.nan])
def test_noise_that_cannot_be_reached(kind, std):
    with pytest.raises(ArgumentError, match=r"^std: got"):
        kind.at_noise(std)


def test_bad_schedules():
    with pytest.raises(ArgumentError, match=r"^std: got"):
        VESDE.at_noise(0.01, song=True)
    with pytest.raises(ArgumentError, match=r"^sigma_max: got"):
        VESDE(sigma_min=0.02, sigma_max=0.01)
    with pytest.raises(ArgumentError, match=r"^beta_min: got"):
        VPSDE(beta_min=0.0)


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE])
def test_schedules_may_fall_while_they_stay_positive(kind):
    """beta(t) = 2 - t, whose integral is 2t - t^2 / 2."""
    process = kind(T=1.9, beta_min=2.0, beta_max=1.0)
    assert float(process.alpha(1.9)) == pytest.approx(math.exp(-0.5 * (3.8 - 1.9**2 / 2)), rel=1e-14)
    assert float(process.time_at(float(process.sigma(1.8)))) == pytest.approx(1.8, rel=1e-9)
    reached = kind.at_noise(0.7, beta_min=2.0, beta_max=1.0)
    assert float(reached.sigma(reached.T)) == pytest.approx(0.7, rel=1e-12)
    for T in (2.0, 3.0):
        with pytest.raises(ArgumentError, match=r"^T: got"):
            kind(T=T, beta_min=2.0, beta_max=1.0)


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE, VESDE, LinearVESDE, LevelNoise])
def test_settings_are_stored_as_floats(kind):
    process = kind(T=1)
    assert type(process.T) is float
    assert process == kind(T=1.0)
    assert hash(process) == hash(kind(T=1.0))
    assert repr(process) == repr(kind(T=1.0))


def test_lattice_width_is_the_level():
    assert Lattice(256).width == LEVEL


def fokker_planck_residual(process, t: float, f: Tensor, g2: Tensor) -> float:
    """Largest relative residual of d_t log p = -D f - f x.s + g^2 (div s + |s|^2) / 2.

    For a mixture in two dimensions, at 200 points. It ties together alpha, sigma, f, g and the score.
    """
    density = plane_mixture(process)
    x = 2.0 * torch.rand(200, 2, generator=seeded(3), dtype=torch.float64) - 1.0
    times = torch.full((200,), t, dtype=torch.float64, requires_grad=True)
    (rate,) = torch.autograd.grad(density.forward(x, times).sum(), times)
    score, divergence = density.score(x, t), exact_divergence(density, x, t)
    terms = torch.stack(
        [-2.0 * f.expand(200), -f * (x * score).sum(1), 0.5 * g2 * divergence, 0.5 * g2 * score.square().sum(1)]
    )
    return float(((rate - terms.sum(0)).abs() / (1.0 + terms.abs().sum(0))).max())


@each_whole_sde
@pytest.mark.parametrize("t", [1e-6, 1e-4, 0.02, 0.3, 1.0])
def test_fokker_planck(process, t):
    assert fokker_planck_residual(process, t, process.drift_coefficient(t), process.diffusion(t).square()) < 1e-12


@each_whole_sde
def test_fokker_planck_notices_wrong_coefficients(process):
    """Power of the test above: no drift for drift, g for g^2 and one per cent of g leave a residual."""
    t = 0.02
    f, g = process.drift_coefficient(t), process.diffusion(t)
    for wrong_f, wrong_g2 in ((f + 0.1, g.square()), (f, g), (f, 1.01 * g.square())):
        assert fokker_planck_residual(process, t, wrong_f, wrong_g2) > 1e-4


def test_schedules_are_not_shared():
    """Equal T, other schedule: another process."""
    assert replace(VPSDE(), beta_max=10.0) != VPSDE()
    assert VPSDE(T=0.1) != SubVPSDE(T=0.1)


@pytest.mark.parametrize("data_std", [1e-3, 0.5, 2.0])
@pytest.mark.parametrize("std", [1e-4, 10 * LEVEL, 0.7])
def test_at_noise_of_the_difference_is_the_closed_form(std, data_std):
    """With b = 1 - alpha(T): VP solves b^2 s^2 + b (2 - b) = std^2, sub-VP b^2 (s^2 + (2 - b)^2) = std^2."""
    vp = VPSDE.at_noise(std, data_std=data_std)
    b = std**2 / (1.0 + math.sqrt(1.0 + (data_std**2 - 1.0) * std**2))
    assert math.isclose(-math.expm1(0.5 * math.log(1.0 - float(vp.sigma(vp.T)) ** 2)), b, rel_tol=1e-6)
    assert math.isclose(0.1 * vp.T + 9.95 * vp.T**2, -2.0 * math.log1p(-b), rel_tol=1e-12)
    sub = SubVPSDE.at_noise(std, data_std=data_std, beta_max=10.0)
    b = -math.expm1(-0.5 * (0.1 * sub.T + 4.95 * sub.T**2))
    assert math.isclose(b * math.hypot(data_std, 2.0 - b), std, rel_tol=1e-12)


def test_the_papers_ten_levels_to_the_letter():
    """Ten levels of noise are more than ten of x_T - x_0, by what sub-VP shrinks images of standard deviation 0.57."""
    noise = SubVPSDE.at_noise(10 * LEVEL)
    difference = math.hypot((1.0 - float(noise.alpha(noise.T))) * 0.57, float(noise.sigma(noise.T)))
    assert round(difference / LEVEL, 2) == 10.41
    letter = SubVPSDE.at_noise(10 * LEVEL, data_std=0.57)
    assert letter.T < noise.T
    x = 0.57 * torch.randn(1_000_000, generator=seeded(0), dtype=torch.float64)
    moved = letter.perturb(x, letter.T, generator=seeded(1)) - x
    assert abs(float(moved.std()) / LEVEL - 10.0) < 0.04  # its standard error is 0.007
    with pytest.raises(ArgumentError, match="data_std"):
        VPSDE.at_noise(0.1, data_std=-1.0)


def test_inverses_take_what_their_own_functions_return():
    """In float32, at both ends, also where a process starts with noise."""
    for process in (VESDE(song=True), VPSDE.at_noise(0.5), VESDE.linear(1.0)):
        for t in (0.0, process.T):
            times = torch.full((1,), t)
            assert float(process.time_at(process.sigma(times))) == pytest.approx(t, abs=1e-6)
            if math.isfinite(float(process.log_snr(times))):
                assert float(process.time_at_log_snr(process.log_snr(times))) == pytest.approx(t, abs=1e-6)


def test_the_largest_time_rounded_to_float32():
    """As a number and as a tensor, of float64 data too; more than rounding is refused."""
    process = VPSDE.at_noise(2.0 * Lattice(17).width)
    density = GaussianDensity(process, torch.zeros(2), 1.0)
    rounded = torch.tensor(process.T)
    assert float(rounded) != process.T
    for x in (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.float64)):
        expected = density.log_prob(x, process.T)
        for t in (rounded, float(rounded), rounded.double()):
            torch.testing.assert_close(density.log_prob(x, t), expected, rtol=1e-6, atol=0.0)
        with pytest.raises(ArgumentError, match="t: got"):
            density.log_prob(x, process.T * (1.0 + 1e-5))
