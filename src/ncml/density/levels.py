"""The noise level of a sample, by the likelihoods of all levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ncml.density.checks import check_arguments
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
) -> Tensor:
    r"""Which noise level samples have: :math:`p(t \mid x) \propto \mu(t)\, p_t(x)` on a grid of times.

    Args:
        density: The density.
        x: Samples of unknown noise, ``(B, *event_shape)``.
        times: The K times in question.
        context: Conditioning with B rows, or None.
        prior: Their masses :math:`\mu`, normalised here; even if None.

    Returns:
        Probabilities ``(B, K)``, float64, that sum to 1 over the times.

    Raises:
        ArgumentError: No times, or masses that do not fit them.
        NonFiniteError: A row has no mass at any of the times.
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
            columns.append(density(y, at, given, edges=False).double())
    log_prior = torch.tensor(masses, dtype=torch.float64, device=columns[0].device).log()
    joint = torch.stack(columns, 1) + log_prior
    if bool((nowhere := ~(joint.amax(1) > -math.inf)).any()):
        raise NonFiniteError(
            f"x: got {int(nowhere.sum())} rows where the density is 0 or NaN at every time, the first at index "
            f"{int(nowhere.nonzero()[0])}; expected rows that some noise level explains"
        )
    return joint.softmax(1)
