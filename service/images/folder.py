"""List the image files under a folder in the same order on every machine, and say what is skipped and why.

As in torchvision's `ImageFolder`, symbolic links are followed; as in Hugging Face's `imagefolder`, hidden files are
skipped.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_store.text import printable as printable_text
from service.images.mask_names import mask_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
"""Suffixes of image files, in lower or upper case. The format is decided by a file's content."""

Skipped = Mapping[str, tuple[int, str]]
"""Skipped files by kind (`hidden file`, in the singular): how many, and the name of the first."""

_OTHER_IMAGES = (".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".tif", ".tiff")
_HIDDEN = ("__macosx", "lost+found")  # as well as every name that begins with a dot
_OF_THE_SYSTEM = (
    "desktop.ini",
    "thumbs.db",
)  # Windows leaves them in folders of images; not worth mentioning
_NAMED = 6  # a sentence names at most so many kinds of skipped files


@dataclass(frozen=True)
class Listing:
    """The files under a folder.

    Attributes:
        folder: the folder that was listed.
        files: the files taken, as paths relative to `folder` with `/`; each once, folder by folder, sorted by name.
        skipped: everything else.
    """

    folder: Path
    files: tuple[str, ...]
    skipped: Skipped

    def path(self, index: int) -> Path:
        """The full path of a file."""
        return self.folder / self.files[index]


def list_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The files under `folder`, at any depth, whose name ends like one of `suffixes` in lower or upper case.

    Hidden files and folders are skipped (names that begin with a dot, `__MACOSX`, `lost+found`), and so are files with
    other suffixes. Links to files and folders are followed. A file that is reached several times is listed once, by
    its own path if that is below `folder`, otherwise by the first link to it. A link to one of its own parent folders
    is not followed. Masks beside images are skipped, see mask_names.py.

    Raises:
        OSError: `folder` or a folder below it cannot be read.
    """
    walk = _Walk(folder, suffixes)
    files = without_masks(walk.files(), walk.skipped)
    return Listing(folder, files, walk.skipped)


def skipped_kind(name: str) -> str | None:
    """What kind of file a name (with `/`) is that is not taken; empty if not worth mentioning, None if it is taken.

    >>> skipped_kind("a/0.PNG"), skipped_kind("a/0.gif"), skipped_kind("__MACOSX/._0.png"), skipped_kind("a/Thumbs.db")
    (None, '.gif file', 'hidden file', '')
    """
    *folders, last = name.split("/")
    suffix = os.path.splitext(last)[1].lower()  # noqa: PTH122
    if any(_is_hidden(part) for part in (*folders, last)):
        return "hidden file" if suffix in SUFFIXES else ""
    if suffix in SUFFIXES:
        return None
    if last.lower() in _OF_THE_SYSTEM:
        return ""
    return f"{suffix} file" if suffix else "file without a suffix"


def without_masks(files: Sequence[str], skipped: dict[str, tuple[int, str]]) -> tuple[str, ...]:
    """The files that are not masks of others; the masks are counted as skipped."""
    masks = mask_files(files)
    for file in masks:
        add_skipped(skipped, "mask file", file)
    return tuple(file for file in files if file not in masks)


def describe_skipped(skipped: Skipped) -> str:
    """A sentence about what was skipped: image files first, then the most frequent. Empty if nothing was skipped.

    >>> describe_skipped({"hidden file": (2, ".a.png"), ".gif file": (1, "b.gif")})
    '2 hidden files (.a.png, …), 1 .gif file (b.gif)'
    """
    kinds = sorted(skipped, key=lambda kind: (_is_text(kind), -skipped[kind][0]))
    named = []
    for kind in kinds[:_NAMED]:
        count, first = skipped[kind]
        plural = re.sub(r"\b(file|folder|link|array)\b", r"\1s", kind, count=1) if count > 1 else kind
        named.append(f"{count} {plural} ({printable(first)}{', …' if count > 1 else ''})")
    if others := sum(skipped[kind][0] for kind in kinds[_NAMED:]):
        named.append(f"{others} of other kinds")
    return ", ".join(named)


def skips_images(skipped: Skipped) -> bool:
    """Whether images are among what was skipped, in formats that are not read.

    >>> skips_images({".tif file": (2, "a.tif")}), skips_images({".txt file": (1, "b.txt"), "mask file": (1, "c.png")})
    (True, False)
    """
    return any(kind.split()[0] in _OTHER_IMAGES for kind in skipped)


def printable(name: str | Path) -> str:
    r"""A file's name as text that can be printed and encoded as UTF-8, which not every file name can be.

    >>> printable("caf\udce9.png")
    'caf\\xe9.png'
    """
    return printable_text(os.fsencode(name).decode("utf-8", "backslashreplace"))


def add_skipped(skipped: dict[str, tuple[int, str]], kind: str, name: str, count: int = 1) -> None:
    """Count one skipped file; the name of the first of each kind is kept."""
    before, first = skipped.get(kind, (0, name))
    skipped[kind] = before + count, min(first, name)


class _Walk:
    """One walk over everything below a folder: first without following links to folders, then link by link."""

    def __init__(self, folder: Path, suffixes: Collection[str]) -> None:
        self.skipped: dict[str, tuple[int, str]] = {}
        self._suffixes = suffixes
        self._real: dict[str, str] = {}  # each folder's path below the root, which ends with /: its real path
        self._visited: set[str] = set()  # real paths of folders already listed
        self._files: list[str] = []
        self._links: list[str] = []  # links to files
        links = [("", os.path.realpath(folder))]
        while links:
            found: list[tuple[str, str]] = []
            for path, real in sorted(links, key=lambda link: link[0].split("/")):
                if real in self._visited:
                    self._skip("folder reached again by a link", path.rstrip("/"))
                else:
                    self._descend(folder, path, real, found)
            links = found

    def files(self) -> tuple[str, ...]:
        """All files in order, each once."""
        taken = list(self._files)
        if self._links:
            seen = {self._real_file(path) for path in self._files}
            for path in sorted(self._links, key=lambda link: link.split("/")):
                if (real := os.path.realpath(self._real_file(path))) in seen:
                    self._skip("file reached again by a link", path)
                else:
                    seen.add(real)
                    taken.append(path)
        return tuple(sorted(taken, key=lambda path: path.split("/")))

    def _descend(self, root: Path, path: str, real: str, links: list[tuple[str, str]]) -> None:
        """List one folder recursively; links to folders are not followed but added to `links`."""
        pending = [(path, real)]
        while pending:
            path, real = pending.pop()
            if real in self._visited:
                self._skip("folder reached again by a link", path.rstrip("/"))
                continue
            self._visited.add(real)
            self._real[path] = real
            with os.scandir(root / path) as entries:
                for entry in entries:
                    name = path + entry.name
                    if _is_hidden(entry.name):
                        self._skip_hidden(entry, name)
                    elif not _is_folder(entry):
                        self._take(entry, name)
                    elif not entry.is_symlink():
                        pending.append((f"{name}/", f"{real.rstrip('/')}/{entry.name}"))
                    elif os.path.commonpath([real, target := os.path.realpath(entry.path)]) == target:
                        self._skip("link to a folder that it lies in", name)
                    else:
                        links.append((f"{name}/", target))

    def _take(self, entry: "os.DirEntry[str]", name: str) -> None:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of a million files takes long)
        if suffix not in self._suffixes:
            if entry.name.lower() not in _OF_THE_SYSTEM:
                self._skip(f"{suffix} file" if suffix else "file without a suffix", name)
        elif _is_file(entry):
            (self._links if entry.is_symlink() else self._files).append(name)
        else:
            self._skip("link that leads nowhere" if entry.is_symlink() else "special file", name)

    def _skip_hidden(self, entry: "os.DirEntry[str]", name: str) -> None:
        """Count hidden files that would be listed otherwise; other hidden files are not mentioned."""
        for file in _files_below(entry, name):
            if file.lower().endswith(tuple(self._suffixes)):
                self._skip("hidden file", file)

    def _skip(self, kind: str, name: str) -> None:
        add_skipped(self.skipped, kind, name)

    def _real_file(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        return f"{self._real[f'{folder}/' if folder else '']}/{name}"


def _files_below(entry: "os.DirEntry[str]", name: str) -> Iterator[str]:
    """The path of an entry, or of every file below it; does not follow links, and ignores what cannot be read."""
    if not entry.is_dir(follow_symlinks=False):
        yield name
        return
    for folder, _, files in os.walk(entry.path):
        inner = os.path.relpath(folder, entry.path)
        yield from (f"{name}/{file}" if inner == "." else f"{name}/{inner}/{file}" for file in files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_text(kind: str) -> bool:
    """Whether a file is probably not an image: labels, notes and the like."""
    return kind.startswith(".") and kind.split()[0] not in _OTHER_IMAGES + SUFFIXES
