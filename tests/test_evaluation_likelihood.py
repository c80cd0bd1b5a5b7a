"""Bits per dimension: closed forms on the lattice and off it, batching, modes, bad inputs."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from ncml import VESDE, VPSDE, BitsPerDim, Lattice, LevelNoise, NoiseConditionalDensity
from ncml.densities import MADE, CallableDensity, GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ncml.evaluation import bits_per_dim
from tests.problems import seeded
from tests.statistics import Z

PROCESS = VPSDE.at_noise(0.1)
LATTICE = Lattice(5)
PMF = torch.tensor([0.1, 0.25, 0.3, 0.05, 0.3], dtype=torch.float64)


def points(*levels, lattice=LATTICE):
    """One example per level, float64, event shape (1,)."""
    return lattice.to_unit(torch.tensor(levels)[:, None], dtype=torch.float64)


def uniform_density(lattice, dims):
    """Uniform on the union of all bins, without a lattice of its own."""
    side = lattice.levels * lattice.width

    def log_p(x, t):
        inside = (x.abs() <= 0.5 * side + 1e-12).all(1)
        return torch.full_like(x[:, 0], -dims * math.log(side)).masked_fill(~inside, -math.inf)

    return CallableDensity(log_p, (dims,))


# Closed forms.


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_uniform_pmf_costs_log2_levels_on_both_routes(levels):
    lattice = Lattice(levels)
    x = lattice.to_unit(torch.randint(levels, (40, 3), generator=seeded(0)), dtype=torch.float64)
    exact = bits_per_dim(ToyLattice(PROCESS, torch.ones(3, levels)), x)
    bound = bits_per_dim(uniform_density(lattice, 3), x, lattice=lattice, generator=seeded(0))
    assert torch.allclose(exact.values, torch.full((40,), math.log2(levels), dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(bound.values, exact.values, rtol=0, atol=1e-12)
    assert (exact.kind, bound.kind) == ("exact", "upper bound")


def test_the_mean_over_the_pmf_is_its_entropy():
    bits = bits_per_dim(ToyLattice(PROCESS, PMF), points(0, 1, 2, 3, 4))
    assert torch.allclose(bits.values, -PMF.log2(), rtol=0, atol=1e-12)
    assert float((PMF * bits.values).sum()) == pytest.approx(stats.entropy(PMF.numpy(), base=2), abs=1e-12)


def test_bits_are_divided_by_the_number_of_values_not_of_axes():
    pmf = PMF.repeat(2, 3, 1)
    x = LATTICE.to_unit(torch.full((1, 2, 3), 2), dtype=torch.float64)
    assert bits_per_dim(ToyLattice(PROCESS, pmf), x).mean == pytest.approx(-math.log2(0.3), abs=1e-12)


def test_dequantisation_gives_the_expected_bound_and_stays_above_the_mass():
    """A Gaussian: E_u[-log p(x + u)] has a closed form, and the mass of a bin is a difference of CDFs."""
    mean, std, k = 0.2, 0.3, 400
    density = GaussianDensity(PROCESS, torch.tensor([mean], dtype=torch.float64), std)
    x = points(0, 2, 4)
    bound = bits_per_dim(density, x.repeat(k, 1), lattice=LATTICE, generator=seeded(0)).values.reshape(k, 3)
    nats = 0.5 * ((x[:, 0] - mean) ** 2 + LATTICE.width**2 / 12) / std**2 + math.log(std * math.sqrt(2 * math.pi))
    expected = nats / math.log(2) - math.log2(LATTICE.width)
    assert ((bound.mean(0) - expected).abs() < Z * bound.std(0) / math.sqrt(k)).all()
    cdf = stats.norm(mean, std).cdf
    mass = torch.from_numpy(cdf(x + LATTICE.half_width) - cdf(x - LATTICE.half_width))[:, 0]
    assert (expected > -mass.log2()).all()
    assert (bound.mean(0) > -mass.log2()).all()


def test_dequantisations_are_averaged_in_bits():
    density = GaussianDensity(PROCESS, torch.zeros(2, dtype=torch.float64), 0.3)
    x = LATTICE.to_unit(torch.randint(5, (6, 2), generator=seeded(0)), dtype=torch.float64)
    both = bits_per_dim(density, x, lattice=LATTICE, dequantisations=2, generator=seeded(1)).values
    source = seeded(1)
    each = [bits_per_dim(density, x, lattice=LATTICE, generator=source).values for _ in range(2)]
    assert torch.allclose(both, (each[0] + each[1]) / 2, rtol=0, atol=1e-14)
    assert not torch.equal(each[0], each[1])


# N(0.3 w, (0.3 w)^2) on the bin [-w/2, w/2]: half its mass on one side of the bin, and a fifth outside.

NARROW = GaussianDensity(PROCESS, torch.tensor([0.3 * LATTICE.width], dtype=torch.float64), 0.3 * LATTICE.width)
MASS = stats.norm(0.3, 0.3).cdf(0.5) - stats.norm(0.3, 0.3).cdf(-0.5)


@pytest.mark.parametrize(("k", "expected"), [(1, 0.9780), (4, 0.517), (16, 0.446), (64, 0.432), (256, 0.428)])
def test_importance_weights_tighten_the_bound(k, expected):
    """The expected bits of K draws, to the digits given and the standard error of 40,000 rows."""
    bits = bits_per_dim(
        NARROW,
        points(2).expand(40_000, 1),
        lattice=LATTICE,
        importance=k,
        batch_size=40_000,
        generator=seeded(k),
    )
    assert abs(bits.mean - expected) <= 0.0006 + Z * bits.standard_error
    assert bits.standard_error < 0.008
    assert bits.kind == "upper bound"
    if k == 1:
        closed = 0.5 * (0.3**2 + 1 / 12) / 0.3**2 / math.log(2) + math.log2(0.3 * math.sqrt(2 * math.pi))
        assert closed == pytest.approx(0.9780, abs=5e-5)
        assert abs(bits.mean - closed) <= Z * bits.standard_error
    if k == 256:
        assert -math.log2(MASS) == pytest.approx(0.4273, abs=5e-5)
        assert abs(bits.mean + math.log2(MASS)) <= 0.002 + Z * bits.standard_error


def test_a_mean_of_logarithms_shows():
    """Power: averaging 16 draws in bits, not under the logarithm, stays at the plain bound."""
    bits = bits_per_dim(NARROW, points(2).expand(4000, 1), lattice=LATTICE, dequantisations=16, generator=seeded(0))
    assert bits.mean > 0.9


def test_importance_is_the_mean_density_of_its_draws():
    density = GaussianDensity(PROCESS, torch.zeros(2, dtype=torch.float64), 0.3)
    x = LATTICE.to_unit(torch.randint(5, (6, 2), generator=seeded(0)), dtype=torch.float64)
    tight = bits_per_dim(density, x, lattice=LATTICE, importance=3, batch_size=4, generator=seeded(1)).values
    source = seeded(1)
    each = torch.stack([density.log_prob(LATTICE.dequantize(x, generator=source)) for _ in range(3)])
    expected = -each.exp().mean(0).log() / (2 * math.log(2)) - math.log2(LATTICE.width)
    assert torch.allclose(tight, expected, rtol=0, atol=1e-13)
    one, plain = (
        bits_per_dim(density, x, lattice=LATTICE, generator=seeded(2), **options).values
        for options in ({"importance": 1}, {})
    )
    assert torch.equal(one, plain)
    source = seeded(3)
    both = bits_per_dim(density, x, lattice=LATTICE, importance=2, dequantisations=2, generator=seeded(3)).values
    pairs = [bits_per_dim(density, x, lattice=LATTICE, importance=2, generator=source).values for _ in range(2)]
    assert torch.allclose(both, (pairs[0] + pairs[1]) / 2, rtol=0, atol=1e-14)


def test_importance_leaves_exact_values_alone():
    seen = []
    exact = ToyLattice(PROCESS, PMF)
    exact.register_forward_hook(lambda *_: seen.append(1))
    bits = bits_per_dim(exact, points(0, 2), importance=64)
    assert len(seen) == 1
    assert torch.allclose(bits.values, -PMF[[0, 2]].log2(), rtol=0, atol=1e-12)
    x, t = torch.tensor([[0.5], [0.123]], dtype=torch.float64), torch.tensor([0.0, PROCESS.T], dtype=torch.float64)
    mixed = bits_per_dim(NARROW, x, t, lattice=LATTICE, importance=8, generator=seeded(1)).values
    alone = bits_per_dim(NARROW, x[1:], PROCESS.T, lattice=LATTICE).values
    assert float(mixed[1]) == pytest.approx(float(alone[0]), abs=1e-13)


def test_with_noise_the_value_is_that_of_the_density_per_bin():
    density = GaussianDensity(PROCESS, torch.tensor([0.3, -0.2], dtype=torch.float64), 0.1)
    x = torch.randn(7, 2, dtype=torch.float64, generator=seeded(0))
    t = torch.linspace(0.1, 1.0, 7, dtype=torch.float64) * PROCESS.T
    bits = bits_per_dim(density, x, t, lattice=LATTICE)
    alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
    law = stats.norm(alpha * density.mean, (alpha**2 * 0.01 + sigma**2).sqrt())
    expected = -(law.logpdf(x) / math.log(2) + math.log2(LATTICE.width)).mean(1)
    assert torch.allclose(bits.values, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert bits.exact


def test_rows_at_zero_are_dequantised_and_noisy_rows_are_left_alone():
    density = GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 0.5)
    x, t = torch.tensor([[0.5], [0.123]], dtype=torch.float64), torch.tensor([0.0, PROCESS.T], dtype=torch.float64)
    first, second = (bits_per_dim(density, x, t, lattice=LATTICE, generator=seeded(i)) for i in (1, 2))
    assert not first.exact
    assert first.values[0] != second.values[0]
    assert first.values[1] == second.values[1] == bits_per_dim(density, x[1:], PROCESS.T, lattice=LATTICE).values[0]


def test_level_noise_keeps_data_on_the_lattice_at_every_time():
    noise = LevelNoise(levels=5)
    density = ToyLattice(noise, PMF)
    bits = bits_per_dim(density, points(0, 1, 2, 3, 4), 0.5)
    assert torch.allclose(bits.values, -(PMF @ noise.transition_matrix(0.5)).log2(), rtol=0, atol=1e-12)
    with pytest.raises(ArgumentError, match="lattice points"):
        bits_per_dim(density, points(0) + 0.1, 0.5)


def test_a_process_with_noise_at_zero_needs_no_lattice_data():
    density = GaussianDensity(VESDE(song=True), torch.zeros(1, dtype=torch.float64), 1.0)
    assert bits_per_dim(density, torch.full((1, 1), 0.1, dtype=torch.float64), lattice=LATTICE).exact


def test_a_density_without_a_process_has_its_data_at_zero_only():
    density = CallableDensity(lambda x, t: x[:, 0], (1,))
    x = torch.full((1, 1), 0.123, dtype=torch.float64)
    bits = bits_per_dim(density, x, 0.5, lattice=LATTICE)
    assert bits.exact
    assert bits.mean == pytest.approx(-0.123 / math.log(2) - math.log2(LATTICE.width), abs=1e-12)


# Batches, contexts, modes.


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("has_lattice", [True, False])
def test_every_row_counts_once_whatever_the_batch_size(batch_size, has_lattice):
    """A denominator of whole batches, or a dropped last batch, would change the mean."""
    density = (
        ToyLattice(PROCESS, PMF) if has_lattice else GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 0.4)
    )
    x = points(0, 1, 2, 3, 4, 0, 2)
    options = {"lattice": LATTICE, "batch_size": batch_size}
    bits = bits_per_dim(density, x, generator=seeded(0), **options)
    whole = bits_per_dim(density, x, generator=seeded(0), lattice=LATTICE)
    assert torch.equal(bits.values, whole.values)
    assert bits.mean == pytest.approx(sum(whole.values.tolist()) / 7, abs=1e-12)


def test_every_row_keeps_its_own_context():
    density = CallableDensity(lambda x, t, c: -c.to(x.dtype), (1,))
    labels = torch.tensor([3, 0, 2, 1, 4])
    bits = bits_per_dim(density, points(0, 1, 2, 3, 4), 0.0, labels, lattice=LATTICE, batch_size=2)
    assert torch.allclose(bits.values, labels.double() / math.log(2) - math.log2(LATTICE.width), rtol=0, atol=1e-12)


class Dropping(NoiseConditionalDensity):
    """Has dropout, records how it is called, and fails on demand."""

    def __init__(self):
        super().__init__((1,))
        self.dropout, self.scale = nn.Dropout(0.5), nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls, self.fail = [], False

    def forward(self, x, t, context=None, *, edges=True):
        self.calls.append((self.training, self.dropout.training, torch.is_grad_enabled(), x.shape[0]))
        if self.fail:
            raise RuntimeError("planned")
        return self.dropout(self.scale * x).sum(1)


@pytest.mark.parametrize("fail", [False, True])
def test_runs_in_eval_mode_without_gradients_and_restores_the_flags(fail):
    density = Dropping().train()
    density.dropout.eval()
    density.fail = fail
    if fail:
        with pytest.raises(RuntimeError, match="planned"):
            bits_per_dim(density, points(0, 1, 2), lattice=LATTICE)
    else:
        bits = bits_per_dim(density, points(0, 1, 2), lattice=LATTICE, batch_size=2)
        assert density.calls == [(False, False, False, 2), (False, False, False, 1)]
        assert not bits.values.requires_grad
    assert density.training
    assert not density.dropout.training
    assert torch.is_grad_enabled()


def test_zero_mass_is_infinite_counted_and_never_averaged_away():
    density = ToyLattice(PROCESS, [0.5, 0.0, 0.5, 0.0, 0.0])
    bits = bits_per_dim(density, points(0, 1, 2, 3))
    assert bits.values.tolist() == [1.0, math.inf, 1.0, math.inf]
    assert (bits.mean, bits.infinite) == (math.inf, 2)


def test_one_example_has_no_standard_error():
    assert math.isnan(BitsPerDim(torch.ones(1, dtype=torch.float64), exact=True).standard_error)


def test_a_network_is_exact_and_agrees_with_its_log_prob():
    torch.manual_seed(0)
    made = MADE((4,), PROCESS, lattice=Lattice(17), hidden=(16,), components=3)
    x = Lattice(17).to_unit(torch.randint(17, (20, 4), generator=seeded(0)))
    bits = bits_per_dim(made, x, batch_size=8)
    expected = -made.log_prob(x).detach().double() / (4 * math.log(2)) - math.log2(2 / 16)
    assert torch.allclose(bits.values, expected, rtol=0, atol=1e-6)
    assert bits.exact


def test_progress_shows_a_bar(capsys):
    bits_per_dim(ToyLattice(PROCESS, PMF), points(0, 1, 2), batch_size=1, progress=True)
    assert "log-likelihood" in capsys.readouterr().err


# Bad inputs.

GAUSSIAN = GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 0.5)
TOY = ToyLattice(PROCESS, PMF)


@pytest.mark.parametrize(
    ("density", "x", "options", "error", "match"),
    [
        (TOY, points(0)[:0], {}, ArgumentError, "empty batch"),
        (TOY, points(0) + 0.1, {}, ArgumentError, "lattice points"),
        (TOY, points(4) + LATTICE.width, {}, ArgumentError, "lattice points"),
        (GAUSSIAN, points(0) + 0.1, {"lattice": LATTICE}, ArgumentError, "lattice points"),
        (GAUSSIAN, points(4) + LATTICE.width, {"lattice": LATTICE}, ArgumentError, "lattice points"),
        (GAUSSIAN, points(0), {}, ArgumentError, r"^lattice: got"),
        (TOY, points(0), {"lattice": Lattice(7)}, ArgumentError, r"expected Lattice\(levels=5\)"),
        (TOY, points(0), {"batch_size": 0}, ArgumentError, r"^batch_size: got"),
        (GAUSSIAN, points(0), {"lattice": LATTICE, "dequantisations": 0}, ArgumentError, r"^dequantisations: got"),
        (GAUSSIAN, points(0), {"lattice": LATTICE, "importance": 0}, ArgumentError, r"^importance: got"),
        (GAUSSIAN, points(0), {"lattice": LATTICE, "importance": 2.0}, ArgumentError, r"^importance: got"),
        (TOY, points(0), {"t": 2.0}, ArgumentError, r"^t: got"),
        (TOY, points(0), {"t": torch.zeros(2)}, ArgumentError, r"^t: got"),
        (TOY, points(0, 1), {"context": torch.zeros(3)}, ArgumentError, r"^context: got"),
        (TOY, torch.zeros(2, 2), {}, ArgumentError, r"^x: got"),
        (TOY, torch.tensor([[math.nan]]), {}, ArgumentError, "non-finite"),
        (TOY, torch.zeros(1, 1, dtype=torch.uint8), {}, ArgumentTypeError, "to_unit"),
        (nn.Linear(1, 1), points(0), {}, ArgumentTypeError, "NoiseConditionalDensity"),
        (CallableDensity(lambda x, t: x[:, 0] / 0 * 0, (1,)), points(0), {"lattice": LATTICE}, NonFiniteError, "NaN"),
    ],
)
def test_bad_inputs_are_refused(density, x, options, error, match):
    with pytest.raises(error, match=match):
        bits_per_dim(density, x, **options)


def test_a_density_off_the_lattice_has_no_rank_among_masses():
    """Under noise that is there at t = 0 already, "1.77 bits" of 17 flat levels would beat the true 4.09."""
    flat = torch.ones(17)
    x = Lattice(17).points()[:, None]
    mass = bits_per_dim(ToyLattice(VPSDE.at_noise(0.1), flat), x)
    noisy = bits_per_dim(ToyLattice(VESDE(song=True), flat), x)
    assert (mass.kind, noisy.kind) == ("exact", "density")
    assert mass.mean == pytest.approx(math.log2(17))
    assert "density" in str(noisy)
    with pytest.raises(ArgumentTypeError, match="density against exact"):
        assert noisy < mass
