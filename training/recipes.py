"""What a configuration is where the user does not say: by preset, and by what the pixels are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.configuration import Configuration
from training.data import Images, evenly_spaced

RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "resnet": {"width": 32, "latent_dim": 32, "learning_rate": 1e-3, "max_gradient_norm": 500.0},
}
"""By preset, where it differs from `Configuration`'s own defaults."""

GREY_SHARE = 0.2
"""Of the pixels. Of MNIST's 9 % are grey, of Fashion-MNIST's 40 %."""
_LOOKED_AT = 10_000


def complete_configuration(given: Mapping[str, Any], train: Images) -> Configuration:
    """The configuration of the options that were given, the rest by the preset's recipe and the images [N, C, H, W].

    Without a likelihood, 8-bit images get a discretised logistic if more than a fifth of their pixels are grey (above
    10 % and below 90 %); images that are nearly black and white, and those that are not 8-bit, are Bernoulli, and so
    are all that are to be binarised. A likelihood other than Bernoulli takes pixels as they are.

    Raises:
        ConfigurationError: the options cannot work together.

    >>> complete_configuration({"preset": "resnet", "width": 8}, np.full((1, 1, 2, 2), 99, np.uint8)).likelihood
    'discretised_logistic'
    """
    chosen = {**RECIPES.get(given.get("preset", "mlp"), {}), **given}
    if "likelihood" not in chosen:
        plain = chosen.get("binarisation", "none") == "none" and "gaussian_scale" not in chosen
        chosen["likelihood"] = "discretised_logistic" if plain and _is_grey(train) else "bernoulli"
    if chosen["likelihood"] != "bernoulli":
        chosen.setdefault("binarisation", "none")
    return Configuration(**chosen)


def _is_grey(train: Images) -> bool:
    """Whether images are 8-bit and clearly more than black and white; of a large set, evenly spaced images tell."""
    if train.dtype != np.uint8:
        return False
    some = evenly_spaced(train, _LOOKED_AT)
    return bool(((some > 25) & (some < 230)).mean() > GREY_SHARE)
