"""Results of log-likelihood and anomaly-scores as lines of JSON, as they are done, as CSV and as records."""

import asyncio
import csv
import io
import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.engine.model import Model
from service.web.rate import Rate
from tests.web.conftest import Serve
from tests.web.forms import npy

LIKELIHOOD = "/v1/log-likelihood?num_samples=8&proposal=encoder&seed=5"
ROUTES = (
    LIKELIHOOD,
    "/v1/anomaly-scores",
    "/v1/anomaly-scores?method=posterior_gap,log_likelihood",
    "/v1/anomaly-scores?fdr=0.5",
)
NPY, CSV, NDJSON = "application/x-npy", "text/csv", "application/x-ndjson"


def ask(client: TestClient, route: str, images: Any, accept: str = "application/json") -> Any:
    headers = {"Content-Type": NPY, "Accept": accept}
    return client.post(route, content=npy(images), headers=headers)


@pytest.fixture(scope="module")
def grouped(serve: Serve) -> TestClient:
    """An app whose groups have two images."""
    return serve(chunk_rows=8)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A result with its methods' results beside the others, as columns have it."""
    scores = row.get("scores", {})
    rest = {name: value for name, value in row.items() if name != "scores"}
    return rest | {f"scores.{method}.{name}": value for method in scores for name, value in scores[method].items()}


@pytest.mark.parametrize("route", ROUTES)
def test_every_form_has_the_same_results(client: TestClient, digits: Any, route: str) -> None:
    images = np.concatenate([digits, 255 - digits[:3]])
    whole = ask(client, route, images)
    rows = whole.json()["results"]
    assert len(rows) == 13

    lines = ask(client, route, images, NDJSON)
    assert lines.headers["content-type"] == NDJSON
    assert [json.loads(line) for line in lines.text.splitlines()] == rows
    assert lines.text.endswith("}\n")

    table = ask(client, route, images, CSV)
    assert table.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    read = list(csv.DictReader(io.StringIO(table.text)))
    assert len(read) == 13
    for found, row in zip(read, map(flat, rows), strict=True):
        assert list(found) == list(row)
        for name, value in row.items():
            shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert found[name] == shown or float(found[name]) == value, name

    answer = ask(client, route, images, NPY)
    records = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert records.shape == (13,)
    for name in flat(rows[0]):
        wanted = [flat(row)[name] for row in rows]
        if records.dtype[name].kind == "f":
            np.testing.assert_array_equal(records[name], np.array(wanted, np.float64))
        else:
            assert records[name].tolist() == ["" if value is None else value for value in wanted]
    for reply in (lines, table, answer):
        assert (reply.headers["x-model"], reply.headers["x-model-version"]) == ("digits", "2")


def test_maps_are_lines_but_no_columns(client: TestClient, digits: Any) -> None:
    route = "/v1/anomaly-scores?explain=true&as=array"
    lines = ask(client, route, digits[:2], NDJSON).text.splitlines()
    assert [json.loads(line) for line in lines] == ask(client, route, digits[:2]).json()["results"]
    for form in (CSV, NPY):
        refused = ask(client, route, digits[:2], form)
        assert (refused.status_code, refused.json()["type"]) == (406, "urn:logpx:problem:not-acceptable")
        assert "application/x-ndjson" in refused.json()["detail"]


def test_nothing_is_finite_and_still_every_form_can_be_read(
    client: TestClient, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Model.infer

    def broken(self: Model, *arguments: Any) -> Any:
        for part in compute(self, *arguments):
            if part is not None:
                part.results.record.log_likelihood[:] = -np.inf
                part.results.record.std_error[:] = np.nan
            yield part

    monkeypatch.setattr(Model, "infer", broken)
    (line,) = ask(client, LIKELIHOOD, digits[:1], NDJSON).text.splitlines()
    assert (json.loads(line)["log_likelihood"], json.loads(line)["std_error"]) == (None, None)
    (row,) = csv.DictReader(io.StringIO(ask(client, LIKELIHOOD, digits[:1], CSV).text))
    assert (row["log_likelihood"], row["std_error"]) == ("", "")
    records = np.load(io.BytesIO(ask(client, LIKELIHOOD, digits[:1], NPY).content), allow_pickle=False)
    assert records["log_likelihood"][0] == -np.inf


def test_lines_in_groups_are_the_lines_of_the_groups(grouped: TestClient, digits: Any) -> None:
    """And a request may have more rows than are computed at once, for which other forms are refused."""
    for route in (LIKELIHOOD, "/v1/anomaly-scores?method=posterior_gap,log_likelihood"):
        lines = ask(grouped, route, digits, NDJSON).text.splitlines()
        groups = [ask(grouped, route, digits[start : start + 2]).json()["results"] for start in range(0, 10, 2)]
        assert [json.loads(line) for line in lines] == [row for rows in groups for row in rows]


@pytest.mark.parametrize("route", [LIKELIHOOD, "/v1/anomaly-scores?fdr=0.5"])
def test_lines_of_many_images_are_written_a_few_at_a_time_and_are_the_same(
    grouped: TestClient, digits: Any, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups, and all at once, as decisions over all images are."""
    whole = ask(grouped, route, digits, NDJSON)
    monkeypatch.setattr("service.web.tables._PIECE_ROWS", 1)
    pieces = ask(grouped, route, digits, NDJSON)
    assert pieces.content == whole.content
    assert len(whole.text.splitlines()) == 10
    assert whole.headers.get("content-length") == pieces.headers.get("content-length")


def test_more_rows_than_a_request_may_have_are_lines(serve: Serve, digits: Any) -> None:
    served = serve(chunk_rows=8, max_rows=2000, num_samples=400)
    refused = ask(served, "/v1/log-likelihood?proposal=encoder", digits)
    assert refused.status_code == 413
    lines = ask(served, "/v1/log-likelihood?proposal=encoder", digits, NDJSON)
    assert (lines.status_code, len(lines.text.splitlines())) == (200, 10)
    smaller = ask(served, "/v1/log-likelihood?proposal=encoder&num_samples=1500", digits[:3], NDJSON)
    assert (smaller.status_code, len(smaller.text.splitlines())) == (200, 3)  # groups of one image, not two
    assert ask(served, "/v1/log-likelihood?num_samples=2001", digits[:3], NDJSON).status_code == 413


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each group after the second takes a minute, a chunk at a time; the list has the sizes of those begun."""
    compute = Model.infer
    begun: list[int] = []

    def slowly(self: Model, images: Any, *others: Any) -> Any:
        begun.append(len(images))
        if len(begun) > 2:
            for _ in range(6000):
                time.sleep(0.01)
                yield
        yield from compute(self, images, *others)

    monkeypatch.setattr(Model, "infer", slowly)
    return begun


def test_a_deadline_loses_nothing_that_was_done(grouped: TestClient, digits: Any, slow: list[int]) -> None:
    headers = {"Content-Type": NPY, "Accept": NDJSON, "X-Request-Timeout-Ms": "700"}
    answer = grouped.post(LIKELIHOOD, content=npy(digits), headers=headers)
    assert answer.status_code == 200
    *rows, last = map(json.loads, answer.text.splitlines())
    assert len(rows) == 4
    assert all("log_likelihood" in row for row in rows)
    assert (last["status"], last["type"], last["index"]) == (504, "urn:logpx:problem:deadline-exceeded", 4)
    assert last["detail"] == "the deadline passed before all images were done: send the others again"
    assert slow == [2, 2, 2]
    assert grouped.get("/readyz").status_code == 200


def test_lines_are_sent_before_the_next_group_is_done_and_a_client_that_goes_away_ends_it(
    grouped: TestClient, digits: Any, slow: list[int]
) -> None:
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/log-likelihood",
        "raw_path": b"/v1/log-likelihood",
        "root_path": "",
        "query_string": LIKELIHOOD.partition("?")[2].encode(),
        "headers": [(b"content-type", NPY.encode()), (b"accept", NDJSON.encode())],
        "client": ("test", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
    }

    async def drive() -> None:
        body = [{"type": "http.request", "body": npy(digits), "more_body": False}]

        async def receive() -> Any:
            if body:
                return body.pop()
            while len(slow) < 3:  # until the third group is being computed
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await grouped.app(scope, receive, send)

    started = time.monotonic()
    assert grouped.portal is not None
    grouped.portal.call(drive)
    assert time.monotonic() - started < 30
    assert [message["body"].count(b"\n") for message in sent[1:]] == [2, 2]
    assert slow == [2, 2, 2]
    assert ask(grouped, "/v1/anomaly-scores", digits[:1]).status_code == 200


def test_a_refusal_before_the_first_line_has_its_own_status(grouped: TestClient, digits: Any) -> None:
    assert ask(grouped, "/v1/log-likelihood?proposal=guess", digits, NDJSON).status_code == 422
    pixels = digits / np.float32(255)
    pixels[7, 0, 0] = np.nan
    refused = ask(grouped, LIKELIHOOD, pixels.astype(np.float32), NDJSON)
    assert (refused.status_code, refused.json()["index"]) == (422, 7)


def test_refusals_say_which_size_would_have_worked(serve: Serve, digits: Any) -> None:
    served = serve(max_rows=2000, max_pixels=6 * 784, num_samples=400)
    told = {}
    for count, route in ((7, "encode"), (6, "log-likelihood"), (1, "log-likelihood?num_samples=2001")):
        refused = ask(served, f"/v1/{route}", digits[:count])
        assert refused.status_code == 413
        told[route] = refused.json()["detail"]
    assert told["encode"].endswith("at most 4704 are accepted: 6 images of this size")
    assert ask(served, "/v1/encode", digits[:6]).status_code == 200
    assert told["log-likelihood"].endswith("at most 2000 are accepted in a request: send at most 5 images at once")
    assert ask(served, "/v1/log-likelihood?proposal=encoder", digits[:5]).status_code == 200
    assert told["log-likelihood?num_samples=2001"].endswith("ask for fewer samples")
    assert served.get("/v1/samples?n=7").json()["detail"].endswith("ask for at most 6 images at once")
    assert served.get("/v1/samples?n=6").status_code == 200


def test_a_deadline_says_how_many_images_it_was_enough_for(serve: Serve, digits: Any, slow: list[int]) -> None:
    served = serve()
    slow += [0, 0]
    scheduler = served.app.state.backend._scheduler  # type: ignore[attr-defined]
    scheduler.rate = Rate(first_guess=500.0)  # rows a second: 25 images of 8 samples in 0.4 s
    headers = {"Content-Type": NPY, "X-Request-Timeout-Ms": "400"}
    refused = served.post(LIKELIHOOD, content=npy(np.repeat(digits, 5, axis=0)), headers=headers)
    assert refused.status_code == 504
    told = re.fullmatch(
        r"not computed within 0\.4 s; of its 50 images about (\d+) would have been, with no other request: "
        r"send fewer at once",
        refused.json()["detail"],
    )
    assert told is not None, refused.json()["detail"]
    assert 1 <= int(told[1]) <= 25  # fewer where the seconds without a row have been measured too


def test_a_full_queue_says_what_there_is_room_for(serve: Serve, digits: Any, slow: list[int]) -> None:
    """Forty rows of a hundred are taken by a request that takes a minute."""
    served = serve(max_queued_rows=100, max_rows=100, num_samples=8, max_num_samples=100)
    slow += [0, 0]
    first = threading.Thread(target=ask, args=(served, LIKELIHOOD, digits[:5], NDJSON), daemon=True)
    first.start()
    while len(slow) < 3:
        time.sleep(0.01)
    refused = ask(served, LIKELIHOOD, digits)
    assert refused.status_code == 429
    assert re.search(r"try again in \d+ s, or now with at most 7 images$", refused.json()["detail"])
    served.app.state.backend._scheduler.stop()  # type: ignore[attr-defined]
    first.join()
