"""Decode the images of a data set: all into memory if they fit, otherwise as a stream."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_store import CHANNELS
from service.images.file import ImageHeader
from service.images.fitting import Fitting
from service.progress import Progress
from training.configuration import Colour
from training.data.image_files import EncodedImages, PixelFormat, Pixels, check_size, decode, read_header
from training.data.preparation import AS_THEY_ARE, AUTO, LOOKED_AT, Preparation, Sizes, choose, is_grey
from training.data.streams import ImageStream, decode_batches, in_batches
from training.errors import CorruptImageError, DataError

_NAMED = 5  # an error message names at most so many corrupt images
_MAX_BLOCK_BYTES = 512 * 2**20
TOO_DARK = (
    "no pixel of this and of any other image is brighter than 1 of 255: if 1 is meant to be white, write the files "
    "with 255, because the service reads them the same way"
)


@dataclass(frozen=True)
class Reading:
    """Options for reading a data set.

    Attributes:
        max_memory: GiB of decoded pixels up to which encoded images are loaded into memory; larger sets stream.
        skip_corrupt: whether images that cannot be decoded are left out; otherwise they are an error.
        workers: processes that decode a stream; with 0 this process decodes.
        progress: whether to print progress on stderr.
        preparation: how images of any size become the model's.
    """

    max_memory: float = 4.0
    skip_corrupt: bool = False
    workers: int = 0
    progress: bool = False
    preparation: Preparation = AS_THEY_ARE


class ImageSet:
    """The encoded images of a data set by part, `train` first.

    Attributes:
        corrupt: names of images to what is wrong.
        preparation: how images are prepared, `auto` resolved.
        chosen: what `auto` chose, and why, in sentences.
        pixel_format: to which all images are decoded.
        chw: the shape of each.

    Raises:
        DataError: an image has another size than the first, and no size is asked for.
        CorruptImageError: no training image can be decoded.
    """

    def __init__(self, parts: Mapping[str, EncodedImages], reading: Reading) -> None:
        self.corrupt: dict[str, str] = {}
        self._parts = parts
        self._reading = reading
        self._sizes: dict[str, NDArray[np.int32]] = {}  # heights and widths by the headers that can be read, [N, 2]
        headers: set[ImageHeader] = set()
        with self._progress("reading headers", sum(map(len, parts.values()))) as progress:
            self._index = {part: self._read_headers(part, headers, progress) for part in parts}
        self.preparation, self.chosen = reading.preparation, list[str]()
        if self.preparation.size == AUTO:
            self._choose(all_grey=all(header.channels == 1 for header in headers))
        self.pixel_format = PixelFormat.of(headers, self.preparation)
        if self.preparation.size is not None:
            colour: Colour = "grey" if self.pixel_format.channels == 1 else "rgb"
            self.preparation = replace(self.preparation, colour=colour)
        self._first, self.chw = self._read_first()
        if self.preparation.size is None:
            self._check_sizes()

    @property
    def fits(self) -> bool:
        """Whether the decoded pixels take at most `max_memory`."""
        num_images = sum(map(len, self._index.values()))
        num_bytes = num_images * math.prod(self.chw) * self.pixel_format.dtype.itemsize
        return num_bytes <= self._reading.max_memory * 2**30

    @property
    def paths(self) -> dict[str, Sequence[str]]:
        """By part, the paths of the images that can be read, in the order of their pixels; none where they have none.

        Whether an image can be read is known when all are loaded or streamed.
        """
        return {
            part: [images.paths[number] for number in self._index[part].tolist()]
            for part, images in self._parts.items()
            if images.paths is not None
        }

    def load(self) -> dict[str, Pixels]:
        """Decode all images into memory: [N, C, H, W] for each part.

        Raises:
            CorruptImageError: images cannot be decoded and `skip_corrupt` is off; the message counts and names them.
            DataError: an image has another size than the first.
        """
        with self._progress("decoding", sum(map(len, self._index.values()))) as progress:
            loaded = {part: self._load_part(part, progress) for part in self._parts}
        self._check_corrupt()
        return loaded

    def stream(self) -> tuple[dict[str, ImageStream], str]:
        """All images as streams, and the SHA-256 that they would have if they were loaded into memory (see sources.py).

        This decodes everything once, and once more if images are left out or all pixels turn out to be binary.

        Raises:
            CorruptImageError, DataError: as `load`.
        """
        self._check_blocks()
        white = 1
        while True:
            digest = hashlib.sha256()
            num_corrupt, largest = len(self.corrupt), 0.0
            streams: dict[str, ImageStream] = {}
            with self._progress("checking", sum(map(len, self._index.values()))) as progress:
                for part in self._parts:
                    streams[part], brightest = self._scan(part, white, digest, progress)
                    largest = max(largest, brightest)
            self._check_corrupt()
            if len(self.corrupt) > num_corrupt:
                continue
            if largest == 1 and not self.pixel_format.deep:
                if self.preparation != AS_THEY_ARE:
                    raise DataError(self._first, TOO_DARK)
                white = 255
                continue
            if empty := [part for part, stream in streams.items() if not len(stream)]:
                raise DataError(self._first, f"no image of the {empty[0]} part can be read")
            if largest == 0:
                raise DataError(self._first, "every pixel of this and of every other image is 0")
            return streams, digest.hexdigest()

    def _progress(self, what: str, num_images: int) -> Progress:
        return Progress(what, num_images, shown=self._reading.progress)

    def _read_headers(self, part: str, headers: set[ImageHeader], progress: Progress) -> NDArray[np.int64]:
        """The numbers of images whose header can be read; adds their headers to `headers`."""
        images = self._parts[part]
        good = np.ones(len(images), np.bool_)
        sizes = np.zeros((len(images), 2), np.int32)
        for number in range(len(images)):
            try:
                header = read_header(images, number)
                headers.add(header)
                sizes[number] = header.height, header.width
            except CorruptImageError as error:
                self.corrupt[str(error.file)] = error.problem
                good[number] = False
            progress.advance(1)
        self._sizes[part] = sizes[good]
        return np.flatnonzero(good)

    def _choose(self, *, all_grey: bool) -> None:
        """Resolve `auto` by the sizes of all images, and by the colours of a few."""
        index, looked_at = self._index["train"], 0
        if len(index) and not all_grey and self.preparation.colour is None:
            small = PixelFormat(CHANNELS["rgb"], deep=False, fitting=Fitting("stretch"), size=(64, 64))
            chosen = index[np.linspace(0, len(index) - 1, min(LOOKED_AT, len(index))).astype(np.int64)]
            grey = []
            for number in chosen.tolist():
                with suppress(CorruptImageError):  # it is counted when all are decoded
                    grey.append(is_grey(decode(self._parts["train"], number, small).astype(np.uint8, copy=False)))
            all_grey, looked_at = all(grey), len(grey)
        sizes = np.concatenate(list(self._sizes.values()))
        if len(sizes):
            found = Sizes(sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64))
            self.preparation, self.chosen = choose(self.preparation, found, all_grey=all_grey, looked_at=looked_at)

    def _check_sizes(self) -> None:
        """Refuse the first image of another size than the first one, by the headers: decoding all may take long.

        An image that EXIF turns has the header's height and width exchanged, so only other pairs are looked at.
        """
        for part, images in self._parts.items():
            pairs = np.sort(self._sizes[part], axis=1)
            for number in self._index[part][(pairs != sorted(self.chw[1:])).any(axis=1)].tolist():
                with suppress(CorruptImageError):  # it is counted when all are decoded
                    shape = decode(images, number, self.pixel_format).shape
                    check_size(shape, self.chw, images.name(number), self._first)

    def _load_part(self, part: str, progress: Progress) -> Pixels:
        images, index = self._parts[part], self._index[part]
        pixels: Pixels = np.empty((len(index), *self.chw), self.pixel_format.dtype)
        good = np.ones(len(index), np.bool_)
        for place, number in enumerate(index.tolist()):
            try:
                image = decode(images, number, self.pixel_format)
            except CorruptImageError as error:
                self.corrupt[str(error.file)] = error.problem
                good[place] = False
            else:
                check_size(image.shape, self.chw, images.name(number), self._first)
                pixels[place] = image
            progress.advance(1)
        self._index[part] = index[good]
        return pixels if good.all() else pixels[good]

    def _read_first(self) -> tuple[str, tuple[int, int, int]]:
        """The name and shape of the first training image that can be decoded."""
        images = self._parts["train"]
        for number in self._index["train"].tolist():
            try:
                channels, height, width = decode(images, number, self.pixel_format).shape
            except CorruptImageError as error:
                self.corrupt[str(error.file)] = error.problem
            else:
                return images.name(number), (channels, height, width)
        name, problem = next(iter(self.corrupt.items()))
        raise CorruptImageError(name, f"{problem}; none of the {len(images)} training images can be read")

    def _scan(self, part: str, white: int, digest: "hashlib._Hash", progress: Progress) -> tuple[ImageStream, float]:
        """Decode a part once for the sums that a stream needs, and its largest pixel. Leaves out corrupt images."""
        index = self._index[part]
        stream = ImageStream(
            encoded=self._parts[part],
            pixel_format=self.pixel_format,
            chw=self.chw,
            index=index,
            pixel_sum=np.zeros(self.chw),
            black_and_white=True,
            white=white,
            workers=self._reading.workers,
        )
        digest.update(f"{part} {stream.dtype} {stream.shape}\n".encode())
        pixel_sum, black_and_white, largest = np.zeros(self.chw), True, 0.0
        good = np.ones(len(index), np.bool_)
        start = 0
        for numbers, batch in zip(order := in_batches(index), decode_batches(stream, order), strict=True):
            if batch.refused is not None:
                raise DataError(*batch.refused)
            for place, name, problem in batch.corrupt:
                self.corrupt[name] = problem
                good[start + place] = False
            start += len(numbers)
            progress.advance(len(numbers))
            if len(batch.pixels):
                digest.update(np.ascontiguousarray(batch.pixels).data)
                pixel_sum += batch.pixels.sum(axis=0, dtype=np.float64)
                largest = max(largest, brightest_before(batch.pixels, self.preparation))
                full = 1 if self.pixel_format.deep else 255
                black_and_white &= bool(((batch.pixels == 0) | (batch.pixels == full)).all())
        self._index[part] = index[good]
        return replace(stream, index=index[good], pixel_sum=pixel_sum, black_and_white=black_and_white), largest

    def _check_blocks(self) -> None:
        for images in self._parts.values():
            if len(images.block_bytes) and (largest := int(images.block_bytes.max())) > _MAX_BLOCK_BYTES:
                number = int(np.argmax(np.asarray(images.blocks) == int(images.block_bytes.argmax())))
                problem = f"lies in a row group of {largest / 2**20:.0f} MiB, and a worker holds a row group whole"
                advice = f"write the file with smaller ones (row_group_size), at most {_MAX_BLOCK_BYTES // 2**20} MiB"
                raise DataError(images.name(number), f"{problem}: {advice}")

    def _check_corrupt(self) -> None:
        if not self.corrupt or self._reading.skip_corrupt:
            return
        (name, problem), *others = self.corrupt.items()
        total = sum(map(len, self._parts.values()))
        counted = f"{len(self.corrupt)} of {total} images cannot be read"
        named = ", ".join(other for other, _ in others[: _NAMED - 1])
        more = f", and {len(others) - _NAMED + 1} more" if len(others) >= _NAMED else ""
        also = f"; so are {named}{more}" if others else ""
        raise CorruptImageError(name, f"{problem}{also}; {counted}: --skip-corrupt leaves them out")


def brightest_before(pixels: Pixels, preparation: Preparation) -> float:
    """The brightest pixel of prepared images as it was before they were inverted, if they were."""
    if not preparation.invert:
        return float(pixels.max())
    return float((255 if pixels.dtype == np.uint8 else 1) - pixels.min())
