"""What a published model says of itself: `manifest.json`, format version 2. Version 1 is read too: see format1.py."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator, model_validator

FORMAT_VERSION = 2

MANIFEST, ENCODER, DECODER, CALIBRATION = "manifest.json", "encoder.onnx", "decoder.onnx", "calibration.npz"
LIKELIHOOD, FEATURES = "likelihood.onnx", "features.onnx"
HASHED_FILES = (ENCODER, DECODER, LIKELIHOOD, FEATURES, CALIBRATION)
GRAPHS = (ENCODER, DECODER, LIKELIHOOD, FEATURES)

MAX_VERSION = 999_999_999
MAX_IMAGE_SIZE = 2**24
"""C·H·W: four thousand by four thousand grey pixels."""
MAX_LATENT_DIM = 4096
MAX_CALIBRATION_IMAGES = 2**20
MAX_NUM_SAMPLES = 2**20
MAX_SEED = 2**64 - 1
CHANNELS = {"grey": 1, "rgb": 3}
"""Of an image, by its `colour`."""
Space = Literal["pixels", "features"]
"""What log P(x) is a density of."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
KIND_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Scale = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
"""In these bounds, the square of the ratio of two scales is still finite in float32."""
Side = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Immutable and strict: a field this version does not know is an error, never dropped in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageShape(_Record):
    """C, H and W of one image."""

    channels: Side
    height: Side
    width: Side

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.size > MAX_IMAGE_SIZE:
            raise ValueError(f"channels × height × width must be at most {MAX_IMAGE_SIZE}, found {self.size}")
        return self

    @property
    def chw(self) -> tuple[int, int, int]:
        """The shape as NumPy writes it.

        >>> ImageShape(channels=1, height=28, width=20).chw
        (1, 28, 20)
        """
        return self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """C·H·W, the number of dimensions that `bits_per_dim` divides by."""
        return self.channels * self.height * self.width


class FeatureMaps(ImageShape):
    """F, h and w of the maps that features.onnx makes of an image, which are then what the model is a density of.

    `log_scale_sum` is Σ log s over the F·h·w numbers, where the graph's last step divides each by its s: the density of
    the maps before that step is log P(maps) − log_scale_sum. 0 where the graph does not say.
    """

    log_scale_sum: FiniteFloat = 0.0


class Resampler(_Record):
    """What resampled a model's training images: with another, images would have other bits.

    `sha256` is of what it makes of a test pattern (service/images/resampler.py); null where that is not known.
    """

    library: Annotated[str, Field(min_length=1, max_length=64)]
    version: Annotated[str, Field(min_length=1, max_length=64)]
    filter: Annotated[str, Field(min_length=1, max_length=64)]
    antialiased: bool
    sha256: Sha256 | None = None

    @property
    def method(self) -> tuple[str, str, bool]:
        """What it computes, but for the version."""
        return self.library, self.filter, self.antialiased

    def in_words(self) -> str:
        """Library, version and filter.

        >>> Resampler(library="pillow", version="11.0.0", filter="bilinear", antialiased=True).in_words()
        'pillow 11.0.0 (bilinear, antialiased)'
        """
        return f"{self.library} {self.version} ({self.filter}, {'' if self.antialiased else 'not '}antialiased)"


class PixelPreparation(_Record):
    """How an image becomes the graphs' input x: any image to pixels in [0, 1], then binarise, then multiply by `scale`.

    `size` is [H, W], and `colour` says which channels are meant; both follow from `image` where they are null. With a
    `fit` other than `exact`, images of any size and colour are taken: as 8-bit levels they are inverted if `invert`,
    converted to `colour`, and resampled by `resampler` to `size` (README.md says how; service/images/fitting.py does
    it). With `exact`, only images of the model's size are taken.

    `threshold` sets a pixel to 1 above 0.5. `dynamic` sets it to 1 with probability equal to its value, as in training;
    the service does so against one fixed field of uniform numbers (seed `binarisation_seed`; see README.md), so that
    an image is prepared the same way every time and on every route. Pixels that are 0 or 1 already stay as they are.
    """

    size: tuple[Side, Side] | None = None
    fit: Literal["exact", "crop", "pad", "stretch"] = "exact"
    colour: Literal["grey", "rgb"] | None = None
    invert: bool = False
    resampler: Resampler | None = None
    scale: Scale = 1.0
    binarisation: Literal["none", "threshold", "dynamic"] = "none"
    binarisation_seed: Seed = 0

    @model_validator(mode="after")
    def _resampled_by_something(self) -> Self:
        if (self.fit == "exact") != (self.resampler is None):
            raise ValueError("resampler says what resamples images, and is needed unless fit is exact")
        return self


class LikelihoodSpec(_Record):
    """Which density p(x|z) is; the density itself is `likelihood.onnx`.

    With `levels`, x lies on that many levels k/(levels - 1) in [0, 1]: pixels are moved to the nearest one, and
    `scale` must be 1. `kind` and `options` are words for people and for training: nothing is computed from them.
    """

    kind: Annotated[str, Field(pattern=KIND_PATTERN)]
    levels: Annotated[int, Field(ge=2, le=65536)] | None = None
    options: dict[Annotated[str, Field(pattern=KIND_PATTERN)], bool | int | FiniteFloat | str | None] = {}


class Metric(_Record):
    """One figure measured on the exported graphs, with the protocol that gave it."""

    name: str
    value: FiniteFloat
    std_error: FiniteFloat | None = None
    unit: str
    num_images: Count
    protocol: str


class CalibrationProtocol(_Record):
    """How the scores in `calibration.npz` were computed; a score compares only with scores made the same way."""

    proposal: str
    num_samples: Annotated[int, Field(ge=1, le=MAX_NUM_SAMPLES)]
    seed: Seed
    num_images: Annotated[int, Field(ge=1, le=MAX_CALIBRATION_IMAGES)]
    source: str


class Provenance(_Record):
    """Where the model came from, enough to train it again."""

    data_set: str
    seed: Seed
    configuration: dict[str, Any]
    library_versions: dict[str, str]


class Description(_Record):
    """All of a manifest but what publishing adds: version, time and hashes."""

    name: ModelName
    image: ImageShape
    preparation: PixelPreparation
    features: FeatureMaps | None = None
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)]
    likelihood: LikelihoodSpec
    calibration: CalibrationProtocol
    metrics: tuple[Metric, ...] = ()
    provenance: Provenance

    @model_validator(mode="after")
    def _preparation_makes_such_images(self) -> Self:
        preparation, image = self.preparation, self.image
        if preparation.size not in (None, (image.height, image.width)):
            raise ValueError(f"preparation.size is not the image's height and width, {image.height} and {image.width}")
        if preparation.colour is not None and CHANNELS[preparation.colour] != image.channels:
            raise ValueError(f"preparation.colour is {preparation.colour}, but image.channels {image.channels}")
        return self

    @property
    def space(self) -> Space:
        """What log P(x) is a density of: the image's pixels, or the maps that features.onnx makes of them."""
        return "pixels" if self.features is None else "features"

    @property
    def x_shape(self) -> ImageShape:
        """The shape of x, which encoder, decoder and likelihood work on: the image's, or that of the feature maps."""
        return self.features or self.image

    @model_validator(mode="after")
    def _features_are_of_plain_pixels(self) -> Self:
        plain = self.preparation.binarisation == "none" and self.preparation.scale == 1
        if self.features is not None and (self.likelihood.levels is not None or not plain):
            raise ValueError("features are real numbers, of pixels in [0, 1]: no levels, no binarisation, and scale 1")
        return self

    @model_validator(mode="after")
    def _levels_need_unit_scale(self) -> Self:
        if self.likelihood.levels is not None and self.preparation.scale != 1:
            raise ValueError("preparation.scale must be 1 for a likelihood with levels, which lie in [0, 1]")
        return self


class Manifest(Description):
    """`manifest.json`, whole."""

    format_version: Literal[1, 2] = 2
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]
    created: datetime
    sha256: dict[str, Sha256]

    @field_validator("sha256")
    @classmethod
    def _of_the_other_files(cls, hashes: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        known = files_of(
            info.data.get("format_version", FORMAT_VERSION), features=info.data.get("features") is not None
        )
        if unknown := sorted(hashes.keys() - set(known)):
            raise ValueError(f"a version has no such file: {', '.join(unknown[:3])}")
        return hashes

    @property
    def files(self) -> tuple[str, ...]:
        """The version's files beside the manifest."""
        return files_of(self.format_version, features=self.features is not None)


def files_of(format_version: int, *, features: bool) -> tuple[str, ...]:
    """The files beside the manifest; format version 1 has no likelihood.onnx, and most models no features.onnx."""
    absent = {LIKELIHOOD: format_version == 1, FEATURES: not features}
    return tuple(file for file in HASHED_FILES if not absent.get(file))
