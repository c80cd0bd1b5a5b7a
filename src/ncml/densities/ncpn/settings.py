"""The settings of an NCPN in a configuration: a preset, and what to change in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ncml.checks import check_probability
from ncml.densities.ncpn.ncpn import NCPN
from ncml.errors import ArgumentError
from ncml.noise import Lattice, NoiseProcess

__all__ = ["NCPNSettings"]


@dataclass(frozen=True)
class NCPNSettings:
    """A preset of NCPN, and what to change in it.

    Args:
        preset: tiny (0.5 M parameters), small (2 M) or paper (73 M).
        features: Width; the preset's if not given.
        blocks: Blocks per stream and resolution; the preset's if not given.
        resolutions: Number of resolutions; the preset's if not given. Both sides of the images must be divisible by
            2 ** (resolutions - 1).
        heads: Number of attention heads, 0 for none; the preset's if not given.
        components: Mixture components per pixel; the preset's if not given.
        dropout: Dropout probability; the preset's if not given.
        label_dropout: Share of examples trained without their label, if the model has classes.
        weight_norm: Train the direction and length of weights separately, as PixelCNN++ does; see optim.init_examples.
        fourier_scale: Scale of the frequencies in the Fourier features of the noise level.
    """

    preset: Literal["tiny", "small", "paper"] = "tiny"
    features: int | None = None
    blocks: int | None = None
    resolutions: int | None = None
    heads: int | None = None
    components: int | None = None
    dropout: float | None = None
    label_dropout: float = 0.1
    weight_norm: bool = False
    fourier_scale: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self.label_dropout, "model.label_dropout")

    def build(
        self, event_shape: Sequence[int], process: NoiseProcess, lattice: Lattice | None, *, classes: int = 0
    ) -> NCPN:
        """The network, with random weights.

        Args:
            event_shape: ``(C, H, W)``.
            process: The noise process.
            lattice: The lattice of the pixels.
            classes: Number of classes of an integer context, 0 for none.

        Raises:
            ArgumentError: No images, no lattice, or sizes that do not fit.
        """
        if len(event_shape) != 3 or event_shape[0] not in (1, 3):
            raise ArgumentError(
                f"model.name: got 'ncpn' and data of shape {tuple(event_shape)}; expected (C, H, W), C = 1 or 3; "
                f"take causal-transformer for sequences, made or maf for other shapes"
            )
        if lattice is None:
            raise ArgumentError(
                "model.name: got 'ncpn' and data without a lattice; expected integer levels, whose mass it gives; take "
                "maf or made for real numbers"
            )
        names = ("features", "blocks", "resolutions", "heads", "components", "dropout")
        changes: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        changes |= {"weight_norm": self.weight_norm, "fourier_scale": self.fourier_scale}
        if classes:
            changes |= {"classes": classes, "label_dropout": self.label_dropout}
        return NCPN.preset(self.preset, event_shape, process, lattice=lattice, **changes)
