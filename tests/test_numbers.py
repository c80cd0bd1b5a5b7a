"""NumPy's numbers are numbers wherever Python's are; bools are none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from ncml import VESDE, Lattice, LevelNoise, NCMLObjective, generate
from ncml.checks import check_count, check_positive, check_probability, check_time
from ncml.densities import MADE, MAF, NCPN, CausalTransformer, TransformerFlow
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.evaluation import auroc_interval
from ncml.sampling import HeunODE
from ncml.training import OptimConfig, load_into, save_density
from ncml.training.config import to_dict

WHOLE = (np.int64, np.int8, np.uint16)
REAL = (*WHOLE, np.float32, np.float64, np.float16)
VE = VESDE.linear(np.float32(0.5))


@pytest.mark.parametrize("kind", WHOLE)
def test_integers_are_counts(kind):
    n = check_count(kind(3), "n")
    assert (n, type(n)) == (3, int)
    for bad in (kind(0), np.float64(3.0), 3.0, True, np.bool_(True), "3", torch.tensor(3)):
        with pytest.raises(ArgumentError, match=r"^n: got"):
            check_count(bad, "n")


@pytest.mark.parametrize("kind", REAL)
def test_real_numbers_are_numbers(kind):
    value = check_positive(kind(1), "value")
    assert (value, type(value)) == (1.0, float)
    check_probability(kind(1), "p")
    assert check_time(kind(1), torch.zeros(2, 1)).tolist() == [1.0, 1.0]
    for bad in (np.float32(-1), np.float32(math.nan), np.bool_(True), True, 1j, "1"):
        with pytest.raises(ArgumentError, match=r"^value: got"):
            check_positive(bad, "value")
        with pytest.raises(ArgumentError, match=r"^p: got"):
            check_probability(bad, "p")
    with pytest.raises(ArgumentTypeError, match=r"^t: got"):
        check_time(np.bool_(True), torch.zeros(2, 1))


def test_a_lattice_is_that_of_the_number():
    assert repr(Lattice(np.int64(5))) == repr(Lattice(5))
    assert repr(LevelNoise(np.int64(5))) == repr(LevelNoise(5))
    assert repr(VE) == repr(VESDE.linear(0.5))
    with pytest.raises(ArgumentError, match=r"^levels: got"):
        Lattice(np.bool_(True))


def transformer(n, real):
    sizes = {"width": n(16), "layers": n(1), "heads": n(2), "components": n(2)}
    return CausalTransformer((n(4), n(1)), VE, lattice=Lattice(n(5)), dropout=real(0.5), **sizes)


def flow(n, real):
    sizes = {"patch": n(2), "width": n(16), "blocks": n(2), "layers": n(1), "heads": n(2)}
    return TransformerFlow((n(1), n(4), n(4)), VE, max_scale=real(8), data_std=real(0.5), **sizes)


def ncpn(n, real):
    sizes = {"features": n(8), "blocks": n(1), "resolutions": n(2), "heads": n(2), "components": n(2)}
    return NCPN((n(1), n(4), n(4)), VE, lattice=Lattice(n(5)), fourier_scale=real(1), **sizes)


def made(n, real):
    return MADE((n(3),), VE, hidden=(n(8),), components=n(2), noise_features=n(4), dropout=real(0.5))


def maf(n, real):
    return MAF((n(3),), VE, transforms=n(2), hidden=(n(8),), data_std=real(0.5))


@pytest.mark.parametrize("build", [transformer, flow, ncpn, made, maf])
def test_models_of_either_numbers_are_the_same(build, tmp_path):
    density, twin = build(np.int64, np.float32), build(int, float)
    load_into(twin, save_density(density, tmp_path / "a"))
    load_into(density, save_density(twin, tmp_path / "b"))
    x = density.sample(np.int64(2), np.float32(0.25), generator=torch.Generator().manual_seed(0))
    assert torch.equal(density.log_prob(x, np.float32(0.25)), twin.log_prob(x, 0.25))
    drawn = generate(density, 2, sampler=HeunODE(steps=np.int64(2)), t_start=np.float32(0.25))
    assert drawn.shape == x.shape


def test_what_is_kept_a_factor_a_level_and_a_configuration():
    density = transformer(int, float)
    x = density.sample(2)
    assert torch.equal(density.complete(x, np.int64(2), length=np.int64(6))[:, :2], x[:, :2])
    image = ncpn(int, float).sample(2)
    assert torch.equal(ncpn(int, float).complete(image, np.int64(1))[:, :, :1], image[:, :, :1])
    assert NCMLObjective(VE, score_matching=np.float32(0.5)).score_matching == 0.5
    scores = ([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert str(auroc_interval(*scores, level=np.float64(0.5))) == str(auroc_interval(*scores, level=0.5))
    written = json.loads(json.dumps(to_dict(OptimConfig(steps=np.int64(3), learning_rate=np.float32(0.5)))))
    assert (written["steps"], written["learning_rate"]) == (3, 0.5)
