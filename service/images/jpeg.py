"""Whether a JPEG file is all there, which libjpeg tells nobody: where data are missing it goes on with zeros.

Every marker segment is walked to the end marker, EOI. Of a progressive file every coefficient must have come to its
last bit: the standard does not demand that, but a file that was cut between two scans has not got them.

Neither shows pixels cut off before an EOI, as programs leave them that close what they could not finish. For those,
`filled` writes other bytes after the compressed data of each scan and each restart interval, where a decoder that has
all it needs skips them: where pixels change with them, data were missing.
"""

import re
from dataclasses import dataclass, field

from service.images.errors import UnreadableImageError

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed zero, a fill byte, or a restart
_WINDOW_BYTES = 2**17  # searched at once: no other thread runs meanwhile
_EOI, _SOI, _SOS, _TEM = 0xD9, 0xD8, 0xDA, 0x01
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the SOF markers; from 0xC9 on arithmetic coding
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_RESTARTS = [bytes((0xFF, marker)) for marker in range(0xD0, 0xD8)]
_APP1, _APP13 = 0xE1, 0xED
_MAX_SCANS = 100  # each costs a pass over all pixels; encoders write 10 or so
_MAX_SCANNED_PIXELS = 2**31  # scans × width × height
_MAX_SEGMENTS = 2**12  # each costs Pillow a turn of Python; cameras write 20 or so
_MAX_FILL_BYTES = 2**12  # between segments, likewise
_MAX_EXIF_BYTES = 2**16  # the standard's, and one segment's; Pillow joins several
_MAX_RESTARTS = 2**15
_COUNTED_BYTES = 2**22
# A first bit of 1, where libjpeg goes on with 0, so that another code or a larger number is read; and no 0xFF.
_FILLING = bytes.fromhex("b5d36ae19c47f8253b8ed15274ac96e3c92d5b71a6ead84f17b3659cfad02e88")


@dataclass(frozen=True)
class JpegHead:
    """What stands before the first scan.

    Attributes:
        width: in pixels; so is the height.
        progressive: whether each scan brings some bits of all pixels.
        length: to the first scan.
        segments: how many there are.
        slow_bytes: of segments whose bytes Pillow reads one by one, or nearly so.
        exif_bytes: of EXIF data.
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
        """Walk it as Pillow does, which has no bounds of its own; None where it has no size, or is cut off.

        Raises:
            UnreadableImageError: it has more segments, fill bytes or EXIF data than are read.
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
        """No fewer than there are, but for a file so long that its bytes cost more than they."""
        if not self.progressive:
            return 1
        return min(1 + content.count(bytes((0xFF, _SOS)), self.length, self.length + _COUNTED_BYTES), _MAX_SCANS)


@dataclass
class JpegFile:
    """A JPEG file that goes on to its end marker.

    Attributes:
        length: to the end marker; cameras append more.
        arithmetic: whether it is coded so; such an encoder may leave out trailing zeros.
        pixels: width × height.
        scans: start and stop of the compressed data of each.
    """

    content: bytes
    length: int = 0
    arithmetic: bool = False
    pixels: int = 0
    scans: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def of(content: bytes) -> "JpegFile":
        """Walk its segments.

        Raises:
            UnreadableImageError: it is cut off, has no pixels, or so many scans or segments that it would take long.
        """
        file = JpegFile(content)
        position = 2
        missing: dict[int, set[int]] = {}  # by component: coefficients that have not come, to their last bit
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
        """The file with other bytes where compressed data end; None where it cannot be told by them."""
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
            more = _FILLING + _RESTARTS[restarts % 8] + _FILLING  # an interval that may be wanted
            written += (self.content[position:start], data, more)
            position = stop
        return b"".join((*written, self.content[position : self.length]))


def _next_marker(content: bytes, position: int) -> tuple[int, int]:
    """Where the next marker is, and which."""
    while position < len(content):
        if found := _MARKER.search(content, position, position + _WINDOW_BYTES):
            return found.start(), content[found.start() + 1]
        position += _WINDOW_BYTES - 1  # a marker may lie across
    raise UnreadableImageError("it is cut off: its end marker is missing")
