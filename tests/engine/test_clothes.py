"""The estimator on the bundled 8-bit model, whose posteriors are sharpest: real clothes, and the same upside down."""

from functools import cache
from pathlib import Path

import numpy as np

from model_store import BUNDLED, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.posterior.estimate import LogLikelihood
from service.engine.runtime import Runtime
from tests.toys import AnyArray


@cache
def bundled() -> Model:
    return Model.open(open_version(BUNDLED, "fashion-mnist"), runtime=Runtime("cpu"))


def clothes() -> AnyArray:
    """32 of the test images, evenly spaced."""
    with np.load(Path(__file__).parents[1] / "data" / "clothes.npz", allow_pickle=False) as archive:
        return np.asarray(archive["images"], np.float32) / np.float32(255)


def estimates(pixels: AnyArray, *, seed: int = 0, num_samples: int = 400) -> LogLikelihood:
    return complete(bundled().log_likelihood(pixels, seed=seed, num_samples=num_samples))


def test_most_estimates_are_reliable_and_far_above_the_encoders() -> None:
    record = estimates(clothes())
    assert record.reliable.mean() > 0.75
    encoder = complete(bundled().log_likelihood(clothes(), proposal="encoder"))
    assert (record.log_likelihood - encoder.log_likelihood).mean() > 20


def test_what_is_called_reliable_stays_where_it_was_with_other_noise_and_more_of_it() -> None:
    for pixels in (clothes(), clothes()[:, :, ::-1]):
        one, other = estimates(pixels), estimates(pixels, seed=1, num_samples=2000)
        both = one.reliable & other.reliable
        assert both.mean() > 0.25
        distance = np.abs(one.log_likelihood - other.log_likelihood)[both]
        assert (distance < 4 * np.hypot(one.std_error, other.std_error)[both]).mean() > 0.9


def test_the_same_bits_alone_and_in_any_batch() -> None:
    pixels = np.concatenate([clothes(), clothes()[:, :, ::-1]])
    together = estimates(pixels)
    for index in range(len(pixels)):
        np.testing.assert_array_equal(
            estimates(pixels[index : index + 1]).log_likelihood, together.log_likelihood[index : index + 1]
        )
    np.testing.assert_array_equal(estimates(pixels[4:9]).log_likelihood, together.log_likelihood[4:9])
