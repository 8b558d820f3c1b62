"""The tests of the page are left out where there is no browser, except in CI."""

import pytest

from tests import browser


@pytest.mark.parametrize(
    ("found", "required", "left_out"),
    [(None, False, True), (None, True, False), ("/usr/bin/x", False, False), ("/usr/bin/x", True, False)],
)
def test_they_are_left_out_only_by_developers_without_a_browser(
    monkeypatch: pytest.MonkeyPatch, found: str | None, required: bool, left_out: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: found)
    monkeypatch.setattr(browser, "REQUIRED", required)
    assert browser.is_left_out() is left_out
    assert browser.find_browser() == found
