"""A table of images' paths, in CSV or Parquet, with columns for parts, labels and groups if there are such."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.images.folder import Skipped, add_skipped, printable, skipped_kind
from service.images.split_names import PARTS, exact_part
from training.errors import DataError

SUFFIXES = (".csv", ".tsv")
_PATHS = ("path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image", "img", "name")
_SPLITS = ("split", "set", "part", "subset", "partition")
_LABELS = ("label", "class", "category", "target")
_GROUPS = ("group",)
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """What a table says.

    Attributes:
        parts: paths below the table's folder by part, each once; `train` is there.
        unlike: by label, test images whose label training does not have, where it has one.
        skipped: rows that were not taken.
        groups: by path, what thing the image shows; None without a column for that.
    """

    parts: Mapping[str, Sequence[str]]
    unlike: Mapping[str, Sequence[str]]
    skipped: Skipped
    groups: Mapping[str, str] | None = None


def is_table(path: Path) -> bool:
    """Whether a file is a CSV, or a Parquet file with a column of paths and none of images."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError):
        return False  # what is wrong with it is said where it is read
    return _named([field.name for field in schema if pa.types.is_string(field.type)], _PATHS) is not None and not any(
        pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or pa.types.is_struct(field.type)
        for field in schema
    )


def read_table(path: Path) -> Table:
    """Read a table of paths: absolute ones, or relative to the table's folder, in which all must lie.

    Raises:
        DataError: it cannot be read, has no column of paths, or a row says what cannot be; the message names the row.
    """
    columns = _read_csv(path) if path.suffix.lower() in SUFFIXES else _read_parquet(path)
    if (key := _named(list(columns), _PATHS)) is None:
        found = ", ".join(map(repr, columns))
        raise DataError(path, f"has no column of paths (there are: {found}); one called 'path' is needed")
    splits, labels, groups = (columns.get(_named(list(columns), names) or "") for names in (_SPLITS, _LABELS, _GROUPS))
    things: dict[str, str] = {}
    skipped: dict[str, tuple[int, str]] = {}
    rows: dict[str, tuple[str, str]] = {}  # by file: part and label
    for number, value in enumerate(columns[key]):
        if not value:
            add_skipped(skipped, "row without a path", f"row {number + 1}")
            continue
        name = _below(path, value, number + 1)
        if (kind := skipped_kind(name)) is not None:
            add_skipped(skipped, kind or "file of the system", name)
        elif name in rows:
            add_skipped(skipped, "file named again", name)
        else:
            rows[name] = (
                _part(path, splits[number], number + 1) if splits else "train",
                labels[number] if labels else "",
            )
            things[name] = groups[number] if groups else ""
    return Table(*_divided(path, rows), skipped, things if groups else None)


def _divided(path: Path, rows: Mapping[str, tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The files by part, and test files by label where training does not have theirs and has one."""
    parts: dict[str, list[str]] = {}
    trained = {label for part, label in rows.values() if part == "train"}
    alike = any(part == "test" and label in trained for part, label in rows.values())
    unlike: dict[str, list[str]] = {}
    for name, (part, label) in rows.items():
        if part == "test" and len(trained) == 1 and alike and label not in trained:
            unlike.setdefault(label, []).append(name)
        else:
            parts.setdefault(part, []).append(name)
    if parts and "train" not in parts:
        raise DataError(path, f"has rows for {', '.join(parts)}, but none for training")
    return {part: parts[part] for part in PARTS if part in parts} or {"train": []}, unlike


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            delimiter = max(_DELIMITERS, key=head.count)
            stream.seek(0)
            first, *rows = csv.reader(stream, delimiter=delimiter, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(path, f"not a readable table ({error})") from error
    rows = [row for row in rows if row]
    if short := next((number for number, row in enumerate(rows, 1) if len(row) != len(first)), None):
        raise DataError(path, f"row {short} has {len(rows[short - 1])} values, the header has {len(first)}")
    names = [name.strip().lower() for name in first]
    return {name: [row[column].strip() for row in rows] for column, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        found = pq.read_table(path).to_pydict()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(path, f"not a readable Parquet file ({error})") from error
    wanted = (*_PATHS, *_SPLITS, *_LABELS, *_GROUPS)
    return {
        name.lower(): ["" if value is None else str(value) for value in values]
        for name, values in found.items()
        if name.lower() in wanted
    }


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has one of the names, the first of these that there is."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _below(path: Path, value: str, row: int) -> str:
    """A path of the table as one below its folder."""
    folder = os.path.abspath(path.parent)  # noqa: PTH100 (links are not resolved)
    whole = os.path.normpath(os.path.join(folder, value.replace("\\", "/")))  # noqa: PTH118
    if "\0" in value or not whole.startswith(f"{folder.rstrip('/')}/"):
        raise DataError(path, f"row {row} names {printable(value)!r}, which is not in the table's folder or below it")
    return os.path.relpath(whole, folder)


def _part(path: Path, value: str, row: int) -> str:
    if (part := exact_part(value)) is None:
        raise DataError(path, f"row {row} has the split {printable(value)!r}; known are {', '.join(PARTS)}")
    return part
