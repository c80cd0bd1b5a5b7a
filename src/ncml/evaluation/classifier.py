"""A small classifier of images, whose features measure how far samples are from data.

A Fréchet distance in these features is not FID: it compares models with each other on one data set, not with published
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.checks import check_count
from ncml.density import evaluating, usable
from ncml.progress import progress_bar

__all__ = ["Classifier", "TrainedClassifier", "train_classifier"]

FEATURES = 64


class Classifier(nn.Module):
    """Three strided convolutions, 64 features, and class logits.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, FEATURES, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Means of the last features over the image, ``(B, 64)``."""
        return self.convolutions(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, and how good a ruler it is.

    Args:
        model: The classifier, in eval mode.
        accuracy: Share of held-out images that it puts into their class.
    """

    model: Classifier
    accuracy: float


def train_classifier(
    batch: Callable[[Tensor], Tensor],
    labels: Tensor,
    held_out: Callable[[Tensor], Tensor],
    held_out_labels: Tensor,
    *,
    steps: int = 1000,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> TrainedClassifier:
    """Train the classifier with Adam and a cosine learning rate, on the CPU.

    Args:
        batch: Maps rows to training images ``(B, C, H, W)``.
        labels: Their classes, ``(N,)``.
        held_out, held_out_labels: The same for images to test on.
        steps: Optimizer steps.
        batch_size: Images per step.
        seed: Seed of the ruler, not of a run: distances compare between runs of one seed.
        progress: Show a progress bar.
    """
    steps = check_count(steps, "steps")
    batch_size = check_count(batch_size, "batch_size")
    with torch.inference_mode(False), torch.enable_grad():  # it trains, whatever the caller does
        labels = usable(labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Classifier(batch(torch.tensor([0])).shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in progress_bar(range(steps), progress, "classifier"):
            rows = torch.randint(len(labels), (batch_size,), generator=generator)
            loss = F.cross_entropy(model(usable(batch(rows))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with evaluating(model), torch.no_grad():
        right = [
            (model(held_out(rows)).argmax(1) == held_out_labels[rows]).double()
            for rows in torch.arange(len(held_out_labels)).split(512)
        ]
    return TrainedClassifier(model.eval(), float(torch.cat(right).mean()))
