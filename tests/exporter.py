"""PyTorch's exporter, without what it does anew at each export, or in each of pytest-xdist's processes."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from torch.onnx._internal.exporter import _registration


@contextmanager
def operators_looked_up_once() -> Iterator[None]:
    """At each export it reads the source of every operator that ONNX Script has, which takes half of the time."""
    look_up = staticmethod(cache(_registration.ONNXRegistry.from_torchlib))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", look_up)
        yield


class Exports:
    """Graphs by name, each exported once in a test session: by whichever of its processes asks first.

    The others wait for it, which takes no longer than exporting it once more would.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        folder = factory.getbasetemp()
        # Each of pytest-xdist's processes has its own folder in that of the session.
        self._folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exports"
        self._folder.mkdir(exist_ok=True)
        self._known: dict[str, bytes] = {}

    def get(self, name: str, export: Callable[[], bytes]) -> bytes:
        """The graph of this name; `export` makes it where no process has."""
        if name not in self._known:
            file = self._folder / name
            with (self._folder / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not file.exists():
                    unfinished = self._folder / f"{name}.unfinished"
                    unfinished.write_bytes(export())
                    unfinished.rename(file)
                self._known[name] = file.read_bytes()
        return self._known[name]
