"""Does a version answer as a model must? It is asked before it is served: one that is wrong may run all the same.

The store has no calibration images, only their scores. So the questions are about latent codes and images that the
model draws itself, to which an honest model has honest answers however odd its calibration is, and about what the
stored scores say of the decoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store import CALIBRATION, DECODER, ENCODER, LATENT, MANIFEST, Description, InvalidArtifactError, StoredModel
from service.engine.anomaly.statistics import restored
from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.graph_check import check_shape, read_graph
from service.engine.likelihood import likelihood_of
from service.engine.likelihood.base import Parameters
from service.engine.model import DEFAULT_MAX_STEPS, Model, Pixels
from service.engine.preparation import Preparation
from service.engine.proposal import DEFAULT_SEED, MIN_NUM_SAMPLES, standard_normal
from service.engine.runtime import Runtime, Session, blaming

DEFAULT_MAX_NUM_SAMPLES = 100_000
_LARGEST = 1e6
"""Of a decoder's output, or a code: neither logits nor codes under a standard normal prior come near it."""
_LARGEST_LOG_VAR = 87.0
"""float32 holds exp(±87), and not much beyond."""
_SCALES = (1e-9, 1e9)
"""Between these a scale, its inverse and their squares are numbers of float32."""
_SCORED_IMAGES = 4
_SCORED_SAMPLES = 400
_CODES = 64
_FEWEST_CODES = 8
_SLACK, _RELATIVE_SLACK = 10.0, 0.1  # nats, and of the larger figure


def accept(
    stored: StoredModel,
    *,
    runtime: Runtime,
    chunk_rows: int | None = None,
    max_steps: int = DEFAULT_MAX_STEPS,
    max_num_samples: int = DEFAULT_MAX_NUM_SAMPLES,
) -> Model:
    """Load a version as `Model.open` does, and ask it.

    Raises:
        InvalidArtifactError: it is not what the manifest says, or one of its answers cannot be a model's.
    """
    description, folder = stored.manifest, stored.path
    check_description(description, folder / MANIFEST, max_num_samples=max_num_samples)
    rows = chunk_rows or runtime.blocks.chunk_rows(description.image.size)
    pixels = _check_graphs(stored, runtime, rows)
    model = Model.open(stored, runtime=runtime, chunk_rows=chunk_rows, max_steps=max_steps)
    with blaming(folder / DECODER):
        _check_scores(model, pixels[:_SCORED_IMAGES], folder / DECODER)
    return model


def check_description(description: Description, file: Path, *, max_num_samples: int) -> None:
    """Refuse numbers of a manifest with which no request could be answered; `file` is what the error names.

    Raises:
        InvalidArtifactError.
    """
    scales = {
        "preparation.scale": description.preparation.scale,
        "likelihood.scale": getattr(description.likelihood, "scale", None),
    }
    for name, scale in scales.items():
        if scale is not None and not _SCALES[0] <= scale <= _SCALES[1]:
            raise InvalidArtifactError(
                file, f"{name} is {scale:g}; it must be between {_SCALES[0]:g} and {_SCALES[1]:g}"
            )
    if description.calibration.num_samples > max_num_samples:
        raise InvalidArtifactError(
            file,
            f"calibration.num_samples is {description.calibration.num_samples}, as many as every image would take; "
            f"at most {max_num_samples} are taken (LOGPX_MAX_NUM_SAMPLES)",
        )


def _check_graphs(stored: StoredModel, runtime: Runtime, num_rows: int) -> Pixels:
    """Run both graphs on as many rows as requests make them run at once; the images [N, C, H, W] they were asked of.

    Latent codes are the origin and draws from the prior; the images are what the decoder makes of them.
    """
    description, folder = stored.manifest, stored.path
    chw, latent = description.image.chw, (description.latent_dim,)
    likelihood = likelihood_of(description.likelihood)
    preparation = Preparation(description.preparation, description.image, likelihood.levels)
    file = folder / DECODER
    read_graph(stored.decoder, file, inputs={"z": latent}, outputs=dict.fromkeys(likelihood.outputs, chw))
    latents = standard_normal(max(2, num_rows), description.latent_dim, seed=DEFAULT_SEED)
    latents[0] = 0
    decoder = runtime.open(stored.decoder, file)
    parameters = _run(decoder, {"z": latents}, dict.fromkeys(likelihood.outputs, chw), file)
    for name, values in parameters.items():
        _check_finite(file, name, values, "latent codes drawn from the prior", allowed=0)
        _check_range(file, name, values, _LARGEST)
    _check_codes(stored, decoder, preparation)
    pixels = preparation.restore(likelihood.mean(parameters))

    file = folder / ENCODER
    read_graph(stored.encoder, file, inputs={"x": chw}, outputs={"mean": latent, "log_var": latent})
    codes = {"mean": latent, "log_var": latent}
    posterior = _run(runtime.open(stored.encoder, file), {"x": preparation.prepare(pixels)}, codes, file)
    for name, largest in (("mean", _LARGEST), ("log_var", _LARGEST_LOG_VAR)):
        _check_finite(file, name, posterior[name], "images that the model draws", allowed=len(pixels) // 2)
        _check_range(file, name, posterior[name], largest)
    return pixels


def _run(
    session: Session, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, tuple[int, ...]], file: Path
) -> dict[str, NDArray[Any]]:
    with blaming(file):
        found = session.run(inputs)
    (given,) = inputs.values()
    for name, shape in outputs.items():
        check_shape(file, name, found[name].shape, (len(given), *shape))
    return {name: found[name] for name in outputs}


def _check_finite(file: Path, name: str, values: NDArray[Any], of_what: str, *, allowed: int) -> None:
    """Refuse an output with more rows than are allowed in which something is infinite or not a number."""
    bad = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum())
    if bad > allowed:
        raise InvalidArtifactError(file, f"output {name!r} is not finite for {bad} of {len(values)} {of_what}")


def _check_range(file: Path, name: str, values: NDArray[Any], largest: float) -> None:
    """Refuse an output of which most numbers are beyond all sense; a few may well be, as of a dimension not in use."""
    finite = values[np.isfinite(values)]
    if np.count_nonzero(np.abs(finite) > largest) > finite.size / 2:
        raise InvalidArtifactError(file, f"output {name!r} is beyond ±{largest:g} in most places")


def _check_codes(stored: StoredModel, decoder: Session, preparation: Preparation) -> None:
    """Hold the decoder against the calibration, where that has its images' codes.

    No image x has a higher log p(x|z) than the likeliest image at z. Stored is E_q[log p(x|z)] = ELBO + KL of each
    calibration image and the mean of its q(z|x); there the likeliest image must not be much less likely. That holds of
    any images that a model was calibrated on, be they ever so unlike those it was trained on.
    """
    description, scores = stored.manifest, restored(stored.calibration)
    names = [f"{LATENT}{d}" for d in range(description.latent_dim)]
    if not {"kl", *names} <= scores.keys():
        return
    expected = scores["elbo"] + scores["kl"]
    codes = np.stack([scores[name] for name in names], axis=1)  # [n, D]
    usable = np.flatnonzero(np.isfinite(expected) & (np.abs(codes) < _LARGEST).all(axis=1))
    if len(usable) < _FEWEST_CODES:
        return
    chosen = usable[:: -(-len(usable) // _CODES)]
    file = stored.path / DECODER
    shapes = dict.fromkeys(likelihood_of(description.likelihood).outputs, description.image.chw)
    with np.errstate(all="ignore"):
        parameters = _run(decoder, {"z": codes[chosen].astype(np.float32)}, shapes, file)
        highest = _highest_log_prob(description, parameters, preparation)
        slack = _SLACK + _RELATIVE_SLACK * np.maximum(np.abs(highest), np.abs(expected[chosen]))
        worse = int((~(expected[chosen] <= highest + slack)).sum())
    if worse > len(chosen) / 2:
        raise InvalidArtifactError(
            file,
            f"cannot have given the scores in {CALIBRATION}: at the codes of {worse} of {len(chosen)} calibration "
            "images no image is as likely as those are said to be",
        )


def _highest_log_prob(description: Description, parameters: Parameters, preparation: Preparation) -> Float64Array:
    """max over x of log p(x|z), nats [N]: pixel by pixel the best of black, white and what is nearest to the mean."""
    likelihood = likelihood_of(description.likelihood)
    nearest = preparation.prepare(preparation.restore(likelihood.mean(parameters)))
    candidates = (np.zeros_like(nearest), np.full_like(nearest, description.preparation.scale), nearest)
    best = np.maximum.reduce([likelihood.pixel_log_prob(x, parameters) for x in candidates])  # [N, C, H, W]
    return np.asarray(best.sum(axis=(1, 2, 3)))


def _check_scores(model: Model, pixels: Pixels, file: Path) -> None:
    """Score images that the model draws, by the calibration's proposal."""
    protocol = model.description.calibration
    num_samples = max(min(protocol.num_samples, _SCORED_SAMPLES), MIN_NUM_SAMPLES.get(protocol.proposal, 1))
    with np.errstate(all="ignore"):
        statistics = complete(
            model.statistics(pixels, proposal=protocol.proposal, num_samples=num_samples, seed=protocol.seed)
        )
    bad = int((~np.isfinite(statistics.log_likelihood)).sum())
    if bad > len(pixels) / 2:
        raise InvalidArtifactError(
            file, f"log P(x) is not finite for {bad} of {len(pixels)} images that the model draws"
        )
