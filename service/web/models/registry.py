"""The models and versions that are served: each model's default version, and a few others that were requested.

The default is the pinned version, or else the newest one that passes its checks, at start and after each reload. A
version is tried out (trials.py) and loaded before it replaces another, which serves until then. Requests that are
computed with the old version keep it in memory until they are done.

All state belongs to the event loop. Several versions can be opened at the same time; none waits for another's trial.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from weakref import WeakValueDictionary

import structlog

from model_store import (
    BUNDLED,
    BUNDLED_DEFAULT,
    InvalidArtifactError,
    Listing,
    ModelNotFoundError,
    StoreError,
    list_store,
    version_stamp,
)
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, Runtime
from service.web.models.loading import Loads, repeat
from service.web.models.opening import Opener, latest_version, runtime_of
from service.web.models.refusals import Key, Refusal
from service.web.models.served import Served
from service.web.models.trials import Trials
from service.web.operations.metrics import Metrics
from service.web.operations.settings import Settings
from service.web.problems import NotReadyError
from service.web.schemas import ModelSummary

_log = structlog.get_logger()
_LONG_SECONDS = 1.0
_PASSING = (ModelNotFoundError, InvalidArtifactError)  # removed just now; the next reload will notice


class Registry:
    """The models that requests can use.

    Args:
        on_device_lost: told, in the event loop, that the GPU failed while a version was opened.
        on_loaded: told there that others are in memory than before.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_device_lost: Callable[[DeviceLostError], None] = lambda _: None,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_device_lost = on_device_lost
        self._on_loaded = on_loaded
        self._root = settings.model_store
        self._runtime: Runtime | None = None
        self._trials: Trials | None = None
        self._opener: Opener | None = None
        self._served = Served()
        self._changes = 0  # number of changes by reloads
        self._renewing = asyncio.Lock()
        self._opening: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._loads: Loads[Model] = Loads()
        metrics.refused_versions.set_function(lambda: len(self._served.refused) + len(self._served.unreadable))

    async def load(self) -> None:
        """Load each model's newest version that passes its checks.

        If there is only one model now, it stays the default model, for requests that name none. In the bundled store,
        the default model is `mnist`.

        Raises:
            StoreError: the store has no model, lacks the configured one, or no version of a required model passes.
            ExecutionProviderError: the wanted provider cannot be used.
        """
        settings = self._settings
        self._trials = Trials(settings)
        self._trials.warm()
        runtime = await asyncio.to_thread(runtime_of, settings)
        if runtime.fallback_reason:
            _log.info("running on the CPU", reason=runtime.fallback_reason)
        self._runtime, self._opener = runtime, Opener(settings, runtime, self._trials, self._on_device_lost)
        listing = await asyncio.to_thread(list_store, self._root)
        names = [*listing.versions, *listing.unreadable]
        if not names:
            raise StoreError(f"{self._root}: the model store holds no model")
        if settings.model is not None and settings.model not in names:
            raise ModelNotFoundError(f"the store has no model {settings.model!r} (LOGPX_MODEL)")
        self._served.unnamed = settings.model or self._only(names)
        async with self._renewing:
            await self._renew(listing)
        if not self._served.defaults or (
            self._served.unnamed is not None and self._served.unnamed not in self._served.defaults
        ):
            which = self._served.unnamed or "any model"
            raise StoreError(f"no version of {which} can be served: {self._served.problems()}")
        _log.info("models loaded", versions=dict(self._served.defaults), provider=runtime.provider)

    def _only(self, names: Collection[str]) -> str | None:
        """The model of requests that name none, if the settings do not say."""
        if len(names) == 1:
            return next(iter(names))
        return BUNDLED_DEFAULT if self._root == BUNDLED and BUNDLED_DEFAULT in names else None

    async def reload(self, *, retry: bool = False) -> None:
        """Serve what the store contains now. `retry`: read refused versions again even if their files have not changed.

        Raises:
            StoreError: the store cannot be read; nothing changes.
            DeviceLostError, OutOfDeviceMemoryError: the GPU failed, or has too little memory for a version.
        """
        async with self._renewing:
            try:
                listing = await asyncio.to_thread(list_store, self._root)
                if retry:
                    self._served.refused.clear()
                    self._served.unreadable.clear()
                changes, refused, unreadable = self._changes, dict(self._served.refused), set(self._served.unreadable)
                await self._renew(listing)
            except Exception:
                self._metrics.reloads.labels("failed").inc()
                raise
            worse = self._served.refused.items() - refused.items() or self._served.unreadable.keys() - unreadable
            outcome = "refused" if worse else "changed" if self._changes != changes else "unchanged"
            self._metrics.reloads.labels(outcome).inc()

    async def watch(self) -> None:
        """Reload every `reload_seconds`; return at once if that is 0."""
        await repeat(self.reload, self._settings.reload_seconds)

    async def model(
        self, name: str | None = None, version: int | None = None, *, timeout_seconds: float
    ) -> tuple[Model, float]:
        """A model, by default the default model in its default version, and the seconds that loading took.

        A version in memory takes no seconds. Others are loaded, once for all requests that wait for them.

        Raises:
            ModelNotFoundError: the store has no such model or version, or has several models and none was named.
            InvalidArtifactError: its files are broken.
            DeadlineError, TooManyLoadsError: it is not in memory, see loading.py.
        """
        name = name or self._served.unnamed or self._served.only_name()
        version = version or self._served.defaults.get(name) or await latest_version(self._root, name)
        key = name, version
        if key in self._served.models:
            is_default = self._served.defaults.get(key[0]) == key[1]
            return (self._served.models[key] if is_default else self._used(key)), 0.0
        started = time.monotonic()
        found = await self._loads.wait(key, lambda: self._load(key), timeout_seconds=timeout_seconds)
        return found, time.monotonic() - started

    async def summaries(self) -> list[ModelSummary]:
        """The answer of `/v1/models`: every model that is served or has a refused version."""
        stored = (await asyncio.to_thread(list_store, self._root)).versions
        return self._served.summaries(stored)

    async def summary(self, name: str, version: int | None) -> ModelSummary:
        """The answer of `/v1/models/{name}` for one version, by default the default version.

        Raises: as `model`.
        """
        found, _ = await self.model(name, version, timeout_seconds=self._settings.timeout_seconds)
        stored = (await asyncio.to_thread(list_store, self._root)).versions
        return self._served.summary(name, found, stored)

    @property
    def batch_rows(self) -> int | None:
        """Rows of one run on the device; None before the device is known."""
        return self._settings.chunk_rows or (self._runtime.blocks.rows if self._runtime else None)

    @property
    def execution_provider(self) -> str:
        """What the models run on.

        Raises:
            NotReadyError: that is not known yet.
        """
        if self._runtime is None:
            raise NotReadyError("the models are still loading")
        return self._runtime.provider

    @property
    def loaded(self) -> list[Model]:
        """The models in memory."""
        return list(self._served.models.values())

    def close(self) -> None:
        """Stop opening versions."""
        self._loads.cancel()
        if self._trials is not None:
            self._trials.close()
        if self._opener is not None:
            self._opener.close()

    async def _load(self, key: Key) -> Model:
        """Load a version that a request asks for, and drop the least recently used one if there are too many."""
        await asyncio.to_thread(version_stamp, self._root, *key)  # a missing one need not wait
        if not (key in self._served.models or await self._bring(key, asked=True)):
            refusal = self._served.refused[key]
            raise InvalidArtifactError(refusal.file, refusal.problem)
        return self._used(key)

    def _used(self, key: Key) -> Model:
        if not self._served.is_default(key):
            self._served.models[key] = self._served.models.pop(key)
            self._drop_least_recent()
        return self._served.models[key]

    async def _renew(self, listing: Listing) -> None:
        """Make the pinned or newest versions that pass the defaults, and drop versions that the store no longer has."""
        for name, error in listing.unreadable.items():
            if name not in self._served.unreadable or self._served.unreadable[name].problem != error.problem:
                _log.error("model refused", model=name, file=str(error.file), problem=error.problem)
        self._served.unreadable = listing.unreadable
        listed = {(name, version) for name, versions in listing.versions.items() for version in versions}
        self._served.refused = {key: refusal for key, refusal in self._served.refused.items() if key in listed}
        for key in [key for key in self._served.others() if key not in listed]:
            if key[0] not in self._served.unreadable:
                self._drop(key)
                self._changes += 1
        renewals = (self._renew_default(name, listing.candidates(name)) for name in listing.versions)
        for failure in await asyncio.gather(*renewals, return_exceptions=True):
            if failure is not None and not isinstance(failure, _PASSING):
                raise failure
        for key in list(self._served.models):
            if key in listed and key in self._served.models:
                with suppress(*_PASSING):
                    await self._bring(key)
        self._drop_least_recent()  # versions that were requested meanwhile

    async def _renew_default(self, name: str, versions: list[int]) -> None:
        """Try the newest version first. One that is published during a long trial is tried before older ones."""
        candidates, newest = list(versions), versions[-1]
        while candidates:
            version, serving, started = candidates.pop(), self._served.defaults.get(name), time.monotonic()
            if await self._bring((name, version)):
                self._served.defaults[name] = version
                if serving not in (None, version):
                    _log.info("another version is the default", model=name, version=version, replaced=serving)
                    self._drop((name, serving))
                    self._changes += 1
                return
            if version == serving:
                return  # its files were damaged since; the version in memory is intact
            if time.monotonic() - started > _LONG_SECONDS:
                found = (await asyncio.to_thread(list_store, self._root)).candidates(name)
                candidates += [later for later in found if later > newest]
                newest = max(newest, *found, 0)

    async def _bring(self, key: Key, *, asked: bool = False) -> bool:
        """Load a version as its files are now. Returns False if it is refused; the version in memory then stays.

        `asked`: whether for a request, see `Opener.open`.
        """
        async with self._opening.setdefault(key, asyncio.Lock()):
            return await self._bring_alone(key, asked=asked)

    async def _bring_alone(self, key: Key, *, asked: bool) -> bool:
        stamp = await asyncio.to_thread(version_stamp, self._root, *key)
        if self._served.stamps.get(key) == stamp:
            return True
        refused = self._served.refused.get(key)
        if refused is not None and refused.stamp == stamp:
            return False
        if self._opener is None:
            raise NotReadyError("the models are still loading")
        labels = {"model": key[0], "version": key[1]}
        opened, seconds = await self._opener.open(key, stamp, asked=asked)
        if isinstance(opened, Refusal):
            self._served.refused[key] = opened
            _log.error("version refused", **labels, file=str(opened.file), problem=opened.problem)
            return False
        self._served.refused.pop(key, None)
        self._changes += not asked
        self._served.models[key], self._served.stamps[key] = opened, stamp
        self._metrics.execution_provider.labels(**labels, provider=opened.provider).set(1)
        _log.info("model loaded", **labels, provider=opened.provider, seconds=seconds)
        self._on_loaded()
        return True

    def _drop_least_recent(self) -> None:
        for key in self._served.others()[: -self._settings.max_other_versions]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        model = self._served.models.pop(key)
        del self._served.stamps[key]
        self._metrics.execution_provider.remove(*key, model.provider)
        _log.info("model dropped", model=key[0], version=key[1])
        self._on_loaded()
