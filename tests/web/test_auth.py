"""Keys: which routes they close, how they travel, and that they are told to nobody."""

import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.web import problems
from service.web.operations.auth import Auth, require_admin
from service.web.operations.settings import Settings
from tests.web.conftest import Serve
from tests.web.test_wrong_input import check

FIRST, SECOND, ADMIN = "first-key-first-key", "second-key-second-key", "admin-key-admin-key"


@pytest.fixture(scope="module")
def closed(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """An app with one key from a file, one as from the environment, and an admin key."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# the shop, since May\n{SECOND}\n\n")
    return serve(api_keys=FIRST, api_keys_file=file, admin_keys=ADMIN)


@pytest.mark.parametrize("key", [FIRST, SECOND, ADMIN])
@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_each_key_opens_in_each_header(closed: TestClient, key: str, header: str) -> None:
    value = f"Bearer {key}" if header == "Authorization" else key
    for path in ("/v1/models", "/v1/samples?n=1", "/metrics"):
        assert closed.get(path, headers={header: value}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {FIRST}x"},
        {"Authorization": f"Bearer {FIRST[:-1]}"},
        {"Authorization": f"Basic {FIRST}"},
        {"Authorization": FIRST},
        {"Authorization": "Bearer "},
        {"X-API-Key": ""},
        {"X-API-Key": f"{FIRST},{SECOND}"},
        {"X-API-Key": "# the shop, since May"},
        {"X-API-Key": "ключ".encode()},
    ],
)
def test_without_a_key_that_fits_it_is_401_before_anything_is_read(closed: TestClient, headers: Any) -> None:
    for answer in (
        closed.get("/v1/models", headers=headers),
        closed.post("/v1/encode?no=such", content=b"x", headers=headers),
        closed.get("/metrics", headers=headers),
    ):
        check(answer, 401, "unauthorized", "X-API-Key")
        assert answer.headers["www-authenticate"] == 'Bearer realm="logpx"'


def test_a_wrong_key_does_not_spoil_a_right_one(closed: TestClient) -> None:
    headers = {"Authorization": "Bearer wrong-wrong-wrong-wrong", "X-API-Key": FIRST}
    assert closed.get("/v1/models", headers=headers).status_code == 200


def test_probes_and_documentation_are_open(closed: TestClient) -> None:
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert closed.get(path).status_code == 200


def test_the_documentation_tells_of_keys_only_where_there_are_any(closed: TestClient, client: TestClient) -> None:
    def security(app: TestClient) -> Any:
        return app.get("/openapi.json").json()["paths"]["/v1/encode"]["post"].get("security")

    assert security(closed) == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert security(client) is None
    assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 200


def test_keys_are_told_to_nobody(closed: TestClient) -> None:
    with structlog.testing.capture_logs() as lines:
        answers = [
            closed.get("/v1/models", headers={"X-API-Key": f"{FIRST}-almost"}),
            closed.get("/v1/models", headers={"Authorization": f"Bearer {FIRST}"}),
        ]
    told = str(lines) + "".join(answer.text + str(answer.headers) for answer in answers)
    told += repr(closed.app.state.__dict__) + repr(vars(closed.app.state.auth))  # type: ignore[attr-defined]
    assert len(lines) == 2
    assert FIRST not in told


@pytest.mark.parametrize(
    ("admin_keys", "key", "status"),
    [([ADMIN], ADMIN, 200), ([ADMIN], FIRST, 403), ([ADMIN], None, 401), ([ADMIN], "x" * 20, 401), ([], FIRST, 403)],
)
def test_admin_routes_are_for_admin_keys(admin_keys: list[str], key: str | None, status: int) -> None:
    app = FastAPI()
    app.state.auth = Auth(keys=[FIRST], admin_keys=admin_keys)
    problems.install(app)

    @app.post("/", dependencies=[Depends(require_admin)])
    async def administer() -> str:
        return "done"

    answer = TestClient(app).post("/", headers={"X-API-Key": key} if key else {})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["type"] == f"urn:logpx:problem:{'unauthorized' if status == 401 else 'forbidden'}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"api_keys": "secret-word"}, "at least 16 characters"),
        ({"api_keys": FIRST + ",short"}, "at least 16 characters"),
        ({"admin_keys": "schlüssel-schlüssel"}, "printable ASCII"),
        ({"api_keys": " , "}, "holds no key"),
        ({"api_keys_file": "empty"}, "holds no key"),
        ({"admin_keys_file": "absent"}, "cannot be read"),
        ({"api_keys_file": "."}, "cannot be read"),
    ],
)
def test_keys_that_cannot_protect_stop_the_start(tmp_path: Path, setting: dict[str, str], words: str) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    given = {name: tmp_path / value if name.endswith("file") else value for name, value in setting.items()}
    with pytest.raises(ValidationError, match=words) as caught:
        Settings.model_validate(given)
    assert not any(str(value) in str(caught.value) for value in setting.values() if len(value) > 5)


def test_pages_of_other_origins_are_let_in_only_by_the_setting(serve: Serve, client: TestClient) -> None:
    page = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=page).headers
    assert "access-control-allow-origin" not in client.options("/v1/encode", headers=page).headers
    listed = serve(cors_origins="https://lab.example, http://localhost:3000", api_keys=FIRST)
    asked = listed.options("/v1/encode", headers={**page, "Access-Control-Request-Headers": "x-api-key"})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://lab.example"
    for method in ("GET", "HEAD"):
        read = {"Origin": "https://lab.example", "Access-Control-Request-Method": method}
        assert listed.options("/v1/models", headers=read).status_code == 200
    refused = listed.get("/v1/models", headers=page)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://lab.example")
    other = {**page, "Origin": "https://other.example"}
    assert "access-control-allow-origin" not in listed.get("/v1/models", headers=other).headers


def test_an_origin_is_an_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPX_CORS_ORIGINS", "https://a.example,https://b.example:8443")
    assert Settings().cors_origins == ("https://a.example", "https://b.example:8443")
    monkeypatch.setenv("LOGPX_CORS_ORIGINS", "a.example/page")
    with pytest.raises(ValidationError, match="an origin is"):
        Settings()


def test_browsers_are_told_not_to_guess_types(client: TestClient) -> None:
    for path in ("/livez", "/docs", "/v1/models", "/nowhere"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_documentation_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "://" not in page.replace("window.location.origin", "")
    for file in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert client.get(f"/static-offline-docs/{file}").status_code == 200
        assert f"/static-offline-docs/{file}" in page


def test_what_cors_refuses_is_a_problem_document_too(serve: Serve) -> None:
    client = serve(cors_origins="https://a.example")
    asked = {"origin": "https://b.example", "access-control-request-method": "DELETE"}
    answer = client.options("/v1/encode", headers=asked)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "Origin" in answer.headers["vary"]
    assert answer.json()["type"] == "urn:logpx:problem:bad-request"
    assert answer.json()["detail"] == "Disallowed CORS origin, method"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert 'logpx_refusals_total{problem="bad-request"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_so_is_a_range_that_a_file_does_not_have(client: TestClient, method: str) -> None:
    path = "/static-offline-docs/swagger-ui.css"
    assert client.request(method, path, headers={"range": "bytes=0-9"}).status_code == 206
    answer = client.request(method, path, headers={"range": "bytes=9999999999-"})
    assert answer.status_code == 416
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-range"].startswith("bytes */")
    if method == "GET":
        assert answer.json()["type"] == "urn:logpx:problem:range-not-satisfiable"
    else:
        assert answer.content == b""


def test_the_openapi_document_is_made_once_beside_other_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    assert client.portal is not None
    made_in: list[int] = []
    app: Any = client.app
    openapi = app.openapi

    def make() -> Any:
        made_in.append(threading.get_ident())
        return openapi()

    monkeypatch.setattr(app, "openapi", make)
    documents = [client.get("/openapi.json").json() for _ in range(3)]
    assert documents == [openapi()] * 3
    assert len(made_in) == 1
    assert made_in != [client.portal.call(threading.get_ident)]
