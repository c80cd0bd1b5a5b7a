"""Checks of densities that take a part of an event: rows of different lengths, prefixes, rows with gaps."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise

import torch
from torch import Tensor

from ncml.testing.cases import DensityCase, in_chunks
from ncml.testing.expectations import expect, expect_close, require
from ncml.testing.numerics import PANELS, gauss_legendre

PREFIXES, TYPICAL = 3, 64
"""Rows of which prefixes are completed, and rows that tell how wide the density is."""

FIRST, LAST = 8, 256
"""Divisions of a panel of the integral over the next value, at first and at most."""

SETTLED = 1e-6
"""By how much two resolutions of it may differ."""


def lengths_cut_the_rows(case: DensityCase) -> None:
    require("lengths" in inspect.signature(case.density.forward).parameters, "its forward takes no lengths")
    longest = case.density.event_shape[0]
    require(longest > 1, "one position")
    x, t, context = case.batch()
    lengths = 1 + torch.arange(len(x), device=x.device) % longest
    places = torch.arange(longest, device=x.device).reshape(1, -1, *[1] * (x.ndim - 2))
    behind = (places >= lengths.reshape(-1, *[1] * (x.ndim - 1))).expand_as(x)
    for name in case.methods:
        method = getattr(case.exact, name)
        found = method(x, t, context, lengths=lengths)
        expect_close(
            method(x.masked_fill(behind, math.nan), t, context, lengths=lengths),
            found,
            1e-9,
            f"{name} with NaN behind the lengths against other values there",
            "positions behind the length count",
        )
        for i, n in enumerate(lengths.tolist()):
            cut = x[i : i + 1, :n]
            if not _accepts(case, cut):
                continue
            alone = method(cut, t[i : i + 1], None if context is None else context[i : i + 1])[0]
            expect_close(
                found[i, :n] if name == "score" else found[i],
                alone,
                1e-9,
                f"{name} of a row with lengths={n} against that of its first {n} positions alone",
                "forward leaves lengths out, or what lies behind reaches what counts",
            )
        if name == "score":
            expect(
                not bool(found[behind].any()),
                f"a score of up to {float(found[behind].abs().max()):.3g} behind the lengths",
                "0",
                "what does not count has no influence",
            )


def prefixes_are_marginals(case: DensityCase) -> None:
    r"""The density of a prefix times that of the next value given it is the density of both."""
    taken = [_accepts(case, case.x[:1, :n]) for n in range(1, case.density.event_shape[0] + 1)]
    lengths = [n for n, (part, longer) in enumerate(pairwise(taken), 1) if part and longer]
    require(bool(lengths), "it takes whole events only")
    require(math.prod(case.density.event_shape[1:]) == 1, "several values at a position")
    for t in case.times:
        typical = case.typical(t, TYPICAL).to(case.dtype)
        x, widths = typical[:PREFIXES], case.widths(typical, t)
        for n in sorted({lengths[0], lengths[-1]}):
            for i, total in enumerate(_totals(case, x[:, :n], x[:, n].flatten(), t, float(widths[n]))):
                require(math.isfinite(total), f"{LAST} divisions do not resolve the next value at t = {t:.3g}")
                expect(
                    abs(total - 1.0) <= max(1e-5, case.tolerance(1e-9)),
                    f"a probability of {total:.9g} of all next values given prefix {i} of {n} positions at t = {t:.3g}",
                    "1",
                    "the log-density of a shorter event is that of the first positions of a longer one, exactly",
                )


def only_observed_values_count(case: DensityCase) -> None:
    x, t, context = case.batch()
    mask = case.exact.observed(x, context)
    require(mask is not None and not bool(mask.all()), "every value is observed")
    assert mask is not None
    other = case.x[(1 + torch.arange(len(x), device=x.device)) % len(case.x)]
    if case.process is not None:
        other = case.process.perturb(other, t, generator=case.generator(8))
    for name in case.methods:
        method = getattr(case.exact, name)
        expect_close(
            method(torch.where(mask, x, other.to(x)), t, context),
            method(x, t, context),
            1e-9,
            f"{name} with other values where observed() is False",
            "the log-density is that of the observed values; or observed() says False of a value that counts",
        )
    if case.has_score:
        away = case.exact.score(x, t, context)[~mask]
        expect(
            not bool(away.any()),
            f"a score of up to {float(away.abs().max()):.3g} where observed() is False",
            "0",
            "the log-density does not depend on values that are not observed",
        )


def _accepts(case: DensityCase, x: Tensor) -> bool:
    """Whether a batch of a part of events is one of the density's."""
    return tuple(case.density.event_shape_for(x)) == tuple(x.shape[1:])


def _totals(case: DensityCase, prefix: Tensor, following: Tensor, t: float, width: float) -> list[float]:
    """The probability of all next values given each prefix; infinity where it is not resolved.

    Args:
        case: What is checked.
        prefix, following: Prefixes, and a next value of each, ``(B,)``, near which nodes lie as densely as needed.
        t: The time.
        width: How wide the density is along the next value.
    """
    context = case.contexts(len(prefix))
    method = case.exact.log_prob if case.has_masses(t) else case.exact.log_density
    before = in_chunks(method, prefix, t, context)
    if case.has_masses(t):
        lattice = case.density.lattice
        assert lattice is not None
        values = lattice.points(dtype=torch.float64, device=prefix.device)
        return _sums(case, prefix, before, values, torch.full_like(values, lattice.width), t).tolist()
    centre = float(following.mean())
    scale = max(float((following - centre).abs().max()), float(case.noisy(t).std()), 1e-3)
    half = torch.tensor(PANELS, dtype=torch.float64, device=prefix.device)
    panels = torch.cat([-half.flip(0)[:-1], half])
    width = max(width, 1e-12 * scale)
    if scale > FIRST * width:  # from the width up, each panel twice as long as the one before
        away = width * 2.0 ** torch.arange(math.ceil(math.log2(scale / width)), dtype=torch.float64).to(panels)
        near = torch.cat([-away.flip(0), away.new_zeros(1), away])
        beside = ((following.double()[:, None] + near - centre) / scale).asinh().flatten()
        panels = torch.cat([panels, beside]).clamp(-PANELS[-1], PANELS[-1]).unique()
    last, divisions = torch.full_like(before, math.inf), FIRST
    while divisions <= LAST:
        steps = torch.arange(divisions, dtype=torch.float64, device=prefix.device) / divisions
        edges = torch.cat([(panels[:-1, None] + panels.diff()[:, None] * steps).flatten(), panels[-1:]])
        y, weight = gauss_legendre(edges)
        total = _sums(case, prefix, before, centre + scale * y.sinh(), weight * scale * y.cosh(), t)
        settled = ((total - last).abs() <= SETTLED) & (total > SETTLED)  # rules that both miss it agree on nothing
        if bool(settled.all()):
            return total.tolist()
        last, divisions = total, 2 * divisions
    return torch.where(settled, total, math.inf).tolist()


def _sums(case: DensityCase, prefix: Tensor, before: Tensor, values: Tensor, weight: Tensor, t: float) -> Tensor:
    """Weighted sums over the next values of their densities given each prefix."""
    n, k = len(prefix), len(values)
    rows = prefix.repeat_interleave(k, dim=0)
    following = values.repeat(n).reshape(-1, *[1] * (prefix.ndim - 1)).expand(-1, 1, *prefix.shape[2:])
    context = case.contexts(n)
    method = case.exact.log_prob if case.has_masses(t) else case.exact.log_density
    each = None if context is None else context.repeat_interleave(k, dim=0)
    log_p = in_chunks(method, torch.cat([rows, following.to(rows)], dim=1), t, each).reshape(n, k)
    return (weight * (log_p - before[:, None]).exp()).sum(1)


CHECKS = (
    lengths_cut_the_rows,
    prefixes_are_marginals,
    only_observed_values_count,
)
