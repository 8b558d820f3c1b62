"""One process at a time in a folder: a lock of the operating system's, which ends with the process that holds it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks answer


class FolderInUseError(Exception):
    """Another process holds a folder, or it cannot be written."""


@contextmanager
def lock_folder(folder: Path, doing: str) -> Iterator[str | None]:
    """Hold `folder`, which is made where it is missing, against every other process that locks it.

    The lock is `flock` on a file that is removed at the end. A killed process holds nothing, and the file it leaves
    behind blocks nobody. On a network file system the lock also keeps out other machines. A file system may have no
    locks: then nobody is kept out, and the context's value is a sentence that says so; otherwise it is None.

    Args:
        folder: to hold.
        doing: what its holder does, for the sentence of who comes second: `is training there`.

    Raises:
        FolderInUseError: another process holds it, and which; or the folder cannot be written.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, problem = _acquire(file, doing)
    except OSError as error:
        raise FolderInUseError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        yield problem
    finally:
        file.unlink(missing_ok=True)  # while it is locked: nobody else's can be removed
        os.close(descriptor)


def _acquire(file: Path, doing: str) -> tuple[int, str | None]:
    """A descriptor of the locked file, and why it is not locked where that cannot be."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            problem = _lock(descriptor, file.parent, doing)
            if _is_there(file, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor, problem
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed the file meanwhile


def _lock(descriptor: int, folder: Path, doing: str) -> str | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise FolderInUseError(f"{folder} is in use: {holder} {doing}") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return f"{folder} cannot be locked ({error.strerror}): make sure that no other run is started there"
    return None


def _is_there(file: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
