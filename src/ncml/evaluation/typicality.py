r"""Out-of-distribution detection by the whole ladder, calibrated on training data.

One likelihood cannot tell data from what is simpler than data. A ladder of exact densities knows more of an example x,
which is not noised here: how its log-density changes from one noise level to the next, which are likelihood ratios
:math:`\log p_{t_{k+1}}(x) - \log p_{t_k}(x)` between models of coarser and finer content (in the spirit of Ren et al.,
2019), and how strongly each level would denoise it, :math:`\log \lVert\nabla\log p_{t_k}(x)\rVert` (Mahmood et al.,
2021). Neither is larger or smaller for data by construction, so what counts is how typical they are:
:class:`Typicality` measures their distance from those of training data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ncml.checks import check_finite, check_floating, check_probability
from ncml.density import check_log_density, evaluating, inner_density, score_of
from ncml.errors import ArgumentError
from ncml.evaluation.likelihood import batches, check_batch, warn_of_failed

__all__ = ["Typicality", "ladder_statistics"]

LEAST = -1e30  # of a log-density, where it is 0
ROUNDING = 2.0**-22  # of the mean, by single precision: what varies by less is constant


def ladder_statistics(
    density: nn.Module,
    x: Tensor,
    times: Sequence[float],
    context: Tensor | None = None,
    *,
    batch_size: int = 512,
    progress: bool = False,
) -> dict[str, Tensor]:
    r"""What every level of a ladder says about examples, to which no noise is added.

    Args:
        density: The density, or a wrapper of one. Run in eval mode; its training flags are restored.
        x: Examples ``(B, *event_shape)``.
        times: K times in ascending order, at least 2.
        context: Conditioning with one row per example, or None.
        batch_size: Examples per pass.
        progress: Show a progress bar (needs tqdm).

    Returns:
        Tensors in float64, ``(B, K - 1)`` and ``(B, K)``:

        * ``log_ratios``: :math:`\log p_{t_{k+1}}(x) - \log p_{t_k}(x)` in nats, of the densities without lattice edges;
        * ``log_score_norms``: :math:`\log \lVert\nabla \log p_{t_k}(x)\rVert_2`, at least -700, also of a score of 0.

    Raises:
        ArgumentError: No examples, fewer than two times, or times that do not ascend.

    Warns:
        FailedRowsWarning: A log-density is NaN or ``+inf``, or a score is not finite, of examples that it names: what
            cannot be computed of them is NaN.
    """
    ascending = [float(t) for t in times]
    if len(ascending) < 2 or sorted(set(ascending)) != ascending:
        raise ArgumentError(f"times: got {ascending}; expected at least two, in ascending order")
    inner = inner_density(density)
    log_p, norms = [], []
    for t in ascending:
        y, at, given = check_batch(inner, x, t, context)
        values, lengths = [], []
        with evaluating(density), torch.no_grad():
            for rows in batches(y.shape[0], batch_size, progress, f"t = {t:.3g}"):
                c = None if given is None else given[rows]
                value = density(y[rows], at[rows], c, edges=False)
                values.append(check_log_density(value, y[rows], at[rows], type(inner).__name__, finite=False).double())
                score = score_of(density, y[rows], at[rows], c)
                lengths.append(score.double().flatten(1).norm(dim=1).log().clamp(min=-700.0))
        log_p.append(torch.cat(values))
        norms.append(torch.cat(lengths))
    logs, strengths = (torch.stack(v, 1) for v in (log_p, norms))
    logs, strengths = (v.masked_fill(v == math.inf, math.nan) for v in (logs, strengths))
    warn_of_failed((logs + strengths).isnan().any(1), "ladder_statistics", x.dtype)
    ratios = logs.clamp(min=LEAST).diff(dim=1)  # 0 / 0 is 1: no level tells more than another
    return {"log_ratios": ratios, "log_score_norms": strengths}


@dataclass(frozen=True, eq=False)
class Typicality:
    r"""How near statistics of an example are to those of training data: minus their Mahalanobis distance.

    .. math:: -\sqrt{(f - m)^\top C^{-1} (f - m)}

    Build it with :meth:`fit`.

    Args:
        mean: Mean of the statistics, ``(F,)``.
        std: Their standard deviations, ``(F,)``.
        factor: Cholesky factor of their correlations, ``(F, F)``.

    Example:
        >>> training = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
        >>> typical = Typicality.fit(training)
        >>> [round(value, 2) for value in typical(torch.tensor([[0.5, 0.0], [0.0, 10.0]])).tolist()]
        [-0.61, -2.45]
    """

    mean: Tensor
    std: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, features: Tensor, *, shrinkage: float = 0.1) -> Self:
        """Mean and covariance of training statistics.

        Args:
            features: Statistics of training examples, ``(N, F)``, of which N must be at least 2.
            shrinkage: Share of the identity in the correlations, so that statistics that (nearly) determine each other,
                or few examples, do no harm.

        Raises:
            ArgumentError: Fewer than 2 rows, values that are not finite; without shrinkage, statistics that determine
                each other.
        """
        check_floating(features, "features")
        if features.ndim != 2 or features.shape[0] < 2:
            raise ArgumentError(f"features: got shape {tuple(features.shape)}; expected (N, F) with N >= 2")
        check_finite(features, "features", "leave out the examples whose statistics are not finite")
        check_probability(shrinkage, "shrinkage")
        f = features.double()
        mean, std = f.mean(0), f.std(0)
        std = torch.where(std > ROUNDING * mean.abs(), std, 1.0)  # what never varies counts in its own unit
        z = (f - mean) / std
        identity = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        correlation = torch.lerp(z.T @ z / (len(f) - 1), identity, shrinkage)
        factor, info = torch.linalg.cholesky_ex(correlation)
        if bool(info) or float(factor.diagonal().min()) < 1e-6:  # or singular but for rounding
            raise ArgumentError(
                f"shrinkage: got {shrinkage} for statistics that follow from each other, or too few rows ({len(f)} for "
                f"{f.shape[1]} statistics); expected shrinkage > 0"
            )
        return cls(mean, std, factor)

    def __call__(self, features: Tensor) -> Tensor:
        """Minus the distances of ``(B, F)`` statistics, ``(B,)``: the larger, the more typical.

        Raises:
            ArgumentError: Another shape, or values that are not finite.
        """
        check_floating(features, "features")
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ArgumentError(f"features: got shape {tuple(features.shape)}; expected (B, {len(self.mean)})")
        check_finite(features, "features", "leave out the examples whose statistics are not finite")
        z = (features.double() - self.mean) / self.std
        return -torch.linalg.solve_triangular(self.factor, z.T, upper=False).norm(dim=0)
