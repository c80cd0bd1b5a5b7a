"""The settings of a transformer flow in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ncml.densities.transformer_flow.flow import TransformerFlow
from ncml.errors import ArgumentError
from ncml.noise import Lattice, NoiseProcess

__all__ = ["TransformerFlowSettings"]


@dataclass(frozen=True)
class TransformerFlowSettings:
    """The settings of a transformer flow over patches in a configuration.

    Args:
        patch: Side of the square patches that images are cut into, or length of the pieces of sequences.
        width: Number of features per patch, a multiple of the heads.
        blocks: Number of autoregressive blocks.
        layers: Number of layers, of attention and perceptron, in each block.
        heads: Number of attention heads.
        max_scale: Bound on the factor by which a block scales a value, above 1.
        dropout: Probability of dropping a feature in training.
        data_std: Standard deviation of the data, by which they are scaled at every noise level; no scaling if not
            given.
        noise_features: Number of features that encode the noise level.
        label_dropout: Share of examples trained without their label, if the model has classes.
    """

    patch: int = 4
    width: int = 256
    blocks: int = 4
    layers: int = 4
    heads: int = 4
    max_scale: float = 10.0
    dropout: float = 0.0
    data_std: float | None = None
    noise_features: int = 16
    label_dropout: float = 0.1

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> TransformerFlow:
        """The flow, with random weights; it has no lattice, so data on one have to be dequantised.

        Args:
            event_shape: ``(C, H, W)`` or ``(L, C)``.
            process: The noise process.
            lattice: The lattice of the data, which a flow does not use.
            classes: Number of classes of an integer context, 0 for none.

        Raises:
            ArgumentError: Events that are neither images nor sequences, or sizes that do not fit.
        """
        if len(event_shape) not in (2, 3):
            rows = f"save rows as (N, {event_shape[0]}, 1), or " if len(event_shape) == 1 else ""
            raise ArgumentError(
                f"model.name: got 'transformer-flow' and data of shape {tuple(event_shape)}; expected (C, H, W) or "
                f"(L, C); {rows}take made or maf"
            )
        return TransformerFlow(
            event_shape,
            process,
            patch=self.patch,
            width=self.width,
            blocks=self.blocks,
            layers=self.layers,
            heads=self.heads,
            max_scale=self.max_scale,
            dropout=self.dropout,
            data_std=self.data_std,
            noise_features=self.noise_features,
            classes=classes,
            label_dropout=self.label_dropout,
        )
