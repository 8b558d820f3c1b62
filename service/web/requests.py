"""Read computing requests: the model, and the body as image files, multipart, JSON or npy.

Nothing is unpickled.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeAlias

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from model_store import ImageShape
from service.engine.model import Model, Pixels
from service.images.arrays import AnyArray
from service.images.brightness import BRIGHTNESS, Brightness
from service.images.cost import is_brief
from service.images.decode_request import DecodeRequest
from service.images.fitting import FITTINGS
from service.images.npy import parse_pixels
from service.images.reader import ImageReader
from service.web import schemas
from service.web.bodies import JSON_EXPANSION, check_json_size, json_images, parse_latents
from service.web.decoding.interface import Prepared
from service.web.disconnection import answer_unless_gone
from service.web.documentation import describe_images_body, describe_latents_body
from service.web.media_types import IMAGE_TYPES, JSON, MULTIPART, NPY, PIXEL_TYPES
from service.web.memory_budget import FREE_BYTES, MEMORY, Share, hold
from service.web.multipart import read_files
from service.web.operations.settings import Settings
from service.web.problems import UnsupportedMediaTypeError
from service.web.serving.backend import Backend

Images: TypeAlias = AnyArray | list[bytes] | Callable[[], Sequence[bytes | AnyArray]]
"""An array of images; or image files; or what gives files and arrays, and takes long."""
_EXPANSIONS = {JSON: JSON_EXPANSION, MULTIPART: 2}
"""Memory of a body and its parsed form, in multiples of the body."""
_LATENTS_EXPANSION = 4  # a copy in float32, and the array of which values are finite
_OTHER_NAMES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_SHORT_BYTES = 2**18  # finding the cost of such a file takes less time than starting in another thread
_BRIEF_SIZE = 2**16  # numbers of an image, which is resampled to so many in about a millisecond


class ComputedRequest(Request):
    """An admitted request with its model, as a computing route's function gets it.

    Attributes:
        media_type: the media type of the answer.
        backend, settings: those of the app.
        model: the loaded model.
        named: the model's name and version, for answers.
        load_seconds, decode_seconds: time to load the model, and to read the images in another process.
    """

    described_body: ClassVar[Mapping[str, Any]] = {}
    """For OpenAPI."""
    shorter_answer: ClassVar[str] = NPY
    shorter_images: ClassVar[str] = f"a shorter form, such as {NPY}, image/png or as=png"
    """What a client can ask for to get the same in fewer bytes than as JSON: numbers, and images."""
    media_type: str
    backend: Backend
    settings: Settings
    model: Model
    named: Mapping[str, Any]
    load_seconds = 0.0
    decode_seconds = 0.0

    async def read(self, backend: Backend, query: schemas.ModelQuery, timeout_seconds: float) -> None:
        """Admit the request and find its model; subclasses also read the body. Raises what `admit` does."""
        await self.admit(backend, query.model, query.version, timeout_seconds)

    async def admit(self, backend: Backend, name: str | None, version: int | None, timeout_seconds: float) -> None:
        """Admit the request and find its model.

        Raises:
            NotReadyError, QueueFullError, and what `Registry.model` raises.
        """
        self.backend, self.settings = backend, backend.settings
        backend.require_ready()
        backend.check_capacity()
        self.model, seconds = await backend.registry.model(name, version, timeout_seconds=timeout_seconds)
        manifest: Any = self.model.description  # a manifest, because the model came from the store
        self.named = {"model": manifest.name, "version": manifest.version}
        observed = self.scope["observed"]
        observed.update(self.named)
        if seconds:
            self.load_seconds = observed["load_seconds"] = round(seconds, 6)

    def warning(self) -> str | None:
        """What the client should know of its request; the header `X-Warning`."""
        return None

    def count_batch(self, rows: int) -> None:
        """Count the rows of a batch in which this request is computed."""
        self.backend.count_batch(self.model, rows)

    def content_type(self) -> str:
        """The content type without parameters, in lower case, as its registered name; empty if there is none."""
        for name, value in self.scope["headers"]:
            if name == b"content-type":
                return _registered(value)
        return ""


class ImagesRequest(ComputedRequest):
    """A request with images, of any accepted content type.

    Attributes:
        images: [B, C, H, W] float32 in [0, 1], as the model takes them.
    """

    described_body = describe_images_body()
    images: Pixels

    def warning(self) -> str | None:
        """A sentence if images are far brighter or darker than those of training."""
        told = self.model.description.provenance.configuration.get(BRIGHTNESS)
        usual = None if told is None else Brightness.from_json(told)
        return None if usual is None else usual.warning(self.images)

    async def read(self, backend: Backend, query: schemas.ModelQuery, timeout_seconds: float) -> None:
        """Find the model and read the images.

        Raises:
            UnsupportedMediaTypeError, and what `read_images` raises.
        """
        await self.admit(backend, query.model, query.version, timeout_seconds)
        found = self.content_type()
        if found not in PIXEL_TYPES:
            raise UnsupportedMediaTypeError(found, PIXEL_TYPES)
        body = await read_body(self)
        if found == JSON:
            check_json_size(body, self.settings)
        kept = len(body) * _EXPANSIONS.get(found, 1)
        if kept > FREE_BYTES:
            hold(self, kept)
        images: Images
        if found == NPY:
            images = parse_pixels(body)
        elif found in IMAGE_TYPES:
            images = [body]
        elif found == JSON:
            images = partial(json_images, body)
        else:
            images = partial(read_files, body, self.headers["content-type"], self.max_images)
        resize = isinstance(query, schemas.ImagesQuery) and query.resize
        await self.read_images(images, resize=resize, kept=kept, timeout_seconds=timeout_seconds)

    @property
    def max_images(self) -> int:
        """The most images for which `max_pixels` has room."""
        shape = self.model.description.image
        return max(1, self.settings.max_pixels // (shape.height * shape.width))

    async def read_images(self, images: Images, *, resize: bool, kept: int, timeout_seconds: float) -> None:
        """Read the images: quick ones here, files and images to be resampled in another thread or process.

        Args:
            images: all of the request.
            resize: see `ImageReader`.
            kept: bytes that the request holds besides the pixels.
            timeout_seconds: from the start of the request, including the time to load the model.

        Raises:
            InvalidBodyError, InvalidImageError, LimitError, PixelLimitError, MemoryFullError, DeadlineError,
            QueueFullError, StoppedError, ClientDisconnect.
        """
        limits, shape = self.settings, self.model.description.image
        preparation = self.model.description.preparation
        fitting = FITTINGS[preparation.fit, preparation.invert]
        reader = ImageReader(shape, resize=resize, max_pixels=limits.max_pixels, fitting=fitting)
        share: Share = self.scope[MEMORY]
        one = images[0] if isinstance(images, list) and len(images) == 1 else None
        # Switching to another thread would take longer, unless much is made of a small file.
        if one is not None and is_brief(one) and (not reader.takes_any_size or shape.size <= _BRIEF_SIZE):
            self.images = reader.read_items([one])
            return
        if isinstance(images, np.ndarray):
            if reader.is_brief(images):
                self.images = reader.read_array(images)
                return
            share.hold(kept + _pixel_bytes(len(images), shape, limits))
            if not (reader.takes_any_size and reader.is_dear(images)):
                self.images = await run_in_threadpool(reader.read_array, images)
                return

        def prepare() -> Prepared | NDArray[np.float32]:
            """A job for the decoders; or the pixels, if reading them is quick or needs only copying."""
            found = images() if callable(images) else images
            share.hold(kept + _pixel_bytes(len(found), shape, limits))
            reading = DecodeRequest(shape, resize, limits.max_pixels, found, fitting)
            if reading.is_brief or not reader.is_dear(found):
                return reading.read()
            return self.backend.decoding.prepare(reading)

        short = one is not None and len(one) <= _SHORT_BYTES
        prepared = prepare() if short else await run_in_threadpool(prepare)
        if not isinstance(prepared, Prepared):
            self.images = prepared
            return
        left = max(0.0, timeout_seconds - self.load_seconds)
        read = await answer_unless_gone(self, self.backend.decoding.submit(prepared._replace(share=share), left))
        self.images, self.decode_seconds = read.pixels, round(read.seconds, 6)
        self.scope["observed"]["decode_seconds"] = self.decode_seconds


class LatentsRequest(ComputedRequest):
    """A request with latents, from `{"latents": [[D]]}` or npy.

    Attributes:
        latents: [N, D], all finite.
    """

    described_body = describe_latents_body()
    latents: NDArray[np.float32]

    async def read(self, backend: Backend, query: schemas.ModelQuery, timeout_seconds: float) -> None:
        """Find the model and read the latents.

        Raises:
            UnsupportedMediaTypeError, InvalidBodyError, InvalidLatentError, LimitError, MemoryFullError.
        """
        await self.admit(backend, query.model, query.version, timeout_seconds)
        found = self.content_type()
        if found not in (JSON, NPY):
            raise UnsupportedMediaTypeError(found, (JSON, NPY))
        body = await read_body(self)
        if found == JSON:
            check_json_size(body, self.settings)
        hold(self, len(body) * (JSON_EXPANSION if found == JSON else _LATENTS_EXPANSION))
        self.latents = await run_in_threadpool(parse_latents, body, found, self.model.description.latent_dim)


async def read_body(request: Request) -> bytes:
    """The whole body. A small one comes in one piece and is returned as it is, unlike by Starlette's slower `body`.

    A large body is collected in one buffer, because joining pieces would need its memory twice.

    Raises:
        ClientDisconnect: the client disconnected first.
        LimitError, SlowBodyError, MemoryFullError: see connections/request_limits.py.
    """
    message = await request.receive()
    first: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        return first
    collected = io.BytesIO()
    while message["type"] == "http.request":
        collected.write(message.get("body", b""))
        if not message.get("more_body", False):
            return collected.getvalue()  # returns the buffer, not a copy
        del message
        message = await request.receive()
    raise ClientDisconnect


@lru_cache(maxsize=64)
def _registered(content_type: bytes) -> str:
    found = content_type.decode("latin-1").partition(";")[0].strip().lower()
    return _OTHER_NAMES.get(found, found)


def _pixel_bytes(count: int, shape: ImageShape, limits: Settings) -> int:
    """Bytes of this many images in float32, but at most for the limit on pixels, beyond which they are refused."""
    return min(count * shape.height * shape.width, limits.max_pixels) * shape.channels * 4
