"""What a store folder holds, and a model version of it, opened with every byte checked; publication.py adds one.

StoreError
├── ModelNotFoundError      no such model, or no such version of it
└── InvalidArtifactError    a file is missing, altered, of another format version, or contradicts the manifest
"""

import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store.manifest import FORMAT_VERSION, NAME_PATTERN, Manifest

BUNDLED = Path(__file__).parent / "artifacts"
BUNDLED_DEFAULT = "mnist"
"""Which of the bundled models is meant where none is named."""
MANIFEST, ENCODER, DECODER, CALIBRATION = "manifest.json", "encoder.onnx", "decoder.onnx", "calibration.npz"
_FILES = (ENCODER, DECODER, CALIBRATION)
_CALIBRATION_ARRAYS = ("log_likelihood", "elbo")
LATENT = "latent_"
"""Calibration arrays: before a number from 0, the columns of the images' latent codes."""
FITTING = "fitting"
"""Calibration array: 1 for images that methods fit what they fit to, 0 for those that scores are compared with."""
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class StoreError(Exception):
    """Any refusal of the store."""


class ModelNotFoundError(StoreError):
    """No such model, or no such version of it."""


class InvalidArtifactError(StoreError):
    """A file of a version is missing, altered, of another format version, or contradicts the manifest."""

    def __init__(self, file: str | Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = Path(file)
        self.problem = problem


@dataclass(frozen=True)
class StoredModel:
    """One version, read and verified: what `open_version` returns and the service's engine loads.

    The graphs are the very bytes whose hashes were checked; `calibration` holds float64 arrays [n], in nats.
    """

    path: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json in hex; with the hashes that it holds, of the whole version."""
    encoder: bytes
    decoder: bytes
    calibration: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Listing:
    """What a store holds."""

    versions: dict[str, list[int]]
    """Every model with its versions in ascending order."""
    unreadable: dict[str, InvalidArtifactError]
    """Models whose folder cannot be listed, with the reason; nothing is known of their versions."""


def list_store(root: Path) -> Listing:
    """Every model in the store; unfinished publications are not listed, and one unreadable folder hides no other model.

    Whatever is not a model's folder is passed over: a volume's root may well hold `lost+found`.

    Raises:
        StoreError: the store's own folder cannot be listed.
    """
    versions: dict[str, list[int]] = {}
    unreadable: dict[str, InvalidArtifactError] = {}
    for name in sorted(filter(_NAME.fullmatch, _names_in(root))):
        try:
            if found := versions_of(root, name):
                versions[name] = found
        except InvalidArtifactError as error:
            unreadable[name] = error
    return Listing(versions, unreadable)


def list_versions(root: Path) -> dict[str, list[int]]:
    """The models that can be listed, with their versions in ascending order; raises what `list_store` does.

    >>> "mnist" in list_versions(BUNDLED)
    True
    """
    return list_store(root).versions


def versions_of(root: Path, name: str) -> list[int]:
    """One model's versions in ascending order; none if there is no such folder, or no longer.

    Raises:
        InvalidArtifactError: its folder cannot be listed, or is a link to nothing.
    """
    folder = root / name
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_symlink() and not folder.exists():
            raise InvalidArtifactError(folder, "a link to nothing") from None
        return []
    except OSError as error:
        raise InvalidArtifactError(folder, f"cannot be read ({error.strerror})") from error


def version_stamp(root: Path, name: str, version: int) -> tuple[tuple[str, int, int, int], ...]:
    """Something that differs once any file of a version does, without reading one: name, inode, size, time of change.

    Raises:
        ModelNotFoundError: the store has no such model or version.
        InvalidArtifactError: the model's folder cannot be listed.
    """
    path = _locate(root, name, version)
    try:
        files = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    except OSError:
        return ()  # not a folder, not readable, or changing right now
    return tuple((file, found.st_ino, found.st_size, found.st_ctime_ns) for file, found in files)


def open_version(root: Path, name: str, version: int | None = None) -> StoredModel:
    """Read one version (the latest when `version` is None), checking hashes, format version and calibration.

    Raises:
        ModelNotFoundError: the store has no such model or version.
        InvalidArtifactError: a file is missing or altered; the message names it.
    """
    path = _locate(root, name, version)
    manifest, digest = _read_manifest(path / MANIFEST)
    if (manifest.name, str(manifest.version)) != (name, path.name):
        problem = f"says it is {manifest.name} version {manifest.version}, but lies in {name}/{path.name}"
        raise InvalidArtifactError(path / MANIFEST, problem)
    contents = {file: _read_verified(path / file, manifest) for file in _FILES}
    return StoredModel(
        path=path,
        manifest=manifest,
        digest=digest,
        encoder=contents[ENCODER],
        decoder=contents[DECODER],
        calibration=_parse_calibration(
            path / CALIBRATION, contents[CALIBRATION], manifest.calibration.num_images, manifest.latent_dim
        ),
    )


def _names_in(root: Path) -> list[str]:
    try:
        return [entry.name for entry in root.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{root}: the model store is not a folder") from None
    except OSError as error:
        raise StoreError(f"{root}: cannot be read ({error.strerror})") from error


def _locate(root: Path, name: str, version: int | None) -> Path:
    """The folder of a version, by default the latest."""
    _names_in(root)  # a store that is gone is another error than a model that is not there
    versions = versions_of(root, name) if _NAME.fullmatch(name) else []
    if not versions:
        raise ModelNotFoundError(f"the store has no model {name!r}")
    if version is None:
        version = versions[-1]
    if version not in versions:
        raise ModelNotFoundError(f"model {name!r} has no version {version}; it has {', '.join(map(str, versions))}")
    return root / name / str(version)


def _read(file: Path) -> bytes:
    """The content of a regular file. Anything else may have no end, or make a reader wait for ever, as a pipe does."""
    try:
        _check_regular(file, file.stat())  # before it is opened: opening some devices already does something
        with open(file, "rb", opener=_open_without_waiting) as stream:
            opened = os.fstat(stream.fileno())
            _check_regular(file, opened)  # another one may lie there by now
            return stream.read(opened.st_size)  # and no more: a file that grows as fast as it is read would have no end
    except FileNotFoundError:
        raise InvalidArtifactError(file, "missing") from None
    except OSError as error:
        raise InvalidArtifactError(file, f"cannot be read ({error.strerror})") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _check_regular(file: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArtifactError(file, "cannot be read (not a file)")


def _read_manifest(file: Path) -> tuple[Manifest, str]:
    """The manifest, and the SHA-256 of its bytes."""
    content = _read(file)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(file, f"not JSON ({error})") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise InvalidArtifactError(file, f"format version {version!r}; this reader knows only {FORMAT_VERSION}")
    try:
        return Manifest.model_validate(fields), hashlib.sha256(content).hexdigest()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InvalidArtifactError(file, problems) from error


def _read_verified(file: Path, manifest: Manifest) -> bytes:
    content = _read(file)
    expected = manifest.sha256.get(file.name)
    actual = hashlib.sha256(content).hexdigest()
    if expected is None:
        raise InvalidArtifactError(file, "the manifest gives no SHA-256 for it")
    if actual != expected:
        raise InvalidArtifactError(file, f"SHA-256 is {actual}, the manifest says {expected}: truncated or altered")
    return content


def _parse_calibration(file: Path, content: bytes, num_images: int, latent_dim: int) -> dict[str, NDArray[np.float64]]:
    try:
        with np.lib.npyio.NpzFile(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidArtifactError(file, f"not an .npz of plain arrays ({error})") from error
    check_calibration(file, arrays, num_images, latent_dim)
    return arrays


def check_calibration(file: Path, arrays: Mapping[str, NDArray[np.float64]], num_images: int, latent_dim: int) -> None:
    """Refuse arrays that are not what README.md says of calibration.npz; `file` is what the error names.

    Raises:
        InvalidArtifactError.
    """
    for key in _CALIBRATION_ARRAYS:
        if key not in arrays:
            raise InvalidArtifactError(file, f"array {key!r} is missing")
    for key, array in arrays.items():
        if array.dtype != np.float64 or array.shape != (num_images,) or not np.isfinite(array).all():
            found = f"{array.dtype} {list(array.shape)}"
            raise InvalidArtifactError(file, f"{key!r} must be {num_images} finite float64 numbers, found {found}")
    fitting = arrays.get(FITTING, np.zeros(1))
    if not np.isin(fitting, (0, 1)).all() or fitting.all():
        raise InvalidArtifactError(file, f"{FITTING!r} must be of 0 and 1, with a 0 in it")
    codes = {key for key in arrays if key.startswith(LATENT)}
    if codes and codes != {f"{LATENT}{d}" for d in range(latent_dim)}:
        raise InvalidArtifactError(file, f"of codes there must be {LATENT}0 to {LATENT}{latent_dim - 1}, or none")
