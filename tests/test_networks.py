"""Bundled networks: how many parameters they have, where they start, and what training keeps of their blocks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ncml import VPSDE, Lattice
from ncml.densities import MADE, MAF, NCPN, CausalTransformer, TransformerFlow

PROCESS = VPSDE.at_noise(0.25)


def masked(inputs, outputs, hidden, conditioning):
    """How many parameters a masked network has."""
    sizes = [inputs, *hidden]
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    return products + (sizes[-1] + 1) * inputs * outputs + (conditioning + 1) * sum(hidden)


def linear(inputs, outputs):
    return (inputs + 1) * outputs


def test_networks_have_the_parameters_of_their_sizes():
    """Of w features, L layers, K components, c channels, P values in a patch, T patches, B blocks."""
    w, L, K, c, P, T, B, noise = 12, 3, 4, 2, 6, 4, 2, 10
    embedding = linear(noise, w) + linear(w, w)
    shared = {"noise_features": noise}
    sizes = {
        MADE((T, c), PROCESS, hidden=(w, 7), components=K, **shared): masked(T * c, 3 * K, (w, 7), noise),
        MAF((T, c), PROCESS, transforms=B, hidden=(w, 7), **shared): B * masked(T * c, 2, (w, 7), noise),
        CausalTransformer((T, c), PROCESS, width=w, layers=L, heads=2, components=K, **shared): (
            embedding + w + linear(c, w) + L * 12 * w * w + linear(w, (6 * L + 2) * w) + masked(c, 3 * K, (w,), w)
        ),
        TransformerFlow((3 * T, c), PROCESS, patch=3, width=w, blocks=B, layers=L, heads=2, **shared): B
        * (
            embedding + linear(P, w) + (T - 1) * w + 2 * linear(w, 2 * P)
            + L * (4 * w + linear(w, 3 * w) + linear(w, w) + linear(w, 4 * w) + linear(4 * w, w))
        ),
    }  # fmt: skip
    for model, size in sizes.items():
        assert sum(p.numel() for p in model.parameters()) == size, type(model).__name__


def test_last_layers_start_at_a_tenth():
    """Of the bound 1/sqrt(n) within which weights of n inputs are drawn, so that networks start near their bias."""
    torch.manual_seed(0)
    ncpn = NCPN((1, 8, 8), PROCESS, lattice=Lattice(17), features=16, blocks=1, resolutions=2, heads=2)
    transformer = CausalTransformer((8, 2), PROCESS, width=64, layers=1, heads=2)
    tenths = [MADE((8,), PROCESS, hidden=(64,)).net.out, *(net.out for net in MAF((8,), PROCESS, hidden=(64,)).nets)]
    tenths += [transformer.head.net.out, *(block.conv_out for block in ncpn.blocks())]
    for layers, share in ((tenths, 0.1), ([block.conv_in for block in ncpn.blocks()], 1.0)):
        for layer in layers:
            largest = float(layer.weight.detach().abs().max()) * math.sqrt(layer.weight[0].numel())
            assert largest == pytest.approx(share, rel=0.05)
            assert largest <= share * (1.0 + 1e-6)


RECOMPUTED = {
    "ncpn": (NCPN, (1, 4, 4), {"lattice": Lattice(17), "features": 8, "blocks": 1, "resolutions": 1}),
    "transformer": (CausalTransformer, (8, 2), {"width": 16, "layers": 2}),
    "flow": (TransformerFlow, (8, 2), {"patch": 4, "width": 16, "blocks": 1, "layers": 2}),
}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_blocks_are_computed_again_where_that_is_asked_for(name):
    """Twice in a forward and a backward pass, and once if it is switched off again."""
    kind, shape, settings = RECOMPUTED[name]
    model, calls = kind(shape, PROCESS, heads=2, **settings), []
    block = model.blocks[0].layers[0] if name == "flow" else model.blocks()[0]
    entrance = block.condition if name == "ncpn" else block.enter
    entrance.register_forward_hook(lambda *_: calls.append(1))
    for arguments, expected in (((), 2), ((False,), 1), ((True,), 2)):
        model.recompute_blocks(*arguments)
        model(torch.zeros(2, *shape), torch.full((2,), PROCESS.T)).sum().backward()
        assert len(calls) == expected
        calls.clear()
