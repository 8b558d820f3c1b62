"""Download well-known data sets once into a cache, from their usual mirrors, and check their SHA-256."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
from tqdm import tqdm

from service.printing import unescaped
from training.errors import DownloadError

_TIMEOUT = 60.0  # seconds without any data
_RETRIES = 1  # for each mirror, one second after it failed
_CHUNK_BYTES = 2**16


@dataclass(frozen=True)
class KnownDataSet:
    """The files of a data set: where to download them, and their SHA-256.

    Attributes:
        name: of the data set, and of its folder in the cache.
        mirrors: addresses to which a file's name is appended, in the order in which they are tried.
        sha256: by file name, of the file as downloaded; it is checked before anything is unpacked.
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
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        },
    ),
    "fashion-mnist": KnownDataSet(
        "fashion-mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        },
    ),
}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/logpx`, or `~/.cache/logpx` if that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logpx"


def locate(data: str) -> Path:
    """The path of a data set: for a known name its folder in the cache, downloaded if necessary, else the path itself.

    To use a folder of your own with a known name, write a path such as `./mnist`. A leading `~/` is replaced by the
    home folder, because the Makefile quotes its arguments, so that no shell does.
    """
    known = KNOWN_DATA_SETS.get(data)
    if known is None:
        return Path(data).expanduser() if data.startswith("~/") else Path(data)
    return fetch(known, cache_folder())


def fetch(known: KnownDataSet, cache: Path) -> Path:
    """The folder of a known data set; missing or altered files are downloaded from the first mirror that has them.

    A file gets its name only when it is complete and correct, so two processes can download at the same time.

    Raises:
        DownloadError: no mirror has the right file; the message says where to put the files by hand.
    """
    pooch.get_logger().setLevel("WARNING")  # the progress bar shows as much as its log lines
    folder = cache / known.name
    for name in known.sha256:
        problems = []
        for mirror in known.mirrors:
            problem = _fetch_file(known, mirror, name, folder)
            if problem is None:
                break
            problems.append(f"{mirror}: {problem}")
        else:
            remedy = f"put the data set's files into {folder}, or pass --data the folder that has them"
            raise DownloadError(name, f"could not be downloaded ({'; '.join(problems)}); {remedy}")
    return folder


def _fetch_file(known: KnownDataSet, mirror: str, name: str, folder: Path) -> str | None:
    """Download one file into the folder if it is not there; returns what is wrong with the mirror, or None."""
    files = pooch.create(folder, base_url=mirror, registry=dict(known.sha256), retry_if_failed=_RETRIES)
    try:
        with tqdm(
            total=1,  # until pooch knows the size
            desc=name,
            unit="B",
            unit_scale=True,
            leave=False,
            file=unescaped(sys.stderr),
            disable=not sys.stderr.isatty(),
        ) as progress:
            downloader = pooch.HTTPDownloader(
                progressbar=progress,
                chunk_size=_CHUNK_BYTES,
                timeout=_TIMEOUT,
                headers={"Accept-Encoding": "identity"},  # the hash is that of the file itself
            )
            files.fetch(name, downloader=downloader)
    except (OSError, ValueError) as error:  # ValueError: a wrong hash; OSError: a failed request
        if isinstance(error, OSError) and error.errno is not None:
            raise DownloadError(folder / name, f"cannot be written ({error.strerror})") from error
        return str(_first_cause(error)) or type(error).__name__
    return None


def _first_cause(error: BaseException) -> BaseException:
    """The innermost cause of an error; requests wraps it in details of its connection pool."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
