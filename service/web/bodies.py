"""Request bodies by content type: image files, multipart, JSON and npy. No pickle anywhere."""

import io
import struct
import tokenize
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from model_store import ImageShape
from service.web.errors import InvalidBodyError, InvalidLatentError, LimitError, UnsupportedMediaTypeError
from service.web.images import ImageReader, is_small_png
from service.web.settings import Settings

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
NPY, JSON, MULTIPART = "application/x-npy", "application/json", "multipart/form-data"
PIXEL_TYPES = (*IMAGE_TYPES, MULTIPART, JSON, NPY)
_NPY_ERRORS = (
    *(ValueError, LookupError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError, OverflowError),
    *(struct.error, tokenize.TokenError),
    UserWarning,  # NumPy's, of a header as Python 2 wrote it, where warnings are errors
)
_MAX_NPY_HEADER_BYTES = 20_000  # twice what NumPy accepts
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Array = NDArray[Any]


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case; empty when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_pixels(request: Request, shape: ImageShape, *, resize: bool, limits: Settings) -> NDArray[np.float32]:
    """Images of any accepted content type → [B, C, H, W] float32 in [0, 1].

    Raises:
        UnsupportedMediaTypeError, InvalidBodyError, InvalidImageError, LimitError.
    """
    found = media_type(request)
    reader = ImageReader(shape, resize=resize, max_pixels=limits.max_pixels)
    if found == MULTIPART:
        max_images = max(1, limits.max_pixels // (shape.height * shape.width))
        return await run_in_threadpool(reader.read_items, await _multipart_files(request, max_images))
    if found not in PIXEL_TYPES:
        raise UnsupportedMediaTypeError(found, PIXEL_TYPES)
    body = await _body(request)
    if found == NPY:
        array = parse_pixels(body)
        if reader.is_brief(array):
            return reader.read_array(array)
        return await run_in_threadpool(reader.read_array, array)
    _check_json_size(found, body, limits)
    if found == JSON:
        return await run_in_threadpool(lambda: reader.read_items(_json_list(body, "images")))
    if is_small_png(body):  # a hop to another thread would take longer
        return reader.read_items([body])
    return await run_in_threadpool(reader.read_items, [body])


async def read_latents(request: Request, latent_dim: int, *, limits: Settings) -> NDArray[np.float32]:
    """Latents [N, D] from `{"latents": [[D]]}` or npy, all finite.

    Raises:
        UnsupportedMediaTypeError, InvalidBodyError, InvalidLatentError, LimitError.
    """
    found = media_type(request)
    if found not in (JSON, NPY):
        raise UnsupportedMediaTypeError(found, (JSON, NPY))
    body = await _body(request)
    _check_json_size(found, body, limits)
    return await run_in_threadpool(_parse_latents, body, found, latent_dim)


async def _body(request: Request) -> bytes:
    """The whole body. A small one comes in one piece, which Starlette's `body` would take as long to join as to parse.

    Raises:
        ClientDisconnect: the client went away first.
    """
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _json_list(body: bytes, key: str) -> list[Any]:
    """The list under the only key of a JSON object.

    Raises:
        InvalidBodyError: not JSON, or not such an object.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict) or set(document) != {key} or not isinstance(document[key], list):
        raise InvalidBodyError(f'the body must be a JSON object {{"{key}": […]}} and nothing else')
    items: list[Any] = document[key]
    return items


def parse_pixels(body: bytes) -> Array:
    """An npy file of images, float32 or uint8; see `parse_npy` for what it raises."""
    return parse_npy(body, (np.dtype("<f4"), np.dtype("u1")))


def parse_npy(body: bytes, dtypes: Sequence[np.dtype[Any]]) -> Array:
    """An npy file as a read-only view of the body, without a copy.

    Raises:
        InvalidBodyError: not an npy file, another dtype (objects among them), or a header that lies about the length.
    """
    try:
        shape, fortran_order, dtype, offset = _npy_header(body[: _npy_header_end(body)])
    except _NPY_ERRORS as error:
        problem = str(error)[:200]
        raise InvalidBodyError(f"the body is not an npy file of version 1.0 or 2.0: {problem}") from None
    if dtype not in dtypes:
        raise InvalidBodyError(f"the array holds {dtype}; accepted: {', '.join(str(item) for item in dtypes)}")
    if not 1 <= len(shape) <= 4 or any(type(size) is not int or not 0 < size < 2**31 for size in shape):
        raise InvalidBodyError(f"the npy header's shape is {str(shape)[:200]}; accepted: one to four numbers from 1")
    expected, found = dtype.itemsize, len(body) - offset
    for size in shape:
        expected *= size  # Python integers: a lying header cannot overflow them
    if expected != found:
        raise InvalidBodyError(f"the npy header says {expected} bytes of {dtype} {list(shape)}, the body has {found}")
    flat: Array = np.frombuffer(body, dtype, offset=offset)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _npy_header_end(body: bytes) -> int:
    """Where the header says that it ends, if that is not further than NumPy would read."""
    length, start = (body[8:10], 10) if body[6:7] == b"\x01" else (body[8:12], 12)
    return start + min(int.from_bytes(length, "little"), _MAX_NPY_HEADER_BYTES)


@lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, dtype, and the header's own length. One client's headers are mostly alike."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    shape, fortran_order, dtype = _NPY_HEADERS[version](stream)
    return shape, fortran_order, dtype, stream.tell()


def _check_json_size(form: str, body: bytes, limits: Settings) -> None:
    """Refuse a JSON body that would take long to parse.

    Raises:
        LimitError: it is over `max_json_bytes`.
    """
    if form == JSON and len(body) > limits.max_json_bytes:
        raise LimitError(f"the JSON body has {len(body)} bytes; at most {limits.max_json_bytes} are accepted: send npy")


async def _multipart_files(request: Request, max_images: int) -> list[bytes]:
    """The bytes of every file in the repeated field `images`."""
    _check_closed(request.headers["content-type"], await request.body())
    try:
        async with request.form(max_files=max_images + 1) as form:
            unknown = sorted({ascii(name) for name, _ in form.multi_items()} - {"'images'"})
            if unknown:
                raise InvalidBodyError(f"the form has unknown fields: {', '.join(unknown)}; accepted: images, repeated")
            parts = form.getlist("images")
            if any(not isinstance(part, UploadFile) for part in parts):
                raise InvalidBodyError("a part of the field images is not a file; give it a filename")
            return [await part.read() for part in parts if isinstance(part, UploadFile)]
    except HTTPException as error:
        if "Too many files" in error.detail:
            raise LimitError(f"the form has more than {max_images} files, which pass the limit on pixels") from None
        raise InvalidBodyError(f"the body is not multipart/form-data: {error.detail}") from None
    except UnicodeError as error:
        raise InvalidBodyError(f"the form's charset does not decode it: {error.__class__.__name__}") from None


def _check_closed(content_type: str, body: bytes) -> None:
    """Refuse a body cut off before its closing boundary, which would otherwise be answered for fewer images."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if boundary and b"--" + boundary + b"--" not in body:
        raise InvalidBodyError("the body is not multipart/form-data: it ends before its closing boundary")


def _parse_latents(body: bytes, form: str, latent_dim: int) -> NDArray[np.float32]:
    if form == NPY:
        latents = parse_npy(body, (np.dtype("<f4"), np.dtype("<f8")))
    else:
        try:
            latents = np.asarray(_json_list(body, "latents"))
        except ValueError:
            raise InvalidBodyError("the latents are ragged; accepted: [[D], …]") from None
        if latents.dtype.kind not in "iuf":
            raise InvalidBodyError("the latents are not numbers; accepted: [[D], …]")
    if latents.ndim != 2 or latents.shape[1] != latent_dim:
        shape = list(latents.shape)
        raise InvalidBodyError(f"the latents have shape {shape}; this model takes [N, {latent_dim}], N at least 1")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        raise InvalidLatentError("the latent is not made of finite float32 numbers", int(np.argmin(finite)))
    return latents
