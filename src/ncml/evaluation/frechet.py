r"""Fréchet distance between two sets of features.

With Gaussians fitted to both sets,

.. math:: d^2 = \|m_1 - m_2\|^2 + \operatorname{tr}\!\left(A + B - 2\,(A^{1/2} B A^{1/2})^{1/2}\right),

the *squared* 2-Wasserstein distance between them. With the activations of an Inception network it is
called FID (Heusel et al., 2017). Values from other features are not comparable with published FIDs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ncml.checks import check_finite, check_floating
from ncml.density import evaluating
from ncml.errors import ArgumentError
from ncml.evaluation.likelihood import batches

__all__ = ["features_of", "frechet_distance", "gaussian_frechet"]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared 2-Wasserstein distance between the Gaussians fitted to two feature matrices.

    In float64, with unbiased covariances (divisor N - 1, as the reference FID). Fewer rows than
    features are fine, but the estimate is biased upward for small N: compare at equal N only.

    Args:
        a: Features ``(N, F)``, at least two rows.
        b: Features ``(M, F)``, at least two rows.

    Raises:
        ArgumentError: Shapes that do not fit, fewer than two rows, NaN or infinity.

    Example:
        >>> from ncml.evaluation import frechet_distance
        >>> a = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(a, a + 3.0), 12)
        9.0
    """
    moments = *_moments(a, "a"), *_moments(b, "b")
    for features, name in ((a, "a"), (b, "b")):
        if features.shape[0] <= features.shape[1]:
            warnings.warn(
                f"{name}: got {features.shape[0]} rows of {features.shape[1]} features; expected more rows than "
                f"features: the covariance is singular, and the distance far too large or small; take more rows, or "
                f"fewer features",
                stacklevel=2,
            )
    return gaussian_frechet(*moments)


def gaussian_frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance between two Gaussians.

    Args:
        mean1, mean2: Means ``(F,)``.
        cov1, cov2: Covariances ``(F, F)``, symmetric positive semidefinite, possibly singular.

    Raises:
        ArgumentError: Shapes that do not fit, values that are not finite, or no covariance.
    """
    for mean, name in ((mean1, "mean1"), (mean2, "mean2")):
        if mean.ndim != 1 or mean.shape != mean1.shape:
            raise ArgumentError(f"{name}: got shape {tuple(mean.shape)}; expected (F,), the same for both")
        check_finite(mean, name, "clean the features")
    root1, root2 = (_root(c, mean1.numel(), name) for c, name in ((cov1, "cov1"), (cov2, "cov2")))
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of A^1/2 B^1/2: unlike the square roots
    # of eigenvalues of the product, these keep full precision where covariances are singular.
    cross = torch.linalg.svdvals(root1 @ root2).sum()
    shift = (mean1.double() - mean2.double()).square().sum()
    return max(0.0, float(shift + root1.square().sum() + root2.square().sum() - 2.0 * cross))


def features_of(feature: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 256) -> Tensor:
    """Features of every example, from any callable.

    Args:
        feature: Takes a batch ``(B, ...)`` to ``(B, F)`` or ``(B, ...)``, which is flattened. A module
            is run in eval mode, and its training flags are restored.
        x: Examples, in whatever scale the callable expects.
        batch_size: Examples per call.

    Returns:
        Features ``(N, F)``, detached.

    Raises:
        ArgumentError: No examples, or a callable that does not return one row per example.
    """
    if x.ndim == 0 or x.shape[0] == 0:
        raise ArgumentError(f"x: got shape {tuple(x.shape)}; expected a batch of at least one example")
    if isinstance(feature, nn.Module):
        with evaluating(feature):
            return _features(feature, x, batch_size)
    return _features(feature, x, batch_size)


@torch.no_grad()
def _features(feature: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    parts = []
    for rows in batches(x.shape[0], batch_size, False, "features"):
        part = feature(x[rows])
        if not isinstance(part, Tensor) or part.ndim < 2 or part.shape[0] != x[rows].shape[0]:
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ArgumentError(f"feature: got {got} for {x[rows].shape[0]} examples; expected one row per example")
        parts.append(part.detach().flatten(1))
    return torch.cat(parts)


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance in float64."""
    check_floating(features, name)
    if features.ndim != 2 or features.shape[0] < 2:
        raise ArgumentError(f"{name}: got shape {tuple(features.shape)}; expected (N, F) with N >= 2 rows of features")
    check_finite(features, name, "clean the features")
    rows = features.detach().double()
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.t() @ centred / (rows.shape[0] - 1)


def _root(covariance: Tensor, size: int, name: str) -> Tensor:
    """Symmetric square root of a covariance, in float64."""
    if covariance.shape != (size, size):
        raise ArgumentError(f"{name}: got shape {tuple(covariance.shape)}; expected ({size}, {size})")
    check_finite(covariance, name, "clean the features")
    matrix = covariance.detach().double()
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.t()))
    # Tolerances for covariances that were computed in float32.
    tolerance = 1e-5 * float(values.abs().max())
    if float((matrix - matrix.t()).abs().max()) > tolerance or float(values.min()) < -tolerance:
        raise ArgumentError(f"{name}: got a matrix that is not symmetric positive semidefinite; expected a covariance")
    return vectors * values.clamp(min=0.0).sqrt() @ vectors.t()
