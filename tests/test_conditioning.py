"""What the networks see: noise features, labels and contexts, input scaling, and the mask behind them."""

from __future__ import annotations

import math

import pytest
import torch

from ncml import VESDE, VPSDE, GaussianProcess, LevelNoise, SubVPSDE
from ncml.densities import MAF
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.nn import Conditioning, MaskedMLP, NoiseFeatures, NoiseScaling
from ncml.nn.conditioning import label_rows

F64 = torch.float64
PROCESSES = [VPSDE.at_noise(0.2), SubVPSDE.at_noise(0.2), VESDE.at_noise(0.2), VESDE.linear(0.2)]
by_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


# Noise features.


@by_process
def test_features_are_the_stated_function_of_sigma(process):
    sigma = torch.tensor([0.0, 0.002, 0.05, 0.2], dtype=F64)  # sigma_T / 100 = 0.002
    features = NoiseFeatures(process, 5)(process.time_at(sigma))
    v = [0.0, math.log(2.0) / math.log(101.0), math.log(26.0) / math.log(101.0), 1.0]
    assert features[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert features[:, 1].tolist() == pytest.approx(v, abs=1e-9)
    for k in (1, 2, 3):
        assert features[:, 1 + k].tolist() == pytest.approx([math.cos(k * math.pi * u) for u in v], abs=1e-7)


def test_features_of_a_process_without_sigma_use_t_over_T():
    features = NoiseFeatures(LevelNoise(17, T=0.5), 2)(torch.tensor([0.0, 0.125, 0.5]))
    assert features.tolist() == [[1.0, 0.0], [0.0, 0.25], [0.0, 1.0]]


@by_process
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_features_are_finite_in_range_and_tell_the_smallest_time_from_zero(process, dtype):
    tiny = torch.finfo(dtype).tiny
    t = torch.tensor([0.0, tiny, 1e-9 * process.T, 0.5 * process.T, process.T], dtype=dtype)
    features = NoiseFeatures(process)(t)
    assert features.shape == (5, 16)
    assert features.dtype == dtype
    assert bool(features.isfinite().all())
    assert bool((features.abs() <= 1.0 + 1e-6).all())
    assert features[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert bool((features[:, 1].diff() >= 0).all())


def test_features_work_for_a_process_made_of_two_functions():
    cosine = GaussianProcess(torch.cos, torch.sin, T=0.3)
    v = NoiseFeatures(cosine, 2)(torch.tensor([0.0, 0.3], dtype=F64))[:, 1]
    assert v.tolist() == pytest.approx([0.0, 1.0])


# Labels and contexts.


def test_without_context_the_features_are_those_of_the_noise():
    process, t = PROCESSES[0], torch.tensor([0.0, 0.01])
    conditioning = Conditioning(process, 6)
    assert conditioning.features == 6
    assert torch.equal(conditioning(t), NoiseFeatures(process, 6)(t))
    assert list(conditioning.parameters()) == []


def test_a_floating_context_is_appended():
    conditioning = Conditioning(PROCESSES[0], 6, context_features=2)
    context = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    features = conditioning(torch.zeros(2), context)
    assert conditioning.features == features.shape[1] == 8
    assert torch.equal(features[:, 6:], context)


def test_labels_select_rows_and_minus_one_is_a_row_of_its_own():
    conditioning = Conditioning(PROCESSES[0], 4, classes=3)
    assert conditioning.labels is not None
    weight = conditioning.labels.weight
    assert weight.shape == (4, 4)  # three classes and the null label
    features = conditioning(torch.zeros(4), torch.tensor([0, 2, -1, 1]))
    assert torch.equal(features[:, 4:], weight[[0, 2, 3, 1]])
    features[2, 4:].sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum(1).tolist() == [0.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_are_the_same(dtype):
    conditioning = Conditioning(PROCESSES[0], 4, classes=3)
    labels = torch.tensor([-1, 0, 2])
    assert torch.equal(conditioning(torch.zeros(3), labels.to(dtype)), conditioning(torch.zeros(3), labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64])
def test_rows_of_labels(dtype):
    """One function for every density: int64 rows, the null label last, whatever the dtype can hold."""
    rows = label_rows(torch.tensor([0, 100, 126]).to(dtype), 127)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [0, 100, 126]
    assert label_rows(torch.tensor([-1, 2], dtype=torch.int8), 127).tolist() == [127, 2]
    for bad in (torch.tensor([True]), torch.zeros(1), torch.zeros(1, 1, dtype=dtype)):
        with pytest.raises(ArgumentTypeError, match="expected integer labels"):
            label_rows(bad, 127)
    with pytest.raises(ArgumentError, match=r"outside -1 .. 2"):
        label_rows(torch.tensor([0, 3], dtype=dtype), 3)


def test_a_context_is_not_cast_silently():
    """Half precision is raised, as x is; another dtype than the density's is refused."""
    conditioning, wide = Conditioning(PROCESSES[0], 6, context_features=2), torch.ones(1, 2, dtype=F64)
    assert torch.equal(conditioning(torch.zeros(1), wide.bfloat16()), conditioning(torch.zeros(1), wide.float()))
    assert conditioning(torch.zeros(1, dtype=F64), wide).dtype == F64
    with pytest.raises(ArgumentTypeError, match=r"^context: got"):
        conditioning(torch.zeros(1), wide)
    with pytest.raises(ArgumentTypeError, match=r"^context: got"):
        MAF((2,), PROCESSES[0], context_features=2).double().sample(1, 0.01, wide.float())


def test_an_empty_batch_keeps_its_width():
    for conditioning, context in [
        (Conditioning(PROCESSES[0], 4), None),
        (Conditioning(PROCESSES[0], 4, context_features=2), torch.empty(0, 2)),
        (Conditioning(PROCESSES[0], 4, classes=3), torch.empty(0, dtype=torch.long)),
    ]:
        assert conditioning(torch.empty(0), context).shape == (0, conditioning.features)


# Input scaling.


@by_process
def test_scaling_gives_unit_variance_and_the_log_determinant_of_a_scaling(process):
    """Var x_t = alpha^2 s^2 + sigma^2 for data of standard deviation s, so c^2 Var x_t = 1."""
    scaling, t = NoiseScaling(process, 0.3), torch.linspace(0.0, process.T, 7, dtype=F64)
    x = torch.ones(7, 2, 3, dtype=F64)
    y, log_det = scaling(x, t)
    factor = y[:, 0, 0]
    variance = (process.alpha(t) * 0.3) ** 2 + process.sigma(t) ** 2
    assert (factor**2 * variance).tolist() == pytest.approx([1.0] * 7, rel=1e-12)
    assert log_det.tolist() == pytest.approx((6 * factor.log()).tolist(), rel=1e-12)
    assert torch.equal(y, factor[:, None, None].expand(7, 2, 3))
    assert (scaling.inverse(y, t) - x).abs().max() < 1e-14


def test_scaling_of_an_empty_batch():
    y, log_det = NoiseScaling(PROCESSES[0], 1.0)(torch.empty(0, 2), torch.empty(0))
    assert y.shape == (0, 2)
    assert log_det.shape == (0,)


def test_without_a_standard_deviation_data_of_any_process_stay_as_they_are():
    scaling, t = NoiseScaling(LevelNoise(17), None), torch.linspace(0.0, 1.0, 3, dtype=F64)
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    y, log_det = scaling(x, t)
    assert torch.equal(y, x)
    assert torch.equal(scaling.inverse(x, t), x)
    assert log_det.tolist() == scaling.log_scale(t).tolist() == [0.0] * 3


# The masked network.


def _net(inputs, hidden):
    torch.manual_seed(0)
    net = MaskedMLP(inputs, 2, hidden, conditioning=3).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, dtype=F64))
    return net


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


SIZES = [(1, (3,)), (2, (1,)), (4, (16, 16)), (5, (3, 7, 2)), (7, (50,)), (6, (6, 6, 6))]


@pytest.mark.parametrize(("inputs", "hidden"), SIZES, ids=str)
def test_jacobian_is_exactly_strictly_lower_triangular(inputs, hidden):
    net, c = _net(inputs, hidden), torch.randn(1, 3, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x[None], c)[0], torch.randn(inputs, dtype=F64))
    later = torch.ones(inputs, inputs, dtype=torch.bool).triu()
    assert bool((jacobian.abs().sum(1)[later] == 0.0).all())
    if min(hidden) >= inputs:  # and every earlier input is used
        assert bool((jacobian.abs().sum(1)[~later] > 0.0).all())


@pytest.mark.parametrize(("inputs", "hidden"), SIZES, ids=str)
def test_every_output_sees_the_conditioning(inputs, hidden):
    net, x = _net(inputs, hidden), torch.randn(1, inputs, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda c: net(x, c[None])[0], torch.randn(3, dtype=F64))
    assert bool((jacobian.abs().sum(1) > 0.0).all())


@pytest.mark.parametrize(("inputs", "hidden"), SIZES, ids=str)
def test_the_incremental_pass_gives_the_outputs_of_the_full_pass(inputs, hidden):
    net = _net(inputs, hidden)
    x, c = torch.randn(9, inputs, dtype=F64), torch.randn(9, 3, dtype=F64)
    with torch.no_grad():
        full, one_by_one = net(x, c), net.incremental(c)
        for i in range(inputs):
            assert (one_by_one.outputs().t() - full[:, i]).abs().max() < 1e-11 * full.abs().max()
            one_by_one.push(x[:, i])
        assert torch.equal(one_by_one.x.t(), x)


def test_no_write_to_the_weights_can_undo_the_mask():
    net, x, c = _net(4, (8, 8)), torch.randn(4, dtype=F64), torch.randn(1, 3, dtype=F64)
    state = {k: torch.randn_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0, weight_decay=0.1)
    net(x[None], c).square().sum().backward()
    optimizer.step()
    net.out.weight.data.add_(1.0)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None], c)[0], x)
    assert bool((jacobian.abs().sum(1)[torch.ones(4, 4, dtype=torch.bool).triu()] == 0.0).all())
    assert set(state) == {k for k, _ in net.named_parameters()}  # masks follow from the sizes and are not saved
