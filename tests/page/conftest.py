"""The page in a real Chromium, over a real process with the bundled model and one of large colour images."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from model_store import BUNDLED, ImageShape
from tests import reference
from tests.browser import ARGUMENTS, find_browser, is_left_out
from tests.features import feature_toy, ordinary
from tests.toys import bernoulli_toy
from tests.web.test_process import address, processes

collect_ignore_glob = ["test_*.py"] if is_left_out() else []

WIDE = {"width": 1280, "height": 900}
PATIENCE_MS = 120_000  # for machines that are busy with something else; a test that passes waits far less
Open = Callable[..., Page]


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with `mnist`, with `photos`: colour, and larger than 64 pixels, and with `maps`, of features."""
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(BUNDLED / "mnist", store / "mnist")
    for seed in (1, 2):
        bernoulli_toy(ImageShape(channels=3, height=72, width=66), name="photos", seed=seed).publish(store)
    reference.calibrated(feature_toy(), ordinary(60, seed=10)).publish(store)
    started = processes(store)
    yield address(next(started)(model="mnist", decoders=1, num_threads=1), tries=10_000)
    next(started, None)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests here, closed before others: while it is open, its thread has a running event loop."""
    path = find_browser()
    assert path is not None, "CI needs a Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(url: str, browser: Browser) -> Iterator[Open]:
    """Open the page. At the end it must have met no error, and asked no other origin for anything."""
    expected: list[str] = []
    seen: list[str] = []
    asked: list[str] = []

    with ExitStack() as opened:

        def start(*, path: str = "/", failing: tuple[str, ...] = (), prepare: Any = None, **context: Any) -> Page:
            """`failing` names parts of lines on the console that the test provokes."""
            expected.extend(failing)
            page = browser.new_page(**{"viewport": WIDE, "reduced_motion": "reduce", **context})
            opened.callback(page.close)
            page.set_default_timeout(PATIENCE_MS)
            page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: seen.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            if prepare:
                prepare(page)
            page.goto(url + path)
            return page

        yield start
    assert [line for line in seen if not any(part in line for part in expected)] == []
    assert [link for link in asked if not link.startswith((url, "blob:"))] == []


def draw(page: Page, *strokes: list[tuple[float, float]]) -> None:
    """Draw with the mouse; points are shares of the drawing's width and height."""
    area = page.locator("canvas.drawing")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    for stroke in strokes:
        (x, y), *others = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in others:
            page.mouse.move(x, y, steps=3)
        page.mouse.up()


SEVEN = [(0.2, 0.2), (0.7, 0.2), (0.6, 0.45), (0.5, 0.65), (0.42, 0.85)]


def settled(page: Page) -> None:
    """Wait for the last of the requests about an image."""
    page.locator(".cards[data-proposal=auto]").wait_for()


def problem(slug: str, status: int, *, index: int | None = None, **headers: str) -> dict[str, Any]:
    """What `route.fulfill` takes."""
    document = {"type": f"urn:logpx:problem:{slug}", "title": "A title", "status": status, "detail": "The detail."}
    document |= {"request_id": "abc"} | ({} if index is None else {"index": index})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named["Content-Type"] = "application/problem+json"
    return {"status": status, "headers": named, "body": json.dumps(document)}
