"""What the client raises, besides ValueError and TypeError for arguments that it does not take.

LogpxError
├── ImageError          an image that was given cannot be read or sent; `index` says which
├── ProblemError        the service refused a request, or failed: its problem document
├── UnreachableError    no answer came: no connection, or it broke, also when tried again
└── SlowServiceError    no answer came within the timeout
"""

import json
from typing import Any

_MOST_QUOTED = 200


class LogpxError(Exception):
    """The client has no result."""


class ImageError(LogpxError):
    """An image that was given cannot be read or sent.

    Attributes:
        index: which one, counted from 0 over all images given.
    """

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(f"image {index}: {detail}")
        self.detail = detail
        self.index = index


class ProblemError(LogpxError):
    """The service refused a request, or failed. The attributes are those of its problem document (RFC 9457).

    Attributes:
        status: the HTTP status.
        type: what went wrong, as a name that never changes: `urn:logpx:problem:invalid-image`; `about:blank` if
            something else than the service answered, such as a proxy.
        title, detail: the same in words.
        index: the image or latent that is wrong, counted from 0 over all that were given; None if none is.
        errors: the parameters that are wrong: a list of `{"parameter": …, "problem": …}`.
        request_id: names the request in the service's log.
    """

    def __init__(self, status: int, document: dict[str, Any], *, start: int = 0) -> None:
        self.status = status
        self.type = str(document.get("type", "about:blank"))
        self.title = str(document.get("title", f"HTTP status {status}"))
        self.detail = str(document.get("detail", ""))
        index = document.get("index")
        self.index = None if index is None else start + int(index)
        self.errors: list[dict[str, str]] = list(document.get("errors") or [])
        self.request_id: str | None = document.get("request_id")
        self._document = document
        place = "" if self.index is None else f"image {self.index}: "
        super().__init__(f"{status} {self.title}: {place}{self.detail}")

    @classmethod
    def of(cls, status: int, body: bytes) -> "ProblemError":
        """That of an answer, whether or not its body is a problem document."""
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("index"), int | None):
            document = {"detail": body[:_MOST_QUOTED].decode("utf-8", "replace")}
        return cls(status, document)

    def moved(self, start: int) -> "ProblemError":
        """The same, where the request's first image was number `start` of all that were given."""
        return ProblemError(self.status, self._document, start=start)


class UnreachableError(LogpxError):
    """No answer came: there was no connection, or it broke, also when the request was sent again."""


class SlowServiceError(LogpxError):
    """No answer came within the timeout."""
