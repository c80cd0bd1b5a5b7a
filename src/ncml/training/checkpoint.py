"""Checkpoints: folders of safetensors and one JSON manifest, complete or not there at all.

::

    step_00002000/
        checkpoint.json         format, step, configuration, and the SHA-256 of the files
        model.safetensors       what to evaluate with: the moving average if there is one
        training.safetensors    parameters and optimizer state, to resume from

A folder is written beside its place under another name, flushed to the disk, and renamed: a reader sees
the whole of it or nothing, whatever happens meanwhile. Reading compares every byte with the manifest
before anything is used; nothing is ever unpickled, and no code in a checkpoint runs. Those of version 0.1 (format 1)
are read as today's (:mod:`ncml.training.migration`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ncml.density import NoiseConditionalDensity, inner_density, unwrapped
from ncml.errors import ArgumentError, CheckpointError, MissingExtraError
from ncml.training.migration import migrated_info

__all__ = [
    "Checkpoint",
    "density_kind",
    "find_checkpoint",
    "load_into",
    "load_state",
    "open_checkpoint",
    "save_checkpoint",
    "save_density",
]

FORMAT = 2
READABLE = (1, FORMAT)  # 1 is that of version 0.1
MANIFEST = "checkpoint.json"
MODEL, TRAINING = "model.safetensors", "training.safetensors"
MAX_MANIFEST = 2**24  # bytes; a configuration is a few thousand
STEP_NAME = re.compile(r"step_(\d{8,})")
BLOCK = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest and files have been verified.

    Args:
        folder: Where it is.
        step: Training steps done.
        info: What was stored besides tensors (JSON data).
    """

    folder: Path
    step: int
    info: dict[str, Any]

    def model(self) -> dict[str, Tensor]:
        """State dict of the model, on the CPU."""
        return self._tensors(MODEL)

    def training(self) -> dict[str, Tensor]:
        """Parameters and optimizer state, on the CPU.

        Raises:
            CheckpointError: The checkpoint was made for evaluation only, and has none.
        """
        return self._tensors(TRAINING)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.folder / name
        torch_files = _safetensors()
        try:
            return dict(torch_files.load_file(path, device="cpu"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: not there; expected {name}, which this needs") from error
        except Exception as error:  # safetensors' own errors have no common base but Exception
            raise CheckpointError(f"{path}: got a file that is not safetensors ({error})") from error


def save_checkpoint(
    folder: str | os.PathLike[str],
    step: int,
    info: Mapping[str, Any],
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint; it appears complete or not at all.

    Args:
        folder: The checkpoint's own folder; must not exist.
        step: Training steps done.
        info: JSON data to keep: configuration, what the weights belong to.
        model: State dict to evaluate with.
        training: Parameters and optimizer state, or None.

    Returns:
        ``folder``.

    Raises:
        ArgumentError: The folder exists.
        CheckpointError: It cannot be written (a full disk, ...); nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists():
        raise ArgumentError(
            f"folder: got {folder}, which exists; expected a new one; checkpoints are never overwritten"
        )
    try:
        plain_info = json.loads(json.dumps(dict(info), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"info: got what JSON cannot hold ({error}); expected finite numbers, texts, lists"
        ) from error
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        files = {}
        for name, tensors in ((MODEL, model), (TRAINING, training)):
            if tensors is not None:
                _write(temporary / name, _safetensors().save(_plain(tensors)))
                files[name] = {"bytes": (temporary / name).stat().st_size, "sha256": _sha256(temporary / name)}
        manifest = {"format": FORMAT, "step": step, "files": files, "info": plain_info}
        _write(temporary / MANIFEST, manifest_text(manifest).encode())
        _flush_folder(temporary)
        os.replace(temporary, folder)
        _flush_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            failure = CheckpointError(f"{folder}: cannot be written ({error.strerror or error})")
            failure.errno = error.errno
            raise failure from error
        raise
    return folder


def save_density(density: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write the weights of a density, to be read by :func:`load_into`; nothing is pickled.

    Args:
        density: The density, or a wrapper (DDP, compiled) of one.
        folder: The checkpoint's own folder; must not exist.

    Returns:
        ``folder``.

    Raises:
        ArgumentError: The folder exists, or the density has no parameters or buffers.
        CheckpointError: It cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncml.training import load_into, save_density
        >>> process = VPSDE.at_noise(0.5)
        >>> density, other = (MAF((2,), process, transforms=1, hidden=(4,)) for _ in range(2))
        >>> folder = save_density(density, Path(tempfile.mkdtemp()) / "maf")
        >>> load_into(other, folder)
        >>> bool((other.log_prob(torch.zeros(1, 2)) == density.log_prob(torch.zeros(1, 2))).all())
        True
    """
    inner = inner_density(density)
    state = inner.state_dict()
    if not state:
        raise ArgumentError(f"density: got a {type(inner).__name__} without parameters or buffers; nothing to save")
    return save_checkpoint(folder, 0, {"density": density_kind(inner)}, state)


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Verify a checkpoint, every byte of it.

    Args:
        folder: A checkpoint, or the folder of a run, whose latest one is taken.

    Raises:
        CheckpointError: There is none; it is truncated, changed by a single bit, or not of the format; it
            was written by a newer version.
    """
    folder = find_checkpoint(folder)
    path = folder / MANIFEST
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= MAX_MANIFEST else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        outer = json.loads(raw)
        manifest = outer["manifest"]
        intact = raw.decode() == manifest_text(manifest)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: got {size:,} bytes that are not a manifest; the file is damaged") from error
    if not intact:
        raise CheckpointError(f"{path}: got text that differs from its SHA-256; the file is damaged or was edited")
    if version not in READABLE:
        raise CheckpointError(f"{path}: got format {version}; expected at most {FORMAT}; install a newer ncml")
    for name, expected in manifest["files"].items():
        if name == TRAINING and not (folder / name).exists():
            continue  # may be left out of what is passed on
        _verify(folder / name, expected)
    info = manifest["info"] if version == FORMAT else migrated_info(manifest["info"])
    return Checkpoint(folder, manifest["step"], info)


def find_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint itself, or the latest one in the folder of a run.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return folder
    found = step_folders(folder) or step_folders(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder}: got no checkpoint; expected a folder with {MANIFEST}, or that of a run")
    return found[-1]


def step_folders(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, by their steps."""
    found = [p for p in folder.glob("step_*") if STEP_NAME.fullmatch(p.name) and (p / MANIFEST).exists()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def density_kind(density: NoiseConditionalDensity) -> dict[str, Any]:
    """What a density's weights belong to, besides their shapes: kept in checkpoints, compared by :func:`check_kind`.

    Densities within it are among its parts.
    """
    levels = None if density.lattice is None else density.lattice.levels
    shape = list(density.event_shape)
    process = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(density.process))  # of functions: not theirs in another run
    kind = {"class": type(density).__name__, "event_shape": shape, "process": process, "levels": levels}
    inner = {name: part for name, part in density.named_children() if isinstance(part, NoiseConditionalDensity)}
    parts = {name: density_kind(part) for name, part in inner.items()}
    return {**kind, "settings": density.hidden_settings(), "parts": parts}


def check_kind(density: NoiseConditionalDensity, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another class, shape, process, lattice or hidden setting; the weights alone might fit.

    Raises:
        CheckpointError: They differ; the message says in what.
    """
    own, stored = density_kind(density), checkpoint.info.get("density")
    if stored is None:
        raise CheckpointError(f"{checkpoint.folder}: got no description of a density; expected one; use load_state")
    if differences := list(_kind_differences(own, stored)):
        raise CheckpointError(f"{checkpoint.folder}: got a checkpoint of another density: {'; '.join(differences)}")


def _kind_differences(own: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[str]:
    """In words, of what both have: older checkpoints know less about a density."""
    for key, value in own.items():
        if isinstance(value, dict):
            yield from _kind_differences(value, stored.get(key, {}))
        elif key in stored and stored[key] != value:
            yield f"{key} is {stored[key]}, not {value}"


def load_into(density: nn.Module, checkpoint: Checkpoint | str | os.PathLike[str]) -> None:
    """Give a density the weights of a checkpoint (the moving average, if there was one).

    Args:
        density: A density built like the one that was saved, or a wrapper of one; unchanged unless everything fits.
        checkpoint: The folder that :func:`save_density` or ``ncml train`` wrote, or what :func:`open_checkpoint`
            returned.

    Raises:
        CheckpointError: No checkpoint, a damaged one, another class, shape, process, lattice or hidden setting (see
            :meth:`ncml.NoiseConditionalDensity.hidden_settings`), or other weights.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    check_kind(inner_density(density), checkpoint)
    load_state(density, checkpoint.model(), str(checkpoint.folder))


def remove_unfinished(folder: Path) -> None:
    """Remove what was left behind by a process that was killed while saving."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a state dict into a module of exactly the same names, shapes and dtypes.

    Args:
        module: The module; unchanged unless everything fits.
        state: The tensors.
        source: What the error message calls them.

    Raises:
        CheckpointError: Something does not fit; the message lists the first ten differences.
    """
    inner = unwrapped(module) or module
    own = inner.state_dict()
    differences = [f"{name} is missing" for name in own.keys() - state.keys()]
    differences += [f"{name} is not in the model" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        mine, theirs = own[name], state[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            differences.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, not {mine.dtype} {tuple(mine.shape)}")
    if differences:
        shown = "; ".join(sorted(differences)[:10])
        more = f"; and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise CheckpointError(f"{source}: got weights of another model: {shown}{more}; the model is unchanged")
    try:
        inner.load_state_dict(dict(state))
    except ArgumentError as error:  # of a module that looks for itself, such as MADE at its order
        raise CheckpointError(f"{source}: got weights of another model: {error}") from error


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The one text that a manifest has, with its own hash."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": manifest}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size != expected["bytes"]:
        raise CheckpointError(f"{path}: got {size:,} bytes; expected {expected['bytes']:,}; the file is cut or changed")
    if (digest := _sha256(path)) != expected["sha256"]:
        raise CheckpointError(
            f"{path}: got SHA-256 {digest[:12]}...; expected {expected['sha256'][:12]}...; the file is damaged"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each with memory of its own: tied ones are stored twice."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        pointer = copy.untyped_storage().data_ptr()
        plain[name] = copy.clone() if pointer in seen or copy.nbytes < copy.untyped_storage().nbytes() else copy
        seen.add(pointer)
    return plain


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _safetensors() -> Any:  # noqa: ANN401 -- a module
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("checkpoint: safetensors is not installed; pip install 'ncml[train]'") from error
    return safetensors.torch
