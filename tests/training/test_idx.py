import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.idx import read_idx_images
from training.errors import DataError


def idx_bytes(images: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    return bytes([0, 0, 8, images.ndim]) + sizes + images.tobytes()


IMAGES = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, None]], ids=["NHW", "NCHW"])
def test_images_come_back(tmp_path: Path, images: NDArray[np.uint8], pack: "type[bytes]") -> None:
    file = tmp_path / "images"
    file.write_bytes(pack(idx_bytes(images)))
    found = read_idx_images(file)
    assert found.shape == images.shape
    assert (found == images).all()
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (idx_bytes(IMAGES)[:-1], "23 bytes of pixels where 24"),
        (idx_bytes(IMAGES) + b"\0", "25 bytes of pixels where 24"),
        (idx_bytes(IMAGES)[:9], "0 bytes of pixels"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"", "not an IDX file"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]), "type 0x08 with 1 axes"),
        (bytes([0, 0, 13, 3]) + bytes(12), "type 0x0d with 3 axes"),
        (gzip.compress(idx_bytes(IMAGES), mtime=0)[:-9], "truncated or broken gzip"),
        (b"\x1f\x8b" + bytes(30), "truncated or broken gzip"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_idx_images(file)
    assert str(caught.value).startswith(str(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        read_idx_images(tmp_path / "nowhere")
