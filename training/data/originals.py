"""A few images of a data set as their files have them, beside what they are prepared to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.images.errors import ImageError
from service.images.file import ImageFile
from training.data.image_files import EncodedImages, PixelFormat, Pixels, decode
from training.errors import DataError


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        original: as its viewer sees it, 8 bits, [1 or 3, h, w]; transparent parts black, rotated as EXIF says.
        prepared: what the model takes, [C, H, W].
    """

    original: NDArray[np.uint8]
    prepared: Pixels


@dataclass(frozen=True)
class Originals:
    """The encoded training images of a data set that is prepared, and how; none of one that is not."""

    encoded: EncodedImages | None = None
    pixel_format: PixelFormat | None = None

    def read(self, count: int = 8) -> Sequence[Example]:
        """As many images, evenly spaced; those that cannot be read are left out."""
        if self.encoded is None or self.pixel_format is None:
            return []
        found = []
        for index in np.linspace(0, len(self.encoded) - 1, min(count, len(self.encoded))).astype(int).tolist():
            try:
                prepared = decode(self.encoded, index, self.pixel_format)
                with self.encoded.open(index) as stream:
                    levels = ImageFile(stream.read()).levels()
            except (DataError, ImageError, OSError):
                continue
            found.append(Example((levels >> 8 if levels.dtype == np.uint16 else levels).astype(np.uint8), prepared))
        return found


NO_ORIGINALS = Originals()
