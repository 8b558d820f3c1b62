"""HEAD on every route that GET reads, what a 405 allows, and a proxy's prefix before all paths."""

import os
import re
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import structlog
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.web.operations.settings import OWN_PATHS, Settings
from tests.web.conftest import Serve
from tests.web.test_observability import BODY
from tests.web.test_process import Start, address, start

__all__ = ["start"]  # the fixture
READ = [
    "/",
    "/page/main.js",
    "/livez",
    "/readyz",
    "/docs",
    "/openapi.json",
    "/static-offline-docs/swagger-ui.css",
    "/v1/models",
    "/v1/models/digits",
    "/v1/models/digits/calibration",
    "/v1/limits",
    "/v1/models/nobody",
    "/v1/samples?n=2&seed=1",
    "/v1/samples?n=0",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/digits.encode",
    "/v2/models/digits.encode/ready",
    "/v2/models/digits.encode/versions/1",
    "/v2/models/digits.encode/versions/1/ready",
    "/v2/models/nobody.encode",
    "/nowhere",
    "/metrics",
]
VARYING = {"date", "server-timing"}
Ask = Callable[[str, str], Any]


def check_head_is_get(ask: Ask, path: str) -> None:
    get, head = ask("GET", path), ask("HEAD", path)
    varying = VARYING | ({"content-length"} if path == "/metrics" else set())
    assert head.status_code == get.status_code
    assert head.content == b""
    assert int(head.headers["content-length"]) > 0
    assert {name: value for name, value in head.headers.items() if name not in varying} == {
        name: value for name, value in get.headers.items() if name not in varying
    }


@pytest.mark.parametrize("path", READ)
def test_head_is_answered_as_get_without_the_body(client: TestClient, path: str) -> None:
    check_head_is_get(lambda method, path: client.request(method, path, headers={"X-Request-ID": "same"}), path)


def test_head_over_http_keeps_the_connection_in_step(start: Start) -> None:
    with httpx2.Client(base_url=address(start()), headers={"X-Request-ID": "same"}) as client:
        for path in READ:
            check_head_is_get(client.request, path)


def test_every_get_route_of_the_documentation_is_among_those(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    get = {path.replace("{version}", "1") for path, operations in paths.items() if "get" in operations}
    read = {path.replace("{name}", "digits.encode" if path.startswith("/v2") else "digits") for path in get}
    assert read <= {path.partition("?")[0] for path in READ}
    assert not any("head" in operations for operations in paths.values())


def test_head_is_logged_and_counted_as_head_with_its_route(serve: Serve) -> None:
    client = serve()
    with structlog.testing.capture_logs() as lines:
        client.head("/v1/samples?n=2")
        client.head("/v1/models/nobody")
    told = [(line["method"], line["path"], line["status"], line.get("problem")) for line in lines]
    assert told == [("HEAD", "/v1/samples", 200, None), ("HEAD", "/v1/models/nobody", 404, "unknown-model")]
    text = client.get("/metrics").text
    assert 'method="HEAD",model="digits",route="/v1/samples",status="200",version="2"} 1.0' in text
    assert 'method="HEAD",model="",route="/v1/models/{name}",status="404",version=""} 1.0' in text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/static-offline-docs/swagger-ui.css", "GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/digits", "GET, HEAD"),
        ("PUT", "/v1/samples", "GET, HEAD"),
        ("GET", "/v1/encode", "POST"),
        ("HEAD", "/v1/encode", "POST"),
        ("OPTIONS", "/v1/decode", "POST"),
        ("GET", "/v1/admin/reload", "POST"),
    ],
)
def test_a_405_tells_what_is_allowed(client: TestClient, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


FILE = "/static-offline-docs/swagger-ui.css"


def test_a_path_of_the_pages_files_is_no_way_through_the_file_system(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Any] = []
    real = os.path.realpath

    def recorded(*path: Any, **named: Any) -> Any:
        looked_up.append(path)
        return real(*path, **named)

    monkeypatch.setattr(os.path, "realpath", recorded)
    folder = "/static-offline-docs/"
    for path in ("a/" * 4000, "a/../" * 1600, "%2e%2e/etc/passwd", "swagger-ui.css/..", "swagger-ui.css%00", "", "."):
        assert client.get(folder + path).status_code == 404
    assert not looked_up
    assert client.get(FILE).status_code == 200
    assert looked_up


@pytest.mark.parametrize(
    ("header", "few", "status", "many"),
    [
        ("Range", "bytes=0-0", 206, "bytes=" + ",".join(f"{2 * number}-{2 * number}" for number in range(100))),
        ("Range", "bytes=99999999-", 416, "bytes=" + "9" * 300 + "-"),
        ("If-None-Match", "*", 304, "," * 300 + "*"),
    ],
    ids=["ranges", "a range too far", "tags"],
)
def test_of_the_pages_files_a_header_with_a_long_list_is_ignored(
    client: TestClient, header: str, few: str, status: int, many: str
) -> None:
    whole = client.get(FILE)
    assert client.get(FILE, headers={header: few}).status_code == status
    answer = client.get(FILE, headers={header: many})
    assert (answer.status_code, answer.content) == (200, whole.content)


@pytest.fixture(scope="module")
def behind(serve: Serve) -> TestClient:
    return serve(root_path="/lab/logpx")


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_prefix_the_documentation_finds_its_files_and_the_routes(behind: TestClient, strips: bool) -> None:
    def through_the_proxy(path: str) -> Any:
        assert path.startswith("/lab/logpx/")
        return behind.get(path.removeprefix("/lab/logpx") if strips else path)

    page = through_the_proxy("/lab/logpx/docs")
    links = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
    found = {one or other for one, other in links}
    assert {link.rsplit("/", 1)[1] for link in found} >= {"swagger-ui-bundle.js", "swagger-ui.css", "openapi.json"}
    for link in found:
        assert through_the_proxy(link).status_code == 200
    (server,) = through_the_proxy("/lab/logpx/openapi.json").json()["servers"]
    for path in ("/v1/models", "/v1/samples?n=1", "/livez"):
        assert through_the_proxy(server["url"] + path).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/lab/logpx"])
def test_behind_a_prefix_requests_are_named_as_their_clients_name_them(behind: TestClient, prefix: str) -> None:
    def count(text: str) -> float:
        label = 'method="POST",model="digits",route="/v1/encode",status="200",version="2"'
        return sum(float(line.split()[-1]) for line in text.splitlines() if f"requests_total{{{label}" in line)

    before = count(behind.get("/metrics").text)
    with structlog.testing.capture_logs() as lines:
        assert behind.post(f"{prefix}/v1/encode", **BODY).status_code == 200
        behind.get(f"{prefix}/livez")
        refused = behind.get(f"{prefix}/v1/encode")
    assert [(line["path"], line["log_level"]) for line in lines] == [
        ("/lab/logpx/v1/encode", "info"),
        ("/lab/logpx/livez", "debug"),
        ("/lab/logpx/v1/encode", "info"),
    ]
    assert refused.status_code == 405
    assert "GET /lab/logpx/v1/encode" in refused.json()["detail"]
    assert count(behind.get("/metrics").text) == before + 1


def test_a_prefix_is_whole(behind: TestClient) -> None:
    for path in ("/lab/logpxv1/models", "/lab/v1/models", "/lab/logpxx", "/lab/logpx/lab/logpx/livez"):
        assert behind.get(path).status_code == 404


@pytest.mark.parametrize(
    "wrong", ["logpx", "/logpx/", "/", "//", "/a//b", "/a b", "/..", "/a?b", "/a%20", "https://a/b"]
)
def test_what_is_no_prefix_stops_the_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="a prefix is like /logpx"):
        Settings(root_path=wrong)


def test_a_path_of_the_service_itself_is_no_prefix(client: TestClient) -> None:
    routes = [str(getattr(route, "path", "")) for route in client.app.routes]  # type: ignore[attr-defined]
    routes += client.get("/openapi.json").json()["paths"]
    assert {path.split("/")[1] for path in routes if path.strip("/")} == set(OWN_PATHS)
    for path in OWN_PATHS:
        with pytest.raises(ValidationError, match="is a path of the service itself"):
            Settings(root_path=f"/{path}/more")
    assert Settings(root_path="/v1x/v1").root_path == "/v1x/v1"
