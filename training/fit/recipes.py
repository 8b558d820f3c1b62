"""What a configuration is where the user does not say: by preset, and by what the pixels are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from training.configuration import LARGEST_OF_AN_MLP, Configuration
from training.data.splits import Images, evenly_spaced
from training.likelihoods import BLACK_AND_WHITE, FROM_OTHER_PIXELS, GREY, LIKELIHOODS, PHOTOGRAPHS
from training.networks.mlp import FULL_RATE_PIXELS
from training.networks.resnet import patch_size

AUTO = "auto"

# Many samples an image cost much where it is large, and tighten the bound little: one has nearly all the weight.
_ONE_SAMPLE: dict[str, Any] = {"num_samples": 1, "batch_size": 32}
_RESNET: dict[str, Any] = {"width": 32, "latent_dim": 32, "learning_rate": 1e-3, "max_gradient_norm": 500.0}
RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "large mlp": _ONE_SAMPLE,
    "resnet": _RESNET,
    "linear": {"epochs": 1, "finish_encoder": False},
    "resnet in patches": _RESNET | _ONE_SAMPLE | {"width": 16},
}
"""By preset, where it differs from `Configuration`'s own defaults; large: of images of more than 784 pixels times
channels; in patches: of images beyond 40 pixels."""
_SMALL_MLP: dict[str, Any] = {"width": 256, "latent_dim": 32}
"""Of likelihoods that predict pixels from others of the image: they have learned what is fine, so a network of half the
width gives as good a density, and serves in half the time."""

WARM_UP_STEPS = 100
_MOST_WARM_UP = 0.1  # of all epochs
STEPS_AN_EPOCH = 100
_BATCHES = {"large mlp": (32, 128), "resnet in patches": (8, 32)}
"""The smallest and the largest by default. Such sets are often small, and 120 epochs of five steps, which 150 images in
batches of 32 are, leave a model that knows hardly more than the mean image. An `mlp` is not much faster on 8 images
than on 32: most of a step is for its weights."""

GREY_SHARE = 0.2
"""Of the pixels. Of MNIST's 9 % are grey, of Fashion-MNIST's 40 %."""
_LOOKED_AT, _BYTES_LOOKED_AT = 10_000, 2**28


def complete_configuration(given: Mapping[str, Any], train: Images) -> Configuration:
    """The configuration of the options that were given, the rest by the preset's recipe and the images [N, C, H, W].

    Without a preset, or with `auto`, images of more than 64×64 numbers get a `resnet`, others an `mlp`. The warm-up is
    one epoch, or as many epochs as have 100 steps, but at most a tenth of all: where there are few images, an epoch is
    a step or two, and Adam's first steps, before it knows the gradients' usual size, are its largest. Where there are
    many, a few epochs are the whole run, and a tenth of them is less than one.

    Of an `mlp` for images of more than 784 numbers, and of a `resnet` in patches, a batch has as many images as leave
    an epoch 100 steps: 32 to 128 for the one, 8 to 32 for the other.

    Without a likelihood, 8-bit images get a discretised logistic if more than a fifth of their pixels are grey (above
    10 % and below 90 %), and of more than 784 numbers one that predicts pixels from their neighbours; images that are
    nearly black and white, and those that are not 8-bit, are Bernoulli, and so are all that are to be binarised. A
    likelihood other than Bernoulli takes pixels as they are.

    Raises:
        ConfigurationError: the options cannot work together.

    >>> complete_configuration({"preset": "resnet", "width": 8}, np.full((1, 1, 2, 2), 99, np.uint8)).likelihood
    'discretised_logistic'
    >>> complete_configuration({}, np.full((1, 3, 48, 64), 99, np.uint8)).preset
    'resnet'
    """
    _, *image_shape = train.shape
    preset = given.get("preset", AUTO)
    if preset == AUTO:
        preset = "mlp" if math.prod(image_shape) <= LARGEST_OF_AN_MLP else "resnet"
    recipe = _recipe(preset, image_shape)
    chosen = {**RECIPES.get(recipe, {}), **given, "preset": preset}
    if recipe in _BATCHES and "batch_size" not in given:
        least, most = _BATCHES[recipe]
        chosen["batch_size"] = max(least, min(most, math.ceil(len(train) / STEPS_AN_EPOCH)))
    if "likelihood" not in chosen:
        of_one = {name for likelihood in LIKELIHOODS.values() for name in likelihood.configured}
        plain = chosen.get("binarisation", "none") == "none" and of_one.isdisjoint(chosen)
        grey = PHOTOGRAPHS if math.prod(image_shape) > FULL_RATE_PIXELS else GREY
        chosen["likelihood"] = grey if plain and _is_grey(train) else BLACK_AND_WHITE
    if chosen["likelihood"] in FROM_OTHER_PIXELS and recipe == "large mlp":
        chosen = _SMALL_MLP | chosen
    if not LIKELIHOODS[chosen["likelihood"]].is_binary:
        chosen.setdefault("binarisation", "none")
    configuration = Configuration(**chosen)
    if "warm_up_epochs" in chosen:
        return configuration
    return replace(configuration, warm_up_epochs=_warm_up(len(train), configuration))


def _recipe(preset: str, image_shape: Sequence[int]) -> str:
    """The name in `RECIPES` of what images [C, H, W] get; any other preset is the configuration's to refuse."""
    if preset == "mlp" and math.prod(image_shape) > FULL_RATE_PIXELS:
        return "large mlp"
    return "resnet in patches" if preset == "resnet" and patch_size(*image_shape[1:]) > 1 else preset


def _warm_up(num_images: int, configuration: Configuration) -> float:
    """Epochs: one, or as many as have 100 steps; at most a tenth of all, if that has 100 steps."""
    steps_per_epoch = math.ceil(num_images / configuration.batch_size)
    most = _MOST_WARM_UP * configuration.epochs
    epochs = max(1, min(math.ceil(WARM_UP_STEPS / steps_per_epoch), round(most)))
    return float(min(epochs, max(most, WARM_UP_STEPS / steps_per_epoch)))


def _is_grey(train: Images) -> bool:
    """Whether images are 8-bit and clearly more than black and white; of a large set, evenly spaced images tell."""
    if train.dtype != np.uint8:
        return False
    some = evenly_spaced(train, max(1, min(_LOOKED_AT, _BYTES_LOOKED_AT // math.prod(train.shape[1:]))))
    return bool(((some > 25) & (some < 230)).mean() > GREY_SHARE)
