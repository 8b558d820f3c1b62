"""Well-known data sets, fetched once from their usual mirrors into a cache and checked against their SHA-256."""

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.errors import DownloadError
from training.files import write_atomically

_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class KnownDataSet:
    """Where a data set's files are to be had, and what they must be.

    Attributes:
        name: also the name of its folder in the cache.
        mirrors: addresses that a file's name is appended to, in the order they are tried.
        sha256: by file name, of the bytes inside the gzip: mirrors compress differently, the content is one.
    """

    name: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]


KNOWN_DATA_SETS = {
    "mnist": KnownDataSet(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
    ),
    "fashion-mnist": KnownDataSet(
        "fashion-mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        {
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
    ),
}


def read_url(url: str) -> bytes:
    """All bytes at an address.

    Raises:
        OSError: it cannot be reached (urllib's errors are OSErrors).
        http.client.HTTPException: the connection broke.
    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 (addresses are constants of ours)
        content: bytes = response.read()
        return content


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/logpx`, or `~/.cache/logpx` where that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logpx"


def locate(data: str) -> Path:
    """The path of a data set: of a known one its folder in the cache, filled if need be; otherwise the path itself.

    A folder of one's own that has a known name is meant by a path such as `./mnist`. A leading `~/` is one's home: the
    Makefile quotes what it is given, so no shell has seen to that.
    """
    known = KNOWN_DATA_SETS.get(data)
    if known is None:
        return Path(data).expanduser() if data.startswith("~/") else Path(data)
    return fetch(known, cache_folder())


def fetch(known: KnownDataSet, cache: Path, *, read: Callable[[str], bytes] = read_url) -> Path:
    """The folder of a known data set; files that are missing or altered are downloaded, each mirror being tried.

    Raises:
        DownloadError: no mirror gives the right file; names file and mirrors, and says where to put the files by hand.
    """
    folder = cache / known.name
    for name, expected in known.sha256.items():
        file = folder / name
        if file.is_file() and _problem(file.read_bytes(), expected) is None:
            continue
        content = _download(known, name, folder, read)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        except OSError as error:
            raise DownloadError(file, f"cannot be written ({error.strerror})") from error
    return folder


def _download(known: KnownDataSet, name: str, folder: Path, read: Callable[[str], bytes]) -> bytes:
    problems = []
    for mirror in known.mirrors:
        try:
            content = read(mirror + name)
        except (OSError, http.client.HTTPException) as error:
            problem: str | None = str(error) or type(error).__name__
        else:
            problem = _problem(content, known.sha256[name])
            if problem is None:
                return content
        problems.append(f"{mirror}: {problem}")
    remedy = f"put the data set's files into {folder}, or pass --data the folder that has them"
    raise DownloadError(name, f"could not be downloaded ({'; '.join(problems)}); {remedy}")


def _problem(content: bytes, expected: str) -> str | None:
    """What is wrong with a gzipped file, or None."""
    try:
        actual = hashlib.sha256(gzip.decompress(content)).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        return f"truncated or broken gzip ({error})"
    return None if actual == expected else f"the content's SHA-256 is {actual}, not {expected}"
