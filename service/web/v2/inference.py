"""Parse the request of an inference: JSON, and after it the bytes of tensors whose `binary_data_size` is given."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from service.web.bodies import json_object
from service.web.connections.request_limits import MAX_PARAMETERS
from service.web.parameters import refusal
from service.web.problems import InvalidBodyError
from service.web.v2.tensors import Tensor, checked_shape

LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_ID_CHARACTERS = 256
_IGNORED = frozenset(
    ("binary_data_output", "content_type", "headers", "priority", "sequence_end", "sequence_id", "sequence_start")
)
"""Parameters that clients send of their own accord, and that mean nothing for these models."""
_IGNORED_PREFIX = "triton_"
_TIMEOUT = "timeout"
PLACED = {
    "model": "is in the path: /v2/models/MODEL.OPERATION/infer",
    "version": "is in the path: /v2/models/MODEL.OPERATION/versions/VERSION/infer",
    "n": "is an input",
    "as": "is not needed: images are tensors",
    "explain": "has no output here; POST /v1/anomaly-scores answers with maps",
}
"""Parameters of `/v1` that are not parameters here, and why."""
_MAX_MICROSECONDS = 10**15


class Inference(NamedTuple):
    """The request of an inference.

    Attributes:
        id: what the answer repeats.
        tensor: the one input.
        outputs: the names of the wanted outputs, and whether each is wanted as bytes.
        options: parameters of the operation, as a query of `/v1` would have them.
        timeout_seconds: the deadline that it asks for.
    """

    id: str | None
    tensor: Tensor
    outputs: Mapping[str, bool]
    options: dict[str, str]
    timeout_seconds: float | None


def json_length(body: bytes, length: str | None) -> int:
    """How many bytes of a body are JSON, by its header; without that, all are.

    Raises:
        InvalidBodyError: the header is not a whole number, or is more than there are.
    """
    if length is None:
        return len(body)
    if not (length.isascii() and length.isdecimal()):
        raise InvalidBodyError(f"{LENGTH_HEADER} is {length[:40]!r}, not a whole number of bytes")
    if (size := int(length[:20])) > len(body):
        raise InvalidBodyError(f"{LENGTH_HEADER} says {size} bytes, but the body has {len(body)}")
    return size


def parse_inference(
    body: bytes, binary: memoryview, *, given: str, accepted: Sequence[str], offered: Sequence[str]
) -> Inference:
    """Parse the request of an operation.

    Args:
        body: the JSON.
        binary: the bytes after it.
        given: the name of the operation's input.
        accepted: the types that it may have.
        offered: the names of the operation's outputs.

    Raises:
        InvalidBodyError: it is not such a request.
        RequestValidationError: a parameter is none of the operation's.
    """
    document = json_object(body)
    parameters = _parameters(document, "the request")
    identifier = document.get("id")
    if identifier is not None and (not isinstance(identifier, str) or len(identifier) > MAX_ID_CHARACTERS):
        raise InvalidBodyError(f"the id must be a text of at most {MAX_ID_CHARACTERS} characters")
    outputs = _outputs(document.get("outputs"), offered, whole=_flag(parameters, "binary_data_output", "the request"))
    tensor, used = _input(document.get("inputs"), binary, given, accepted)
    if used != len(binary):
        raise InvalidBodyError(f"after the tensors {len(binary) - used} bytes are left over")
    return Inference(identifier, tensor, outputs, _options(parameters), _timeout(parameters))


def _input(inputs: Any, binary: memoryview, given: str, accepted: Sequence[str]) -> tuple[Tensor, int]:
    """The one input, and how many bytes of the binary data it takes."""
    if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
        raise InvalidBodyError("inputs must be a list of objects")
    names = [item.get("name") for item in inputs]
    if names != [given]:
        found = ", ".join(repr(name)[:40] for name in names[:4]) or "none"
        raise InvalidBodyError(f"the operation has one input, {given}; found: {found}")
    (item,) = inputs
    datatype, parameters = item.get("datatype"), _parameters(item, f"input {given}")
    if datatype not in accepted:
        raise InvalidBodyError(
            f"the datatype of input {given} is {repr(datatype)[:40]}; accepted: {', '.join(accepted)}"
        )
    shape = checked_shape(given, item.get("shape"))
    if datatype == "BYTES" and len(shape) != 1:
        raise InvalidBodyError(f"input {given} of BYTES has shape {[*shape]}; accepted: [N], an encoded file each")
    if "binary_data_size" not in parameters:
        if "data" not in item:
            raise InvalidBodyError(f"input {given} has neither data nor a binary_data_size")
        return Tensor(given, datatype, shape, item["data"]), 0
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise InvalidBodyError(f"the binary_data_size of input {given} must be a whole number of bytes")
    if "data" in item:
        raise InvalidBodyError(f"input {given} has both data and a binary_data_size")
    if size > len(binary):
        told = f"the binary_data_size of input {given} is {size}, but {len(binary)} bytes follow the JSON"
        raise InvalidBodyError(f"{told}; the header {LENGTH_HEADER} says where it ends")
    return Tensor(given, datatype, shape, binary[:size]), size


def _outputs(outputs: Any, offered: Sequence[str], *, whole: bool) -> Mapping[str, bool]:
    """The wanted outputs, by default all, and whether each is wanted as bytes."""
    if outputs is None or outputs == []:
        return dict.fromkeys(offered, whole)
    if not isinstance(outputs, list) or not all(isinstance(item, dict) for item in outputs):
        raise InvalidBodyError("outputs must be a list of objects")
    wanted: dict[str, bool] = {}
    for item in outputs[: len(offered) + 1]:
        name = item.get("name")
        if name not in offered:
            raise InvalidBodyError(f"there is no output {repr(name)[:40]}; there are: {', '.join(offered)}")
        if name in wanted:
            raise InvalidBodyError(f"output {name} is asked for more than once")
        parameters = _parameters(item, f"output {name}")
        if parameters.get("classification"):
            raise InvalidBodyError(f"output {name} is asked for as a classification, which no output here is")
        wanted[name] = _flag(parameters, "binary_data", f"output {name}", default=whole)
    return wanted


def _options(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that are the operation's, as text: a query of `/v1` has no other values."""
    options: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, value in parameters.items():
        if name in _IGNORED or name == _TIMEOUT or name.startswith(_IGNORED_PREFIX):
            continue
        if name in PLACED:
            wrong[name] = PLACED[name]
        elif isinstance(value, str):
            options[name] = value
        elif isinstance(value, bool | int | float):
            options[name] = orjson.dumps(value).decode()
        else:
            wrong[name] = "must be a number, a text, true or false"
    if wrong:
        raise refusal(wrong)
    return options


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Microseconds, of which 0 stands for none."""
    microseconds = parameters.get(_TIMEOUT, 0)
    if type(microseconds) is not int or not 0 <= microseconds <= _MAX_MICROSECONDS:
        raise refusal({_TIMEOUT: "must be a whole number of microseconds"})
    return microseconds / 1e6 or None


def _parameters(item: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    found = item.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict) or len(found) > MAX_PARAMETERS:
        raise InvalidBodyError(f"the parameters of {whose} must be an object of at most {MAX_PARAMETERS} members")
    if "shared_memory_region" in found:
        raise InvalidBodyError(f"the parameters of {whose} name shared memory, which is not read: send the data")
    return found


def _flag(parameters: Mapping[str, Any], name: str, whose: str, *, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise InvalidBodyError(f"{name} of {whose} must be true or false")
    return found
