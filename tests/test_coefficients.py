"""Processes known by two functions: coefficients by differentiation, and times from the log signal-to-noise ratio."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncml import VESDE, VPSDE, GaussianProcess, LevelNoise, SubVPSDE
from ncml.errors import ArgumentError
from tests.problems import LINEAR_SDES, PROCESSES, WHOLE_SDES, each_process, mixture, plane_mixture, seeded

F64 = torch.float64
CLOSED = {**LINEAR_SDES, **{f"whole-{name}": process for name, process in WHOLE_SDES.items()}}
COSINE = PROCESSES["cosine"]
FRACTIONS = (1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.9, 1.0)

each_closed = pytest.mark.parametrize("process", CLOSED.values(), ids=CLOSED.keys())
each_mode = pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])


def as_functions(process) -> GaussianProcess:
    """The same alpha and sigma, and nothing else: no closed form of a coefficient or of an inverse."""
    return GaussianProcess(process.alpha, process.sigma, T=process.T)


def times(process) -> torch.Tensor:
    return process.T * torch.tensor(FRACTIONS, dtype=F64)


# Coefficients.


@each_closed
@each_mode
def test_coefficients_are_those_of_the_closed_form(process, mode):
    found = as_functions(process)
    with mode():
        t = times(process)
        for name in ("drift_coefficient", "diffusion"):
            ours, exact = getattr(found, name)(t), getattr(process, name)(t)
            assert ours.shape == exact.shape
            assert ours.dtype == F64
            assert torch.allclose(ours, exact, rtol=1e-9, atol=0.0)
            one_by_one = torch.stack([getattr(found, name)(float(v)) for v in t])
            assert torch.allclose(one_by_one, exact, rtol=1e-9, atol=0.0)
            assert not ours.requires_grad
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)


@each_mode
def test_the_coefficients_of_a_cosine_schedule(mode):
    """alpha = cos, sigma = sin: f = -tan t and g^2 = 2 tan t."""
    with mode():
        t = times(COSINE)
        assert torch.allclose(COSINE.drift_coefficient(t), -t.tan(), rtol=1e-12, atol=0.0)
        assert torch.allclose(COSINE.diffusion(t), (2.0 * t.tan()).sqrt(), rtol=1e-9, atol=0.0)


@each_closed
@each_mode
def test_transitions_are_those_of_the_closed_form(process, mode):
    found, steps = as_functions(process), [(0.0, 1e-6), (0.0, 1.0), (1e-6, 1e-4), (1e-3, 0.1), (0.1, 0.5), (0.5, 1.0)]
    with mode():
        for s, t in steps:
            for ours, exact in zip(
                found.transition(s * process.T, t * process.T),
                process.transition(s * process.T, t * process.T),
                strict=True,
            ):
                assert float(ours) == pytest.approx(float(exact), rel=1e-9)
        scale, std = found.transition(torch.full((3,), 0.5 * process.T, dtype=F64), process.T)
        assert scale.shape == std.shape == (3,)


@each_closed
def test_transitions_without_a_step_change_nothing(process):
    for fraction in (0.0, 0.3, 1.0):
        scale, std = as_functions(process).transition(fraction * process.T, fraction * process.T)
        assert (float(scale), float(std)) == (1.0, 0.0)


@each_closed
def test_the_limits_at_zero_are_finite(process):
    """At t = 0, where sigma may rise infinitely steeply, the limit: to 1e-6 of what it is at T."""
    found = as_functions(process)
    for name in ("drift_coefficient", "diffusion"):
        exact, scale = (float(getattr(process, name)(t)) for t in (0.0, process.T))
        slack = 2e-4 if name == "diffusion" and exact == 0.0 else 1e-6  # there it rises as a root
        assert float(getattr(found, name)(0.0)) == pytest.approx(exact, rel=1e-5, abs=slack * abs(scale))


def test_coefficients_keep_the_dtype_and_shape_of_the_time():
    for t in (torch.tensor(0.05), torch.full((3,), 0.05), torch.full((3,), 0.05, dtype=torch.bfloat16)):
        for value in (COSINE.drift_coefficient(t), COSINE.diffusion(t)):
            assert value.dtype == torch.float32
            assert value.shape == t.shape
    assert COSINE.drift_coefficient(0.05).dtype == F64
    assert COSINE.drift(torch.ones(2, 3), torch.full((2,), 0.05)).shape == (2, 3)


def test_a_constant_alpha_has_no_drift():
    flat = GaussianProcess(lambda t: torch.ones_like(t), lambda t: t, T=1.0)
    t = torch.linspace(0.0, 1.0, 5, dtype=F64)
    assert torch.equal(flat.drift_coefficient(t), torch.zeros(5, dtype=F64))
    assert torch.allclose(flat.diffusion(t[1:]), (2.0 * t[1:]).sqrt(), rtol=1e-12)


def test_coefficients_leave_the_time_alone():
    t = times(COSINE).requires_grad_()
    before = t.detach().clone()
    COSINE.drift_coefficient(t), COSINE.diffusion(t)
    assert torch.equal(t.detach(), before)
    assert t.grad is None


def residual(density, process, f, g2, t: float) -> float:
    """How far d/dt log p is from the Fokker-Planck equation's, relative to its size."""
    x = torch.randn(64, *density.event_shape, generator=seeded(3), dtype=F64).requires_grad_()
    times = torch.full((64,), t, dtype=F64, requires_grad=True)
    log_p = density(x, times)
    score, rate = torch.autograd.grad(log_p.sum(), (x, times), create_graph=True)
    divergence = sum(
        torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(density.event_shape[0])
    )
    dims = density.event_shape[0]
    expected = -f * (dims + (x * score).sum(1)) + 0.5 * g2 * (divergence + score.square().sum(1))
    return float((rate - expected).detach().norm() / rate.detach().norm())


@pytest.mark.parametrize("fraction", [1e-3, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("make", [mixture, plane_mixture])
def test_a_mixture_under_a_cosine_schedule_solves_the_fokker_planck_equation(make, fraction):
    """d/dt log p = -f (D + x . s) + g^2 / 2 (div s + |s|^2), with the coefficients found by differentiation."""
    t = fraction * COSINE.T
    f, g2 = float(COSINE.drift_coefficient(t)), float(COSINE.diffusion(t)) ** 2
    assert residual(make(COSINE), COSINE, f, g2, t) < 1e-9
    assert residual(make(COSINE), COSINE, f, 1.01 * g2, t) > 1e-3  # power
    assert residual(make(COSINE), COSINE, 0.0, g2, t) > 1e-6


# Times from the log signal-to-noise ratio.


@given(
    name=st.sampled_from([*CLOSED, "cosine"]),
    exponent=st.floats(-6.0, 0.0),
    as_function=st.booleans(),
)
def test_the_time_of_a_log_snr_round_trips(name, exponent, as_function):
    """By closed form and by bisection, from a millionth of T on."""
    process = {**CLOSED, "cosine": COSINE}[name]
    process = as_functions(process) if as_function else process
    t = 10.0**exponent * process.T
    found = process.time_at_log_snr(process.log_snr(t))
    assert found.dtype == F64
    # Of the whole schedules log_snr is flat near T: compared there is what it says, not when.
    assert float(process.log_snr(found)) == pytest.approx(float(process.log_snr(t)), rel=1e-11, abs=1e-11)
    if not name.startswith("whole"):
        assert float(found) == pytest.approx(t, rel=1e-10)


@each_process
def test_the_ends_of_the_range(process):
    for form in (process, as_functions(process)):
        assert float(form.time_at_log_snr(math.inf)) == 0.0
        assert float(form.time_at_log_snr(form.log_snr(form.T))) == form.T
        both = form.time_at_log_snr(torch.tensor([math.inf, float(form.log_snr(form.T))], dtype=F64))
        assert both.tolist() == [0.0, form.T]
        below = float(form.log_snr(form.T)) - 1e-6
        for bad in (below, -math.inf, math.nan):
            with pytest.raises(ArgumentError, match=r"^log_snr: got"):
                form.time_at_log_snr(bad)
    assert process.time_at_log_snr(torch.empty(0)).shape == (0,)


@each_process
def test_times_of_log_snrs_in_float32(process):
    t = process.T * torch.tensor([0.0, 0.01, 0.3, 1.0])
    found = process.time_at_log_snr(process.log_snr(t))
    assert found.dtype == torch.float32
    assert torch.allclose(found, t, rtol=1e-4, atol=0.0)


def test_a_process_with_noise_at_zero_has_a_largest_ratio():
    song = VESDE(song=True)
    top = float(song.log_snr(0.0))
    assert float(song.time_at_log_snr(top)) == pytest.approx(0.0, abs=1e-15)
    with pytest.raises(ArgumentError, match=r"^log_snr: got"):
        song.time_at_log_snr(math.inf)
    assert not hasattr(LevelNoise(17), "time_at_log_snr")


@pytest.mark.parametrize("kind", [VPSDE, SubVPSDE])
def test_the_ratio_of_a_level_is_kept_where_sigma_is_small(kind):
    """Far below a level exp(-log_snr) is tiny: log1p and asinh keep its digits."""
    process = kind()
    for log_snr in (30.0, 40.0, 60.0):
        assert float(process.log_snr(process.time_at_log_snr(log_snr))) == pytest.approx(log_snr, rel=1e-13)
