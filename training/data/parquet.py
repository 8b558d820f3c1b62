"""Parquet files with a column of encoded images, by part; service/images/parquet.py reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from service.images import parquet
from service.images.folder import Skipped, add_skipped, list_files
from service.images.parquet import CACHE_BYTES, SUFFIX
from service.images.split_names import PARTS, named_part
from training.errors import DataError, as_data_errors

__all__ = ["CACHE_BYTES", "SUFFIX", "ParquetImages", "find_parquet"]


class ParquetImages(parquet.ParquetImages):
    """The images of Parquet files, row by row; a row group is a block.

    Raises:
        DataError: a file is not Parquet, or has no column of images; the message names the file.
    """

    paths = None

    def __init__(self, files: Sequence[Path]) -> None:
        with as_data_errors():
            super().__init__(files)

    def open(self, index: int) -> BinaryIO:
        """Open a row's bytes; a CorruptImageError where it has none, a DataError where its row group is broken."""
        with as_data_errors():
            return super().open(index)


def find_parquet(path: Path) -> tuple[dict[str, list[Path]], Skipped]:
    """Find the Parquet files of a folder by part, in the order of PARTS, and what was skipped.

    The part is named by the file (`train-00000-of-00004.parquet`) or by a folder (`split=train`); the innermost name
    decides. Without such names all files are for training. Files whose name begins with an underscore, which are
    Spark's and Arrow's notes about the others, are skipped like hidden files.

    Raises:
        DataError: the folder cannot be read, or there are parts but none for training.
    """
    try:
        listing = list_files(path, (SUFFIX,))
    except OSError as error:
        raise DataError(error.filename, f"cannot be read ({error.strerror})") from error
    skipped = dict(listing.skipped)
    parts: dict[str | None, list[Path]] = {}
    for file in listing.files:
        names = file.split("/")
        if any(name.startswith("_") for name in names):
            add_skipped(skipped, "hidden file", file)
            continue
        part = next((part for name in reversed(names) if (part := named_part(name))), None)
        parts.setdefault(part, []).append(path / file)
    if set(parts) == {None}:
        return {"train": parts[None]}, skipped
    for file_of_none in parts.pop(None, []):
        add_skipped(skipped, "Parquet file of no part", str(file_of_none.relative_to(path)))
    if parts and "train" not in parts:
        raise DataError(path, f"has Parquet files called {', '.join(map(str, parts))}, but none called train")
    return {part: parts[part] for part in PARTS if part in parts}, skipped
