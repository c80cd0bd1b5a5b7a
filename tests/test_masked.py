"""Masked networks: the masks hold whatever is done to the weights, and one incremental pass is a full pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ncml import VPSDE, Lattice
from ncml.densities import MADE, MAF
from ncml.errors import ArgumentError
from ncml.nn.masked import MaskedMLP
from tests.problems import seeded

F64 = torch.float64
VP = VPSDE.at_noise(0.1)
CONDITIONING = 3

# Inputs and hidden widths: wider and narrower than the input, uneven, of one unit, of one input.
SIZES = [
    (6, (12,)),
    (6, (9, 7)),
    (6, (16, 8, 11)),
    (6, (2, 3)),
    (5, (1,)),
    (7, (1, 8)),
    (4, (3, 1, 3)),
    (1, (5, 4)),
    (2, (2,)),
]
sizes = pytest.mark.parametrize(("inputs", "hidden"), SIZES, ids=str)


def network(
    inputs: int = 6, hidden: tuple[int, ...] = (9, 7), seed: int = 0, linear: tuple[int, ...] = (1,)
) -> MaskedMLP:
    """A network in float64 whose parameters are all far from zero, masked entries included."""
    net = MaskedMLP(inputs, 2, hidden, CONDITIONING, linear=linear).double()
    randomise(net, seed)
    return net


def randomise(net: MaskedMLP, seed: int) -> None:
    """Normal numbers in every parameter, written behind autograd's back."""
    generator = seeded(seed)
    for p in net.parameters():
        p.data.normal_(generator=generator)


def jacobian(net: MaskedMLP) -> Tensor:
    """How much output i depends on input j, ``(inputs, inputs)``, at one point: exactly 0 if it does not."""
    dtype = net.conditioner.weight.dtype
    x, c = (torch.randn(1, n, dtype=F64, generator=seeded(n)).to(dtype) for n in (net.inputs, CONDITIONING))
    rows = torch.autograd.functional.jacobian(lambda x: net(x, c)[0], x)
    return rows[:, :, 0].abs().amax(1)


def is_causal(net: MaskedMLP) -> bool:
    """Whether no output depends on its own input or a later one."""
    return not bool(jacobian(net).triu().any())


def train(net: MaskedMLP) -> MaskedMLP:
    """A few steps of weight decay and momentum, which move every stored weight, masked or not."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        x = torch.randn(8, net.inputs, dtype=F64, generator=seeded(step))
        optimizer.zero_grad()
        net(x, torch.ones(8, CONDITIONING, dtype=F64)).square().sum().backward()
        optimizer.step()
    return net


def load_unmasked(net: MaskedMLP) -> MaskedMLP:
    """Weights of a checkpoint that never knew of a mask."""
    generator = seeded(9)
    state = {name: torch.randn(p.shape, dtype=F64, generator=generator) for name, p in net.state_dict().items()}
    assert net.load_state_dict(state).missing_keys == []
    return net


def write_to_data(net: MaskedMLP) -> MaskedMLP:
    """Write around autograd and its version counters, after a pass that a cache could have kept."""
    jacobian(net)
    randomise(net, seed=5)
    return net


def replace_data(net: MaskedMLP) -> MaskedMLP:
    """Give every parameter new storage."""
    jacobian(net)
    for p in net.parameters():
        p.data = torch.full_like(p, 0.3)
    return net


CHANGES = {
    "built": lambda net: net,
    "optimizer steps": train,
    "load_state_dict": load_unmasked,
    "to float32": lambda net: net.to(torch.float32),
    "to float32 and back": lambda net: net.to(torch.float32).to(F64),
    "deepcopy": copy.deepcopy,
    "trained deepcopy": lambda net: train(copy.deepcopy(train(net))),
    "write to .data": write_to_data,
    "new .data": replace_data,
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


@changes
@sizes
def test_no_output_depends_on_its_own_input_or_a_later_one(inputs, hidden, change):
    assert is_causal(change(network(inputs, hidden)))


@changes
def test_every_output_depends_on_every_input_before_it(change):
    """Where the layers are wide enough: masks that hide too much would pass the test above."""
    below = jacobian(change(network(6, (12, 12), linear=())))[torch.ones(6, 6).tril(-1).bool()]
    assert bool((below > 0.0).all())


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_lost_mask_is_noticed(layer):
    net = network(6, (12, 12))
    [*net.layers, net.out, net.linear][layer].mask.fill_(1.0)
    assert not is_causal(net)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_one_leaking_weight_is_noticed(layer):
    """The last unit (or input) seen by the first row that must not see it."""
    net = network(6, (12, 12))
    mask = [*net.layers, net.out, net.linear][layer].mask
    assert mask[0, -1] == 0.0
    mask[0, -1] = 1.0
    assert not is_causal(net)


def test_hidden_weights_get_no_gradient():
    """So that norms, clipping and momentum see only the weights that are used."""
    net = network()
    net(torch.ones(2, 6, dtype=F64), torch.ones(2, CONDITIONING, dtype=F64)).square().sum().backward()
    for layer in (*net.layers, net.out, net.linear):
        assert bool((layer.weight.grad[layer.mask == 0.0] == 0.0).all())
        assert bool((layer.weight.grad[layer.mask == 1.0] != 0.0).any())


def test_masks_are_not_part_of_the_state():
    """A checkpoint cannot bring another mask along."""
    assert not any("mask" in name for name in network().state_dict())


def test_the_linear_term_is_that_of_its_outputs_alone():
    """All the same; nothing of it is dropped, and inputs far out count as 5."""
    net = MaskedMLP(4, 3, (8,), CONDITIONING, dropout=0.9, linear=(0, 2)).double()
    with torch.no_grad():
        for p in net.out.parameters():
            p.zero_()
        net.linear.weight.copy_(torch.arange(16.0).view(4, 4))
    x = torch.randn(6, 4, dtype=F64, generator=seeded(0))
    y = x / (1 + (x / 5) ** 4) ** 0.25
    x[0], y[0] = 1e30, 5.0
    x[1], y[1] = -1e300, -5.0
    terms = [0 * y[:, 0], 4 * y[:, 0], 8 * y[:, 0] + 9 * y[:, 1], 12 * y[:, 0] + 13 * y[:, 1] + 14 * y[:, 2]]
    outputs = net(x, torch.ones(6, CONDITIONING, dtype=F64))
    for output, factor in enumerate((1.0, 0.0, 1.0)):
        torch.testing.assert_close(outputs[:, :, output], factor * torch.stack(terms, 1), rtol=1e-12, atol=1e-12)


@sizes
def test_conditioning_reaches_the_first_output(inputs, hidden):
    net = network(inputs, hidden)
    x = torch.zeros(1, inputs, dtype=F64)
    one, two = (net(x, torch.full((1, CONDITIONING), c, dtype=F64))[0, 0] for c in (0.0, 1.0))
    assert not bool((one == two).any())


@changes
@sizes
def test_incremental_outputs_are_those_of_a_full_pass(inputs, hidden, change):
    net = change(network(inputs, hidden))
    dtype = net.conditioner.weight.dtype
    x, c = (torch.randn(5, n, dtype=F64, generator=seeded(n)).to(dtype) for n in (inputs, CONDITIONING))
    full, incremental = net(x, c).detach(), net.incremental(c)
    for i in range(inputs):
        outputs = incremental.outputs()
        assert outputs.shape == (2, 5)
        torch.testing.assert_close(outputs.t(), full[:, i], **({"rtol": 1e-12, "atol": 1e-12} if dtype == F64 else {}))
        incremental.push(x[:, i])
    assert torch.equal(incremental.x.t(), x)


def test_incremental_passes_do_not_share_state():
    net = network()
    c = torch.randn(2, CONDITIONING, dtype=F64, generator=seeded(0))
    first, second = net.incremental(c), net.incremental(c)
    first.push(torch.ones(2, dtype=F64))
    assert torch.equal(second.outputs(), net.incremental(c).outputs())
    assert not torch.equal(first.outputs(), second.outputs())


def test_an_empty_batch_passes():
    net = network()
    empty = torch.empty(0, CONDITIONING, dtype=F64)
    assert net(torch.empty(0, 6, dtype=F64), empty).shape == (0, 6, 2)
    assert net.incremental(empty).outputs().shape == (2, 0)


def flops(function) -> int:
    """Floating point operations of the matrix products of a call."""

    def product(_, a, b, *args, **kwargs) -> int:
        return 2 * a[0] * a[1] * b[1]

    # In-place products are missing from the counter's own list.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product}) as counter:
        function()
    return counter.get_total_flops()


DENSITIES = {
    "made": lambda: MADE((64,), VP, lattice=Lattice(17), hidden=(128, 96), components=4),
    "made, narrow": lambda: MADE((64,), VP, hidden=(40, 40), components=2),
    "maf": lambda: MAF((64,), VP, transforms=3, hidden=(128, 128)),
}


@pytest.mark.parametrize("build", DENSITIES.values(), ids=DENSITIES.keys())
def test_sampling_costs_the_arithmetic_of_one_forward_pass(build):
    """Each weight that a mask leaves is used exactly once per sample, D passes would use it D times."""
    density, n = build(), 4
    nets = density.nets if isinstance(density, MAF) else [density.net]
    weights = sum(int(layer.mask.sum()) for net in nets for layer in (*net.layers, net.out))
    weights += sum(net.conditioner.weight.numel() for net in nets)
    sampling = flops(lambda: density.sample(n, 0.01, generator=seeded(0)))
    assert sampling == 2 * n * weights
    assert sampling <= 1.1 * flops(lambda: density.log_prob(torch.zeros(n, 64), 0.01))


@pytest.mark.parametrize(
    ("sizes", "name"), [((0, 2, (4,)), "inputs"), ((2, 0, (4,)), "outputs"), ((2, 2, (0,)), "hidden")]
)
def test_sizes_must_be_positive(sizes, name):
    with pytest.raises(ArgumentError, match=name):
        MaskedMLP(*sizes, conditioning=1)


def test_a_hidden_layer_is_needed():
    with pytest.raises(ArgumentError, match="hidden layers"):
        MaskedMLP(2, 2, (), conditioning=1)
