"""Find which files of a data set are for training, validation and testing from the names of their folders.

The names are those that Hugging Face's `datasets` knows, in upper or lower case.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

PARTS = ("train", "validation", "test")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_DELIMITERS = re.compile(r"[-._ =0-9]+")  # Hugging Face's delimiters, and the = of Hive's folders


@dataclass(frozen=True)
class Division:
    """The files of each part of a data set.

    Attributes:
        parts: the files of each part that exists, in their given order. `train` is always there.
        outside: files that belong to no part, if there are parts.
        unlike: test files of classes that training does not have, where training has one class: defects, in the layout
            of MVTec AD.
        doubtful: a top folder with the name of a part that may be something else, judged by the files beside it.
    """

    parts: dict[str, list[str]]
    outside: list[str]
    doubtful: str | None = None
    unlike: list[str] = field(default_factory=list)


def exact_part(name: str) -> str | None:
    """The part whose name a folder has exactly.

    >>> exact_part("Testing"), exact_part("test tubes")
    ('test', None)
    """
    return _NAMES.get(name.lower())


def named_part(name: str) -> str | None:
    """The part that a name contains as a separate word, between delimiters or digits.

    >>> named_part("seg_train"), named_part("val2017"), named_part("test-00000-of-00001.parquet"), named_part("trains")
    ('train', 'validation', 'test', None)
    """
    return next((_NAMES[word] for word in _DELIMITERS.split(name.lower()) if word in _NAMES), None)


def divide(files: Sequence[str]) -> Division:
    """Divide files (paths with `/`) by the folders that contain them.

    Folders are parts if a training folder and a validation or test folder are in the same folder, at any depth. Their
    names are `train` and `test`, or else contain such words: `seg_train` and `seg_test`. A file belongs to the
    outermost such folder on its path. Without such folders all files are for training. If a top folder then has
    exactly the name of a part and other files are beside it, it is `doubtful`: `test` among `cups` and `plates` may be
    a part or a class.

    If all training images are of one class (the folder in the part's folder, such as `train/good`), and the test images
    are of that class and of others (`test/good`, `test/broken`), the others are `unlike` and in no part: a model of
    ordinary images is not measured on them.

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
                return _without_other_classes(division, part_of)
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


def _without_other_classes(division: Division, part_of: Callable[[str], str | None]) -> Division:
    """The division without test images of classes that training lacks, if training has one class and testing too."""
    trained = {_class_of(file, part_of) for file in division.parts["train"]}
    test = division.parts.get("test", [])
    alike = [file for file in test if _class_of(file, part_of) in trained]
    if len(trained) != 1 or None in trained or not alike:
        return division
    unlike = [file for file in test if _class_of(file, part_of) not in trained]
    return replace(division, parts={**division.parts, "test": alike}, unlike=unlike)


def _class_of(file: str, part_of: Callable[[str], str | None]) -> str | None:
    """The folder below that of a part, in which the file is; None if it is in that of the part itself."""
    names = file.split("/")[:-1]
    depth = next(depth for depth, name in enumerate(names) if part_of(name))
    return names[depth + 1] if depth + 1 < len(names) else None


def class_of(file: str) -> str | None:
    """The class of a file of `Division.unlike`: the folder below that of its part.

    >>> class_of("bottle/test/broken/1.png")
    'broken'
    """
    names = file.split("/")[:-1]
    part_of = exact_part if any(exact_part(name) for name in names) else named_part
    return _class_of(file, part_of)


def _has_counterparts(folders: Iterable[str], part_of: Callable[[str], str | None]) -> bool:
    """Whether a training folder and a validation or test folder are in the same folder, anywhere."""
    beside: dict[tuple[str, ...], set[str]] = {}
    for folder in folders:
        names = folder.split("/")
        for depth, name in enumerate(names):
            if part := part_of(name):
                beside.setdefault(tuple(names[:depth]), set()).add(part)
    return any("train" in found and len(found) > 1 for found in beside.values())
