r"""How a network sees the noise level, and other context.

The raw time is a poor input (it lives in [0, 0.03] for VP at ten levels), and :math:`\log\sigma` is
:math:`-\infty` at t = 0. The features here are functions of

.. math:: v = \frac{\log(1 + \sigma/\sigma_{ref})}{\log(1 + \sigma_T/\sigma_{ref})} \in [0, 1],
          \qquad \sigma_{ref} = \sigma_T / 100,

namely v, cosines :math:`\cos(k \pi v)`, and an indicator of noiseless lattice data: the likelihood of
a mass and the limit of densities differ there, so a smooth feature alone cannot serve both.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ncml.checks import HALF, Time, check_count, check_floating, check_positive, per_example
from ncml.errors import ArgumentError, ArgumentTypeError
from ncml.noise import GaussianProcess, NoiseProcess, as_time
from ncml.noise.gaussian import as_gaussian
from ncml.noise.process import as_process

__all__ = ["Conditioning", "NoiseFeatures", "NoiseScaling", "check_expected", "dropped_labels", "label_rows"]

REFERENCE = 100.0
"""sigma_T / sigma_ref: noise down to a hundredth of the largest level is resolved evenly in log."""


def label_rows(context: Tensor, classes: int) -> Tensor:
    """Rows of an embedding of ``classes + 1`` labels, int64 ``(B,)``; the null label, -1, is the last.

    Raises:
        ArgumentTypeError: Not integers of shape ``(B,)``; a bool is a mask, not a label.
        ArgumentError: Labels outside ``-1 .. classes - 1``.
    """
    whole = not (context.is_floating_point() or context.is_complex() or context.dtype == torch.bool)
    if not whole or context.ndim != 1:
        raise ArgumentTypeError(f"context: got {context.dtype} {tuple(context.shape)}; expected integer labels (B,)")
    labels = context.long()  # before anything is computed: uint8 has no -1, and int8 may not hold classes + 1
    if labels.numel() and (int(labels.min()) < -1 or int(labels.max()) >= classes):
        raise ArgumentError(f"context: got labels outside -1 .. {classes - 1}; -1 is the null label")
    return labels % (classes + 1)


def dropped_labels(context: Tensor, classes: int, share: float) -> Tensor:
    """Labels, int64 ``(B,)``, each replaced by the null label with probability ``share``, from torch's own generator.

    Errors as for :func:`label_rows`.
    """
    rows = label_rows(context, classes)
    if share == 0.0:
        return context.long()
    return torch.where(torch.rand(rows.shape, device=rows.device) < share, -1, context.long())


def check_expected(context: Tensor | None, expected: str | None) -> None:
    """Refuse a context where a network takes none, or none where it takes what is ``expected``."""
    if (context is None) != (expected is None):
        raise ArgumentError(
            f"context: got {'none' if context is None else 'one'}; this density expected {expected or 'no context'}"
        )


class NoiseFeatures(nn.Module):
    """Features of the noise level, ``(B,)`` times to ``(B, features)``; no parameters.

    Args:
        process: The noise process. For one without a sigma, ``v = t / T``.
        features: How many, at least 2: an indicator of t = 0, v, and cosines.
    """

    def __init__(self, process: NoiseProcess, features: int = 16) -> None:
        super().__init__()
        self.process = as_process(process)
        self.features = check_count(features, "noise_features", minimum=2)
        self._sigma_ref = float(process.sigma(process.T)) / REFERENCE if isinstance(process, GaussianProcess) else None

    def forward(self, t: Tensor) -> Tensor:
        if self._sigma_ref is None:
            v = t / self.process.T
        else:
            v = torch.log1p(cast(GaussianProcess, self.process).sigma(t) / self._sigma_ref) / math.log1p(REFERENCE)
        k = torch.arange(1, self.features - 1, dtype=v.dtype, device=v.device)
        return torch.cat([(t == 0).to(v.dtype)[:, None], v[:, None], torch.cos(math.pi * k * v[:, None])], dim=1)


class Conditioning(nn.Module):
    """Noise features and, optionally, a context vector or class label, as one vector per example.

    Args:
        process: The noise process.
        noise_features: Number of noise features.
        context_features: Width of a floating context ``(B, context_features)``, in the dtype of the density; 0 for
            none.
        classes: Number of classes of an integer context ``(B,)``; -1 is the null label. 0 for none.
    """

    def __init__(
        self, process: NoiseProcess, noise_features: int = 16, context_features: int = 0, classes: int = 0
    ) -> None:
        super().__init__()
        self.noise = NoiseFeatures(process, noise_features)
        self.context_features = check_count(context_features, "context_features", minimum=0)
        self.classes = check_count(classes, "classes", minimum=0)
        if context_features and classes:
            raise ArgumentError(
                "context_features, classes: got both; expected one kind of context; embed labels yourself"
            )
        width = noise_features if classes else context_features
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row is the null label
        self.features = noise_features + width

    def forward(self, t: Tensor, context: Tensor | None = None) -> Tensor:
        noise = self.noise(t)
        check_expected(context, "a context" if self.context_features or self.classes else None)
        if context is None:
            return noise
        if self.labels is not None:
            rows = self.labels(label_rows(context, self.classes))
            return torch.cat([noise.to(rows.dtype), rows], dim=1)
        if context.ndim != 2 or context.shape[1] != self.context_features:
            raise ArgumentError(f"context: got shape {tuple(context.shape)}; expected (B, {self.context_features})")
        check_floating(context, "context")
        if context.dtype in HALF:
            context = context.float()
        if context.dtype != noise.dtype:  # that of x and the density
            raise ArgumentTypeError(
                f"context: got dtype {context.dtype}; expected {noise.dtype}, the density's; convert it with .to(dtype)"
            )
        return torch.cat([noise, context], dim=1)


class NoiseScaling(nn.Module):
    r"""Scales noisy data to unit size, :math:`y = c(t)\,x` with :math:`c = (\alpha^2 s^2 + \sigma^2)^{-1/2}`.

    A density of y becomes one of x by adding :math:`D \log c`.

    Args:
        process: A Gaussian process; any without ``data_std``.
        data_std: Standard deviation s of the data, in data units; None to leave the data as they are, c = 1.
    """

    def __init__(self, process: NoiseProcess, data_std: float | None) -> None:
        super().__init__()
        self.process = None if data_std is None else as_gaussian(process, "which data_std needs; use data_std=None")
        self.data_std = None if data_std is None else check_positive(data_std, "data_std")

    def log_scale(self, t: Time) -> Tensor:
        """``log c(t)``, shape of ``t``."""
        if self.process is None or self.data_std is None:
            return torch.zeros_like(as_time(t))
        variance = (self.process.alpha(t) * self.data_std).square() + self.process.sigma(t).square()
        return -0.5 * variance.log()

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``c(t) x`` and its log-determinant ``D log c``, ``(B,)``."""
        if self.process is None:
            return x, x.new_zeros(len(x))
        log_c = self.log_scale(t).to(x.dtype)
        return x * per_example(log_c.exp(), x), log_c * x[0].numel() if x.shape[0] else log_c

    def inverse(self, y: Tensor, t: Time) -> Tensor:
        """``y / c(t)``."""
        if self.process is None:
            return y
        return y * per_example((-self.log_scale(t)).exp().to(y.dtype), y)
