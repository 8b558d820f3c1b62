"""A store with one small model, and images for it in every form."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store import ImageShape
from tests.toys import AnyArray, bernoulli_toy

SHAPE = ImageShape(channels=1, height=5, width=4)
COUNT = 11


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress, however slow the machine is: tests compare what is printed."""
    monkeypatch.setattr("service.progress._SECONDS_AT_LEAST", math.inf)
    monkeypatch.setattr("service.progress._SECONDS_AT_MOST", math.inf)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for seed in (5, 6):
        bernoulli_toy(SHAPE, name="toy", seed=seed).publish(root)
    return root


@pytest.fixture(scope="session")
def pixels() -> AnyArray:
    """Of which the model calls nine strange, and two not."""
    return np.random.default_rng(4).choice(np.array([0, 255], np.uint8), (COUNT, 5, 4))


@pytest.fixture
def folder(tmp_path: Path, pixels: AnyArray) -> Path:
    """The images as files: 00.png to 10.png, the last ones in a folder within."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save((root / "more" if index > 7 else root) / f"{index:02}.png")
    return root
