"""Opening versions of the store: read, verified and run once, one at a time, and not all the time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from model_store import InvalidArtifactError, StoreError, open_version
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError, Runtime
from service.web.loading import LoadTime
from service.web.refusals import Key, Refusal, Stamp
from service.web.settings import Settings


class Opener:
    """Opens versions on one runtime.

    Args:
        on_device_lost: told, in the event loop, that the GPU failed meanwhile.
    """

    def __init__(self, settings: Settings, runtime: Runtime, on_device_lost: Callable[[DeviceLostError], None]) -> None:
        self._settings = settings
        self._runtime = runtime
        self._on_device_lost = on_device_lost
        self._load_time = LoadTime()
        # Always the same thread: the allocator keeps freed memory by thread, for that thread to use again.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opener")

    async def open(self, key: Key, stamp: Stamp, *, asked: bool) -> tuple[Model | Refusal, float]:
        """The model, or what is wrong with it as long as its files have this stamp; and the seconds that took.

        `asked`: by a request; such loads may take so much time, and no more.

        Raises:
            TooManyLoadsError: they have taken too much of late.
            StoreError, DeviceLostError, OutOfDeviceMemoryError: the version is not to blame.
        """
        if asked:
            self._load_time.check()
        started = time.monotonic()
        try:
            opened = await asyncio.get_running_loop().run_in_executor(self._thread, self._open, key, stamp)
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

    def _open(self, key: Key, stamp: Stamp) -> Model | Refusal:
        settings = self._settings
        try:
            return Model.open(
                open_version(settings.model_store, *key),
                runtime=self._runtime,
                chunk_rows=settings.chunk_rows,
                max_steps=settings.max_steps,
            )
        except InvalidArtifactError as error:
            return Refusal(stamp, error.file, error.problem)
        except (StoreError, DeviceLostError, OutOfDeviceMemoryError):
            raise  # the version is not to blame
        except Exception as error:  # noqa: BLE001 - whatever a graph brings about is the end of this version only
            return Refusal(stamp, settings.model_store / key[0] / str(key[1]), f"{type(error).__name__}: {error}")
