"""Everybody can use every view: axe finds nothing, in light and dark, on a wide and on a narrow window."""

from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.page.conftest import Open, problem, settled

DOCS = Path(__file__).parents[2] / "docs"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OPTIONS = {"runOnly": TAGS, "resultTypes": ["violations"]}  # of what passes one element each, which is quicker


def check(page: Page, context: str | None = None, *, least: int) -> None:
    found = Axe().run(page, context=context, options=OPTIONS)
    violations = found.response["violations"]
    assert [(item["id"], [node["target"] for node in item["nodes"]]) for item in violations] == []
    assert len(found.response["passes"]) > least


def test_axe_finds_nothing_in_any_view(open_page: Open) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.set_input_files("#file", DOCS / "seven.png")
    settled(page)
    page.get_by_role("button", name="Estimate in every way").click()
    page.get_by_text("estimates are done").wait_for()
    page.set_input_files("#files", [DOCS / "boot.png", DOCS / "seven.png", DOCS / "latents.json"])
    page.get_by_text("2 of 3 scored, 1 failed, done").wait_for()
    for summary in page.locator("summary").all():
        summary.click()
    page.route("**/v1/samples?**", lambda route: route.fulfill(**problem("queue-full", 429, Retry_After="600")))
    page.get_by_role("button", name="Other samples").click()
    page.get_by_text("Trying again in").wait_for()
    schemes: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            check(page, least=20)
    page.get_by_label("Model", exact=True).select_option("photos")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("region", name="Metrics, your image, and what differs").wait_for()
    check(page, "#model-view", least=12)  # which has no heading, landmark or language of its own
