"""The noise conditional pixel network (paper, section 5 and appendix A.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_choice, check_count, check_positive, check_probability, is_whole
from ncml.densities.ncpn.blocks import GatedBlock
from ncml.densities.ncpn.cache import CachedPass
from ncml.densities.ncpn.head import PixelHead
from ncml.densities.ncpn.network import PixelNetwork
from ncml.densities.ncpn.weight_norm import normalise_weights, standardise_by_data
from ncml.density import AutoregressiveDensity, check_arguments, check_kept, check_noise, evaluating
from ncml.errors import ArgumentError
from ncml.nn.conditioning import NoiseFeatures, check_expected, dropped_labels, label_rows
from ncml.noise import Lattice, NoiseProcess
from ncml.progress import progress_bar

__all__ = ["NCPN"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"features": 32, "blocks": 1, "resolutions": 2, "heads": 4, "components": 5},
    "small": {"features": 40, "blocks": 2, "resolutions": 3, "heads": 8, "components": 10},
    "paper": {"features": 160, "blocks": 5, "resolutions": 3, "heads": 8, "components": 10, "dropout": 0.25},
}

FOURIER_SEED = 0  # of the frequencies, which are part of the architecture and not of a run


class NCPN(AutoregressiveDensity):
    r"""PixelCNN++ with axial attention, conditioned on the noise level in every block.

    .. math:: \log p_t(x) = \sum_{\text{pixels } i} \log p_t(x_i \mid x_{<i})

    in row-major order, with a mixture of discretized logistics per pixel and linear autoregression over
    its channels (:mod:`ncml.densities.ncpn.head`): an exact mass where the process keeps images on the lattice,
    a density elsewhere. Two streams of gated residual blocks in a U-shape, each followed by causal row
    and column attention with rescaled skips; Gaussian Fourier features of the noise level enter every
    block. Nothing normalises over space or batch.

    Args:
        image_shape: ``(C, H, W)`` with C = 1 or 3; H and W divisible by ``2 ** (resolutions - 1)``.
        process: The noise process.
        lattice: The lattice of the pixels; ``Lattice(256)`` if None. 2 to 4,096 levels.
        features: Width of the network.
        blocks: Blocks per stream and resolution.
        resolutions: Number of resolutions, each half as wide and high as the one before.
        heads: Attention heads, a divisor of ``features``; 0 for no attention.
        components: Mixture components per pixel.
        dropout: Dropout inside the blocks while training.
        classes: Number of classes of an integer context ``(B,)``; -1 is "no label". 0 for none.
        label_dropout: Probability of training an example as unlabelled. Drawn, as dropout is, from torch's own
            generator: seed it with ``torch.manual_seed``.
        weight_norm: Train the direction and length of weights separately, as PixelCNN++ does (see :meth:`initialize`).
            Then save the ``state_dict``: torch refuses to pickle such a model.
        fourier_scale: Scale of the Fourier features' random frequencies, in cycles over the range of the noise level.
            The paper gives none; 1 suits a level that is even in log sigma, where Song et al. use 16.

    Raises:
        ArgumentError: Sizes that do not fit.

    Example:
        >>> process = VPSDE.at_noise(10 * Lattice(256).width)
        >>> ncpn = NCPN.preset("tiny", image_shape=(3, 8, 8), process=process)
        >>> ncpn.sample(2, t=process.T).shape
        torch.Size([2, 3, 8, 8])
    """

    lattice: Lattice
    frequencies: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        process: NoiseProcess,
        *,
        lattice: Lattice | None = None,
        features: int = 160,
        blocks: int = 5,
        resolutions: int = 3,
        heads: int = 8,
        components: int = 10,
        dropout: float = 0.0,
        classes: int = 0,
        label_dropout: float = 0.1,
        weight_norm: bool = False,
        fourier_scale: float = 1.0,
    ) -> None:
        super().__init__(image_shape, process, Lattice(256) if lattice is None else lattice)
        resolutions, features, heads = _check_sizes(self.event_shape, self.lattice, resolutions, features, heads)
        blocks = check_count(blocks, "blocks")
        components = check_count(components, "components")
        self.classes = check_count(classes, "classes", minimum=0)
        check_probability(dropout, "dropout")
        check_probability(label_dropout, "label_dropout")
        self.label_dropout, self.heads = label_dropout, heads
        channels = self.event_shape[0]
        self.head = PixelHead(channels, components, self.lattice)
        self.noise = NoiseFeatures(process, 2)
        width = 4 * features
        draw = torch.randn(features // 2, generator=torch.Generator().manual_seed(FOURIER_SEED), device="cpu")
        self.register_buffer("frequencies", 2.0 * math.pi * check_positive(fourier_scale, "fourier_scale") * draw)
        self.embed = nn.Sequential(nn.Linear(2 * (features // 2) + 2, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last row is "no label"
        self.network = PixelNetwork(channels, self.head.outputs, resolutions, blocks, features, heads, width, dropout)
        with torch.no_grad():
            self.network.out.bias.copy_(self.head.initial_bias())
        self.weight_norm = weight_norm
        if weight_norm:
            normalise_weights(self.network)

    def hidden_settings(self) -> dict[str, Any]:
        return {"heads": self.heads}

    @classmethod
    def preset(cls, name: str, image_shape: Sequence[int], process: NoiseProcess, **changes: Any) -> NCPN:  # noqa: ANN401
        """A network of a known size: ``"tiny"``, ``"small"`` or ``"paper"`` (73 M parameters at 3x32x32).

        Args:
            name: The preset.
            image_shape, process: As for the class.
            changes: Arguments of the class that replace the preset's.
        """
        check_choice(name, "name", PRESETS)
        return cls(image_shape, process, **{**PRESETS[name], **changes})

    def initialize(self, x: Tensor, t: Time = 0.0, context: Tensor | None = None) -> None:
        """Set lengths and biases of a weight-normalised network from data, before training (Salimans and Kingma, 2016).

        Afterwards the features of every convolution have mean 0 and standard deviation 1 over these images, or 0.1
        where they enter a gate. PixelCNN++ uses 100 images; dropout is off here.

        Args:
            x, t, context: Images, times and labels, as for :meth:`ncml.NoiseConditionalDensity.log_prob`.

        Raises:
            ArgumentError: No images, or none that varies, or a network without ``weight_norm``.
        """
        if not self.weight_norm:
            raise ArgumentError("weight_norm: got False; expected a network with weight_norm=True, which has lengths")
        x, t, context = check_arguments(self, x, t, context)
        if not len(x):
            raise ArgumentError("x: got no images; expected some, by whose features the weights are scaled")
        if bool(x.amin() == x.amax()):
            raise ArgumentError(
                f"x: got images of one value, {float(x.amin()):g}; expected some that vary, by whose features the "
                f"weights are scaled"
            )
        with evaluating(self), torch.no_grad():
            self.network.out.bias.copy_(self.head.initial_bias())
            standardise_by_data(self.network, x, self._conditioning(t, context))

    def compile_blocks(self) -> None:
        """Compile every gated block with ``torch.compile``, on its first use: the repeated part of the network.

        The blocks differ in their shapes at every resolution and in whether they train, so that many versions
        are compiled; compiling the whole network takes several times as long and gains little more.
        """
        config = torch._dynamo.config  # one version per shape of one function, of which dynamo allows few
        config.recompile_limit = max(config.recompile_limit, 128)
        for block in self.blocks():
            block.compile(dynamic=False)

    def recompute_blocks(self, enabled: bool = True) -> None:
        """Keep only what enters each gated block, and compute its inside again in the backward pass."""
        for block in self.blocks():
            block.recompute = enabled

    def blocks(self) -> list[GatedBlock]:
        """The gated blocks, the repeated part of the network."""
        return [module for module in self.network.modules() if isinstance(module, GatedBlock)]

    @property
    def order(self) -> Tensor:
        """Row-major over pixels, and the channels of a pixel one after the other, ``(C H W,)``."""
        channels, height, width = self.event_shape
        flat = torch.arange(channels * height * width, device=self.device)
        return flat.reshape(channels, height * width).t().flatten()

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        outputs = self.network(x, self._conditioning(t, context))
        on_lattice = self.process.on_lattice(t) if edges else None
        return self.head.log_prob(outputs, _pixels(x), on_lattice).sum(1)

    def draw_noise(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Uniforms ``(n, H W, 1 + 2 C)``: component, quantiles, and positions in the windows."""
        pixels = self.event_shape[1] * self.event_shape[2]
        return self.head.draw_noise(n, pixels, self.dtype, self.device, generator)

    def resample(self, x: Tensor, noise: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        """Redraw every pixel given the pixels before it, all in one pass.

        Arguments and result as in :meth:`ncml.AutoregressiveDensity.resample`; a position is a pixel.
        """
        check_noise(self, noise, x.shape[0])
        outputs = self.network(x, self._conditioning(t, context))
        return _images(self.head.sample(outputs, noise, self.process.on_lattice(t)), self.event_shape)

    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw ``n`` images, every feature computed once (see :class:`~ncml.densities.ncpn.cache.CachedPass`).

        Args:
            n, t, context, generator: As in :meth:`ncml.SampleableDensity.sample`.
            noise: What :meth:`draw_noise` returned, to draw the same images again.
            progress: Show a progress bar over rows (needs tqdm).
        """
        noise = self.draw_noise(n, generator=generator) if noise is None else noise
        check_noise(self, noise, n)
        x = torch.zeros(n, *self.event_shape, dtype=self.dtype, device=self.device)
        return self._continue(x, 0, noise, t, context, progress)

    def complete(
        self,
        x: Tensor,
        rows: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Keep the first rows of images and draw the rest (paper, Fig. 5).

        Args:
            x: Images at time ``t``, ``(B, C, H, W)``; what lies below the kept rows does not matter.
            rows: Number of rows to keep, 0 to H.
            t, context, generator, noise, progress: As for :meth:`sample`.

        Returns:
            Images with the shape of ``x``, whose first rows are those of ``x`` bit for bit.
        """
        x, t, context = check_arguments(self, x, t, context, finite=False)
        if not is_whole(rows) or not 0 <= rows <= self.event_shape[1]:
            raise ArgumentError(f"rows: got {rows!r}; expected a number of rows, 0 to {self.event_shape[1]}")
        kept = check_kept(self, x.detach()[:, :, :rows], t)
        noise = self.draw_noise(x.shape[0], generator=generator) if noise is None else noise
        check_noise(self, noise, x.shape[0])
        if x.shape[0] == 0:
            return x.clone()
        with torch.inference_mode(False):  # since it is written to outside of a caller's
            image = torch.zeros_like(x)
            image[:, :, :rows] = kept
        return self._continue(image, rows, noise, t, context, progress)

    def _continue(self, x: Tensor, rows: int, noise: Tensor, t: Time, context: Tensor | None, progress: bool) -> Tensor:
        """Draw the rows from ``rows`` on, in place."""
        _, height, width = self.event_shape
        on_lattice = self.process.on_lattice(t)
        with evaluating(self), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            cache = CachedPass(self.network, x, self._conditioning(t, context))
            cache.fill(rows)
            for r in progress_bar(range(rows, height), progress, "rows"):
                cache.start_row(r)
                for c in range(width):
                    outputs = cache.outputs(r, c)
                    here = noise[:, None, r * width + c]
                    x[:, :, r, c] = self.head.sample(outputs[:, None], here, on_lattice)[:, 0]
        return x

    def _conditioning(self, t: Time, context: Tensor | None) -> Tensor:
        clean, level = self.noise(t).unbind(1)
        angles = level[:, None] * self.frequencies.to(level.dtype)
        features = torch.cat([angles.sin(), angles.cos(), clean[:, None], level[:, None]], dim=1)
        e = self.embed(features.to(self.dtype))
        check_expected(context, None if self.labels is None else "integer labels (B,)")
        if context is not None and self.labels is not None:
            if self.training:
                context = dropped_labels(context, self.classes, self.label_dropout)
            e = e + self.labels(label_rows(context, self.classes))
        return nn.functional.silu(e)


def _check_sizes(
    shape: tuple[int, ...], lattice: Lattice, resolutions: int, features: int, heads: int
) -> tuple[int, int, int]:
    """Refuse sizes that the architecture cannot have; returns the last three."""
    resolutions = check_count(resolutions, "resolutions")
    features = check_count(features, "features", minimum=2)
    heads = check_count(heads, "heads", minimum=0)
    step = 2 ** (resolutions - 1)
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] % step or shape[2] % step:
        raise ArgumentError(
            f"image_shape: got {shape}; expected (C, H, W) with C = 1 or 3, and H and W divisible by {step} "
            f"for resolutions = {resolutions}; take fewer resolutions, or add rows and columns on one side only"
        )
    if lattice.levels > 4096:
        raise ArgumentError(f"lattice: got {lattice.levels} levels; expected 2 to 4096")
    if heads and features % heads:
        raise ArgumentError(f"heads: got {heads}; expected a divisor of features = {features}")
    return resolutions, features, heads


def _pixels(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H W, C)``."""
    return x.flatten(2).transpose(1, 2)


def _images(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(B, H W, C)`` to ``(B, C, H, W)``."""
    return pixels.transpose(1, 2).reshape(-1, *shape)
