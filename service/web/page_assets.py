"""The page at `/`: its files, read once, and the routes that send them. Nothing here knows a model or a key."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "require-trusted-types-for 'script'",
    )
)
"""What a browser may do for the page: run and fetch what comes from this origin, and nothing else."""
_MAX_TAGS = 256  # bytes of If-None-Match; a longer list is ignored, and the answer is the whole file
_TAG = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True)
class Asset:
    """One file of the page.

    Attributes:
        body: its bytes.
        headers: all headers of its answer, `ETag` among them.
    """

    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def read(cls, file: Path) -> "Asset":
        """The file as it is now. Its `ETag` is made from its bytes."""
        body = file.read_bytes()
        return cls(
            body,
            {
                "Content-Type": MEDIA_TYPES[file.suffix],
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",  # a browser asks each time, and gets 304 until the file has changed
                "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            },
        )

    def answer(self, request: Request) -> Response:
        """The file, or 304 if `If-None-Match` says that the browser has it (RFC 9110, 13.1.2)."""
        tags = request.headers.get("if-none-match", "")
        known = len(tags) <= _MAX_TAGS and (tags.strip() == "*" or self.headers["ETag"] in _TAG.findall(tags))
        return Response(status_code=304, headers=self.headers) if known else Response(self.body, headers=self.headers)


def page_routes(folder: Path = FOLDER) -> list[BaseRoute]:
    """The routes `/` and `/page/NAME`. They need no key: the page asks for one and sends it with its requests.

    All links of the page are relative, so it works below any prefix. Below `LOGPX_ROOT_PATH` they need the slash at
    the end of the page's own address: without it the answer is a redirect.
    """
    assets = {file.name: Asset.read(file) for file in sorted(folder.iterdir()) if file.suffix in MEDIA_TYPES}

    async def index(request: Request) -> Response:
        if request.scope.get("without_slash"):
            return Response(status_code=307, headers={"Location": f"{request.scope['root_path']}/"})
        return assets[INDEX].answer(request)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in assets or name == INDEX:
            raise HTTPException(404)
        request.scope["route"] = files  # metrics count all files as one route
        return assets[name].answer(request)

    files = Route("/page/{name}", file)
    return [Route("/", index), files]
