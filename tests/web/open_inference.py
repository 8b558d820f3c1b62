"""Requests of the Open Inference Protocol, written as its clients write them, and their answers read back."""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from tests.toys import AnyArray

DATATYPES = {"bool": "BOOL", "uint8": "UINT8", "int32": "INT32", "float32": "FP32", "float64": "FP64"}
DTYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in DATATYPES.items()}
Value = AnyArray | Sequence[bytes]


def elements(files: Sequence[bytes]) -> bytes:
    """Each after four bytes with its length."""
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def described(name: str, value: Value) -> dict[str, Any]:
    """An input without its data."""
    if isinstance(value, np.ndarray):
        return {"name": name, "shape": list(value.shape), "datatype": DATATYPES[value.dtype.name]}
    return {"name": name, "shape": [len(value)], "datatype": "BYTES"}


def in_json(name: str, value: Value, **members: Any) -> dict[str, Any]:
    """The arguments of `client.post` for a request in JSON."""
    texts = [] if isinstance(value, np.ndarray) else [base64.b64encode(file).decode() for file in value]
    data = value.ravel().tolist() if isinstance(value, np.ndarray) else texts
    return {"content": orjson.dumps({"inputs": [{**described(name, value), "data": data}], **members})}


def in_bytes(name: str, value: Value, **members: Any) -> dict[str, Any]:
    """The same with a binary tensor, and no content type, as tritonclient sends it."""
    data = value.tobytes() if isinstance(value, np.ndarray) else elements(value)
    one = {**described(name, value), "parameters": {"binary_data_size": len(data)}}
    head = orjson.dumps({"inputs": [one], **members})
    return {"content": head + data, "headers": {"Inference-Header-Content-Length": str(len(head))}}


def outputs_of(answer: Any) -> dict[str, AnyArray]:
    """The outputs by name, of either form; null is NaN."""
    assert answer.status_code == 200, answer.text
    found: dict[str, AnyArray] = {}
    size = answer.headers.get("inference-header-content-length")
    assert answer.headers["content-type"] == ("application/json" if size is None else "application/octet-stream")
    rest = b"" if size is None else answer.content[int(size) :]
    for output in document_of(answer)["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            flat = np.array([np.nan if item is None else item for item in output["data"]], dtype)
        else:
            size_of = output["parameters"]["binary_data_size"]
            flat, rest = np.frombuffer(rest[:size_of], dtype), rest[size_of:]
        found[output["name"]] = flat.reshape(output["shape"])
    assert rest == b""
    return found


def document_of(answer: Any) -> Mapping[str, Any]:
    """The JSON of an answer."""
    size = answer.headers.get("inference-header-content-length")
    document: Mapping[str, Any] = orjson.loads(answer.content[: None if size is None else int(size)])
    return document
