"""FID as it is computed for publications: torchmetrics with the Inception network, where available.

torchmetrics takes the network's weights from torch-fidelity, which downloads them (and installs torchvision): install
both yourself, ``pip install torchmetrics torch-fidelity``. Nothing else of ncml needs them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ncml.errors import ArgumentError, MissingExtraError

__all__ = ["check_inception", "fid"]

INCEPTION_FEATURES = 2048


def check_inception(feature: int | nn.Module = INCEPTION_FEATURES) -> None:
    """Raise :class:`~ncml.errors.MissingExtraError` unless what :func:`fid` needs is installed."""
    needed = ("torchmetrics",) if isinstance(feature, nn.Module) else ("torchmetrics", "torch_fidelity")
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(
            f"fid: needs torchmetrics and torch-fidelity (no module named {absent[0]!r}); pip install torchmetrics "
            f"torch-fidelity"
        )


def fid(real: Iterable[Tensor], fake: Iterable[Tensor], *, feature: int | nn.Module = INCEPTION_FEATURES) -> float:
    """Fréchet Inception distance (Heusel et al., 2017) between two sets of images.

    Published numbers use 10,000 to 50,000 samples against the whole training set: fewer are biased upward.

    Args:
        real: Batches of images, uint8 ``(B, C, H, W)`` with 1 (repeated) or 3 channels of 256 levels.
        fake: The same of samples.
        feature: The Inception network's 2048 features, or a module of your own from uint8 images to ``(B, F)``
            with an attribute ``num_features``; the result is then not FID.

    Raises:
        MissingExtraError: torchmetrics or torch-fidelity is not installed.
        ArgumentError: Images of another type, or none.
    """
    check_inception(feature)
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=feature)
    for batches, is_real in ((real, True), (fake, False)):
        count = 0
        for images in batches:
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
                got = f"{images.dtype} of shape {tuple(images.shape)}"
                raise ArgumentError(f"images: got {got}; expected torch.uint8 (B, C, H, W) with C = 1 or 3")
            metric.update(images.expand(-1, 3, -1, -1), real=is_real)
            count += len(images)
        if count < 2:
            raise ArgumentError(f"{'real' if is_real else 'fake'}: got {count} images; expected at least 2")
    return float(metric.compute())
