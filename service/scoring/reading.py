"""Read the images of a shard in batches, a batch ahead: their bytes, or what is wrong with them."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from service.images.archives import MAX_FILE_BYTES, Archive, ArchiveImages
from service.images.arrays import AnyArray
from service.images.container_errors import ContainerError
from service.images.folder import printable
from service.images.parquet import ParquetImages
from service.scoring.inputs import Rows, open_array

MAX_BLOCK_BYTES = 2**29
"""Of encoded images in one row group of a Parquet file; a worker holds one row group at a time."""
_BATCH_BYTES = 2**25
_COPIED_BYTES = 2**22

Content: TypeAlias = bytes | AnyArray | str
"""A file's bytes, pixels [H, W] or [C, H, W], or why there are none."""


@dataclass
class Batch:
    """Some images, in order.

    Attributes:
        paths: the file that each is or lies in, as text that can be printed.
        indices: its number in that file; None for a file that cannot be opened.
        contents: of each.
    """

    paths: list[str] = field(default_factory=list)
    indices: list[int | None] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: str, index: int | None, content: Content) -> None:
        """One more image."""
        self.paths.append(path)
        self.indices.append(index)
        self.contents.append(content)
        self.num_bytes += content.nbytes if isinstance(content, np.ndarray) else len(content)


def batches(parts: Sequence[Rows], most_images: int) -> Iterator[Batch]:
    """The images in order, at most so many at once, and hardly more than 32 MiB of what the files hold.

    While one batch is used the next one is read, in another thread.
    """
    reading = _batches(parts, most_images)
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
        ahead = thread.submit(next, reading, None)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(next, reading, None)
            yield batch


def one_by_one(parts: Sequence[Rows], lost: Mapping[int, str]) -> Iterator[Batch]:
    """Each image as a batch, which is read when it is asked for; by row, those that are not read, and why."""
    return _batches(parts, 1, lost)


def _batches(
    parts: Sequence[Rows], most_images: int, lost: Mapping[int, str] = MappingProxyType({})
) -> Iterator[Batch]:
    batch, rows = Batch(), 0
    for part in parts:
        for path, index, content in _entries(part, rows, lost):
            batch.add(path, index, content)
            rows += 1
            if len(batch) == most_images or batch.num_bytes >= _BATCH_BYTES:
                yield batch
                batch = Batch()
    if len(batch):
        yield batch


def _entries(part: Rows, first: int, lost: Mapping[int, str]) -> Iterator[tuple[str, int | None, Content]]:
    """Path, number and content of each image of a part, whose first row is `first`."""
    kind = part["kind"]
    if kind == "files":
        for row, path in enumerate(part["paths"], first):
            yield printable(path), 0, lost.get(row) or _file(path)
        return
    name = printable(part["path"])
    if kind == "broken":
        yield name, None, part["problem"]
    elif kind == "archive":
        for row, member in enumerate(part["names"], first):
            yield f"{name}/{printable(member)}", 0, lost.get(row) or _member(part["path"], member)
    elif kind == "parquet":
        for row, index in enumerate(range(part["start"], part["stop"]), first):
            yield name, index, lost.get(row) or _row(part["path"], index)
    else:
        for row, (index, content) in enumerate(_of_array(part["path"], part["start"], part["stop"]), first):
            yield name, index, lost.get(row) or content


def _file(path: str) -> Content:
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                return "it is not a file"
            if found.st_size > MAX_FILE_BYTES:
                return f"it has {found.st_size} bytes, more than {MAX_FILE_BYTES}"
            return stream.read(found.st_size)
    except (OSError, ValueError, MemoryError) as error:
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe, do not wait for somebody to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _member(path: str, name: str) -> Content:
    try:
        return ArchiveImages(_archive(path), [name]).open(0).read()
    except ContainerError as error:
        return error.problem
    except KeyError:
        return "the archive has changed: it has no such file"


def _row(path: str, index: int) -> Content:
    try:
        images = _parquet(path)
        if index >= len(images):
            return "the file has changed: it has fewer rows"
        if (size := int(images.block_bytes[images.blocks[index]])) > MAX_BLOCK_BYTES:
            return f"its row group has {size} bytes of images, more than {MAX_BLOCK_BYTES}"
        content = images.open(index).read()
    except ContainerError as error:
        return error.problem
    return content if len(content) <= MAX_FILE_BYTES else f"it has {len(content)} bytes, more than {MAX_FILE_BYTES}"


def _of_array(path: str, start: int, stop: int) -> Iterator[tuple[int, Content]]:
    """Images of an array, some at a time; read, not mapped: a file that is cut short would end this process."""
    while start < stop:
        try:
            array = open_array(path)
            end = min(stop, start + max(1, _COPIED_BYTES // max(1, array[:1].nbytes)))
            images = _part_of(array, path, start, end)
        except ContainerError as error:
            yield from ((index, error.problem) for index in range(start, stop))
            return
        yield from enumerate(images, start)
        missing = range(start + len(images), end)
        yield from ((index, "the file has changed: it has fewer images") for index in missing)
        start = end


def _part_of(array: np.memmap[Any, Any], path: str, start: int, stop: int) -> AnyArray:
    """Images of an array; fewer where the file has become shorter."""
    if not array.flags.c_contiguous:
        return np.array(array[start:stop])
    each = array[:1].size
    try:
        flat = np.fromfile(path, array.dtype, each * (stop - start), offset=array.offset + start * array[:1].nbytes)
    except (OSError, MemoryError) as error:
        raise ContainerError(path, f"cannot be read ({error})") from error
    return flat[: len(flat) // each * each].reshape(-1, *array.shape[1:])


# The one that was read last stays open: a shard's images mostly lie in the same file, and so do the next one's.
@lru_cache(maxsize=1)
def _archive(path: str) -> Archive:
    return Archive(Path(path))


@lru_cache(maxsize=1)
def _parquet(path: str) -> ParquetImages:
    return ParquetImages([Path(path)])
