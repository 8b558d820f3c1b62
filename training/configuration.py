"""The choices that define a training run; two runs of one configuration on the same data give the same weights."""

from dataclasses import dataclass
from typing import Literal, get_args

from training.errors import ConfigurationError

Objective = Literal["iwae", "elbo"]
Binarisation = Literal["dynamic", "threshold", "none"]
Preset = Literal["mlp"]

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
BINARISATIONS: tuple[Binarisation, ...] = get_args(Binarisation)
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Configuration:
    """Everything but the data set; the defaults are the recipe of the bundled model.

    `num_validation`, `num_calibration` and `num_test` are numbers of images held out of training (`num_test` only where
    the data set brings no test images of its own); None means 2000, 3000 and 10 000, or a tenth of the images where
    that is fewer. `ema_decay` averages the weights over about 1 / (1 - ema_decay) steps; 0 turns averaging off.

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
    latent_dim: int = 50
    objective: Objective = "iwae"
    num_samples: int = 8
    binarisation: Binarisation = "dynamic"
    epochs: int = 120
    batch_size: int = 128
    learning_rate: float = 2e-3
    warm_up_epochs: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    num_validation: int | None = None
    num_calibration: int | None = None
    num_test: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "latent_dim", "num_samples", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("num_validation", "num_calibration", "num_test"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {count}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed must be at least 0 and less than 2**63, not {self.seed}")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigurationError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        if not 0 <= self.warm_up_epochs < float("inf"):
            raise ConfigurationError(f"warm_up_epochs must be at least 0 and finite, not {self.warm_up_epochs}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigurationError(f"ema_decay must be at least 0 and less than 1, not {self.ema_decay}")
        choices = {"preset": PRESETS, "objective": OBJECTIVES, "binarisation": BINARISATIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
