"""Publish a model version into a store folder, and open it again with every byte checked.

StoreError
├── ModelNotFoundError      no such model, or no such version of it
└── InvalidArtifactError    a file is missing, altered, of another format version, or contradicts the manifest
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store.manifest import FORMAT_VERSION, NAME_PATTERN, Description, Manifest

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
    encoder: bytes
    decoder: bytes
    calibration: Mapping[str, NDArray[np.float64]]


def list_versions(root: Path) -> dict[str, list[int]]:
    """Every model in the store with its versions in ascending order; unfinished publications are not listed.

    Whatever is not a model's folder is passed over: a volume's root may well hold `lost+found`.

    >>> "mnist" in list_versions(BUNDLED)
    True
    """
    if not root.is_dir():
        raise StoreError(f"{root}: the model store is not a folder")
    try:
        found = {
            model.name: sorted(int(version.name) for version in model.iterdir() if _VERSION.fullmatch(version.name))
            for model in sorted(root.iterdir())
            if _NAME.fullmatch(model.name) and model.is_dir()
        }
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return {name: versions for name, versions in found.items() if versions}


def version_stamp(root: Path, name: str, version: int) -> tuple[tuple[str, int, int, int], ...]:
    """Something that differs once any file of a version does, without reading one: name, inode, size, time of change.

    Raises:
        ModelNotFoundError: the store has no such model or version.
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
    manifest = _read_manifest(path / MANIFEST)
    if (manifest.name, str(manifest.version)) != (name, path.name):
        problem = f"says it is {manifest.name} version {manifest.version}, but lies in {name}/{path.name}"
        raise InvalidArtifactError(path / MANIFEST, problem)
    contents = {file: _read_verified(path / file, manifest) for file in _FILES}
    return StoredModel(
        path=path,
        manifest=manifest,
        encoder=contents[ENCODER],
        decoder=contents[DECODER],
        calibration=_parse_calibration(
            path / CALIBRATION, contents[CALIBRATION], manifest.calibration.num_images, manifest.latent_dim
        ),
    )


def publish(
    root: Path,
    description: Description,
    *,
    encoder: bytes,
    decoder: bytes,
    calibration: Mapping[str, NDArray[np.float64]],
) -> StoredModel:
    """Add the next version of a model: written to a temporary folder, synced to disk, then renamed into place.

    A reader sees the whole version or none of it, whenever the process dies; a version that exists is never touched.

    Raises:
        InvalidArtifactError: the calibration arrays are not what the description says.
        StoreError: the store cannot be written, as on a full disk; it is then as it was.
    """
    scores = {key: np.asarray(value) for key, value in calibration.items()}
    _check_calibration(Path(CALIBRATION), scores, description.calibration.num_images, description.latent_dim)
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **scores)
    contents = {ENCODER: encoder, DECODER: decoder, CALIBRATION: packed.getvalue()}
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            version = max(list_versions(root).get(description.name, [0])) + 1
            if _place(root, _manifest_of(description, version, contents), contents):
                return open_version(root, description.name, version)
    except OSError as error:
        raise StoreError(f"{root}: {description.name} is not published: {error.strerror}") from error


def _locate(root: Path, name: str, version: int | None) -> Path:
    """The folder of a version, by default the latest."""
    versions = list_versions(root).get(name)
    if versions is None:
        raise ModelNotFoundError(f"the store has no model {name!r}")
    if version is None:
        version = versions[-1]
    if version not in versions:
        raise ModelNotFoundError(f"model {name!r} has no version {version}; it has {', '.join(map(str, versions))}")
    return root / name / str(version)


def _manifest_of(description: Description, version: int, contents: Mapping[str, bytes]) -> Manifest:
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    created = datetime.now(UTC).replace(microsecond=0)
    return Manifest(**{**dict(description), "version": version, "created": created, "sha256": hashes})


def _place(root: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> bool:
    """Write one version folder atomically; False when another publisher took this version number first."""
    target = root / manifest.name / str(manifest.version)
    temporary = Path(tempfile.mkdtemp(prefix=".publishing-", dir=root))
    try:
        manifest_text = manifest.model_dump_json(indent=2) + "\n"
        for file, content in {**contents, MANIFEST: manifest_text.encode()}.items():
            with (temporary / file).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        temporary.chmod(0o755)
        _sync_folder(temporary)
        target.parent.mkdir(exist_ok=True)
        try:
            temporary.rename(target)
        except OSError:
            if target.exists():
                return False
            raise
        _sync_folder(target.parent)
        _sync_folder(root)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise InvalidArtifactError(file, "missing") from None
    except OSError as error:
        raise InvalidArtifactError(file, f"cannot be read ({error.strerror})") from error


def _read_manifest(file: Path) -> Manifest:
    try:
        fields = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise InvalidArtifactError(file, f"not JSON ({error})") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise InvalidArtifactError(file, f"format version {version!r}; this reader knows only {FORMAT_VERSION}")
    try:
        return Manifest.model_validate(fields)
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
    _check_calibration(file, arrays, num_images, latent_dim)
    return arrays


def _check_calibration(file: Path, arrays: Mapping[str, NDArray[np.float64]], num_images: int, latent_dim: int) -> None:
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
