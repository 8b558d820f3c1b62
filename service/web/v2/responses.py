"""Write the answer to an inference: JSON, and after it the bytes of outputs that are wanted as bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from fastapi import Response

from service.images.arrays import AnyArray
from service.web.media_types import JSON
from service.web.responses import PIECE_BYTES, PiecewiseResponse, byte_pieces, json_pieces
from service.web.v2.inference import LENGTH_HEADER
from service.web.v2.tensors import DTYPES

OCTETS = "application/octet-stream"


def inference_reply(
    document: Mapping[str, Any], outputs: Mapping[str, AnyArray], types: Mapping[str, str], wanted: Mapping[str, bool]
) -> Response:
    """The answer to an inference.

    Args:
        document: the members of the answer besides `outputs`.
        outputs: at least those wanted; in JSON a number that is not finite is null.
        types: the type of each.
        wanted: in this order, and whether as bytes.
    """
    pieces: list[bytes | memoryview] = [orjson.dumps(document)[:-1], b',"outputs":[']
    binary: list[memoryview] = []
    for index, (name, as_bytes) in enumerate(wanted.items()):
        array = np.ascontiguousarray(outputs[name], DTYPES[types[name]])
        head: dict[str, Any] = {"name": name, "datatype": types[name], "shape": array.shape}
        if as_bytes:
            head["parameters"] = {"binary_data_size": array.nbytes}
            binary += byte_pieces(array)
        pieces += (b"," if index else b"", orjson.dumps(head)[:-1])
        if not as_bytes:
            pieces += (b',"data":', *json_pieces(array.reshape(-1)))
        pieces.append(b"}")
    pieces.append(b"]}")
    headers, media_type = None, JSON
    if binary:
        headers, media_type = {LENGTH_HEADER: str(sum(map(len, pieces)))}, OCTETS
    whole = [*pieces, *binary]
    if sum(map(len, whole)) <= PIECE_BYTES:
        return Response(b"".join(whole), headers=headers, media_type=media_type)
    return PiecewiseResponse(whole, headers, media_type)
