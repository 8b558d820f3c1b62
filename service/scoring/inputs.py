"""Which images there are to score: files, folders, patterns, lists, Parquet, archives and arrays, in one fixed order.

Only names and numbers of rows are read here. A million paths take 300 to 500 MB while they are sorted.
"""

import glob
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service.images.archives import SUFFIXES as ARCHIVES
from service.images.archives import Archive
from service.images.container_errors import ContainerError
from service.images.folder import SUFFIXES, Skipped, add_skipped, list_files
from service.images.parquet import SUFFIX as PARQUET
from service.images.parquet import ParquetImages
from service.scoring.errors import ScoringError

ARRAY, LIST = ".npy", ".txt"
_ARRAY_ERRORS = (OSError, ValueError, TypeError, EOFError, SyntaxError, MemoryError, OverflowError)
_TYPES = (np.dtype(np.uint8), np.dtype("<f4"))
_PATTERN = frozenset("*?[")
_NAMES_AT_ONCE = 2**14

Rows = Mapping[str, Any]
"""Some images of one group, as JSON: what reading.py opens."""


class Group(Protocol):
    """Images that are read in one way."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Rows:
        """These images, for reading.py."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files: their paths below `folder`, which is empty or ends with `/`."""

    folder: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, start: int, stop: int) -> Rows:
        """These images, for reading.py."""
        return {"kind": "files", "paths": [self.folder + name for name in self.names[start:stop]]}


@dataclass(frozen=True)
class Members:
    """The image files of an archive."""

    path: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, start: int, stop: int) -> Rows:
        """These images, for reading.py."""
        return {"kind": "archive", "path": self.path, "names": list(self.names[start:stop])}


@dataclass(frozen=True)
class Table:
    """The rows of a Parquet file, or the images of an array: `kind` is `parquet` or `array`."""

    kind: str
    path: str
    count: int

    def __len__(self) -> int:
        return self.count

    def rows(self, start: int, stop: int) -> Rows:
        """These images, for reading.py."""
        return {"kind": self.kind, "path": self.path, "start": start, "stop": stop}


@dataclass(frozen=True)
class Broken:
    """A file of many images that cannot be opened: one row of the results says why."""

    path: str
    problem: str

    def __len__(self) -> int:
        return 1

    def rows(self, start: int, stop: int) -> Rows:
        """This file, for reading.py."""
        return {"kind": "broken", "path": self.path, "problem": self.problem}


@dataclass(frozen=True)
class Inputs:
    """All images, numbered from 0.

    Attributes:
        groups: in order; none is empty.
        skipped: files of folders and archives that were not taken for images.
    """

    groups: Sequence[Group]
    skipped: Skipped

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def sha256(self) -> str:
        """Of every name and number, in order."""
        digest = hashlib.sha256()
        for group in self.groups:
            for start in range(0, len(group), _NAMES_AT_ONCE):
                rows = group.rows(start, min(start + _NAMES_AT_ONCE, len(group)))
                digest.update(json.dumps(rows).encode() + b"\n")
        return digest.hexdigest()

    def shards(self, size: int) -> Iterator[Sequence[Rows]]:
        """The images in order, cut into runs of `size`, the last perhaps shorter."""
        ends = [*accumulate(map(len, self.groups))]
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            rows = []
            for number in range(bisect_right(ends, start), len(ends)):
                first = ends[number] - len(self.groups[number])
                if first >= stop:
                    break
                rows.append(self.groups[number].rows(max(start, first) - first, min(stop, ends[number]) - first))
            yield rows


def find_inputs(given: Sequence[str], out: Path) -> Inputs:
    """The images that `--images` names.

    - A folder: image files and Parquet files at any depth, as service/images/folder.py lists them; what lies in `out`
      is left out.
    - A pattern such as `photos/**/*.png`, in which `**` is any number of folders.
    - A `.txt` file with a path a line, from the folder in which it lies.
    - A zip or tar file of image files; a Parquet file with a column of encoded images; an `.npy` array.
    - Any other file is an image.

    The order is by path, whatever the order given: single files first, then folders, then files of many images.

    Raises:
        ScoringError: something does not exist or cannot be read, or there is no image.
    """
    paths: set[str] = set()
    for each in given:
        paths.update(_expanded(os.path.expanduser(each)))  # noqa: PTH111 (a Path would drop a leading ./)
    skipped: dict[str, tuple[int, str]] = {}
    groups: list[Group] = []
    folders = sorted((path for path in paths if os.path.isdir(path)), key=_by_parts)  # noqa: PTH112
    paths.difference_update(folders)
    containers = {path for path in paths if _is_container(path)}
    paths -= containers
    if files := sorted(paths, key=_by_parts):
        groups.append(Files("", files))
    for folder in folders:
        files, tables = _listed(folder, out, skipped)
        containers.update(tables)
        groups.append(Files(f"{folder.rstrip('/')}/", files))
    groups += [_opened(path, skipped) for path in sorted(containers, key=_by_parts)]
    groups = [group for group in groups if len(group)]
    if groups and not all(isinstance(group, Broken) for group in groups):
        return Inputs(groups, skipped)
    broken = next((f"{group.path}: {group.problem}" for group in groups if isinstance(group, Broken)), None)
    raise ScoringError(broken or f"{', '.join(given)}: no image there")


def _expanded(given: str) -> Sequence[str]:
    """The paths that one value of `--images` stands for."""
    if not os.path.lexists(given):
        found = glob.glob(given, recursive=True) if _PATTERN.intersection(given) else []  # noqa: PTH207
        if not found:
            what = "nothing matches" if _PATTERN.intersection(given) else "does not exist"
            raise ScoringError(f"{given}: {what}")
        return [path for path in found if not os.path.isdir(path)]  # noqa: PTH112
    if not given.lower().endswith(LIST):
        return [given]
    try:
        lines = Path(given).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise ScoringError(f"{given}: cannot be read ({error.strerror})") from error
    folder = os.path.dirname(given)  # noqa: PTH120
    return [os.path.join(folder, line.rstrip("\r")) for line in lines if line.strip()]  # noqa: PTH118


def _by_parts(path: str) -> str:
    """A key that sorts paths folder by folder, as their lists of parts would, but smaller."""
    return path.replace("/", "\0")


def _is_container(path: str) -> bool:
    return path.lower().endswith((PARQUET, ARRAY, *ARCHIVES))


def _listed(folder: str, out: Path, skipped: dict[str, tuple[int, str]]) -> tuple[list[str], list[str]]:
    """The image files below a folder, relative to it, and its Parquet files."""
    try:
        listing = list_files(Path(folder), (*SUFFIXES, PARQUET))
    except OSError as error:
        raise ScoringError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
    for kind, (count, name) in listing.skipped.items():
        add_skipped(skipped, kind, name, count)
    root, results = Path(folder).resolve(), out.resolve()
    ours = f"{results}/part-" if results.is_relative_to(root) else None
    files: list[str] = []
    tables: list[str] = []
    for name in listing.files:
        if ours is not None and f"{root}/{name}".startswith(ours):
            continue  # results of this run or an earlier one
        if not name.lower().endswith(PARQUET):
            files.append(name)
        elif any(part.startswith("_") for part in name.split("/")):  # notes of Spark and Arrow about other files
            add_skipped(skipped, "hidden file", name)
        else:
            tables.append(f"{folder.rstrip('/')}/{name}")
    return files, tables


def _opened(path: str, skipped: dict[str, tuple[int, str]]) -> Group:
    """A file of many images."""
    try:
        if path.lower().endswith(PARQUET):
            return Table("parquet", path, len(ParquetImages([Path(path)])))
        if path.lower().endswith(ARRAY):
            return Table("array", path, len(open_array(path)))
        names, left = Archive(Path(path)).image_names()
    except ContainerError as error:
        return Broken(path, error.problem)
    for kind, (count, name) in left.items():
        add_skipped(skipped, kind, name, count)
    return Members(path, names)


def open_array(path: str) -> np.memmap[Any, Any]:
    """An `.npy` file as an array [N, H, W] or [N, C, H, W] that is read from the disk where it is used.

    Raises:
        ContainerError: it is no such file, or its numbers are neither uint8 nor float32.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _ARRAY_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ContainerError(path, f"not a readable .npy file ({reason})") from error
    if not isinstance(array, np.memmap):  # an .npz file with another name, or an array of nothing
        raise ContainerError(path, "not an .npy file")
    if array.ndim not in (3, 4) or array.dtype not in _TYPES or not array.size:
        found = f"{array.dtype} {list(array.shape)}"
        raise ContainerError(path, f"has {found}; images are uint8, or float32 in [0, 1], [N, H, W] or [N, C, H, W]")
    return array
