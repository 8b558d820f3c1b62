"""Read one PNG, JPEG or WebP file as levels. The service, calibration and training get the same bits."""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.images.errors import PixelLimitError, UnreadableImageError
from service.images.jpeg import JpegFile, JpegHead
from service.images.png import HEADER_BYTES, SIGNATURE, Levels, PngFile, PngHeader, over_black
from service.images.webp import HEADER_BYTES as WEBP_HEADER_BYTES
from service.images.webp import webp_size

MAX_PIXELS = 2**27  # of one file, even if a reader allows more
_JPEG_START = b"\xff\xd8\xff"
_MAX_EXIF_BYTES = 2**16  # the standard's limit; some versions of Pillow copy, for each entry, the data it points to
_NO_IMAGE = "it is none of PNG, JPEG, WebP, or its header is broken"
_WHITE = {1: np.float32(255), 2: np.float32(65535)}  # by the number of bytes of a level
_SMALL_BYTES = 2**13
_SMALL_UNPACKED_BYTES = 2**16
# Pillow's decoders and its EXIF reader raise many kinds of error for broken files.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(struct.error, zlib.error),
    UserWarning,  # Pillow's for corrupt EXIF data, if warnings are turned into errors
)


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of a file say about the image.

    Attributes:
        width: in pixels, as stored; EXIF may rotate the image afterwards.
        height: the same.
        channels: 1 for grey, 3 for colour; transparency does not count as a channel.
        bits: bits of a level, 8 or 16.
    """

    width: int
    height: int
    channels: int
    bits: int

    @staticmethod
    def read(stream: BinaryIO) -> "ImageHeader":
        """Read only the header of a file.

        Raises:
            UnreadableImageError: it is not a PNG, JPEG or WebP, or its header is broken.
            PixelLimitError: the image has more than `MAX_PIXELS`.
        """
        start = stream.read(HEADER_BYTES)
        if start.startswith(SIGNATURE):
            return _png_header(start)
        stream.seek(0)
        return _pillow_header(_open(stream, start, MAX_PIXELS))


class ImageFile:
    """A file in memory whose header has been read.

    Args:
        content: the bytes of the whole file.
        max_pixels: limit for a WebP file, because libwebp allocates memory for all pixels at once.

    Raises:
        UnreadableImageError, PixelLimitError: as `ImageHeader.read`.
    """

    def __init__(self, content: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
        self._content = content
        self._opened: PillowFile | None = None
        if content.startswith(SIGNATURE):
            self.header = _png_header(content[:HEADER_BYTES])
        else:
            if content.startswith(_JPEG_START):
                JpegHead.of(content)  # raises if it exceeds the limits
            self._opened = _open(io.BytesIO(content), content[:WEBP_HEADER_BYTES], max_pixels)
            self.header = _pillow_header(self._opened)

    def levels(self) -> Levels:
        """Pixels [1 or 3, h, w] of the first frame, on black where it is transparent, rotated as its EXIF data say.

        uint8, or uint16 for a PNG with 16 bits a sample. A level is a pixel in units of 1/255 or 1/65535. Samples of
        less than 8 bits are scaled to 8. Partly transparent pixels are rounded to a level: level · alpha / white.

        Raises:
            UnreadableImageError: the file is broken or cut off.
        """
        try:
            if self._opened is None:
                png = PngFile(self._content)
                levels, orientation = png.levels(), 1
                if png.may_be_turned and (file := png.orientation_file()) is not None:
                    orientation = _orientation(Image.open(io.BytesIO(file), formats=("PNG",)))
            else:
                is_jpeg = self._content.startswith(_JPEG_START)
                levels = _decoded_jpeg(self._opened, self._content) if is_jpeg else _decoded(self._opened)
                orientation = _orientation(self._opened)
        except _DECODER_ERRORS as error:
            raise UnreadableImageError(str(error)) from error
        return (levels if orientation == 1 else _turned(levels, orientation)).transpose(2, 0, 1)


def in_unit_interval(levels: Levels) -> NDArray[np.float32]:
    """Convert levels of 8 or 16 bits to pixels in [0, 1]."""
    return np.divide(levels, _WHITE[levels.dtype.itemsize], dtype=np.float32)


def is_small_png(content: bytes) -> bool:
    """Whether reading this file takes well under a millisecond, judged by its length and its header."""
    if len(content) > _SMALL_BYTES or not content.startswith(SIGNATURE):
        return False
    try:
        return PngHeader.of(content[:HEADER_BYTES]).unpacked_bytes <= _SMALL_UNPACKED_BYTES
    except UnreadableImageError:
        return True  # refusing it takes no time


@lru_cache(maxsize=256)
def _png_header(start: bytes) -> ImageHeader:
    png = PngHeader.of(start)
    return _bounded(ImageHeader(png.width, png.height, png.channels, png.bits))


def _pillow_header(image: PillowFile) -> ImageHeader:
    return _bounded(ImageHeader(image.width, image.height, 1 if image.mode == "L" else 3, 8))


def _bounded(header: ImageHeader) -> ImageHeader:
    _check_pixels(header.width, header.height, MAX_PIXELS)
    return header


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise PixelLimitError(f"it has {width}×{height} pixels; at most {most} are decoded")


def _open(stream: BinaryIO, start: bytes, max_pixels: int) -> PillowFile:
    """Open a JPEG or WebP with Pillow, which reads its header."""
    if not start:
        raise UnreadableImageError("it is empty")
    if (size := webp_size(start)) is not None:
        _check_pixels(*size, max_pixels)
    try:
        if start.startswith(_JPEG_START):
            return JpegImageFile(stream)  # `Image.open` takes files of several images for another format
        if start.startswith(b"RIFF"):
            return WebPImageFile(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PixelLimitError(str(error)) from None
    except _DECODER_ERRORS as error:
        raise UnreadableImageError(_NO_IMAGE) from error
    raise UnreadableImageError(_NO_IMAGE)


def _decoded_jpeg(image: PillowFile, content: bytes) -> Levels:
    """As `_decoded`, after checking that no pixels are missing from the file."""
    file = JpegFile.of(content)
    levels = _decoded(image)
    if (filled := file.filled()) is not None:
        with JpegImageFile(io.BytesIO(filled)) as other:
            if not np.array_equal(levels, _decoded(other)):
                raise UnreadableImageError("it is cut off: pixels of it are missing")
    return levels


def _decoded(image: PillowFile) -> Levels:
    """Levels [h, w, 1 or 3] of a JPEG or WebP, not yet rotated."""
    image.load()
    whole: Image.Image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    levels = np.frombuffer(whole.tobytes(), np.uint8).reshape(whole.height, whole.width, -1)
    return over_black(levels[..., :3], levels[..., 3]) if levels.shape[2] == 4 else levels


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, from 1 to 8; 1 if there is none or it is invalid. Without `info` there is none."""
    if len(image.info.get("exif", b"")) > _MAX_EXIF_BYTES:
        raise UnreadableImageError(f"it has more than {_MAX_EXIF_BYTES} bytes of EXIF data")
    if len(image.info.get("Raw profile type exif", "")) > 2.2 * _MAX_EXIF_BYTES:  # in hexadecimal, in lines
        raise UnreadableImageError(f"it has more than {_MAX_EXIF_BYTES} bytes of EXIF data")
    found = image.getexif().get(ExifTags.Base.Orientation, 1) if image.info else 1
    return found if isinstance(found, int) else 1


def _turned(levels: Levels, orientation: int) -> Levels:
    """Levels [h, w, c], rotated and mirrored as the orientation says."""
    match orientation:
        case 2:
            return levels[:, ::-1]
        case 3:
            return levels[::-1, ::-1]
        case 4:
            return levels[::-1]
        case 5:
            return levels.transpose(1, 0, 2)
        case 6:
            return levels[::-1].transpose(1, 0, 2)
        case 7:
            return levels[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            return levels[:, ::-1].transpose(1, 0, 2)
    return levels
