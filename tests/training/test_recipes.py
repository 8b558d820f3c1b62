from typing import Any

import numpy as np
import pytest

from training.configuration import Configuration
from training.errors import ConfigurationError
from training.recipes import complete_configuration

GREY = np.random.default_rng(3).integers(0, 256, (30, 1, 4, 4)).astype(np.uint8)
DIGITS = np.where(GREY < 230, GREY // 128 * 255, GREY).astype(np.uint8)  # of ten pixels, at most one is grey
BINARY = (GREY // 128 * 255).astype(np.uint8)
FLOATS = (GREY / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("pixels", "options", "likelihood", "binarisation"),
    [
        (GREY, {}, "discretised_logistic", "none"),
        (DIGITS, {}, "bernoulli", "dynamic"),
        (BINARY, {}, "bernoulli", "dynamic"),
        (FLOATS, {}, "bernoulli", "dynamic"),
        (GREY, {"binarisation": "none"}, "discretised_logistic", "none"),
        (GREY, {"binarisation": "threshold"}, "bernoulli", "threshold"),
        (GREY, {"likelihood": "bernoulli"}, "bernoulli", "dynamic"),
        (DIGITS, {"likelihood": "discretised_logistic"}, "discretised_logistic", "none"),
        (FLOATS, {"likelihood": "gaussian", "gaussian_scale": 0.1}, "gaussian", "none"),
    ],
)
def test_the_pixels_decide_where_the_user_does_not(
    pixels: Any, options: dict[str, Any], likelihood: str, binarisation: str
) -> None:
    configuration = complete_configuration(options, pixels)
    assert (configuration.likelihood, configuration.binarisation) == (likelihood, binarisation)


def test_a_preset_has_its_recipe_and_the_user_the_last_word() -> None:
    assert complete_configuration({}, BINARY) == complete_configuration({"preset": "mlp"}, BINARY) == Configuration()
    assert complete_configuration({"preset": "resnet"}, BINARY).width == 32
    assert complete_configuration({"preset": "resnet", "width": 5}, BINARY).width == 5


def test_options_that_cannot_work_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="binarisation must be none"):
        complete_configuration({"likelihood": "gaussian", "binarisation": "dynamic"}, GREY)
    with pytest.raises(ConfigurationError, match="gaussian_scale belongs to the likelihood gaussian"):
        complete_configuration({"gaussian_scale": 0.1}, GREY)
