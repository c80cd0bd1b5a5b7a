r"""The terms of the objective, besides the likelihood, that use a density's score at the noisy rows of a batch.

The error of the score, by denoising score matching, and the residual of the Fokker-Planck equation. Neither moves the
optimum of an exact density: the first has its least value there, the second is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ncml.checks import per_example
from ncml.density import dims_of, score_of, slopes_of, unwrapped, usable
from ncml.density.gradient import derivative, random_direction
from ncml.errors import UnsupportedError
from ncml.noise import GaussianProcess

__all__ = ["check_sde", "score_terms"]


def check_sde(process: GaussianProcess, factor: float) -> None:
    """Refuse a process without an SDE: one whose noise falls behind the signal somewhere, so that no g fits.

    Raises:
        UnsupportedError: g(t) is 0 at one of 64 times, even in (0, T].
    """
    times = torch.linspace(0.0, process.T, 65, dtype=torch.float64)[1:]
    still = times[~(process.diffusion(times) > 0.0)]
    if len(still):
        raise UnsupportedError(
            f"fokker_planck: got {factor} under {process}, whose g(t) is 0 at t = {float(still[0]):.6g}; expected a "
            f"process that solves an SDE: sigma / alpha rises all the way to T"
        )


def score_terms(
    density: nn.Module,
    process: GaussianProcess,
    x_t: Tensor,
    t: Tensor,
    context: Tensor | None,
    noise: Tensor,
    *,
    score_matching: float,
    fokker_planck: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The two terms with their factors, ``(B,)``; 0 at t = 0, where neither a score nor a slope in t exists.

    Formulas in :class:`~ncml.NCMLObjective`. Both use the score of one call.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return score_terms(
                density,
                process,
                usable(x_t),
                usable(t),
                None if context is None else usable(context),
                usable(noise),
                score_matching=score_matching,
                fokker_planck=fokker_planck,
                generator=generator,
            )
    training = torch.is_grad_enabled()
    noisy = t > 0.0
    # One row at least: every process of a distributed run makes the same calls. At T, if it has no noise of its own.
    rows = noisy.nonzero()[:, 0] if bool(noisy.any()) else torch.zeros(1, dtype=torch.long, device=t.device)
    times = torch.where(noisy, t, process.T)[rows]
    x, given = x_t[rows], None if context is None else context[rows]
    if fokker_planck:
        score, first, second = _residuals(density, process, x, times, given, training, generator)
        total = 0.5 * fokker_planck * first * second
    else:
        score = score_of(density, x, times, given, create_graph=training)
        total = torch.zeros_like(score.flatten(1)[:, 0])
    if score_matching:
        sigma = per_example(process.sigma(times).to(score.dtype), score)
        error, inner = sigma * score + noise[rows], unwrapped(density)
        known = None if inner is None else inner.observed(x, given)
        error = error if known is None else torch.where(known, error, 0.0)  # the others' score is 0 by definition
        total = total + 0.5 * score_matching * error.flatten(1).square().sum(1)
    total = total if training else total.detach()
    return torch.where(noisy, torch.zeros_like(total[:1]).expand(len(t)).index_put((rows,), total), 0.0)


def _residuals(
    density: nn.Module,
    process: GaussianProcess,
    x: Tensor,
    t: Tensor,
    context: Tensor | None,
    training: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The score, and two residuals per unit of log(sigma / alpha) that differ only in the probe of their divergence."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        score, slope = slopes_of(density, x, t.detach().requires_grad_(), context)
        # d log(sigma / alpha) / dt is g^2 / (2 sigma^2).
        unit = 2.0 * (process.sigma(t) / process.diffusion(t)).square().to(score.dtype)
        residuals, dims = [], dims_of(density, x, context)
        for _ in range(2):
            v = random_direction(x, "rademacher", generator)
            hv = derivative((score * v).sum(), x, create_graph=training, retain_graph=True)
            divergence = (hv * v).flatten(1).sum(1)
            residuals.append(unit * process.fokker_planck(x, t, slope, score, divergence, dims))
    return score, residuals[0], residuals[1]
