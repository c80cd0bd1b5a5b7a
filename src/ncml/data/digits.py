"""The handwritten digits that scikit-learn ships: 1,797 real images of 8x8 pixels in 17 levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncml.errors import MissingExtraError
from ncml.noise import Lattice

__all__ = ["ImageData", "load_digits"]

TEST_IMAGES = 360
SPLIT_SEED = 0  # of the data set, not of a run: every run tests on the same images


@dataclass(frozen=True)
class ImageData:
    """Images split into training and test rows.

    Args:
        lattice: The lattice of the pixels.
        train, test: Images in data units, ``(N, C, H, W)``.
        train_labels, test_labels: Classes, ``(N,)`` int64.
    """

    lattice: Lattice
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load_digits() -> ImageData:
    """The digits of the UCI "Optical Recognition" test set (Alpaydin and Kaynak, 1998), via scikit-learn.

    Returns:
        1,437 training and 360 test images ``(N, 1, 8, 8)``, split once by a fixed permutation.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("load_digits: scikit-learn is not installed; pip install 'ncml[demo]'") from error
    raw = datasets.load_digits()
    lattice = Lattice(17)
    images = lattice.to_unit(torch.from_numpy(raw.images).long())[:, None]
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return ImageData(lattice, images[train], images[test], labels[train], labels[test])
