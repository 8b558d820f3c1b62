"""Opening versions of the store: tried out in a process of their own, then read and loaded, and not all the time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_store import (
    InvalidArtifactError,
    ModelNotFoundError,
    StoreError,
    list_store,
    open_version,
    printable,
)
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError, Runtime
from service.web.models.loading import LoadTime
from service.web.models.refusals import Key, Refusal, Stamp
from service.web.models.trials import Passed, Trials
from service.web.operations.settings import Settings


def runtime_of(settings: Settings) -> Runtime:
    """Where the settings say that models run.

    Raises:
        ExecutionProviderError: the wanted provider cannot be used.
    """
    return Runtime(
        settings.execution_provider,
        settings.num_threads,
        device_id=settings.device_id,
        memory_limit=settings.gpu_memory_bytes,
    )


async def latest_version(root: Path, name: str) -> int:
    """Of a model without a default: published since, or nothing of it passes.

    Raises:
        ModelNotFoundError: the store has no such model.
        InvalidArtifactError: its folder cannot be listed.
    """
    listing = await asyncio.to_thread(list_store, root)
    if name in listing.unreadable:
        raise listing.unreadable[name]
    if name not in listing.versions:
        raise ModelNotFoundError(f"the store has no model {name!r}")
    return listing.versions[name][-1]


class Opener:
    """Opens versions on one runtime.

    Args:
        trials: tries each version out before anything of it is read here.
        on_device_lost: told, in the event loop, that the GPU failed meanwhile.
    """

    def __init__(
        self, settings: Settings, runtime: Runtime, trials: Trials, on_device_lost: Callable[[DeviceLostError], None]
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._trials = trials
        self._on_device_lost = on_device_lost
        self._load_time = LoadTime()
        # Always the same thread: the allocator keeps freed memory by thread, for that thread to use again.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opener")

    async def open(self, key: Key, stamp: Stamp, *, asked: bool) -> tuple[Model | Refusal, float]:
        """The model, or what is wrong with it as long as its files have this stamp; and the seconds that took.

        `asked`: by a request; such loads may take so much time, and no more.

        What a trial that ends in a refusal took does not count: there is no other before the files change.

        Raises:
            TooManyLoadsError: they have taken too much of late.
            NotReadyError, StoreError, DeviceLostError, OutOfDeviceMemoryError: the version is not to blame.
        """
        if asked:
            self._load_time.check()
        started = time.monotonic()
        try:
            passed = await self._trials.passed(key, stamp, asked=asked)
        except InvalidArtifactError as error:
            return Refusal(stamp, error.file, error.problem), round(time.monotonic() - started, 3)
        try:
            opened = await asyncio.get_running_loop().run_in_executor(self._thread, self._open, key, stamp, passed)
        except DeviceLostError as error:
            self._on_device_lost(error)
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            self._load_time.spend(seconds if asked else 0)
        return opened, seconds

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open(self, key: Key, stamp: Stamp, passed: Passed) -> Model | Refusal:
        settings = self._settings
        try:
            # Of what has changed since, no more is read than what was tried out has bytes.
            stored = open_version(settings.model_store, *key, digest=passed.digest, graph_bytes=passed.graph_bytes)
            return Model.open(
                stored,
                runtime=self._runtime,
                chunk_rows=settings.chunk_rows,
                max_steps=settings.max_steps,
                tried=True,
            )
        except InvalidArtifactError as error:
            return Refusal(stamp, error.file, error.problem)
        except (StoreError, DeviceLostError, OutOfDeviceMemoryError):
            raise  # the version is not to blame
        except Exception as error:  # noqa: BLE001 - whatever a graph brings about is the end of this version only
            return Refusal(
                stamp, settings.model_store / key[0] / str(key[1]), printable(f"{type(error).__name__}: {error}")
            )
