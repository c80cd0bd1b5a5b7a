"""What a ladder knows of itself, against closed forms; and of one that is no process."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ncml import VESDE, VPSDE, LevelNoise, NoiseConditionalDensity
from ncml.densities import MADE, CallableDensity, GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, NonFiniteError, UnsupportedError
from ncml.evaluation import (
    audit_ladder,
    flow_log_prob,
    fokker_planck_residual,
    kernel_gap,
    ladder_bound,
    time_posterior,
)
from tests.problems import (
    MEAN,
    PMF,
    PROCESSES,
    SDES,
    STD,
    WHOLE_SDES,
    each_process,
    gaussian,
    mixture,
    plane_mixture,
    seeded,
)
from tests.statistics import assert_law

F64 = torch.float64
VP = SDES["vp"]


@each_process
@pytest.mark.parametrize("build", [gaussian, mixture, plane_mixture])
def test_closed_forms_solve_the_fokker_planck_equation(process, build):
    density = build(process)
    t = torch.linspace(1e-3, 1.0, 12, dtype=F64) * process.T
    x = density.sample(12, t, generator=seeded(0))
    residual, rise = fokker_planck_residual(density, x, t)
    assert float((residual / rise.abs().clamp(min=1.0)).abs().max()) < 1e-9


class Widened(NoiseConditionalDensity):
    """Planted: a ladder whose noise grows by a twentieth, or another share, too fast."""

    def __init__(self, inner, share: float = 0.05) -> None:
        super().__init__(inner.event_shape, inner.process)
        self.inner, self.share = inner, share

    dtype_follows_input = True

    def forward(self, x, t, context=None, *, edges=True):
        alpha, sigma = self.process.alpha(t), (1.0 + self.share) * self.process.sigma(t)
        std = (0.01 * alpha**2 + sigma**2).sqrt()
        return torch.distributions.Normal(0.3 * alpha, std).log_prob(x[:, 0])


def test_a_ladder_that_is_no_process_shows():
    right, wrong = gaussian(VP), Widened(gaussian(VP))
    x = right.sample(50, 0.5 * VP.T, generator=seeded(0))
    for density, above in ((right, False), (wrong, True)):
        residual, rise = fokker_planck_residual(density, x, 0.5 * VP.T)
        assert (float(residual.square().mean() / rise.square().mean()) > 1e-4) == above


def test_random_directions_estimate_the_residual():
    density = plane_mixture(VP)
    x = density.sample(4, VP.T, generator=seeded(0)).repeat(5000, 1)
    residual, _ = fokker_planck_residual(density, x, VP.T, probes=1, generator=seeded(1))
    residual = residual.reshape(5000, 4)
    assert (residual.mean(0).abs() < 6.11 * residual.std(0) / math.sqrt(5000)).all()
    assert float(residual.std()) > 0.0


@pytest.mark.parametrize("processes", [SDES, WHOLE_SDES], ids=["ten levels", "whole"])
@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("build", [gaussian, mixture])
def test_the_flow_gives_the_likelihood(processes, name, build):
    """To 1e-6 nats on Gaussians and mixtures."""
    density = build(processes[name])
    x = density.sample(8, 0.0, generator=seeded(0))
    steps, times = (64, (0.0, 0.3 * density.process.T)) if processes is SDES else (512, (0.0,))
    for t in times:
        assert torch.allclose(
            flow_log_prob(density, x, t_start=t, steps=steps), density.log_prob(x, t), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_levels_are_calibrated(name):
    """Times drawn from the prior have uniform ranks in their posterior: a probability integral transform."""
    process = PROCESSES[name]
    density, k, n, g = plane_mixture(process), 20, 4000, seeded(3)
    times = [process.T * (i + 1) / k for i in range(k)]
    masses = torch.linspace(1.0, 2.0, k, dtype=F64)
    index = torch.multinomial(masses, n, replacement=True, generator=g)
    x = density.sample(n, torch.tensor(times, dtype=F64)[index], generator=g)
    posterior = time_posterior(density, x, times, prior=masses.tolist())
    assert torch.allclose(posterior.sum(1), torch.ones(n, dtype=F64))
    below = posterior.cumsum(1).gather(1, index[:, None]) - posterior.gather(1, index[:, None])
    u = below + torch.rand(n, 1, dtype=F64, generator=g) * posterior.gather(1, index[:, None])
    assert_law(u, lambda v: v.clip(0.0, 1.0))
    even = time_posterior(density, x, times)
    wrong = time_posterior(density, x, times, prior=(masses.flip(0) ** 4).tolist())
    with pytest.raises(AssertionError):  # power: the wrong prior shows
        assert_law(wrong.cumsum(1).gather(1, index[:, None]), lambda v: v.clip(0.0, 1.0))
    assert even.shape == (n, k)


def test_an_audit_of_a_closed_form_and_of_an_untrained_network():
    process = VESDE.linear(0.5)
    density = GaussianDensity(process, torch.tensor([0.2, -0.1], dtype=F64), 0.4)
    x = density.sample(40, 0.0, generator=seeded(0))
    good = audit_ladder(density, x, generator=seeded(1))
    assert float(good.ratio.max()) < 1e-9
    assert good.flow == pytest.approx((0.0, 0.0), abs=1e-5)
    torch.manual_seed(0)
    poor = audit_ladder(MADE((2,), process, hidden=(16,)).double(), x, generator=seeded(1), steps=8)
    assert float(poor.ratio.min()) > 0.05
    assert len(str(poor).splitlines()) == 7
    json.dumps(poor.to_dict())


def test_the_bound_of_an_audit_does_not_depend_on_the_order_of_the_data():
    """Sorted data would fit its decoder on one half of the plane, and judge it on the other."""
    density = plane_mixture(VPSDE.at_noise(0.5)).double()
    x = density.sample(2000, generator=seeded(0))
    drawn, ordered = (
        audit_ladder(density, rows, [0.05], generator=seeded(1)).bound[0] for rows in (x, x[x[:, 0].argsort()])
    )
    assert abs(float(drawn - ordered)) < 0.1


def test_what_cannot_be_audited():
    with pytest.raises(UnsupportedError, match=r"density\.process: got LevelNoise"):
        fokker_planck_residual(ToyLattice(LevelNoise(17), PMF), torch.zeros(2, 1), 0.5)
    with pytest.raises(ArgumentError, match="t: got 0"):
        fokker_planck_residual(gaussian(VP), torch.zeros(2, 1), 0.0)
    still = CallableDensity(lambda x, t: -0.5 * x.square().sum(1), (1,), VP)
    with pytest.raises(UnsupportedError, match="derivative in t"):
        fokker_planck_residual(still, torch.zeros(2, 1), VP.T)
    with pytest.raises(ArgumentError, match="times, prior"):
        time_posterior(gaussian(VP), torch.zeros(2, 1), [0.01], prior=[1.0, 2.0])
    with pytest.raises(ArgumentError, match="x: got 1 rows"):
        audit_ladder(gaussian(VP), torch.zeros(1, 1))


@pytest.mark.parametrize("own", ["vp", "linear-ve", "cosine"])
def test_a_density_under_another_process_is_one_ladder_as_well(own):
    """Its times have derivatives, also at T and where the inverse is found by bisection."""
    process = PROCESSES[own]
    target = VESDE.at_noise(float(process.sigma(process.T) / process.alpha(process.T)) * (1.0 - 1e-9))
    density = mixture(process).under(target)
    x = density.sample(20, target.T, generator=seeded(0))
    for t in (target.T, 0.4 * target.T):
        residual, rise = fokker_planck_residual(density, x, t)
        assert float(rise.abs().max()) > 0.01
        assert float(residual.abs().max()) < 1e-6 * float(rise.abs().max())


def test_rows_that_no_level_explains_are_named():
    def box(x, t):
        return torch.where(x[:, 0].abs() <= 1.0, 0.0, -math.inf)

    density = CallableDensity(box, (1,), VP)
    with pytest.raises(NonFiniteError, match=r"x: got 1 rows .*index 1"):
        time_posterior(density, torch.tensor([[0.0], [5.0]]), [0.0, VP.T])

    def sides(x, t):
        return torch.where((x[:, 0] > 0.0) == (t > 0.0), 0.0, -math.inf)

    density = CallableDensity(sides, (1,), VP)
    with pytest.raises(NonFiniteError, match="x: got 2 rows that no time explains together"):
        time_posterior(density, torch.tensor([[-1.0], [1.0]]), [0.0, VP.T], shared=True)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_levels_that_are_not_finite_are_no_evidence(value):
    def log_p(x, t):
        return -x.square().sum(1) + torch.where((x[:, 0] > 1.0) & (t == 0.0), value, 0.0)

    with pytest.raises(NonFiniteError, match=r"log-density: got NaN or infinity for 1 of 2 .*index 1 with t = 0"):
        time_posterior(CallableDensity(log_p, (1,), VP), torch.tensor([[0.0], [2.0]]), [0.0, VP.T])


# What levels say of each other.


def test_the_bound_of_normal_data_is_their_likelihood():
    """Draw by draw, up to the decoder's fitted width; with a wrong noise it is not."""
    density = gaussian(VP)
    fit, x = density.sample(20_000, generator=seeded(0)), density.sample(500, generator=seeded(1))
    for share in (0.2, 1.0):
        bound = ladder_bound(density, x, share * VP.T, fit=fit, draws=1, generator=seeded(2))
        assert float((bound - density.log_prob(x)).abs().max()) < 0.15
        assert abs(float((bound - density.log_prob(x)).mean())) < 0.01
    wrong = ladder_bound(Widened(density), x, VP.T, fit=fit, draws=1, generator=seeded(2))
    assert float((wrong - density.log_prob(x)).abs().mean()) > 0.01


def test_the_bound_lies_below_and_above_a_level_that_is_trained_badly():
    """Below the likelihood of mixtures and of lattice data; above that of a ladder whose t = 0 is spoilt."""
    for density in (plane_mixture(VP), ToyLattice(VP, PMF)):
        fit, x = density.sample(5000, generator=seeded(0)).double(), density.sample(5000, generator=seeded(1)).double()
        gap = ladder_bound(density, x, 0.5 * VP.T, fit=fit, generator=seeded(2)) - density.log_prob(x)
        assert float(gap.mean()) < 6.11 * float(gap.std()) / math.sqrt(5000)
        assert float(gap.mean()) > -1.0

    right = gaussian(VP)

    class Spoilt(Widened):
        def forward(self, x, t, context=None, *, edges=True):
            at_zero = torch.distributions.Normal(0.3, 0.2).log_prob(x[:, 0])
            return torch.where(t > 0, self.inner(x, t), at_zero)

    x = right.sample(400, generator=seeded(0))
    audit = audit_ladder(Spoilt(right), x, [0.5 * VP.T], steps=2, generator=seeded(1))
    assert float(audit.bound[0]) > 0.2
    assert audit.kernel.isnan().all()


def test_noisy_data_by_the_samples_of_the_model():
    density = mixture(VP)
    x = density.sample(200, 0.5 * VP.T, generator=seeded(0))
    gap, share = kernel_gap(density, x, 0.5 * VP.T, samples=20_000, generator=seeded(1))
    assert float(gap.mean()) == pytest.approx(0.0, abs=0.05)
    assert 0.0 < float(share.min()) <= float(share.max()) <= 1.0

    class Off(type(density)):  # planted: data drawn with a shift
        def sample(self, n, t=0.0, context=None, *, generator=None):
            return super().sample(n, t, context, generator=generator) + 0.1

    off = Off(VP, density.weights, density.means, density.stds)
    assert float(kernel_gap(off, x, 0.5 * VP.T, samples=20_000, generator=seeded(1))[0].mean()) > 0.1


def test_the_noise_of_a_process_that_is_noisy_at_zero_is_added_once():
    process = VESDE(sigma_min=0.3, sigma_max=1.0, song=True)
    density = gaussian(process)
    x = density.sample(2000, 0.1, generator=seeded(0))
    gap, _ = kernel_gap(density, x, 0.1, samples=20_000, generator=seeded(1))
    assert float(gap.mean()) == pytest.approx(0.0, abs=0.02)  # 0.06 if added twice
    audit = audit_ladder(density, MEAN + STD * torch.randn(400, 1, dtype=F64, generator=seeded(2)), generator=seeded(3))
    assert float(audit.bound.abs().max()) < 0.05  # exact for normal data but for the fitted width; 0.7 if added twice
    lattice = ToyLattice(VESDE(song=True), torch.ones(256, dtype=F64))
    x = lattice.lattice.points(dtype=F64)[::8, None]
    assert audit_ladder(lattice, x, [1.0], steps=2, generator=seeded(4)).flow[1] < math.inf


def test_entropy_obeys_de_bruijn():
    """Within 6.11 standard errors for mixtures; not where the noise grows too fast."""
    density, times = mixture(VP), [0.3 * VP.T, VP.T]
    for ladder, holds in ((density, True), (Widened(gaussian(VP), 0.5), False)):
        x = (density if holds else gaussian(VP)).sample(4000, generator=seeded(0))
        missed = []
        for t in times:
            noisy = VP.perturb(x, t, generator=seeded(1))
            residual, rise = fokker_planck_residual(ladder, noisy, t)
            f, along = float(VP.drift_coefficient(t)), (noisy * ladder.score(noisy, t)).sum(1)
            gap = 2.0 * (rise + f + f * along) - residual
            missed.append(abs(float(gap.mean())) / float(gap.std()) * math.sqrt(4000))
        assert (max(missed) < 6.11) == holds


def test_an_audit_reports_entropies():
    """Of a mixture within 6.11 standard errors of de Bruijn's identity; of a ladder that grows too fast, outside."""
    times = [0.3 * VP.T, VP.T]
    for ladder, data, holds in ((mixture(VP), mixture(VP), True), (Widened(gaussian(VP), 0.5), gaussian(VP), False)):
        x = data.sample(1000, generator=seeded(0))
        audit = audit_ladder(ladder, x, times, steps=1, generator=seeded(1))
        missed, error = audit.entropy.abs().T
        assert bool((missed < 6.11 * error).all()) == holds
        assert (error > 0.0).all()


def test_the_entropy_that_an_audit_reports_is_in_closed_form_for_white_data():
    """Normal data of variance 1 under a whole VP keep their law: what is missed is 2 f (D - |x|^2)."""
    process, t = WHOLE_SDES["vp"], 0.3
    density = GaussianDensity(process, torch.zeros(2, dtype=F64), 1.0)
    x = density.sample(50, generator=seeded(0))
    audit = audit_ladder(density, x, [t], steps=1, generator=seeded(1))
    missed = 2.0 * process.drift_coefficient(t) * (2.0 - process.perturb(x, t, generator=seeded(1)).square().sum(1))
    expected = torch.stack([missed.mean(), missed.std() / math.sqrt(50)])
    assert torch.allclose(audit.entropy[0], expected, rtol=1e-9)


def test_contexts_of_an_audit_go_with_their_rows():
    """Normal data around their contexts, of which rows to fit and rows to bound have their own."""

    def log_p(x, t, context):
        std = (0.01 * VP.alpha(t).square() + VP.sigma(t).square()).sqrt()
        return torch.distributions.Normal(VP.alpha(t) * context[:, 0], std).log_prob(x[:, 0])

    density = CallableDensity(log_p, (1,), VP)
    context = torch.randn(400, 1, dtype=F64, generator=seeded(0))
    x = context + 0.1 * torch.randn(400, 1, dtype=F64, generator=seeded(1))
    bound = ladder_bound(
        density, x[:100], VP.T, fit=x[100:], context=context[:100], fit_context=context[100:], generator=seeded(2)
    )
    assert float((bound - density.log_prob(x[:100], 0.0, context[:100])).abs().max()) < 0.5
    audit = audit_ladder(density, x, [VP.T], context, steps=4, generator=seeded(3))
    assert float(audit.ratio) < 1e-9
    assert abs(float(audit.bound)) < 0.05
    assert abs(audit.flow[0]) < 0.01


def test_an_audit_of_a_lattice_begins_where_its_noise_can_be_followed():
    """The exact ladder is one process; at t = 0 its density is even over bins, which no flow leads to."""
    density = ToyLattice(VESDE.linear(0.5), PMF.double())
    x = density.sample(20, generator=seeded(0)).double()
    assert abs(audit_ladder(density, x, [0.2], steps=64, generator=seeded(1)).flow[0]) < 1e-3
    little = ToyLattice(VESDE.linear(0.02), PMF.double())  # less noise than that at T: from half of it
    assert abs(audit_ladder(little, x, [0.01], steps=64, generator=seeded(1)).flow[0]) < 1e-3
    made = CallableDensity(  # a lattice's flow that goes wrong
        density, (1,), density.process, lattice=density.lattice, density=lambda x, t: 1.5 * density(x, t, edges=False)
    )
    assert abs(audit_ladder(made, x, [0.2], steps=4, generator=seeded(1)).flow[0]) > 0.1


def test_an_audit_of_functions_that_cannot_sample():
    density = gaussian(VP)
    silent = CallableDensity(density, (1,), VP)
    audit = audit_ladder(silent, density.sample(20, generator=seeded(0)), steps=2, generator=seeded(1))
    assert audit.kernel.isnan().all()
    assert audit.bound.isfinite().all()
    assert "kernel" not in audit.to_dict()
    with pytest.raises(ArgumentError, match="times: got none"):
        audit_ladder(silent, torch.zeros(2, 1, dtype=F64), [])


def test_what_cannot_be_bridged():
    with pytest.raises(ArgumentError, match="t, fit: got t = 0"):
        ladder_bound(gaussian(VP), torch.zeros(2, 1, dtype=F64), 0.0, fit=torch.zeros(2, 1, dtype=F64))
    with pytest.raises(UnsupportedError, match=r"density\.process: got LevelNoise"):
        kernel_gap(ToyLattice(LevelNoise(17), PMF), torch.zeros(2, 1), 0.5)
    with pytest.raises(UnsupportedError, match="cannot sample"):
        kernel_gap(Widened(gaussian(VP)), torch.zeros(2, 1, dtype=F64), VP.T)
