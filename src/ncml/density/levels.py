"""The noise level of a sample, by the likelihoods of all levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ncml.density.checks import check_arguments, check_log_density
from ncml.density.entry import inner_density
from ncml.density.modes import evaluating
from ncml.errors import ArgumentError, NonFiniteError

__all__ = ["time_posterior"]


def time_posterior(
    density: nn.Module,
    x: Tensor,
    times: Sequence[float],
    context: Tensor | None = None,
    *,
    prior: Sequence[float] | None = None,
    shared: bool = False,
) -> Tensor:
    r"""Which noise level samples have: :math:`p(t \mid x) \propto \mu(t)\, p_t(x)` on a grid of times.

    Args:
        density: The density.
        x: Samples of unknown noise, ``(B, *event_shape)``.
        times: The K times in question.
        context: Conditioning with B rows, or None.
        prior: Their masses :math:`\mu`, normalised here; uniform if None.
        shared: All rows have the same noise: :math:`p(t \mid x) \propto \mu(t) \prod_i p_t(x_i)`, the same for each.

    Returns:
        Probabilities ``(B, K)``, float64, that sum to 1 over the times.

    Raises:
        ArgumentError: No times, or masses that do not fit them.
        NonFiniteError: A log-density is NaN or ``+inf``; or a row has no mass at any of the times, with ``shared`` all
            rows together.
    """
    inner = inner_density(density)
    masses = [1.0] * len(times) if prior is None else [float(m) for m in prior]
    if not len(times) or len(masses) != len(times) or not all(0.0 <= m < math.inf for m in masses) or not sum(masses):
        raise ArgumentError(
            f"times, prior: got {len(times)} times and {len(masses)} masses; expected a mass >= 0 for every time"
        )
    columns = []
    with evaluating(density), torch.no_grad():
        for t in times:
            y, at, given = check_arguments(inner, x, float(t), context)
            log_p = density(y, at, given, edges=False)
            columns.append(check_log_density(log_p, y, at, type(inner).__name__).double())
    log_p = torch.stack(columns, 1)
    log_prior = torch.tensor(masses, dtype=torch.float64, device=log_p.device).log()
    # Rows are summed before anything is normalised: what one finds all but impossible, another may prefer by more.
    joint = (log_p.sum(0, keepdim=True) if shared else log_p) + log_prior
    if bool((nowhere := ~(joint.amax(1) > -math.inf)).any()):
        if shared:
            raise NonFiniteError(
                f"x: got {len(log_p)} rows that no time explains together: at each, one or more have a density of 0; "
                f"expected rows of one noise level; pass shared=False"
            )
        raise NonFiniteError(
            f"x: got {int(nowhere.sum())} rows where the density is 0 at every time, the first at index "
            f"{int(nowhere.nonzero()[0])}; expected rows that some noise level explains"
        )
    return joint.softmax(1).expand(len(log_p), -1)
