"""calibration.npz: float64 arrays [n] of finite numbers. Sizes and shapes are checked before anything is unpacked."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InvalidArtifactError
from model_store.manifest import MAX_CALIBRATION_IMAGES

LATENT = "latent_"
"""Calibration arrays: before a number from 0, the columns of the images' latent codes."""
FITTING = "fitting"
"""Calibration array: 1 for images that methods fit what they fit to, 0 for those that scores are compared with."""
_REQUIRED = ("log_likelihood", "elbo")
MAX_OTHER_ARRAYS = 64
"""Beside the columns of the codes."""
MAX_CALIBRATION_BYTES = 2**27
"""Of all arrays together, unpacked."""

_HEADER_BYTES = 1024  # of a member, before its numbers; NumPy writes 128
_RECORD_BYTES = 256  # of a member, in the archive's directory and once more before it; NumPy writes about 100
_NPY = ".npy"
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r" *\{ *'descr': *'(?P<type>[<>=|]?[A-Za-z][0-9]{0,9})', *'fortran_order': *(?:True|False), *"
    r"'shape': *\((?P<shape>[0-9, ]*)\),? *\} *\n?",
    re.ASCII,
)
_END = struct.Struct(
    "<4s4H2LH"
)  # of a zip archive: signature, disks, entries here and in all, directory's size and place
_END64 = b"PK\x06\x07"

_Arrays = dict[str, NDArray[np.float64]]


def max_file_bytes(num_images: int, latent_dim: int) -> int:
    """How large calibration.npz can be at most.

    >>> max_file_bytes(num_images=3000, latent_dim=50)
    2911126
    """
    arrays = latent_dim + MAX_OTHER_ARRAYS
    numbers = min(arrays * 8 * num_images, MAX_CALIBRATION_BYTES)
    return numbers + arrays * (_HEADER_BYTES + 2 * _RECORD_BYTES) + _END.size


def max_calibration_images(latent_dim: int) -> int:
    """Of how many images a calibration can be, with all the arrays that README.md names.

    >>> max_calibration_images(50)
    305040
    """
    arrays = latent_dim + len((*_REQUIRED, "kl", "complexity", FITTING))
    return min(MAX_CALIBRATION_IMAGES, MAX_CALIBRATION_BYTES // (8 * arrays))


def parse_calibration(file: Path, content: bytes, num_images: int, latent_dim: int) -> _Arrays:
    """The arrays by name; `file` is what an error names.

    Raises:
        InvalidArtifactError: the archive, or an array, is not what README.md says.
    """
    arrays: _Arrays = {}
    try:
        _check_directory(content, latent_dim + MAX_OTHER_ARRAYS)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_total(len(archive.infolist()), num_images, latent_dim)
            for member in archive.infolist():
                name = member.filename.removesuffix(_NPY)
                if name in arrays or name == member.filename:
                    raise ValueError(f"{name!r} is there twice" if name in arrays else f"{name!r} is not called {_NPY}")
                arrays[name] = _read_array(file, name, archive, member, num_images)
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise InvalidArtifactError(file, f"not an .npz of plain arrays ({error})") from error
    check_calibration(file, arrays, num_images, latent_dim)
    return arrays


def check_calibration(file: Path, arrays: Mapping[str, NDArray[np.float64]], num_images: int, latent_dim: int) -> None:
    """Refuse arrays that are not what README.md says of calibration.npz; `file` is what the error names.

    Raises:
        InvalidArtifactError.
    """
    try:
        _check_total(len(arrays), num_images, latent_dim)
    except ValueError as error:
        raise InvalidArtifactError(file, str(error)) from error
    for key in _REQUIRED:
        if key not in arrays:
            raise InvalidArtifactError(file, f"array {key!r} is missing")
    for key, array in arrays.items():
        if array.dtype != np.float64 or array.shape != (num_images,) or not np.isfinite(array).all():
            raise _not_numbers(file, key, num_images, f"{array.dtype} {list(array.shape)}")
    fitting = arrays.get(FITTING, np.zeros(1))
    if not np.isin(fitting, (0, 1)).all() or fitting.all():
        raise InvalidArtifactError(file, f"{FITTING!r} must be of 0 and 1, with a 0 in it")
    codes = {key for key in arrays if key.startswith(LATENT)}
    # Counted first: the names that there should be are as many as the manifest says.
    if codes and (len(codes) != latent_dim or codes != {f"{LATENT}{d}" for d in range(latent_dim)}):
        raise InvalidArtifactError(file, f"of codes there must be {LATENT}0 to {LATENT}{latent_dim - 1}, or none")


def _not_numbers(file: Path, key: str, num_images: int, found: str) -> InvalidArtifactError:
    return InvalidArtifactError(file, f"{key!r} must be {num_images} finite float64 numbers, found {found}")


def _check_total(num_arrays: int, num_images: int, latent_dim: int) -> None:
    most = latent_dim + MAX_OTHER_ARRAYS
    if num_arrays > most:
        raise ValueError(f"it holds {num_arrays} arrays; at most {most} are taken")
    if (size := 8 * num_arrays * num_images) > MAX_CALIBRATION_BYTES:
        raise ValueError(f"its arrays take {size} bytes; at most {MAX_CALIBRATION_BYTES} are taken")


def _check_directory(content: bytes, most_members: int) -> None:
    """Look at the archive's end, before its directory is read: that takes memory for each entry.

    An archive ends with a record of fixed size where it has no comment, as NumPy writes it: so all readers of zip find
    the same directory.
    """
    if len(content) < _END.size:
        raise ValueError("it is no zip archive")
    signature, *_, entries, size, _, comment = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06" or comment or content[-_END.size - 20 :].startswith(_END64):
        raise ValueError("it is no zip archive that ends as NumPy writes it, without a comment or 64-bit sizes")
    if entries > most_members or size > most_members * _RECORD_BYTES:
        raise ValueError(
            f"its directory has {entries} entries in {size} bytes; at most {most_members} arrays are taken"
        )


def _read_array(
    file: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, num_images: int
) -> NDArray[np.float64]:
    """One member: no more of it is unpacked than the array may have, whatever it says of itself."""
    if member.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
        raise ValueError(f"{name!r} is packed otherwise than NumPy does")
    with archive.open(member) as stream:
        content = stream.read(_HEADER_BYTES + 8 * num_images + 1)
    start = len(_MAGIC) + 4
    length = int.from_bytes(content[start - 2 : start], "little")
    numbers = start + length
    header = _HEADER.fullmatch(content[start:numbers].decode("latin-1")) if length < _HEADER_BYTES else None
    if content[: start - 2] != _MAGIC + b"\x01\x00" or header is None:
        raise ValueError(f"{name!r} does not begin as NumPy writes an array of numbers")
    if (header["type"], header["shape"].replace(" ", "").rstrip(",")) != ("<f8", str(num_images)):
        found = header["type"]
        with suppress(TypeError, ValueError):
            found = np.dtype(found).name
        raise _not_numbers(file, name, num_images, f"{found} [{header['shape'].strip().rstrip(',')}]")
    if not len(content) == member.file_size == numbers + 8 * num_images:
        raise ValueError(f"{name!r} has more or fewer bytes than its {num_images} numbers take")
    return np.frombuffer(content, "<f8", offset=numbers).astype(np.float64)
