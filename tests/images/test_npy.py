"""Arrays in NumPy's file format, read by several threads."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service.images import npy


def test_headers_are_parsed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 before 3.11.8 fails now and then where two threads parse at once, and NumPy has it parse them."""
    parsing, at_once, original = threading.Semaphore(1), [], npy._NPY_HEADERS[1, 0]

    def read(stream: Any) -> Any:
        at_once.append(not parsing.acquire(blocking=False))
        time.sleep(0.005)
        parsing.release()
        return original(stream)

    def file(count: int) -> bytes:
        stream = io.BytesIO()
        np.save(stream, np.full((count, 5, 7), count, np.uint8), allow_pickle=False)
        return stream.getvalue()

    monkeypatch.setitem(npy._NPY_HEADERS, (1, 0), read)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(npy.parse_pixels, map(file, range(1, 17))))
    assert [array.shape for array in found] == [(count, 5, 7) for count in range(1, 17)]
    assert at_once == [False] * 16
