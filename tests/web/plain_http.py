"""`httpx2.get` and `httpx2.post` over plain HTTP, each on a connection of its own.

httpx2's own read all certificates of the system at each call, which takes longer than any answer.
"""

import ssl
from typing import Any

import httpx2

_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def get(url: str, **options: Any) -> httpx2.Response:
    return httpx2.get(url, verify=_UNUSED, **options)


def post(url: str, **options: Any) -> httpx2.Response:
    return httpx2.post(url, verify=_UNUSED, **options)
