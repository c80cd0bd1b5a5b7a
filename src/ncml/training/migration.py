"""Configurations and checkpoints of version 0.1, read as today's.

Format 1 had ``[network]`` for NCPN alone, and the noise at T as ``noise.levels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["migrated_config", "migrated_info"]

COMMON = {"classes": "classes", "compile": "compile", "checkpoint": "recompute"}


def migrated_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with ``[network]`` as one with ``[model]``; one of today is returned as it is."""
    new = dict(config)
    if isinstance(network := new.get("network"), Mapping) and "model" not in new:
        del new["network"]
        new["model"] = {"name": "ncpn", **{COMMON.get(name, name): value for name, value in network.items()}}
    if isinstance(noise := new.get("noise"), Mapping) and "levels" in noise:
        new["noise"] = {("std_in_levels" if name == "levels" else name): value for name, value in noise.items()}
    return new


def migrated_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of format 1 stored besides tensors, as format 2 stores it."""
    new = dict(info)
    if isinstance(config := new.get("config"), Mapping):
        new["config"] = migrated_config(config)
    if "images" in new and "data" not in new:
        new["data"] = new.pop("images")
    if "training_images" in new:
        new["training_examples"] = new.pop("training_images")
    return new
