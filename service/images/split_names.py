"""Which files of a data set are for training, validation and testing, by the names of their folders.

The names are those of Hugging Face's `datasets`, in any case.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

PARTS = ("train", "validation", "test")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_DELIMITERS = re.compile(r"[-._ =0-9]+")  # Hugging Face's, and the = of Hive's folders


@dataclass(frozen=True)
class Division:
    """Files by part.

    Attributes:
        parts: of those in PARTS that there are, the files, in the order they came in. `train` is always there.
        outside: files of no part, where there are parts.
        doubtful: a folder at the top that is called like a part, while what lies beside it makes that doubtful.
    """

    parts: dict[str, list[str]]
    outside: list[str]
    doubtful: str | None = None


def exact_part(name: str) -> str | None:
    """The part that a folder has the very name of.

    >>> exact_part("Testing"), exact_part("test tubes")
    ('test', None)
    """
    return _NAMES.get(name.lower())


def named_part(name: str) -> str | None:
    """The part that a name tells as a word of its own, between delimiters or digits.

    >>> named_part("seg_train"), named_part("val2017"), named_part("test-00000-of-00001.parquet"), named_part("trains")
    ('train', 'validation', 'test', None)
    """
    return next((_NAMES[word] for word in _DELIMITERS.split(name.lower()) if word in _NAMES), None)


def divide(files: Sequence[str]) -> Division:
    """Divide files, paths with `/`, by the folders they lie in.

    Folders are parts where one for training has one for validation or testing beside it, at any depth: `train` and
    `test`, or else such words in longer names, `seg_train` and `seg_test`. A file belongs to the outermost such folder
    on its path. Without such folders all files are for training; but where a folder at the top has a part's very name
    and other files lie beside it, that is `doubtful`: `test` among `cups` and `plates` may be a part or a class.

    >>> divided = divide(["notes/4.png", "testing/3.png", "training/1.png", "training/2.png"])
    >>> divided.parts, divided.outside
    ({'train': ['training/1.png', 'training/2.png'], 'test': ['testing/3.png']}, ['notes/4.png'])
    >>> divide(["cups/1.png", "test/2.png"]).doubtful
    'test'
    """
    folders = {folder for file in files if (folder := file.rpartition("/")[0])}
    for part_of in (exact_part, named_part):
        if _has_counterparts(folders, part_of):
            division = _by_outermost_folder(files, part_of)
            if "train" in division.parts:
                return division
    tops = {file.partition("/")[0] if "/" in file else "" for file in files}
    doubtful = next((top for top in sorted(tops) if exact_part(top)), None) if len(tops) > 1 else None
    return Division({"train": list(files)}, [], doubtful)


def _by_outermost_folder(files: Sequence[str], part_of: Callable[[str], str | None]) -> Division:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    outside: list[str] = []
    for file in files:
        found = (part_of(name) for name in file.split("/")[:-1])
        part = next((part for part in found if part), None)
        (parts[part] if part else outside).append(file)
    return Division({part: found for part, found in parts.items() if found}, outside)


def _has_counterparts(folders: Iterable[str], part_of: Callable[[str], str | None]) -> bool:
    """Whether somewhere a folder for training has one for validation or testing beside it."""
    beside: dict[tuple[str, ...], set[str]] = {}
    for folder in folders:
        names = folder.split("/")
        for depth, name in enumerate(names):
            if part := part_of(name):
                beside.setdefault(tuple(names[:depth]), set()).add(part)
    return any("train" in found and len(found) > 1 for found in beside.values())
