"""Folders of PNG and JPEG files to pixels, read as the service reads such a file when it is asked about it."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_FORMATS = ("PNG", "JPEG", "WEBP")  # those of the service, whatever a file is called
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Pillow's decoders and its EXIF reader let many kinds of error out when bytes are wrong.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image_folders(folders: Mapping[str, Path]) -> dict[str, NDArray[np.uint8]]:
    """The images under each part's folder, at any depth: [N, C, H, W], C = 1 where all parts are grey, otherwise 3.

    Raises:
        DataError: naming the file that is broken, or of another size than the first; or the folder without images.
    """
    files = {part: _image_files(folder) for part, folder in folders.items()}
    modes = {file: _mode(file) for found in files.values() for file in found}
    mode = "L" if all(mode in _GREY_MODES for mode in modes.values()) else "RGB"
    first = _decode(files["train"][0], mode)
    parts: dict[str, NDArray[np.uint8]] = {}
    for part, found in files.items():
        pixels = np.empty((len(found), *first.shape), dtype=np.uint8)  # [N, C, H, W]
        for index, file in enumerate(found):
            image = _decode(file, mode)
            if image.shape != first.shape:
                sizes = f"{image.shape[2]}x{image.shape[1]} pixels, but {files['train'][0]} is"
                raise DataError(file, f"{sizes} {first.shape[2]}x{first.shape[1]}")
            pixels[index] = image
        parts[part] = pixels
    return parts


def _image_files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not found:
        raise DataError(folder, "no IDX files and no .png, .jpg or .jpeg files in this folder")
    return found


def _mode(file: Path) -> str:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            mode = image.mode
    except _DECODER_ERRORS as error:
        raise DataError(file, f"not a readable image ({error})") from error
    if mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(file, f"pixels of Pillow's mode {mode}; images must have 8 bits a channel")
    return mode


def _decode(file: Path, mode: str) -> NDArray[np.uint8]:
    """Pixels [C, H, W]: the first frame, turned as its EXIF says, transparent parts black."""
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
            pixels = np.asarray(image.convert(mode), dtype=np.uint8)  # [H, W] or [H, W, 3]
    except _DECODER_ERRORS as error:
        raise DataError(file, f"truncated or broken image ({error})") from error
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # [C, H, W]
