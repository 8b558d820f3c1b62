"""Images in a zip or tar file, which is read where it lies: nothing is unpacked to names that it chooses."""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.images.container_errors import ContainerError, EntryError
from service.images.folder import Skipped, add_skipped, printable, skipped_kind, without_masks

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_FILE_BYTES = 2**28
"""Of one image in an archive; a larger one counts as one that cannot be read."""
MOST_TIMES, AT_LEAST_BYTES = 100, 2**26
"""An archive is not read if what it holds is larger than so many times its own size, and than so many bytes: images
hardly compress once more, and what does is a trap."""
_COPIED_BYTES = 2**20
_OPENERS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
# What zipfile, tarfile and the decompressors raise for broken files.
_READER_ERRORS = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, LookupError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class _Member:
    """A file in an archive: for a zip its entry, for a tar where its bytes begin."""

    name: str
    num_bytes: int
    place: Any


class ArchiveImages:
    """Some of the images of an archive, numbered in the order of `names`."""

    blocks = None
    block_bytes: NDArray[np.int64] = np.zeros(0, np.int64)

    def __init__(self, archive: "Archive", names: Sequence[str]) -> None:
        self._archive = archive
        self._members = [archive.members[name] for name in names]

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """The archive's path, followed by the image's own."""
        return f"{self._archive.path}/{printable(self._members[index].name)}"

    def open(self, index: int) -> BinaryIO:
        """The image's bytes.

        Raises:
            EntryError: they cannot be read, or there are too many.
        """
        member = self._members[index]
        try:
            if member.num_bytes > MAX_FILE_BYTES:
                raise ValueError(f"{member.num_bytes} bytes, more than {MAX_FILE_BYTES}")
            content = self._archive.read(member)
            if len(content) != member.num_bytes:
                raise EOFError("cut off")
        except _READER_ERRORS as error:
            raise EntryError(self.name(index), f"cannot be read ({_first_line(error)})") from error
        return io.BytesIO(content)


class Archive:
    """A zip or tar file whose members have been listed.

    A compressed tar cannot be read from the middle, so it is decompressed into a temporary file, which lasts as long as
    this object.

    Attributes:
        path: of the archive.
        members: its regular files by name, with `/`.
        skipped: what else there is, but for folders.

    Raises:
        ContainerError: it cannot be read, is encrypted, unpacks to too much, or has a name that leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, _Member] = {}
        self.skipped: dict[str, tuple[int, str]] = {}
        self._zip: zipfile.ZipFile | None = None
        self._temporary: Any = None
        self._is_zip = path.suffix.lower() == ".zip"
        try:
            self._plain, self._temporary = (path, None) if self._is_zip else _decompressed(path)
            for member in self._list_zip() if self._is_zip else self._list_tar():
                self._add(member)
        except _READER_ERRORS as error:
            raise ContainerError(path, f"not a readable archive ({_first_line(error)})") from error
        held = sum(member.num_bytes for member in self.members.values())
        _check_ratio(path, held)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which open the file themselves, and leave the temporary one alone."""
        return self.__dict__ | {"_zip": None, "_temporary": None}

    def read(self, member: _Member) -> bytes:
        """The bytes of a member, as many as it was said to have."""
        if not self._is_zip:
            with self._plain.open("rb") as stream:
                stream.seek(member.place)
                return stream.read(member.num_bytes)
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        with self._zip.open(member.place) as entry:
            return entry.read(member.num_bytes + 1)

    def _list_zip(self) -> Iterable[_Member]:
        with zipfile.ZipFile(self.path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                if entry.flag_bits & 1:
                    raise ContainerError(self.path, "is encrypted: unpack it, and give the folder")
                yield _Member(entry.filename.replace("\\", "/"), entry.file_size, entry)

    def _list_tar(self) -> Iterable[_Member]:
        with tarfile.open(self._plain, "r:") as archive:
            for entry in archive:
                if entry.isreg() and not entry.issparse():
                    yield _Member(entry.name, entry.size, entry.offset_data)
                elif not entry.isdir():
                    add_skipped(self.skipped, "link or special file", entry.name)
            end = archive.offset
        with self._plain.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any end for the end
                raise EOFError("it is cut off")

    def _add(self, member: _Member) -> None:
        name = str(PurePosixPath(member.name))  # without ./
        if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
            shown = printable(member.name)
            raise ContainerError(
                self.path, f"has the name {shown!r}, which leads out of it: such an archive is not read"
            )
        if name in self.members:
            add_skipped(self.skipped, "file of the same name as a later one", name)
        self.members[name] = replace(member, name=name)

    def image_names(self) -> tuple[tuple[str, ...], Skipped]:
        """The names of image files, masks left out, folder by folder; and what was skipped."""
        skipped = dict(self.skipped)
        taken = []
        for name in self.members:
            if kind := skipped_kind(name):
                add_skipped(skipped, kind, name)
            elif kind is None:
                taken.append(name)
        return without_masks(sorted(taken, key=lambda name: name.split("/")), skipped), skipped


def is_archive(path: Path) -> bool:
    """Whether a path names an archive.

    >>> is_archive(Path("a/b.TAR.gz")), is_archive(Path("a/b.gz"))
    (True, False)
    """
    return path.name.lower().endswith(SUFFIXES)


def _decompressed(path: Path) -> tuple[Path, Any]:
    """An uncompressed tar file of the same content, and what keeps it there if it is temporary."""
    with path.open("rb") as stream:
        start = stream.read(6)
    opener = next((opener for magic, opener in _OPENERS if start.startswith(magic)), None)
    if opener is None:
        return path, None
    temporary = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115 (it lasts as long as the archive)
    with opener(path) as packed:
        while chunk := packed.read(_COPIED_BYTES):
            temporary.write(chunk)
            _check_ratio(path, temporary.tell())
            if shutil.disk_usage(temporary.name).free < 2 * _COPIED_BYTES:
                raise ContainerError(
                    path, f"unpacks to more than fits into {Path(temporary.name).parent}: unpack it yourself"
                )
    temporary.flush()
    return Path(temporary.name), temporary


def _check_ratio(path: Path, num_bytes: int) -> None:
    if num_bytes > max(MOST_TIMES * path.stat().st_size, AT_LEAST_BYTES):
        raise ContainerError(
            path, f"unpacks to more than {MOST_TIMES} times its own size, which images do not: it is not read"
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
