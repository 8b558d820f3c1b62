"""Images that do not fit into memory: worker processes decode them each time they are read."""

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from training.data.image_files import EncodedImages, PixelFormat, Pixels, check_size, decode
from training.data.parquet import CACHE_BYTES
from training.errors import CorruptImageError, DataError

_BATCH = 100
_PREFETCH = 2  # batches queued for each worker


@dataclass(frozen=True)
class Decoded:
    """A batch from a worker: the images that could be decoded [N, C, H, W], and what is wrong with the others.

    Attributes:
        pixels: uint8 in 0..255 or float32 in [0, 1].
        corrupt: indices in the batch of images that are not in `pixels`, each with the image's name and the problem.
        refused: name and problem if the whole data set cannot be used, else None.
    """

    pixels: Pixels
    corrupt: tuple[tuple[int, str, str], ...]
    refused: tuple[str, str] | None


@dataclass(frozen=True)
class ImageStream:
    """Images [N, C, H, W] with the parts of an array's interface that are needed; decoded whenever they are read.

    A pass keeps two batches in memory for each worker. With Parquet files each worker also keeps up to 64 MiB of
    encoded images, or one row group if that is larger.

    Attributes:
        encoded: the encoded images.
        pixel_format: the format to which they are decoded.
        chw: C, H and W.
        index: the numbers of the images in `encoded`, ascending.
        pixel_sum: sum over all images, [C, H, W], in the units of `dtype`.
        black_and_white: whether every pixel is black or white.
        white: factor for 8-bit pixels: 255 for binarised images whose files contain 0 and 1, otherwise 1.
        workers: processes that decode; with 0 this process decodes. Results do not depend on it.
    """

    encoded: EncodedImages
    pixel_format: PixelFormat
    chw: tuple[int, int, int]
    index: NDArray[np.int64]
    pixel_sum: NDArray[np.float64]
    black_and_white: bool
    white: int
    workers: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, C, H and W."""
        return len(self), *self.chw

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """uint8 for pixels in 0..255, float32 for pixels in [0, 1]."""
        return self.pixel_format.dtype

    def mean(self) -> NDArray[np.float64]:
        """Mean of the pixels, [C, H, W], in the units of `dtype`."""
        return self.pixel_sum / len(self)

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Pixels]:
        """The images at the given indices: one array [B, C, H, W] for each array of indices [B].

        Raises:
            DataError: an image has changed since it was first read.
        """
        for batch in decode_batches(self, [self.index[places] for places in order]):
            if batch.refused is not None:
                raise DataError(*batch.refused)
            if batch.corrupt:
                raise CorruptImageError(batch.corrupt[0][1], batch.corrupt[0][2])
            yield batch.pixels

    def read(self, places: NDArray[np.int64]) -> Pixels:
        """Decode the images at these indices into memory: [B, C, H, W]."""
        pixels: Pixels = np.empty((len(places), *self.chw), self.dtype)
        start = 0
        for batch in self.batches(in_batches(places)):
            pixels[start : start + len(batch)] = batch
            start += len(batch)
        return pixels

    def hold_out(self, parts: Sequence[NDArray[np.int64]]) -> tuple["ImageStream", list[Pixels]]:
        """A stream without the images at the indices of all parts, and the images of each part in memory."""
        held_out = [self.read(places) for places in parts]
        pixel_sum = self.pixel_sum - sum(pixels.sum(axis=0, dtype=np.float64) for pixels in held_out)
        index = np.delete(self.index, np.concatenate(parts))
        return replace(self, index=index, pixel_sum=pixel_sum), held_out

    def shuffled(self, generator: torch.Generator) -> NDArray[np.int64]:
        """All indices in a random order for one epoch, drawn from the generator.

        If images are read alone, the order is uniform. If they are read in blocks (row groups), the blocks are put in
        random order and grouped into windows of as many blocks as fit into 64 MiB, at least one; images are shuffled
        within each window. So a worker reads each block once an epoch. If images that are alike are stored together,
        the order is less random than a uniform one.
        """
        order: NDArray[np.int64] = torch.randperm(len(self), generator=generator, device=generator.device).cpu().numpy()
        if self.encoded.blocks is None:
            return order
        num_bytes = self.encoded.block_bytes
        blocks = torch.randperm(len(num_bytes), generator=generator, device=generator.device).cpu().numpy()
        window_of = np.empty(len(num_bytes), np.int64)
        window, room = 0, CACHE_BYTES
        for block in blocks:
            if num_bytes[block] > room:
                window, room = window + 1, CACHE_BYTES
            window_of[block] = window
            room -= num_bytes[block]
        return order[np.argsort(window_of[self.encoded.blocks[self.index[order]]], kind="stable")]


class _Decoder(Dataset[Decoded]):
    """Decodes batches of images by their numbers."""

    def __init__(self, stream: ImageStream) -> None:
        self._stream = replace(stream, index=np.zeros(0, np.int64))  # each batch brings its own numbers

    def __getitem__(self, numbers: NDArray[np.int64]) -> Decoded:
        stream = self._stream
        pixels: Pixels = np.empty((len(numbers), *stream.chw), stream.dtype)
        corrupt = []
        filled = 0
        for place, number in enumerate(numbers.tolist()):
            try:
                image = decode(stream.encoded, number, stream.pixel_format)
                check_size(image.shape, stream.chw, stream.encoded.name(number), "the first image")
            except CorruptImageError as error:
                corrupt.append((place, str(error.file), error.problem))
            except DataError as error:
                return Decoded(pixels[:0], (), (str(error.file), error.problem))
            else:
                pixels[filled] = image
                filled += 1
        if stream.white != 1:
            pixels *= np.uint8(stream.white)
        return Decoded(pixels[:filled], tuple(corrupt), None)


def decode_batches(stream: ImageStream, order: Sequence[NDArray[np.int64]]) -> Iterator[Decoded]:
    """Decode images by their numbers in `stream.encoded`: one batch for each array of numbers, in the given order."""
    workers = min(stream.workers, len(order))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more than cores
        loader = DataLoader(
            _Decoder(stream),
            batch_size=None,
            sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH if workers else None,
            # A fork of a process with threads can hang; the fork server has no threads.
            multiprocessing_context=_forkserver() if workers else None,
            generator=torch.Generator(),  # not used, but without it the state of the global generator would change
        )
    yield from loader


def in_batches(places: NDArray[np.int64], size: int = _BATCH) -> list[NDArray[np.int64]]:
    """Split indices into batches of `size`; the last one may be shorter."""
    return [places[start : start + size] for start in range(0, len(places), size)]


def _as_it_is(batch: Any) -> Any:
    """Leave arrays as they are, to be sent by a pipe: tensors would fill /dev/shm, which has 64 MB in a container."""
    return batch


def _forkserver() -> "multiprocessing.context.ForkServerContext":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
