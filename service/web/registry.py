"""Which models and versions are served: each model's default version, and a few others that were asked for.

The default is the newest version in the store that passes its checks: at start, and after each reload. A version is
verified and run before it takes the place of another, which serves until then; whoever computes with the old one
holds it, and the last of them frees it.

All state belongs to the event loop; a thread opens one version at a time.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from model_store import (
    BUNDLED,
    BUNDLED_DEFAULT,
    InvalidArtifactError,
    ModelNotFoundError,
    StoreError,
    list_versions,
    open_version,
    version_stamp,
)
from service.engine.model import Model
from service.engine.runtime import DeviceLostError, OutOfDeviceMemoryError, Runtime
from service.web.errors import NotReadyError
from service.web.metrics import Metrics
from service.web.schemas import ModelSummary, RefusedVersion
from service.web.settings import Settings

Key = tuple[str, int]
Stamp = tuple[tuple[str, int, int, int], ...]
_log = structlog.get_logger()


@dataclass(frozen=True)
class _Refusal:
    """What is wrong with a version, and the stamp it had then: it is not read again before that changes."""

    stamp: Stamp
    file: Path
    problem: str


class Registry:
    """The models that requests can have."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._root = settings.model_store
        self._runtime: Runtime | None = None
        self._unnamed: str | None = None
        self._defaults: dict[str, int] = {}
        self._models: dict[Key, Model] = {}  # of those that are no default, the one used last comes last
        self._stamps: dict[Key, Stamp] = {}
        self._refused: dict[Key, _Refusal] = {}
        self._opening = asyncio.Lock()
        # Always the same thread: the allocator keeps freed memory by thread, for that thread to use again.
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="opener")
        metrics.refused_versions.set_function(lambda: len(self._refused))

    async def load(self) -> None:
        """Load each model's newest version that passes its checks.

        The only model, if there is but one now, stays the one that a request means when it names none; of the bundled
        store it is `mnist`.

        Raises:
            StoreError: the store has no model, or not the configured one, or no version of what must be served passes.
            ExecutionProviderError: the wanted provider cannot be used.
        """
        settings = self._settings
        runtime = await asyncio.to_thread(
            Runtime,
            settings.execution_provider,
            settings.num_threads,
            device_id=settings.device_id,
            memory_limit=settings.gpu_memory_bytes,
        )
        if runtime.fallback_reason:
            _log.info("running on the CPU", reason=runtime.fallback_reason)
        self._runtime = runtime
        stored = await asyncio.to_thread(list_versions, self._root)
        if not stored:
            raise StoreError(f"{self._root}: the model store holds no model")
        if settings.model is not None and settings.model not in stored:
            raise ModelNotFoundError(f"the store has no model {settings.model!r} (LOGPX_MODEL)")
        self._unnamed = settings.model or self._only(stored)
        async with self._opening:
            await self._renew(stored)
        if not self._defaults or (self._unnamed is not None and self._unnamed not in self._defaults):
            problems = "; ".join(f"{refusal.file}: {refusal.problem}" for refusal in self._refused.values())
            raise StoreError(f"no version of {self._unnamed or 'any model'} can be served: {problems}")
        _log.info("models loaded", versions=dict(self._defaults), provider=runtime.provider)

    def _only(self, stored: Mapping[str, Sequence[int]]) -> str | None:
        """What a request means that names no model, where no setting says."""
        if len(stored) == 1:
            return next(iter(stored))
        return BUNDLED_DEFAULT if self._root == BUNDLED and BUNDLED_DEFAULT in stored else None

    async def reload(self, *, retry: bool = False) -> None:
        """Take up what the store holds now. `retry` reads refused versions again even if their files are the same.

        Raises:
            StoreError: the store cannot be read; all goes on as before.
        """
        async with self._opening:
            try:
                stored = await asyncio.to_thread(list_versions, self._root)
                if retry:
                    self._refused.clear()
                models, refused = dict(self._models), dict(self._refused)
                await self._renew(stored)
            except StoreError:
                self._metrics.reloads.labels("failed").inc()
                raise
            changed = "changed" if self._models != models else "unchanged"
            outcome = "refused" if self._refused.items() - refused.items() else changed
            self._metrics.reloads.labels(outcome).inc()

    async def watch(self) -> None:
        """Reload every `reload_seconds`; return at once where that is 0."""
        told = None
        while seconds := self._settings.reload_seconds:
            await asyncio.sleep(seconds)
            try:
                await self.reload()
                told = None
            except Exception as error:  # noqa: BLE001 - whatever it was, it may be over at the next poll
                if told != str(error):
                    told = str(error)
                    _log.error("the store cannot be reloaded", reason=told, kind=type(error).__name__)

    async def model(self, name: str | None = None, version: int | None = None) -> Model:
        """A model, by default the configured or only one in its default version. What is not in memory yet is loaded.

        Raises:
            ModelNotFoundError: the store has no such model or version, or several and none was named.
            InvalidArtifactError: its files are broken.
        """
        name = name or self._only_name()
        version = version or self._defaults.get(name) or await self._latest(name)
        key = (name, version)
        if key not in self._models:
            async with self._opening:
                if not (key in self._models or await self._bring(key)):
                    refusal = self._refused[key]
                    raise InvalidArtifactError(refusal.file, refusal.problem)
        if version != self._defaults.get(name):
            self._models[key] = self._models.pop(key)
            self._drop_least_recent()
        return self._models[key]

    async def summaries(self) -> list[ModelSummary]:
        """What `/v1/models` tells: every model that is served or has a refused version."""
        stored = await asyncio.to_thread(list_versions, self._root)
        names = sorted({name for name, _ in [*self._models, *self._refused]})
        return [self._summary(name, self._defaults.get(name), stored) for name in names]

    async def summary(self, name: str, version: int | None) -> ModelSummary:
        """What `/v1/models/{name}` tells of one version, by default the default one.

        Raises: as `model`.
        """
        found = (await self.model(name, version)).manifest.version
        return self._summary(name, found, await asyncio.to_thread(list_versions, self._root))

    @property
    def batch_rows(self) -> int | None:
        """Rows of one run on the device that is used; None before that is known."""
        return self._settings.chunk_rows or (self._runtime.blocks.rows if self._runtime else None)

    def close(self) -> None:
        """Let the thread go that opens versions."""
        self._opener.shutdown(wait=False, cancel_futures=True)

    def _summary(self, name: str, version: int | None, stored: Mapping[str, list[int]]) -> ModelSummary:
        model = self._models.get((name, version or 0))
        return ModelSummary(
            name=name,
            default=name == self._unnamed,
            default_version=self._defaults.get(name),
            versions=stored.get(name, []),
            loaded_versions=sorted(number for other, number in self._models if other == name),
            refused=[
                RefusedVersion(version=number, reason=f"{refusal.file.name}: {refusal.problem}")
                for (other, number), refusal in sorted(self._refused.items(), key=lambda item: item[0])
                if other == name
            ],
            manifest=model.manifest if model else None,
            execution_provider=model.provider if model else None,
        )

    def _only_name(self) -> str:
        if self._unnamed is None:
            raise ModelNotFoundError(f"there are several models; name one with ?model=: {', '.join(self._defaults)}")
        return self._unnamed

    async def _latest(self, name: str) -> int:
        """Of a model without a default: published since, or nothing of it passes."""
        versions = (await asyncio.to_thread(list_versions, self._root)).get(name)
        if versions is None:
            raise ModelNotFoundError(f"the store has no model {name!r}")
        return versions[-1]

    async def _renew(self, stored: Mapping[str, list[int]]) -> None:
        """Make the newest versions that pass the defaults, and drop what the store has no more and is no default."""
        listed = {(name, version) for name, versions in stored.items() for version in versions}
        self._refused = {key: refusal for key, refusal in self._refused.items() if key in listed}
        for name, version in [key for key in self._models if key not in listed]:
            if version != self._defaults.get(name):
                self._drop((name, version))
        for name, versions in stored.items():
            with suppress(ModelNotFoundError):  # removed at this moment; the next reload will see it
                await self._renew_default(name, versions)
        for key in list(self._models):
            if key in listed:
                with suppress(ModelNotFoundError):
                    await self._bring(key)

    async def _renew_default(self, name: str, versions: list[int]) -> None:
        for version in reversed(versions):
            serving = self._defaults.get(name)
            if await self._bring((name, version)):
                self._defaults[name] = version
                if serving not in (None, version):
                    _log.info("another version is the default", model=name, version=version, replaced=serving)
                    self._drop((name, serving))
                return
            if version == serving:
                return  # its files have been damaged since; what is in memory is whole

    async def _bring(self, key: Key) -> bool:
        """Have a version in memory as its files are now. False: it is refused, and what was in memory stays."""
        stamp = await asyncio.to_thread(version_stamp, self._root, *key)
        if self._stamps.get(key) == stamp:
            return True
        refused = self._refused.get(key)
        if refused is not None and refused.stamp == stamp:
            return False
        labels = {"model": key[0], "version": key[1]}
        opened = await asyncio.get_running_loop().run_in_executor(self._opener, self._open, key, stamp)
        if isinstance(opened, _Refusal):
            self._refused[key] = opened
            _log.error("version refused", **labels, file=str(opened.file), problem=opened.problem)
            return False
        self._refused.pop(key, None)
        self._models[key], self._stamps[key] = opened, stamp
        self._metrics.execution_provider.labels(**labels, provider=opened.provider).set(1)
        _log.info("model loaded", **labels, provider=opened.provider)
        return True

    def _open(self, key: Key, stamp: Stamp) -> Model | _Refusal:
        if self._runtime is None:
            raise NotReadyError("the models are still loading")
        settings = self._settings
        try:
            return Model.open(
                open_version(self._root, *key),
                runtime=self._runtime,
                chunk_rows=settings.chunk_rows,
                max_steps=settings.max_steps,
            )
        except InvalidArtifactError as error:
            return _Refusal(stamp, error.file, error.problem)
        except (StoreError, DeviceLostError, OutOfDeviceMemoryError):
            raise  # the version is not to blame
        except Exception as error:  # noqa: BLE001 - whatever a graph brings about is the end of this version only
            return _Refusal(stamp, self._root / key[0] / str(key[1]), f"{type(error).__name__}: {error}")

    def _drop_least_recent(self) -> None:
        others = [(name, version) for name, version in self._models if version != self._defaults.get(name)]
        for key in others[: -self._settings.max_other_versions]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        model = self._models.pop(key)
        del self._stamps[key]
        self._metrics.execution_provider.remove(*key, model.provider)
        _log.info("model dropped", model=key[0], version=key[1])
