"""What a run is refused for before it trains, since it would be later: by the memory, or by a store."""

import math

from model_store import MAX_IMAGE_SIZE, max_calibration_images
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.errors import ConfigurationError
from training.likelihoods import build_likelihood

MOST_PIXEL_WEIGHTS = 2**28
"""With their gradient, Adam's two moments and their average 5 GiB."""


def check_limits(configuration: Configuration, splits: DataSplits) -> None:
    """Refuse images and choices that do not go together.

    Raises:
        ConfigurationError: `shift` is not less than the images' height and width, an `mlp` of these images would
            have more than 268 million weights, or what comes of the run is larger than a store takes.
    """
    _check_can_be_published(configuration, splits)
    if (weights := num_pixel_weights(configuration, splits.image_shape)) > MOST_PIXEL_WEIGHTS:
        raise ConfigurationError(
            f"an mlp of width {configuration.width} for images of {list(splits.image_shape)} has {weights / 1e6:.0f} "
            f"million weights, more than {MOST_PIXEL_WEIGHTS / 1e6:.0f}: choose the preset resnet, or a smaller width"
        )
    if configuration.shift >= (smallest := min(splits.image_shape[1:])):
        raise ConfigurationError(f"shift must be less than the images' {smallest} pixels, not {configuration.shift}")


def _check_can_be_published(configuration: Configuration, splits: DataSplits) -> None:
    """Refuse before training what a store would refuse after it."""
    if (size := math.prod(splits.image_shape)) > MAX_IMAGE_SIZE:
        raise ConfigurationError(
            f"images of {size} pixels and channels are too large: at most {MAX_IMAGE_SIZE} are taken"
        )
    most = max_calibration_images(configuration.latent_dim)
    if len(splits.calibration) > most:
        raise ConfigurationError(
            f"num_calibration must be at most {most} with {configuration.latent_dim} latent dimensions, "
            f"not {len(splits.calibration)}"
        )


def num_pixel_weights(configuration: Configuration, image_shape: tuple[int, int, int]) -> int:
    """How many weights an `mlp` of this configuration has between pixels and hidden layers; 0 of other presets."""
    if configuration.preset != "mlp":
        return 0
    likelihood = build_likelihood(configuration.likelihood, image_shape, **configuration.likelihood_options)
    return (likelihood.num_pixels + likelihood.num_outputs) * configuration.width
