"""How much is computed at once: what bounds memory and the wait of others, and changes no number."""

from dataclasses import dataclass

BYTES_A_PIXEL = 40
"""Of a decoder row's intermediate results, some ten float32 tensors [P]: 33 KB were counted at 784 pixels."""


@dataclass(frozen=True)
class BlockSizes:
    """What suits a device."""

    rows: int
    """Decoder rows of one run, at most."""
    memory: int
    """Bytes that the intermediate results of one run may take."""
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


CPU_BLOCKS = BlockSizes(rows=256, memory=2**29, images=256, contested=32)
_CUDA_MEMORY = 2**32


def cuda_blocks(memory_limit: int | None) -> BlockSizes:
    """What suits a GPU: its launches cost, and its rows hardly do. A run takes half of the limit, at most 4 GiB."""
    memory = _CUDA_MEMORY if memory_limit is None else min(_CUDA_MEMORY, memory_limit // 2)
    return BlockSizes(rows=4096, memory=memory, images=4096, contested=512)
