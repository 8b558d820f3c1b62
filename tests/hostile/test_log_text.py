"""What clients choose of the log's text, in both of its forms: a terminal that shows it obeys none of it."""

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from service.web.operations.logs import _dumps, _render_for_people
from tests.hostile.harness import ChildService
from tests.test_printing import UNSEEN

TEXTS = [
    "\x1b[2J",
    "\x9b31m",
    "\x1b]0;title\x07",
    "\u202egpj.exe",
    "a\u2028b\u2029c",
    "\u200b\ufeff",
    "a\r\nb",
    "\x00",
    "\x7f",
]
OURS = re.compile(r"\x1b\[[0-9]+m")  # colours


@pytest.mark.parametrize(
    "character", [character for character in UNSEEN if not "\ud800" <= character < "\ue000"], ids=ascii
)
def test_each_such_character_is_escaped_wherever_it_stands(character: str) -> None:
    event = {
        "event": f"a{character}b",
        "path": f"/{character}",
        "inner": [character, {character: character}],
        "level": "info",
    }
    line = _dumps(event, default=repr)
    assert line.isprintable()
    assert json.loads(line) == event
    line = str(_render_for_people(None, "info", dict(event)))
    assert OURS.sub("", line).isprintable()


def test_text_of_every_script_stays_as_it_is_in_the_log() -> None:
    for text in ("naïve 数字 نص −±×→😀", "plain"):
        assert text in _dumps({"event": text}, default=repr)
        assert text in str(_render_for_people(None, "info", {"event": text}))


def test_a_traceback_keeps_its_lines() -> None:
    line = str(
        _render_for_people(None, "error", {"event": "it failed\n", "exception": "Traceback:\n\tValueError: \x1b[2J"})
    )
    assert line.endswith("\nTraceback:\n\tValueError: \\x1b[2J")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_client_cannot_put_it_into_the_log_of_the_service(store: Path, log_format: str) -> None:
    with ChildService(store, model="digits", log_format=log_format) as service:
        for text in TEXTS:
            escaped = quote(text, safe="")
            for path in (
                f"/{escaped}",
                f"/v1/models/{escaped}",
                f"/v1/encode?{escaped}={escaped}",
                f"/v1/samples?model={escaped}",
            ):
                assert service.ask("GET", path).status in (404, 405, 422)
            headers = {"Content-Type": f"x/{text}", "Accept": text, "Content-Encoding": text, "X-Request-ID": text}
            if not re.search(r"[\x00-\x1f\x7f]", text):
                assert service.ask("POST", "/v1/encode", b"?", headers).status in (406, 415, 422)
        service.raw(b"GET /\x1b[2J HTTP/1.1\r\nHost: here\r\n\r\n")
        while service.log().count("request") < 4 * len(TEXTS):
            pass
    lines = service.log().split("\n")
    assert lines[-1] == ""
    for line in lines[:-1]:
        assert OURS.sub("", line).isprintable(), ascii(line)
    assert len([line for line in lines if "method" in line]) >= 4 * len(TEXTS)  # none is of two lines
