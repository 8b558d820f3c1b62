"""A small record of many images, in which others can be looked up: a bottom-k sketch of their hashes.

The sketch keeps the k smallest hashes of all images. For an image whose hash is below the largest of these it can say
whether the image is among them. That is every image if there were at most k, otherwise about k in N (Cohen and Kaplan
2007, "Summarizing data using bottom-k sketches").
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

SIZE = 1024
_HASH_BYTES = 5  # an image that is not there is found with probability 1024 / 2⁴⁰
_HASH = "BLAKE2b of 5 bytes, of the image's pixels [C, H, W] as 8-bit levels"


class Lookup(NamedTuple):
    """How many images were decidable, and how many of those the sketch has."""

    decidable: int
    found: int


@dataclass(frozen=True)
class BottomKSketch:
    """The sketch of a set of images.

    Attributes:
        num_images: how many images it was made from.
        smallest: their smallest hashes in ascending order, at most 1024; [k].
    """

    num_images: int
    smallest: NDArray[np.uint64]

    @classmethod
    def of(cls, batches: Iterable[NDArray[Any]]) -> Self:
        """The sketch of batches of images, each [B, C, H, W], uint8 in 0..255 or floats in [0, 1].

        >>> images = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
        >>> sketch = BottomKSketch.of([images[:2]])
        >>> sketch.num_images, sketch.look_up(image_hashes(images))
        (2, Lookup(decidable=3, found=2))
        """
        num_images, smallest = 0, np.zeros(0, np.uint64)
        for batch in batches:
            num_images += len(batch)
            smallest = np.unique(np.concatenate([smallest, image_hashes(batch)]))[:SIZE]
        return cls(num_images, smallest)

    def look_up(self, hashes: NDArray[np.uint64]) -> Lookup:
        """For how many of these hashes [n] the sketch can decide, and how many of them it has."""
        decidable = hashes if len(self.smallest) < SIZE else hashes[hashes <= self.smallest[-1]]
        return Lookup(len(decidable), int(np.isin(decidable, self.smallest).sum()))

    def as_json(self) -> dict[str, Any]:
        """Text that `from_json` reads; at most 7 kB."""
        packed = self.smallest.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -_HASH_BYTES:].tobytes()
        return {"num_images": self.num_images, "hash": _HASH, "smallest": base64.b64encode(packed).decode()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self | None:
        """The sketch that was written, or None if it has another format."""
        try:
            if fields["hash"] != _HASH:
                return None
            packed = np.frombuffer(base64.b64decode(fields["smallest"], validate=True), np.uint8)
            padded = np.zeros((len(packed) // _HASH_BYTES, 8), np.uint8)
            padded[:, -_HASH_BYTES:] = packed.reshape(-1, _HASH_BYTES)
            return cls(int(fields["num_images"]), padded.view(">u8").ravel().astype(np.uint64))
        except (KeyError, TypeError, ValueError):
            return None


def image_hashes(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    """A hash below 2⁴⁰ for each image of [N, C, H, W]. uint8 levels and the same levels / 255 have the same hash."""
    levels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
    shape = str(levels.shape[1:]).encode()
    digests = (hashlib.blake2b(shape + image.tobytes(), digest_size=_HASH_BYTES).digest() for image in levels)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
