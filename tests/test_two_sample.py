"""Energy distance and classifier test: scipy and closed forms as oracles, p-values that are uniform by chance."""

import math

import pytest
import torch
from scipy import stats

from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.evaluation import classifier_test, energy_distance, energy_test
from ncml.evaluation.two_sample import CHUNK
from tests.problems import seeded


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def test_one_dimension_agrees_with_scipy():
    """scipy's is the root of half of the biased form: with the zero distances of a row to itself counted."""
    a, b = randn(37), 0.5 + 2 * randn(50, seed=1)
    distance = energy_distance(a[:, None], b[:, None])
    within = [(x[:, None] - x).abs().sum().item() for x in (a, b)]
    biased = distance + sum(w / (n * (n - 1)) - w / n**2 for w, n in zip(within, (37, 50), strict=True))
    assert biased == pytest.approx(stats.energy_distance(a, b) ** 2, rel=1e-12)


def test_shifted_gaussians_have_their_distance():
    """E|N(m, 2)| - E|N(0, 2)|, twice; z = 5.2 (false alarm 2e-7) with the spread of 40 samples of 1,000."""
    m = 1.0
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * (folded - 2 / math.sqrt(math.pi))
    draws = torch.tensor([energy_distance(randn(1000, 1, seed=k), m + randn(1000, 1, seed=500 + k)) for k in range(40)])
    assert abs(float(draws.mean()) - exact) < 5.2 * float(draws.std()) / math.sqrt(40)
    assert float(draws.std()) / math.sqrt(40) < 0.02 * exact  # precise enough to see a wrong factor


def test_shapes_chunks_and_order_do_not_matter():
    a, b = randn(CHUNK + 5, 2, 3), randn(40, 2, 3, seed=1)
    whole = energy_distance(a, b)
    assert energy_distance(b.flatten(1), a.flatten(1)) == pytest.approx(whole, rel=1e-12)
    assert energy_test(a, b, permutations=1, generator=seeded(0)).distance == pytest.approx(whole, rel=1e-10)


def test_p_values_are_uniform_for_equal_distributions():
    """Of 300 deals each of 20 and 30 rows with heavy tails: Kolmogorov-Smirnov at 1e-6."""
    ps = []
    for k in range(300):
        rows = randn(50, 2, seed=k) / randn(50, 1, seed=1000 + k).abs()
        ps.append(energy_test(rows[:20], rows[20:], permutations=99, generator=seeded(k)).p_value)
    assert stats.kstest(torch.tensor(ps) - 0.005, "uniform").pvalue > 1e-6


def test_differences_are_seen_and_equal_rows_are_not():
    a = randn(200, 3)
    seen = energy_test(a, randn(200, 3, seed=1) + 0.5, generator=seeded(0))
    assert seen.p_value == 1 / 1000
    assert seen.distance > 3 * seen.floor > 0
    same = energy_test(a.repeat(2, 1), a.repeat(2, 1), generator=seeded(0))
    assert same.p_value > 0.9  # every deal is at least as far as the even one
    # Every deal of rows that are all equal is at distance 0, as the observed one: no evidence, despite rounding.
    assert energy_test(torch.full((9, 2), 0.1), torch.full((7, 2), 0.1), generator=seeded(0)).p_value == 1.0


def test_the_classifier_sees_a_correlation():
    """Equal marginals; correlation .8 against 0. Equal distributions give no small p in four seeds (chance 4e-4)."""
    a, z = randn(1000, 2), randn(1000, 2, seed=1)
    b = torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
    seen = classifier_test(a, b, steps=100, generator=seeded(0))
    assert seen.p_value < 1e-9
    assert 0.55 < seen.accuracy < 0.75
    assert seen.rows == 1000
    for k in range(4):
        chance = classifier_test(a, randn(1000, 2, seed=10 + k), hidden=16, steps=50, generator=seeded(k))
        assert chance.p_value > 1e-4


def test_the_classifier_p_value_is_binomial_and_repeatable():
    a, b = randn(30, 1), randn(41, 1, seed=1)
    one, two = (classifier_test(a, b, steps=5, generator=seeded(3)) for _ in range(2))
    assert one == two
    assert one.rows == 30
    right = round(one.accuracy * one.rows)
    assert one.p_value == pytest.approx(stats.binom.sf(right - 1, one.rows, 0.5), rel=1e-10)


@pytest.mark.parametrize("function", [energy_distance, energy_test, classifier_test])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(5, 2), r"a: got shape \(1, 2\); expected \(n, ...\)"),
        (torch.zeros(5, 2), torch.zeros(5, 3), r"b: got shape \(5, 3\)"),
        (torch.zeros(5), torch.zeros(5), r"a: got shape \(5,\)"),
        (torch.zeros(5, 1), torch.tensor([[0.0], [math.nan], [0], [0], [0]]), "b: got 1 non-finite"),
    ],
)
def test_bad_rows_are_refused(function, a, b, message):
    with pytest.raises(ArgumentError, match=message):
        function(a, b)


def test_integers_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"a: got dtype torch\.int64"):
        energy_distance(torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, 2))
