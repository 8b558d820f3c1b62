from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.__main__ import main
from training.configuration import Configuration
from training.data.augmentation import augment
from training.data.sources import read_source
from training.data.splits import split
from training.fit.run import create_run, describe_run
from training.fit.trainer import fit

CPU = torch.device("cpu")
TINY = Configuration(width=8, latent_dim=2, num_samples=1, epochs=1, batch_size=40)


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """One image [C, H, W], pixel by pixel."""
    _, height, width = image.shape
    return torch.stack(
        [
            torch.stack(
                [
                    image[:, min(max(row - down, 0), height - 1), min(max(column - right, 0), width - 1)]
                    for column in range(width)
                ],
                -1,
            )
            for row in range(height)
        ],
        -2,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("flip", "shift", "expected"), [(True, 0, 2), (False, 1, 9), (True, 2, 50)])
def test_each_image_is_varied_by_itself_and_every_variation_comes_up(
    dtype: torch.dtype, flip: bool, shift: int, expected: int
) -> None:
    image = torch.arange(2 * 5 * 6).reshape(2, 5, 6).to(dtype)
    steps = range(-shift, shift + 1)
    variations = [
        moved(start, down, right)
        for start in ([image, image.flip(2)] if flip else [image])
        for down in steps
        for right in steps
    ]
    found = augment(
        image.expand(1000, -1, -1, -1), flip=flip, shift=shift, generator=torch.Generator(CPU).manual_seed(0)
    )
    assert found.dtype == dtype
    counts = torch.stack([(found == variation).flatten(1).all(1).sum() for variation in variations])
    assert len(variations) == expected
    assert counts.sum() == 1000
    assert (counts > 1000 / expected / 5).all()


def test_what_is_off_changes_nothing_and_draws_nothing() -> None:
    generator = torch.Generator(CPU).manual_seed(0)
    before = generator.get_state()
    images = torch.zeros(3, 1, 4, 4)
    assert augment(images, flip=False, shift=0, generator=generator) is images
    assert torch.equal(generator.get_state(), before)


def test_training_sees_varied_images_and_validation_does_not(tmp_path: Path) -> None:
    """Images are white on the left; an untrained decoder gives their mean, under which mirrored ones are unlikely."""
    images = np.zeros((100, 8, 8), np.uint8)
    images[:, :, :4] = 255
    np.save(tmp_path / "left.npy", images)
    bounds = []
    for flip in (False, True):
        configuration = replace(TINY, learning_rate=1e-30, binarisation="threshold", flip=flip)
        splits = split(read_source(tmp_path / "left.npy"), configuration)
        run = create_run(tmp_path / str(flip), describe_run(configuration, splits, source=""))
        fit(run, splits, device=CPU, on_epoch=lambda figures, model: None)
        bounds.append(run.read_metrics(1)[0])
    assert bounds[0]["train_bound"] > -10
    assert -0.7 * 64 * 6.9 < bounds[1]["train_bound"] < -0.3 * 64 * 6.9  # a pixel that is wrong costs log 1000
    assert bounds[0]["validation_bound"] == bounds[1]["validation_bound"]


def test_a_shift_as_large_as_the_image_is_refused_before_there_is_a_run(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", f"--data={digits}", f"--out={tmp_path / 'run'}", "--device=cpu"]
    assert main([*arguments, "--shift=28"]) == 2
    assert "shift must be less than the images' 28 pixels, not 28" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
