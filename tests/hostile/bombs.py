"""What whoever can write the store might put into a version's folder, and how each is refused."""

import hashlib
import io
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model_store.calibration import MAX_CALIBRATION_BYTES, MAX_OTHER_ARRAYS
from model_store.manifest import MAX_CALIBRATION_IMAGES, MAX_IMAGE_SIZE, MAX_LATENT_DIM
from model_store.manifest_file import MAX_DEPTH
from model_store.store import MAX_GRAPH_BYTES

NUM_IMAGES = 50
MEBIBYTE = 2**20

Bomb = Callable[[Path], object]


def edit(change: Callable[[dict[str, Any]], object]) -> Bomb:
    """Change the manifest's fields."""

    def bomb(folder: Path) -> None:
        fields = json.loads((folder / "manifest.json").read_text())
        change(fields)
        (folder / "manifest.json").write_text(json.dumps(fields))

    return bomb


def field(*path: str, value: Any) -> Bomb:
    """Set one field of the manifest."""

    def change(fields: dict[str, Any]) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return edit(change)


def text(before: str, after: str) -> Bomb:
    """Replace a piece of the manifest's text, for what `json.dumps` would not write."""

    def bomb(folder: Path) -> None:
        content = (folder / "manifest.json").read_text()
        assert content.count(before) == 1
        (folder / "manifest.json").write_text(content.replace(before, after))

    return bomb


def configuration(content: str) -> Bomb:
    return text('"configuration": {}', f'"configuration": {content}')


def nested(depth: int) -> Any:
    inner: Any = []
    for _ in range(depth - 1):
        inner = [inner]
    return inner


def put_calibration(folder: Path, content: bytes) -> None:
    (folder / "calibration.npz").write_bytes(content)
    hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    field("sha256", value=hashes | {"calibration.npz": hashlib.sha256(content).hexdigest()})(folder)


def npy(array: Any) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array)
    return packed.getvalue()


def headed(header: bytes, numbers: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An npy of any header."""
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header + numbers


def shaped(shape: str, type_: str = "<f8") -> bytes:
    return f"{{'descr': '{type_}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


SCORES = npy(np.linspace(-10, -5, NUM_IMAGES))
NUMBERS = SCORES[-8 * NUM_IMAGES :]
ZEROS = 2**27


def archive(*members: tuple[str, bytes | int], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An npz of the two required arrays and these; a number stands for an array of so many bytes of zeros."""
    packed = io.BytesIO()
    given_names = [name for name, _ in members]
    required = [(name, SCORES) for name in ("log_likelihood.npy", "elbo.npy") if name not in given_names]
    with zipfile.ZipFile(packed, "w", packing, compresslevel=9) as target:
        for name, content in [*required, *members]:
            if isinstance(content, bytes):
                target.writestr(name, content)
                continue
            with target.open(name, "w", force_zip64=True) as stream:
                stream.write(headed(shaped(f"({content // 8},)")))
                for _ in range(content // MEBIBYTE):
                    stream.write(bytes(MEBIBYTE))
    return packed.getvalue()


def calibration(*members: tuple[str, bytes | int], packing: int = zipfile.ZIP_DEFLATED) -> Bomb:
    return lambda folder: put_calibration(folder, archive(*members, packing=packing))


def patched(change: Callable[[bytearray], object]) -> Bomb:
    """Change bytes of an honest archive."""

    def bomb(folder: Path) -> None:
        content = bytearray(archive())
        change(content)
        put_calibration(folder, bytes(content))

    return bomb


def set_in_directory(content: bytearray, offset: int, value: bytes) -> None:
    """Change a field of each entry of the archive's directory."""
    for found in re.finditer(rb"PK\x01\x02", bytes(content)):
        content[found.start() + offset : found.start() + offset + len(value)] = value


def set_at_end(content: bytearray, offset: int, value: bytes) -> None:
    content[len(content) - 22 + offset : len(content) - 22 + offset + len(value)] = value


def commented(content: bytearray) -> None:
    set_at_end(content, 20, b"\x04\x00")
    content += b"note"


def twice(folder: Path) -> None:
    content = archive(("elbO.npy", SCORES))
    put_calibration(folder, content.replace(b"elbO", b"elbo"))


def overlapping(folder: Path) -> None:
    """All members are one and the same kernel of zeros, as in the zip bombs that need no nesting."""
    content = bytearray(archive(("x.npy", headed(shaped(f"({NUM_IMAGES},)"), bytes(8 * NUM_IMAGES)))))
    last = bytes(content).rfind(b"PK\x03\x04")
    set_in_directory(content, 42, struct.pack("<L", last))
    put_calibration(folder, bytes(content))


def too_many_numbers(folder: Path) -> None:
    """Each array is as long as the manifest says; all are small when packed."""
    others = MAX_CALIBRATION_BYTES // (8 * MAX_CALIBRATION_IMAGES)
    zeros = 8 * MAX_CALIBRATION_IMAGES
    put_calibration(folder, archive(("elbo.npy", zeros), *((f"{i}.npy", zeros) for i in range(others))))
    field("calibration", "num_images", value=MAX_CALIBRATION_IMAGES)(folder)


def linked(name: str) -> Bomb:
    """Put a link to the real file, or to the real folder, in its place."""

    def bomb(folder: Path) -> None:
        real = folder / name
        moved = folder.parent / f".{folder.name}-real"
        shutil.move(real, moved)
        real.symlink_to(moved)

    return bomb


def sparse(name: str, size: int) -> Bomb:
    return lambda folder: os.truncate(folder / name, size)


MANIFEST, CALIBRATION = "manifest.json", "calibration.npz"
SUPER = "9" * 5000
BOMBS: dict[str, tuple[Bomb, str, str]] = {
    # ── sizes that the manifest claims
    "a latent of 2^40": (field("latent_dim", value=2**40), MANIFEST, "latent_dim: Input should be less than"),
    "a latent one too large": (field("latent_dim", value=MAX_LATENT_DIM + 1), MANIFEST, "latent_dim: Input should"),
    "a latent of half a number": (field("latent_dim", value=2.5), MANIFEST, "latent_dim: Input should be a valid"),
    "a million by a million pixels": (
        field("image", value={"channels": 1, "height": 10**6, "width": 10**6}),
        MANIFEST,
        "must be at most 16777216",
    ),
    "a billion channels": (field("image", "channels", value=10**9), MANIFEST, "image.channels: Input should be less"),
    "2^63 channels": (field("image", "channels", value=2**63), MANIFEST, "image.channels: Input should be less"),
    "an image one too large": (field("image", "width", value=MAX_IMAGE_SIZE // 4 + 1), MANIFEST, "must be at most"),
    "a billion calibration images": (
        field("calibration", "num_images", value=10**9),
        MANIFEST,
        "calibration.num_images: Input should be less than",
    ),
    "as many calibration images as there may be": (
        field("calibration", "num_images", value=MAX_CALIBRATION_IMAGES),
        CALIBRATION,
        "must be 1048576 finite",
    ),
    "a billion samples": (field("calibration", "num_samples", value=10**9), MANIFEST, "num_samples: Input should be"),
    "a version of many digits": (field("version", value=10**18), MANIFEST, "version: Input should be less than"),
    "levels without end": (
        field("likelihood", value={"kind": "discretised_logistic", "levels": 2**40}),
        MANIFEST,
        "levels: Input should",
    ),
    # ── numbers
    "a scale of NaN": (text('"scale": 1.0', '"scale": NaN'), MANIFEST, "NaN is no number of JSON"),
    "a scale of infinity": (text('"scale": 1.0', '"scale": Infinity'), MANIFEST, "Infinity is no number of JSON"),
    "a scale beyond floats": (text('"scale": 1.0', '"scale": 1e400'), MANIFEST, "too large for a float"),
    "a scale beyond float32": (field("preparation", "scale", value=1e39), MANIFEST, "preparation.scale: Input should"),
    "a scale that is 0 in float32": (field("preparation", "scale", value=1e-50), MANIFEST, "preparation.scale: Input"),
    "a likelihood's scale beyond float32": (
        field("likelihood", value={"kind": "gaussian", "scale": 1e300}),
        MANIFEST,
        "likelihood.scale: Extra inputs",
    ),
    "a seed of 5000 digits": (text('"binarisation_seed": 0', f'"binarisation_seed": {SUPER}'), MANIFEST, "4300 digits"),
    "a seed of 4000 digits": (
        text('"binarisation_seed": 0', f'"binarisation_seed": {SUPER[:4000]}'),
        MANIFEST,
        "a whole number is too large",
    ),
    "a seed of 65 bits": (
        field("preparation", "binarisation_seed", value=2**64),
        MANIFEST,
        "whole number is too large",
    ),
    "a figure that is no number": (
        field("metrics", value=[{"name": "m", "value": "nan", "unit": "u", "num_images": 1, "protocol": "p"}]),
        MANIFEST,
        "metrics.0.value: Input should be a finite number",
    ),
    "NaN in the configuration": (configuration('{"a": [NaN]}'), MANIFEST, "NaN is no number of JSON"),
    "an infinite number in the configuration": (configuration('{"a": -1e999}'), MANIFEST, "too large for a float"),
    "4000 digits in the configuration": (
        configuration(f'{{"a": -{SUPER[:4000]}}}'),
        MANIFEST,
        "a whole number is too large",
    ),
    # ── text
    "a configuration nested 500 deep": (
        configuration(json.dumps({"a": nested(500)})),
        MANIFEST,
        f"lie more than {MAX_DEPTH} deep",
    ),
    "objects nested 10 000 deep": (configuration('{"a":' * 10**4 + "1" + "}" * 10**4), MANIFEST, "deep|not JSON"),
    "half a million brackets": (lambda f: (f / MANIFEST).write_text("[" * 500_000), MANIFEST, "not JSON"),
    "a configuration one too deep": (
        configuration(json.dumps({"a": nested(MAX_DEPTH - 2)})),
        MANIFEST,
        f"lie more than {MAX_DEPTH} deep",
    ),
    "half of a surrogate pair": (configuration('{"a": "\\ud800"}'), MANIFEST, "a text holds U\\+D800"),
    "half of a pair in a name": (configuration('{"\\udfff": 1}'), MANIFEST, "a text holds U\\+DFFF"),
    "half of a pair as the data's name": (field("provenance", "data_set", value="\udc80"), MANIFEST, "holds U\\+DC80"),
    "a NUL": (field("calibration", "source", value="a\0b"), MANIFEST, "a text holds U\\+0000"),
    "a terminal's escape": (field("provenance", "data_set", value="\x1b[2J"), MANIFEST, "a text holds U\\+001B"),
    "a terminal's escape of 8 bits": (field("provenance", "data_set", value="\x9b2J"), MANIFEST, "holds U\\+009B"),
    "a text from right to left": (field("provenance", "data_set", value="\u202ea"), MANIFEST, "holds U\\+202E"),
    "a mark in an unknown name": (edit(lambda m: m.update({"\u2066": 1})), MANIFEST, "a text holds U\\+2066"),
    "a version of a library that is a list": (
        field("provenance", "library_versions", value={"a": ["1"]}),
        MANIFEST,
        "library_versions.a: Input should be",
    ),
    "a name given twice": (text('"latent_dim": 3', '"latent_dim": 9, "latent_dim": 3'), MANIFEST, "a name twice"),
    "another encoding": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text(), encoding="utf-16"),
        MANIFEST,
        "not JSON",
    ),
    "bytes that are no UTF-8": (
        lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes().replace(b"toy", b"t\xffy")),
        MANIFEST,
        "not JSON",
    ),
    # ── size of the text
    "a manifest of 100 MB": (
        lambda f: (f / MANIFEST).write_text(f"[{'1,' * 5 * 10**7}1]"),
        MANIFEST,
        "has 100000003 bytes; at most 1048576",
    ),
    "a manifest without end": (sparse(MANIFEST, 2**40), MANIFEST, "has 1099511627776 bytes; at most 1048576 are read"),
    "unknown keys without end": (
        edit(lambda m: m.update({f"k{i}": i for i in range(100_000)})),
        MANIFEST,
        "at most 1048576 are read",
    ),
    "as many unknown keys as there is room for": (
        edit(lambda m: m.update({f"k{i}": i for i in range(60_000)})),
        MANIFEST,
        "; and 59995 more$",
    ),
    "an unknown key of a million characters": (edit(lambda m: m.update({"k" * 10**6: 1})), MANIFEST, "k{990} …$"),
    "hashes of files there are not": (
        edit(lambda m: m["sha256"].update({f"{i}": "0" * 64 for i in range(9)})),
        MANIFEST,
        "a version has no such file",
    ),
    "a format version of many digits": (text('"format_version": 2', f'"format_version": {SUPER}'), MANIFEST, "digits"),
    # ── the archive of scores
    "scores that unpack to 128 MiB": (calibration(("elbo.npy", ZEROS)), CALIBRATION, "at most 129734 are read"),
    "an unknown member that unpacks to 128 MiB": (calibration(("x", ZEROS)), CALIBRATION, "at most 129734 are read"),
    "scores that unpack to 64 MiB": (calibration(("elbo.npy", 2**26)), CALIBRATION, "found float64 \\[8388608\\]"),
    "an unknown array that unpacks to 64 MiB": (calibration(("x.npy", 2**26)), CALIBRATION, "'x' must be 50 finite"),
    "more numbers in all than there may be": (
        too_many_numbers,
        CALIBRATION,
        f"at most {MAX_CALIBRATION_BYTES} are taken",
    ),
    "packed by bzip2": (calibration(("x.npy", 2**24), packing=zipfile.ZIP_BZIP2), CALIBRATION, "packed otherwise"),
    "packed by LZMA": (calibration(("x.npy", 2**24), packing=zipfile.ZIP_LZMA), CALIBRATION, "packed otherwise"),
    "a shape of 80 GB": (
        calibration(("elbo.npy", headed(shaped("(10000000000,)"), NUMBERS))),
        CALIBRATION,
        "50 finite",
    ),
    "a shape of 3600 digits": (
        calibration(("elbo.npy", headed(shaped(f"({SUPER[:3600]},)")))),
        CALIBRATION,
        "begin as",
    ),
    "a shape that overflows": (
        calibration(("elbo.npy", headed(shaped("(4294967296, 4294967296)")))),
        CALIBRATION,
        "50",
    ),
    "more numbers than its shape": (calibration(("elbo.npy", SCORES + b"\0")), CALIBRATION, "more or fewer bytes"),
    "fewer numbers than its shape": (calibration(("elbo.npy", SCORES[:-1])), CALIBRATION, "more or fewer bytes"),
    "a header of 2 GiB": (
        calibration(("elbo.npy", b"\x93NUMPY\x02\x00" + struct.pack("<L", 2**31))),
        CALIBRATION,
        "begin",
    ),
    "a header of Python code": (
        calibration(("elbo.npy", headed(b"__import__('os').abort()\n", NUMBERS))),
        CALIBRATION,
        "does not begin as NumPy",
    ),
    "a header of brackets": (calibration(("elbo.npy", headed(b"(" * 900, NUMBERS))), CALIBRATION, "does not begin as"),
    "a pickle": (calibration(("elbo.npy", npy(np.array([None] * NUM_IMAGES)))), CALIBRATION, "found object \\[50\\]"),
    "records": (calibration(("elbo.npy", npy(np.zeros(NUM_IMAGES, "f8,f8")))), CALIBRATION, "does not begin as NumPy"),
    "texts of 2 GB": (calibration(("elbo.npy", headed(shaped("(50,)", "<U500000000")))), CALIBRATION, "found str"),
    "big-endian numbers": (
        calibration(("elbo.npy", npy(np.zeros(NUM_IMAGES, ">f8")))),
        CALIBRATION,
        "must be 50 finite",
    ),
    "a number that is not finite": (calibration(("x.npy", npy(np.full(NUM_IMAGES, np.nan)))), CALIBRATION, "finite"),
    "arrays by the thousand": (
        calibration(*((f"{i}.npy", SCORES) for i in range(MAX_OTHER_ARRAYS + 3 - 1))),
        CALIBRATION,
        "at most 67 arrays are",
    ),
    "empty members by the thousand": (
        calibration(*((f"{i}", b"") for i in range(900)), packing=zipfile.ZIP_STORED),
        CALIBRATION,
        "at most 67 arrays",
    ),
    "an array twice": (twice, CALIBRATION, "'elbo' is there twice"),
    "an array under two names": (calibration(("elbo", SCORES)), CALIBRATION, "'elbo' is there twice"),
    "a member that is no array": (calibration(("notes.txt", b"")), CALIBRATION, "'notes.txt' is not called .npy"),
    "a member named by a terminal's escape": (calibration(("\x1b\u202e.npy", b"")), CALIBRATION, "x1b.+u202e"),
    "members that overlap": (overlapping, CALIBRATION, "not an .npz|differ"),
    "encrypted": (patched(lambda c: set_in_directory(c, 8, b"\x01\x00")), CALIBRATION, "is encrypted"),
    "sizes that lie": (
        patched(lambda c: set_in_directory(c, 24, b"\xfe\xff\xff\xff")),
        CALIBRATION,
        "not an .npz of plain arrays",
    ),
    "sizes of 64 bits that lie": (
        patched(lambda c: set_in_directory(c, 20, b"\xff" * 8)),
        CALIBRATION,
        "not an .npz of plain arrays",
    ),
    "more entries than there are": (
        patched(lambda c: set_at_end(c, 10, b"\xff\xff")),
        CALIBRATION,
        "has 65535 entries",
    ),
    "a directory of 4 GiB": (patched(lambda c: set_at_end(c, 12, b"\xff" * 4)), CALIBRATION, "in 4294967295 bytes"),
    "a directory elsewhere": (patched(lambda c: set_at_end(c, 16, b"\xff" * 4)), CALIBRATION, "not an .npz"),
    "a directory of 64 bits": (
        patched(lambda c: c.__setitem__(slice(-22, -22), b"PK\x06\x07" + b"\xff" * 16)),
        CALIBRATION,
        "64-bit sizes",
    ),
    "a comment": (patched(commented), CALIBRATION, "comment"),
    "a file of a terabyte": (sparse(CALIBRATION, 2**40), CALIBRATION, "has 1099511627776 bytes; at most 129734 are"),
    # ── graphs
    "an encoder of a terabyte": (sparse("encoder.onnx", 2**40), "encoder.onnx", "bytes; at most 2147483647 are read"),
    "a decoder one too large": (sparse("decoder.onnx", MAX_GRAPH_BYTES + 1), "decoder.onnx", "has 2147483648 bytes"),
    # ── links
    **{
        f"{name} is a link": (linked(name), name, "cannot be read \\(a link;")
        for name in (MANIFEST, "encoder.onnx", "decoder.onnx", "likelihood.onnx", CALIBRATION)
    },
    "the version's folder is a link": (linked(""), "1", "^a link; a version's folder and its files must be there"),
}
