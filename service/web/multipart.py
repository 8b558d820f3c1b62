"""Parse multipart/form-data (RFC 7578): the files of the repeated field `images`.

Parts are found by searching for the boundary, so the contents of parts cost almost nothing, and only their headers are
parsed. This runs in another thread than the event loop.
"""

import re

from python_multipart.multipart import parse_options_header

from service.web.problems import InvalidBodyError, LimitError

FIELD = "images"
MAX_PART_HEADER_BYTES = 4096
_NAMED = 5  # a message names at most so many unknown fields
# As browsers, curl and common libraries write it; other headers are parsed in full.
_USUAL = re.compile(
    rb'(?:\A|\r\n)content-disposition: *form-data; *name="images"; *filename="[^"\\\r\n]*" *(?:\r\n|\Z)',
    re.IGNORECASE,
)
_AFTER_DELIMITER = re.compile(rb"[ \t]*\r\n")


def read_files(body: bytes, content_type: str, max_files: int) -> list[bytes]:
    """The bytes of every file in the repeated field `images`.

    Args:
        body: the whole body.
        content_type: the header with the boundary.
        max_files: the most parts, of any field.

    Raises:
        InvalidBodyError: it is not such a form, is cut off, or has another field or a part that is not a file.
        LimitError: it has more than `max_files` parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _invalid("its content type names no boundary")
    delimiter = b"--" + boundary
    files: list[bytes] = []
    unknown: set[str] = set()
    num_parts = 0
    start = _first_part(body, delimiter)
    while start is not None:
        num_parts += 1
        if num_parts > max_files:
            raise LimitError(f"the form has more than {max_files} files, which pass the limit on pixels")
        head_end = body.find(b"\r\n\r\n", start - 2, start + MAX_PART_HEADER_BYTES)
        end, following = _next_part(body, b"\r\n" + delimiter, start - 2)
        if head_end < 0 or head_end > end:
            raise _invalid(f"a part's headers do not end, or have more than {MAX_PART_HEADER_BYTES} bytes")
        name, is_file = _disposition(body[start:head_end])
        if name != FIELD:
            unknown.add(ascii(name))
        elif not is_file:
            raise InvalidBodyError("a part of the field images is not a file; give it a filename")
        else:
            files.append(body[head_end + 4 : end])
        start = following
    if unknown:
        named = ", ".join(sorted(unknown)[:_NAMED])
        raise InvalidBodyError(f"the form has unknown fields: {named}; accepted: {FIELD}, repeated")
    return files


def _first_part(body: bytes, delimiter: bytes) -> int | None:
    """The offset of the first part's headers, after a preamble if there is one; None if the form is empty."""
    if body.startswith(delimiter) and (found := _after(body, len(delimiter))) is not None:
        return found or None
    return _next_part(body, b"\r\n" + delimiter, 0)[1]


def _next_part(body: bytes, delimiter: bytes, position: int) -> tuple[int, int | None]:
    """The offsets of this part's end and of the next part's headers; the latter is None if there is no other."""
    while (end := body.find(delimiter, position)) >= 0:
        if (found := _after(body, end + len(delimiter))) is not None:
            return end, found or None
        position = end + len(delimiter)
    raise _invalid("it ends before its closing boundary")


def _after(body: bytes, position: int) -> int | None:
    """The offset of the part after a delimiter that ends here; 0 after the closing one; None if it was not one."""
    if body.startswith(b"--", position):
        return 0
    found = _AFTER_DELIMITER.match(body, position, position + MAX_PART_HEADER_BYTES)
    return None if found is None else found.end()


def _disposition(head: bytes) -> tuple[str, bool]:
    """The name of the field, and whether it is a file, from a part's headers."""
    if _USUAL.search(head):
        return FIELD, True
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            kind, options = parse_options_header(value.strip())
            if kind == b"form-data" and b"name" in options:
                return options[b"name"].decode(
                    "utf-8", "replace"
                ), b"filename" in options or b"filename*=" in value.lower()
    raise _invalid("a part does not say which field it is")


def _invalid(problem: str) -> InvalidBodyError:
    return InvalidBodyError(f"the body is not multipart/form-data: {problem}")
