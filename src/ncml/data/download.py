"""Downloads of the official files of CIFAR-10 and MNIST, checked against their SHA-256 sums."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ncml.data.files import PathLike, whole_file
from ncml.errors import DatasetError, MissingExtraError

__all__ = ["download_cifar10", "download_mnist"]

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FOLDER = "cifar-10-batches-bin"  # in the archive
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt")

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

MAX_MEMBER = 2**26  # bytes; twice the largest file of the archive
CHUNK = 2**16


def download_cifar10(folder: PathLike | None = None, *, progress: bool = True) -> Path:
    """CIFAR-10's official binary version (Krizhevsky, 2009), 170 MB, unpacked.

    Args:
        folder: Where to keep the files; a folder of pooch's cache if None. Files that are there already are kept as
            they are; if all are, nothing is downloaded.
        progress: Show a progress bar, if tqdm is installed.

    Returns:
        The folder, for :func:`~ncml.data.load_cifar10`.

    Raises:
        DatasetError: No network, another SHA-256 sum than the official one, or no room.
        MissingExtraError: pooch is not installed.
    """
    return _cifar10(folder, CIFAR10_URL, CIFAR10_SHA256, progress)


def download_mnist(folder: PathLike | None = None, *, progress: bool = True) -> Path:
    """MNIST's four official files (LeCun, Cortes and Burges), 12 MB, from the mirror that PyTorch keeps.

    Args:
        folder: Where to keep the files; a folder of pooch's cache if None. Files that are there already, compressed
            or not, are kept as they are.
        progress: Show progress bars, if tqdm is installed.

    Returns:
        The folder, for :func:`~ncml.data.load_mnist`.

    Raises:
        DatasetError: No network, another SHA-256 sum than the official one, or no room.
        MissingExtraError: pooch is not installed.
    """
    return _mnist(folder, MNIST_URL, MNIST_SHA256, progress)


def _cifar10(folder: PathLike | None, url: str, sha256: str, progress: bool) -> Path:
    target = _target(folder, "cifar10")
    if not all((target / name).exists() for name in CIFAR10_FILES):
        # Each process downloads into a folder of its own, since several may be here at once.
        scratch = _made(target / f".download-{secrets.token_hex(4)}")
        try:
            _unpack(_retrieve(scratch, url, sha256, progress), target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _mnist(folder: PathLike | None, url: str, sha256: Mapping[str, str], progress: bool) -> Path:
    target = _target(folder, "mnist")
    for name, known in sha256.items():
        if not any((target / there).exists() for there in (name, name.removesuffix(".gz"))):
            _retrieve(target, url + name, known, progress)
    return target


def _target(folder: PathLike | None, name: str) -> Path:
    return _made(Path(_pooch().os_cache("ncml")) / name if folder is None else Path(folder))


def _made(folder: Path) -> Path:
    """The folder, made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"folder: cannot make {folder} ({error.strerror}); expected one to write to") from error
    return folder


def _retrieve(folder: Path, url: str, sha256: str, progress: bool) -> Path:
    """Download one file into a folder; a file of another sum is removed again."""
    pooch = _pooch()
    bar = progress and importlib.util.find_spec("tqdm") is not None
    name = url.rpartition("/")[2]
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=name,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK),
        )
    except (OSError, ValueError) as error:  # of the network and the disk; of the sum
        raise DatasetError(
            f"{url}: cannot be downloaded; get it by other means, put its files into a folder, and pass folder=..., or "
            f"name the folder above that one in NCML_DATA ({error})"
        ) from error
    return folder / name


def _unpack(archive: Path, folder: Path) -> None:
    """Write the expected files of the archive into the folder; nothing else, and nowhere else.

    A member counts only by its exact name, and no path is made of what the archive says.
    """
    missing = {f"{CIFAR10_FOLDER}/{name}": name for name in CIFAR10_FILES}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in missing:
                    content = _content(archive, tar, member)
                    path = folder / missing.pop(member.name)
                    if not path.exists():
                        with whole_file(path) as file:
                            file.write(content)
    except DatasetError:
        raise
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(f"{archive}: got a damaged archive ({error}); get it again") from error
    if missing:
        raise DatasetError(f"{archive}: got an archive without {', '.join(missing)}; get it again")


def _content(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member) if member.isreg() and member.size <= MAX_MEMBER else None
    if content is None:
        raise DatasetError(
            f"{archive}: got {member.name} of type {member.type!r} and {member.size:,} bytes; expected a file of at "
            f"most {MAX_MEMBER:,}; get the archive again"
        )
    return content.read()


def _pooch() -> ModuleType:
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("downloads: pooch is not installed; pip install 'ncml[data]'") from error
    return pooch
