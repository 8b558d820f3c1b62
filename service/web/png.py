"""The plainest PNG files, which most small images are, read fast. Pillow reads all others."""

import zlib
from dataclasses import dataclass

import numpy as np
import pyspng
from numpy.typing import NDArray

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PLAIN_PIXELS = {b"\x08\x00\0\0\0": 1, b"\x08\x02\0\0\0": 3}  # 8 bits; grey, RGB; not interlaced: channels
_PLAIN_PNG_BYTES = 57  # of a file with an empty IDAT


@dataclass(frozen=True)
class PlainPng:
    """A PNG file of nothing but 8-bit grey or RGB pixels: its size, one block of data, and the end.

    No transparency, no EXIF, nothing interlaced: libspng reads it in less than half of Pillow's time, and the same.
    """

    content: bytes
    width: int
    height: int
    channels: int

    @staticmethod
    def of(content: bytes) -> "PlainPng | None":
        """The file, if it is one."""
        channels = _PLAIN_PIXELS.get(content[24:29])
        if channels is None or content[:16] != _PNG_START or content[37:41] != b"IDAT" or content[-12:] != _PNG_END:
            return None
        if _PLAIN_PNG_BYTES + int.from_bytes(content[33:37], "big") != len(content):
            return None
        width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
        return PlainPng(content, width, height, channels) if width and height else None

    def read(self) -> NDArray[np.uint8] | None:
        """Levels [h, w, 1 or 3]; None where a checksum or a length is wrong, for pyspng would not mind."""
        if zlib.crc32(self.content[12:29]) != int.from_bytes(self.content[29:33], "big"):
            return None
        if zlib.crc32(self.content[37:-16]) != int.from_bytes(self.content[-16:-12], "big"):
            return None
        length = self.height * (1 + self.width * self.channels)  # each row begins with its filter
        stream = zlib.decompressobj()
        try:
            unpacked = len(stream.decompress(self.content[41:-16], length + 1))
            if unpacked != length or not stream.eof or stream.unused_data:
                return None
            levels: NDArray[np.uint8] = pyspng.load(self.content)
        except (zlib.error, RuntimeError):
            return None
        return levels.reshape(self.height, self.width, self.channels)
