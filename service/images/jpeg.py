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
_RESTARTS = [bytes((0xFF, marker)) for marker in range(0xD0, 0xD8)]
_MAX_SCANS = 100  # each costs a pass over all pixels; encoders write 10 or so
_MAX_RESTARTS = 2**15
# A first bit of 1, where libjpeg goes on with 0, so that another code or a larger number is read; and no 0xFF.
_FILLING = bytes.fromhex("b5d36ae19c47f8253b8ed15274ac96e3c92d5b71a6ead84f17b3659cfad02e88")


@dataclass
class JpegFile:
    """A JPEG file that goes on to its end marker.

    Attributes:
        length: to the end marker; cameras append more.
        arithmetic: whether it is coded so; such an encoder may leave out trailing zeros.
        scans: start and stop of the compressed data of each.
    """

    content: bytes
    length: int = 0
    arithmetic: bool = False
    scans: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def of(content: bytes) -> "JpegFile":
        """Walk its segments.

        Raises:
            UnreadableImageError: it is cut off, has no pixels, or has so many scans that it would take long.
        """
        file = JpegFile(content)
        position = 2
        missing: dict[int, set[int]] = {}  # by component: coefficients that have not come, to their last bit
        progressive = False
        while True:
            start, marker = _next_marker(content, position)
            position = start + 2
            if marker == _EOI:
                break
            if marker in (_SOI, _TEM):
                continue
            end = position + int.from_bytes(content[position : position + 2], "big")
            if not position + 2 <= end <= len(content):
                raise UnreadableImageError("it is cut off in its header")
            if marker in _FRAMES:
                file.arithmetic, progressive = marker >= 0xC9, marker in _PROGRESSIVE
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
            restarts = sum(map(data.count, _RESTARTS))
            if restarts <= _MAX_RESTARTS and b"\xff\xff" not in data:
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
