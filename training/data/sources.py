"""Read data sets: IDX files, folders and archives of PNG, JPEG and WebP files, tables, Parquet, `.npy` and `.npz`."""

import hashlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.images.folder import Skipped, add_skipped, printable
from service.images.split_names import PARTS, exact_part
from training.data.defects import NO_DEFECTS, DefectImages
from training.data.encoded_sets import find_encoded
from training.data.idx import read_idx_images
from training.data.image_files import Pixels
from training.data.image_sets import TOO_DARK, ImageSet, Reading, brightest_before
from training.data.originals import NO_ORIGINALS, Originals
from training.data.preparation import AS_THEY_ARE, Preparation, prepare_arrays
from training.data.streams import ImageStream
from training.data.things import NO_THINGS, Things
from training.errors import DataError

_IDX_PREFIXES = {"train": ("train",), "validation": ("valid", "validation"), "test": ("t10k", "test")}
_NPZ_WORDS = ("x", "images", "data")  # words besides the part in an array's name, as in `x_train` and `train_images`
# What NumPy, its header parser and zipfile raise if bytes are wrong, or claim more than fits into memory.
_READER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError),
    *(RuntimeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Source:
    """A data set as it was found. Parts that it does not have are None.

    Attributes:
        name: the name of the file or folder, without its path.
        sha256: of pixels, parts and shapes; independent of compression and of where the files are.
        train: [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].
        validation: like `train`, or None.
        test: like `train`, or None.
        skipped: images left out because they cannot be decoded; by name, what is wrong.
        ignored: a sentence about files there that were not taken for images.
        preparation: how the images were prepared, `auto` resolved.
        chosen: what `auto` chose, and why, in sentences.
        defects: test images of classes that training does not have, where it has one class.
        originals: the training images as their files have them, where they are prepared.
        things: what tells which images show the same thing.
    """

    name: str
    sha256: str
    train: Pixels
    validation: Pixels | None = None
    test: Pixels | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    ignored: Skipped = field(default_factory=dict)
    preparation: Preparation = AS_THEY_ARE
    chosen: Sequence[str] = ()
    defects: DefectImages = NO_DEFECTS
    originals: Originals = NO_ORIGINALS
    things: Things = NO_THINGS


@dataclass(frozen=True)
class StreamedSource:
    """A data set that is too large for memory; otherwise like `Source`, with the same SHA-256."""

    name: str
    sha256: str
    train: ImageStream
    validation: ImageStream | None = None
    test: ImageStream | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    ignored: Skipped = field(default_factory=dict)
    preparation: Preparation = AS_THEY_ARE
    chosen: Sequence[str] = ()
    defects: DefectImages = NO_DEFECTS
    originals: Originals = NO_ORIGINALS
    things: Things = NO_THINGS


def open_source(path: Path, reading: Reading) -> Source | StreamedSource:
    """Open the data set under `path`; see `read_source`. Image files and Parquet stream if they take more than
    `max_memory`; everything else is read into memory.

    Raises:
        DataError: as `read_source`.
    """  # noqa: D205
    if (found := None if _has_idx(path) else find_encoded(path)) is None:
        return _read_arrays(path, reading.preparation)
    ignored = found.skipped
    images = ImageSet(found.parts, reading)
    is_prepared = images.preparation != AS_THEY_ARE
    originals = Originals(found.parts["train"], images.pixel_format) if is_prepared else NO_ORIGINALS
    if images.fits:
        read = _checked(path, images.load())
        loaded = _with_white(path, read, images.preparation)
        source = replace(_identified(path, loaded), skipped=images.corrupt, ignored=ignored)
        white = 1 if loaded["train"] is read["train"] else 255
        defects = DefectImages(found.unlike, images.pixel_format, images.chw, white)
        source = replace(source, preparation=images.preparation, chosen=images.chosen)
        return replace(source, defects=defects, originals=originals, things=Things(images.paths, found.groups))
    streams, sha256 = images.stream()
    return StreamedSource(
        name=printable(path.resolve().name),
        sha256=sha256,
        train=streams["train"],
        validation=streams.get("validation"),
        test=streams.get("test"),
        skipped=images.corrupt,
        ignored=ignored,
        preparation=images.preparation,
        chosen=images.chosen,
        defects=DefectImages(found.unlike, images.pixel_format, images.chw, streams["train"].white),
        originals=originals,
        things=Things(images.paths, found.groups),
    )


def read_source(path: Path, *, skip_corrupt: bool = False, preparation: Preparation = AS_THEY_ARE) -> Source:
    """Read all images under `path` into memory.

    - A folder with IDX files that have MNIST's names: `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` (or
      `test-…`), and optionally `valid-…`; each plain or `.gz`.
    - A folder of image files at any depth, with or without a subfolder for each class; service/images/folder.py says
      which files are taken. Folders such as `train` and `test` beside one another are parts; see split_names.py there.
      If all images are grey there is one channel, otherwise three. As in the service, transparent parts are black and
      images are rotated as EXIF says. If one image has 16 bits a sample, the whole set is float32 in [0, 1].
    - A zip or tar file of such files, or a `.csv`, `.tsv` or `.parquet` table of their paths (archives.py, tables.py).
    - A `.parquet` file, or a folder of them, with a column of such files' bytes (see parquet.py for column and parts).
    - An `.npy` file, [N, H, W] or [N, C, H, W]: 8-bit, boolean, or floats in [0, 1].
    - An `.npz` file with such arrays called `train` and optionally `validation` and `test`, or with the names of Keras
      and MedMNIST (`x_train`, `train_images`), or with a single array.

    8-bit pixels are 0 (black) to 255. If no pixel of the whole set is above 1, the data are binarised, and 1 is white.
    All parts are looked at together, so that one dark part alone is not taken for binarised.

    With a `preparation` of some size, images of any size are brought to it, and arrays too.

    Raises:
        DataError: a file is missing, broken, truncated or of another size than the others; the message names it.
        CorruptImageError: images cannot be decoded and `skip_corrupt` is off; the message counts and names them.
    """
    source = open_source(path, Reading(math.inf, skip_corrupt=skip_corrupt, preparation=preparation))
    if isinstance(source, StreamedSource):
        raise TypeError("a data set of which any amount may be loaded was streamed")
    return source


def _read_arrays(path: Path, preparation: Preparation) -> Source:
    """The images of IDX files or NumPy's."""
    parts: Mapping[str, Pixels]
    ignored: Skipped = {}
    if path.is_dir():
        parts = _read_idx_folder(path)
    elif path.suffix in (".npy", ".npz") and path.is_file():
        parts, ignored = _read_numpy(path)
    elif path.exists():
        raise DataError(path, "not a folder, and not a .zip, .tar, .csv, .parquet, .npy or .npz file")
    else:
        raise DataError(path, "does not exist")
    parts = _with_white(path, _checked(path, parts), AS_THEY_ARE)
    prepared, preparation, chosen = prepare_arrays(parts, preparation)
    return replace(_identified(path, prepared), ignored=ignored, preparation=preparation, chosen=chosen)


def _checked(path: Path, parts: Mapping[str, Pixels]) -> dict[str, Pixels]:
    """The parts as [N, C, H, W], all of one shape and type."""
    checked = {part: pixels[:, None] if pixels.ndim == 3 else pixels for part, pixels in parts.items()}
    train = checked["train"]
    for part, pixels in checked.items():
        if pixels.size == 0:
            raise DataError(path, f"the {part} part holds no pixels: its shape is {list(pixels.shape)}")
        if pixels.shape[1:] != train.shape[1:] or pixels.dtype != train.dtype:
            found = f"{pixels.dtype} {list(pixels.shape[1:])}, but train images {train.dtype} {list(train.shape[1:])}"
            raise DataError(path, f"{part} images are {found}")
    return checked


def _with_white(path: Path, parts: Mapping[str, Pixels], preparation: Preparation) -> dict[str, Pixels]:
    """The parts with white at 255 if they are of 8 bits and binarised: 1 is white if no pixel is above it.

    Raises:
        DataError: all pixels are 0; or they are binarised, and were prepared from files that the service reads too.
    """
    brightest = max(brightest_before(pixels, preparation) for pixels in parts.values())
    if brightest == 0:
        raise DataError(path, "every pixel of every image is 0")
    if parts["train"].dtype != np.uint8 or brightest > 1:
        return dict(parts)
    if preparation != AS_THEY_ARE:
        raise DataError(path, TOO_DARK)
    return {part: pixels * np.uint8(255) for part, pixels in parts.items()}


def _identified(path: Path, parts: Mapping[str, Pixels]) -> Source:
    digest = hashlib.sha256()
    for part in (part for part in PARTS if part in parts):
        digest.update(f"{part} {parts[part].dtype} {parts[part].shape}\n".encode())
        digest.update(np.ascontiguousarray(parts[part]).data)
    name = printable(path.resolve().name)
    return Source(name, digest.hexdigest(), parts["train"], parts.get("validation"), parts.get("test"))


def _has_idx(folder: Path) -> bool:
    return any(_idx_file(folder, prefix) for prefixes in _IDX_PREFIXES.values() for prefix in prefixes)


def _idx_file(folder: Path, prefix: str) -> Path | None:
    names = (f"{prefix}-images-idx{axes}-ubyte{suffix}" for axes in (3, 4) for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx_folder(folder: Path) -> dict[str, Pixels]:
    parts: dict[str, Pixels] = {}
    for part, prefixes in _IDX_PREFIXES.items():
        file = next((found for prefix in prefixes if (found := _idx_file(folder, prefix))), None)
        if file is not None:
            parts[part] = read_idx_images(file)
    if "train" not in parts:
        raise DataError(folder / "train-images-idx3-ubyte", "missing (plain or .gz)")
    return parts


def _read_numpy(file: Path) -> tuple[dict[str, Pixels], Skipped]:
    """The arrays by part, and the names of others that could be images."""
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except _READER_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(file, f"not a readable array file ({reason})") from error
    if len(arrays) == 1:
        return {"train": _as_pixels(file, *arrays.popitem())}, {}
    parts: dict[str, Pixels] = {}
    skipped: dict[str, tuple[int, str]] = {}
    for key, array in arrays.items():
        if (part := _part_of_array(key)) is None or part in parts:
            if getattr(array, "ndim", 0) > 2:  # labels have fewer axes
                add_skipped(skipped, "array", key)
        else:
            parts[part] = _as_pixels(file, key, array)
    if "train" not in parts:
        raise DataError(file, f"holds the arrays {', '.join(arrays)}; one called 'train' is needed")
    return parts, skipped


def _part_of_array(key: str) -> str | None:
    """The part that an array's name contains.

    >>> _part_of_array("x_train"), _part_of_array("test_images"), _part_of_array("y_train")
    ('train', 'test', None)
    """
    words = [word for word in key.lower().split("_") if word not in _NPZ_WORDS]
    return exact_part(words[0]) if len(words) == 1 else None


def _as_pixels(file: Path, key: str, array: NDArray[Any]) -> Pixels:
    name = f"array {key!r}" if key else "the array"
    if not isinstance(array, np.ndarray):  # a zip file can contain anything
        raise DataError(file, f"{key!r} is not an array")
    if array.ndim not in (3, 4):
        raise DataError(file, f"{name} has shape {list(array.shape)}; images are [N, H, W] or [N, C, H, W]")
    if array.ndim == 4 and array.shape[1] > 4 and array.shape[3] in (1, 3, 4):
        raise DataError(file, f"{name} has shape {list(array.shape)}: channels come second, [N, C, H, W], not last")
    if array.dtype in (np.uint8, np.bool_):
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(file, f"{name} is {array.dtype}; pixels are 8-bit, boolean, or floats in [0, 1]")
    if not ((array >= 0) & (array <= 1)).all():
        raise DataError(file, f"{name} has pixels that are not in [0, 1]")
    return array.astype(np.float32)
