"""The `linear` preset's weights in closed form: probabilistic PCA (Tipping and Bishop 1999) of feature maps.

p(x|z) = N(x; mean + W·z, σ²·I) with W = A·diag(√d): A [P, D] are the first principal axes of the training maps,
d = λ − σ₀², λ their variances, and σ₀² the mean variance of all other axes. By the training maps σ² would be σ₀²; but
few images leave most axes unseen, so σ² is the mean square, a number, of what the axes leave of validation maps. The
posterior is Gaussian, and the encoder has it exactly: q(z|x) = p(z|x) = N(√d/(d + σ²)·Aᵀ·(x − mean), σ²/(d + σ²)).
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.configuration import Configuration
from training.data.splits import DataSplits, evenly_spaced
from training.errors import ConfigurationError
from training.fit.devices import Acceleration
from training.fit.run import Run
from training.fit.state import build_state
from training.fit.trainer import EpochFigures, session_of, validate
from training.likelihoods.location_scale import LOC_UNIT
from training.networks.precision import full_float32

LINEAR = "linear"
_MOST_IMAGES, _MOST_NUMBERS = 2048, 2**27
"""By which the axes are found, evenly spaced among more; and numbers of their maps, 512 MiB."""
_AT_ONCE = 64
_LEAST_SCALE = 1e-3
"""Of whitened maps, whose numbers are of about unit size: maps that the axes describe wholly still have a density."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinearModel:
    """What the weights are made of.

    Attributes:
        mean: of the training maps, [P].
        axes: A, orthonormal columns, [P, D].
        spread: d, [D].
        scale: σ.
        seconds: that it took to find them.
    """

    mean: Floats
    axes: Floats
    spread: Floats
    scale: float
    seconds: float

    @property
    def options(self) -> dict[str, Any]:
        """Of the configuration that this model has."""
        return {"latent_dim": len(self.spread), "gaussian_scale": self.scale}


def solve(given: Mapping[str, Any], splits: DataSplits) -> LinearModel:
    """The model of maps `splits.train` and `splits.validation`, [N, F, h, w].

    Args:
        given: options; `latent_dim` is by default the configuration's, at most half of the training images, and
            `gaussian_scale` σ as above.
        splits: of maps.

    Raises:
        ConfigurationError: there are not more than `latent_dim` training images, or not more numbers in a map.
    """
    started = time.perf_counter()
    size = math.prod(splits.image_shape)
    some = evenly_spaced(splits.train, max(2, min(_MOST_IMAGES, _MOST_NUMBERS // size)))
    rows = np.asarray(some, np.float32).reshape(len(some), -1)
    latent_dim = given.get("latent_dim", max(1, min(Configuration.latent_dim, len(rows) // 2)))
    if latent_dim >= min(len(rows), size):
        raise ConfigurationError(
            f"latent_dim must be below the number of images that the axes are found by and of numbers in a map "
            f"({min(len(rows), size)}), not {latent_dim}"
        )
    mean = rows.mean(axis=0, dtype=np.float64)
    rows = rows - mean.astype(np.float32)
    _, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    axes = np.linalg.qr((rows.T @ vectors[:, : -latent_dim - 1 : -1].astype(np.float32)).astype(np.float64))[0]
    along, left = _variances(some, mean, axes)
    spread = np.maximum(along - left, 0)
    scale = given.get("gaussian_scale")
    if scale is None:
        held_out = _variances(splits.validation, mean, axes)[1]
        scale = max(_LEAST_SCALE, math.sqrt(max(left, held_out)))
    return LinearModel(mean, axes, spread, float(scale), time.perf_counter() - started)


def _variances(maps: NDArray[Any], mean: Floats, axes: Floats) -> tuple[Floats, float]:
    """Mean squares of maps [N, F, h, w] along each axis, [D], and of what is left, a number of it."""
    along, total = np.zeros(axes.shape[1]), 0.0
    for start in range(0, len(maps), _AT_ONCE):
        centred = np.asarray(maps[start : start + _AT_ONCE], np.float64).reshape(-1, len(mean)) - mean
        along += np.square(centred @ axes).sum(axis=0)
        total += float(np.square(centred).sum())
    along /= len(maps)
    return along, max(0.0, total / len(maps) - float(along.sum())) / (len(mean) - len(along))


@full_float32()
@torch.no_grad()
def begin_linear(run: Run, splits: DataSplits, model: LinearModel, acceleration: Acceleration) -> EpochFigures:
    """Write the run's only epoch: the model's weights, and how likely validation maps are by them."""
    configuration, device = run.description.configuration, torch.device("cpu")
    state = build_state(configuration, torch.zeros(run.description.image_shape), device)
    variance, gain = model.scale**2, np.sqrt(model.spread)
    encoder, decoder = state.averaged.encoder, state.averaged.decoder
    weights = (
        (encoder.body.get_submodule("axes"), model.axes.T, -model.axes.T @ model.mean),
        (encoder.mean, np.diag(gain / (model.spread + variance)), np.zeros(len(gain))),
        (encoder.log_var, np.zeros((len(gain), len(gain))), np.log(variance / (model.spread + variance))),
        (decoder.body.get_submodule("pixels"), model.axes * gain / LOC_UNIT, model.mean / LOC_UNIT),
    )
    for layer, weight, bias in weights:
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    state.model.load_state_dict(state.averaged.state_dict())
    started = time.perf_counter()
    train = evenly_spaced(splits.train, len(splits.validation))
    (_, of_train), (elbo, bound) = (
        validate(state.averaged, torch.from_numpy(np.array(maps)), configuration) for maps in (train, splits.validation)
    )
    figures = EpochFigures(
        epoch=1,
        step=0,
        train_bound=of_train,
        validation_bound=bound,
        validation_elbo=elbo,
        learning_rate=0.0,
        skipped_steps=0,
        setbacks=0,
        images_per_second=len(splits.train) / model.seconds,
        seconds=model.seconds + time.perf_counter() - started,
    )
    run.append_session(session_of(1, device, acceleration=acceleration))
    run.append_metrics(asdict(figures))
    run.save_checkpoint(state.as_checkpoint(1))
    return figures
