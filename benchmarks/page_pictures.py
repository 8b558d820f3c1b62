"""The three pictures of the page in docs/: page.png, page-why.png and page-inspect.png.

python benchmarks/page_pictures.py [FOLDER]

The service runs in a process of its own with the bundled models. Each picture has less than 150 KB.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from page import ARGUMENTS, BROWSERS, DIGITS, WATCH, draw, drop
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from running_service import ROOT, start

MOST_BYTES = 150_000
SPOT = (slice(4, 9), slice(18, 23))


def take(page: Page, view: str, file: Path) -> None:
    """One view as a PNG."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    shot = Image.open(io.BytesIO(page.locator(view).screenshot()))
    shot.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    if file.stat().st_size >= MOST_BYTES:
        raise SystemExit(f"{file} has {file.stat().st_size} bytes; at most {MOST_BYTES} are wanted")


def write_images(folder: Path) -> None:
    """100 digits; four are upside down, four have a spot; and a boot."""
    with np.load(ROOT / "tests" / "data" / "digits.npz", allow_pickle=False) as archive:
        digits = archive["test"].copy()
    for index, digit in enumerate(digits):
        name = f"digit-{index:03}.png"
        if index % 25 == 3:
            digit, name = digit[::-1], f"upside-down-{index:03}.png"
        elif index % 25 == 7:
            digit[SPOT], name = 255, f"spot-{index:03}.png"
        Image.fromarray(digit).save(folder / name)
    shutil.copy(ROOT / "docs" / "boot.png", folder)


def main() -> None:
    """Take all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs")
    folder = parser.parse_args().folder
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        parser.error("there is no Chromium: apt-get install chromium")
    process, url = start()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as parent:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1120, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.locator(".thumbnail").first.wait_for()
        page.evaluate(WATCH)
        draw(page, DIGITS[0])
        take(page, "#try", folder / "page.png")
        page.get_by_role("button", name="Estimate in every way").click()
        page.get_by_text("estimates are done").wait_for()
        take(page, "#why", folder / "page-why.png")
        images = Path(parent) / "images"
        images.mkdir()
        write_images(images)
        drop(page, images)
        page.locator("#inspect > .card > [role=status]", has_text=", done").wait_for()
        page.get_by_label("false discovery rate at most").check()
        take(page, "#inspect", folder / "page-inspect.png")
        browser.close()
    process.terminate()
    process.wait()


if __name__ == "__main__":
    main()
