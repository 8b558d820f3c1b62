"""Check that a JPEG file is complete. libjpeg does not say: where data are missing it continues with zeros.

Two checks read the marker segments up to the end marker, EOI. The file must have an EOI. In a progressive file, every
coefficient must have been sent to its last bit: the standard does not demand that, but a file that was cut off between
two scans lacks some.

Neither check finds pixels that are missing before an EOI, as in files closed by a program that could not finish them.
For those, `filled` adds other bytes after the compressed data of each scan and each restart interval. A decoder that
has all the data it needs skips these bytes, so if they change the pixels, data were missing.
"""

import re
from dataclasses import dataclass, field

from service.images.errors import UnreadableImageError

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, a fill byte, or a restart
_WINDOW_BYTES = 2**17  # searched at once, because no other thread runs meanwhile
_EOI, _SOI, _SOS, _TEM = 0xD9, 0xD8, 0xDA, 0x01
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the SOF markers; from 0xC9 on arithmetic coding
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_RESTARTS = [bytes((0xFF, marker)) for marker in range(0xD0, 0xD8)]
_APP1, _APP13 = 0xE1, 0xED
_MAX_SCANS = 100  # each is a pass over all pixels; encoders write about 10
_MAX_SCANNED_PIXELS = 2**31  # scans × width × height
_MAX_SEGMENTS = 2**12  # Pillow handles each in Python; cameras write about 20
_MAX_FILL_BYTES = 2**12  # between segments, likewise
_MAX_EXIF_BYTES = 2**16  # the limit of the standard and of one segment; Pillow joins several
_MAX_RESTARTS = 2**15
_COUNTED_BYTES = 2**22
# The first bit is 1, where libjpeg would continue with 0, so another code or a larger number is read. No 0xFF.
_FILLING = bytes.fromhex("b5d36ae19c47f8253b8ed15274ac96e3c92d5b71a6ead84f17b3659cfad02e88")


@dataclass(frozen=True)
class JpegHead:
    """What a JPEG file says before its first scan.

    Attributes:
        width: in pixels, as is the height.
        progressive: whether each scan has some bits of all pixels.
        length: bytes before the first scan.
        segments: number of marker segments.
        slow_bytes: bytes of the segments that Pillow reads byte by byte, or nearly so.
        exif_bytes: bytes of EXIF data.
    """

    width: int
    height: int
    progressive: bool
    length: int
    segments: int
    slow_bytes: int
    exif_bytes: int

    @staticmethod
    def of(content: bytes) -> "JpegHead | None":
        """Read the segments as Pillow does, but within limits; None if the file has no size or is cut off.

        Raises:
            UnreadableImageError: it has more segments, fill bytes or EXIF data than allowed.
        """
        position, exif_bytes, fill_bytes, slow_bytes = 2, 0, 0, 0
        size: tuple[int, int] | None = None
        progressive = False
        for segments in range(_MAX_SEGMENTS):
            found = _MARKER.search(content, position, position + _MAX_FILL_BYTES + 2)
            if found is None:
                if len(content) - position > _MAX_FILL_BYTES + 2:
                    break
                return None
            start, marker = found.start(), content[found.start() + 1]
            fill_bytes += start - position
            if fill_bytes > _MAX_FILL_BYTES:
                break
            position = start + 2
            if marker == _EOI:
                return None
            if marker in (_SOI, _TEM):
                continue
            if marker == _SOS:
                return size and JpegHead(*size, progressive, position, segments, slow_bytes, exif_bytes)
            length = int.from_bytes(content[position : position + 2], "big")
            data = content[position + 2 : position + min(length, 10)]
            if marker in _FRAMES and size is None and len(data) >= 5:
                size = int.from_bytes(data[3:5], "big"), int.from_bytes(data[1:3], "big")
                progressive = marker in _PROGRESSIVE
            exif_bytes += length if marker == _APP1 and data.startswith(b"Exif") else 0
            slow_bytes += length if marker == _APP13 else 0
            if exif_bytes > _MAX_EXIF_BYTES:
                raise UnreadableImageError(f"it has more than {_MAX_EXIF_BYTES} bytes of EXIF data")
            position += length
        else:
            raise UnreadableImageError(f"it has more than {_MAX_SEGMENTS} segments")
        raise UnreadableImageError(f"it is cut off, or has more than {_MAX_FILL_BYTES} bytes between segments")

    def scans(self, content: bytes) -> int:
        """An upper bound on the number of scans, except in files so long that their bytes cost more than the scans."""
        if not self.progressive:
            return 1
        return min(1 + content.count(bytes((0xFF, _SOS)), self.length, self.length + _COUNTED_BYTES), _MAX_SCANS)


@dataclass
class JpegFile:
    """A JPEG file with its end marker.

    Attributes:
        length: bytes up to the end marker; cameras append more.
        arithmetic: whether arithmetic coding is used, whose encoders may leave out trailing zeros.
        pixels: width × height.
        scans: start and stop of the compressed data of each scan.
    """

    content: bytes
    length: int = 0
    arithmetic: bool = False
    pixels: int = 0
    scans: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def of(content: bytes) -> "JpegFile":
        """Read the marker segments of a file.

        Raises:
            UnreadableImageError: it is cut off, has no pixels, or has too many scans or segments.
        """
        file = JpegFile(content)
        position = 2
        missing: dict[int, set[int]] = {}  # by component: coefficients not yet sent to their last bit
        progressive = False
        segments = 0
        while True:
            start, marker = _next_marker(content, position)
            position = start + 2
            if marker == _EOI:
                break
            segments += 1
            if segments > _MAX_SEGMENTS:
                raise UnreadableImageError(f"it has more than {_MAX_SEGMENTS} segments")
            if marker in (_SOI, _TEM):
                continue
            end = position + int.from_bytes(content[position : position + 2], "big")
            if not position + 2 <= end <= len(content):
                raise UnreadableImageError("it is cut off in its header")
            if marker in _FRAMES:
                file.arithmetic, progressive = marker >= 0xC9, marker in _PROGRESSIVE
                height, width = content[position + 3 : position + 5], content[position + 5 : position + 7]
                file.pixels = int.from_bytes(width, "big") * int.from_bytes(height, "big")
                missing = {component: set(range(64)) for component in content[position + 8 : end : 3]}
            elif marker == _SOS:
                components = content[position + 3 : end - 3 : 2]
                first, last, bits = content[end - 3 : end] if progressive else (0, 63, 0)
                for component in components:
                    if bits & 15 == 0:
                        missing.get(component, set()).difference_update(range(first, last + 1))
                stop, _ = _next_marker(content, end)
                file.scans.append((end, end + len(content[end:stop].rstrip(b"\xff"))))
                end = stop
            position = end
        if not missing or any(missing.values()):
            raise UnreadableImageError("it is cut off: scans of it are missing")
        if len(file.scans) > _MAX_SCANS:
            raise UnreadableImageError(f"it has {len(file.scans)} scans; at most {_MAX_SCANS} are read")
        if progressive and len(file.scans) * file.pixels > _MAX_SCANNED_PIXELS:
            most = _MAX_SCANNED_PIXELS // file.pixels
            raise UnreadableImageError(f"it has {len(file.scans)} scans; of so many pixels at most {most} are read")
        file.length = position
        return file

    def filled(self) -> bytes | None:
        """The file with other bytes after its compressed data; None if such bytes can show nothing."""
        if self.arithmetic:
            return None
        written: list[bytes] = []
        position = 0
        for start, stop in self.scans:
            data = self.content[start:stop]
            restarts = sum(map(data.count, _RESTARTS)) if _RESTART.search(data) else 0
            if 0 < restarts <= _MAX_RESTARTS and b"\xff\xff" not in data:
                for restart in _RESTARTS:
                    data = data.replace(restart, _FILLING + restart)
            more = _FILLING + _RESTARTS[restarts % 8] + _FILLING  # in case another interval is missing
            written += (self.content[position:start], data, more)
            position = stop
        return b"".join((*written, self.content[position : self.length]))


def _next_marker(content: bytes, position: int) -> tuple[int, int]:
    """The position of the next marker, and which one it is."""
    while position < len(content):
        if found := _MARKER.search(content, position, position + _WINDOW_BYTES):
            return found.start(), content[found.start() + 1]
        position += _WINDOW_BYTES - 1  # a marker may lie across two windows
    raise UnreadableImageError("it is cut off: its end marker is missing")
