"""The files of the page `/docs`. Nothing that a request says makes them more work than sending one of them."""

import os
from pathlib import Path

from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

_LISTS = (b"if-none-match", b"range")
_MAX_LIST_BYTES = 256


class PageFiles(StaticFiles):
    """The files of one folder, of which there are no others than when this was made.

    Starlette's own class follows each path through the file system, which takes time by the square of its length, and
    reads every member of a list of ranges or tags. Here only a name that there is is looked up, and a header with a
    long list is ignored, as RFC 9110, 14.2, advises: then the answer is the whole file.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory=directory)
        self._names = frozenset(path.name for path in Path(directory).iterdir())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = [item for item in scope["headers"] if item[0] not in _LISTS or len(item[1]) <= _MAX_LIST_BYTES]
        await super().__call__({**scope, "headers": headers}, receive, send)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Where the file is and what the system knows of it; or nothing."""
        return super().lookup_path(path) if path in self._names else ("", None)
