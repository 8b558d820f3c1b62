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


@cache
def clothes(*, upside_down: bool = False) -> AnyArray:
    """32 of the test images, evenly spaced."""
    with np.load(Path(__file__).parents[1] / "data" / "clothes.npz", allow_pickle=False) as archive:
        pixels = np.asarray(archive["images"], np.float32) / np.float32(255)
    return pixels[:, :, ::-1] if upside_down else pixels


def estimates(pixels: AnyArray, *, seed: int = 0, num_samples: int = 400) -> LogLikelihood:
    return complete(bundled().log_likelihood(pixels, seed=seed, num_samples=num_samples))


@cache
def together(*, upside_down: bool = False) -> LogLikelihood:
    """All of them in one batch: computed once, for upside down each takes long."""
    return estimates(clothes(upside_down=upside_down))


def test_most_estimates_are_reliable_and_far_above_the_encoders() -> None:
    record = together()
    assert record.reliable.mean() > 0.75
    encoder = complete(bundled().log_likelihood(clothes(), proposal="encoder", num_samples=400))
    assert (record.log_likelihood - encoder.log_likelihood).mean() > 20


def test_what_is_called_reliable_stays_where_it_was_with_other_noise_and_more_of_it() -> None:
    for upside_down in (False, True):
        one = together(upside_down=upside_down)
        other = estimates(clothes(upside_down=upside_down), seed=1, num_samples=2000)
        both = one.reliable & other.reliable
        assert both.mean() > 0.25
        distance = np.abs(one.log_likelihood - other.log_likelihood)[both]
        assert (distance < 4 * np.hypot(one.std_error, other.std_error)[both]).mean() > 0.9


def test_the_same_bits_alone_and_in_any_batch() -> None:
    for upside_down in (False, True):
        pixels, expected = clothes(upside_down=upside_down), together(upside_down=upside_down).log_likelihood
        for index in range(len(pixels)):
            alone = estimates(pixels[index : index + 1]).log_likelihood
            np.testing.assert_array_equal(alone, expected[index : index + 1])
    mixed = np.concatenate([clothes()[-3:], clothes(upside_down=True)[:2]])
    parts = together().log_likelihood[-3:], together(upside_down=True).log_likelihood[:2]
    np.testing.assert_array_equal(estimates(mixed).log_likelihood, np.concatenate(parts))
