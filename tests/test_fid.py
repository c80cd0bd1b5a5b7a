"""FID through torchmetrics, with a network of our own instead of Inception's weights, which are not here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ncml.errors import ArgumentError, MissingExtraError
from ncml.evaluation import fid, frechet_distance


class Features(nn.Module):
    """Six linear features of colour images."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(6, 3 * 4 * 4, generator=torch.Generator().manual_seed(0)) / 100

    def forward(self, x):
        return x.flatten(1).to(self.weight) @ self.weight.t()


def images(n, seed, channels=3):
    return torch.randint(256, (n, channels, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_against_our_own_distance(channels):
    a, b = images(50, 1, channels), images(60, 2, channels) // 2
    features = Features()
    expected = frechet_distance(features(a.expand(-1, 3, -1, -1)), features(b.expand(-1, 3, -1, -1)))
    assert fid(a.split(16), b.split(20), feature=features) == pytest.approx(expected, rel=1e-4)
    assert fid(a.split(16), a.split(7), feature=features) == pytest.approx(0.0, abs=1e-3)


def test_bad_images():
    with pytest.raises(ArgumentError, match=r"got torch.float32 of shape \(2, 3, 4, 4\)"):
        fid([images(2, 0).float()], [images(2, 0)], feature=Features())
    with pytest.raises(ArgumentError, match=r"^fake: got"):
        fid([images(2, 0)], [], feature=Features())


def test_inception_needs_its_weights():
    with pytest.raises(MissingExtraError, match="pip install torchmetrics torch-fidelity"):
        fid([images(2, 0)], [images(2, 1)])
