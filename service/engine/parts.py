"""Results of images that are computed together, each given as soon as it is final.

Familiar images are finished before strange ones: who waits for a familiar one alone need not wait for the others.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Indices
from service.engine.chunks import Chunks


@dataclass(frozen=True)
class Results:
    """Results of several images. Each field of a subclass has one entry an image: an array, such results, or None."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Those of several, images in order."""
        return cls(**{field.name: _joined([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """Those of these images, by index or by mask."""
        return type(self)(**{field.name: _taken(getattr(self, field.name), index) for field in fields(self)})


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if first is None:
        return None
    return first.join(values) if isinstance(first, Results) else np.concatenate(values)


def _taken(value: Any, index: NDArray[np.intp] | NDArray[np.bool_]) -> Any:
    if value is None:
        return None
    return value.take(index) if isinstance(value, Results) else value[index]


T = TypeVar("T", bound=Results)


@dataclass(frozen=True)
class Part(Generic[T]):
    """The results of some of the images.

    Attributes:
        images: their indices among all, [b].
        results: theirs, in the same order.
    """

    images: Indices
    results: T

    def of(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Part[T]":
        """The part with these of its images, by index or by mask."""
        return Part(self.images[index], self.results.take(index))


Parts = Generator[Part[T] | None, None, None]
"""A computation in chunks, see chunks.py, that also yields results: every image is in exactly one part."""


def gathered(parts: Parts[T]) -> Chunks[T]:
    """The results of all images, in their order."""
    found = []
    for part in parts:
        if part is None:
            yield
        else:
            found.append(part)
    return in_order(found)


def in_order(parts: Sequence[Part[T]]) -> T:
    """The results of several parts as one, ordered by the images' indices."""
    if len(parts) == 1 and (np.diff(parts[0].images) > 0).all():
        return parts[0].results
    joined: T = parts[0].results.join([part.results for part in parts])
    return joined.take(np.argsort(np.concatenate([part.images for part in parts])))
