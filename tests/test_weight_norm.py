"""A weight-normalised pixel network: the same function at first, and standard features after initialisation by data."""

from __future__ import annotations

import pytest
import torch

from ncml import VPSDE, Lattice
from ncml.cli import main
from ncml.densities import NCPN
from ncml.densities.ncpn import weight_norm
from ncml.densities.ncpn.blocks import CausalConv, GatedBlock, Skip, Upsample
from ncml.errors import ArgumentError
from ncml.training import open_checkpoint

LATTICE = Lattice(256)
VP = VPSDE.at_noise(10 * LATTICE.width)


def network(shape=(3, 8, 8), **changes):
    torch.manual_seed(0)
    return NCPN.preset("tiny", shape, VP, **{"features": 16, "weight_norm": True, **changes}).double().eval()


def images(n=20, shape=(3, 8, 8)):
    """Images whose neighbouring pixels are alike, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(n, shape[0], 1, 1, generator=generator) + 0.3 * torch.randn(n, *shape, generator=generator)
    return LATTICE.quantize((0.4 * smooth + 0.2).double())


def seen(density, x, **labels):
    """What every layer gives on these images, without what is padding."""
    found, hooks = {}, []
    for name, module in density.network.named_modules():
        if isinstance(module, (CausalConv, Upsample, Skip)):
            hooks.append(
                module.register_forward_hook(lambda m, i, output, name=name: found.__setitem__(name, output.detach()))
            )
    density.log_prob(x, 0.0, **labels)
    for hook in hooks:
        hook.remove()
    return found


def test_the_function_is_that_of_the_plain_network():
    plain, normed = network(weight_norm=False), network()
    x = images(3)
    torch.testing.assert_close(normed.log_prob(x, 0.0), plain.log_prob(x, 0.0), rtol=1e-6, atol=0)  # split in float32
    for module in normed.network.modules():
        if isinstance(module, (CausalConv, Upsample, Skip)):
            assert float(module.parametrizations.weight.original1.detach().std()) == pytest.approx(0.05)


@pytest.mark.parametrize(("shape", "changes"), [((3, 8, 8), {}), ((1, 8, 4), {"blocks": 2, "classes": 3, "heads": 0})])
def test_features_are_standard_on_the_images_that_initialised(shape, changes):
    density, x = network(shape, **changes), images(shape=shape)
    context = torch.arange(len(x)) % 3 if "classes" in changes else None
    for _ in range(2):  # from any weights
        density.initialize(x, 0.0, context)
    found = seen(density, x, **({} if context is None else {"context": context}))
    blocks = {name: m for name, m in density.network.named_modules() if isinstance(m, GatedBlock)}
    for name, output in found.items():
        block, _, layer = name.rpartition(".")
        mean, std = output.mean((0, 1, 2)), output.std((0, 1, 2), correction=0)
        torch.testing.assert_close(std, torch.full_like(std, 0.1 if layer == "conv_out" else 1.0), rtol=1e-4, atol=0)
        if layer == "conv_in":  # whose bias is also that of the skips
            skips = [found[f"{block}.skips.{i}"].mean((0, 1, 2)) for i in range(len(blocks[block].skips))]
            mean = mean + sum(skips)
        if ".skips." not in name:
            assert float(mean.abs().max()) < 1e-9, name
    t = torch.zeros(len(x), dtype=x.dtype)
    outputs = density.network(x, density._conditioning(t, context)).detach()
    torch.testing.assert_close(outputs.mean((0, 1)), density.head.initial_bias().double(), rtol=0, atol=1e-9)
    spread = outputs.std((0, 1), correction=0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.1), rtol=1e-4, atol=0)


def test_a_wrong_axis_of_the_norm_is_seen(monkeypatch):
    """Planted: the transposed convolutions' outputs are the second axis of their weight."""
    split = weight_norm.weight_norm
    monkeypatch.setattr(weight_norm, "weight_norm", lambda layer, dim: split(layer, dim=0))
    density, x = network(), images()
    density.initialize(x)  # the shapes fit: the features are as many on either side
    upsampled = [output for name, output in seen(density, x).items() if name.endswith("upsample")]
    assert max(float((y.std((0, 1, 2), correction=0) - 1.0).abs().max()) for y in upsampled) > 0.01


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of its tracer
def test_a_compiled_block_gives_the_same_values_and_gradients():
    results = []
    for compiled in (False, True):
        density, x = network(features=8, heads=2, components=2, blocks=1, resolutions=1), images(2)
        density.initialize(x)
        if compiled:
            density.blocks()[-1].compile(backend="eager", fullgraph=True, dynamic=False)
        loss = -density(x, torch.zeros(2).double()).sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, [*density.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-12)


def test_what_cannot_be_initialised_is_refused():
    with pytest.raises(ArgumentError, match="weight_norm: got False"):
        network(weight_norm=False).initialize(images())
    with pytest.raises(ArgumentError, match="x: got no images"):
        network().initialize(images(0))
    with pytest.raises(ArgumentError, match=r"x: got images of one value, 0\.25; expected some that vary"):
        network().initialize(torch.full((3, 3, 8, 8), 0.25).double())
    with pytest.raises(ArgumentError, match="fourier_scale"):
        network(fourier_scale=0.0)


def test_the_scale_of_the_frequencies():
    plain, wide = network(), network(fourier_scale=16.0)
    torch.testing.assert_close(wide.frequencies, 16.0 * plain.frequencies)


def test_the_program_initialises_by_data_once(tmp_path, monkeypatch):
    """Stopped and resumed, a run is what it is without a stop; the images of a resumed run change nothing."""
    calls = []
    plain = NCPN.initialize
    monkeypatch.setattr(NCPN, "initialize", lambda self, x, t, context: (calls.append(x), plain(self, x, t, context)))
    small = "--data.name digits --model.features 8 --model.heads 0 --model.weight-norm --optim.init-examples 50"
    common = [*small.split(), "--optim.batch-size", "4", "--optim.schedule", "constant", "--run.validate-every", "0"]
    common += ["--run.sample-every", "0", "--run.threads", "1"]
    assert main(["train", *common, "--optim.steps", "2", "--out", str(tmp_path / "whole")]) == 0
    assert main(["train", *common, "--optim.steps", "1", "--out", str(tmp_path / "parts")]) == 0
    assert main(["train", *common, "--optim.steps", "2", "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert [x.shape[0] for x in calls] == [50, 50]
    assert torch.equal(calls[0], calls[1])
    whole, parts = (open_checkpoint(tmp_path / name).model() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert main(["train", *common, "--model.no-weight-norm", "--out", str(tmp_path / "plain")]) != 0
    assert not (tmp_path / "plain").exists()


def test_features_that_do_not_vary_stay_finite():
    """What sees the pixels before the first one has no variance to divide by."""
    density = network((1, 1, 1), resolutions=1)
    x = torch.linspace(-0.5, 0.5, 4, dtype=torch.float64).reshape(4, 1, 1, 1)
    density.initialize(LATTICE.quantize(x), 0.0)
    assert all(bool(p.isfinite().all()) for p in density.parameters())


def test_features_that_see_padding_alone_are_left_as_they_are():
    """At the third resolution of 4 x 4 pixels there is one position, and nothing before it."""
    density = network((1, 4, 4), resolutions=3)
    x = LATTICE.to_unit(torch.randint(LATTICE.levels, (32, 1, 4, 4), generator=torch.Generator().manual_seed(0)))
    density.initialize(x.double(), 0.0)
    assert max(float(p.detach().abs().max()) for p in density.parameters()) < 100.0
    assert bool(density.log_prob(x.double(), 0.0).isfinite().all())
