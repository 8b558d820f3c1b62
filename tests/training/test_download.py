import gzip
import hashlib
import threading
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.download import KNOWN_DATA_SETS, KnownDataSet, fetch, locate
from training.errors import DownloadError

CONTENT = {"a.gz": b"first", "b.gz": b"second"}
KNOWN = KnownDataSet(
    "letters",
    ("https://one.example/", "https://two.example/"),
    {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
)


def serve(urls: dict[str, bytes], asked: list[str]) -> Callable[[str], bytes]:
    def read(url: str) -> bytes:
        asked.append(url)
        if url not in urls:
            raise urllib.error.URLError("no route to host")
        return urls[url]

    return read


def packed(mirror: str) -> dict[str, bytes]:
    return {mirror + name: gzip.compress(content, 1) for name, content in CONTENT.items()}


def test_files_are_fetched_once(tmp_path: Path) -> None:
    asked: list[str] = []
    read = serve(packed("https://one.example/"), asked)
    folder = fetch(KNOWN, tmp_path, read=read)
    assert folder == tmp_path / "letters"
    assert {file.name: gzip.decompress(file.read_bytes()) for file in folder.iterdir()} == CONTENT
    assert fetch(KNOWN, tmp_path, read=read) == folder
    assert asked == ["https://one.example/a.gz", "https://one.example/b.gz"]


def test_two_downloads_at_once_do_not_disturb_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written all of the first file before either gives it its name."""
    both, replace, at_first = threading.Barrier(2, timeout=60), Path.replace, threading.local()

    def wait_and_replace(self: Path, target: Path) -> Path:
        if not hasattr(at_first, "done"):
            at_first.done = True
            both.wait()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", wait_and_replace)
    read = serve(packed("https://one.example/"), [])
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: fetch(KNOWN, tmp_path, read=read), range(2)))
    assert {file.name: gzip.decompress(file.read_bytes()) for file in folders[0].iterdir()} == CONTENT


@pytest.mark.parametrize(
    "wrong",
    [b"<html>", gzip.compress(b"other", mtime=0)[:-3], gzip.compress(b"other", mtime=0)],
    ids=["a page", "cut off", "other"],
)
def test_a_mirror_with_the_wrong_file_is_passed_over(tmp_path: Path, wrong: bytes) -> None:
    asked: list[str] = []
    urls = packed("https://two.example/") | {"https://one.example/a.gz": wrong}
    fetch(KNOWN, tmp_path, read=serve(urls, asked))
    assert asked[:2] == ["https://one.example/a.gz", "https://two.example/a.gz"]


def test_an_altered_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    urls = packed("https://one.example/")
    folder = fetch(KNOWN, tmp_path, read=serve(urls, []))
    (folder / "b.gz").write_bytes(b"altered")
    asked: list[str] = []
    fetch(KNOWN, tmp_path, read=serve(urls, asked))
    assert asked == ["https://one.example/b.gz"]


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"a\.gz: could not be downloaded") as caught:
        fetch(KNOWN, tmp_path, read=serve({}, []))
    message = str(caught.value)
    assert "https://one.example/: <urlopen error no route to host>" in message
    assert "https://two.example/" in message
    assert f"put the data set's files into {tmp_path / 'letters'}, or pass --data" in message
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_half_written(tmp_path: Path) -> None:
    urls = packed("https://one.example/")
    del urls["https://one.example/b.gz"]
    with pytest.raises(DownloadError, match=r"b\.gz"):
        fetch(KNOWN, tmp_path, read=serve(urls, []))
    assert [file.name for file in (tmp_path / "letters").iterdir()] == ["a.gz"]


def test_the_real_opener(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in CONTENT.items():
        (mirror / name).write_bytes(gzip.compress(content))
    known = KnownDataSet("letters", (f"file://{tmp_path}/nowhere/", f"file://{mirror}/"), KNOWN.sha256)
    folder = fetch(known, tmp_path / "cache")
    assert gzip.decompress((folder / "a.gz").read_bytes()) == b"first"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("a file where the folder belongs")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(KNOWN, tmp_path, read=serve(packed("https://one.example/"), []))


def test_a_path_is_left_alone(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path
    assert set(KNOWN_DATA_SETS) == {"mnist", "fashion-mnist"}


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/my images") == tmp_path / "my images"
    assert locate("~other/images") == Path("~other/images")
