"""Encode images in each form that the contract takes."""

import base64
import io
from typing import Any

import numpy as np
import orjson
from PIL import Image

from tests.toys import AnyArray


def image_file(image: AnyArray, file_format: str = "PNG", **options: Any) -> bytes:
    """uint8 [H, W] or [H, W, 3] as an image file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, file_format, **options)
    return stream.getvalue()


def npy(array: AnyArray) -> bytes:
    """An npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_npy(content: bytes) -> AnyArray:
    """The array of an npy file."""
    array: AnyArray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def json_body(images: list[Any]) -> bytes:
    """`{"images": […]}`."""
    return orjson.dumps({"images": images}, option=orjson.OPT_SERIALIZE_NUMPY)


def base64_png(image: AnyArray) -> str:
    """An image as base64 text."""
    return base64.b64encode(image_file(image)).decode()


def requests_in_every_form(images: AnyArray) -> dict[str, dict[str, Any]]:
    """Arguments of `client.post` for the same uint8 images [B, H, W] in every form that takes several."""
    unit = images.astype(np.float32) / np.float32(255)
    files = [("images", (f"{i}.png", image_file(image), "image/png")) for i, image in enumerate(images)]
    json_type, npy_type = {"content-type": "application/json"}, {"content-type": "application/x-npy"}
    return {
        "multipart": {"files": files},
        "base64": {"content": json_body([base64_png(image) for image in images]), "headers": json_type},
        "nested [H][W]": {"content": json_body([image.tolist() for image in unit]), "headers": json_type},
        "nested [C][H][W]": {"content": json_body([[image.tolist()] for image in unit]), "headers": json_type},
        "npy uint8 [B,H,W]": {"content": npy(images), "headers": npy_type},
        "npy uint8 [B,C,H,W]": {"content": npy(images[:, None]), "headers": npy_type},
        "npy float32 [B,H,W]": {"content": npy(unit), "headers": npy_type},
        "npy float32 [B,C,H,W]": {"content": npy(unit[:, None]), "headers": npy_type},
        "npy float32, Fortran order": {"content": npy(np.asfortranarray(unit)), "headers": npy_type},
    }
