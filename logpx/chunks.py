"""Chunks: images that go into one request, as an npy file or a form."""

import io
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from logpx.images import AnyArray, ImageFile, Item

NPY = "application/x-npy"
_PART = b'--%b\r\nContent-Disposition: form-data; name="images"; filename="image"\r\n\r\n%b\r\n'


@dataclass
class ChunkSize:
    """How much goes into one request.

    Attributes:
        images: most images; becomes smaller when the service refuses so many.
        num_bytes: most bytes; one larger image goes alone.
    """

    images: int
    num_bytes: int


@dataclass(frozen=True)
class Chunk:
    """Images of one request: files, or arrays of one shape and type.

    Attributes:
        start: index of the first, counted from 0 over all given.
        items: at least one.
    """

    start: int
    items: Sequence[Item] | AnyArray

    def __len__(self) -> int:
        return len(self.items)

    def halves(self) -> "tuple[Chunk, Chunk]":
        """The same images in two chunks, of at least two."""
        middle = len(self.items) // 2
        return Chunk(self.start, self.items[:middle]), Chunk(self.start + middle, self.items[middle:])

    def body(self) -> tuple[str, bytes]:
        """Content type and body of the request.

        Raises:
            ImageError: a file cannot be read.
        """
        files = [item.read() for item in self.items if isinstance(item, ImageFile)]
        if files:
            boundary = secrets.token_hex(16).encode()
            parts = [_PART % (boundary, content) for content in files]
            return f"multipart/form-data; boundary={boundary.decode()}", b"".join([*parts, b"--%b--\r\n" % boundary])
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.ascontiguousarray(self.items), (1, 0), allow_pickle=False)
        return NPY, stream.getvalue()


def chunks_of(items: Iterator[Item], size: ChunkSize) -> Iterator[Chunk]:
    """Group successive images that fit into one request, lazily: at most one chunk is held."""
    held: list[Item] = []
    start = num_bytes = 0
    for item in items:
        item_bytes = item.size if isinstance(item, ImageFile) else item.nbytes
        is_full = len(held) >= size.images or num_bytes + item_bytes > size.num_bytes
        if held and (is_full or _form(item) != _form(held[0])):
            yield Chunk(start, held)
            start += len(held)
            held, num_bytes = [], 0
        held.append(item)
        num_bytes += item_bytes
    if held:
        yield Chunk(start, held)


def _form(item: Item) -> object:
    """Items of equal form can go into one request."""
    return ImageFile if isinstance(item, ImageFile) else (item.shape, item.dtype)
