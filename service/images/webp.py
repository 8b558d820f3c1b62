"""Read the size of a WebP image from its first bytes, before libwebp allocates memory for it."""

HEADER_BYTES = 30


def webp_size(head: bytes) -> tuple[int, int] | None:
    r"""Width and height, in pixels, of the image or of an animation's canvas; None if the header is broken.

    >>> webp_size(b"RIFF....WEBPVP8X....\0\0\0\0" + bytes((99, 0, 0, 49, 0, 0)))
    (100, 50)
    """
    if len(head) < HEADER_BYTES or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None
