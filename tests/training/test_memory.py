"""However large images are, no more of them and of their samples are worked on at once than the bound allows."""

from typing import Any

import pytest
import torch

from tests.rounding import FLOAT64, gamma
from tests.training.in_float64 import drift, in_float64
from training.configuration import Configuration
from training.data.splits import LoadedImages
from training.fit import memory
from training.fit.devices import PLAIN
from training.fit.distributed import ALONE
from training.fit.gradients import accumulate_gradients
from training.fit.loop import Loop
from training.fit.memory import Footprint, footprint, images_a_batch
from training.fit.objective import log_weight, negative_iwae_bound
from training.fit.state import TrainingState, build_state
from training.fit.trainer import validate
from training.networks.vae import Vae, build_vae

CPU = torch.device("cpu")
MEAN = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(2))
IMAGES = torch.randint(0, 256, (10, 1, 6, 5), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
RECIPE: dict[str, Any] = {"width": 4, "latent_dim": 3, "num_samples": 7, "batch_size": 10, "epochs": 1}


def test_what_a_model_keeps_is_counted_by_images_and_rows() -> None:
    for width in (4, 9):
        found = footprint(build_vae(Configuration(**{**RECIPE, "width": width}), MEAN))
        # Linear layers keep what they read, SiLU too, and the bounds of log_var what they bound.
        assert found.image == 30 + 5 * width + 3  # pixels, two hidden layers and their SiLU, features for each head
        assert found.row == 3 + 4 * width + 2 * 30  # code, hidden layers, logits for the product and for the softplus


@pytest.mark.parametrize("num_samples", [1, 8, 5000])
@pytest.mark.parametrize("row", [1, 3000, 2**24, 2**29])
@pytest.mark.parametrize("image", [1, 2**20, 2**28])
def test_as_many_as_fit_and_at_least_one(num_samples: int, row: int, image: int) -> None:
    images, samples = Footprint(image, row).at_once(num_samples)
    assert 1 <= samples <= num_samples
    assert images >= 1
    assert images == 1 or samples == num_samples
    if samples > 1 or images > 1:
        assert images * (image + samples * row) <= memory.MOST_ELEMENTS
    if samples == num_samples:
        assert (images + 1) * (image + samples * row) > memory.MOST_ELEMENTS


def test_large_images_come_in_small_batches() -> None:
    assert images_a_batch(250, (1, 28, 28)) == 250
    assert images_a_batch(250, (3, 512, 512)) * 3 * 512 * 512 <= 2**24
    assert images_a_batch(250, (3, 9000, 9000)) == 1


def loop_and_state(**options: Any) -> tuple[Loop, TrainingState]:
    state = build_state(Configuration(**{**RECIPE, **options}), MEAN, CPU)
    configuration = Configuration(**{**RECIPE, **options})
    return Loop(configuration, state, LoadedImages(IMAGES.numpy(), CPU), ALONE, PLAIN, progress=False), state


def gradients(vae: Vae) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in vae.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("rows", [2, 9, 30])  # a part of one image's samples, one image, three images
@pytest.mark.parametrize(
    "options",
    [{}, {"objective": "elbo", "kl_warm_up_epochs": 3.0}, {"likelihood": "gaussian", "binarisation": "none"}],
    ids=["iwae", "elbo", "gaussian"],
)
def test_parts_of_a_batch_add_up_to_its_gradient(
    rows: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for parted in (False, True):
        with in_float64():
            loop, state = loop_and_state(**options)
            if parted:
                monkeypatch.setattr(memory, "MOST_ELEMENTS", loop.sizes.image * 3 + loop.sizes.row * rows)
                assert loop.sizes.at_once(7) != (10, 7)
            bound = loop.train_epoch(1).bound
            found.append((bound, gradients(state.model), validate(state.averaged, IMAGES, loop.configuration)))
        monkeypatch.undo()
    (bound, whole, validated), (parts_bound, parts, parts_validated) = found
    # Sums over 70 rows, 30 pixels and some layers in another order; of gradients, terms cancel a hundredfold at most.
    rounding = gamma(70 + 2 * 30 + 100, FLOAT64)
    assert parts_bound == pytest.approx(bound, rel=rounding)
    for name, expected in whole.items():
        assert torch.allclose(parts[name], expected, rtol=0, atol=100 * rounding * expected.abs().max().item()), name
    moved = drift(1, loop.configuration.learning_rate, num_images=10, num_pixels=30)
    slope = sum(gradient.abs().sum().item() for gradient in whole.values())
    assert parts_validated == pytest.approx(validated, rel=rounding, abs=4 * slope * moved)


def test_what_fits_is_worked_on_at_once_bit_for_bit() -> None:
    vae = build_vae(Configuration(**RECIPE), MEAN)
    x = (IMAGES > 127).float()
    noise = torch.randn(10, 7, 3, generator=torch.Generator().manual_seed(4))
    loss = negative_iwae_bound(vae, x, noise).sum() / 10
    loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(vae)
    vae.zero_grad()
    found = accumulate_gradients(
        lambda some, part, whole: negative_iwae_bound(vae, some, part, all_log_weights=whole),
        vae,
        x,
        noise,
        footprint(vae),
        batch_size=10,
        autocast=torch.autocast("cpu", enabled=False),
    )
    assert torch.equal(found, loss.detach())
    assert all(torch.equal(value, expected[name]) for name, value in gradients(vae).items())


def test_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, state = loop_and_state()
    most = loop.sizes.image + 2 * loop.sizes.row
    monkeypatch.setattr(memory, "MOST_ELEMENTS", most)
    batches: list[tuple[int, int]] = []

    def counted(model: Vae, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        batches.append((len(x), noise.shape[1]))
        return log_weight(model, x, noise)

    monkeypatch.setattr("training.fit.gradients.log_weight", counted)
    loop.train_epoch(1)
    validate(state.averaged, IMAGES, loop.configuration, sizes=loop.sizes)
    assert batches
    assert all(images * (loop.sizes.image + samples * loop.sizes.row) <= most for images, samples in batches)
