"""Results of one row an image: JSON, a line of JSON each, CSV, or a structured npy file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from service.engine.anomaly.detector import AnomalyScores
from service.engine.posterior.estimate import LogLikelihood
from service.web.media_types import CSV, JSON, NDJSON, NPY
from service.web.responses import PiecewiseResponse, Written, json_reply, npy_reply
from service.web.serialisation import check_wanted

ROW_FORMS = (JSON, NDJSON, CSV, NPY)
Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Arrays [B] by the names of columns."""
_PIECE_ROWS = 2**10
_LINE = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_TEXT_CHARACTERS = 12  # of the longest word that a column of text has, and always so many: files can be put together


def estimate_columns(estimate: LogLikelihood) -> Columns:
    """The columns of estimates of log P(x); `reason` is empty where the estimate is reliable."""
    return {item.name: getattr(estimate, item.name) for item in fields(estimate)}


def anomaly_columns(scores: AnomalyScores) -> Columns:
    """The columns of scores: of the first method, of the estimate, and, if there are several methods, of each."""
    judged = {method: vars(judgement) for method, judgement in scores.by_method.items()}
    several = {f"scores.{method}.{name}": array for method, of in judged.items() for name, array in of.items()}
    estimates = {name: array for name, array in vars(scores).items() if np.ndim(array) == 1}
    return {**next(iter(judged.values())), **estimates, **(several if len(judged) > 1 else {})}


def rows_reply(media: str, document: Mapping[str, Any], rows: Written, columns: Mapping[str, NDArray[Any]]) -> Response:
    """The results in the negotiated media type.

    Args:
        media: one of `ROW_FORMS`.
        document: the members of the JSON answer beside `results`; other forms have no place for them.
        rows: one object an image.
        columns: the same as arrays, for CSV and npy.
    """
    if media == JSON:
        return json_reply({**document, "results": rows})
    if media == NDJSON:
        return _lines_reply(rows)
    if media == NPY:
        return npy_reply(structured(columns))
    return PiecewiseResponse([*_csv_pieces(columns)], None, f"{CSV}; charset=utf-8; header=present")


def _lines_reply(rows: Written) -> Response:
    """A line of JSON for each row; one body, if there are few."""
    pieces = []
    for start in range(0, len(rows), _PIECE_ROWS):
        check_wanted()
        pieces.append(b"".join(orjson.dumps(row, None, _LINE) for row in rows[start : start + _PIECE_ROWS]))
    return Response(pieces[0], media_type=NDJSON) if len(pieces) == 1 else PiecewiseResponse(pieces, None, NDJSON)


def structured(columns: Columns) -> NDArray[np.void]:
    """The columns as one array of records, in little-endian order; text has a fixed length.

    >>> structured({"a": np.array([1.5, np.nan]), "why": np.array(["", "mode"])}).tolist()
    [(1.5, ''), (nan, 'mode')]
    """
    types = {
        name: f"<U{_TEXT_CHARACTERS}" if array.dtype.kind == "U" else array.dtype.newbyteorder("<")
        for name, array in columns.items()
    }
    records = np.empty(len(next(iter(columns.values()))), [*types.items()])
    for name, array in columns.items():
        records[name] = array
    return records


def _csv_pieces(columns: Columns) -> Iterator[bytes]:
    r"""A line of names, then a line an image; a number that is not finite is empty (RFC 4180).

    >>> b"".join(_csv_pieces({"a": np.array([0.1, np.inf]), "b": np.array([True, False])}))
    b'a,b\r\n0.1,true\r\n,false\r\n'
    """
    yield (",".join(columns) + "\r\n").encode()
    for start in range(0, len(next(iter(columns.values()))), _PIECE_ROWS):
        check_wanted()
        part = [_written(array[start : start + _PIECE_ROWS].tolist()) for array in columns.values()]
        yield "".join(f"{','.join(row)}\r\n" for row in zip(*part, strict=True)).encode()


def _written(values: Sequence[Any]) -> list[str]:
    """Each value as text: the shortest that gives the same number; words of ours have no comma."""
    if values and isinstance(values[0], float):
        return [repr(value) if math.isfinite(value) else "" for value in values]
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
