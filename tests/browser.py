"""Where a Chromium is for the tests of the page, and what follows where there is none."""

import os
import shutil

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
REQUIRED = os.environ.get("CI") == "true"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LEFT_OUT = (
    "tests/page was left out: this machine has no Chromium (Debian: apt-get install chromium). CI has one, and fails "
    "without it."
)


def find_browser() -> str | None:
    """The path of a Chromium that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def is_left_out() -> bool:
    """Whether tests/page is not collected: only where there is no browser, and never in CI."""
    return find_browser() is None and not REQUIRED
