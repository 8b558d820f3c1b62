"""How much is computed at once: what bounds memory and the wait of others, and changes no number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

BYTES_A_PIXEL = 40
"""Of a decoder row's intermediate results, some ten float32 tensors [P]: 33 KB were counted at 784 pixels."""


@dataclass(frozen=True)
class BlockSizes:
    """What suits a device."""

    rows: int
    """Decoder rows of one run, at most."""
    most_estimate_rows: int
    """The same of an estimate, which takes many runs. Others wait for the end of each, and on a CPU larger ones are not
    faster."""
    estimate_numbers: int
    """Decoder rows of such a run, times the numbers of each (pixels and channels): on a CPU, what its caches hold."""
    memory: int
    """Bytes that the intermediate results of one run may take, beside others that are made at once."""
    images: int
    """Images whose estimates are made together."""
    contested: int
    """Images whose modes are searched for from several points at once; each has twelve."""

    def chunk_rows(self, num_pixels: int) -> int:
        """Decoder rows of one run, for images of so many pixels and channels.

        >>> CPU_BLOCKS.chunk_rows(28 * 28), CPU_BLOCKS.chunk_rows(300 * 300 * 3)
        (256, 49)
        """
        return max(1, min(self.rows, self.memory // (BYTES_A_PIXEL * num_pixels)))

    def estimate_rows(self, num_pixels: int) -> int:
        """Decoder rows of one run of an estimate.

        >>> [CPU_BLOCKS.estimate_rows(side**2 * 3) for side in (28, 128, 512)]
        [96, 16, 4]
        """
        fast = max(_EVEN, self.estimate_numbers // num_pixels)
        return min(self.chunk_rows(num_pixels), self.most_estimate_rows, fast)


Tile = tuple[slice, slice]
"""Images, and samples of each."""
_CUDA_MEMORY = 2**32
_EVEN = 4
"""Samples of a run that are part of an image's come in multiples of it: ONNX Runtime sums float64 numbers four rows at
a time, and rows that are left over in another order, which gives other bits."""
_MOST_BESIDE, _SIDE_IMAGES = 4, 16
"""Blocks of images that are computed side by side, at most; and how many images each has at least, if more than two."""
_LEAST_ROWS = 32
"""Of a run that is made beside others: fewer are computed sooner than another thread wakes up."""


def cpu_blocks(at_once: int) -> BlockSizes:
    """What suits a CPU on which so many runs are made at once."""
    return BlockSizes(
        rows=256,
        most_estimate_rows=96,
        estimate_numbers=3 * 2**18,
        memory=2**29 // at_once,
        images=256,
        contested=32,
    )


CPU_BLOCKS = cpu_blocks(1)


def cuda_blocks(memory_limit: int | None) -> BlockSizes:
    """What suits a GPU: its launches cost, and its rows hardly do. A run takes half of the limit, at most 4 GiB."""
    memory = _CUDA_MEMORY if memory_limit is None else min(_CUDA_MEMORY, memory_limit // 2)
    return BlockSizes(
        rows=4096, most_estimate_rows=4096, estimate_numbers=2**62, memory=memory, images=4096, contested=512
    )


def piece_size(count: int, rows_each: int, most_rows: int, at_once: int) -> int:
    """Of `count` equal parts of a computation, how many one run takes: as many runs for each of the threads.

    Args:
        count: of the parts.
        rows_each: decoder rows of one part.
        most_rows: of one run, unless one part has more.
        at_once: runs that are made at once.

    >>> [piece_size(32, 25, 256, at_once) for at_once in (1, 2, 3)], piece_size(1, 25, 256, 2)
    ([10, 8, 6], 1)
    """
    most = max(1, most_rows // rows_each)
    if at_once == 1:
        return most
    runs = math.ceil(count / most / at_once) * at_once
    return max(math.ceil(count / max(1, runs)), min(most, _LEAST_ROWS // rows_each), 1)


def pieces(count: int, rows_each: int, most_rows: int, at_once: int) -> Iterator[slice]:
    """The parts of a computation cut into runs: see `piece_size`.

    >>> [(piece.start, piece.stop) for piece in pieces(5, 100, 256, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    size = piece_size(count, rows_each, most_rows, at_once)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def tiles(num_images: int, samples: slice, most_rows: int, at_once: int) -> Iterator[Tile]:
    """Images × samples cut into runs of at most `most_rows`, samples first: images, and samples.

    >>> [(images.stop, samples.start, samples.stop) for images, samples in tiles(1, slice(0, 400), 256, 1)]
    [(1, 0, 200), (1, 200, 400)]
    """
    count = samples.stop - samples.start
    size = piece_size(num_images * count, 1, most_rows, at_once)
    columns = math.ceil(count / max(1, math.ceil(count / size)))
    if columns < count:
        columns = min(columns + -columns % _EVEN, most_rows)
    rows = max(1, size // max(1, columns))
    for row in range(0, num_images, rows):
        for column in range(samples.start, samples.stop, columns):
            yield slice(row, min(row + rows, num_images)), slice(column, min(column + columns, samples.stop))


def blocks_at_once(num_images: int, threads: int) -> int:
    """Blocks of images that are computed side by side: two, or up to four where each has enough to do.

    Between its runs each takes Python's lock, and memory of its own, so on many cores few blocks with several threads
    each do better.

    >>> blocks_at_once(1, 2), blocks_at_once(64, 2), blocks_at_once(16, 16), blocks_at_once(256, 16)
    (1, 2, 2, 4)
    """
    return max(1, min(threads, num_images, _MOST_BESIDE, max(2, num_images // _SIDE_IMAGES)))


def side_block_size(num_images: int, most: int, at_once: int) -> int:
    """Images of each block, where `most` are computed at once."""
    return max(1, min(math.ceil(num_images / at_once), most // at_once))


def side_blocks(num_images: int, most: int, at_once: int) -> Iterator[slice]:
    """Images cut into blocks that are computed side by side, of about one size.

    >>> [(block.start, block.stop) for block in side_blocks(5, 256, 2)], [*side_blocks(0, 256, 1)]
    ([(0, 3), (3, 5)], [slice(0, 0, None)])
    """
    size = side_block_size(num_images, most, at_once)
    for first in range(0, max(1, num_images), size):
        yield slice(first, min(first + size, num_images))
