"""Images in passes, coarse to fine: a distribution, its draws, where it begins, and all the way to answers."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose

from model_store import LIKELIHOOD, StoredModel, open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
from tests.training.in_passes import IN_PASSES, moved, passes_of, with_drawn_weights
from tests.training.photographs import photographs
from tests.training.test_finish_encoder import stored_with
from tests.training.test_likelihoods import GREY, double, example
from training.__main__ import main
from training.errors import ParityError, RunError
from training.fit.loaded_model import load_model
from training.fit.run import open_run
from training.fit.start import fingerprint, start_of
from training.likelihoods import interlacing
from training.likelihoods.discretised_logistic_interlaced import DiscretisedLogisticInterlaced
from training.publish.part_export import OWN_WEIGHTS
from training.publish.stored_start import stored_start

FAST = ["--width=16", "--latent-dim=2", "--num-samples=2", "--epochs=2", "--batch-size=20", "--preset=mlp"]
SCORING = ["--num-samples=20", "--encoder-samples=0", "--device=cpu"]


def in_passes(shape: tuple[int, int, int], levels: int = 256) -> DiscretisedLogisticInterlaced:
    likelihood = with_drawn_weights(DiscretisedLogisticInterlaced(shape, levels))
    assert isinstance(likelihood, DiscretisedLogisticInterlaced)
    return likelihood


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 2, 2)], ids=str)
def test_the_probabilities_of_all_images_in_passes_sum_to_one(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interlacing, "SMALLEST", 1)
    likelihood = in_passes(shape, levels=2)
    assert likelihood.network.num_levels == 1
    _, parameters = example(likelihood, images=1, rows=1)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * likelihood.num_pixels).unsqueeze(1)
    wide = double([parameters[0], parameters[1] + 2])
    total = likelihood.log_prob(images.double(), *wide).exp().sum()
    expected, change = likelihood.network.expect(images.reshape(-1, *shape))
    assert abs(total.item() - 1) < 1e-12
    assert min(expected.std(0).max(), change.std(0).max()) > 0.01  # so that pixels do count


def test_pixels_depend_on_earlier_passes_alone() -> None:
    likelihood = in_passes(IN_PASSES)
    turn = torch.zeros(1, *IN_PASSES)
    for number, (one, step, apart) in enumerate(passes_of(likelihood), start=1):
        for plane in one.made:
            turn[:, plane.channel, plane.row * step :: apart, plane.column * step :: apart] = number
    turn = turn.flatten()
    assert set(turn.tolist()) == set(range(9))  # three of the coarsest level, and twice as many
    x, parameters = example(likelihood, images=1, rows=1)
    changed = x.repeat(likelihood.num_pixels, 1, 1)
    changed[:, 0].diagonal().copy_(1 - x.flatten())
    before, after = (likelihood.pixel_log_prob(these.double(), *double(parameters)) for these in (x, changed))
    differs = ((before - after).abs() > 1e-9)[:, 0]  # of each changed pixel, which ones
    differs.fill_diagonal_(False)
    assert not differs[turn[None, :] <= turn[:, None]].any()
    assert differs[turn == 0].any(1).all()
    assert differs[:, turn > 0].any(0).all()


@pytest.mark.parametrize("shape", [IN_PASSES, GREY], ids=str)
def test_a_draw_in_passes_is_noise_about_what_is_expected(shape: tuple[int, int, int]) -> None:
    likelihood = in_passes(shape, levels=2**40)  # as if there were none
    _, parameters = example(likelihood)
    wide = double([0.5 + 0.01 * parameters[0], parameters[1] - 5])  # inside of [0, 1]
    uniform = torch.rand(3, 2, likelihood.num_uniforms, generator=torch.Generator().manual_seed(1)).double()
    x = likelihood.sample(uniform, *wide)
    assert 0 < x.min() < x.max() < 1
    rows = [one.flatten(0, 1).unsqueeze(1) for one in (x, *wide)]
    loc, log_scale = (one.reshape(x.shape) for one in moved(likelihood, rows[0], rows[1:]))
    mean = likelihood.mean(*wide)
    at_mean, _ = moved(likelihood, mean.flatten(0, 1).unsqueeze(1), rows[1:])
    noise = (x.numpy() - loc) / np.exp(log_scale)
    assert_allclose(noise, torch.logit(uniform).numpy(), rtol=0, atol=1e-7)
    assert_allclose(mean.numpy(), at_mean.reshape(x.shape), rtol=0, atol=1e-12)


def test_prediction_in_passes_begins_as_least_squares() -> None:
    """Of images whose pixels lie on a plane next to nothing is left, and their units are small."""
    rows, columns = np.mgrid[:8, :8] / 20
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(64, 3, 3, 1, 1, generator=generator).numpy()
    images = torch.from_numpy(drawn[:, 0] + drawn[:, 1] * rows + drawn[:, 2] * columns).float()
    likelihood = DiscretisedLogisticInterlaced((3, 8, 8))
    likelihood.begin(images)
    expected, change = likelihood.network.expect(images)
    between = torch.zeros(3, 8, 8, dtype=torch.bool)  # known pixels on both sides
    between[:, 1:7, 1:7] = True
    between[:, ::2, ::2] = False
    left = (images - expected)[:, between]
    assert left.abs().max() < 0.04
    assert images.std() > 0.3
    assert not change.any()
    assert likelihood.network.unit[between].max() < 0.06
    assert (likelihood.network.unit[0, ::2, ::2] == 1).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, and the version that was published of it."""
    folder = tmp_path_factory.mktemp("interlaced")
    np.save(folder / "images.npy", photographs(260, 8, 8, channels=3, seed=2))
    data, store = f"--data={folder / 'images.npy'}", f"--store={folder / 'store'}"
    likelihood = "--likelihood=discretised_logistic_interlaced"
    assert main(["fit", data, f"--out={folder / 'run'}", likelihood, "--no-finish-encoder", "--device=cpu", *FAST]) == 0
    assert main(["publish", str(folder / "run"), "--name=passes", store, *SCORING]) == 0
    return folder


@pytest.fixture(scope="module")
def stored(folder: Path) -> StoredModel:
    return open_version(folder / "store", "passes")


def test_the_weights_of_a_version_are_those_of_its_run(folder: Path, stored: StoredModel) -> None:
    """The averaged ones, of the likelihood too, which training has changed."""
    found, expected = stored_start(stored.path, runtime=Runtime("cpu")), start_of(open_run(folder / "run"))
    assert fingerprint(found.weights) == fingerprint(expected.weights)
    assert found.weights["decoder.of_likelihood.levels.0.5.scales.weight"].abs().max() > 0
    assert found.weights["decoder.of_likelihood.unit"].min() < 0.5


@pytest.mark.parametrize(("operator", "reason"), [("Abs", "'log_prob' is off by"), ("", "not an export of networks")])
def test_a_version_of_another_likelihood_is_no_start(
    stored: StoredModel, tmp_path: Path, operator: str, reason: str
) -> None:
    """One that computes something else of the same weights, and one whose weights have other names."""
    model = onnx.load_from_string(stored.likelihood or b"")
    for node in model.graph.node:
        node.op_type = "Neg" if node.op_type == operator else node.op_type
        node.input[:] = [name if operator else name.replace(OWN_WEIGHTS, "other.") for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name if operator else tensor.name.replace(OWN_WEIGHTS, "other.")
    changed = stored_with(stored, tmp_path, LIKELIHOOD, model.SerializeToString())
    with pytest.raises((ParityError, RunError), match=reason):
        stored_start(changed, runtime=Runtime("cpu"))


def test_the_engine_estimates_what_the_networks_do(folder: Path, stored: StoredModel) -> None:
    model = Model.open(stored, runtime=Runtime("cpu"))
    pixels = np.load(folder / "images.npy")[:6].astype(np.float32) / 255
    found = complete(model.log_likelihood(pixels, proposal="encoder", num_samples=500))
    for index in range(6):
        one = complete(model.log_likelihood(pixels[index : index + 1], proposal="encoder", num_samples=500))
        assert one.log_likelihood[0] == found.log_likelihood[index]
    vae, x = load_model(open_run(folder / "run")).vae, torch.from_numpy(pixels)
    with torch.no_grad():
        mean, log_var = (one.unsqueeze(1) for one in vae.encode(x))
        noise = torch.randn(6, 2000, vae.latent_dim, generator=torch.Generator().manual_seed(1))
        z = mean + torch.exp(log_var / 2) * noise
        log_weight = vae.conditional_log_likelihood(x, z).double()
        log_weight += (0.5 * (noise**2 - z**2) + log_var / 2).sum(-1)
    weight = (log_weight - log_weight.max(1, keepdim=True).values).exp()
    expected = log_weight.logsumexp(1) - math.log(2000)
    error = weight.std(1) / weight.mean(1) / math.sqrt(2000)
    bound = 5 * (found.std_error + error.numpy()) + 1e-3
    assert (bound < 1.5).all()
    assert (np.abs(found.log_likelihood - expected.numpy()) < bound).all()


def test_the_encoder_alone_is_finished(folder: Path, tmp_path: Path) -> None:
    data = f"--data={folder / 'images.npy'}"
    arguments = ["finish-encoder", str(folder / "store" / "passes"), data, f"--out={tmp_path}"]
    assert main([*arguments, "--finish-epochs=1", "--device=cpu"]) == 0
    checkpoint = open_run(tmp_path).load_checkpoint(torch.device("cpu"))
    assert checkpoint is not None
    before, after = load_model(open_run(folder / "run")).vae.state_dict(), checkpoint["model"]
    changed = {name.partition(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {"encoder"}
