"""The model's versions side by side, and the images between two."""

import json
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, Response

from tests.page.conftest import Open, settled

ROOT = Path(__file__).parents[2]
SEVEN_PNG = ROOT / "docs" / "seven.png"


def cells(page: Page, row: str) -> list[str]:
    table = page.get_by_role("region", name="Metrics, your image, and what differs")
    return table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=row)).locator("td").all_inner_texts()


def test_two_versions_are_compared_and_an_older_one_is_asked(open_page: Open, url: str) -> None:
    page = open_page()
    page.locator(".thumbnail").first.wait_for()
    assert not page.get_by_role("button", name="Compare").is_visible()  # there is one version
    page.get_by_label("Model", exact=True).select_option("photos")
    page.get_by_text("72×66, colour, bernoulli").wait_for()
    version = page.locator("#version")
    assert version.locator("option").all_inner_texts() == ["2", "1"]
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("region", name="Metrics, your image, and what differs").wait_for()
    hashes = cells(page, "SHA-256 of decoder.onnx")
    assert len(set(hashes)) == 2
    assert cells(page, "Likelihood") == []  # the same
    told = []
    for number in (2, 1):
        asked = f"{url}/v1/log-likelihood?model=photos&version={number}&resize=true"
        headers = {"content-type": "image/png"}
        answer = httpx2.post(asked, content=SEVEN_PNG.read_bytes(), headers=headers, timeout=60)
        value = answer.raise_for_status().json()["results"][0]["log_likelihood"]
        told.append(f"{value:.2f}".replace("-", "−"))
    assert [cell.split(" ")[0] for cell in cells(page, "Your image: log P(x)")] == told

    with page.expect_request(lambda request: "samples" in request.url and "version=1" in request.url):
        version.select_option("1")
    page.get_by_text("Calibrated on").wait_for()
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    assert page.locator(".result .value").first.inner_text() == told[1]
    page.get_by_text("This request as").click()
    assert "version=1" in page.get_by_role("region", name="curl", exact=True).inner_text()


def _code(answer: Response) -> NDArray[np.float64]:
    """The code that was decoded."""
    return np.array(json.loads(answer.request.post_data or "")["latents"][0])


def _is_of_a_drawn_code(answer: Response) -> bool:
    """Not of the zeros that the page begins with, whose answer may come only now."""
    return "/v1/decode?" in answer.url and bool(_code(answer).any())


def test_from_one_code_to_another_in_a_straight_line(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Ordered by how much").wait_for()
    slider = page.get_by_label("From start to end")
    assert slider.is_disabled()
    codes = []
    for keep in ("Keep as start", "Keep as end"):
        with page.expect_response(_is_of_a_drawn_code) as answer:
            page.get_by_role("button", name="A random code").click()
        codes.append(_code(answer.value))
        page.wait_for_timeout(50)  # until the picture is there
        page.get_by_role("button", name=keep).click()
    pictures = page.locator("canvas.end").evaluate_all("ends => ends.map((end) => end.toDataURL())")
    assert pictures[0] != pictures[1] == page.locator(".decoder canvas").evaluate("canvas => canvas.toDataURL()")
    assert not slider.is_disabled()
    for share in (0.25, 0.0):
        with page.expect_response("**/v1/decode?**") as answer:
            slider.fill(str(share))
        np.testing.assert_allclose(_code(answer.value), (1 - share) * codes[0] + share * codes[1], atol=1e-12)
    page.wait_for_timeout(50)
    assert page.locator(".decoder canvas").evaluate("canvas => canvas.toDataURL()") == pictures[0]


def test_a_model_of_features_scores_images_and_says_that_it_makes_none(open_page: Open) -> None:
    """No sample, reconstruction or slider is asked for, so nothing is refused; the map is of the image's size."""
    page = open_page()
    page.locator(".thumbnail").first.wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Model", exact=True).select_option("maps")
    page.get_by_text("12×8, grey, gaussian").wait_for()
    page.get_by_text("it makes no images").wait_for()
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    page.get_by_text("Score by local:").wait_for()
    surprise = page.get_by_role("img", name="Map of surprising pixels")
    assert (surprise.get_attribute("width"), surprise.get_attribute("height")) == ("8", "12")
    assert page.get_by_text("Reconstruction", exact=True).count() == 0
    page.get_by_role("link", name="Model").click()
    page.get_by_role("heading", name="About the model").wait_for()
    assert page.get_by_text("What does it imagine?").count() == 0
    images = ("/v1/samples", "/v1/reconstruct", "/v1/decode")
    of_model = [url for url in asked if "model=maps" in url]
    assert of_model
    assert not [url for url in of_model if any(path in url for path in images)]
