"""From a configuration to a process, an objective and a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ncml.data import Images
from ncml.densities import NCPN
from ncml.errors import ArgumentError, CheckpointError
from ncml.lattice import Lattice
from ncml.noise import NoiseProcess
from ncml.objective import NCMLObjective
from ncml.sde import VESDE, VPSDE, LinearVESDE, SubVPSDE
from ncml.times import AtZero, LogUniformTimes, TimeSampler, UniformTimes
from ncml.training.checkpoint import Checkpoint, load_state, open_checkpoint
from ncml.training.config import NetworkConfig, NoiseConfig, TrainConfig, from_dict, to_dict
from ncml.training.draws import stream_seed

__all__ = ["ImageKind", "build_density", "build_objective", "build_process", "load_density"]

PROCESSES: dict[str, Any] = {"vp": VPSDE, "sub-vp": SubVPSDE, "ve": VESDE, "linear-ve": LinearVESDE}


@dataclass(frozen=True)
class ImageKind:
    """What a network must know of the images that it is for.

    Args:
        shape: ``(C, H, W)``.
        levels: Levels of their lattice.
        classes: Names of the classes.
    """

    shape: tuple[int, ...]
    levels: int
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Images) -> ImageKind:
        """The kind of given images."""
        return cls(images.shape, images.lattice.levels, images.classes)


def build_process(noise: NoiseConfig, lattice: Lattice) -> NoiseProcess:
    """The process whose T has the configured noise, in levels of the lattice."""
    try:
        return PROCESSES[noise.process].at_noise(noise.levels * lattice.width)
    except ArgumentError as error:
        std = noise.levels * lattice.width
        raise ArgumentError(
            f"noise.levels: got {noise.levels:g}, a noise of {std:.3g} for {lattice.levels} levels; {error}"
        ) from error


def build_objective(noise: NoiseConfig, process: NoiseProcess) -> NCMLObjective:
    """NCML with the configured distribution of noise levels."""
    times: dict[str, TimeSampler] = {
        "uniform": UniformTimes(p_zero=noise.p_zero),
        "log-uniform": LogUniformTimes(p_zero=noise.p_zero),
        "zero": AtZero(),
    }
    return NCMLObjective(process, times[noise.times])


def build_density(network: NetworkConfig, noise: NoiseConfig, kind: ImageKind, seed: int) -> NCPN:
    """A network with random weights, which are a function of the seed."""
    lattice = Lattice(kind.levels)
    names = {"features": "features", "blocks": "blocks", "resolutions": "levels", "heads": "heads"}
    names |= {"components": "components", "dropout": "dropout"}
    changes: dict[str, Any] = {to: getattr(network, name) for name, to in names.items()}
    changes = {name: value for name, value in changes.items() if value is not None}
    if network.classes:
        changes |= {"classes": max(1, len(kind.classes)), "label_dropout": network.label_dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        density = NCPN.preset(network.preset, kind.shape, build_process(noise, lattice), lattice=lattice, **changes)
    if network.compile:
        density.compile_blocks()
    density.checkpoint_blocks(network.checkpoint)
    return density


def load_density(folder: str | Path) -> tuple[NCPN, TrainConfig, ImageKind, Checkpoint]:
    """The network of a checkpoint of ``ncml train``, in eval mode on the CPU.

    Args:
        folder: A checkpoint, or the folder of a run, whose latest one is taken.

    Returns:
        The density, the configuration it was trained with, the kind of its images, and the checkpoint.

    Raises:
        CheckpointError: It is damaged, or was not made by ``ncml train``.
    """
    checkpoint = open_checkpoint(folder)
    info = checkpoint.info
    if "config" not in info or "images" not in info:
        raise CheckpointError(
            f"{checkpoint.folder}: got a checkpoint without a configuration; expected one of ncml train; build the "
            f"density yourself and use load_into(density, open_checkpoint(folder))"
        )
    config = from_dict(TrainConfig, info["config"], f"{checkpoint.folder}: config")
    kind = from_dict(ImageKind, info["images"], f"{checkpoint.folder}: images")
    plain = replace(config.network, compile=False, checkpoint=False)  # both are for training
    density = build_density(plain, config.noise, kind, config.run.seed)
    load_state(density, checkpoint.model(), str(checkpoint.folder))  # the configuration says the rest
    return density.eval(), config, kind, checkpoint


def describe(config: TrainConfig, kind: ImageKind) -> dict[str, Any]:
    """What a checkpoint keeps for :func:`load_density`."""
    return {"config": to_dict(config), "images": to_dict(kind)}
