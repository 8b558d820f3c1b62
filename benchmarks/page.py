"""The page in a Chromium: stroke to number, 1000 images in Inspect, bytes, first paint.

python benchmarks/page.py [--strokes 40] [--images 1000] [--out FIGURES.json]

The service runs in a process of its own with default settings, and the browser without a window or a GPU, on the same
machine. Times are the browser's own. Needs `pip install playwright` and Debian's `chromium`.

- *Stroke to number*: a hand draws digits at 60 points a second. From the `pointerup` of a stroke until the page shows
  log P(x) of the whole drawing; 0 if it was there before the pen was lifted.
- *Inspect*: a folder of images is dropped and the table scrolled while they are scored. The longest task of the page's
  thread, by the clock and in processor time; the heap of its scripts and the private memory of the renderer process;
  and whether every number and decision is that of one request about all images.
- *Bytes*: of all files of the page, as they are sent (the service does not compress).
- *First paint*: of the first visit of a new profile, from navigation start.
"""

import argparse
import csv
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from running_service import ROOT, start

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-precise-memory-info")
FRAME_MS = 1000 / 60
VISITS = 10
FDR = 0.1
# Digits as points (x, y) in shares of the drawing, each one stroke.
DIGITS = (
    ((0.2, 0.2), (0.7, 0.2), (0.6, 0.45), (0.5, 0.65), (0.42, 0.85)),  # 7
    ((0.4, 0.25), (0.52, 0.15), (0.52, 0.85)),  # 1
    ((0.5, 0.15), (0.3, 0.3), (0.28, 0.65), (0.5, 0.85), (0.7, 0.65), (0.68, 0.3), (0.5, 0.15)),  # 0
    ((0.3, 0.25), (0.5, 0.15), (0.68, 0.3), (0.5, 0.55), (0.28, 0.82), (0.72, 0.82)),  # 2
    ((0.3, 0.2), (0.6, 0.18), (0.65, 0.35), (0.45, 0.48), (0.68, 0.62), (0.6, 0.82), (0.3, 0.8)),  # 3
)
WATCH = """() => {
  window.seen = {lifted: 0, numbers: [], tasks: []};
  addEventListener("pointerup", () => { seen.lifted = performance.now(); }, true);
  new PerformanceObserver((list) => { for (const entry of list.getEntries()) seen.tasks.push(entry.duration); })
    .observe({type: "longtask"});
  const cards = document.querySelector(".cards");
  new MutationObserver(() => {
    if (cards.dataset.proposal) seen.numbers.push([cards.dataset.proposal, performance.now()]);
  }).observe(cards, {attributes: true, attributeFilter: ["data-proposal"]});
}"""


def draw(page: Page, digit: Sequence[tuple[float, float]]) -> float:
    """Draw as a hand does; milliseconds from the end of the stroke to the number of the whole drawing."""
    page.get_by_role("button", name="Clear").click()
    page.evaluate("seen.numbers.length = 0")
    box = page.locator("canvas.drawing").bounding_box()
    assert box is not None
    points = np.array(digit) * (box["width"], box["height"]) + (box["x"], box["y"])
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    path = [
        [float(np.interp(at, lengths, points[:, axis])) for axis in (0, 1)] for at in np.linspace(0, lengths[-1], 30)
    ]
    page.mouse.move(*path[0])
    page.mouse.down()
    due = time.perf_counter()
    for x, y in path[1:]:
        due += FRAME_MS / 1000
        time.sleep(max(0, due - time.perf_counter()))
        page.mouse.move(x, y)
    page.mouse.up()
    page.locator(".cards[data-proposal=auto]").wait_for()
    seen: dict[str, Any] = page.evaluate("seen")
    first = [float(at) for proposal, at in seen["numbers"] if proposal != "auto"][-1]
    return max(0.0, first - float(seen["lifted"]))


def strokes(page: Page, count: int) -> dict[str, Any]:
    """Stroke to number, after one digit for warming up."""
    draw(page, DIGITS[0])
    taken = sorted(draw(page, DIGITS[index % len(DIGITS)]) for index in range(count))
    return {"strokes": count, "median_ms": statistics.median(taken), "p90_ms": taken[int(0.9 * count)], "all_ms": taken}


def write_images(folder: Path, url: str, count: int) -> None:
    """The 300 digits of the tests, every third upside down, and samples of the model."""
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = np.concatenate([archive["test"], archive["train"]])[:count]
    digits[::3] = digits[::3, ::-1]
    drawn = [digits]
    if count > len(digits):
        answer = httpx2.get(f"{url}/v1/samples?n={count - len(digits)}&seed=1", headers={"accept": "application/x-npy"})
        samples = np.load(io.BytesIO(answer.raise_for_status().content))
        drawn.append(np.round(255 * samples[:, 0]).astype(np.uint8))
    for index, image in enumerate(np.concatenate(drawn)):
        Image.fromarray(image).save(folder / f"{index:05}.png")


def drop(page: Page, folder: Path) -> None:
    """As from the desktop."""
    area = page.locator("#inspect")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    place = {"x": box["x"] + 60, "y": box["y"] + 30}
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})


def renderer_mebibytes(browser: Browser) -> float:
    """Private memory of the largest renderer process."""
    session = browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = []
    for process in (process for process in found if process["type"] == "renderer"):
        lines = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
        sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return max(sizes)


def longest_processor_ms(trace: bytes) -> float:
    """Processor time of the longest task of any page's thread: other processes do not make it longer."""
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = (event for event in events if event["name"].endswith("RunTask"))
    return max(
        float(event["tdur"]) / 1000 for event in tasks if (event["pid"], event["tid"]) in threads and "tdur" in event
    )


def decisions(page: Page) -> list[dict[str, str]]:
    """The table as its CSV."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    return sorted(rows, key=lambda row: row["path"])


def differences(url: str, folder: Path, by_alpha: list[dict[str, str]], by_fdr: list[dict[str, str]]) -> int:
    """How many numbers and decisions of the table are not those of one request about all images."""
    paths = sorted(folder.iterdir())
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    wrong = abs(len(paths) - len(by_alpha))
    for query, rows in (("alpha=0.05", by_alpha), (f"fdr={FDR}", by_fdr)):
        answer = httpx2.post(f"{url}/v1/anomaly-scores?resize=true&{query}", files=files, timeout=600)
        for row, result in zip(rows, answer.raise_for_status().json()["results"], strict=False):
            named = ("score", "p_value", "log_likelihood", "std_error", "posterior_gap")
            wrong += sum((float(row[name]) if row[name] else None) != result[name] for name in named)
            wrong += sum(row[name] != str(result[name]).lower() for name in ("reliable", "is_anomaly"))
    return wrong


def inspect(browser: Browser, page: Page, url: str, count: int) -> dict[str, Any]:
    """Many images, scored while the table is scrolled; then sorted, filtered and decided by keyboard."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "images"
        folder.mkdir()
        write_images(folder, url, count)
        page.wait_for_timeout(500)
        page.evaluate("seen.tasks.length = 0")
        before = renderer_mebibytes(browser)
        browser.start_tracing(page=page, categories=["toplevel", "__metadata"])
        started = time.perf_counter()
        drop(page, folder)
        done = page.locator("#inspect > .card > [role=status]", has_text=", done")
        scrolled = 0
        while not done.is_visible():
            scrolled = (scrolled + 700) % (50 * count)
            page.evaluate(f"document.querySelector('.rows-box').scrollTop = {scrolled}")
            page.wait_for_timeout(100)
        seconds = time.perf_counter() - started
        page.get_by_role("button", name="Name", exact=True).click()
        page.get_by_label("Threshold: drag").focus()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        page.get_by_label("Alpha", exact=True).fill("0.05")
        by_alpha = decisions(page)
        page.get_by_label("false discovery rate at most").check()
        by_fdr = decisions(page)
        processor_ms = longest_processor_ms(browser.stop_tracing())
        tasks: list[float] = page.evaluate("seen.tasks")
        return {
            "images": count,
            "seconds": seconds,
            "rows_in_document": page.locator(".rows tr").count(),
            "tasks_over_50_ms": len(tasks),
            "longest_task_ms": max(tasks, default=0),
            "longest_task_processor_ms": processor_ms,
            "script_heap_mb": page.evaluate("performance.memory.usedJSHeapSize") / 1e6,
            "renderer_private_mib_before": before,
            "renderer_private_mib_after": renderer_mebibytes(browser),
            "anomalies_by_alpha": sum(row["is_anomaly"] == "true" for row in by_alpha),
            "anomalies_by_fdr": sum(row["is_anomaly"] == "true" for row in by_fdr),
            "differences_from_one_request": differences(url, folder, by_alpha, by_fdr),
        }


def first_paints(browser: Browser, url: str) -> dict[str, Any]:
    """First contentful paint of new profiles, and the bytes of the page's files."""
    paints = []
    for _ in range(VISITS):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        page.close()
    files = list((ROOT / "service" / "web" / "page").iterdir())
    return {
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "first_paint_median_ms": statistics.median(paints),
        "first_paint_max_ms": max(paints),
    }


def main() -> None:
    """Measure all, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, default=40)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        parser.error("there is no Chromium: apt-get install chromium")
    process, url = start()
    figures: dict[str, Any] = {"load_average": os.getloadavg()}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        figures["first paint"] = first_paints(browser, url)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(600_000)
        page.goto(url)
        page.locator(".thumbnail").first.wait_for()
        page.evaluate(WATCH)
        figures["stroke to number"] = strokes(page, given.strokes)
        figures["inspect"] = inspect(browser, page, url, given.images)
        browser.close()
    process.terminate()
    process.wait()
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
