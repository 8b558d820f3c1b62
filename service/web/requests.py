"""A request that is to be computed: its model, and its body by content type: image files, multipart, JSON and npy.

No pickle anywhere.
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
from service.images.cost import is_brief
from service.images.decode_request import DecodeRequest
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

MAX_JSON_LISTS = 2**16  # a row of pixels is one, and so is a latent
_EXPANSIONS = {JSON: 31, MULTIPART: 2}
"""What a body and what it is parsed to take, as a multiple: in JSON `[],` is 3 bytes, and 88 as a list in a list."""
_LATENTS_EXPANSION = 4  # a copy in float32, and what is found to be finite
_OTHER_NAMES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_SHORT_BYTES = 2**18  # of a file, whose cost is then told in less time than another thread takes to begin
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ComputedRequest(Request):
    """What the function of a computed route gets: the request, let in, and its model.

    Attributes:
        media_type: that the answer has.
        backend, settings: what stands behind the routes.
        model: loaded.
        named: its name and version, for answers.
        load_seconds, decode_seconds: that its model took to load, and its images to be read by another process.
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
        """Let the request in, and read what it brings; here, which model it means.

        Raises:
            NotReadyError, QueueFullError, and what `Registry.model` raises.
        """
        self.backend, self.settings = backend, backend.settings
        backend.require_ready()
        backend.check_capacity()
        self.model, seconds = await backend.registry.model(query.model, query.version, timeout_seconds=timeout_seconds)
        manifest: Any = self.model.description  # of one that came from the store
        self.named = {"model": manifest.name, "version": manifest.version}
        observed = self.scope["observed"]
        observed.update(self.named)
        if seconds:
            self.load_seconds = observed["load_seconds"] = round(seconds, 6)

    def count_batch(self, rows: int) -> None:
        """Count the rows of a batch that this request is computed in."""
        self.backend.count_batch(self.model, rows)

    def content_type(self) -> str:
        """Without its parameters, in lower case, by its registered name; empty when there is none."""
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

    async def read(self, backend: Backend, query: schemas.ModelQuery, timeout_seconds: float) -> None:
        """What takes a moment is read here; files, and what is to be resampled, elsewhere, unless the client goes away.

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
        reader = ImageReader(shape, resize=resize, max_pixels=limits.max_pixels)
        body = await _body(self)
        if found == JSON:
            _check_json_size(body, limits)
        kept = len(body) * _EXPANSIONS.get(found, 1)
        share: Share = self.scope[MEMORY]
        if kept > FREE_BYTES:
            share.hold(kept)
        if found in IMAGE_TYPES and is_brief(body):  # a hop to another thread would take longer
            self.images = reader.read_items([body])
            return
        if found == NPY:
            array = parse_pixels(body)
            if reader.is_brief(array):
                self.images = reader.read_array(array)
                return
            share.hold(kept + _pixel_bytes(len(array), shape, limits))
            if not (resize and reader.is_dear(array)):
                self.images = await run_in_threadpool(reader.read_array, array)
                return

        def prepare() -> Prepared | NDArray[np.float32]:
            """A job for processes; or the pixels, where that takes no longer, or no more than their bytes take."""
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
            reading = DecodeRequest(shape, resize, limits.max_pixels, images)
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
        """The model, and the latents.

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
    """The whole body. A small one comes in one piece, which Starlette's `body` would take as long to join as to parse.

    A large one is collected where it will stay: joining pieces would hold it twice.

    Raises:
        ClientDisconnect: the client went away first.
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
            return collected.getvalue()  # which is its buffer, not a copy
        del message
        message = await request.receive()
    raise ClientDisconnect


def _pixel_bytes(count: int, shape: ImageShape, limits: Settings) -> int:
    """Of so many images as the model takes them, in float32; more than the limit on pixels are refused unmade."""
    return min(count * shape.height * shape.width, limits.max_pixels) * shape.channels * 4


def _json_list(body: bytes, key: str) -> list[Any]:
    """The list under the only key of a JSON object.

    Raises:
        InvalidBodyError: not JSON, or not such an object.
    """
    try:
        document = orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))  # which RFC 8259 lets a parser ignore
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict) or set(document) != {key} or not isinstance(document[key], list):
        raise InvalidBodyError(f'the body must be a JSON object {{"{key}": […]}} and nothing else')
    items: list[Any] = document[key]
    return items


def _check_json_size(body: bytes, limits: Settings) -> None:
    """Refuse a JSON body that would take long to parse, while nothing else runs.

    Raises:
        LimitError: it is over `max_json_bytes`, or has so many lists that making them takes longer than their bytes.
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
