"""Where images come from: IDX folders, folders of PNG and JPEG files, `.npy` and `.npz`; read whole into memory."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import DataError
from training.idx import read_idx_images

Pixels = NDArray[np.uint8] | NDArray[np.float32]

_PARTS = ("train", "validation", "test")
_IDX_PREFIXES = {"train": ("train",), "validation": ("valid", "validation"), "test": ("t10k", "test")}
_NPZ_KEYS = {
    "train": ("train", "x_train", "train_images"),
    "validation": ("validation", "x_val", "val_images"),
    "test": ("test", "x_test", "test_images"),
}
_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class Source:
    """A data set as it was found: parts that it does not have itself are None.

    Attributes:
        name: the name of the file or folder, with no path.
        sha256: of the pixels, parts and shapes; however they were compressed, and wherever they lie.
        train: [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].
        validation: like `train`, or None.
        test: like `train`, or None.
    """

    name: str
    sha256: str
    train: Pixels
    validation: Pixels | None = None
    test: Pixels | None = None


def read_source(path: Path) -> Source:
    """Read all images that lie under `path`.

    - A folder with IDX files, named as MNIST's are: `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` (or `test-…`),
      perhaps `valid-…`; each plain or `.gz`.
    - A folder of `.png`, `.jpg` and `.jpeg` files, at any depth, so that class subfolders may be there or not.
      Subfolders `train` and, if there, `validation` and `test` are those parts. All grey gives one channel, otherwise
      three.
    - An `.npy` file, [N, H, W] or [N, C, H, W]: 8-bit, boolean, or floats in [0, 1].
    - An `.npz` file with such arrays called `train` and, if there, `validation` and `test` (the names of Keras and
      MedMNIST, `x_train` and `train_images`, are known too), or with one array.

    8-bit pixels are 0 (black) to 255, unless no pixel of the whole set is above 1: then it is binarised data, of which
    1 is white. The rule looks at all parts together, so that one dark part is not mistaken.

    Raises:
        DataError: naming the file that is missing, broken, truncated or of another size than the others.
    """
    if path.is_dir():
        folders = _part_folders(path)
        if any(_idx_file(path, prefix) for prefixes in _IDX_PREFIXES.values() for prefix in prefixes):
            parts = _read_idx_folder(path)
        elif "train" in folders:
            parts = _read_image_folders(folders)
        else:
            parts = _read_image_folders({"train": path})
    elif path.suffix in (".npy", ".npz") and path.is_file():
        parts = _read_numpy(path)
    elif path.exists():
        raise DataError(path, "not a folder and not an .npy or .npz file")
    else:
        raise DataError(path, "does not exist")
    return _assemble(path, parts)


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
    return Source(name=path.resolve().name, sha256=digest.hexdigest(), **parts)


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


def _read_image_folders(folders: Mapping[str, Path]) -> dict[str, Pixels]:
    files = {part: _image_files(folder) for part, folder in folders.items()}
    modes = {file: _image_mode(file) for found in files.values() for file in found}
    mode = "L" if all(mode in _GREY_MODES for mode in modes.values()) else "RGB"
    first = _decode_image(files["train"][0], mode)
    parts: dict[str, Pixels] = {}
    for part, found in files.items():
        pixels = np.empty((len(found), *first.shape), dtype=np.uint8)  # [N, C, H, W]
        for index, file in enumerate(found):
            image = _decode_image(file, mode)
            if image.shape != first.shape:
                sizes = f"{image.shape[2]}x{image.shape[1]} pixels, but {files['train'][0]} is"
                raise DataError(file, f"{sizes} {first.shape[2]}x{first.shape[1]}")
            pixels[index] = image
        parts[part] = pixels
    return parts


def _image_files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file())
    if not found:
        raise DataError(folder, "no IDX files and no .png, .jpg or .jpeg files in this folder")
    return found


def _image_mode(file: Path) -> str:
    try:
        with Image.open(file) as image:
            mode = image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(file, f"not a readable image ({error})") from error
    if mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(file, f"pixels of Pillow's mode {mode}; images must have 8 bits a channel")
    return mode


def _decode_image(file: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert(mode), dtype=np.uint8)  # [H, W] or [H, W, 3]
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(file, f"truncated or broken image ({error})") from error
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # [C, H, W]


def _read_numpy(file: Path) -> dict[str, Pixels]:
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(file, f"not a readable array file ({error})") from error
    if len(arrays) == 1:
        return {"train": _as_pixels(file, *arrays.popitem())}
    parts = {
        part: _as_pixels(file, key, arrays[key]) for part, keys in _NPZ_KEYS.items() for key in keys if key in arrays
    }
    if "train" not in parts:
        raise DataError(file, f"holds the arrays {', '.join(arrays)}; one called 'train' is needed")
    return parts


def _as_pixels(file: Path, key: str, array: NDArray[np.generic]) -> Pixels:
    name = f"array {key!r}" if key else "the array"
    if array.ndim not in (3, 4):
        raise DataError(file, f"{name} has shape {list(array.shape)}; images are [N, H, W] or [N, C, H, W]")
    if array.ndim == 4 and array.shape[1] > 4 and array.shape[3] in (1, 3, 4):
        raise DataError(file, f"{name} has shape {list(array.shape)}: channels come second, [N, C, H, W], not last")
    if array.dtype in (np.uint8, np.bool_):
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(file, f"{name} is {array.dtype}; pixels are 8-bit, boolean, or floats in [0, 1]")
    floats = array.astype(np.float32)
    if not ((floats >= 0) & (floats <= 1)).all():
        raise DataError(file, f"{name} has pixels that are not in [0, 1]")
    return floats
