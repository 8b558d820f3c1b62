"""The choices that define a training run; two runs of one configuration on the same data give the same weights."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_type_hints

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from model_store import MAX_LATENT_DIM
from service.arguments import requirement
from service.images.fitting import Fit
from training.errors import ConfigurationError
from training.likelihoods import BLACK_AND_WHITE, LIKELIHOODS

Objective = Literal["iwae", "elbo"]
Binarisation = Literal["dynamic", "threshold", "none"]
Preset = Literal["mlp", "resnet", "linear"]
if TYPE_CHECKING:
    LikelihoodKind = str
else:
    LikelihoodKind = Literal[tuple(LIKELIHOODS)]
"""The names of all classes in training/likelihoods/."""

Colour = Literal["grey", "rgb"]
Size = tuple[int, int]
"""Height and width."""
MAX_SIDE = 4096
"""Of a model's images, in pixels."""
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Size = Annotated[tuple[_Side, _Side], BeforeValidator(lambda size: tuple(size) if isinstance(size, list) else size)]
LARGEST_OF_AN_MLP = 64 * 64
"""Pixels times channels: an `mlp` has some thousand weights for each, and beyond that many a `resnet` costs less."""

NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Configuration:
    """Everything but the data set; the defaults train an `mlp` (what other presets change: training/fit/recipes.py).

    A field's type says its range, and says it for all: for the option of that name, its help, and `run.json`.

    `size` (height and width), `fit`, `colour` and `invert` say how images of any size become the model's
    (training/data/preparation.py); without a size, all have one size already.

    `width` is units of each hidden layer of an `mlp`, and channels at the image's own size of a `resnet`; `depth` is
    hidden layers of the one, residual blocks at each size of the other; `linear` has neither. `gaussian_scale` is in
    units of pixels in [0, 1]; None learns it, a scale a pixel. `num_components` is of a mixture; None means 10.
    `num_validation`, `num_calibration` and `num_test` are numbers of images held out of training (`num_test` only where
    the data set brings no test images of its own); None means 2000, 3000 and 10 000, or a tenth of the images where
    that is fewer. `group`, a regular expression, finds in an image's path what thing it shows; None leaves that to a
    table's column, and images of which nothing tells are divided one by one (training/data/things.py).
    `flip` and `shift` (pixels) vary training images each time they are seen (training/data/augmentation.py).
    `ema_decay` d averages the weights over about 1/(1 - d) steps. `first_samples` is where the number of samples
    begins, which doubles until it is `num_samples`, each number having as many decoder rows; None is `num_samples`
    throughout. `finish_encoder` ends the run with a phase of at most `finish_epochs` that trains the encoder alone
    (training/fit/encoder_phase.py); None is a quarter of `epochs`, at least 10 or all. 0 turns off `ema_decay`,
    `max_gradient_norm` and `patience`. `max_memory` is the GiB of decoded pixels up to which image files and Parquet
    are loaded whole instead of streamed; `skip_corrupt` leaves out images that cannot be decoded.

    Raises:
        ConfigurationError: a value cannot work; the message names the field.

    >>> Configuration(width=64).width
    64
    >>> Configuration(ema_decay=1.0)
    Traceback (most recent call last):
    training.errors.ConfigurationError: ema_decay must be at least 0 and less than 1, not 1.0
    """

    size: _Size | None = None
    fit: Fit = "exact"
    colour: Colour | None = None
    invert: bool = False
    preset: Preset = "mlp"
    width: PositiveInt = 512
    depth: PositiveInt = 2
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)] = 50
    likelihood: LikelihoodKind = BLACK_AND_WHITE
    gaussian_scale: Positive | None = None
    num_components: Annotated[int, Field(ge=1, le=100)] | None = None
    binarisation: Binarisation = "dynamic"
    flip: bool = False
    shift: NonNegativeInt = 0
    objective: Objective = "iwae"
    num_samples: PositiveInt = 8
    first_samples: PositiveInt | None = None
    kl_warm_up_epochs: NotNegative = 0.0
    free_bits: NotNegative = 0.0
    epochs: PositiveInt = 120
    batch_size: PositiveInt = 128
    learning_rate: Positive = 2e-3
    warm_up_epochs: NotNegative = 1.0
    max_gradient_norm: NotNegative = 0.0
    ema_decay: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.999
    patience: NonNegativeInt = 0
    finish_encoder: bool = True
    finish_epochs: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    num_validation: PositiveInt | None = None
    num_calibration: PositiveInt | None = None
    num_test: PositiveInt | None = None
    group: str | None = None
    max_memory: NotNegative = 4.0
    skip_corrupt: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_one_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            hint = get_type_hints(cls, include_extras=True).get(name)
            raise ConfigurationError(
                f"{name} {requirement(hint, first['input'])}" if hint else f"there is no option {name}"
            ) from None

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        if (self.size is None) != (self.fit == "exact"):
            raise ConfigurationError("size and a fit other than exact belong together")
        if self.first_samples is not None and self.first_samples > self.num_samples:
            raise ConfigurationError(f"first_samples must be at most num_samples, not {self.first_samples}")
        if self.first_samples is not None and self.patience:
            raise ConfigurationError("patience would end a run before first_samples has grown to num_samples")
        if self.binarisation != "none" and not LIKELIHOODS[self.likelihood].is_binary:
            raise ConfigurationError(f"binarisation must be none with the likelihood {self.likelihood}")
        for kind, likelihood in LIKELIHOODS.items():
            for name in likelihood.configured:
                if kind != self.likelihood and getattr(self, name) is not None:
                    raise ConfigurationError(f"{name} belongs to the likelihood {kind}, not to {self.likelihood}")
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise ConfigurationError(f"group must be a regular expression, not {self.group!r}: {error}") from error
        if self.finish_epochs is not None and not self.finish_encoder:
            raise ConfigurationError("finish_epochs belongs to finish_encoder")
        if self.preset == "linear" and (self.epochs != 1 or self.finish_encoder):
            raise ConfigurationError("the preset linear has one epoch and no finish_encoder: its encoder is exact")
        for name in ("kl_warm_up_epochs", "free_bits"):
            if getattr(self, name) and self.objective != "elbo":
                raise ConfigurationError(f"{name} belongs to the objective elbo, not to {self.objective}")

    @property
    def likelihood_options(self) -> dict[str, Any]:
        """The arguments of the likelihood's class that were chosen.

        >>> Configuration(likelihood="gaussian", gaussian_scale=0.1, binarisation="none").likelihood_options
        {'scale': 0.1}
        """
        options = LIKELIHOODS[self.likelihood].configured
        chosen = {option.argument: getattr(self, name) for name, option in options.items()}
        return {argument: value for argument, value in chosen.items() if value is not None}
