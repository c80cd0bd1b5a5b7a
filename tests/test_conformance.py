"""The conformance kit: everything bundled passes it, it says what it did, and it leaves no trace."""

from __future__ import annotations

import copy
import importlib
import math
import sys

import pytest
import torch
import zuko
from nflows.distributions.normal import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform
from torch import nn

import ncml.testing
from ncml import VESDE, VPSDE, AutoregressiveDensity, LevelNoise, NoiseConditionalDensity, NoiseProcess
from ncml.densities import (
    MADE,
    MAF,
    NCPN,
    CallableDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    NFlowsDensity,
    ToyLattice,
    ZukoDensity,
)
from ncml.errors import ArgumentError, ArgumentTypeError, ConformanceError, MissingExtraError
from ncml.lattice import Lattice
from ncml.sampling import AnnealedLangevin, EulerMaruyama, HeunODE, Tweedie
from ncml.testing import check_density, check_noise_process, check_sampler
from ncml.testing._reference import OrnsteinUhlenbeck
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
    skipped = {name for name, _ in report.not_applicable}
    assert ("sigma_solves_the_diffusion" in skipped) == (process is PROCESSES["cosine"])
    assert "moves_match_the_transition_matrix" in skipped


@pytest.mark.parametrize("process", WHOLE_SDES.values(), ids=WHOLE_SDES.keys())
def test_whole_schedules_conform(process):
    assert len(check_noise_process(process).not_applicable) == 3


@pytest.mark.parametrize("edge", ["clip", "reflect"])
@pytest.mark.parametrize(("levels", "T"), [(2, 1.0), (3, 0.1), (17, 0.5), (256, 1.0)])
def test_level_noise_conforms(levels, T, edge):
    report = check_noise_process(LevelNoise(levels, edge=edge, T=T))
    assert "moves_match_the_transition_matrix" in report.passed
    assert dict(report.not_applicable)["alpha_solves_the_drift"] == "not a LinearSDE"


def test_the_ve_sde_of_song_conforms_once_its_start_is_declared():
    song = VESDE(song=True)
    with pytest.raises(ConformanceError, match="perturb_at_zero_returns_the_data"):
        check_noise_process(song)
    report = check_noise_process(song, starts_at_data=False)
    assert dict(report.not_applicable)["perturb_at_zero_returns_the_data"] == "starts_at_data=False"
    assert "sigma_solves_the_diffusion" in report.passed


def nflows_flow() -> Flow:
    return Flow(MaskedAffineAutoregressiveTransform(2, 6, context_features=8, num_blocks=1), StandardNormal([2]))


def pixel_network(shape: tuple[int, ...], heads: int = 0) -> NCPN:
    return NCPN(shape, ON_FIVE, lattice=FIVE, features=8, blocks=1, levels=1, heads=heads, components=2)


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
    "made, lattice": (lambda: MADE((1, 3, 1), ON_FIVE, lattice=FIVE, hidden=(8,), components=2, order=[2, 0, 1]), {}),
    "made, lattice, gaussian head": (
        lambda: MADE((1,), ON_FIVE, lattice=FIVE, hidden=(8,), components=2, head="gaussian"),
        {},
    ),
    "made, level noise": (lambda: MADE((2,), LevelNoise(5), lattice=FIVE, hidden=(8,), components=2), {}),
    "made, labels": (lambda: MADE((2,), VP, hidden=(8,), components=2, classes=2), {"context": LABELS}),
    "maf": (lambda: MAF((2,), VP, transforms=2, hidden=(8,), data_std=0.5), {}),
    "maf, context": (lambda: MAF((3,), VP, transforms=1, hidden=(8,), context_features=2), {"context": VECTORS}),
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


SAMPLERS = {
    "euler": (EulerMaruyama(steps=32), 0.05),
    "euler, uniform": (EulerMaruyama(steps=64, grid="uniform", denoise_last=False), 0.05),
    "heun": (HeunODE(steps=16), 0.01),
    "langevin": (AnnealedLangevin(steps=32, step_size=0.2), 0.2),
    "tweedie": (Tweedie(), 1e-9),
}


@pytest.mark.parametrize(("sampler", "tolerance"), SAMPLERS.values(), ids=SAMPLERS.keys())
def test_bundled_samplers_conform(sampler, tolerance):
    report = check_sampler(sampler, tolerance=tolerance)
    assert ("law_at_zero" in report.passed) == sampler.samples_law
    assert ("posterior_mean_is_exact" in report.passed) != sampler.samples_law


@pytest.mark.parametrize("process", WHOLE_SDES.values(), ids=WHOLE_SDES.keys())
def test_samplers_conform_on_other_processes(process):
    assert "law_at_zero" in check_sampler(HeunODE(steps=64), type(process).at_noise(0.5)).passed


# Users' own classes, which see nothing but the interfaces.


class Masking(NoiseProcess):
    """Sets values to zero with probability t: neither Gaussian nor on a lattice."""

    T = 1.0

    def perturb(self, x, t, *, noise=None, generator=None):
        ncml._checks.check_floating(x, "x")
        t = ncml._checks.check_time(t, x, self.T)
        u = self._noise(x, noise, generator)
        return torch.where(u < ncml._checks.per_example(t, x), 0.0 * x + 2.0 * u, x)

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
        "not a LinearSDE",
        "not a DiscreteProcess",
    }


class Normal(NoiseConditionalDensity):
    """The example of the interface's documentation."""

    def forward(self, x, t, context=None):
        return torch.distributions.Normal(0.0, 1.0 + t[:, None]).log_prob(x).sum(1)


class Guided(NoiseConditionalDensity):
    """A context that goes through a layer of the density's own dtype."""

    def __init__(self):
        super().__init__((2,), VP)
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t, context=None):
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

    def forward(self, x, t, context=None):
        centre = (self.gate * x.mean(0)).expand_as(x)
        return torch.distributions.Normal(centre, 1.0 + t[:, None]).log_prob(x).sum(1)


def test_a_bug_does_not_hide_behind_a_layer_that_starts_at_zero():
    density = ZeroInitialised()
    with pytest.raises(ConformanceError, match="rows_do_not_interact"):
        check_density(density)
    assert not density.gate.any()


# What a check says, and what it leaves behind.


def test_every_check_is_reported():
    report = check_noise_process(VP)
    names = [*report.passed, *(name for name, _ in report.not_applicable)]
    assert sorted(names) == sorted(check.__name__ for check in ncml.testing.processes.CHECKS)
    assert report.subject == "VPSDE"


def test_the_report_is_readable():
    text = str(check_noise_process(VP)).splitlines()
    assert text[0] == "VPSDE: 30 checks passed, 3 not applicable"
    assert "  passed          time_at_inverts_sigma" in text
    assert "  not applicable  moves_match_the_transition_matrix: not a DiscreteProcess" in text
    assert len(text) == 34


def test_a_failure_names_check_got_expected_and_remedy():
    with pytest.raises(ConformanceError) as caught:
        check_noise_process(VESDE(song=True))
    message = str(caught.value)
    assert message.startswith("VESDE: check 'perturb_at_zero_returns_the_data' failed: got perturb(x, 0) against x")
    assert "; expected equal bits; t = 0 is the data itself" in message
    assert isinstance(caught.value, AssertionError)


class Interrupted(GaussianDensity):
    def forward(self, x, t, context=None):
        raise KeyError("weights")


def test_an_error_of_the_object_becomes_a_failure_with_its_cause():
    with pytest.raises(ConformanceError, match="'float64_copy_works' failed: got KeyError: 'weights'") as caught:
        check_density(Interrupted(VP, 0.0, 1.0))
    assert isinstance(caught.value.__cause__, KeyError)


def test_checks_leave_the_density_and_the_random_state_alone():
    torch.manual_seed(0)
    density = MADE((2,), VP, hidden=(8,), components=2).train()
    density.net.eval()
    flags = [module.training for module in density.modules()]
    state = copy.deepcopy(density.state_dict())
    rng = torch.get_rng_state()
    check_density(density, samples=FEW)
    check_noise_process(VP)
    check_sampler(HeunODE(steps=8))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in density.modules()] == flags
    assert all(same_bits(v, state[k]) for k, v in density.state_dict().items() if v.is_floating_point())
    assert all(p.grad is None for p in density.parameters())


def test_seeds_reproduce_and_differ():
    seen = []

    class Spy(GaussianDensity):
        def forward(self, x, t, context=None):
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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_noise_process("vp"), ArgumentTypeError, "process: got str"),
        (lambda: check_noise_process(VP, torch.zeros(2, 3, dtype=torch.int64)), ArgumentTypeError, "x: got dtype"),
        (lambda: check_density(nn.Linear(2, 2)), ArgumentTypeError, "density: got Linear"),
        (lambda: check_density(gaussian(VP), torch.zeros(4, 2)), ArgumentError, "x: got shape"),
        (lambda: check_density(gaussian(VP), torch.zeros(1, 1)), ArgumentError, "x: got 1 rows"),
        (lambda: check_density(gaussian(VP), process=VPSDE()), ArgumentError, "process: got VPSDE"),
        (lambda: check_density(gaussian(VP), samples=10), ArgumentError, "samples: got 10"),
        (lambda: check_density(gaussian(VP), times=[]), ArgumentError, "times: got "),
        (lambda: check_density(gaussian(VP), times=[0.0, 9.0]), ArgumentError, "times: got .0.0, 9.0."),
        (lambda: check_density(gaussian(VP), context=3), ArgumentTypeError, "context: got int"),
        (lambda: check_sampler("euler"), ArgumentTypeError, "sampler: got str"),
        (lambda: check_sampler(HeunODE(), PROCESSES["cosine"]), ArgumentError, "HeunODE expected a LinearSDE"),
        (lambda: check_sampler(HeunODE(), tolerance=0.0), ArgumentError, "tolerance: got 0.0"),
    ],
)
def test_bad_arguments_are_refused_before_any_check(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert not isinstance(caught.value, ConformanceError)


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
    skipped = dict(check_density(spikes, times=[0.0, 1e-7], samples=200).not_applicable)
    assert skipped["density_integrates_to_one"] == "700000 points do not resolve t = 1e-07"
    assert skipped["samples_follow_the_density"] == "slices are not resolved at t = 1e-07"


def test_degenerate_importance_weights_are_reported():
    means = 3.0 * torch.randn(2, 9, generator=seeded(0))
    clusters = GaussianMixtureDensity(VP, [0.5, 0.5], means, 0.05)
    skipped = dict(check_density(clusters, times=[0.0, 1e-4], samples=200).not_applicable)
    assert skipped["importance_weights_average_to_one"] == "importance weights degenerate at t = 0, 0.0001"


class Laplace(NoiseConditionalDensity):
    """Made of an operation that torch differentiates only once."""

    def forward(self, x, t, context=None):
        distance = torch.cdist(x[:, None], x.new_zeros(1, 2), p=1.0)[:, 0, 0]
        return -distance / (1.0 + t) - 2.0 * (1.0 + t).log() - 2.0 * math.log(2.0)


def test_a_missing_second_derivative_is_reported():
    report = check_density(Laplace((2,)))
    assert "score_is_the_gradient" in report.passed
    assert dict(report.not_applicable)["score_can_be_differentiated"].startswith("no second derivative: ")


def test_the_reference_sde_is_one():
    assert len(check_noise_process(OrnsteinUhlenbeck()).not_applicable) == 3
