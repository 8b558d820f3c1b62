"""Upper bounds on the bytes of an answer, known before anything is computed."""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Literal

from model_store import ImageShape
from service.web.media_types import NPY, PNG
from service.web.problems import LimitError

Form = Literal["png", "array"]

_FLOAT32_JSON_BYTES = 16  # -1.17549435e-38 and a comma
_FLOAT64_JSON_BYTES = 25  # -2.2250738585072014e-308 and a comma
_BRACKETS = 3  # the brackets of a nested list, and a comma
_DOCUMENT_BYTES = 1024  # the parts that do not depend on the number of images, or an npy header
_RESULT_JSON_BYTES = 640  # names and numbers in the result of one image
_METHOD_JSON_BYTES = 160  # the result of one method for one image
_PNG_BYTES = 512  # besides the pixels, which grow by less than an eighth if they cannot be compressed


def latents_bytes(count: int, latent_dim: int, media: str) -> int:
    """Bytes of q(z|x), mean and log-variance [B, D], as JSON or npy."""
    if media == NPY:
        return _DOCUMENT_BYTES + count * 2 * latent_dim * 4
    return _DOCUMENT_BYTES + count * 2 * (latent_dim * _FLOAT32_JSON_BYTES + _BRACKETS)


def images_bytes(count: int, shape: ImageShape, media: str, form: Form, *, latent_dim: int = 0) -> int:
    """Bytes of images [B, C, H, W] in the negotiated media type; in JSON including their latents, if it has them."""
    numbers = shape.channels * shape.height * shape.width
    if media == NPY:
        return _DOCUMENT_BYTES + count * numbers * 4
    if media == PNG:  # a grid, with lines between images, and at most one row and one column left empty
        places = count + 2 * int(count**0.5) + 2
        return _png_bytes(shape.channels, places * (shape.height + 1), shape.width + 1)
    latents = latent_dim * _FLOAT32_JSON_BYTES + _BRACKETS
    return _DOCUMENT_BYTES + count * (latents + _json_bytes(shape, form, _FLOAT32_JSON_BYTES))


def log_likelihoods_bytes(count: int) -> int:
    """Bytes of estimates of log P(x)."""
    return _DOCUMENT_BYTES + count * _RESULT_JSON_BYTES


def anomalies_bytes(count: int, shape: ImageShape, num_methods: int, form: Form, *, explain: bool) -> int:
    """Bytes of anomaly scores by this many methods, including maps if they are to be explained."""
    result = _RESULT_JSON_BYTES + num_methods * _METHOD_JSON_BYTES
    if explain:
        shown = shape if form == "array" else ImageShape(channels=1, height=shape.height, width=shape.width)
        result += _json_bytes(shown, form, _FLOAT64_JSON_BYTES)
    return _DOCUMENT_BYTES + count * result


def check_answer(bytes_of: Callable[[int], int], count: int, limit: int, otherwise: str = "") -> int:
    """Refuse a request whose answer could have too many bytes; returns the most it can have.

    Args:
        bytes_of: the bytes of an answer for a given number of images.
        count: the number of images of the request.
        limit: the setting, in bytes.
        otherwise: what the client could ask for, other than fewer images.

    Raises:
        LimitError: the answer could be larger; the message says how many images are allowed.
    """
    if (num_bytes := bytes_of(count)) <= limit:
        return num_bytes
    fewer = bisect_right(range(count), limit, key=bytes_of) - 1
    advice = " or ".join(
        ([f"at most {fewer} images at once"] if fewer > 0 else []) + ([otherwise] if otherwise else [])
    )
    raise LimitError(f"the answer could have {num_bytes} bytes; at most {limit} are given: ask for {advice or 'less'}")


def check_images(
    count: int,
    shape: ImageShape,
    latent_dim: int,
    media: str,
    form: Form,
    max_pixels: int,
    max_answer_bytes: int,
    otherwise: str,
) -> int:
    """Refuse to make more pixels, or to send more bytes, than the settings allow. Latents count, too.

    `otherwise`: see `check_answer`. Returns the most bytes of memory that images and answer can take.

    Raises:
        LimitError: there are too many images.
    """
    if (pixels := count * shape.height * shape.width) > max_pixels:
        fewer = max_pixels // (shape.height * shape.width)
        problem = f"{count} images have {pixels} pixels; at most {max_pixels} are given in an answer"
        raise LimitError(f"{problem}: ask for at most {fewer} images at once" if fewer else problem)
    size = partial(images_bytes, shape=shape, media=media, form=form, latent_dim=latent_dim)
    answer_bytes = check_answer(size, count, max_answer_bytes, otherwise)
    made = count * (shape.size + 3 * latent_dim) * 4
    return made + (0 if media == NPY else 2 * answer_bytes)  # npy is sent from the memory of the images


def _json_bytes(shape: ImageShape, form: Form, number_bytes: int) -> int:
    """Bytes of one image or map in JSON: a PNG in base64, or nested numbers."""
    if form == "png":
        return 4 * (_png_bytes(shape.channels, shape.height, shape.width) // 3 + 1) + _BRACKETS
    rows = shape.channels * shape.height
    return rows * (shape.width * number_bytes + _BRACKETS) + (shape.channels + 1) * _BRACKETS


def _png_bytes(channels: int, height: int, width: int) -> int:
    unpacked = height * (1 + width * channels)
    return unpacked + unpacked // 8 + _PNG_BYTES
