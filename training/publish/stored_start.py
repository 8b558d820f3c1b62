"""The weights of a published version, for a run to begin with."""

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from model_store import DECODER, ENCODER, LIKELIHOOD, ModelNotFoundError, StoredModel
from service.engine.runtime import Runtime
from training.errors import ConfigurationError, ParityError, RunError
from training.fit.run import RUN, open_run
from training.fit.start import Start, start_of
from training.networks.precision import full_float32
from training.networks.vae import HIGHEST_LOG_VAR, LOWEST_LOG_VAR, Vae, build_vae
from training.publish.export import scoring_part
from training.publish.held_out import configuration_of, things_of
from training.publish.part_export import OWN_WEIGHTS
from training.publish.publication import open_stored

_NUM_CODES = 64
_TOLERANCE = 1e-4
"""Of an output's largest number: float32 sums in another order."""


def open_start(path: Path, runtime: Runtime) -> Start:
    """The weights of a run's folder, or of a version in a store: see `stored_start`.

    Raises:
        RunError: there is neither; or see there.
    """
    if (path / RUN).is_file():
        return start_of(open_run(path))
    try:
        return stored_start(path, runtime=runtime)
    except ModelNotFoundError as error:
        raise RunError(f"{path}: no training run there, and no published version ({error})") from error


def stored_start(path: Path, *, runtime: Runtime) -> Start:
    """The weights of the version in `store/NAME/VERSION`, or of the latest one in `store/NAME`.

    They are the graphs' own, by their names; the networks of the manifest's configuration must then compute what the
    graphs do.

    Raises:
        StoreError: there is no such version, or it is not whole.
        RunError: it is not a model that this program has trained and exported.
        ParityError: the graphs compute something else than the networks do with these weights.
    """
    stored = open_stored(path)
    if stored.manifest.features is not None:
        raise RunError(f"{stored.path} cannot be the start: its features are whitened over other images than a run's")
    provenance = stored.manifest.provenance
    pixels = re.search(r"\(pixels SHA-256 ([0-9a-f]{64})\)", provenance.data_set)
    try:
        configuration = configuration_of(provenance)
        vae = build_vae(configuration, torch.full(stored.manifest.image.chw, 0.5))
        _load_weights(vae, stored)
    except (ConfigurationError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{stored.path} cannot be the start: not an export of networks that are known ({reason})"
        ) from error
    if pixels is None:
        raise RunError(f"{stored.path} cannot be the start: its manifest does not say what it was trained on")
    _check_same(vae, stored, runtime)
    return Start(
        path=stored.path,
        configuration=configuration,
        image_shape=vae.image_shape,
        sha256=pixels[1],
        weights=vae.state_dict(),
        trained=True,
        things=things_of(provenance),
    )


def _load_weights(vae: Vae, stored: StoredModel) -> None:
    own = {
        f"of_likelihood.{name.removeprefix(OWN_WEIGHTS)}": weight
        for name, weight in _constants(stored.likelihood).items()
        if name.startswith(OWN_WEIGHTS)
    }
    for network, content, more in ((vae.encoder, stored.encoder, {}), (vae.decoder, stored.decoder, own)):
        weights = _constants(content) | more
        network.load_state_dict({name: weights[name] for name in network.state_dict() if name in weights})


def _constants(content: bytes | None) -> dict[str, Tensor]:
    graph = onnx.load_from_string(content or b"").graph
    return {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}


@full_float32()
@torch.no_grad()
def _check_same(vae: Vae, stored: StoredModel, runtime: Runtime) -> None:
    """Compare the networks with the graphs, on latent codes from the prior and the images E[x|z] of those.

    A likelihood with weights of its own is compared too, by log p(x|z) of those.

    Raises:
        ParityError: they differ by more than rounding.
    """
    z = torch.randn(_NUM_CODES, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    x = vae.expected_image(z).clamp(0, 1).contiguous()
    found = runtime.open(stored.encoder, stored.path / ENCODER).run({"x": x.numpy()})
    found |= runtime.open(stored.decoder, stored.path / DECODER).run({"z": z.numpy()})
    # Encoders exported before log variances had bounds go beyond them for images unlike any in training.
    found["log_var"] = found["log_var"].clip(LOWEST_LOG_VAR, HIGHEST_LOG_VAR)
    mean, log_var = vae.encode(x)
    parameters = dict(zip(vae.likelihood.outputs, vae.decoder(z), strict=True))
    expected = {"mean": mean, "log_var": log_var, **parameters}
    if vae.likelihood.network is not None and stored.likelihood is not None:
        rows = {name: value.flatten(1).unsqueeze(1) for name, value in ({"x": x} | parameters).items()}  # [N, 1, Q]
        graph = runtime.open(scoring_part(stored.likelihood, vae.likelihood), stored.path / LIKELIHOOD)
        found |= {"log_prob": graph.run({name: value.numpy() for name, value in rows.items()})["log_prob"]}
        expected |= {"log_prob": vae.likelihood.log_prob(*rows.values())}
    for name, value in expected.items():
        difference = float(np.abs(found[name] - value.numpy()).max() / np.abs(found[name]).max())
        if not difference <= _TOLERANCE:
            raise ParityError(
                f"{stored.path} cannot be the start: with its weights the networks' {name!r} is off by "
                f"{difference:.2g} of the largest"
            )
