"""What training is steered by: gradients of its losses, their scale, the numbers in its log, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ncml import VPSDE, Lattice, LevelNoise, NCMLObjective, NoiseConditionalDensity
from ncml.densities import MAF
from ncml.errors import ArgumentError
from ncml.evaluation import level_noise_table
from ncml.objective import LossTerms, UniformTimes
from ncml.score import sliced_score_matching
from ncml.training import RunConfig, launch
from ncml.training.window import Window
from tests.problems import PROCESSES, seeded
from tests.training_problems import changed, trainer

F64 = torch.float64
VP = VPSDE.at_noise(0.1)


class Logistics(NoiseConditionalDensity):
    """Independent logistic variables, whose location and scale are parameters."""

    def __init__(self, dims=3):
        super().__init__((dims,))
        self.mean = nn.Parameter(torch.linspace(-0.5, 0.5, dims, dtype=F64))
        self.log_scale = nn.Parameter(torch.linspace(-0.3, 0.2, dims, dtype=F64))

    def forward(self, x, t, context=None, *, edges=True):
        z = (x - self.mean) * (-self.log_scale).exp()
        return (z - 2.0 * nn.functional.softplus(z) - self.log_scale).sum(1)


@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
def test_sliced_score_matching_has_the_gradient_of_its_value(probe):
    """In the parameters, against central differences with the same directions."""
    density, x = Logistics(), torch.randn(6, 3, dtype=F64, generator=seeded(0))

    def loss():
        return sliced_score_matching(density, x, probe=probe, generator=seeded(1)).sum()

    loss().backward()
    for parameter in density.parameters():
        gradient, h = parameter.grad.clone(), 1e-5
        for i in range(parameter.numel()):
            values = []
            for move in (h, -2.0 * h, h):  # up, down, and back
                with torch.no_grad():
                    parameter[i] += move
                values.append(float(loss().detach()))
            assert float(gradient[i]) == pytest.approx((values[0] - values[1]) / (2.0 * h), rel=1e-6)


def test_accumulated_gradients_have_the_scale_of_the_whole_batch(tmp_path):
    """The logged norm is that of the mean loss per dimension, whatever the number of parts."""
    norms = {}
    for parts in (1, 2, 4):
        config = changed(
            model={"dropout": 0.0}, optim={"steps": 1, "accumulate": parts, "clip_norm": 1e9}, run={"log_every": 1}
        )
        run = trainer(tmp_path / str(parts), config)
        if parts == 1:
            batch, images = run.draws(0), run.examples
            torch.manual_seed(0)
            terms = run.objective(
                run.density.train(), images.batch(batch.rows), None, t=batch.t, weight=batch.weight, noise=batch.noise
            )
            gradients = torch.autograd.grad(terms.mean() / run.window.dims, list(run.density.parameters()))
            expected = float(torch.stack([g.norm() for g in gradients]).norm())
        run.run()
        norms[parts] = run.window.norm
    assert norms == pytest.approx(dict.fromkeys(norms, expected), rel=1e-4)


def window_of(*batches):
    """A window after some batches of (terms, t, weight), and its lines, one after each."""
    window, fabric = Window(MAF((4,), VP, hidden=(8,)), Lattice(17)), launch(RunConfig(threads=1))
    for terms, t, weight in batches:
        loss, times, weights = (torch.tensor(v, dtype=F64) for v in (terms, t, weight))
        window.add(LossTerms(loss, loss / weights.clamp(min=1e-300), times, weights))
        yield window.close(fabric)


def bits(nats):
    return nats / (4 * math.log(2.0)) - math.log2(2.0 / 16.0)


def test_every_line_of_the_log_is_about_its_own_steps():
    first, second = window_of(([8.0, 4.0], [0.0, 0.05], [1.0, 1.0]), ([2.0, 2.0], [0.03, 0.05], [1.0, 1.0]))
    assert (first["loss"], first["bits_per_dim_zero"]) == pytest.approx((6.0, bits(8.0)))
    assert (second["loss"], second["bits_per_dim"]) == pytest.approx((2.0, bits(2.0)))
    assert "bits_per_dim_zero" not in second


def test_logged_bits_know_no_weights_at_any_time():
    """Terms are weight times nats: 5 and 7 nats at t = 0, 3 nats elsewhere; what has no weight has no nats."""
    (line,) = window_of(([10.0, 3.5, 12.0, 0.0], [0.0, 0.0, 0.05, 0.0], [2.0, 0.5, 4.0, 0.0]))
    assert line["bits_per_dim_zero"] == pytest.approx(bits(6.0))
    assert line["bits_per_dim"] == pytest.approx(bits(5.0))
    assert line["loss"] == pytest.approx(25.5 / 4)


def test_terms_keep_weights_apart_from_likelihoods():
    density, x = Logistics(), torch.randn(4, 3, dtype=F64, generator=seeded(6))
    weight, t = torch.tensor([2.0, 0.5, 0.0, 10.0], dtype=F64), torch.zeros(4, dtype=F64)
    terms = NCMLObjective(VP).terms(density, x, t=t, weight=weight)
    assert torch.equal(terms.nll, -density.log_prob(x))
    assert torch.equal(terms.loss, weight * terms.nll)
    assert torch.equal(terms.weight, weight)


def test_the_level_noise_table_averages_over_draws_at_zero():
    """Bits of the very data that were evaluated, one batch for each draw, and all of them different."""
    lattice, seen = Lattice(17), []
    density = MAF((4,), VP, hidden=(8,))
    x = lattice.to_unit(torch.randint(17, (20, 4), generator=seeded(2)))
    handle = density.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    clean, noisy = level_noise_table(density, x, (0.0, 0.5), lattice=lattice, draws=3, generator=seeded(3))
    handle.remove()
    assert len(seen) == 6
    for row, batches in ((clean, seen[:3]), (noisy, seen[3:])):
        assert all(not torch.equal(a, b) for a, b in zip(batches, batches[1:] + batches[:1], strict=True))
        each = torch.stack([lattice.bits_per_dim(density.log_prob(y), 4).values for y in batches])
        torch.testing.assert_close(row.bits.values, each.mean(0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("process", [*PROCESSES.values(), LevelNoise(5)], ids=lambda p: type(p).__name__)
def test_what_is_no_number_is_not_perturbed(process, value):
    x = torch.zeros(4, 3)
    x[2, 1] = value
    for t in (0.0, process.T):
        with pytest.raises(ArgumentError, match=r"x: got 1 non-finite"):
            process.perturb(x, t)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_level(value):
    lattice, x = Lattice(5), torch.zeros(4, 3)
    x[2, 1] = value
    with pytest.raises(ArgumentError, match=r"x: got 1 non-finite"):
        lattice.check(x)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (torch.ones(3), r"^weight: got shape \(3,\); expected \(4,\)"),
        (torch.ones(4, 1), r"^weight: got shape \(4, 1\)"),
        (torch.tensor([1.0, math.nan, 1.0, 1.0]), r"^weight: got 1 non-finite"),
        (torch.tensor([1.0, math.inf, 1.0, 1.0]), r"^weight: got 1 non-finite"),
    ],
)
def test_given_weights_are_checked(weight, match):
    with pytest.raises(ArgumentError, match=match):
        NCMLObjective(VP)(MAF((2,), VP, hidden=(8,)), torch.zeros(4, 2), t=0.0, weight=weight)


@pytest.mark.parametrize("options", [{}, {"t": torch.zeros(0)}, {"t": torch.zeros(0), "weight": torch.zeros(0)}])
def test_an_empty_batch_has_no_mean(options):
    density, x = MAF((2,), VP, hidden=(8,)), torch.zeros(0, 2)
    for reduction in ("mean", "sum"):
        with pytest.raises(ArgumentError, match="got an empty batch"):
            NCMLObjective(VP, reduction=reduction)(density, x, **options)
    assert NCMLObjective(VP, UniformTimes(), reduction="none")(density, x, **options).shape == (0,)


def test_only_the_networks_of_a_maf_are_in_half_precision():
    """Under autocast: the same numbers, to the bit, as with networks that say what they found out in float32."""
    density, x = MAF((32,), VP, transforms=2, hidden=(16,)), torch.randn(8, 32, generator=seeded(4))
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = density(x, torch.full((8,), VP.T))
        handles = [m.register_forward_hook(lambda module, inputs, output: output.float()) for m in density.nets]
        wide = density(x, torch.full((8,), VP.T))
    for handle in handles:
        handle.remove()
    assert plain.dtype == torch.float32
    assert torch.equal(plain, wide)
    assert not torch.equal(plain, density(x, torch.full((8,), VP.T)))  # the products were in half precision
