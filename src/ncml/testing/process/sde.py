"""Checks of the SDE of a Gaussian process: f, g and transitions belong to alpha and sigma."""

from __future__ import annotations

import math

import torch

from ncml.noise import GaussianProcess
from ncml.testing.cases import ProcessCase
from ncml.testing.expectations import expect, expect_close, expect_relative, require
from ncml.testing.numerics import integrate
from ncml.testing.process.gaussian import gaussian_process


def noise_gained(process: GaussianProcess, start: float, length: float) -> float:
    r""":math:`\int g^2 / \alpha^2` from ``start``: the noise gained, seen from t = 0."""
    return integrate(lambda t: (process.diffusion(t) / process.alpha(t)).square(), start, length)


def alpha_solves_the_drift(case: ProcessCase) -> None:
    process = gaussian_process(case)
    for t in (1e-4 * process.T, 0.3 * process.T, process.T):
        expect_relative(
            process.alpha(t),
            torch.tensor(math.exp(integrate(process.drift_coefficient, 0.0, t)), dtype=torch.float64),
            1e-6,
            f"alpha({t:.3g})",
            "alpha = exp(integral of f): drift_coefficient and alpha belong to different SDEs (a sign? a factor 1/2?)",
        )


def sigma_solves_the_diffusion(case: ProcessCase) -> None:
    process = gaussian_process(case)
    start = float(process.sigma(0.0)) ** 2
    for t in (1e-4 * process.T, 0.3 * process.T, process.T):
        expect_relative(
            process.sigma(t),
            process.alpha(t) * math.sqrt(start + noise_gained(process, 0.0, t)),
            1e-6,
            f"sigma({t:.3g})",
            "sigma^2 = alpha^2 (sigma(0)^2 + integral of g^2 / alpha^2), where sigma is a standard deviation",
        )


def drift_is_linear(case: ProcessCase) -> None:
    process = gaussian_process(case)
    coefficients = process.drift_coefficient(case.times).reshape(-1, *([1] * (case.x.ndim - 1)))
    drift = process.drift(case.x, case.times)
    expect_close(drift, coefficients * case.x, 1e-12, "drift(x, t)", "drift is drift_coefficient(t) x, row by row")
    dtype = process.drift(case.x.float(), case.times).dtype
    expect(dtype == torch.float32, f"drift in {dtype} of float32 data", "float32", "the drift has the dtype of x")


def transition_from_zero_is_the_kernel(case: ProcessCase) -> None:
    process = gaussian_process(case)
    require(case.starts_at_data, "starts_at_data=False")
    for t in (1e-4 * process.T, 0.3 * process.T, process.T):
        scale, std = process.transition(0.0, t)
        meaning = "transition(0, t) is the distribution of x_t given the data: (alpha(t), sigma(t))"
        expect_relative(scale, process.alpha(t), 1e-9, f"scale of transition(0, {t:.3g})", meaning)
        expect_relative(std, process.sigma(t), 1e-9, f"std of transition(0, {t:.3g})", meaning)


def transitions_compose(case: ProcessCase) -> None:
    process = gaussian_process(case)
    T = process.T
    for s, u, t in ((0.0, 0.2 * T, T), (0.3 * T, 0.5 * T, 0.9 * T), (0.5 * T, 0.501 * T, 0.502 * T)):
        (a, v), (b, w), (c, z) = (process.transition(*pair) for pair in ((s, u), (u, t), (s, t)))
        meaning = "going from s to t by way of u is going from s to t; in sub-VP, B_t + B_s and B_t - B_s differ"
        expect_relative(c, a * b, 1e-8, f"scale of transition({s:.3g}, {t:.3g})", meaning)
        expect_relative(
            z, ((b * v).square() + w.square()).sqrt(), 1e-8, f"std of transition({s:.3g}, {t:.3g})", meaning
        )
        marginal = ((c * process.sigma(s)).square() + z.square()).sqrt()
        expect_relative(
            marginal, process.sigma(t), 1e-8, f"noise at {t:.3g} by way of {s:.3g}", "transitions must lead to sigma(t)"
        )


def short_transitions_are_precise(case: ProcessCase) -> None:
    process = gaussian_process(case)
    s = 0.5 * process.T
    for relative, dtype, tolerance in ((1e-9, torch.float64, 1e-5), (1e-3, torch.float32, 1e-2)):
        start = torch.tensor(s, dtype=dtype)
        end = torch.tensor(s + relative * process.T, dtype=dtype)
        _, std = process.transition(start, end)
        gained = noise_gained(process, float(start), float(end.double() - start.double()))
        expect_relative(
            std,
            process.alpha(end.double()) * math.sqrt(gained),
            tolerance,
            f"std of a transition over {relative:.0e} T in {dtype}",
            "the difference of two variances cancels; write it as a product with expm1 of the integral over the gap",
        )


def fokker_planck_is_that_of_the_sde(case: ProcessCase) -> None:
    """Normal data have the derivative in closed form, from f and g."""
    process = gaussian_process(case)
    x = case.x.double()
    dims = x[0].numel()
    for t in (0.1 * process.T, process.T):
        f, g = float(process.drift_coefficient(t)), float(process.diffusion(t))
        variance = float(process.alpha(t)) ** 2 + float(process.sigma(t)) ** 2
        squared = x.flatten(1).square().sum(1)
        rise = 0.5 * (squared / variance - dims) / variance * (2.0 * f * variance + g * g)
        divergence = torch.full_like(rise, -dims / variance)
        residual = process.fokker_planck(x, t, rise, -x / variance, divergence)
        size = rise.abs() + dims * abs(f) + 0.5 * g * g * (dims / variance + squared / variance**2)
        expect(
            bool((residual.abs() <= 1e-9 * size).all()),
            f"fokker_planck(...) up to {float(residual.abs().max()):.3g} at t = {t:.3g} for normal data",
            "0",
            "the residual of a density that belongs to the process: D f + f x.s - g^2 (div s + |s|^2) / 2 is off",
        )


CHECKS = (
    alpha_solves_the_drift,
    sigma_solves_the_diffusion,
    drift_is_linear,
    transition_from_zero_is_the_kernel,
    transitions_compose,
    short_transitions_are_precise,
    fokker_planck_is_that_of_the_sde,
)
