"""Publish a model version into a store folder: all of it or nothing, under a number that was never given before.

Other programs, under other users, read what is published: files and folders made here can be read by all, whatever the
umask is. What is there already keeps its mode.
"""

import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.calibration import check_calibration
from model_store.errors import InvalidArtifactError, ModelNotFoundError, StoreError
from model_store.manifest import (
    CALIBRATION,
    DECODER,
    ENCODER,
    FEATURES,
    GRAPHS,
    LIKELIHOOD,
    MANIFEST,
    Description,
    Manifest,
)
from model_store.manifest_file import parse_manifest
from model_store.pin import PIN
from model_store.store import MAX_GRAPH_BYTES, StoredModel, list_store, open_version, version_stamp, versions_of

_UNFINISHED = ".publishing-"
_GIVEN = ".given-"
_READABLE_FILE, _READABLE_FOLDER = 0o644, 0o755


def publish(
    root: Path,
    description: Description,
    *,
    encoder: bytes,
    decoder: bytes,
    likelihood: bytes,
    calibration: Mapping[str, NDArray[np.float64]],
    features: bytes | None = None,
) -> StoredModel:
    """Add the next version of a model: written to a temporary folder, synced to disk, then renamed into place.

    A reader sees the whole version or none of it, whenever the process dies; a version that exists is never touched,
    and the number of one that was removed is not given again.

    Raises:
        InvalidArtifactError: what no reader would take: calibration arrays that are not what the description says, a
            graph or a description that is too large or holds what a manifest may not hold, `features` that the
            description does not know of, or the other way round.
        StoreError: the store cannot be written, as on a full disk; it is then as it was.
    """
    scores = {key: np.asarray(value) for key, value in calibration.items()}
    check_calibration(Path(CALIBRATION), scores, description.calibration.num_images, description.latent_dim)
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **scores)
    contents = {ENCODER: encoder, DECODER: decoder, LIKELIHOOD: likelihood, CALIBRATION: packed.getvalue()}
    if (features is None) != (description.features is None):
        raise InvalidArtifactError(FEATURES, "the graph and the manifest's field `features` belong together")
    if features is not None:
        contents[FEATURES] = features
    for file in (file for file in GRAPHS if file in contents):
        if len(contents[file]) > MAX_GRAPH_BYTES:
            raise InvalidArtifactError(file, f"has {len(contents[file])} bytes; at most {MAX_GRAPH_BYTES} are read")
    parse_manifest(Path(MANIFEST), _text_of(_manifest_of(description, 1, contents)))
    try:
        _make_folder(root)
        while True:
            version = _last_given(root, description.name) + 1
            if _place(root, _manifest_of(description, version, contents), contents):
                return open_version(root, description.name, version)
    except OSError as error:
        raise StoreError(f"{root}: {description.name} is not published: {error.strerror}") from error


def pin(root: Path, name: str, version: int) -> None:
    """Make a version the default of its model, instead of the newest: at once, or not at all.

    Raises:
        ModelNotFoundError: the store has no such model or version.
        StoreError: the store cannot be read or written.
    """
    version_stamp(root, name, version)
    folder = root / name
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{PIN}-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                _let_all_read(Path(temporary), _READABLE_FILE)
                stream.write(b"%d\n" % version)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).rename(folder / PIN)
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync_folder(folder)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be pinned: {error.strerror}") from error


def unpin(root: Path, name: str) -> bool:
    """Make the newest version the default of its model again; returns whether another one was pinned.

    Raises:
        ModelNotFoundError: the store has no such model.
        StoreError: the store cannot be read or written.
    """
    if name not in list_store(root).versions and not (root / name / PIN).exists():
        raise ModelNotFoundError(f"the store has no model {name!r}")
    try:
        (root / name / PIN).unlink()
        _sync_folder(root / name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{root / name}: cannot be unpinned: {error.strerror}") from error
    return True


def _manifest_of(description: Description, version: int, contents: Mapping[str, bytes]) -> Manifest:
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    created = datetime.now(UTC).replace(microsecond=0)
    return Manifest(**{**dict(description), "version": version, "created": created, "sha256": hashes})


def _text_of(manifest: Manifest) -> bytes:
    try:
        absent = {"features"} if manifest.features is None else None  # which readers of before do not know
        return f"{manifest.model_dump_json(indent=2, exclude=absent)}\n".encode()
    except (ValueError, RecursionError) as error:  # pydantic's own error of serialisation is a ValueError
        raise InvalidArtifactError(MANIFEST, f"cannot be written ({error})") from error


def _place(root: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> bool:
    """Write one version folder atomically; False when another publisher took this version number first."""
    target = root / manifest.name / str(manifest.version)
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    try:
        for file, content in {**contents, MANIFEST: _text_of(manifest)}.items():
            with (temporary / file).open("wb") as stream:
                _let_all_read(temporary / file, _READABLE_FILE)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        _let_all_read(temporary, _READABLE_FOLDER)
        _sync_folder(temporary)
        _make_folder(target.parent)
        if not _reserve(root, manifest.name, manifest.version):
            return False
        try:
            temporary.rename(target)
        except OSError:
            if target.exists():
                return False
            _record(root, manifest.name, manifest.version).unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
        _sync_folder(root)
        for version in _given(root, manifest.name):
            if version < manifest.version:
                with suppress(OSError):  # of another user, in a folder where only owners may remove
                    _record(root, manifest.name, version).unlink()
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _record(root: Path, name: str, version: int) -> Path:
    """The empty file that says that a number was given. It lies beside the models: removing one leaves it there."""
    return root / f"{_GIVEN}{name}-{version}"


def _given(root: Path, name: str) -> list[int]:
    """The numbers on record."""
    record = re.compile(rf"{re.escape(_GIVEN + name)}-([1-9][0-9]*)")
    return [int(found[1]) for entry in root.iterdir() if (found := record.fullmatch(entry.name))]


def _last_given(root: Path, name: str) -> int:
    """The highest number ever given. An older store, or a copy made without the records, still has its folders."""
    return max([0, *versions_of(root, name), *_given(root, name)])


def _reserve(root: Path, name: str, version: int) -> bool:
    """Put a number on record for this publisher alone; False where another has it, or had it.

    The record cannot be made twice, but it is removed once a higher one is there: so whoever makes it looks again. A
    lock on the store keeps others from making a higher record between the two. Without it, on a file system that has no
    locks, two who take numbers at the same moment may leave the lower one out; no number is given twice.
    """
    record = _record(root, name, version)
    with _locked(root):
        try:
            record.touch(exist_ok=False)
        except FileExistsError:
            return False
        if _last_given(root, name) > version:
            record.unlink(missing_ok=True)
            return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process that holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it; others can read it from the moment it has its name."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        _make_folder(folder.parent)
    temporary = folder.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        _let_all_read(temporary, _READABLE_FOLDER)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another publisher has made it meanwhile
            raise
    finally:
        with suppress(FileNotFoundError):
            temporary.rmdir()


def _let_all_read(path: Path, mode: int) -> None:
    """Add these permissions to a file or folder; those it has stay."""
    found = stat.S_IMODE(path.stat().st_mode)
    if found & mode != mode:
        path.chmod(found | mode)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
