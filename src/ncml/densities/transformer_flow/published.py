"""Weights of the published programs as densities: TarFlow (apple/ml-tarflow) and iTARFlow (apple/ml-itarflow)."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncml.checks import check_positive
from ncml.densities.transformer_flow.blocks import AffineBlock
from ncml.densities.transformer_flow.flow import TransformerFlow
from ncml.errors import ArgumentError, CheckpointError, MissingExtraError
from ncml.nn.conditioning import check_expected, label_rows
from ncml.noise import VESDE

__all__ = ["load_tarflow"]

HEAD_WIDTH = 64
"""Features of an attention head in both programs; the weights do not tell."""

LONGEST_PERIOD = 10_000.0
"""Ratio of the longest to the shortest period of iTARFlow's features of log t."""

LAYER_PARTS = {
    "attention.norm": "before_attention",
    "attention.qkv": "enter",
    "attention.proj": "leave",
    "mlp.norm": "before_perceptron",
    "mlp.main.0": "up",
    "mlp.main.2": "down",
}
"""What the parts of a layer are called there, and here."""

BLOCK_PARTS = {"proj_in": "enter", "proj_out": "leave"}
"""The same of a block."""

TIME_PARTS = {"time_embed.mlp.0": "embed.time.0", "time_embed.mlp.2": "embed.time.2"}
"""The same of a block of iTARFlow, besides."""


def load_tarflow(
    path: str | Path, event_shape: Sequence[int], noise: float | tuple[float, float], *, input_scale: float = 1.0
) -> TransformerFlow:
    """The density of weights saved by apple's programs, with the log-likelihood that those give.

    TarFlow knows no noise level: it is a model of data with noise of one standard deviation. So what is loaded is a
    density under ``VESDE.linear``, whose time is that standard deviation, at this time only; iTARFlow's at the times at
    which it was trained. Elsewhere it raises, rather than answer for a distribution that it has not seen. It samples,
    has a score and is denoised by :class:`~ncml.sampling.Tweedie` like any density, and can be trained further.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save``, which is read with ``weights_only=True``.
        event_shape: ``(C, H, W)``, which the weights do not say. Images are in [-1, 1].
        noise: Standard deviation of the Gaussian noise of training, ``--noise_std``; 0 for ``--noise_type=uniform``.
            For iTARFlow the smallest and the largest, ``(t0, t1)``.
        input_scale: A factor applied to the data first: iTARFlow's ``--input_scale``. Weights trained with
            ``--noise_type=uniform`` saw bytes as ``(k + u) / 128 - 1``; with 255 / 256 they take those of
            ``Lattice(256)``, dequantised.

    Returns:
        The density in eval mode, in float32 unless the file is in float64. The label -1 stands for none, by the mean of
        the classes' embeddings, as published.

    Raises:
        CheckpointError: Not such weights: not readable, names missing or unknown, patches or widths that differ from
            block to block, or the volume-preserving variant (``--no-nvp``).
        ArgumentError: An event shape that does not fit, or the noise of the other program.
        MissingExtraError: A ``.safetensors`` file, and safetensors is not installed.

    References:
        `Normalizing Flows are Capable Generative Models <https://arxiv.org/abs/2412.06329>`_ (Zhai et al., 2024),
        `Normalizing Flows with Iterative Denoising <https://arxiv.org/abs/2604.20041>`_ (2026).
    """
    path, shape = Path(path), tuple(event_shape)
    state = _read(path)
    blocks = _blocks(state, path)
    sizes = _sizes(blocks, state, path)
    patch = _patch(shape, sizes, path)
    times = _times(noise, sizes.timed)
    check_positive(input_scale, "input_scale")
    with torch.device("meta"):  # every tensor comes from the file
        flow = TransformerFlow(
            shape,
            VESDE.linear(times[1] or 1.0),
            patch=patch,
            width=sizes.width,
            blocks=len(blocks),
            layers=[len(_layers(block)) for block in blocks],
            heads=sizes.width // HEAD_WIDTH,
            max_scale=None,
            classes=sizes.classes,
        )
        flow.conditioning = _Conditioning(times, sizes.width if sizes.timed else 0, sizes.classes)
        for block in flow.blocks:
            cast(AffineBlock, block).embed = _Embedding(sizes)
    tensors: dict[str, Tensor] = {}
    for k, block_state in enumerate(blocks):
        own = _translated(block_state, sizes, path, reverse=k % 2 == 1, scale=1.0 if k else input_scale)
        tensors |= {f"blocks.{k}.{name}": tensor for name, tensor in own.items()}
    flow.load_state_dict(tensors, assign=True)
    return flow.eval()


class _Sizes(NamedTuple):
    """Of every block, as its tensors tell them; only the number of layers may differ from block to block."""

    width: int
    size: int
    length: int
    classes: int
    timed: bool


class _Conditioning(nn.Module):
    """Features of iTARFlow's log t, and weights of the classes' embeddings; refuses times that were not trained."""

    def __init__(self, times: tuple[float, float], channels: int, classes: int) -> None:
        super().__init__()
        self.times, self.channels, self.classes = times, channels, classes

    def forward(self, t: Tensor, context: Tensor | None = None) -> Tensor:
        low, high = self.times
        if bool(((t < low * (1.0 - 1e-6)) | (t > high * (1.0 + 1e-6))).any()):
            trained = f"{low:.6g}, the one noise level" if low == high else f"{low:.6g} to {high:.6g}, the noise levels"
            raise ArgumentError(
                f"t: got {float(t.min()):.6g} to {float(t.max()):.6g}; expected {trained} at which these weights were "
                f"trained"
            )
        check_expected(context, f"labels of {self.classes} classes" if self.classes else None)
        features = [t.new_zeros(len(t), 0)]
        if self.channels:
            steps = torch.arange(self.channels // 2, dtype=t.dtype, device=t.device) / (self.channels // 2)
            angles = t.log()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * steps)
            features += [angles.sin(), angles.cos()]
        if context is not None:
            one_hot = F.one_hot(label_rows(context, self.classes), self.classes + 1).to(t.dtype)
            features.append(one_hot[:, :-1] + one_hot[:, -1:] / self.classes)
        return torch.cat(features, dim=1)


class _Embedding(nn.Module):
    """What a block adds to the features of every patch."""

    def __init__(self, sizes: _Sizes) -> None:
        super().__init__()
        self.width = width = sizes.width
        perceptron = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) if sizes.timed else ()
        self.time = nn.Sequential(*perceptron)
        self.labels = nn.Parameter(torch.empty(sizes.classes, width)) if sizes.classes else None

    def forward(self, features: Tensor) -> Tensor:
        c = features.new_zeros(len(features), self.width)
        if len(self.time):
            c = c + self.time(features[:, : self.width])
        if self.labels is not None:
            c = c + features[:, -len(self.labels) :] @ self.labels
        return c


# What the file holds.


def _read(path: Path) -> dict[str, Tensor]:
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = _safetensors().load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MissingExtraError):
        raise
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: got a file that cannot be read ({error}); expected a state dict") from error
    except Exception as error:  # safetensors' own errors have no common base but Exception
        raise CheckpointError(f"{path}: got a file that is not safetensors ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: got {type(state).__name__}; expected a state dict, names and tensors")
    return {name: value if value.dtype == torch.float64 else value.float() for name, value in state.items()}


def _safetensors() -> Any:  # noqa: ANN401 -- a module
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("path: safetensors is not installed; pip install 'ncml[train]'") from error
    return safetensors.torch


def _blocks(state: dict[str, Tensor], path: Path) -> list[dict[str, Tensor]]:
    """The tensors of each block, by their names in it."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match is not None:
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        elif name != "var" and not name.startswith("shared_backbone."):  # which every block has again
            raise CheckpointError(f"{path}: got {name!r}; expected the names of TarFlow or iTARFlow")
    if not found or sorted(found) != list(range(len(found))):
        raise CheckpointError(f"{path}: got the blocks {sorted(found)}; expected blocks.0, blocks.1, ...")
    return [found[k] for k in range(len(found))]


def _layers(block: dict[str, Tensor]) -> list[str]:
    """Where the layers of a block are, in the order of their use: shared ones come first."""
    found = {m[0] for name in block if (m := re.match(r"(shared_backbone|attn_blocks|head_blocks)\.\d+", name))}
    return sorted(found, key=lambda place: (not place.startswith("shared"), int(place.split(".")[1])))


def _sizes(blocks: list[dict[str, Tensor]], state: dict[str, Tensor], path: Path) -> _Sizes:
    found = []
    for block in blocks:
        width, size = _taken(block, "proj_in.weight", path).shape
        if len(_taken(block, "proj_out.weight", path)) != 2 * size or bool(
            (state.get("var", torch.ones(1)) != 1.0).any()
        ):
            raise CheckpointError(f"{path}: got weights of a volume-preserving flow; expected those of --nvp")
        length, classes = len(_taken(block, "pos_embed", path)), len(block.get("class_embed", ()))
        found.append(_Sizes(width, size, length, classes, "time_embed.mlp.0.weight" in block))
    if any(sizes != found[0] for sizes in found):
        raise CheckpointError(f"{path}: got blocks of different sizes; expected one patch size and one width for all")
    if found[0].width % HEAD_WIDTH:
        raise CheckpointError(f"{path}: got a width of {found[0].width}; expected a multiple of {HEAD_WIDTH}")
    return found[0]


def _patch(shape: tuple[int, ...], sizes: _Sizes, path: Path) -> int:
    """The side of a patch."""
    if len(shape) == 3:
        patch = math.isqrt(sizes.size // shape[0])
        if shape[0] * patch**2 == sizes.size and shape[1] * shape[2] == sizes.length * patch**2:
            return patch
    raise ArgumentError(
        f"event_shape: got {shape}; expected (C, H, W) in {sizes.length} patches of {sizes.size} values, as in {path}"
    )


def _times(noise: float | tuple[float, float], timed: bool) -> tuple[float, float]:
    """The smallest and the largest noise level of the training."""
    if timed:
        if not isinstance(noise, tuple) or len(noise) != 2 or not 0.0 < noise[0] <= noise[1] < math.inf:
            raise ArgumentError(f"noise: got {noise!r}; expected (t0, t1), the noise levels of iTARFlow's training")
        return noise
    if isinstance(noise, tuple) or not 0.0 <= noise < math.inf:
        raise ArgumentError(f"noise: got {noise!r}; expected a number, the one noise level of TarFlow's training")
    return noise, noise


def _taken(block: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in block:
        raise CheckpointError(f"{path}: got a block without {name!r}; expected the names of TarFlow or iTARFlow")
    return block[name]


def _translated(
    block: dict[str, Tensor], sizes: _Sizes, path: Path, *, reverse: bool, scale: float
) -> dict[str, Tensor]:
    """The state dict of an :class:`AffineBlock`; of one that scales its inputs first, if they are to be."""
    names = BLOCK_PARTS | (TIME_PARTS if sizes.timed else {})
    for j, place in enumerate(_layers(block)):
        names = names | {f"{place}.{there}": f"layers.{j}.{here}" for there, here in LAYER_PARTS.items()}
    known = {f"{there}.{kind}": f"{here}.{kind}" for there, here in names.items() for kind in ("weight", "bias")}
    own = {here: _taken(block, there, path) for there, here in known.items()}
    if unknown := block.keys() - known.keys() - {"pos_embed", "class_embed", "attn_mask"}:
        raise CheckpointError(f"{path}: got {min(unknown)!r} in a block; expected the names of TarFlow or iTARFlow")
    positions = block["pos_embed"]
    own["positions"] = (positions.flip(0) if reverse else positions)[:-1].clone()
    if sizes.classes:
        own["embed.labels"] = block["class_embed"][:, 0]
    own["first.weight"], own["first.bias"] = torch.zeros_like(own["leave.weight"]), torch.zeros_like(own["leave.bias"])
    if scale != 1.0:  # (s x - mean) exp(-a) = (x - mean / s) exp(-(a - log s))
        own["enter.weight"] = own["enter.weight"] * scale
        factor = torch.ones_like(own["leave.bias"])
        factor[sizes.size :] = 1.0 / scale
        shift = torch.zeros_like(factor)
        shift[: sizes.size] = -math.log(scale)
        own["leave.weight"] = own["leave.weight"] * factor[:, None]
        own["leave.bias"], own["first.bias"] = own["leave.bias"] * factor + shift, shift
    return own
