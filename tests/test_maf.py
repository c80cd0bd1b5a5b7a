"""MAF: the change of variables, its inverse, normalisation, scaling, and samples of the right law."""

from __future__ import annotations

import math

import pytest
import torch

from ncml import VESDE, VPSDE, NCMLObjective
from ncml.densities import MAF, GaussianDensity
from ncml.densities.maf import MAX_LOG_SCALE, _bounded
from tests.problems import log_normal, plane_mixture, seeded, shaken
from tests.statistics import Z, assert_law, normal_cdf

F64 = torch.float64
VP = VPSDE.at_noise(0.2)


def strong(event_shape, process=VP, *, seed=0, gain=0.6, **settings) -> MAF:
    """A MAF in float64 that is far from the identity."""
    settings = {"hidden": (16,), "transforms": 3, "noise_features": 6, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shaken(MAF(event_shape, process, **settings), gain, seed, thin=1.0)


def to_base(maf: MAF, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """z(x) by the layers' definition, ``z_i = x_i exp(a_i(x_<i)) + m_i(x_<i)`` in alternating orders."""
    features = maf.conditioning(t, None)
    z = maf.scaling(x, t)[0].flatten(1)
    for net in maf.nets:
        z = z.flip(1)
        raw, shift = net(z, features).unbind(-1)
        z = z * _bounded(raw).exp() + shift
    return z


def sample_from(maf: MAF, z: torch.Tensor, t, monkeypatch) -> torch.Tensor:
    """The sampler's x for a given base point z."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, **_: z.clone())
        return maf.sample(len(z), t)


cases = pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1,), {}),
        ((2,), {"transforms": 1}),
        ((3,), {"data_std": 0.7}),
        ((2, 2), {"transforms": 4, "hidden": (5, 9)}),
        ((5,), {"hidden": (3,)}),
    ],
    ids=["1d", "one-layer", "scaled", "2x2", "narrow"],
)


@cases
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_log_prob_is_the_change_of_variables_with_the_whole_jacobian(shape, settings, t):
    maf, n = strong(shape, **settings), 6
    x = torch.randn(n, *shape, dtype=F64, generator=seeded(1))
    times = torch.full((n,), t, dtype=F64)
    z = to_base(maf, x, times)
    log_det = torch.stack(
        [
            torch.linalg.slogdet(
                torch.autograd.functional.jacobian(
                    lambda v: to_base(maf, v.reshape(1, *shape), times[:1])[0], x[i].flatten()
                )
            ).logabsdet
            for i in range(n)
        ]
    )
    expected = log_normal(z) + log_det
    assert (maf.log_prob(x, t) - expected).abs().max() < 1e-11
    assert log_det.abs().max() > 0.1


@cases
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_log_prob_is_the_law_of_the_sampler_by_finite_differences(shape, settings, t, monkeypatch):
    """Independent of the forward pass: ``log N(z) - log |dx/dz|`` of the sampler as a map from z to x."""
    maf, dims, h = strong(shape, **settings), math.prod(shape), 1e-5
    z = torch.randn(1, dims, dtype=F64, generator=seeded(2))
    steps = h * torch.eye(dims, dtype=F64)
    up, down = (sample_from(maf, z + side * steps, t, monkeypatch).flatten(1) for side in (1, -1))
    log_det = torch.linalg.slogdet((up - down) / (2 * h)).logabsdet
    x = sample_from(maf, z, t, monkeypatch)
    assert x.shape == (1, *shape)
    assert float(maf.log_prob(x, t).detach()) == pytest.approx(float(log_normal(z) - log_det), abs=1e-6)


@cases
def test_sampling_inverts_the_layers(shape, settings, monkeypatch):
    maf = strong(shape, **settings)
    z = torch.randn(40, math.prod(shape), dtype=F64, generator=seeded(3))
    t = torch.linspace(0.0, VP.T, 40, dtype=F64)
    x = sample_from(maf, z, t, monkeypatch)
    assert (to_base(maf, x, t) - z).abs().max() < 1e-10


@pytest.mark.parametrize("t", [0.0, VP.T])
@pytest.mark.parametrize("data_std", [None, 0.5])
def test_density_integrates_to_one(t, data_std):
    line = torch.arange(-30.0, 30.0, 0.02, dtype=F64)
    with torch.no_grad():
        total = strong((1,), data_std=data_std).log_prob(line[:, None], t).exp().sum() * 0.02
        assert float(total) == pytest.approx(1.0, abs=1e-12)
        maf = strong((2,), data_std=data_std, gain=0.3)
        axis = torch.arange(-25.0, 25.0, 0.1, dtype=F64)
        total = maf.log_prob(torch.cartesian_prod(axis, axis), t).exp().sum() * 0.1**2
        assert float(total) == pytest.approx(1.0, abs=1e-9)


def test_jacobian_of_a_single_layer_is_triangular_in_its_reversed_order():
    maf = strong((4,), transforms=1)
    x, t = torch.randn(4, dtype=F64, generator=seeded(0)), torch.zeros(1, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda v: to_base(maf, v[None], t)[0], x).flip(1)
    assert bool((jacobian[torch.ones(4, 4, dtype=torch.bool).triu(1)] == 0.0).all())
    assert bool((jacobian.diagonal() > 0.0).all())
    assert jacobian[3, 0] != 0.0


@pytest.mark.parametrize("process", [VP, VESDE.at_noise(0.2)], ids=["vp", "ve"])
def test_data_std_scales_the_input_and_adds_its_log_determinant(process):
    plain, scaled = strong((3,), process), strong((3,), process, data_std=0.4)
    scaled.load_state_dict(plain.state_dict())
    x, t = torch.randn(5, 3, dtype=F64, generator=seeded(0)), torch.linspace(0.0, process.T, 5, dtype=F64)
    c = 1.0 / ((process.alpha(t) * 0.4) ** 2 + process.sigma(t) ** 2).sqrt()
    expected = plain.log_prob(c[:, None] * x, t) + 3.0 * c.log()
    assert (scaled.log_prob(x, t) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("settings", [{}, {"classes": 2}, {"context_features": 2}, {"data_std": 0.5}], ids=str)
def test_every_parameter_gets_a_gradient(settings):
    maf = strong((3,), **settings)
    context = None
    if "classes" in settings:
        context = torch.tensor([0, 1, -1, 0])
    if "context_features" in settings:
        context = torch.randn(4, 2, dtype=F64, generator=seeded(1))
    x = torch.randn(4, 3, dtype=F64, generator=seeded(0))
    maf(x, torch.tensor([0.0, 0.0, 0.01, VP.T], dtype=F64), context).sum().backward()
    for name, p in maf.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        assert float(p.grad.abs().sum()) > 0.0, name


def test_time_label_and_context_all_matter():
    x = torch.tensor([[0.3, -0.2]], dtype=F64)
    labelled, with_context = strong((2,), classes=2), strong((2,), context_features=1)
    values = [labelled.log_prob(x, t, torch.tensor([k])).item() for k in (-1, 0, 1) for t in (0.0, 0.02)]
    values += [with_context.log_prob(x, 0.0, torch.tensor([[c]], dtype=F64)).item() for c in (-1.0, 0.0, 1.0)]
    assert len(set(values)) == 9


def test_a_new_flow_starts_near_its_base():
    """So that data scaled to unit size start near a good fit."""
    x = torch.randn(200, 2, generator=seeded(0))
    assert (MAF((2,), VP, hidden=(32,)).log_prob(x) - log_normal(x)).abs().mean() < 0.5


def test_the_log_scale_of_a_layer_is_bounded_odd_and_smooth():
    raw = torch.tensor([0.0, 1e-3, 3.0, 30.0, 1e6], dtype=F64, requires_grad=True)
    log_scale = _bounded(raw)
    assert float(log_scale.detach().max()) <= MAX_LOG_SCALE
    assert torch.equal(_bounded(-raw), -log_scale)
    assert log_scale[:2].tolist() == pytest.approx([0.0, 1e-3], rel=1e-6)
    assert bool((log_scale.diff() > 0).all())
    (slope,) = torch.autograd.grad(log_scale.sum(), raw)
    assert float(slope[0]) == pytest.approx(1.0, rel=1e-15)
    assert bool((slope > 0).all())
    assert torch.autograd.gradcheck(_bounded, raw[1:4])


def test_no_input_overflows_a_stack_of_layers():
    maf = strong((3,), transforms=5, gain=30.0).float()
    x = torch.tensor([[1e4, -1e4, 1e4], [0.0, 1e-30, 1.0]])
    assert bool(maf.log_prob(x, 0.01).isfinite().all())
    assert bool(maf.score(x, 0.01).isfinite().all())


@pytest.mark.parametrize("t", [0.0, 0.5 * VP.T])
def test_samples_pass_steins_identity_and_map_back_to_a_normal(t):
    """``E[s] = 0`` and ``E[x_i s_j] = -[i = j]``, each within 6.11 standard errors; DKW in the base space."""
    maf, n = strong((3,), gain=0.4, data_std=0.5), 20_000
    x = maf.sample(n, t, generator=seeded(5))
    score = maf.score(x, t)
    moments = torch.cat([score, (x[:, :, None] * score[:, None, :] + torch.eye(3, dtype=F64)).flatten(1)], dim=1)
    z = moments.mean(0) / (moments.std(0) / math.sqrt(n))
    assert z.abs().max() < Z
    with torch.no_grad():
        base = to_base(maf, x, torch.full((n,), t, dtype=F64))
    for column in base.unbind(1):
        assert_law(column, normal_cdf(0.0, 1.0))


def test_sampling_is_a_function_of_the_generator():
    maf, before = strong((2,)), torch.get_rng_state()
    first, second, other = (maf.sample(4, 0.01, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_under_autocast_gives_finite_values_in_float32():
    maf = MAF((3,), VP, hidden=(16,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = maf.sample(50, VP.T, generator=seeded(0))
    assert x.dtype == torch.float32
    assert bool(x.isfinite().all())


def test_trained_on_a_gaussian_it_recovers_the_entropy():
    """The best one-layer flow is the Gaussian itself: the gap closes to less than 0.01 nats, from above."""
    data = GaussianDensity(VP, torch.tensor([0.3, -0.5]), torch.tensor([0.2, 0.6]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maf = MAF((2,), VP, transforms=1, hidden=(16,), data_std=0.5)
    objective, optimizer = NCMLObjective(VP), torch.optim.Adam(maf.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for i in range(300):
        optimizer.zero_grad()
        objective(maf, data.sample(256, generator=seeded(i)), generator=seeded(10_000 + i)).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        for t in (0.0, VP.T):
            x = data.sample(20_000, t, generator=seeded(999)).double()
            gap = data.log_prob(x, t) - maf.double().log_prob(x, t)
            standard_error = float(gap.std()) / math.sqrt(len(x))
            assert -Z * standard_error < float(gap.mean()) < 0.01 + Z * standard_error


def test_trained_on_a_mixture_it_beats_the_best_gaussian():
    """Layers in alternating orders bend; a Gaussian of the same moments cannot."""
    data = plane_mixture(VP)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maf = MAF((2,), VP, transforms=3, hidden=(32,), data_std=0.5)
    objective, optimizer = NCMLObjective(VP), torch.optim.Adam(maf.parameters(), lr=5e-3)
    for i in range(200):
        optimizer.zero_grad()
        x = data.sample(256, generator=seeded(i)).float()
        objective(maf, x, generator=seeded(10_000 + i)).backward()
        optimizer.step()
    x = data.sample(20_000, generator=seeded(999))
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    with torch.no_grad():
        gain = maf.double().log_prob(x) - gaussian.log_prob(x)
    assert float(gain.mean()) > 0.05


def test_parallel_samples_are_of_the_data_unless_a_time_is_given():
    maf = strong((3,))
    default, zero, noisy = (maf.sample_in_parallel(4, *t, generator=seeded(0)).x for t in ((), (0.0,), (VP.T,)))
    assert torch.equal(default, zero)
    assert not torch.equal(default, noisy)
