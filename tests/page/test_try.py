"""Draw, choose or drop an image, and read what the page says: the numbers are the routes' own."""

import base64
import io
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Request, Route

from tests.page.conftest import SEVEN, Open, draw, settled

SEVEN_PNG = Path(__file__).parents[2] / "docs" / "seven.png"
DROP = """([bytes, name]) => {
  const transfer = new DataTransfer();
  const decoded = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([decoded], name, {type: "image/png"}));
  document.getElementById("try").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
}"""
PASTE = DROP.replace('getElementById("try")', "body").replace(
    'DragEvent("drop", {dataTransfer: transfer,', 'ClipboardEvent("paste", {clipboardData: transfer,'
)


def values(page: Page) -> list[float]:
    return [float(text.replace("−", "-")) for text in page.locator(".result .value").all_inner_texts()]


def curl(page: Page) -> list[str]:
    page.get_by_text("This request as").click()
    command = page.get_by_role("region", name="curl", exact=True).inner_text()
    return shlex.split(command.replace("\\\n", " "))


def images_of(command: list[str]) -> list[NDArray[np.uint8]]:
    images = json.loads(command[command.index("--data") + 1])["images"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in images]


def centre(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    places = np.indices(image.shape) + 0.5
    return np.asarray((places * image).sum(axis=(1, 2)) / image.sum())


def test_a_drawing_gets_the_numbers_of_the_routes_and_those_of_mnist_too(open_page: Open) -> None:
    page = open_page()
    flying: set[Request] = set()
    most = 0
    asked: list[str] = []

    def begun(request: Request) -> None:
        nonlocal most
        if request.method == "POST" and "/v1/decode" not in request.url:  # the sliders' picture
            flying.add(request)
            asked.append(request.url)
            most = max(most, len(flying))

    page.on("request", begun)
    page.on("requestfinished", lambda request: flying.discard(request))
    page.on("requestfailed", lambda request: flying.discard(request))
    page.locator(".thumbnail").first.wait_for()
    draw(page, SEVEN)
    settled(page)
    assert most == 1  # one in flight, however fast the hand
    assert "proposal=laplace" in asked[0]
    assert "proposal" not in asked[-1]

    command = curl(page)
    fitted, drawn = images_of(command)
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)  # noqa: S603 (what the page shows)
    results = json.loads(done.stdout)["results"]
    assert values(page) == [round(result["log_likelihood"], 2) for result in results]
    assert values(page)[0] > values(page)[1]  # what the model has learnt is boxed and centred

    rows, columns = np.nonzero(fitted)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert np.abs(centre(fitted) - 14).max() <= 0.5
    width = drawn.sum(axis=0, dtype=float)[7:11].mean() / 255  # of the seven's horizontal stroke
    assert 2 <= width <= 2.6
    names = page.locator(".result h4").all_inner_texts()
    assert names == ["Fitted and centred as MNIST's digits were", "As drawn"]
    assert page.locator(".judgement .big").inner_text().startswith("p = ")
    page.locator(".result").first.get_by_text("Bits per dimension").wait_for()
    surprising = page.get_by_role("region", name="Most surprising pixels")
    page.get_by_text("The most surprising pixels").click()
    assert surprising.locator("tbody tr").count() == 5

    page.get_by_role("button", name="Undo").click()
    assert page.locator(".result").count() == 0
    assert page.get_by_role("button", name="Estimate in every way").is_disabled()


def test_a_file_is_sent_as_it_is_however_it_comes(open_page: Open) -> None:
    page = open_page()
    page.locator(".thumbnail").first.wait_for()
    answers = []
    file = base64.b64encode(SEVEN_PNG.read_bytes()).decode()

    def choose() -> None:
        page.set_input_files("#file", SEVEN_PNG)

    ways: list[Any] = [
        choose,
        lambda: page.evaluate(DROP, [file, "it's.png"]),
        lambda: page.evaluate(PASTE, [file, "p.png"]),
    ]
    for way in ways:
        with page.expect_request(lambda request: "log-likelihood" in request.url) as asked:
            way()
        assert asked.value.headers["content-type"] == "image/png"
        settled(page)
        answers.append((values(page), page.locator(".judgement .big").inner_text()))
        page.get_by_role("button", name="Clear").click()
    assert answers == [([-61.80], "p = 0.815")] * 3
    page.evaluate(DROP, [file, "it's.png"])
    settled(page)
    assert curl(page)[-1] == "@it's.png"


def test_python_and_fetch_send_what_the_page_sends(open_page: Open) -> None:
    page = open_page()
    page.locator(".thumbnail").first.click()
    settled(page)
    curl(page)  # opens the requests
    python = page.get_by_role("region", name="Python").inner_text()
    printed: list[Any] = []
    names: dict[str, Any] = {"print": printed.append}
    exec(python, names)  # noqa: S102 (what the page shows)
    names["client"].close()
    assert values(page) == printed[0].log_likelihood.round(2).tolist()
    fetched = page.get_by_role("region", name="JavaScript (fetch)").inner_text()
    answer: Any = page.evaluate(f"async () => {{ {fetched.replace('console.log(', 'return (')} }}")
    assert values(page) == [round(result["log_likelihood"], 2) for result in answer["results"]]
    page.get_by_label("Request for").select_option("p-value and map")
    assert "anomaly-scores?model=mnist&explain=true&as=array" in page.get_by_role("region", name="curl").inner_text()


def test_estimates_agree_and_the_gap_is_named(open_page: Open) -> None:
    page = open_page()
    page.set_input_files("#file", SEVEN_PNG)
    settled(page)
    page.get_by_role("button", name="Estimate in every way").click()
    page.get_by_text("estimates are done").wait_for()
    plot = page.locator("#why svg.plot")
    assert "KL[q(z|x) ‖ p(z|x)]" in (plot.text_content() or "")
    page.locator("#why summary").click()
    rows = page.locator("#why tbody tr")
    told = [[cell.strip() for cell in row.split("\t")] for row in rows.all_inner_texts()]
    assert len(told) == 15 == plot.locator("path.mark.full:has(title), path.mark.hollow").count()
    reliable = {(name, count) for name, count, _, _, verdict in told if verdict == "reliable"}
    assert {("laplace", "1000"), ("annealed", "1600")} <= reliable
    assert not [name for name, _ in reliable if name == "prior"]
    assert plot.locator("path.hollow").count() == len(told) - len(reliable)
    for name, _, value, _, _ in (row for row in told if tuple(row[:2]) in reliable):
        assert abs(float(value.replace("−", "-")) + 61.8) < 2, name


def test_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    page.locator(".thumbnail").first.wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className").endswith("drawing"):
            break
    page.keyboard.press("Space")
    for key in ("ArrowDown", "ArrowLeft"):
        for _ in range(6):
            page.keyboard.press(key)
    page.keyboard.press("Space")
    assert page.get_by_text("Pen up, row 21, column 9").count() == 1
    settled(page)
    _, drawn = images_of(curl(page))
    assert drawn[17, 14] > 200
    assert drawn[20, 11] > 200
    assert drawn[:10].max() == 0


def test_touch_draws_and_does_not_scroll(open_page: Open) -> None:
    page = open_page(viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True, device_scale_factor=3)
    page.locator(".thumbnail").first.wait_for()
    area = page.locator("canvas.drawing")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    before = page.evaluate("scrollY")
    session = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.3), ("touchMove", 0.5), ("touchMove", 0.7), ("touchEnd", 0)):
        places = [] if not share else [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * share}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    settled(page)
    _, drawn = images_of(curl(page))
    assert drawn[10:18, 13:15].min() > 100
    assert drawn[:, :11].max() == drawn[:, 17:].max() == 0
    assert page.evaluate("scrollY") >= before
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_last_drawing_is_always_asked_about(open_page: Open) -> None:
    page = open_page()
    page.locator(".thumbnail").first.wait_for()

    def slowly(route: Route) -> None:
        page.wait_for_timeout(30)
        route.continue_()

    page.route("**/v1/log-likelihood?**", slowly)
    draw(page, SEVEN, [(0.3, 0.5), (0.8, 0.5)], [(0.1, 0.9), (0.3, 0.9)])
    settled(page)
    command = curl(page)
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)  # noqa: S603 (what the page shows)
    expected = [round(result["log_likelihood"], 2) for result in json.loads(done.stdout)["results"]]
    assert values(page) == expected
    assert images_of(command)[1][25, 4] > 100
    assert re.search(r"Final estimate", page.locator("#numbers").inner_text())
