"""The choices that define a training run; two runs of one configuration on the same data give the same weights."""

from dataclasses import dataclass
from typing import Literal, get_args

from training.errors import ConfigurationError

Objective = Literal["iwae", "elbo"]
Binarisation = Literal["dynamic", "threshold", "none"]
Preset = Literal["mlp", "resnet"]
LikelihoodKind = Literal["bernoulli", "discretised_logistic", "gaussian"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "preset": get_args(Preset),
    "likelihood": get_args(LikelihoodKind),
    "objective": get_args(Objective),
    "binarisation": get_args(Binarisation),
}
_AT_LEAST_ONE = ("width", "depth", "latent_dim", "num_samples", "epochs", "batch_size")
_AT_LEAST_ONE_IF_GIVEN = ("first_samples", "num_validation", "num_calibration", "num_test")
_POSITIVE = ("learning_rate", "gaussian_scale")
_NOT_NEGATIVE = (
    "warm_up_epochs",
    "kl_warm_up_epochs",
    "free_bits",
    "max_gradient_norm",
    "patience",
    "max_memory",
    "shift",
)


@dataclass(frozen=True)
class Configuration:
    """Everything but the data set; the defaults train an `mlp` (what other presets change: training/recipes.py).

    `width` is units of each hidden layer of an `mlp`, and channels at the image's own size of a `resnet`; `depth` is
    hidden layers of the one, residual blocks at each size of the other. `gaussian_scale` is in units of pixels in
    [0, 1]; None learns it, a scale a pixel. `num_validation`, `num_calibration` and `num_test` are numbers of images
    held out of training (`num_test` only where the data set brings no test images of its own); None means 2000, 3000
    and 10 000, or a tenth of the images where that is fewer. `flip` and `shift` (pixels) vary training images each time
    they are seen (training/augmentation.py). `ema_decay` d averages the weights over about 1/(1 - d)
    steps. `first_samples` is where the number of samples begins, which doubles until it is `num_samples`,
    each number having as many decoder rows; None is `num_samples` throughout. 0 turns off `ema_decay`,
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

    preset: Preset = "mlp"
    width: int = 512
    depth: int = 2
    latent_dim: int = 50
    likelihood: LikelihoodKind = "bernoulli"
    gaussian_scale: float | None = None
    binarisation: Binarisation = "dynamic"
    flip: bool = False
    shift: int = 0
    objective: Objective = "iwae"
    num_samples: int = 8
    first_samples: int | None = None
    kl_warm_up_epochs: float = 0.0
    free_bits: float = 0.0
    epochs: int = 120
    batch_size: int = 128
    learning_rate: float = 2e-3
    warm_up_epochs: float = 1.0
    max_gradient_norm: float = 0.0
    ema_decay: float = 0.999
    patience: int = 0
    seed: int = 0
    num_validation: int | None = None
    num_calibration: int | None = None
    num_test: int | None = None
    max_memory: float = 4.0
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in _AT_LEAST_ONE_IF_GIVEN:
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {count}")
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} must be positive and finite, not {value}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed must be at least 0 and less than 2**63, not {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must be at least 0 and less than 1, not {self.ema_decay}")
        self._check_what_belongs_together()

    def _check_what_belongs_together(self) -> None:
        if self.first_samples is not None and self.first_samples > self.num_samples:
            raise ConfigurationError(f"first_samples must be at most num_samples, not {self.first_samples}")
        if self.first_samples is not None and self.patience:
            raise ConfigurationError("patience would end a run before first_samples has grown to num_samples")
        if self.likelihood != "bernoulli" and self.binarisation != "none":
            raise ConfigurationError(f"binarisation must be none with the likelihood {self.likelihood}")
        if self.gaussian_scale is not None and self.likelihood != "gaussian":
            raise ConfigurationError(f"gaussian_scale belongs to the likelihood gaussian, not to {self.likelihood}")
        for name in ("kl_warm_up_epochs", "free_bits"):
            if getattr(self, name) and self.objective != "elbo":
                raise ConfigurationError(f"{name} belongs to the objective elbo, not to {self.objective}")
