"""Checks of the distribution that a sampler leads to."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch

from ncml.noise import GaussianProcess
from ncml.sampling.sampler import Sampler
from ncml.testing.cases import FEW, ROWS, SamplerCase
from ncml.testing.expectations import expect, require
from ncml.testing.independence import expect_independent_columns, expect_independent_rows
from ncml.testing.numerics import Z, cdf_distance, dkw_bound
from ncml.testing.reference import KnownMixture

COSINE = GaussianProcess(torch.cos, torch.sin, T=0.5)
"""A process known by two functions only, whose SDE has to be found from them."""

FEWEST_STEPS, FEWER_STEPS, MORE_STEPS, MANY_STEPS = 2, 4, 64, (32, 128)
LOOSE, TIGHT = 0.3, 1e-4
"""Error tolerances of adaptive samplers."""


def distribution_at_zero(case: SamplerCase) -> None:
    _samples_distribution(case)
    _compare(case, case.sampler, case.process.T, None)


def distribution_at_an_intermediate_time(case: SamplerCase) -> None:
    _samples_distribution(case)
    _compare(case, case.sampler, case.process.T, 0.3 * case.process.T)


def distribution_without_closed_forms(case: SamplerCase) -> None:
    _samples_distribution(case)
    require(isinstance(COSINE, case.sampler.needs), f"needs a {case.sampler.needs.__name__}")
    _compare(dataclasses.replace(case, process=COSINE), case.sampler, COSINE.T, None)


def distribution_of_a_mixture(case: SamplerCase) -> None:
    """Data whose score is no straight line: their distribution function."""
    _samples_distribution(case)
    density = KnownMixture(case.process)
    x = density.draw(ROWS // 2, case.process.T, case.generator(3))
    y = case.sampler(density, x, generator=case.generator(4))
    distance = cdf_distance(density.cdf(y, 0.0))
    allowed = case.tolerance + dkw_bound(y.numel())
    expect(
        distance <= allowed,
        f"a distance of {distance:.4f} from the distribution function of a mixture at t = 0",
        f"at most {allowed:.4f}",
        "the score is replaced, clamped, or taken at other points or times than it should be",
    )


def results_are_independent(case: SamplerCase) -> None:
    """Rows always, coordinates of independent data as well: few steps tell."""
    _samples_distribution(case)
    y = case.brief(case.density(), case.start(ROWS), generator=case.generator(2))
    where = f"over {ROWS} results"
    meaning = "every value has its own noise: draw a tensor of the shape of x for each step, and use it once"
    if not case.sampler.rows_interact:
        expect_independent_rows(y, case.generator(6), where, meaning)
    expect_independent_columns(y, case.generator(7), where, meaning, slack=0.4 * case.tolerance)


def noise_is_normal(case: SamplerCase) -> None:
    """From one point, in a few steps: under a linear score the result is as normal as the noise."""
    _samples_distribution(case)
    require(case.has_setting("steps"), "the number of steps is not a setting")
    x = case.start(1).expand(ROWS, -1).clone()
    y = case.with_settings(steps=FEWEST_STEPS)(case.density(), x, generator=case.generator(5))
    std = y.std(0)
    require(bool((std > 1e-9).all()), "it draws nothing")
    distance = cdf_distance(torch.special.ndtr((y - y.mean(0)) / std))
    allowed = case.tolerance + dkw_bound(y.numel())
    expect(
        distance <= allowed,
        f"a distance of {distance:.4f} from a normal distribution after {FEWEST_STEPS} steps from one point",
        f"at most {allowed:.4f}",
        "draw with target.normal, and each draw once",
    )


def chains_keep_the_distribution(case: SamplerCase) -> None:
    require(case.sampler.moves_in_place, "moves_in_place is False")
    for t in (0.3 * case.process.T, case.process.T):
        _compare(case, case.brief, t, t)


def more_steps_reduce_the_error(case: SamplerCase) -> None:
    """Down to what 3 % of the noise make of the variance, where that is affordable."""
    _samples_distribution(case)
    require(case.has_setting("steps"), "the number of steps is not a setting")
    few = case.with_settings(steps=FEWER_STEPS)
    cost = few.refine(case.density(), case.start(), generator=case.generator()).evaluations / FEW
    numbers = MANY_STEPS if cost <= 3 * FEWER_STEPS else (FEWER_STEPS, MORE_STEPS)
    samplers = [case.with_settings(steps=n) for n in numbers]
    _expect_convergence(case, samplers, [f"{n} steps" for n in numbers], 2 if numbers is MANY_STEPS else 1)


def lower_tolerances_reduce_the_error(case: SamplerCase) -> None:
    _samples_distribution(case)
    names = [name for name in ("rtol", "atol") if case.has_setting(name)]
    require(bool(names), "no tolerance, rtol or atol, is a setting")
    samplers = [case.with_settings(**dict.fromkeys(names, v)) for v in (LOOSE, TIGHT)]
    _expect_convergence(case, samplers, [f"{' = '.join(names)} = {v:g}" for v in (LOOSE, TIGHT)], 1)


def posterior_mean_is_exact(case: SamplerCase) -> None:
    require(not case.sampler.samples_distribution, "samples_distribution is True")
    processes = [p for p in (case.process, COSINE) if isinstance(p, case.sampler.needs)]
    for process, share in itertools.product(processes, (0.3, 1.0)):
        own, t = dataclasses.replace(case, process=process), share * process.T
        density, x = own.density(), own.start(t=t)
        y = case.sampler(density, x, t, generator=case.generator())
        error = float((y - density.posterior_mean(x, t)).abs().max()) / density.std
        expect(
            error <= case.tolerance,
            f"an error of {error:.3g} data standard deviations from E[x_0 | x_t] at t = {t:.3g} under {process}",
            f"at most {case.tolerance:.3g}",
            "a sampler with samples_distribution = False returns the posterior mean (x + sigma^2 score) / alpha",
        )


def _samples_distribution(case: SamplerCase) -> None:
    require(case.sampler.samples_distribution, "samples_distribution is False")


def _errors(
    case: SamplerCase, sampler: Sampler, start: float, end: float | None, times_rows: int = 1
) -> tuple[float, float]:
    """Error of the mean in standard deviations, and relative error of the variance."""
    density = case.density()
    y = sampler(density, case.start(times_rows * ROWS, start), start, end, generator=case.generator(2))
    mean, variance = density.moments(end or 0.0)
    return abs(float(y.mean()) - mean) / math.sqrt(variance), abs(float((y - mean).square().mean()) / variance - 1.0)


def _noise_levels(case: SamplerCase, times_rows: int = 1) -> tuple[float, float]:
    """6.11 standard errors of those two."""
    n = times_rows * ROWS * math.prod(case.density().event_shape)
    return Z / math.sqrt(n), Z * math.sqrt(2.0 / n)


def _compare(case: SamplerCase, sampler: Sampler, start: float, end: float | None) -> None:
    errors, noise = _errors(case, sampler, start, end), _noise_levels(case)
    for name, error, allowed in zip(("mean", "variance"), errors, noise, strict=True):
        expect(
            error <= case.tolerance + allowed,
            f"an error of {error:.3g} in the {name} at t = {end or 0.0:.3g}, starting from {start:.3g}",
            f"at most {case.tolerance:.3g} + {allowed:.3g} (discretisation + chance)",
            "dx = [f x - g^2 score] dt + g dw with dt < 0, or dx = [f x - g^2 score / 2] dt: look at signs, at g for "
            "g^2, at the factor 1/2, at noise used twice; if all are right, use more steps or a larger tolerance",
        )


def _expect_convergence(case: SamplerCase, samplers: list[Sampler], names: list[str], times_rows: int) -> None:
    coarse = _errors(case, samplers[0], case.process.T, None)
    fine = _errors(case, samplers[1], case.process.T, None, times_rows)
    for what, before, after, noise in zip(
        ("mean", "variance"), coarse, fine, _noise_levels(case, times_rows), strict=True
    ):
        expect(
            after <= max(0.5 * before, noise),
            f"errors of the {what} of {before:.3g} with {names[0]} and {after:.3g} with {names[1]}",
            f"half the error or less, or at most {noise:.3g}, which is chance",
            "the scheme does not converge to the distribution: a coefficient is wrong, the noise has another size, or "
            "the steps do not reach t_end",
        )


CHECKS = (
    distribution_at_zero,
    distribution_at_an_intermediate_time,
    distribution_without_closed_forms,
    distribution_of_a_mixture,
    results_are_independent,
    noise_is_normal,
    chains_keep_the_distribution,
    more_steps_reduce_the_error,
    lower_tolerances_reduce_the_error,
    posterior_mean_is_exact,
)
