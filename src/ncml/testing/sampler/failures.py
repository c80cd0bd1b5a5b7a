"""Checks of what becomes of rows whose score is NaN."""

from __future__ import annotations

from functools import partial

import torch

from ncml.testing.cases import FEW, SamplerCase
from ncml.testing.expectations import expect, expect_refused, expect_same_bits, require
from ncml.testing.reference import FailingGaussian

BAD = 3
"""The row that fails."""

SHARES = (1.0, 0.5)
"""Up to which share of T it fails: at once, and on the way."""


def _context(case: SamplerCase) -> torch.Tensor:
    """Zeros, and 1 in the row that fails; where rows interact they have one context, and all fail."""
    if case.sampler.rows_interact:
        return torch.ones(FEW, 1, dtype=torch.float64)
    return torch.zeros(FEW, 1, dtype=torch.float64).index_fill_(0, torch.tensor([BAD]), 1.0)


def _fails(case: SamplerCase, below: float) -> bool:
    """Whether the sampler evaluates anything down there: one that makes a single step does not."""
    density = case.density()
    case.brief(density, case.start(), context=_context(case), generator=case.generator())
    return bool((density.times <= below).any())


def non_finite_scores_are_refused(case: SamplerCase) -> None:
    for below in (share * case.process.T for share in SHARES):
        if not _fails(case, below):
            continue
        density, x = FailingGaussian(case.process, below).train(), case.start()
        before = x.clone()
        expect_refused(
            partial(case.brief, density, x, context=_context(case), generator=case.generator()),
            f"a score of NaN in one row at t <= {below:.3g}",
            (FloatingPointError,),
            "never return such samples, unless on_failure='keep': take the scores from the target, which raises",
        )
        expect_same_bits(x, before, "x after the error", "an error leaves everything as it was")
        expect(
            density.training and density.child.training,
            "training flags lost after the error",
            "flags as before the call",
            "restore them in a finally",
        )


def failed_rows_do_not_cost_the_others(case: SamplerCase) -> None:
    require(not case.sampler.rows_interact, "rows interact on purpose")
    x, context = case.start(), _context(case)
    sound = case.brief(case.density(), x, context=context, generator=case.generator())
    others = torch.arange(FEW) != BAD
    for below in (share * case.process.T for share in SHARES):
        refined = case.brief.refine(
            FailingGaussian(case.process, below), x, context=context, generator=case.generator(), on_failure="keep"
        )
        meaning = (
            "with on_failure='keep' a row that fails is NaN and named, and the others are what they would have been"
        )
        failed = refined.info.get("failed")
        named = [] if failed is None else failed.tolist()
        expected = [BAD] if _fails(case, below) else []
        expect(named == expected, f"info['failed'] = {named} (failing at t <= {below:.3g})", f"{expected}", meaning)
        nan = refined.x.isnan().all(1).nonzero().flatten().tolist()
        expect(nan == expected, f"NaN in the rows {nan} (failing at t <= {below:.3g})", f"{expected}", meaning)
        expect_same_bits(refined.x[others], sound[others], "the other rows against a run without failure", meaning)


CHECKS = (
    non_finite_scores_are_refused,
    failed_rows_do_not_cost_the_others,
)
