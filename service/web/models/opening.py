"""Open versions of the store: try each out in a child process, then read and load it, and not too often."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from model_store import (
    MANIFEST,
    InvalidArtifactError,
    ModelNotFoundError,
    StoreError,
    list_store,
    open_version,
    printable,
)
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError, Runtime
from service.images.resampler import ResamplerError, check_resampler
from service.web.models.loading import LoadTime
from service.web.models.refusals import Key, Refusal, Stamp
from service.web.models.trials import Passed, Trials
from service.web.operations.settings import Settings

_log = structlog.get_logger()


def runtime_of(settings: Settings) -> Runtime:
    """The runtime for models that the settings ask for.

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
    """The version that would be the default of a model without one: it is new, or none passed its checks.

    Raises:
        ModelNotFoundError: the store has no such model.
        InvalidArtifactError: its folder cannot be listed.
    """
    listing = await asyncio.to_thread(list_store, root)
    if name in listing.unreadable:
        raise listing.unreadable[name]
    if name not in listing.versions:
        raise ModelNotFoundError(f"the store has no model {name!r}")
    return listing.candidates(name)[-1]


class Opener:
    """Opens versions on one runtime.

    Args:
        trials: tries each version out before it is read in this process.
        on_device_lost: called on the event loop if the GPU fails meanwhile.
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
        """Open a version: the model, or why it is refused while its files have this stamp; and the seconds taken.

        `asked`: whether for a request; the time for such loads is limited. A trial that ends in a refusal does not
        count, because the version is not tried again before its files change.

        Raises:
            TooManyLoadsError: recent loads took too much time.
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
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open(self, key: Key, stamp: Stamp, passed: Passed) -> Model | Refusal:
        settings = self._settings
        try:
            # Files that changed since the trial are not read beyond their size in the trial.
            stored = open_version(settings.model_store, *key, digest=passed.digest, graph_bytes=passed.graph_bytes)
            if warning := check_resampler(stored.manifest.preparation):
                _log.warning("images are resampled by another version", model=key[0], version=key[1], reason=warning)
            return Model.open(
                stored,
                runtime=self._runtime,
                chunk_rows=settings.chunk_rows,
                max_steps=settings.max_steps,
                tried=True,
            )
        except InvalidArtifactError as error:
            return Refusal(stamp, error.file, error.problem)
        except ResamplerError as error:
            return Refusal(stamp, settings.model_store / key[0] / str(key[1]) / MANIFEST, str(error))
        except (StoreError, DeviceLostError, OutOfDeviceMemoryError):
            raise  # the version is not to blame
        except Exception as error:  # noqa: BLE001 - whatever a graph brings about is the end of this version only
            return Refusal(
                stamp, settings.model_store / key[0] / str(key[1]), printable(f"{type(error).__name__}: {error}")
            )
