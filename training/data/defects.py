"""Test images of what training does not have: defects, in the layout of MVTec AD and anomalib."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from training.data.image_files import EncodedImages, PixelFormat, Pixels, check_size, decode
from training.errors import DataError


@dataclass(frozen=True)
class DefectImages:
    """The encoded images by class, and how they are decoded: as the training images are.

    Attributes:
        by_class: the images of each class.
        pixel_format: of the training images.
        chw: their shape.
        white: factor for 8-bit pixels, see `ImageStream`.
    """

    by_class: Mapping[str, EncodedImages] = field(default_factory=dict)
    pixel_format: PixelFormat = field(default_factory=lambda: PixelFormat(1, deep=False))
    chw: tuple[int, int, int] = (1, 1, 1)
    white: int = 1

    def read(self) -> tuple[dict[str, Pixels], dict[str, str]]:
        """By class, the images [N, C, H, W] that can be read; and of the others by name, what is wrong."""
        found: dict[str, Pixels] = {}
        problems: dict[str, str] = {}
        for name, encoded in self.by_class.items():
            images = []
            for index in range(len(encoded)):
                try:
                    image = decode(encoded, index, self.pixel_format)
                    check_size(image.shape, self.chw, encoded.name(index), "a training image")
                except DataError as error:
                    problems[str(error.file)] = error.problem
                else:
                    images.append(image if self.white == 1 else image * np.uint8(self.white))
            if images:
                found[name] = np.stack(images)
        return found, problems


NO_DEFECTS = DefectImages()
