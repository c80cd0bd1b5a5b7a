"""Reports: results as strict JSON, written atomically, and the environment they came from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncml.errors import ArgumentTypeError
from ncml.files import replacing
from ncml.noise import BitsPerDim

__all__ = ["environment", "jsonable", "write_report"]


def environment() -> dict[str, Any]:
    """Versions and hardware that a result depends on; no names of hosts, users or folders."""
    from ncml import __version__

    return {
        "ncml": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def jsonable(data: Any, name: str = "data") -> Any:  # noqa: ANN401 -- any data, by nature
    """``data`` made of dicts, lists, strings, booleans, None, integers and finite floats only.

    Infinite floats and NaN become the strings ``"inf"``, ``"-inf"`` and ``"nan"``, which strict JSON
    has no numbers for. :class:`~ncml.BitsPerDim` becomes its summary; objects with a ``to_dict()``
    become that; other dataclasses, tensors and arrays become dicts and lists.

    Raises:
        ArgumentTypeError: Anything else; the message says where.
    """
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else str(float(data))
    if isinstance(data, Mapping):
        return {str(key): jsonable(value, f"{name}[{key!r}]") for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [jsonable(value, f"{name}[{i}]") for i, value in enumerate(data)]
    if isinstance(data, Tensor):
        return jsonable(data.detach().tolist(), name)
    if isinstance(data, (np.ndarray, np.generic)):
        return jsonable(data.tolist(), name)
    if isinstance(data, BitsPerDim):
        summary = {"mean": data.mean, "kind": data.kind, "standard_error": data.standard_error}
        return jsonable({**summary, "infinite": data.infinite, "n": data.values.numel()}, name)
    if hasattr(data, "to_dict"):
        return jsonable(data.to_dict(), name)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {f.name: jsonable(getattr(data, f.name), f"{name}.{f.name}") for f in dataclasses.fields(data)}
    raise ArgumentTypeError(
        f"{name}: got {type(data).__name__}; expected numbers, strings, lists, dicts, tensors or dataclasses of them"
    )


def write_report(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write results as indented JSON; a reader sees the old file or the whole new one, never a part.

    Args:
        path: The file, in a folder that exists. Replaced if it is there.
        data: Nested dicts, lists, numbers, strings, tensors, arrays, dataclasses and objects with a
            ``to_dict()``; ``{"environment": environment(), ...}`` is a good start. Infinities and NaN
            become strings, which strict JSON has no numbers for.

    Raises:
        ArgumentTypeError: A value that JSON cannot hold; nothing is written.
        OSError: The file cannot be written; the old one stays, and no temporary file is left.
    """
    text = json.dumps(jsonable(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(Path(path)) as file:
        file.write(text.encode())
