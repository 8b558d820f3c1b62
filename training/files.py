"""Files that are there whole or not at all."""

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PARTIAL = ".partial"


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """A Ctrl-C in here takes effect after it: in the middle of `torch.save` it would come out as a RuntimeError."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    pressed: list[object] = []
    signal.signal(signal.SIGINT, lambda *how: pressed.append(how))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@_interrupts_deferred()
def write_atomically(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, sync it to disk, and rename it into place.

    A kill at any moment leaves the old file or the new one. Until it is whole the new one is hidden, and its name is
    never that of another: several processes may write the same file at once, and the last one to finish remains.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(file: Path) -> None:
    """Remove what kills have left of unfinished writes of this file, which nobody may be writing now."""
    for left in file.parent.glob(f".{file.name}.*{_PARTIAL}"):
        left.unlink(missing_ok=True)
