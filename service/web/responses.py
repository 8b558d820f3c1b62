"""Convert arrays to responses in the negotiated media type."""

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray
from PIL import Image
from starlette.types import Receive, Scope, Send

from model_store import Description
from service.engine.anomaly.detector import AnomalyScores
from service.engine.features import NoImagesError
from service.engine.posterior.estimate import LogLikelihood
from service.web.answer_size import Form
from service.web.media_types import JSON, NPY, PNG
from service.web.problems import NotAcceptableError
from service.web.schemas import ImagesOutQuery
from service.web.serialisation import check_wanted

IMAGE_FORMS = (JSON, PNG, NPY)
_GRID_LINE, _GRID_LEVEL = 1, 128
_PIECE_NUMBERS = 2**15  # takes about a millisecond, in which no other thread runs
PIECE_BYTES = 2**20


class PiecewiseResponse(Response):
    """A large body that is sent in pieces: joining them would copy them, and delay every other request."""

    def __init__(
        self, pieces: Sequence[bytes | memoryview], headers: Mapping[str, str] | None, media_type: str
    ) -> None:
        length = str(sum(len(piece) for piece in pieces))
        super().__init__(headers={**(headers or {}), "Content-Length": length}, media_type=media_type)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each piece once there is room for it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces_of(response: Response) -> Sequence[bytes | memoryview]:
    """The body of a response, in the pieces in which it is sent."""
    return response.pieces if isinstance(response, PiecewiseResponse) else [response.body]


def json_reply(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """A strict JSON response: NumPy arrays become nested lists, and values that are not finite become null."""
    for value in document.values():
        if (value.size if isinstance(value, np.ndarray) else _weight(value)) > _PIECE_NUMBERS:
            break
    else:
        return Response(_dumps(document), headers=headers, media_type=JSON)
    pieces: list[bytes] = []
    for key, value in document.items():
        pieces += (b"," if pieces else b"{", _dumps(key), b":", *json_pieces(value))
    return PiecewiseResponse([*pieces, b"}"], headers, JSON)


def npy_reply(array: NDArray[Any], headers: Mapping[str, str] | None = None) -> Response:
    """A response with one npy file, format version 1.0."""
    pieces: list[bytes | memoryview] = [_npy_header(array.dtype, array.shape), *byte_pieces(array)]
    if len(pieces) <= 2:
        return Response(b"".join(pieces), headers=headers, media_type=NPY)
    return PiecewiseResponse(pieces, headers, NPY)


def byte_pieces(array: NDArray[Any]) -> list[memoryview]:
    """The bytes of an array, in pieces of a size that is sent at once."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # of records, too, which `cast` does not take
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


def pairs_reply(
    document: Mapping[str, Any],
    pairs: Mapping[str, NDArray[np.float32]],
    *,
    media: str,
    form: Form,
) -> Response:
    """Two images [C, H, W] of each of B, by name, as JSON added to `document`.

    As PNG: a row for each pair. As npy: [B, 2, C, H, W].
    """
    if media == JSON:
        return json_reply({**document, **{name: _listed(images, form) for name, images in pairs.items()}})
    stacked = np.stack([*pairs.values()], axis=1)
    if media == NPY:
        return npy_reply(stacked)
    return Response(_png_of_levels(_grid(stacked.reshape(-1, *stacked.shape[2:]), len(pairs))), media_type=PNG)


def image_form(description: Description, media: str, query: ImagesOutQuery) -> Form:
    """How images are written in JSON: as asked for. Maps of a model of features are numbers, whatever the default is.

    Raises:
        NoImagesError: a PNG is asked for, and the model is of features.
    """
    if description.features is None:
        return query.as_
    if media == PNG or ("as_" in query.model_fields_set and query.as_ == "png"):
        shape = list(description.features.chw)
        raise NoImagesError(f"this model is of features: it makes maps {shape}, and no image; ask for npy or ?as=array")
    return "array"


def images_reply(
    document: Mapping[str, Any],
    images: NDArray[np.float32],
    *,
    media: str,
    form: Form,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Images [N, C, H, W] as JSON added to `document`, as one PNG (a grid if there are several), or as npy."""
    if media == PNG:
        return Response(_png_of_levels(_grid(images)), headers=headers, media_type=PNG)
    if media == NPY:
        return npy_reply(images, headers)
    return json_reply({**document, "images": _listed(images, form)}, headers)


def _listed(images: NDArray[np.float32], form: Form) -> "NDArray[np.float32] | Written":
    """Images [N, C, H, W] for JSON: nested numbers, or base64 PNGs."""
    return images if form == "array" else Written(len(images), lambda part: [_png_text(one) for one in images[part]])


@lru_cache(maxsize=64)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    stream, descr = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


class Written:
    """A long list whose parts are made when they are written, because the whole list would be as large as the answer.

    Args:
        length: the length of the list.
        make: makes the items of a range.
    """

    def __init__(self, length: int, make: Callable[[slice], list[Any]]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> list[Any]:
        return self._make(part)


def rows_of(record: Any) -> Written:
    """Convert a record of arrays [B] to B objects; what is not one value an image is left out."""
    columns = {item.name: getattr(record, item.name) for item in fields(record)}
    arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray) and column.ndim == 1}

    def make(part: slice) -> list[dict[str, Any]]:
        values = zip(*(array[part].tolist() for array in arrays.values()), strict=True)
        return [dict(zip(arrays, row, strict=True)) for row in values]

    return Written(len(next(iter(arrays.values()))), make)


def estimate_rows(estimate: LogLikelihood) -> Written:
    """One object an image; `reason` is null where the estimate is reliable."""
    rows = rows_of(estimate)
    return Written(len(rows), lambda part: [{**row, "reason": row["reason"] or None} for row in rows[part]])


def anomaly_rows(scores: AnomalyScores, form: Form) -> Written:
    """One object per image: the first method's score, each method's if there are several, and the map if any."""
    by_method = {method: rows_of(judgement) for method, judgement in scores.by_method.items()}
    estimates = rows_of(scores)

    def make(part: slice) -> list[dict[str, Any]]:
        judged = {method: rows[part] for method, rows in by_method.items()}
        made = []
        for index, (first, estimate) in enumerate(zip(next(iter(judged.values())), estimates[part], strict=True)):
            row = {**first, **estimate}
            if len(judged) > 1:
                row["scores"] = {method: rows[index] for method, rows in judged.items()}
            if scores.explanation is not None:
                row["explanation"] = _shown(scores.explanation[part][index], form)
            made.append(row)
        return made

    return Written(len(estimates), make)


def _shown(surprise: NDArray[np.float64], form: Form) -> Any:
    """A map [C, H, W] as numbers, or as a grey PNG: black is 0 nats, white is the map's largest sum over channels."""
    if not np.isfinite(surprise).all():
        return None
    if form == "array":
        return surprise
    nats = np.maximum(surprise.sum(axis=0, keepdims=True), 0)
    return _png_text((nats / max(nats.max(), np.finfo(np.float64).tiny)).astype(np.float32))


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, _whole, orjson.OPT_SERIALIZE_NUMPY)


def _whole(value: Any) -> list[Any]:
    """Convert for orjson what it does not know: a short list that is made when it is written."""
    if not isinstance(value, Written):
        raise TypeError(f"{type(value).__name__} is not written as JSON")
    return value[:]


def _weight(value: Any) -> int:
    """Roughly how many numbers or characters a member of a document has, assuming that list items are alike."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | Written) or not len(value):
        return 1
    (first,) = value[:1]
    if isinstance(first, dict):
        return len(value) * sum(map(_weight, first.values()))
    return len(value) * (len(first) if isinstance(first, str | list) else 1)


def json_pieces(value: Any) -> Iterator[bytes]:
    """JSON of an array or a list in pieces of about `_PIECE_NUMBERS` numbers; between two the event loop can run."""
    weight = _weight(value)
    check_wanted()
    if weight <= _PIECE_NUMBERS or (isinstance(value, list | Written) and len(value) == 1):
        yield _dumps(value)
        return
    step = max(1, _PIECE_NUMBERS * len(value) // weight)
    yield b"["
    for start in range(0, len(value), step):
        check_wanted()
        if start:
            yield b","
        if step == 1 and isinstance(value, np.ndarray):
            yield from json_pieces(value[start])
        else:
            yield _dumps(value[start : start + step])[1:-1]
    yield b"]"


def _png(image: NDArray[np.float32]) -> bytes:
    """Encode one image [C, H, W] in [0, 1] as 8-bit PNG."""
    return _png_of_levels(_levels(image))


def _png_text(image: NDArray[np.float32]) -> str:
    return base64.b64encode(_png(image)).decode()


def _levels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)


def _png_of_levels(levels: NDArray[np.uint8]) -> bytes:
    if len(levels) not in (1, 3):
        raise NotAcceptableError(f"a PNG has 1 or 3 channels, the images have {len(levels)}; ask for npy or ?as=array")
    check_wanted()
    stream = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def _grid(images: NDArray[np.float32], columns: int | None = None) -> NDArray[np.uint8]:
    """Arrange images [N, C, H, W] row by row, by default in the squarest grid: [C, rows·(H+1)−1, columns·(W+1)−1]."""
    count, channels, height, width = images.shape
    if count == 1:
        return _levels(images[0])
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    down, across = height + _GRID_LINE, width + _GRID_LINE
    grid = np.full((channels, rows * down - _GRID_LINE, columns * across - _GRID_LINE), _GRID_LEVEL, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * down, index % columns * across
        grid[:, top : top + height, left : left + width] = _levels(image)
    return grid
