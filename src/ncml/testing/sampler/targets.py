"""Checks of what a sampler may be given: a density with or without a process, a target, a lattice."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ncml.checks import Time
from ncml.density import Target
from ncml.noise import Lattice, NoiseProcess
from ncml.sampling.sampler import LATTICE_STOP
from ncml.testing.cases import SamplerCase
from ncml.testing.expectations import expect, expect_close, expect_refused, expect_same_bits, require
from ncml.testing.reference import KnownGaussian, OrnsteinUhlenbeck


class NotGaussian(NoiseProcess):
    """A process without alpha and sigma."""

    T = 1.0

    def perturb(
        self, x: Tensor, t: Time, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return x

    def on_lattice(self, t: Time) -> Tensor:
        return torch.tensor(True)


class ScoreOnly(Target):
    """A target without a log-density, such as a guided score."""

    has_log_density = False

    def log_prob(self, x: Tensor, t: Time) -> NoReturn:
        raise NotImplementedError("this target has a score only")

    log_density = log_density_and_score = log_prob


def process_is_optional(case: SamplerCase) -> None:
    x = case.start()
    expected = case.brief(case.density(), x, generator=case.generator())
    meaning = "process=None is the density's own process; they are the same when both are given"
    given = case.brief(case.density(), x, process=case.process, generator=case.generator())
    expect_same_bits(given, expected, "the result with process= the density's own against without", meaning)
    unbound = KnownGaussian(case.process, bound=False)
    given = case.brief(unbound, x, process=case.process, generator=case.generator())
    expect_same_bits(given, expected, "the result for a density without a process, with process=", meaning)


def unfit_processes_are_refused(case: SamplerCase) -> None:
    x, unbound = case.start(), KnownGaussian(case.process, bound=False)
    if not isinstance(NotGaussian(), case.sampler.needs):
        expect_refused(
            lambda: case.brief(unbound, x, process=NotGaussian()),
            "a process without alpha and sigma",
            (TypeError,),
            "say in needs what kind is needed",
        )
    expect_refused(
        lambda: case.brief(unbound, x), "no process at all", (TypeError,), "the density has none, and none is given"
    )
    other = OrnsteinUhlenbeck(T=0.987 * case.process.T)
    expect_refused(
        lambda: case.brief(case.density(), x, process=other),
        "a density built for another process",
        (ValueError,),
        "its noise features would refer to other noise levels; use ncml.density.check_process",
    )


def targets_take_the_place_of_densities(case: SamplerCase) -> None:
    x = case.start()
    context = case.contexts()
    expect_same_bits(
        case.brief(Target(case.density(), context=context), x, generator=case.generator()),
        case.brief(case.density(), x, context=context, generator=case.generator()),
        "the result for Target(density, context=...) against the density with that context",
        "guidance and conditioning are targets: take everything from the target",
    )


def needs_log_density_is_true(case: SamplerCase) -> None:
    x, target = case.start(), ScoreOnly(case.density())
    if case.sampler.needs_log_density:
        expect_refused(
            lambda: case.brief(target, x),
            "a target with a score only",
            (TypeError,),
            "needs_log_density = True: refuse at the call what has none",
        )
        return
    expect_same_bits(
        case.brief(target, x, generator=case.generator()),
        case.brief(case.density(), x, generator=case.generator()),
        "the result for a target with a score only against the density",
        "needs_log_density = False: use target.score only, or say True",
    )


def lattice_data_end_by_tweedie(case: SamplerCase) -> None:
    require(case.sampler.samples_distribution, "samples_distribution is False")
    process = case.process
    require(float(process.sigma(0.0)) == 0.0, "the process is noisy at t = 0")
    # So wide that 0.3 level is a fifth of the noise at T, or less where that is wider than data can be.
    width = min(0.2 * float(process.sigma(process.T)) / LATTICE_STOP, 2.0)
    lattice = Lattice(min(1 + round(2.0 / width), 65_536))
    stop = float(process.time_at(LATTICE_STOP * lattice.width))
    meaning = (
        "the score of lattice data cannot be trusted below 0.3 level: with t_end=None a density with a lattice is "
        "refined to there, and from there by Tweedie's formula; keep to start and stop in run"
    )
    x = case.start()
    for start in (None, 0.5 * stop):
        density = KnownGaussian(process, lattice=lattice)
        refined = case.brief.refine(density, x, start, generator=case.generator(), path=True)
        lowest = stop if start is None else start
        early = (density.times < lowest * (1.0 - 1e-6)).sum()
        expect(
            int(early) == 0 and bool(density.calls),
            f"{int(early)} rows evaluated at 0 < t < {lowest:.6g}, where sigma is 0.3 level, of {density.rows}",
            "none",
            meaning,
        )
        t, before = refined.path[-2]
        last = float(torch.as_tensor(t, dtype=torch.float64).max())
        expect(abs(last - lowest) <= 1e-9 * lowest, f"a last step from t = {last:.9g}", f"{lowest:.9g}", meaning)
        expect_close(refined.x, density.posterior_mean(before, last), 1e-6, "the last step against Tweedie's", meaning)


CHECKS = (
    process_is_optional,
    unfit_processes_are_refused,
    targets_take_the_place_of_densities,
    needs_log_density_is_true,
    lattice_data_end_by_tweedie,
)
