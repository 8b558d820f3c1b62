"""Small bodies that ask for much: refused before the memory is taken."""

import io
import os
import pickle
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.web.forms import image_file
from tests.web.test_wrong_input import AS_NPY, AS_PNG, ENCODE, GREY, check, png_claiming

MEBIBYTE = 2**20


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunk: bytes) -> bytes:
    """A right image with this chunk after its header."""
    png = image_file(GREY)
    return png[:33] + chunk + png[33:]


def webp_claiming(width: int, height: int) -> bytes:
    """A lossless WebP's header, and nothing of its pixels."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    data = struct.pack("<Q", bits)[:5] + bytes(11)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


ZEROS = zlib.compress(bytes(100 * MEBIBYTE), 9)
BOMBS = {
    "a png of 3.6 gigapixels": png_claiming(60_000, 60_000),
    "a png of 33 megapixels": png_claiming(5790, 5790),
    "a webp of 268 megapixels": webp_claiming(16384, 16384),
    "a png with a long text": png_with(png_chunk(b"zTXt", b"Comment\0\0" + ZEROS)),
    "a png with a long international text": png_with(png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + ZEROS)),
    "a png with a large profile": png_with(png_chunk(b"iCCP", b"icc\0\0" + ZEROS)),
    "a png with more data than pixels": image_file(GREY)[:33]
    + png_chunk(b"IDAT", ZEROS)
    + png_chunk(b"IEND", b""),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(client: TestClient, name: str) -> None:
    content_type = {"content-type": "image/webp"} if "webp" in name else AS_PNG
    client.post(ENCODE, content=image_file(GREY), headers=AS_PNG)
    tracemalloc.start()
    try:
        answer = client.post(ENCODE, content=BOMBS[name], headers=content_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code in (200, 413, 422), answer.text
    assert peak < 16 * MEBIBYTE
    assert client.post(ENCODE, content=image_file(GREY), headers=AS_PNG).status_code == 200


def test_an_image_of_another_size_is_refused_before_it_is_decoded(client: TestClient) -> None:
    answer = client.post(ENCODE, content=png_claiming(4000, 4000), headers=AS_PNG)  # it has no such pixels
    check(answer, 422, "invalid-image", "4000×4000", 0)
    check(
        client.post(f"{ENCODE}?resize=true", content=png_claiming(50, 40), headers=AS_PNG), 422, "invalid-image", "", 0
    )


class Marker:
    """What unpickling runs: it would leave a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened(client: TestClient, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    stream = io.BytesIO()
    np.save(stream, np.array([Marker(mark)], object), allow_pickle=True)
    np.load(io.BytesIO(stream.getvalue()), allow_pickle=True)
    assert mark.exists()  # so it works where it is let to
    mark.rmdir()
    archive = io.BytesIO()
    np.savez(archive, images=np.array([Marker(mark)], object))
    check(client.post(ENCODE, content=stream.getvalue(), headers=AS_NPY), 422, "invalid-body", "holds object")
    for body in (pickle.dumps(Marker(mark)), archive.getvalue()):
        check(client.post(ENCODE, content=body, headers=AS_NPY), 422, "invalid-body", "not an npy file")
    check(client.post("/v1/decode", content=stream.getvalue(), headers=AS_NPY), 422, "invalid-body", "holds object")
    assert not mark.exists()


def test_a_form_of_many_fields_or_headers_is_refused(client: TestClient) -> None:
    field = b'--x\r\ncontent-disposition: form-data; name="images"\r\n\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post(ENCODE, content=field * 2000 + b"--x--\r\n", headers=form)
    check(answer, 422, "invalid-body", "not a file")
    headers = b"".join(b"x-%d: y\r\n" % number for number in range(10_000))
    part = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n' + headers
    answer = client.post(ENCODE, content=part + b"\r\n" + image_file(GREY) + b"\r\n--x--\r\n", headers=form)
    check(answer, 422, "invalid-body", "not multipart")
