"""Commands of the README and of the page of `/v2`, docs/client.md and docs/client.ipynb, run against a fresh service.

Each gives what is shown.

An ellipsis stands for anything, and a number for one within a thousandth of it: processors round differently.
"""

import argparse
import doctest
import io
import json
import math
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from service.web.app import create_app
from service.web.operations.settings import Settings

ROOT = Path(__file__).parents[1]
ESTIMATE = re.compile(r"(-?\d+\.\d) ± (\d+\.\d)")
NUMBER = re.compile(r"(-?\d+\.\d+(?:e-?\d+)?)")


def examples() -> list[tuple[str, str]]:
    """Each curl command of the README and of the page of `/v2`, with what is shown below it."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/open-inference-protocol.md"))
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).split("$ ")[1:]
    return [(command.strip(), "".join(answer).strip()) for command, *answer in (x.split("\n", 1) for x in lines)]


@pytest.fixture(scope="module")
def service() -> Iterator[TestClient]:
    """The bundled store with default settings, as `make serve` runs it."""
    with TestClient(create_app(Settings()), base_url="http://127.0.0.1:8000") as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


def run(client: TestClient, command: str) -> Any:
    """What curl would send; only the options that the README uses."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in ("-H", "-F"):
        parser.add_argument(option, action="append", default=[])
    for option in ("--data-binary", "--json", "-o"):
        parser.add_argument(option)
    parser.add_argument("url")
    program, *words = shlex.split(command)
    assert program == "curl"
    given = parser.parse_args(words)
    headers = dict(header.split(": ", 1) for header in given.H)
    if given.F:
        fields = [field.split("=@") for field in given.F]
        files = [(name, (path, (ROOT / path).read_bytes())) for name, path in fields]
        return client.post(given.url, files=files, headers=headers)
    if given.data_binary:
        body = (ROOT / given.data_binary.removeprefix("@")).read_bytes()
        return client.post(given.url, content=body, headers=headers)
    if given.json:
        file = given.json.removeprefix("@")
        body = (ROOT / file).read_bytes() if given.json.startswith("@") else given.json.encode()
        return client.post(given.url, content=body, headers={**headers, "content-type": "application/json"})
    return client.get(given.url, headers=headers)


def matches(shown: str, found: str) -> bool:
    """Whether the answer is the one shown, up to ellipses and rounding."""
    parts = NUMBER.split(shown)
    pattern = "".join(
        r"(-?\d+\.\d+(?:e-?\d+)?)" if index % 2 else re.escape(part).replace("…", ".*")
        for index, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, found, re.DOTALL)
    if match is None:
        return False
    return all(
        math.isclose(float(want), float(have), rel_tol=1e-3, abs_tol=2e-3)
        for want, have in zip(parts[1::2], match.groups(), strict=True)
    )


@pytest.mark.parametrize(("command", "shown"), examples(), ids=lambda value: value[:60])
def test_a_command_gives_the_answer_shown(service: TestClient, command: str, shown: str) -> None:
    answer = run(service, command)
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "image/png":
        assert answer.content.startswith(b"\x89PNG")
    else:
        assert matches(shown, answer.text), answer.text


def test_a_wrong_answer_would_not_pass() -> None:
    assert matches('{"a":1.500,"b":…}', '{"a":1.5004,"b":[1,2]}')
    assert not matches('{"a":1.500,"b":…}', '{"a":1.51,"b":[1,2]}')
    assert not matches('{"a":1.500}', '{"a":1.5,"b":1}')
    assert len(examples()) >= 13


@pytest.fixture
def at_the_service(service: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of httpx2's clients ask this service in process, whatever the address."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        target = request.url.raw_path.decode()
        found = service.request(request.method, target, headers=request.headers, content=request.content)
        return httpx2.Response(found.status_code, headers=found.headers, content=found.content)

    for client in (httpx2.Client, httpx2.AsyncClient):
        here = partial(client, transport=httpx2.MockTransport(answer))
        monkeypatch.setattr(f"logpx.client.httpx2.{client.__name__}", here)
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("at_the_service")
def test_the_client_s_examples_give_what_is_shown() -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    examples = doctest.DocTestParser().get_doctest(text, {}, "client.md", "docs/client.md", 0)
    told: list[str] = []
    with capture_logs():  # the service's log would stand among what the examples print
        results = doctest.DocTestRunner().run(examples, out=told.append)
    assert results.failed == 0, "".join(told)
    assert results.attempted > 20


@pytest.mark.usefixtures("at_the_service")
def test_the_notebook_s_cells_print_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter runs it, in the folder where it lies."""
    monkeypatch.chdir(ROOT / "docs")
    notebook = json.loads((ROOT / "docs" / "client.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    names: dict[str, Any] = {}
    for cell in cells:
        printed = io.StringIO()
        with capture_logs(), redirect_stdout(printed):
            exec("".join(cell["source"]), names)  # noqa: S102 (our own)
        shown = "".join(line for output in cell["outputs"] for line in output["text"])
        found = printed.getvalue()
        for want, have in zip(ESTIMATE.findall(shown), ESTIMATE.findall(found), strict=True):
            assert abs(float(want[0]) - float(have[0])) <= float(want[1])  # not to the digit on every processor
            assert abs(float(want[1]) - float(have[1])) < 0.15
        assert matches(ESTIMATE.sub("…", shown), ESTIMATE.sub("", found)), found
