"""The process that reads images for the service: `python -m service.images.worker DESCRIPTOR PARENT MEMORY`.

It reads messages (see decode_request.py) from the socket with the number DESCRIPTOR and answers them one after another,
until the service closes the socket. It inherits no other descriptor and no settings from the service, cannot write
files, and may use MEMORY bytes of address space more than it starts with. It ends when the service ends, for whatever
reason.

An answer is `{"pixels": [B, C, H, W]}` followed by the float32 values; `{"error": NAME, "detail": …, "index": …}` for
an error of errors.py; `{"memory": true}` if the memory was not enough; or `{"fault": TRACEBACK}` for a bug here.
"""

import resource
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

from service.child_process import end_with
from service.images.decode_request import DecodeRequest, head, receive_request
from service.images.errors import ImageError, InvalidArrayError, InvalidImageError, PixelLimitError

_MAX_FAULT_CHARACTERS = 4000
_SMALL_BYTES = 2**16  # of pixels that are sent in one piece with what precedes them, so that the service wakes up once


def main(descriptor: int, parent: int, memory: int) -> int:
    """Serve one socket to its end."""
    end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal or systemd sends to all: the service decides
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # nobody reads them, and a broken file may cause thousands
    _bound(memory)
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as stream:
        connection.sendall(head({"ready": True}))
        while (reading := receive_request(stream)) is not None:
            answer, pixels = _answer(reading)
            del reading
            told = head(answer)
            if pixels is not None and len(pixels) <= _SMALL_BYTES:
                told, pixels = told + pixels, None
            connection.sendall(told)
            if pixels is not None:
                connection.sendall(pixels)
            del pixels  # do not keep them while waiting for the next message
    return 0


def _answer(reading: DecodeRequest) -> tuple[dict[str, Any], Any]:
    try:
        pixels = reading.read()
    except ImageError as error:
        index = error.index if isinstance(error, InvalidImageError) else None
        return {"error": type(error).__name__, "detail": str(error), "index": index}, None
    except MemoryError:
        return {"memory": True}, None
    except Exception:  # noqa: BLE001 - a fault of ours, which the service logs
        return {"fault": traceback.format_exc()[-_MAX_FAULT_CHARACTERS:]}, None
    return {"pixels": pixels.shape}, pixels.reshape(-1).view("u1").data


def error_of(answer: dict[str, Any]) -> ImageError:
    """The error that an answer describes.

    Raises:
        LookupError, TypeError, ValueError: the answer does not describe an error of errors.py.
    """
    if answer["error"] == InvalidImageError.__name__:
        return InvalidImageError(str(answer["detail"]), int(answer["index"]))
    kinds = {kind.__name__: kind for kind in (InvalidArrayError, PixelLimitError)}
    return kinds[answer["error"]](str(answer["detail"]))


def _bound(memory: int) -> None:
    """Limit the address space to this many bytes more than now; forbid writing files, and core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:  # noqa: PTH123 (a number, read once)
            pages = int(file.read().split()[0])
        bound = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
