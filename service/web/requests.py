"""Read computing requests: the model, and the body as image files, multipart, JSON or npy.

Nothing is unpickled.
"""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import orjson
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
from service.images.npy import parse_npy, parse_pixels
from service.images.numbers import NotNumbersError, array_of
from service.images.reader import ImageReader, unpacked
from service.web import schemas
from service.web.decoding.interface import Prepared
from service.web.disconnection import answer_unless_gone
from service.web.documentation import describe_images_body, describe_latents_body
from service.web.media_types import IMAGE_TYPES, JSON, MULTIPART, NPY, PIXEL_TYPES
from service.web.memory_budget import FREE_BYTES, MEMORY, Share, hold
from service.web.multipart import read_files
from service.web.operations.settings import Settings
from service.web.problems import InvalidBodyError, InvalidLatentError, LimitError, UnsupportedMediaTypeError
from service.web.serving.backend import Backend

MAX_JSON_LISTS = 2**16  # each row of pixels is a list, and so is each latent
_EXPANSIONS = {JSON: 31, MULTIPART: 2}
"""Memory of a body and its parsed form, in multiples of the body: `[],` is 3 bytes in JSON and 88 as a list."""
_LATENTS_EXPANSION = 4  # a copy in float32, and the array of which values are finite
_OTHER_NAMES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_SHORT_BYTES = 2**18  # finding the cost of such a file takes less time than starting in another thread
_BRIEF_SIZE = 2**16  # numbers of an image, which is resampled to so many in about a millisecond
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    media_type: str
    backend: Backend
    settings: Settings
    model: Model
    named: Mapping[str, Any]
    load_seconds = 0.0
    decode_seconds = 0.0

    async def read(self, backend: Backend, query: schemas.ModelQuery, timeout_seconds: float) -> None:
        """Admit the request and find its model; subclasses also read the body.

        Raises:
            NotReadyError, QueueFullError, and what `Registry.model` raises.
        """
        self.backend, self.settings = backend, backend.settings
        backend.require_ready()
        backend.check_capacity()
        self.model, seconds = await backend.registry.model(query.model, query.version, timeout_seconds=timeout_seconds)
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
        """Read the images: quick ones here, files and images to be resampled in another thread or process.

        Raises:
            UnsupportedMediaTypeError, InvalidBodyError, InvalidImageError, LimitError, PixelLimitError,
            MemoryFullError, DeadlineError, QueueFullError, StoppedError, ClientDisconnect.
        """
        await super().read(backend, query, timeout_seconds)
        resize = isinstance(query, schemas.ImagesQuery) and query.resize
        found, limits = self.content_type(), self.settings
        if found not in PIXEL_TYPES:
            raise UnsupportedMediaTypeError(found, PIXEL_TYPES)
        shape = self.model.description.image
        preparation = self.model.description.preparation
        fitting = FITTINGS[preparation.fit, preparation.invert]
        reader = ImageReader(shape, resize=resize, max_pixels=limits.max_pixels, fitting=fitting)
        body = await _body(self)
        if found == JSON:
            _check_json_size(body, limits)
        kept = len(body) * _EXPANSIONS.get(found, 1)
        share: Share = self.scope[MEMORY]
        if kept > FREE_BYTES:
            share.hold(kept)
        # Switching to another thread would take longer, unless much is made of a small file.
        if found in IMAGE_TYPES and is_brief(body) and (not reader.takes_any_size or shape.size <= _BRIEF_SIZE):
            self.images = reader.read_items([body])
            return
        if found == NPY:
            array = parse_pixels(body)
            if reader.is_brief(array):
                self.images = reader.read_array(array)
                return
            share.hold(kept + _pixel_bytes(len(array), shape, limits))
            if not (reader.takes_any_size and reader.is_dear(array)):
                self.images = await run_in_threadpool(reader.read_array, array)
                return

        def prepare() -> Prepared | NDArray[np.float32]:
            """A job for the decoders; or the pixels, if reading them is quick or needs only copying."""
            images: Sequence[bytes | AnyArray] | AnyArray
            if found == NPY:
                images = array
            elif found == MULTIPART:
                max_images = max(1, limits.max_pixels // (shape.height * shape.width))
                images = read_files(body, self.headers["content-type"], max_images)
            elif found == JSON:
                images = [unpacked(item, index) for index, item in enumerate(_json_list(body, "images"))]
            else:
                images = [body]
            share.hold(kept + _pixel_bytes(len(images), shape, limits))
            reading = DecodeRequest(shape, resize, limits.max_pixels, images, fitting)
            if reading.is_brief or not reader.is_dear(images):
                return reading.read()
            return self.backend.decoding.prepare(reading)

        short = found in IMAGE_TYPES and len(body) <= _SHORT_BYTES
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
        await super().read(backend, query, timeout_seconds)
        found = self.content_type()
        if found not in (JSON, NPY):
            raise UnsupportedMediaTypeError(found, (JSON, NPY))
        body = await _body(self)
        if found == JSON:
            _check_json_size(body, self.settings)
        hold(self, len(body) * (_EXPANSIONS[JSON] if found == JSON else _LATENTS_EXPANSION))
        self.latents = await run_in_threadpool(_parse_latents, body, found, self.model.description.latent_dim)


@lru_cache(maxsize=64)
def _registered(content_type: bytes) -> str:
    found = content_type.decode("latin-1").partition(";")[0].strip().lower()
    return _OTHER_NAMES.get(found, found)


async def _body(request: Request) -> bytes:
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


def _pixel_bytes(count: int, shape: ImageShape, limits: Settings) -> int:
    """Bytes of this many images in float32, but at most for the limit on pixels, beyond which they are refused."""
    return min(count * shape.height * shape.width, limits.max_pixels) * shape.channels * 4


def _json_list(body: bytes, key: str) -> list[Any]:
    """Parse a JSON object with this single key, and return the list under it.

    Raises:
        InvalidBodyError: not JSON, or not such an object.
    """
    try:
        document = orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))  # RFC 8259 allows parsers to ignore it
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict) or set(document) != {key} or not isinstance(document[key], list):
        raise InvalidBodyError(f'the body must be a JSON object {{"{key}": […]}} and nothing else')
    items: list[Any] = document[key]
    return items


def _check_json_size(body: bytes, limits: Settings) -> None:
    """Refuse a JSON body that would take long to parse, because nothing else runs meanwhile.

    Raises:
        LimitError: it is larger than `max_json_bytes`, or has too many lists.
    """
    if len(body) > limits.max_json_bytes:
        raise LimitError(f"the JSON body has {len(body)} bytes; at most {limits.max_json_bytes} are accepted: send npy")
    if (lists := body.count(b"[") + body.count(b"{")) > MAX_JSON_LISTS:
        raise LimitError(f"the JSON body has {lists} lists; at most {MAX_JSON_LISTS} are accepted: send npy")


def _parse_latents(body: bytes, form: str, latent_dim: int) -> NDArray[np.float32]:
    if form == NPY:
        latents = parse_npy(body, (np.dtype("<f4"), np.dtype("<f8")))
    else:
        try:
            latents = array_of(_json_list(body, "latents"), max_dimensions=2)
        except NotNumbersError as error:
            raise InvalidBodyError(f"the latents are not numbers [[D], …]: {error}") from None
    if latents.ndim != 2 or latents.shape[1] != latent_dim:
        shape = list(latents.shape)
        raise InvalidBodyError(f"the latents have shape {shape}; this model takes [N, {latent_dim}], N at least 1")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        raise InvalidLatentError("the latent is not made of finite float32 numbers", int(np.argmin(finite)))
    return latents
