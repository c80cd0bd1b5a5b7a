"""Checks of Gaussian processes and linear SDEs."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ncml.noise import GaussianProcess, LinearSDE
from ncml.testing._cases import ProcessCase
from ncml.testing._common import expect, expect_close, expect_relative, require
from ncml.testing._numerics import FALSE_ALARM, Z, cdf_distance, chi2_tail, dkw_bound, integrate

DRAWS = 50_000
"""Values per statistical comparison: a relative error of 3 % in the variance is seen."""


def _gaussian(case: ProcessCase) -> GaussianProcess:
    require(isinstance(case.process, GaussianProcess), "not a GaussianProcess")
    return cast(GaussianProcess, case.process)


def _sde(case: ProcessCase) -> LinearSDE:
    require(isinstance(case.process, LinearSDE), "not a LinearSDE")
    return cast(LinearSDE, case.process)


def _noise_gained(sde: LinearSDE, start: float, length: float) -> float:
    r""":math:`\int g^2 / \alpha^2` from ``start``: the noise gained, seen from t = 0."""
    return integrate(lambda t: (sde.diffusion(t) / sde.alpha(t)).square(), start, length)


def _decades(process: GaussianProcess, lowest: int = -8) -> Tensor:
    """Times from ``10^lowest T`` to T, float64."""
    return process.T * torch.logspace(lowest, 0, 1 - 4 * lowest, dtype=torch.float64)


def coefficients_start_at_the_data(case: ProcessCase) -> None:
    process = _gaussian(case)
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
            "p_0 would be the law of noisy data, as with sigma = sigma_min r^t of the VE SDE; "
            "start at the data, or pass starts_at_data=False",
        )


def coefficients_have_the_shape_of_t(case: ProcessCase) -> None:
    process = _gaussian(case)
    for name in ("alpha", "sigma", "log_snr"):
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
    process = _gaussian(case)
    alpha, sigma = process.alpha(_decades(process)), process.sigma(_decades(process))
    expect((alpha > 0).all(), f"alpha down to {float(alpha.min()):.3g}", "alpha > 0", "the data would be lost")
    expect(
        (sigma.diff() > 0).all(),
        f"sigma that does not increase at {int((sigma.diff() <= 0).sum())} of {sigma.numel() - 1} steps",
        "a strictly increasing sigma",
        "time_at(sigma) needs an inverse; near t = 0 a constant sigma is a sign of cancellation (use expm1, log1p)",
    )


def coefficients_are_precise_in_float32(case: ProcessCase) -> None:
    process = _gaussian(case)
    t = _decades(process).float()
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
    process = _gaussian(case)
    t = _decades(process)
    expected = 2.0 * (process.alpha(t).log() - process.sigma(t).log())
    expect_close(process.log_snr(t), expected, 1e-9, "log_snr", "log_snr is 2 log(alpha / sigma)")
    if case.starts_at_data:
        expect(
            float(process.log_snr(0.0)) == math.inf, f"log_snr(0) = {float(process.log_snr(0.0))}", "inf", "no noise"
        )


def perturb_applies_alpha_and_sigma(case: ProcessCase) -> None:
    process = _gaussian(case)
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
    process = _gaussian(case)
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


def on_lattice_only_at_zero(case: ProcessCase) -> None:
    process = _gaussian(case)
    on = process.on_lattice(_decades(process))
    expect(
        not on.any(),
        f"on_lattice true at {int(on.sum())} times > 0",
        "False at every t > 0",
        "Gaussian noise leaves the lattice at once; edge bins at t > 0 are not a density",
    )


def alpha_solves_the_drift(case: ProcessCase) -> None:
    sde = _sde(case)
    for t in (1e-4 * sde.T, 0.3 * sde.T, sde.T):
        expect_relative(
            sde.alpha(t),
            torch.tensor(math.exp(integrate(sde.drift_coefficient, 0.0, t)), dtype=torch.float64),
            1e-6,
            f"alpha({t:.3g})",
            "alpha = exp(integral of f): drift_coefficient and alpha belong to different SDEs (a sign? a factor 1/2?)",
        )


def sigma_solves_the_diffusion(case: ProcessCase) -> None:
    sde = _sde(case)
    start = float(sde.sigma(0.0)) ** 2
    for t in (1e-4 * sde.T, 0.3 * sde.T, sde.T):
        expect_relative(
            sde.sigma(t),
            sde.alpha(t) * math.sqrt(start + _noise_gained(sde, 0.0, t)),
            1e-6,
            f"sigma({t:.3g})",
            "sigma^2 = alpha^2 (sigma(0)^2 + integral of g^2 / alpha^2), where sigma is a standard deviation",
        )


def time_at_inverts_sigma(case: ProcessCase) -> None:
    process = _gaussian(case)
    low = float(process.sigma(0.0))
    sigma = low + (float(process.sigma(process.T)) - low) * torch.logspace(-4, 0, 17, dtype=torch.float64)
    t = process.time_at(sigma)
    expect(
        ((t >= 0) & (t <= process.T)).all(),
        f"times in [{float(t.min()):.3g}, {float(t.max()):.3g}]",
        f"times in [0, T = {process.T:.3g}]",
        "time_at must return times of the process",
    )
    expect_relative(
        process.sigma(t), sigma, 1e-9, "sigma(time_at(sigma))", "the closed-form inverse belongs to another sigma"
    )


def drift_is_linear(case: ProcessCase) -> None:
    sde = _sde(case)
    coefficients = sde.drift_coefficient(case.times).reshape(-1, *([1] * (case.x.ndim - 1)))
    drift = sde.drift(case.x, case.times)
    expect_close(drift, coefficients * case.x, 1e-12, "drift(x, t)", "drift is drift_coefficient(t) x, row by row")
    dtype = sde.drift(case.x.float(), case.times).dtype
    expect(dtype == torch.float32, f"drift in {dtype} of float32 data", "float32", "the drift has the dtype of x")


def transition_from_zero_is_the_kernel(case: ProcessCase) -> None:
    sde = _sde(case)
    require(case.starts_at_data, "starts_at_data=False")
    for t in (1e-4 * sde.T, 0.3 * sde.T, sde.T):
        scale, std = sde.transition(0.0, t)
        meaning = "transition(0, t) is the law of x_t given the data: (alpha(t), sigma(t))"
        expect_relative(scale, sde.alpha(t), 1e-9, f"scale of transition(0, {t:.3g})", meaning)
        expect_relative(std, sde.sigma(t), 1e-9, f"std of transition(0, {t:.3g})", meaning)


def transitions_compose(case: ProcessCase) -> None:
    sde = _sde(case)
    T = sde.T
    for s, u, t in ((0.0, 0.2 * T, T), (0.3 * T, 0.5 * T, 0.9 * T), (0.5 * T, 0.501 * T, 0.502 * T)):
        (a, v), (b, w), (c, z) = (sde.transition(*pair) for pair in ((s, u), (u, t), (s, t)))
        meaning = "going from s to t by way of u is going from s to t; in sub-VP, B_t + B_s and B_t - B_s differ"
        expect_relative(c, a * b, 1e-8, f"scale of transition({s:.3g}, {t:.3g})", meaning)
        expect_relative(
            z, ((b * v).square() + w.square()).sqrt(), 1e-8, f"std of transition({s:.3g}, {t:.3g})", meaning
        )
        marginal = ((c * sde.sigma(s)).square() + z.square()).sqrt()
        expect_relative(
            marginal, sde.sigma(t), 1e-8, f"noise at {t:.3g} by way of {s:.3g}", "transitions must lead to sigma(t)"
        )


def short_transitions_are_precise(case: ProcessCase) -> None:
    sde = _sde(case)
    s = 0.5 * sde.T
    for relative, dtype, tolerance in ((1e-9, torch.float64, 1e-5), (1e-3, torch.float32, 1e-2)):
        start = torch.tensor(s, dtype=dtype)
        end = torch.tensor(s + relative * sde.T, dtype=dtype)
        _, std = sde.transition(start, end)
        gained = _noise_gained(sde, float(start), float(end.double() - start.double()))
        expect_relative(
            std,
            sde.alpha(end.double()) * math.sqrt(gained),
            tolerance,
            f"std of a transition over {relative:.0e} T in {dtype}",
            "the difference of two variances cancels; write it as a product with expm1 of the integral over the gap",
        )


CHECKS = (
    coefficients_start_at_the_data,
    coefficients_have_the_shape_of_t,
    noise_grows_with_time,
    coefficients_are_precise_in_float32,
    log_snr_is_that_of_alpha_and_sigma,
    perturb_applies_alpha_and_sigma,
    perturbed_data_have_the_moments,
    on_lattice_only_at_zero,
    alpha_solves_the_drift,
    sigma_solves_the_diffusion,
    time_at_inverts_sigma,
    drift_is_linear,
    transition_from_zero_is_the_kernel,
    transitions_compose,
    short_transitions_are_precise,
)
