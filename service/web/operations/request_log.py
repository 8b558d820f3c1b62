"""Log and count each answer, of the app or of the connection itself."""

import os
import re
from collections.abc import Collection, Iterable
from functools import cache

import structlog
from starlette.routing import compile_path
from starlette.types import Scope

from service.web.operations.metrics import Metrics
from service.web.problem_format import shortened
from service.web.problems import ProblemType

QUIET_PATHS = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""For machines that watch the service: logged only where everything is."""
_MAX_PATH = 200
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Logs and counts answers.

    Args:
        metrics: where they are counted.
        paths: the routes' paths, for requests that are refused before their route is found.
        root_path: the prefix that a proxy puts before these.
    """

    def __init__(self, metrics: Metrics, paths: Collection[str], root_path: str = "") -> None:
        # Finding a counter by its labels takes as long as counting, so they are kept.
        self._requests = cache(metrics.requests.series)
        self._request_seconds = cache(metrics.request_seconds.series)
        self._refusals = cache(metrics.refusals.series)
        self._log = structlog.get_logger().bind()  # made once, after the log has been configured
        self._paths = {path for path in paths if "{" not in path}
        templates = sorted(
            (path for path in paths if "{" in path), key=len, reverse=True
        )  # {name}.encode before {name}
        self._templates = {path: compile_path(path)[0] for path in templates}
        self._root_path = root_path

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Log an answer of the app; `scope` can have more about the request, see `service.web.middleware.observe`."""
        route = getattr(scope["route"], "path", "unknown") if "route" in scope else self._route(scope["path"])
        observed = scope.get("observed", {})
        model = observed.get("model", ""), observed.get("version", "")
        self._requests(route, scope["method"], status, *model).count += 1
        self._request_seconds(route, *model).add(seconds)
        more = {**observed, **scope.get("problem", {})}
        if "problem" in more:
            self._refusals(more["problem"]).count += 1
        write = self._log.debug if route in QUIET_PATHS else self._log.info
        path = scope["path"]
        client = scope["client"][0] if scope.get("client") else None
        write(
            "request",
            method=scope["method"],
            path=path if len(path) <= _MAX_PATH else shortened(path, _MAX_PATH),
            status=status,
            seconds=round(seconds, 6),
            client=client,
            **more,
        )

    def refused(
        self,
        problem_type: ProblemType,
        detail: str,
        *,
        method: str,
        path: str,
        client: tuple[str, int] | None,
        request_id: str,
    ) -> None:
        """Log an answer of the connection; method and path are empty if they had not arrived."""
        status = int(problem_type.status)
        self._requests(self._route(path), method, status, "", "").count += 1
        self._refusals(problem_type.slug).count += 1
        self._log.info(
            "request",
            method=method,
            path=path,
            status=status,
            client=client[0] if client else None,
            problem=problem_type.slug,
            detail=detail,
            request_id=request_id,
        )

    def own_path(self, path: str) -> str:
        """A path without the prefix of a proxy."""
        return path.removeprefix(self._root_path)

    def _route(self, path: str) -> str:
        """The label of a path; all unknown paths have the same, so that scanners cannot add labels."""
        path = self.own_path(path)
        if path in self._paths:
            return path
        return next((template for template, regex in self._templates.items() if regex.match(path)), "unknown")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's `X-Request-ID` if it is well formed, otherwise a new one."""
    given = b""
    for name, value in headers:
        if name == b"x-request-id":
            given = value
    return given.decode() if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
