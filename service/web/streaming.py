"""Answers whose parts are sent as they are computed, so that a deadline loses nothing that was done."""

from collections.abc import Awaitable, Iterator

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.web.problems import answer_of
from service.web.responses import pieces_of


class StreamedResponse(Response):
    """Lines of JSON, a group of images at a time. If a group fails, the last line is the problem document.

    The status has been sent by then; so `status` and `type` tell such a line from a result, and its `index` is that of
    the first image that has no line.

    Args:
        request: whose answer this is.
        first: the first group's lines, and the headers.
        later: computes each further group, when it is asked for.
        group_images: how many images a group has.
    """

    def __init__(
        self, request: Request, first: Response, later: Iterator[Awaitable[Response]], group_images: int
    ) -> None:
        super().__init__(status_code=first.status_code, media_type=first.media_type)
        self.raw_headers = [(name, value) for name, value in first.raw_headers if name != b"content-length"]
        self._request = request
        self._first = first
        self._later = later
        self._group_images = group_images

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send each group when it is there and the client has taken the one before."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for lines in pieces_of(self._first):
            await send({"type": "http.response.body", "body": lines, "more_body": True})
        done = self._group_images
        for group in self._later:
            try:
                answered = await group
            except ClientDisconnect:
                return
            except Exception as error:  # noqa: BLE001 - raised again by answer_of, where it is none that has an answer
                refusal = orjson.loads(bytes((await answer_of(self._request, error)).body))
                line = orjson.dumps({**refusal, "index": done}, None, orjson.OPT_APPEND_NEWLINE)
                await send({"type": "http.response.body", "body": line, "more_body": True})
                break
            for lines in pieces_of(answered):
                await send({"type": "http.response.body", "body": lines, "more_body": True})
            done += self._group_images
        await send({"type": "http.response.body", "body": b"", "more_body": False})
