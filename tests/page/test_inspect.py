"""Inspect: many images in a table. Its numbers and decisions are those of one request about all of them."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route

from tests.page.conftest import Open, problem, settled

DIGITS = Path(__file__).parents[1] / "data" / "digits.npz"
NUMBERS = ("score", "p_value", "log_likelihood", "std_error", "posterior_gap")
PLOT = "#inspect svg.plot"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 digits, a third of them upside down, half of them in a folder within; a file that is no image, one hidden."""
    folder = tmp_path_factory.mktemp("parts") / "shift"
    (folder / "late").mkdir(parents=True)
    with np.load(DIGITS, allow_pickle=False) as archive:
        digits = archive["test"][:24]
    for index, digit in enumerate(digits):
        place = folder / "late" if index % 2 else folder
        Image.fromarray(digit[::-1] if index % 3 == 0 else digit).save(place / f"{index}, seen.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".DS_Store").write_text("hidden")
    return folder


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    """1000 files, which no service sees: their scores are made up by `made_up`."""
    folder = tmp_path / "thousand"
    folder.mkdir()
    for index in range(1000):
        (folder / f"{index:04}.png").write_bytes(b"file %d." % index)
    return folder


def made_up(route: Route) -> None:
    """Answer with one result for each file; the number in the file is the score."""
    scores = [int(found) for found in re.findall(rb"file (\d+)\.", route.request.post_data_buffer or b"")]
    results = [
        {"score": score, "p_value": (1000 - score) / 1000, "is_anomaly": False, "log_likelihood": -score}
        | {"std_error": None, "posterior_gap": None, "num_samples": 1, "reliable": score % 2 == 0, "explanation": None}
        for score in scores
    ]
    route.fulfill(json={"method": "combined", "alpha": 0.05, "fdr": None, "calibration_size": 999, "results": results})


def told(page: Page) -> str:
    return page.locator("#inspect > .card > [role=status]").inner_text()


def wait_for(page: Page, text: str) -> None:
    page.locator("#inspect > .card > [role=status]").filter(has_text=text).wait_for()


def lines(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    return list(csv.DictReader(io.StringIO(download.value.path().read_text())))


def names(page: Page) -> list[str]:
    page.wait_for_timeout(50)  # two frames
    return page.locator(".rows .name").all_inner_texts()


def test_the_table_is_the_answer_of_one_request(open_page: Open, url: str, folder: Path) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.set_input_files("#folder", folder)
    wait_for(page, "24 of 25 scored, 1 failed, done")
    rows = {row["path"]: row for row in lines(page)}
    bad = rows.pop("shift/notes.txt")
    assert "not" in bad["error"]
    assert bad["score"] == bad["is_anomaly"] == ""
    assert len(rows) == 24  # no hidden file
    paths = list(rows)
    files = [("images", ("image", (folder.parent / path).read_bytes())) for path in paths]
    decisions: list[tuple[str, Callable[[], None]]] = [
        ("alpha=0.05", lambda: page.get_by_label("p-value at most").check()),
        ("alpha=0.2", lambda: page.get_by_label("Alpha", exact=True).fill("0.2")),
        ("fdr=0.1", lambda: page.get_by_label("false discovery rate at most").check()),
        ("fdr=0.5", lambda: page.get_by_label("False discovery rate", exact=True).fill("0.5")),
        ("fdr=0.001", lambda: page.get_by_label("False discovery rate", exact=True).fill("0.001")),
    ]
    for query, choose in decisions:
        answer = httpx2.post(f"{url}/v1/anomaly-scores?resize=true&{query}", files=files, timeout=60)
        expected = answer.raise_for_status().json()["results"]
        choose()
        rows = {row["path"]: row for row in lines(page) if not row["error"]}
        decided = 0
        for path, result in zip(paths, expected, strict=True):
            row = rows[path]
            assert [float(row[name]) for name in NUMBERS] == [result[name] for name in NUMBERS]
            assert row["reliable"] == str(result["reliable"]).lower()
            assert row["is_anomaly"] == str(result["is_anomaly"]).lower(), (query, row)
            decided += result["is_anomaly"]
        page.get_by_text(f"{decided} of 24 images are anomalies.").wait_for()
    strangest = max(expected, key=lambda result: float(result["score"]))
    first = page.locator(".rows tbody tr").first.locator("td").all_inner_texts()
    error = f"{strangest['log_likelihood']:.2f} ± {strangest['std_error']:.2f}".replace("-", "−")
    assert first[2:4] == [f"{strangest['score']:.2f}", error]
    assert page.locator(".rows tbody tr").first.locator("canvas.pixels").evaluate("canvas => canvas.width") == 28
    page.locator(".rows .name").first.click()
    settled(page)
    assert page.evaluate("document.activeElement.id") == "try-heading"
    assert page.locator(".result h4").inner_text() in page.locator(".rows .name").first.inner_text()


def drop(page: Page, selector: str, *paths: Path) -> None:
    """As from the desktop: the browser reads folders itself."""
    area = page.locator(selector)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 60, "y": box["y"] + 30, "data": data})


def test_a_thousand_dropped_images_are_few_rows_of_the_page(open_page: Open, thousand: Path) -> None:
    page = open_page()
    page.locator(".thumbnail").first.wait_for()
    flying, most, sizes = 0, 0, list[int]()

    def answer(route: Route) -> None:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        sizes.append((route.request.post_data_buffer or b"").count(b"filename="))
        page.wait_for_timeout(1)
        made_up(route)
        flying -= 1

    page.route("**/v1/anomaly-scores?**", answer)
    drop(page, "#try", thousand)  # more than one image goes to Inspect
    wait_for(page, "1000 of 1000 scored, done")
    assert most <= 2
    assert max(sizes) <= 64
    assert sum(sizes) == 1000
    assert page.locator(".rows tr").count() < 40
    assert names(page)[:2] == ["thousand/0999.png", "thousand/0998.png"]  # the strangest
    assert page.locator(".rows").get_attribute("aria-rowcount") == "1001"
    page.locator(".rows-box").focus()
    page.keyboard.press("End")
    page.locator(".rows .name", has_text="0000.png").wait_for()
    assert page.locator(".rows tr").last.get_attribute("aria-rowindex") == "1001"
    assert page.locator(".rows tr").count() < 40

    page.get_by_label("Name has").fill("99")
    page.get_by_label("Show").select_option("Not reliable")
    page.get_by_role("button", name="Name", exact=True).press("Enter")
    odd = [f"thousand/{index:04}.png" for index in range(1000) if "99" in f"{index:04}" and index % 2]
    assert names(page) == odd
    page.get_by_role("button", name="Name", exact=True).press("Enter")
    assert names(page) == odd[::-1]
    assert page.locator(".rows [aria-sort]").get_attribute("aria-sort") == "descending"

    page.get_by_label("Name has").fill("")
    page.get_by_label("Show").select_option("Anomalies")
    page.get_by_text("50 of 1000 rows").wait_for()
    slider = page.get_by_label("Threshold: drag")
    slider.focus()
    before = slider.input_value()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert float(slider.input_value()) < float(before)
    alpha = float(page.get_by_label("Alpha", exact=True).input_value())
    assert alpha == pytest.approx(0.05 * 10**-0.1, rel=0.02)
    page.get_by_text(f"{int(1000 * alpha)} of 1000 rows").wait_for()
    box = page.locator(PLOT).bounding_box()
    assert box is not None
    left, right = 52 / 560, 540 / 560  # the plot's frame: from 0.001 to 1
    page.mouse.move(box["x"] + box["width"] * (left + right) / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (left + (right - left) / 3), box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * right, box["y"])
    assert float(page.get_by_label("Alpha", exact=True).input_value()) == pytest.approx(0.01, rel=0.03)


def test_pause_resume_faults_and_retry(open_page: Open, thousand: Path) -> None:
    page = open_page(failing=("Failed to load resource",))
    page.locator(".thumbnail").first.wait_for()
    steps: list[Callable[[Route], None]] = [
        lambda route: route.fulfill(**problem("queue-full", 429, Retry_After="1")),
        lambda route: route.abort("connectionreset"),
        lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, body="a proxy is busy"),
    ]
    held: list[Route] = []
    faulty = True

    def answer(route: Route) -> None:
        body = route.request.post_data_buffer or b""
        if steps and b"file 0." in body:
            steps.pop(0)(route)
        elif faulty and b"file 7." in body and body.count(b"filename=") == 1:
            route.fulfill(**problem("internal-error", 500))
        elif faulty and b"file 7." in body:
            route.fulfill(**problem("limit-exceeded", 413))
        elif faulty and b"file 9." in body:
            order = [int(found) for found in re.findall(rb"file (\d+)\.", body)]
            route.fulfill(**problem("invalid-image", 422, index=order.index(9)))
        elif b"file 600." in body and not held:
            held.append(route)
        else:
            made_up(route)

    page.route("**/v1/anomaly-scores?**", answer)
    page.set_input_files("#folder", thousand)
    notice = page.locator("#inspect [role=alert]")
    notice.get_by_text("Trying again in 1 s.").wait_for()  # 429, and then by itself
    notice.get_by_text("The connection failed before an answer came.").wait_for()
    assert "paused" in told(page)
    page.get_by_role("button", name="Resume").click()
    notice.get_by_text("(503 foreign)").wait_for()
    while not held:
        page.wait_for_timeout(10)
    page.get_by_role("button", name="Pause").click()
    wait_for(page, "paused")
    made_up(held[0])
    page.wait_for_timeout(100)  # both requests in flight are answered, and no other is sent
    paused = told(page)
    page.wait_for_timeout(100)
    assert told(page) == paused
    assert int(paused.split(" ")[0]) < 998
    page.get_by_role("button", name="Resume").click()
    wait_for(page, "998 of 1000 scored, 2 failed, done")
    page.get_by_label("Show").select_option("Failed")
    assert names(page) == ["thousand/0007.png", "thousand/0009.png"]
    assert page.locator(".rows .failed").all_inner_texts() == ["The detail."] * 2
    assert not notice.is_visible()
    faulty = False
    page.get_by_role("button", name="Retry failed").click()
    wait_for(page, "1000 of 1000 scored, done")
    page.get_by_text("0 of 1000 rows").wait_for()
    assert not page.get_by_role("button", name="Retry failed").is_visible()
    page.get_by_role("button", name="Remove all").click()
    page.locator(".rows").wait_for(state="hidden")


def test_a_fault_of_no_file_ends_the_requests(open_page: Open, thousand: Path) -> None:
    asked = 0

    def answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        route.fulfill(**problem("internal-error", 500))

    page = open_page(failing=("Failed to load resource",))
    page.locator(".thumbnail").first.wait_for()
    page.route("**/v1/anomaly-scores?**", answer)
    page.set_input_files("#folder", thousand)
    page.locator("#inspect [role=alert]").get_by_text("(500 internal-error)").wait_for()
    assert "paused" in told(page)
    assert asked <= 12
    (thousand / "0500.png").unlink()
    page.unroute("**/v1/anomaly-scores?**")
    page.route("**/v1/anomaly-scores?**", made_up)
    page.get_by_role("button", name="Retry failed").click()  # of the files at fault, as it seemed
    wait_for(page, "999 of 1000 scored, 1 failed, done")
    row = next(line for line in lines(page) if line["error"])
    assert (row["path"], row["error"]) == ("thousand/0500.png", "The file cannot be read any more.")


def test_a_folder_that_cannot_be_read_is_named(open_page: Open, thousand: Path) -> None:
    page = open_page()
    page.evaluate("""() => {
      const readEntries = (_, failed) => failed(new DOMException("denied", "NotReadableError"));
      DataTransferItem.prototype.webkitGetAsEntry = () => ({isDirectory: true, createReader: () => ({readEntries})});
    }""")
    page.locator(".thumbnail").first.wait_for()
    drop(page, "#inspect", thousand)
    wait_for(page, "The folder cannot be read: denied")


def test_benjamini_and_hochberg_as_the_service_has_it(open_page: Open) -> None:
    from service.engine.anomaly.conformal import benjamini_hochberg

    generator = np.random.default_rng(5)
    sets = [np.ceil(generator.random(size) ** power * 200) / 201 for size in (1, 7, 300) for power in (1, 3, 8)]
    cases = [(p.tolist(), fdr) for p in sets for fdr in (0.01, 0.1, 0.35)]
    page = open_page()
    cutoffs: list[float] = page.evaluate(
        """async (cases) => {
          const { cutoffOfFdr } = await import(new URL("page/decisions.js", document.baseURI).href);
          return cases.map(([values, fdr]) => cutoffOfFdr(values, fdr));
        }""",
        json.loads(json.dumps(cases)),
    )
    found = [(np.asarray(values) <= cutoff).tolist() for (values, _), cutoff in zip(cases, cutoffs, strict=True)]
    expected: list[Any] = [benjamini_hochberg(np.asarray(values), fdr).tolist() for values, fdr in cases]
    assert found == expected
    assert len({sum(line) for line in expected}) > 4
