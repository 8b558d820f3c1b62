"""Parse JSON bodies, and latents. What is large is parsed in another thread than the event loop."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.images.arrays import AnyArray
from service.images.npy import parse_npy
from service.images.numbers import NotNumbersError, array_of
from service.images.reader import unpacked
from service.web.media_types import NPY
from service.web.operations.settings import Settings
from service.web.problems import InvalidBodyError, InvalidLatentError, LimitError

MAX_JSON_LISTS = 2**16  # each row of pixels is a list, and so is each latent
JSON_EXPANSION = 31
"""Memory of a JSON body and its parsed form, in multiples of the body: `[],` is 3 bytes in JSON and 88 as a list."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def check_json_length(length: int, limits: Settings, shorter: str = "npy") -> None:
    """Refuse so many bytes of JSON if there may not be as many.

    `shorter`: what the client could send instead.

    Raises:
        LimitError: there are more than `max_json_bytes`.
    """
    if length > (most := limits.max_json_bytes):
        raise LimitError(f"the JSON body has {length} bytes; at most {most} are accepted: send {shorter}")


def check_json_size(body: bytes, limits: Settings, shorter: str = "npy") -> None:
    """Refuse a JSON body that would take long to parse, because nothing else runs meanwhile.

    Raises:
        LimitError: it is larger than `max_json_bytes`, or has too many lists.
    """
    check_json_length(len(body), limits, shorter)
    if (lists := body.count(b"[") + body.count(b"{")) > MAX_JSON_LISTS:
        raise LimitError(f"the JSON body has {lists} lists; at most {MAX_JSON_LISTS} are accepted: send {shorter}")


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidBodyError: it is not JSON, or another value.
    """
    document = _parsed(body)
    if not isinstance(document, dict):
        raise InvalidBodyError("the body must be a JSON object")
    return document


def json_images(body: bytes) -> Sequence[bytes | AnyArray]:
    """The files and the arrays of numbers in `{"images": […]}`; raises InvalidBodyError and InvalidImageError."""
    return [unpacked(item, index) for index, item in enumerate(_json_list(body, "images"))]


def parse_latents(body: bytes, form: str, latent_dim: int) -> NDArray[np.float32]:
    """The latents [N, D] of a body, JSON or npy; raises InvalidBodyError, InvalidArrayError and InvalidLatentError."""
    if form == NPY:
        return checked_latents(parse_npy(body, (np.dtype("<f4"), np.dtype("<f8"))), latent_dim)
    try:
        return checked_latents(array_of(_json_list(body, "latents"), max_dimensions=2), latent_dim)
    except NotNumbersError as error:
        raise InvalidBodyError(f"the latents are not numbers [[D], …]: {error}") from None


def checked_latents(latents: AnyArray, latent_dim: int) -> NDArray[np.float32]:
    """The same in float32.

    Raises:
        InvalidBodyError: their shape is not [N, D].
        InvalidLatentError: one is not finite in float32.
    """
    if latents.ndim != 2 or latents.shape[1] != latent_dim:
        shape = list(latents.shape)
        raise InvalidBodyError(f"the latents have shape {shape}; this model takes [N, {latent_dim}], N at least 1")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    finite = np.isfinite(latents).all(axis=1)
    if not finite.all():
        raise InvalidLatentError("the latent is not made of finite float32 numbers", int(np.argmin(finite)))
    return latents


def _json_list(body: bytes, key: str) -> list[Any]:
    """Parse a JSON object with this single key, and return the list under it.

    Raises:
        InvalidBodyError: not JSON, or not such an object.
    """
    document = _parsed(body)
    if not isinstance(document, dict) or set(document) != {key} or not isinstance(document[key], list):
        raise InvalidBodyError(f'the body must be a JSON object {{"{key}": […]}} and nothing else')
    items: list[Any] = document[key]
    return items


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))  # RFC 8259 allows parsers to ignore it
    except orjson.JSONDecodeError as error:
        raise InvalidBodyError(f"the body is not JSON: {error}") from None
