"""What can go wrong for reasons of the user's making; each prints as one line, and the command exits with 2.

TrainingError
├── ConfigurationError   an option has a value that cannot work
├── LikelihoodError      a manifest names a likelihood that no class here is
├── DataError            a file or folder of images is missing, broken or of the wrong size; the message names it
│   ├── CorruptImageError  one or more images cannot be decoded; --skip-corrupt leaves them out
│   └── DownloadError      a known data set could not be fetched, or is not what it should be
├── RunError             a run's folder is in use, not empty, missing or unreadable; its run is another or not finished
├── DivergenceError      training has diverged, also with smaller steps
├── ParityError          the exported graphs disagree with PyTorch
└── UpgradeError         models of a store could not be upgraded; each was named, with the reason
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.images.container_errors import ContainerError, EntryError


class TrainingError(Exception):
    """Any refusal of this package."""


class ConfigurationError(TrainingError):
    """An option has a value that cannot work."""


class LikelihoodError(TrainingError):
    """A manifest names a likelihood that no class here is, or that has not these levels and options."""


class DataError(TrainingError):
    """A file or folder of images is missing, broken or of the wrong size."""

    def __init__(self, file: str | Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = Path(file)
        self.problem = problem


class CorruptImageError(DataError):
    """One or more images cannot be decoded; `--skip-corrupt` leaves such images out."""


class DownloadError(DataError):
    """A known data set could not be fetched, or is not what it should be."""


class RunError(TrainingError):
    """A run's folder cannot serve as it is, and the message says why.

    Another process is training in it; it is not empty, and a new run is to begin there; it is missing, or cannot be
    read or written; its run is of another configuration or data set, or has not finished.
    """


class DivergenceError(TrainingError):
    """Training has diverged, and again after each of two setbacks; the message says where, and what to change."""


class ParityError(TrainingError):
    """The exported graphs disagree with PyTorch; the message names the output, the batch size and the difference."""


class UpgradeError(TrainingError):
    """Models of a store could not be upgraded; each was named before, with the reason."""


@contextmanager
def as_data_errors() -> Iterator[None]:
    """What readers of archives and Parquet raise in here is a DataError, or of one image a CorruptImageError."""
    try:
        yield
    except EntryError as error:
        raise CorruptImageError(error.file, error.problem) from error
    except ContainerError as error:
        raise DataError(error.file, error.problem) from error
