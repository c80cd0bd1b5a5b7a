"""The networks under the transforms of ``torch.func``: what they give is what autograd gives without them."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from ncml import VESDE
from ncml.densities import MADE, MAF, NCPN, CausalTransformer, TransformerFlow

PROCESS = VESDE.linear(1.0)

MODELS = {
    "made": lambda: MADE((4,), PROCESS, hidden=(16,), components=2),
    "maf": lambda: MAF((4,), PROCESS, hidden=(16,)),
    "transformer": lambda: CausalTransformer((4, 1), PROCESS, width=16, layers=2, heads=2, components=2),
    "transformer flow": lambda: TransformerFlow((1, 4, 4), PROCESS, patch=2, width=16, blocks=2, layers=1, heads=2),
    "ncpn": lambda: NCPN((1, 4, 4), PROCESS, features=8, blocks=1, resolutions=2, heads=2, components=2),
}


@pytest.fixture(params=MODELS)
def case(request):
    """A network away from its start, in double precision, its parameters, data and times."""
    torch.manual_seed(0)
    density = MODELS[request.param]().double().eval()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(3, *density.event_shape, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    parameters = {name: p.detach() for name, p in density.named_parameters()}

    def one(parameters, x, t):
        return functional_call(density, parameters, (x[None], t[None]))[0]

    return density, one, parameters, x, t


pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning",  # torch's attention has no rule for batches
    "ignore:.*torch.jit.script:DeprecationWarning",  # torch's own forward mode uses it
)


def test_gradients_of_every_example(case):
    density, one, parameters, x, t = case
    log_p = vmap(one, (None, 0, 0))(parameters, x, t)
    torch.testing.assert_close(log_p, density(x, t).detach(), rtol=1e-12, atol=1e-12)
    found = vmap(grad(one), (None, 0, 0))(parameters, x, t)
    for i in range(len(x)):
        expected = torch.autograd.grad(density(x[i : i + 1], t[i : i + 1]).sum(), list(density.parameters()))
        assert any(bool(e.abs().max() > 1e-3) for e in expected)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_curvature_forward_over_reverse(case):
    density, one, parameters, x, t = case
    direction = torch.randn_like(x)
    score, change = vmap(lambda y, s, v: jvp(grad(lambda z: one(parameters, z, s)), (y,), (v,)))(x, t, direction)
    y = x.clone().requires_grad_()
    expected = density.score(x, t)
    torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-9)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        own = torch.autograd.grad(density(y, t, edges=False).sum(), y, create_graph=True)[0]
    twice = torch.autograd.grad((own * direction).sum(), y)[0]
    assert twice.abs().max() > 1e-2
    torch.testing.assert_close(change, twice, rtol=1e-9, atol=1e-9)
    matrix = hessian(lambda z: one(parameters, z, t[0]))(x[0])
    d = x[0].numel()
    along = matrix.reshape(d, d) @ direction[0].flatten()
    torch.testing.assert_close(along, twice[0].flatten(), rtol=1e-9, atol=1e-9)


def test_forward_mode_without_a_transform(case):
    density, _, _, x, t = case
    direction = torch.randn_like(x)
    with forward_ad.dual_level(), torch.no_grad():
        slope = forward_ad.unpack_dual(density(forward_ad.make_dual(x, direction), t)).tangent
    expected = (density.score(x, t) * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-9)
