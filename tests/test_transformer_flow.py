"""The transformer flow: its Jacobian, its inverse, what its first patch sees, guidance, and published weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ncml import VESDE, VPSDE, Lattice, NCMLObjective
from ncml.densities import FlowGuidance, TransformerFlow, load_tarflow
from ncml.densities.transformer_flow import TransformerFlowSettings
from ncml.errors import ArgumentError, CheckpointError, UnsupportedError
from ncml.evaluation import bits_per_dim
from ncml.nn import LayerNorm
from ncml.objective import AtZero
from ncml.sampling import Tweedie
from ncml.score import sliced_score_matching
from tests.problems import log_normal, seeded, shaken

F64 = torch.float64
VP = VPSDE.at_noise(0.2)
SMALL = {"patch": 1, "width": 16, "blocks": 2, "layers": 2, "heads": 2, "noise_features": 6}


def small(event_shape, process=VP, *, seed=0, **settings) -> TransformerFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerFlow(event_shape, process, **{**SMALL, **settings})


def strong(event_shape, process=VP, *, seed=0, gain=0.3, **settings) -> TransformerFlow:
    """A flow in float64 that is far from the identity, and whose parameters depend on all that they may."""
    return shaken(small(event_shape, process, seed=seed, **settings), gain, seed)


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=seeded(seed))


def parameters_at(block, x, features, i) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-scale and mean of patch i, from the block as a function: it is affine in its own patch."""
    ends = []
    for value in (0.0, 1.0):
        x = x.clone()
        x[:, i] = value
        ends.append(block(x, features)[0][:, i])
    slope = ends[1] - ends[0]
    return -slope.log(), -ends[0] / slope


def inverted(block, z, features, guide=None) -> torch.Tensor:
    """The inverse of a block by whole passes, a patch after the other."""
    x = torch.zeros_like(z)
    for i in range(z.shape[1]):
        parts = [parameters_at(block, x, rows, i) for rows in features.chunk(1 if guide is None else 2)]
        log_scale, mean = (torch.cat(values) for values in zip(*parts, strict=True))
        scale, mean = (log_scale.exp(), mean) if guide is None else guide(log_scale, mean, i / (z.shape[1] - 1))
        x[:, i] = z[:, i] * scale + mean
    return x


cases = pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((2, 1), {}),
        ((8, 1), {"patch": 4, "max_scale": None}),
        ((6, 3), {"patch": 2, "blocks": 3, "layers": [2, 1, 1]}),
        ((1, 4, 6), {"patch": 2, "blocks": 1}),
        ((3, 4, 4), {"patch": 2, "data_std": 0.5, "blocks": 4, "layers": 1}),
    ],
    ids=["two", "stretches", "odd", "one-block", "images"],
)


# The Jacobian.


@cases
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_a_block_is_causal_over_patches_and_diagonal_within_one(shape, settings, t):
    flow = strong(shape, **settings)
    features = flow._features(torch.tensor([t], dtype=F64), None)
    for k, block in enumerate(flow.blocks):
        x = normal(1, flow.patches.length, flow.patches.size, seed=k)
        jacobian = torch.autograd.functional.jacobian(lambda v, b=block: b(v, features)[0], x)[0, :, :, 0]
        length, size = flow.patches.length, flow.patches.size
        earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
        own = torch.eye(length * size, dtype=torch.bool).reshape(length, size, length, size)
        allowed = own | earlier[:, None, :, None]
        assert bool((jacobian[~allowed] == 0.0).all())
        assert bool((jacobian[allowed.expand_as(jacobian)] != 0.0).all())
        assert block(x, features)[1].item() == pytest.approx(float(jacobian[own].log().sum()), abs=1e-12)


@cases
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_log_prob_is_the_change_of_variables_with_the_whole_jacobian(shape, settings, t):
    flow = strong(shape, **settings)
    x = normal(3, *shape, seed=1)
    whole = [torch.autograd.functional.jacobian(lambda v: flow.noise_of(v[None], t)[0], row) for row in x]
    log_det = torch.stack([torch.linalg.slogdet(j.reshape(x[0].numel(), -1)).logabsdet for j in whole])
    assert (flow.log_prob(x, t) - log_normal(flow.noise_of(x, t)) - log_det).abs().max() < 1e-10
    assert log_det.abs().max() > 0.1


@pytest.mark.parametrize(("blocks", "max_scale"), [(1, 10.0), (2, 10.0), (2, None)])
@pytest.mark.parametrize("t", [0.0, VP.T])
def test_the_density_integrates_to_one_in_the_plane(blocks, max_scale, t):
    flow = strong((2, 1), blocks=blocks, max_scale=max_scale, layers=1, gain=0.2)
    axis = torch.arange(-14.0, 14.0, 0.15, dtype=F64)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1)
    with torch.no_grad():
        total = sum(flow.log_prob(part, t).exp().sum() for part in grid.split(20_000)) * 0.15**2
    assert float(total) == pytest.approx(1.0, abs=1e-4)  # of the grid: a layer norm can turn fast


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_without_attention_and_perceptron_it_is_a_gaussian_in_closed_form(blocks):
    """Means linear in the patch before: each block is a bidiagonal matrix, in alternating orders."""
    length, flow = 5, strong((5, 1), blocks=blocks, max_scale=None)
    flip, whole = torch.eye(length, dtype=F64).flip(0), torch.eye(length, dtype=F64)
    offset = torch.zeros(length, dtype=F64)
    with torch.no_grad():
        for k, block in enumerate(flow.blocks):
            block.embed[-1].weight.zero_()
            for layer in block.layers:
                for linear in (layer.leave, layer.down):
                    linear.weight.zero_()
                    linear.bias.zero_()
            block.leave.weight[:1] = 0.0  # a constant log-scale
            slope, constant = block.leave.weight[1] @ block.enter.weight[:, 0], block.embed[-1].bias + block.enter.bias
            means = block.leave.weight[1] @ (block.positions + constant).T + block.leave.bias[1]
            first = block.first(block.embed[-1].bias)
            log_scale = torch.cat([first[:1], block.leave.bias[:1].expand(length - 1)])
            matrix = torch.eye(length, dtype=F64) - slope * torch.eye(length, dtype=F64).roll(1, 0).tril(-1)
            step = (-log_scale).exp()[:, None] * matrix @ (flip if k else torch.eye(length, dtype=F64))
            offset = step @ offset - (-log_scale).exp() * torch.cat([first[1:], means])
            whole = step @ whole
    precision = whole.T @ whole
    mean = -torch.linalg.solve(whole, offset)
    truth = torch.distributions.MultivariateNormal(mean, precision_matrix=0.5 * (precision + precision.T))
    x = normal(20, length, 1, seed=1)
    assert (flow.log_prob(x, 0.01) - truth.log_prob(x[..., 0])).abs().max() < 1e-9
    assert (flow.log_prob(x.flip(1), 0.01) - truth.log_prob(x[..., 0])).abs().max() > 0.1


# What a patch sees.


def test_the_first_patch_of_a_block_sees_time_label_and_context():
    """One block, so that no other order helps; the first patch's own distribution is all that is looked at."""
    labelled, vectors = strong((3, 1), blocks=1, classes=2), strong((3, 1), blocks=1, context_features=1)
    x = torch.zeros(1, 3, 1, dtype=F64)
    seen = [
        labelled.noise_of(x, t, torch.tensor([label]))[0, 0].item() for t in (0.0, 1e-9, VP.T) for label in (-1, 0, 1)
    ]
    assert len(set(seen)) == 9  # t = 0 is not the limit of small t: the indicator
    seen = [vectors.noise_of(x, 0.0, torch.tensor([[c]], dtype=F64))[0, 0].item() for c in (-1.0, 0.0, 1.0)]
    assert len(set(seen)) == 3


def test_a_new_flow_is_standard_normal():
    flow = small((3, 8, 8), patch=2)
    x = torch.randn(4, 3, 8, 8, generator=seeded(0))
    assert torch.equal(flow.noise_of(x, 0.01), x)
    assert torch.allclose(flow.log_prob(x, 0.01), log_normal(x))


def test_rows_of_a_batch_do_not_see_each_other():
    flow = strong((4, 2), patch=2, classes=2)
    x, t, labels = normal(3, 4, 2), torch.tensor([0.0, VP.T, 0.01], dtype=F64), torch.tensor([0, -1, 1])
    apart = torch.cat([flow.log_prob(x[i : i + 1], float(t[i]), labels[i : i + 1]) for i in range(3)])
    assert (flow.log_prob(x, t, labels) - apart).abs().max() < 1e-12


def test_label_dropout_trains_some_rows_as_unlabelled():
    always, never = (strong((3, 1), classes=3, label_dropout=p) for p in (1.0, 0.0))
    x, t, labels = normal(6, 3, 1), torch.full((6,), 0.05, dtype=F64), torch.arange(6) % 3
    assert torch.equal(always(x, t, labels), never(x, t, torch.full((6,), -1)))
    assert torch.equal(always.eval()(x, t, labels), never(x, t, labels))


# The inverse.


@cases
def test_sampling_inverts_the_flow(shape, settings):
    flow, x = strong(shape, **settings), normal(4, *shape)
    t = torch.linspace(0.0, VP.T, 4, dtype=F64)
    assert (flow.sample(4, t, noise=flow.noise_of(x, t).detach()) - x).abs().max() < 1e-10


@cases
def test_the_cached_inverse_is_that_of_whole_passes(shape, settings):
    flow = strong(shape, **settings).eval()
    t, noise = torch.linspace(0.0, VP.T, 4, dtype=F64), normal(4, *shape)
    with torch.no_grad():
        features, z = flow._features(t, None), flow.patches.split(noise)
        z = z if len(flow.blocks) % 2 else z.flip(1)
        for k in reversed(range(len(flow.blocks))):
            z = inverted(flow.blocks[k], z, features)
            z = z.flip(1) if k else z
        expected = flow.scaling.inverse(flow.patches.join(z), t)
    drawn = flow.sample(4, t, noise=noise)
    assert (drawn - expected).abs().max() < 1e-12 * expected.abs().max().clamp(min=1.0)


def test_samples_are_a_function_of_the_generator_or_of_the_noise():
    flow, before = strong((4, 2), classes=2, dropout=0.5).train(), torch.get_rng_state()
    labels = torch.tensor([0, 1, -1])
    first = flow.sample(3, 0.05, labels, generator=seeded(3))
    noise = torch.randn(3, 4, 2, dtype=F64, generator=seeded(3))
    assert torch.equal(first, flow.sample(3, 0.05, labels, noise=noise))
    assert torch.equal(first, flow.eval().sample(3, 0.05, labels, noise=noise))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.is_inference()
    assert flow.sample(0, 0.05, labels[:0]).shape == (0, 4, 2)
    assert flow.log_prob(first[:0], 0.05, labels[:0]).shape == (0,)
    for wrong in (noise[:2], noise.float()):
        with pytest.raises(ArgumentError, match=r"^noise: got"):
            flow.sample(3, 0.05, labels, noise=wrong)


# Guidance.


@pytest.mark.parametrize("kind", ["log_scale", "scale", "product"])
@pytest.mark.parametrize("annealed", [True, False])
def test_guided_samples_are_those_of_whole_passes(kind, annealed):
    flow = strong((4, 2), patch=1, classes=3).eval()
    guidance = FlowGuidance(1.5, kind=kind, annealed=annealed, blocks=1)
    labels, noise = torch.tensor([0, 2, 1]), normal(3, 4, 2)
    t = torch.full((3,), 0.05, dtype=F64)
    with torch.no_grad():
        plain, null = flow._features(t, labels), flow._features(t, torch.tensor([-1, -1, -1]))
        z = inverted(flow.blocks[1], noise.flip(1), torch.cat([plain, null]), guidance)
        expected = inverted(flow.blocks[0], z.flip(1), plain)
    drawn = flow.sample(3, t, labels, noise=noise, guidance=guidance)
    assert (drawn - expected).abs().max() < 1e-11
    without = flow.sample(3, t, labels, noise=noise)
    assert (drawn - without).abs().max() > 0.1
    none = flow.sample(3, t, labels, noise=noise, guidance=FlowGuidance(0.0, kind=kind))
    assert (none - without).abs().max() < 1e-12


def test_guidance_is_what_its_formulas_say():
    log_scale, mean, w = normal(2, 5), normal(2, 5, seed=1), 0.7
    (a, a0), (m, m0) = log_scale, mean
    linear = m + w * (m - m0)
    for place in (0.25, 1.0):
        both = FlowGuidance(w / place)(log_scale, mean, place)
        for got, expected in zip(both, ((a + w * (a - a0)).exp(), linear), strict=True):
            assert torch.allclose(got[0], expected, rtol=1e-12)
    scale, shifted = FlowGuidance(w, kind="scale", annealed=False)(log_scale, mean, 0.1)
    assert torch.allclose(scale[0], a.exp() + w * (a.exp() - a0.exp()), rtol=1e-12)
    assert torch.allclose(shifted[0], linear, rtol=1e-12)
    # The product's log-density, up to a constant, is the guided Gaussian's at every point.
    scale, product = (v[0] for v in FlowGuidance(w, kind="product", annealed=False)(log_scale, mean, 0.1))
    y = torch.linspace(-3.0, 3.0, 7, dtype=F64)[:, None]
    null = torch.distributions.Normal(m0, torch.maximum(a, a0).exp()).log_prob(y)
    exact = (1.0 + w) * torch.distributions.Normal(m, a.exp()).log_prob(y) - w * null
    difference = exact - torch.distributions.Normal(product, scale).log_prob(y)
    assert (difference - difference[0]).abs().max() < 1e-11
    assert bool((a0 < a).any())
    assert bool((a0 > a).any())


def test_guidance_that_does_not_fit_is_refused():
    with pytest.raises(UnsupportedError, match=r"^guidance: got one and a flow without classes"):
        small((4, 1)).sample(2, guidance=FlowGuidance(1.0))
    for arguments, name in (
        ({"weight": -1.0}, "weight"),
        ({"weight": "1"}, "weight"),
        ({"weight": 1.0, "kind": "ab"}, "kind"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}: got"):
            FlowGuidance(**arguments)
    with pytest.raises(ArgumentError, match=r"^blocks: got"):
        FlowGuidance(1.0, blocks=0)
    with pytest.raises(ArgumentError, match=r"^context: got none"):
        small((4, 1), classes=2).sample(2, guidance=FlowGuidance(1.0))


# Derivatives, precision, compilation.


def test_layer_norm_is_right_to_the_third_derivative():
    def elementary(h, weight, bias):
        centred = h - h.mean(-1, keepdim=True)
        return weight * centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) + bias

    norm = LayerNorm(4).double()
    inputs = [p.requires_grad_() for p in (normal(3, 4), normal(4, seed=1), normal(4, seed=2))]
    v, results = normal(3, 4, seed=3), []
    for function in (
        lambda h, weight, bias: torch.func.functional_call(norm, {"weight": weight, "bias": bias}, h),
        elementary,
    ):
        values = [function(*inputs)]
        for power in (1, 2, 3):
            total = (values[-1].pow(3) * (v if power == 1 else 1.0)).sum()
            (first,) = torch.autograd.grad(total, inputs[0], create_graph=True)
            values.append(first)
        values += torch.autograd.grad(values[-1].square().sum(), inputs, allow_unused=True, materialize_grads=True)
        results.append(values)
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1.0)
    assert torch.autograd.gradcheck(norm, normal(3, 4).requires_grad_())


def test_the_score_can_be_trained_on():
    flow = strong((6, 2), patch=2)
    x, t = normal(3, 6, 2), torch.tensor([0.01, 0.05, VP.T], dtype=F64)
    loss = sliced_score_matching(flow, x, t, generator=seeded(0)).sum()
    (gradient,) = torch.autograd.grad(loss, flow.blocks[0].positions)
    ahead, direction = copy.deepcopy(flow), normal(2, 16, seed=1)
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            ahead.blocks[0].positions.copy_(flow.blocks[0].positions + sign * 1e-5 * direction)
        values.append(float(sliced_score_matching(ahead, x, t, generator=seeded(0)).sum().detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def gradients(flow, x, t):
    return torch.autograd.grad(flow(x, t).sum(), list(flow.parameters()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_compute_the_same_in_training_and_for_scores():
    flow = strong((6, 2), patch=2)
    x, t = normal(3, 6, 2), torch.tensor([0.0, 0.05, VP.T], dtype=F64)
    compiled = copy.deepcopy(flow)
    for block in compiled.blocks:
        for layer in block.layers:
            layer.compile(backend="aot_eager", fullgraph=True)
    for a, b in zip(gradients(compiled, x, t), gradients(flow, x, t), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    for create_graph in (False, True):
        score = compiled.score(x, t, create_graph=create_graph)
        assert torch.allclose(score, flow.score(x, t), rtol=1e-10, atol=1e-12)


def test_recomputed_layers_give_the_same_gradients():
    flow = strong((6, 2), patch=2)
    x, t = normal(3, 6, 2), torch.tensor([0.0, 0.05, VP.T], dtype=F64)
    plain = gradients(flow, x, t)
    flow.recompute_blocks()
    assert all(torch.equal(a, b) for a, b in zip(gradients(flow, x, t), plain, strict=True))


def test_float32_and_bfloat16_autocast_are_close():
    flow = strong((1, 8, 8), patch=2)
    x = normal(8, 1, 8, 8)
    exact, single = flow.log_prob(x, 0.01), copy.deepcopy(flow).float()
    assert (single.log_prob(x.float(), 0.01) - exact).abs().max() < 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_p = single.log_prob(x.float(), 0.01)
        drawn = single.sample(8, 0.05, generator=seeded(0))
    assert log_p.dtype == drawn.dtype == torch.float32
    assert ((log_p - exact) / exact).abs().max() < 0.05
    assert torch.equal(drawn, single.sample(8, 0.05, generator=seeded(0)))


# Construction.


@pytest.mark.parametrize(
    ("shape", "settings", "name"),
    [
        ((4,), {}, "event_shape"),
        ((6, 1), {"patch": 4}, "patch"),
        ((1, 8, 6), {"patch": 4}, "patch"),
        ((1, 8, 8), {"patch": 8}, "patch"),
        ((1, 8, 8), {"patch": 0}, "patch"),
        ((4, 1), {"blocks": 0}, "blocks"),
        ((4, 1), {"layers": [1, 1, 1]}, "layers"),
        ((4, 1), {"layers": 0}, "layers"),
        ((4, 1), {"width": 15}, "width"),
        ((4, 1), {"heads": 0}, "heads"),
        ((4, 1), {"max_scale": 1.0}, "max_scale"),
        ((4, 1), {"dropout": 1.5}, "dropout"),
        ((4, 1), {"label_dropout": -0.1}, "label_dropout"),
        ((4, 1), {"classes": 2, "context_features": 2}, "context_features, classes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, settings, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        small(shape, **settings)


def test_settings_build_the_flow():
    settings = TransformerFlowSettings(patch=2, width=16, blocks=3, layers=1, heads=2, max_scale=5.0, dropout=0.1)
    flow = settings.build((1, 4, 4), VP, Lattice(17), classes=3)
    assert (flow.event_shape, flow.lattice, len(flow.blocks), flow.classes) == ((1, 4, 4), None, 3, 3)
    assert (flow.patches.patch, len(flow.blocks[0].layers), flow.blocks[0].layers[0].heads) == (2, 1, 2)
    with pytest.raises(ArgumentError, match=r"^patch: got 4"):
        TransformerFlowSettings().build((1, 6, 6), VP, None)


# Published weights.


def published_state(blocks=3, layers=2, width=64, size=12, length=4, classes=0, timed=False, shared=0) -> dict:
    """Random weights under the names of apple's programs; nothing is zero."""
    generator, state = seeded(blocks), {}

    def add(name, *shape):
        state[name] = 0.3 * torch.randn(*shape, dtype=F64, generator=generator) / math.sqrt(shape[-1])

    def linear(name, inputs, outputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    for k in range(blocks):
        here = f"blocks.{k}"
        linear(f"{here}.proj_in", size, width)
        linear(f"{here}.proj_out", width, 2 * size)
        add(f"{here}.pos_embed", length, width)
        state[f"{here}.attn_mask"] = torch.ones(length, length).tril()
        if classes:
            add(f"{here}.class_embed", classes, 1, width)
        if timed:
            linear(f"{here}.time_embed.mlp.0", width, 4 * width)
            linear(f"{here}.time_embed.mlp.2", 4 * width, width)
        for j in range(layers):
            place = f"shared_backbone.{j}" if j < shared else f"{'head' if timed else 'attn'}_blocks.{j - shared}"
            for there, inputs, outputs in (
                ("attention.qkv", width, 3 * width),
                ("attention.proj", width, width),
                ("mlp.main.0", width, 4 * width),
                ("mlp.main.2", 4 * width, width),
            ):
                linear(f"{here}.{place}.{there}", inputs, outputs)
            for norm in ("attention.norm", "mlp.norm"):
                add(f"{here}.{place}.{norm}.weight", width)
                add(f"{here}.{place}.{norm}.bias", width)
                state[f"{here}.{place}.{norm}.weight"] += 1.0
    for name in [name for name in state if name.startswith("blocks.0.shared_backbone")]:
        state[name.removeprefix("blocks.0.")] = state[name]
        for k in range(blocks):
            state[name.replace("blocks.0", f"blocks.{k}", 1)] = state[name]
    state["var"] = torch.ones(length, size)
    return state


def published_log_prob(state, x, t, labels, layers=2, shared=0) -> torch.Tensor:
    """Their log-likelihood, written down from their papers and programs: a second opinion, one head of 64 features."""

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, h):
        return F.layer_norm(h, (64,), state[f"{name}.weight"], state[f"{name}.bias"])

    patch = math.isqrt(state["blocks.0.proj_in.weight"].shape[1] // x.shape[1])
    z, log_det = F.unfold(x, patch, stride=patch).mT, 0.0
    length = z.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for k in range(sum(name.endswith("proj_in.weight") for name in state)):
        here, order = f"blocks.{k}", range(length) if k % 2 == 0 else range(length - 1, -1, -1)
        z, positions = z[:, list(order)], state[f"{here}.pos_embed"][list(order)]
        h = linear(f"{here}.proj_in", z) + positions
        if f"{here}.time_embed.mlp.0.weight" in state:
            angles = t.log()[:, None] / 10_000.0 ** (torch.arange(32, dtype=F64) / 32)
            fourier = torch.cat([angles.sin(), angles.cos()], dim=1)
            added = linear(f"{here}.time_embed.mlp.2", F.gelu(linear(f"{here}.time_embed.mlp.0", fourier)))
            h = h + added[:, None]
        if labels is not None:
            table = state[f"{here}.class_embed"]
            h = h + torch.stack([table.mean(0) if label < 0 else table[label] for label in labels])
        for j in range(layers):
            kind = next(kind for kind in ("attn", "head") if f"{here}.{kind}_blocks.0.mlp.norm.bias" in state)
            place = f"{here}.shared_backbone.{j}" if j < shared else f"{here}.{kind}_blocks.{j - shared}"
            query, key, value = linear(f"{place}.attention.qkv", norm(f"{place}.attention.norm", h)).chunk(3, dim=-1)
            weights = (query @ key.mT / 8.0).masked_fill(future, -math.inf).softmax(-1)
            h = h + linear(f"{place}.attention.proj", weights @ value)
            h = h + linear(f"{place}.mlp.main.2", F.gelu(linear(f"{place}.mlp.main.0", norm(f"{place}.mlp.norm", h))))
        log_scale, mean = F.pad(linear(f"{here}.proj_out", h)[:, :-1], (0, 0, 1, 0)).chunk(2, dim=-1)
        z, log_det = ((z - mean) * (-log_scale).exp())[:, list(order)], log_det - log_scale.sum((1, 2))
    return log_normal(z) + log_det


@pytest.mark.parametrize(
    ("settings", "suffix", "shape", "scale"),
    [
        ({}, ".pth", (3, 4, 4), 1.0),
        ({"classes": 3}, ".safetensors", (3, 4, 4), 1.0),
        ({"timed": True, "classes": 3, "shared": 1}, ".pth", (3, 4, 4), 1.0),
        ({"size": 3, "length": 16}, ".pth", (3, 4, 4), 2.0),
        ({"size": 16, "length": 2}, ".pth", (1, 8, 4), 0.5),
    ],
    ids=["tarflow", "labels", "itarflow", "pixels", "patches of four"],
)
def test_published_weights_have_their_log_likelihood(settings, suffix, shape, scale, tmp_path):
    state, path = published_state(**settings), tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    timed = "timed" in settings
    flow = load_tarflow(path, shape, (0.01, 0.3) if timed else 0.05, input_scale=scale)
    x, t = normal(4, *shape), torch.tensor([0.01, 0.3, 0.1, 0.2] if timed else [0.05] * 4, dtype=F64)
    labels = torch.tensor([0, 2, -1, 1]) if "classes" in settings else None
    expected = published_log_prob(state, scale * x, t, labels, shared=settings.get("shared", 0))
    expected += math.prod(shape) * math.log(scale)
    assert flow.dtype == F64
    assert (flow.log_prob(x, t, labels) - expected).abs().max() < 1e-10
    assert (flow.sample(4, t, labels, noise=flow.noise_of(x, t, labels).detach()) - x).abs().max() < 1e-10
    if timed:
        assert len(set(flow.log_prob(x[:1].expand(4, -1, -1, -1), t, labels[:1].expand(4)).tolist())) == 4


def test_loaded_weights_hold_at_their_noise_level_only(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(published_state(), path)
    flow = load_tarflow(path, (3, 4, 4), 0.05)
    x = normal(4, 3, 4, 4)
    for t in (0.0, 0.04):
        for call in (flow.log_prob, flow.score, lambda x, t: flow.sample(4, t)):
            with pytest.raises(ArgumentError, match=r"^t: got .*expected 0.05, the one noise level"):
                call(x, t)
    denoised = Tweedie()(flow, x, 0.05)
    assert torch.allclose(denoised, x + 0.05**2 * flow.score(x, 0.05), rtol=1e-12)


def test_weights_of_dequantised_bytes_give_bits_of_a_lattice(tmp_path):
    """With 255/256 the data of ``Lattice(256)`` and their dequantisation are ``(k + u) / 128 - 1``."""
    path, state, bytes_ = tmp_path / "weights.pth", published_state(), Lattice(256)
    torch.save(state, path)
    flow = load_tarflow(path, (3, 4, 4), 0.0, input_scale=255 / 256)
    k, u = torch.randint(256, (4, 3, 4, 4), generator=seeded(0)).double(), normal(4, 3, 4, 4).sigmoid()
    x = bytes_.to_unit(k.long(), dtype=F64) + (u - 0.5) * bytes_.width
    there = published_log_prob(state, (k + u) / 128 - 1, None, None)
    bits = -(there / 48 - math.log(128)) / math.log(2)
    here = -(flow.log_prob(x) / 48 + math.log(bytes_.width)) / math.log(2)
    assert (here - bits).abs().max() < 1e-10
    with pytest.raises(ArgumentError, match=r"^t: got .*expected 0, the one noise level"):
        flow.log_prob(x, 0.05)


def test_loaded_weights_can_be_trained_further(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(published_state(layers=1), path)
    flow = load_tarflow(path, (3, 4, 4), 0.0).train()
    lattice = Lattice(256)
    x = lattice.quantize(normal(8, 3, 4, 4).tanh())
    objective = NCMLObjective(flow.process, AtZero(), dequantize=lattice)
    before = bits_per_dim(flow, x, lattice=lattice, generator=seeded(0)).mean
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        objective(flow, x).backward()
        optimizer.step()
    assert bits_per_dim(flow, x, lattice=lattice, generator=seeded(0)).mean < before


def without(name, state):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without("blocks.1.proj_in.weight", s), "got a block without 'proj_in.weight'"),
        (lambda s: without("blocks.1.attn_blocks.1.mlp.norm.bias", s), "got a block without 'attn_blocks.1.mlp"),
        (lambda s: {**s, "blocks.0.gate": torch.ones(1)}, "got 'gate' in a block"),
        (lambda s: {**s, "encoder.weight": torch.ones(1)}, "got 'encoder.weight'"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("blocks.0")}, r"got the blocks \[1, 2\]"),
        (lambda s: {**s, "var": 2.0 * s["var"]}, "volume-preserving"),
        (lambda s: {**s, "blocks.2.pos_embed": torch.ones(9, 64)}, "blocks of different sizes"),
        (lambda s: {"epoch": 3}, "got dict; expected a state dict"),
        (lambda s: {}, r"got the blocks \[\]"),
    ],
)
def test_weights_of_something_else_are_refused(change, message, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(change(published_state()), path)
    with pytest.raises(CheckpointError, match=message):
        load_tarflow(path, (3, 4, 4), 0.05)


def test_arguments_that_do_not_fit_the_weights_are_refused(tmp_path):
    path, timed = tmp_path / "weights.pth", tmp_path / "timed.pth"
    torch.save(published_state(), path)
    torch.save(published_state(timed=True), timed)
    for shape in ((3, 4, 6), (1, 4, 4), (3, 16), (12, 4, 4)):
        with pytest.raises(ArgumentError, match=r"^event_shape: got"):
            load_tarflow(path, shape, 0.05)
    for file, noise in ((path, (0.01, 0.3)), (path, -1.0), (timed, 0.05), (timed, (0.0, 0.3))):
        with pytest.raises(ArgumentError, match=r"^noise: got"):
            load_tarflow(file, (3, 4, 4), noise)
    with pytest.raises(FileNotFoundError):
        load_tarflow(tmp_path / "none.pth", (3, 4, 4), 0.05)
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(CheckpointError):
            load_tarflow(tmp_path / name, (3, 4, 4), 0.05)
    with pytest.raises(ArgumentError, match=r"^context: got one"):
        load_tarflow(path, (3, 4, 4), 0.05).sample(2, 0.05, torch.tensor([0, 1]))


def test_a_short_training_learns_a_law_at_every_noise_level():
    """Two correlated values: the loss falls to the entropy of the noisy Gaussian, within .05 nats."""
    process, generator = VESDE.linear(0.5), seeded(0)
    flow = small((2, 1), process, width=32, layers=1).float()
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    optimizer, objective = torch.optim.Adam(flow.parameters(), lr=3e-3), NCMLObjective(process)
    data = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    root = data.scale_tril
    for _ in range(150):
        x = (torch.randn(256, 2, generator=generator) @ root.T)[..., None]
        optimizer.zero_grad()
        objective(flow, x, generator=generator).backward()
        optimizer.step()
    x = (torch.randn(4000, 2, generator=generator) @ root.T)[..., None]
    for t in (0.0, 0.5):
        noisy = x + t * torch.randn(x.shape, generator=generator)
        truth = torch.distributions.MultivariateNormal(torch.zeros(2), covariance + t**2 * torch.eye(2))
        gap = truth.log_prob(noisy[..., 0]) - flow.log_prob(noisy, t).detach()
        assert float(gap.mean()) < 0.05
