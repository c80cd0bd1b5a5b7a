"""Checks of a sampler, on a Gaussian whose law is known at every noise level."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ncml._checks import check_positive
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import GaussianProcess, NoiseProcess
from ncml.sampling.base import Sampler
from ncml.testing._common import (
    Report,
    default_rng_restored,
    default_rng_untouched,
    expect,
    expect_refused,
    expect_same_bits,
    generator_on,
    require,
    run_checks,
)
from ncml.testing._numerics import Z
from ncml.testing._reference import BrokenTarget, GaussianTarget, OrnsteinUhlenbeck

__all__ = ["check_sampler"]

ROWS = 4096
FEW = 8
FEWER_STEPS, MORE_STEPS = 4, 64


@dataclass(frozen=True)
class SamplerCase:
    """A sampler, a process, and how far its results may be from the exact law."""

    sampler: Sampler
    process: GaussianProcess
    tolerance: float
    seed: int

    def target(self) -> GaussianTarget:
        return GaussianTarget(self.process)

    def generator(self, stream: int = 0) -> torch.Generator:
        return generator_on(torch.device("cpu"), self.seed + stream)

    def start(self, target: GaussianTarget, rows: int = FEW, t: float | None = None) -> Tensor:
        """Exact samples of the target at ``t`` (default T), float64."""
        mean, variance = target.moments(self.process.T if t is None else t)
        z = torch.randn(rows, *target.event_shape, dtype=torch.float64, generator=self.generator(1))
        return mean + math.sqrt(variance) * z


def check_sampler(
    sampler: Sampler, process: GaussianProcess | None = None, *, tolerance: float = 0.05, seed: int = 0
) -> Report:
    """Check that a sampler keeps its contract and leads from the law at T to the law at t_end.

    It runs on Gaussian data with the exact score, where mean and variance are known at every t. Their
    comparison allows ``tolerance`` for discretisation on top of 6.11 standard errors (false-alarm
    probability 1e-9).

    Args:
        sampler: The sampler, with as many steps as ``tolerance`` needs.
        process: The process to run it on; if None, ``dx = -x dt + 0.8 dw`` up to t = 0.5, whose drift and
            diffusion both matter.
        tolerance: Allowed error of the mean in standard deviations, and relative error of the variance.
        seed: Seed of every random draw. torch's default generators are left as they were.

    Returns:
        Names of the checks that passed, and of those that do not apply with the reason.

    Raises:
        ConformanceError: At the first check that fails; the message names it.
        ArgumentError: The sampler needs another kind of process: pass one.

    Example:
        >>> from ncml.sampling import HeunODE
        >>> report = check_sampler(HeunODE(steps=16))
        >>> "law_at_zero" in report.passed
        True
    """
    if not isinstance(sampler, Sampler):
        raise ArgumentTypeError(f"sampler: got {type(sampler).__name__}; expected a Sampler")
    check_positive(tolerance, "tolerance")
    process = OrnsteinUhlenbeck() if process is None else process
    if not isinstance(process, sampler.needs):
        raise ArgumentError(
            f"process: got {type(process).__name__}; {type(sampler).__name__} expected a {sampler.needs.__name__}; "
            f"pass one as process="
        )
    return run_checks(type(sampler).__name__, SamplerCase(sampler, process, tolerance, seed), CHECKS)


class _NotGaussian(NoiseProcess):
    """A process that no sampler can use."""

    T = 1.0

    def perturb(
        self, x: Tensor, t: float | Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return x

    def on_lattice(self, t: float | Tensor) -> Tensor:
        return torch.tensor(True)


def equal_times_return_a_copy(case: SamplerCase) -> None:
    target = case.target()
    x = case.start(target)
    for t in (0.0, 0.5 * case.process.T, case.process.T):
        generator = case.generator()
        before = generator.get_state()
        with default_rng_untouched("a call with t_start == t_end"):
            y = case.sampler(target, case.process, x, t, t, generator=generator)
        expect_same_bits(y, x, "the result of t_start == t_end against x", "there is nothing to do")
        expect(y.data_ptr() != x.data_ptr(), "x itself", "a copy", "the caller may write into the result")
        expect(
            torch.equal(generator.get_state(), before) and not target.contexts,
            f"{len(target.contexts)} calls of the density, or draws from the generator, with t_start == t_end",
            "none",
            "return early",
        )


def result_has_shape_and_dtype(case: SamplerCase) -> None:
    target = case.target()
    for dtype in (torch.float32, torch.float64):
        for rows in (0, 1, FEW):
            x = case.start(target, rows).to(dtype)
            y = case.sampler(target, case.process, x, generator=case.generator())
            expect(
                (y.shape, y.dtype, y.requires_grad) == (x.shape, dtype, False),
                f"{tuple(y.shape)}, {y.dtype}, requires_grad={y.requires_grad}",
                f"{tuple(x.shape)}, {dtype}, detached",
                "the result is a batch like x; an empty batch gives an empty batch",
            )


def input_is_left_alone(case: SamplerCase) -> None:
    target = case.target()
    x = case.start(target)
    before = x.clone()
    case.sampler(target, case.process, x, generator=case.generator())
    expect_same_bits(x, before, "x after the call", "clone x before the first step, which may write into its argument")


def noise_comes_from_the_generator(case: SamplerCase) -> None:
    target = case.target()
    x = case.start(target)
    with default_rng_untouched("a call with a generator"):
        first, again, other = (case.sampler(target, case.process, x, generator=case.generator(i)) for i in (0, 0, 1))
    expect_same_bits(first, again, "two calls with equally seeded generators", "draw everything from the generator")
    with default_rng_restored():
        calls = [case.sampler(target, case.process, x) for _ in range(2)]
    expect(
        torch.equal(first, other) == torch.equal(*calls),
        "a sampler that draws with a generator but not without, or the other way round",
        "noise from the generator, or else from torch's default generator",
        "never reseed, and pass generator on",
    )


def gradient_modes_are_ignored(case: SamplerCase) -> None:
    target = case.target()
    x = case.start(target)
    expected = case.sampler(target, case.process, x, generator=case.generator())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = case.sampler(target, case.process, x.clone(), generator=case.generator())
        expect_same_bits(y, expected, f"the result under {mode.__name__}", "the score needs gradients: switch them on")


def density_runs_in_eval_mode(case: SamplerCase) -> None:
    target = case.target().train()
    target.child.eval()
    case.sampler(target, case.process, case.start(target), generator=case.generator())
    expect(
        target.calls_in_train_mode == 0,
        f"{target.calls_in_train_mode} calls of a density in train mode",
        "eval mode",
        "dropout or batch statistics would be active in the score; use ncml.density.evaluating",
    )
    expect(
        target.training and not target.child.training,
        f"training flags ({target.training}, {target.child.training})",
        "(True, False), as before the call",
        "restore every flag, not just the outermost",
    )


def context_reaches_the_density(case: SamplerCase) -> None:
    target = case.target()
    context = torch.linspace(-1.0, 1.0, FEW, dtype=torch.float64)[:, None]
    case.sampler(target, case.process, case.start(target), context=context, generator=case.generator())
    arrived = [c is not None and torch.equal(c, context) for c in target.contexts]
    expect(
        bool(arrived) and all(arrived),
        f"the context in {sum(arrived)} of {len(arrived)} calls of the density",
        "in all of them",
        "pass context to every score",
    )


def times_out_of_order_are_refused(case: SamplerCase) -> None:
    target, T = case.target(), case.process.T
    x = case.start(target)
    for start, end in ((0.2 * T, 0.6 * T), (1.5 * T, 0.0), (T, -0.1 * T), (math.nan, 0.0)):
        expect_refused(
            partial(case.sampler, target, case.process, x, start, end),
            f"t_start = {start:.3g}, t_end = {end:.3g} with T = {T:.3g}",
            (ValueError,),
            "samplers go towards the data, from t_start <= T down to t_end >= 0",
        )


def unfit_processes_are_refused(case: SamplerCase) -> None:
    target = case.target()
    x = case.start(target)
    expect_refused(
        lambda: case.sampler(target, _NotGaussian(), x),  # type: ignore[arg-type]
        "a process without alpha and sigma",
        (TypeError,),
        "say what kind is needed, before the first step",
    )
    other = GaussianTarget(OrnsteinUhlenbeck(T=0.987 * case.process.T))
    expect_refused(
        lambda: case.sampler(other, case.process, x),
        "a density built for another process",
        (ValueError,),
        "its noise features would refer to other noise levels; use ncml.density.check_process",
    )


def non_finite_scores_are_refused(case: SamplerCase) -> None:
    broken = BrokenTarget(case.process)
    expect_refused(
        lambda: case.sampler(broken, case.process, case.start(broken)),
        "a score of NaN",
        (FloatingPointError,),
        "never return such samples: raise NonFiniteError with t and the step",
    )


def law_at_zero(case: SamplerCase) -> None:
    require(case.sampler.samples_law, "samples_law is False")
    _compare_law(case, None)


def law_at_an_intermediate_time(case: SamplerCase) -> None:
    require(case.sampler.samples_law, "samples_law is False")
    _compare_law(case, 0.3 * case.process.T)


def more_steps_reduce_the_error(case: SamplerCase) -> None:
    require(case.sampler.samples_law, "samples_law is False")
    has_steps = any(f.name == "steps" and f.init for f in dataclasses.fields(case.sampler))
    require(has_steps, "the number of steps is not a setting")
    fewer, more = (
        sum(_law_errors(case, dataclasses.replace(case.sampler, steps=n), None)) for n in (FEWER_STEPS, MORE_STEPS)
    )
    expect(
        more <= max(0.5 * fewer, sum(_noise_levels(case))),
        f"errors of {fewer:.3g} with {FEWER_STEPS} steps and {more:.3g} with {MORE_STEPS}",
        "half the error or less, or none that is seen",
        "the scheme does not converge to the law: a coefficient is wrong, or the steps do not reach t_end",
    )


def posterior_mean_is_exact(case: SamplerCase) -> None:
    require(not case.sampler.samples_law, "the sampler follows the law")
    target, T = case.target(), case.process.T
    for t in (0.3 * T, T):
        x = case.start(target, t=t)
        mean, variance = target.moments(t)
        gain = float(case.process.alpha(t)) * target.std**2 / variance
        expected = target.mean + gain * (x - mean)
        y = case.sampler(target, case.process, x, t, generator=case.generator())
        error = float((y - expected).abs().max()) / target.std
        expect(
            error <= case.tolerance,
            f"an error of {error:.3g} data standard deviations from E[x_0 | x_t] at t = {t:.3g}",
            f"at most {case.tolerance:.3g}",
            "a sampler with samples_law = False returns the posterior mean (x + sigma^2 score) / alpha",
        )


def _law_errors(case: SamplerCase, sampler: Sampler, t_end: float | None) -> tuple[float, float]:
    """Error of the mean in standard deviations, and relative error of the variance."""
    target = case.target()
    x = case.start(target, ROWS)
    y = sampler(target, case.process, x, None, t_end, generator=case.generator(2))
    mean, variance = target.moments(t_end or 0.0)
    return abs(float(y.mean()) - mean) / math.sqrt(variance), abs(float((y - mean).square().mean()) / variance - 1.0)


def _noise_levels(case: SamplerCase) -> tuple[float, float]:
    """6.11 standard errors of those two."""
    n = ROWS * math.prod(case.target().event_shape)
    return Z / math.sqrt(n), Z * math.sqrt(2.0 / n)


def _compare_law(case: SamplerCase, t_end: float | None) -> None:
    errors, noise = _law_errors(case, case.sampler, t_end), _noise_levels(case)
    for name, error, allowed in zip(("mean", "variance"), errors, noise, strict=True):
        expect(
            error <= case.tolerance + allowed,
            f"an error of {error:.3g} in the {name} at t = {t_end or 0.0:.3g}",
            f"at most {case.tolerance:.3g} + {allowed:.3g} (discretisation + chance)",
            "dx = [f x - g^2 score] dt + g dw with dt < 0, or dx = [f x - g^2 score / 2] dt: look at signs, at g for "
            "g^2, at the factor 1/2, at noise used twice; if all are right, use more steps or a larger tolerance",
        )


CHECKS = (
    equal_times_return_a_copy,
    result_has_shape_and_dtype,
    input_is_left_alone,
    noise_comes_from_the_generator,
    gradient_modes_are_ignored,
    density_runs_in_eval_mode,
    context_reaches_the_density,
    times_out_of_order_are_refused,
    unfit_processes_are_refused,
    non_finite_scores_are_refused,
    law_at_zero,
    law_at_an_intermediate_time,
    more_steps_reduce_the_error,
    posterior_mean_is_exact,
)
