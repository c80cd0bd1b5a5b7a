"""Out-of-distribution detection: AUROC against sklearn and brute force, its interval, and the statistics."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import mahalanobis
from sklearn.metrics import roc_auc_score
from torch import nn

from ncml import VPSDE, Lattice
from ncml.densities import MADE, CallableDensity, GaussianDensity, ToyLattice
from ncml.errors import ArgumentError, ArgumentTypeError, FailedRowsWarning
from ncml.evaluation import Typicality, auroc, auroc_interval, ladder_statistics, ood_statistics
from tests.problems import mixture, plane_mixture, seeded
from tests.statistics import Z

PROCESS = VPSDE.at_noise(0.1)
INF = math.inf


def brute_force(inside, outside):
    """P(in > out) + P(in = out) / 2 by comparing all pairs."""
    return sum((a > b) + 0.5 * (a == b) for a in inside for b in outside) / (len(inside) * len(outside))


def normals(n, shift, seed):
    return torch.randn(n, dtype=torch.float64, generator=seeded(seed)) + shift


# AUROC.

scores = st.lists(st.floats(allow_nan=False) | st.integers(-3, 3).map(float), min_size=1, max_size=20)


@given(scores, scores)
def test_auroc_counts_pairs(inside, outside):
    value = auroc(inside, outside)
    assert value == pytest.approx(brute_force(inside, outside), abs=1e-15)
    assert value + auroc(outside, inside) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("levels", [2, 10, None])
def test_auroc_agrees_with_sklearn(levels):
    """With many ties, with few, and without."""
    inside, outside = normals(500, 0.5, 0), normals(300, 0.0, 1)
    if levels:
        inside, outside = (inside * levels / 4).round(), (outside * levels / 4).round()
    labels = torch.cat([torch.ones(500), torch.zeros(300)])
    expected = roc_auc_score(labels, torch.cat([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-14)
    strict = float((inside[:, None] > outside).double().mean())
    assert levels is None or abs(strict - expected) > 1e-3  # ignoring ties would not pass


def test_infinite_scores_are_ranks_like_others():
    inside, outside = [-INF, 0.0, 1.0], [-INF, -INF, 0.5, INF, INF]
    assert auroc(inside, outside) == brute_force(inside, outside) == 6 / 15


def test_auroc_takes_log_likelihoods_as_they_are():
    """Far below zero, where a sigmoid would flatten them, and in float32."""
    inside, outside = normals(400, 2.0, 2) - 200.0, normals(400, 0.0, 3) - 200.0
    expected = roc_auc_score([1] * 400 + [0] * 400, torch.cat([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-14)
    assert auroc(inside.float(), outside.float().tolist()) == auroc(inside.float(), outside.float())
    assert auroc([2, 3], [1, 2]) == 0.875


@pytest.mark.parametrize(
    ("inside", "error", "match"),
    [
        ([], ArgumentError, r"^in_scores: got"),
        ([[1.0]], ArgumentError, r"^in_scores: got"),
        (torch.tensor(1.0), ArgumentError, r"^in_scores: got"),
        ([math.nan, 1.0, math.nan], ArgumentError, "NaN for 2 of 3"),
        (["a"], ArgumentTypeError, r"^in_scores: got"),
        (None, ArgumentTypeError, r"^in_scores: got"),
    ],
)
def test_bad_scores_are_refused_on_both_sides(inside, error, match):
    with pytest.raises(error, match=match):
        auroc(inside, [1.0])
    with pytest.raises(error, match=match.replace("in_scores", "out_scores")):
        auroc([1.0], inside)
    with pytest.raises(error, match=match):
        auroc_interval(inside, [1.0])


# Its interval.


def test_the_interval_has_the_width_of_the_normal_theory():
    """Equal laws: the variance of AUROC is (n + m + 1) / (12 n m), exactly; at 10^4 its root is 0.0041."""
    n, m = 4000, 1000
    result = auroc_interval(normals(n, 0.0, 4), normals(m, 0.0, 5))
    width = 2 * 1.96 * math.sqrt((n + m + 1) / (12 * n * m))
    assert result.high - result.low == pytest.approx(width, rel=0.03)
    assert result.low < result.value < result.high
    assert (result.level, result.n_in, result.n_out) == (0.95, n, m)
    assert result.value == auroc(normals(n, 0.0, 4), normals(m, 0.0, 5)) == float(result)
    assert str(result) == f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"


def test_the_interval_is_wilsons_on_delongs_variance():
    """The ends solve (A - theta)^2 = z^2 theta (1 - theta) d, with d from all pairs."""
    inside, outside = [0.3, 0.9, 1.4, 0.9, 2.0], [0.1, 0.9, 0.5, -1.0, 1.0, 0.2, 0.9]
    result = auroc_interval(inside, outside, level=0.9)
    n, m = len(inside), len(outside)
    wins = [[(a > b) + 0.5 * (a == b) for b in outside] for a in inside]
    rows, columns = ([sum(line) / len(line) for line in side] for side in (wins, list(zip(*wins, strict=True))))
    value = sum(rows) / n
    variance = stats.tvar(rows) / n + stats.tvar(columns) / m
    e = 4 * n * value * (1 - value)
    d = (e * variance / (value * (1 - value)) + 4 / n) / (e + 4)
    z = stats.norm.ppf(0.95)
    for theta in (result.low, result.high):
        assert (value - theta) ** 2 == pytest.approx(z**2 * theta * (1 - theta) * d, rel=1e-9)


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [30, 100])
def test_the_interval_covers_the_truth(truth, n):
    """Of 800 nominal 95 % intervals, up to z = 6.11 below."""
    shift, runs = math.sqrt(2.0) * stats.norm.ppf(truth), 800
    inside, outside = (torch.randn(runs, n, dtype=torch.float64, generator=seeded(s)) for s in (1, 2))
    results = [auroc_interval(a, b) for a, b in zip(inside + shift, outside, strict=True)]
    covered = sum(r.low <= truth <= r.high for r in results) / runs
    assert covered >= 0.95 - Z * math.sqrt(0.95 * 0.05 / runs)
    assert sum(r.high - r.low for r in results) / runs < 2.0 / math.sqrt(n)


def test_a_higher_level_is_wider():
    inside, outside = normals(200, 0.3, 9), normals(200, 0.0, 10)
    narrow, wide = (auroc_interval(inside, outside, level=p) for p in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("inside", "outside", "value"),
    [([1.0] * 30, [1.0] * 20, 0.5), ([INF, 3.0], [1.0, -INF], 1.0), ([0.0], [1.0], 0.0)],
)
def test_few_scores_never_leave_no_doubt(inside, outside, value):
    result = auroc_interval(inside, outside)
    assert result.value == value
    assert 0.0 <= result.low <= value <= result.high <= 1.0
    assert result.high - result.low > 0.15


@pytest.mark.parametrize("level", [1.0, 95])
def test_bad_interval_settings_are_refused(level):
    with pytest.raises(ArgumentError, match=r"^level: got"):
        auroc_interval([1.0], [0.0], level=level)


# The statistics.

KEYS = ["log_p", "score_norm", "log_p_plus_log_score_norm", "score_sum"]


@pytest.mark.parametrize("t", [0.0, PROCESS.T / 2])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_statistics_of_a_gaussian_have_closed_forms(t, batch_size):
    density = GaussianDensity(PROCESS, torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64), 0.1)
    x = normals(15, 0.0, 13).reshape(5, 3)
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    variance = alpha**2 * 0.01 + sigma**2
    score = (alpha * density.mean - x) / variance
    log_p = torch.from_numpy(stats.norm.logpdf(x, alpha * density.mean, math.sqrt(variance)).sum(1))
    result = ood_statistics(density, x, t, batch_size=batch_size)
    norm = score.square().sum(1).sqrt()
    expected = dict(zip(KEYS, [log_p, norm, log_p + norm.log(), score.sum(1)], strict=True))
    assert list(result) == KEYS
    for key in KEYS:
        assert torch.allclose(result[key], expected[key], rtol=1e-12, atol=1e-12), key


def test_the_statistic_is_the_log_of_the_gradient_norm():
    """Where exp does not underflow yet: log ||grad p||, with grad p by autograd of p itself."""
    density, x = plane_mixture(PROCESS), normals(20, 0.0, 14).reshape(10, 2)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(y).exp().sum(), y)
    result = ood_statistics(density, x)["log_p_plus_log_score_norm"]
    assert torch.allclose(result, gradient.norm(dim=1).log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("std", [1.0, 0.01])
def test_the_statistic_survives_where_the_likelihood_leaves_the_range_of_floats(std):
    """3072 dimensions: exp(log p) is 0 or infinite for all, an AUROC of one half; the logs tell them apart."""
    density = GaussianDensity(PROCESS, torch.zeros(3072, dtype=torch.float64), std)
    inside = std * normals(40 * 3072, 0.0, 15).reshape(40, 3072)
    statistics = [ood_statistics(density, x) for x in (inside, 1.1 * inside)]
    products = [s["log_p"].exp() * s["score_norm"] for s in statistics]
    assert auroc(*products) == 0.5
    assert auroc(*(s["log_p_plus_log_score_norm"] for s in statistics)) > 0.95
    assert auroc(*(-s["score_norm"] for s in statistics)) > 0.95


def test_the_log_likelihood_decides_the_papers_statistic():
    """Its order differs from that of log p only where these are closer than the spread of the log norms."""
    density = mixture(PROCESS)
    s = ood_statistics(density, normals(500, 0.0, 16)[:, None] * 0.5)
    log_norm = s["score_norm"].log()
    spread = float(log_norm.max() - log_norm.min())
    p, both = s["log_p"], s["log_p_plus_log_score_norm"]
    swapped = ((p[:, None] - p) * (both[:, None] - both)) < 0
    assert swapped.any()
    assert float((p[:, None] - p).abs()[swapped].max()) <= spread


def test_a_vanishing_score_is_minus_infinity_and_a_valid_rank():
    density = GaussianDensity(PROCESS, torch.zeros(2, dtype=torch.float64), 1.0)
    statistic = ood_statistics(density, torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    assert statistic["log_p_plus_log_score_norm"][0] == -INF
    assert auroc(statistic["log_p_plus_log_score_norm"][:1], [0.0]) == 0.0


def test_a_lattice_density_gives_the_mass_with_edges_and_the_smooth_score():
    torch.manual_seed(0)
    made = MADE((3,), PROCESS, lattice=Lattice(17), hidden=(16,), components=2)
    x = Lattice(17).to_unit(torch.tensor([[0, 8, 16], [16, 16, 0], [1, 2, 3]]))
    result = ood_statistics(made, x)
    assert torch.allclose(result["log_p"], made.log_prob(x).detach().double(), rtol=1e-6)
    assert not torch.allclose(result["log_p"], made.log_density(x).detach().double(), rtol=1e-3)
    assert torch.allclose(result["score_norm"], made.score(x).double().norm(dim=1), rtol=1e-6)
    assert torch.allclose(result["score_sum"], made.score(x).double().sum(1), rtol=1e-5)
    assert all(values.dtype == torch.float64 and not values.requires_grad for values in result.values())
    assert all(p.grad is None for p in made.parameters())
    with pytest.raises(ArgumentError, match="lattice points"):
        ood_statistics(made, x + 0.01)


def test_statistics_run_in_eval_mode_with_contexts_and_restore_the_flags():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.9)

        def forward(self, x, t, c):
            return -self.dropout(0.5 * x.square()).sum(1) * c

    density = CallableDensity(Module(), (4,)).train()
    x, c = normals(20, 1.0, 17).reshape(5, 4), torch.arange(5)
    result = ood_statistics(density, x, 0.0, c, batch_size=2)
    assert torch.allclose(result["score_sum"], -(x * c[:, None]).sum(1), rtol=1e-12)
    assert torch.allclose(result["log_p"], -0.5 * x.square().sum(1) * c, rtol=1e-12)
    assert density.training
    assert density.module.dropout.training


@pytest.mark.parametrize("failing", [[1], [0, 1, 2]])
def test_what_cannot_be_computed_of_an_example_is_nan_and_named(failing):
    """Its score at 0 is infinite; those of the others stay as they are, also where there are none."""
    density = CallableDensity(lambda x, t: -x.abs().sqrt().sum(1), (1,))
    x = torch.ones(3, 1)
    x[failing] = 0.0
    with pytest.warns(FailedRowsWarning, match=re.escape(f"{len(failing)} of 3 examples is NaN")):
        found = ood_statistics(density, x)
    with pytest.warns(FailedRowsWarning, match=re.escape(f"(rows {', '.join(map(str, failing))})")):
        ladder = ladder_statistics(density, x, (0.0, 0.5))
    bad = torch.zeros(3, dtype=torch.bool)
    bad[failing] = True
    assert torch.equal(found["score_norm"].isnan(), bad)
    assert torch.equal(ladder["log_score_norms"].isnan(), bad[:, None].expand(3, 2))
    assert found["score_norm"][~bad].tolist() == [0.5] * int((~bad).sum())
    assert ladder["log_score_norms"][~bad].tolist() == [[math.log(0.5)] * 2] * int((~bad).sum())
    assert not found["log_p"].isnan().any()
    assert not ladder["log_ratios"].isnan().any()


def test_log_densities_that_are_not_finite_are_nan_in_the_ladder():
    """From the level on at which they overflow."""
    density = CallableDensity(lambda x, t: torch.where((t > 0.25) & (x[:, 0] > 1.0), math.nan, -(x[:, 0] ** 2)), (1,))
    with pytest.warns(FailedRowsWarning, match="1 of 2"):
        found = ladder_statistics(density, torch.tensor([[0.0], [2.0]]), (0.0, 0.1, 0.5))
    assert found["log_ratios"].isnan().tolist() == [[False, False], [False, True]]


def test_bad_inputs_of_the_statistics_are_refused():
    density = GaussianDensity(PROCESS, torch.zeros(1, dtype=torch.float64), 1.0)
    with pytest.raises(ArgumentError, match="empty batch"):
        ood_statistics(density, torch.zeros(0, 1))
    with pytest.raises(ArgumentError, match="batch_size"):
        ood_statistics(density, torch.zeros(1, 1), batch_size=0)
    flat = ToyLattice(PROCESS, torch.ones(5))
    assert ood_statistics(flat, Lattice(5).to_unit(torch.tensor([[2]])))["score_norm"].tolist() == [0.0]


# The ladder.


def test_ladder_statistics_of_a_gaussian_are_the_closed_form():
    """p_t of N(0, s^2) data is N(0, a^2 s^2 + sigma^2): ratios and score norms follow."""
    s, times = 0.5, [0.0, 0.3 * PROCESS.T, PROCESS.T]
    density = GaussianDensity(PROCESS, torch.zeros(3), s).double()
    x = torch.cat([normals(4, 0.0, 20)[:, None].repeat(1, 3), torch.zeros(1, 3).double()])
    found = ladder_statistics(density, x, times, batch_size=2)
    std = [math.hypot(float(PROCESS.alpha(t)) * s, float(PROCESS.sigma(t))) for t in times]
    log_p = torch.stack([torch.from_numpy(stats.norm(scale=v).logpdf(x).sum(1)) for v in std], 1)
    torch.testing.assert_close(found["log_ratios"], log_p[:, 1:] - log_p[:, :-1], rtol=1e-9, atol=1e-12)
    norms = torch.stack([x.norm(dim=1).log() - 2 * math.log(v) for v in std], 1)
    torch.testing.assert_close(found["log_score_norms"], norms.clamp(min=-700.0), rtol=1e-9, atol=0)
    for wrong in ([0.1], [0.1, 0.1], [0.2, 0.1]):
        with pytest.raises(ArgumentError, match="times: got"):
            ladder_statistics(density, x, wrong)


def test_typicality_is_minus_mahalanobis_distance():
    features = normals(400, 0.0, 21).view(100, 4) @ normals(16, 0.0, 22).view(4, 4) + 3.0
    typical = Typicality.fit(features, shrinkage=0.0)
    inverse = torch.linalg.inv(features.T.cov())
    some = normals(8, 2.0, 23).view(2, 4)
    expected = [-mahalanobis(row, features.mean(0), inverse) for row in some]
    assert typical(some).tolist() == pytest.approx(expected, rel=1e-9)
    collinear = Typicality.fit(features[:, [0, 0]])  # neither this nor a constant has an inverse by itself
    assert bool(collinear(features[:, [0, 0]]).isfinite().all())
    assert bool(Typicality.fit(torch.ones(2, 3))(torch.zeros(1, 3)).isfinite().all())
    constant = torch.full((7, 1), 0.1, dtype=torch.float64)  # its standard deviation is no 0, but rounding
    assert abs(float(Typicality.fit(constant)(constant[:1] + 1e-6))) < 1e-5
    rounded = -90.8 + 5.7e-6 * torch.randn(50, 1, generator=seeded(0), dtype=torch.float64)
    assert abs(float(Typicality.fit(rounded)(rounded[:1] + 1e-4))) < 1e-2  # of a density in single precision
    for wrong in (features[:1], features[0], torch.full((3, 1), INF)):
        with pytest.raises(ArgumentError, match="features: got"):
            Typicality.fit(wrong)


def test_the_ladder_sees_outliers_that_the_likelihood_prefers():
    """The mode of a Gaussian in 64 dimensions is likelier than any of its draws, and like none of them."""
    density = GaussianDensity(PROCESS, torch.zeros(64), 0.5).double()
    draws = 0.5 * normals(300 * 64, 0.0, 24).view(300, 64)
    flat = 0.01 * normals(100 * 64, 0.0, 25).view(100, 64)
    assert auroc(density.log_prob(draws[:100]), density.log_prob(flat)) == 0.0
    times = [0.0, 0.5 * PROCESS.T, PROCESS.T]
    known, inside, outside = (ladder_statistics(density, x, times) for x in (draws[100:], draws[:100], flat))
    for name, statistics in known.items():
        typical = Typicality.fit(statistics)
        assert auroc(typical(inside[name]), typical(outside[name])) > 0.999, name


def test_ladder_statistics_are_those_of_the_context():
    """N(c, 1) at every level: no ratio, and the distance to the context as the score's norm."""
    density = CallableDensity(lambda x, t, c: -0.5 * (x - c).square().sum(1), (2,), VPSDE.at_noise(0.5))
    x, context = (torch.randn(5, 2, dtype=torch.float64, generator=seeded(seed)) for seed in (0, 1))
    found = ladder_statistics(density, x, (0.05, 0.1), context, batch_size=2)
    assert torch.equal(found["log_ratios"], torch.zeros(5, 1, dtype=torch.float64))
    expected = (x - context).norm(dim=1).log()[:, None].expand(5, 2)
    assert torch.allclose(found["log_score_norms"], expected)


def test_statistics_that_do_not_fit_are_refused():
    g = seeded(0)
    features = torch.randn(20, 3, generator=g)
    typical = Typicality.fit(features)
    for wrong in (features[:, :1], features[:, 0], torch.zeros(3, 4)):  # each would broadcast or fail in torch
        with pytest.raises(ArgumentError, match=r"features: got shape .*expected \(B, 3\)"):
            typical(wrong)
    with pytest.raises(ArgumentError, match="features: got 1 non-finite"):
        typical(torch.tensor([[0.0, math.nan, 0.0]]))
    for singular in (features[:, [0, 0]], features[:3]):
        with pytest.raises(ArgumentError, match=r"shrinkage: got 0.*expected shrinkage > 0"):
            Typicality.fit(singular, shrinkage=0.0)
