"""Checks of Gaussian processes: alpha and sigma, their inverses, and what becomes of data."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ncml.noise import GaussianProcess
from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import expect, expect_close, expect_refused, expect_relative, require
from ncml.testing.independence import expect_independent_columns, expect_independent_rows
from ncml.testing.numerics import FALSE_ALARM, Z, cdf_distance, chi2_tail, dkw_bound, poisson_tail

DRAWS = 50_000
"""Values per statistical comparison: a relative error of 3 % in the variance is seen."""

TAIL_DRAWS, TAILS = 200_000, (3.0, 3.5, 4.0)
"""Values whose independence and tails are looked at, and where the tails begin."""


def gaussian_process(case: ProcessCase) -> GaussianProcess:
    """The process, if it is Gaussian."""
    require(isinstance(case.process, GaussianProcess), "not a GaussianProcess")
    return cast(GaussianProcess, case.process)


def decades(process: GaussianProcess, lowest: int = -8) -> Tensor:
    """Times from ``10^lowest T`` to T, float64."""
    return process.T * torch.logspace(lowest, 0, 1 - 4 * lowest, dtype=torch.float64)


def coefficients_start_at_the_data(case: ProcessCase) -> None:
    process = gaussian_process(case)
    expect(
        float(process.alpha(0.0)) == 1.0,
        f"alpha(0) = {float(process.alpha(0.0)):.9g}",
        "1, exactly",
        "the data are shrunk at t = 0",
    )
    if case.starts_at_data:
        expect(
            float(process.sigma(0.0)) == 0.0,
            f"sigma(0) = {float(process.sigma(0.0)):.9g}",
            "0, exactly",
            "p_0 would be the distribution of noisy data, as with sigma = sigma_min r^t of the VE SDE; "
            "start at the data, or pass starts_at_data=False",
        )


def coefficients_have_the_shape_of_t(case: ProcessCase) -> None:
    process = gaussian_process(case)
    for name in ("alpha", "sigma", "log_snr", "drift_coefficient", "diffusion"):
        for t in (0.5 * process.T, case.times[1:], case.times[1:].float()):
            value = getattr(process, name)(t)
            shape = tuple(t.shape) if isinstance(t, Tensor) else ()
            dtype = t.dtype if isinstance(t, Tensor) else torch.float64
            expect(
                isinstance(value, Tensor) and (tuple(value.shape), value.dtype) == (shape, dtype),
                f"{name}(t) = {value!r}",
                f"a tensor of shape {shape} and dtype {dtype}",
                "coefficients follow t; a Python float gives a 0-d float64 tensor",
            )
            expect(torch.isfinite(value).all(), f"{name}(t) = {value}", "finite values", "it is used at every t")


def noise_grows_with_time(case: ProcessCase) -> None:
    process = gaussian_process(case)
    alpha, sigma = process.alpha(decades(process)), process.sigma(decades(process))
    expect((alpha > 0).all(), f"alpha down to {float(alpha.min()):.3g}", "alpha > 0", "the data would be lost")
    expect(
        (sigma.diff() > 0).all(),
        f"sigma that does not increase at {int((sigma.diff() <= 0).sum())} of {sigma.numel() - 1} steps",
        "a strictly increasing sigma",
        "time_at(sigma) needs an inverse; near t = 0 a constant sigma is a sign of cancellation (use expm1, log1p)",
    )


def coefficients_are_precise_in_float32(case: ProcessCase) -> None:
    process = gaussian_process(case)
    t = decades(process).float()
    for name in ("alpha", "sigma"):
        coefficient = getattr(process, name)
        expect_relative(
            coefficient(t),
            coefficient(t.double()),
            1e-5,
            f"{name} in float32",
            "its float64 value; 1 - exp(-b) cancels near t = 0: write -expm1(-b), and never subtract two integrals",
        )


def log_snr_is_that_of_alpha_and_sigma(case: ProcessCase) -> None:
    process = gaussian_process(case)
    t = decades(process)
    expected = 2.0 * (process.alpha(t).log() - process.sigma(t).log())
    expect_close(process.log_snr(t), expected, 1e-9, "log_snr", "log_snr is 2 log(alpha / sigma)")
    if case.starts_at_data:
        expect(
            float(process.log_snr(0.0)) == math.inf, f"log_snr(0) = {float(process.log_snr(0.0))}", "inf", "no noise"
        )


def perturb_applies_alpha_and_sigma(case: ProcessCase) -> None:
    process = gaussian_process(case)
    noise = case.noise(case.x)
    for t in (0.01 * process.T, process.T):
        expect_close(
            process.perturb(case.x, t, noise=noise),
            process.alpha(t) * case.x + process.sigma(t) * noise,
            1e-9,
            f"perturb at t = {t:.3g}",
            "x_t = alpha(t) x + sigma(t) noise; a common slip is to leave alpha out, or to use the variance for sigma",
        )


def perturbed_data_have_the_moments(case: ProcessCase) -> None:
    process = gaussian_process(case)
    x = case.x[:1].expand(-(-DRAWS // case.x[0].numel()), *case.x.shape[1:])
    for t in (0.01 * process.T, process.T):
        y = process.perturb(x, t, generator=case.generator())
        z = (y - process.alpha(t) * x) / process.sigma(t)
        n, where = z.numel(), f"at t = {t:.3g} over {z.numel()} draws"
        mean, total = float(z.mean()) * math.sqrt(n), float(z.square().sum())
        expect(
            abs(mean) <= Z, f"a mean {mean:.2f} standard errors from alpha x {where}", f"at most {Z}", "biased noise"
        )
        expect(
            chi2_tail(total, n) >= FALSE_ALARM,
            f"a variance of {total / n:.4f} sigma^2 {where}",
            "1 sigma^2",
            "the noise is not standard normal, or rows share it",
        )
        distance = cdf_distance(torch.special.ndtr(z))
        expect(
            distance <= dkw_bound(n),
            f"a distance of {distance:.4f} from the normal distribution {where}",
            f"at most {dkw_bound(n):.4f}",
            "the noise has the right variance, but is not normal",
        )


def noise_is_independent_and_has_its_tails(case: ProcessCase) -> None:
    process = gaussian_process(case)
    x = case.x[:1].expand(-(-TAIL_DRAWS // case.x[0].numel()), *case.x.shape[1:])
    t = process.T
    z = (process.perturb(x, t, generator=case.generator(3)) - process.alpha(t) * x) / process.sigma(t)
    where = f"of (x_t - alpha x) / sigma over {z.numel()} draws"
    meaning = "every value has its own standard normal: no shared, mirrored, filtered or reused draws"
    expect_independent_rows(z, case.generator(4), where, meaning)
    expect_independent_columns(z, case.generator(5), where, meaning)
    for edge in TAILS:
        count = int((z.abs() > edge).sum())
        expected = z.numel() * math.erfc(edge / math.sqrt(2.0))
        expect(
            poisson_tail(count, expected) >= FALSE_ALARM,
            f"{count} values {where} beyond {edge}",
            f"about {expected:.0f}",
            "the noise is clipped, or has other tails than a normal's",
        )


def on_lattice_only_at_zero(case: ProcessCase) -> None:
    process = gaussian_process(case)
    on = process.on_lattice(decades(process))
    expect(
        not on.any(),
        f"on_lattice true at {int(on.sum())} times > 0",
        "False at every t > 0",
        "Gaussian noise leaves the lattice at once; edge bins at t > 0 are not a density",
    )


def time_at_inverts_sigma(case: ProcessCase) -> None:
    process = gaussian_process(case)
    low, high = float(process.sigma(0.0)), float(process.sigma(process.T))
    sigma = low + (high - low) * torch.logspace(-4, 0, 17, dtype=torch.float64)
    t = process.time_at(sigma)
    _expect_times(process, t, "time_at")
    expect_relative(
        process.sigma(t), sigma, 1e-9, "sigma(time_at(sigma))", "the closed-form inverse belongs to another sigma"
    )
    expect_refused(
        lambda: process.time_at(2.0 * high), "sigma = 2 sigma(T)", (ValueError,), "the process never has that noise"
    )


def time_at_log_snr_inverts_log_snr(case: ProcessCase) -> None:
    process = gaussian_process(case)
    log_snr = process.log_snr(decades(process))
    t = process.time_at_log_snr(log_snr)
    _expect_times(process, t, "time_at_log_snr")
    expect_close(
        process.log_snr(t),
        log_snr,
        1e-9,
        "log_snr(time_at_log_snr(v)) against v",
        "the closed-form inverse, invert_log_snr, belongs to another alpha or sigma",
    )
    start = float(process.time_at_log_snr(process.log_snr(0.0)))
    expect(
        start == 0.0 if case.starts_at_data else start <= 1e-12 * process.T,
        f"time_at_log_snr(log_snr(0)) = {start:.3g}",
        "0",
        "t = 0 has the largest ratio, which is infinite where it is the data",
    )
    expect_refused(
        lambda: process.time_at_log_snr(process.log_snr(process.T) - 1.0),
        "log_snr(T) - 1",
        (ValueError,),
        "the process never has so much noise",
    )


def _expect_times(process: GaussianProcess, t: Tensor, name: str) -> None:
    expect(
        ((t >= 0) & (t <= process.T)).all(),
        f"{name} in [{float(t.min()):.3g}, {float(t.max()):.3g}]",
        f"times in [0, T = {process.T:.3g}]",
        "an inverse returns times of the process",
    )


CHECKS = (
    coefficients_start_at_the_data,
    coefficients_have_the_shape_of_t,
    noise_grows_with_time,
    coefficients_are_precise_in_float32,
    log_snr_is_that_of_alpha_and_sigma,
    perturb_applies_alpha_and_sigma,
    perturbed_data_have_the_moments,
    noise_is_independent_and_has_its_tails,
    on_lattice_only_at_zero,
    time_at_inverts_sigma,
    time_at_log_snr_inverts_log_snr,
)
