"""Level noise and the likelihood: enumeration, quadrature, shared noise, closed forms of the perturbation."""

import json
import math

import pytest
import torch
from scipy import integrate, stats

from ncml import VESDE, VPSDE, GaussianProcess, Lattice, LevelNoise, NoiseProcess, SubVPSDE
from ncml.densities import CallableDensity, GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, UnsupportedError
from ncml.evaluation import (
    bits_per_dim,
    crossing_time,
    delta_log_p,
    level_noise_table,
    mean_abs_perturbation,
    robustness_curve,
)
from tests.problems import PMF, SDES, each_process, each_sde, seeded
from tests.statistics import Z, assert_mean, assert_variance

LATTICE = Lattice(17)
WIDTH = LATTICE.width
PROCESS = VPSDE.at_noise(WIDTH)
TOY = ToyLattice(PROCESS, PMF)


def points(*levels, lattice=LATTICE):
    """One example per level, float64, event shape (1,)."""
    return lattice.to_unit(torch.tensor(levels)[:, None], dtype=torch.float64)


def spread(n):
    """n examples that go through all levels."""
    return points(*(i % 17 for i in range(n)))


class Recorder:
    """A function of (x, t) that remembers the x that it was given, and a density of it."""

    def __init__(self, process, dims=50):
        self.seen = []
        self.density = CallableDensity(self, (dims,), process)

    def __call__(self, x, t):
        self.seen.append(x.clone())
        return x.sum(1)


# Table 1.


@pytest.mark.parametrize("edge", ["clip", "reflect"])
def test_the_table_of_a_flat_density_is_flat(edge):
    x = LATTICE.to_unit(torch.randint(17, (30, 4), generator=seeded(0)), dtype=torch.float64)
    rows = level_noise_table(ToyLattice(PROCESS, torch.ones(4, 17)), x, edge=edge, generator=seeded(1))
    assert [row.pi for row in rows] == [0.0, 0.5, 1.0]
    assert [row.n for row in rows] == [30] * 3
    assert all(row.bits.mean == pytest.approx(math.log2(17), abs=1e-12) for row in rows)


def test_without_level_noise_the_table_has_the_bits_of_the_data():
    (row,) = level_noise_table(TOY, spread(40), (0.0,), draws=5)
    assert torch.equal(row.bits.values, bits_per_dim(TOY, spread(40)).values)
    assert row.moved == 0.0


@pytest.mark.parametrize("edge", ["clip", "reflect"])
@pytest.mark.parametrize("pi", [0.5, 1.0])
def test_the_table_agrees_with_the_enumerated_level_noise(edge, pi):
    n = 2000
    (row,) = level_noise_table(TOY, spread(17 * n), (pi,), edge=edge, batch_size=17 * n, generator=seeded(2))
    moves = LevelNoise(17, edge).transition_matrix(pi)
    bits = -PMF.log2()
    mean, square = moves @ bits, moves @ bits.square()
    error = (row.bits.values.reshape(n, 17).mean(0) - mean).abs()
    assert (error <= Z * ((square - mean.square()).clamp(min=0) / n).sqrt() + 1e-12).all()
    moved = 1.0 - float(moves.diagonal().mean())
    assert abs(row.moved - moved) <= Z * math.sqrt(moved * (1 - moved) / (17 * n)) + 1e-12


def test_moved_is_measured_on_the_very_draws_that_were_evaluated():
    recorder, x = Recorder(PROCESS), LATTICE.to_unit(torch.full((20, 50), 16), dtype=torch.float64)
    (row,) = level_noise_table(recorder.density, x, (0.5,), lattice=LATTICE, draws=3, generator=seeded(3))
    moved = [(LATTICE.quantize(y) != x).double().mean() for y in recorder.seen]
    assert row.moved == pytest.approx(float(sum(moved)) / 3, abs=1e-15)
    assert 0.2 < row.moved < 0.3  # clipped at the edge: half of pi
    assert row.bits.kind == "upper bound"


# Delta log p, eq. 8.


def test_a_certain_move_in_a_symmetric_density_costs_the_exact_difference():
    """pi = 1 in the middle of a symmetric pmf: up and down cost the same, so nothing is left to chance."""
    pmf = torch.tensor([0.05, 0.2, 0.5, 0.2, 0.05], dtype=torch.float64)
    result = delta_log_p(ToyLattice(PROCESS, pmf), points(2, 2, lattice=Lattice(5)), 1.0)
    assert result.clean.mean == pytest.approx(1.0, abs=1e-12)
    assert result.signed == pytest.approx(math.log2(5) - 1.0, abs=1e-12)
    assert result.absolute == result.signed
    assert result.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_sign_says_who_is_less_likely():
    pmf = torch.tensor([0.3, 0.15, 0.1, 0.15, 0.3], dtype=torch.float64)
    result = delta_log_p(ToyLattice(PROCESS, pmf), points(2, lattice=Lattice(5)), 1.0)
    assert result.signed == pytest.approx(-math.log2(1.5), abs=1e-12)
    assert result.absolute == -result.signed
    assert math.isnan(result.standard_error)  # one example


def expected_bits(k, t, steps):
    """E_z of the bits of alpha x_k + sigma z (plus ``steps`` levels), by quadrature."""
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    centres = alpha * LATTICE.points(dtype=torch.float64).numpy()

    def integrand(z):
        x = alpha * float(points(k)) + sigma * z + steps * WIDTH
        log_p = math.log(float((PMF.numpy() * stats.norm.pdf(x, centres, sigma)).sum()))
        return -(log_p / math.log(2) + math.log2(WIDTH)) * stats.norm.pdf(z)

    return integrate.quad(integrand, -9, 9, epsabs=1e-9, limit=200)[0]


@pytest.mark.parametrize("order", ["before", "after"])
def test_with_noise_it_agrees_with_quadrature(order):
    """At t = T/3, from level 4 (interior) and level 0 (an edge, where the two orders differ most)."""
    t, pi, n = PROCESS.T / 3, 0.5, 20_000
    for k in (0, 4):
        result = delta_log_p(TOY, points(k).repeat(n, 1), pi, t, order=order, generator=seeded(k))
        clean = expected_bits(k, t, 0)
        if order == "after":
            perturbed = (1 - pi) * clean + 0.5 * pi * (expected_bits(k, t, 1) + expected_bits(k, t, -1))
        else:
            moves = LevelNoise(17).transition_matrix(pi)[k]
            perturbed = sum(float(p) * expected_bits(j, t, 0) for j, p in enumerate(moves) if p > 0)
        assert abs(result.clean.mean - clean) <= Z * result.clean.standard_error
        assert abs(result.signed - (perturbed - clean)) <= Z * result.standard_error


@pytest.mark.parametrize("process", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("order", ["before", "after"])
def test_clean_and_perturbed_share_their_noise(process, order):
    """Their difference is steps of exactly one level, times alpha if the process comes after them."""
    recorder, t = Recorder(process), process.T / 2
    x = LATTICE.to_unit(torch.randint(3, 14, (200, 50), generator=seeded(4)), dtype=torch.float64)
    delta_log_p(recorder.density, x, 0.3, t, order=order, lattice=LATTICE, generator=seeded(5))
    clean, perturbed = recorder.seen
    scale = WIDTH * (float(process.alpha(t)) if order == "before" else 1.0)
    steps = (perturbed - clean) / scale
    assert torch.allclose(steps, steps.round(), rtol=0, atol=1e-6)  # t is rounded to the dtype of log_prob
    for step, probability in ((-1, 0.15), (0, 0.7), (1, 0.15)):
        happened = (steps.round() == step).double()
        assert_mean(happened, probability, math.sqrt(probability * (1 - probability)))
    # The noise is the process's and that of the dequantisation, which comes before it.
    noise = (clean - float(process.alpha(t)) * x) / float(process.sigma(t))
    variance = 1.0 + (float(process.alpha(t)) * WIDTH / float(process.sigma(t))) ** 2 / 12
    assert_mean(noise, 0.0, math.sqrt(variance))
    assert_variance(noise, 0.0, variance)


def test_the_orders_commute_where_the_process_only_adds():
    """Away from the edges: the same values move the same way, before the noise and after it."""
    process, x = SDES["ve"], LATTICE.to_unit(torch.randint(3, 14, (20, 50), generator=seeded(4)), dtype=torch.float64)
    seen = []
    for order in ("before", "after"):
        recorder = Recorder(process)
        delta_log_p(recorder.density, x, 0.5, process.T, order=order, lattice=LATTICE, generator=seeded(5))
        seen.append(recorder.seen[1])
    assert torch.allclose(*seen, rtol=0, atol=1e-12)


def test_level_noise_after_the_process_is_not_clipped_off_the_lattice():
    recorder, x = Recorder(PROCESS), LATTICE.to_unit(torch.full((100, 50), 16), dtype=torch.float64)
    delta_log_p(recorder.density, x, 1.0, PROCESS.T, order="after", lattice=LATTICE, generator=seeded(6))
    steps = ((recorder.seen[1] - recorder.seen[0]) / WIDTH).round()
    assert set(steps.unique().tolist()) == {-1.0, 1.0}


def test_at_zero_the_only_noise_in_common_is_the_dequantisation():
    recorder, x = Recorder(PROCESS), LATTICE.to_unit(torch.full((200, 50), 8), dtype=torch.float64)
    delta_log_p(recorder.density, x, 1.0, lattice=LATTICE, generator=seeded(17))
    clean, perturbed = recorder.seen
    assert float((clean - x).abs().max()) <= LATTICE.half_width
    assert_mean((clean - x).square(), WIDTH**2 / 12, WIDTH**2 / math.sqrt(180))
    assert torch.allclose((perturbed - clean).abs(), torch.full_like(x, WIDTH), rtol=0, atol=1e-14)


def test_the_standard_error_is_paired():
    result = delta_log_p(TOY, spread(200), 0.5, PROCESS.T, generator=seeded(18))
    expected = stats.sem((result.perturbed.values - result.clean.values).numpy())
    assert result.standard_error == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("t", [0.0, PROCESS.T])
def test_no_level_noise_makes_no_difference(order, t):
    for density in (TOY, GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 0.3)):
        result = delta_log_p(density, spread(30), 0.0, t, order=order, lattice=LATTICE, generator=seeded(7))
        assert torch.equal(result.clean.values, result.perturbed.values)


def test_the_orders_are_the_same_at_zero():
    before, after = (delta_log_p(TOY, spread(60), 0.5, order=o, generator=seeded(8)) for o in ("before", "after"))
    assert torch.equal(before.perturbed.values, after.perturbed.values)


def test_without_a_lattice_the_values_at_zero_are_bounds_and_with_noise_exact():
    density = GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 0.3)
    at_zero, noisy = (delta_log_p(density, spread(30), 0.5, t, lattice=LATTICE) for t in (0.0, PROCESS.T))
    assert (at_zero.clean.kind, noisy.clean.kind) == ("upper bound", "density")


def test_a_discrete_process_stays_on_the_lattice_and_follows_its_matrices():
    """Level noise as the process too: two transition matrices in a row."""
    process, pi, t, n = LevelNoise(17, "reflect"), 1.0, 0.6, 20_000
    density = ToyLattice(process, PMF)
    bits = -(PMF @ process.transition_matrix(t)).log2()
    noise, level = process.transition_matrix(t)[0], LevelNoise(17).transition_matrix(pi)
    for order, law in (("before", level[0] @ process.transition_matrix(t)), ("after", noise @ level)):
        result = delta_log_p(density, points(0).repeat(n, 1), pi, t, order=order, generator=seeded(9))
        assert abs(result.perturbed.mean - float(law @ bits)) <= Z * result.perturbed.standard_error
        assert abs(result.clean.mean - float(noise @ bits)) <= Z * result.clean.standard_error
        assert result.clean.exact


def test_zero_mass_is_an_infinite_difference():
    pmf = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    result = delta_log_p(ToyLattice(PROCESS, pmf), points(2, 2, lattice=Lattice(5)), 1.0)
    assert result.signed == result.absolute == math.inf
    assert result.perturbed.infinite == 2
    assert result.to_dict()["signed"] == "inf"


def test_draws_lower_the_variance_and_batches_change_nothing():
    one, many = (delta_log_p(TOY, spread(400), 1.0, PROCESS.T, draws=d, generator=seeded(10)) for d in (1, 16))
    # The variance within an example falls by 16; that between examples stays.
    assert many.standard_error < 0.6 * one.standard_error
    small = delta_log_p(TOY, spread(400), 1.0, PROCESS.T, draws=16, batch_size=70, generator=seeded(10))
    assert torch.equal(small.perturbed.values, many.perturbed.values)


def test_only_the_given_generator_is_used_and_the_data_stay_as_they_are():
    x = spread(50)
    copy, state = x.clone(), torch.get_rng_state()
    first, second = (delta_log_p(TOY, x, 0.5, PROCESS.T, generator=seeded(11)) for _ in range(2))
    assert torch.equal(first.perturbed.values, second.perturbed.values)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, copy)


def test_every_row_keeps_its_own_context():
    density = CallableDensity(lambda x, t, c: -c.double(), (1,), PROCESS)
    labels = torch.arange(5)
    result = delta_log_p(density, spread(5), 0.5, 0.0, labels, lattice=LATTICE, batch_size=2)
    assert torch.allclose(result.perturbed.values, labels.double() / math.log(2) - math.log2(WIDTH))


# The curve, Figure 4.


def test_the_curve_is_delta_log_p_at_every_time_with_the_same_noise():
    times, pis = [0.0, PROCESS.T / 4, PROCESS.T], (0.5, 1.0)
    curve = robustness_curve(TOY, spread(100), times, pis, draws=2, generator=seeded(12))
    for pi in pis:
        for i, t in enumerate(times):
            single = delta_log_p(TOY, spread(100), pi, t, draws=2, generator=seeded(12))
            assert torch.equal(curve.results[pi][i].perturbed.values, single.perturbed.values)
            assert curve.signed[pi][i] == single.signed
            assert curve.delta[pi][i] == single.absolute
            assert curve.standard_error[pi][i] == pytest.approx(single.standard_error, abs=1e-15)
    assert curve.times.tolist() == times
    assert curve.sigma.tolist() == pytest.approx([float(PROCESS.sigma(t)) / WIDTH for t in times], abs=1e-14)
    assert curve.mean_abs_perturbation[-1] == mean_abs_perturbation(PROCESS, spread(100), PROCESS.T) / WIDTH


@each_sde
def test_robustness_comes_with_noise_of_a_level(process):
    """An exact density of rough lattice data: Delta log p falls as the noise hides the levels."""
    lattice = Lattice(256)
    level = torch.arange(256, dtype=torch.float64)
    pmf = torch.exp(-0.5 * ((level - 120) / 20).square()) * (1.0 + 0.9 * torch.cos(math.pi * level))
    density = ToyLattice(process, pmf)
    x = lattice.to_unit(torch.multinomial(pmf, 400, replacement=True, generator=seeded(13))[:, None]).double()
    crossing = crossing_time(process, x, lattice)
    times = torch.tensor([0.0, crossing, process.T])  # float32, where T may be rounded up
    curve = robustness_curve(density, x, times, generator=seeded(14))
    assert curve.mean_abs_perturbation.tolist()[:2] == pytest.approx([0.0, 1.0], abs=1e-6)
    for delta in curve.delta.values():
        assert delta[0] > 1.0
        assert delta[1:].max() < 0.05
    assert (curve.delta[1.0][0] > curve.delta[0.5][0]).all()


def test_the_curve_is_strict_json():
    curve = robustness_curve(TOY, spread(20), [0.0, PROCESS.T])
    data = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert data["delta"]["0.5"] == curve.delta[0.5].tolist()
    assert data["signed"]["1.0"] == curve.signed[1.0].tolist()
    assert data["times"] == [0.0, PROCESS.T]
    assert [clean["kind"] for clean in data["clean"]] == ["exact", "density"]
    assert data["mean_abs_perturbation_levels"] == curve.mean_abs_perturbation.tolist()


def test_a_process_without_sigma_has_a_curve_without_sigma():
    process = LevelNoise(17)
    curve = robustness_curve(ToyLattice(process, PMF), spread(34), [0.0, 0.5], progress=True)
    assert curve.sigma.isnan().all()
    assert curve.mean_abs_perturbation.tolist() == pytest.approx([0.0, 0.5 * (1 - 1 / 17)], abs=1e-12)


# The size of the perturbation.


@each_process
def test_mean_abs_perturbation_is_the_folded_normal_mean(process):
    x = torch.tensor([[-1.0, -0.3], [0.0, 1.0]], dtype=torch.float64)
    for fraction in (0.01, 0.3, 1.0):
        t = fraction * process.T
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        expected = 0.0
        for value in x.flatten().tolist():
            law = stats.norm((alpha - 1) * value, sigma)
            low, high = law.mean() - 12 * sigma, law.mean() + 12 * sigma
            expected += integrate.quad(lambda d: abs(d) * law.pdf(d), low, high, points=[0.0], epsabs=1e-14)[0] / 4  # noqa: B023
        assert mean_abs_perturbation(process, x, t) == pytest.approx(expected, rel=1e-9)
    assert mean_abs_perturbation(process, x, 0.0) == 0.0


def test_shrinking_alone_also_counts():
    process = GaussianProcess(lambda t: 1.0 - t, torch.zeros_like, T=0.5)
    assert mean_abs_perturbation(process, torch.tensor([-1.0, 0.5]), 0.5) == pytest.approx(0.375, abs=1e-15)


@pytest.mark.parametrize("edge", ["clip", "reflect"])
def test_mean_abs_perturbation_of_level_noise_is_enumerated(edge):
    noise, levels = LevelNoise(17, edge), torch.tensor([0, 0, 3, 16, 8])
    distance = (torch.arange(17)[:, None] - torch.arange(17)).abs() * WIDTH
    expected = (noise.transition_matrix(0.7) * distance).sum(1)[levels].mean()
    assert mean_abs_perturbation(noise, LATTICE.to_unit(levels), 0.7) == pytest.approx(float(expected), abs=1e-12)
    with pytest.raises(ArgumentError, match="lattice points"):
        mean_abs_perturbation(noise, torch.tensor([0.01]), 0.7)


class UniformNoise(NoiseProcess):
    """x + t U(-1, 1): neither Gaussian nor discrete."""

    T = 1.0

    def perturb(self, x, t, *, noise=None, generator=None):
        return x + t * (2.0 * torch.rand(x.shape, dtype=x.dtype, generator=generator) - 1.0)

    def on_lattice(self, t):
        return torch.as_tensor(t) == 0


def test_mean_abs_perturbation_of_another_process_is_sampled():
    x, n = torch.zeros(200, 500), 100_000
    value = mean_abs_perturbation(UniformNoise(), x, 0.5, generator=seeded(15))
    assert abs(value - 0.25) <= Z * 0.5 / math.sqrt(12 * n)
    assert value == mean_abs_perturbation(UniformNoise(), x, 0.5, generator=seeded(15))
    assert value != mean_abs_perturbation(UniformNoise(), x, 0.5, generator=seeded(16))


@each_process
def test_the_mean_perturbation_is_one_level_at_the_crossing(process):
    x, lattice = torch.linspace(-1, 1, 11, dtype=torch.float64), Lattice(256)
    for levels in (0.01, 1.0, 5.0):
        t = crossing_time(process, x, lattice, levels=levels)
        assert mean_abs_perturbation(process, x, t) == pytest.approx(levels * lattice.width, rel=1e-12)


@pytest.mark.parametrize("levels", [-3.0, math.nan, "a", None])
def test_a_perturbation_of_no_size_is_refused(levels):
    with pytest.raises(ArgumentError, match="levels: got"):
        crossing_time(VPSDE.at_noise(0.2), torch.zeros(4, 2), Lattice(256), levels=levels)


def test_crossing_times_of_the_whole_schedules():
    """Where sigma sqrt(2/pi) is one 8-bit level (there is hardly any shrinking there): two known values."""
    x, lattice = torch.zeros(1), Lattice(256)
    assert crossing_time(VPSDE(), x, lattice) == pytest.approx(0.00089, abs=5e-6)
    assert crossing_time(SubVPSDE(), x, lattice) == pytest.approx(0.0269, abs=5e-5)
    closed = float(VESDE().time_at(lattice.width * math.sqrt(math.pi / 2)))
    assert crossing_time(VESDE(), x, lattice) == pytest.approx(closed, rel=1e-12)
    assert crossing_time(VESDE(song=True), x, lattice) == 0.0  # starts above one level


def test_crossing_needs_a_gaussian_process_that_gets_there():
    with pytest.raises(ArgumentError, match="at_noise"):
        crossing_time(SubVPSDE(T=0.025), torch.zeros(1), Lattice(256))  # the paper's printed T never does
    with pytest.raises(UnsupportedError, match="GaussianProcess"):
        crossing_time(LevelNoise(), torch.zeros(1), Lattice(256))


# Bad inputs.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pi": 1.5}, r"^pi: got"),
        ({"pi": -0.1}, r"^pi: got"),
        ({"pi": math.nan}, r"^pi: got"),
        ({"t": -0.1}, r"^t: got"),
        ({"t": 1.0}, r"^t: got"),
        ({"t": torch.zeros(2)}, r"^t: got"),
        ({"x": spread(3) + 0.01}, "lattice points"),
        ({"x": spread(3)[:0]}, "empty batch"),
        ({"order": "during"}, r"^order: got"),
        ({"edge": "extend"}, r"^edge: got"),
        ({"draws": 0}, r"^draws: got"),
        ({"batch_size": -1}, r"^batch_size: got"),
        ({"lattice": Lattice(5)}, r"^lattice: got"),
        ({"process": VESDE()}, r"^process: got"),
        ({"density": CallableDensity(lambda x, t: x[:, 0], (1,)), "lattice": LATTICE, "t": 0.1}, r"^process: got"),
        ({"density": CallableDensity(lambda x, t: x[:, 0], (1,))}, r"^lattice: got"),
    ],
)
def test_bad_inputs_are_refused(options, match):
    arguments = {"density": TOY, "x": spread(3), "pi": 0.5, **options}
    with pytest.raises(ArgumentError, match=match):
        delta_log_p(arguments.pop("density"), arguments.pop("x"), arguments.pop("pi"), **arguments)


@pytest.mark.parametrize(
    ("times", "pis", "match"),
    [([], (0.5,), r"^times: got"), ([0.0], (), r"^pis: got"), ([0.0, 1.0], (0.5,), r"^t: got")],
)
def test_a_curve_needs_times_and_pis(times, pis, match):
    with pytest.raises(ArgumentError, match=match):
        robustness_curve(TOY, spread(3), times, pis)


def test_mean_abs_perturbation_refuses_bad_data():
    for x, match in ((torch.zeros(0), "at least one"), (torch.tensor([math.nan]), "non-finite")):
        with pytest.raises(ArgumentError, match=match):
            mean_abs_perturbation(PROCESS, x, 0.0)
