"""MADE: exact masses and densities, causality, exact sampling, and what training can reach."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NCMLObjective
from ncml.densities import MADE, ToyLattice
from ncml.errors import ArgumentError
from ncml.objective import AtZero, LadderTimes
from tests.problems import MEANS, STDS, WEIGHTS, every_state, mixture, seeded, shaken
from tests.statistics import ALPHA

F64 = torch.float64
VP = VPSDE.at_noise(0.2)
LEVELS = LevelNoise(3)
ORDER = [2, 0, 3, 1]

heads = pytest.mark.parametrize("head", ["logistic", "gaussian"])
orders = pytest.mark.parametrize("order", [None, ORDER], ids=["row-major", "permuted"])


def strong(event_shape, process=VP, *, seed=0, gain=2.0, **settings) -> MADE:
    """A MADE in float64 whose conditionals depend strongly on what comes before them."""
    settings = {"hidden": (24, 24), "components": 3, "linear_components": 1, "noise_features": 6, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shaken(MADE(event_shape, process, **settings), gain, seed)


def masses(made: MADE, t, context=None) -> torch.Tensor:
    """The mass of every state, in the order of ``every_state``."""
    states = every_state(made.lattice, *made.event_shape)
    rows = None if context is None else context.expand(len(states), *context.shape)
    log_p = made.log_prob(states, t, rows) + math.prod(made.event_shape) * math.log(made.lattice.width)
    return log_p.exp().detach()


# Scaling.


@heads
@pytest.mark.parametrize("process", [VP, VESDE.at_noise(0.2)], ids=["vp", "ve"])
def test_data_std_scales_values_at_every_noise_level(head, process):
    """The density of c x plus D log c, draws over c, and conditionals likewise, given others too."""
    plain, scaled = (strong((4,), process, head=head, order=ORDER, data_std=std) for std in (None, 0.4))
    x, given = torch.randn(2, 5, 4, dtype=F64, generator=seeded(0))
    t = torch.linspace(0.0, process.T, 5, dtype=F64)
    c = ((process.alpha(t) * 0.4) ** 2 + process.sigma(t) ** 2).rsqrt()[:, None]
    close = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(scaled.log_prob(x, t), plain.log_prob(c * x, t) + 4.0 * c[:, 0].log(), **close)
    expected = plain.log_conditionals(c * x, t, given=c * given) + c.log()
    torch.testing.assert_close(scaled.log_conditionals(x, t, given=given), expected, **close)
    noise = plain.draw_noise(5, generator=seeded(1))
    torch.testing.assert_close(scaled.sample(5, t, noise=noise), plain.sample(5, t, noise=noise) / c, **close)
    torch.testing.assert_close(scaled.resample(x, noise, t), plain.resample(c * x, noise, t) / c, **close)


# Linear components.


@pytest.mark.parametrize("order", [None, [2, 0, 1]], ids=["row-major", "permuted"])
def test_one_linear_component_is_a_linear_regression(order):
    """In the order of sampling, x = W y + s e, with y the x that level off beyond 5."""
    made = MADE((3,), VP, hidden=(5,), components=1, head="gaussian", linear_components=1, order=order).double()
    W, raw = torch.tensor([[0.0, 0, 0], [0.7, 0, 0], [-1.2, 0.4, 0]], dtype=F64), torch.tensor([-1.0, 0.2, -2.0])
    with torch.no_grad():
        made.net.out.weight.zero_()
        made.net.out.bias.copy_(torch.cat([torch.zeros(6), raw]))
        made.net.linear.weight.copy_(W)
    s = made.head.log_scales(raw.double()).exp()

    def mean(x):
        return (x / (1 + (x / 5) ** 4) ** 0.25) @ W.t()

    x = 3.0 * torch.randn(6, 3, dtype=F64, generator=seeded(0))
    ordered = x[:, made.order]
    expected = torch.distributions.Normal(mean(ordered), s).log_prob(ordered).sum(1)
    torch.testing.assert_close(made.log_prob(x, VP.T), expected, rtol=1e-12, atol=1e-12)
    noise = made.draw_noise(6, generator=seeded(1))
    drawn = made.sample(6, noise=noise)[:, made.order]
    torch.testing.assert_close((drawn - mean(drawn)) / s, torch.special.ndtri(noise[:, :, 1]), rtol=0.0, atol=1e-12)


def test_linear_components_are_spread_among_all_and_start_from_nothing():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = MADE((3,), VP, hidden=(4,), components=8)
        torch.manual_seed(0)
        made = MADE((3,), VP, hidden=(4,), components=8, linear_components=2)
    x = torch.randn(5, 3, generator=seeded(0))
    assert torch.equal(made.log_prob(x), plain.log_prob(x))
    assert made.net.linear_outputs.nonzero().flatten().tolist() == [8 + 2, 8 + 6]  # logits, means, scales


# Causality.


@orders
def test_log_conditionals_are_the_terms_of_log_prob(order):
    """Each at the place of its value, and untouched by what comes after it."""
    made = strong((2, 2), lattice=Lattice(3), order=order)
    states = every_state(made.lattice, 2, 2)
    for t in (0.0, VP.T):
        terms = made.log_conditionals(states, t)
        assert terms.shape == states.shape
        assert (terms.sum((1, 2)) - made.log_prob(states, t)).abs().max() < 1e-12
        for i, place in enumerate(made.order.tolist()):
            changed = states.clone().flatten(1)
            changed[:, made.order[i + 1 :]] = 1.0
            same = made.log_conditionals(changed.reshape(states.shape), t)
            assert torch.equal(same.flatten(1)[:, place], terms.flatten(1)[:, place])
    with pytest.raises(ArgumentError, match="lattice points"):
        made.log_conditionals(states + 0.1)


@orders
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_conditionals_depend_on_earlier_positions_only(order, t):
    """Log-conditional i, in ``order``, has an exactly zero derivative in every later value."""
    made = strong((2, 2), lattice=Lattice(3), order=order)
    times = torch.tensor([t], dtype=F64)

    def log_conditionals(flat):
        values = made.ordered(flat.reshape(1, 2, 2))
        outputs = made.net(values, made.conditioning(times))
        return made.head.log_prob(outputs, values)[0]

    x = torch.randn(4, dtype=F64, generator=seeded(1))
    jacobian = torch.autograd.functional.jacobian(log_conditionals, x)[:, made.order]
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    assert made.order.tolist() == (order or [0, 1, 2, 3])
    assert bool((jacobian[later] == 0.0).all())
    assert bool((jacobian[~later] != 0.0).all())
    total = made.log_density(x.reshape(1, 2, 2), t).item()
    assert total == pytest.approx(log_conditionals(x).sum().item(), rel=1e-13)


def test_a_permuted_order_is_the_row_major_model_of_permuted_values():
    plain, permuted = strong((4,), lattice=Lattice(3)), strong((4,), lattice=Lattice(3), order=ORDER)
    x = every_state(Lattice(3), 4)
    assert torch.equal(permuted.log_prob(x), plain.log_prob(x[:, ORDER]))
    noise = plain.draw_noise(20, generator=seeded(0))
    for t in (0.0, 0.05):
        assert torch.equal(permuted.sample(20, t, noise=noise)[:, ORDER], plain.sample(20, t, noise=noise))


# Normalisation.


@heads
@orders
@pytest.mark.parametrize(
    ("process", "t"), [(VP, 0.0), (LEVELS, 0.0), (LEVELS, 0.3), (LEVELS, 1.0)], ids=["vp", "pi-0", "pi-0.3", "pi-1"]
)
def test_masses_of_all_81_states_sum_to_one(head, order, process, t):
    made = strong((2, 2), process, lattice=Lattice(3), head=head, order=order)
    p = masses(made, t)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(p.max() / p.min()) > 10.0


def test_masses_sum_to_one_for_every_label_and_context():
    labelled = strong((3,), lattice=Lattice(3), classes=2)
    for label in (-1, 0, 1):
        assert float(masses(labelled, 0.0, torch.tensor(label)).sum()) == pytest.approx(1.0, abs=1e-12)
    with_context = strong((3,), lattice=Lattice(3), context_features=2)
    for seed in range(3):
        context = torch.randn(2, dtype=F64, generator=seeded(seed))
        assert float(masses(with_context, 0.0, context).sum()) == pytest.approx(1.0, abs=1e-12)


@heads
@pytest.mark.parametrize("lattice", [None, Lattice(5)], ids=["continuous", "lattice"])
def test_open_density_integrates_to_one_in_the_plane(head, lattice):
    made = strong((2,), lattice=lattice, head=head, gain=0.5, seed=3)
    axis = torch.arange(-20.0, 20.0, 0.1, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        for t in (VP.T, 0.01):
            total = sum(made.log_prob(part, t).exp().sum() for part in grid.split(60_000)) * 0.1**2
            assert float(total) == pytest.approx(1.0, abs=1e-9)


def test_density_at_time_zero_has_no_edges_and_agrees_with_the_mass_inside():
    made = strong((2,), lattice=Lattice(5))
    x = every_state(made.lattice, 2)
    inside = (x.abs() < 1.0).all(1)
    log_p, open_log_p = made.log_prob(x), made.log_density(x)
    assert torch.equal(log_p[inside], open_log_p[inside])
    assert bool((log_p[~inside] > open_log_p[~inside]).all())


# Times, labels and contexts.


@orders
def test_rows_of_a_batch_do_not_see_each_others_time(order):
    made = strong((4,), lattice=Lattice(3), order=order)
    x = every_state(made.lattice, 4)[:6]
    t = torch.tensor([0.0, VP.T, 0.0, 0.01, 0.01, VP.T], dtype=F64)
    apart = torch.cat([made.log_prob(x[i : i + 1], float(t[i])) for i in range(6)])
    assert (made.log_prob(x, t) - apart).abs().max() < 1e-12
    noise = made.draw_noise(6, generator=seeded(0))
    rows = torch.cat([made.sample(1, float(t[i]), noise=noise[i : i + 1]) for i in range(6)])
    assert (made.sample(6, t, noise=noise) - rows).abs().max() < 1e-12
    assert bool(made.lattice.on_lattice(made.sample(6, t, noise=noise)[t == 0]).all())


def test_time_label_and_context_all_matter():
    x = torch.tensor([[0.0, 1.0]], dtype=F64)
    labelled = strong((2,), lattice=Lattice(3), classes=3)
    values = [labelled.log_prob(x, t, torch.tensor([k])).item() for k in (-1, 0, 1, 2) for t in (0.0, 0.05)]
    assert len(set(values)) == 8
    with_context = strong((2,), lattice=Lattice(3), context_features=1)
    values = [with_context.log_prob(x, 0.0, torch.tensor([[c]], dtype=F64)).item() for c in (-1.0, 0.0, 1.0)]
    assert len(set(values)) == 3


# Sampling.


@heads
@orders
@pytest.mark.parametrize("lattice", [None, Lattice(3)], ids=["continuous", "lattice"])
@pytest.mark.parametrize("t", [0.0, 0.05])
def test_a_sample_is_the_fixed_point_of_resampling_reached_in_D_sweeps(head, order, lattice, t):
    """Jacobi iteration: after k sweeps the first k positions, in ``order``, are final."""
    made = strong((2, 2), lattice=lattice, head=head, order=order)
    noise = made.draw_noise(50, generator=seeded(1))
    sample = made.sample(50, t, noise=noise)
    assert (made.resample(sample, noise, t) - sample).abs().max() < 1e-10
    x = torch.randn(50, 2, 2, dtype=F64, generator=seeded(2))
    for k in range(1, 5):
        x = made.resample(x, noise, t)
        done = (x - sample).flatten(1)[:, made.order[:k]]
        assert done.abs().max() < 1e-10
    assert sample.shape == (50, 2, 2)
    if lattice is not None and t == 0.0:
        assert bool(lattice.on_lattice(sample).all())


@pytest.mark.parametrize(
    ("process", "t", "settings", "label"),
    [
        (VP, 0.0, {}, None),
        (VP, 0.0, {"head": "gaussian", "order": ORDER}, None),
        (LEVELS, 0.5, {"order": ORDER}, None),
        (VP, 0.0, {"classes": 2}, 1),
        (VP, 0.0, {"classes": 2}, -1),
    ],
    ids=["row-major", "gaussian-permuted", "level-noise", "label", "null-label"],
)
def test_samples_follow_the_mass_of_all_81_states(process, t, settings, label):
    """Chi-square over the states with at least 10 expected counts, false-alarm rate 1e-9."""
    made, n = strong((4,), process, lattice=Lattice(3), **settings), 50_000
    context = None if label is None else torch.tensor(label)
    p = masses(made, t, context).numpy()
    rows = None if context is None else context.expand(n)
    levels = Lattice(3).nearest(made.sample(n, t, rows, generator=seeded(7)))
    state = (levels * torch.tensor([27, 9, 3, 1])).sum(1)
    counts = np.bincount(state.numpy(), minlength=81)
    common = n * p >= 10.0
    assert common.sum() >= 20
    statistic = ((counts - n * p) ** 2 / (n * p))[common].sum()
    assert statistic < chi2.isf(ALPHA, df=int(common.sum()))
    rare = n * p[~common].sum()
    assert counts[~common].sum() <= rare + 6.11 * math.sqrt(rare) + 38.0


def test_sampling_is_a_function_of_the_generator_or_of_the_noise():
    made, before = strong((3,), lattice=Lattice(3)), torch.get_rng_state()
    first, second = (made.sample(4, 0.05, generator=seeded(3)) for _ in range(2))
    given = made.sample(4, 0.05, noise=made.draw_noise(4, generator=seeded(3)))
    assert torch.equal(first, second)
    assert torch.equal(first, given)
    assert torch.equal(torch.get_rng_state(), before)
    made.sample(4, 0.05)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("hidden", [(1,), (3,), (7, 2), (64,)], ids=str)
def test_networks_narrower_than_the_data_stay_normalised_and_causal(hidden):
    made = strong((3,), lattice=Lattice(3), hidden=hidden)
    assert float(masses(made, 0.0).sum()) == pytest.approx(1.0, abs=1e-12)
    noise = made.draw_noise(9, generator=seeded(0))
    sample = made.sample(9, noise=noise)
    assert torch.equal(made.resample(sample, noise), sample)


@heads
def test_sampling_under_autocast_gives_finite_values_in_float32(head):
    made = MADE((4,), VP, lattice=Lattice(17), hidden=(16,), linear_components=5, head=head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = made.sample(50, VP.T, generator=seeded(0))
        log_p = made.log_prob(x, VP.T)
    for values in (x, log_p):
        assert values.dtype == torch.float32
        assert bool(values.isfinite().all())


def test_bfloat16_autocast_moves_bits_by_at_most_2e_3():
    dims = 64
    made = MADE((dims,), VP, lattice=Lattice(256), hidden=(64, 64))
    x = made.lattice.to_unit(torch.randint(0, 256, (32, dims), generator=seeded(0)))
    plain = made.lattice.bits_per_dim(made.log_prob(x), dims).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_p = made.log_prob(x)
    assert log_p.dtype == torch.float32
    assert abs(made.lattice.bits_per_dim(log_p, dims).mean - plain) <= 2e-3


def test_float32_agrees_with_float64_to_1e_5_bits_and_score():
    made = strong((64,), lattice=Lattice(256), hidden=(64, 64), gain=0.3)
    x = made.lattice.to_unit(torch.randint(0, 256, (16, 64), generator=seeded(0)), dtype=F64)
    single = copy.deepcopy(made).float()
    bits = [m.lattice.bits_per_dim(m.log_prob(v), 64).values for m, v in ((made, x), (single, x.float()))]
    assert (bits[0] - bits[1]).abs().max() <= 1e-5
    exact, rounded = made.score(x, 0.01), single.score(x.float(), 0.01).double()
    assert float((exact - rounded).norm() / exact.norm()) <= 1e-5


# State.


def test_a_state_dict_of_another_order_is_refused_before_anything_is_copied():
    made, other = strong((4,), seed=0), strong((4,), seed=1, order=ORDER)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    with pytest.raises(ArgumentError, match=r"^order: got"):
        made.load_state_dict(other.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    twin = strong((4,), seed=2, order=ORDER)
    twin.load_state_dict(other.state_dict())
    x = torch.randn(5, 4, dtype=F64, generator=seeded(0))
    assert torch.equal(twin.log_prob(x, 0.01), other.log_prob(x, 0.01))


# Training.


def train(made: MADE, process, draw, *, steps: int, times, lr: float = 1e-2) -> list[float]:
    """Adam with a cosine decay on fresh batches; the losses."""
    objective, optimizer = NCMLObjective(process, times), torch.optim.Adam(made.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for i in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = objective(made, draw(i), generator=seeded(10_000 + i))  # not the stream of the data
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def fixed_initialisation():
    """Networks are initialised from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("fixed_initialisation")
@pytest.mark.parametrize("process", [VP, LevelNoise(5)], ids=["vp", "level-noise"])
def test_trained_on_lattice_data_it_approaches_the_entropy_from_above(process):
    """Gibbs: the exact cross-entropy, summed over all 25 states, is at least the entropy; and gets close."""
    pmf = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15], [0.5, 0.1, 0.05, 0.15, 0.2]], dtype=F64)
    data = ToyLattice(process, pmf)
    entropy = -float((pmf * pmf.log()).sum())
    made = MADE((2,), process, lattice=data.lattice, hidden=(32,), components=5)
    t = 0.4 if isinstance(process, LevelNoise) else 0.0

    def gap(t: float) -> float:
        states = every_state(data.lattice, 2)
        log_q = made.double().log_prob(states, t) + 2 * math.log(data.lattice.width)
        log_p = data.log_prob(states, t) + 2 * math.log(data.lattice.width)
        made.float()
        return float((log_p.exp() * (log_p - log_q)).sum().detach())

    losses = train(made, process, lambda i: data.sample(256, generator=seeded(i)).float(), steps=250, times=None)
    assert np.mean(losses[-20:]) < losses[0] - 0.3
    for time in {0.0, t}:
        assert 0.0 <= gap(time) < 0.02
    assert entropy > 2.0  # the bound is not trivial


@pytest.mark.usefixtures("fixed_initialisation")
@pytest.mark.parametrize("head", ["logistic", "gaussian"])
def test_trained_on_a_mixture_it_approaches_the_entropy_of_every_noise_level_from_above(head):
    """Cross-entropies by quadrature, against the known entropies of the closed-form noisy mixture."""
    data = mixture(VP)
    made = MADE((1,), VP, hidden=(32,), components=4, head=head)
    times = LadderTimes((0.0, 0.3 * VP.T, VP.T))
    train(made, VP, lambda i: data.sample(512, generator=seeded(i)).float(), steps=250, times=times)
    x = torch.linspace(-3.0, 3.0, 3001, dtype=F64)[:, None]
    made.double()
    for t in times.times:
        log_p, log_q = data.log_prob(x, t), made.log_prob(x, t).detach()
        gap = float(torch.trapezoid(log_p.exp() * (log_p - log_q), x[:, 0]))
        assert 0.0 < gap < 0.02
    at_zero = float(torch.trapezoid(-data.log_prob(x).exp() * data.log_prob(x), x[:, 0]))
    assert at_zero == pytest.approx(0.20102904, abs=1e-7)  # nats, the entropy of the mixture itself
    assert (WEIGHTS, MEANS, STDS) == ((0.4, 0.6), (-0.5, 0.4), (0.1, 0.2))


@pytest.mark.usefixtures("fixed_initialisation")
def test_maximum_likelihood_and_the_objective_at_zero_train_alike():
    """All mass at t = 0 is maximum likelihood: the loss is the mean of -log_prob, and so is its gradient."""
    made = MADE((2,), VP, lattice=Lattice(5), hidden=(8,))
    x = Lattice(5).to_unit(torch.randint(0, 5, (16, 2), generator=seeded(0)))
    gradients = []
    for loss in (NCMLObjective(VP, AtZero())(made, x), -made.log_prob(x).sum() / 16):
        gradients.append(torch.autograd.grad(loss, list(made.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
