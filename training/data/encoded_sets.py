"""Find the encoded images of a data set, and which part each belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.images.folder import SUFFIXES, Skipped, add_skipped, describe_skipped, list_files
from service.images.split_names import Division, class_of, divide
from training.data.archives import Archive, ArchiveImages, is_archive
from training.data.image_files import EncodedImages, ImageFiles
from training.data.parquet import SUFFIX, ParquetImages, find_parquet
from training.data.tables import SUFFIXES as TABLES
from training.data.tables import is_table, read_table
from training.errors import DataError


@dataclass(frozen=True)
class EncodedSet:
    """The encoded images of a data set.

    Attributes:
        parts: `train`, and `validation` and `test` where there are such, in this order.
        skipped: the files that were not taken.
        unlike: by class, test images of classes that training does not have, where it has one.
        groups: by path, what thing an image shows, as a table says; None where none does.
    """

    parts: Mapping[str, EncodedImages]
    skipped: Skipped
    unlike: Mapping[str, EncodedImages] = field(default_factory=dict)
    groups: Mapping[str, str] | None = None


def find_encoded(path: Path) -> EncodedSet | None:
    """The encoded images under a path; None for other data.

    It is a folder of image files or of Parquet, a zip or tar file of images, a Parquet file, or a table of paths.

    Raises:
        DataError: there are no images, they cannot be listed, or whether a folder is a part cannot be told.
    """
    if path.is_dir():
        parquet, skipped = find_parquet(path)
        found = _parquet(parquet, skipped) if any(parquet.values()) else _folder(path)
    elif not path.is_file():
        return None
    elif is_archive(path):
        archive = Archive(path)
        names, skipped = archive.image_names()
        found = _named(path, names, skipped, lambda files: ArchiveImages(archive, files))
    elif path.suffix.lower() == SUFFIX and not is_table(path):
        found = _parquet({"train": [path]}, {})
    elif path.suffix.lower() in (SUFFIX, *TABLES):
        table = read_table(path)
        parts, unlike = (
            {k: ImageFiles(path.parent, v) for k, v in files.items()} for files in (table.parts, table.unlike)
        )
        found = EncodedSet(parts, table.skipped, unlike, table.groups)
    else:
        return None
    for part, images in found.parts.items():
        if not len(images):
            beside = f"; there are {describe_skipped(found.skipped)}" if found.skipped else ""
            taken = f"no IDX files, no Parquet rows and no {', '.join(SUFFIXES)} files there"
            raise DataError(path, (taken if part == "train" else f"the {part} part has no rows") + beside)
    return found


def _parquet(files: Mapping[str, Sequence[Path]], skipped: Skipped) -> EncodedSet:
    return EncodedSet({part: ParquetImages(found) for part, found in files.items()}, skipped)


def _folder(folder: Path) -> EncodedSet:
    try:
        listing = list_files(folder)
    except OSError as error:
        raise DataError(error.filename, f"cannot be read ({error.strerror})") from error
    return _named(folder, listing.files, listing.skipped, lambda files: ImageFiles(folder, files))


def _named(
    path: Path, names: tuple[str, ...], skipped: Skipped, images: Callable[[Sequence[str]], EncodedImages]
) -> EncodedSet:
    """Image files by the parts and classes that their names tell."""
    division = _divided(path, names)
    return EncodedSet(
        {part: images(files) for part, files in division.parts.items()},
        _all_skipped(skipped, division),
        {name: images(files) for name, files in _by_class(division).items()},
    )


def _divided(path: Path, files: tuple[str, ...]) -> Division:
    division = divide(files)
    if name := division.doubtful:
        other = next(file for file in files if not file.startswith(f"{name}/"))
        raise DataError(
            path,
            f"has a folder '{name}' beside other images ({other}), and none for "
            f"{'validation or testing' if name.lower().startswith('train') else 'training'}: if it is a part of the "
            f"data, give folders for all parts, or pass one of them as --data; if it is not, rename it",
        )
    return division


def _all_skipped(skipped: Skipped, division: Division) -> Skipped:
    found = dict(skipped)
    for file in division.outside:
        add_skipped(found, "image file in no folder of a part", file)
    for file in division.unlike:
        add_skipped(found, "test image file of another class than the training images'", file)
    return found


def _by_class(division: Division) -> dict[str, list[str]]:
    """The files that are unlike training's, by the name of their class."""
    classes: dict[str, list[str]] = {}
    for file in division.unlike:
        classes.setdefault(class_of(file) or "", []).append(file)
    return dict(sorted(classes.items()))
