"""What a client is told when it is made."""

from dataclasses import dataclass
from typing import TypedDict


class Options(TypedDict, total=False):
    """The options of `Client` and `AsyncClient`; `Settings` says what they mean."""

    model: str | None
    version: int | None
    key: str | None
    timeout: float
    retries: int
    chunk_images: int
    concurrency: int


@dataclass(frozen=True)
class Settings:
    """The options with their defaults.

    Attributes:
        model: name of the model; default: the service's.
        version: of the model; default: the one that is the service's default when a call begins.
        key: where the service asks for one.
        timeout: seconds that one request may take; then the service drops it.
        retries: how often a request is sent again after 429, 502 or 503: when `Retry-After` says, or after 0.5 to 8
            seconds. After a connection that failed, at most four times.
        chunk_images: most images of one request. If the service refuses so many (413) or does not finish them in time
            (504), half as many are sent.
        concurrency: most requests at the same time.

    Raises:
        ValueError: one makes no sense.
    """

    model: str | None = None
    version: int | None = None
    key: str | None = None
    timeout: float = 120.0
    retries: int = 8
    chunk_images: int = 256
    concurrency: int = 4

    def __post_init__(self) -> None:
        if not 0.001 <= self.timeout < 10**6:
            raise ValueError(f"timeout is {self.timeout}; it is a number of seconds from 0.001")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it is at least 0")
        if self.chunk_images < 1 or self.concurrency < 1:
            raise ValueError("chunk_images and concurrency are at least 1")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise ValueError("key has characters that no HTTP header can have, or none at all")

    def headers(self) -> dict[str, str]:
        """Those of every request."""
        headers = {"X-Request-Timeout-Ms": str(int(self.timeout * 1000))}
        return headers if self.key is None else {**headers, "Authorization": f"Bearer {self.key}"}
