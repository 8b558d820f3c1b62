"""Where images come from: IDX files, folders of PNG, JPEG and WebP files, Parquet, `.npy` and `.npz`."""

import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.idx import read_idx_images
from training.image_files import SUFFIXES, EncodedImages, ImageFiles, Pixels
from training.image_sets import ImageSet, Reading
from training.parquet import ParquetImages, find_parquet
from training.streams import ImageStream

_PARTS = ("train", "validation", "test")
_IDX_PREFIXES = {"train": ("train",), "validation": ("valid", "validation"), "test": ("t10k", "test")}
_NPZ_KEYS = {
    "train": ("train", "x_train", "train_images"),
    "validation": ("validation", "x_val", "val_images"),
    "test": ("test", "x_test", "test_images"),
}
_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
# What NumPy, its reader of headers and zipfile let out when bytes are wrong, or claim more than fits into memory.
_READER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError),
    *(RuntimeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Source:
    """A data set as it was found: parts that it does not have itself are None.

    Attributes:
        name: the name of the file or folder, with no path.
        sha256: of the pixels, parts and shapes; however they were compressed, and wherever they lie.
        train: [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].
        validation: like `train`, or None.
        test: like `train`, or None.
        skipped: what was left out because it cannot be decoded: by name, what is wrong.
    """

    name: str
    sha256: str
    train: Pixels
    validation: Pixels | None = None
    test: Pixels | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamedSource:
    """A data set that is too large to be loaded; as `Source`, with the same SHA-256."""

    name: str
    sha256: str
    train: ImageStream
    validation: ImageStream | None = None
    test: ImageStream | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


def open_source(path: Path, reading: Reading) -> Source | StreamedSource:
    """The data set under `path`, see `read_source`; image files and Parquet stream where they take more than
    `max_memory`, all else is read whole.

    Raises:
        DataError: as `read_source`.
    """  # noqa: D205
    if (parts := _encoded_parts(path)) is None:
        return read_source(path)
    images = ImageSet(parts, reading)
    if images.fits:
        return replace(_assemble(path, images.load()), skipped=images.corrupt)
    streams, sha256 = images.stream()
    return StreamedSource(
        name=path.resolve().name,
        sha256=sha256,
        train=streams["train"],
        validation=streams.get("validation"),
        test=streams.get("test"),
        skipped=images.corrupt,
    )


def read_source(path: Path, *, skip_corrupt: bool = False) -> Source:
    """Read all images that lie under `path` into memory.

    - A folder with IDX files, named as MNIST's are: `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` (or `test-…`),
      perhaps `valid-…`; each plain or `.gz`.
    - A folder of `.png`, `.jpg`, `.jpeg` and `.webp` files, at any depth, so that class subfolders may be there or
      not. Subfolders `train` and, if there, `validation` and `test` are those parts. All grey gives one channel,
      otherwise three. As in the service, transparent parts are black and EXIF says which way is up. One 16-bit
      image makes the whole set float32 in [0, 1].
    - A `.parquet` file, or a folder of them, with a column of such files' bytes (see parquet.py for column and parts).
    - An `.npy` file, [N, H, W] or [N, C, H, W]: 8-bit, boolean, or floats in [0, 1].
    - An `.npz` file with such arrays called `train` and, if there, `validation` and `test` (the names of Keras and
      MedMNIST, `x_train` and `train_images`, are known too), or with one array.

    8-bit pixels are 0 (black) to 255, unless no pixel of the whole set is above 1: then it is binarised data, of which
    1 is white. The rule looks at all parts together, so that one dark part is not mistaken.

    Raises:
        DataError: naming the file that is missing, broken, truncated or of another size than the others.
        CorruptImageError: encoded images cannot be decoded, and are not to be skipped; counts and names them.
    """
    if (encoded := _encoded_parts(path)) is not None:
        images = ImageSet(encoded, Reading(skip_corrupt=skip_corrupt))
        return replace(_assemble(path, images.load()), skipped=images.corrupt)
    parts: Mapping[str, Pixels]
    if path.is_dir():
        parts = _read_idx_folder(path)
    elif path.suffix in (".npy", ".npz") and path.is_file():
        parts = _read_numpy(path)
    elif path.exists():
        raise DataError(path, "not a folder and not an .npy, .npz or .parquet file")
    else:
        raise DataError(path, "does not exist")
    return _assemble(path, parts)


def _encoded_parts(path: Path) -> dict[str, EncodedImages] | None:
    """The parts of a folder of image files or of Parquet, in the order of their names; None where it is neither."""
    if path.is_dir():
        if any(_idx_file(path, prefix) for prefixes in _IDX_PREFIXES.values() for prefix in prefixes):
            return None
    elif path.suffix != ".parquet" or not path.is_file():
        return None
    parts: dict[str, EncodedImages]
    if files := find_parquet(path):
        parts = {part: _not_empty(ParquetImages(found), path) for part, found in files.items()}
    else:
        folders = _part_folders(path)
        folders = folders if "train" in folders else {"train": path}
        parts = {part: _not_empty(ImageFiles(folder), folder) for part, folder in folders.items()}
    return {part: parts[part] for part in _PARTS if part in parts}


def _not_empty(images: EncodedImages, path: Path) -> EncodedImages:
    if not len(images):
        raise DataError(path, f"no IDX files, no Parquet rows and no {', '.join(SUFFIXES)} files there")
    return images


def _assemble(path: Path, parts: Mapping[str, Pixels]) -> Source:
    parts = {part: pixels[:, None] if pixels.ndim == 3 else pixels for part, pixels in parts.items()}  # [N, C, H, W]
    train = parts["train"]
    for part, pixels in parts.items():
        if pixels.size == 0:
            raise DataError(path, f"the {part} part holds no pixels: its shape is {list(pixels.shape)}")
        if pixels.shape[1:] != train.shape[1:] or pixels.dtype != train.dtype:
            found = f"{pixels.dtype} {list(pixels.shape[1:])}, but train images {train.dtype} {list(train.shape[1:])}"
            raise DataError(path, f"{part} images are {found}")
    largest = max(pixels.max() for pixels in parts.values())
    if largest == 0:
        raise DataError(path, "every pixel of every image is 0")
    if train.dtype == np.uint8 and largest == 1:
        parts = {part: pixels * np.uint8(255) for part, pixels in parts.items()}
    digest = hashlib.sha256()
    for part in (part for part in _PARTS if part in parts):
        digest.update(f"{part} {parts[part].dtype} {parts[part].shape}\n".encode())
        digest.update(np.ascontiguousarray(parts[part]).data)
    return Source(path.resolve().name, digest.hexdigest(), parts["train"], parts.get("validation"), parts.get("test"))


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


def _part_folders(path: Path) -> dict[str, Path]:
    return {part: path / name for part, names in _FOLDERS.items() for name in reversed(names) if (path / name).is_dir()}


def _read_numpy(file: Path) -> dict[str, Pixels]:
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except _READER_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(file, f"not a readable array file ({reason})") from error
    if len(arrays) == 1:
        return {"train": _as_pixels(file, *arrays.popitem())}
    parts = {
        part: _as_pixels(file, key, arrays[key]) for part, keys in _NPZ_KEYS.items() for key in keys if key in arrays
    }
    if "train" not in parts:
        raise DataError(file, f"holds the arrays {', '.join(arrays)}; one called 'train' is needed")
    return parts


def _as_pixels(file: Path, key: str, array: NDArray[Any]) -> Pixels:
    name = f"array {key!r}" if key else "the array"
    if not isinstance(array, np.ndarray):  # a zip may hold anything
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
