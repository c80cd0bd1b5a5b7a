"""The pixel network: exactly autoregressive, an exact density, and cached sampling equal to the slow one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ncml import VPSDE, Lattice, LevelNoise, NCMLObjective
from ncml.densities import NCPN
from ncml.densities.ncpn import blocks
from ncml.densities.ncpn.cache import CachedPass
from ncml.densities.ncpn.head import PixelHead
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.score import exact_divergence
from tests.problems import every_state, seeded

VP = VPSDE.at_noise(10 * Lattice(256).width)

SHAPES = {
    "rgb": ((3, 8, 8), {}),
    "gray, no attention": ((1, 4, 8), {"heads": 0}),
    "one resolution": ((3, 4, 4), {"resolutions": 1}),
    "three resolutions, classes": ((3, 8, 4), {"resolutions": 3, "classes": 3}),
    "three blocks": ((1, 8, 8), {"blocks": 3, "features": 8, "heads": 2}),
    "weight norm": ((3, 8, 8), {"weight_norm": True}),
}


def network(shape, dtype=torch.float64, **changes):
    """A tiny network with parameters far from their start, so that every path carries weight."""
    torch.manual_seed(0)
    density = NCPN.preset("tiny", shape, VP, **{"features": 16, **changes}).to(dtype)
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return density.eval()


def labels(density, n):
    return torch.tensor([2, -1] * n)[:n] if density.classes else None


def pixel_jacobian(density, x, t):
    """Which outputs depend on which pixels: ``J[i, j]`` is the largest derivative, pixels in order."""
    x = x.clone().requires_grad_()
    times = torch.full((len(x),), t, dtype=x.dtype)
    outputs = density.network(x, density._conditioning(times, labels(density, len(x))))
    weights = torch.randn(outputs.shape[-1], generator=seeded(1), dtype=x.dtype)
    rows = [
        torch.autograd.grad((outputs[:, i] @ weights).sum(), x, retain_graph=True)[0].flatten(2).abs().amax((0, 1))
        for i in range(outputs.shape[1])
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("shape", "changes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_depend_on_earlier_pixels_only(shape, changes, dtype):
    """The whole Jacobian: exactly zero on and above the diagonal, and nowhere zero just below it."""
    density = network(shape, dtype, **changes)
    x = density.sample(2, VP.T, labels(density, 2), generator=seeded(0))
    jacobian = pixel_jacobian(density, x, VP.T)
    assert float(jacobian.triu().abs().max()) == 0.0
    first_in_row = torch.arange(1, len(jacobian)) % shape[2] == 0  # whose neighbour is far away
    assert bool(((jacobian.diagonal(-1) > 0) | first_in_row).all())
    assert float((jacobian.tril(-1) > 0).double().mean()) > 0.4


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["small", "paper"])
def test_presets_are_autoregressive_at_several_positions(preset, autocast, classes):
    torch.manual_seed(0)
    density = NCPN.preset(preset, (3, 8, 8), VP, classes=classes).eval()
    x = (2 * torch.rand(1, 3, 8, 8, generator=seeded(0)) - 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        conditioning = density._conditioning(torch.tensor([0.01]), torch.tensor([1]) if classes else None)
        outputs = density.network(x, conditioning)
    for i in (0, 1, 8, 27, 36, 63):
        (gradient,) = torch.autograd.grad(outputs[:, i].float().sum(), x, retain_graph=True)
        gradient = gradient.flatten(2)
        assert float(gradient[:, :, i:].abs().max()) == 0.0
        assert i == 0 or float(gradient[:, :, i - 1].abs().max()) > 0.0


def leaky_window(density, monkeypatch):
    conv = density.network.level.horizontal.up[0].conv_in
    conv.padding = (1, 0, 0, 1)  # one column to the right


def leaky_first_layer(density, monkeypatch):
    density.network.first_left.padding = (1, 0, 0, 0)  # the pixel itself


def leaky_attention(density, monkeypatch):
    density.network.level.horizontal.up[0].attention[0].causal = False


def normalisation_over_space(density, monkeypatch):
    plain = blocks.GatedBlock.gate

    def gate(x, h):
        y = plain(x, h)
        return y if y.ndim == 2 else y - 0.01 * y.mean((1, 2), keepdim=True)

    monkeypatch.setattr(blocks.GatedBlock, "gate", staticmethod(gate))


@pytest.mark.parametrize("leak", [leaky_window, leaky_first_layer, leaky_attention, normalisation_over_space])
def test_planted_leaks_are_seen(leak, monkeypatch):
    density = network((1, 4, 4))
    x = density.sample(1, VP.T, generator=seeded(0))
    assert float(pixel_jacobian(density, x, VP.T).triu().abs().max()) == 0.0
    leak(density, monkeypatch)
    assert float(pixel_jacobian(density, x, VP.T).triu().abs().max()) > 0.0


@pytest.mark.parametrize(("shape", "changes"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_cached_samples_are_those_of_the_full_pass(shape, changes, t):
    density = network(shape, **changes)
    noise = density.draw_noise(3, generator=seeded(0))
    context = labels(density, 3)
    x = density.sample(3, t, context, noise=noise)
    again = density.resample(x, noise, t, context)
    assert float((x - again).abs().max()) < 1e-12
    assert bool(density.lattice.on_lattice(x).all()) == (t == 0.0)
    assert torch.equal(density.sample(3, t, context, noise=noise), x)  # nothing is left behind
    assert not any("cache" in key for key in density.state_dict())


def test_cached_outputs_in_float32_are_those_of_one_pass():
    density = network((3, 8, 8), torch.float32)
    noise = density.draw_noise(4, generator=seeded(0))
    x = density.sample(4, VP.T, noise=noise)
    assert float((x - density.resample(x, noise, VP.T)).abs().max()) < 1e-4


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_completion_keeps_what_is_known(rows):
    density = network((3, 8, 8))
    noise = density.draw_noise(2, generator=seeded(0))
    x = density.sample(2, 0.0, noise=noise)
    masked = x.clone()
    masked[:, :, rows:] = 0.3
    completed = density.complete(masked, rows, VP.T, noise=noise) if rows == 0 else None
    assert completed is None or torch.equal(completed, density.sample(2, VP.T, noise=noise))
    masked[:, :, rows:] = density.lattice.points(dtype=x.dtype)[7]
    assert torch.equal(density.complete(masked, rows, noise=noise), x)
    for value in (0.3, math.nan):  # what lies below the kept rows does not matter
        masked[:, :, rows:] = value
        assert torch.equal(density.complete(masked, rows, noise=noise), x)
    for value, message in ((0.3, r"^x: 24 of .* lattice points"), (math.nan, r"^x: got 24 non-finite values")):
        masked = x.clone()
        masked[0, :, :1] = value
        for kept in range(1, rows + 1):
            with pytest.raises(ArgumentError, match=message):
                density.complete(masked, kept, noise=noise)


@pytest.mark.parametrize(("shape", "changes"), SHAPES.values(), ids=SHAPES)
def test_known_rows_are_taken_in_at_once(shape, changes):
    """Against passing over them pixel by pixel, and whatever lies below them."""
    density = network(shape, **changes)
    x = torch.randn(2, *shape, generator=seeded(0), dtype=torch.float64)
    e = density._conditioning(torch.full((2,), VP.T, dtype=torch.float64), labels(density, 2))

    def outputs_below(rows):
        """Outputs of the rows that are not among the first, which are taken in at once."""
        image = x.clone()
        image[:, :, rows:] = math.nan
        cache = CachedPass(density.network, image, e)
        cache.fill(rows)
        image.copy_(x)
        result = []
        for r in range(rows, shape[1]):
            cache.start_row(r)
            result += [cache.outputs(r, c) for c in range(shape[2])]
        return torch.stack(result)

    with torch.no_grad():
        every = outputs_below(0)  # pixel by pixel
        for rows in range(1, shape[1]):
            below = every[rows * shape[2] :]
            assert torch.allclose(outputs_below(rows), below, rtol=0.0, atol=1e-12)


def test_completion_costs_the_arithmetic_of_one_pass():
    density = network((3, 8, 8), torch.float32, heads=0)
    x = density.sample(2)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        density.network(x, density._conditioning(torch.zeros(2), None))
    with FlopCounterMode(display=False) as completion:
        density.complete(x, 4)
    assert completion.get_total_flops() <= 1.1 * one.get_total_flops()


def test_cached_sampling_costs_one_pass():
    """Total FLOPs of cached sampling against one forward pass (performance target: 1.05)."""
    density = network((3, 4, 8), torch.float32, heads=0)
    x = torch.zeros(2, 3, 4, 8)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        density.network(x, density._conditioning(torch.zeros(2), None))
    with FlopCounterMode(display=False) as cached:
        density.sample(2)
    assert cached.get_total_flops() <= 1.05 * one.get_total_flops()


@pytest.mark.parametrize("padding", [blocks.VERTICAL[1], blocks.HORIZONTAL[1]], ids=["vertical", "horizontal"])
def test_padded_concat_elu_is_the_plain_one(padding):
    top, bottom, left, right = padding
    x = torch.randn(2, 3, 2, 4, generator=seeded(0), dtype=torch.float64).requires_grad_()
    plain = F.pad(F.elu(torch.cat([x, -x], dim=-1)), (0, 0, left, right, top, bottom))
    assert torch.allclose(blocks.padded_concat_elu(x, padding), plain, rtol=0.0, atol=1e-15)
    assert torch.autograd.gradcheck(blocks.padded_concat_elu, (x, padding))
    assert torch.autograd.gradgradcheck(blocks.padded_concat_elu, (x, padding))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_torch(causal, monkeypatch):
    lines = torch.randn(3, 5, 2, 4, generator=seeded(0), dtype=torch.float64).requires_grad_()
    q, k, v = lines.transpose(2, 3)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
    for lines_at_once in (1, 2, 5):
        monkeypatch.setattr(blocks, "CACHED_WEIGHTS", 16 * lines_at_once)
        assert torch.allclose(blocks.attend(lines, causal), plain, rtol=0.0, atol=1e-14)
        assert torch.autograd.gradcheck(blocks.attend, (lines, causal))
    assert torch.autograd.gradgradcheck(blocks.attend, (lines, causal))


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_same_for_a_gpu(axis, causal):
    torch.manual_seed(0)
    attention = blocks.AxialAttention(8, 2, axis, causal).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    assert torch.allclose(attention.attend(x), attention.fused(x), rtol=0.0, atol=1e-14)


def gated_block(dtype=torch.float32, height=4, width=6):
    """A block of the horizontal stream with attention, and what enters it."""
    torch.manual_seed(0)
    attention = [blocks.AxialAttention(8, 2, axis, True) for axis in ("row", "column")]
    block = blocks.GatedBlock(8, *blocks.HORIZONTAL, 2, 6, 0.0, attention).to(dtype)
    x, above, left = torch.randn(3, 2, height, width, 8, dtype=dtype)
    active = block.activate(x)
    skips = [blocks.padded_concat_elu(above, blocks.VERTICAL[1]), block.activate(left)]
    return block, (x.requires_grad_(), active.requires_grad_(), skips, torch.randn(2, 6, dtype=dtype))


def values_and_gradients(block, inputs):
    x, active = block(*inputs)
    loss = x.float().square().sum() + active.float().square().sum()
    return [x, active, *torch.autograd.grad(loss, [*inputs[:2], *block.parameters()])]


def test_a_compiled_block_computes_the_same():
    block, inputs = gated_block(torch.float64)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
    for value, expected in zip(
        values_and_gradients(compiled, inputs), values_and_gradients(block, inputs), strict=True
    ):
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_a_block_in_bfloat16_is_close():
    block, inputs = gated_block()
    with torch.autocast("cpu", torch.bfloat16):
        low = values_and_gradients(block, inputs)
    for value, expected in zip(low, values_and_gradients(block, inputs), strict=True):
        assert float(((value - expected).norm() / expected.norm()).detach()) < 0.02


def test_a_block_keeps_few_activations():
    """In units of its features: two before each convolution and the gate, and two each for skips and for what comes."""
    block, inputs = gated_block(height=24, width=24)
    block.attention = torch.nn.ModuleList()
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(*inputs)
    units = sum(storage.nbytes() for storage in kept.values()) / (4 * inputs[0].numel())
    assert units < 13.5  # 12, and the padding


def test_masses_sum_to_one_and_score_differentiates_the_density():
    density = network((1, 2, 2), resolutions=2, lattice=Lattice(3))
    states = every_state(density.lattice, 1, 2, 2)
    log_mass = density.log_prob(states, 0.0).detach() + 4 * math.log(density.lattice.width)
    assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    x = density.sample(2, VP.T, generator=seeded(0))
    score = density.score(x, VP.T)
    step = 1e-6 * torch.eye(4, dtype=torch.float64).reshape(4, 1, 1, 2, 2)
    for i in range(4):
        up, down = (density.log_density(x + s * step[i], VP.T).detach() for s in (1, -1))
        assert torch.allclose((up - down) / 2e-6, score.flatten(1)[:, i], rtol=1e-6, atol=1e-6)


def test_score_can_be_differentiated_again():
    density = network((1, 2, 4))
    x = density.sample(2, VP.T, generator=seeded(0))
    exact = exact_divergence(density, x, VP.T)
    step = 1e-5 * torch.eye(8, dtype=torch.float64).reshape(8, 1, 1, 2, 4)
    numeric = sum(
        (density.score(x + s, VP.T) - density.score(x - s, VP.T)).flatten(1)[:, i] / 2e-5 for i, s in enumerate(step)
    )
    assert torch.allclose(exact, numeric, rtol=1e-5)


def head_outputs(head, n=4):
    return torch.randn(n, 1, head.outputs, generator=seeded(0), dtype=torch.float64)


def test_colour_head_sums_to_one_over_all_colours():
    """With coupled channels: 24^3 colours of a lattice of 24 levels."""
    head = PixelHead(3, 3, Lattice(24))
    points = head.lattice.points(dtype=torch.float64)
    colours = torch.cartesian_prod(points, points, points)
    for row in head_outputs(head):
        outputs = row.expand(1, len(colours), head.outputs)
        log_p = head.log_prob(outputs, colours[None], torch.tensor([True]))
        assert float((log_p + 3 * math.log(head.lattice.width)).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_colour_head_is_sampled_as_it_is_evaluated():
    """Counts of all colours of a small lattice against their masses; false-alarm rate 1e-9 (z = 6.11)."""
    head = PixelHead(3, 2, Lattice(3))
    points = head.lattice.points(dtype=torch.float64)
    colours = torch.cartesian_prod(points, points, points)
    outputs, n = head_outputs(head, 1), 100_000
    mass = (head.log_prob(outputs.expand(1, 27, -1), colours[None], torch.tensor([True])) + 3 * math.log(1.0)).exp()
    noise = head.draw_noise(n, 1, torch.float64, torch.device("cpu"), seeded(0))
    drawn = head.sample(outputs.expand(n, 1, -1), noise, torch.ones(n, dtype=torch.bool))[:, 0]
    index = (head.lattice.nearest(drawn) * torch.tensor([9, 3, 1])).sum(1)
    counts = torch.bincount(index, minlength=27).double()
    z = (counts - n * mass[0]) / (n * mass[0] * (1 - mass[0])).sqrt()
    assert float(z.abs().max()) < 6.11


def test_gray_head_is_the_one_dimensional_head():
    head = PixelHead(1, 4, Lattice(16))
    outputs, x = head_outputs(head), 2 * torch.rand(4, 1, 1, dtype=torch.float64) - 1
    plain = head.logistic.log_prob(outputs, x[..., 0])
    assert torch.allclose(head.log_prob(outputs, x), plain, rtol=1e-14, atol=1e-14)


def test_colour_head_in_float32_loses_nothing_that_counts():
    """Bits per dimension against float64, at scales from a part of a level to all levels."""
    head, generator = PixelHead(3, 10, Lattice(256)), seeded(0)
    outputs = torch.randn(4, 256, head.outputs, generator=generator)
    outputs[..., 40:70] = torch.linspace(-8.0, 3.0, 30)
    x = head.lattice.quantize(2 * torch.rand(4, 256, 3, generator=generator) - 1)
    x[0], x[1] = -1.0, 1.0
    edges = torch.tensor([True, True, True, False])
    low = head.log_prob(outputs, x, edges).double().sum(1)
    high = head.log_prob(outputs.double(), head.lattice.quantize(x.double()), edges).sum(1)
    bits = (low - high).abs() / (768 * math.log(2.0))
    assert float(bits.max()) < 2e-6


@pytest.mark.parametrize("edges", [None, torch.tensor([True, False])])
def test_colour_head_is_finite_far_out(edges):
    head = PixelHead(3, 4, Lattice(256))
    far = torch.tensor([-1e4, -1e3, -1.0, 0.0, 1.0, 1e3, 1e4])
    x = torch.cartesian_prod(far, far, far).expand(2, -1, -1).clone().requires_grad_()
    for raw in torch.linspace(-20.0, 80.0, 11):
        outputs = torch.randn(2, x.shape[1], head.outputs, generator=seeded(0))
        outputs[..., 16:28] = raw
        outputs.requires_grad_()
        log_p = head.log_prob(outputs, x, edges)
        gradients = torch.autograd.grad(log_p.sum(), (outputs, x))
        assert all(bool(z.isfinite().all()) for z in (log_p, *gradients))


def test_inverse_scales_are_those_of_the_log_scales():
    logistic, raw = PixelHead(3, 4, Lattice(256)).logistic, torch.linspace(-60.0, 60.0, 241, dtype=torch.float64)
    assert torch.allclose(logistic.inverse_scales(raw), torch.exp(-logistic.log_scales(raw)), rtol=1e-13)


def test_paper_preset_has_73_million_parameters():
    with torch.device("meta"):
        density = NCPN.preset("paper", (3, 32, 32), VP)
    assert sum(p.numel() for p in density.parameters()) == 73_827_140


def test_training_lowers_the_loss_with_and_without_labels():
    density = network((1, 4, 4), torch.float32, classes=2, lattice=Lattice(4)).train()
    process_loss = NCMLObjective(VP)
    generator = seeded(0)
    y = torch.randint(2, (64,), generator=generator)
    x = (2.0 * y - 1.0)[:, None, None, None].expand(64, 1, 4, 4).contiguous()  # black or white, by label
    optimizer = torch.optim.Adam(density.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = process_loss(density, x, y, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5]) - 25.0
    right, wrong = (density.log_prob(x[:8], 0.0, label) for label in (y[:8], 1 - y[:8]))
    assert bool((right > wrong).all())


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((2, 8, 8), {}, r"^image_shape: got"),
        ((3, 9, 8), {}, "divisible by 2"),
        ((3, 8), {}, r"^image_shape: got"),
        ((3, 8, 8), {"heads": 3}, r"^heads: got"),
        ((3, 8, 8), {"lattice": Lattice(4097)}, "4097 levels"),
        ((3, 8, 8), {"dropout": 1.5}, r"^dropout: got"),
        ((3, 8, 8), {"blocks": 0}, r"^blocks: got"),
    ],
)
def test_sizes_that_do_not_fit(shape, changes, message):
    with pytest.raises(ArgumentError, match=message):
        NCPN.preset("tiny", shape, VP, **changes)


def test_the_finest_lattice_has_4096_levels():
    assert NCPN.preset("tiny", (1, 4, 4), VP, lattice=Lattice(4096)).lattice == Lattice(4096)


def test_wrong_calls():
    density = network((1, 4, 4), classes=2)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"^context: got"):
        density.log_prob(x, VP.T)
    with pytest.raises(ArgumentError, match="outside -1"):
        density.log_prob(x, VP.T, torch.tensor([0, 2]))
    for bad in (torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(ArgumentTypeError, match="integer labels"):
            density.log_prob(x, VP.T, bad)
    with pytest.raises(ArgumentError, match=r"^noise: got"):
        density.sample(2, 0.0, torch.tensor([0, 1]), noise=torch.zeros(2, 16, 2, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"^rows: got"):
        density.complete(x, 5, VP.T, torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"^name: got"):
        NCPN.preset("huge", (1, 4, 4), VP)
    assert density.sample(0, 0.0, torch.zeros(0, dtype=torch.long)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_dtype_are_the_same(dtype):
    density, x = network((1, 4, 4), classes=3), torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    label = torch.tensor([2, 0])
    assert torch.equal(density.log_prob(x, VP.T, label.to(dtype)), density.log_prob(x, VP.T, label))
    density.train()  # some labels are dropped
    assert density.log_prob(x, VP.T, label.to(dtype)).shape == (2,)


def test_level_noise_as_the_process():
    process = LevelNoise(4)
    torch.manual_seed(0)
    density = NCPN.preset("tiny", (1, 2, 2), process, lattice=Lattice(4), features=16).double().eval()
    states = torch.cartesian_prod(*[Lattice(4).points(dtype=torch.float64)] * 4).reshape(-1, 1, 2, 2)
    for pi in (0.0, 0.5):
        mass = (density.log_prob(states, pi).detach() + 4 * math.log(Lattice(4).width)).exp()
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-12)
