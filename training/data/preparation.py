"""How images of any size become a model's: what was asked for, and what `--size auto` chooses by looking at them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store import CHANNELS, Description, PixelPreparation
from service.images.fitting import Fit, Fitting, Levels
from service.images.resampler import installed_resampler
from training.configuration import LARGEST_OF_AN_MLP, Colour, Configuration, Size
from training.errors import ConfigurationError

_Pixels = Levels | NDArray[np.float32]
AUTO: Literal["auto"] = "auto"
COLOURS: Mapping[int, Colour] = {1: "grey", 3: "rgb"}
"""By the number of channels."""
LOOKED_AT = 100
"""Images whose colours `auto` looks at, evenly spaced."""
_GREY_DIFFERENCE, _GREY_SHARE = 8, 0.995
"""Levels between the channels of a grey pixel, and the share of such pixels in a grey image: JPEG changes colours."""
_ALIKE, _ALIKE_SHARE = 0.1, 0.8
"""Aspect ratios within a tenth of the median, of at least four in five images: then the model has that ratio."""
_MOST_ELONGATED = 4.0
_MOST_OTHER = 0.15
"""How far a size in multiples of 8 may be from that ratio."""
_NOT_ENLARGED = 0.25  # quantile: three quarters of the images are at least as large as the model's
_UNIT, _UNIT_FROM = 8, 16
"""Sides from 16 pixels on are multiples of 8, which networks halve."""


@dataclass(frozen=True)
class Preparation:
    """How images become a model's, as asked for or, with a `size` that is no `auto`, as it is done.

    Attributes:
        size: height and width of the model; `auto` chooses them; None takes images of one size as they are.
        fit: see `service.images.fitting.Fitting`.
        colour: None takes grey if all images are grey, otherwise colour; `auto` also looks at pixels.
        invert: whether black and white are exchanged.

    Raises:
        ConfigurationError: without a size, there is a `fit` or a `colour`; or with one, `fit` is `exact`.
    """

    size: Size | Literal["auto"] | None = None
    fit: Fit = "exact"
    colour: Colour | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        if self.size is None and self.fit != "exact":
            raise ConfigurationError(f"fit {self.fit} belongs to a size: --size auto, or for example --size 64")
        if self.size is None and self.colour is not None:
            raise ConfigurationError("colour belongs to a size: --size auto, or for example --size 64")
        if self.size is not None and self.fit == "exact":
            raise ConfigurationError("fit exact takes images of one size as they are: leave out --size")

    @classmethod
    def asked(cls, options: dict[str, Any]) -> "Preparation":
        """That of a command line's options, or of a configuration's fields; with a size, `crop` is the default.

        `exact` can then only come from a run or model without a size, from which the other options are inherited.
        """
        size = options.get("size")
        fit: Fit = options.get("fit", "exact")
        if size is not None and fit == "exact":
            fit = "crop"
        return cls(size, fit, options.get("colour"), options.get("invert", False))

    @classmethod
    def of_model(cls, description: Description) -> "Preparation":
        """That of a model that has been trained."""
        preparation, image = description.preparation, description.image
        if preparation.fit == "exact":
            return cls(invert=preparation.invert)
        return cls((image.height, image.width), preparation.fit, COLOURS.get(image.channels), preparation.invert)

    @property
    def fitting(self) -> Fitting:
        """What the reader of images takes."""
        return Fitting(self.fit, self.invert)

    @property
    def fixed_size(self) -> Size | None:
        """The size; None if there is none, or not yet."""
        return None if self.size == AUTO else self.size

    def as_options(self) -> dict[str, Any]:
        """The configuration's fields that it is."""
        return {"size": self.size, "fit": self.fit, "colour": self.colour, "invert": self.invert}


AS_THEY_ARE = Preparation()
"""Of images that all have one size."""


@dataclass(frozen=True)
class Sizes:
    """Heights and widths of images, in pixels; [N] each. EXIF may exchange an image's two."""

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]]) -> "Sizes":
        """From pairs of a height and a width."""
        found = np.array(sizes, np.int64).reshape(-1, 2)
        return cls(found[:, 0], found[:, 1])

    def __str__(self) -> str:
        """All sizes in words."""
        ranges = [f"{side.min()} to {side.max()}" for side in (self.heights, self.widths)]
        different = len(np.unique(np.stack([self.heights, self.widths]), axis=1).T)
        if different == 1:
            return f"{self.heights[0]}×{self.widths[0]} each (height × width)"
        return f"of {different} sizes, {ranges[0]} pixels high and {ranges[1]} wide"


def is_grey(image: Levels) -> bool:
    """Whether a colour image's levels [3, h, w] are those of a grey one, but for what JPEG changes."""
    difference = image.max(axis=0) - image.min(axis=0)
    return bool((difference <= _GREY_DIFFERENCE).mean() >= _GREY_SHARE)


def choose_size(sizes: Sizes, channels: int) -> Size:
    """Height and width of a model for images of these sizes.

    Images that all have one size keep it, if an `mlp` takes images so large: 64×64 numbers. Otherwise it is the largest
    size up to that many numbers, sides being multiples of 8 (from 16 pixels on), that enlarges at most a quarter of the
    images. It has the images' aspect ratio if that is nearly the same for four in five of them, up to 4 to 1; otherwise
    it is a square.

    >>> choose_size(Sizes.of([(28, 28)] * 9), 1), choose_size(Sizes.of([(300, 200), (480, 640), (250, 250)]), 1)
    ((28, 28), (64, 64))
    >>> choose_size(Sizes.of([(480, 640)] * 9), 1), choose_size(Sizes.of([(480, 640)] * 9), 3)
    ((56, 72), (32, 40))
    """
    heights, widths = sizes.heights, sizes.widths
    most = LARGEST_OF_AN_MLP // channels
    if (heights == heights[0]).all() and (widths == widths[0]).all() and heights[0] * widths[0] <= most:
        return int(heights[0]), int(widths[0])
    aspects = widths / heights
    aspect = float(np.median(aspects))
    if (np.abs(aspects / aspect - 1) <= _ALIKE).mean() < _ALIKE_SHARE:
        aspect = 1.0
    aspect = min(max(aspect, 1 / _MOST_ELONGATED), _MOST_ELONGATED)
    highest = int(np.quantile(np.minimum(heights, widths / aspect), _NOT_ENLARGED))
    multiples = _in_multiples(_UNIT, aspect, highest, most) if min(highest, highest * aspect) >= _UNIT_FROM else None
    return multiples or _in_multiples(1, aspect, highest, most) or (1, 1)


def _in_multiples(unit: int, aspect: float, highest: int, most: int) -> Size | None:
    """The largest size of multiples of `unit` with about this aspect ratio; None if there is none.

    Args:
        unit: of height and width.
        aspect: width / height.
        highest: the largest height.
        most: the largest height × width.
    """
    best = None
    for height in range(unit, max(highest, unit) + 1, unit):
        below = int(height * aspect / unit) * unit
        for width in (max(below, unit), below + unit):
            is_like = unit == 1 or abs(width / height / aspect - 1) <= _MOST_OTHER
            if is_like and height * width <= most and (best is None or best[0] * best[1] < height * width):
                best = height, width
    return best


def choose(asked: Preparation, sizes: Sizes, *, all_grey: bool, looked_at: int) -> tuple[Preparation, list[str]]:
    """What is done with images of these sizes where `auto` was asked for, and why, in sentences.

    Args:
        asked: with the size `auto`.
        sizes: of all images.
        all_grey: whether they are grey.
        looked_at: at how many images' pixels that was seen; 0 if files say it.
    """
    colour: Colour = asked.colour or ("grey" if all_grey else "rgb")
    height, width = size = choose_size(sizes, CHANNELS[colour])
    count = len(sizes.heights)
    words = "grey" if all_grey else "colour"
    seen = f" (by the pixels of {looked_at})" if looked_at and all_grey else ""
    said = [
        f"--size auto: {count} images {sizes}; {words}{seen}",
        f"--size auto chose {height}x{width} (height x width), {colour}, fit {asked.fit}: {_why(size, sizes, colour)}",
    ]
    if asked.fit == "crop" and (cut := _cut_off(size, sizes)) >= 0.005:
        said.append(f"fit crop leaves out {cut:.0%} of the median image; --fit pad keeps all of it".replace("%", " %"))
    return replace(asked, size=size, colour=colour), said


def _why(size: Size, sizes: Sizes, colour: Colour) -> str:
    height, width = size
    if (sizes.heights == height).all() and (sizes.widths == width).all():
        return "as they are"
    following = height + _UNIT, round((height + _UNIT) * width / height / _UNIT) * _UNIT
    if following[0] * following[1] * CHANNELS[colour] > LARGEST_OF_AN_MLP:
        return (
            f"up to {LARGEST_OF_AN_MLP} numbers an image are modelled by an mlp, which trains and answers fast; "
            f"for more detail, for example --size {2 * height}x{2 * width}"
        )
    return "at most a quarter of the images are enlarged"


def _cut_off(size: Size, sizes: Sizes) -> float:
    """The share of its area that the median image loses by `crop`."""
    ratio = (sizes.widths / sizes.heights) * (size[0] / size[1])
    return float(np.median(1 - np.minimum(ratio, 1 / ratio)))


def prepare_arrays(
    parts: Mapping[str, _Pixels], asked: Preparation
) -> tuple[dict[str, _Pixels], Preparation, Sequence[str]]:
    """Arrays [N, c, h, w] of one size as the model's images, how they were prepared, and what `auto` chose."""
    channels, height, width = parts["train"].shape[1:]
    if asked.size is None:
        return {part: asked.fitting.inverted(pixels) for part, pixels in parts.items()}, asked, ()
    chosen: Sequence[str] = ()
    colour = asked.colour or COLOURS.get(channels)
    if colour is None or channels not in (1, 3):
        raise ConfigurationError(f"size is for grey and colour images, not for arrays of {channels} channels")
    prepared = replace(asked, colour=colour)
    if asked.size == AUTO:
        sizes = Sizes.of([(height, width)] * sum(map(len, parts.values())))
        prepared, chosen = choose(prepared, sizes, all_grey=channels == 1, looked_at=0)
    size = prepared.fixed_size or (height, width)
    shape = (CHANNELS[colour], *size)
    return {part: prepared.fitting.levels(pixels, shape) for part, pixels in parts.items()}, prepared, chosen


def stored_preparation(configuration: Configuration, image_shape: tuple[int, int, int]) -> PixelPreparation:
    """The manifest's preparation of a model that was trained here on images [C, H, W]."""
    channels, height, width = image_shape
    return PixelPreparation(
        size=(height, width),
        fit=configuration.fit,
        colour=COLOURS.get(channels),
        invert=configuration.invert,
        resampler=None if configuration.fit == "exact" else installed_resampler(),
        binarisation=configuration.binarisation,
    )
