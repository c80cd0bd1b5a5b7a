"""The settings of a causal transformer in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ncml.checks import check_probability
from ncml.densities.transformer.transformer import CausalTransformer
from ncml.errors import ArgumentError
from ncml.noise import Lattice, NoiseProcess

__all__ = ["CausalTransformerSettings"]


@dataclass(frozen=True)
class CausalTransformerSettings:
    """The settings of a causal transformer over sequences in a configuration.

    Args:
        width: Number of features per position, a multiple of twice the heads.
        layers: Number of blocks.
        heads: Number of attention heads.
        components: Mixture components per value.
        head: Distribution of the components, logistic or gaussian.
        dropout: Probability of dropping a feature in training.
        noise_features: Number of features that encode the noise level.
        label_dropout: Share of examples trained without their label, if the model has classes.
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    components: int = 10
    head: Literal["logistic", "gaussian"] = "logistic"
    dropout: float = 0.0
    noise_features: int = 16
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_probability(self.label_dropout, "model.label_dropout")

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> CausalTransformer:
        """The network, with random weights.

        Args:
            event_shape: ``(L, C)``, positions and channels.
            process: The noise process.
            lattice: The lattice of the data, whose mass it then gives exactly; None for real numbers of order one.
            classes: Number of classes of an integer context, 0 for none.

        Raises:
            ArgumentError: Events that are not sequences, or sizes that do not fit.
        """
        if len(event_shape) != 2:
            remedy = "take ncpn or transformer-flow for images, made or maf for other shapes"
            if len(event_shape) == 1:
                remedy = f"save rows as (N, {event_shape[0]}, 1), or take made or maf"
            raise ArgumentError(
                f"model.name: got 'causal-transformer' and data of shape {tuple(event_shape)}; expected (L, C), "
                f"positions and channels; {remedy}"
            )
        return CausalTransformer(
            event_shape,
            process,
            lattice=lattice,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            components=self.components,
            head=self.head,
            dropout=self.dropout,
            noise_features=self.noise_features,
            classes=classes,
            label_dropout=self.label_dropout,
        )
