"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, sync it to disk, and rename it into place.

    A kill at any moment leaves the old file or the new one. What a kill leaves of the unfinished one has a name of its
    own, and the next write of the same file replaces it.
    """
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
