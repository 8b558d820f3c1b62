import hashlib
import http.server
import io
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from service.printing import Escaping
from training.data import download
from training.data.download import KNOWN_DATA_SETS, KnownDataSet, fetch, locate
from training.errors import DownloadError

CONTENT = {"a.gz": b"first", "b.gz": b"second"}


@dataclass
class Mirrors:
    """Two mirrors on this machine: what they serve by path, and what they were asked for."""

    known: KnownDataSet
    served: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def serve(self, mirror: str) -> None:
        self.served.update({f"/{mirror}/{name}": content for name, content in CONTENT.items()})


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "_RETRIES", 0)  # between two tries there is a second

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            found.headers.append(dict(self.headers))
            content = found.served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
        found = Mirrors(KnownDataSet("letters", (f"{address}/one/", f"{address}/two/"), hashes), {})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_files_are_fetched_once(tmp_path: Path, mirrors: Mirrors) -> None:
    mirrors.serve("one")
    folder = fetch(mirrors.known, tmp_path)
    assert folder == tmp_path / "letters"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == CONTENT
    assert fetch(mirrors.known, tmp_path) == folder
    assert mirrors.asked == ["/one/a.gz", "/one/b.gz"]
    assert {headers["Accept-Encoding"] for headers in mirrors.headers} == {"identity"}


def test_two_downloads_at_once_do_not_disturb_one_another(
    tmp_path: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have written all of the first file before either gives it its name."""
    mirrors.serve("one")
    both, rename, at_first = threading.Barrier(2, timeout=60), os.rename, threading.local()

    def wait_and_rename(source: str, target: str) -> None:
        if not hasattr(at_first, "done"):
            at_first.done = True
            both.wait()
        rename(source, target)

    monkeypatch.setattr(os, "rename", wait_and_rename)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: fetch(mirrors.known, tmp_path), range(2)))
    assert {file.name: file.read_bytes() for file in folders[0].iterdir()} == CONTENT


@pytest.mark.parametrize("wrong", [b"<html>", b"firs", b"other"], ids=["a page", "cut off", "other"])
def test_a_mirror_with_the_wrong_file_is_passed_over(tmp_path: Path, mirrors: Mirrors, wrong: bytes) -> None:
    mirrors.serve("two")
    mirrors.served["/one/a.gz"] = wrong
    fetch(mirrors.known, tmp_path)
    assert mirrors.asked[:2] == ["/one/a.gz", "/two/a.gz"]


def test_a_mirror_is_tried_again(tmp_path: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_RETRIES", 1)
    monkeypatch.setattr("time.sleep", lambda _: mirrors.serve("one"))
    fetch(mirrors.known, tmp_path)
    assert mirrors.asked == ["/one/a.gz", "/one/a.gz", "/one/b.gz"]


def test_an_altered_file_in_the_cache_is_fetched_again(tmp_path: Path, mirrors: Mirrors) -> None:
    mirrors.serve("one")
    folder = fetch(mirrors.known, tmp_path)
    (folder / "b.gz").write_bytes(b"altered")
    mirrors.asked.clear()
    fetch(mirrors.known, tmp_path)
    assert mirrors.asked == ["/one/b.gz"]
    assert (folder / "b.gz").read_bytes() == b"second"


def test_no_mirror_has_it(tmp_path: Path, mirrors: Mirrors) -> None:
    one, two = mirrors.known.mirrors
    closed = "http://127.0.0.1:1/"
    wrong = {"/two/a.gz": b"other"}
    mirrors.served.update(wrong)
    with pytest.raises(DownloadError, match=r"a\.gz: could not be downloaded") as caught:
        fetch(replace(mirrors.known, mirrors=(closed, one, two)), tmp_path)
    message = str(caught.value)
    assert f"{one}: 404 Client Error" in message
    assert "Connection refused" in message
    assert f"{two}: SHA256 hash of downloaded file (a.gz) does not match" in message
    assert f"put the data set's files into {tmp_path / 'letters'}, or pass --data" in message
    assert "\n" not in message
    assert list((tmp_path / "letters").iterdir()) == []


def test_nothing_is_half_written(tmp_path: Path, mirrors: Mirrors) -> None:
    mirrors.serve("one")
    del mirrors.served["/one/b.gz"]
    with pytest.raises(DownloadError, match=r"b\.gz"):
        fetch(mirrors.known, tmp_path)
    assert [file.name for file in (tmp_path / "letters").iterdir()] == ["a.gz"]


def test_a_terminal_sees_a_bar_and_a_log_nothing(
    tmp_path: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where what is printed is escaped, which the return to the beginning of the line must not be."""
    mirrors.serve("two")  # the first fails, and its bar goes too
    fetch(mirrors.known, tmp_path / "log")
    assert capsys.readouterr() == ("", "")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", Escaping(terminal))
    fetch(mirrors.known, tmp_path / "terminal")
    shown = terminal.getvalue()
    assert "\ra.gz: " in shown
    assert "\\r" not in shown
    assert shown.rpartition("\r")[0].rpartition("\r")[2].isspace()  # nothing is left


def test_a_cache_that_cannot_be_written(tmp_path: Path, mirrors: Mirrors) -> None:
    mirrors.serve("one")
    (tmp_path / "letters").write_text("a file where the folder belongs")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(mirrors.known, tmp_path)
    assert mirrors.asked == []


def test_a_path_is_left_alone(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path
    assert set(KNOWN_DATA_SETS) == {"mnist", "fashion-mnist"}


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/my images") == tmp_path / "my images"
    assert locate("~other/images") == Path("~other/images")
