"""Scores of held-out images, which the scores of all later images are compared with: what calibration.npz holds."""

from collections.abc import Callable, Iterable

from model_store import FITTING
from service.engine.anomaly.conformal import guarantee
from service.engine.anomaly.detector import DEFAULT_ALPHA, compared_with, fitting_images
from service.engine.anomaly.statistics import Statistics, storable
from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.model import Model, Pixels


def calibrate(
    model: Model,
    batches: Iterable[Pixels],
    *,
    proposal: str,
    num_samples: int,
    seed: int,
    on_batch: Callable[[int], object] = lambda _: None,
    on_chunk: Callable[[], object] = lambda: None,
) -> dict[str, Float64Array]:
    """Calibration arrays [n] of images [B, C, H, W] in [0, 1], batch by batch, scored as requests score theirs.

    Args:
        model: calibrated or not.
        batches: images like those the service is to call ordinary, none of which the model was trained on.
        proposal: of every later score too, as the next two; the manifest's `calibration` must say so.
        num_samples: importance samples an image.
        seed: of the noise.
        on_batch: told the number of images of each batch that is done.
        on_chunk: called after each run on the device, of which a batch takes many.

    Raises:
        UnknownProposalError, TooFewSamplesError: see proposal.py.
    """
    parts: list[Statistics] = []
    for pixels in batches:
        chunks = model.statistics(pixels, proposal=proposal, num_samples=num_samples, seed=seed)
        parts.append(complete(chunks, on_chunk))
        on_batch(len(pixels))
    measured = storable(Statistics.join(parts).measured())
    return {**measured, FITTING: fitting_images(len(measured["log_likelihood"]))}


def guarantees(num_images: int) -> list[str]:
    """What so many calibration images can and cannot promise, in words.

    >>> for line in guarantees(12):
    ...     print(line)
    of 12 calibration images 4 fit the scores and 8 are compared with: the smallest p-value is 0.11
    with 8 images to compare with, alpha = 0.05 never fires; 19 are needed
    with 8 images to compare with, alpha = 0.01 never fires; 99 are needed
    """
    compared = compared_with(num_images)
    return [
        f"of {num_images} calibration images {num_images - compared} fit the scores and {compared} are compared with: "
        f"the smallest p-value is {1 / (compared + 1):.2g}",
        *(guarantee(compared, alpha) for alpha in (DEFAULT_ALPHA, 0.01)),
    ]
