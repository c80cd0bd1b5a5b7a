"""Conditionals given other values than those before: what models with a noisy context are trained by."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from ncml import VPSDE, Lattice
from ncml.errors import ArgumentError, ArgumentTypeError, NCMLError
from tests.problems import seeded
from tests.statistics import ALPHA
from tests.test_made import strong as strong_made
from tests.test_transformer import strong as strong_transformer

F64 = torch.float64
VP = VPSDE.at_noise(0.2)

models = pytest.mark.parametrize("strong", [strong_made, strong_transformer], ids=["made", "transformer"])
shapes = pytest.mark.parametrize("shape", [(4, 1), (2, 2)], ids=str)


def batch(n, shape, seed=1):
    return 0.5 * torch.randn(n, *shape, dtype=F64, generator=seeded(seed))


@models
@shapes
def test_given_what_is_there_nothing_changes(strong, shape):
    """Bit for bit, in the terms and in their sum."""
    model, x = strong(shape), batch(5, shape)
    for t in (0.0, 0.05):
        terms = model.log_conditionals(x, t)
        assert torch.equal(model.log_conditionals(x, t, given=x.clone()), terms)
        times = torch.full((5,), t, dtype=F64)
        assert torch.equal(model(x, times, given=x.clone()), model(x, times))
        y = batch(5, shape, seed=2)
        terms = model.log_conditionals(x, t, given=y)
        assert (terms.flatten(1).sum(1) - model(x, times, given=y)).abs().max() < 1e-12


@models
@shapes
def test_a_term_depends_on_its_own_value_and_on_earlier_ones_given(strong, shape):
    """The derivatives of the others are exactly zero."""
    model, x, y = strong(shape), batch(1, shape), batch(1, shape, seed=2)
    in_x, in_y = torch.autograd.functional.jacobian(
        lambda x, y: model.log_conditionals(x, 0.05, given=y).flatten(), (x, y)
    )
    own = torch.eye(4, dtype=torch.bool)
    in_x, in_y = in_x.view(4, 4), in_y.view(4, 4)
    assert torch.equal(in_x != 0.0, own)
    assert torch.equal(in_y != 0.0, torch.ones_like(own).tril(-1))
    made_of_both = torch.cat([y.flatten()[:3], x.flatten()[3:]]).view(x.shape)  # the last term sees y before it
    with torch.no_grad():
        differs = model.log_conditionals(x, 0.05, given=y) - model.log_conditionals(made_of_both, 0.05)
    assert abs(float(differs.flatten()[3])) < 1e-12


@models
def test_it_is_the_law_of_what_is_redrawn(strong):
    """The distribution function of a conditional, by quadrature, against draws of ``resample``."""
    model, y = strong((3, 1), gain=0.5), batch(1, (3, 1), seed=2)  # nothing narrower than the grid
    n = 4000
    drawn = model.resample(y.expand(n, -1, -1), model.draw_noise(n, generator=seeded(3)), 0.05)
    grid = torch.linspace(-40.0, 40.0, 16_001, dtype=F64)
    points = grid[:, None, None].expand(-1, 3, 1)
    with torch.no_grad():
        density = model.log_conditionals(points, 0.05, given=y.expand(len(grid), -1, -1)).exp()[..., 0]
    below = torch.cumulative_trapezoid(density, grid, dim=0)
    for i in range(3):
        assert float(below[-1, i]) == pytest.approx(1.0, abs=1e-3)  # tails beyond the grid
        values = torch.tensor(drawn[:, i, 0].numpy())
        at = below[(torch.searchsorted(grid[1:], values)).clamp(max=len(below) - 1), i]
        assert kstest(at.numpy(), "uniform").pvalue > ALPHA


@models
def test_lattice_edges_apply_where_they_do_without(strong):
    lattice = Lattice(3)
    model = strong((4, 1), lattice=lattice)
    x, y = lattice.quantize(batch(5, (4, 1))), lattice.quantize(batch(5, (4, 1), seed=2))
    masses = [
        model.log_conditionals(torch.full_like(x, point), 0.0, given=y).exp() * lattice.width
        for point in lattice.points(dtype=F64).tolist()
    ]
    assert (sum(masses) - 1.0).abs().max() < 1e-12
    assert (sum(masses) > 0.0).all()


def test_padding_of_what_is_given_does_not_count():
    model, x, y = strong_transformer((4, 1)), batch(2, (4, 1)), batch(2, (4, 1), seed=2)
    t, lengths = torch.full((2,), 0.05, dtype=F64), torch.tensor([2, 4])
    y[0, 2:] = torch.nan
    with torch.no_grad():
        whole, alone = model(x, t, lengths=lengths, given=y), model(x[:1, :2], t[:1], given=y[:1, :2])
    assert torch.isfinite(whole).all()
    assert float(whole[0]) == pytest.approx(float(alone), abs=1e-12)


@models
def test_what_does_not_fit_is_refused(strong):
    model, x = strong((4, 1)), batch(3, (4, 1))
    for given, error, message in (
        (x[:2], ArgumentError, r"given: got shape \(2, 4, 1\)"),
        (x.float(), ArgumentError, "given: got .*float32"),
        (x.long(), ArgumentTypeError, "given: got "),
        (x / 0.0, NCMLError, "given: "),
    ):
        with pytest.raises(error, match=message):
            model.log_conditionals(x, 0.05, given=given)
