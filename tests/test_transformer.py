"""The causal transformer: causality, exact masses and densities, prefixes, cached sampling, and what training does."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ncml import VESDE, VPSDE, Lattice, LevelNoise, NCMLObjective
from ncml.densities import CausalTransformer
from ncml.densities.transformer import CausalTransformerSettings
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.evaluation import bits_per_dim
from ncml.objective import AtZero
from ncml.sampling import HeunODE, sample_in_parallel
from ncml.score import sliced_score_matching
from ncml.testing import check_density
from tests.problems import every_state, same_bits, seeded, shaken

F64 = torch.float64
VP = VPSDE.at_noise(0.2)
LEVELS = LevelNoise(3)
SMALL = {"width": 16, "layers": 2, "heads": 2, "components": 3, "noise_features": 6}

heads = pytest.mark.parametrize("head", ["logistic", "gaussian"])


def small(event_shape, process=VP, *, seed=0, **settings) -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalTransformer(event_shape, process, **{**SMALL, **settings})


def strong(event_shape, process=VP, *, seed=0, gain=1.0, **settings) -> CausalTransformer:
    """A model in float64 whose conditionals depend strongly on what comes before them, and on their conditioning."""
    return shaken(small(event_shape, process, seed=seed, **settings), gain, seed)


def masses(model: CausalTransformer, t, context=None, length=None) -> torch.Tensor:
    """The mass of every state of the first positions, in the order of ``every_state``."""
    length, channels = length or model.event_shape[0], model.event_shape[1]
    states = every_state(model.lattice, length, channels)
    rows = None if context is None else context.expand(len(states), *context.shape)
    log_p = model.log_prob(states, t, rows) + length * channels * math.log(model.lattice.width)
    return log_p.exp().detach()


# Causality.


@pytest.mark.parametrize("lattice", [None, Lattice(65_536)], ids=["continuous", "lattice"])
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_conditionals_depend_on_earlier_values_only(lattice, t):
    """Log-conditional i has an exactly zero derivative in every later value, channels of a position included."""
    model = strong((4, 3), lattice=lattice)
    times = torch.tensor([t], dtype=F64)

    def log_conditionals(flat):
        x = flat.reshape(1, 4, 3)
        return model.head.log_prob(model._features(x, times, None), x, None).flatten()

    x = 0.3 * torch.randn(12, dtype=F64, generator=seeded(1))
    jacobian = torch.autograd.functional.jacobian(log_conditionals, x)
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert model.order.tolist() == list(range(12))
    assert bool((jacobian[later] == 0.0).all())
    assert bool((jacobian[~later] != 0.0).all())
    total = model.log_density(x.reshape(1, 4, 3), t).item()
    assert total == pytest.approx(log_conditionals(x).sum().item(), rel=1e-13)


def test_log_conditionals_are_the_terms_of_log_prob():
    model = strong((3, 2), lattice=Lattice(3))
    states = every_state(model.lattice, 3, 2)[::50]
    for t in (0.0, VP.T):
        terms = model.log_conditionals(states, t)
        assert terms.shape == states.shape
        assert (terms.sum((1, 2)) - model.log_prob(states, t)).abs().max() < 1e-12
    with pytest.raises(ArgumentError, match="lattice points"):
        model.log_conditionals(states + 0.1)


# Normalisation.


@heads
@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (1, 4)], ids=str)
@pytest.mark.parametrize(
    ("process", "t"), [(VP, 0.0), (LEVELS, 0.0), (LEVELS, 0.3), (LEVELS, 1.0)], ids=["vp", "pi-0", "pi-0.3", "pi-1"]
)
def test_masses_of_all_81_states_sum_to_one(head, shape, process, t):
    p = masses(strong(shape, process, lattice=Lattice(3), head=head), t)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(p.max() / p.min()) > 10.0


def test_masses_sum_to_one_for_every_label_and_context():
    labelled = strong((3, 1), lattice=Lattice(3), classes=2)
    for label in (-1, 0, 1):
        assert float(masses(labelled, 0.0, torch.tensor(label)).sum()) == pytest.approx(1.0, abs=1e-12)
    with_context = strong((3, 1), lattice=Lattice(3), context_features=2)
    for seed in range(3):
        context = torch.randn(2, dtype=F64, generator=seeded(seed))
        assert float(masses(with_context, 0.0, context).sum()) == pytest.approx(1.0, abs=1e-12)


@heads
def test_masses_of_65_536_levels_sum_to_one(head):
    model = strong((2, 1), lattice=Lattice(65_536), head=head)
    x = torch.cat([torch.zeros(65_536, 1, 1, dtype=F64), model.lattice.points(dtype=F64).reshape(-1, 1, 1)], dim=1)
    with torch.no_grad():
        log_p = model.log_conditionals(model.lattice.quantize(x))[:, 1, 0]
        open_log_p = model(model.lattice.quantize(x), torch.zeros(65_536, dtype=F64), edges=False)
    assert float(log_p.exp().sum()) * model.lattice.width == pytest.approx(1.0, abs=1e-11)
    assert bool((open_log_p[[0, -1]] < model.log_prob(model.lattice.quantize(x[[0, -1]]))).all())


@heads
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("lattice", [None, Lattice(5)], ids=["continuous", "lattice"])
def test_open_density_integrates_to_one_in_the_plane(head, shape, lattice):
    model = strong(shape, lattice=lattice, head=head, gain=0.3, seed=3)
    axis = torch.arange(-20.0, 20.0, 0.1, dtype=F64)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, *shape)
    with torch.no_grad():
        total = sum(model.log_prob(part, VP.T).exp().sum() for part in grid.split(40_000)) * 0.1**2
    assert float(total) == pytest.approx(1.0, abs=1e-9)


# Shorter sequences.


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)], ids=str)
@pytest.mark.parametrize(("process", "t"), [(VP, 0.0), (LEVELS, 0.5)], ids=["vp", "levels"])
def test_the_likelihood_of_a_prefix_is_its_marginal(shape, process, t):
    model = strong(shape, process, lattice=Lattice(3))
    p = masses(model, t).reshape([3] * 4)
    for length in range(1, shape[0]):
        dims = length * shape[1]
        marginal = p.sum(tuple(range(dims, 4)))
        assert (masses(model, t, length=length) - marginal.flatten()).abs().max() < 1e-12


def test_whatever_takes_events_takes_shorter_ones():
    lattice = Lattice(65_536)
    model = strong((6, 2), lattice=lattice, gain=0.3)
    x = lattice.quantize(torch.rand(5, 3, 2, dtype=F64, generator=seeded(0)) * 2.0 - 1.0)
    terms = -model.log_prob(x) / (6 * math.log(2.0)) - math.log2(lattice.width)
    assert torch.allclose(bits_per_dim(model, x).values, terms, rtol=1e-12)
    loss = NCMLObjective(VP, AtZero())(model, x)
    assert loss.item() == pytest.approx(-model.log_prob(x).mean().item(), rel=1e-12)
    assert model.score(x, VP.T).shape == x.shape
    assert HeunODE(steps=2)(model, x, VP.T).shape == x.shape
    under = model.under(VESDE.linear(0.1))
    assert torch.allclose(under.log_prob(x), model.log_prob(x), rtol=1e-12)
    noisy = x + 0.1 * torch.randn(x.shape, dtype=F64, generator=seeded(1))
    s = float(VP.time_at_log_snr(-2.0 * math.log(0.1)))
    alpha = float(VP.alpha(s))
    expected = model.log_prob(alpha * noisy, s) + 6 * math.log(alpha)
    assert torch.allclose(under.log_prob(noisy, 0.1), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 7, 2), (2, 0, 2), (2, 3, 1), (2, 3), (2, 3, 2, 1)], ids=str)
def test_other_shapes_are_refused(shape):
    model = small((6, 2))
    for call in (model.log_prob, model.score, lambda x: model.resample(x, model.draw_noise(2))):
        with pytest.raises(ArgumentError, match=r"^x: got"):
            call(torch.zeros(shape))
    with pytest.raises(ArgumentTypeError, match=r"^x: got"):
        model.log_prob([[0.0]])


def test_other_densities_still_refuse_parts_of_events():
    from ncml.densities import MADE

    with pytest.raises(ArgumentError, match=r"expected \(B, 6, 2\)"):
        MADE((6, 2), VP, hidden=(8,)).log_prob(torch.zeros(2, 3, 2))


# Sampling.


@heads
@pytest.mark.parametrize("lattice", [None, Lattice(3), Lattice(65_536)], ids=["continuous", "3", "65536"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("t", [0.0, 0.05])
def test_a_cached_sample_is_the_fixed_point_of_uncached_resampling(head, lattice, channels, t):
    model = strong((5, channels), lattice=lattice, head=head)
    noise = model.draw_noise(20, generator=seeded(1))
    sample = model.sample(20, t, noise=noise)
    assert sample.shape == (20, 5, channels)
    assert (model.resample(sample, noise, t) - sample).abs().max() < 1e-12 * sample.abs().max().clamp(min=1.0)
    x = torch.randn(20, 5, channels, dtype=F64, generator=seeded(2))
    for k in range(1, 5 * channels + 1):
        x = model.resample(x, noise, t)
        assert torch.allclose(x.flatten(1)[:, :k], sample.flatten(1)[:, :k], rtol=1e-10, atol=1e-10)
    if lattice is not None and t == 0.0:
        assert bool(lattice.on_lattice(sample).all())


def test_parallel_sampling_draws_the_same():
    for settings in ({}, {"lattice": Lattice(65_536)}, {"classes": 3}):
        model = strong((12, 2), gain=0.5, **settings)
        context = torch.tensor([0, 1, 2, -1]) if "classes" in settings else None
        noise = model.draw_noise(4, generator=seeded(1))
        for t in (0.0, VP.T):
            parallel = sample_in_parallel(model, 4, t, context, noise=noise).x
            assert torch.allclose(parallel, model.sample(4, t, context, noise=noise), rtol=1e-12, atol=1e-12)


def test_shorter_samples_are_the_first_positions():
    model = strong((8, 2))
    noise = model.draw_noise(5, generator=seeded(0))
    whole = model.sample(5, 0.05, noise=noise)
    for length in (1, 3, 8):
        part = model.sample(5, 0.05, noise=noise[:, :length], length=length)
        assert (part - whole[:, :length]).abs().max() < 1e-12
        assert (model.resample(part, noise[:, :length], 0.05) - part).abs().max() < 1e-12


def test_rows_of_a_batch_do_not_see_each_others_time_or_label():
    model = strong((4, 1), lattice=Lattice(3), classes=2)
    x = every_state(model.lattice, 4, 1)[:6]
    t = torch.tensor([0.0, VP.T, 0.0, 0.01, 0.01, VP.T], dtype=F64)
    labels = torch.tensor([0, 1, -1, 0, 1, -1])
    one = [(float(t[i]), labels[i : i + 1]) for i in range(6)]
    apart = torch.cat([model.log_prob(x[i : i + 1], *one[i]) for i in range(6)])
    assert (model.log_prob(x, t, labels) - apart).abs().max() < 1e-12
    noise = model.draw_noise(6, generator=seeded(0))
    rows = torch.cat([model.sample(1, *one[i], noise=noise[i : i + 1]) for i in range(6)])
    assert (model.sample(6, t, labels, noise=noise) - rows).abs().max() < 1e-12
    assert bool(model.lattice.on_lattice(rows[t == 0]).all())


def test_sampling_is_a_function_of_the_generator_or_of_the_noise():
    model, before = strong((3, 2), lattice=Lattice(3)), torch.get_rng_state()
    first, second = (model.sample(4, 0.05, generator=seeded(3)) for _ in range(2))
    given = model.sample(4, 0.05, noise=model.draw_noise(4, generator=seeded(3)))
    assert torch.equal(first, second)
    assert torch.equal(first, given)
    assert not first.is_inference()
    assert torch.equal(torch.get_rng_state(), before)
    assert model.sample(0, 0.05).shape == (0, 3, 2)
    assert model.sample(0, 0.05, length=7).shape == (0, 7, 2)


def test_a_training_model_samples_without_dropout_and_keeps_its_mode():
    model = strong((4, 1), dropout=0.5, classes=2, label_dropout=1.0).train()
    noise, labels = model.draw_noise(3, generator=seeded(0)), torch.tensor([0, 1, -1])
    drawn = model.sample(3, 0.05, labels, noise=noise)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(drawn, model.eval().sample(3, 0.05, labels, noise=noise))


# Continuation.


def test_complete_keeps_the_prefix_and_draws_as_sample_does():
    model = strong((7, 2))
    noise = model.draw_noise(4, generator=seeded(0))
    sample = model.sample(4, 0.05, noise=noise)
    for keep in range(8):
        done = model.complete(sample, keep, 0.05, noise=noise)
        assert same_bits(done[:, :keep], sample[:, :keep])
        assert (done - sample).abs().max() < 1e-12
        if keep:
            short = model.complete(sample[:, :keep], keep, 0.05, noise=noise)
            assert torch.equal(short, done)
    changed = sample.clone()
    for value in (100.0, math.nan, math.inf):  # what is not kept does not matter
        changed[:, 3:] = value
        assert torch.equal(model.complete(changed, 3, 0.05, noise=noise), model.complete(sample, 3, 0.05, noise=noise))
    other = model.complete(torch.zeros_like(sample), 3, 0.05, noise=noise)
    assert bool((other[:, :3] == 0.0).all())
    assert (model.resample(other, noise, 0.05) - other)[:, 3:].abs().max() < 1e-12


@pytest.mark.parametrize(("overlap", "step"), [(None, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("keep", [0, 2, 5, 9])
def test_beyond_the_window_every_value_is_drawn_given_its_own_window(overlap, step, keep):
    """The windows from their definition; resampling one of them draws again what was drawn in it."""
    window, length = 5, 17
    model = strong((window, 2))
    noise = model.draw_noise(3, generator=seeded(0), length=length)
    x = torch.randn(3, 9, 2, dtype=F64, generator=seeded(1))
    done = model.complete(x, keep, 0.05, noise=noise, length=length, overlap=overlap)
    assert done.shape == (3, length, 2)
    assert same_bits(done[:, :keep], x[:, :keep])
    for i in range(keep, length):
        begin = next(start for start in range(0, length, step) if i < start + window)  # of the first window with it
        part = slice(begin, i + 1)
        again = model.resample(done[:, part], noise[:, part], 0.05)
        assert (again - done[:, part])[:, -1].abs().max() < 1e-12
    if keep == 0:
        assert torch.equal(done, model.sample(3, 0.05, noise=noise, length=length, overlap=overlap))


def test_a_kept_prefix_lies_on_the_lattice_where_data_do():
    model = strong((5, 1), lattice=Lattice(5))
    x = torch.full((2, 5, 1), 0.3, dtype=F64)
    x[:, :2] = 0.5
    assert torch.equal(model.complete(x, 2, generator=seeded(0))[:, :2], x[:, :2])
    assert torch.equal(model.complete(x, 3, 0.05, generator=seeded(0))[:, :3], x[:, :3])
    with pytest.raises(ArgumentError, match=r"^x: 2 of 6 values are not one of the 5 lattice points"):
        model.complete(x, 3)
    with pytest.raises(ArgumentError, match=r"^x: 1 of 3 values are not"):
        model.complete(x, 3, torch.tensor([0.0, 0.05], dtype=F64))


def test_completion_refuses_what_does_not_fit():
    model = small((5, 2))
    x = torch.zeros(3, 4, 2)
    for keep in (-1, 5, True, 1.0):
        with pytest.raises(ArgumentError, match=r"^keep: got"):
            model.complete(x, keep)
    for arguments in ({"length": 3}, {"length": True}, {"length": 2.5}):
        with pytest.raises(ArgumentError, match=r"^length: got"):
            model.complete(x, 4, **arguments)
    for overlap in (0, 5, 6):
        with pytest.raises(ArgumentError, match=r"^overlap: got"):
            model.complete(x, 4, length=12, overlap=overlap)
    for noise in (model.draw_noise(3, length=4), model.draw_noise(2), model.draw_noise(3).double()):
        with pytest.raises(ArgumentError, match=r"^noise: got"):
            model.complete(x, 2, noise=noise)
    with pytest.raises(ArgumentError, match=r"^x: got"):
        model.complete(torch.zeros(3, 4, 1), 2)
    with pytest.raises(ArgumentError, match=r"^x: got 12 non-finite .*what is kept must be known"):
        model.complete(x.fill_(math.nan), 2)
    x.zero_()
    with pytest.raises(ArgumentError, match=r"^t: got"):
        model.complete(x, 2, 2.0 * VP.T)
    with pytest.raises(ArgumentError, match=r"^context: got"):
        model.complete(x, 2, 0.0, torch.zeros(3, 1))
    with pytest.raises(ArgumentError, match=r"^length: got 3; expected 1: windows of one"):
        small((1, 2)).sample(2, length=3)


# Conditioning.


def test_the_first_position_sees_time_label_and_context():
    x = torch.tensor([[[0.0]]], dtype=F64)
    labelled = strong((3, 1), lattice=Lattice(3), classes=3)
    values = [labelled.log_prob(x, t, torch.tensor([k])).item() for k in (-1, 0, 1, 2) for t in (0.0, 0.05)]
    assert len(set(values)) == 8
    with_context = strong((3, 1), lattice=Lattice(3), context_features=1)
    values = [with_context.log_prob(x, 0.0, torch.tensor([[c]], dtype=F64)).item() for c in (-1.0, 0.0, 1.0)]
    assert len(set(values)) == 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8])
def test_label_dropout_trains_some_rows_as_unlabelled(dtype):
    always, never, half = (strong((3, 1), classes=3, label_dropout=p) for p in (1.0, 0.0, 0.5))
    x, t = torch.randn(200, 3, 1, dtype=F64, generator=seeded(0)), torch.full((200,), 0.05, dtype=F64)
    labels = (torch.arange(200) % 3).to(dtype)
    null = never(x, t, torch.full((200,), -1))
    assert torch.equal(always(x, t, labels), null)
    labelled = never(x, t, labels)
    assert torch.equal(always.eval()(x, t, labels), labelled)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        value = half(x, t, labels)
    dropped, kept = (value - null).abs() < 1e-12, (value - labelled).abs() < 1e-12
    assert bool((dropped | kept).all())
    assert 60 < int(dropped.sum()) < 140
    always.train()
    with pytest.raises(ArgumentError, match=r"^context: got labels outside"):
        always(x, t, torch.full((200,), 3))


def test_contexts_that_do_not_fit_are_refused():
    x = torch.zeros(2, 3, 1)
    plain, labelled, vectors = small((3, 1)), small((3, 1), classes=2), small((3, 1), context_features=2)
    for model, context in (
        (plain, torch.tensor([0, 1])),
        (labelled, None),
        (labelled, torch.tensor([0, 2])),
        (labelled, torch.tensor([0, 1, 1])),
        (vectors, None),
        (vectors, torch.zeros(2, 3)),
    ):
        for call in (model.log_prob, lambda x, t, c, model=model: model.sample(2, t, c)):
            with pytest.raises(ArgumentError, match=r"^context: got"):
                call(x, 0.0, context)
    with pytest.raises(ArgumentTypeError, match=r"^context: got"):
        labelled.log_prob(x, 0.0, torch.tensor([0.0, 1.0]))


# Construction and state.


@pytest.mark.parametrize(
    ("shape", "settings", "name"),
    [
        ((4,), {}, "event_shape"),
        ((3, 4, 4), {}, "event_shape"),
        ((4, 0), {}, "event_shape"),
        ((4, 1), {"width": 10}, "width"),
        ((4, 1), {"width": 12, "heads": 4}, "width"),
        ((4, 1), {"heads": 0}, "heads"),
        ((4, 1), {"layers": 0}, "layers"),
        ((4, 1), {"components": 0}, "components"),
        ((4, 1), {"dropout": 1.5}, "dropout"),
        ((4, 1), {"label_dropout": -0.1}, "label_dropout"),
        ((4, 1), {"head": "cauchy"}, "head"),
        ((4, 1), {"classes": 2, "context_features": 2}, "context_features, classes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, settings, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        small(shape, **{"width": 16, "heads": 4, **settings})


def test_a_new_model_is_the_same_broad_mixture_everywhere():
    model = small((6, 2), width=64, heads=4, components=10)
    x = 2.0 * torch.rand(50, 6, 2, generator=seeded(0)) - 1.0
    terms = model.log_conditionals(x, 0.05).detach()
    head = model.head.mixture
    start = head.log_prob(head.initial_bias().expand(50, 12, -1), x.flatten(1)).view_as(x)
    assert float((terms - start).abs().mean()) < 0.1


def test_a_state_dict_gives_the_same_model_also_of_another_length():
    model, twin, longer = (strong(shape, seed=s) for s, shape in enumerate([(5, 2), (5, 2), (9, 2)]))
    x, noise = torch.randn(4, 5, 2, dtype=F64, generator=seeded(0)), model.draw_noise(4, generator=seeded(1))
    for other in (twin, longer):
        assert not torch.equal(other.log_prob(x, 0.01), model.log_prob(x, 0.01))
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.log_prob(x, 0.01), model.log_prob(x, 0.01))
        assert torch.allclose(other.sample(4, 0.01, noise=noise, length=5), model.sample(4, 0.01, noise=noise))


def test_settings_build_the_model():
    settings = CausalTransformerSettings(width=16, layers=1, heads=2, components=4, head="gaussian", dropout=0.1)
    model = settings.build((5, 2), VP, Lattice(17), classes=3)
    assert (model.event_shape, model.lattice, len(model.blocks())) == ((5, 2), Lattice(17), 1)
    assert (model.conditioning.classes, model.head.mixture.components, model.label_dropout) == (3, 4, 0.1)
    assert (model.trunk.width, model.blocks()[0].heads, model.blocks()[0].dropout.p) == (16, 2, 0.1)
    with pytest.raises(ArgumentError, match=r"^model\.name: got 'causal-transformer' and data of shape \(3, 8, 8\)"):
        settings.build((3, 8, 8), VP, None)
    with pytest.raises(ArgumentError, match=r"^model\.label_dropout: got"):
        CausalTransformerSettings(label_dropout=2.0)


# Precision, compilation, and memory.


def test_bfloat16_autocast_moves_bits_by_little_and_keeps_the_digits_of_the_values():
    lattice = Lattice(65_536)
    model = strong((32, 1), lattice=lattice, gain=0.1, width=32).float()
    x = lattice.quantize(torch.rand(16, 32, 1, generator=seeded(0)) * 2.0 - 1.0)
    plain = bits_per_dim(model, x).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_p = model.log_prob(x)
        drawn = model.sample(8, 0.05, generator=seeded(0))
    assert log_p.dtype == drawn.dtype == torch.float32
    assert abs(lattice.bits_per_dim(log_p, 32).mean - plain) <= 2e-3
    assert torch.equal(drawn, model.sample(8, 0.05, generator=seeded(0)))


def test_float32_agrees_with_float64():
    lattice = Lattice(256)
    model = strong((32, 2), lattice=lattice, gain=0.3)
    x = lattice.quantize(torch.rand(16, 32, 2, dtype=F64, generator=seeded(0)) * 2.0 - 1.0)
    single = copy.deepcopy(model).float()
    bits = [bits_per_dim(m, v).values for m, v in ((model, x), (single, x.float()))]
    assert (bits[0] - bits[1]).abs().max() <= 1e-5
    exact, rounded = model.score(x, 0.01), single.score(x.float(), 0.01).double()
    assert float((exact - rounded).norm() / exact.norm()) <= 1e-4


def parameter_gradients(model, x, t):
    return torch.autograd.grad(model(x, t).sum(), list(model.parameters()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_compute_the_same_in_training_and_for_scores():
    model = strong((6, 2), gain=0.5)
    x, t = torch.randn(3, 6, 2, dtype=F64, generator=seeded(0)), torch.tensor([0.0, 0.05, VP.T], dtype=F64)
    noise = model.draw_noise(3, generator=seeded(1))
    compiled = copy.deepcopy(model)
    for block in compiled.blocks():
        block.compile(backend="aot_eager", fullgraph=True)
    pairs = zip(parameter_gradients(compiled, x, t), parameter_gradients(model, x, t), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in pairs)
    for y in (x, x[:, :4]):
        assert torch.allclose(compiled.score(y, t), model.score(y, t), rtol=1e-10, atol=1e-12)
        once_more = compiled.score(y, t, create_graph=True)
        assert torch.allclose(once_more, model.score(y, t), rtol=1e-10, atol=1e-12)
    assert torch.equal(compiled.sample(3, t, noise=noise), model.sample(3, t, noise=noise))


def test_the_score_can_be_trained_on():
    model = strong((6, 2), gain=0.5)
    x, t = torch.randn(3, 6, 2, dtype=F64, generator=seeded(0)), torch.tensor([0.01, 0.05, VP.T], dtype=F64)
    assert [model.forward_score(x, t, **asked).requires_grad for asked in ({}, {"create_graph": True})] == [False, True]
    loss = sliced_score_matching(model, x, t, generator=seeded(0)).sum()
    (gradient,) = torch.autograd.grad(loss, model.first)
    ahead, direction = copy.deepcopy(model), torch.randn(16, dtype=F64, generator=seeded(1))
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            ahead.first.copy_(model.first + sign * 1e-5 * direction)
        values.append(float(sliced_score_matching(ahead, x, t, generator=seeded(0)).sum().detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-5)


def test_recomputed_blocks_give_the_same_gradients():
    model = strong((6, 2), gain=0.5)
    x, t = torch.randn(3, 6, 2, dtype=F64, generator=seeded(0)), torch.tensor([0.0, 0.05, VP.T], dtype=F64)
    plain = parameter_gradients(model, x, t)
    model.recompute_blocks()
    assert all(torch.equal(a, b) for a, b in zip(parameter_gradients(model, x, t), plain, strict=True))


# The contract, and training.


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((2, 1), {}),
        ((3, 1), {"head": "gaussian"}),
        ((2, 3), {}),
        ((2, 3), {"lattice": Lattice(3), "classes": 2}),
        ((4, 1), {"lattice": Lattice(3), "head": "gaussian"}),
        ((3, 2), {"context_features": 2, "dropout": 0.1}),
        ((6, 3), {"lattice": Lattice(65_536)}),
    ],
    ids=["plane", "gaussian", "three-channels", "classes", "lattice", "context", "audio"],
)
def test_it_keeps_the_contract(shape, settings):
    context = None
    if "classes" in settings:
        context = torch.tensor([0, 1, -1, 0, 1, -1, 0, 1])
    if "context_features" in settings:
        context = torch.randn(8, 2, generator=seeded(0))
    # Ranks of masses need every level at every value, too many of these.
    times = (0.1 * VP.T, VP.T) if settings.get("lattice") == Lattice(65_536) else None
    report = check_density(small(shape, **settings), context=context, times=times, samples=300)
    assert "samples_follow_the_density" in report.passed
    assert "resampling_is_causal" in report.passed


def smooth_paths(n: int, length: int, seed: int) -> torch.Tensor:
    """Paths of a Gaussian process, squared-exponential kernel of length 3 with 1e-2 on its diagonal."""
    i = torch.arange(length, dtype=F64)
    kernel = (-0.5 * ((i[:, None] - i) / 3.0).square()).exp() + 1e-2 * torch.eye(length, dtype=F64)
    z = torch.randn(n, length, dtype=F64, generator=seeded(seed))
    return (z @ torch.linalg.cholesky(kernel).T).float()[:, :, None]


def test_training_on_smooth_paths_finds_their_smoothness():
    """Independent values of this variance would have 1.42 nats each; the paths have 0.12."""
    length, process = 16, VESDE.linear(1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CausalTransformer((length, 1), process, width=32, layers=2, heads=4, components=5)
    test = smooth_paths(500, length, 99)

    def nats(t: float) -> float:
        x = process.perturb(test, t, generator=seeded(5))
        return -float(model.log_prob(x, t).mean().detach()) / length

    before = [nats(t) for t in (0.0, 0.3)]
    objective = NCMLObjective(process)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for i in range(300):
        optimizer.zero_grad(set_to_none=True)
        objective(model, smooth_paths(64, length, i), generator=seeded(10_000 + i)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
    after = [nats(t) for t in (0.0, 0.3)]
    i = np.arange(length)
    kernel = np.exp(-0.5 * ((i[:, None] - i) / 3.0) ** 2) + 1e-2 * np.eye(length)
    entropies = [
        0.5 * (np.linalg.slogdet(kernel + t**2 * np.eye(length))[1] / length + math.log(2 * math.pi * math.e))
        for t in (0.0, 0.3)
    ]
    for start, end, entropy in zip(before, after, entropies, strict=True):
        assert start > 2.0
        assert entropy - 0.02 < end < entropy + 0.1
    assert entropies[0] == pytest.approx(0.117, abs=1e-3)


def test_noise_of_longer_sequences_has_their_length():
    model = small((4, 1)).extended(10)
    x = torch.zeros(2, 6, 1)
    assert model.resample(x, model.draw_noise(2)[:, :6]).shape == x.shape
    for noise in (model.draw_noise(2), model.draw_noise(3)[:, :6]):
        with pytest.raises(
            ArgumentError, match=r"noise: got shape .*; expected \(2, 6, 1, 3\), torch\.float32, for every"
        ):
            model.resample(x, noise)
