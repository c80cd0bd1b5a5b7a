"""Checks of a density's samples, and of their agreement with the likelihood."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ncml.density import SampleableDensity
from ncml.errors import NonFiniteError
from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.expectations import (
    default_rng_restored,
    default_rng_untouched,
    expect,
    expect_same_bits,
    require,
)
from ncml.testing.numerics import FALSE_ALARM, Z, cdf_distance, count_tail, dkw_bound, gauss_legendre

FEW = 64
"""Samples drawn where their distribution does not matter."""

OTHERS, FACTORS = 31, (0.5, 4.0)
"""Points that a sample is exchanged with, and how far around it, in widths of the density, at least and at most."""

DROPS = (2.0, 3.125, 4.5)
"""How far below the highest log-density of a line its tails begin: at 2, 2.5 and 3 standard deviations of a normal."""

COLUMNS = 64
"""Most columns of a context that ranks are compared with."""

SEGMENTS = 128
"""Segments on which jumps are sought."""

CROSS_DIMS = 16
"""Up to so many dimensions, Stein's identity is checked for every pair of coordinates."""


def samples_have_shape_and_dtype(case: DensityCase) -> None:
    require(case.can_sample, "cannot sample")
    density = cast(SampleableDensity, case.copy())
    for t in case.times:
        for n in (0, 3):
            x = density.sample(n, t, case.contexts(n, own=True), generator=case.generator())
            expected = ((n, *density.event_shape), case.density.dtype, case.density.device)
            expect(
                (tuple(x.shape), x.dtype, x.device) == expected and not x.requires_grad,
                f"sample({n}) of {tuple(x.shape)}, {x.dtype}, {x.device}, requires_grad={x.requires_grad}",
                "{}, {}, {}, detached".format(*expected),
                "sample runs under no_grad and returns (n, *event_shape), also for n = 0",
            )


def samples_come_from_the_generator(case: DensityCase) -> None:
    density = case.sampleable
    for t in case.times:
        with default_rng_untouched("sample with a generator"):
            first, again, other = (case.draw(t, FEW, stream) for stream in (0, 0, 1))
        expect_same_bits(first, again, "samples of equally seeded generators", "draw everything from the generator")
        expect(not torch.equal(first, other), "the same samples of different generators", "others", "the seed is fixed")
    with default_rng_restored():
        calls = [density.sample(FEW, case.times[-1], case.contexts(FEW)) for _ in range(2)]
    expect(not torch.equal(*calls), "the same samples from two calls without a generator", "others", "never reseed")


def samples_are_on_the_lattice_where_the_process_is(case: DensityCase) -> None:
    require(case.density.lattice is not None and case.process is not None, "no lattice")
    density, lattice = case.sampleable, case.density.lattice
    assert lattice is not None
    assert case.process is not None
    times = torch.tensor(case.times, dtype=torch.float64, device=case.x.device).repeat(FEW)
    x = density.sample(times.numel(), times, case.contexts(times.numel()), generator=case.generator())
    off = ~lattice.on_lattice(x).flatten(1).all(1) & case.process.on_lattice(times)
    expect(
        not off.any(),
        f"{int(off.sum())} samples off the lattice, the first at t = {float(times[off][:1].sum()):.3g}",
        "lattice points wherever process.on_lattice(t)",
        "masses belong to lattice points: round to the nearest level there, each row by its own t",
    )


def noisy_samples_are_neither_clamped_nor_rounded(case: DensityCase) -> None:
    density = case.sampleable
    require(bool(case.density_times), "there are masses at all of these times")
    t = max(case.density_times)
    require(t > 0.0, "no time > 0 to check")
    n = max(1, 2048 // case.dims)
    x = density.sample(n, t, case.contexts(n), generator=case.generator()).flatten()
    values, counts = x.unique(return_counts=True)
    most = int(counts.argmax())
    expect(
        int(counts[most]) < 4,
        f"the value {float(values[most]):.9g} {int(counts[most])} times among {x.numel()} at t = {t:.3g}",
        "values that do not repeat",
        "noisy samples are real numbers: clamping them to [-1, 1] or rounding them changes their distribution",
    )


def stein_identities_hold(case: DensityCase) -> None:
    require(case.has_score, "no score")
    require(bool(case.density_times), "there are masses at all of these times")
    for t in case.density_times:
        x = case.draw(t)
        score = in_chunks(case.exact.score, x, t, case.contexts(x.shape[0])).flatten(1)
        x = x.flatten(1)
        pairs = (score[:, :, None] * x[:, None, :]) if case.dims <= CROSS_DIMS else (score * x)[:, :, None]
        target = -torch.eye(case.dims).to(x) if case.dims <= CROSS_DIMS else -torch.ones(case.dims, 1).to(x)
        where = f"over {x.shape[0]} samples at t = {t:.3g}"
        meaning = (
            "the score and the samples belong to different densities; look at the sampler's use of t, its inverse, and "
            "the order of its parameters"
        )
        for name, values, expected in (("s", score, torch.zeros_like(score[0])), ("s x^T", pairs, target)):
            z = (values.mean(0) - expected) / (values.std(0) / math.sqrt(x.shape[0])).clamp(min=1e-12)
            worst = float(z.abs().max())
            if worst > Z:
                require(not _jumps(case, t, x), f"the density has jumps at t = {t:.3g}, which its score cannot know of")
            expect(worst <= Z, f"a mean of {name} {worst:.1f} standard errors off {where}", f"at most {Z}", meaning)


def samples_follow_the_density(case: DensityCase) -> None:
    r"""Each sample is as likely to be the one among equals as its density says.

    A value x of a sample with density p, and K further ones that are drawn around a point that was drawn around x, can
    be exchanged: given all of them, x is the j-th with probability :math:`p(y_j) / \sum_i p(y_i)`, along any line. The
    share of the mass below x is then uniform, whatever p is like, and without an integral. It is so in every context,
    and x lies in the tails of the line as often as their share of the mass says.
    """
    density, n = case.sampleable, case.samples * len(case.times)
    index = torch.arange(n, device=case.x.device) % len(case.times)
    times = torch.tensor(case.times, dtype=torch.float64, device=case.x.device)[index]
    contexts = case.contexts(n)
    samples = density.sample(n, times, contexts, generator=case.generator(2)).double()
    tails = []
    for i, t in enumerate(case.times):
        lines = Lines(case, t, samples[index == i], None if contexts is None else contexts[index == i])
        u = lines.lattice_ranks() if case.has_masses(t) else lines.ranks()
        _expect_uniform(u, lines.context, t)
        tails.append(lines.tails)
    _expect_tails(*(torch.cat(parts) for parts in zip(*tails, strict=True)))


DISAGREE = (
    "sample and log_prob disagree: look at each row's own t and context, at swapped or unbounded parameters, at "
    "rounding and clamping, at the uniform window of lattice data at t > 0, at conditionals that see themselves or "
    "later values"
)


def _expect_uniform(u: Tensor, context: Tensor | None, t: float) -> None:
    n = u.numel()
    where = f"over {n} samples at t = {t:.3g}"
    meaning = DISAGREE
    distance = cdf_distance(u)
    expect(
        distance <= dkw_bound(n),
        f"conditional ranks {distance:.4f} from uniform {where}",
        f"at most {dkw_bound(n):.4f}",
        meaning,
    )
    for name, v, mean, variance in (
        ("location", u, 1.0 / 2.0, 1.0 / 12.0),
        ("spread", (u - 0.5).square(), 1.0 / 12.0, 1.0 / 180.0),
    ):
        z = abs(float(v.mean()) - mean) / math.sqrt(variance / n)
        expect(z <= Z, f"conditional ranks with a {name} {z:.1f} standard errors off {where}", f"at most {Z}", meaning)
    if context is not None:
        columns = _columns(context)
        slopes = (u - 0.5) @ columns * (12.0 / columns.square().sum(0)).sqrt()
        worst = float(slopes.abs().amax()) if slopes.numel() else 0.0
        expect(
            worst <= Z,
            f"conditional ranks that go with the context, {worst:.1f} standard errors {where}",
            f"at most {Z}",
            "the sampler ignores the context, or takes that of another row; " + meaning,
        )


def _columns(context: Tensor) -> Tensor:
    """What a context consists of, numbers or an indicator of each label, centred; not where few rows decide."""
    flat = context.flatten(1) if context.ndim > 1 else context[:, None]
    if not flat.is_floating_point():
        flat = torch.cat([column[:, None] == column.unique() for column in flat[:, :COLUMNS].unbind(1)], dim=1)
    columns = flat[:, :COLUMNS].double()
    columns = columns - columns.mean(0)
    square = columns.square()
    return columns[:, square.amax(0) < 0.05 * square.sum(0)]


def _expect_tails(found: Tensor, share: Tensor) -> None:
    """Samples beyond each of the drops, as many as their probabilities say."""
    for drop, far, p in zip(DROPS, found.unbind(1), share.unbind(1), strict=True):
        count = int(far.sum())
        expect(
            count_tail(count, p) >= FALSE_ALARM,
            f"{count} of {len(far)} samples where the density is {drop:g} nats below its highest on a line",
            f"about {float(p.sum()):.0f}",
            "the tails of the samples are cut, or too heavy: a truncated normal, a bounded uniform before an inverse "
            "distribution function, a temperature; " + DISAGREE,
        )


class Lines:
    """One line through each sample, along a random coordinate."""

    def __init__(self, case: DensityCase, t: float, x: Tensor, context: Tensor | None) -> None:
        self.case, self.t, self.x, self.context = case, t, x.flatten(1), context
        n = x.shape[0]
        self.generator = case.generator(3)
        self.coordinate = torch.randint(case.dims, (n, 1), device=x.device, generator=self.generator)
        self.value = self.x.gather(1, self.coordinate)
        self.tails: tuple[Tensor, ...] = ()

    def look_at_tails(self, log_p: Tensor, sample: Tensor) -> None:
        """Whether each sample, its column in ``log_p``, is in the tails of its line, and how probable that is."""
        drops = torch.tensor(DROPS, dtype=torch.float64, device=log_p.device)
        far = log_p[:, :, None] < log_p.amax(1)[:, None, None] - drops
        found = far.gather(1, sample[:, :, None].expand(-1, -1, len(DROPS)))[:, 0]
        self.tails = found, (log_p.softmax(1)[:, :, None] * far).sum(1)

    def log_prob(self, values: Tensor, rows: Tensor) -> Tensor:
        """``log_prob`` of the samples ``rows`` with the coordinate replaced by each of ``values``, ``(rows, K)``."""
        k = values.shape[1]
        points = self.x[rows].repeat_interleave(k, dim=0)
        points.scatter_(1, self.coordinate[rows].repeat_interleave(k, dim=0), values.reshape(-1, 1))
        context = None if self.context is None else self.context[rows].repeat_interleave(k, dim=0)
        points = points.reshape(-1, *self.case.density.event_shape)
        return in_chunks(self.case.exact.log_prob, points, self.t, context).reshape(-1, k)

    def lattice_ranks(self) -> Tensor:
        """Ranks of the samples among all levels of their slices, randomised within their own level."""
        lattice = self.case.density.lattice
        assert lattice is not None
        n = self.x.shape[0]
        points = lattice.points(dtype=torch.float64, device=self.x.device).expand(n, -1)
        log_p = self.log_prob(points, torch.arange(n, device=self.x.device))
        level = lattice.nearest(self.value)
        self.look_at_tails(log_p, level)
        mass = log_p.softmax(1)
        jitter = torch.rand(n, 1, dtype=torch.float64, device=self.x.device, generator=self.generator)
        return (mass.cumsum(1) - mass + jitter * mass).gather(1, level)[:, 0]

    def ranks(self) -> Tensor:
        """The share of the density below each sample, among points that it can be exchanged with."""
        n, device = self.x.shape[0], self.x.device
        width = self.case.widths(self.case.typical(self.t, stream=17), self.t)[self.coordinate]
        u = torch.rand(n, 2, dtype=torch.float64, device=device, generator=self.generator)
        z = torch.randn(n, OTHERS + 1, dtype=torch.float64, device=device, generator=self.generator)
        z *= width * FACTORS[0] * (FACTORS[1] / FACTORS[0]) ** u[:, :1]
        around = self.value + z[:, :1]
        points = torch.cat([self.value, around + z[:, 1:]], dim=1)
        log_p = self.log_prob(points, torch.arange(n, device=device))
        expect(
            bool((log_p[:, 0] > -math.inf).all()),
            f"{int((log_p[:, 0] == -math.inf).sum())} samples whose density is 0 at t = {self.t:.3g}",
            "none",
            "the sampler draws what cannot be",
        )
        self.look_at_tails(log_p, torch.zeros_like(self.coordinate))
        mass = log_p.softmax(1)
        below = (mass * (points < self.value)).sum(1)
        return below + u[:, 1] * mass[:, 0]


def _jumps(case: DensityCase, t: float, x: Tensor) -> bool:
    """Whether log-densities differ by something else than the score between them, as where a density ends."""
    x = x[:SEGMENTS]
    length = 2.0 * case.widths(x, t)
    v = torch.randn(x.shape, dtype=torch.float64, device=x.device, generator=case.generator(18))
    move = length * v / v.norm(dim=1, keepdim=True)
    share, weight = gauss_legendre(torch.linspace(0.0, 1.0, 17, dtype=torch.float64, device=x.device))
    points = x[:, None] + move[:, None] * share[:, None]
    context = case.contexts(len(x))
    each = None if context is None else context.repeat_interleave(len(share), dim=0)
    ends = [in_chunks(case.exact.log_density, case.events(v), t, context) for v in (x, x + move)]
    try:
        slope = in_chunks(case.exact.score, case.events(points.flatten(0, 1)), t, each).reshape(points.shape)
    except NonFiniteError:
        return True
    gained = ((slope * move[:, None]).sum(2) * weight).sum(1)
    change = ends[1] - ends[0]
    apart = ~change.isfinite() | ((change - gained).abs() > 0.01 * (1.0 + change.abs()))
    return int(apart.sum()) > len(x) // 50


CHECKS = (
    samples_have_shape_and_dtype,
    samples_come_from_the_generator,
    samples_are_on_the_lattice_where_the_process_is,
    noisy_samples_are_neither_clamped_nor_rounded,
    stein_identities_hold,
    samples_follow_the_density,
)
