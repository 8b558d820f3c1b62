"""`GET /`: the page's files, their headers, and who gets them. tests/page drives it in a browser."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.applications import Starlette

from service.web.operations.settings import Settings
from service.web.page_assets import FOLDER, INDEX, MEDIA_TYPES, page_routes
from tests.web.conftest import Serve

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'"
)
FILES = sorted(file.name for file in FOLDER.iterdir())
PATHS = ["/", *(f"/page/{name}" for name in FILES if name != INDEX)]
MOST_BYTES = 150_000


class Links(HTMLParser):
    """What a document loads and links to, and what it has inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [link for name in ("src", "href") if (link := given.get(name)) and not link.startswith("#")]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []


@pytest.mark.parametrize("path", PATHS)
def test_every_file_has_the_headers_of_the_page(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / (path.removeprefix("/page/") if path != "/" else INDEX)).read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    suffix = ".html" if path == "/" else Path(path).suffix
    assert answer.headers["content-type"] == MEDIA_TYPES[suffix]


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_a_browser_that_has_a_file_gets_304(client: TestClient, path: str) -> None:
    whole = client.get(path)
    tag = whole.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f"W/{tag}", f'"another", {tag}', "*"):
        answer = client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["content-security-policy"] == POLICY
    for other in ('"another"', tag.strip('"'), tag[:-2] + '"', '""', '"', "W/", ", " * 200 + tag):
        answer = client.get(path, headers={"If-None-Match": other})
        assert (answer.status_code, answer.content) == (200, whole.content)


def test_each_file_has_a_tag_of_its_own(client: TestClient) -> None:
    assert len({client.get(path).headers["etag"] for path in PATHS}) == len(PATHS) > 10


@pytest.mark.parametrize("path", ["/", "/page/page.css"])
def test_head_is_answered_as_get_without_the_body(client: TestClient, path: str) -> None:
    get, head = (client.request(method, path, headers={"X-Request-ID": "same"}) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_the_page_is_only_read(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    [
        "/page", "/page/", "/page/index.html", "/page/nothing.js", "/index.html", "/app.py",
        "/page/..%2fapp.py", "/page/..%5capp.py", "/page/main.js%00", "/page/main.js/",
        "/page//main.js", "/page/page/main.js", "/page/%2fetc%2fpasswd", "/page/MAIN.JS", "/page/main.js%20",
        "/page/" + "x" * 5000, "/page/" + "%2e%2e%2f" * 500 + "etc/passwd", "/page/\u202emain.js",
    ],
)  # fmt: skip
def test_no_other_path_is_a_file(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/page/.", "/page/..", "/page/../app.py", "/../page_assets.py", "/page/./main.js", "//"]
)
def test_dots_in_a_path_lead_nowhere(path: str) -> None:
    """Clients remove them, so the request is made by hand."""
    app = Starlette(routes=page_routes())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "root_path": ""}
    coroutine = app(scope, None, send)  # type: ignore[arg-type]  # nothing is received
    with pytest.raises(StopIteration):
        coroutine.send(None)  # and nothing is waited for
    assert sent[0]["status"] == 404


def test_a_query_changes_nothing(client: TestClient) -> None:
    assert client.get("/?model=mnist").content == client.get("/").content


def test_all_links_are_relative_and_lead_somewhere(client: TestClient) -> None:
    found = Links(client.get("/").text)
    assert found.inline == []
    assert len(found.links) > 3
    for link in found.links:
        assert not re.match(r"[a-z]+:|/", link), link
        assert client.get(urljoin("http://testserver/", link)).status_code == 200, link


def _imports() -> Iterator[tuple[str, str]]:
    for file in sorted(FOLDER.glob("*.js")):
        for module in re.findall(r"""^import\b[^;]*?["']([^"']+)["'];""", file.read_text(), re.MULTILINE):
            yield file.name, module


def test_modules_import_only_one_another() -> None:
    found = list(_imports())
    assert len(found) > 10
    assert [(name, module) for name, module in found if module.removeprefix("./") not in FILES] == []
    assert all(module.startswith("./") for _, module in found)
    loaded = {"main.js"}
    while more := {module[2:] for name, module in found if name in loaded} - loaded:
        loaded |= more
    assert loaded == {name for name in FILES if name.endswith(".js")}  # nothing is there for nothing


@pytest.mark.parametrize(
    "forbidden",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "localStorage",
     "sessionStorage", "document.cookie", "https://", "await import("],
)  # fmt: skip
def test_no_file_has_what_could_run_text_keep_a_key_or_load_from_elsewhere(forbidden: str) -> None:
    assert [name for name in FILES if forbidden in (FOLDER / name).read_text()] == []


def test_the_page_is_small() -> None:
    assert {Path(name).suffix for name in FILES} == set(MEDIA_TYPES)
    assert sum((FOLDER / name).stat().st_size for name in FILES) < MOST_BYTES
    for name in FILES:
        lines = (FOLDER / name).read_text().splitlines()
        assert len(lines) <= (450 if name.endswith(".css") else 300), name
        assert max(map(len, lines)) <= 120, name


def test_the_page_is_open_and_its_requests_need_the_key(serve: Serve) -> None:
    client = serve(api_keys="a-key-for-the-page")
    for path in PATHS:
        assert client.get(path).status_code == 200
    for path in ("/v1/models", "/v1/limits"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"X-API-Key": "a-key-for-the-page"}).status_code == 200


def test_without_the_page_there_is_none(serve: Serve) -> None:
    client = serve(page="off")
    for path in ("/", "/page/main.js"):
        assert client.get(path).status_code == 404
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize("value", ["ON", " off ", "on"])
def test_the_setting_is_a_word(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LOGPX_PAGE", value)
    assert Settings().page == value.strip().lower()


def test_another_word_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPX_PAGE", "yes")
    with pytest.raises(ValidationError):
        Settings()


@pytest.fixture(scope="module")
def behind(serve: Serve) -> TestClient:
    return serve(root_path="/lab/logpx")


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_prefix_the_page_finds_its_files_and_the_routes(behind: TestClient, strips: bool) -> None:
    def through_the_proxy(url: str) -> Any:
        path = url.removeprefix("http://testserver")
        assert path.startswith("/lab/logpx/")
        return behind.get(path.removeprefix("/lab/logpx") if strips else path)

    base = "http://testserver/lab/logpx/"
    page = through_the_proxy(base)
    assert page.status_code == 200
    for link in [*Links(page.text).links, "v1/models", "v1/limits"]:
        assert through_the_proxy(urljoin(base, link)).status_code == 200
    for module in {module for _, module in _imports()}:
        assert through_the_proxy(urljoin(f"{base}page/main.js", module)).status_code == 200


def test_behind_a_prefix_without_its_slash_the_answer_leads_to_the_page(behind: TestClient) -> None:
    for method in ("GET", "HEAD"):
        answer = behind.request(method, "/lab/logpx", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/lab/logpx/")
    assert behind.get("/lab/logpx").text == behind.get("/lab/logpx/").text


def test_the_page_is_counted_by_its_routes(serve: Serve) -> None:
    client = serve()
    for path in ("/", "/page/main.js", "/page/page.css", "/page/nothing.js"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'route="/",status="200"' in text
    assert 'route="/page/{name}",status="200",version=""} 2.0' in text
    assert "nothing.js" not in text
