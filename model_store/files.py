"""Reading a version's files: regular ones only and no links, of bounded size, all from the folder that was opened."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import InvalidArtifactError

_LINK = "a link; a version's folder and its files must be there themselves"


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """A descriptor of a version's folder: whatever is read by it lies in this very folder, also when its name moves on.

    Raises:
        InvalidArtifactError: it is missing, a link, no folder, or cannot be read.
    """
    try:
        if folder.is_symlink():
            raise InvalidArtifactError(folder, _LINK)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _refusal(folder, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(file: Path, folder: int, *, most_bytes: int) -> bytes:
    """The content of a regular file. Anything else may have no end, or make a reader wait for ever, as a pipe does.

    Args:
        file: its path; the last part of it is read from `folder`, the rest is for errors.
        folder: see `open_folder`.
        most_bytes: a larger file is refused before any of it is read.

    Raises:
        InvalidArtifactError: it is missing, a link, anything else but a file, too large, or cannot be read.
    """
    try:
        # Looked at before it is opened: opening some devices already does something.
        _check(file, os.stat(file.name, dir_fd=folder, follow_symlinks=False), most_bytes)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with os.fdopen(os.open(file.name, flags, dir_fd=folder), "rb") as stream:
            opened = os.fstat(stream.fileno())
            _check(file, opened, most_bytes)  # another one may lie there by now
            return stream.read(opened.st_size)  # and no more: a file that grows as fast as it is read would have no end
    except OSError as error:
        raise _refusal(file, error) from error


def _check(file: Path, found: os.stat_result, most_bytes: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise InvalidArtifactError(file, f"cannot be read ({_LINK})")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArtifactError(file, "cannot be read (not a file)")
    if found.st_size > most_bytes:
        raise InvalidArtifactError(file, f"has {found.st_size} bytes; at most {most_bytes} are read")


def _refusal(path: Path, error: OSError) -> InvalidArtifactError:
    missing = isinstance(error, FileNotFoundError)
    return InvalidArtifactError(path, "missing" if missing else f"cannot be read ({error.strerror})")
