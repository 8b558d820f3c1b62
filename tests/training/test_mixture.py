"""A mixture of discretised logistics from colour images to answers: trained, exported, published, served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine.acceptance import accept
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from training.configuration import Configuration
from training.data.sources import read_source
from training.data.splits import split
from training.fit.loaded_model import load_model
from training.fit.run import create_run, describe_run
from training.fit.trainer import fit
from training.publish.evaluation import Protocol
from training.publish.publication import publish_run

SHAPE = (3, 3, 5)
CONFIGURATION = Configuration(
    likelihood="discretised_logistic_mixture",
    num_components=3,
    binarisation="none",
    width=16,
    latent_dim=2,
    epochs=12,
    batch_size=20,
    learning_rate=3e-3,
    ema_decay=0.5,
    finish_encoder=False,
)


def photographs(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Images whose channels go together: a grey ramp of random slope and height, tinted, with noise."""
    rng = np.random.default_rng(seed)
    ramp = rng.normal(0, 12, (count, 1, 1, 1)) * np.arange(5) + rng.uniform(40, 200, (count, 1, 1, 1))
    colour = ramp + np.array([0, 10, -10]).reshape(1, 3, 1, 1) + rng.normal(0, 3, (count, *SHAPE))
    pixels: NDArray[np.uint8] = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    return pixels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[dict[str, Any]], torch.nn.Module]:
    """The model as it is served, what each epoch measured, and the network."""
    folder = tmp_path_factory.mktemp("mixture")
    file = folder / "photographs.npz"
    np.savez(file, train=photographs(300, seed=1), test=photographs(20, seed=2))
    splits = split(read_source(file), CONFIGURATION)
    run = create_run(folder / "run", describe_run(CONFIGURATION, splits, source=str(file)))
    fit(run, splits, device=torch.device("cpu"), on_epoch=lambda figures, model: None)
    protocol = Protocol("laplace", num_samples=60, seed=0)
    runtime = Runtime("cpu", 1)
    published = publish_run(
        run, splits, name="mixture", store=folder / "store", protocol=protocol, encoder_samples=0, runtime=runtime
    )
    model = accept(published.stored, runtime=runtime)
    return model, run.read_metrics(CONFIGURATION.epochs), load_model(run)[0]


def test_it_learns(trained: tuple[Model, list[dict[str, Any]], torch.nn.Module]) -> None:
    _, metrics, _ = trained
    assert metrics[-1]["validation_bound"] > metrics[0]["validation_bound"] + 10


def test_the_manifest_says_what_it_is(trained: tuple[Model, list[dict[str, Any]], torch.nn.Module]) -> None:
    said = trained[0].manifest.likelihood
    assert (said.kind, said.levels, said.options) == ("discretised_logistic_mixture", 256, {"num_components": 3})


@pytest.mark.parametrize("proposal", ["encoder", "laplace"])
def test_an_image_has_one_answer_alone_and_in_a_batch(
    trained: tuple[Model, list[dict[str, Any]], torch.nn.Module], proposal: str
) -> None:
    model = trained[0]
    pixels = photographs(5, seed=3).astype(np.float32) / np.float32(255)
    together = complete(model.log_likelihood(pixels, proposal=proposal, num_samples=100))
    alone = complete(model.log_likelihood(pixels[2:3], proposal=proposal, num_samples=100))
    assert alone.log_likelihood[0] == together.log_likelihood[2]
    assert np.isfinite(together.log_likelihood).all()
    explained = complete(model.anomaly_scores(pixels, explain=True)).explanation
    assert explained is not None
    assert explained.shape == pixels.shape
    assert np.isfinite(explained).all()


def test_the_estimate_is_the_integral_over_z(
    trained: tuple[Model, list[dict[str, Any]], torch.nn.Module],
) -> None:
    """By quadrature over the two latent dimensions, with PyTorch's density in float64."""
    model, _, vae = trained
    pixels = photographs(4, seed=4).astype(np.float32) / np.float32(255)
    line = torch.linspace(-6, 6, 241, dtype=torch.float64)
    nodes = torch.cartesian_prod(line, line)
    wide: Any = vae.double()
    with torch.no_grad():
        log_joint = torch.stack(
            [
                wide.conditional_log_likelihood(torch.from_numpy(image[None]).double(), nodes[None])[0]
                - 0.5 * nodes.square().sum(-1)
                for image in pixels
            ]
        )
    step = float(line[1] - line[0])
    exact = torch.logsumexp(log_joint, dim=1) + 2 * np.log(step) - np.log(2 * np.pi)
    record = complete(model.log_likelihood(pixels, proposal="laplace", num_samples=4000))
    assert (np.abs(record.log_likelihood - exact.numpy()) < 4 * record.std_error + 0.02).all()


def test_its_gradient_along_the_latents_is_automatic_differentiations(
    trained: tuple[Model, list[dict[str, Any]], torch.nn.Module],
) -> None:
    model, _, vae = trained
    pixels = photographs(6, seed=5).astype(np.float32) / np.float32(255)
    points = 1.5 * np.random.default_rng(6).standard_normal((6, 2)).astype(np.float32).astype(np.float64)
    values, gradients = complete(model._sampler.slopes(pixels.reshape(6, -1), points))
    wide: Any = vae.double()
    z = torch.from_numpy(points).requires_grad_()
    expected = wide.conditional_log_likelihood(torch.from_numpy(pixels).double(), z[:, None])[:, 0]
    (slopes,) = torch.autograd.grad(expected.sum(), z)
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(gradients, slopes.numpy(), rtol=1e-4, atol=1e-3 * float(slopes.abs().max()))


def test_samples_and_codes_have_their_shapes(
    trained: tuple[Model, list[dict[str, Any]], torch.nn.Module], tmp_path: Path
) -> None:
    model = trained[0]
    drawn = complete(model.sample(3, seed=1))
    assert drawn.images.shape == (3, *SHAPE)
    assert ((drawn.images >= 0) & (drawn.images <= 1)).all()
    assert complete(model.encode(drawn.images)).mean.shape == (3, 2)
