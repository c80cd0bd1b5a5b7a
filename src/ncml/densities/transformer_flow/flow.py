"""A noise conditional transformer flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ncml.checks import Time, check_count, check_probability, is_real
from ncml.densities.transformer_flow.blocks import AffineBlock, Layer
from ncml.densities.transformer_flow.guidance import FlowGuidance
from ncml.densities.transformer_flow.inverse import invert
from ncml.densities.transformer_flow.patches import Patches
from ncml.density import SampleableDensity, check_arguments, check_draw, evaluating
from ncml.errors import ArgumentError, UnsupportedError
from ncml.nn.conditioning import Conditioning, NoiseScaling, dropped_labels
from ncml.noise import NoiseProcess
from ncml.progress import progress_bar
from ncml.sampling.jacobi import ParallelSamples, allowed_difference, invert_layers

__all__ = ["TransformerFlow"]


class TransformerFlow(SampleableDensity):
    r"""TarFlow (Zhai et al., 2024) conditioned on the noise level: a stack of autoregressive blocks over patches.

    .. math:: z_i = \bigl(x_i - \mu(x_{<i}, t)\bigr) \odot e^{-a(x_{<i}, t)}, \qquad
              \log p_t(x) = \log N(z; 0, I) - \sum_{\text{blocks}} \sum_i a_i,

    where :math:`\mu` and a are a causal transformer's, and every other block reads the patches backwards. Every block,
    its first patch included, sees the noise level, with an indicator of t = 0, and the class or context vector
    (:mod:`ncml.densities.transformer_flow.blocks`). Data on a lattice are dequantised by the objective, as for
    :class:`~ncml.densities.MAF`.

    Sampling inverts the blocks, each patch after patch with cached keys and values: as many steps as there are patches
    in all blocks, but the arithmetic of a single forward pass.

    Args:
        event_shape: Images ``(C, H, W)`` or sequences ``(L, C)``, of at least two patches.
        process: The noise process.
        patch: Side of the square patches of images, or length of the pieces of sequences. TarFlow uses 2 to 8 pixels,
            32 patches along a side.
        width: Number of features of a patch.
        blocks: Number of autoregressive blocks. With one, each value is a Gaussian given the patches before it.
        layers: Layers of each block, attention and perceptron; one number, or one for every block.
        heads: Attention heads, a divisor of the width; published models have 64 features per head.
        max_scale: Bound on the factor by which a block scales a value, either way; the bounds of all blocks multiply.
            Far from the data it keeps scores small enough for samplers to come back, as in
            :class:`~ncml.densities.MAF`. None for none, as published.
        dropout: Probability of dropping a feature of a layer's branch in training mode.
        data_std: If given, data are first scaled by ``1 / sqrt(alpha(t)^2 data_std^2 + sigma(t)^2)``.
        noise_features: Number of noise features.
        context_features: Width of a floating context ``(B, context_features)``, 0 for none.
        classes: Number of classes of an integer context ``(B,)``; -1 is "no label". 0 for none.
        label_dropout: Probability of training an example as unlabelled, which guidance needs. Drawn, as dropout is,
            from torch's own generator: seed it with ``torch.manual_seed``.

    Raises:
        ArgumentError: Patches or sizes that do not fit.

    Example:
        >>> process = VESDE.linear(0.3)
        >>> flow = TransformerFlow((1, 8, 8), process, patch=2, width=64, blocks=2, layers=1, heads=1, classes=10)
        >>> labels = torch.arange(5)
        >>> x = flow.sample(5, t=0.3, context=labels, guidance=FlowGuidance(2.0))
        >>> flow.log_prob(x, t=0.3, context=labels).shape
        torch.Size([5])
    """

    process: NoiseProcess

    def __init__(
        self,
        event_shape: Sequence[int],
        process: NoiseProcess,
        *,
        patch: int,
        width: int = 256,
        blocks: int = 4,
        layers: int | Sequence[int] = 4,
        heads: int = 4,
        max_scale: float | None = 10.0,
        dropout: float = 0.0,
        data_std: float | None = None,
        noise_features: int = 16,
        context_features: int = 0,
        classes: int = 0,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(event_shape, process)
        self.patches = Patches(self.event_shape, patch)
        depths = list(layers) if isinstance(layers, Iterable) else [layers] * check_count(blocks, "blocks")
        depths, width, heads = _check_sizes(blocks, depths, width, heads, max_scale)
        check_probability(dropout, "dropout")
        check_probability(label_dropout, "label_dropout")
        self.label_dropout, self.max_scale = label_dropout, None if max_scale is None else float(max_scale)
        self.scaling = NoiseScaling(process, data_std)
        conditioning = Conditioning(process, noise_features, context_features, classes)
        features = conditioning.features
        self.conditioning: nn.Module = conditioning
        self.classes = classes
        self.blocks = nn.ModuleList(
            AffineBlock(
                self.patches.length,
                self.patches.size,
                nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)),
                width=width,
                layers=depth,
                heads=heads,
                dropout=dropout,
                max_scale=max_scale,
            )
            for depth in depths
        )

    # The density.

    def hidden_settings(self) -> dict[str, Any]:
        settings = {
            "heads": self._layers()[0].heads,
            "max_scale": self.max_scale,
            "data_std": self.scaling.data_std,
        }
        if isinstance(self.conditioning, Conditioning):  # published weights have their own
            settings["noise_features"] = self.conditioning.noise.features
        return settings

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, edges: bool = True) -> Tensor:
        z, log_det = self._standardised(x, t, context)
        return log_det - 0.5 * (z.square().sum((1, 2)) + math.prod(z.shape[1:]) * math.log(2.0 * math.pi))

    def noise_of(self, x: Tensor, t: Time = 0.0, context: Tensor | None = None) -> Tensor:
        """The noise ``(B, *event_shape)`` from which :meth:`sample` draws ``x``.

        Arguments and errors as for :meth:`ncml.NoiseConditionalDensity.log_prob`.
        """
        x, t, context = check_arguments(self, x, t, context)
        with evaluating(self), torch.autocast(self.device.type, enabled=False):  # as samples are drawn
            z, _ = self._standardised(x, t, context)
        return self.patches.join(self._in_order(z))

    # The repeated part of the network.

    def compile_blocks(self) -> None:
        """Compile every layer with ``torch.compile``, on its first use; sampling does not use them compiled."""
        for layer in self._layers():
            layer.compile()

    def recompute_blocks(self, enabled: bool = True) -> None:
        """Keep only what enters each layer, and compute its inside again in the backward pass."""
        for block in self.blocks:
            cast(AffineBlock, block).recompute = enabled

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.blocks.modules() if isinstance(layer, Layer)]

    # Samples.

    def sample(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        guidance: FlowGuidance | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw ``n`` samples of ``x_t``, every key and value computed once.

        Args:
            n, t, context, generator: As in :meth:`ncml.SampleableDensity.sample`.
            noise: Standard normal, ``(n, *event_shape)``, to draw the same samples again; drawn if None.
            guidance: Sharpens the draws of labels, at twice the work; needs ``classes``.
            progress: Show a progress bar over blocks (needs tqdm).

        Returns:
            Tensor ``(n, *event_shape)``, detached.

        Raises:
            ArgumentError: Noise that does not fit.
            UnsupportedError: Guidance of a flow without classes.
        """
        noise = self._noise(n, noise, generator)
        if guidance is not None and not self.classes:
            raise UnsupportedError("guidance: got one and a flow without classes; expected classes=, and a context")
        with torch.inference_mode():  # which cheapens the many small operations
            plain = self._features(t, context)
            guided = plain
            if guidance is not None and context is not None:
                guided = torch.cat([plain, self._features(t, torch.full_like(context.long(), -1))])
            x = self._in_order(self.patches.split(noise))
            for k in progress_bar(range(len(self.blocks)), progress, "blocks"):
                block = cast(AffineBlock, self.blocks[-1 - k])
                guide = guidance if guidance is None or guidance.blocks is None or k < guidance.blocks else None
                x = invert(block, x, plain if guide is None else guided, guide)
                if k + 1 < len(self.blocks):
                    x = x.flip(1)
        return self.scaling.inverse(self.patches.join(x).clone(), t)  # an ordinary tensor again

    @torch.no_grad()
    def sample_in_parallel(
        self,
        n: int,
        t: Time = 0.0,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        tolerance: float = 0.0,
    ) -> ParallelSamples:
        """The samples of :meth:`sample` for the same noise, up to rounding, by Jacobi iteration of each block.

        A block is inverted by passes over all patches at once, each from the result of the one before, until nothing
        changes: patch i is final after i + 1 of them, and usually much sooner (Song et al., 2021, "Accelerating
        feedforward computation").

        Args:
            n, t, context, generator, noise: As for :meth:`sample`.
            tolerance: How much the last pass may still change, in standard deviations of the noise at t, for draws that
                are refined afterwards; 0 for not at all. The error of a sample is of this order.

        Returns:
            The samples; passes of each row, added over blocks (one per patch and block in sequence); and rows
            evaluated, once for each block.

        Raises:
            ArgumentError: A tolerance where there is no noise, or noise that does not fit.
        """
        t, context = check_draw(self, n, t, context, generator)
        allowed = allowed_difference(self, t, tolerance)
        noise = self._noise(n, noise, generator)
        allowed = allowed * self.scaling.log_scale(t).exp().to(noise.dtype)  # the blocks see scaled data
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            features = self._features(t, context)

            def redrawn(block: AffineBlock, z: Tensor, x: Tensor, rows: Tensor) -> Tensor:
                log_scale, mean = block.parameters_given(x, features[rows])
                return torch.addcmul(mean, z[rows], log_scale.exp())

            layers = [partial(redrawn, cast(AffineBlock, block)) for block in reversed(self.blocks)]
            found = invert_layers(layers, self._in_order(self.patches.split(noise)), allowed, self.patches.length)
        x = self.patches.join(found.x.flip(1))  # the first block reads the patches in their own order
        return replace(found, x=self.scaling.inverse(x, t))

    def _noise(self, n: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        shape = (n, *self.event_shape)
        if noise is None:
            return torch.randn(shape, dtype=self.dtype, device=self.device, generator=generator)
        if noise.shape != shape or noise.dtype != self.dtype or noise.device != self.device:
            raise ArgumentError(
                f"noise: got shape {tuple(noise.shape)}, {noise.dtype} on {noise.device}; expected {shape}, "
                f"{self.dtype} on {self.device}, standard normal"
            )
        return noise

    # The network.

    def _standardised(self, x: Tensor, t: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The patches of z, in the order of the last block, and the log-determinant, ``(B,)``."""
        features = self._features(t, context)
        z, log_det = self.scaling(x, t)
        z = self.patches.split(z)
        for k, block in enumerate(self.blocks):
            z, added = block(z.flip(1) if k else z, features)
            log_det = log_det + added
        return z, log_det

    def _in_order(self, z: Tensor) -> Tensor:
        """From the order of the last block to that of the patches, or back."""
        return z if len(self.blocks) % 2 else z.flip(1)

    def _features(self, t: Time, context: Tensor | None) -> Tensor:
        if self.training and context is not None and self.classes:
            context = dropped_labels(context, self.classes, self.label_dropout)
        return cast(Tensor, self.conditioning(t, context)).to(self.dtype)


def _check_sizes(
    blocks: int, depths: list[int], width: int, heads: int, max_scale: float | None
) -> tuple[list[int], int, int]:
    """Refuse sizes that the architecture cannot have; returns depths, width and heads."""
    depths = [check_count(depth, "layers") for depth in depths]
    if len(depths) != blocks:
        raise ArgumentError(f"layers: got {len(depths)} numbers; expected one for each of the {blocks} blocks")
    heads = check_count(heads, "heads")
    width = check_count(width, "width")
    if width % heads:
        raise ArgumentError(f"width: got {width}; expected a multiple of the {heads} heads")
    if max_scale is not None and not (is_real(max_scale) and 1.0 < max_scale < math.inf):
        raise ArgumentError(f"max_scale: got {max_scale!r}; expected a number above 1, or None")
    return depths, width, heads
