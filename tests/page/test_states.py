"""What the page says when something is wrong or unusual, and that everybody can use it."""

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, Route

from tests.page.conftest import SEVEN, Open, draw, problem, settled

SEVEN_PNG = Path(__file__).parents[2] / "docs" / "seven.png"
KEY = "a-key-for-the-page"


def once(answer: Callable[[Route], None]) -> Callable[[Route], None]:
    """Answer the first request so, and let the others pass."""
    left = [answer]

    def handle(route: Route) -> None:
        left.pop()(route) if left else route.continue_()

    return handle


REFUSALS = [
    (problem("limit-exceeded", 413), "A title (413 limit-exceeded) The detail. Choose a smaller image"),
    (problem("unsupported-media-type", 415), "A title (415 unsupported-media-type) The detail. Choose a PNG"),
    (problem("invalid-image", 422, index=0), "A title (422 invalid-image) Image 1 of the request (index 0): The"),
    (problem("broken-model", 503), "A title (503 broken-model) The detail. The model's files do not pass"),
    ({"status": 502, "body": "<h1>bad</h1>"}, "Bad Gateway (502 foreign) The answer is not the service's own"),
]


def test_refusals_are_told_and_can_be_tried_again(open_page: Open) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.locator(".thumbnail").first.wait_for()
    left = [answer for answer, _ in REFUSALS]
    page.route("**/v1/log-likelihood?**", lambda route: route.fulfill(**left.pop(0)) if left else route.continue_())
    page.set_input_files("#file", SEVEN_PNG)
    notice = page.locator("#try [role=alert]")
    for _, told in REFUSALS:
        notice.get_by_text(told.split(" The")[0].split(" Image")[0]).wait_for()
        assert re.sub(r"\s+", " ", notice.inner_text()).startswith(told)
        notice.get_by_role("button", name="Try again now").click()
    settled(page)
    assert not notice.is_visible()


def test_a_full_queue_is_counted_down_and_then_tried_again(open_page: Open) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.locator(".thumbnail").first.wait_for()
    full = problem("queue-full", 429, Retry_After="2")
    page.route("**/v1/log-likelihood?**", once(lambda route: route.fulfill(**full)))
    page.set_input_files("#file", SEVEN_PNG)
    page.get_by_text("Trying again in 2 s.").wait_for()
    settled(page)
    assert not page.locator("#try [role=alert]").is_visible()


def test_a_broken_connection_and_a_service_that_is_not_ready(open_page: Open) -> None:
    def prepare(page: Page) -> None:
        answers: list[Callable[[Route], None]] = [
            lambda route: route.fulfill(**problem("not-ready", 503)),
            lambda route: route.abort("connectionreset"),
        ]
        page.route("**/v1/models", lambda route: answers.pop(0)(route) if answers else route.continue_())

    page = open_page(failing=("Failed to load resource",), prepare=prepare)
    page.get_by_text("The service is loading its models").wait_for()
    page.get_by_text("The connection failed before an answer came.").wait_for()  # by itself, after the countdown
    page.get_by_role("button", name="Try again now").click()
    page.locator(".thumbnail").first.wait_for()


def test_a_key_is_asked_for_sent_and_kept_nowhere(open_page: Open) -> None:
    sent: list[str | None] = []
    valid = {KEY}

    def guard(route: Route) -> None:
        sent.append(route.request.headers.get("x-api-key"))
        if sent[-1] in valid:
            route.continue_()
        else:
            route.fulfill(**problem("unauthorized", 401))

    page = open_page(failing=("Failed to load resource",), prepare=lambda page: page.route("**/v1/**", guard))
    field = page.get_by_label("This service needs a key")
    field.fill("wrong-wrong-wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The service does not accept this key.").wait_for()
    field.fill(KEY)
    page.keyboard.press("Enter")
    page.locator(".thumbnail").first.wait_for()
    assert sent[-1] == KEY
    assert not field.is_visible()
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.search]") == [
        "",
        0,
        0,
        "",
    ]
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    page.get_by_text("This request as").click()
    page.locator(".snippets pre").first.wait_for()
    text = page.locator(".snippets").inner_text()
    assert "$LOGPX_KEY" in text
    assert KEY not in page.content() + text

    valid = {"another-key-for-the-page"}  # while files are scored: they stay
    page.set_input_files("#files", SEVEN_PNG)
    page.get_by_text("The service does not accept this key.").wait_for()
    field.fill(*valid)
    page.keyboard.press("Enter")
    assert not field.is_visible()
    page.locator("#inspect").get_by_role("button", name="Try again now").click()
    page.get_by_text("1 of 1 scored, done").wait_for()
    page.reload()
    field.wait_for()


def test_a_file_over_the_limit_is_not_sent(open_page: Open) -> None:
    def prepare(page: Page) -> None:
        def shrink(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, json={**answer.json(), "max_body_bytes": 10})

        page.route("**/v1/limits", shrink)

    page = open_page(prepare=prepare)
    page.locator(".thumbnail").first.wait_for()
    page.set_input_files("#file", SEVEN_PNG)
    page.get_by_text("at most 10 are accepted").wait_for()
    assert page.locator(".result").count() == 0


def test_large_colour_images_and_a_model_without_a_calibration(open_page: Open) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.locator(".thumbnail").first.wait_for()
    page.route("**/v1/models/photos/calibration?**", lambda route: route.fulfill(**problem("uncalibrated-model", 422)))
    page.route("**/v1/anomaly-scores?**", lambda route: route.fulfill(**problem("uncalibrated-model", 422)))
    page.get_by_label("Model", exact=True).select_option("photos")
    page.get_by_text("72×66, colour, bernoulli").wait_for()
    page.get_by_text("This model has no calibration.").wait_for()
    draw(page, SEVEN)
    settled(page)
    page.get_by_text("There is no p-value for this model.").wait_for()
    page.set_input_files("#files", SEVEN_PNG)
    page.locator("#inspect [role=alert]").get_by_text("run python -m service calibrate").wait_for()
    assert page.locator(".result h4").all_inner_texts() == ["As drawn"]
    page.locator(".thumbnail").first.click()
    page.get_by_role("heading", name="The sample").wait_for()
    settled(page)
    sizes = "[...document.querySelectorAll('.pictures canvas')].map((canvas) => [canvas.width, canvas.height])"
    assert page.evaluate(sizes)[:2] == [[66, 72]] * 2


def test_the_sliders_decode_and_the_histogram_shows_the_place(open_page: Open) -> None:
    page = open_page()
    picture = "document.querySelector('.decoder canvas').toDataURL()"
    page.get_by_text("Ordered by how much").wait_for()
    labels = page.locator(".slider label").all_inner_texts()
    assert len(labels) == 8
    assert labels != sorted(labels)
    before = page.evaluate(picture)
    with page.expect_response("**/v1/decode?**"):
        page.locator(".slider input").first.press("ArrowRight")
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    page.get_by_text("Your image's score is 2.47.").wait_for()
    assert page.locator("#model-view svg .here").count() == 1
    with page.expect_response("**/v1/decode?**"):
        page.get_by_role("button", name="Your image's code").click()
    page.wait_for_timeout(50)
    assert page.evaluate(picture) != before
    page.get_by_role("button", name="All 50 dimensions").click()
    assert page.locator(".slider").count() == 50
    assert "binarised once" in page.locator("#model-view ol").inner_text()
    assert "SHA-256 of decoder.onnx" in page.get_by_role("region", name="Provenance and versions").inner_text()


def test_behind_a_prefix_that_a_proxy_strips(open_page: Open, url: str) -> None:
    def prepare(page: Page) -> None:
        def strip(route: Route) -> None:
            route.fulfill(response=route.fetch(url=route.request.url.replace("/lab/logpx/", "/")))

        page.route("**/lab/logpx/**", strip)
        page.on("request", lambda request: asked.append(request.url))

    asked: list[str] = []
    page = open_page(path="/lab/logpx/", prepare=prepare)
    page.locator(".thumbnail").first.wait_for()
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    assert [link for link in asked if not link.startswith(f"{url}/lab/logpx/")] == []
