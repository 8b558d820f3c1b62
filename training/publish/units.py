"""What the latent code carries, unit by unit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store import Metric
from service.engine.chunks import complete
from service.engine.model import Model
from training.data.splits import Images
from training.publish.evaluation import describe_preparation, fresh_batches

ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class LatentUnits:
    """What each latent unit carries, over a set of images; arrays are [D].

    Attributes:
        kl: mean over the images of KL[q(z_d|x) ‖ N(0, 1)], in nats.
        variance_of_mean: variance over the images of the posterior mean of z_d.
        num_images: how many.
        prepared: what was done to their pixels first, in words.
    """

    kl: NDArray[np.float64]
    variance_of_mean: NDArray[np.float64]
    num_images: int
    prepared: str

    @property
    def num_active(self) -> int:
        """Units whose posterior mean varies by more than 0.01 (Burda et al. 2016, arXiv 1509.00519, section 5)."""
        return int((self.variance_of_mean > ACTIVE_VARIANCE).sum())

    def as_metric(self) -> Metric:
        """The number of active units as a manifest holds it."""
        return Metric(
            name="active_units",
            value=self.num_active,
            unit="latent units",
            num_images=self.num_images,
            protocol=(
                f"units whose posterior mean has a variance over the images above {ACTIVE_VARIANCE} (Burda et al. "
                f"2016); images {self.prepared}"
            ),
        )


def latent_units(model: Model, images: Images, *, seed: int) -> LatentUnits:
    """What the encoder puts into each unit, for images [N, C, H, W] prepared as in `evaluate`."""
    posteriors = [complete(model.encode(batch)) for batch in fresh_batches(model, images, seed=seed)]
    mean = np.concatenate([posterior.mean for posterior in posteriors]).astype(np.float64)  # [N, D]
    log_var = np.concatenate([posterior.log_var for posterior in posteriors]).astype(np.float64)
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)
    return LatentUnits(
        kl=kl.mean(axis=0),
        variance_of_mean=mean.var(axis=0),
        num_images=len(images),
        prepared=describe_preparation(model, images, seed=seed),
    )
