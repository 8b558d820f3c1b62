"""What a store folder holds, and a model version of it, opened with every byte checked; publication.py adds one."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.calibration import max_file_bytes, parse_calibration
from model_store.errors import InvalidArtifactError, ModelNotFoundError, StoreError
from model_store.files import open_folder, read_file
from model_store.manifest import (
    CALIBRATION,
    DECODER,
    ENCODER,
    FEATURES,
    GRAPHS,
    HASHED_FILES,
    LIKELIHOOD,
    MANIFEST,
    NAME_PATTERN,
    Manifest,
)
from model_store.manifest_file import MAX_MANIFEST_BYTES, parse_manifest
from model_store.pin import PIN, read_pin

BUNDLED = Path(__file__).parent / "artifacts"
BUNDLED_DEFAULT = "mnist"
"""Which of the bundled models is meant where none is named."""
MAX_GRAPH_BYTES = 2**31 - 1
"""More no ONNX file has: it is one protobuf message."""
MAX_ENTRIES = 100_000
"""Of the store's folder, and of a model's."""
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MAX_LISTED_VERSIONS = 20


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
    likelihood: bytes | None
    """None of format version 1, whose likelihood the manifest names."""
    calibration: Mapping[str, NDArray[np.float64]]
    features: bytes | None = None
    """None of models of pixels."""


@dataclass(frozen=True)
class Listing:
    """What a store holds."""

    versions: dict[str, list[int]]
    """Every model with its versions in ascending order."""
    unreadable: dict[str, InvalidArtifactError]
    """Models whose folder cannot be listed, or whose pin names no version, with the reason."""
    pins: dict[str, int] = field(default_factory=dict)
    """The pinned version of each model that has a pin: its default instead of the newest."""

    def candidates(self, name: str) -> list[int]:
        """The versions that can be a model's default, the best one last: all, or the pinned one alone."""
        return [self.pins[name]] if name in self.pins else self.versions.get(name, [])


def list_store(root: Path) -> Listing:
    """Every model in the store; unfinished publications are not listed, and one unreadable folder hides no other model.

    Whatever is not a model's folder is passed over: a volume's root may well hold `lost+found`.

    Raises:
        StoreError: the store's own folder cannot be listed, or has more than `MAX_ENTRIES` entries.
    """
    versions: dict[str, list[int]] = {}
    pins: dict[str, int] = {}
    unreadable: dict[str, InvalidArtifactError] = {}
    try:
        names = sorted(filter(_NAME.fullmatch, _names_in(root)))
    except OSError as error:
        raise _unreadable_store(root, error) from None
    for name in names:
        try:
            if found := versions_of(root, name):
                if (pinned := _pinned(root, name, found)) is not None:
                    pins[name] = pinned
                versions[name] = found
        except InvalidArtifactError as error:
            unreadable[name] = error
    return Listing(versions, unreadable, pins)


def list_versions(root: Path) -> dict[str, list[int]]:
    """The models that can be listed, with their versions in ascending order; raises what `list_store` does.

    >>> "mnist" in list_versions(BUNDLED)
    True
    """
    return list_store(root).versions


def versions_of(root: Path, name: str) -> list[int]:
    """One model's versions in ascending order; none if there is no such folder, or no longer.

    Raises:
        InvalidArtifactError: its folder cannot be listed, has more than `MAX_ENTRIES` entries, or is a link to nothing.
    """
    folder = root / name
    try:
        return sorted(int(entry) for entry in _names_in(folder) if _VERSION.fullmatch(entry))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_symlink() and not folder.exists():
            raise InvalidArtifactError(folder, "a link to nothing") from None
        return []
    except OSError as error:
        raise InvalidArtifactError(folder, f"cannot be read ({error.strerror})") from error


def version_stamp(root: Path, name: str, version: int) -> tuple[tuple[str, int, int, int], ...]:
    """Something that differs once any file of a version does, without reading one: name, inode, size, time of change.

    Of its folder and of its files: the folder's time is that of the last file added, renamed or removed.

    Raises:
        ModelNotFoundError: the store has no such model or version.
        InvalidArtifactError: the model's folder cannot be listed.
    """
    path = _locate(root, name, version)
    stamp = []
    try:
        with open_folder(path) as folder:
            stamp.append(_file_stamp(".", os.fstat(folder)))
            for file in (MANIFEST, *HASHED_FILES):
                try:
                    stamp.append(_file_stamp(file, os.stat(file, dir_fd=folder, follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    except (OSError, InvalidArtifactError):
        return ()  # not a folder, not readable, or changing right now
    return tuple(stamp)


def open_version(
    root: Path,
    name: str,
    version: int | None = None,
    *,
    digest: str | None = None,
    graph_bytes: Mapping[str, int] | None = None,
) -> StoredModel:
    """Read one version (the pinned or else the latest when `version` is None), checking hashes, format and calibration.

    Args:
        root: the store's folder.
        name: of the model.
        version: by number.
        digest: that the manifest must have; of another nothing else is read.
        graph_bytes: the most that is read of each graph, by its file's name; by default `MAX_GRAPH_BYTES`.

    Raises:
        ModelNotFoundError: the store has no such model or version.
        InvalidArtifactError: a file is missing or altered; the message names it.
    """
    path = _locate(root, name, version)
    with open_folder(path) as folder:
        content = read_file(path / MANIFEST, folder, most_bytes=MAX_MANIFEST_BYTES)
        found = hashlib.sha256(content).hexdigest()
        if digest not in (None, found):
            raise InvalidArtifactError(path / MANIFEST, f"SHA-256 is {found}, not {digest}: it has changed")
        manifest = parse_manifest(path / MANIFEST, content)
        if (manifest.name, str(manifest.version)) != (name, path.name):
            problem = f"says it is {manifest.name} version {manifest.version}, but lies in {name}/{path.name}"
            raise InvalidArtifactError(path / MANIFEST, problem)
        most = {
            CALIBRATION: max_file_bytes(manifest.calibration.num_images, manifest.latent_dim),
            **(graph_bytes or dict.fromkeys(GRAPHS, MAX_GRAPH_BYTES)),
        }
        files = {file: _read_verified(path / file, folder, manifest, most[file]) for file in manifest.files}
    return StoredModel(
        path=path,
        manifest=manifest,
        digest=found,
        encoder=files[ENCODER],
        decoder=files[DECODER],
        likelihood=files.get(LIKELIHOOD),
        calibration=parse_calibration(
            path / CALIBRATION, files[CALIBRATION], manifest.calibration.num_images, manifest.latent_dim
        ),
        features=files.get(FEATURES),
    )


def _pinned(root: Path, name: str, versions: Sequence[int]) -> int | None:
    """The pinned one of a model's versions, if it has a pin.

    Raises:
        InvalidArtifactError: the pin cannot be read, or names no version of the model.
    """
    pinned = read_pin(root, name)
    if pinned is not None and pinned not in versions:
        raise InvalidArtifactError(root / name / PIN, f"the pin names version {pinned}, which the model does not have")
    return pinned


def _names_in(folder: Path) -> list[str]:
    """The names of what lies in a folder; OSError where it cannot be listed."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, MAX_ENTRIES + 1)]
    if len(names) > MAX_ENTRIES:
        raise OSError(None, f"it has more than {MAX_ENTRIES} entries")
    return names


def _unreadable_store(root: Path, error: OSError) -> StoreError:
    gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return StoreError(
        f"{root}: " + ("the model store is not a folder" if gone else f"cannot be read ({error.strerror})")
    )


def _locate(root: Path, name: str, version: int | None) -> Path:
    """The folder of a version, by default the pinned or else the latest."""
    try:
        os.scandir(root).close()  # a store that is gone is another error than a model that is not there
    except OSError as error:
        raise _unreadable_store(root, error) from None
    versions = versions_of(root, name) if _NAME.fullmatch(name) else []
    if not versions:
        raise ModelNotFoundError(f"the store has no model {name!r}")
    if version is None:
        version = _pinned(root, name, versions) or versions[-1]
    if version not in versions:
        listed = ", ".join(map(str, versions[-_MAX_LISTED_VERSIONS:]))
        earlier = ", earlier ones and " if len(versions) > _MAX_LISTED_VERSIONS else " "
        raise ModelNotFoundError(f"model {name!r} has no version {version}; it has{earlier}{listed}")
    return root / name / str(version)


def _file_stamp(name: str, found: os.stat_result) -> tuple[str, int, int, int]:
    return name, found.st_ino, found.st_size, found.st_ctime_ns


def _read_verified(file: Path, folder: int, manifest: Manifest, most_bytes: int) -> bytes:
    content = read_file(file, folder, most_bytes=most_bytes)
    expected = manifest.sha256.get(file.name)
    actual = hashlib.sha256(content).hexdigest()
    if expected is None:
        raise InvalidArtifactError(file, "the manifest gives no SHA-256 for it")
    if actual != expected:
        raise InvalidArtifactError(file, f"SHA-256 is {actual}, the manifest says {expected}: truncated or altered")
    return content
