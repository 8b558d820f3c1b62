"""Images in a zip or tar file, with the errors of this package; service/images/archives.py reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from service.images import archives
from service.images.archives import is_archive
from training.errors import as_data_errors

__all__ = ["Archive", "ArchiveImages", "is_archive"]


class Archive(archives.Archive):
    """A zip or tar file whose members have been listed.

    Raises:
        DataError: it cannot be read, is encrypted, unpacks to too much, or has a name that leads out of it.
    """

    def __init__(self, path: Path) -> None:
        with as_data_errors():
            super().__init__(path)


class ArchiveImages(archives.ArchiveImages):
    """Some of the images of an archive, numbered in the order of `names`."""

    def __init__(self, archive: Archive, names: Sequence[str]) -> None:
        super().__init__(archive, names)
        self.paths = names

    def open(self, index: int) -> BinaryIO:
        """The image's bytes; a CorruptImageError where they cannot be read, or are too many."""
        with as_data_errors():
            return super().open(index)
