"""Fréchet distance: against scipy's matrix square root, closed forms, singular covariances."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.evaluation import features_of, frechet_distance, gaussian_frechet, train_classifier
from tests.problems import seeded


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def covariance(size, seed, rank=None):
    factor = randn(size, rank or size, seed=seed)
    return factor @ factor.t() / size


def by_sqrtm(mean1, cov1, mean2, cov2):
    """The formula as it is usually written, with scipy's square root of the product A B."""
    root = linalg.sqrtm(cov1.numpy() @ cov2.numpy()).real
    return float((mean1 - mean2).square().sum()) + float(np.trace(cov1.numpy() + cov2.numpy() - 2 * root))


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_gaussians_agree_with_the_matrix_square_root(size):
    arguments = randn(size, seed=1), covariance(size, 2), randn(size, seed=3), covariance(size, 4)
    assert gaussian_frechet(*arguments) == pytest.approx(by_sqrtm(*arguments), rel=1e-10)


def test_commuting_covariances_have_a_closed_form():
    """Diagonal in the same rotated basis: the squared differences of standard deviations, and of means."""
    rotation = torch.linalg.qr(randn(6, 6)).Q
    a, b = randn(6, seed=1).square(), randn(6, seed=2).square()
    mean1, mean2 = randn(6, seed=3), randn(6, seed=4)
    expected = float((a.sqrt() - b.sqrt()).square().sum() + (mean1 - mean2).square().sum())
    cov1, cov2 = (rotation * v @ rotation.t() for v in (a, b))
    assert gaussian_frechet(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-12)


def test_features_agree_with_numpys_covariance():
    """With divisor N - 1, unlike N, which would differ in the third digit here."""
    a, b = randn(300, 5, seed=5), 1.5 * randn(200, 5, seed=6) + 0.3
    moments = [(x.mean(0), torch.from_numpy(np.cov(x.numpy(), rowvar=False))) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(*moments[0], *moments[1]), rel=1e-10)


def test_it_is_a_squared_distance():
    a, b = randn(50, 4, seed=7), randn(60, 4, seed=8) * 2.0
    rotation, shift = torch.linalg.qr(randn(4, 4, seed=9)).Q, randn(4, seed=10)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-13)
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a @ rotation + shift, b @ rotation + shift) == pytest.approx(
        frechet_distance(a, b), rel=1e-11
    )
    assert frechet_distance(3.0 * a, 3.0 * b) == pytest.approx(9.0 * frechet_distance(a, b), rel=1e-12)


def test_samples_of_gaussians_approach_the_closed_form():
    """N(0, 1) against N(1, 2^2) in two dimensions: 2 (1 + 1); the sd over seeds at this N is about 0.03."""
    a, b = randn(40_000, 2, seed=11), 1.0 + 2.0 * randn(40_000, 2, seed=12)
    assert frechet_distance(a, b) == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("rows", [2, 5])
def test_fewer_rows_than_features_lose_no_precision(rows):
    """Against the singular values of the centred rows themselves, which never form a covariance."""
    a, b = randn(rows, 30, seed=13), randn(rows + 3, 30, seed=14)
    ca, cb = a - a.mean(0), b - b.mean(0)
    n, m = rows - 1, rows + 2
    cross = np.linalg.svd((ca @ cb.t()).numpy(), compute_uv=False).sum() / math.sqrt(n * m)
    shift = float((a.mean(0) - b.mean(0)).square().sum())
    expected = shift + float(ca.square().sum()) / n + float(cb.square().sum()) / m - 2 * cross
    with pytest.warns(UserWarning, match="expected more rows than features") as caught:
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    told = [str(w.message) for w in caught]
    assert told[0].startswith(f"a: got {rows} rows of 30 features; expected more rows")
    assert told[1].startswith(f"b: got {rows + 3} rows of 30 features")


def test_constant_features_have_only_a_mean():
    a, b = torch.zeros(3, 2), torch.ones(4, 2)
    assert frechet_distance(a, b) == 2.0


def test_float32_features_are_computed_in_float64():
    a, b = randn(100, 6, seed=15) + 1000.0, randn(100, 6, seed=16) + 1000.0
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a.float().double(), b.float()))


@pytest.mark.parametrize(
    ("a", "error", "match"),
    [
        (torch.zeros(1, 2), ArgumentError, r"^a: got"),
        (torch.zeros(4), ArgumentError, r"^a: got"),
        (torch.zeros(4, 3), ArgumentError, "expected .F,., the same for both"),
        (torch.full((4, 2), math.nan), ArgumentError, "a: got 8 non-finite"),
        (torch.full((4, 2), math.inf), ArgumentError, "a: got 8 non-finite"),
        (torch.zeros(4, 2, dtype=torch.long), ArgumentTypeError, r"^a: got"),
        ([[1.0, 2.0]], ArgumentTypeError, r"^a: got"),
    ],
)
def test_bad_features_are_refused(a, error, match):
    with pytest.raises(error, match=match):
        frechet_distance(a, torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("cov", "match"),
    [
        (torch.eye(3), r"^cov2: got"),
        (-torch.eye(2), r"^cov2: got"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), r"^cov2: got"),
        (torch.full((2, 2), math.nan), "cov2: got 4 non-finite"),
    ],
)
def test_matrices_that_are_no_covariance_are_refused(cov, match):
    with pytest.raises(ArgumentError, match=match):
        gaussian_frechet(torch.zeros(2), torch.eye(2), torch.zeros(2), cov)


# Features.


def test_features_come_from_every_row_in_order():
    x = randn(10, 2, 3)
    features = features_of(lambda b: torch.stack([b, 2 * b], 1), x, batch_size=4)
    assert torch.equal(features, torch.cat([x.flatten(1), 2 * x.flatten(1)], 1))


def test_a_module_runs_in_eval_mode_without_gradients():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).train()
    x = torch.randn(5, 3, generator=seeded(1))
    features = features_of(net, x)
    assert torch.allclose(features, net[1](x).detach())
    assert not features.requires_grad
    assert net.training
    assert net[0].training
    enabled = []
    features_of(lambda b: (enabled.append(torch.is_grad_enabled()), b)[1], x, batch_size=3)
    assert enabled == [False, False]


@pytest.mark.parametrize(
    ("feature", "x", "batch_size", "match"),
    [
        (lambda b: b.sum(1), torch.zeros(3, 2), 2, r"^feature: got"),
        (lambda b: b[:1], torch.zeros(3, 2), 2, r"^feature: got"),
        (lambda b: b.numpy(), torch.zeros(3, 2), 2, r"^feature: got"),
        (lambda b: b, torch.zeros(0, 2), 2, "at least one example"),
        (lambda b: b, torch.zeros(3, 2), 0, r"^batch_size: got"),
    ],
)
def test_bad_feature_calls_are_refused(feature, x, batch_size, match):
    with pytest.raises(ArgumentError, match=match):
        features_of(feature, x, batch_size)


def test_the_classifier_tells_dark_images_from_bright_ones():
    """The same one for the same seed, whatever else was drawn before; nothing else is drawn for it."""
    labels = torch.arange(40) % 2
    noise = 0.1 * torch.randn(40, 1, 8, 8, generator=seeded(0))
    images = 0.5 * (2.0 * labels - 1.0)[:, None, None, None] + noise

    def trained(seed):
        state = torch.get_rng_state()
        found = train_classifier(lambda i: images[i], labels, lambda i: images[i], labels, steps=20, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return found

    first, other = trained(3), trained(4)
    torch.rand(7)
    again = trained(3)
    assert first.accuracy == again.accuracy == 1.0
    weights = [torch.cat([p.flatten() for p in found.model.parameters()]) for found in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.model(images).shape == (40, 2)
