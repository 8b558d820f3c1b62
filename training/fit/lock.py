"""One process at a time in a run's folder; service/folder_lock.py has the lock."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service import folder_lock
from service.folder_lock import LOCK, FolderInUseError
from training.errors import RunError

__all__ = ["LOCK", "lock_folder"]


@contextmanager
def lock_folder(folder: Path) -> Iterator[str | None]:
    """Hold `folder` as `service.folder_lock.lock_folder` does.

    Raises:
        RunError: another process holds it, and which; or the folder cannot be written.
    """
    with ExitStack() as held:
        try:
            problem = held.enter_context(folder_lock.lock_folder(folder, "is training there"))
        except FolderInUseError as error:
            raise RunError(str(error)) from error
        yield problem
