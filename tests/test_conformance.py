"""The conformance kit: everything bundled passes it, it says what it did, and it leaves no trace."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import zuko
from nflows.distributions.normal import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform
from torch import nn

import ncml.sampling
import ncml.testing
from ncml import (
    VESDE,
    VPSDE,
    AutoregressiveDensity,
    DiscreteProcess,
    LevelNoise,
    LinearSDE,
    NoiseConditionalDensity,
    NoiseProcess,
)
from ncml.densities import (
    MADE,
    MAF,
    NCPN,
    CallableDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    NFlowsDensity,
    ToyLattice,
    TransformerFlow,
    ZukoDensity,
)
from ncml.errors import ArgumentError, ArgumentTypeError, ConformanceError, MissingExtraError
from ncml.noise import Lattice
from ncml.sampling import (
    AdaptiveHeun,
    Ancestral,
    AnnealedLangevin,
    DPMSolver2M,
    EulerMaruyama,
    GridSampler,
    HeunODE,
    MetropolisLangevin,
    ParallelTempering,
    RePaint,
    Sampler,
    Tweedie,
)
from ncml.testing import (
    Report,
    check_density,
    check_noise_process,
    check_sampler,
    density_checks,
    process_checks,
    sampler_checks,
)
from ncml.testing.density import prepared
from ncml.testing.density.cubature import SHIFT, Cubature
from ncml.testing.reference import OrnsteinUhlenbeck
from tests.problems import PMF, PROCESSES, WHOLE_SDES, gaussian, lattice, mixture, plane_mixture, same_bits, seeded

FEW = 500
"""Own samples per statistical check: enough for what is exact anyway."""

VP = VPSDE.at_noise(0.5)
FIVE = Lattice(5)
ON_FIVE = VPSDE.at_noise(FIVE.width)


# Everything bundled passes.


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_bundled_processes_conform(process):
    report = check_noise_process(process)
    assert {reason for _, reason in report.not_applicable} == {"not a DiscreteProcess"}
    assert "sigma_solves_the_diffusion" in report.passed


@pytest.mark.parametrize("process", WHOLE_SDES.values(), ids=WHOLE_SDES.keys())
def test_whole_schedules_conform(process):
    assert len(check_noise_process(process).not_applicable) == 4


@pytest.mark.parametrize("edge", ["clip", "reflect"])
@pytest.mark.parametrize(("levels", "T"), [(2, 1.0), (3, 0.1), (17, 0.5), (256, 1.0)])
def test_level_noise_conforms(levels, T, edge):
    report = check_noise_process(LevelNoise(levels, edge=edge, T=T))
    assert "moves_match_the_transition_matrix" in report.passed
    assert dict(report.not_applicable)["alpha_solves_the_drift"] == "not a GaussianProcess"


def test_the_ve_sde_of_song_conforms_once_its_start_is_declared():
    song = VESDE(song=True)
    with pytest.raises(ConformanceError, match="perturb_at_zero_returns_the_data"):
        check_noise_process(song)
    report = check_noise_process(song, starts_at_data=False)
    assert dict(report.not_applicable)["perturb_at_zero_returns_the_data"] == "starts_at_data=False"
    assert "sigma_solves_the_diffusion" in report.passed


def nflows_flow(dims: int = 2) -> Flow:
    layer = MaskedAffineAutoregressiveTransform(dims, 3 * dims, context_features=8, num_blocks=1)
    return Flow(layer, StandardNormal([dims]))


def pixel_network(shape: tuple[int, ...], heads: int = 0) -> NCPN:
    return NCPN(shape, ON_FIVE, lattice=FIVE, features=8, blocks=1, resolutions=1, heads=heads, components=2)


def transformer_flow(**settings) -> TransformerFlow:
    return TransformerFlow((2, 1), VP, patch=1, width=8, blocks=2, layers=1, heads=2, **settings)


def laplace_around(x, t, context):
    return torch.distributions.Laplace(context, 1.0 + t[:, None]).log_prob(x).sum(1)


LABELS = torch.tensor([0, 1, -1, 1, 0, -1, 1, 0])
VECTORS = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)
DENSITIES = {
    "gaussian": (lambda: gaussian(VP), {}),
    "gaussian, cosine": (lambda: GaussianDensity(PROCESSES["cosine"], [0.2, -0.5], [0.1, 0.4]), {}),
    "gaussian, 12 dimensions": (lambda: GaussianDensity(VP, torch.linspace(-1.0, 1.0, 12), 0.3), {}),
    "mixture": (lambda: mixture(PROCESSES["subvp"]), {}),
    "mixture in the plane": (lambda: plane_mixture(VESDE.at_noise(0.5)), {}),
    "lattice": (lambda: lattice(VPSDE.at_noise(0.25)), {}),
    "lattice in the plane": (lambda: ToyLattice(ON_FIVE, torch.stack([PMF[:5], PMF[4:9]])), {}),
    "lattice, level noise": (lambda: ToyLattice(LevelNoise(5), PMF[:5]), {}),
    "made": (lambda: MADE((2,), VP, hidden=(8,), components=2), {}),
    "made, one value": (lambda: MADE((1,), VP, hidden=(4, 4), components=3), {}),
    "made, gaussian head": (lambda: MADE((2,), VP, hidden=(8,), components=2, head="gaussian"), {}),
    "made, scaled": (lambda: MADE((2,), VP, hidden=(8,), components=2, data_std=0.5), {}),
    "made, lattice": (lambda: MADE((1, 3, 1), ON_FIVE, lattice=FIVE, hidden=(8,), components=2, order=[2, 0, 1]), {}),
    "made, lattice, gaussian head": (
        lambda: MADE((1,), ON_FIVE, lattice=FIVE, hidden=(8,), components=2, head="gaussian"),
        {},
    ),
    "made, level noise": (lambda: MADE((2,), LevelNoise(5), lattice=FIVE, hidden=(8,), components=2), {}),
    "made, labels": (lambda: MADE((2,), VP, hidden=(8,), components=2, classes=2), {"context": LABELS}),
    "maf": (lambda: MAF((2,), VP, transforms=2, hidden=(8,), data_std=0.5), {}),
    "maf, context": (lambda: MAF((3,), VP, transforms=1, hidden=(8,), context_features=2), {"context": VECTORS}),
    "transformer flow": (lambda: transformer_flow(data_std=0.5), {}),
    "transformer flow, labels": (lambda: transformer_flow(classes=2, dropout=0.1), {"context": LABELS}),
    "pixels": (lambda: pixel_network((1, 1, 2), heads=2), {"times": [0.0, ON_FIVE.T]}),
    "colour pixel": (lambda: pixel_network((3, 1, 1)), {"times": [0.0, ON_FIVE.T]}),
    "nflows": (lambda: NFlowsDensity(nflows_flow(), (2,), VP), {}),
    "zuko": (lambda: ZukoDensity(zuko.flows.MAF(2, 8, transforms=1, hidden_features=(6,)), (2,), VP), {}),
    "callable": (lambda: CallableDensity(laplace_around, (2,)), {"context": VECTORS.double(), "process": VP}),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_bundled_densities_conform(name):
    torch.manual_seed(0)
    build, options = DENSITIES[name]
    density = build()
    report = check_density(density, samples=FEW, **options)
    skipped = dict(report.not_applicable)
    assert ("context_is_used" in skipped) == ("context" not in options)
    assert ("masses_sum_to_one" in skipped) == (density.lattice is None)
    assert ("resampling_is_causal" in skipped) == (not isinstance(density, AutoregressiveDensity))
    assert ("samples_follow_the_density" in skipped) == isinstance(density, CallableDensity)
    # Exactly one way to check the integral applies, and none beyond ten dimensions.
    integrals = {"density_integrates_to_one", "importance_weights_average_to_one"} - set(skipped)
    assert len(integrals) == (math.prod(density.event_shape) <= 10)


def test_six_dimensions_take_less_than_a_minute():
    """Of one core, at the defaults; some 5 s where this was written."""
    torch.manual_seed(0)
    start = time.process_time()
    report = check_density(NFlowsDensity(nflows_flow(6), (6,), VP))
    assert time.process_time() - start < 60.0
    assert "integral_is_one_at_drawn_times_and_contexts" in report.passed


KINDS = [getattr(ncml.sampling, name) for name in ncml.sampling.__all__]
SHORTER = {
    AnnealedLangevin: AnnealedLangevin(steps=64, moves=16, step_size=0.15),
    ParallelTempering: ParallelTempering(rounds=6),
}
"""A quarter of the scores. That Langevin's defaults keep the kit's tolerance is shown exactly, in test_refine.py."""

SAMPLERS = [
    SHORTER.get(kind, kind())
    for kind in KINDS
    if isinstance(kind, type) and issubclass(kind, Sampler) and not inspect.isabstract(kind)
    if not issubclass(kind.needs, DiscreteProcess)  # which tests/test_chains.py enumerates
]
"""Every sampler of the library under Gaussian processes, at its defaults but for one."""


def test_every_family_of_samplers_is_there():
    kinds = (AdaptiveHeun, AnnealedLangevin, DPMSolver2M, EulerMaruyama, HeunODE, MetropolisLangevin, Tweedie)
    assert {*kinds} <= {type(sampler) for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_bundled_samplers_conform(sampler):
    """At the kit's defaults."""
    skipped = dict(check_sampler(sampler).not_applicable)
    assert ("distribution_at_zero" in skipped) != sampler.samples_distribution
    assert ("posterior_mean_is_exact" in skipped) == sampler.samples_distribution
    assert ("chains_keep_the_distribution" in skipped) != sampler.moves_in_place
    assert ("more_steps_reduce_the_error" in skipped) != isinstance(sampler, GridSampler)
    assert ("lower_tolerances_reduce_the_error" in skipped) != hasattr(sampler, "rtol")


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (EulerMaruyama(steps=64, grid="uniform", denoise_last=False), 0.05),
        (HeunODE(steps=16), 0.01),
        (DPMSolver2M(steps=64), 0.01),
        (AdaptiveHeun(rtol=1e-4, atol=1e-4), 0.01),
        (Tweedie(), 1e-9),
    ],
    ids=lambda s: type(s).__name__,
)
def test_samplers_conform_with_other_settings(sampler, tolerance):
    assert not check_sampler(sampler, tolerance=tolerance).failed


FINER = {Ancestral: Ancestral(steps=256), RePaint: RePaint(steps=64)}
"""Methods of order 1 whose defaults, made for NCML's low noise, leave 5 to 10 % of variance on wide ladders."""

ELSEWHERE = AnnealedLangevin
"""A recursion gives the variance of its defaults on wide ladders exactly, in test_refine.py."""

WIDE = [FINER.get(type(s), s) for s in SAMPLERS if s.samples_distribution and not isinstance(s, ELSEWHERE)]


@pytest.mark.parametrize("process", [VESDE.at_noise(10.0), VESDE.linear(10.0)], ids=["ve", "linear-ve"])
@pytest.mark.parametrize("sampler", WIDE, ids=lambda s: type(s).__name__)
def test_samplers_conform_on_wide_ladders(sampler, process):
    """Noise of twenty times the data's standard deviation, at the defaults but for one; checks raise what they find."""
    wanted = ("distribution_at_zero", "distribution_at_an_intermediate_time")
    checks = [check for check in sampler_checks(process=process) if check.id in wanted]
    assert [check.id for check in checks] == list(wanted)
    for check in checks:
        check(sampler)


@pytest.mark.parametrize("process", WHOLE_SDES.values(), ids=WHOLE_SDES.keys())
@pytest.mark.parametrize("sampler", [HeunODE(steps=64), DPMSolver2M()], ids=lambda s: type(s).__name__)
def test_samplers_conform_on_other_processes(process, sampler):
    assert "distribution_at_zero" in check_sampler(sampler, type(process).at_noise(0.5)).passed


def test_samplers_conform_on_a_process_of_two_functions():
    assert "lattice_data_end_by_tweedie" in check_sampler(EulerMaruyama(), PROCESSES["cosine"]).passed


# Users' own classes, which see nothing but the interfaces.


class Masking(NoiseProcess):
    """Sets values to zero with probability t: neither Gaussian nor on a lattice."""

    T = 1.0

    def perturb(self, x, t, *, noise=None, generator=None):
        ncml.checks.check_floating(x, "x")
        t = ncml.checks.check_time(t, x, self.T)
        u = self.checked_noise(x, noise, generator)
        return torch.where(u < ncml.checks.per_example(t, x), 0.0 * x + 2.0 * u, x)

    def draw_noise(self, x, *, generator=None):
        return torch.rand(x.shape, dtype=x.dtype, generator=generator)

    def on_lattice(self, t):
        return torch.as_tensor(t) == 0

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return 0


def test_a_process_of_no_known_kind_conforms():
    report = check_noise_process(Masking(), torch.ones(3, 2, 2))
    assert {reason for _, reason in report.not_applicable} == {
        "not a GaussianProcess",
        "not a DiscreteProcess",
    }


class Normal(NoiseConditionalDensity):
    """The example of the interface's documentation."""

    def forward(self, x, t, context=None, *, edges=True):
        return torch.distributions.Normal(0.0, 1.0 + t[:, None]).log_prob(x).sum(1)


class Guided(NoiseConditionalDensity):
    """A context that goes through a layer of the density's own dtype."""

    def __init__(self):
        super().__init__((2,), VP)
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t, context=None, *, edges=True):
        return torch.distributions.Normal(self.layer(context), 1.0 + t[:, None]).log_prob(x).sum(1)


def test_contexts_follow_the_dtype_of_the_density():
    context = torch.randn(5, 3, generator=seeded(0))
    assert "context_is_used" in check_density(Guided(), context=context).passed


def test_a_density_of_one_method_conforms():
    report = check_density(Normal(event_shape=(2,)))
    assert "density_integrates_to_one" in report.passed
    assert dict(report.not_applicable)["stein_identities_hold"] == "cannot sample"


class ZeroInitialised(NoiseConditionalDensity):
    """Couples the rows of a batch, behind a layer that starts at zero."""

    def __init__(self):
        super().__init__((2,))
        self.gate = nn.Parameter(torch.zeros(2))

    def forward(self, x, t, context=None, *, edges=True):
        centre = (self.gate * x.mean(0)).expand_as(x)
        return torch.distributions.Normal(centre, 1.0 + t[:, None]).log_prob(x).sum(1)


def test_a_bug_does_not_hide_behind_a_layer_that_starts_at_zero():
    density = ZeroInitialised()
    with pytest.raises(ConformanceError, match="rows_do_not_interact"):
        check_density(density)
    assert not density.gate.any()


# What a check says, and what it leaves behind.


@pytest.mark.parametrize(
    ("report", "checks"),
    [
        (check_noise_process(VP), process_checks()),
        (check_density(gaussian(VP), samples=FEW), density_checks()),
        (check_sampler(Tweedie()), sampler_checks()),
    ],
    ids=["process", "density", "sampler"],
)
def test_every_check_is_reported(report, checks):
    assert not report.failed
    names = [*report.passed, *(name for name, _ in report.not_applicable)]
    assert sorted(names) == sorted(check.id for check in checks)
    assert len(set(names)) == len(names)
    assert report.subject in ("VPSDE", "GaussianDensity", "Tweedie")


def test_the_report_is_readable():
    report = Report("Mine", ("a_check",), (("b_check", "got 1; expected 2; look"),), (("c_check", "no lattice"),))
    assert str(report).splitlines() == [
        "Mine: 1 checks passed, 1 failed, 1 not applicable",
        "  failed          b_check: got 1; expected 2; look",
        "  passed          a_check",
        "  not applicable  c_check: no lattice",
    ]
    text = str(check_noise_process(VP)).splitlines()
    assert text[0] == "VPSDE: 33 checks passed, 4 not applicable"
    assert "  passed          time_at_inverts_sigma" in text
    assert "  not applicable  moves_match_the_transition_matrix: not a DiscreteProcess" in text
    assert len(text) == 38


def test_a_failure_names_check_got_expected_and_remedy():
    with pytest.raises(ConformanceError) as caught:
        check_noise_process(VESDE(song=True))
    message = str(caught.value)
    assert "check 'perturb_at_zero_returns_the_data' failed: got perturb(x, 0) against x" in message
    assert "; expected equal bits; t = 0 is the data itself" in message
    assert isinstance(caught.value, AssertionError)


def test_every_failure_is_reported():
    """In one error, which has the whole report; what is sound has passed."""
    with pytest.raises(ConformanceError) as caught:
        check_noise_process(VESDE(song=True))
    report, lines = caught.value.report, str(caught.value).splitlines()
    failed = [name for name, _ in report.failed]
    assert {"perturb_at_zero_returns_the_data", "coefficients_start_at_the_data"} <= set(failed)
    assert "sigma_solves_the_diffusion" in report.passed
    total = len(report.passed) + len(report.failed) + len(report.not_applicable)
    assert lines[0] == f"VESDE: {len(failed)} of {total} checks failed"
    assert lines[1:] == [f"  check {name!r} failed: {text}" for name, text in report.failed]
    assert total == len(process_checks())


class Mistaken(GaussianDensity):
    """Takes the times of its samples for one number."""

    def sample(self, n, t=0.0, context=None, *, generator=None):
        return super().sample(n, float(t), context, generator=generator)


def test_an_error_of_the_author_has_a_place_and_is_told_once():
    with pytest.raises(ConformanceError) as caught:
        check_density(Mistaken(VP, torch.zeros(1), 0.3))
    lines = [line for line in str(caught.value).splitlines() if "converted to Python scalars" in line]
    assert len(lines) == 1
    assert lines[0].partition("(also: ")[2].count(", ") > 2
    line = inspect.getsourcelines(Mistaken.sample.__wrapped__)[1] + 1
    assert f"(test_conformance.py, line {line}); expected no error" in lines[0]


class Unreadable(NoiseConditionalDensity):
    """Fails in the standard library, and in the library."""

    def forward(self, x, t, context=None, *, edges=True):
        return json.loads("{bad") if edges else torch.nn.functional.silu(x)


def test_the_place_is_in_a_file_of_the_author_and_expected_is_said_once():
    with pytest.raises(ConformanceError) as caught:
        check_density(Unreadable((2,)))
    failed = dict(caught.value.report.failed)
    line = inspect.getsourcelines(Unreadable.forward)[1] + 1
    assert f"(test_conformance.py, line {line}); expected no error" in failed["float64_copy_works"]
    refused = failed["score_is_the_gradient"]
    assert refused.startswith("got ArgumentError: Unreadable.forward: got (8, 2); expected one tensor (8,); ")
    assert refused.count("expected ") == 1


class Overwriting(VPSDE):
    """Writes into the data that it is given."""

    def perturb(self, x, t, *, noise=None, generator=None):
        return x.copy_(super().perturb(x, t, noise=noise, generator=generator))


def test_one_check_does_not_spoil_another():
    """Whether alone or in a run, a check says the same."""
    process = Overwriting(T=0.2)
    with pytest.raises(ConformanceError) as caught:
        check_noise_process(process)
    failed = dict(caught.value.report.failed)
    for check in reversed(process_checks()):
        if check.id in failed:
            with pytest.raises(ConformanceError) as alone:
                check(process)
            assert str(alone.value) == f"Overwriting: check {check.id!r} failed: {failed[check.id]}"
        elif check.id in caught.value.report.passed:
            check(process)
    assert "perturb_leaves_its_arguments_alone" in failed


class Interrupted(GaussianDensity):
    def forward(self, x, t, context=None, *, edges=True):
        raise KeyError("weights")


def test_an_error_of_the_object_becomes_a_failure_with_its_cause():
    with pytest.raises(ConformanceError, match="'float64_copy_works' failed: got KeyError: 'weights'") as caught:
        check_density(Interrupted(VP, 0.0, 1.0))
    assert isinstance(caught.value.__cause__, KeyError)
    assert "samples_come_from_the_generator" in caught.value.report.passed


class WithoutInverse(GaussianDensity):
    def sample(self, n, t=0.0, context=None, *, generator=None):
        raise RuntimeError("no inverse")


def test_a_failing_sampler_is_called_a_failing_sampler():
    """In the checks that need samples; what the likelihood promises is checked all the same."""
    with pytest.raises(ConformanceError) as caught:
        check_density(WithoutInverse(VP, [0.2, -0.1], 0.5), samples=FEW)
    failed = dict(caught.value.report.failed)
    assert "samples_follow_the_density" in failed
    assert all("RuntimeError from sample: no inverse" in failed[name] for name in failed if "follow" in name)
    assert {"density_integrates_to_one", "score_is_the_gradient"} <= set(caught.value.report.passed)
    assert all("sample" in text or "no inverse" in text for text in failed.values())


SUITE = """
import pytest

from ncml import VESDE, VPSDE
from ncml.densities import GaussianDensity
from ncml.sampling import Tweedie
from ncml.testing import density_checks, process_checks, sampler_checks

@pytest.fixture(scope="module")
def density():
    return GaussianDensity(VPSDE.at_noise(0.5), 0.2, 0.5)

@pytest.mark.parametrize("check", density_checks(samples=500), ids=str)
def test_density(check, density):
    check(density)

@pytest.mark.parametrize("check", process_checks(), ids=str)
def test_process(check):
    check(VESDE(song=True))

@pytest.mark.parametrize("check", sampler_checks(tolerance=1e-6), ids=str)
def test_sampler(check):
    check(Tweedie())
"""


def test_checks_are_tests_of_a_users_own_suite(tmp_path):
    """One test each, by its name; failing, or skipped with the reason, alone."""
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    outcomes = {line.split("::")[1].split(" ")[0]: line.split(" ")[0] for line in lines if "::" in line}
    with pytest.raises(ConformanceError) as caught:
        check_noise_process(VESDE(song=True))
    reports = {
        "test_density": check_density(gaussian(VP).float(), samples=FEW),
        "test_process": caught.value.report,
        "test_sampler": check_sampler(Tweedie(), tolerance=1e-6),
    }
    for test, report in reports.items():
        assert {f"{test}[{name}]" for name in report.passed} == {
            k for k, v in outcomes.items() if v == "PASSED" and k.startswith(test)
        }
        assert {f"{test}[{name}]" for name, _ in report.failed} == {
            k for k, v in outcomes.items() if v == "FAILED" and k.startswith(test)
        }
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    assert any("not a DiscreteProcess" in line for line in skipped)
    assert any("no context given" in line for line in skipped)


def test_checks_leave_the_density_and_the_random_state_alone():
    torch.manual_seed(0)
    density = MADE((2,), VP, hidden=(8,), components=2).train()
    density.net.eval()
    flags = [module.training for module in density.modules()]
    state = copy.deepcopy(density.state_dict())
    rng = torch.get_rng_state()
    check_density(density, samples=FEW)
    check_noise_process(VP)
    check_sampler(HeunODE(steps=16))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in density.modules()] == flags
    assert all(same_bits(v, state[k]) for k, v in density.state_dict().items() if v.is_floating_point())
    assert all(p.grad is None for p in density.parameters())


def test_seeds_reproduce_and_differ():
    seen = []

    class Spy(GaussianDensity):
        def forward(self, x, t, context=None, *, edges=True):
            seen.append(x.detach().double().sum())
            return super().forward(x, t, context)

    def values(seed):
        seen.clear()
        check_density(Spy(VP, [0.1, 0.2], 0.5), samples=FEW, seed=seed)
        return torch.stack(seen[:40])

    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))


def test_times_and_data_can_be_chosen():
    far = GaussianDensity(VP, [30.0, -20.0], 0.5)
    x = 30.0 + torch.randn(6, 2, generator=seeded(0))
    report = check_density(far, x, times=[0.05], samples=FEW)
    assert dict(report.not_applicable)["time_is_used"] == "only one time to check"
    assert "density_integrates_to_one" in report.passed


@dataclass(frozen=True)
class ForSDEs(HeunODE):
    """A sampler that needs closed forms."""

    needs = LinearSDE


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: check_noise_process("vp"), ArgumentTypeError, "process"),
        (lambda: check_noise_process(VP, torch.zeros(2, 3, dtype=torch.int64)), ArgumentTypeError, "x"),
        (lambda: check_density(nn.Linear(2, 2)), ArgumentTypeError, "density"),
        (lambda: check_density(gaussian(VP), torch.zeros(4, 2)), ArgumentError, "x"),
        (lambda: check_density(gaussian(VP), torch.zeros(1, 1)), ArgumentError, "x"),
        (lambda: check_density(gaussian(VP), process=VPSDE()), ArgumentError, "process"),
        (lambda: check_density(gaussian(VP), samples=10), ArgumentError, "samples"),
        (lambda: check_density(gaussian(VP), times=[]), ArgumentError, "times"),
        (lambda: check_density(gaussian(VP), times=[0.0, 9.0]), ArgumentError, "times"),
        (lambda: check_density(gaussian(VP), context=3), ArgumentTypeError, "context"),
        (lambda: check_sampler("euler"), ArgumentTypeError, "sampler"),
        (lambda: check_sampler(ForSDEs(), PROCESSES["cosine"]), ArgumentError, "process"),
        (lambda: check_sampler(HeunODE(), LevelNoise(5)), ArgumentError, "process"),
        (lambda: check_sampler(HeunODE(), tolerance=0.0), ArgumentError, "tolerance"),
        (lambda: process_checks(tolerance=0.1), ArgumentTypeError, "tolerance"),
        (lambda: density_checks(sample=500), ArgumentTypeError, "sample"),
        (lambda: sampler_checks(steps=8), ArgumentTypeError, "steps"),
        (lambda: density_checks(samples=10)[0](gaussian(VP)), ArgumentError, "samples"),
    ],
)
def test_bad_arguments_are_refused_before_any_check(call, error, argument):
    with pytest.raises(error, match=f"^{argument}: got ") as caught:
        call()
    assert not isinstance(caught.value, ConformanceError)


def test_a_sampler_for_sdes_conforms_on_one():
    skipped = dict(check_sampler(ForSDEs()).not_applicable)
    assert skipped["distribution_without_closed_forms"] == "needs a LinearSDE"


def test_only_the_strategies_need_hypothesis(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.setattr(ncml, "testing", ncml.testing)  # put back what the imports below replace
    for name in [name for name in sys.modules if name.startswith("ncml.testing")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("ncml.testing").check_noise_process(VP).passed
    with pytest.raises(MissingExtraError, match=r"pip install 'ncml\[testing\]'"):
        importlib.import_module("ncml.testing.strategies")


# What cannot be checked is said.


def test_spikes_too_narrow_for_quadrature_are_reported():
    spikes = ToyLattice(VPSDE.at_noise(0.004), torch.ones(2, 32))
    report = check_density(spikes, times=[0.0, 1e-7], samples=200)
    skipped = dict(report.not_applicable)
    assert "samples_follow_the_density" in report.passed  # which needs no integral
    assert skipped["density_integrates_to_one"] == "700000 points do not resolve t = 1e-07"


def test_degenerate_importance_weights_are_reported():
    means = 3.0 * torch.randn(2, 9, generator=seeded(0))
    clusters = GaussianMixtureDensity(VP, [0.5, 0.5], means, 0.05)
    skipped = dict(check_density(clusters, times=[0.0, 1e-4], samples=200).not_applicable)
    assert skipped["importance_weights_average_to_one"] == "importance weights degenerate at t = 0, 0.0001"


class Conditionals(NoiseConditionalDensity):
    """Each value is normal around what the values before it say, or its own, or later ones; cannot sample."""

    def __init__(self, dims, seen=-1, sign=1.0):
        super().__init__((dims,))
        self.mask, self.sign = torch.ones(dims, dims, dtype=torch.float64).tril(seen), sign

    def forward(self, x, t, context=None, *, edges=True):
        std = 0.5 + t[:, None].to(x.dtype)
        z = (x - 0.4 * torch.tanh(x @ self.mask.T.to(x.dtype))) / std
        log_det = -x.shape[1] * std[:, 0].log()
        return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(1) + self.sign * log_det


@pytest.mark.parametrize("wrong", [{"seen": 0}, {"seen": 5}, {"sign": -1.0}], ids=str)
def test_both_causes_of_a_wrong_total_are_named(wrong):
    """Where there are no noises to see a leak by, a mask and a sign look alike."""
    check_density(Conditionals(2))
    for dims, check in ((2, "density_integrates_to_one"), (4, "importance_weights_average_to_one")):
        with pytest.raises(ConformanceError) as caught:
            check_density(Conditionals(dims, **wrong))
        text = dict(caught.value.report.failed)[check]
        assert "a log-determinant" in text
        assert "has the wrong sign" in text
        assert "a conditional sees its own or a later value (a mask)" in text


def test_what_no_check_has_normalised_is_noted():
    for dims in (2, 5):
        assert not check_density(Conditionals(dims)).notes
    ((name, text),) = check_density(Conditionals(12, seen=0)).notes  # a leak that nobody sees
    assert name == "importance_weights_average_to_one"
    where = "normalisation was not checked in 12 dimensions at t ="
    assert text == f"{where} 0, 0.1, 1: check an instance of 2 dimensions too"
    drawn = check_density(GaussianDensity(VP, torch.zeros(12), 0.5), times=[0.01], samples=FEW)
    assert dict(drawn.notes)[name].startswith(f"{where} 0.01: ")
    summed = check_density(ToyLattice(VP, torch.full((12, 2), 0.5)), times=[0.0, 0.01], samples=FEW)
    assert "masses_sum_to_one" in summed.passed
    assert dict(summed.notes)[name].startswith(f"{where} 0.01: ")  # and not at 0


def test_kinks_beside_an_edge_of_cells_are_no_alarm():
    """A Laplace density whose kink lies between an edge of cells and the first of their nodes: seeds that found one."""
    law = torch.distributions.Laplace(0.0, torch.tensor([0.05, 1.0], dtype=torch.float64))
    density = CallableDensity(lambda x, t: law.log_prob(x).sum(1), (2,))
    case = prepared(density, times=[0.0], seed=16)
    assert abs(Cubature(case, 0.0, None)().total - 1.0) > 1e-3
    assert abs(Cubature(case, 0.0, None, shift=SHIFT)().total - 1.0) < 3e-5
    for seed in (4, 7, 16, 0):
        (check,) = (c for c in density_checks(times=[0.0], seed=seed) if c.id == "density_integrates_to_one")
        check(density)
    off = CallableDensity(lambda x, t: law.log_prob(x).sum(1) + 1e-3, (2,))  # at seed 0, whose first grid is sound
    with pytest.raises(ConformanceError, match="density_integrates_to_one"):
        check(off)


def test_nothing_to_train_is_no_missing_graph():
    """Parameters that are frozen, or of a density that has left torch and gives its own score."""

    class Frozen(NoiseConditionalDensity):
        def __init__(self):
            super().__init__((2,))
            self.mean = nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x, t, context=None, *, edges=True):
            return torch.distributions.Normal(self.mean, 1.0 + t[:, None]).log_prob(x).sum(1).detach()

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.ones(2))

        def forward(self, x, t):
            z = (x.numpy() - self.mean.detach().numpy()) / (1.0 + t[:, None].numpy())
            log_p = -0.5 * (z**2).sum(1) - 2.0 * np.log1p(t.numpy()) - math.log(2.0 * math.pi)
            return torch.from_numpy(log_p).to(x)

        def score(self, x, t):
            return (self.mean.detach() - x) / (1.0 + t[:, None]).square()

    outside = Outside()
    given = CallableDensity(outside, (2,), score=outside.score)
    name = "likelihood_has_its_gradient_in_the_parameters"
    assert dict(check_density(Frozen()).not_applicable)[name] == "no parameters to train"
    assert dict(check_density(given).not_applicable)[name] == "autograd cannot differentiate it"


class Laplace(NoiseConditionalDensity):
    """Made of an operation that torch differentiates only once."""

    def forward(self, x, t, context=None, *, edges=True):
        distance = torch.cdist(x[:, None], x.new_zeros(1, 2), p=1.0)[:, 0, 0]
        return -distance / (1.0 + t) - 2.0 * (1.0 + t).log() - 2.0 * math.log(2.0)


def test_a_missing_second_derivative_is_reported():
    report = check_density(Laplace((2,)))
    assert "score_is_the_gradient" in report.passed
    assert dict(report.not_applicable)["score_can_be_differentiated"].startswith("no second derivative: ")


def test_the_reference_sde_is_one():
    assert len(check_noise_process(OrnsteinUhlenbeck()).not_applicable) == 4
